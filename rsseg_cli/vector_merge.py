"""Small objects given to their neighbours, and small holes to what lies around them.

Both work on objects and the edges that they share, so they do not depend on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rsseg_cli.vector_graph import NONE, Ints, Labels
from rsseg_cli.vector_holes import find_holes
from rsseg_cli.vector_survey import OUTSIDE, Census


@dataclass(kw_only=True)
class Neighbourhood:
    """Objects and how much edge they share.

    Attributes:
        classes: of each object; those of `void` have no data.
        areas, firsts: int64.
        low, high: int64, objects of each pair, the lower number first.
        lengths: float64, of their shared edges.
        root: the object that each has become part of.
    """

    classes: Labels
    areas: Ints
    firsts: Ints
    void: NDArray[np.bool_]
    low: Ints
    high: Ints
    lengths: NDArray[np.float64]
    root: Ints


def merged_classes(
    census: Census, nodata: int, pixel_m: tuple[float, float], smallest: float, hole: float
) -> Labels:
    """Class of each object after merging; the census lets its pairs go.

    Args:
        pixel_m: of a pixel along a row and along a column.
        smallest, hole: areas below which objects and holes go, in the unit of the census.
    """
    around = _neighbourhood(census, nodata, pixel_m)
    more = smallest > 0 and _give_away(around, smallest, max(smallest, hole))
    for numbers, areas in census.later:
        np.add.at(around.areas, around.root[numbers], areas)
    while more:
        more = _give_away(around, smallest, max(smallest, hole))
    if hole:
        _fill(around, hole)
    return around.classes[around.root]


def _neighbourhood(census: Census, nodata: int, pixel_m: tuple[float, float]) -> Neighbourhood:
    count = census.count
    same = np.concatenate([*census.same, np.zeros((0, 2), np.int32)])
    links = coo_array((np.ones(len(same), np.bool_), (same[:, 0], same[:, 1])), shape=(count, count))
    _, group = connected_components(links, directed=False)
    root = _lowest(group)
    areas = np.zeros(count, np.int64)
    np.add.at(areas, root, np.concatenate(census.areas))
    for numbers, more in census.added:
        np.add.at(areas, root[numbers], more)
    firsts = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(firsts, root, np.concatenate(census.firsts))
    classes = np.concatenate(census.classes)
    pairs = np.concatenate([*census.pairs, np.zeros((0, 2), np.int32)])
    edges = np.concatenate([*census.edges, np.zeros((0, 2), np.int32)])
    census.pairs.clear()
    census.edges.clear()
    around = Neighbourhood(
        classes=classes,
        areas=areas,
        firsts=firsts,
        void=(classes == nodata) | (np.arange(count) == OUTSIDE),
        low=pairs[:, 0].astype(np.int64),
        high=pairs[:, 1].astype(np.int64),
        lengths=edges[:, 0] * pixel_m[0] + edges[:, 1] * pixel_m[1],
        root=root,
    )
    # Whole numbers of edges are summed before they become lengths: the sum does not depend on blocks.
    _gather(around, edges, pixel_m)
    return around


def _lowest(group: NDArray[np.int32]) -> Ints:
    """The lowest member of each one's group."""
    low = np.full(int(group.max()) + 1, len(group), np.int64)
    np.minimum.at(low, group, np.arange(len(group)))
    return low[group]


def _gather(around: Neighbourhood, edges: NDArray[np.int32], pixel_m: tuple[float, float]) -> None:
    low, high, place = _pairs(around)
    sums = [np.bincount(place[place >= 0], edges[place >= 0, k], minlength=len(low)) for k in range(2)]
    around.low, around.high = low, high
    around.lengths = sums[0] * pixel_m[0] + sums[1] * pixel_m[1]


def _pairs(around: Neighbourhood) -> tuple[Ints, Ints, Ints]:
    """Pairs of roots, each once, and the pair of each edge; -1 inside an object."""
    one, other = around.root[around.low], around.root[around.high]
    keys = np.minimum(one, other) * len(around.root) + np.maximum(one, other)
    across = one != other
    found, number = np.unique(keys[across], return_inverse=True)
    place = np.full(len(keys), NONE, np.int64)
    place[across] = number
    low, high = np.divmod(found, len(around.root))
    return low, high, place


def _settle(around: Neighbourhood) -> None:
    """Edges between the present objects, each pair once; lengths are added up in a fixed order."""
    low, high, place = _pairs(around)
    across = place >= 0
    around.lengths = np.bincount(place[across], around.lengths[across], minlength=len(low)).astype(np.float64)
    around.low, around.high = low, high


def _move(around: Neighbourhood, objects: Ints, targets: Ints) -> None:
    """Make objects part of others, which are not moved themselves."""
    np.add.at(around.areas, targets, around.areas[objects])
    np.minimum.at(around.firsts, targets, around.firsts[objects])
    into = np.arange(len(around.root))
    into[objects] = targets
    around.root = into[around.root]


def _give_away(around: Neighbourhood, smallest: float, largest: float) -> bool:
    """One round: objects that are smaller than all their small neighbours go; whether any did.

    Edges between objects of `largest` and more are forgotten.
    """
    small = (around.areas < smallest) & ~around.void
    kept = np.minimum(around.areas[around.low], around.areas[around.high]) < largest
    around.low, around.high, around.lengths = around.low[kept], around.high[kept], around.lengths[kept]
    given = np.concatenate([around.low, around.high])
    takers = np.concatenate([around.high, around.low])
    lengths = np.concatenate([around.lengths, around.lengths])
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


def _fill(around: Neighbourhood, hole: float) -> None:
    """Holes below an area go to the one object around them."""
    _settle(around)
    objects, targets = find_holes(around.low, around.high, around.areas, around.void, hole)
    _move(around, objects, targets)
