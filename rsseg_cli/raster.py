"""Scenes: what a raster is, which bands a model wants, and windowed reads with a mask of valid pixels."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from rsseg_cli.area import Area, Grid, read_area, window_of_bbox
from rsseg_cli.errors import SceneError, UsageError
from rsseg_cli.gdal import CACHE_MIB, display_name, gdal_env, gdal_errors, is_remote, open_raster
from rsseg_cli.output import RasterWriter, check_creation_options, check_target, replace_all
from rsseg_cli.pixels import Array, Mask, axis_weights, differs_from, fill, resample

__all__ = [
    "Area",
    "Grid",
    "RasterWriter",
    "SceneInfo",
    "SceneReader",
    "check_creation_options",
    "check_target",
    "fill",
    "inspect",
    "overview",
    "read_area",
    "replace_all",
    "select_bands",
    "window_of_bbox",
]

logger = logging.getLogger(__name__)
MAX_CACHE_MIB = 512
MAX_SOURCE_PX = 32 << 20  # source pixels x bands that one resampled window may read at a time
ALIGNED_PX = 1e-3
MAX_FILES = 100_000  # of a mosaic that are kept apart from the outputs
COUNTED_PX = 2048  # of each window that are looked at for unmarked holes
ALPHA_SHARE = 0.1  # of values between empty and full, from which a band called alpha is taken as data


@dataclass(frozen=True, kw_only=True)
class SceneInfo:
    """What `inspect` found.

    Attributes:
        path: as given; `name` is the same for messages.
        dtypes, colour_interpretations, descriptions: one a band.
        nodata: the value in force for all bands, given by the user or the file's; None without.
        band_nodata: the same, band by band.
        nodata_given: the user gave it, so it holds besides alpha and masks.
        has_mask: some pixels may be without data (alpha, mask band, .msk, nodata).
        block_shape: (height, width) of a block as stored, px.
        overviews: reduction factors stored.
        files: that the raster is read from: itself, its sidecars, the sources of a VRT.
    """

    path: str
    grid: Grid
    count: int
    dtypes: tuple[str, ...]
    nodata: float | None
    band_nodata: tuple[float | None, ...]
    nodata_given: bool
    colour_interpretations: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    has_mask: bool
    block_shape: tuple[int, int]
    overviews: tuple[int, ...]
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path without credentials."""
        return display_name(self.path)

    @property
    def colour_bands(self) -> tuple[int, ...]:
        """1-based bands that are not alpha."""
        return tuple(band for band, kind in enumerate(self.colour_interpretations, 1) if kind != "alpha")


def inspect(path: str | Path, nodata: float | None = None) -> SceneInfo:
    """Look at a raster without reading pixels.

    Args:
        path: anything GDAL opens: a file, VRT, https:// or s3:// address, /vsi path.
        nodata: value of pixels without data, over the file's own.

    Raises:
        SceneError: it cannot be opened, or has no bands.
    """
    name = display_name(path)
    advice = "Give a raster that GDAL can read (gdalinfo shows whether it can)."
    with gdal_env(str(path)), gdal_errors(SceneError, name, advice), open_raster(path) as dataset:
        if dataset.count == 0:
            parts = ", ".join(display_name(part) for part in dataset.subdatasets[:4])
            raise SceneError(
                f"{name}: holds no bands itself. {f'Pass one of its parts: {parts}' if parts else advice}"
            )
        bands = range(1, dataset.count + 1)
        kinds = tuple(kind.name for kind in dataset.colorinterp)
        flags = [mask for mask, kind in zip(dataset.mask_flag_enums, kinds, strict=True) if kind != "alpha"]
        return SceneInfo(
            path=str(path),
            grid=_grid_of(dataset, name),
            count=dataset.count,
            dtypes=tuple(dataset.dtypes),
            nodata=dataset.nodata if nodata is None else nodata,
            band_nodata=tuple(dataset.nodatavals) if nodata is None else (nodata,) * dataset.count,
            nodata_given=nodata is not None,
            colour_interpretations=kinds,
            descriptions=tuple(dataset.descriptions),
            has_mask=nodata is not None
            or "alpha" in kinds
            or any(MaskFlags.all_valid not in mask for mask in flags),
            block_shape=dataset.block_shapes[0],
            overviews=tuple(dataset.overviews(1)) if bands else (),
            files=tuple(_files_of(dataset)),
        )


