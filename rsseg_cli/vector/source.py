"""Class rasters by windows, with one value for no data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.raster import classes, gdal
from rsseg_cli.vector.storage import writing


@dataclass(frozen=True, kw_only=True)
class StoredSource:
    """Classes in a file of bare numbers, row by row."""

    path: str
    height: int
    width: int
    nodata: int
    wide: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.uint16 if self.wide else np.uint8)

    def read(self, row: int, count: int, col: int = 0, columns: int | None = None) -> NDArray[Any]:
        """Read (count, columns); pixels outside the raster have no data."""
        whole, rows, cols, inside = _empty(self, row, count, col, columns)
        with open(self.path, "rb", buffering=0) as file:
            if cols == (0, self.width):
                file.seek(rows[0] * self.width * self.dtype.itemsize)
                whole[inside] = np.fromfile(file, self.dtype, whole[inside].size).reshape(whole[inside].shape)
                return whole
            for number, line in enumerate(whole[inside], rows[0]):
                file.seek((number * self.width + cols[0]) * self.dtype.itemsize)
                line[:] = np.fromfile(file, self.dtype, len(line))
        return whole


def stored_source(source: ClassSource | StoredSource, path: Path) -> StoredSource:
    """Return a reader of the stored classes of another source."""
    return StoredSource(
        path=str(path), height=source.height, width=source.width, nodata=source.nodata, wide=source.wide
    )


def _empty(
    source: ClassSource | StoredSource, row: int, count: int, col: int, columns: int | None
) -> tuple[NDArray[Any], tuple[int, int], tuple[int, int], tuple[slice, slice]]:
    """Return pixels without data, the rows and columns of them in the raster, and where in them these lie."""
    columns = source.width - col if columns is None else columns
    rows = max(row, 0), min(row + count, source.height)
    cols = max(col, 0), min(col + columns, source.width)
    inside = slice(rows[0] - row, rows[1] - row), slice(cols[0] - col, cols[1] - col)
    return np.full((count, columns), source.nodata, source.dtype), rows, cols, inside


CACHE_MIB = 4  # a read needs each of GDAL's blocks once: more would only grow with the raster's width


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """A band of whole numbers.

    Attributes:
        nodata: value of pixels without data, and outside the raster.
        wide: values are uint16, as 256 are not enough with no data.
        masked: GDAL's mask says where there is data; otherwise `file_nodata` alone does.
        table: new class of each value, uint8 (256,), INVALID for none; None keeps values.
        store: beginning of the path for decoded rows of tiles; "" decodes a tile for each read.
    """

    path: str
    height: int
    width: int
    nodata: int
    file_nodata: float | None
    masked: bool
    wide: bool
    band: int = 1
    alpha: int = 0
    tile_rows: int = 1
    table: NDArray[np.uint8] | None = field(default=None, compare=False)
    store: str = ""
    chunk_px: int = 3 << 19

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.uint16 if self.wide else np.uint8)

    def read(self, row: int, count: int, col: int = 0, columns: int | None = None) -> NDArray[Any]:
        """Read (count, columns) from `col` on, uint8 or uint16, by default up to the raster's right edge."""
        whole, rows, cols, inside = _empty(self, row, count, col, columns)
        if not self.store or columns is not None:
            with self._opened() as dataset:
                whole[inside] = self._decoded(dataset, rows, cols)
            return whole
        for top in range(rows[0] // self.tile_rows * self.tile_rows, rows[1], self.tile_rows):
            first, end = max(rows[0], top), min(rows[1], top + self.tile_rows)
            strip = stored_source(replace(self, height=self.tile_rows), self._strip(top))
            whole[first - row : end - row] = strip.read(first - top, end - first)
        return whole

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        env, errors = gdal.env(self.path, CACHE_MIB), gdal.errors(SceneError, gdal.display_name(self.path))
        with env, errors, gdal.open_raster(self.path) as dataset:
            yield dataset

    def _decoded(self, dataset: Any, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[Any]:
        """Decode rows and columns of the open raster, into new classes where there is a table."""
        labels = self._values(dataset, rows, cols)
        if self.table is None:
            return labels
        known = labels != self.nodata
        new = np.full(labels.shape, self.nodata, self.dtype)
        new[known] = self.table[np.minimum(labels[known], 255)]
        unknown = known & ((new == classes.INVALID) | (labels > 255))
        if unknown.any():
            row, col = np.argwhere(unknown)[0]
            raise DataError(
                f"{gdal.display_name(self.path)}: value {labels[row, col]} in row {rows[0] + row}, column "
                f"{cols[0] + col} has no name, so --remap does not say what becomes of it. Name it in the "
                "raster, or leave --remap out"
            )
        return new

    def _values(self, dataset: Any, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[Any]:
        window = Window.from_slices(rows, cols)
        values = dataset.read(self.band, window=window)
        if not self.masked:
            labels = values.astype(self.dtype, copy=False)
            if self.file_nodata is not None and self.file_nodata != self.nodata:
                labels[values == self.file_nodata] = self.nodata
            return labels
        valid = dataset.read_masks(self.band, window=window) > 0
        if self.alpha:  # GDAL's mask heeds it in some types only
            valid &= dataset.read(self.alpha, window=window) > 0
        if values.dtype.kind == "f":
            valid &= ~np.isnan(values)
        self._check(values, valid, rows[0], cols[0])
        labels = np.full(values.shape, self.nodata, self.dtype)
        labels[valid] = values[valid].astype(self.dtype)
        return labels

    def _strip(self, top: int) -> Path:
        """Return the file of the row of tiles whose first row is `top`, decoded before if it was not."""
        path = Path(f"{self.store}-{top}.bin")
        if path.exists():
            return path
        end = min(top + self.tile_rows, self.height)
        part = path.with_suffix(f".{os.getpid()}")  # another worker may be at the same
        step = max(self.chunk_px // self.tile_rows // 512, 1) * 512
        with writing(path.parent), open(part, "wb") as file, self._opened() as dataset:
            for col in range(0, self.width, step):
                chunk = self._decoded(dataset, (top, end), (col, min(col + step, self.width)))
                with writing(path.parent):  # not an error of the raster
                    for number, line in enumerate(chunk):
                        file.seek((number * self.width + col) * self.dtype.itemsize)
                        file.write(np.ascontiguousarray(line).data)
                    file.flush()
        os.replace(part, path)
        return path

    def forget(self, first: int, end: int) -> None:
        """Remove stored rows of tiles that only the rows `first` to `end` need."""
        if not self.store:
            return
        low = max(first - 1, 0) // self.tile_rows * self.tile_rows
        high = end if end == self.height else end - self.tile_rows
        for top in range(low, high, self.tile_rows):
            Path(f"{self.store}-{top}.bin").unlink(missing_ok=True)

    def _check(self, values: NDArray[Any], valid: NDArray[np.bool_], row: int, col: int) -> None:
        max_value = 65534 if self.wide else 254
        with np.errstate(invalid="ignore"):
            wrong = valid & ~((values >= 0) & (values <= max_value) & (values == np.floor(values)))
        if wrong.any():
            position = np.argwhere(wrong)[0]
            raise DataError(
                f"{gdal.display_name(self.path)}: value {values[tuple(position)]} in row {row + position[0]},"
                f" column {col + position[1]}; class indices are whole numbers from 0 to {max_value}. "
                "Give a class raster."
            )
