"""Maps that the tests of accuracies draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

NAMES = ("building", "land", "water")
COLOURS = ((220, 60, 60), (200, 180, 120), (60, 120, 220))


def write_map(
    path: Path,
    values: NDArray[np.uint8],
    *,
    crs: str | None = "EPSG:32632",
    gsd_m: float = 2.0,
    names: tuple[str, ...] = NAMES,
    origin: tuple[float, float] = (500_000, 5_200_000),
) -> Path:
    """A class raster as `rsseg predict` writes it, 255 without data."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": 255}
    profile |= {"height": values.shape[0], "width": values.shape[1], "crs": crs}
    with rasterio.open(path, "w", transform=from_origin(*origin, gsd_m, gsd_m), **profile) as dataset:
        dataset.write(values, 1)
        dataset.write_colormap(1, dict(enumerate(COLOURS[: len(names)])))
        dataset.update_tags(**{f"CLASS_{index}": name for index, name in enumerate(names)})
    return path


def patches(shape: tuple[int, int], shares: tuple[float, ...], seed: int, side: int = 8) -> NDArray[np.uint8]:
    """Classes in squares, each class with about its share."""
    rng = np.random.default_rng(seed)
    small = rng.choice(len(shares), (-(-shape[0] // side), -(-shape[1] // side)), p=shares)
    return np.repeat(np.repeat(small, side, 0), side, 1)[: shape[0], : shape[1]].astype(np.uint8)
