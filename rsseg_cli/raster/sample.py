"""A sample of a scene's pixels: ranges to stretch, and values that may mark holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from rsseg_cli.errors import SceneError, UsageError
from rsseg_cli.raster.grid import Grid
from rsseg_cli.raster.info import Alpha, Range, SceneInfo
from rsseg_cli.raster.pixels import Array, Mask
from rsseg_cli.raster.reader import SceneReader, coarse_grid

PERCENTILES = (2.0, 98.0)
BYTE_MAX = 255
SIZE_PX = 1024  # longest side of the overview that is sampled
WHOLE_PX = 4 << 20  # of larger scenes without overviews some blocks are read
BLOCK_SHARE = 1 / 4  # of the blocks that are sampled, within
MIN_BLOCKS, MAX_BLOCKS, MAX_SMALL_BLOCKS = 16, 64, 128
SMALL_PX = 2 << 20  # in all of small blocks
ROUNDS = 16  # over the scene at most, where blocks hold no data
PLASTIC = 1.324717957244746  # root of x**3 = x + 1; see _sample_windows
HOLE_SHARE = 0.005  # of pixels of one extreme value, from which they may be unmarked holes
MAX_COMMON_PIXELS = 8 << 20  # of all scenes that share a stretch
MAX_FILLS = 3  # different ones in a scene
FILLS = (-99999.0, -32768.0, -32767.0, -9999.0)  # that programs write
MIN_FILL = 1e20  # of numbers that no sensor gives
GAP = 0.25  # between a fill value and the darkest pixel, of the range of the others


class Fill(NamedTuple):
    """A value that may mark holes, and the share of the pixels that have it in all bands."""

    value: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Pixels (bands, n) of an overview of a scene, and which of them are valid (bands, n)."""

    pixels: Array
    valid: Mask

    @classmethod
    def read(
        cls,
        info: SceneInfo,
        bands: Sequence[int],
        grid: Grid | None = None,
        *,
        nodata: float | None = None,
    ) -> Self:
        """Read an overview of SIZE_PX of the scene or a window of its grid.

        Of more than WHOLE_PX px without overviews only some blocks are read, more where they hold no data.
        `nodata` is a value of pixels without data beside what the scene marks.
        """
        grid = grid or info.grid
        coarse = coarse_grid(grid, SIZE_PX)
        rounds = [[[0, 0, coarse.height, coarse.width]]]
        if not info.overviews and grid.height * grid.width > WHOLE_PX:
            rounds = _sample_windows(info.block_shape, grid, coarse)
        parts, known = list[tuple[Array, Mask]](), 0.0  # blocks' worth of data
        with SceneReader(info, bands, coarse, nodata, by_band=True) as reader:
            for windows in rounds:
                if known < len(rounds[0]) / 2:
                    read = [reader.read(*window) for window in windows]
                    known += sum(float(valid.mean()) for _, valid in read)
                    parts += read
        pixels = np.concatenate([pixels.reshape(len(bands), -1) for pixels, _ in parts], 1)
        valid = np.concatenate([valid.reshape(len(bands), -1) for _, valid in parts], 1)
        return cls(pixels=pixels, valid=valid & np.isfinite(pixels))  # means of huge values may not be

    def ranges(self) -> list[Range]:
        """Return 0 and 255 for bytes stored in a larger type, else the 2nd and 98th percentile of each band.

        These are of valid pixels; the second is larger.
        """
        known = self.pixels[self.valid]
        if known.size and float(known.min()) >= 0 and BYTE_MAX // 2 < float(known.max()) <= BYTE_MAX:
            return [(0.0, float(BYTE_MAX))] * len(self.pixels)
        ranges = []
        for values, valid in zip(self.pixels, self.valid, strict=True):
            low, high = np.percentile(values[valid], PERCENTILES) if valid.any() else (0.0, 1.0)
            ranges.append((float(low), float(high) if high > low else float(low) + 1))
        return ranges

    def without(self, value: float) -> Sample:
        """Return the sample with pixels of a value marked as without data, band by band."""
        return Sample(pixels=self.pixels, valid=self.valid & ~_equals(self.pixels, value))

    def fills(self) -> list[Fill]:
        """Find extreme values that many pixels have in all bands, as holes do without a mark."""
        fills: list[Fill] = []
        sample = self
        while len(fills) < MAX_FILLS and (fill := sample._fill()) is not None:
            fills.append(fill)
            sample = sample.without(fill.value)
        return fills

    def _fill(self) -> Fill | None:
        known = self.pixels[:, self.valid.all(0)]
        if not known.size:
            return None
        for value in (known.min(), known.max(), known.dtype.type(0)):
            number = _as_written(value)
            flat = _equals(known, number).all(0)
            share = float(flat.sum() / self.pixels.shape[1])
            if share > HOLE_SHARE and _may_be_fill(number, known[:, ~flat]):
                return Fill(number, share)
        return None

    def bare(self) -> Sample:
        """Return the sample without the values that programs write for no data, in any one band."""
        pixels, dtype = self.pixels, np.dtype(self.pixels.dtype.name)
        values = [value for value in FILLS if dtype.kind == "f" or value >= np.iinfo(dtype).min]
        valid = self.valid & (np.abs(pixels.astype(np.float64)) < MIN_FILL)
        sample = Sample(pixels=pixels, valid=valid)
        for value in values:
            sample = sample.without(value)
        return sample


def _equals(pixels: Array, value: float) -> Mask:
    """Where pixels have a value, or are means of it alone, which may differ in their last bits."""
    if pixels.dtype.itemsize <= 2:
        return pixels == value
    return np.isclose(pixels, value, rtol=1e-6, atol=0)


