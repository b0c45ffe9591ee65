"""Outlines of buildings as chains of pixel corners, and the squared ones that may take their place.

Buildings that share edges are a group; it has one main direction. Where two of its buildings meet, the wall
between them ends at the outline that passes. What touches pixels without data, or meets itself at a corner,
stays where it is. A group is squared as a whole or not at all, by the part of the raster in which it has its
middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import (
    DOWN,
    LEFT,
    NONE,
    RIGHT,
    UP,
    Graph,
    Ints,
    Labels,
    Objects,
    build_graph,
    components,
    find_objects,
    link,
    walk_chains,
)
from rsseg_cli.vector.simplify import CELL
from rsseg_cli.vector.source import ClassSource, StoredSource
from rsseg_cli.vector.trace import spans

MAX_SIDE = 6 * CELL  # of a group, px
MARGIN = CELL  # px around groups in which boundaries may pass
MIN_IOU = 0.85  # of a squared building with what it was
MIN_ALIGNED = 0.6  # share of an outline along the main direction and its perpendicular
MIN_RIGHT = 0.6  # share of right angles
UNITS = 256
_PIXELS = ((-1, -1), (-1, 0), (0, -1), (0, 0))  # around a corner: row and column
# Of those, the one on the left and on the right of a half-edge, by slot.
_LEFT_OF = np.array([1, 2, 3, 0])
_RIGHT_OF = np.array([3, 0, 2, 1])
_OPPOSITE = np.array([LEFT, RIGHT, UP, DOWN])
DEGREE = np.array([bin(slots).count("1") for slots in range(16)])


@dataclass(frozen=True, kw_only=True)
class Buildings:
    """Groups of buildings in a window of the raster whose middle lies in a part.

    Attributes:
        labels: (rows, cols), classes of these buildings, no data elsewhere and all around.
        group_of: of each object, -1 for others.
    """

    labels: Labels
    objects: Objects
    group_of: Ints


def window_of(
    source: ClassSource | StoredSource, side: int, row: int, col: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first and last corner row and column of the window that holds the groups of a part."""
    reach = MAX_SIDE // 2 + MARGIN
    rows, cols = (
        (max(first - reach, 0), min(first + side + reach, size))
        for first, size in ((row, source.height), (col, source.width))
    )
    return rows, cols


def find_buildings(
    labels: Labels, wanted: frozenset[int], nodata: int, part: tuple[int, int, int, int], smallest: float
) -> Buildings:
    """Find the groups of a window.

    Args:
        part: first and end row and column of the part's pixels in the window.
        smallest: area of a group, px.
    """
    table = np.full(nodata + 1, nodata, labels.dtype)
    table[list(wanted)] = list(wanted)
    chosen = table[labels]
    chosen[[0, -1]] = nodata
    chosen[:, [0, -1]] = nodata
    objects = find_objects(chosen)
    is_building = objects.classes != nodata
    pairs = _beside(objects, is_building) if len(wanted) > 1 else np.zeros((0, 2), np.int64)
    group = components(pairs[:, 0], pairs[:, 1], len(objects))
    rows, cols = np.divmod(objects.starts, labels.shape[1])
    lengths = np.diff(objects.starts, append=labels.size)
    runs = np.flatnonzero(is_building[objects.of_run])
    run_group, count = group[objects.of_run[runs]], int(group.max(initial=-1)) + 1
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.zeros((count, 2), np.int64)
    for axis, (first, last) in enumerate(((rows, rows + 1), (cols, cols + lengths))):
        np.minimum.at(low[:, axis], run_group, first[runs])
        np.maximum.at(high[:, axis], run_group, last[runs])
    middle = low // 2 + high // 2
    own = ((high - low) <= MAX_SIDE).all(axis=1)
    own &= np.bincount(run_group, lengths[runs], minlength=count) >= smallest
    own &= (middle >= [part[0], part[2]]).all(axis=1) & (middle < [part[1], part[3]]).all(axis=1)
    kept = own[group] & is_building
    chosen[~np.repeat(kept[objects.of_run], lengths).reshape(labels.shape)] = nodata
    return Buildings(labels=chosen, objects=objects, group_of=np.where(kept, group, NONE))


