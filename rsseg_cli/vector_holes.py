"""Holes of objects, by what lies next to what.

A hole of an object is a part of the raster that touches that object alone: what falls off the graph of
neighbours, seen from outside the raster, when the object is taken away. So holes of any number of objects are
found exactly by one depth-first walk.
Source: Tarjan 1972, "Depth-first search and linear graph algorithms" (articulation points).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rsseg_cli.vector_graph import NONE, Ints

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
