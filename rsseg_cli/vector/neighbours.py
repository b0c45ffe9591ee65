"""Small objects given to their neighbours, and small holes to what lies around them.

Both work on objects and the edges that they share, so they do not depend on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rsseg_cli.vector.graph import NONE, Ints, Labels

_ROOT = 0


def find_holes(low: Ints, high: Ints, areas: Ints, void: NDArray[np.bool_], hole: float) -> tuple[Ints, Ints]:
    """Objects in holes below an area, and the object that each hole belongs to.

    Holes in holes go with the outer one; objects without data have no holes of their own.

    Args:
        low, high: objects that share edges; pairs of two objects above the area may be missing.
        areas: of the objects; what lies around the raster counts as a large one.
        void: objects without data.
    """
    small = areas < hole
    inner, across = small[low] & small[high], small[low] != small[high]
    graph = coo_array(
        (np.ones(int(inner.sum()), np.bool_), (low[inner], high[inner])), shape=(len(areas),) * 2
    )
    group = connected_components(graph, directed=False)[1]
    inside = np.where(small[low], low, high)[across]
    outer = np.where(small[low], high, low)[across]
    first, last = np.full(len(areas), len(areas)), np.full(len(areas), NONE)
    np.minimum.at(first, group[inside], outer)
    np.maximum.at(last, group[inside], outer)
    members = np.flatnonzero(small)
    total = np.bincount(group[members], areas[members], minlength=len(areas))
    whole = (first == last) & (total < hole)  # groups of small objects with one large object around them
    whole[whole] = ~void[last[whole]]
    gone = members[whole[group[members]]]
    # In the other groups a small object may have holes; one that is alone has none.
    counts = np.bincount(group[members], minlength=len(areas))
    walked = members[(counts[group[members]] > 1) & ~whole[group[members]]]
    number = np.full(len(areas), NONE)
    number[walked] = np.arange(1, len(walked) + 1)
    pairs = [
        (number[low[inner]], number[high[inner]]),
        (np.full(len(inside), _ROOT), number[inside]),
    ]
    one, other = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = (one != NONE) & (other != NONE)
    found, owners = _walk(one[known], other[known], areas[walked], void[walked], hole)
    return (
        np.concatenate([gone, walked[found - 1]]),
        np.concatenate([last[group[gone]], walked[owners - 1]]),
    )


def _walk(one: Ints, other: Ints, areas: Ints, void: NDArray[np.bool_], hole: float) -> tuple[Ints, Ints]:
    """Numbers of nodes in holes, and of the holes' owners.

    Args:
        one, other: linked nodes; node 0 is all that is large, nodes 1 ... have `areas` and `void`.
    """
    count = len(areas) + 1
    links = coo_array(
        (np.ones(2 * len(one), np.bool_), (np.append(one, other), np.append(other, one))), (count,) * 2
    )
    graph = links.tocsr()
    place, ends = graph.indptr[:-1].tolist(), graph.indptr[1:].tolist()
    linked, total = graph.indices.tolist(), [0, *areas.tolist()]
    met, lowest, before = [NONE] * count, [0] * count, [NONE] * count
    met[_ROOT] = 0
    order, stack = [_ROOT], [_ROOT]
    holes: list[tuple[int, int, int]] = []  # where a hole's nodes begin and end in `order`, its owner
    while stack:
        node = stack[-1]
        if place[node] < ends[node]:
            following = linked[place[node]]
            place[node] += 1
            if met[following] == NONE:
                before[following] = node
                met[following] = lowest[following] = len(order)
                order.append(following)
                stack.append(following)
            elif following != before[node]:
                lowest[node] = min(lowest[node], met[following])
            continue
        stack.pop()
        owner = before[node]
        if owner in (NONE, _ROOT):
            continue
        lowest[owner] = min(lowest[owner], lowest[node])
        total[owner] += total[node]
        if lowest[node] >= met[owner] and total[node] < hole and not void[owner - 1]:
            holes.append((met[node], len(order), owner))
    found: list[Ints] = [np.zeros(0, np.int64)]
    owners = [np.zeros(0, np.int64)]
    covered, walk = 0, np.array(order)
    for begin, end, owner in sorted(holes):
        if begin >= covered:  # not in a hole already
            found.append(walk[begin:end])
            owners.append(np.full(end - begin, owner))
            covered = end
    return np.concatenate(found), np.concatenate(owners)


PIXEL_LENGTHS = tuple[float, float]  # along a row, along a column


@dataclass(kw_only=True)
class Neighbourhood:
    """Objects and how much edge they share.

    Attributes:
        classes: of each object; those of `void` have no data, or lie around the raster.
        areas: int64.
        firsts: int64, what decides between neighbours that are alike: the lowest.
        low, high: int64, objects of each pair, the lower number first, each pair once.
        edges: int64 (k, 2), their horizontal and vertical pixel edges. Whole numbers: sums do not depend on
            their order.
        root: the object that each has become part of.
    """

    classes: Labels
    areas: Ints
    firsts: Ints
    void: NDArray[np.bool_]
    low: Ints
    high: Ints
    edges: Ints
    root: Ints


def give_away_small(around: Neighbourhood, least: float, pixel: PIXEL_LENGTHS) -> None:
    """Objects below an area go to the neighbour with the longest shared edge, until none is left that can.

    A neighbour without data is none. The smallest go first, and with the neighbour's class they join what
    they touch of that class.
    """
    while _give_away(around, least, pixel):
        pass


def fill_holes(around: Neighbourhood, least: float) -> None:
    """Holes below an area go to the one object around them."""
    objects, targets = find_holes(around.low, around.high, around.areas, around.void, least)
    _move(around, objects, targets)


def _give_away(around: Neighbourhood, least: float, pixel: PIXEL_LENGTHS) -> bool:
    """One round: objects that are smaller than all their small neighbours go; whether any did.

    Edges between large objects are forgotten.
    """
    small = (around.areas < least) & ~around.void
    _keep(around, small[around.low] | small[around.high])
    given = np.concatenate([around.low, around.high])
    takers = np.concatenate([around.high, around.low])
    lengths = np.tile(around.edges @ np.array(pixel), 2)
    possible = small[given] & ~around.void[takers]
    given, takers, lengths = given[possible], takers[possible], lengths[possible]
    areas, firsts = around.areas, around.firsts
    earlier = (areas[takers] < areas[given]) | (
        (areas[takers] == areas[given]) & (firsts[takers] < firsts[given])
    )
    waits = np.zeros(len(small), np.bool_)
    waits[given[earlier]] = True  # what is smaller than a small object is small
    ready = ~waits[given]
    given, takers, lengths = given[ready], takers[ready], lengths[ready]
    if not len(given):
        return False
    order = np.lexsort((firsts[takers], -areas[takers], -lengths, given))
    first = np.ones(len(order), np.bool_)
    first[1:] = given[order][1:] != given[order][:-1]
    chosen = order[first]
    _move(around, given[chosen], takers[chosen])
    _unite(around)
    return True


def _unite(around: Neighbourhood) -> None:
    """Neighbours of one class have become one object."""
    _settle(around)
    alike = (around.classes[around.low] == around.classes[around.high]) & ~around.void[around.low]
    if not alike.any():
        return
    members = np.unique(np.concatenate([around.low[alike], around.high[alike]]))
    links = (np.searchsorted(members, around.low[alike]), np.searchsorted(members, around.high[alike]))
    graph = coo_array((np.ones(len(links[0]), np.bool_), links), shape=(len(members), len(members)))
    leader = members[_lowest(connected_components(graph, directed=False)[1])]
    moved = members != leader
    _move(around, members[moved], leader[moved])
    _settle(around)


def _lowest(group: NDArray[np.int32]) -> Ints:
    """The lowest member of each one's group."""
    low = np.full(int(group.max()) + 1, len(group), np.int64)
    np.minimum.at(low, group, np.arange(len(group)))
    return low[group]