def _beside(objects: Objects, is_building: NDArray[np.bool_]) -> Ints:
    """Return pairs of buildings that share edges."""
    owner = objects.of_run[objects.run_of]
    parts = []
    for one, other in ((owner[1:], owner[:-1]), (owner[:, 1:], owner[:, :-1])):
        met = (one != other) & is_building[one] & is_building[other]
        parts.append(np.stack([one[met], other[met]], axis=1))
    return np.unique(np.concatenate(parts), axis=0).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Chains of half-edges between vertices that all stay, or closed ones.

    Attributes:
        vertices: from the first to the last of each chain; that of a closed one is its first.
        leaving: half-edge that leaves each vertex along the chain, -1 for the last.
        stems: bool (k, 2), ends at an outline that passes.
    """

    vertices: Ints
    leaving: Ints
    begins: Ints
    closed: NDArray[np.bool_]
    fixed: NDArray[np.bool_]
    stems: NDArray[np.bool_]
    groups: Ints


def slots_at(labels: Labels, rows: Ints, cols: Ints) -> NDArray[np.uint8]:
    """Return the slots of pixel corners: the directions in which two pixels beside them differ."""
    first, second, third, last = (labels[rows + row, cols + col] for row, col in _PIXELS)
    slots = (second != last).astype(np.uint8) << RIGHT
    slots |= (first != third).astype(np.uint8) << LEFT
    slots |= (third != last).astype(np.uint8) << DOWN
    return slots | (first != second).astype(np.uint8) << UP


def outline_graph(buildings: Buildings, rows: Ints, cols: Ints, nodata: int) -> Graph:
    """Return the graph of the buildings' outlines, and those of `rows` and `cols` on straight ones."""
    labels = buildings.labels
    graph = build_graph(labels, 1, nodata)
    slots = slots_at(labels, rows, cols)
    straight = (slots == (1 << LEFT | 1 << RIGHT)) | (slots == (1 << UP | 1 << DOWN))
    position = np.concatenate([graph.positions, rows[straight] * (graph.width + 1) + cols[straight]])
    order = np.argsort(position)
    at_row, at_col = (part.astype(np.int32) for part in np.divmod(position[order], graph.width + 1))
    slots = np.concatenate([graph.slots, slots[straight]])[order]
    return Graph(
        rows=at_row,
        cols=at_col,
        slots=slots,
        twin=link(at_row, at_col, slots),
        border=np.zeros(len(slots), np.bool_),
        width=graph.width,
    )


def find_chains(graph: Graph, buildings: Buildings, fixed: NDArray[np.bool_]) -> Chains:
    """Follow the outlines between vertices that stay, and past those where a wall between two ends."""
    around = np.stack(
        [buildings.objects.at(graph.rows + row, graph.cols + col) for row, col in _PIXELS], axis=1
    )
    group_around = buildings.group_of[around]
    degree = DEGREE[graph.slots]
    halves = np.flatnonzero(np.unpackbits(graph.slots[:, None], axis=1, count=4, bitorder="little"))
    vertex, slot = halves >> 2, halves & 3
    inner = (group_around[vertex, _LEFT_OF[slot]] != NONE) & (group_around[vertex, _RIGHT_OF[slot]] != NONE)
    # At three edges the one between two buildings ends; between three buildings, that across the others.
    inner_count = np.bincount(vertex, inner, minlength=len(graph))
    missing = np.log2(np.maximum(15 - graph.slots, 1)).astype(np.int64)
    is_stem = (
        (degree[vertex] == 3) & inner & ((inner_count[vertex] == 1) | (slot == _OPPOSITE[missing[vertex]]))
    )
    number = np.full(4 * len(graph), NONE, np.int64)
    number[halves] = np.arange(len(halves))
    back = number[graph.twin[halves]]  # the same edge from its other end
    stem_at = np.full(len(graph), NONE, np.int64)
    stem_at[vertex[is_stem]] = slot[is_stem]
    # the slot across: the other one of two that are not the stem's
    passing = graph.slots.astype(np.int64) & ~np.where(stem_at == NONE, 0, 1 << np.maximum(stem_at, 0))
    onward = np.log2(np.maximum(passing[vertex] & ~(1 << slot), 1)).astype(np.int64)
    goes_on = ~fixed[vertex] & ~is_stem & (DEGREE[passing[vertex]] == 2)
    following = np.where(goes_on, number[4 * vertex + onward], NONE)  # after arriving at `vertex` by `slot`
    successors = following[back].astype(np.int32)
    reached = np.zeros(len(halves), np.bool_)
    reached[successors[successors != NONE]] = True
    steps, begins = walk_chains(
        successors, np.concatenate([np.flatnonzero(~reached), np.flatnonzero(reached)])
    )
    # Each chain comes in both directions.
    lowest = [np.minimum.reduceat(part, begins[:-1]) if len(part) else part for part in (steps, back[steps])]
    chosen = np.flatnonzero(lowest[0] < lowest[1])
    lengths = np.diff(begins)[chosen]
    steps = steps[spans(begins[:-1][chosen], lengths)]
    ends = np.cumsum(lengths)
    first, last = steps[ends - lengths], back[steps[ends - 1]]
    at_end = np.zeros(len(steps) + len(lengths), np.bool_)
    at_end[ends + np.arange(len(ends))] = True
    vertices, leaving = np.empty(len(at_end), np.int64), np.full(len(at_end), NONE, np.int64)
    vertices[~at_end], leaving[~at_end] = vertex[steps], halves[steps]
    vertices[at_end] = vertex[last]
    groups = group_around[vertex[first], _LEFT_OF[slot[first]]]
    closed = reached[first]
    stems = np.stack([is_stem[end] & ~fixed[vertex[end]] & ~closed for end in (first, last)], axis=1)
    return Chains(
        vertices=vertices,
        leaving=leaving,
        begins=np.append(0, ends + np.arange(1, len(ends) + 1)),
        closed=closed,
        fixed=~closed[:, None] & ~stems,
        stems=stems,
        groups=np.where(groups == NONE, group_around[vertex[first], _RIGHT_OF[slot[first]]], groups),
    )
