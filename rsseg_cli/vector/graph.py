"""Boundaries of a class raster as a planar graph on its pixel corners, and the objects between them.

A vertex is a pixel corner where a boundary turns, or where three or four regions meet. From a vertex an edge
may leave in four directions, its slots: right 0, left 1, down 2, up 3. The half-edge of a slot has the number
4 * vertex + slot; `twin` is the half-edge at an edge's other end. The region on the left of a half-edge stays
the same until the next vertex, so that a region's ring is a cycle of half-edges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

RIGHT, LEFT, DOWN, UP = range(4)
NONE = -1
CLOCKWISE = (RIGHT, DOWN, LEFT, UP)
CHUNK_PX = 1 << 22  # pixels compared at once: some ten bytes each

Ints = NDArray[np.int64]
Labels = NDArray[Any]  # uint8 or uint16, the largest value is no data


def _turns(step: int) -> NDArray[np.int8]:
    """Return (16, 4), for a vertex's set of slots and the slot of arrival, the next present in rotation."""
    table = np.full((16, 4), NONE, np.int8)
    for slots in range(16):
        for back in range(4):
            position = CLOCKWISE.index(back)
            turned = [CLOCKWISE[(position + step * k) % 4] for k in range(1, 5)]
            present = [slot for slot in turned if slots >> slot & 1]
            if slots >> back & 1:
                table[slots, back] = present[0]
    return table


LEAVE = _turns(1)  # clockwise round the region's own pixel
LEAVE_ACROSS = _turns(-1)  # at a corner that two pixels of one region share: over to the other one


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Vertices in row-major order.

    Attributes:
        rows, cols: int32 (V,), pixel corners from the raster's upper left.
        slots: uint8 (V,), bit s is set if slot s has an edge.
        twin: int32 (4 V,), the half-edge at the other end; -1 for none, or if an edge runs straight out of
            the graph's rows or columns.
        border: bool (V,), beside a pixel without data, or on the raster's edge.
        width: of the raster, px.
        shift: int32 (V, 2), x and y from the pixel corner in 1/256 px; None if vertices lie on corners.
    """

    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    slots: NDArray[np.uint8]
    twin: NDArray[np.int32]
    border: NDArray[np.bool_]
    width: int
    shift: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def positions(self) -> Ints:
        """int64 (V,), index of each pixel corner in row-major order, ascending."""
        return self.rows.astype(np.int64) * (self.width + 1) + self.cols

    def without(self, gone: NDArray[np.bool_]) -> Graph:
        """Return the graph without some vertices, to which no edges lead."""
        kept = np.flatnonzero(~gone)
        number = np.full(len(self) + 1, NONE, np.int64)
        number[kept] = np.arange(len(kept))
        twin = self.twin.reshape(-1, 4)[kept]
        moved = np.where(twin == NONE, NONE, 4 * number[twin >> 2] + (twin & 3)).astype(np.int32)
        return replace(
            self,
            rows=self.rows[kept],
            cols=self.cols[kept],
            slots=self.slots[kept],
            twin=moved.ravel(),
            border=self.border[kept],
        )


def build_graph(
    labels: Labels, first_row: int, nodata: int, first_col: int = 0, width: int | None = None
) -> Graph:
    """Find the vertices between the rows of `labels`, and between its columns or at the raster's sides.

    `first_row` is the upper corner row, `first_col` the first pixel column, `width` that of the whole raster.
    """
    height, columns = labels.shape
    width = columns if width is None else width
    step = max(1, CHUNK_PX // columns)
    parts = [
        _corners(labels[start : min(start + step, height - 1) + 1], nodata, start)
        for start in range(0, height - 1, step)
    ]
    corners, slots, border = (np.concatenate([part[k] for part in parts]) for k in range(3))
    rows, cols = (part.astype(np.int32) for part in np.divmod(corners, columns + 1))
    if columns < width:
        known = (cols > 0) | (first_col == 0)
        known &= (cols < columns) | (first_col + columns == width)
        rows, cols, slots, border = rows[known], cols[known], slots[known], border[known]
    rows += first_row
    cols += first_col
    return Graph(rows=rows, cols=cols, slots=slots, twin=link(rows, cols, slots), border=border, width=width)


def _corners(labels: Labels, nodata: int, row: int) -> tuple[Ints, NDArray[np.uint8], NDArray[np.bool_]]:
    """Return corners (numbered from that of `row`), slots and border flags of the vertices between rows."""
    height, width = labels.shape
    # A vertical edge left of each pixel, and right of the last.
    beside = np.empty((height, width + 1), np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=beside[:, 1:-1])
    beside[:, 0], beside[:, -1] = labels[:, 0] != nodata, labels[:, -1] != nodata
    between = np.zeros((height - 1, width + 2), np.bool_)
    np.not_equal(labels[1:], labels[:-1], out=between[:, 1:-1])
    up, down, left, right = beside[:-1], beside[1:], between[:, :-1], between[:, 1:]
    corners = np.flatnonzero((up | down) & (left | right))
    slots = np.zeros(len(corners), np.uint8)
    for slot, present in ((RIGHT, right), (LEFT, left), (DOWN, down), (UP, up)):
        slots |= np.ascontiguousarray(present).ravel()[corners].view(np.uint8) << slot
    return corners + row * (width + 1), slots, _border(labels, corners, nodata)


def _border(labels: Labels, corners: Ints, nodata: int) -> NDArray[np.bool_]:
    """Tell which corners between the rows of `labels` touch a pixel without data."""
    empty = np.pad(labels == nodata, ((0, 0), (1, 1)), constant_values=True)
    beside = empty[:, :-1] | empty[:, 1:]
    return (beside[:-1] | beside[1:]).ravel()[corners]


def link(rows: NDArray[np.int32], cols: NDArray[np.int32], slots: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return twins: to the right the next vertex of the row, downwards the next of the column; -1 beyond."""
    twin = np.full(4 * len(cols), NONE, np.int32)
    here = np.flatnonzero((slots[:-1] & 1 << RIGHT).astype(bool) & (rows[1:] == rows[:-1]))
    twin[4 * here + RIGHT], twin[4 * here + 4 + LEFT] = 4 * here + 4 + LEFT, 4 * here + RIGHT
    by_column = np.argsort(cols, kind="stable")
    below, above = by_column[1:], by_column[:-1]
    linked = (slots[above] >> DOWN & 1).astype(bool) & (cols[above] == cols[below])
    above, below = above[linked], below[linked]
    twin[4 * above + DOWN], twin[4 * below + UP] = 4 * below + UP, 4 * above + DOWN
    return twin


