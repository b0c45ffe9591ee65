"""Small objects given to their neighbours, and small holes to what lies around them.

Both work on objects and the edges that they share, so they do not depend on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rsseg_cli.vector_graph import Ints, Labels
from rsseg_cli.vector_holes import find_holes

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
