"""Class rasters by windows, with one value for no data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.raster import gdal
from rsseg_cli.vector.storage import writing


@dataclass(frozen=True, kw_only=True)
class StoredSource:
    """Classes in a file of bare numbers, row by row."""

    path: str
    height: int
    width: int
    nodata: int
    wide: bool

    def read(self, row: int, count: int, col: int = 0, columns: int | None = None) -> NDArray[Any]:
        """Read (count, columns); pixels outside the raster have no data."""
        dtype = np.dtype(np.uint16 if self.wide else np.uint8)
        rows, cols = inside(row, count, self.height), inside(col, columns, self.width)
        whole = np.full((count, self.width - col if columns is None else columns), self.nodata, dtype)
        part = whole[rows[0] - row : rows[1] - row, cols[0] - col : cols[1] - col]
        with open(self.path, "rb", buffering=0) as file:
            if part.shape[1] == self.width:
                values = np.fromfile(file, dtype, part.size, offset=rows[0] * self.width * dtype.itemsize)
                part[:] = values.reshape(part.shape)
                return whole
            for number, line in enumerate(part, rows[0]):
                file.seek((number * self.width + cols[0]) * dtype.itemsize)
                line[:] = np.fromfile(file, dtype, len(line))
        return whole


def stored_source(source: Any, path: Path) -> StoredSource:
    """Return a reader of the stored classes of another source."""
    return StoredSource(
        path=str(path), height=source.height, width=source.width, nodata=source.nodata, wide=source.wide
    )


CACHE_MIB = 4  # a read needs each of GDAL's blocks once: more would only grow with the raster's width


def inside(first: int, count: int | None, size: int) -> tuple[int, int]:
    """Return first and end of `count` pixels, or of all from `first` on, that lie in a raster of `size`."""
    return max(first, 0), size if count is None else min(first + count, size)


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """A band of whole numbers.

    Attributes:
        nodata: value of pixels without data, and outside the raster.
        wide: values are uint16, as 256 are not enough with no data.
        store: beginning of the path for decoded rows of tiles; "" decodes a tile for each read.
    """

    path: str
    height: int
    width: int
    nodata: int
    file_nodata: float | None
    masked: bool
    wide: bool
    tile_rows: int = 1
    store: str = ""
    chunk_px: int = 3 << 19

    def read(self, row: int, count: int, col: int = 0, columns: int | None = None) -> NDArray[Any]:
        """Read (count, columns) from `col` on, uint8 or uint16, by default up to the raster's right edge."""
        if self.store and columns is None and col == 0:
            return self._stored(row, count)
        rows, cols = inside(row, count, self.height), inside(col, columns, self.width)
        whole = np.full((count, self.width - col if columns is None else columns), self.nodata, self.dtype)
        name = gdal.display_name(self.path)
        env = gdal.env(self.path, CACHE_MIB)
        with env, gdal.errors(SceneError, name), gdal.open_raster(self.path) as dataset:
            part = self._decoded(dataset, rows, cols)
        whole[rows[0] - row : rows[1] - row, cols[0] - col : cols[1] - col] = part
        return whole

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.uint16 if self.wide else np.uint8)

    def _decoded(self, dataset: Any, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[Any]:
        """Decode rows and columns of the open raster."""
        window = Window.from_slices(rows, cols)
        values = dataset.read(1, window=window)
        mask = dataset.read_masks(1, window=window) if self.masked else None
        if values.dtype == np.uint8 and mask is None:
            labels = values.astype(self.dtype, copy=False)
            if self.file_nodata is not None and self.file_nodata != self.nodata:
                labels[values == self.file_nodata] = self.nodata
            return labels
        valid = np.ones(values.shape, np.bool_) if mask is None else mask > 0
        if self.file_nodata is not None:
            valid &= values != self.file_nodata
        self._check(values, valid, rows[0], cols[0])
        labels = np.full(values.shape, self.nodata, self.dtype)
        labels[valid] = values[valid].astype(self.dtype)
        return labels

    def _stored(self, row: int, count: int) -> NDArray[Any]:
        """Read whole rows, from rows of tiles that are decoded once."""
        whole = np.full((count, self.width), self.nodata, self.dtype)
        low, high = inside(row, count, self.height)
        for top in range(low // self.tile_rows * self.tile_rows, high, self.tile_rows):
            first, end = max(low, top), min(high, top + self.tile_rows)
            height = min(self.tile_rows, self.height - top)
            with self._opened(top) as file:
                for col, columns in self._column_spans():
                    file.seek((height * col + (first - top) * columns) * self.dtype.itemsize)
                    labels = np.fromfile(file, self.dtype, (end - first) * columns)
                    whole[first - row : end - row, col : col + columns] = labels.reshape(-1, columns)
        return whole

    def _column_spans(self) -> list[tuple[int, int]]:
        """Return first column and width of the chunks in which a row of tiles is stored."""
        step = max(self.chunk_px // self.tile_rows // 512, 1) * 512
        return [(col, min(step, self.width - col)) for col in range(0, self.width, step)]

    def _opened(self, top: int) -> Any:
        """Open the file of the row of tiles whose first row is `top`."""
        path = self._strip(top)
        try:
            return open(path, "rb", buffering=0)
        except FileNotFoundError:
            pass
        rows, name = (top, min(top + self.tile_rows, self.height)), gdal.display_name(self.path)
        part = path.with_suffix(f".{os.getpid()}")  # another worker may be at the same
        with (
            gdal.env(self.path, CACHE_MIB),
            gdal.errors(SceneError, name),
            gdal.open_raster(self.path) as dataset,
        ):
            spans = self._column_spans()
            chunks = (self._decoded(dataset, rows, (col, col + columns)) for col, columns in spans)
            with open(part, "wb") as file:
                for chunk in chunks:
                    with writing(path.parent):
                        file.write(np.ascontiguousarray(chunk).data)
                        file.flush()
        os.replace(part, path)
        return open(path, "rb", buffering=0)

    def _strip(self, top: int) -> Path:
        return Path(f"{self.store}-{top}.bin")

    def forget(self, first: int, end: int) -> None:
        """Remove stored rows of tiles that only the rows `first` to `end` need."""
        if not self.store:
            return
        low = max(first - 1, 0) // self.tile_rows * self.tile_rows
        high = end if end == self.height else end - self.tile_rows
        for top in range(low, high, self.tile_rows):
            self._strip(top).unlink(missing_ok=True)

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
