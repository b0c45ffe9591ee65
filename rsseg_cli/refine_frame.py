"""How a map, its scene and what the refiner sees lie to one another, in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.raster import Grid

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Pixels of the labels and of the grid that the refiner sees.

    Windows and noise are counted from the origin of `seen`: that of the scene where the labels lie on its
    pixels, else that of the labels.

    Attributes:
        seen: what the refiner sees.
        scale: (rows, cols) of `seen` a pixel of the labels.
        offset: (row, col) of `seen`'s extent, in pixels of the labels, where these begin.
        labels: (height, width) of the label raster.
        window: (row, col, height, width) of it that is mapped.
        gsd_m: metres a pixel of the labels, along a row and along a column.
    """

    seen: Grid
    scale: tuple[float, float]
    offset: tuple[int, int]
    labels: tuple[int, int]
    window: tuple[int, int, int, int]
    gsd_m: tuple[float, float]

    @property
    def resampled(self) -> bool:
        return self.scale != (1.0, 1.0)

    @property
    def seen_gsd_m(self) -> tuple[float, float]:
        """Metres a pixel that the refiner sees, along a row and along a column."""
        return self.gsd_m[0] / self.scale[1], self.gsd_m[1] / self.scale[0]

    def region(self, reach_px: int, alignment_px: int) -> Region:
        """The part of `seen` that is run: under the mapped window, and what its pixels may depend on.

        Args:
            reach_px: how far that is.
            alignment_px: it begins and ends at multiples of this, beyond the scene's edge if need be.
        """
        sides = []
        for axis, length in enumerate((self.seen.height, self.seen.width)):
            scale, offset = self.scale[axis], self.offset[axis]
            first, count = self.window[axis] + offset, self.window[axis + 2]
            start = max(math.floor(first * scale) - reach_px, math.floor(offset * scale), 0)
            labels_end = math.ceil((offset + self.labels[axis]) * scale - 1e-6)
            end = min(math.ceil((first + count) * scale - 1e-6) + reach_px, labels_end, length)
            start = start // alignment_px * alignment_px
            sides.append((start, max(1, -(-(end - start) // alignment_px)) * alignment_px))
        return Region(row=sides[0][0], col=sides[1][0], height=sides[0][1], width=sides[1][1])

    def label_rows(self, seen_rows: Integers) -> Integers:
        """Rows of the labels at the centres of rows that the refiner sees; they may lie outside."""
        return _nearest(seen_rows, self.scale[0], self.offset[0])

    def label_cols(self, seen_cols: Integers) -> Integers:
        return _nearest(seen_cols, self.scale[1], self.offset[1])


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of what the refiner sees, px."""

    row: int
    col: int
    height: int
    width: int


def _nearest(seen: Integers, scale: float, offset: int) -> Integers:
    return np.floor((seen + 0.5) / scale + 1e-9).astype(np.int64) - offset


def reflected(first: int, count: int, length: int) -> Integers:
    """Pixels first to first + count of an axis that goes on beyond its end by reflection."""
    places = np.arange(first, first + count)
    if length == 1:
        return np.zeros_like(places)
    period = 2 * (length - 1)
    places %= period
    return np.minimum(places, period - places)
