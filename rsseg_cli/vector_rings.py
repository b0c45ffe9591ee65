"""Rings put together to polygons, with what is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector_graph import Ints, in_order
from rsseg_cli.vector_measure import Floats, Ground
from rsseg_cli.vector_trace import NO_KEY, Joints, Pieces, spans

if TYPE_CHECKING:
    from affine import Affine

UNITS = 256  # of coordinates inside a pixel
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


def close_rings(pieces: Pieces, joints: Joints) -> Pieces:
    """Whole rings out of pieces whose objects are complete; `objects` of the joints are final."""
    open_pieces = np.flatnonzero(pieces.start_keys != NO_KEY)
    if not len(open_pieces):
        return pieces
    starts, ends = pieces.start_keys[open_pieces], pieces.end_keys[open_pieces].copy()
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
    successors = order[place].astype(np.int32)
    steps, begins = in_order(successors, np.arange(len(open_pieces)))
    return _joined(pieces, open_pieces[steps], begins)


def _joined(pieces: Pieces, chosen: Ints, begins: Ints) -> Pieces:
    """Rings of `chosen` pieces one after the other, beside those that are whole already."""
    whole = np.flatnonzero(pieces.start_keys == NO_KEY)
    parts = pieces.take(np.concatenate([chosen, whole]))
    begins = np.concatenate([begins[:-1], np.arange(len(chosen), len(parts) + 1)])
    # A ring starts at its first vertex in row-major order.
    ring_of = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    first = np.lexsort((parts.places, ring_of))[begins[:-1]]
    none = np.full(len(begins) - 1, NO_KEY)
    return Pieces(
        points=parts.points,
        begins=parts.begins[begins],
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
    order = np.lexsort((rings.places, ~exterior, table.lasts[rings.objects]))
    lengths = np.diff(rings.begins)[order]
    ends = np.cumsum(lengths + 1)
    step = spans(np.zeros(len(order), np.int64), lengths + 1)  # 0 ... length: back to the first point
    step = (step + np.repeat(rings.offsets[order], lengths + 1)) % np.repeat(lengths, lengths + 1)
    points = rings.points[np.repeat(rings.begins[order], lengths + 1) + step]
    firsts = np.flatnonzero(exterior[order])
    ring_begins = np.concatenate([[0], ends])
    begins = np.append(firsts, len(order))
    cols, rows = points[:, 0] / UNITS, points[:, 1] / UNITS
    areas, perimeters = _measure(rows, cols, ends, ring_begins[begins[:-1]], ground)
    x, y = transform * (cols, rows)
    if reproject is not None:
        x, y = reproject(x, y)
    shapes = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, np.stack([x, y], axis=1), (ring_begins, begins)
    )
    return Polygons(
        wkb=shapely.to_wkb(shapes),
        boxes=shapely.bounds(shapes),
        table=table.take(rings.objects[order][firsts]),
        areas_m2=areas,
        perimeters_m=perimeters,
        vertices=np.add.reduceat(lengths, firsts) if len(firsts) else np.zeros(0, np.int64),
    )


def _areas(rings: Pieces) -> Ints:
    """Twice the rings' areas in units, negative where the region lies inside (y points down)."""
    x, y = rings.points.astype(np.int64).T
    following = np.arange(1, len(x) + 1)
    following[rings.begins[1:] - 1] = rings.begins[:-1]
    crossed = x * y[following] - x[following] * y
    areas: Ints = np.add.reduceat(crossed, rings.begins[:-1]) if len(rings) else np.zeros(0, np.int64)
    return areas


def _measure(
    rows: Floats, cols: Floats, ring_ends: Ints, begins: Ints, ground: Ground
) -> tuple[Floats, Floats]:
    """Areas and perimeters of polygons whose closed rings follow one another."""
    if not len(begins):
        return np.zeros(0), np.zeros(0)
    if not ground.known:
        return np.full(len(begins), np.nan), np.full(len(begins), np.nan)
    d_rows, d_cols = np.diff(rows, append=0.0), np.diff(cols, append=0.0)
    d_rows[ring_ends - 1] = d_cols[ring_ends - 1] = 0
    row, col = rows + d_rows / 2, cols + d_cols / 2
    perimeters = np.add.reduceat(ground.lengths_m(row, col, d_rows, d_cols), begins)
    # Green: the area is the integral of a column's area down to the edge, over the columns; from the
    # polygon's own first row, so that no digits are lost. Simpson's rule along the column.
    top = np.repeat(rows[begins], np.diff(begins, append=len(rows)))
    if ground.area.size == 1:
        mean: Floats | float = ground.area[0, 0]
    else:
        weights = ((top, 1), ((top + row) / 2, 4), (row, 1))
        mean = sum(weight * ground.pixel_area_m2(place, col) for place, weight in weights) / 6
    areas = np.add.reduceat(mean * (row - top) * d_cols, begins)
    return areas, perimeters
