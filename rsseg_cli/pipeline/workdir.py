"""Temporary files of a run, in a folder beside its output, and the lock on that output."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import filelock

from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline.journal import Publication

# endings of files that are renamed to an output, or that it is made of at the end
PUBLISHED = ("tif", "aux.xml", "qml", "png", "jpg", "html", "json")
ATTEMPTS = 20  # while runs that end remove their folders
MAX_OWNER_BYTES = 4096


class WorkDir:
    """Temporary files of a run, and their lock.

    Args:
        paths: outputs by kind; the folder lies beside the labels.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = {kind: Path(os.path.abspath(path)) for kind, path in paths.items()}
        self.output = self.paths["labels"]
        self.folder = self.output.with_name(f".{self.output.name}.rsseg")
        self.journal = self.folder / "journal.json"
        self.tag = f"rsseg-{hashlib.sha256(os.fsencode(self.output)).hexdigest()[:8]}"
        self.lock = OutputLock(self.folder, self.output)

    def of(self, kind: str, ending: str) -> Path:
        """Name a temporary file of an output; on the output's file system, if it is going to be renamed."""
        if ending not in PUBLISHED:
            return self.folder / f"{kind}.{ending}"
        return self.beside(self.paths[kind], f"{kind}.{ending}")

    def beside(self, path: Path, name: str) -> Path:
        """Name a temporary file or folder on the file system of an output."""
        if path.parent == self.output.parent:
            return self.folder / name
        return path.with_name(f".{path.name}.{self.tag}.{name}")

    def elsewhere(self) -> list[Path]:
        """List temporary files that lie in the folders of other outputs, each of which is read once."""
        prefixes: defaultdict[Path, list[str]] = defaultdict(list)
        for path in self.paths.values():
            if path.parent != self.output.parent:
                prefixes[path.parent].append(f".{path.name}.{self.tag}.")
        names = []
        for folder, starts in prefixes.items():
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                names += [
                    folder / entry.name
                    for entry in entries
                    if entry.name.startswith(tuple(starts)) and not entry.name.endswith(".old")
                ]
        return names

    def owns(self, publication: Publication) -> bool:
        """Whether a journal renames files of this run to names of these outputs alone."""
        files = [Path(os.path.normpath(file)) for file, _ in publication.renames]
        names = [Path(name) for _, name in publication.renames] + list(map(Path, publication.leftovers))
        own = {self.folder, *self.elsewhere()}
        stems = [(path.parent, f"{path.stem}.") for path in self.paths.values()]
        return all(own & {file, *file.parents} or not file.exists() for file in files) and all(
            any(name.parent == folder and name.name.startswith(stem) for folder, stem in stems)
            for name in names
        )

    def clear(self, keep: Collection[Path]) -> bool:
        """Remove temporary files but for some; return whether there were any."""
        stale = [file for file in (*self.folder.iterdir(), *self.elsewhere()) if file not in keep]
        _remove(stale)
        return bool(stale)

    def remove(self) -> None:
        """Remove all temporary files, and release the lock of their folder, which goes last."""
        _remove(self.elsewhere())
        self.lock.remove()

    def sweep(self) -> None:
        """Remove what a run left that was killed while it removed its folder."""
        discard(rubbish_of(self.folder))


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class OutputLock:
    """A lock in a folder beside an output, made with the folder and removed with it.

    The operating system ends the lock with its process, however that ends, so a process number that is used
    again does not matter. On network file systems it holds between machines where the server keeps locks
    (NFS 4, SMB, Lustre with flock). On file systems without locks a file with the owner's host and process
    takes its part, and is taken over once that process is gone, if it was on this host.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.path = folder / "lock"
        self._folder, self._output = folder, output
        self._owner = folder / "owner.json"
        self._lock: filelock.BaseFileLock | None = None

    def acquire(self) -> None:
        """Take the lock; an OutputError says who holds it, or why the folder cannot be made."""
        discard(rubbish_of(self._folder))
        for _ in range(ATTEMPTS):
            try:
                if self._folder.is_symlink():
                    raise OutputError(f"{self._folder}: is a link, needs a folder of its own. Remove it.")
                self._folder.mkdir(exist_ok=True)
                self._lock = _locked(self.path)
                self._write_owner()
            except FileNotFoundError:  # a run that ended removed the folder in between
                self.release()
                continue
            except filelock.Timeout:
                raise OutputError(self._refusal()) from None
            except OSError as err:
                self.release()
                raise OutputError(f"{self._output}: cannot be written beside ({err})") from err
            return
        raise OutputError(f"{self._output}: other runs write it in turn. Try again.")

    @property
    def held(self) -> bool:
        return self._lock is not None

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def remove(self) -> None:
        """Release the lock, and remove the folder with all that it holds.

        It is renamed first, at once: what a kill leaves of it is `rubbish_of`, never half a folder.
        """
        rubbish = rubbish_of(self._folder)
        discard(rubbish)
        try:
            os.replace(self._folder, rubbish)
        except OSError:
            discard(self._folder)
        else:
            with suppress(OSError):  # first, while it is held: who waits for this file sees that it is gone
                (rubbish / self.path.name).unlink()
            discard(rubbish)
        self.release()

    @property
    def files(self) -> tuple[Path, ...]:
        return self.path, self._owner, _soft(self.path)

    def _write_owner(self) -> None:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        self._owner.write_text(json.dumps(owner), encoding="utf-8")

    def _refusal(self) -> str:
        """Say who holds the lock; its file may not be written yet."""
        who = "another run"
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            with self._owner.open("rb") as file:
                owner = json.loads(file.read(MAX_OWNER_BYTES))
            process, host, since = int(owner["process"]), str(owner["host"])[:100], str(owner["since"])[:40]
            who = f"process {process} on {host}, since {since}"
        return f"{self._output}: is being written by {who}. Wait for it or end it, or choose another output."


def _locked(path: Path) -> filelock.BaseFileLock:
    """Take a lock; `filelock.Timeout` where another process holds it."""
    lock: filelock.BaseFileLock = filelock.FileLock(path, blocking=False)
    try:
        lock.acquire()
    except (filelock.Timeout, FileNotFoundError):
        raise
    except (OSError, NotImplementedError):  # a file system without locks
        lock = filelock.SoftFileLock(_soft(path), blocking=False)
        lock.acquire()
    return lock


def rubbish_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-rubbish")


def discard(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _soft(path: Path) -> Path:
    """A file that exists while the lock is held, for file systems without locks."""
    return path.with_name("lock.soft")