def components(one: NDArray[Any], other: NDArray[Any], count: int) -> NDArray[np.int32]:
    """Return the component of each of `count` nodes, where pairs are linked; numbered by their first node."""
    if not count:
        return np.zeros(0, np.int32)
    links = coo_array((np.ones(len(one), np.bool_), (one, other)), shape=(count, count))
    return connected_components(links.tocsr(), directed=False)[1]


@dataclass(frozen=True, kw_only=True)
class Objects:
    """4-connected pixels of one class, in some rows; a run is pixels of one class side by side in a row.

    Attributes:
        run_of: (rows, width), the run of each pixel.
        starts, of_run: (R,), first pixel of each run, in row-major order, and its object.
    """

    run_of: NDArray[np.int32]
    starts: Ints
    of_run: NDArray[np.int32]
    classes: Labels

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.int32]:
        """Return the objects of pixels."""
        return self.of_run[self.run_of[rows, cols]]


def find_objects(labels: Labels) -> Objects:
    """Find the objects of (rows, width), numbered by their first pixel."""
    height, width = labels.shape
    begins = np.ones((height, width), np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=labels.size)
    run_of = np.repeat(np.arange(len(starts), dtype=np.int32), lengths).reshape(height, width)
    joined = labels[1:] == labels[:-1]
    joined &= begins[1:] | begins[:-1]
    below = np.flatnonzero(joined) + width
    runs = run_of.ravel()
    of_run = components(runs[below], runs[below - width], len(starts))
    classes = np.empty(of_run.max(initial=-1) + 1, labels.dtype)
    classes[of_run] = labels.ravel()[starts]
    return Objects(run_of=run_of, starts=starts, of_run=of_run, classes=classes)


def walk_chains(successors: NDArray[np.int32], heads: Ints) -> tuple[Ints, Ints]:
    """Return elements chain by chain, and the begin of each chain, with the total at the end.

    Args:
        successors: (n,), the next of each element, -1 at a chain's end; no element is next of two.
        heads: the first elements of open chains, then at least one of each closed chain.
    """
    count, total = len(successors), len(successors) + len(heads)
    if not len(heads):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    # A depth-first walk of one graph: helper k leads to head k, then to helper k + 1.
    follow = successors != NONE
    degrees = np.concatenate([follow, np.full(len(heads), 2)])
    degrees[-1] = 1
    pointers = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int32)
    indices = np.empty(pointers[-1], np.int32)
    indices[pointers[:count][follow]] = successors[follow]
    indices[pointers[count:total]] = heads
    indices[pointers[count : total - 1] + 1] = np.arange(count + 1, total)
    graph = csr_array((np.ones(len(indices), np.float64), indices, pointers), shape=(total, total))
    walked = depth_first_order(graph, count, directed=True, return_predecessors=False)
    helper = walked >= count
    elements = walked[~helper].astype(np.int64)
    before = np.cumsum(~helper)[helper]  # elements before each helper
    begins = before[np.diff(before, prepend=-1) > 0]
    return elements, begins if begins[-1] == len(elements) else np.append(begins, len(elements))
