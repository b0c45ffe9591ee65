"""Patches of scenes with drawn labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data import scenes as scene_files
from rsseg_cli.errors import DataError
from rsseg_cli.pipeline import passes
from rsseg_cli.raster import SceneInfo, SceneReader
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.corrections import read_corrections
from rsseg_cli.weights import ModelSpec

CELL = 512  # side of a patch, px
MAX_LABELLED = 160  # patches with labels, of a scene
SAMPLES = 32  # patches at random


class Patch(NamedTuple):
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]  # to learn
    scored: NDArray[np.uint8]  # held out
    valid: NDArray[np.bool_]

    def turned(self, count: int) -> Iterator[Patch]:
        """Yield the patch and others, turned and mirrored; up to eight in all."""
        yield self
        for number in range(1, count):
            turned = Patch._make(np.rot90(plane, number, (-2, -1)) for plane in self)
            yield Patch._make(
                np.ascontiguousarray(plane[..., ::-1] if number >= 4 else plane) for plane in turned
            )


class ScenePatches:
    """Patches of a scene at the resolution of the model: those with labels, and some at random.

    Attributes:
        areas_m2: drawn of each class; without a CRS, pixels are taken to be the model's.
        held_out: number of labels held out.
        patches, random: those with labels, and some at random.
    """

    def __init__(self, image: Path, labels: Path, spec: ModelSpec, config: AdaptConfig) -> None:
        info = SceneInfo.of(str(image)).in_colour(spec.bands)
        self.name = info.name
        bands = info.select_bands(spec.bands, None, spec.name)
        grid = passes.network_grid(info.grid, spec, None, info.name, [])
        self.gsd_m = grid.side_m or spec.assumed_gsd_m or 1.0
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
        labels, scored = (_padded(plane, class_values.IGNORE) for plane in planes)
        return Patch(image=_padded(image), labels=labels, scored=scored, valid=_padded(valid, False))


def _padded(array: NDArray[Any], value: int | None = None) -> NDArray[Any]:
    """Fill up to multiples of 32 px and to a crop, with the edge or a value."""
    height, width = (max(CELL // 2, -(-side // 32) * 32) for side in array.shape[-2:])
    pad = [(0, 0)] * (array.ndim - 2) + [(0, height - array.shape[-2]), (0, width - array.shape[-1])]
    if value is None:
        return np.pad(array, pad, mode="edge")
    return np.pad(array, pad, constant_values=value)
