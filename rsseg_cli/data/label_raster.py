"""Label rasters: class numbers, raw values, colours or palettes, read on a grid."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.warp import reproject, transform, transform_bounds
from rasterio.windows import Window

from rsseg_cli.data.label_format import IGNORE, INVALID, LabelFormat, Labels, span_text
from rsseg_cli.errors import DataError
from rsseg_cli.raster import Grid, gdal

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)
ALIGNED_PX = 1e-3
SHRINKS = 1.2  # label pixels a pixel of the grid, from which the most frequent one is taken
MAX_SOURCE_PX = 8 << 20  # label pixels under one block
PIXEL_PLANE = "EPSG:3857"  # stands for the plane of pixels where neither side has a CRS
NUMBERS = 65536  # raw values that a table holds
FLIP = Affine(1, 0, 1, 0, -1, 1)  # off the origin: GDAL takes (0, 1, 0, 0, 0, -1) for no transform


def source_pixels(start: int, count: int, scale: float, offset: float, size: int) -> slice:
    """Label pixels along one axis under target pixels `start` to `start + count`; 0 begins at `offset`."""
    first = max(0, math.floor(offset + start * scale))
    return slice(first, max(first, min(size, math.ceil(offset + (start + count) * scale))))


def box_weights(start: int, count: int, scale: float, offset: float, pixels: slice) -> csr_matrix:
    """float32 (count, label pixels): length of each of `pixels` under each target pixel."""
    from scipy.sparse import csr_matrix

    low = (offset + (start + np.arange(count)) * scale)[:, None]
    taps = np.floor(low).astype(np.int64) + np.arange(math.ceil(scale) + 1)
    weights = np.minimum(taps + 1, low + scale) - np.maximum(taps, low)
    weights[(weights < 0) | (taps < pixels.start) | (taps >= pixels.stop)] = 0
    places = np.clip(taps, pixels.start, pixels.stop - 1) - pixels.start
    pointers = np.arange(0, taps.size + 1, taps.shape[1])
    shape = (count, pixels.stop - pixels.start)
    return csr_matrix((weights.astype(np.float32).ravel(), places.ravel(), pointers), shape)


def most_frequent(labels: Labels, down: csr_matrix, across: csr_matrix) -> Labels:
    """The label with the largest area under each target pixel, of several the smallest; 255 votes too."""
    largest = np.zeros((down.shape[0], across.shape[0]), np.float32)
    winners = np.full(largest.shape, IGNORE, np.uint8)
    (present,) = np.nonzero(np.bincount(labels.ravel(), minlength=256))
    for label in present:
        area = (across @ np.ascontiguousarray((down @ (labels == label).astype(np.float32)).T)).T
        wins = area > largest * np.float32(1 + 1e-5)
        winners[wins], largest[wins] = label, area[wins]
    return winners


class RawCounts(NamedTuple):
    """Pixels of each class (256,), and those of 255 that neither the labels nor their format explain."""

    where: str
    classes: NDArray[np.int64]
    of_255: int


class RasterLabels:
    """Blocks of a label raster on a grid; labels without CRS and of the image's size lie on `image_grid`."""

    def __init__(self, path: Path, grid: Grid, format: LabelFormat, image_grid: Grid) -> None:
        self._path, self._format, self.grid = path, format, grid
        advice = "Give a label raster that GDAL can read, or GPKG, GeoJSON, Shapefile, FlatGeobuf."
        with gdal.errors(DataError, str(path), advice):
            self._dataset = gdal.open_raster(path)
        try:
            self._bands, self._table = _table_of(self._dataset, path, format)
            self._masked = _is_masked(self._dataset, path, format)
            self._place(image_grid)
        except BaseException:
            self._dataset.close()
            raise
        raw_values = format.values if len(self._bands) == 1 and format.values is not None else {}
        self._beyond = {raw: index for raw, index in raw_values.items() if not 0 <= raw < len(self._table)}
        self.unknown_px = 0

    def close(self) -> None:
        self._dataset.close()

    def _place(self, image_grid: Grid) -> None:
        """Bring both grids into one plane; find whether pixels coincide and how much they shrink."""
        dataset, grid, path = self._dataset, self.grid, self._path
        same_size = (dataset.height, dataset.width) == (image_grid.height, image_grid.width)
        shown = f"{path}: {dataset.width} x {dataset.height} px"
        needs = f"its image has {image_grid.width} x {image_grid.height} px"
        crs = None if dataset.transform == Affine.identity() else dataset.crs
        by_pixel = self._format.by_pixel or crs is None or image_grid.crs is None
        if by_pixel and not same_size:
            if crs is not None and image_grid.crs is None:
                raise DataError(f"{shown} with a CRS; {needs} and none, so that they cannot be aligned")
            raise DataError(f"{shown} without CRS, {needs}; needs the same size or georeferencing")
        if by_pixel and not self._format.by_pixel and crs is None:
            _warn_of_transform(path, dataset.transform, image_grid)
        if by_pixel:
            plane = CRS.from_string(PIXEL_PLANE)
            self._source, self._target = (plane, FLIP), (plane, FLIP * ~image_grid.transform * grid.transform)
        else:
            self._source, self._target = (crs, dataset.transform), (grid.crs, grid.transform)
        self._same_crs = self._source[0] == self._target[0]
        self._scale = self._measure()
        self._offset: tuple[int, int] | None = None
        self._steps: Affine | None = None  # target to label pixels, of parallel grids whose pixels shrink
        if self._same_crs:
            steps = ~self._source[1] * self._target[1]
            drift = max(abs(steps.a - 1), abs(steps.b), abs(steps.d), abs(steps.e - 1))
            start = round(steps.f), round(steps.c)
            near = max(abs(steps.f - start[0]), abs(steps.c - start[1])) < ALIGNED_PX
            if near and drift * max(grid.width, grid.height) < ALIGNED_PX:
                self._offset = start
            slant = max(abs(steps.b) * grid.height, abs(steps.d) * grid.width)
            if slant < ALIGNED_PX and min(steps.a, steps.e) > SHRINKS:
                self._steps = steps

    def _measure(self) -> float:
        """Label pixels a pixel of the grid, along a side, at the grid's centre."""
        row, col = self.grid.height / 2, self.grid.width / 2
        points = [self._target[1] * point for point in ((col, row), (col + 1, row), (col, row + 1))]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if not self._same_crs:
            with gdal.errors(DataError, str(self._path)):
                xs, ys = transform(self._target[0], self._source[0], xs, ys)
        (x, y), (x1, y1), (x2, y2) = (~self._source[1] * point for point in zip(xs, ys, strict=True))
        area = abs((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y))
        return math.sqrt(area) if math.isfinite(area) and area > 0 else 1.0

    @property
    def direct(self) -> bool:
        """Whether pixels coincide, so that any window may be read as it is."""
        return self._offset is not None

    @property
    def touches(self) -> bool:
        """Whether the file reaches into the grid."""
        with gdal.errors(DataError, str(self._path)):
            spans = self._source_window(self._target[1], self.grid.height, self.grid.width)
        return all(span.start < span.stop for span in spans)

    def elsewhere(self) -> str:
        """What is wrong where the file does not reach into the grid."""
        theirs, ours = self._dataset.bounds, self.grid.bounds
        crs = [crs.to_string() if crs else "no CRS" for crs in (self._source[0], self._target[0])]
        return (
            f"{self._path}: lies elsewhere: it has {span_text(theirs)} in {crs[0]} and does not overlap the "
            f"raster's {span_text(ours)} in {crs[1]}. Check its CRS and transform (gdalinfo)"
        )

    @property
    def block_size(self) -> int:
        """Side of the blocks that may be asked of `block`, px of the grid."""
        size = 512
        while size > 16 and (size * self._scale) ** 2 > MAX_SOURCE_PX:
            size //= 2
        return size

    def block(self, row: int, col: int, height: int, width: int) -> Labels:
        """Labels of a window of the grid, 255 outside the file."""
        labels = np.full((height, width), IGNORE, np.uint8)
        if self._offset is not None:
            row, col = row + self._offset[0], col + self._offset[1]
            rows = slice(max(row, 0), min(row + height, self._dataset.height))
            cols = slice(max(col, 0), min(col + width, self._dataset.width))
            if rows.start < rows.stop and cols.start < cols.stop:
                part = (slice(rows.start - row, rows.stop - row), slice(cols.start - col, cols.stop - col))
                labels[part] = self._classes(rows, cols)
            return labels
        if self._steps is not None:
            return self._shrunk(self._steps, row, col, labels)
        target = self._target[1] * Affine.translation(col, row)
        with gdal.errors(DataError, f"{self._path}: labels cannot be brought to the image's grid"):
            rows, cols = self._source_window(target, height, width)
            if rows.start < rows.stop and cols.start < cols.stop:
                reproject(
                    self._classes(rows, cols), labels, src_crs=self._source[0], dst_crs=self._target[0],
                    src_transform=self._source[1] * Affine.translation(cols.start, rows.start),
                    dst_transform=target, init_dest_nodata=False, tolerance=0,
                    resampling=Resampling.mode if self._scale > SHRINKS else Resampling.nearest,
                )  # fmt: skip
        return labels

    def _shrunk(self, steps: Affine, row: int, col: int, labels: Labels) -> Labels:
        """A block of a parallel, coarser grid; GDAL takes two to three times as long."""
        down = row, labels.shape[0], steps.e, steps.f
        across = col, labels.shape[1], steps.a, steps.c
        rows = source_pixels(*down, self._dataset.height)
        cols = source_pixels(*across, self._dataset.width)
        if rows.start >= rows.stop or cols.start >= cols.stop:
            return labels
        return most_frequent(self._classes(rows, cols), box_weights(*down, rows), box_weights(*across, cols))

    def _source_window(self, target: Affine, height: int, width: int) -> tuple[slice, slice]:
        corners = [target * point for point in ((0, 0), (width, 0), (0, height), (width, height))]
        if not self._same_crs:
            xs, ys = zip(*corners, strict=True)
            left, bottom, right, top = transform_bounds(
                self._target[0], self._source[0], min(xs), min(ys), max(xs), max(ys)
            )
            corners = [(left, bottom), (left, top), (right, bottom), (right, top)]
        cols, rows = zip(*(~self._source[1] * corner for corner in corners), strict=True)
        pad = math.ceil(self._scale) + 2
        if not all(map(math.isfinite, (*rows, *cols))):
            return slice(0, 0), slice(0, 0)
        bounds = []
        for ends, size in ((rows, self._dataset.height), (cols, self._dataset.width)):
            bounds.append(slice(max(0, math.floor(min(ends)) - pad), min(size, math.ceil(max(ends)) + pad)))
        return bounds[0], bounds[1]

    def _classes(self, rows: slice, cols: slice) -> Labels:
        """Class numbers of stored pixels."""
        window = Window.from_slices(rows, cols)
        where = f"{self._path}: rows {rows.start} to {rows.stop - 1} cannot be read"
        with gdal.errors(DataError, where, "The file may be cut short or damaged."):
            values = self._dataset.read(self._bands, window=window)
            labelled = self._dataset.dataset_mask(window=window) if self._masked else None
        classes = _look_up(self._table, values)
        for raw, index in self._beyond.items():
            classes[values[0] == raw] = index
        if labelled is not None:
            classes[labelled == 0] = IGNORE
        unknown = classes == INVALID
        if unknown.any():
            if self._format.unknown == "error" or len(values) == 1:
                self._refuse(values[:, unknown], rows)
            self.unknown_px += int(unknown.sum())
            classes[unknown] = IGNORE
        return classes

    def _refuse(self, values: NDArray[np.integer], rows: slice) -> None:
        """Raise, naming the most frequent of the values (bands, n) that are no class."""
        kinds, counts = np.unique(values, axis=1, return_counts=True)
        value, count = kinds[:, counts.argmax()].tolist(), int(counts.max())
        more = f" and {len(counts) - 1} more" if len(counts) > 1 else ""
        where = f"{count} px in rows {rows.start} to {rows.stop - 1}{more}"
        names = self._format.class_names
        palette = len(values) == 1 and self._format.colours is not None and self._format.values is None
        if len(values) == 1 and not (palette and _palette(self._dataset)):
            known = "the raw values given" if self._format.values is not None else f"0 to {len(names) - 1}"
            raise DataError(
                f"{self._path}: label value {value[0]:.10g} is no class ({where}); the classes have {known}, "
                f"{IGNORE} is unlabelled. Other values: --classes FILE.json, a list of {{name, value}}"
            )
        if len(values) == 1:
            value = list(_palette(self._dataset).get(value[0], (value[0],))[:3])
        listed = ", ".join(
            f"{rgb} {_name(names, index)}" for rgb, index in (self._format.colours or {}).items()
        )
        lossy = " JPEG changes colours; keep masks as PNG or TIFF." if self._dataset.driver == "JPEG" else ""
        raise DataError(
            f"{self._path}: colour {tuple(value)} is no class ({where}); known are {listed[:500]}. Add its "
            f"mask_colour to --classes, or its value to read a palette's numbers.{lossy}"
        )


