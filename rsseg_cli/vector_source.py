"""Class rasters by windows, with one value for no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.gdal import display_name, gdal_env, gdal_errors, open_raster

CACHE_MIB = 4  # a read needs each of GDAL's blocks once: more would only grow with the raster's width


def inside(first: int, count: int | None, size: int) -> tuple[int, int]:
    """First and end of `count` pixels, or of all from `first` on, that lie in a raster of `size`."""
    return max(first, 0), size if count is None else min(first + count, size)


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """A band of whole numbers.

    Attributes:
        nodata: what `read` gives for pixels without data, and outside the raster.
        wide: numbers are given as uint16, since no data has no number among 256.
    """

    path: str
    height: int
    width: int
    nodata: int
    file_nodata: float | None
    masked: bool
    wide: bool

    def read(self, row: int, count: int, col: int = 0, columns: int | None = None) -> NDArray[Any]:
        """(count, columns), uint8 or uint16; pixels outside the raster have no data.

        Args:
            columns: how many from `col` on; None for all up to the raster's right edge.

        Raises:
            SceneError: the raster cannot be read.
            DataError: a value is no class index.
        """
        dtype = np.uint16 if self.wide else np.uint8
        rows, cols = inside(row, count, self.height), inside(col, columns, self.width)
        whole = np.full((count, self.width - col if columns is None else columns), self.nodata, dtype)
        name = display_name(self.path)
        env = gdal_env(self.path, CACHE_MIB)
        with env, gdal_errors(SceneError, name), open_raster(self.path) as dataset:
            window = Window.from_slices(rows, cols)
            values = dataset.read(1, window=window)
            mask = dataset.read_masks(1, window=window) if self.masked else None
        part = whole[rows[0] - row : rows[1] - row, cols[0] - col : cols[1] - col]
        if values.dtype == np.uint8 and mask is None:
            part[:] = values
            if self.file_nodata is not None and self.file_nodata != self.nodata:
                part[values == self.file_nodata] = self.nodata
            return whole
        valid = np.ones(values.shape, np.bool_) if mask is None else mask > 0
        if self.file_nodata is not None:
            valid &= values != self.file_nodata
        self._check(values, valid, rows[0], cols[0])
        part[valid] = values[valid].astype(dtype)
        return whole

    def _check(self, values: NDArray[Any], valid: NDArray[np.bool_], row: int, col: int) -> None:
        most = 65534 if self.wide else 254
        with np.errstate(invalid="ignore"):
            wrong = valid & ~((values >= 0) & (values <= most) & (values == np.floor(values)))
        if wrong.any():
            place = np.argwhere(wrong)[0]
            raise DataError(
                f"{display_name(self.path)}: value {values[tuple(place)]} in row {row + place[0]}, column "
                f"{col + place[1]}; class indices are whole numbers from 0 to {most}. Give a class raster."
            )
