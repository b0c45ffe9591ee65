"""Boundaries made simpler while neighbours keep sharing them.

Simplifying takes corners out of the graph, the one whose triangle with its neighbours is the smallest first
(Visvalingam and Whyatt 1993, "Line generalisation by repeated elimination of points"). A corner may go when
no other corner lies in its triangle: then no boundary crosses another one and no region changes sides, so a
coverage stays one. Corners where three regions meet stay, and those beside pixels without data:
the area with data keeps its shape.

Many corners go at once, and what goes must not depend on the parts that the raster is read in. So it is
decided in cells of CELL rows and columns, first in those that begin at the raster's upper left, then in those
half a cell lower and further right; a triangle counts where it lies in one cell. What becomes of a place so
depends on the cells of the second kind that touch it, and on those of the first kind that touch these: on
what lies within CELL px around where the place lies on a multiple of CELL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector_graph import NONE, Graph, Ints
from rsseg_cli.vector_shape import ALONG, CORNER, UPRIGHT, count_inside

if TYPE_CHECKING:
    from rsseg_cli.raster.ground import Ground

CELL = 256
PASSES = 3  # after which corners that were in the way may have gone
NEVER = np.iinfo(np.int64).max


class Simplifier:
    """Takes corners out round by round.

    Args:
        graph: its twins are changed.
        tolerance_m2: triangles below this area go.
        rows, cols: first and last corner row and column of what the graph holds.
    """

    def __init__(
        self, graph: Graph, tolerance_m2: float, ground: Ground, rows: tuple[int, int], cols: tuple[int, int]
    ) -> None:
        self.graph = graph
        self.alive = np.ones(len(graph), np.bool_)
        self._twin = graph.twin  # changed in place
        self._places = graph.places
        self._rows, self._cols = graph.rows.astype(np.int64), graph.cols.astype(np.int64)
        self._known = (*rows, ground.height), (*cols, ground.width)
        self._corner = CORNER[graph.slots] & ~graph.rim
        area_m2 = ground.pixel_area_m2(graph.rows.astype(np.float64), graph.cols.astype(np.float64))
        self._largest = 2 * tolerance_m2 / area_m2  # of twice the triangle, px
        # Among equal triangles every other step of a stair goes first, then any, but always the same.
        parity = (self._rows + self._cols) & 1
        self._tie = parity << 32 | (self._places * 2654435761 & 0xFFFFFFFF)

    def run(self, offset: int) -> None:
        """Simplify in the cells of CELL rows and columns that begin at -offset, CELL - offset, ..."""
        self._may = self._corner & self.alive
        self._cell = []
        for places, (low, high, size) in zip((self._rows, self._cols), self._known, strict=True):
            begin = (places + offset) // CELL * CELL - offset
            whole = (np.maximum(begin, 0) >= low) & (np.minimum(begin + CELL, size) <= high)
            self._may &= whole & (places > begin)
            self._cell.append((places, begin.astype(np.int32)))
        members = np.flatnonzero(self._may)
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
        ends = [self._twin[4 * vertices + table[slots]].astype(np.int64) for table in (ALONG, UPRIGHT)]
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
        inside = np.ones(len(vertices), np.bool_)
        for places, begins in self._cell:
            begin = begins[vertices]
            inside &= np.minimum(places[before], places[behind]) >= begin
            inside &= np.maximum(places[before], places[behind]) <= begin + CELL
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
        before, behind = (self._twin[4 * vertices + table[slots]].copy() for table in (ALONG, UPRIGHT))
        self._twin[before], self._twin[behind] = behind, before
        self.alive[vertices] = False
        self._keys[vertices] = NEVER
