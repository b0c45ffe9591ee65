"""Polygons made of rings, with their measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import DataError
from rsseg_cli.vector.geometry import Floats, PixelGeometry, to_xy
from rsseg_cli.vector.graph import Ints
from rsseg_cli.vector.plan import BlockPlan
from rsseg_cli.vector.storage import MemmapStore, Table, release_pages
from rsseg_cli.vector.trace import RingFragments, portions, spans

UNITS = 256  # of coordinates inside a pixel
OUTSIDE_CRS = "--dst-crs: a part of the raster lies outside that CRS. Choose another, or leave it out."
_POLYGON = b"\x01\x03\x00\x00\x00"  # well-known binary, little-endian


@dataclass(frozen=True, kw_only=True)
class ObjectTable(Table):
    """Attributes of objects: `lasts` is the last pixel in row-major order; confidence is 0-254."""

    classes: Ints
    lasts: Ints
    confidence_counts: Ints
    confidence_sums: Ints
    confidence_mins: Ints

    def joined(self, other: ObjectTable, group_of: Ints) -> ObjectTable:
        """Combine the objects of both tables by group, counted from 0: this table's, then the other's."""
        both = ObjectTable.concat([self, other])
        count = int(group_of.max(initial=-1)) + 1
        classes, lasts, counts, sums = (np.zeros(count, np.int64) for _ in range(4))
        mins = np.full(count, 255, np.int64)
        classes[group_of] = both.classes
        np.maximum.at(lasts, group_of, both.lasts)
        np.add.at(counts, group_of, both.confidence_counts)
        np.add.at(sums, group_of, both.confidence_sums)
        np.minimum.at(mins, group_of, both.confidence_mins)
        return ObjectTable(
            classes=classes, lasts=lasts, confidence_counts=counts, confidence_sums=sums, confidence_mins=mins
        )


@dataclass(frozen=True, kw_only=True)
class Polygons(Table):
    """Finished polygons in the order of their last pixels; measures on the ground are NaN without CRS.

    `bounds` (n, 4): least x and y, greatest x and y; `vertices` does not count those that close rings.
    """

    wkb: NDArray[np.object_]
    table: ObjectTable
    bounds: Floats
    areas_m2: Floats
    perimeters_m: Floats
    vertices: Ints


def make_polygons(
    rings: RingFragments, table: ObjectTable, plan: BlockPlan, store: MemmapStore | None = None
) -> Polygons:
    """Make a polygon of each object's whole rings, its exterior and its holes; large ones go to a store.

    `rings` are reordered in place.
    """
    exterior = ring_areas(rings, plan.limits.points) < 0
    rings.reorder(np.lexsort((rings.positions, ~exterior, table.lasts[rings.objects])))
    firsts = _firsts(rings)
    begins = np.append(firsts, len(rings))
    vertices = np.add.reduceat(rings.lengths, firsts) if len(firsts) else np.zeros(0, np.int64)
    maker, at_once = _Maker(rings, plan, store), plan.limits.points
    for start, stop in portions(vertices, at_once):  # a large one by itself
        if vertices[start] > at_once:
            maker.make_large(int(begins[start]), int(begins[start + 1]))
        else:
            maker.make(begins[start : stop + 1])
    return Polygons(
        wkb=np.concatenate([np.zeros(0, object), *maker.wkb]),
        table=table.take(rings.objects[firsts]),
        bounds=np.concatenate([np.zeros((0, 4)), *maker.bounds]),
        areas_m2=np.concatenate([np.zeros(0), *maker.areas]),
        perimeters_m=np.concatenate([np.zeros(0), *maker.perimeters]),
        vertices=vertices,
    )


def _firsts(rings: RingFragments) -> Ints:
    """Return the begin of each object's rings, which are sorted by object."""
    changes = np.ones(len(rings), np.bool_)
    changes[1:] = rings.objects[1:] != rings.objects[:-1]
    return np.flatnonzero(changes)