def _name(names: tuple[str, ...], index: int) -> str:
    return "unlabelled" if index == IGNORE else names[index]


def _palette(dataset: Any) -> dict[int, tuple[int, ...]]:
    if dataset.count > 2 or dataset.colorinterp[0].name != "palette":
        return {}
    return dict(dataset.colormap(1))


def _table_of(dataset: Any, path: Path, format: LabelFormat) -> tuple[list[int], Labels]:
    """The bands to read and what their values mean."""
    bands = [band for band, kind in enumerate(dataset.colorinterp, 1) if kind.name != "alpha"]
    kinds = {np.dtype(dataset.dtypes[band - 1]) for band in bands}
    shown = f"{path}: {dataset.count} bands of {', '.join(sorted(map(str, kinds)))}"
    if len(bands) in (3, 4) and kinds == {np.dtype(np.uint8)}:
        if format.colours is None:
            raise DataError(
                f"{shown} is a colour mask; which colour is which class is not known. Pass --classes "
                'FILE.json, a list of {"name", "colour"}'
            )
        return bands[:3], format.colour_table()
    if len(bands) != 1 or next(iter(kinds)).kind not in "iubf":
        raise DataError(f"{shown}; needs one band of whole numbers, or three or four of uint8 for colours")
    palette = _palette(dataset)
    if palette and format.colours is not None and format.values is None:
        table = np.full(256, INVALID, np.uint8)
        for value, colour in palette.items():
            table[value] = format.colours.get((colour[0], colour[1], colour[2]), INVALID)
        return bands, table
    return bands, format.table(NUMBERS)


