"""Simplify boundaries that neighbours share.

Simplifying takes corners out of the graph, the one whose triangle with its neighbours is the smallest first
(Visvalingam and Whyatt 1993, "Line generalisation by repeated elimination of points"). A corner may go when
no other corner lies in its triangle: then no boundary crosses another one and no region changes sides, so a
coverage stays one. Corners where three regions meet stay, and those beside pixels without data: the area with
data keeps its shape.

Many corners go at once, and which ones must not depend on the parts in which the raster is read. So it is
decided in square cells, first in those that begin at the raster's upper left, then in those half a cell lower
and further right; a triangle counts where it lies in one cell. What becomes of a corner depends on the cells
of the second kind that touch it, and on those of the first kind that touch these: on a cell's side around.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.files import write_error
from rsseg_cli.vector.curves import ALONG, CORNER, UPRIGHT, count_inside
from rsseg_cli.vector.graph import DOWN, LEFT, NONE, RIGHT, UP, Graph, Ints, build_graph
from rsseg_cli.vector.plan import BlockPlan, Stopwatch
from rsseg_cli.vector.surroundings import Surroundings

CELL = 256  # px
WIDEST, FEW_BYTES = 1 << 13, 4 << 20  # side of parts that are joined, and their size
_OPPOSITE = {RIGHT: LEFT, LEFT: RIGHT, DOWN: UP, UP: DOWN}
_VERTEX = np.dtype(
    [
        ("position", "<i8"),
        ("ends", "<i8", 4),
        ("slots", "u1"),
        ("border", "?"),
        ("dx", "<i4"),  # from the pixel corner, 1/256 px
        ("dy", "<i4"),
    ]
)
_COUNT = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class StoredBoundaries:
    """A graph in files, one for each part of the raster.

    A part has `side` corner rows and columns, a multiple of `cell`, in whose squares corners are removed.
    """

    folder: str
    height: int
    width: int
    side: int = 8 * CELL
    cell: int = CELL
    kind: str = "corners"

    @property
    def parts(self) -> list[tuple[int, int]]:
        """First corner row and column of each part."""
        rows, cols = (range(0, size + 1, self.side) for size in (self.height, self.width))
        return list(product(rows, cols))

    def widened(self) -> StoredBoundaries:
        """Return larger parts of the raster for the stored ones; what is joined has FEW_BYTES at most."""
        wide = self
        while wide.side < WIDEST and wide.side <= max(self.height, self.width):
            wider, sizes = replace(wide, side=2 * wide.side, kind="joined"), Counter[tuple[int, int]]()
            for row, col in self.parts:
                sizes[row // wider.side, col // wider.side] += self.path(row, col).stat().st_size
            if max(sizes.values()) > FEW_BYTES:
                break
            wide = wider
        return wide

    def path(self, row: int, col: int, kind: str = "") -> Path:
        """File of the part that begins at a corner row and column."""
        return Path(self.folder) / f".{kind or self.kind}-{row}-{col}.bin"

    def store(self, graph: Graph, row: int, col: int) -> None:
        """Write the vertices of a part."""
        own = (graph.rows >= row) & (graph.rows < row + self.side)
        own &= (graph.cols >= col) & (graph.cols < col + self.side)
        chosen, positions = np.flatnonzero(own), graph.positions
        ends = graph.twin.reshape(-1, 4)[chosen]
        vertices = np.zeros(len(chosen), _VERTEX)
        vertices["position"], vertices["slots"] = positions[chosen], graph.slots[chosen]
        vertices["ends"] = np.where(ends == NONE, NONE, 4 * positions[ends >> 2] + (ends & 3))
        vertices["border"] = graph.border[chosen]
        self.write(vertices, row, col)

    def write(self, vertices: NDArray[Any], row: int, col: int) -> None:
        """Write the vertices of a part, in the order of their positions."""
        rows = vertices["position"] // (self.width + 1)
        begins = np.searchsorted(rows, row + np.arange(self.side + 1)).astype(_COUNT)
        path = self.path(row, col)
        try:
            path.write_bytes(begins.tobytes() + vertices.tobytes())
        except OSError as err:
            raise write_error(path.parent.parent, err) from err

    def read(self, low: int, high: int, left: int = 0, right: int | None = None) -> Graph:
        """Read the graph of the corner rows `low` to `high` and of the vertices their edges lead to.

        With `left` and `right`, only the parts that have columns between these.
        """
        right = self.width if right is None else right
        parts = [
            self._rows(row, col, low, high)
            for row in range(low // self.side * self.side, high + 1, self.side)
            for col in range(left // self.side * self.side, right + 1, self.side)
        ]
        vertices = np.concatenate(parts)
        vertices = vertices[np.argsort(vertices["position"])]
        return _graph(vertices, self.width)

    def around(self, row: int, col: int) -> list[tuple[int, int]]:
        """Return a part and those that touch it."""
        rows, cols = (
            range(max(first - self.side, 0), min(first + self.side, size) + 1, self.side)
            for first, size in ((row, self.height), (col, self.width))
        )
        return list(product(rows, cols))

    def own(self, row: int, col: int) -> NDArray[Any]:
        """Read the vertices of a part."""
        return self._rows(row, col, row, row + self.side - 1)

    def _rows(self, row: int, col: int, low: int, high: int) -> NDArray[Any]:
        """Read vertices of a part in some of its rows."""
        with open(self.path(row, col), "rb") as file:
            first, end = max(low - row, 0), min(high + 1 - row, self.side)
            file.seek(first * _COUNT.itemsize)
            begins = np.frombuffer(file.read((end - first + 1) * _COUNT.itemsize), _COUNT)
            file.seek((self.side + 1) * _COUNT.itemsize + int(begins[0]) * _VERTEX.itemsize)
            return np.frombuffer(file.read(int(begins[-1] - begins[0]) * _VERTEX.itemsize), _VERTEX)


def _graph(vertices: NDArray[Any], width: int) -> Graph:
    """Return the graph of stored vertices."""
    own, ends = np.ascontiguousarray(vertices["position"]), vertices["ends"]
    known = ends != NONE
    ends = ends[known]
    ahead = ends >> 2
    index = np.searchsorted(own, ahead)
    far = np.unique(ahead[own[index.clip(max=len(own) - 1)] != ahead])
    at = np.arange(len(own)) + np.searchsorted(far, own)
    position = np.insert(own, np.searchsorted(own, far), far)
    slots, border = np.zeros(len(position), np.uint8), np.zeros(len(position), np.bool_)
    slots[at], border[at] = vertices["slots"], vertices["border"]
    rows, cols = (part.astype(np.int32) for part in np.divmod(position, width + 1))
    vertex, way = np.nonzero(known)
    twin = np.full((len(position), 4), NONE, np.int32)
    twin[at[vertex], way] = 4 * (index + np.searchsorted(far, ahead)) + (ends & 3)
    for slot, by_line in ((RIGHT, at), (DOWN, at[np.argsort(cols[at], kind="stable")])):
        _link_straight(twin, slots, by_line, (rows, cols)[slot == DOWN], slot)
    shift = np.zeros((len(position), 2), np.int32)
    shift[at] = np.stack([vertices["dx"], vertices["dy"]], axis=1)
    return Graph(
        rows=rows, cols=cols, slots=slots, twin=twin.ravel(), border=border, width=width, shift=shift
    )


def _link_straight(
    twin: NDArray[np.int32], slots: NDArray[np.uint8], by_line: Ints, lines: NDArray[np.int32], slot: int
) -> None:
    """Set the ends that no part knew: edges that run straight to the next vertex in their row or column."""
    here, ahead = by_line[:-1], by_line[1:]
    same = lines[here] == lines[ahead]
    for one, other, way in ((here, ahead, slot), (ahead, here, _OPPOSITE[slot])):
        open_end = same & (slots[one] >> way & 1).astype(bool) & (twin[one, way] == NONE)
        twin[one[open_end], way] = 4 * other[open_end] + _OPPOSITE[way]


def simplify_part(shared: tuple[BlockPlan, StoredBoundaries], row: int, col: int) -> dict[str, float]:
    """Simplify and store the boundaries of a part; return seconds by stage."""
    plan, stored = shared
    watch = Stopwatch()
    source, cell = plan.source, stored.cell
    rows, cols = (
        (max(position - cell, 0), min(position + stored.side + cell, size))
        for position, size in ((row, source.height), (col, source.width))
    )
    # Corners lie between pixels: one more row and column of these on each side, but for the raster's sides.
    first, end = max(cols[0] - 1, 0), min(cols[1] + 1, source.width)
    labels = source.read(rows[0] - 1, rows[1] - rows[0] + 2, first, end - first)
    watch.lap("read")
    graph = build_graph(labels, rows[0], source.nodata, first, source.width)
    if plan.squares is None:
        del labels
    watch.lap("boundaries")
    if len(graph):
        simplifier = Simplifier(graph, plan, rows, cols, cell)
        for offset in (0, cell // 2):
            simplifier.run(offset)
        graph = graph.without(~simplifier.alive)
    watch.lap("shape")
    stored.store(graph, row, col)
    if plan.squares is not None:
        shape = source.height, source.width
        around = Surroundings.of(
            labels, (rows[0] - 1, first), graph, (row, col), stored.side, shape, source.nodata
        )
        around.of_classes(plan.squares.classes).store(stored.path(row, col, "around"))
    watch.lap("hand over")
    return watch.seconds


PASSES = 3  # after which corners that were in the way may have gone
NEVER = np.iinfo(np.int64).max


class Simplifier:
    """Takes corners out round by round; `rows` and `cols` are the graph's first and last."""

    def __init__(
        self, graph: Graph, plan: BlockPlan, rows: tuple[int, int], cols: tuple[int, int], cell: int
    ) -> None:
        ground, self._side = plan.ground, cell
        self.graph = graph
        self.alive = np.ones(len(graph), np.bool_)
        self._twin = graph.twin  # changed in position
        self._places = graph.positions
        self._rows, self._cols = graph.rows.astype(np.int64), graph.cols.astype(np.int64)
        self._known = (*rows, ground.height), (*cols, ground.width)
        self._corner = CORNER[graph.slots] & ~graph.border
        area_m2 = ground.pixel_area_m2(graph.rows.astype(np.float64), graph.cols.astype(np.float64))
        self._largest = 2 * plan.options.tolerance_m2 / area_m2  # of twice the triangle, px
        # Among equal triangles every other step of a stair goes first, then any, but always the same.
        parity = (self._rows + self._cols) & 1
        self._tie = parity << 32 | (self._places * 2654435761 & 0xFFFFFFFF)

    def run(self, offset: int) -> None:
        """Simplify in the cells that begin at -offset, cell - offset, ..."""
        self._may = self._corner & self.alive
        self._cell = []
        for positions, (low, high, size) in zip((self._rows, self._cols), self._known, strict=True):
            begin = (positions + offset) // self._side * self._side - offset
            whole = (np.maximum(begin, 0) >= low) & (np.minimum(begin + self._side, size) <= high)
            self._may &= whole & (positions > begin)
            self._cell.append((positions, begin.astype(np.int32)))
        members = np.flatnonzero(self._may)
        self._keys = np.full(len(self.alive), NEVER)
        for _ in range(PASSES):
            members = members[self.alive[members]]
            if not self._pass(members):
                break

    def _pass(self, dirty: Ints) -> bool:
        """Run rounds until no triangle can go; return whether any went."""
        any_went = False
        candidates = dirty
        while len(candidates):
            self._weigh(dirty)
            candidates = candidates[self._keys[candidates] < NEVER]
            before, after = self._neighbours(candidates)
            keys = self._keys[candidates]
            lowest = (keys < self._keys[before]) & (keys < self._keys[after])
            chosen = candidates[lowest]
            if not len(chosen):
                break
            before, after = before[lowest], after[lowest]
            free = ~self._linked(chosen, before, after)
            free[free] = self._alone(before[free], after[free], self._keys[chosen[free]])
            free[free] = self._empty(chosen[free], before[free], after[free])
            self._keys[chosen[~free]] = NEVER
            gone = chosen[free]
            self._take_out(gone)
            any_went |= len(gone) > 0
            dirty = np.concatenate([before[free], after[free]])
            dirty = np.unique(dirty[self._may[dirty]])
            revived = dirty[self._keys[dirty] == NEVER]
            candidates = np.concatenate([candidates[self.alive[candidates]], revived])
        return any_went

    def _neighbours(self, vertices: Ints) -> tuple[Ints, Ints]:
        """Return vertices at the other ends of corners' edges, the vertices themselves if unknown."""
        slots = self.graph.slots[vertices]
        ends = [self._twin[4 * vertices + table[slots]].astype(np.int64) for table in (ALONG, UPRIGHT)]
        before, after = (np.where(end == NONE, vertices, end >> 2) for end in ends)
        return before, after

    def _weigh(self, vertices: Ints) -> None:
        """Set the order in which corners may go, by the size of their triangles."""
        before, after = self._neighbours(vertices)
        rows, cols = self._rows, self._cols
        twice = abs(
            (rows[before] - rows[vertices]) * (cols[after] - cols[vertices])
            - (cols[before] - cols[vertices]) * (rows[after] - rows[vertices])
        )
        inside = np.ones(len(vertices), np.bool_)
        for positions, begins in self._cell:
            begin = begins[vertices]
            inside &= np.minimum(positions[before], positions[after]) >= begin
            inside &= np.maximum(positions[before], positions[after]) <= begin + self._side
        may = inside & (before != vertices) & (after != vertices) & (twice < self._largest[vertices])
        self._keys[vertices] = np.where(may, (np.minimum(twice, 2**29) << 33) | self._tie[vertices], NEVER)

    def _linked(self, vertices: Ints, before: Ints, after: Ints) -> NDArray[np.bool_]:
        """Tell whether an edge joins a corner's neighbours already: the region between would be lost."""
        linked = before == after
        for slot in range(4):
            linked |= self._twin[4 * before + slot] >> 2 == after
        return linked

    @staticmethod
    def _alone(before: Ints, after: Ints, keys: Ints) -> NDArray[np.bool_]:
        """Choose the first of the corners between the same two vertices."""
        low, high = np.minimum(before, after), np.maximum(before, after)
        order = np.lexsort((keys, high, low))
        first = np.ones(len(order), np.bool_)
        first[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
        alone = np.zeros(len(order), np.bool_)
        alone[order[first]] = True
        return alone

    def _empty(self, *corners: Ints) -> NDArray[np.bool_]:
        """Tell whether triangles hold no vertices but their own."""
        positions = [
            (self._rows[corner].astype(float), self._cols[corner].astype(float)) for corner in corners
        ]
        counts = np.concatenate([[0], np.cumsum(self.alive)])
        return count_inside(positions, self._places, counts, self.graph.width, 1e-6) == 3

    def _take_out(self, vertices: Ints) -> None:
        slots = self.graph.slots[vertices]
        before, after = (self._twin[4 * vertices + table[slots]].copy() for table in (ALONG, UPRIGHT))
        self._twin[before], self._twin[after] = after, before
        self.alive[vertices] = False
        self._keys[vertices] = NEVER
