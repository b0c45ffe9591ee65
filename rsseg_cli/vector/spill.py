"""Arrays in files: what grows with the largest polygon leaves memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
        with writing(self._folder), tempfile.TemporaryFile(dir=self._folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is met here, not in a page
            else:
                file.truncate(size)
            return np.memmap(file, dtype, "r+", shape=shape)

    def store(self, array: NDArray[Any]) -> NDArray[Any]:
        """The same array in a file."""
        stored = self.empty(array.shape, array.dtype)
        step = max(1, AT_ONCE // max(1, array[:1].nbytes))
        for begin in range(0, len(array), step):
            stored[begin : begin + step] = array[begin : begin + step]
        let_go(stored)
        return stored


class Column:
    """Rows of numbers in a file that has no name and goes with it; they are added at its end.

    Args:
        folder: where it lies.
        columns: numbers in a row; 0 makes plain arrays of them.
    """

    def __init__(self, folder: Path, dtype: DTypeLike, columns: int = 0) -> None:
        self._dtype, self._columns = np.dtype(dtype), columns
        self._row_bytes = self._dtype.itemsize * max(1, columns)
        self._folder, self._count = folder, 0
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 goes with the column

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows.

        Raises:
            OutputError: the disk is full.
        """
        with writing(self._folder):
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
            self._file.flush()
        self._count += len(rows)

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Rows `first` to `end`."""
        size = (end - first) * self._row_bytes
        found = os.pread(self._file.fileno(), size, first * self._row_bytes)
        return self._shaped(np.frombuffer(found, self._dtype))

    def whole(self) -> NDArray[Any]:
        """All rows, to be written to; `let_go` frees the memory that they take."""
        if not self._count:
            return self._shaped(np.zeros(0, self._dtype))
        return self._shaped(np.memmap(self._file, self._dtype, "r+"))

    def _shaped(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(-1, self._columns) if self._columns else values


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say where writing failed; `folder` lies beside the output."""
    try:
        yield
    except OSError as err:
        raise OutputError(f"{folder.parent}: cannot be written ({err}). Is the disk full?") from err


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
