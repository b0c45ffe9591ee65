"""Rows of a raster in temporary files: tiled, compressed, each row written once, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from rsseg_cli.errors import OutputError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.classes import NODATA

Overviews = Literal["mode", "average"]
Rows = NDArray[np.uint8]


def downsample2x(rows: Rows, resampling: Overviews) -> Rows:
    """Return (bands, rows, cols) at half the size, rounded up; NODATA only where all four pixels are.

    "mode" takes the most frequent valid value, the first of equals; "average" the rounded mean.
    """
    _, height, width = rows.shape
    if height % 2 or width % 2:
        rows = np.pad(rows, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    a, b = rows[:, ::2, ::2], rows[:, ::2, 1::2]
    c, d = rows[:, 1::2, ::2], rows[:, 1::2, 1::2]
    if resampling == "average":
        return _mean_of_four(a, b, c, d)
    return _mode_of_four(*(np.ascontiguousarray(part) for part in (a, b, c, d)))


def _mode_of_four(a: Rows, b: Rows, c: Rows, d: Rows) -> Rows:
    by_a = (a == b) | (a == c) | (a == d)
    by_b = (b == c) | (b == d)
    by_c = c == d
    first = a
    if any(int(part.max()) == NODATA for part in (a, b, c, d)):
        by_a &= a != NODATA
        by_b &= b != NODATA
        by_c &= c != NODATA
        for other in (b, c, d):
            first = np.where(first == NODATA, other, first)
    return np.where(by_a, a, np.where(by_b, b, np.where(by_c, c, first)))


def _mean_of_four(a: Rows, b: Rows, c: Rows, d: Rows) -> Rows:
    parts = (a, b, c, d)
    total = sum((part.astype(np.uint16) for part in parts[1:]), a.astype(np.uint16))
    if not any(int(part.max()) == NODATA for part in parts):
        return ((total + 2) >> 2).astype(np.uint8)
    empty = sum(((part == NODATA).astype(np.uint16) for part in parts[1:]), (a == NODATA).astype(np.uint16))
    count = np.maximum(4 - empty, 1)
    mean = (total - NODATA * empty + count // 2) // count
    return np.where(empty == 4, NODATA, mean).astype(np.uint8)


BLOCK = 512
LOW_BLOCK = 128
HALVED_ROWS = 64  # at once, for an overview; even
MAX_ROW_BYTES = 64 << 20
ROW_STEP = 16  # heights of a TIFF's blocks are multiples of this


class TiledFile:
    """Rows in one file, written by whole rows of blocks, each once.

    Args:
        options: GDAL's creation options, `blockysize` among them; None for those of temporary files.
    """

    def __init__(
        self, path: Path, count: int, height: int, width: int, options: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.height, self.width = height, width
        self.rows_written = 0
        self._pending = 0
        options = options or temporary_options(count, height, width)
        self._block_width, self._block = int(options["blockxsize"]), int(options["blockysize"])
        self._buffer = np.empty((count, self._block, width), np.uint8)
        profile = {"driver": "GTiff", "dtype": "uint8", "count": count, "height": height, "width": width}
        profile |= {"tiled": True, "bigtiff": "if_safer", **options}
        self._dataset: Any = gdal.open_raster(path, "w", **profile)

    def push(self, rows: Rows) -> Iterator[Rows]:
        """Take rows; yield each row of blocks as it is written, valid until the next."""
        while rows.shape[1]:
            taken = min(rows.shape[1], self._block - self._pending)
            self._buffer[:, self._pending : self._pending + taken] = rows[:, :taken]
            self._pending += taken
            rows = rows[:, taken:]
            if self._pending == self._block or self.rows_written + self._pending == self.height:
                yield self._flush()

    def _flush(self) -> Rows:
        block = self._buffer[:, : self._pending]
        self._dataset.write(block, window=Window(0, self.rows_written, self.width, self._pending))
        self.rows_written += self._pending
        self._pending = 0
        return block

    def close(self) -> None:
        if not self._dataset.closed:
            self._dataset.close()

    def complete(self) -> None:
        self.close()
        last = (self.width - 1) // self._block_width, (self.height - 1) // self._block
        tags = [f"BLOCK_{name}_{last[0]}_{last[1]}" for name in ("OFFSET", "SIZE")]
        end = 0
        with suppress(RasterioError), gdal.open_raster(self.path) as dataset:
            offset, size = (int(dataset.get_tag_item(tag, "TIFF", bidx=dataset.count) or 0) for tag in tags)
            end = offset + size if size else 0
        if not 0 < end <= self.path.stat().st_size:
            raise OutputError(f"{self.path}: cannot be written whole. Is the disk full?")


def temporary_options(count: int, height: int, width: int) -> dict[str, str]:
    """Return options of files that are read once: a row of blocks of all bands is held in memory."""
    block = LOW_BLOCK if is_large(count, width) else min(BLOCK, -(-height // ROW_STEP) * ROW_STEP)
    sizes = {"blockxsize": str(BLOCK), "blockysize": str(block), "interleave": "band"}
    return sizes | {"compress": "zstd", "zstd_level": "1"}


def is_large(count: int, width: int, block: int = BLOCK) -> bool:
    """Whether a row of blocks of all bands would take much memory."""
    return count * width * block > MAX_ROW_BYTES


class RowPart(NamedTuple):
    path: Path
    row: int
    height: int


class RowParts:
    """Rows in one file after another, each complete as soon as its last row is written.

    `name` is the path of the part that begins at a row; `cuts` are the first rows of the parts, and the end.
    """

    def __init__(self, name: Callable[[int], Path], count: int, width: int, cuts: Sequence[int]) -> None:
        self._name, self._count, self.width = name, count, width
        self.height = cuts[-1]
        self._due = [(first, end) for first, end in pairwise(cuts) if end > first]
        self.parts: list[RowPart] = []
        self._file: TiledFile | None = None
        self._taken = 0  # rows of it

    @property
    def rows_done(self) -> int:
        return self._due[len(self.parts)][0] if len(self.parts) < len(self._due) else self.height

    def resume_from(self, rows: int) -> None:
        """Take over the files of the first `rows` rows, which an earlier run completed."""
        while self.rows_done < rows:
            first, end = self._due[len(self.parts)]
            if end > rows:
                raise ValueError(f"{rows} rows are no whole number of parts; one ends at row {end}")
            self.parts.append(RowPart(self._name(first), first, end - first))

    def read(self) -> Iterator[Rows]:
        """Yield the rows in complete files, a row of blocks at a time."""
        for part in self.parts:
            yield from _rows_of(part, self._count, self.width)

    def open(self) -> TiledFile:
        """Create the next file; otherwise its first rows do."""
        if self._file is None:
            first, end = self._due[len(self.parts)]
            self._file = TiledFile(self._name(first), self._count, end - first, self.width)
        return self._file

    def push(self, rows: Rows) -> None:
        """Take the next rows, uint8 (count, any number, width)."""
        while rows.shape[1]:
            first, end = self._due[len(self.parts)]
            file = self.open()
            taken = min(rows.shape[1], end - first - self._taken)
            for _ in file.push(rows[:, :taken]):
                pass
            self._taken += taken
            rows = rows[:, taken:]
            if self._taken == end - first:
                file.complete()
                self.parts.append(RowPart(file.path, first, end - first))
                self._file, self._taken = None, 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _rows_of(part: RowPart, count: int, width: int) -> Iterator[Rows]:
    with gdal.open_raster(part.path) as dataset:
        if (dataset.count, dataset.height, dataset.width) != (count, part.height, width):
            raise OutputError(
                f"{part.path}: {dataset.count} bands of {dataset.width} x {dataset.height} px, needs {count} "
                f"of {width} x {part.height}. Run again without --resume"
            )
        step = dataset.block_shapes[0][0]
        for row in range(0, part.height, step):
            height = min(step, part.height - row)
            yield dataset.read(window=Window(0, row, width, height))


class Pyramid:
    """A raster and its overviews, made from rows as they pass, each level half of the one above."""

    def __init__(
        self,
        name: Callable[[int], Path],
        count: int,
        height: int,
        width: int,
        resampling: Overviews,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._resampling = resampling
        self.levels: list[TiledFile] = []
        try:
            self._add(name, count, height, width, options)
            while max(height, width) > BLOCK:
                height, width = -(-height // 2), -(-width // 2)
                self._add(name, count, height, width, options)
        except BaseException:
            self.close()
            raise

    def _add(self, name: Callable[[int], Path], *size: Any) -> None:
        self.levels.append(TiledFile(name(len(self.levels)), *size))

    def push(self, rows: Rows, level: int = 0) -> None:
        """Take the next rows of a level, any number."""
        for block in self.levels[level].push(rows):
            if level + 1 < len(self.levels):
                for first in range(0, block.shape[1], HALVED_ROWS):
                    half = downsample2x(block[:, first : first + HALVED_ROWS], self._resampling)
                    self.push(half, level + 1)

    def complete(self) -> list[Path]:
        """Close once all rows have come; return the files of the levels."""
        for level in self.levels:
            level.complete()
        return [level.path for level in self.levels]

    def close(self) -> None:
        for level in self.levels:
            level.close()
