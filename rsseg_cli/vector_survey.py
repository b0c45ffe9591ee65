"""Objects of a class raster and their neighbours, block by block; the raster anew with other classes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector_block import BlockPlan
from rsseg_cli.vector_graph import Ints, Labels, Objects, find_objects
from rsseg_cli.vector_source import inside

OUTSIDE = 0  # number of what lies around the raster
FINE = 1 << 20  # parts of a mean pixel's area: sums of whole numbers do not depend on their order


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Objects in a block and the row above it, but for islands that go to what is around them.

    Attributes:
        members: int32, each object's number in the block.
        islands: int32 (k, 2), the number in the block of each, and the object here that it becomes part of.
        classes: of each object.
        areas: int64, in FINE-ths of a mean pixel, without the row above.
        firsts: int64, place of the first pixel.
        later: int64, area of islands below the smallest area, which joins in after the first round of giving.
        pairs: int32 (k, 2), objects that share edges; -1 for what lies outside the raster.
        edges: int32 (k, 2), how many horizontal and vertical pixel edges they share.
        top, bottom: int32 (width,), objects of the row above and of the last row; empty where there is none.
    """

    members: NDArray[np.int32]
    islands: NDArray[np.int32]
    classes: Labels
    areas: Ints
    firsts: Ints
    later: Ints
    pairs: NDArray[np.int32]
    edges: NDArray[np.int32]
    top: NDArray[np.int32]
    bottom: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class SurveyPlan:
    """A block plan, and what is to go.

    Attributes:
        smallest, hole: areas below which objects and holes go, in FINE-ths of a mean pixel.
        mean_m2: area of a mean pixel.
    """

    block: BlockPlan
    smallest: float
    hole: float
    mean_m2: float

    @property
    def largest(self) -> float:
        """Area from which on objects do not matter to one another."""
        return max(self.smallest, self.hole)


def survey_block(plan: SurveyPlan, first: int, end: int) -> Survey:
    """Objects of the rows `first` to `end`."""
    source = plan.block.source
    above, last = max(first - 1, 0), end == source.height
    labels = source.read(above, end - above)
    objects = find_objects(labels)
    areas = _areas(objects, labels, above, first, plan)
    pairs, edges = _neighbours(objects, labels, above, first, last)
    rows = objects.of_run[objects.run_of[[0, -1]]]
    top, bottom = rows[0] if first > 0 else rows[0][:0], rows[1]
    firsts = np.full(len(objects), np.iinfo(np.int64).max)
    np.minimum.at(firsts, objects.of_run, objects.starts + above * source.width)
    opened = np.zeros(len(objects), np.bool_)
    opened[top] = True
    opened[bottom] |= not last
    island, around = _islands(plan, objects.classes == source.nodata, areas, opened, pairs)
    later = np.zeros(len(objects), np.int64)
    given = (areas[island] < plan.smallest) & (objects.classes[island] != source.nodata)
    np.add.at(later, around[given], areas[island[given]])
    stays = np.ones(len(objects) + 1, np.bool_)  # the last for what is outside
    stays[island] = False
    members = np.flatnonzero(stays[:-1])
    number = np.append(np.cumsum(stays[:-1], dtype=np.int32) - 1, np.int32(-1))
    both = areas[pairs]
    both[pairs < 0] = np.iinfo(np.int64).max
    # Open objects may be larger than they are here, but not smaller.
    kept = (both.min(axis=1) < plan.largest) & stays[pairs].all(axis=1)
    return Survey(
        members=members.astype(np.int32),
        islands=np.stack([island, number[around]], axis=1).astype(np.int32),
        classes=objects.classes[members],
        areas=areas[members],
        firsts=firsts[members],
        later=later[members],
        pairs=number[pairs[kept]],
        edges=edges[kept],
        top=number[top],
        bottom=number[bottom],
    )


