"""Rings of the objects in a block of rows, and fragments of rings that continue in other blocks.

A block has the corner rows from `first` to `end`, exclusive; the last block also has the raster's lower edge.
An object is open where it may continue in another block: it has pixels in the block's last row, or in the row
above the block, which is read too. Rings of open objects come in fragments with a key at each end: that of
the edge on which they leave the block. Where two open objects of one class meet at a corner, only the whole
raster decides whether they are one: their rings are cut there, and a junction holds both ways to continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import (
    DOWN,
    LEAVE,
    LEAVE_ACROSS,
    LEFT,
    NONE,
    RIGHT,
    UP,
    Graph,
    Ints,
    Objects,
    walk_chains,
)
from rsseg_cli.vector.storage import Table, release_pages

NO_KEY = np.int64(-(2**62))
POINTS = 1 << 18  # copied at a time
# The pixel on the left of a half-edge, by slot, from its corner.
LEFT_ROW = np.array([-1, 0, 0, -1], np.int64)
LEFT_COL = np.array([0, -1, 0, -1], np.int64)


@dataclass(frozen=True, kw_only=True)
class RingFragments(Table):
    """Rings and parts of rings.

    Attributes:
        points: int32 (n, 2), x and y in 1/256 px from the raster's upper left.
        begins, lengths: int64 (k,), span of each fragment in `points`.
        objects: (k,), owner of the ring.
        start_keys, end_keys: int64 (k,), a fragment is followed by the one whose start key equals its end
            key; NO_KEY for whole rings.
        positions: int64 (k,), first vertex of the fragment in row-major order.
        offsets: int64 (k,), index of that vertex in the fragment.
    """

    points: NDArray[np.int32]
    begins: Ints
    lengths: Ints
    objects: Ints
    start_keys: Ints
    end_keys: Ints
    positions: Ints
    offsets: Ints

    shared = ("points",)

    def reorder(self, order: Ints) -> None:
        """Reorder in place, without a second copy of all columns."""
        for name in self.columns():
            values = getattr(self, name)
            values[:] = values[order]

    def compact(self) -> RingFragments:
        """Copy with own points, one fragment after the other."""
        begins = np.cumsum(self.lengths) - self.lengths
        points = np.empty((int(self.lengths.sum()), 2), np.int32)
        put(points, begins, self.points, self.begins, self.lengths)
        return replace(self, points=points, begins=begins)


@dataclass(frozen=True, kw_only=True)
class Junctions(Table):
    """Corners where two open objects of one class meet.

    Attributes:
        objects: (k, 2).
        arrivals: int64 (k, 2), end keys of the fragments that arrive with each object on their left.
        departures: int64 (k, 2), start keys of the fragments that continue round the same object; if both are
            one object, each fragment continues with the other's.
    """

    objects: Ints
    arrivals: Ints
    departures: Ints


def known_keys(keys: Ints, upper_ends: Ints) -> Ints:
    """Fill in the upper ends, by column, of edges that run straight down into the block."""
    unknown = (keys < 0) & (keys != NO_KEY)
    code = np.where(unknown, -keys - 1, 0)
    return np.where(unknown, (4 * upper_ends[code >> 2] + DOWN) * 4 + (code & 3), keys)


def put(target: NDArray[np.int32], at: Ints, points: NDArray[np.int32], begins: Ints, lengths: Ints) -> None:
    """Copy spans of `points` to the indices `at` of `target`."""
    words, source = target.view(np.int64).ravel(), points.view(np.int64).ravel()  # faster than pairs
    for start, stop in portions(lengths, POINTS):  # the numbers of points take more memory than the points
        if stop == start + 1:
            length = lengths[start]
            words[at[start] : at[start] + length] = source[begins[start] : begins[start] + length]
        else:
            part = slice(start, stop)
            words[spans(at[part], lengths[part])] = source[spans(begins[part], lengths[part])]
        release_pages(points)
        release_pages(target)


def spans(begins: Ints, lengths: Ints) -> Ints:
    """Return begin, begin + 1, ... of each span, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - ends + lengths, lengths)


