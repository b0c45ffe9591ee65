"""Streaming blend: tiles in, finished rectangles out.

Tiles come in row-major order. Each one finishes a rectangle of the scene (`Axis.cuts`), and all rectangles
together are the scene, each pixel once. Only the right ramp of the last tile and the bottom ramp of the last
tile row are kept: channels x ramp x width values, however high the scene is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from rsseg_cli.errors import TilingError

if TYPE_CHECKING:
    from rsseg_cli.inference.tiling import Plan, Tile

_Rows = torch.Tensor | None


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
        to_blend_space: maps values to such that may be averaged, as logits to probabilities, given the axis
            of their channels; applied on ramps only, and must not change the order of a pixel's channels.
        first_row: tile row to start with. To resume at a cut start one tile row before it, which rebuilds the
            overlap, and drop its blocks, which lack the rows above them.
    """

    def __init__(
        self,
        plan: Plan,
        ramp_weights: tuple[torch.Tensor, torch.Tensor],
        to_blend_space: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
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
        # what `commit` sets: index, right ramp, the part of `_bottom` to write, its rows (None: zeros)
        self._next: tuple[int, _Rows, _Rows, _Rows] | None = None

    @torch.inference_mode()
    def push(self, tiles: Sequence[Tile], values: torch.Tensor) -> Block:
        """Return what the next tiles, neighbours in a row, finish; `commit` adds them.

        Args:
            values: float (tiles, channels, height, width), which are overwritten.
        """
        self._expect(tiles)
        plan, first = self._plan, tiles[0]
        if tuple(values.shape[2:]) != (first.height, first.width):
            raise TilingError(
                f"tile {first.index}: {tuple(values.shape[2:])} px for {first.height} x {first.width}"
            )
        top, bottom = plan.rows.extent(first.row_index)
        above, below = self._ramps(plan.rows.ramp, first.row_index, len(plan.rows))
        sides = [(tile.col, *plan.cols.extent(tile.col_index)) for tile in tiles]
        low, high = min(left - col for col, left, _ in sides), max(right - col for col, _, right in sides)
        values = values[:, :, top - first.row : bottom - first.row]
        last_row = values.shape[2] - below
        self._convert(values[:, :, :above, low:high], 1)
        self._convert(values[:, :, last_row:, low:high], 1)
        parts = [
            part[:, :, left - col : right - col]
            for part, (col, left, right) in zip(values, sides, strict=True)
        ]
        strip, beside = self._join(parts, tiles, slice(above, last_row))
        left, end = sides[0][1], sides[0][1] + strip.shape[2]
        if above and first.row_index > self._first_row:
            kept = self._bottom_rows(strip)[:, :, left:end]
            strip[:, :above] = torch.lerp(kept, strip[:, :above], self._row_weights)
        rest = self._bottom_rows(strip)[:, :, left:end] if below else None
        self._next = first.index + len(tiles), beside, rest, strip[:, last_row:]
        return Block(top, left, last_row, strip.shape[2], strip[:, :last_row])

    @torch.inference_mode()
    def skip(self, tile: Tile) -> Block:
        """Return where a tile lies that was not run because none of its pixels has data; see `push`."""
        self._expect([tile])
        rows, cols = self._plan.rows.cuts, self._plan.cols.cuts
        top, left = rows[tile.row_index], cols[tile.col_index]
        bottom, right = rows[tile.row_index + 1], cols[tile.col_index + 1]
        rest = None if self._bottom is None else self._bottom[:, :, left:right]
        self._next = tile.index + 1, None, rest, None
        return Block(top, left, bottom - top, right - left, None)

    @torch.inference_mode()
    def commit(self) -> None:
        """Add what was pushed or skipped last, which takes no memory; until then it may be pushed again."""
        if self._next is None:
            raise ValueError("nothing was pushed")
        self._next_index, self._right, rest, rows = self._next
        self._next = None
        if rest is not None and rows is not None:
            rest.copy_(rows)
        elif rest is not None:
            rest.zero_()

    def _expect(self, tiles: Sequence[Tile]) -> None:
        for index, tile in enumerate(tiles, self._next_index):
            if tile.index != index:
                raise TilingError(f"got tile {tile.index}, expected tile {index}")

    def _join(
        self, parts: Sequence[torch.Tensor], tiles: Sequence[Tile], rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Blend neighbours: return the columns that they finish, and the ramp beside the last one, if any.

        `rows` are those that are not converted yet.
        """
        ramp, last_col = self._plan.cols.ramp, len(self._plan.cols) - 1
        if not ramp:
            return _joined(parts), None
        firsts = [part[:, :, :ramp] for part, tile in zip(parts, tiles, strict=True) if tile.col_index > 0]
        lasts = [part[:, :, part.shape[2] - ramp :] for part in parts]
        cores = [part[:, :, : part.shape[2] - ramp] for part in parts]
        beside = None
        if tiles[-1].col_index < last_col:
            self._convert(lasts[-1][:, rows], 0)
            beside = lasts[-1].clone()
        else:
            cores[-1] = parts[-1]
        if not firsts:  # one tile, the first of its row
            return cores[0], beside
        later, earlier = _joined(firsts), [_joined(lasts[:-1])] if len(parts) > 1 else []
        for columns in (later, *earlier):
            self._convert(columns[:, rows], 0)
        if len(firsts) == len(parts):
            earlier.insert(0, later[:, :, :ramp] if self._right is None else self._right)
        before, after = (columns.unflatten(2, (-1, ramp)) for columns in (_joined(earlier), later))
        blended = torch.lerp(before, after, self._col_weights).unbind(2)
        if len(parts) == 1:
            cores[0][:, :, :ramp] = blended[0]
            return cores[0], beside
        pieces = [cores[0]] if len(firsts) < len(parts) else []
        for seam, core in zip(blended, cores[len(pieces) :], strict=True):
            pieces += [seam, core[:, :, ramp:]]
        return torch.cat(pieces, 2), beside

    @staticmethod
    def _ramps(ramp: int, index: int, count: int) -> tuple[int, int]:
        return (ramp if index > 0 else 0), (ramp if index < count - 1 else 0)

    def _convert(self, ramp: torch.Tensor, channels: int) -> None:
        """Convert values in place; `channels` is their axis."""
        if self._to_blend_space is not None and ramp.numel():
            ramp.copy_(self._to_blend_space(ramp, channels))

    def _bottom_rows(self, values: torch.Tensor) -> torch.Tensor:
        if self._bottom is None:
            self._bottom = values.new_zeros((values.shape[0], self._plan.rows.ramp, self._plan.width))
        return self._bottom


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 2)
