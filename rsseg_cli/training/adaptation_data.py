"""Patches of scenes with drawn labels, and the crops that an adaptation learns from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli.data import LoadedScene
from rsseg_cli.data import scenes as scene_files
from rsseg_cli.errors import DataError
from rsseg_cli.raster import SceneInfo, SceneReader
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.corrections import read_corrections
from rsseg_cli.training.crops import draw_factors, draw_training_scenes, vary_colours, worsen
from rsseg_cli.weights import ModelSpec

CROP = 256
CELL = 512  # side of a patch, px
MAX_LABELLED = 160  # patches with labels, of a scene
SAMPLES = 12  # patches at random
COLOUR = 0.6
DRAWN, CHECKS = 16, 6  # artificial scenes to learn from, and to see what is lost
DRAWN_PX = 384


class _Patch(NamedTuple):
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]  # to learn
    scored: NDArray[np.uint8]  # held out


class ScenePatches:
    """Patches of a scene at the resolution of the model: those with labels, and some at random.

    Attributes:
        areas_m2: drawn of each class; px without a CRS.
        held_out: number of labels held out.
        scored: images (bands, H, W) in [0, 1] and held-out labels (H, W).
    """

    def __init__(self, image: Path, labels: Path, spec: ModelSpec, config: AdaptConfig) -> None:
        info = SceneInfo.of(str(image)).in_colour(spec.bands)
        self.name, self.gsd_m = info.name, 1.0
        bands = info.select_bands(spec.bands, None, spec.name)
        grid, self.gsd_m = scene_files.training_grid(info.grid, _resolution(info, spec))
        self._corrections = read_corrections(
            labels, grid, spec.class_names, field=config.label_field, seed=config.seed
        )
        self.held_out = sum(item.held_out for item in self._corrections.items)
        self._ranges = scene_files.stretch_ranges(info, bands, spec)
        self._shape = grid.height, grid.width
        rng = np.random.default_rng(config.seed)
        self.areas_m2 = np.zeros(len(spec.classes))
        with SceneReader(info, bands, grid) as reader:
            cells = self._cells(rng)
            self.patches = [
                patch for patch in (self._read(reader, *cell) for cell in cells) if patch is not None
            ]
            rows = [int(rng.integers(0, max(1, grid.height - CELL + 1))) for _ in range(SAMPLES)]
            cols = [int(rng.integers(0, max(1, grid.width - CELL + 1))) for _ in range(SAMPLES)]
            read = (self._read(reader, row, col) for row, col in zip(rows, cols, strict=True))
            self.random = [patch for patch in read if patch is not None]
        for patch in self.patches:
            for plane in (patch.labels, patch.scored):
                counts = np.bincount(plane.ravel(), minlength=256)[: len(spec.classes)]
                self.areas_m2 += counts * self.gsd_m**2
        if not any((patch.labels != class_values.IGNORE).any() for patch in self.patches):
            raise DataError(f"{labels}: no pixel of the scene with data has a label to learn from")

    def _cells(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return the upper left corners of patches that hold labels, each label in one of them at least."""
        cells: dict[tuple[int, int], None] = {}
        for held_out in (False, True):
            for _, (row, col, height, width) in self._corrections.boxes(held_out=held_out):
                for down in range(row // CELL, (row + height - 1) // CELL + 1):
                    for across in range(col // CELL, (col + width - 1) // CELL + 1):
                        cells[down * CELL, across * CELL] = None
        chosen = list(cells)
        if len(chosen) > MAX_LABELLED:
            chosen = [chosen[index] for index in rng.permutation(len(chosen))[:MAX_LABELLED]]
        return sorted(chosen)

    def _read(self, reader: SceneReader, row: int, col: int) -> _Patch | None:
        """Return a patch, smaller at the scene's edge; None without data."""
        height, width = min(CELL, self._shape[0] - row), min(CELL, self._shape[1] - col)
        pixels, valid = reader.read(row, col, height, width)
        if not valid.any():
            return None
        image = scene_files.to_uint8(reader.fill(pixels, valid), self._ranges)
        planes = [self._corrections.labels(row, col, height, width, held_out=flag) for flag in (False, True)]
        for plane in planes:
            plane[~valid] = class_values.IGNORE
        return _Patch(_padded(image), *(_padded(plane, class_values.IGNORE) for plane in planes))

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (bands, H, W) in [0, 1] and labels (H, W) to learn."""
        for patch in self.patches:
            if (patch.labels != class_values.IGNORE).any():
                yield _to_tensor(patch.image), torch.from_numpy(patch.labels)

    @cached_property
    def scored(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (_to_tensor(patch.image), torch.from_numpy(patch.scored))
            for patch in self.patches
            if (patch.scored != class_values.IGNORE).any()
        ]

    def samples(self) -> Iterator[Tensor]:
        """Yield images (bands, H, W) of random patches."""
        yield from (_to_tensor(patch.image) for patch in self.random)


def _resolution(info: SceneInfo, spec: ModelSpec) -> float | None:
    """Return the resolution that prediction would choose: the scene's own within the model's range."""
    ground = info.grid.gsd_m
    if spec.gsd_m is None or ground is None or spec.gsd_range_m is None:
        return spec.gsd_m
    own = float(np.sqrt(ground[0] * ground[1]))
    return own if spec.gsd_range_m[0] <= own <= spec.gsd_range_m[1] else spec.gsd_m


def _padded(array: NDArray[np.uint8], value: int | None = None) -> NDArray[np.uint8]:
    """Fill up to multiples of 32 px and to a crop, with the edge or a value."""
    height, width = (max(CELL // 2, -(-side // 32) * 32) for side in array.shape[-2:])
    pad = [(0, 0)] * (array.ndim - 2) + [(0, height - array.shape[-2]), (0, width - array.shape[-1])]
    if value is None:
        return np.pad(array, pad, mode="edge")
    return np.pad(array, pad, constant_values=value)


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).float() / 255


class Crops:
    """Batches of a crop with labels, one of anywhere, two of artificial scenes; from (seed, step) alone."""

    def __init__(self, scenes: Sequence[ScenePatches], spec: ModelSpec, config: AdaptConfig) -> None:
        self._seed = config.seed
        self._patches = [patch for scene in scenes for patch in scene.patches]
        self._anywhere = [patch for scene in scenes for patch in scene.random] or self._patches
        self._by_class: list[list[tuple[int, NDArray[np.int64]]]] = []
        for index in range(len(spec.classes)):
            members = [
                (number, np.argwhere(patch.labels == index)[::7])
                for number, patch in enumerate(self._patches)
                if (patch.labels == index).any()
            ]
            if members:
                self._by_class.append(members)
        scored = (np.unique(labels) for scene in scenes for _, labels in scene.scored)
        self.scored_classes = {int(index) for part in scored for index in part} - {class_values.IGNORE}
        drawn: list[LoadedScene] = []
        if spec.bands == ("red", "green", "blue") and config.replay:
            with contextlib.suppress(DataError):  # no class of the artificial scenes
                drawn = draw_training_scenes(
                    spec, count=DRAWN + CHECKS, gsd_m=scenes[0].gsd_m, size=DRAWN_PX, seed=7000
                )
        self._drawn, self._checks = drawn[CHECKS:], drawn[:CHECKS]

    def checks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (bands, H, W) in [0, 1] and labels (H, W) of artificial scenes not learnt from."""
        yield from ((_to_tensor(scene.image), torch.from_numpy(scene.labels)) for scene in self._checks)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return images with varied colours, labels, and which are artificial.

        (B, bands, CROP, CROP) in [0, 1], int64 (B, CROP, CROP), bool (B,).
        """
        rng = np.random.default_rng((self._seed, step))
        parts = [self._labelled(rng), self._random(rng)]
        is_drawn = [False] * len(parts)
        for index in rng.integers(0, max(1, len(self._drawn)), 2 * bool(self._drawn)):
            scene = self._drawn[int(index)]
            parts.append(_cut(scene.image, scene.labels, None, rng))
            is_drawn.append(True)
        turned = [_turned(*part, rng) for part in parts]
        clean = torch.stack([image for image, _ in turned])
        factors = torch.stack([draw_factors(rng, clean.shape[1], COLOUR) for _ in clean])
        varied = vary_colours(torch.stack([worsen(image, rng, COLOUR) for image in clean]), factors)
        labels = torch.stack([labels for _, labels in turned]).long()
        return varied, labels, torch.tensor(is_drawn)

    def _labelled(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a crop around a labelled pixel, of each class as often."""
        members = self._by_class[int(rng.integers(len(self._by_class)))]
        number, pixels = members[int(rng.integers(len(members)))]
        patch = self._patches[number]
        return _cut(patch.image, patch.labels, pixels[int(rng.integers(len(pixels)))], rng)

    def _random(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        patch = self._anywhere[int(rng.integers(len(self._anywhere)))]
        return _cut(patch.image, patch.labels, None, rng)


def _cut(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    around: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a crop anywhere, or one that holds a pixel; mirrored beyond the patch."""
    starts = []
    for axis, side in enumerate(labels.shape):
        last = max(side - CROP, 0)
        low, high = 0, last
        if around is not None:
            low, high = max(0, int(around[axis]) - CROP + 1), min(last, int(around[axis]))
        starts.append(int(rng.integers(low, max(low, high) + 1)))
    rows, cols = (slice(start, start + CROP) for start in starts)
    image, labels = image[:, rows, cols], labels[rows, cols]
    short = [(0, CROP - side) for side in labels.shape]
    return np.pad(image, [(0, 0), *short], mode="symmetric"), np.pad(labels, short, mode="symmetric")


def _turned(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    quarters, flip = int(rng.integers(4)), bool(rng.integers(2))
    image, labels = np.rot90(image, quarters, (1, 2)), np.rot90(labels, quarters)
    if flip:
        image, labels = image[..., ::-1], labels[..., ::-1]
    return _to_tensor(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(labels))
