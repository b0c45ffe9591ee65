"""Round the corners of boundaries that neighbours share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import DOWN, LEFT, NONE, RIGHT, UP, Graph, Ints
from rsseg_cli.vector.trace import portions, spans

if TYPE_CHECKING:
    from rsseg_cli.vector.geometry import Floats

UNITS = 256  # of coordinates inside a pixel
SHARE = 0.375  # of an edge that rounding a corner takes
MARGIN_PX = 0.02  # by which a rounded corner keeps away from other corners
MAX_LOOKUPS = 1 << 22
# a corner's slots, the horizontal and the vertical one, by the set of its slots
ALONG = np.array([RIGHT if slots & 1 else LEFT for slots in range(16)])
UPRIGHT = np.array([DOWN if slots >> DOWN & 1 else UP for slots in range(16)])
CORNER = np.array([slots in (5, 6, 9, 10) for slots in range(16)])


def count_inside(
    corners: list[tuple[Floats, Floats]], positions: Ints, counts: Ints, width: int, margin: float
) -> Ints:
    """Return the number of vertices in closed triangles, enlarged by `margin` px.

    `corners`: rows and columns of each one's three corners; `counts`: (V + 1,), vertices that count before.
    """
    rows = np.stack([row for row, _ in corners])
    lows = np.ceil(rows.min(0) - margin).astype(np.int64)
    heights = np.floor(rows.max(0) + margin).astype(np.int64) - lows + 1
    totals = np.zeros(len(lows), np.int64)
    for start, stop in portions(heights, MAX_LOOKUPS):
        part = slice(start, stop)
        owner = np.repeat(np.arange(start, stop), heights[part])
        row = spans(lows[part], heights[part])
        left, right = _crossed(corners, owner, row.astype(np.float64), margin)
        first = np.searchsorted(
            positions, row * (width + 1) + np.ceil(left - margin).astype(np.int64).clip(0, width)
        )
        last = np.searchsorted(
            positions, row * (width + 1) + np.floor(right + margin).astype(np.int64).clip(-1, width), "right"
        )
        inside = np.maximum(counts[last] - counts[first], 0)
        totals[part] = np.add.reduceat(inside, np.cumsum(heights[part]) - heights[part])
    return totals


def _crossed(
    corners: list[tuple[Floats, Floats]], owner: Ints, row: Floats, margin: float
) -> tuple[Floats, Floats]:
    """Return the leftmost and rightmost column of triangles in a row, within `margin` of it."""
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

    It stays inside the triangle of the corner and its outer points. Corners stay sharp where another corner
    lies in that triangle, where three regions meet, and beside pixels without data: so boundaries do not
    meet. The graph has `SimplifyOptions.reach` rows more above and below.
    """

    def __init__(self, graph: Graph, radius_px: float, first: int, end: int) -> None:
        corners = np.flatnonzero(
            CORNER[graph.slots] & ~graph.border & (graph.rows >= first) & (graph.rows < end)
        )
        middle = np.stack([graph.rows[corners], graph.cols[corners]], axis=1).astype(np.float64)
        outer = [_towards(graph, corners, table, radius_px) for table in (ALONG, UPRIGHT)]
        triangle = [(part[:, 0], part[:, 1]) for part in (middle, *outer)]
        counts = np.arange(len(graph) + 1)
        free = count_inside(triangle, graph.positions, counts, graph.width, MARGIN_PX) == 1
        self.rounded = np.zeros(len(graph), np.bool_)
        self.rounded[corners[free]] = True
        self._number = np.zeros(len(graph), np.int64)
        self._number[corners[free]] = np.arange(np.count_nonzero(free))
        top = (outer[0] + outer[1] + 2 * middle) / 4
        points = np.stack([outer[0], top, outer[1]], axis=1)[free]
        self._points = np.rint(points[:, :, ::-1] * UNITS).astype(np.int32)  # (corner, 3, x and y)

    def points(self, graph: Graph, elements: Ints) -> tuple[NDArray[np.int32], Ints]:
        """Return points of half-edges' vertices in the direction of travel, and their number for each."""
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
    """Return row and column of points on corners' edges."""
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
    return np.stack([graph.rows[corners] + rows * share, graph.cols[corners] + cols * share], axis=1)
