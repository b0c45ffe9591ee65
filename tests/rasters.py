"""A factory of small rasters of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

MakeRaster = Callable[..., Path]


UTM = "EPSG:32633"


def coordinate_array(bands: int, height: int, width: int, dtype: str = "uint16") -> np.ndarray:
    """Pixels that are their own place: band 1 the row, band 2 the column, band 3 their sum, and so on."""
    rows, cols = np.mgrid[:height, :width]
    planes = [(rows, cols)[band % 2] if band < 2 else rows * (band - 1) + cols for band in range(bands)]
    return np.stack(planes).astype(dtype)


@pytest.fixture
def make_raster(tmp_path: Path) -> MakeRaster:
    """make_raster(name, ...) -> path of a GeoTIFF (or of `driver`'s format).

    Args:
        bands, shape, dtype, seed: noise of that kind, or `array` (bands, rows, cols) as it is.
        crs, gsd, transform: north-up at 500000, 5000000 unless `transform` is given; `crs=None`: neither.
        kind: how pixels without data are marked: "none", "value" (see `nodata`), "nan", "alpha",
            "mask" (inside the file), "msk" (beside it), "all" (each pixel, by value).
        hole: (row, col, height, width) without data.
        descriptions, profile: of rasterio.
    """

    def make(
        name: str = "scene.tif",
        *,
        bands: int = 3,
        shape: tuple[int, int] = (60, 80),
        dtype: str = "uint8",
        array: np.ndarray | None = None,
        kind: str = "none",
        nodata: float = 0,
        hole: tuple[int, int, int, int] = (10, 20, 15, 25),
        crs: Any = UTM,
        gsd: float = 0.5,
        transform: Affine | None = None,
        descriptions: tuple[str, ...] = (),
        seed: int = 0,
        **profile: Any,
    ) -> Path:
        if array is None:
            low, high = (0.0, 1.0) if np.dtype(dtype).kind == "f" else (1, min(np.iinfo(dtype).max, 4000))
            array = np.random.default_rng(seed).uniform(low, high, (bands, *shape)).astype(dtype)
        array = array.copy()
        count, height, width = array.shape
        row, col, rows, cols = (0, 0, height, width) if kind == "all" else hole
        inside = (slice(row, row + rows), slice(col, col + cols))
        valid = np.ones((height, width), bool)
        valid[inside] = kind == "none"
        if kind in ("value", "all"):
            array[:, ~valid] = nodata
            profile["nodata"] = nodata
        elif kind == "nan":
            array[:, ~valid] = np.nan
        if transform is None and crs is not None:
            transform = Affine(gsd, 0, 500000, 0, -gsd, 5000000)
        path = tmp_path / name
        options = {"driver": "GTiff", "height": height, "width": width, "dtype": array.dtype.name} | profile
        total = count + (kind == "alpha")
        if kind == "alpha" and count == 3:
            options |= {"photometric": "rgb", "alpha": "yes"}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "mask"),
            rasterio.open(path, "w", count=total, crs=crs, transform=transform, **options) as dataset,
        ):
            dataset.write(array, list(range(1, count + 1)))
            if kind == "alpha":
                dataset.write((valid * np.iinfo(array.dtype).max).astype(array.dtype), total)
                dataset.colorinterp = [*dataset.colorinterp[:count], ColorInterp.alpha]
            if kind in ("mask", "msk"):
                dataset.write_mask(valid)
            for band, description in enumerate(descriptions, 1):
                dataset.set_band_description(band, description)
        return path

    return make