def _files_of(dataset: Any) -> list[str]:
    """Files behind a raster, through VRTs inside VRTs as well; those that cannot be opened are named all the
    same."""
    found = dict.fromkeys(dataset.files)
    nested = [file for file in found if file.lower().endswith(".vrt") and file != dataset.name]
    while nested and len(found) < MAX_FILES:
        with suppress(RasterioError), open_raster(nested.pop()) as inner:
            new = [file for file in inner.files if file not in found]
            found |= dict.fromkeys(new)
            nested += [file for file in new if file.lower().endswith(".vrt")]
    return list(found)


def _grid_of(dataset: Any, name: str) -> Grid:
    crs, transform = dataset.crs or None, dataset.transform
    if transform.is_degenerate:
        raise SceneError(
            f"{name}: its transform {tuple(transform)[:6]} has no area. Set it with gdal_edit -a_ullr."
        )
    if transform == Affine.identity():
        gcps, _ = dataset.gcps
        if crs is not None or gcps or dataset.tags(ns="RPC"):
            found = (
                "ground control points"
                if gcps
                else "RPCs"
                if dataset.tags(ns="RPC")
                else "a CRS but no transform"
            )
            logger.warning(
                "%s: has only %s; the map is left without georeferencing (gdalwarp the scene first)",
                name,
                found,
            )
        crs = None
    return Grid(crs=crs, transform=transform, width=dataset.width, height=dataset.height)


SYNONYMS = {
    "near infrared": "nir", "near-infrared": "nir", "nearinfrared": "nir", "near_infrared": "nir",
    "infrared": "nir", "gray": "grey", "panchromatic": "pan",
}  # fmt: skip


def select_bands(
    info: SceneInfo, wanted: Sequence[str], bidx: Sequence[int] | None = None, model: str = ""
) -> tuple[int, ...]:
    """1-based bands of the scene in the order of the model's.

    By `bidx`; else each by its description or colour interpretation; else, where names do not tell and the
    model wants red, green, blue (and nir), the first three (four) bands that are not alpha, or all bands
    where their number is the model's. Of four bytes GDAL's writer calls the last one alpha unless it is told
    otherwise: an alpha band given by `bidx`, or needed for the model's number and with values between empty
    and full, is taken as data, and no longer marks pixels.

    Args:
        wanted: names of the model's bands.
        model: its name, for messages.

    Raises:
        SceneError: bands are missing, or carry palette indices or complex numbers.
        UsageError: `bidx` does not fit.
    """
    if bidx is not None:
        chosen = _check_bidx(info, tuple(wanted), tuple(bidx))
    else:
        chosen = (
            _bands_by_name(info, wanted)
            or _bands_by_place(info, tuple(name.lower() for name in wanted))
            or _all_bands(info, wanted)
        )
    kinds = {info.colour_interpretations[band - 1] for band in chosen}
    if not chosen or ("palette" in kinds and len(wanted) > 1):
        bands = f"{info.count} band{'s' if info.count > 1 else ''} ({_describe_bands(info)})"
        needs = f"model {model!r} needs" if model else "needed are"
        advice = "Pass --bidx or another model."
        if "palette" in info.colour_interpretations:
            advice = "Expand its palette first: gdal_translate -expand rgb."
        elif "alpha" in info.colour_interpretations and info.count == len(wanted):
            every = ",".join(map(str, range(1, info.count + 1)))
            advice = f"Its alpha band marks pixels without data; if it is data pass --bidx {every}."
        raise SceneError(f"{info.name}: {bands}, {needs} {len(wanted)} ({', '.join(wanted)}). {advice}")
    dtypes = {info.dtypes[band - 1] for band in chosen}
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise SceneError(
            f"{info.name}: complex numbers ({', '.join(sorted(dtypes))}); needs integers or floats."
        )
    return chosen


def _describe_bands(info: SceneInfo) -> str:
    dtypes = ", ".join(dict.fromkeys(info.dtypes))
    return f"{dtypes}, palette" if "palette" in info.colour_interpretations else dtypes


