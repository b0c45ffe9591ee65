"""Regions of a class raster and their neighbours in a block of rows; the block with other classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import Ints, Labels, Objects, find_objects
from rsseg_cli.vector.plan import BlockPlan

FINE = 1 << 20  # parts of a mean pixel's area: sums of whole numbers do not depend on their order


@dataclass(frozen=True, kw_only=True)
class BlockRegions:
    """Regions in a block and the row above it, without islands that go to the region around them.

    Attributes:
        members: int32, number of each region in the block.
        islands: int32 (k, 2), number of each in the block, and the region here that it becomes part of.
        areas: int64, in FINE-ths of a mean pixel, without the row above.
        firsts: int64, index of the first pixel.
        pairs: int32 (k, 2), regions that share edges; -1 for the outside of the raster.
        edges: int32 (k, 2), number of horizontal and vertical pixel edges that they share.
        top, bottom: int32 (width,), regions of the row above and of the last row; empty at the raster's edge.
    """

    members: NDArray[np.int32]
    islands: NDArray[np.int32]
    classes: Labels
    areas: Ints
    firsts: Ints
    pairs: NDArray[np.int32]
    edges: NDArray[np.int32]
    top: NDArray[np.int32]
    bottom: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class RegionPlan:
    """Regions below `min_area`, in FINE-ths of a mean pixel, to be merged; or holes.

    Regions without data are part of holes, and otherwise lie outside.
    """

    block: BlockPlan
    min_area: float
    holes: bool
    mean_m2: float


def find_block_regions(plan: RegionPlan, first: int, end: int) -> BlockRegions:
    """Find the regions of the rows `first` to `end`."""
    source = plan.block.source
    above, last = max(first - 1, 0), end == source.height
    labels = source.read(above, end - above)
    objects = find_objects(labels)
    areas = _areas(objects, labels, above, first, plan)
    pairs, edges = _neighbours(objects, labels, above, first, last)
    is_nodata = objects.classes == source.nodata
    if not plan.holes:
        among = ~np.append(is_nodata, True)[pairs].any(axis=1)  # the last is the outside
        pairs, edges = pairs[among], edges[among]
    rows = objects.of_run[objects.run_of[[0, -1]]]
    top, bottom = rows[0][: 0 if first == 0 else None], rows[1][: 0 if last else None]
    firsts = np.full(len(objects), np.iinfo(np.int64).max)
    np.minimum.at(firsts, objects.of_run, objects.starts + above * source.width)
    opened = np.zeros(len(objects), np.bool_)
    opened[top] = opened[bottom] = True
    island, around = _islands(plan, is_nodata, areas, opened, pairs)
    stays = np.ones(len(objects) + 1, np.bool_)
    stays[island] = False
    members = np.flatnonzero(stays[:-1])
    number = np.append(np.cumsum(stays[:-1], dtype=np.int32) - 1, np.int32(-1))
    both = areas[pairs]
    both[pairs < 0] = np.iinfo(np.int64).max
    # Open objects may be larger than they are here, but not smaller.
    kept = (both.min(axis=1, initial=np.iinfo(np.int64).max) < plan.min_area) & stays[pairs].all(axis=1)
    return BlockRegions(
        members=members.astype(np.int32),
        islands=np.stack([island, number[around]], axis=1).astype(np.int32),
        classes=objects.classes[members],
        areas=areas[members],
        firsts=firsts[members],
        pairs=number[pairs[kept]],
        edges=edges[kept],
        top=number[top],
        bottom=number[bottom],
    )


def _islands(
    plan: RegionPlan,
    is_nodata: NDArray[np.bool_],
    areas: Ints,
    opened: NDArray[np.bool_],
    pairs: NDArray[np.int32],
) -> tuple[Ints, Ints]:
    """Return small regions inside one large region each, and that region: most of a map need nothing else."""
    counts = np.bincount(pairs.ravel() + 1, minlength=len(areas) + 1)[1:]
    small = (areas < plan.min_area) & (plan.holes | ~is_nodata)
    alone = np.append(small & ~opened & (counts == 1), False)  # the last is the outside
    large = np.append((areas >= plan.min_area) & ~is_nodata, False)
    islands = []
    for ends in ((0, 1), (1, 0)):
        chosen = alone[pairs[:, ends[0]]] & large[pairs[:, ends[1]]]
        islands.append(pairs[chosen][:, ends])
    both = np.concatenate(islands).astype(np.int64)
    return both[:, 0], both[:, 1]


def _areas(objects: Objects, labels: Labels, above: int, first: int, plan: RegionPlan) -> Ints:
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
    """Return pairs of regions, the lower number first, and their shared edges."""
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
    keys_once, position = np.unique(np.concatenate(keys), return_inverse=True)
    edges = np.stack(
        [np.bincount(part, minlength=len(keys_once)) for part in np.split(position, [len(keys[0])])], axis=1
    )
    pairs = np.stack(np.divmod(keys_once, count), axis=1) - 1
    return pairs.astype(np.int32), edges.astype(np.int32)


def store_block(
    plan: tuple[BlockPlan, str], first: int, end: int, changed: NDArray[np.int32], classes: Labels
) -> None:
    """Write a block's rows with other classes for some of its regions, by their number in the block."""
    block, path = plan
    above = max(first - 1, 0)
    labels = block.source.read(above, end - above)
    if len(changed):
        objects = find_objects(labels)
        objects.classes[changed] = classes
        labels = objects.classes[objects.of_run[objects.run_of]]
    labels = labels[first - above :]
    with open(path, "r+b") as file:
        file.seek(first * labels.shape[1] * labels.itemsize)
        file.write(labels.data)
