"""Parts of labelled data: which scenes choose the epoch where nobody says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rsseg_cli.data.label_format import IGNORE
from rsseg_cli.data.label_vector import is_vector
from rsseg_cli.data.labels import LabelReader
from rsseg_cli.data.pairs import named
from rsseg_cli.data.scenes import LabelledScene
from rsseg_cli.errors import DataError
from rsseg_cli.raster import SceneInfo, gdal

LOOK_PX = 512  # longest side at which labels are looked at to split by labelled area
OVERSHOOT = 1.25  # of the validation share, before a scene is passed over for a smaller one
logger = logging.getLogger(__name__)


def unique_names(scenes: Sequence[LabelledScene]) -> list[LabelledScene]:
    """Scenes of one name get their folders' names before theirs, and numbers after it if that does not do."""
    for scheme in (lambda s: s.name, lambda s: f"{s.image.parent.name}-{s.name}",
                   lambda s: f"{s.image.parent.parent.name}-{s.image.parent.name}-{s.name}"):  # fmt: skip
        names = [scheme(scene) for scene in scenes]
        if len(set(names)) == len(names):
            return [replace(scene, name=name) for scene, name in zip(scenes, names, strict=True)]
    width = len(str(len(scenes)))
    return [replace(scene, name=f"{scene.name}-{k:0{width}}") for k, scene in enumerate(scenes, 1)]


def with_validation(
    scenes: Sequence[Any], areas: Callable[[Sequence[Any]], list[float]], *, share: float, seed: int
) -> list[Any]:
    """Where no scene is for validation, hold out about `share` of the training scenes' labelled area.

    Scenes are taken in an order that the seed alone decides; of a single one, its last rows. Which ones is
    said in the log.
    """
    train = sorted((scene for scene in scenes if scene.split == "train"), key=lambda scene: scene.name)
    if any(scene.split == "val" for scene in scenes) or not train:
        return list(scenes)
    if len(train) == 1:
        if not isinstance(train[0], LabelledScene):
            raise DataError(f"{train[0].name}: is the only training image; needs two, one for validation")
        parts = _two_parts(train[0], share)
        return [part for scene in scenes for part in (parts if scene is train[0] else [scene])]
    sizes = dict(zip((scene.name for scene in train), areas(train), strict=True))
    order = np.random.default_rng(seed).permutation(len(train))
    wanted, held, taken = share * sum(sizes.values()), set(), 0.0
    for name in (train[index].name for index in order):
        if taken < wanted and taken + sizes[name] <= OVERSHOOT * wanted:
            held.add(name)
            taken += sizes[name]
    if not held:
        held.add(min(sizes, key=lambda name: (sizes[name], name)))
    logger.warning(
        "no validation part is named: %d of %d training scenes are held out to choose the epoch: %s",
        len(held), len(train), named(sorted(held)),
    )  # fmt: skip
    return [replace(scene, split="val") if scene.name in held else scene for scene in scenes]


def labelled_areas(scenes: Sequence[LabelledScene]) -> list[float]:
    """Labelled area of each, m2 on the ground if all have a CRS, else px."""
    grids = [SceneInfo.of(scene.image).grid for scene in scenes]
    metres = [grid.gsd_m or (0.0, 0.0) for grid in grids]
    if not all(along for along, _ in metres):
        metres = [(1.0, 1.0)] * len(grids)
    pixels = [
        grid.width * grid.height * along * down for grid, (along, down) in zip(grids, metres, strict=True)
    ]
    return [size * _labelled_share(scene) for size, scene in zip(pixels, scenes, strict=True)]


def _labelled_share(scene: LabelledScene) -> float:
    """Share of a raster's pixels that are not 255 or nodata, on a sample of rows and columns; polygons: 1."""
    if is_vector(scene.labels):
        return 1.0
    with gdal.errors(DataError, str(scene.labels)), gdal.open_raster(scene.labels) as dataset:
        shrink = max(1.0, max(dataset.shape) / LOOK_PX)
        size = max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink))
        labels = dataset.read(1, out_shape=size, masked=True)
    return max(float(np.mean(labels.filled(IGNORE) != IGNORE)), 1e-6)


def _two_parts(scene: LabelledScene, share: float) -> list[LabelledScene]:
    """A scene cut by a row, so that `share` of its labels lie below: training and validation part."""
    grid = SceneInfo.of(scene.image).grid
    shrink = max(1.0, max(grid.width, grid.height) / LOOK_PX)
    coarse = grid.scaled(width=max(1, int(grid.width / shrink)), height=max(1, int(grid.height / shrink)))
    with LabelReader(scene.labels, coarse, scene.label_format(()), image_grid=grid) as reader:
        counts = (reader.read(0, 0, coarse.height, coarse.width) != IGNORE).sum(1).cumsum()
    row = int(np.searchsorted(counts, (1 - share) * counts[-1])) + 1
    cut = round(row * grid.height / coarse.height)
    if not counts[-1] or not 0 < cut < grid.height or counts[min(row, coarse.height) - 1] == counts[-1]:
        raise DataError(
            f"{scene.image}: is the only training scene and cannot be cut in two; name another by --val"
        )
    logger.warning(
        "%s is the only training scene: its rows from %d on (%.0f %% of its labels) are held out to choose "
        "the epoch; name another scene for validation if there is one", scene.image, cut, 100 * share,
    )  # fmt: skip
    return [
        replace(scene, name=f"{scene.name}-above", rows=(0, cut)),
        replace(scene, name=f"{scene.name}-below", rows=(cut, grid.height), split="val"),
    ]
