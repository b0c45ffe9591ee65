"""Arrays in files: what grows with the largest polygon leaves memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rsseg_cli.files import write_error

Blob = bytes | NDArray[np.uint8]  # well-known binary; an array in a file where it is large
COPY_BYTES = 1 << 20  # at a time


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes above which work is split, or arrays leave memory."""

    points: int = 1 << 17  # processed together, some 100 bytes each
    held_points: int = 1 << 20  # waiting in memory, 8 bytes each
    fragments: int = 1 << 17  # waiting until they are joined
    blocks: int = 256
    blob_bytes: int = 8 << 20


class Table:
    """Base of dataclasses whose fields are arrays, or tables, with an entry a row; not those in `shared`."""

    shared: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the fields with an entry a row."""
        return [field.name for field in fields(cls) if field.name not in cls.shared]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(getattr(self, self.columns()[0]))

    def take(self, rows: NDArray[Any]) -> Self:
        """Select rows, by index in the given order or by mask."""
        columns = {name: getattr(self, name) for name in self.columns()}
        chosen = {
            name: column.take(rows) if isinstance(column, Table) else column[rows]
            for name, column in columns.items()
        }
        return replace(self, **chosen)  # type: ignore[type-var]

    @classmethod
    def concat(cls, tables: Sequence[Self]) -> Self:
        """Concatenate one table or more that share nothing."""
        parts = {name: [getattr(table, name) for table in tables] for name in cls.columns()}
        return cls(
            **{
                name: column[0].concat(column) if isinstance(column[0], Table) else np.concatenate(column)
                for name, column in parts.items()
            }
        )


class MemmapStore:
    """Makes arrays in unnamed files of a folder, which go with the arrays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in a file of its own; `release_pages` frees the memory of its pages."""
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
        """Copy an array to a file."""
        stored = self.empty(array.shape, array.dtype)
        step = max(1, COPY_BYTES // max(1, array[:1].nbytes))
        for begin in range(0, len(array), step):
            stored[begin : begin + step] = array[begin : begin + step]
        release_pages(stored)
        return stored


class Column:
    """Appended rows of numbers, or plain ones with 0 columns, in an unnamed file that goes with it."""

    def __init__(self, folder: Path, dtype: DTypeLike, columns: int = 0) -> None:
        self._dtype, self._columns = np.dtype(dtype), columns
        self._row_bytes = self._dtype.itemsize * max(1, columns)
        self._folder, self._count = folder, 0
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 goes with the column

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows."""
        with writing(self._folder):
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
            self._file.flush()
        self._count += len(rows)

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Read rows `first` to `end`."""
        size = (end - first) * self._row_bytes
        data = os.pread(self._file.fileno(), size, first * self._row_bytes)
        return self._shaped(np.frombuffer(data, self._dtype))

    def whole(self) -> NDArray[Any]:
        """Map all rows, writable; `release_pages` frees their memory."""
        if not self._count:
            return self._shaped(np.zeros(0, self._dtype))
        return self._shaped(np.memmap(self._file, self._dtype, "r+"))

    def _shaped(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(-1, self._columns) if self._columns else values


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn OSError into OutputError; `folder` lies beside the output."""
    try:
        yield
    except OSError as err:
        raise write_error(folder.parent, err) from err


def store_tables(path: Path, *tables: NDArray[Any]) -> None:
    """Write arrays to a file, for `load_tables`."""
    with writing(path.parent), open(path, "wb") as file:
        file.write(np.array([len(table) for table in tables], np.int64).tobytes())
        for table in tables:
            file.write(table.tobytes())


def load_tables(path: Path, *dtypes: DTypeLike) -> list[NDArray[Any]]:
    """Read the arrays of `store_tables`, which were of these types."""
    data = path.read_bytes()
    counts = np.frombuffer(data, np.int64, len(dtypes))
    at, tables = counts.nbytes, []
    for dtype, count in zip(dtypes, counts.tolist(), strict=True):
        tables.append(np.frombuffer(data, dtype, count, at))
        at += tables[-1].nbytes
    return tables


def in_file(array: NDArray[Any]) -> bool:
    """Tell whether an array lies in a file."""
    return isinstance(_base(array), mmap.mmap)


def release_pages(array: bytes | NDArray[Any]) -> None:
    """Free the memory that an array in a file takes; its content stays."""
    base = _base(array)
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _base(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array
