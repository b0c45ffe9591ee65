"""Window plan and blend weights: which tiles the network sees, and which pixels each of them decides.

A plan is the product of two axes. On an axis, tiles of one size are spread evenly so that each lies inside
the scene and neighbours share at least `overlap` px. In the middle of what neighbours share lies a ramp, half
the overlap wide: before it the earlier tile decides alone, behind it the later one, on it they are blended.
The outer quarters of an overlap, where a tile knows least of its surroundings, are thus dropped, and no pixel
belongs to more than two tiles an axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import TilingError


@dataclass(frozen=True, slots=True)
class Tile:
    """A pixel window of the plan, with its place in row-major order."""

    row: int
    col: int
    height: int
    width: int
    index: int
    row_index: int
    col_index: int


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis.

    Attributes:
        length: px of the scene.
        size: px of each tile, at most `length`.
        starts: first pixel of each tile.
        cuts: tile i alone finishes the pixels from cuts[i] to cuts[i + 1]; cuts[0] = 0, the last cut =
            length.
        ramp: tiles i - 1 and i are blended from cuts[i] to cuts[i] + ramp.
    """

    length: int
    size: int
    starts: tuple[int, ...]
    cuts: tuple[int, ...]
    ramp: int

    def __len__(self) -> int:
        return len(self.starts)

    def extent(self, index: int) -> tuple[int, int]:
        """First pixel and end of those in which the tile has a weight above zero."""
        last = index == len(self) - 1
        return self.cuts[index], self.cuts[index + 1] + (0 if last else self.ramp)

    def weights(self, index: int) -> NDArray[np.float32]:
        """Blend weights of the tile, float32 (size,): the ramp and its complement sum to one exactly."""
        start, (first, end) = self.starts[index], self.extent(index)
        weights = np.zeros(self.size, np.float32)
        weights[first - start : end - start] = 1
        if index > 0:
            weights[first - start : first - start + self.ramp] = ramp_weights(self.ramp)
        if index < len(self) - 1:
            weights[end - start - self.ramp : end - start] = 1 - ramp_weights(self.ramp)
        return weights


@dataclass(frozen=True)
class Plan:
    """Tiles over a scene, in row-major order. Tiles are made on demand.

    A plan costs a few numbers a row and column.
    """

    rows: Axis
    cols: Axis

    @property
    def height(self) -> int:
        return self.rows.length

    @property
    def width(self) -> int:
        return self.cols.length

    @property
    def tiles(self) -> Iterator[Tile]:
        return self.tiles_from(0)

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    def tiles_from(self, row_index: int) -> Iterator[Tile]:
        """Tiles from the start of a tile row on."""
        for i in range(row_index, len(self.rows)):
            for j in range(len(self.cols)):
                yield self.tile(i, j)

    def tile(self, row_index: int, col_index: int) -> Tile:
        return Tile(
            row=self.rows.starts[row_index],
            col=self.cols.starts[col_index],
            height=self.rows.size,
            width=self.cols.size,
            index=row_index * len(self.cols) + col_index,
            row_index=row_index,
            col_index=col_index,
        )


def plan(
    height: int, width: int, tile_size: int, overlap: int, *, ramp: int | None = None, step: int = 1
) -> Plan:
    """Plan square tiles over a scene of height x width px; a scene smaller than a tile has smaller tiles.

    Args:
        ramp: px on which neighbours are blended, at most the overlap; half of it by default.
        step: tiles start at multiples of this, px; height, width, tile and overlap are multiples of it too.

    Raises:
        TilingError: an empty scene, or an overlap that is not from 0 to half the tile.
    """
    if height < 1 or width < 1:
        raise TilingError(f"a scene of {height} x {width} px has nothing to map")
    if tile_size < 1 or not 0 <= overlap <= tile_size // 2:
        raise TilingError(
            f"tiles of {tile_size} px with {overlap} px overlap: needs 0 to {tile_size // 2} px"
        )
    if any(length % step for length in (height, width, tile_size, overlap)):
        raise TilingError(
            f"{height} x {width} px in tiles of {tile_size} with {overlap} px overlap: "
            f"not all are multiples of {step}"
        )
    ramp = (overlap + 1) // 2 if ramp is None else min(ramp, overlap)
    return Plan(_axis(height, tile_size, overlap, ramp, step), _axis(width, tile_size, overlap, ramp, step))


def ramp_weights(ramp: int) -> NDArray[np.float32]:
    """Weights of the later tile along a ramp, float32 (ramp,), rising inside (0, 1)."""
    return ((np.arange(ramp, dtype=np.float32) + np.float32(0.5)) / np.float32(max(ramp, 1))).astype(
        np.float32
    )


def _axis(length: int, tile_size: int, overlap: int, ramp: int, step: int) -> Axis:
    size = min(tile_size, length)
    count = 1 if length <= tile_size else -(-(length - overlap) // (tile_size - overlap))
    starts = tuple(index * ((length - size) // step) // max(count - 1, 1) * step for index in range(count))
    strides = [after - before for before, after in itertools.pairwise(starts)]
    # Where the last tiles are pushed together, overlaps exceed strides: ramps no wider than a stride never
    # meet.
    ramp = min([ramp, *strides])
    inner = [after + (size - stride - ramp) // 2 for after, stride in zip(starts[1:], strides, strict=True)]
    return Axis(
        length=length, size=size, starts=starts, cuts=(0, *inner, length), ramp=ramp if count > 1 else 0
    )
