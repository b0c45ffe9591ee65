"""Outlines of buildings as chains of vertices, and the squared ones that may take their place.

Buildings that share edges are a group; it has one main direction. Where two of its buildings meet, the wall
between them ends at the outline that passes. What touches pixels without data, or meets itself at a corner,
stays where it is. A group is squared as a whole or not at all, by the part of the raster in which it has its
middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector.geometry import Floats
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
    components,
    walk_chains,
)
from rsseg_cli.vector.simplify import CELL
from rsseg_cli.vector.source import ClassSource, StoredSource
from rsseg_cli.vector.trace import spans

MAX_SIDE = 6 * CELL  # of a group, px
MARGIN = CELL  # px around groups in which boundaries may pass
DEGREE = np.array([bin(slots).count("1") for slots in range(16)])
_OPPOSITE = np.array([LEFT, RIGHT, UP, DOWN])


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


@dataclass(frozen=True, kw_only=True)
class Rings:
    """Rings of buildings.

    Attributes:
        halves: half-edges with the building on their left, ring by ring.
        begins: of each ring, with the total at the end.
        buildings: of each ring, the number of a ring that is its outline.
        groups: of each ring.
    """

    halves: Ints
    begins: Ints
    buildings: Ints
    groups: Ints

    @property
    def owners(self) -> Ints:
        """Ring of each half-edge."""
        return np.repeat(np.arange(len(self.groups)), np.diff(self.begins))

    def take(self, rings: Ints) -> Rings:
        """Select rings."""
        lengths = np.diff(self.begins)[rings]
        return Rings(
            halves=self.halves[spans(self.begins[rings], lengths)],
            begins=np.append(0, np.cumsum(lengths)),
            buildings=self.buildings[rings],
            groups=self.groups[rings],
        )


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of buildings that lie in a window; `keys` and `areas`, in half px, are those of groups."""

    rings: Rings
    keys: Ints
    areas: Ints


def find_groups(
    graph: Graph, around: NDArray[Any], wanted: frozenset[int], part: tuple[int, int, int], smallest: float
) -> Groups:
    """Find the groups of a window whose middle lies in a part.

    Args:
        around: classes beside vertices, in the order of their positions.
        part: first corner row and column, and its side.
        smallest: area of a group, px.
    """
    classes = np.full((len(graph), 4), NONE)
    at = np.searchsorted(graph.positions, around["position"])
    known = at < len(graph)
    known[known] = graph.positions[at[known]] == around["position"][known]
    classes[at[known]] = around["classes"][known]
    present = np.unpackbits(graph.slots[:, None], axis=1, count=4, bitorder="little").astype(np.bool_)
    halves = np.flatnonzero(present & np.isin(classes, list(wanted)))
    classes = classes.ravel()[halves]
    number = np.full(4 * len(graph) + 1, NONE, np.int64)
    number[halves] = np.arange(len(halves))
    twin = graph.twin[halves].astype(np.int64)
    slots = np.where(twin == NONE, 0, graph.slots[twin >> 2])
    onward = [
        np.where(table[slots, twin & 3] == NONE, NONE, number[(twin & ~3) + table[slots, twin & 3]])
        for table in (LEAVE, LEAVE_ACROSS)
    ]
    rings = _Walk(graph, halves, onward[0])
    owner = rings.owners(classes)
    # at a corner that two pixels of one building share the ring goes on round the other one
    building = owner[rings.ring_of]
    across = (slots == 15) & (onward[1] != NONE)
    across[across] = building[onward[1][across]] == building[across]
    if across.any():
        rings = _Walk(graph, halves, np.where(across, onward[1], onward[0]))
        owner = rings.owners(classes)
    return _grouped(graph, rings, owner, number[twin], part, smallest)


class _Walk:
    """Rings through half-edges, by the next one of each."""

    def __init__(self, graph: Graph, halves: Ints, following: Ints) -> None:
        reached = np.zeros(len(halves), np.bool_)
        reached[following[following != NONE]] = True
        heads = np.concatenate([np.flatnonzero(~reached), np.flatnonzero(reached)])
        self.steps, self.begins = walk_chains(following.astype(np.int32), heads)
        self.firsts = self.begins[:-1]
        self.closed = reached[self.steps[self.firsts]]
        self.halves = halves[self.steps]
        vertices = self.halves >> 2
        self.points = np.stack([graph.cols[vertices], graph.rows[vertices]], axis=1).astype(np.int64)
        self.owner_of = np.repeat(np.arange(len(self.closed)), np.diff(self.begins))
        self.ring_of = np.empty(len(halves), np.int64)
        self.ring_of[self.steps] = self.owner_of
        self.areas = signed(self.points, self.owner_of)  # twice that; outlines are negative, holes positive

    def owners(self, classes: Ints) -> Ints:
        """Return the outline around each ring, itself for outlines, -1 for what is not known as a whole."""
        own = classes[self.steps[self.firsts]]
        outlines = np.flatnonzero(self.closed & (self.areas < 0))
        holes = np.flatnonzero(self.closed & (self.areas > 0))
        owner = np.full(len(own), NONE, np.int64)
        owner[outlines] = outlines
        if len(holes) and len(outlines):
            chosen = np.isin(self.owner_of, outlines)
            shapes = shapely.polygons(
                shapely.linearrings(
                    self.points[chosen], indices=np.searchsorted(outlines, self.owner_of[chosen])
                )
            )
            points = shapely.points(self.points[self.firsts[holes]])
            hole, at = shapely.STRtree(shapes).query(points, predicate="intersects")
            hole, at = holes[hole], outlines[at]
            around = (own[at] == own[hole]) & (-self.areas[at] > self.areas[hole])
            hole, at = hole[around], at[around]
            order = np.lexsort((self.areas[at], hole))  # the smallest last, so that it counts
            owner[hole[order]] = at[order]
        return owner


