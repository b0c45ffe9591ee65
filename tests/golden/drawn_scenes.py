"""One drawn scene of a real size, and scenes made from it: parts, holes, other types, other resolutions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from program import run
from rasterio.enums import Resampling
from rasterio.windows import Window

SIZE = 1536  # px
GSD_M = 0.5  # that of the stored model
SEED = 5
PART = Window(512, 512, 448, 448)  # of the scene, where all classes are
HOLES = ((30, 40, 150, 110), (210, 0, 48, 448), (350, 280, 98, 168))  # row, col, height, width, of the part
NODATA = 0


class DrawnScenes:
    """Paths of scenes, each made on first use.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def whole(self) -> Path:
        """SIZE px, three bands of 8 bits, no nodata."""
        path = self.folder / "whole.tif"
        size = ("--size", SIZE, "--seed", SEED, "--gsd", GSD_M)
        run("demo-scene", path, *size, "--labels", self.folder / "whole_labels.tif")
        return path

    @cached_property
    def whole_labels(self) -> Path:
        """The exact classes of `whole`."""
        assert self.whole.exists()
        return self.folder / "whole_labels.tif"

    @cached_property
    def part(self) -> Path:
        """PART of it."""
        return self._cut(self.whole, "part", PART)

    @cached_property
    def part_labels(self) -> Path:
        return self._cut(self.whole_labels, "part_labels", PART)

    @cached_property
    def with_holes(self) -> Path:
        """The part with HOLES, marked by the nodata value."""
        with rasterio.open(self.part) as dataset:
            array, profile = np.maximum(dataset.read(), 1), dataset.profile
        for row, col, height, width in HOLES:
            array[:, row : row + height, col : col + width] = NODATA
        return self._write("with_holes", array, profile | {"nodata": NODATA})

    @cached_property
    def in_16_bits(self) -> Path:
        """The part in uint16, between 300 and 2,850, as sensors of 12 bits give it."""
        with rasterio.open(self.part) as dataset:
            array, profile = dataset.read().astype(np.uint16) * 10 + 300, dataset.profile
        return self._write("in_16_bits", array, profile | {"dtype": "uint16"})

    @cached_property
    def finer(self) -> Path:
        """A quarter of the part, at 0.25 m."""
        return self._resampled("finer", PART.width // 2, 2.0)

    @cached_property
    def coarser(self) -> Path:
        """The part at 1.2 m."""
        with rasterio.open(self.part) as dataset:
            size = round(PART.width * GSD_M / 1.2)
            array = dataset.read(out_shape=(3, size, size), resampling=Resampling.average)
            transform = dataset.transform * Affine.scale(PART.width / size)
            profile = dataset.profile | {"height": size, "width": size, "transform": transform}
        return self._write("coarser", array, profile)

    @cached_property
    def sheets(self) -> list[Path]:
        """Four sheets of 400 x 352 px that touch, from the middle of the whole."""
        places = ((512, 512), (512, 864), (912, 512), (912, 864))
        return [
            self._cut(self.whole, f"sheet_{row}_{col}", Window(col, row, 352, 400)) for row, col in places
        ]

    def _cut(self, source: Path, name: str, window: Window) -> Path:
        with rasterio.open(source) as dataset:
            transform = dataset.window_transform(window)
            profile = dataset.profile | {
                "height": window.height,
                "width": window.width,
                "transform": transform,
            }
            return self._write(name, dataset.read(window=window), profile)

    def _resampled(self, name: str, side: int, factor: float) -> Path:
        with rasterio.open(self.part) as dataset:
            size = round(side * factor)
            window = Window(0, 0, side, side)
            array = dataset.read(window=window, out_shape=(3, size, size), resampling=Resampling.bilinear)
            transform = dataset.transform * Affine.scale(1 / factor)
            profile = dataset.profile | {"height": size, "width": size, "transform": transform}
        return self._write(name, array, profile)

    def _write(self, name: str, array: np.ndarray, profile: dict[str, object]) -> Path:
        path = self.folder / f"{name}.tif"
        kept = ("crs", "transform", "dtype", "nodata", "height", "width", "count", "photometric")
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            tiled=True,
            compress="deflate",
            **{key: profile[key] for key in kept if profile.get(key) is not None},
        ) as dataset:
            dataset.write(array)
        return path