def _is_masked(dataset: Any, path: Path, format: LabelFormat) -> bool:
    """Whether some pixels are marked as without data."""
    flags = dataset.mask_flag_enums[0]
    if MaskFlags.all_valid in flags:
        return False
    if MaskFlags.nodata not in flags or dataset.count > 2:
        return True
    nodata = dataset.nodata
    if format.values is not None and nodata in format.values:
        return False
    if format.values is None and 0 <= nodata < len(format.class_names):
        name = format.class_names[int(nodata)]
        first = _first_with_nodata(path.parent, int(nodata), name)
        if not first:
            first.append(path)
            logger.warning(
                "%s (and others of its folder): labels whose nodata value %d is also the number of class %r; "
                "those pixels are unlabelled (give the class its value in --classes FILE.json to count them)",
                path, nodata, name,
            )  # fmt: skip
    return True


def _warn_of_transform(path: Path, transform: Affine, image_grid: Grid) -> None:
    """Warn of a raster without CRS that is laid on the image's pixels though its transform is another."""
    other = image_grid.transform
    if transform != Affine.identity() and not transform.almost_equals(other, 1e-6 * abs(other.a)):
        logger.warning(
            "%s: has no CRS, and another transform than its image; its pixels are laid on the image's. If "
            "that is wrong, set its CRS (gdal_edit -a_srs)", path,
        )  # fmt: skip


