"""Labelled scenes: read for training into memory-mapped arrays, and written out as rasters for scoring."""

from __future__ import annotations

import itertools
import logging
import mmap
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsseg_cli.config import Alpha, Stretch, stretch_pairs
from rsseg_cli.data.label_format import IGNORE, LabelFormat
from rsseg_cli.data.label_raster import RawCounts, raw_counts
from rsseg_cli.data.label_vector import is_vector
from rsseg_cli.data.labels import LabelReader
from rsseg_cli.data.types import LoadedScene
from rsseg_cli.errors import DataError
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, gdal, vrt
from rsseg_cli.weights import ModelSpec

logger = logging.getLogger(__name__)
BLOCK = 512, 8192  # rows, columns read at a time: 50 MB a float32 copy of three bands
SAME_GSD = 0.02  # resolutions closer than this share are the same
LOCAL_METRES = (
    'PROJCS["metres from the upper left corner",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,'
    '298.257223563]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION['
    '"Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",0],PARAMETER['
    '"scale_factor",1],PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]'
)
Block = tuple[int, int, int, int]


@dataclass(frozen=True)
class LabelledScene:
    """An image and its labels, a raster or polygons on any grid and CRS.

    Attributes:
        name: unique within the data; by default the image's stem.
        format: what the labels' values mean; None: numbers of the model's classes.
        bands: (1-based band, name) of those that are used; () chooses by the names and colours in the file.
        gsd_m: ground resolution of an image without CRS, m a pixel; None takes the model's.
        rows: first and last + 1 of the image's rows whose labels count; None: all.
        block: rows and columns read at a time.
        nodata, alpha, stretch: of the image, as `DataConfig` explains them.
    """

    image: Path
    labels: Path
    split: str
    name: str = ""
    format: LabelFormat | None = None
    bands: tuple[tuple[int, str], ...] = ()
    gsd_m: float | None = None
    rows: tuple[int, int] | None = None
    block: tuple[int, int] = BLOCK
    nodata: float | None = None
    alpha: Alpha = "auto"
    stretch: Stretch = "auto"

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "test"):
            raise DataError(f"{self.image}: split {self.split!r}; needs train, val or test")
        object.__setattr__(self, "name", self.name or self.image.stem)

    @property
    def stem(self) -> str:
        return self.image.stem

    def load(self, spec: ModelSpec, folder: Path | None, *, finest_gsd_m: float | None = None) -> LoadedScene:
        """Read image and labels, cut to the box that holds all labels, at the finer of `finest_gsd_m` and the
        model's resolution, never finer than the scene; as files in `folder`, or in memory.
        """
        info = SceneInfo.of(self.picture(folder), self.nodata, self.alpha).in_colour(spec.bands)
        chosen = info.select_bands(spec.bands, None, spec.name)
        grid, gsd_m = training_grid(info.grid, spec.gsd_m, finest_gsd_m)
        labels, (top, left) = self._load_labels(info.grid, grid, spec, folder)
        ranges = stretch_ranges(info, chosen, spec, self.stretch)
        holes = info.unmarked_holes(chosen, info.grid)
        if holes and not any(note.startswith(f"{holes};") for note in info.notes):
            info.warn(holes)
        image = array_in(folder, f"{safe_name(self.name)}.image", (len(chosen), *labels.shape))
        with SceneReader(info, chosen, grid) as reader:

            def read(row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
                pixels, valid = reader.read(top + row, left + col, height, width)
                labels[row : row + height, col : col + width][~valid] = IGNORE
                return to_uint8(reader.fill(pixels, valid), ranges)

            fill(image, read, self.block)
        return LoadedScene(self.name, image, labels, gsd_m, grid.window(top, left, *labels.shape))

    def _load_labels(
        self, image_grid: Grid, grid: Grid, spec: ModelSpec, folder: Path | None
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The smallest part of `grid` that holds all labels, and its first row and column."""
        format = self.label_format(spec.class_names)
        if len(format.class_names) != len(spec.classes):
            raise DataError(
                f"{self.labels}: labels of {len(format.class_names)} classes "
                f"({', '.join(format.class_names)}), the model has {len(spec.classes)}"
            )
        labels = array_in(folder, f"{safe_name(self.name)}.labels", (grid.height, grid.width))
        with_label = np.zeros(grid.height, np.bool_), np.zeros(grid.width, np.bool_)
        scale = grid.height / image_grid.height
        with LabelReader(self.labels, grid, format, image_grid=image_grid) as reader:

            def read(row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
                part = _read_part(reader, (row, col, height, width), self.rows, scale)
                with_label[0][row : row + height] |= (part != IGNORE).any(1)
                with_label[1][col : col + width] |= (part != IGNORE).any(0)
                return part

            fill(labels, read, self.block)
            self._note(reader)
        rows, cols = (np.flatnonzero(one) if one.any() else np.arange(len(one)) for one in with_label)
        return labels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1], (int(rows[0]), int(cols[0]))

    def rasters(self, folder: Path) -> tuple[str, Path]:
        """What GDAL opens as the image, and its labels on its own grid: uint8, 255 unlabelled or no data.

        `folder` gets the labels, and a VRT where bands are chosen or the CRS is missing.
        """
        image = self.picture(folder)
        info = SceneInfo.of(image, self.nodata, self.alpha)
        target = folder / f"{safe_name(self.name)}.labels.tif"
        grid, format = info.grid, self.label_format(())
        holes = info.has_mask or any(np.dtype(dtype).kind == "f" for dtype in info.dtypes)
        profile = {
            "driver": "GTiff", "height": grid.height, "width": grid.width, "count": 1, "dtype": "uint8",
            "crs": grid.crs, "transform": grid.transform, "nodata": IGNORE, "tiled": True, "blockxsize": 512,
            "blockysize": 512, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer",
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        where = gdal.errors(DataError, str(target), "The labels cannot be written; is the disk full?")
        bands = info.colour_bands or (1,)
        with (
            gdal.env(), where, gdal.open_raster(target, "w", **profile) as written,
            LabelReader(self.labels, grid, format) as truth, SceneReader(info, bands) as reader,
        ):  # fmt: skip
            for window in blocks(grid.height, grid.width, self.block):
                labels = _read_part(truth, window, self.rows, 1.0)
                if holes:
                    labels[~reader.read(*window)[1]] = IGNORE
                row, col, height, width = window
                written.write(labels, 1, window=Window(col, row, width, height))
            self._note(truth)
        return image, target

    def label_format(self, class_names: tuple[str, ...]) -> LabelFormat:
        """The scene's own format, else numbers of these classes."""
        return self.format or LabelFormat(class_names=class_names)

    def raw_counts(self, class_names: tuple[str, ...]) -> RawCounts | None:
        """Count label values as they are stored; None for polygons."""
        return None if is_vector(self.labels) else raw_counts(self.labels, self.label_format(class_names))

    def picture(self, folder: Path | None) -> str:
        """What GDAL opens as the image: a VRT in `folder` where bands are chosen by number."""
        if not self.bands:
            return str(self.image)
        if folder is None:
            raise ValueError(f"{self.name}: chosen bands need a folder")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{safe_name(self.name)}.vrt"
        path.write_text(_vrt(SceneInfo.of(self.image), self.bands, self.gsd_m), encoding="utf-8")
        return str(path)

    def _note(self, reader: LabelReader) -> None:
        if problem := reader.elsewhere():
            logger.warning("%s (labels of %s)", problem, self.image)
        if reader.unknown_px:
            logger.warning(
                "%s: %d px of colours that are no class; left unlabelled", self.labels, reader.unknown_px
            )


def training_grid(
    grid: Grid, model_gsd_m: float | None, finest_gsd_m: float | None = None
) -> tuple[Grid, float]:
    """The grid that a scene is read on for training, and its ground resolution, m a pixel.

    An image without CRS is taken to be at the model's resolution; `model_gsd_m` of None keeps its own grid.
    `finest_gsd_m` is wanted where the scene is as fine.
    """
    if model_gsd_m is None:
        return grid, 1.0
    ground = grid.gsd_m or (model_gsd_m, model_gsd_m)
    native = grid.side_m or model_gsd_m
    target = max(native, finest_gsd_m or model_gsd_m)
    if abs(target / native - 1) > SAME_GSD:
        width = max(1, round(grid.width * ground[0] / target))
        grid = grid.scaled(width=width, height=max(1, round(grid.height * ground[1] / target)))
    return grid, target


def stretch_ranges(
    info: SceneInfo, bands: tuple[int, ...], spec: ModelSpec, stretch: Stretch = "auto"
) -> list[tuple[float, float]] | None:
    """Values that become 0 and 255, band by band, as prediction scales them; None: 8 bits stay as is."""
    dtypes = [info.dtypes[band - 1] for band in bands]
    given = stretch_pairs(stretch, len(bands)) or spec.fixed_ranges(dtypes)
    if not given and set(dtypes) == {"uint8"}:
        return None
    return info.ranges(bands, given, stretch=spec.scaling == "stretch")[0]


def to_uint8(pixels: NDArray[np.generic], ranges: list[tuple[float, float]] | None) -> NDArray[np.uint8]:
    """Stretch (bands, rows, cols) to 0 to 255, clipped."""
    if ranges is None:
        return pixels.astype(np.uint8, copy=False)
    stretched = np.empty(pixels.shape, np.uint8)
    for band, (low, high) in enumerate(ranges):
        values = np.nan_to_num(pixels[band].astype(np.float32), nan=low)
        stretched[band] = np.clip((values - low) * (255 / (high - low)), 0, 255).round()
    return stretched


def blocks(height: int, width: int, block: tuple[int, int] = BLOCK) -> Iterator[Block]:
    """(row, col, height, width) of blocks that cover an array, row by row."""
    for row, col in itertools.product(range(0, height, block[0]), range(0, width, block[1])):
        yield row, col, min(block[0], height - row), min(block[1], width - col)


def fill(
    array: NDArray[np.uint8], read: Callable[..., NDArray[np.uint8]], block: tuple[int, int] = BLOCK
) -> None:
    """Fill (..., rows, cols) by blocks: `read(row, col, height, width)` returns (..., height, width)."""
    for row, col, height, width in blocks(array.shape[-2], array.shape[-1], block):
        array[..., row : row + height, col : col + width] = read(row, col, height, width)
        release_pages(array)


def _read_part(
    reader: LabelReader, window: Block, part: tuple[int, int] | None, scale: float
) -> NDArray[np.uint8]:
    """Labels of a block, unlabelled outside the rows that count."""
    row, col, height, width = window
    first, last = 0, height
    if part is not None:
        first, last = (min(max(round(edge * scale) - row, 0), height) for edge in part)
    labels = np.full((height, width), IGNORE, np.uint8)
    if first < last:
        labels[first:last] = reader.read(row + first, col, last - first, width)
    return labels


def array_in(folder: Path | None, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Zeros, as a memory-mapped file in `folder` or in memory."""
    if folder is None:
        return np.zeros(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    return np.memmap(folder / name, np.uint8, "w+", shape=shape)


def release_pages(array: NDArray[np.uint8]) -> None:
    """Release the pages of a memory-mapped array; writes still reach the file."""
    base: Any = array.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def safe_name(name: str) -> str:
    """A scene's name as part of a file name."""
    safe = re.sub(r"[^\w.-]+", "_", name)
    return safe if len(safe) <= 150 else f"{safe[:140]}-{zlib.crc32(name.encode()):08x}"


def _vrt(info: SceneInfo, bands: tuple[tuple[int, str], ...], gsd_m: float | None) -> str:
    """A VRT of chosen bands with their names; images without CRS get metres from their upper left corner."""
    for band, name in bands:
        if not 1 <= band <= info.count:
            raise DataError(f"{info.name}: has {info.count} bands; band {band} ({name}) is needed")
    if info.grid.crs is not None or gsd_m is None:
        return vrt.of_bands(info, bands, info.grid)
    transform = type(info.grid.transform)(gsd_m, 0, 0, 0, -gsd_m, 0)
    return vrt.of_bands(info, bands, replace(info.grid, transform=transform), LOCAL_METRES)