def _check_bidx(info: SceneInfo, wanted: tuple[str, ...], bidx: tuple[int, ...]) -> tuple[int, ...]:
    shown = ",".join(map(str, bidx))
    if len(bidx) != len(wanted):
        raise UsageError(
            f"--bidx {shown}: {len(bidx)} bands, the model needs {len(wanted)} ({', '.join(wanted)})"
        )
    if not all(1 <= band <= info.count for band in bidx):
        raise UsageError(f"--bidx {shown}: {info.name} has bands 1 to {info.count}")
    for band in sorted(set(bidx) - set(info.colour_bands)):
        logger.warning("%s: band %d is alpha; taken as data, as --bidx %s says", info.name, band, shown)
    return bidx


def _bands_by_name(info: SceneInfo, wanted: Sequence[str]) -> tuple[int, ...]:
    chosen = []
    for name in (_plain(name) for name in wanted):
        places = [b for b in info.colour_bands if _plain(info.descriptions[b - 1] or "") == name]
        places += [b for b in info.colour_bands if _plain(info.colour_interpretations[b - 1]) == name]
        if not places:
            return ()
        chosen.append(places[0])
    return tuple(chosen)


def _plain(name: str) -> str:
    name = name.strip().lower()
    return SYNONYMS.get(name, name)


def _bands_by_place(info: SceneInfo, wanted: tuple[str, ...]) -> tuple[int, ...]:
    colours = info.colour_bands
    rgb_like = wanted in (("red", "green", "blue"), ("red", "green", "blue", "nir"))
    enough = len(colours) >= len(wanted) if rgb_like else len(colours) == len(wanted)
    if not enough or "palette" in info.colour_interpretations:
        return ()
    chosen = colours[: len(wanted)]
    logger.info("%s: bands %s taken as %s", info.name, ", ".join(map(str, chosen)), ", ".join(wanted))
    return chosen


def _all_bands(info: SceneInfo, wanted: Sequence[str]) -> tuple[int, ...]:
    """All bands where their number is the model's and one that is called alpha holds data."""
    if info.count != len(wanted) or info.colour_interpretations.count("alpha") != 1:
        return ()
    alpha = info.colour_interpretations.index("alpha") + 1
    if not _holds_data(info, alpha):
        return ()
    logger.warning("%s: band %d is called alpha; taken as %s", info.name, alpha, wanted[alpha - 1])
    return tuple(range(1, info.count + 1))


def _holds_data(info: SceneInfo, band: int) -> bool:
    """Whether a tenth of the values in some windows lie between the band's least and largest."""
    side = 64
    grid, found = info.grid, []
    with gdal_env(info.path), gdal_errors(SceneError, info.name), open_raster(info.path) as dataset:
        for part in (0.25, 0.5, 0.75):
            row, col = int(grid.height * part), int(grid.width * part)
            window = Window(col, row, min(side, grid.width - col), min(side, grid.height - row))
            found.append(dataset.read(band, window=window).ravel())
    values = np.concatenate(found)
    return bool(np.mean((values > 0) & (values < values.max())) > ALPHA_SHARE)


@lru_cache(maxsize=32)
def _all_valid(height: int, width: int) -> Mask:
    mask = np.ones((height, width), np.bool_)
    mask.flags.writeable = False
    return mask