def _as_written(value: np.generic) -> float:
    """Return the number that a program wrote, of a value that may be a mean of it."""
    number = float(value)
    if value.dtype.itemsize <= 2:
        return number
    limits = np.iinfo(value.dtype) if value.dtype.kind in "iu" else np.finfo(value.dtype)  # type: ignore
    for limit in map(float, (limits.min, limits.max)):
        if math.isclose(number, limit, rel_tol=1e-6):
            return limit
    return float(f"{number:.6g}")


def _may_be_fill(number: float, others: Array) -> bool:
    """Whether an extreme value is one that programs write, or far below all others."""
    dtype: Any = others.dtype
    limits = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else ()
    if number == 0 or number in (*limits, *FILLS) or abs(number) >= MIN_FILL:
        return True
    if not others.size:
        return False
    low, high = np.percentile(others.astype(np.float64), PERCENTILES)
    return bool(number < low - GAP * max(high - low, 1e-30))


def stretch_ranges(info: SceneInfo, bands: Sequence[int]) -> list[Range]:
    """Return the range of each band to stretch; values that may mark holes are left out, with a warning."""
    sample = Sample.read(info, bands)
    fills = sample.fills()
    if fills:
        if all(value is None for value in info.band_nodata):  # read again, or the holes' rims are mixed
            sample = Sample.read(info, bands, nodata=fills[0].value)
        for fill in fills:
            sample = sample.without(fill.value)
            info.warn(f"{_describe(info, fill)}; left out of the stretch")
    return sample.bare().ranges()


def _describe(info: SceneInfo, fill: Fill) -> str:
    """Say how much of a scene has a value that may mark holes, and what to do."""
    values = f"{fill.value:g} in all bands"
    if fill.value == 0 or fill.value in (255, 65535):
        values = f"pure {'white' if fill.value else 'black'} ({fill.value:g})"
    known = [value for value in info.band_nodata if value is not None]
    names = f"marks other pixels as nodata ({known[0]:g})" if known else "names no nodata value"
    return (
        f"{info.name}: {fill.share:.1%} of the pixels are {values} and the file {names}; pass --nodata "
        f"{fill.value:g} if they are holes"
    )


def unmarked_holes(info: SceneInfo, bands: Sequence[int], grid: Grid) -> str:
    """Say what may be holes of an 8 or 16 bit scene that has no mark of its own; "" for nothing."""
    if info.has_mask or not {info.dtypes[band - 1] for band in bands} <= {"uint8", "uint16"}:
        return ""
    fills = Sample.read(info, bands, grid).fills()
    return _describe(info, max(fills, key=lambda fill: fill.share)) if fills else ""


def common_ranges(
    paths: Sequence[str],
    wanted: Sequence[str],
    bidx: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: Alpha = "auto",
) -> list[Range]:
    """Return one range a band for all scenes that can be read; [] if none of them is stretched."""
    samples = []
    read = 0
    for path in paths:
        with suppress(SceneError):
            info = SceneInfo.of(path, nodata, alpha).in_colour(wanted, bidx)
            bands = info.select_bands(wanted, bidx)
            read += 1
            if any(info.dtypes[band - 1] != "uint8" for band in bands):
                samples.append(_sparse(Sample.read(info, bands), MAX_COMMON_PIXELS // len(paths)))
    if not samples:
        return []
    if len(samples) < read:
        raise UsageError(
            f"--stretch batch: {read - len(samples)} of {read} scenes have 8 bits, the others more, so they "
            "share no range. Pass LOW,HIGH, or map them in two batches"
        )
    return Sample(
        pixels=np.concatenate([sample.pixels for sample in samples], 1),
        valid=np.concatenate([sample.valid for sample in samples], 1),
    ).ranges()


def _sparse(sample: Sample, number: int) -> Sample:
    """Return about a number of a sample's pixels, without values that may mark holes."""
    for fill in sample.fills():
        sample = sample.without(fill.value)
    sample = sample.bare()
    step = max(1, sample.pixels.shape[1] // max(256, number))
    return Sample(pixels=sample.pixels[:, ::step], valid=sample.valid[:, ::step])


def _sample_windows(block_shape: tuple[int, int], grid: Grid, coarse: Grid) -> list[list[list[int]]]:
    """Return (row, col, height, width) of blocks of the scene, on the coarse grid, in rounds.

    Quasirandom, in a round one in each of as many bands of rows: at equal steps, what repeats in the scene
    would always be sampled at one phase.

    Source: Roberts 2018, The unreasonable effectiveness of quasirandom sequences, R2.
    """
    sizes = np.array([coarse.height, coarse.width])
    shrink = sizes / (grid.height, grid.width)
    steps = np.maximum(1, np.array(block_shape) * shrink)  # of blocks, in coarse pixels
    counts = np.ceil(sizes / steps)
    blocks = counts.prod()
    most = min(max(MAX_BLOCKS, blocks * SMALL_PX / (grid.height * grid.width)), MAX_SMALL_BLOCKS)
    number = max(MIN_BLOCKS, math.ceil(min(blocks * BLOCK_SHARE, most)))
    order = np.arange(ROUNDS * number)
    rows = (order % number + (0.5 + order / PLASTIC**2) % 1) / number
    cols = (0.5 + order / PLASTIC) % 1
    places = (np.stack([rows, cols], 1) * counts).astype(int)
    first = np.sort(np.unique(places, axis=0, return_index=True)[1])  # each block once
    starts = np.minimum(np.ceil(places * steps), sizes - 1)
    ends = np.minimum(np.floor((places + 1) * steps), sizes)
    windows = np.hstack([starts, np.maximum(1, ends - starts)]).astype(int)
    return [windows[first[first // number == index]].tolist() for index in range(ROUNDS)]