def _islands(
    plan: SurveyPlan,
    void: NDArray[np.bool_],
    areas: Ints,
    opened: NDArray[np.bool_],
    pairs: NDArray[np.int32],
) -> tuple[Ints, Ints]:
    """Small objects inside one large object each, and that object.

    Whatever becomes of the others, they go to it: most of the small objects of a map need no further thought.
    """
    counts = np.bincount(pairs.ravel() + 1, minlength=len(areas) + 1)[1:]
    small = (areas < plan.hole) | ((areas < plan.smallest) & ~void)
    alone = np.append(small & ~opened & (counts == 1), False)  # the last for what is outside
    large = np.append((areas >= plan.largest) & ~void, False)
    found = []
    for ends in ((0, 1), (1, 0)):
        chosen = alone[pairs[:, ends[0]]] & large[pairs[:, ends[1]]]
        found.append(pairs[chosen][:, ends])
    both = np.concatenate(found).astype(np.int64)
    return both[:, 0], both[:, 1]


def _areas(objects: Objects, labels: Labels, above: int, first: int, plan: SurveyPlan) -> Ints:
    lengths = np.diff(objects.starts, append=labels.size)
    rows, cols = np.divmod(objects.starts, labels.shape[1])
    ground = plan.block.ground
    pixel_m2 = ground.pixel_area_m2(rows + above + 0.5, cols + lengths / 2)
    fine = np.rint(pixel_m2 * (FINE / plan.mean_m2)).astype(np.int64) * lengths
    fine[rows + above < first] = 0
    areas = np.zeros(len(objects), np.int64)
    np.add.at(areas, objects.of_run, fine)
    return areas