def raw_counts(path: Path, format: LabelFormat) -> RawCounts:
    counts, plain = np.zeros(256, np.int64), 0
    with gdal.env(str(path)), gdal.errors(DataError, str(path)), gdal.open_raster(path) as dataset:
        bands, table = _table_of(dataset, path, format)
        masked = _is_masked(dataset, path, format)
        named = len(table) != NUMBERS or IGNORE in (format.values or {})
        for row in range(0, dataset.height, 512):
            window = Window(0, row, dataset.width, min(512, dataset.height - row))
            values = dataset.read(bands, window=window)
            valid = dataset.dataset_mask(window=window) > 0 if masked else np.ones(values.shape[1:], np.bool_)
            counts += np.bincount(_look_up(table, values)[valid], minlength=256)
            plain += 0 if named else int(np.count_nonzero(valid & (values[0] == IGNORE)))
    return RawCounts(str(path), counts, plain)


@lru_cache(maxsize=256)
def _first_with_nodata(folder: Path, nodata: int, name: str) -> list[Path]:
    """Return the file of a folder that was warned of, [] at first."""
    return []


def _look_up(table: Labels, values: NDArray[np.integer]) -> Labels:
    """Class numbers of values (bands, rows, cols); 254 where a value is not in the table, 255 where NaN."""
    if len(values) == 3:
        red, green, blue = values.astype(np.uint32)
        return table[red << 16 | green << 8 | blue]
    (band,) = values
    if band.dtype in (np.uint8, np.uint16) and np.iinfo(band.dtype).max < len(table):
        return table[band]
    inside = (band >= 0) & (band < len(table)) & (band == np.floor(band))
    numbers = np.where(inside, table[np.where(inside, band, 0).astype(np.int64)], np.uint8(INVALID))
    return np.where(band == band, numbers, np.uint8(IGNORE))