class _Maker:
    """Makes polygons of rings that are in order."""

    def __init__(self, rings: RingFragments, plan: BlockPlan, store: MemmapStore | None) -> None:
        self._rings, self._ground, self._transform = rings, plan.ground, plan.transform
        self._reproject, self._limits, self._store = plan.reprojection(), plan.limits, store
        self.wkb: list[NDArray[np.object_]] = []
        self.bounds: list[Floats] = []
        self.areas: list[Floats] = []
        self.perimeters: list[Floats] = []

    def _to_crs(self, points: NDArray[np.int32]) -> Floats:
        """Return (n, 2) coordinates of points."""
        x, y = to_xy(self._transform, points[:, 0] / UNITS, points[:, 1] / UNITS)
        if self._reproject is not None:
            x, y = self._reproject(x, y)
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                raise DataError(OUTSIDE_CRS)
        return np.stack([x, y], axis=1)

    def _closed(self, first: int, end: int) -> NDArray[np.int32]:
        """Return the points of some rings, each from its start and back to it."""
        rings = self._rings
        lengths = rings.lengths[first:end]
        step = spans(np.zeros(end - first, np.int64), lengths + 1)  # 0 ... length: back to the first point
        step += np.repeat(rings.offsets[first:end], lengths + 1)
        step %= np.repeat(lengths, lengths + 1)
        step += np.repeat(rings.begins[first:end], lengths + 1)
        points = rings.points.take(step, axis=0)
        release_pages(rings.points)
        return points

    def _part(self, ring: int, begin: int, end: int) -> NDArray[np.int32]:
        """Return points `begin` to `end` of a closed ring."""
        rings = self._rings
        step = (np.arange(begin, end) + rings.offsets[ring]) % rings.lengths[ring] + rings.begins[ring]
        points = rings.points.take(step, axis=0)
        release_pages(rings.points)
        return points

    def make(self, begins: Ints) -> None:
        """Make the polygons whose rings begin at `begins`, all at once."""
        first, end = int(begins[0]), int(begins[-1])
        points = self._closed(first, end)
        counts = self._rings.lengths[first:end] + 1
        ring_begins = np.concatenate([[0], np.cumsum(counts)])
        ring_numbers = begins - first
        polygon_begins = ring_begins[ring_numbers]
        tops = np.repeat(points[polygon_begins[:-1], 1] / UNITS, np.diff(polygon_begins))
        areas, perimeters = _measure(points, ring_begins[1:], polygon_begins[:-1], tops, self._ground)
        coordinates = self._to_crs(points)
        words, starts = _words(coordinates, counts, ring_numbers)
        data, ends = words.tobytes(), [*(4 * starts[1:]).tolist(), 4 * len(words)]
        wkb = np.empty(len(starts), object)
        wkb[:] = [_POLYGON + data[at:to] for at, to in zip((4 * starts).tolist(), ends, strict=True)]
        self.wkb.append(wkb)
        self.bounds.append(_bounds(coordinates, polygon_begins[:-1]))
        self.areas.append(areas)
        self.perimeters.append(perimeters)

    def make_large(self, first: int, end: int) -> None:
        """Make a polygon of many vertices, part by part; with a store its WKB is not held either."""
        counts = self._rings.lengths[first:end] + 1
        wkb = self._blob(len(_POLYGON) + 4 * (1 + len(counts)) + 16 * int(counts.sum()))
        position, area, perimeter, top = 0, 0.0, 0.0, None
        bounds = np.array([[np.inf, np.inf, -np.inf, -np.inf]])
        for head, points, ends, used in self._parts(first, end):
            top = float(points[0, 1]) / UNITS if top is None else top
            tops = np.full(len(points), top)
            more = _measure(points, ends, np.zeros(1, np.int64), tops, self._ground)
            area, perimeter = area + float(more[0][0]), perimeter + float(more[1][0])
            coordinates = self._to_crs(points[:used])
            bounds = union(np.concatenate([bounds, _bounds(coordinates, np.zeros(1, np.int64))]))
            words = _words(coordinates, head, np.zeros(0, np.int64))[0]
            start = _POLYGON + len(counts).to_bytes(4, "little") if position == 0 else b""
            data = np.frombuffer(start + words.tobytes(), np.uint8)
            wkb[position : position + len(data)] = data
            position += len(data)
            release_pages(wkb)
        made = np.empty(1, object)
        made[0] = wkb if self._store is not None and len(wkb) > self._limits.blob_bytes else wkb.tobytes()
        self.wkb.append(made)
        self.bounds.append(bounds)
        self.areas.append(np.array([area]))
        self.perimeters.append(np.array([perimeter]))

    def _blob(self, size: int) -> NDArray[np.uint8]:
        if self._store is None or size <= self._limits.blob_bytes:
            return np.empty(size, np.uint8)
        return self._store.empty(size, np.uint8)

    def _parts(self, first: int, end: int) -> Iterator[tuple[Ints, NDArray[np.int32], Ints, int]]:
        """Split rings `first` to `end` into some whole ones at a time, or parts of a long one.

        Yields:
            Lengths of the rings that begin here; points; ends of rings among them; number of points that
            belong to this part (a part of a long ring has one point more, to which its last edge leads).
        """
        counts, at_once = self._rings.lengths[first:end] + 1, self._limits.points
        for start, stop in portions(counts, at_once):
            if stop > start + 1 or counts[start] <= at_once:
                points = self._closed(first + start, first + stop)
                yield counts[start:stop], points, np.cumsum(counts[start:stop]), len(points)
            else:
                count = int(counts[start])
                for begin in range(0, count, at_once):
                    to = min(begin + at_once, count)
                    points = self._part(first + start, begin, min(to + 1, count))
                    head = counts[start:stop] if begin == 0 else counts[:0]
                    closing = np.array([len(points)] if to == count else [], np.int64)
                    yield head, points, closing, to - begin


