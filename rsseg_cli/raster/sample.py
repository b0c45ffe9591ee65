"""A sample of a scene's pixels: ranges to stretch, and values that may mark holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rsseg_cli.raster.grid import Grid
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.pixels import Array, Mask
from rsseg_cli.raster.reader import SceneReader, coarse_grid

PERCENTILES = (2.0, 98.0)
SIZE_PX = 1024  # longest side of the overview that is sampled
WHOLE_PX = 64 << 20  # of larger scenes without overviews some rows are read
ROW_BANDS = 32


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Pixels (bands, n) of an overview of a scene, and which of them are valid (n,)."""

    info: SceneInfo
    bands: tuple[int, ...]
    pixels: Array
    valid: Mask

    @classmethod
    def read(
        cls,
        info: SceneInfo,
        bands: Sequence[int],
        grid: Grid | None = None,
        *,
        whole_px: int = WHOLE_PX,
        row_bands: int = ROW_BANDS,
    ) -> Self:
        """Read an overview of SIZE_PX of the scene or a window of its grid.

        Of more than `whole_px` px without overviews only `row_bands` bands of rows are read, each
        one block high.
        """
        grid = grid or info.grid
        coarse = coarse_grid(grid, SIZE_PX)
        rows = [(0, coarse.height)]
        if not info.overviews and grid.height * grid.width > whole_px:
            rows = _sample_rows(info.block_shape[0] * coarse.height / grid.height, coarse.height, row_bands)
        with SceneReader(info, bands, coarse) as reader:
            parts = [reader.read(row, 0, height, coarse.width) for row, height in rows]
        return cls(
            info=info,
            bands=tuple(bands),
            pixels=np.concatenate([pixels.reshape(len(bands), -1) for pixels, _ in parts], 1),
            valid=np.concatenate([valid.ravel() for _, valid in parts]),
        )

    def percentile_ranges(self) -> list[tuple[float, float]]:
        """Return the 2nd and 98th percentile of each band's valid pixels, the second larger."""
        ranges = []
        for values in self.pixels[:, self.valid]:
            low, high = np.percentile(values, PERCENTILES) if values.size else (0.0, 1.0)
            ranges.append((float(low), float(high) if high > low else float(low) + 1))
        return ranges


def unmarked_holes(info: SceneInfo, bands: Sequence[int], grid: Grid) -> tuple[int, float]:
    """Return 0 or the type's largest value, whichever more pixels have in all bands, and its share.

    Only of scenes of 8 or 16 bits that mark no holes; else (0, 0.0).
    """
    dtypes = {info.dtypes[band - 1] for band in bands}
    if info.has_mask or not dtypes <= {"uint8", "uint16"}:
        return 0, 0.0
    pixels = Sample.read(info, bands, grid, whole_px=4 << 20, row_bands=8).pixels
    extremes = 0, 2 ** (8 * pixels.itemsize) - 1
    shares = [float((pixels == value).all(0).mean()) for value in extremes]
    return extremes[shares[1] > shares[0]], max(shares)


def _sample_rows(block: float, height: int, number: int) -> list[tuple[int, int]]:
    """Return (row, height) of evenly spaced bands of rows, each inside a row of blocks `block` rows high."""
    count = max(1, math.ceil(height / block))
    chosen = np.unique(np.linspace(0, count - 1, number).round().astype(int))
    rows = sorted({min(math.ceil(index * block), height - 1) for index in chosen})
    ends = [*rows[1:], height]
    return [(row, min(max(1, int(block)), end - row)) for row, end in zip(rows, ends, strict=True)]
