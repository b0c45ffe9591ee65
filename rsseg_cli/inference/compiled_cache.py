"""Compiled networks on disk, in the user's cache folder, so that they are made once.

What is read from there becomes machine code: the folder must be the user's, and nobody else may write there.
An entry holds the SHA-256 of its content; one that is damaged or under another's name is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path

from rsseg_cli import files
from rsseg_cli.errors import OutputError

MAX_BYTES = 1 << 30  # of all entries; those not used for longest go
DIGEST_BYTES = 32
ENDING = ".bin"
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where compiled networks are kept; it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "rsseg" / "compiled"


def read(key: str) -> bytes | None:
    """Return the content of an entry; None where there is none that is whole."""
    folder = _usable(cache_folder())
    if folder is None:
        return None
    path = folder / _name(key)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                return None
            digest, content = file.read(DIGEST_BYTES), file.read()
    except OSError:
        return None
    if digest != _digest(key, content):
        return None
    with suppress(OSError):
        os.utime(path)
    return content


def write(key: str, content: bytes) -> None:
    """Keep an entry, whole or not at all; other entries make room. A disk that fails is no error."""
    folder = _usable(cache_folder())
    if folder is None or len(content) > MAX_BYTES // 2:
        return
    try:
        with files.write_atomic(folder / _name(key)) as temporary:
            temporary.write_bytes(_digest(key, content) + content)
        _make_room(folder)
    except (OSError, OutputError) as err:
        _log.info("%s: compiled networks cannot be kept (%s)", folder, err)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() + ENDING


def _digest(key: str, content: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(content)
    return digest.digest()


def _make_room(folder: Path) -> None:
    """Remove what was not used for longest until the rest is small enough."""
    states = []
    for path in folder.iterdir():
        with suppress(OSError):
            states.append((path.stat(), path))
    left = sum(state.st_size for state, _ in states)
    for state, path in sorted(states, key=lambda item: item[0].st_mtime_ns):
        if left <= MAX_BYTES:
            return
        with suppress(OSError):
            path.unlink()
        left -= state.st_size


@cache
def _usable(folder: Path) -> Path | None:
    """Return the folder, made if needed; None where it is not the user's alone."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        if _is_private(folder.parent) and _is_private(folder):
            return folder
        problem = "needs a folder that you own and nobody else may write"
    except (OSError, RuntimeError) as err:  # RuntimeError: no home
        problem = str(err)
    _log.info("%s: compiled networks are not kept there (%s)", folder, problem)
    return None


def _is_private(folder: Path) -> bool:
    state = os.lstat(folder)
    if not stat.S_ISDIR(state.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
