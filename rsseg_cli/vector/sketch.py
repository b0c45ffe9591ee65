"""Polygons on a picture: which one covers each pixel, and what is known of it."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.graph import Ints
from rsseg_cli.vector.layer import FULL_SCALE
from rsseg_cli.vector.polygons import Polygons
from rsseg_cli.vector.trace import portions, spans

if TYPE_CHECKING:
    from rsseg_cli.raster import Grid

MAX_WKB_BYTES = 64 << 20  # of a polygon that is drawn
NEAR = sorted(product(range(-2, 3), repeat=2), key=lambda step: abs(step[0]) + abs(step[1]))  # px
Runs = tuple[Ints, Ints, Ints]
CROSSINGS = 1 << 20  # of edges and rows, worked on at once


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Polygons in the pixels of a picture.

    Attributes:
        numbers: int32 (h, w), of the polygon, from 1; 0 for none.
        classes, areas_m2, confidences: of each polygon, NaN for what is unknown.
        count: of all polygons, in the picture or not.
    """

    numbers: NDArray[np.int32]
    classes: NDArray[np.uint16]
    areas_m2: NDArray[np.float32]
    confidences: NDArray[np.float32]
    count: int

    def at(self, numbers: NDArray[np.int32]) -> Drawn:
        """Return the polygons of other pixels, those with the most first."""
        pixels = np.bincount(numbers.ravel(), minlength=len(self.classes) + 1)[1:]
        rows = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
        index = np.zeros(len(self.classes) + 1, np.int32)
        index[rows + 1] = np.arange(1, len(rows) + 1)
        return Drawn(
            numbers=index[numbers],
            classes=self.classes[rows],
            areas_m2=self.areas_m2[rows],
            confidences=self.confidences[rows],
            count=self.count,
        )

    def packed(self, max_bytes: int) -> dict[str, Any]:
        """Return the polygons for a script, on a coarser grid where they would not fit; `data` is base64 of
        zlib: 32-bit numbers less those in the row above, then areas, confidences and classes."""
        height, width = self.numbers.shape
        steps = np.diff(self.numbers, axis=0, prepend=np.int32(0))
        parts = (steps, self.areas_m2, self.confidences, self.classes)
        data = base64.b64encode(zlib.compress(b"".join(part.tobytes() for part in parts)))
        if len(data) > max_bytes and height * width > 1:
            return self.at(self.numbers[::2, ::2]).packed(max_bytes)
        count = len(self.classes)
        return {
            "width": width, "height": height, "count": count, "left_out": self.count - count,
            "data": data.decode(),
        }  # fmt: skip