def _move(around: Neighbourhood, objects: Ints, targets: Ints) -> None:
    """Make objects part of others, which are not moved themselves."""
    np.add.at(around.areas, targets, around.areas[objects])
    np.minimum.at(around.firsts, targets, around.firsts[objects])
    into = np.arange(len(around.root))
    into[objects] = targets
    around.root = into[around.root]


def _settle(around: Neighbourhood) -> None:
    """Edges between the present objects, each pair once."""
    pairs, around.edges = summed(
        np.stack([around.root[around.low], around.root[around.high]], axis=1), around.edges
    )
    around.low, around.high = pairs.T


def _keep(around: Neighbourhood, kept: NDArray[np.bool_]) -> None:
    around.low, around.high, around.edges = around.low[kept], around.high[kept], around.edges[kept]


def summed(pairs: Ints, edges: Ints) -> tuple[Ints, Ints]:
    """Each pair of two objects once, the lower number first, with the sum of its edges.

    Args:
        pairs: int64 (k, 2), numbers from -1 on.
        edges: int64 (k, 2).
    """
    across = pairs[:, 0] != pairs[:, 1]
    pairs = np.sort(pairs[across], axis=1) + 1
    width = int(pairs.max(initial=0)) + 1
    keys, place = np.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True)
    sums = np.zeros((len(keys), 2), np.int64)
    np.add.at(sums, place, edges[across])
    return np.stack(np.divmod(keys, width), axis=1) - 1, sums
