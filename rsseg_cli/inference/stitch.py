"""Streaming blend: tiles in, finished rectangles out.

Tiles come in row-major order. Each one finishes a rectangle of the scene (`Axis.cuts`), and all rectangles
together are the scene, each pixel once. Only the right ramp of the last tile and the bottom ramp of the last
tile row are kept: channels x ramp x width values, however high the scene is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from rsseg_cli.errors import TilingError

if TYPE_CHECKING:
    from rsseg_cli.inference.tiling import Plan, Tile


class Block(NamedTuple):
    """A finished rectangle and its values (channels, height, width), None where no tile was run."""

    row: int
    col: int
    height: int
    width: int
    values: torch.Tensor | None


def buffer_bytes(plan: Plan, channels: int) -> int:
    """Return the bytes of a stitcher's buffers, and of a resampler's behind it."""
    px = (plan.rows.ramp + 1) * plan.width + (plan.cols.ramp + 1) * plan.rows.size
    return 4 * channels * px


class Stitcher:
    """Blend overlapping tiles; where they agree the blend is their value, bit by bit.

    Args:
        ramp_weights: float32 (rows.ramp,) and (cols.ramp,), weights of the later tile.
        to_blend_space: maps (channels, h, w) to values that may be averaged, as logits to probabilities;
            applied on ramps only, and must not change the order of a pixel's channels.
        first_row: tile row to start with. To resume at a cut start one tile row before it, which rebuilds the
            overlap, and drop its blocks, which lack the rows above them.
    """

    def __init__(
        self,
        plan: Plan,
        ramp_weights: tuple[torch.Tensor, torch.Tensor],
        to_blend_space: Callable[[torch.Tensor], torch.Tensor] | None = None,
        first_row: int = 0,
    ) -> None:
        self._plan = plan
        self._row_weights = ramp_weights[0][:, None]  # (ramp, 1)
        self._col_weights = ramp_weights[1]  # (ramp,)
        self._to_blend_space = to_blend_space
        self._first_row = first_row
        self._next_index = first_row * len(plan.cols)
        self._right: torch.Tensor | None = None  # (C, tile extent, ramp): last ramp of the tile before
        self._bottom: torch.Tensor | None = None  # (C, ramp, width): last ramp of the tile row before

    @torch.inference_mode()
    def push(self, tile: Tile, values: torch.Tensor) -> Block:
        """Add the next tile, float (channels, height, width), which is overwritten; return what it ends."""
        self._expect(tile)
        plan = self._plan
        if tuple(values.shape[1:]) != (tile.height, tile.width):
            raise TilingError(
                f"tile {tile.index}: {tuple(values.shape[1:])} px for {tile.height} x {tile.width}"
            )
        top, bottom = plan.rows.extent(tile.row_index)
        left, right = plan.cols.extent(tile.col_index)
        values = values[:, top - tile.row : bottom - tile.row, left - tile.col : right - tile.col]
        above, below = self._ramps(plan.rows.ramp, tile.row_index, len(plan.rows))
        before, after = self._ramps(plan.cols.ramp, tile.col_index, len(plan.cols))
        if self._to_blend_space is not None:
            self._convert_ramps(values, (above, below, before, after))
        if before and self._right is not None:
            values[:, :, :before] = torch.lerp(self._right, values[:, :, :before], self._col_weights)
        self._right = values[:, :, values.shape[2] - after :].clone() if after else None
        values = values[:, :, : values.shape[2] - after]
        end = left + values.shape[2]
        if above and tile.row_index > self._first_row:
            kept = self._bottom_rows(values)[:, :, left:end]
            values[:, :above] = torch.lerp(kept, values[:, :above], self._row_weights)
        if below:
            self._bottom_rows(values)[:, :, left:end] = values[:, values.shape[1] - below :]
        values = values[:, : values.shape[1] - below]
        return Block(top, left, values.shape[1], values.shape[2], values)

    @torch.inference_mode()
    def skip(self, tile: Tile) -> Block:
        """Skip a tile that was not run because none of its pixels has data."""
        self._expect(tile)
        rows, cols = self._plan.rows.cuts, self._plan.cols.cuts
        top, left = rows[tile.row_index], cols[tile.col_index]
        bottom, right = rows[tile.row_index + 1], cols[tile.col_index + 1]
        self._right = None
        if self._bottom is not None:
            self._bottom[:, :, left:right] = 0
        return Block(top, left, bottom - top, right - left, None)

    def _expect(self, tile: Tile) -> None:
        if tile.index != self._next_index:
            raise TilingError(f"got tile {tile.index}, expected tile {self._next_index}")
        self._next_index += 1

    @staticmethod
    def _ramps(ramp: int, index: int, count: int) -> tuple[int, int]:
        return (ramp if index > 0 else 0), (ramp if index < count - 1 else 0)

    def _convert_ramps(self, values: torch.Tensor, ramps: tuple[int, int, int, int]) -> None:
        above, below, before, after = ramps
        last_rows = values.shape[1] - below
        parts = [
            values[:, :above],
            values[:, last_rows:],
            values[:, above:last_rows, :before],
            values[:, above:last_rows, values.shape[2] - after :],
        ]
        for part in parts:
            if part.numel():
                part.copy_(self._to_blend_space(part))  # type: ignore[misc]

    def _bottom_rows(self, values: torch.Tensor) -> torch.Tensor:
        if self._bottom is None:
            self._bottom = values.new_zeros((values.shape[0], self._plan.rows.ramp, self._plan.width))
        return self._bottom
