"""Windows of a scene on any grid, with the mask of pixels that hold data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial, reduce
from itertools import product
from typing import Any, Self, TypeVar

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.area import Area
from rsseg_cli.raster.grid import Grid
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.pixels import Array, Mask, axis_weights, differs_from, fill, resample

MAX_CACHE_MIB = 512
MAX_HANDLES = 8
CELL_PX = 64, 512  # (rows, columns) at least that one handle reads
ALIGNED_PX = 1e-3
Result = TypeVar("Result")


@lru_cache(maxsize=32)
def _all_valid(height: int, width: int) -> Mask:
    mask = np.ones((height, width), np.bool_)
    mask.flags.writeable = False
    return mask


class _Handle:
    """A handle of a scene, read in a thread of its own; where it is not open, in that thread it is opened."""

    def __init__(self, info: SceneInfo, level: int | None, decoders: int) -> None:
        self._info, self._level = info, level
        self._dataset: Any = None
        self._stack = ExitStack()
        self._env = gdal.env(info.path, _cache_mib(info), decoders=decoders)
        self._thread = ThreadPoolExecutor(1, "rsseg-decode")

    def start(self) -> None:
        """Start the thread. After an interrupt in here `close` starts another, to end both."""
        self._thread.submit(self._stack.enter_context, self._env).result()

    def open(self) -> None:
        with gdal.errors(SceneError, self._info.name):
            self._dataset = self._info.open(self._level)

    def submit(self, read: Callable[[Any], Result]) -> Future[Result]:
        return self._thread.submit(gdal.retrying, self._info.path, partial(self._attempt, read), SceneError)

    def close(self) -> None:
        self._thread.submit(self._stack.close)
        self._thread.shutdown()
        self._close()

    def _attempt(self, read: Callable[[Any], Result]) -> Result:
        if self._dataset is None:
            self.open()
        try:
            return read(self._dataset)
        except SceneError:
            if gdal.is_remote(self._info.path):  # its answers were truncated: open another one
                self._close()
            raise

    def _close(self) -> None:
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None


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
        self._handles: list[_Handle] = []

    def __enter__(self) -> Self:
        def layout(dataset: Any) -> tuple[tuple[int, int], tuple[int, int]]:
            return dataset.shape, dataset.block_shapes[0]

        number = _handle_count(self.info)
        decoders = 1 if number > 1 else gdal.decoders(self.info.path)
        self._handles = [_Handle(self.info, self._level, decoders) for _ in range(number)]
        try:
            for handle in self._handles:
                handle.start()
            if not gdal.is_remote(self.info.path):  # the first that a thread opens takes 30 ms, for PROJ
                with gdal.env(self.info.path, _cache_mib(self.info), decoders=decoders):
                    for handle in self._handles:
                        handle.open()
            self._shape, blocks = self._handles[0].submit(layout).result()
        except BaseException:
            self.__exit__()
            raise
        self._cell = _cell_of(blocks) if number > 1 else self._shape
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
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

    def _read_source(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        """Read a window as stored, in pixels of the overview in use."""
        rows, cols = f"rows {row} to {row + height - 1}", f"columns {col} to {col + width - 1}"
        where = f"{self.info.name}: {rows}, {cols} cannot be read"
        advice = "The file may be cut short or damaged; copy or download it again."
        if gdal.is_remote(self.info.path):
            advice = "The connection may be bad, or the file damaged; try again, or download it first."
        array = np.empty((len(self.bands), height, width), self.dtype)
        stored = np.empty((height, width), np.bool_)

        def read(part: Window, dataset: Any) -> bool:
            top, left = part.row_off - row, part.col_off - col
            inside = slice(top, top + part.height), slice(left, left + part.width)
            with gdal.errors(SceneError, where, advice):
                dataset.read(list(self.bands), window=part, out=array[:, *inside])
                mask = self._stored_mask(dataset, part)
            if mask is not None:
                stored[inside] = mask
            return mask is not None

        parts = self._parts(row, col, height, width)
        masked = [handle.submit(partial(read, part)) for handle, part in parts]
        valid = stored if all([each.result() for each in masked]) else None
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

    def _parts(self, row: int, col: int, height: int, width: int) -> Iterator[tuple[_Handle, Window]]:
        """Yield parts of a window, whole cells but for its edges, and the handle that reads each.

        A cell is read by the same handle always: GDAL caches blocks by handle.
        """
        down, across = self._cell
        rows = range(row // down, -(-(row + height) // down))
        cols = range(col // across, -(-(col + width) // across))
        for cell_row, cell_col in product(rows, cols):
            top, left = max(row, cell_row * down), max(col, cell_col * across)
            bottom = min(row + height, (cell_row + 1) * down)
            right = min(col + width, (cell_col + 1) * across)
            handle = self._handles[(cell_row + cell_col) % len(self._handles)]
            yield handle, Window(left, top, right - left, bottom - top)

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
        stored_height, stored_width = self._shape
        ratio = self.info.grid.height / stored_height, self.info.grid.width / stored_width
        scale = self._scale[0] / ratio[0], self._scale[1] / ratio[1]
        source_px = height * scale[0] * width * scale[1]
        if len(self.bands) * source_px > self._max_source_px and height * width > 1:
            return self._read_halves(row, col, height, width)
        top, rows, down = axis_weights(row, height, scale[0], self._offset[0] / ratio[0], stored_height)
        left, cols, across = axis_weights(col, width, scale[1], self._offset[1] / ratio[1], stored_width)
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


def _handle_count(info: SceneInfo) -> int:
    """Return how many handles read a scene: one where several would decode a block more than once."""
    down, across = _cell_of(info.block_shape)
    cells = -(-info.grid.height // down) * -(-info.grid.width // across)
    local = info.driver == "GTiff" and not info.path.startswith("/vsi")
    return min(gdal.threads(), MAX_HANDLES, cells) if local or gdal.is_remote(info.path) else 1


def _cell_of(blocks: tuple[int, int]) -> tuple[int, int]:
    """Return (rows, columns) of whole blocks that one handle reads."""
    rows, cols = (-(-least // size) * size for least, size in zip(CELL_PX, blocks, strict=True))
    return rows, cols


def _cache_mib(info: SceneInfo, rows: int = 640) -> int:
    """Return room for the blocks under one row of tiles, so that strips are not decoded for each tile."""
    bytes_a_row = info.count * info.grid.width * max(np.dtype(dtype).itemsize for dtype in info.dtypes)
    needed = (rows + info.block_shape[0]) * bytes_a_row >> 20
    striped = info.block_shape[1] == info.grid.width
    return max(gdal.CACHE_MIB, min(needed + 16, MAX_CACHE_MIB if striped else MAX_CACHE_MIB // 4))
