"""Rings put together to polygons, with what is measured on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.errors import DataError
from rsseg_cli.vector_graph import Ints, in_order
from rsseg_cli.vector_measure import Floats, Ground, placed
from rsseg_cli.vector_trace import NO_KEY, Joints, Pieces, spans

if TYPE_CHECKING:
    from affine import Affine

UNITS = 256  # of coordinates inside a pixel
AT_ONCE = 1 << 17  # points of polygons made together; some 200 bytes each
Reproject = Callable[[Floats, Floats], tuple[Floats, Floats]]


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """What is known of objects beside their rings.

    Attributes:
        classes: int64.
        lasts: int64, place of the last pixel in row-major order.
        confidence_counts, confidence_sums, confidence_mins: of their pixels, 0-254.
    """

    classes: Ints
    lasts: Ints
    confidence_counts: Ints
    confidence_sums: Ints
    confidence_mins: Ints

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, chosen: Ints | NDArray[np.bool_]) -> ObjectTable:
        """Some of the objects, in the given order."""
        return ObjectTable(**{part.name: getattr(self, part.name)[chosen] for part in fields(self)})

    def joined(self, other: ObjectTable, group_of: Ints) -> ObjectTable:
        """Objects of both tables as those of groups.

        Args:
            group_of: group of each object of this table, then of each of the other; groups count from 0.
        """
        both = {
            part.name: np.concatenate([getattr(self, part.name), getattr(other, part.name)])
            for part in fields(self)
        }
        count = int(group_of.max(initial=-1)) + 1
        classes, lasts, counts, sums = (np.zeros(count, np.int64) for _ in range(4))
        mins = np.full(count, 255, np.int64)
        classes[group_of] = both["classes"]
        np.maximum.at(lasts, group_of, both["lasts"])
        np.add.at(counts, group_of, both["confidence_counts"])
        np.add.at(sums, group_of, both["confidence_sums"])
        np.minimum.at(mins, group_of, both["confidence_mins"])
        return ObjectTable(
            classes=classes, lasts=lasts, confidence_counts=counts, confidence_sums=sums, confidence_mins=mins
        )


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """Finished polygons in the order of their last pixels.

    Attributes:
        wkb: bytes each.
        boxes: float64 (n, 4), left, bottom, right, top.
        areas_m2, perimeters_m: on the ground; NaN without CRS.
        vertices: without the one that closes each ring.
    """

    wkb: NDArray[np.object_]
    boxes: Floats
    table: ObjectTable
    areas_m2: Floats
    perimeters_m: Floats
    vertices: Ints

    def __len__(self) -> int:
        return len(self.wkb)

    def take(self, chosen: Ints) -> Polygons:
        """Some of the polygons, in the given order."""
        return Polygons(
            table=self.table.take(chosen),
            **{
                name: getattr(self, name)[chosen]
                for name in ("wkb", "boxes", "areas_m2", "perimeters_m", "vertices")
            },
        )


def close_rings(pieces: Pieces, joints: Joints) -> tuple[Ints, Ints]:
    """How pieces of complete objects follow one another in rings; `objects` of the joints are final.

    Returns:
        The pieces ring by ring, and where each ring begins among them, with the total at the end.
    """
    whole = np.flatnonzero(pieces.start_keys == NO_KEY)
    parts = np.flatnonzero(pieces.start_keys != NO_KEY)
    if not len(parts):
        return whole, np.arange(len(whole) + 1)
    starts, ends = pieces.start_keys[parts], pieces.end_keys[parts]
    one = joints.objects[:, 0] == joints.objects[:, 1]
    departures = np.where(one[:, None], joints.departures[:, ::-1], joints.departures).ravel()
    arrivals = joints.arrivals.ravel()
    if len(arrivals):
        order = np.argsort(arrivals)
        place = np.searchsorted(arrivals[order], ends).clip(max=len(order) - 1)
        met = arrivals[order][place] == ends
        ends[met] = departures[order][place[met]]
    order = np.argsort(starts)
    place = np.searchsorted(starts[order], ends).clip(max=len(order) - 1)
    if not np.array_equal(starts[order][place], ends):
        raise ValueError("a ring's pieces do not meet")
    steps, begins = in_order(order[place].astype(np.int32), np.arange(len(parts)))
    return (
        np.concatenate([parts[steps], whole]),
        np.concatenate([begins[:-1], len(parts) + np.arange(len(whole) + 1)]),
    )


def whole_rings(parts: Pieces, begins: Ints) -> Pieces:
    """Rings of pieces that follow one another, ring by ring and point by point.

    Args:
        parts: in order.
        begins: where each ring begins among them, with the total at the end.
    """
    ring_of = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    # A ring starts at its first vertex in row-major order.
    first = np.lexsort((parts.places, ring_of))[begins[:-1]]
    none = np.full(len(begins) - 1, NO_KEY)
    return Pieces(
        points=parts.points,
        begins=parts.begins[begins[:-1]],
        lengths=np.add.reduceat(parts.lengths, begins[:-1]) if len(none) else parts.lengths,
        objects=parts.objects[begins[:-1]],
        start_keys=none,
        end_keys=none,
        places=parts.places[first],
        offsets=parts.begins[first] + parts.offsets[first] - parts.begins[begins[:-1]],
    )


def make_polygons(
    rings: Pieces, table: ObjectTable, ground: Ground, transform: Affine, reproject: Reproject | None
) -> Polygons:
    """Polygons of whole rings, each object's exterior and its holes.

    Args:
        table: what `rings.objects` count in.
        transform: (col, row) to (x, y).
        reproject: to the CRS of the output.
    """
    exterior = _areas(rings) < 0
    rings = rings.take(np.lexsort((rings.places, ~exterior, table.lasts[rings.objects])))
    firsts = _firsts(rings)
    begins = np.append(firsts, len(rings))
    vertices = np.add.reduceat(rings.lengths, firsts) if len(firsts) else np.zeros(0, np.int64)
    maker = _Maker(rings, ground, transform, reproject)
    ends = np.cumsum(vertices)
    start = 0
    while start < len(firsts):  # some polygons at a time, a large one by itself
        at = ends[start] - vertices[start]
        stop = max(start + 1, int(np.searchsorted(ends, at + AT_ONCE, "right")))
        if vertices[start] > AT_ONCE:
            maker.make_large(int(begins[start]), int(begins[start + 1]))
        else:
            maker.make(begins[start : stop + 1])
        start = stop
    return Polygons(
        wkb=np.concatenate([np.zeros(0, object), *maker.wkb]),
        boxes=np.concatenate([np.zeros((0, 4)), *maker.boxes]),
        table=table.take(rings.objects[firsts]),
        areas_m2=np.concatenate([np.zeros(0), *maker.areas]),
        perimeters_m=np.concatenate([np.zeros(0), *maker.perimeters]),
        vertices=vertices,
    )


def _firsts(rings: Pieces) -> Ints:
    """Where each object's rings begin, in rings sorted by object."""
    changes = np.ones(len(rings), np.bool_)
    changes[1:] = rings.objects[1:] != rings.objects[:-1]
    return np.flatnonzero(changes)


