"""Where a map is good and where it is not: confusion matrices of its tiles, bounded in number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data import LabelFormat, LabelReader
from rsseg_cli.evaluation.metrics import count_confusion
from rsseg_cli.raster import Area, classes

MAX_TILES = 4096
MAX_BYTES = 64 << 20  # of all matrices together; 254 classes take half a megabyte each
Matrix = NDArray[np.int64]
Labels = NDArray[np.uint8]
Window = tuple[int, int, int, int]
Part = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class ScoredMap:
    """A map that was scored, and what is needed to look at it again.

    `class_table` is uint8 (256,), the class number of the map's values, N for none of the classes. Pixels
    outside `area` were not looked at.
    """

    scene: str
    image: Path | str | None
    predicted: Path | str
    truth: Path | str
    truth_format: LabelFormat
    class_table: NDArray[np.uint8]
    area: Area | None


@dataclass(frozen=True, kw_only=True)
class TileScore(ScoredMap):
    """A tile of a scored map: its window, px, its confusion (N, N + 1), and its boundary bands (4, N, W)."""

    row: int
    col: int
    height: int
    width: int
    confusion: Matrix
    bands: Matrix | None = None


class MapAndTruth:
    """Both on the map's grid, unknown beyond `window` (row, col, height, width; px) and `area`."""

    def __init__(
        self,
        mapped: classes.ClassRaster,
        truth: LabelReader,
        window: Window | None = None,
        area: Area | None = None,
    ) -> None:
        self._mapped, self._truth, self._area = mapped, truth, area
        self.window = window or (0, 0, mapped.grid.height, mapped.grid.width)
        self._grid = mapped.grid.window(*self.window)

    def blocks(self, size: int) -> Iterator[Window]:
        """(row, col, height, width) from the window's upper left."""
        _, _, height, width = self.window
        for row, col in itertools.product(range(0, height, size), range(0, width, size)):
            yield row, col, min(size, height - row), min(size, width - col)

    def labels(self, block: Window, halo: int = 0) -> tuple[Labels, int]:
        """Labels of a block and `halo` px around it; pixels of the block that lie in the area."""
        _, _, height, width = block
        part, inner = self._part(block, halo)
        labels = np.full((height + 2 * halo, width + 2 * halo), classes.IGNORE, np.uint8)
        labels[inner] = self._truth.read(*part)
        if self._area is None:
            return labels, height * width
        inside = np.zeros(labels.shape, np.bool_)
        inside[inner] = self._area.mask(self._mapped.grid.window(*part))
        labels[~inside] = classes.IGNORE
        return labels, int(np.count_nonzero(inside[halo : halo + height, halo : halo + width]))

    def mapped(self, block: Window, halo: int = 0) -> Labels:
        """Class numbers of the map, likewise."""
        part, inner = self._part(block, halo)
        mapped = np.full((block[2] + 2 * halo, block[3] + 2 * halo), self._mapped.none, np.uint8)
        mapped[inner] = self._mapped.read(*part)
        return mapped

    def _part(self, block: Window, halo: int) -> tuple[Window, tuple[slice, slice]]:
        """What of a block with its halo lies in the window: where in the map, and where in the block."""
        row, col, height, width = block
        part, inner = self._grid.clip(row - halo, col - halo, height + 2 * halo, width + 2 * halo)
        return (self.window[0] + part[0], self.window[1] + part[1], *part[2:]), inner


@dataclass(kw_only=True)
class SceneTiles:
    """Tiles with labels of one scene by tile row and column, `size` px, from the upper left of `window`."""

    scored: ScoredMap
    window: Window
    size: int
    matrices: dict[tuple[int, int], Matrix] = field(default_factory=dict)
    bands: dict[tuple[int, int], Matrix] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Tiles that the scene can have."""
        return -(-self.window[2] // self.size) * -(-self.window[3] // self.size)

    def parts(self, block: Window) -> list[tuple[tuple[int, int], Part]]:
        """Row and column of each tile that a block (row, col, height, width) reaches into, and where."""
        row, col, height, width = block
        pairs = itertools.product(self._cuts(row, height), self._cuts(col, width))
        return [((down, across), (rows, cols)) for (down, rows), (across, cols) in pairs]

    def add(self, block: Window, mapped: Labels, labels: Labels, bands: Matrix) -> Matrix:
        """Count a block and the boundary `bands` of its `parts`; returns its confusion."""
        count = len(self.scored.truth_format.class_names)
        total = np.zeros((count, count + 1), np.int64)
        for (key, part), more in zip(self.parts(block), bands, strict=True):
            matrix = count_confusion(mapped[part], labels[part], count)
            if matrix.any():
                self.matrices[key] = self.matrices.get(key, 0) + matrix
                total += matrix
            if more.any():
                self.bands[key] = self.bands.get(key, 0) + more
        return total

    def _cuts(self, start: int, length: int) -> Iterator[tuple[int, slice]]:
        """Number of each tile along an axis, and its part of the block."""
        for index in range(start // self.size, (start + length - 1) // self.size + 1):
            yield (
                index,
                slice(max(index * self.size - start, 0), min((index + 1) * self.size - start, length)),
            )

    def enlarge(self) -> None:
        """Twice as large tiles, each made of up to four."""
        for name in ("matrices", "bands"):
            merged: dict[tuple[int, int], Matrix] = {}
            for (down, across), counts in getattr(self, name).items():
                key = down // 2, across // 2
                merged[key] = merged.get(key, 0) + counts
            setattr(self, name, merged)
        self.size *= 2

    def scores(self) -> Iterator[TileScore]:
        """The tiles in row-major order."""
        top, left, height, width = self.window
        for (down, across), matrix in sorted(self.matrices.items()):
            row, col = down * self.size, across * self.size
            yield TileScore(
                **vars(self.scored), row=top + row, col=left + col, height=min(self.size, height - row),
                width=min(self.size, width - col), confusion=matrix, bands=self.bands.get((down, across)),
            )  # fmt: skip


class TileBook:
    """Tiles of any number of scenes, all of one size, which doubles while there are too many; one a scene."""

    def __init__(self, size: int, classes: int, widths: int, max_tiles: int) -> None:
        self.size = size
        self._most = max(1, min(max_tiles, MAX_BYTES // (8 * classes * (classes + 1 + 4 * widths))))
        self._scenes: list[SceneTiles] = []
        self._number = 0

    def open(self, scene: SceneTiles) -> None:
        scene.size = self.size
        self._scenes.append(scene)
        self._number += scene.number
        while self._number > max(self._most, len(self._scenes)):
            self.size *= 2
            for other in self._scenes:
                other.enlarge()
            self._number = sum(other.number for other in self._scenes)

    def scores(self) -> list[TileScore]:
        return [tile for scene in self._scenes for tile in scene.scores()]
