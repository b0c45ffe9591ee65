"""One run an output: a lock that ends with its process, and who holds it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import filelock

from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline.journal import Publication

PUBLISHED = ("tif", "aux.xml", "png")  # endings of what gets its name by a rename


class Place:
    """Where what is temporary lies.

    Args:
        paths: outputs by kind; the folder is that of the labels.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = {kind: Path(os.path.abspath(path)) for kind, path in paths.items()}
        self.output = self.paths["labels"]
        self.folder = self.output.with_name(f".{self.output.name}.rsseg")
        self.journal = self.folder / "journal.json"
        self.tag = f"rsseg-{hashlib.sha256(os.fsencode(self.output)).hexdigest()[:8]}"

    def of(self, kind: str, ending: str) -> Path:
        """A temporary file of an output; on the output's file system, if it is going to be renamed."""
        if ending not in PUBLISHED:
            return self.folder / f"{kind}.{ending}"
        return self.beside(self.paths[kind], f"{kind}.{ending}")

    def beside(self, path: Path, name: str) -> Path:
        """A temporary file or folder on the file system of an output."""
        if path.parent == self.output.parent:
            return self.folder / name
        return path.with_name(f".{path.name}.{self.tag}.{name}")

    def elsewhere(self) -> list[Path]:
        """Temporary files that lie beside other outputs."""
        prefixes = {(path.parent, f".{path.name}.{self.tag}.") for path in self.paths.values()}
        return [
            file
            for folder, prefix in prefixes
            if folder.is_dir()
            for file in folder.iterdir()
            if file.name.startswith(prefix) and not file.name.endswith(".old")
        ]

    def owns(self, publication: Publication) -> bool:
        """Whether a journal renames files of this place to names of these outputs alone."""
        files = [Path(os.path.normpath(file)) for file, _ in publication.renames]
        names = [name for _, name in publication.renames] + list(publication.leftovers)
        own = {self.folder, *self.elsewhere()}
        return all(own & {file, *file.parents} or not file.exists() for file in files) and all(
            any(
                Path(name).parent == path.parent and Path(name).name.startswith(f"{path.stem}.")
                for path in self.paths.values()
            )
            for name in names
        )


def empty(place: Place, kept: Collection[Path]) -> bool:
    """Remove what is temporary but for some files; whether there was anything."""
    stale = [file for file in (*place.folder.iterdir(), *place.elsewhere()) if file not in kept]
    _remove(stale)
    return bool(stale)


def remove(place: Place, lock: OutputLock) -> None:
    """Remove all that is temporary, and release the lock of its folder, which goes last."""
    _remove(place.elsewhere())
    lock.remove()


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


ATTEMPTS = 20  # while runs that end take their folders away
MAX_OWNER_BYTES = 4096


class OutputLock:
    """A lock in a folder beside an output, made with the folder and removed with it.

    The operating system ends the lock with its process, however that ends, so a process number that is used
    again does not matter. On file systems of a network it holds between machines where the server keeps locks
    (NFS 4, SMB, Lustre with flock); where there are none at all, a file with the owner's host and process
    stands for it, and is taken over once that process is gone, if it was on this host.

    Args:
        folder: that is made.
        output: how messages call what is locked.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.path = folder / "lock"
        self._folder, self._output = folder, output
        self._owner = folder / "owner.json"
        self._lock: filelock.BaseFileLock | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputError: a living run holds it, or the folder cannot be made.
        """
        discard(rubbish_of(self._folder))
        for _ in range(ATTEMPTS):
            try:
                if self._folder.is_symlink():
                    raise OutputError(f"{self._folder}: is a link, needs a folder of its own. Remove it.")
                self._folder.mkdir(exist_ok=True)
                self._lock = _locked(self.path)
                self._write_owner()
            except FileNotFoundError:  # a run that ended took the folder away in between
                self.release()
                continue
            except filelock.Timeout:
                raise OutputError(self._refusal()) from None
            except OSError as err:
                self.release()
                raise OutputError(f"{self._output}: cannot be written beside ({err})") from err
            return
        raise OutputError(f"{self._output}: other runs write it in turn. Try again.")

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def remove(self) -> None:
        """Release, and take the folder away with all that it holds.

        Its name goes first, at once: what a kill leaves of it is `rubbish_of`, never half a folder.
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
        """Who is at work; the file may not be written yet."""
        who = "another run"
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            with self._owner.open("rb") as file:
                owner = json.loads(file.read(MAX_OWNER_BYTES))
            process, host, since = int(owner["process"]), str(owner["host"])[:100], str(owner["since"])[:40]
            who = f"process {process} on {host}, since {since}"
        return f"{self._output}: is being written by {who}. Wait for it or end it, or choose another output."


def _locked(path: Path) -> filelock.BaseFileLock:
    """A lock that is held.

    Raises:
        filelock.Timeout: another process holds it.
    """
    lock: filelock.BaseFileLock = filelock.FileLock(path, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError):  # a file system without locks
        lock = filelock.SoftFileLock(_soft(path), blocking=False)
        lock.acquire()
    return lock


def rubbish_of(folder: Path) -> Path:
    """The name under which a run's folder is taken away."""
    return folder.with_name(f"{folder.name}-rubbish")


def discard(folder: Path) -> None:
    """Remove a folder, or what is left of it."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _soft(path: Path) -> Path:
    """A file that is there while the lock is held, for file systems without locks."""
    return path.with_name("lock.soft")
