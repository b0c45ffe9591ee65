"""Patches of scenes with drawn labels, and the pixels of them that an adaptation learns from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.data import LoadedScene
from rsseg_cli.data import scenes as scene_files
from rsseg_cli.errors import DataError
from rsseg_cli.models import BicorSeg
from rsseg_cli.raster import SceneInfo, SceneReader
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.corrections import read_corrections
from rsseg_cli.training.crops import draw_training_scenes
from rsseg_cli.weights import ModelSpec

CELL = 512  # side of a patch, px
MAX_LABELLED = 160  # patches with labels, of a scene
SAMPLES = 12  # patches at random
STRIDE = 4  # of the correction, px
MOST_PIXELS = 20_000  # of a class in a patch
DRAWN, CHECKS = 16, 6  # artificial scenes to learn from, and to see what is lost
DRAWN_PX = 384


class Patch(NamedTuple):
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]  # to learn
    scored: NDArray[np.uint8]  # held out


class ScenePatches:
    """Patches of a scene at the resolution of the model: those with labels, and some at random.

    Attributes:
        areas_m2: drawn of each class; px without a CRS.
        held_out: number of labels held out.
        patches, random: those with labels, and some at random.
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

    def _read(self, reader: SceneReader, row: int, col: int) -> Patch | None:
        """Return a patch, smaller at the scene's edge; None without data."""
        height, width = min(CELL, self._shape[0] - row), min(CELL, self._shape[1] - col)
        pixels, valid = reader.read(row, col, height, width)
        if not valid.any():
            return None
        image = scene_files.to_uint8(reader.fill(pixels, valid), self._ranges)
        planes = [self._corrections.labels(row, col, height, width, held_out=flag) for flag in (False, True)]
        for plane in planes:
            plane[~valid] = class_values.IGNORE
        return Patch(_padded(image), *(_padded(plane, class_values.IGNORE) for plane in planes))


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


class View(NamedTuple):
    """A patch as the networks see it.

    Attributes:
        inputs: of the correction (h, w, C).
        logits: of the network without correction (N, H, W).
        before: of the model (N or fewer, H, W); the same without an earlier correction and new classes.
    """

    inputs: Tensor
    logits: Tensor
    before: Tensor

    def classes(self, head: Any = None) -> Tensor:
        """Classes (H, W) with a correction; without one, those of the model."""
        if head is None:
            return self.before.max(0).indices  # faster than argmax
        return head(self.inputs[None], self.logits[None])[0].max(0).indices


class Pixels(NamedTuple):
    """Pixels of views: inputs (n, C) of their cells, logits (n, N), shares before (n, N), labels (n,)."""

    inputs: Tensor
    logits: Tensor
    before: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> Pixels:
        return Pixels(*(part[index] for part in self))

    @classmethod
    def joined(cls, parts: Iterable[Pixels]) -> Pixels:
        return cls(*(torch.cat(items) for items in zip(*parts, strict=True)))


class Encoder:
    """The model and its network without correction, both frozen."""

    def __init__(self, model: BicorSeg, network: BicorSeg, spec: ModelSpec) -> None:
        self._model, self._head = model, cast(Any, network.correction)
        self._plain = BicorSeg(dataclasses.replace(network.config, correction=0)).eval()
        weights = network.state_dict()
        self._plain.load_state_dict({key: weights[key] for key in self._plain.state_dict()})
        self._mean, self._std = (torch.tensor(part).view(1, -1, 1, 1) for part in (spec.mean, spec.std))

    @torch.no_grad()
    def view(self, image: NDArray[np.uint8]) -> View:
        """Run the networks over an image (bands, H, W)."""
        pixels = (torch.from_numpy(image).float()[None] / 255 - self._mean) / self._std
        scales = self._plain.encoder(pixels.contiguous(memory_format=torch.channels_last))
        logits, before = (network.decode(scales).logits for network in (self._plain, self._model))
        return View(self._head.inputs(scales, logits)[0], logits[0], before[0])


def pixels_of(view: View, labels: NDArray[np.uint8], rng: np.random.Generator) -> Pixels:
    """Return the labelled pixels of a view, of each class at most MOST_PIXELS."""
    chosen = []
    for index in np.unique(labels[labels != class_values.IGNORE]):
        members = np.argwhere(labels == index)
        chosen.append(members[rng.permutation(len(members))[:MOST_PIXELS]])
    rows, cols = torch.from_numpy(np.concatenate(chosen or [np.zeros((0, 2), np.int64)])).T
    before = F.pad(view.before[:, rows, cols].softmax(0), (0, 0, 0, len(view.logits) - len(view.before)))
    return Pixels(
        view.inputs[rows // STRIDE, cols // STRIDE],
        view.logits[:, rows, cols].T,
        before.T,
        torch.from_numpy(labels)[rows, cols].long(),
    )


def drawn_scenes(spec: ModelSpec, gsd_m: float) -> tuple[list[LoadedScene], list[LoadedScene]]:
    """Draw artificial scenes to learn from and to see what is lost; none for other bands and classes."""
    drawn: list[LoadedScene] = []
    if spec.bands == ("red", "green", "blue"):
        with contextlib.suppress(DataError):  # no class of the artificial scenes
            drawn = draw_training_scenes(spec, count=DRAWN + CHECKS, gsd_m=gsd_m, size=DRAWN_PX, seed=7000)
    return drawn[CHECKS:], drawn[:CHECKS]