class _Maker:
    """Makes polygons of rings that are in their order."""

    def __init__(self, rings: Pieces, ground: Ground, transform: Affine, reproject: Reproject | None) -> None:
        self._rings, self._ground, self._transform, self._reproject = rings, ground, transform, reproject
        self.wkb: list[NDArray[np.object_]] = []
        self.boxes: list[Floats] = []
        self.areas: list[Floats] = []
        self.perimeters: list[Floats] = []

    def _place(self, points: NDArray[np.int32]) -> Floats:
        """(n, 2) coordinates of points."""
        x, y = placed(self._transform, points[:, 0] / UNITS, points[:, 1] / UNITS)
        if self._reproject is not None:
            x, y = self._reproject(x, y)
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                raise DataError(
                    "--dst-crs: a part of the raster lies outside that CRS. Choose another, or leave it out."
                )
        return np.stack([x, y], axis=1)

    def _closed(self, first: int, end: int) -> NDArray[np.int32]:
        """Points of some rings, each from its start and back to it."""
        lengths = self._rings.lengths[first:end]
        if end == first + 1:
            begin, offset = self._rings.begins[first], self._rings.offsets[first]
            ring = self._rings.points[begin : begin + lengths[0]]
            return np.concatenate([ring[offset:], ring[:offset], ring[offset : offset + 1]])
        step = spans(np.zeros(end - first, np.int64), lengths + 1)  # 0 ... length: back to the first point
        step += np.repeat(self._rings.offsets[first:end], lengths + 1)
        step %= np.repeat(lengths, lengths + 1)
        step += np.repeat(self._rings.begins[first:end], lengths + 1)
        return self._rings.points[step]

    def make(self, begins: Ints) -> None:
        """Polygons whose rings begin at `begins`, all at once."""
        first, end = int(begins[0]), int(begins[-1])
        points = self._closed(first, end)
        ring_begins = np.concatenate([[0], np.cumsum(self._rings.lengths[first:end] + 1)])
        polygon_begins = ring_begins[begins - first]
        tops = points[polygon_begins[:-1], 1] / UNITS
        areas, perimeters = _measure(
            points,
            ring_begins[1:],
            polygon_begins[:-1],
            np.repeat(tops, np.diff(polygon_begins)),
            self._ground,
        )
        shapes = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, self._place(points), (ring_begins, begins - first)
        )
        self.wkb.append(shapely.to_wkb(shapes))
        self.boxes.append(shapely.bounds(shapes))
        self.areas.append(areas)
        self.perimeters.append(perimeters)

    def make_large(self, first: int, end: int) -> None:
        """A polygon of many vertices: part by part, so that little beside its WKB is held."""
        wkb_file = io.BytesIO()  # hands out its bytes without another copy
        wkb_file.write(b"\x01\x03\x00\x00\x00" + (end - first).to_bytes(4, "little"))
        area = perimeter = 0.0
        corners: list[Floats] = []
        top: float | None = None
        rings = np.cumsum(self._rings.lengths[first:end])
        start = first
        while start < end:
            at = rings[start - first] - self._rings.lengths[start]
            stop = max(start + 1, first + int(np.searchsorted(rings, at + AT_ONCE, "right")))
            points = self._closed(start, stop)
            ends = np.cumsum(self._rings.lengths[start:stop] + 1)
            top = float(points[0, 1]) / UNITS if top is None else top
            for begin in range(0, len(points), AT_ONCE):
                part = points[begin : begin + AT_ONCE + 1]  # an edge leads to the next part
                closing = ends[(ends > begin) & (ends <= begin + len(part))] - begin
                closing = closing[closing < len(part)] if begin + len(part) < len(points) else closing
                more = _measure(part, closing, np.zeros(1, np.int64), np.full(len(part), top), self._ground)
                area, perimeter = area + float(more[0][0]), perimeter + float(more[1][0])
            wkb_file.writelines(self._ring_bytes(points, ends, corners))
            del points
            start = stop
        wkb = np.empty(1, object)
        wkb[0] = wkb_file.getvalue()
        self.wkb.append(wkb)
        self.boxes.append(np.concatenate([np.min(corners, axis=0), np.max(corners, axis=0)])[None])
        self.areas.append(np.array([area]))
        self.perimeters.append(np.array([perimeter]))

    def _ring_bytes(self, points: NDArray[np.int32], ends: Ints, corners: list[Floats]) -> Iterator[bytes]:
        """WKB of closed rings; the corners of their boxes are added to `corners`."""
        if len(ends) == 1:
            yield len(points).to_bytes(4, "little")
            for begin in range(0, len(points), AT_ONCE):
                coordinates = self._place(points[begin : begin + AT_ONCE])
                corners += [coordinates.min(0), coordinates.max(0)]
                yield coordinates.tobytes()
            return
        coordinates = self._place(points)
        corners += [coordinates.min(0), coordinates.max(0)]
        before = 0
        for end in ends.tolist():
            yield (end - before).to_bytes(4, "little")
            yield coordinates[before:end].tobytes()
            before = end


