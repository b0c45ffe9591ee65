"""Streaming bilinear resampling: finished rectangles of one grid in, finished rectangles of another out.

Output pixel y lies at start + (y + 0.5) * scale - 0.5 in the source (pixel centres at halves); beyond the
outermost centres the edge value holds. Of grids of the same extent start is 0 and scale their sizes' ratio.
An output pixel is finished with the rectangle that holds the last of its neighbours, so only a column and a
row of the source are kept, and any partition gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rsseg_cli.errors import TilingError

STRIP_VALUES = 2**22  # float32 values that leave at once: 16 MiB


class AxisMap:
    """Where `target` output pixels, `scale` source pixels wide, lie along an axis; the first at `start`."""

    def __init__(self, source: int, target: int, scale: float | None = None, start: float = 0.0) -> None:
        position = (np.arange(target) + 0.5) * (scale or source / target) - 0.5 + start
        position = position.clip(0, source - 1)
        self.lower = position.astype(np.int64)
        self.upper = np.minimum(self.lower + 1, source - 1)
        self.weight = (position - self.lower).astype(np.float32)
        self._tensors: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self.lower)

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """`lower`, `upper` and `weight` on a device, copied there once."""
        if device not in self._tensors:
            arrays = self.lower, self.upper, self.weight
            self._tensors[device] = tuple(torch.from_numpy(array).to(device) for array in arrays)
        return self._tensors[device]

    def finished(self, end: int) -> int:
        """Count the output pixels that need no source pixel from `end` on."""
        return int(np.searchsorted(self.upper, end))

    def cuts(self, source_cuts: Sequence[int]) -> tuple[int, ...]:
        """Return the output pixels that are finished at each of the source's cuts."""
        return tuple(self.finished(cut) for cut in source_cuts)


class Resampler:
    """Blocks (channels, h, w) of the source grid, row-major, to blocks of the target grid.

    Sizes are (height, width); the target begins at `start`, (row, col) of the source, and its pixels are
    `scale` (rows, cols) source pixels, by default so that both have the same extent.
    """

    def __init__(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        scale: tuple[float, float] | None = None,
        start: tuple[float, float] = (0.0, 0.0),
        strip_values: int = STRIP_VALUES,
    ) -> None:
        self.rows = AxisMap(source[0], target[0], scale[0] if scale else None, start[0])
        self.cols = AxisMap(source[1], target[1], scale[1] if scale else None, start[1])
        self._source_width, self._strip_values = source[1], strip_values
        self._above: torch.Tensor | None = None  # (C, 1, source width): last row of the blocks above
        self._left: torch.Tensor | None = None  # (C, 1 + h, 1): last column before, with the row above
        # what `commit` sets: the part of `_above` to write, its row, and `_left`
        self._next: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @torch.inference_mode()
    def push(self, row: int, col: int, values: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield what this block finishes: (row, col, values), in strips of rows of a bounded size.

        `commit` adds the block.
        """
        block, row, col = self._extend(row, col, values)
        end_row, end_col = row + block.shape[1], col + block.shape[2]
        # The first row and column of an extended block were finished with the block before, unless it is the
        # first.
        first_out = self.rows.finished(row + 1) if row else 0
        first_col = self.cols.finished(col + 1) if col else 0
        last_out, last_col = self.rows.finished(end_row), self.cols.finished(end_col)
        if last_col <= first_col:
            return
        columns = slice(first_col, last_col)
        step = max(1, self._strip_values // (block.shape[0] * max(last_col - first_col, block.shape[2])))
        for first in range(first_out, last_out, step):
            rows = slice(first, min(first + step, last_out))
            strip = _interpolate(block, self.rows, rows, row, axis=1)
            yield first, first_col, _interpolate(strip, self.cols, columns, col, axis=2)

    @torch.inference_mode()
    def commit(self) -> None:
        """Add the block that was pushed last, which takes no memory; until then it may be pushed again."""
        if self._next is None:
            raise ValueError("nothing was pushed")
        above, row, self._left = self._next
        self._next = None
        above.copy_(row)

    def _extend(self, row: int, col: int, values: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Put the row above and the column before in front of the block."""
        if self._above is None:
            self._above = values.new_zeros((values.shape[0], 1, self._source_width))
        end = col + values.shape[2]
        block = values
        if row:
            block = torch.cat([self._above[:, :, col:end], block], dim=1)
        if col:
            if self._left is None or self._left.shape[1] != block.shape[1]:
                raise TilingError(f"the block at ({row}, {col}) does not follow the one before")
            block = torch.cat([self._left, block], dim=2)
        self._next = self._above[:, :, col:end], values[:, -1:], block[:, :, -1:].clone()
        return block, row - bool(row), col - bool(col)


def _interpolate(
    values: torch.Tensor, axis_map: AxisMap, wanted: slice, origin: int, axis: int
) -> torch.Tensor:
    """Output pixels `wanted` along an axis; `values` starts at source pixel `origin`."""
    lower, upper, weight = (part[wanted] for part in axis_map.tensors(values.device))
    first, second = (values.index_select(axis, part - origin) for part in (lower, upper))
    return torch.lerp(first, second, weight[:, None] if axis == 1 else weight)
