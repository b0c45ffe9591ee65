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
    """Objects in a block and the row above it.

    Attributes:
        classes: of each object.
        areas: int64, in FINE-ths of a mean pixel, without the row above.
        firsts: int64, place of the first pixel.
        pairs: int32 (k, 2), objects that share edges; -1 for what lies outside the raster.
        edges: int32 (k, 2), how many horizontal and vertical pixel edges they share.
        top, bottom: int32 (width,), objects of the row above and of the last row; empty where there is none.
    """

    classes: Labels
    areas: Ints
    firsts: Ints
    pairs: NDArray[np.int32]
    edges: NDArray[np.int32]
    top: NDArray[np.int32]
    bottom: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class SurveyPlan:
    """A block plan, and the area from which on objects do not matter to one another."""

    block: BlockPlan
    largest: float  # in FINE-ths of a mean pixel
    mean_m2: float


def survey_block(plan: SurveyPlan, first: int, end: int) -> Survey:
    """Objects of the rows `first` to `end`."""
    source = plan.block.source
    above = max(first - 1, 0)
    labels = source.read(above, end - above)
    objects = find_objects(labels)
    areas = _areas(objects, labels, above, first, plan)
    pairs, edges = _neighbours(objects, labels, above, first, end == source.height)
    both = areas[pairs]
    both[pairs < 0] = np.iinfo(np.int64).max
    # Open objects may be larger than they are here, but not smaller.
    kept = both.min(axis=1) < plan.largest
    firsts = np.full(len(objects), np.iinfo(np.int64).max)
    np.minimum.at(firsts, objects.of_run, objects.starts + above * source.width)
    rows = objects.of_run[objects.run_of[[0, -1]]]
    return Survey(
        classes=objects.classes,
        areas=areas,
        firsts=firsts,
        pairs=pairs[kept],
        edges=edges[kept],
        top=rows[0] if first > 0 else rows[0][:0],
        bottom=rows[1],
    )


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

    Number 0 is what lies outside the raster.
    """

    classes: list[NDArray[np.int64]] = field(default_factory=lambda: [np.array([-1])])
    areas: list[Ints] = field(default_factory=lambda: [np.array([np.iinfo(np.int64).max // 4])])
    firsts: list[Ints] = field(default_factory=lambda: [np.array([-1])])
    pairs: list[NDArray[np.int32]] = field(default_factory=list)
    edges: list[NDArray[np.int32]] = field(default_factory=list)
    same: list[NDArray[np.int32]] = field(default_factory=list)
    added: list[tuple[NDArray[np.int32], Ints]] = field(default_factory=list)
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
        self.classes.append(block.classes[new].astype(np.int64))
        self.areas.append(block.areas[new])
        self.firsts.append(block.firsts[new])
        self.added.append((numbers[known], block.areas[known]))
        if len(block.top):
            self.same.append(np.unique(np.stack([numbers[block.top], self.bottom], axis=1), axis=0))
        self.pairs.append(np.append(numbers, np.int32(OUTSIDE))[block.pairs])
        self.edges.append(block.edges)
        self.numbers.append(numbers)
        self.bottom = numbers[block.bottom]


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
    plan: tuple[BlockPlan, str], first: int, end: int, changed: NDArray[np.int32], classes: Ints
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
