"""Files that appear whole or not at all: targets are checked before work starts, replaced at its end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rsseg_cli.errors import OutputError


def check_target(path: Path, *, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse a target before work starts: an OutputError says why. No target is one of `inputs`."""
    path = Path(path)
    try:
        os.stat(path)
    except OSError as err:
        if err.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise OutputError(f"{path}: cannot be written ({err.strerror}). Choose another name.") from err
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist. Make {path.parent} first.")
    for other in inputs:
        if _same_file(path, other):
            raise OutputError(f"{path}: is the input itself, or a part of it. Choose another output.")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; needs the name of a file.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists. Pass --overwrite to replace it, or choose another output.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: no permission to write in {path.parent}.")


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which then replaces `path`; after an error `path` is as before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_all(
    renames: Mapping[Path, Path], leftovers: Sequence[Path] = (), *, tag: str | None = None
) -> None:
    """Give files their names and remove others: all of it or, where one step fails, none.

    Args:
        renames: file -> its name; in order, so that where the last one is, all are.
        tag: in the names that old files have until the end; by default this process's number.
    """
    kept: dict[Path, Path] = {}  # existing file -> its name until the end
    given: dict[Path, Path] = {}
    try:
        for path in (*renames.values(), *leftovers):
            if path.is_file():
                kept[path] = _waiting_name(path, tag or str(os.getpid()))
                _keep(path, kept[path])
        for file, path in renames.items():
            os.replace(file, path)
            given[path] = file
        for path in leftovers:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in given}:
            sync(folder)
    except BaseException as err:
        for path, file in given.items():
            path.replace(file)
        for path, old in kept.items():
            if old.exists():
                old.replace(path)
        if isinstance(err, OSError):
            names = ", ".join(map(str, renames.values()))
            raise OutputError(f"{names}: cannot be written ({err}); earlier files were left") from err
        raise
    finally:
        for old in kept.values():
            old.unlink(missing_ok=True)


def finish_replacing(
    renames: Sequence[tuple[Path, Path]], leftovers: Sequence[Path] = (), *, tag: str
) -> None:
    """Complete a `replace_all` with the same arguments that was killed."""
    try:
        for file, path in renames:
            if file.exists():
                os.replace(file, path)
        for path in leftovers:
            path.unlink(missing_ok=True)
        for folder in {path.parent for _, path in renames}:
            sync(folder)
        for path in (*(path for _, path in renames), *leftovers):
            _waiting_name(path, tag).unlink(missing_ok=True)
    except OSError as err:
        names = ", ".join(str(path) for _, path in renames)
        raise OutputError(f"{names}: cannot be written ({err})") from err


def sync(path: Path) -> None:
    """Make the system put a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _waiting_name(path: Path, tag: str) -> Path:
    return path.with_name(f".{path.name}.{tag}.old")


def _keep(path: Path, old: Path) -> None:
    """Give a file a second name; a file system without hard links moves it there."""
    old.unlink(missing_ok=True)
    try:
        old.hardlink_to(path)
    except OSError:
        path.replace(old)


def _same_file(path: Path, other: str | Path) -> bool:
    try:
        return path.exists() and os.path.samefile(path, other)
    except OSError:
        return False
