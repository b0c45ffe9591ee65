"""Small regions, or holes, of a raster merged into neighbours while its blocks pass.

Small regions that touch one another are a patch. Its large neighbours matter by their class, by the edges
that they share with it and by being one region or several, not by their size. So a patch is decided once all
of it and around it is known, and is then forgotten: memory follows the open patches, not the raster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.adjacency import RegionAdjacency, summed
from rsseg_cli.vector.graph import NONE, Ints, components
from rsseg_cli.vector.regions import BlockRegions, RegionPlan
from rsseg_cli.vector.storage import Column, release_pages

OUTSIDE = -1  # of the raster
DECISIONS = 1 << 18  # at a time


@dataclass(kw_only=True)
class _Live:
    """Regions that are open or undecided.

    `numbers` (k, 2): small regions, and their number in the raster; several for those of several blocks.
    """

    classes: NDArray[np.uint16]
    areas: Ints
    firsts: Ints
    pairs: Ints
    edges: Ints
    numbers: Ints
    bottom: Ints


class SmallRegionResolver:
    """Takes the regions of blocks from top to bottom and decides their classes."""

    def __init__(self, plan: RegionPlan, pixel_m: tuple[float, float], folder: Path) -> None:
        self._min_area, self._holes, self._pixel_m = plan.min_area, plan.holes, pixel_m
        self._nodata = plan.block.source.nodata
        none, pairs = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        kinds = {"areas": none, "firsts": none, "pairs": pairs, "edges": pairs, "numbers": pairs}
        self._live = _Live(classes=np.zeros(0, np.uint16), bottom=none, **kinds)
        self._classes = Column(folder, np.uint16, 2)  # by number: before and after
        self._decided = Column(folder, np.int64, 2)  # numbers and new classes
        self._members, self._islands = Column(folder, np.int32), Column(folder, np.int32, 2)
        self._ends = [(0, 0)]  # of each block's members and islands
        self.dropped = 0  # regions that no data touches

    def add(self, block: BlockRegions) -> None:
        """Add a block and decide what can be decided."""
        first = len(self._classes)
        self._classes.append(np.stack([block.classes, block.classes], axis=1))
        self._members.append(block.members)
        self._islands.append(block.islands)
        self._ends.append((len(self._members), len(self._islands)))
        self._live = self._joined(block, first)
        self._decide()

    @property
    def held(self) -> int:
        """Number of regions in memory."""
        return len(self._live.classes)

    def finish(self) -> None:
        """Make decisions available to `changes`, after the last block."""
        classes = self._classes.whole()
        for first in range(0, len(self._decided), DECISIONS):
            part = self._decided.read(first, min(first + DECISIONS, len(self._decided)))
            classes[part[:, 0], 1] = part[:, 1]
            release_pages(classes)

    def changes(self, block: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
        """Return regions of a block, by number, that get another class, and that class."""
        (first, first_island), (end, end_island) = self._ends[block : block + 2]
        members, classes = self._members.read(first, end), self._classes.read(first, end)
        islands = self._islands.read(first_island, end_island)
        changed = classes[:, 0] != classes[:, 1]
        return (
            np.concatenate([members[changed], islands[:, 0]]),
            np.concatenate([classes[changed, 1], classes[islands[:, 1], 1]]),
        )

    def _joined(self, block: BlockRegions, first: int) -> _Live:
        """Add a block's regions to the live ones, joined across the border."""
        live, before = self._live, len(self._live.classes)
        classes = np.concatenate([live.classes, block.classes])
        count = len(classes)
        links = (live.bottom, block.top + before)
        group = np.append(components(*links, count).astype(np.int64), OUTSIDE)
        total = int(group.max()) + 1
        joined = np.zeros(total, np.uint16)
        joined[group[:-1]] = classes
        areas, firsts = np.zeros(total, np.int64), np.full(total, np.iinfo(np.int64).max)
        np.add.at(areas, group[:-1], np.concatenate([live.areas, block.areas]))
        np.minimum.at(firsts, group[:-1], np.concatenate([live.firsts, block.firsts]))
        own = np.where(block.pairs == OUTSIDE, OUTSIDE, block.pairs.astype(np.int64) + before)
        pairs, edges = summed(
            group[np.concatenate([live.pairs, own])], np.concatenate([live.edges, block.edges])
        )
        new = np.arange(count - before)
        numbers = np.concatenate([live.numbers, np.stack([new + before, new + first], axis=1)])
        numbers[:, 0] = group[numbers[:, 0]]
        return _Live(
            classes=joined,
            areas=areas,
            firsts=firsts,
            pairs=pairs,
            edges=edges,
            numbers=numbers,
            bottom=group[block.bottom + before],
        )

    def _decide(self) -> None:
        """Decide the patches that are known and forget what no other patch needs."""
        live = self._live
        # the last of each is the outside
        is_nodata = np.append(live.classes == self._nodata, True)
        large = np.append(live.areas >= self._min_area, True) | (is_nodata & (not self._holes))
        opened = np.zeros(len(large), np.bool_)
        opened[live.bottom] = True
        needed = ~large[live.pairs].all(axis=1)
        live.pairs, live.edges = live.pairs[needed], live.edges[needed]
        patch = _patches(live.pairs, large)
        decided = ~large & ~self._waits(patch, is_nodata, large, opened)[patch]
        self._settle(patch, is_nodata, large, decided)
        left = ~decided[live.pairs].any(axis=1)
        live.pairs, live.edges = live.pairs[left], live.edges[left]
        open_small = ~large & ~decided
        stays = opened | open_small
        stays[live.pairs] = True
        stays[OUTSIDE] = False
        number = np.append(np.cumsum(stays[:-1], dtype=np.int64) - 1, OUTSIDE)
        kept = stays[:-1]
        live.classes, live.areas, live.firsts = live.classes[kept], live.areas[kept], live.firsts[kept]
        live.pairs, live.bottom = number[live.pairs], number[live.bottom]
        live.numbers = live.numbers[open_small[live.numbers[:, 0]]]
        live.numbers[:, 0] = number[live.numbers[:, 0]]

    def _waits(
        self, patch: Ints, is_nodata: NDArray[np.bool_], large: NDArray[np.bool_], opened: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Find patches that are open, or beside two regions that may become one further down."""
        live = self._live
        waits = np.zeros(len(patch), np.bool_)
        waits[patch[opened & ~large]] = True
        near, far, _ = _across(live.pairs, large)
        chosen = opened[far] & ~is_nodata[far]
        near, far = near[chosen], far[chosen]
        beside = np.unique(np.stack([patch[near], live.classes[far], far], axis=1), axis=0)
        alike = (beside[1:, :2] == beside[:-1, :2]).all(axis=1)
        waits[beside[1:, 0][alike]] = True
        return waits

    def _settle(
        self, patch: Ints, is_nodata: NDArray[np.bool_], large: NDArray[np.bool_], decided: NDArray[np.bool_]
    ) -> None:
        """Store the new classes of decided regions; each patch has large neighbours of its own."""
        live, objects = self._live, np.flatnonzero(decided)
        if not len(objects):
            return
        number = np.full(len(decided), NONE, np.int64)
        number[objects] = np.arange(len(objects))
        inner = decided[live.pairs].all(axis=1)
        near, far, across = _across(live.pairs, large)
        near, far, across = near[decided[near]], far[decided[near]], across[decided[near]]
        keys, position = np.unique(patch[near] * len(decided) + far + 1, return_inverse=True)
        beside = keys % len(decided) - 1
        classes = np.append(live.classes, np.uint16(self._nodata))[np.append(objects, beside)]
        min_area = int(min(np.ceil(self._min_area), 1 << 62))
        adjacency = RegionAdjacency(
            classes=classes,
            areas=np.append(live.areas[objects], np.full(len(beside), min_area)),
            firsts=np.append(live.firsts[objects], classes[len(objects) :].astype(np.int64) - (1 << 16)),
            is_nodata=is_nodata[np.append(objects, beside)],
            low=np.append(number[live.pairs[inner, 0]], number[near]),
            high=np.append(number[live.pairs[inner, 1]], len(objects) + position),
            edges=np.concatenate([live.edges[inner], live.edges[across]]),
            root=np.arange(len(classes)),
        )
        alone = np.zeros(len(classes), np.bool_)
        if self._holes:
            adjacency.fill_holes(self._min_area)
        else:
            adjacency.eliminate_small(self._min_area, self._pixel_m)
            alone = (adjacency.areas < self._min_area) & ~adjacency.is_nodata
            self.dropped += int(np.count_nonzero(alone & (adjacency.root == np.arange(len(alone)))))
        after = np.where(alone, self._nodata, adjacency.classes)[adjacency.root]
        resolved = live.numbers[decided[live.numbers[:, 0]]]
        own = number[resolved[:, 0]]
        changed = after[own] != classes[own]
        self._decided.append(np.stack([resolved[changed, 1], after[own[changed]]], axis=1))


def _patches(pairs: Ints, large: NDArray[np.bool_]) -> Ints:
    """Return the patch of each region; large ones and the outside have one of their own."""
    inner = pairs[~large[pairs].any(axis=1)]
    return components(inner[:, 0], inner[:, 1], len(large)).astype(np.int64)


def _across(pairs: Ints, large: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Return small and large region of the pairs of one each, and the indices of these pairs."""
    which = np.flatnonzero(large[pairs].any(axis=1))
    low, high = pairs[which].T
    return np.where(large[low], high, low), np.where(large[low], low, high), which