class SceneReader:
    """Reads windows of a scene on a grid, from any number of threads.

    A pixel is valid where the mask band or alpha is not 0 (as rasterio's `dataset_mask`: they come before
    nodata), where some chosen band differs from its nodata value (a nodata value given by the user holds
    besides mask and alpha), where all chosen bands are finite, and inside `region_mask`.

    Args:
        bands: 1-based.
        grid: in the scene's CRS, with axes parallel to the scene's: its own, a window of it, or one `scaled`.
            Where pixels do not coincide they are resampled, from overviews where these are at least twice as
            fine.
        nodata: value of pixels without data; None takes that of `info`.
        region_mask: pixels outside are invalid.

    Raises:
        SceneError: the scene cannot be opened; from `read`, a part of it cannot be read.
    """

    def __init__(
        self,
        info: SceneInfo,
        bands: Sequence[int],
        grid: Grid | None = None,
        nodata: float | None = None,
        region_mask: Area | None = None,
    ) -> None:
        self.info = info
        self.bands = tuple(bands)
        self.grid = grid or info.grid
        self.dtype = np.result_type(*(info.dtypes[band - 1] for band in self.bands))
        self._nodata_given = info.nodata_given or nodata is not None
        self._nodata = tuple(info.band_nodata[band - 1] if nodata is None else nodata for band in self.bands)
        self._region = region_mask
        self._alpha_is_data = any(info.colour_interpretations[band - 1] == "alpha" for band in self.bands)
        self._scale, self._offset = _place(info.grid, self.grid)
        self._direct = _is_aligned(self._scale, self._offset, self.grid)
        self._level = None if self._direct else _overview_level(info, min(self._scale))
        unmarked = not info.has_mask and self.dtype in (np.uint8, np.uint16)
        self._extremes = Extremes(self.dtype) if unmarked else None
        self._cache_mib = _cache_mib(info)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._handles: list[Any] = []
        self.handle: Any = None
        self._env = gdal_env(info.path, self._cache_mib)

    def __enter__(self) -> SceneReader:
        self._env.__enter__()
        try:
            self._dataset()
        except BaseException:
            self._env.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """(bands, height, width) in the scene's dtype and the valid mask (height, width), maybe read-only.

        Raises:
            ValueError: the window does not lie inside the grid.
            SceneError: the pixels cannot be read.
        """
        if not (0 <= row < row + height <= self.grid.height and 0 <= col < col + width <= self.grid.width):
            raise ValueError(
                f"window {(row, col, height, width)} outside {self.grid.height} x {self.grid.width} px"
            )
        if self._direct:
            down, across = round(self._offset[0]), round(self._offset[1])
            array, valid = self._read_source(row + down, col + across, height, width)
        else:
            array, valid = self._read_resampled(row, col, height, width)
        if self._region is not None:
            valid = valid & self._region.mask(self.grid.window(row, col, height, width))
        if self._extremes is not None:
            self._extremes.add(array, valid)
        return array, valid

    @property
    def extreme_share(self) -> tuple[int, float]:
        """Of a scene without any mark of holes: 0 or the type's largest value, and its share, 0 to 1.

        Of both the value that more of the pixels read so far have in all bands; counted on a sample of them.
        """
        return (0, 0.0) if self._extremes is None else self._extremes.share

    @staticmethod
    def fill(array: Array, valid: Mask) -> Array:
        """Invalid pixels drawn from their surroundings; see `pixels.fill`."""
        return fill(array, valid)

    def _dataset(self) -> Any:
        """Of a remote scene this thread's handle, as threads wait there; of a local one that of all threads.

        GDAL caches blocks by handle: two threads with a handle each decode every block twice. Of 8192 x 8192
        px (deflate, 441 tiles, two cores) that took 1.06 s instead of 0.72 s.
        """
        place = self._local if is_remote(self.info.path) else self
        handle = getattr(place, "handle", None)
        if handle is None:
            level: dict[str, Any] = {} if self._level is None else {"overview_level": self._level}
            with gdal_env(self.info.path, self._cache_mib), gdal_errors(SceneError, self.info.name):
                handle = open_raster(self.info.path, **level)
            with self._lock:
                self._handles.append(handle)
            place.handle = handle
        return handle

    def _read_source(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        """A window as stored, px of the overview in use."""
        dataset = self._dataset()
        window = Window(col, row, width, height)
        rows, cols = f"rows {row} to {row + height - 1}", f"columns {col} to {col + width - 1}"
        where = f"{self.info.name}: {rows}, {cols} cannot be read"
        advice = "The file may be cut short or damaged; copy or download it again."
        alone = nullcontext() if is_remote(self.info.path) else self._reading
        with alone, gdal_errors(SceneError, where, advice):
            array = dataset.read(list(self.bands), window=window, out_dtype=self.dtype)
            valid = self._stored_mask(dataset, window)
        by_value = None
        if valid is None or self._nodata_given:
            by_value = differs_from(array, self._nodata)
        finite = np.isfinite(array).all(0) if array.dtype.kind == "f" else None
        masks = [mask for mask in (valid, by_value, finite) if mask is not None]
        return array, np.logical_and.reduce(masks) if masks else _all_valid(height, width)

    def _stored_mask(self, dataset: Any, window: Window) -> Mask | None:
        """Of the mask band or alpha; None without either."""
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
        if len(self.bands) * height * width * scale[0] * scale[1] > MAX_SOURCE_PX and height * width > 1:
            return self._read_halves(row, col, height, width)
        top, rows, down = axis_weights(row, height, scale[0], self._offset[0] / ratio[0], dataset.height)
        left, cols, across = axis_weights(col, width, scale[1], self._offset[1] / ratio[1], dataset.width)
        return resample(*self._read_source(top, left, rows, cols), down, across)

    def _read_halves(self, row: int, col: int, height: int, width: int) -> tuple[Array, Mask]:
        """Windows agree exactly where they meet, so one of any size can be put together."""
        if height >= width:
            half = height // 2
            parts = [
                self._read_resampled(row, col, half, width),
                self._read_resampled(row + half, col, height - half, width),
            ]
        else:
            half = width // 2
            parts = [
                self._read_resampled(row, col, height, half),
                self._read_resampled(row, col + half, height, width - half),
            ]
        (first, first_valid), (second, second_valid) = parts
        axis = -2 if height >= width else -1
        return np.concatenate((first, second), axis), np.concatenate((first_valid, second_valid), axis)


class Extremes:
    """Counts pixels that are 0, or the type's largest value, in all bands, on a sample of them."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._values = (0, int(np.iinfo(dtype).max))
        self._counts = np.zeros(3, np.int64)  # black, white, all
        self._lock = threading.Lock()

    def add(self, array: Array, valid: Mask) -> None:
        step = max(1, math.isqrt(valid.size // COUNTED_PX))
        pixels, known = np.ascontiguousarray(array[:, ::step, ::step]), valid[::step, ::step]
        counts = [np.count_nonzero((pixels == value).all(0) & known) for value in self._values]
        with self._lock:
            self._counts += np.array((*counts, np.count_nonzero(known))) * step**2

    @property
    def share(self) -> tuple[int, float]:
        which = int(self._counts[1] > self._counts[0])
        return self._values[which], float(self._counts[which] / max(1, self._counts[2]))


def _place(scene: Grid, grid: Grid) -> tuple[tuple[float, float], tuple[float, float]]:
    """((rows, cols) of the scene a pixel of `grid`, (row, col) of the scene where it starts)."""
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
    """The coarsest overview at least twice as fine as wanted: many overviews are made without averaging."""
    levels = [level for level, factor in enumerate(info.overviews) if 2 * factor <= scale]
    return max(levels, key=lambda level: info.overviews[level]) if levels else None


def _cache_mib(info: SceneInfo, rows: int = 640) -> int:
    """Room for the blocks under one row of tiles, so that strips are not decoded again for each tile."""
    bytes_a_row = info.count * info.grid.width * max(np.dtype(dtype).itemsize for dtype in info.dtypes)
    needed = (rows + info.block_shape[0]) * bytes_a_row >> 20
    striped = info.block_shape[1] == info.grid.width
    return max(CACHE_MIB, min(needed + 16, MAX_CACHE_MIB if striped else MAX_CACHE_MIB // 4))


def overview(
    path: str | Path, bands: Sequence[int], max_size: int, nodata: float | None = None
) -> tuple[Array, Mask, Grid]:
    """The whole scene, at most `max_size` px a side, for previews and intensity stretches.

    Read through overviews; a scene without any is read once in full, in bounded pieces.

    Returns:
        (bands, rows, cols) in the scene's dtype, its valid mask, its grid.
    """
    info = inspect(path, nodata)
    shrink = max(1.0, max(info.grid.width, info.grid.height) / max_size)
    size = max(1, round(info.grid.height / shrink)), max(1, round(info.grid.width / shrink))
    grid = info.grid.scaled(height=size[0], width=size[1])
    with SceneReader(info, bands, grid) as reader:
        array, valid = reader.read(0, 0, *size)
    return array, valid, grid
