"""Window plan and blend weights: which tiles the network sees, and which pixels come from each of them.

A plan is the product of two axes. On an axis, tiles of one size are spread evenly so that each lies inside
the scene and neighbours share at least `overlap` px. In the middle of an overlap lies a ramp, half as wide:
pixels before it come from the earlier tile, pixels after it from the later one, and on it the two are
blended. The outer quarters of an overlap, where a tile sees least context, are dropped, and no pixel belongs
to more than two tiles an axis.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import TilingError


@dataclass(frozen=True, slots=True)
class Tile:
    """A pixel window of the plan, with its index in row-major order."""

    row: int
    col: int
    height: int
    width: int
    index: int
    row_index: int
    col_index: int


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of `length` px.

    Attributes:
        cuts: tile i finishes the pixels from cuts[i] to cuts[i + 1]; cuts[0] = 0, the last cut = length.
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
        """Return the first pixel and the end of those in which the tile has a weight above zero."""
        last = index == len(self) - 1
        return self.cuts[index], self.cuts[index + 1] + (0 if last else self.ramp)


@dataclass(frozen=True)
class Plan:
    """Tiles over a scene, in row-major order, made on demand: a plan is a few numbers a row and column."""

    rows: Axis
    cols: Axis

    @property
    def height(self) -> int:
        return self.rows.length

    @property
    def width(self) -> int:
        return self.cols.length

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

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

    Neighbours are blended on `ramp` px, at most the overlap and half of it by default. Tiles start at
    multiples of `step` px; height, width, tile and overlap must be multiples of it too.
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
    """Return the weights of the later tile along a ramp, float32 (ramp,), rising inside (0, 1)."""
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
