"""Small regions merged into their neighbours, and small holes into the region around them.

Both work on regions and the edges that they share, so they do not depend on blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from rsseg_cli.vector.graph import NONE, Ints, Labels, components

_ROOT = 0


def find_holes(
    low: Ints, high: Ints, areas: Ints, is_nodata: NDArray[np.bool_], max_area: float
) -> tuple[Ints, Ints]:
    """Return regions in holes below an area, and the region that each hole belongs to.

    Holes in holes go with the outer one; regions without data have no holes of their own. `low` and `high`
    share edges (pairs of two large regions may be missing); the raster's outside counts as a large region.
    """
    small = areas < max_area
    inner, across = small[low] & small[high], small[low] != small[high]
    group = components(low[inner], high[inner], len(areas))
    inside = np.where(small[low], low, high)[across]
    outer = np.where(small[low], high, low)[across]
    first, last = np.full(len(areas), len(areas)), np.full(len(areas), NONE)
    np.minimum.at(first, group[inside], outer)
    np.maximum.at(last, group[inside], outer)
    members = np.flatnonzero(small)
    total = np.bincount(group[members], areas[members], minlength=len(areas))
    whole = (first == last) & (total < max_area)  # groups of small objects with one large region around them
    whole[whole] = ~is_nodata[last[whole]]
    gone = members[whole[group[members]]]
    # In the other groups a small object may have holes; one that is alone has none.
    counts = np.bincount(group[members], minlength=len(areas))
    walked = members[(counts[group[members]] > 1) & ~whole[group[members]]]
    number = np.full(len(areas), NONE)
    number[walked] = np.arange(1, len(walked) + 1)
    pairs = [(number[low[inner]], number[high[inner]]), (np.full(len(inside), _ROOT), number[inside])]
    one, other = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = (one != NONE) & (other != NONE)
    inner_nodes, owners = _walk(one[known], other[known], areas[walked], is_nodata[walked], max_area)
    return (
        np.concatenate([gone, walked[inner_nodes - 1]]),
        np.concatenate([last[group[gone]], walked[owners - 1]]),
    )


def _walk(
    one: Ints, other: Ints, areas: Ints, is_nodata: NDArray[np.bool_], max_area: float
) -> tuple[Ints, Ints]:
    """Return nodes in holes, and the holes' owners; node 0 is all that is large, the others have `areas`."""
    count = len(areas) + 1
    links = coo_array(
        (np.ones(2 * len(one), np.bool_), (np.append(one, other), np.append(other, one))), (count,) * 2
    )
    graph = links.tocsr()
    position, ends = graph.indptr[:-1].tolist(), graph.indptr[1:].tolist()
    linked, total = graph.indices.tolist(), [0, *areas.tolist()]
    met, lowest, before = [NONE] * count, [0] * count, [NONE] * count
    met[_ROOT] = 0
    order, stack = [_ROOT], [_ROOT]
    holes: list[tuple[int, int, int]] = []  # where a max_area's nodes begin and end in `order`, its owner
    while stack:
        node = stack[-1]
        if position[node] < ends[node]:
            following = linked[position[node]]
            position[node] += 1
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
        if lowest[node] >= met[owner] and total[node] < max_area and not is_nodata[owner - 1]:
            holes.append((met[node], len(order), owner))
    inner_nodes: list[Ints] = [np.zeros(0, np.int64)]
    owners = [np.zeros(0, np.int64)]
    covered, walk = 0, np.array(order)
    for begin, end, owner in sorted(holes):
        if begin >= covered:  # not in a max_area already
            inner_nodes.append(walk[begin:end])
            owners.append(np.full(end - begin, owner))
            covered = end
    return np.concatenate(inner_nodes), np.concatenate(owners)