class Sketch:
    """Draws polygons as they are finished; memory: 8 bytes a pixel, and 10 a polygon that has one.

    A polygon has the pixels whose centres it covers. One that covers none gets that in its middle or a near
    one, unless all are those of other small ones or the last of a larger one.

    Args:
        grid: of the picture.
        crs: of the polygons, as WKT; "" for that of the grid.
    """

    def __init__(self, grid: Grid, crs: str) -> None:
        from pyproj import Transformer

        own = grid.wkt
        self._to_own = Transformer.from_crs(crs, own, always_xy=True) if crs and crs != own else None
        self._to_px = ~grid.transform
        self._covered, self._small = (np.zeros((grid.height, grid.width), np.int32) for _ in range(2))
        self._tables: list[tuple[Ints, Floats, Floats]] = []
        self._kept = self._count = 0

    def add(self, polygons: Polygons) -> None:
        """Take finished polygons."""
        corners = polygons.bounds[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
        boxes = self._pixels(corners).reshape(-1, 4, 2)
        rows = np.ptp(boxes[:, :, 1], axis=1).clip(max=len(self._covered)).astype(np.int64) + 1
        for start, stop in portions(polygons.vertices * rows, CROSSINGS):
            self._add(polygons.take(np.arange(start, stop)), boxes[start:stop])
        self._count += len(polygons)

    def _add(self, polygons: Polygons, boxes: Floats) -> None:
        height, width = self._covered.shape
        low, high = boxes.min(axis=1), boxes.max(axis=1)
        large = (np.ceil(low - 0.5) < np.ceil(high - 0.5)).all(axis=1)
        large &= [len(blob) <= MAX_WKB_BYTES for blob in polygons.wkb]
        chosen = np.flatnonzero(large)
        shapes = shapely.from_wkb([bytes(polygons.wkb[index][:]) for index in chosen])
        owner, pixels, lengths = _covered(shapes, self._pixels, (height, width))
        owner = chosen[owner]
        col, row = np.floor((low + high) / 2).astype(np.int64).T
        free = np.ones(len(polygons), np.bool_)
        free[owner] = False
        free &= (col >= 0) & (col < width) & (row >= 0) & (row < height)
        claims, claimants, small = [], [], self._small.ravel()
        for down, across in NEAR:
            left = np.flatnonzero(free)
            rows, cols = (row[left] + down).clip(0, height - 1), (col[left] + across).clip(0, width - 1)
            pixel, first = np.unique(rows * width + cols, return_index=True)
            unclaimed = small[pixel] == 0
            claims.append(pixel[unclaimed])
            claimants.append(left[first[unclaimed]])
            small[claims[-1]] = -1
            free[claimants[-1]] = False
        at, middle = np.concatenate(claims), np.concatenate(claimants)
        kept = np.union1d(owner, middle)
        number = np.zeros(len(polygons), np.int32)
        number[kept] = np.arange(self._kept + 1, self._kept + len(kept) + 1)
        self._covered.ravel()[spans(pixels, lengths)] = np.repeat(number[owner], lengths)
        small[at] = number[middle]
        self._kept += len(kept)
        table = polygons.table.take(kept)
        counts = table.confidence_counts
        means = table.confidence_sums / np.where(counts > 0, counts, np.nan) / FULL_SCALE
        self._tables.append((table.classes, polygons.areas_m2[kept], means))

    def drawn(self) -> Drawn:
        """Return the polygons that were added."""
        numbers, small = self._covered.copy().ravel(), self._small.ravel()
        at = np.flatnonzero(small)
        at = at[np.argsort(numbers[at], kind="stable")]
        owner = numbers[at]
        taken = np.arange(len(at)) - np.searchsorted(owner, owner)  # from the same owner before
        counts = np.bincount(numbers, minlength=self._kept + 1)
        at = at[(owner == 0) | (taken < counts[owner] - 1)]
        numbers[at] = small[at]
        classes, areas_m2, confidences = (
            np.concatenate(parts) for parts in zip((np.zeros(0),) * 3, *self._tables, strict=True)
        )
        whole = Drawn(
            numbers=numbers.reshape(self._covered.shape),
            classes=classes.astype(np.uint16),
            areas_m2=areas_m2.astype(np.float32),
            confidences=confidences.astype(np.float32),
            count=self._count,
        )
        return whole.at(whole.numbers)

    def _pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T if self._to_own is None else self._to_own.transform(*points.T)
        return np.column_stack(self._to_px * (np.asarray(x), np.asarray(y)))


def _covered(
    shapes: NDArray[np.object_], to_pixels: Callable[[Floats], Floats], size: tuple[int, int]
) -> Runs:
    """Return runs of pixels whose centres polygons cover: the polygon, first pixel and length of each."""
    rings, shape_of = shapely.get_rings(shapes, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = to_pixels(points) - 0.5  # centres have whole numbers
    same = np.flatnonzero((ring[1:] == ring[:-1]) & (points[1:, 1] != points[:-1, 1]))
    # the lower end first, so that both sides of an edge are worked out alike
    ends = np.stack([points[same], points[same + 1]], axis=1)
    ends = np.where((ends[:, :1, 1:] > ends[:, 1:, 1:]), ends[:, ::-1], ends)
    return _runs(ends, shape_of[ring[same]], 0, *size)


def _runs(edges: Floats, owner: Ints, low: int, high: int, width: int) -> Runs:
    """Return the runs in rows from `low` to `high` between edges (n, 2, x and y)."""
    first = np.ceil(edges[:, 0, 1]).clip(low, high).astype(np.int64)
    counts = np.ceil(edges[:, 1, 1]).clip(low, high).astype(np.int64) - first
    if counts.sum() > CROSSINGS and high - low > 1:
        middle = (low + high) // 2
        halves = [_runs(edges, owner, *rows, width) for rows in ((low, middle), (middle, high))]
        return tuple(np.concatenate(parts) for parts in zip(*halves, strict=True))  # type: ignore[return-value]
    edge, row = np.repeat(np.arange(len(edges)), counts), spans(first, counts)
    (x, y), (to_x, to_y) = edges[edge, 0].T, edges[edge, 1].T
    col = np.ceil(x + (row - y) * (to_x - x) / (to_y - y)).clip(0, width).astype(np.int64)
    owner = owner[edge]
    order = np.lexsort((col, row, owner))
    begin, end = order[::2], order[1::2]
    lengths = col[end] - col[begin]
    some = lengths > 0
    return owner[begin][some], (row * width + col)[begin][some], lengths[some]
