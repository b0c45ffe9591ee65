"""What a prediction tells of itself: paths, times, and the area of each class on the ground."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NODATA = 255
COUNTED_PX = 2**18  # at once: counting takes eight bytes a pixel


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """Extent of a class in the map.

    Attributes:
        pixels: number of pixels.
        share: of the pixels with data, 0 to 1.
        area_m2: on the ground, m2, right by latitude for Mercator and degrees; None without a CRS.
    """

    pixels: int
    share: float
    area_m2: float | None


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """A finished prediction.

    Attributes:
        paths: of what was written, by kind: "labels", "confidence", "probabilities", "heatmaps", "preview".
        seconds: wall time, s.
        pixels: of the map.
        valid_pixels: of these, with data.
        classes: extent by class name, in the model's order.
        notes: what differs from what one might expect, one sentence each; logged as warnings too.
    """

    paths: dict[str, Path]
    seconds: float
    pixels: int
    valid_pixels: int
    classes: dict[str, ClassArea]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The result in types that JSON has."""
        return {
            "paths": {kind: str(path) for kind, path in self.paths.items()},
            "seconds": round(self.seconds, 3),
            "pixels": self.pixels,
            "valid_pixels": self.valid_pixels,
            "classes": {
                name: {"pixels": item.pixels, "share": item.share, "area_m2": item.area_m2}
                for name, item in self.classes.items()
            },
            "notes": list(self.notes),
        }


class AreaCounter:
    """Counts classes row by row.

    Args:
        classes: names in the model's order.
        row_areas_m2: area of a pixel in each row of the map, m2; None where it is not known.
    """

    def __init__(self, classes: tuple[str, ...], row_areas_m2: NDArray[np.float64] | None) -> None:
        self._classes = classes
        self._row_areas_m2 = row_areas_m2
        self._uniform = row_areas_m2 is None or bool((row_areas_m2 == row_areas_m2[0]).all())
        self._pixels = np.zeros(256, np.int64)
        self._areas_m2 = np.zeros(256)

    def add(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Count rows (rows, width) of the map, the first of which is `row`."""
        for first, counts in self._count(row, labels):
            self._pixels += counts
            if self._row_areas_m2 is not None:
                self._areas_m2 += counts * self._row_areas_m2[first]

    def _count(self, row: int, labels: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        step = max(1, COUNTED_PX // labels.shape[1]) if self._uniform else 1
        for first in range(0, len(labels), step):
            yield row + first, np.bincount(labels[first : first + step].ravel(), minlength=256)

    @property
    def valid_pixels(self) -> int:
        return int(self._pixels[:NODATA].sum())

    def classes(self) -> dict[str, ClassArea]:
        total = max(1, self.valid_pixels)
        return {
            name: ClassArea(
                pixels=int(self._pixels[index]),
                share=float(self._pixels[index] / total),
                area_m2=None if self._row_areas_m2 is None else float(self._areas_m2[index]),
            )
            for index, name in enumerate(self._classes)
        }