@dataclass(kw_only=True)
class RegionAdjacency:
    """Regions and the edges that they share.

    Attributes:
        firsts: decides between equal neighbours: the lowest wins.
        is_nodata: regions without data, or outside the raster.
        low, high: regions of each pair, the lower number first, each pair once.
        edges: (k, 2), their horizontal and vertical pixel edges.
    """

    classes: Labels
    areas: Ints
    firsts: Ints
    is_nodata: NDArray[np.bool_]
    low: Ints
    high: Ints
    edges: Ints
    root: Ints

    def eliminate_small(self, min_area: float, pixel_m: tuple[float, float]) -> None:
        """Merge regions below an area into the neighbour with the longest shared edge, until none can.

        A neighbour without data is none. The smallest go first, and with the neighbour's class they join all
        that they touch of that class. `pixel_m`: lengths of a pixel along a row and along a column.
        """
        while self._eliminate_round(min_area, pixel_m):
            pass

    def fill_holes(self, max_area: float) -> None:
        """Merge holes below an area into the one region around them."""
        self._move(*find_holes(self.low, self.high, self.areas, self.is_nodata, max_area))

    def _eliminate_round(self, min_area: float, pixel_m: tuple[float, float]) -> bool:
        """Merge the regions that are smaller than all their small neighbours; return whether any was."""
        small = (self.areas < min_area) & ~self.is_nodata
        kept = small[self.low] | small[self.high]
        self.low, self.high, self.edges = self.low[kept], self.high[kept], self.edges[kept]
        merged = np.concatenate([self.low, self.high])
        targets = np.concatenate([self.high, self.low])
        lengths = np.tile(self.edges @ np.array(pixel_m), 2)
        possible = small[merged] & ~self.is_nodata[targets]
        merged, targets, lengths = merged[possible], targets[possible], lengths[possible]
        areas, firsts = self.areas, self.firsts
        equal = (areas[targets] == areas[merged]) & (firsts[targets] < firsts[merged])
        waits = np.zeros(len(small), np.bool_)
        waits[merged[(areas[targets] < areas[merged]) | equal]] = True  # smaller than small is small
        ready = ~waits[merged]
        merged, targets, lengths = merged[ready], targets[ready], lengths[ready]
        if not len(merged):
            return False
        order = np.lexsort((firsts[targets], -areas[targets], -lengths, merged))
        first = np.ones(len(order), np.bool_)
        first[1:] = merged[order][1:] != merged[order][:-1]
        chosen = order[first]
        self._move(merged[chosen], targets[chosen])
        self._unite()
        return True

    def _unite(self) -> None:
        """Join neighbours of one class."""
        self._sum_edges()
        alike = (self.classes[self.low] == self.classes[self.high]) & ~self.is_nodata[self.low]
        if not alike.any():
            return
        members = np.unique(np.concatenate([self.low[alike], self.high[alike]]))
        links = (np.searchsorted(members, self.low[alike]), np.searchsorted(members, self.high[alike]))
        group = components(*links, len(members))
        leader = members[np.unique(group, return_index=True)[1][group]]
        self._move(members[members != leader], leader[members != leader])
        self._sum_edges()

    def _move(self, regions: Ints, targets: Ints) -> None:
        """Make regions part of others, which are not moved themselves."""
        np.add.at(self.areas, targets, self.areas[regions])
        np.minimum.at(self.firsts, targets, self.firsts[regions])
        into = np.arange(len(self.root))
        into[regions] = targets
        self.root = into[self.root]

    def _sum_edges(self) -> None:
        """Keep each pair of present regions once."""
        pairs = np.stack([self.root[self.low], self.root[self.high]], axis=1)
        pairs, self.edges = summed(pairs, self.edges)
        self.low, self.high = pairs.T


def summed(pairs: Ints, edges: Ints) -> tuple[Ints, Ints]:
    """Return each pair (k, 2) of two regions once, the lower number first, and the sums of its edges."""
    across = pairs[:, 0] != pairs[:, 1]
    pairs = np.sort(pairs[across], axis=1) + 1
    width = int(pairs.max(initial=0)) + 1
    keys, position = np.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True)
    sums = np.zeros((len(keys), 2), np.int64)
    np.add.at(sums, position, edges[across])
    return np.stack(np.divmod(keys, width), axis=1) - 1, sums