def portions(sizes: Ints, limit: int) -> Iterator[tuple[int, int]]:
    """Yield first and end of items that follow one another, as many as fit the limit of their sum, or one."""
    ends, start = np.cumsum(sizes), 0
    while start < len(ends):
        stop = int(np.searchsorted(ends, ends[start] - sizes[start] + limit, "right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


class Tracer:
    """Follows the boundaries of a block; the graph may reach beyond it.

    `objects` are those in the block's rows, and the row above if there is one.
    """

    def __init__(
        self,
        graph: Graph,
        objects: Objects,
        first: int,
        end: int,
        open_objects: NDArray[np.bool_],
        nodata: int,
    ) -> None:
        self._graph, self._objects, self._open, self._nodata = graph, objects, open_objects, nodata
        self._row = max(first - 1, 0)
        self._first, self._end = (int(position) for position in np.searchsorted(graph.rows, (first, end)))
        self._cut = self._corners()

    def _object_left_of(self, vertices: Ints, slots: NDArray[Any]) -> Ints:
        """Return the object on the left of half-edges; -1 outside the raster."""
        rows = self._graph.rows[vertices] + LEFT_ROW[slots] - self._row
        cols = self._graph.cols[vertices] + LEFT_COL[slots]
        height, width = self._objects.run_of.shape
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        objects = self._objects.at(np.where(inside, rows, 0), np.where(inside, cols, 0))
        return np.where(inside, objects, NONE).astype(np.int64)

    def _corners(self) -> NDArray[np.uint8]:
        """Return, by vertex, what happens to a region that meets itself at a corner.

        Bit 0: the pixels upper left and lower right are one object; bit 1: they may be. Bits 2 and 3: the
        same for the other two.
        """
        cases = np.zeros(len(self._graph), np.uint8)
        crossing = np.flatnonzero(self._graph.slots[self._first : self._end] == 15) + self._first
        for slots, shift in (((UP, DOWN), 0), ((LEFT, RIGHT), 2)):
            pair = [self._object_left_of(crossing, np.full(len(crossing), slot)) for slot in slots]
            inside = (pair[0] != NONE) & (pair[1] != NONE)
            classes = [self._objects.classes[part] for part in pair]
            alike = inside & (classes[0] == classes[1]) & (classes[0] != self._nodata)
            one = alike & (pair[0] == pair[1])
            maybe = alike & ~one & self._open[pair[0]] & self._open[pair[1]]
            cases[crossing] |= (one | maybe << 1).astype(np.uint8) << shift
        return cases

    def _next(self, arrivals: NDArray[Any]) -> Ints:
        """Return the half-edge that follows each arrival; -1 at a cut."""
        vertices, back = arrivals >> 2, arrivals & 3
        slots = self._graph.slots[vertices]
        leave = LEAVE[slots, back].astype(np.int64)
        crossing = np.flatnonzero(slots == 15)
        case = self._cut[vertices[crossing]] >> np.where(back[crossing] < DOWN, 0, 2) & 3
        leave[crossing] = np.where(case == 1, LEAVE_ACROSS[15, back[crossing]], leave[crossing])
        followed: Ints = 4 * vertices.astype(np.int64) + leave
        followed[crossing[case == 2]] = NONE
        return followed

    def _keys(self, half_edges: NDArray[Any], *, arriving: bool, at_junction: bool = False) -> Ints:
        """Return keys of edges in the direction away from, or towards, the vertices of `half_edges`.

        A key names the edge's upper end, and whether a fragment begins there at a junction. If the upper end
        is unknown, a negative number names the column in which the edge runs straight down, for `known_keys`.
        """
        graph, slots = self._graph, half_edges & 3
        vertices, twins = half_edges >> 2, graph.twin[half_edges].astype(np.int64)
        is_upper = np.where(twins == NONE, slots == DOWN, vertices < twins >> 2)
        flags = (is_upper == arriving).astype(np.int64) | 2 * at_junction
        upper = np.where(is_upper, half_edges, twins)
        ends = upper >> 2
        position = graph.rows[ends].astype(np.int64) * (graph.width + 1) + graph.cols[ends]
        unknown = (twins == NONE) & ~is_upper
        column = graph.cols[vertices].astype(np.int64)
        return np.where(unknown, -(4 * column + flags) - 1, (4 * position + (upper & 3)) * 4 + flags)

    def _owned(self) -> Ints:
        """Return the half-edges that leave the block's vertices."""
        slots = self._graph.slots[self._first : self._end]
        present = np.unpackbits(slots[:, None], axis=1, count=4, bitorder="little")
        return np.flatnonzero(present) + 4 * self._first

    def trace(self) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Trace all fragments.

        Returns:
            Half-edges fragment by fragment; the begin of each fragment; its object (-1: none); its start key;
            its end key.
        """
        owned = self._owned()
        twins = self._graph.twin[owned]
        inside = np.flatnonzero((twins >= 4 * self._first) & (twins < 4 * self._end))
        following = np.full(len(owned), NONE, np.int64)
        following[inside] = self._next(twins[inside])
        number = np.full(4 * (self._end - self._first) + 1, NONE, np.int32)
        number[owned - 4 * self._first] = np.arange(len(owned), dtype=np.int32)
        successors = number[np.where(following == NONE, -1, following - 4 * self._first)]
        steps, begins = walk_chains(successors, self._heads(owned >> 2, successors))
        elements = owned[steps]
        firsts, lasts = elements[begins[:-1]], elements[begins[1:] - 1]
        objects = self._object_left_of(firsts >> 2, firsts & 3)
        objects[(objects != NONE) & (self._objects.classes[objects] == self._nodata)] = NONE
        closed = following[steps[begins[1:] - 1]] == firsts
        start_keys = np.where(closed, NO_KEY, self._start_keys(firsts))
        end_keys = np.where(closed, NO_KEY, self._keys(lasts, arriving=False))
        return elements, begins, objects, start_keys, end_keys

    @staticmethod
    def _heads(vertices: Ints, successors: NDArray[np.int32]) -> Ints:
        """Return first elements of open fragments, then possible first vertices of rings."""
        linked = np.flatnonzero(successors != NONE)
        ahead = vertices[linked] < vertices[successors[linked]]
        reached, rising, from_later = (np.zeros(len(vertices), np.bool_) for _ in range(3))
        reached[successors[linked]] = True
        rising[linked] = ahead
        from_later[successors[linked]] = ~ahead
        return np.concatenate([np.flatnonzero(~reached), np.flatnonzero(rising & from_later)])

    def _start_keys(self, firsts: Ints) -> Ints:
        """Return keys of fragments that begin at a junction, or come from another block."""
        keys = self._keys(firsts, arriving=False, at_junction=True)
        arrivals = self._from_outside()
        following = self._next(arrivals)
        arrivals, following = arrivals[following != NONE], following[following != NONE]
        order = np.argsort(following)
        position = np.searchsorted(following[order], firsts).clip(max=max(len(order) - 1, 0))
        if len(order):
            met = following[order][position] == firsts
            keys[met] = self._keys(arrivals[order][position[met]], arriving=True)
        return keys

    def _from_outside(self) -> Ints:
        """Return half-edges of the block whose other end lies outside."""
        owned = self._owned()
        twins = self._graph.twin[owned]
        return owned[(twins < 4 * self._first) | (twins >= 4 * self._end)]

    def junctions(self) -> Junctions:
        """Return the corners where fragments may continue in two ways."""
        parts = []
        cut = self._cut[self._first : self._end]
        for backs, leaves, bit in (((LEFT, RIGHT), (UP, DOWN), 2), ((DOWN, UP), (LEFT, RIGHT), 8)):
            vertices = (np.flatnonzero(cut & bit) + self._first).astype(np.int64)
            parts.append(
                [
                    np.stack([get(4 * vertices + slot) for slot in slots], axis=1)  # type: ignore[no-untyped-call]
                    for slots, get in (
                        (leaves, lambda edges: self._object_left_of(edges >> 2, edges & 3)),
                        (backs, lambda edges: self._keys(edges, arriving=True)),
                        (leaves, lambda edges: self._keys(edges, arriving=False, at_junction=True)),
                    )
                ]
            )
        objects, arrivals, departures = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Junctions(objects=objects, arrivals=arrivals, departures=departures)

    def leaving_down(self) -> tuple[Ints, Ints]:
        """Return columns in which an edge leaves straight down, and its upper end's position."""
        graph = self._graph
        vertices = np.arange(self._first, self._end)
        vertices = vertices[(graph.slots[vertices] >> DOWN & 1) == 1]
        twins = graph.twin[4 * vertices + DOWN]
        outside = (twins == NONE) | (twins >= 4 * self._end)
        vertices = vertices[outside]
        columns = graph.cols[vertices].astype(np.int64)
        return columns, graph.rows[vertices].astype(np.int64) * (graph.width + 1) + columns
