"""Where a map is good and where it is not: confusion matrices of its tiles, bounded in number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data import LabelFormat
from rsseg_cli.evaluation.metrics import count_confusion
from rsseg_cli.raster import Area, Grid

MAX_TILES = 4096
MAX_BYTES = 64 << 20  # of all matrices together; 254 classes take half a megabyte each
Matrix = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TileScore:
    """A tile of a scored map, and what is needed to look at it again.

    Attributes:
        image: the scene that was mapped, None where it is not known.
        predicted, truth: the map, and the labels that it was scored against.
        class_table: uint8 (256,): class number of the map's values, N for none of the classes.
        area: pixels outside were not looked at; None is all.
        row, col, height, width: window of the map, px.
        bounds: left, bottom, right, top in the map's CRS; None without.
        confusion: (N, N + 1), see `metrics.count_confusion`.
    """

    scene: str
    image: Path | str | None
    predicted: Path | str
    truth: Path | str
    truth_format: LabelFormat
    class_table: NDArray[np.uint8]
    area: Area | None
    row: int
    col: int
    height: int
    width: int
    bounds: tuple[float, float, float, float] | None
    confusion: Matrix


@dataclass(kw_only=True)
class SceneTiles:
    """Tiles of one scene, from the upper left of the window that is scored.

    Attributes:
        window: (row, col, height, width) of the map, px.
        size: side of a tile, px.
        matrices: by tile row and column; tiles without labels are not kept.
    """

    name: str
    image: Path | str | None
    predicted: Path | str
    truth: Path | str
    truth_format: LabelFormat
    class_table: NDArray[np.uint8]
    grid: Grid
    window: tuple[int, int, int, int]
    area: Area | None
    size: int
    matrices: dict[tuple[int, int], Matrix] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Tiles that the scene can have."""
        return -(-self.window[2] // self.size) * -(-self.window[3] // self.size)

    def add(self, row: int, col: int, mapped: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Matrix:
        """Count a block that begins at `row`, `col` of the window; returns its confusion."""
        classes = len(self.truth_format.class_names)
        total = np.zeros((classes, classes + 1), np.int64)
        height, width = labels.shape
        for (down, rows), (across, cols) in itertools.product(
            self._cuts(row, height), self._cuts(col, width)
        ):
            matrix = count_confusion(mapped[rows, cols], labels[rows, cols], classes)
            if matrix.any():
                place = down, across
                self.matrices[place] = self.matrices[place] + matrix if place in self.matrices else matrix
                total += matrix
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
        merged: dict[tuple[int, int], Matrix] = {}
        for (down, across), matrix in self.matrices.items():
            place = down // 2, across // 2
            merged[place] = merged[place] + matrix if place in merged else matrix
        self.matrices, self.size = merged, 2 * self.size

    def scores(self) -> Iterator[TileScore]:
        """The tiles in row-major order."""
        top, left, height, width = self.window
        for (down, across), matrix in sorted(self.matrices.items()):
            row, col = down * self.size, across * self.size
            size = min(self.size, height - row), min(self.size, width - col)
            window = self.grid.window(top + row, left + col, *size)
            yield TileScore(
                scene=self.name, image=self.image, predicted=self.predicted, truth=self.truth,
                truth_format=self.truth_format, class_table=self.class_table, area=self.area,
                row=top + row, col=left + col, height=size[0], width=size[1],
                bounds=None if self.grid.crs is None else window.bounds, confusion=matrix,
            )  # fmt: skip


class TileBook:
    """Tiles of any number of scenes, all of one size, which doubles while there are too many.

    A scene keeps one tile at least.

    Args:
        size: side of a tile at first, px.
    """

    def __init__(self, size: int, classes: int, most: int = MAX_TILES) -> None:
        self.size = size
        self._most = max(1, min(most, MAX_BYTES // (8 * classes * (classes + 1))))
        self._scenes: list[SceneTiles] = []
        self._number = 0

    def open(self, scene: SceneTiles) -> None:
        """Take a scene in before its first block."""
        scene.size = self.size
        self._scenes.append(scene)
        self._number += scene.number
        while self._number > max(self._most, len(self._scenes)):
            self.size *= 2
            for other in self._scenes:
                other.enlarge()
            self._number = sum(other.number for other in self._scenes)

    def scores(self) -> list[TileScore]:
        """All tiles, scene by scene."""
        return [tile for scene in self._scenes for tile in scene.scores()]

    def scores_of(self, name: str) -> list[TileScore]:
        """Tiles of the scenes of that name."""
        return [tile for scene in self._scenes if scene.name == name for tile in scene.scores()]
