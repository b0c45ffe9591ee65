"""Targets: refused before work starts, replaced all at once at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsseg_cli.errors import OutputError


def check_target(path: Path, *, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse a target before work starts.

    Args:
        inputs: files that must not be replaced.

    Raises:
        OutputError: it exists and `overwrite` is False, is an input or a folder, or its folder is missing or
            read-only.
    """
    path = Path(path)
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


def replace_all(renames: Mapping[Path, Path], leftovers: Sequence[Path] = ()) -> None:
    """Give files their names and remove others: all of it or, where one step fails, none.

    Args:
        renames: file -> its name; in order, so that the last one tells that all are there.
        leftovers: files to remove.

    Raises:
        OutputError: a name cannot be given; what stood under the names before stands there again.
    """
    kept: dict[Path, Path] = {}  # what stands under a name -> where it waits for the end
    given: list[Path] = []
    try:
        for path in (*renames.values(), *leftovers):
            if path.is_file():
                kept[path] = path.with_name(f".{path.name}.{os.getpid()}.old")
                _keep(path, kept[path])
        for file, path in renames.items():
            os.replace(file, path)
            given.append(path)
        for path in leftovers:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in given}:
            sync(folder)
    except BaseException as err:
        for path in given:
            path.unlink(missing_ok=True)
        for path, old in kept.items():
            if old.exists():
                old.replace(path)
        if isinstance(err, OSError):
            names = ", ".join(map(str, renames.values()))
            raise OutputError(f"{names}: cannot be written ({err}); what stood there was left") from err
        raise
    finally:
        for old in kept.values():
            old.unlink(missing_ok=True)


def _keep(path: Path, old: Path) -> None:
    """A second name for a file; a file system without hard links moves it there."""
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


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