def _bounds(coordinates: Floats, begins: Ints) -> Floats:
    lows, highs = (ufunc.reduceat(coordinates, begins) for ufunc in (np.minimum, np.maximum))
    return np.concatenate([lows, highs], axis=1)


def union(bounds: Floats) -> Floats:
    """Return the bounds (1, 4) of bounds."""
    return np.concatenate([bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)])[None]


def ring_areas(rings: RingFragments, at_once: int) -> Ints:
    """Return twice the rings' areas in units, negative if the region lies inside (y points down)."""
    areas = np.zeros(len(rings), np.int64)
    for start, stop in portions(rings.lengths, at_once):
        if stop == start + 1:
            begin = rings.begins[start]
            ring = rings.points[begin : begin + rings.lengths[start]]
            for first in range(0, len(ring), at_once):
                x, y = ring[first : first + at_once + 1].astype(np.int64).T
                areas[start] += (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
            (x0, x1), (y0, y1) = ring[[-1, 0]].astype(np.int64).T
            areas[start] += x0 * y1 - x1 * y0
        else:
            lengths = rings.lengths[start:stop]
            x, y = rings.points.take(spans(rings.begins[start:stop], lengths), axis=0).astype(np.int64).T
            last = np.cumsum(lengths)
            following = np.arange(1, len(x) + 1)
            following[last - 1] = last - lengths
            crossed = x * y[following] - x[following] * y
            areas[start:stop] = np.add.reduceat(crossed, last - lengths)
        release_pages(rings.points)
    return areas


def _words(coordinates: Floats, counts: Ints, firsts: Ints) -> tuple[NDArray[np.uint32], Ints]:
    """Return 32-bit words of polygons' well-known binary but for its first five bytes, and their begins.

    Args:
        counts: points of each ring that begins here; others continue it, or one begun before.
        firsts: first ring of each polygon, and the number of rings at the end; empty for rings alone.
    """
    extra = np.zeros(len(counts), np.int64)
    extra[firsts[:-1]] = 1  # the number of rings
    lengths = 1 + extra + 4 * counts
    starts = np.cumsum(lengths) - lengths
    words = np.empty(4 * len(coordinates) + len(counts) + int(extra.sum()), "<u4")
    numbers = np.zeros(len(words), np.bool_)
    for positions, values in ((starts + extra, counts), (starts[firsts[:-1]], np.diff(firsts))):
        numbers[positions], words[positions] = True, values
    words[~numbers] = coordinates.astype("<f8", copy=False).view("<u4").ravel()
    return words, starts[firsts[:-1]]


def _measure(
    points: NDArray[np.int32], ring_ends: Ints, begins: Ints, tops: Floats, ground: PixelGeometry
) -> tuple[Floats, Floats]:
    """Return areas and perimeters of polygons whose closed rings, up to `ring_ends`, follow one another."""
    if not len(begins) or not ground.known:
        return np.full(len(begins), np.nan), np.full(len(begins), np.nan)
    cols, rows = points[:, 0] / UNITS, points[:, 1] / UNITS
    d_rows, d_cols = np.diff(rows, append=rows[-1]), np.diff(cols, append=cols[-1])
    d_rows[ring_ends - 1] = d_cols[ring_ends - 1] = 0
    row, col = rows + d_rows / 2, cols + d_cols / 2
    perimeters = np.add.reduceat(ground.lengths_m(row, col, d_rows, d_cols), begins)
    # Green: the area is the integral of a column's area down to the edge, over the columns; from the
    # polygon's own first row, so that no digits are lost. Along the column the midpoint is exact for what
    # changes evenly, Simpson's rule for the rest.
    mean = ground.pixel_area_m2((tops + row) / 2, col)
    if ground.area.shape[0] > 2:
        mean = (4 * mean + ground.pixel_area_m2(tops, col) + ground.pixel_area_m2(row, col)) / 6
    areas = np.add.reduceat(mean * (row - tops) * d_cols, begins)
    return areas, perimeters
