"""Windows of a scene on any grid, with the mask of pixels that hold data."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, reduce
from typing import Any, Self

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.env import hasenv
from rasterio.windows import Window

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.area import Area
from rsseg_cli.raster.grid import Grid
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.pixels import Array, Mask, axis_weights, differs_from, fill, resample

MAX_CACHE_MIB = 512
ALIGNED_PX = 1e-3


@lru_cache(maxsize=32)
def _all_valid(height: int, width: int) -> Mask:
    mask = np.ones((height, width), np.bool_)
    mask.flags.writeable = False
    return mask


class SceneReader:
    """Reads windows of a scene on a grid, from any number of threads.

    A pixel is valid where the mask band or alpha is not 0 (they come before nodata, as in rasterio's
    `dataset_mask`), some chosen band differs from its nodata value (one given by the user holds besides
    masks), all chosen bands are finite, and inside `region_mask`.

    Args:
        bands: 1-based.
        grid: parallel to the scene's: its own, a window of it, or one `scaled`. Where pixels do not coincide
            they are resampled, from overviews where these are at least twice as fine.
        nodata: value of pixels without data; None takes that of `info`.
        max_source_px: source pixels x bands that one resampled window may read at a time.
        on_read: called with row, col, pixels and mask of each window that was read, in its thread.
        on_source: called with row, col and mask of each window as stored, where no overview is read.
        by_band: masks are (bands, height, width): a band's nodata value or NaN leaves out that band alone.
    """

    def __init__(
        self,
        info: SceneInfo,
        bands: Sequence[int],
        grid: Grid | None = None,
        nodata: float | None = None,
        region_mask: Area | None = None,
        max_source_px: int = 32 << 20,
        on_read: Callable[[int, int, Array, Mask], object] | None = None,
        on_source: Callable[[int, int, Mask], object] | None = None,
        by_band: bool = False,
    ) -> None:
        self.info = info
        self.bands = tuple(bands)
        self.grid = grid or info.grid
        self.dtype = np.result_type(*(info.dtypes[band - 1] for band in self.bands))
        self._nodata_given = info.nodata_given or nodata is not None
        self._nodata = tuple(info.band_nodata[band - 1] if nodata is None else nodata for band in self.bands)
        self._region, self._max_source_px, self._by_band = region_mask, max_source_px, by_band
        self._on_read, self._on_source = on_read, on_source
        self._alpha_is_data = any(info.colour_interpretations[band - 1] == "alpha" for band in self.bands)
        self._scale, self._offset = _scale_and_offset(info.grid, self.grid)
        self._direct = _is_aligned(self._scale, self._offset, self.grid)
        self._level = None if self._direct else _overview_level(info, min(self._scale))
        self._cache_mib = _cache_mib(info)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._handles: list[Any] = []
        self.handle: Any = None
        self._decoders = gdal.decoders(info.path)
        self._env = gdal.env(info.path, self._cache_mib, decoders=self._decoders)

    def __enter__(self) -> Self:
        self._env.__enter__()
        try:
            self._dataset()
        except BaseException:
            self._env.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._env.__exit__(None, None, None)

    def close(self) -> None:
        """Close every thread's handle. No `read` may be under way."""
        with self._lock:
            handles, self._handles = self._handles, []
            self._local, self.handle = threading.local(), None
        for handle in handles:
            handle.close()

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        """Return (bands, height, width) in the scene's dtype, and the valid mask, perhaps read-only."""
        self.grid.check_window(row, col, height, width)
        if self._direct:
            down, across = round(self._offset[0]), round(self._offset[1])
            array, valid = self._read_source(row + down, col + across, height, width)
        else:
            array, valid = self._read_resampled(row, col, height, width)
        if self._region is not None:
            valid = valid & self._region.mask(self.grid.window(row, col, height, width))
        if self._on_read is not None:
            self._on_read(row, col, array, valid)
        return array, valid

    fill = staticmethod(fill)

    def _dataset(self) -> Any:
        """Return this thread's handle of a remote scene, or that of all threads of a local one.

        GDAL caches blocks by handle: with two handles every block is decoded twice. The blocks of a window
        it decodes in threads of its own.
        """
        owner = self._local if gdal.is_remote(self.info.path) else self
        handle = getattr(owner, "handle", None)
        if handle is None:
            env = gdal.env(self.info.path, self._cache_mib, decoders=self._decoders)
            with env, gdal.errors(SceneError, self.info.name):
                handle = self.info.open(self._level)
            with self._lock:
                self._handles.append(handle)
            owner.handle = handle
        return handle

    def _read_source(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        """Read a window as stored, in pixels of the overview in use."""
        window, path = Window(col, row, width, height), self.info.path
        rows, cols = f"rows {row} to {row + height - 1}", f"columns {col} to {col + width - 1}"
        where = f"{self.info.name}: {rows}, {cols} cannot be read"
        advice = "The file may be cut short or damaged; copy or download it again."
        if is_remote := gdal.is_remote(path):
            advice = "The connection may be bad, or the file damaged; try again, or download it first."
        lock = nullcontext() if is_remote else self._reading

        def attempt() -> tuple[Array, Mask | None]:
            # Without an environment GDAL itself prints what goes wrong in a thread of its own; 80 us.
            env = nullcontext() if hasenv() else rasterio.Env()
            dataset = self._dataset()
            try:
                with lock, env, gdal.errors(SceneError, where, advice):
                    array = dataset.read(list(self.bands), window=window, out_dtype=self.dtype)
                    return array, self._stored_mask(dataset, window)
            except SceneError:
                if is_remote:  # its answers were truncated: open another one
                    dataset.close()
                    self._local.handle = None
                raise

        array, valid = gdal.retrying(path, attempt, SceneError)
        masks: list[Any] = [] if valid is None else [valid]
        if valid is None or self._nodata_given:
            by_value = differs_from(array, self._nodata)
            masks += [] if by_value is None else [by_value if self._by_band else by_value.any(0)]
        if array.dtype.kind == "f":
            finite = np.isfinite(array)
            masks.append(finite if self._by_band else finite.all(0))
        whole = _all_valid(height, width)
        if self._by_band:
            whole = np.broadcast_to(whole, array.shape)
        if masks:
            whole = reduce(np.logical_and, masks, whole)
        if self._on_source is not None and self._level is None:
            self._on_source(row, col, whole)
        return array, whole

    def _stored_mask(self, dataset: Any, window: Window) -> Mask | None:
        """Read the mask band or alpha; None without either."""
        if not self.info.has_mask:
            return None
        flags = dataset.mask_flag_enums[self.bands[0] - 1]
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            return dataset.read_masks(self.bands[0], window=window) != 0
        if "alpha" in self.info.colour_interpretations and not self._alpha_is_data:
            return dataset.read(self.info.colour_interpretations.index("alpha") + 1, window=window) != 0
        return None

    def _read_resampled(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        dataset = self._dataset()
        ratio = self.info.grid.height / dataset.height, self.info.grid.width / dataset.width
        scale = self._scale[0] / ratio[0], self._scale[1] / ratio[1]
        source_px = height * scale[0] * width * scale[1]
        if len(self.bands) * source_px > self._max_source_px and height * width > 1:
            return self._read_halves(row, col, height, width)
        top, rows, down = axis_weights(row, height, scale[0], self._offset[0] / ratio[0], dataset.height)
        left, cols, across = axis_weights(col, width, scale[1], self._offset[1] / ratio[1], dataset.width)
        return resample(*self._read_source(top, left, rows, cols), down, across)

    def _read_halves(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        """Put a window together from two: windows agree exactly where they meet."""
        half = max(height, width) // 2
        if height >= width:
            axis, first, second = -2, (row, col, half, width), (row + half, col, height - half, width)
        else:
            axis, first, second = -1, (row, col, height, half), (row, col + half, height, width - half)
        arrays, masks = zip(self._read_resampled(*first), self._read_resampled(*second), strict=True)
        return np.concatenate(arrays, axis), np.concatenate(masks, axis)

    @classmethod
    def overview(cls, info: SceneInfo, bands: Sequence[int], max_size: int) -> tuple[Array, Mask, Grid]:
        """Read the scene at `max_size` px a side or less: (bands, rows, cols), its valid mask, its grid."""
        grid = coarse_grid(info.grid, max_size)
        with cls(info, bands, grid) as reader:
            array, valid = reader.read(0, 0, grid.height, grid.width)
        return array, valid, grid


def coarse_grid(grid: Grid, max_size: int) -> Grid:
    shrink = max(1.0, max(grid.width, grid.height) / max_size)
    return grid.scaled(height=max(1, round(grid.height / shrink)), width=max(1, round(grid.width / shrink)))


def _scale_and_offset(scene: Grid, grid: Grid) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return scene pixels per pixel of `grid`, and where in the scene it starts; (row, col) each."""
    steps = ~scene.transform * grid.transform
    ends = steps * (grid.width, grid.height)
    tolerance = ALIGNED_PX * max(1.0, steps.a, steps.e)
    slant = max(abs(steps.b) * grid.height, abs(steps.d) * grid.width)
    inside = (
        min(steps.c, steps.f) > -tolerance
        and ends[0] < scene.width + tolerance
        and ends[1] < scene.height + tolerance
    )
    if grid.crs != scene.crs or slant > tolerance or steps.a <= 0 or steps.e <= 0 or not inside:
        raise ValueError(f"{grid} is not parallel to and inside {scene}")
    return (steps.e, steps.a), (steps.f, steps.c)


def _is_aligned(scale: tuple[float, float], offset: tuple[float, float], grid: Grid) -> bool:
    drift = max(abs(scale[0] - 1) * grid.height, abs(scale[1] - 1) * grid.width)
    return drift < ALIGNED_PX and all(abs(start - round(start)) < ALIGNED_PX for start in offset)


def _overview_level(info: SceneInfo, scale: float) -> int | None:
    """Return the coarsest overview at least twice as fine as `scale`: many are made without averaging."""
    levels = [level for level, factor in enumerate(info.overviews) if 2 * factor <= scale]
    return max(levels, key=lambda level: info.overviews[level]) if levels else None


def _cache_mib(info: SceneInfo, rows: int = 640) -> int:
    """Return room for the blocks under one row of tiles, so that strips are not decoded for each tile."""
    bytes_a_row = info.count * info.grid.width * max(np.dtype(dtype).itemsize for dtype in info.dtypes)
    needed = (rows + info.block_shape[0]) * bytes_a_row >> 20
    striped = info.block_shape[1] == info.grid.width
    return max(gdal.CACHE_MIB, min(needed + 16, MAX_CACHE_MIB if striped else MAX_CACHE_MIB // 4))
