"""Class rasters by rows, with one value for no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.gdal import display_name, gdal_env, gdal_errors, open_raster


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

    def read(self, row: int, count: int) -> NDArray[Any]:
        """(count, width), uint8 or uint16; rows outside the raster have no data.

        Raises:
            SceneError: the raster cannot be read.
            DataError: a value is no class index.
        """
        dtype = np.uint16 if self.wide else np.uint8
        first, last = max(row, 0), min(row + count, self.height)
        whole = np.full((count, self.width), self.nodata, dtype)
        name = display_name(self.path)
        with gdal_env(self.path), gdal_errors(SceneError, name), open_raster(self.path) as dataset:
            window = Window(0, first, self.width, last - first)
            values = dataset.read(1, window=window)
            mask = dataset.read_masks(1, window=window) if self.masked else None
        part = whole[first - row : last - row]
        if values.dtype == np.uint8 and mask is None:
            part[:] = values
            if self.file_nodata is not None and self.file_nodata != self.nodata:
                part[values == self.file_nodata] = self.nodata
            return whole
        valid = np.ones(values.shape, np.bool_) if mask is None else mask > 0
        if self.file_nodata is not None:
            valid &= values != self.file_nodata
        self._check(values, valid, first)
        part[valid] = values[valid].astype(dtype)
        return whole

    def _check(self, values: NDArray[Any], valid: NDArray[np.bool_], row: int) -> None:
        most = 65534 if self.wide else 254
        with np.errstate(invalid="ignore"):
            wrong = valid & ~((values >= 0) & (values <= most) & (values == np.floor(values)))
        if wrong.any():
            place = np.argwhere(wrong)[0]
            raise DataError(
                f"{display_name(self.path)}: value {values[tuple(place)]} in row {row + place[0]}, column "
                f"{place[1]}; class indices are whole numbers from 0 to {most}. Give a class raster."
            )
