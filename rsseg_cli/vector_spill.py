"""Arrays in files: what grows with the largest polygon leaves memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rsseg_cli.errors import OutputError

Blob = bytes | NDArray[np.uint8]  # well-known binary; an array in a file where it is large
AT_ONCE = 1 << 20  # bytes


class Spill:
    """Makes arrays in files that have no name and go with the arrays.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of its own file; `let_go` frees the memory that its pages take.

        Raises:
            OutputError: the disk is full.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk is met here, not in a page
                else:
                    file.truncate(size)
                return np.memmap(file, dtype, "r+", shape=shape)
        except OSError as err:
            raise OutputError(f"{self._folder.parent}: cannot be written ({err}). Is the disk full?") from err

    def store(self, array: NDArray[Any]) -> NDArray[Any]:
        """The same array in a file."""
        stored = self.empty(array.shape, array.dtype)
        step = max(1, AT_ONCE // max(1, array[:1].nbytes))
        for begin in range(0, len(array), step):
            stored[begin : begin + step] = array[begin : begin + step]
        let_go(stored)
        return stored


def in_file(array: NDArray[Any]) -> bool:
    """Whether an array lies in a file."""
    return isinstance(_base(array), mmap.mmap)


def let_go(array: NDArray[Any]) -> None:
    """Free the memory that an array in a file takes; what it holds stays."""
    base = _base(array)
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _base(array: NDArray[Any]) -> Any:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def chunks(blob: Blob) -> Iterator[bytes]:
    """A blob's bytes, some at a time."""
    for begin in range(0, len(blob), AT_ONCE):
        yield bytes(blob[begin : begin + AT_ONCE])
        if not isinstance(blob, bytes):
            let_go(blob)
