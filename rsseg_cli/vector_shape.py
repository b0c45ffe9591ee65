"""Boundaries made simpler and smoother while neighbours keep sharing them.

Simplifying takes corners out of the graph, the one whose triangle with its neighbours is the smallest first
(Visvalingam and Whyatt 1993, "Line generalisation by repeated elimination of points"). A corner may go when
no other corner lies in its triangle: then no boundary crosses another one and no region changes sides, so a
coverage stays one. Corners where three regions meet stay, and those beside pixels without data:
the area with data keeps its shape.

Many corners go at once, and what goes must not depend on the blocks that the raster is read in. So it is
decided in bands of BAND rows, first in those that begin at the raster's upper edge, then in those half a band
lower; a triangle counts where it lies in one band. A block computes the bands that it touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector_graph import DOWN, LEFT, NONE, RIGHT, UP, Graph, Ints
from rsseg_cli.vector_trace import spans

if TYPE_CHECKING:
    from rsseg_cli.vector_measure import Floats, Ground

BAND = 256
UNITS = 256  # of coordinates inside a pixel
PASSES = 3  # after which corners that were in the way may have gone
SHARE = 0.375  # of an edge that rounding a corner takes
LEAST_RADIUS_PX, MOST_RADIUS_PX = 2.0, 32.0
MARGIN_PX = 0.02  # by which a rounded corner keeps away from other corners
NEVER = np.iinfo(np.int64).max
MOST_LOOKUPS = 1 << 22
# a corner's slots, the horizontal and the vertical one, by the set of its slots
_ALONG = np.array([RIGHT if slots & 1 else LEFT for slots in range(16)])
_UPRIGHT = np.array([DOWN if slots >> DOWN & 1 else UP for slots in range(16)])
_CORNER = np.array([slots in (5, 6, 9, 10) for slots in range(16)])


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """How boundaries are shaped.

    Attributes:
        tolerance_m2: triangles below this area go; 0 for none.
        radius_px: of rounded corners; 0 for none.
    """

    tolerance_m2: float = 0.0
    radius_px: float = 0.0

    def rows_around(self, first: int, end: int, height: int) -> tuple[int, int]:
        """Corner rows, first and last, that decide on the boundaries of a block."""
        if not self.tolerance_m2 and not self.radius_px:
            return first, end if end == height else end - 1
        reach = int(np.ceil(self.radius_px)) + 2
        low, high = first - reach, end + reach
        half = BAND // 2
        low, high = (low + half) // BAND * BAND - half, -(-(high + half) // BAND) * BAND - half
        return max(low // BAND * BAND, 0), min(-(-high // BAND) * BAND, height)


def make_shaping(simplify_m: float, smooth: bool, ground: Ground) -> Shaping:
    """Settings in metres to those of a grid; smoothing without a tolerance simplifies by a pixel."""
    area_m2 = float(ground.pixel_area_m2(np.array(ground.height / 2), np.array(ground.width / 2)))
    tolerance_m2 = simplify_m**2 or (area_m2 if smooth else 0.0)
    radius = 1.5 * (tolerance_m2 / area_m2) ** 0.5
    return Shaping(
        tolerance_m2=tolerance_m2,
        radius_px=float(np.clip(radius, LEAST_RADIUS_PX, MOST_RADIUS_PX)) if smooth else 0.0,
    )


def shape_graph(
    graph: Graph, shaping: Shaping, ground: Ground, low: int, high: int
) -> tuple[Graph, Curves | None]:
    """The simpler graph of the corner rows `low` to `high`, and its rounded corners."""
    if shaping.tolerance_m2 and len(graph):
        simplifier = _Simplifier(graph, shaping.tolerance_m2, ground, low, high)
        for offset in (0, BAND // 2):
            simplifier.run(offset)
        graph = simplifier.graph.without(~simplifier.alive)
    return graph, Curves(graph, shaping.radius_px) if shaping.radius_px and len(graph) else None


class _Simplifier:
    """Takes corners out round by round."""

    def __init__(self, graph: Graph, tolerance_m2: float, ground: Ground, low: int, high: int) -> None:
        self.graph = graph
        self.alive = np.ones(len(graph), np.bool_)
        self._twin = graph.twin  # changed in place
        self._places = graph.places
        self._rows, self._cols = graph.rows.astype(np.int64), graph.cols.astype(np.int64)
        self._low, self._high, self._height = low, high, ground.height
        self._corner = _CORNER[graph.slots] & ~graph.rim
        area_m2 = ground.pixel_area_m2(graph.rows.astype(np.float64), graph.cols.astype(np.float64))
        self._largest = 2 * tolerance_m2 / area_m2  # of twice the triangle, px
        # Among equal triangles every other step of a stair goes first, then any, but always the same.
        parity = (self._rows + self._cols) & 1
        self._tie = parity << 32 | (self._places * 2654435761 & 0xFFFFFFFF)

    def run(self, offset: int) -> None:
        """Simplify in the bands that begin at -offset, BAND - offset, ..."""
        band = (self._rows + offset) // BAND
        begin, end = band * BAND - offset, (band + 1) * BAND - offset
        whole = (np.maximum(begin, 0) >= self._low) & (np.minimum(end, self._height) <= self._high)
        may = self._corner & self.alive & whole & (self._rows > begin)
        members = np.flatnonzero(may)
        self._may, self._begin, self._end = may, begin, end
        self._keys = np.full(len(self.alive), NEVER)
        for _ in range(PASSES):
            members = members[self.alive[members]]
            if not self._pass(members):
                break

    def _pass(self, dirty: Ints) -> bool:
        """Rounds until no triangle can go; whether any went."""
        any_went = False
        candidates = dirty
        while len(candidates):
            self._weigh(dirty)
            candidates = candidates[self._keys[candidates] < NEVER]
            before, behind = self._neighbours(candidates)
            keys = self._keys[candidates]
            lowest = (keys < self._keys[before]) & (keys < self._keys[behind])
            chosen = candidates[lowest]
            if not len(chosen):
                break
            before, behind = before[lowest], behind[lowest]
            free = ~self._linked(chosen, before, behind)
            free[free] = self._alone(before[free], behind[free], self._keys[chosen[free]])
            free[free] = self._empty(chosen[free], before[free], behind[free])
            self._keys[chosen[~free]] = NEVER
            gone = chosen[free]
            self._take_out(gone)
            any_went |= len(gone) > 0
            dirty = np.concatenate([before[free], behind[free]])
            dirty = np.unique(dirty[self._may[dirty]])
            revived = dirty[self._keys[dirty] == NEVER]
            candidates = np.concatenate([candidates[self.alive[candidates]], revived])
        return any_went

    def _neighbours(self, vertices: Ints) -> tuple[Ints, Ints]:
        """Vertices at the other ends of corners' edges, the vertices themselves where that is not known."""
        slots = self.graph.slots[vertices]
        ends = [self._twin[4 * vertices + table[slots]].astype(np.int64) for table in (_ALONG, _UPRIGHT)]
        before, behind = (np.where(end == NONE, vertices, end >> 2) for end in ends)
        return before, behind

    def _weigh(self, vertices: Ints) -> None:
        """Set the order in which corners may go, by the size of their triangles."""
        before, behind = self._neighbours(vertices)
        rows, cols = self._rows, self._cols
        twice = abs(
            (rows[before] - rows[vertices]) * (cols[behind] - cols[vertices])
            - (cols[before] - cols[vertices]) * (rows[behind] - rows[vertices])
        )
        inside = (np.minimum(rows[before], rows[behind]) >= self._begin[vertices]) & (
            np.maximum(rows[before], rows[behind]) <= self._end[vertices]
        )
        may = inside & (before != vertices) & (behind != vertices) & (twice < self._largest[vertices])
        self._keys[vertices] = np.where(may, (np.minimum(twice, 2**29) << 33) | self._tie[vertices], NEVER)

    def _linked(self, vertices: Ints, before: Ints, behind: Ints) -> NDArray[np.bool_]:
        """Whether an edge joins a corner's neighbours already: the region between would be lost."""
        found = before == behind
        for slot in range(4):
            found |= self._twin[4 * before + slot] >> 2 == behind
        return found

    @staticmethod
    def _alone(before: Ints, behind: Ints, keys: Ints) -> NDArray[np.bool_]:
        """Of corners between the same two vertices, the one that comes first."""
        low, high = np.minimum(before, behind), np.maximum(before, behind)
        order = np.lexsort((keys, high, low))
        first = np.ones(len(order), np.bool_)
        first[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
        alone = np.zeros(len(order), np.bool_)
        alone[order[first]] = True
        return alone

    def _empty(self, *corners: Ints) -> NDArray[np.bool_]:
        """Whether triangles hold no vertices but their own."""
        places = [(self._rows[corner].astype(float), self._cols[corner].astype(float)) for corner in corners]
        counts = np.concatenate([[0], np.cumsum(self.alive)])
        return count_inside(places, self._places, counts, self.graph.width, 1e-6) == 3

    def _take_out(self, vertices: Ints) -> None:
        slots = self.graph.slots[vertices]
        before, behind = (self._twin[4 * vertices + table[slots]].copy() for table in (_ALONG, _UPRIGHT))
        self._twin[before], self._twin[behind] = behind, before
        self.alive[vertices] = False
        self._keys[vertices] = NEVER


def count_inside(
    corners: list[tuple[Floats, Floats]], places: Ints, counts: Ints, width: int, margin: float
) -> Ints:
    """Number of vertices in closed triangles.

    Args:
        corners: rows and columns of the three corners of each triangle.
        places: of all vertices, ascending.
        counts: int64 (len(places) + 1,), number of vertices that count before each.
        margin: by which triangles are taken as larger, px.
    """
    rows = np.stack([row for row, _ in corners])
    lows = np.ceil(rows.min(0) - margin).astype(np.int64)
    heights = np.floor(rows.max(0) + margin).astype(np.int64) - lows + 1
    found = np.zeros(len(lows), np.int64)
    ends = np.cumsum(heights)
    start = 0
    while start < len(lows):  # as many triangles at once as memory allows
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + MOST_LOOKUPS)))
        part = slice(start, stop)
        owner = np.repeat(np.arange(start, stop), heights[part])
        row = spans(lows[part], heights[part])
        left, right = _crossed(corners, owner, row.astype(np.float64), margin)
        first = np.searchsorted(
            places, row * (width + 1) + np.ceil(left - margin).astype(np.int64).clip(0, width)
        )
        last = np.searchsorted(
            places, row * (width + 1) + np.floor(right + margin).astype(np.int64).clip(-1, width), "right"
        )
        inside = np.maximum(counts[last] - counts[first], 0)
        found[part] = np.add.reduceat(inside, np.cumsum(heights[part]) - heights[part])
        start = stop
    return found


