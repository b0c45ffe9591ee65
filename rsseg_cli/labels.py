"""Labels of a scene, brought to its grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from rsseg_cli.area import Grid
from rsseg_cli.errors import DataError

IGNORE = 255


def read_labels(path: Path, image_grid: Grid, grid: Grid) -> NDArray[np.uint8]:
    """The label raster on `grid`: the most frequent label where pixels shrink, the nearest otherwise."""
    try:
        with rasterio.open(path) as dataset:
            if dataset.crs is None and (dataset.height, dataset.width) != (
                image_grid.height,
                image_grid.width,
            ):
                raise DataError(
                    f"{path}: {dataset.width} x {dataset.height} px without CRS, its image has "
                    f"{image_grid.width} x {image_grid.height} px; needs the same size or georeferencing"
                )
            if dataset.count != 1 or not np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer):
                raise DataError(
                    f"{path}: {dataset.count} bands of {dataset.dtypes[0]}; needs one band of class numbers"
                )
            size = (grid.height, grid.width)
            if dataset.crs is None:
                shrinks = dataset.height > grid.height
                way = Resampling.mode if shrinks else Resampling.nearest
                return _as_labels(path, dataset.read(1, out_shape=size, resampling=way), dataset.nodata)
            if image_grid.crs is None:
                raise DataError(f"{path}: labels have a CRS, their image has none; they cannot be aligned")
            way = (
                Resampling.mode
                if abs(grid.transform.a) > 1.2 * abs(dataset.transform.a)
                else Resampling.nearest
            )
            with WarpedVRT(
                dataset,
                crs=grid.crs,
                transform=grid.transform,
                width=grid.width,
                height=grid.height,
                resampling=way,
                src_nodata=dataset.nodata,
                nodata=IGNORE,
            ) as warped:
                return _as_labels(path, warped.read(1), IGNORE)
    except RasterioError as err:
        raise DataError(f"{path}: labels cannot be read ({err})") from err


def _as_labels(path: Path, values: NDArray[np.integer], nodata: float | None) -> NDArray[np.uint8]:
    if nodata is not None:
        values = np.where(values == nodata, IGNORE, values)
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"{path}: label values {values.min()} to {values.max()}; needs 0 to 255")
    return values.astype(np.uint8)


def check_labels(path: Path, labels: NDArray[np.uint8], classes: int) -> None:
    found = np.unique(labels)
    wrong = found[(found >= classes) & (found != IGNORE)]
    if wrong.size:
        shown = ", ".join(map(str, wrong[:5]))
        raise DataError(
            f"{path}: label value {shown} is no class; the model has 0 to {classes - 1}, 255 is unlabelled"
        )
