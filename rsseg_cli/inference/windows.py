"""Windows of the refiner: where map, scene and windows lie, and the band of pixels that may change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.inference.feed import TilePixels
from rsseg_cli.raster import Grid, SceneReader, classes

MAX_LABEL_PX = 16 << 20  # of the map in one read
Mask = NDArray[np.bool_]
CLOSE = 1e-6  # of the distance, against rounding
EXTRA_BANDS = 2  # after the scene's: the classes, and where the scene has data


class Window(NamedTuple):
    """The refiner's input: bands (bands, h, w), classes (h, w), and its origin, px from the frame's."""

    image: NDArray[Any]
    coarse: classes.Labels
    row: int
    col: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape


class RefineReader:
    """Reads windows of a region of the frame, reflected beyond the scene's edge.

    Pixels are the scene's bands, the class of the map, and 1 where the scene has data, in one array; valid
    are the pixels that may change, those in `band`.
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
        """Fill the scene's holes from their surroundings."""
        known = array[-1] != 0
        if known.all() or not known.any():
            return array
        bands = self._scene.fill(array[:-EXTRA_BANDS], known)
        return np.concatenate([bands, array[-EXTRA_BANDS:]])

    def window(self, item: TilePixels) -> Window:
        """Turn a tile with pixels into the refiner's input."""
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


def _is_run(indices: Integers) -> bool:
    return int(indices[-1] - indices[0]) + 1 == len(indices)


Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Pixels of the labels and of the grid that the refiner sees.

    Windows and noise are counted from the origin of `seen`: the scene's where the labels lie on its pixels,
    else the labels'.

    Attributes:
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
        """Return the mapped window and `reach_px` around it; sides are multiples of `alignment_px`."""
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
        """Return the rows of the labels at the centres of rows of `seen`; they may lie outside."""
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
    """Return pixels first to first + count of an axis that is reflected beyond its end."""
    if length == 1:
        return np.zeros(count, np.int64)
    period = 2 * (length - 1)
    indices = np.arange(first, first + count) % period
    return np.minimum(indices, period - indices)


class Band:
    """The pixels within a distance of a class boundary, on both sides of it.

    A pixel beside another class (above, below, left or right) lies half a pixel from a boundary; any other
    half a pixel further away than its centre from that of the nearest such pixel. Pixels at a boundary are
    always in the band. The edge to pixels without a class is no boundary. `gsd_m` are metres a pixel along a
    row and a column.
    """

    def __init__(self, distance_m: float, gsd_m: tuple[float, float]) -> None:
        across, down = gsd_m
        radius = max(0.0, distance_m - (across + down) / 4) * (1 + CLOSE)
        steps = range(int(radius / down) + 1)
        self._widths = [int(math.sqrt(max(0.0, radius**2 - (step * down) ** 2)) / across) for step in steps]
        self.margin = max(len(self._widths) - 1, self._widths[0]) + 1

    def mask(self, labels: classes.Labels) -> Mask:
        """Return the pixels (h, w) in the band, of labels (h + 2 margin, w + 2 margin)."""
        inner = (slice(self.margin, -self.margin),) * 2
        edges = boundary_pixels(labels)
        if not edges.any():
            return np.zeros(edges[inner].shape, np.bool_)
        near = np.zeros_like(edges)
        grown, width, height = edges, 0, len(edges)
        for step in range(len(self._widths) - 1, -1, -1):  # widths fall with the steps
            while width < self._widths[step]:
                more = min(self._widths[step] - width, 2 * width + 1)
                grown, width = _widened(grown, more), width + more
            near[step:] |= grown[: height - step]
            near[: height - step] |= grown[step:]
        near &= labels != classes.NODATA
        return near[inner]


def boundary_pixels(labels: classes.Labels) -> Mask:
    """Return the pixels with another class above, below, left or right."""
    edges = np.zeros(labels.shape, np.bool_)
    known = labels != classes.NODATA
    down = (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    across = (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges


def _widened(mask: Mask, by: int) -> Mask:
    """Widen rows of runs at least 2 `by` - 1 px long by `by` on both sides."""
    wide = mask.copy()
    wide[:, by:] |= mask[:, :-by]
    wide[:, :-by] |= mask[:, by:]
    return wide