def _crossed(
    corners: list[tuple[Floats, Floats]], owner: Ints, row: Floats, margin: float
) -> tuple[Floats, Floats]:
    """Leftmost and rightmost column of triangles in a row, within `margin` of it."""
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    for k in range(3):
        (y0, x0), (y1, x1) = (tuple(part[owner] for part in corners[(k + step) % 3]) for step in range(2))
        low, high = np.minimum(y0, y1), np.maximum(y0, y1)
        at = np.clip(row, low, high)
        meets = (row >= low - margin) & (row <= high + margin)
        flat = high - low < 1e-12
        share = np.where(flat, 0.0, (at - y0) / np.where(flat, 1.0, y1 - y0))
        col = x0 + share * (x1 - x0)
        ends = (np.where(flat, np.minimum(x0, x1), col), np.where(flat, np.maximum(x0, x1), col))
        left = np.where(meets, np.minimum(left, ends[0]), left)
        right = np.where(meets, np.maximum(right, ends[1]), right)
    return np.where(np.isfinite(left), left, 0.0), np.where(np.isfinite(right), right, -1.0)


class Curves:
    """Rounded corners: each becomes three points of a parabola that touches both edges.

    It stays inside the triangle of the corner and its outer points. Corners keep their shape where another
    corner lies in that triangle, where three regions meet, and beside pixels without data: so boundaries do
    not meet.
    """

    def __init__(self, graph: Graph, radius_px: float) -> None:
        corners = np.flatnonzero(_CORNER[graph.slots] & ~graph.rim)
        middle = np.stack([graph.rows[corners], graph.cols[corners]], axis=1).astype(np.float64)
        outer = [_towards(graph, corners, table, radius_px) for table in (_ALONG, _UPRIGHT)]
        triangle = [(part[:, 0], part[:, 1]) for part in (middle, *outer)]
        counts = np.arange(len(graph) + 1)
        free = count_inside(triangle, graph.places, counts, graph.width, MARGIN_PX) == 1
        self.rounded = np.zeros(len(graph), np.bool_)
        self.rounded[corners[free]] = True
        self._number = np.zeros(len(graph), np.int64)
        self._number[corners[free]] = np.arange(np.count_nonzero(free))
        top = (outer[0] + outer[1] + 2 * middle) / 4
        points = np.stack([outer[0], top, outer[1]], axis=1)[free]
        self._points = np.rint(points[:, :, ::-1] * UNITS).astype(np.int32)  # (corner, 3, x and y)

    def points(self, graph: Graph, elements: Ints) -> tuple[NDArray[np.int32], Ints]:
        """Points of half-edges' vertices in the direction of travel, and how many each gives."""
        vertices, slots = elements >> 2, elements & 3
        rounded = self.rounded[vertices]
        counts = np.where(rounded, 3, 1)
        begins = np.cumsum(counts) - counts
        points = np.empty((int(counts.sum()), 2), np.int32)
        sharp = vertices[~rounded]
        points[begins[~rounded]] = np.stack([graph.cols[sharp], graph.rows[sharp]], axis=1) * np.int32(UNITS)
        own = self._points[self._number[vertices[rounded]]]
        backwards = slots[rounded] < DOWN  # left by the horizontal edge, so reached by the vertical one
        own = np.where(backwards[:, None, None], own[:, ::-1], own)
        for k in range(3):
            points[begins[rounded] + k] = own[:, k]
        return points, counts


def _towards(graph: Graph, corners: Ints, slot_of: NDArray[Any], radius_px: float) -> Floats:
    """Row and column of points on corners' edges."""
    slots = slot_of[graph.slots[corners]]
    ends = graph.twin[4 * corners + slots].astype(np.int64)
    known = ends != NONE
    other = np.where(known, ends >> 2, corners)
    # An edge whose end is not known runs straight up or down, out of the rows that were looked at.
    far = np.where(slots == UP, -1e6, 1e6)
    rows = np.where(known, (graph.rows[other] - graph.rows[corners]).astype(np.float64), far)
    cols = (graph.cols[other] - graph.cols[corners]).astype(np.float64)
    length = np.hypot(rows, cols)
    share = np.minimum(SHARE, radius_px / length)
    found: Floats = np.stack([graph.rows[corners] + rows * share, graph.cols[corners] + cols * share], axis=1)
    return found