def _neighbours(
    objects: Objects, labels: Labels, above: int, first: int, last: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Pairs of objects, the lower number first, and their shared edges."""
    own = first - above
    runs = objects.run_of
    beside = np.nonzero(labels[own:, 1:] != labels[own:, :-1])
    rows, cols = beside[0] + own, beside[1]
    upright = [(runs[rows, cols], runs[rows, cols + 1])]
    upright += [(runs[own:, side], np.full(len(runs) - own, -1, np.int32)) for side in (0, -1)]
    flat_rows, flat_cols = np.nonzero(labels[1:] != labels[:-1])
    flat = [(runs[flat_rows, flat_cols], runs[flat_rows + 1, flat_cols])]
    outer = ([runs[0]] if first == 0 else []) + ([runs[-1]] if last else [])
    flat += [(row, np.full(len(row), -1, np.int32)) for row in outer]
    of_run = np.append(objects.of_run, np.int32(-1))
    count = len(objects) + 1
    keys = []
    for parts in (flat, upright):
        one, other = (
            of_run[np.concatenate([part[k] for part in parts])].astype(np.int64) + 1 for k in range(2)
        )
        keys.append(np.minimum(one, other) * count + np.maximum(one, other))
    found, place = np.unique(np.concatenate(keys), return_inverse=True)
    edges = np.stack(
        [np.bincount(part, minlength=len(found)) for part in np.split(place, [len(keys[0])])],
        axis=1,
    )
    pairs = np.stack(np.divmod(found, count), axis=1) - 1
    return pairs.astype(np.int32), edges.astype(np.int32)


@dataclass(kw_only=True)
class Census:
    """All objects of the raster: those of each block under numbers that hold in all of them.

    Number 0 is what lies outside the raster. Memory grows with the number of objects: some 400 bytes each
    while they are merged, 8 for islands.
    """

    classes: list[Labels] = field(default_factory=lambda: [np.zeros(1, np.uint8)])
    areas: list[Ints] = field(default_factory=lambda: [np.array([np.iinfo(np.int64).max // 4])])
    firsts: list[Ints] = field(default_factory=lambda: [np.array([-1])])
    pairs: list[NDArray[np.int32]] = field(default_factory=list)
    edges: list[NDArray[np.int32]] = field(default_factory=list)
    same: list[NDArray[np.int32]] = field(default_factory=list)
    added: list[tuple[NDArray[np.int32], Ints]] = field(default_factory=list)
    later: list[tuple[NDArray[np.int32], Ints]] = field(default_factory=list)
    members: list[NDArray[np.int32]] = field(default_factory=list)
    islands: list[NDArray[np.int32]] = field(default_factory=list)
    numbers: list[NDArray[np.int32]] = field(default_factory=list)
    count: int = 1
    bottom: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def add(self, block: Survey) -> None:
        """Number a block's objects; those that come from above keep a number that they have."""
        numbers = np.full(len(block.classes), -1, np.int32)
        numbers[block.top] = self.bottom[: len(block.top)]
        new = np.flatnonzero(numbers < 0)
        known = np.flatnonzero(numbers >= 0)
        numbers[new] = self.count + np.arange(len(new), dtype=np.int32)
        self.count += len(new)
        self.classes.append(block.classes[new])
        self.areas.append(block.areas[new])
        self.firsts.append(block.firsts[new])
        self.added.append((numbers[known], block.areas[known]))
        around = np.flatnonzero(block.later)
        self.later.append((numbers[around], block.later[around]))
        if len(block.top):
            self.same.append(np.unique(np.stack([numbers[block.top], self.bottom], axis=1), axis=0))
        self.pairs.append(np.append(numbers, np.int32(OUTSIDE))[block.pairs])
        self.edges.append(block.edges)
        self.members.append(block.members)
        self.islands.append(block.islands)
        self.numbers.append(numbers)
        self.bottom = numbers[block.bottom]

    def changes(self, block: int, before: Labels, classes: Labels) -> tuple[NDArray[np.int32], Labels]:
        """Objects of a block, by their number in it, that get another class, and that class.

        Args:
            before, classes: of all objects, as they were and as they are going to be.
        """
        numbers, islands = self.numbers[block], self.islands[block]
        changed = classes[numbers] != before[numbers]
        return (
            np.concatenate([self.members[block][changed], islands[:, 0]]),
            np.concatenate([classes[numbers[changed]], classes[numbers[islands[:, 1]]]]),
        )


@dataclass(frozen=True, kw_only=True)
class StoredSource:
    """Classes in a file of bare numbers, row by row."""

    path: str
    height: int
    width: int
    nodata: int
    wide: bool

    def read(self, row: int, count: int, col: int = 0, columns: int | None = None) -> NDArray[Any]:
        """(count, columns); pixels outside the raster have no data."""
        dtype = np.dtype(np.uint16 if self.wide else np.uint8)
        rows, cols = inside(row, count, self.height), inside(col, columns, self.width)
        whole = np.full((count, self.width - col if columns is None else columns), self.nodata, dtype)
        part = whole[rows[0] - row : rows[1] - row, cols[0] - col : cols[1] - col]
        with open(self.path, "rb", buffering=0) as file:
            if part.shape[1] == self.width:
                values = np.fromfile(file, dtype, part.size, offset=rows[0] * self.width * dtype.itemsize)
                part[:] = values.reshape(part.shape)
                return whole
            for number, line in enumerate(part, rows[0]):
                file.seek((number * self.width + cols[0]) * dtype.itemsize)
                line[:] = np.fromfile(file, dtype, len(line))
        return whole


def store_block(
    plan: tuple[BlockPlan, str], first: int, end: int, changed: NDArray[np.int32], classes: Labels
) -> None:
    """Write a block's rows with other classes for some of its objects (numbered as in its survey)."""
    block, path = plan
    above = max(first - 1, 0)
    labels = block.source.read(above, end - above)
    if len(changed):
        objects = find_objects(labels)
        of_object = objects.classes.copy()
        of_object[changed] = classes
        labels = np.ascontiguousarray(of_object[objects.of_run[objects.run_of[first - above :]]])
    else:
        labels = np.ascontiguousarray(labels[first - above :])
    handle = os.open(path, os.O_WRONLY)
    try:
        rest, place = labels.data.cast("B"), first * labels.shape[1] * labels.itemsize
        while rest:
            written = os.pwrite(handle, rest, place)
            rest, place = rest[written:], place + written
    finally:
        os.close(handle)


def stored_source(source: Any, path: Path) -> StoredSource:
    """What reads the stored classes of another source."""
    return StoredSource(
        path=str(path), height=source.height, width=source.width, nodata=source.nodata, wide=source.wide
    )
