"""How a map, its scene and what the refiner sees lie to one another, in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.inference.band import Band
from rsseg_cli.inference.feed import TilePixels
from rsseg_cli.raster import Grid, SceneReader, classes

MAX_LABEL_PX = 16 << 20  # of the map that one window may read at a time
EXTRA_BANDS = 2  # behind the scene's: the classes, and where the scene has data


class Window(NamedTuple):
    """What the refiner takes: bands (bands, h, w), classes (h, w), and its place, px from the frame's
    origin."""

    image: NDArray[Any]
    coarse: classes.Labels
    row: int
    col: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape


class RefineReader:
    """Reads windows of the region that is run; beyond the scene's edge it is continued by reflection.

    Pixels are the scene's bands, then the class of the map and 1 where the scene has data, all in one array;
    `valid` are the pixels that may change.

    Args:
        scene: on the frame's grid.
        coarse: the map.
        region: of the frame.
        band: in which pixels may change.
    """

    def __init__(
        self, scene: SceneReader, coarse: classes.ClassRaster, frame: Frame, region: Region, band: Band
    ) -> None:
        self._scene, self._coarse, self._frame, self._region, self._band = scene, coarse, frame, region, band

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (bands + 2, height, width) and which of them may change (height, width)."""
        seen, margin = self._frame.seen, self._band.margin
        first_row, first_col = row + self._region.row, col + self._region.col
        rows = reflected(first_row, height, seen.height)
        cols = reflected(first_col, width, seen.width)
        array, valid = self._scene_at(rows, cols)
        coarse = self._coarse_at(
            np.arange(first_row - margin, first_row + height + margin),
            np.arange(first_col - margin, first_col + width + margin),
        )
        near = self._band.mask(coarse) & valid
        inside = coarse[margin:-margin, margin:-margin]
        over = max(0, first_row + height - seen.height), max(0, first_col + width - seen.width)
        if any(over):
            near[height - over[0] :] = False
            near[:, width - over[1] :] = False
            inside = self._coarse_at(rows, cols)
        dtype = np.result_type(array.dtype, np.uint8)
        extra = np.stack([inside, valid.view(np.uint8)])
        return np.concatenate([array.astype(dtype, copy=False), extra.astype(dtype, copy=False)]), near

    def fill(self, array: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """The scene's holes continued from their surroundings."""
        known = array[-1] != 0
        if known.all() or not known.any():
            return array
        bands = self._scene.fill(array[:-EXTRA_BANDS], known)
        return np.concatenate([bands, array[-EXTRA_BANDS:]])

    def window(self, item: TilePixels) -> Window:
        """A tile of the region, which has pixels, as the refiner takes it."""
        pixels, tile = cast("NDArray[Any]", item.pixels), item.tile
        classes = pixels[-EXTRA_BANDS].astype(np.uint8)
        return Window(
            pixels[:-EXTRA_BANDS], classes, tile.row + self._region.row, tile.col + self._region.col
        )

    def _scene_at(self, rows: Integers, cols: Integers) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        array, valid = self._scene.read(top, left, height, width)
        if _is_run(rows) and _is_run(cols):
            return array, valid
        rows, cols = rows - top, cols - left
        return array[:, rows][:, :, cols], valid[rows][:, cols]

    def _coarse_at(self, rows: Integers, cols: Integers) -> classes.Labels:
        """Classes at the centres of these rows and columns that the refiner sees, 255 outside the map."""
        if not self._frame.resampled and _is_run(rows) and _is_run(cols):
            top, left = rows[0] - self._frame.offset[0], cols[0] - self._frame.offset[1]
            return self._coarse.read(int(top), int(left), len(rows), len(cols))
        return self._nearest(self._frame.label_rows(rows), self._frame.label_cols(cols))

    def _nearest(self, rows: Integers, cols: Integers) -> classes.Labels:
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        if height * width > MAX_LABEL_PX and len(rows) * len(cols) > 1:
            if len(rows) >= len(cols):
                half = len(rows) // 2
                return np.concatenate([self._nearest(rows[:half], cols), self._nearest(rows[half:], cols)])
            half = len(cols) // 2
            return np.concatenate([self._nearest(rows, cols[:half]), self._nearest(rows, cols[half:])], 1)
        return self._coarse.read(top, left, height, width)[rows - top][:, cols - left]


def _is_run(places: Integers) -> bool:
    return int(places[-1] - places[0]) + 1 == len(places)


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