def _grouped(
    graph: Graph, rings: _Walk, owner: Ints, beyond: Ints, part: tuple[int, int, int], smallest: float
) -> Groups:
    """Join buildings that share edges, and choose the groups of a part; `beyond`: half-edges across."""
    count = len(owner)
    inner = np.flatnonzero(beyond != NONE)
    held = np.flatnonzero(owner != NONE)
    group = components(
        np.concatenate([rings.ring_of[inner], held]),
        np.concatenate([rings.ring_of[beyond[inner]], owner[held]]),
        count,
    )
    total = int(group.max(initial=-1)) + 1
    low, high = np.full((total, 2), np.iinfo(np.int64).max), np.zeros((total, 2), np.int64)
    keys = np.full(total, np.iinfo(np.int64).max)
    if count:
        places = rings.points[:, ::-1]
        np.minimum.at(low, group, np.minimum.reduceat(places, rings.firsts))
        np.maximum.at(high, group, np.maximum.reduceat(places, rings.firsts))
        own = 4 * graph.positions[rings.halves >> 2] + (rings.halves & 3)
        np.minimum.at(keys, group, np.minimum.reduceat(own, rings.firsts))
    areas = -np.bincount(group, rings.areas, minlength=total).astype(np.int64)
    middle = low // 2 + high // 2
    kept = (np.bincount(group[owner == NONE], minlength=total) == 0) & (areas >= 2 * smallest)
    kept &= ((high - low) <= MAX_SIDE).all(axis=1)
    kept &= ((middle >= part[:2]) & (middle < np.array(part[:2]) + part[2])).all(axis=1)
    number = np.where(kept, np.cumsum(kept) - 1, NONE)
    whole = Rings(halves=rings.halves, begins=rings.begins, buildings=owner, groups=number[group])
    return Groups(rings=whole.take(np.flatnonzero(kept[group])), keys=keys[kept], areas=areas[kept])


def signed(points: Ints, ring: Ints) -> Floats:
    """Return twice the signed area of rings whose points follow one another, from their number on."""
    begins = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))[: len(ring)]
    area = np.zeros(int(ring.max(initial=-1)) + 1)
    if len(begins):
        following = np.arange(1, len(points) + 1)
        following[np.append(begins[1:], len(points)) - 1] = begins
        (x, y), (next_x, next_y) = points.T.astype(np.float64), points[following].T.astype(np.float64)
        area[ring[begins]] = np.add.reduceat(x * next_y - next_x * y, begins)
    return area


def outline_graph(graph: Graph, rings: Rings) -> tuple[Graph, Ints, Ints]:
    """Return the graph of the rings' edges alone, its vertices in the whole one, and the group on the left
    of each of its half-edges."""
    group = np.full(4 * len(graph), NONE, np.int64)
    group[rings.halves] = rings.groups[rings.owners]
    present = group != NONE
    present[graph.twin[rings.halves]] = True
    present = present.reshape(-1, 4)
    chosen = np.flatnonzero(present.any(axis=1))
    number = np.full(len(graph), NONE, np.int64)
    number[chosen] = np.arange(len(chosen))
    twin = graph.twin.reshape(-1, 4)[chosen]
    twin = np.where(present[chosen], 4 * number[twin >> 2] + (twin & 3), NONE).astype(np.int32)
    part = Graph(
        rows=graph.rows[chosen],
        cols=graph.cols[chosen],
        slots=np.packbits(present[chosen], axis=1, bitorder="little")[:, 0],
        twin=twin.ravel(),
        border=graph.border[chosen],
        width=graph.width,
    )
    return part, chosen, group.reshape(-1, 4)[chosen].ravel()


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


def find_chains(graph: Graph, group_of: Ints, fixed: NDArray[np.bool_]) -> Chains:
    """Follow the outlines between vertices that stay, and past those where a wall between two ends.

    `group_of`: the group on the left of each half-edge.
    """
    degree = DEGREE[graph.slots]
    halves = np.flatnonzero(np.unpackbits(graph.slots[:, None], axis=1, count=4, bitorder="little"))
    vertex, slot = halves >> 2, halves & 3
    left, right = group_of[halves], group_of[graph.twin[halves]]
    inner = (left != NONE) & (right != NONE)
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
    closed = reached[first]
    stems = np.stack([is_stem[end] & ~fixed[vertex[end]] & ~closed for end in (first, last)], axis=1)
    return Chains(
        vertices=vertices,
        leaving=leaving,
        begins=np.append(0, ends + np.arange(1, len(ends) + 1)),
        closed=closed,
        fixed=~closed[:, None] & ~stems,
        stems=stems,
        groups=np.maximum(left, right)[first],
    )