def _areas(rings: Pieces) -> Ints:
    """Twice the rings' areas in units, negative where the region lies inside (y points down)."""
    areas = np.zeros(len(rings), np.int64)
    ends = np.cumsum(rings.lengths)
    start = 0
    while start < len(rings):
        at = int(ends[start] - rings.lengths[start])
        stop = max(start + 1, int(np.searchsorted(ends, at + AT_ONCE, "right")))
        if stop == start + 1:
            begin = rings.begins[start]
            ring = rings.points[begin : begin + rings.lengths[start]]
            for first in range(0, len(ring), AT_ONCE):
                x, y = ring[first : first + AT_ONCE + 1].astype(np.int64).T
                areas[start] += (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
            (x0, x1), (y0, y1) = ring[[-1, 0]].astype(np.int64).T
            areas[start] += x0 * y1 - x1 * y0
        else:
            lengths = rings.lengths[start:stop]
            x, y = rings.points[spans(rings.begins[start:stop], lengths)].astype(np.int64).T
            last = np.cumsum(lengths)
            following = np.arange(1, len(x) + 1)
            following[last - 1] = last - lengths
            crossed = x * y[following] - x[following] * y
            areas[start:stop] = np.add.reduceat(crossed, last - lengths)
        start = stop
    return areas


def _measure(
    points: NDArray[np.int32], ring_ends: Ints, begins: Ints, tops: Floats, ground: Ground
) -> tuple[Floats, Floats]:
    """Areas and perimeters of polygons whose closed rings follow one another.

    Args:
        ring_ends: behind each ring's last point, which no edge leaves.
        begins: of the polygons.
        tops: row from which each point's polygon is measured.
    """
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
