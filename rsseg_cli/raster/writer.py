"""Output rasters: uint8, nodata 255, written row by row; a cloud-optimised GeoTIFF appears whole or not."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
from rasterio.io import MemoryFile
from rasterio.shutil import copy

from rsseg_cli.errors import OutputError, UsageError
from rsseg_cli.files import check_target, replace_all, sync
from rsseg_cli.raster import gdal
from rsseg_cli.raster.rows import BLOCK, Overviews, Pyramid, RowParts, Rows
from rsseg_cli.raster.vrt import RasterDescription

if TYPE_CHECKING:
    from rsseg_cli.raster.grid import Grid

# What would change pixels or their places; outputs are exact and on the scene's grid.
FORBIDDEN_OPTIONS = {
    "TILING_SCHEME", "TARGET_SRS", "RES", "EXTENT", "ALIGNED_LEVELS", "ZOOM_LEVEL",
    "ZOOM_LEVEL_STRATEGY", "ADD_ALPHA", "NBITS", "OVERVIEWS", "OVERVIEW_COUNT", "OVERVIEW_RESAMPLING",
    "RESAMPLING", "WARP_RESAMPLING", "COPY_SRC_OVERVIEWS", "PHOTOMETRIC",
}  # fmt: skip
LOSSY = {"JPEG", "WEBP", "JXL", "LERC", "LERC_DEFLATE", "LERC_ZSTD"}
BLOCK_OPTIONS = {"BLOCKSIZE", "BLOCKXSIZE", "BLOCKYSIZE"}


def _is_block_size(value: str) -> bool:
    return value.isdecimal() and 64 <= int(value) <= 4096 and int(value) % 16 == 0


class _Complaints(logging.Handler):
    """Keeps what GDAL warns of: rasterio raises nothing for an unknown creation option."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(re.sub(r"^CPLE_\w+ in ([\w-]+\.tif: )?", "", record.getMessage()))


def upper(options: Mapping[str, str]) -> dict[str, str]:
    return {key.upper(): value for key, value in options.items()}


_numbers = itertools.count()


class RasterWriter:
    """Writes a raster from top to bottom; it appears under its name at `commit`, whole, or never.

    `commit` is `finish` and then `publish`; several rasters that belong together are all finished before the
    first is published.

    Overviews are made from the rows as they pass. Used as a context manager: leaving without `commit` removes
    what was written, unless `place` says where temporary files lie.

    Args:
        path: the target, a GeoTIFF.
        grid: its pixels.
        count: bands.
        overviews: "mode" for classes, "average" for numbers; pixels without data do not count in either.
        colours: class -> (red, green, blue), 0 to 255; makes a colour table, 255 transparent.
        category_names: of class 0, 1, ...; as tags CLASS_0, ... and, for GIS programs, in `<path>.aux.xml`.
        band_names: descriptions.
        tags: what made it.
        creation_options: of GDAL's COG (GTiff) driver.
        cog: a cloud-optimised GeoTIFF, else a tiled GeoTIFF.
        inputs: files that must not be replaced.
        cuts: rows at which temporary files begin, and the height at the end: what is above a cut that was
            passed is in complete files. One file by default.
        place: path of the temporary file with an ending; by default beside the target, with a name of this
            process. The finished "tif" must be on the target's file system.
        finished: an earlier run finished the file, it lies at its place: it is only published.

    Raises:
        OutputError: the target exists, cannot be written, the disk is full.
        UsageError: creation options that are unknown or change pixels.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        count: int = 1,
        *,
        overviews: Overviews = "mode",
        colours: Mapping[int, Sequence[int]] | None = None,
        category_names: Sequence[str] | None = None,
        band_names: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        creation_options: Mapping[str, str] | None = None,
        overwrite: bool = False,
        cog: bool = True,
        inputs: Sequence[str | Path] = (),
        cuts: Sequence[int] | None = None,
        place: Callable[[str], Path] | None = None,
        finished: bool = False,
    ) -> None:
        self.path = Path(path)
        check_target(self.path, overwrite=overwrite, inputs=inputs)
        self.check_options(creation_options or {}, cog=cog)
        self.grid, self.count = grid, count
        self._description = RasterDescription(
            grid=grid,
            count=count,
            colours=colours or {},
            category_names=tuple(category_names or ()),
            band_names=tuple(band_names or ()),
            tags=tags or {},
        )
        if band_names and len(band_names) != count:
            raise ValueError(f"{len(band_names)} band names for {count} bands")
        self._options = upper(creation_options or {})
        self._cog = cog
        self._rows = 0
        self._finished = finished
        self._stem = f".{self.path.name}.{os.getpid()}.{next(_numbers)}"
        self._place, self._own = place or self._beside, place is None
        self._pyramid: Pyramid | None = None
        self._parts = RowParts(
            lambda row: self._place(f"{row}.tif"), count, grid.width, cuts or (0, grid.height)
        )
        if finished:
            return
        try:
            with gdal.env(), gdal.errors(OutputError, str(self.path)):
                self._pyramid = Pyramid(
                    lambda level: self._place(f"level{level}.tif"), count, grid.height, grid.width, overviews
                )
                if cuts is None:
                    self._parts.open()
        except BaseException:
            self.discard()
            raise

    @staticmethod
    def check_options(options: Mapping[str, str], *, cog: bool = True) -> None:
        """Refuse creation options that GDAL does not know, would ignore, or that change pixels.

        Raises:
            UsageError: naming the option and why.
        """
        for key, value in options.items():
            if key.upper() in FORBIDDEN_OPTIONS:
                raise UsageError(
                    f"--co {key}={value}: would change pixels or georeferencing; outputs keep the "
                    "scene's grid"
                )
            if key.upper() == "COMPRESS" and value.upper() in LOSSY:
                raise UsageError(
                    f"--co {key}={value}: may lose pixel values; use DEFLATE, ZSTD, LZW, LZMA or NONE"
                )
            if key.upper() in BLOCK_OPTIONS and not _is_block_size(value):  # GDAL aborts the process on some
                raise UsageError(f"--co {key}={value}: needs a multiple of 16, 64 to 4096 px")
        if not options:
            return
        complaints = _Complaints()
        gdal_log = logging.getLogger("rasterio._env")
        level = gdal_log.level
        shown = " ".join(f"--co {key}={value}" for key, value in options.items())
        with gdal.env(), MemoryFile() as source, MemoryFile() as target:
            profile = {
                "driver": "GTiff",
                "width": 16,
                "height": 16,
                "count": 1,
                "dtype": "uint8",
                "nodata": 255,
            }
            with gdal.open_raster(source.name, "w", **profile) as dataset:
                dataset.write(np.zeros((1, 16, 16), np.uint8))
            gdal_log.addHandler(complaints)
            gdal_log.setLevel(logging.WARNING)
            try:
                with gdal.errors(UsageError, shown):
                    driver = {"driver": "COG"} if cog else {"driver": "GTiff", "TILED": "YES"}
                    copy(source.name, target.name, **driver | upper(options))
            finally:
                gdal_log.removeHandler(complaints)
                gdal_log.setLevel(level)
        if complaints.messages:
            raise UsageError(f"{shown}: {'; '.join(complaints.messages)}")

    def __enter__(self) -> RasterWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, row: int, array: Rows) -> None:
        """Write the next rows.

        Args:
            row: of the first of them; the rows before it have been written.
            array: uint8 (count, rows, width); any number of rows.

        Raises:
            ValueError: another shape, dtype or row is due (GDAL would resample or wrap in silence).
        """
        if array.dtype != np.uint8:
            raise ValueError(f"{self.path}: array is {array.dtype}, needs uint8")
        if array.ndim != 3 or array.shape[0] != self.count or array.shape[2] != self.grid.width:
            raise ValueError(
                f"{self.path}: array is {array.shape}, needs ({self.count}, rows, {self.grid.width})"
            )
        if row != self._rows or row + array.shape[1] > self.grid.height:
            raise ValueError(
                f"{self.path}: rows {row} to {row + array.shape[1]}, due {self._rows} to {self.grid.height}"
            )
        with gdal.env(), gdal.errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            self._parts.push(array)
            self._make_overviews(array)
        self._rows += array.shape[1]

    def _make_overviews(self, rows: Rows) -> None:
        if self._pyramid is not None:
            self._pyramid.push(rows)

    def adopt(self, rows: int) -> Iterator[tuple[int, Rows]]:
        """Go on after the first `rows` rows, which an earlier run wrote with the same cuts: yield them.

        Raises:
            OutputError: its files are not there, or others.
        """
        advice = "Run again without --resume."
        with gdal.env(), gdal.errors(OutputError, f"{self.path}: what was written of it is damaged", advice):
            self._parts.adopt(rows)
            for array in self._parts.read():
                self._make_overviews(array)
                yield self._rows, array
                self._rows += array.shape[1]

    def complete_files(self) -> list[Path]:
        """Temporary files that are complete: those of the rows above the last cut that was passed."""
        return [part.path for part in self._parts.parts]

    def commit(self) -> None:
        """Finish the file and give it its name.

        Raises:
            ValueError: rows are missing.
            OutputError: it cannot be written.
        """
        self.finish()
        self.publish()

    def finish(self) -> None:
        """Build the file under its temporary name, on disk; what stands under its own name stays as it is.

        Raises:
            ValueError: rows are missing.
            OutputError: it cannot be written.
        """
        if self._rows != self.grid.height:
            raise ValueError(f"{self.path}: {self._rows} of {self.grid.height} rows written")
        finished, described = self._place("tif"), self._place("vrt")
        with gdal.env(), gdal.errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            overviews = [] if self._pyramid is None else self._pyramid.levels
            if self._pyramid is not None:
                self._pyramid.complete()
            xml = self._description.vrt(self._parts.parts, [level.path for level in overviews])
            described.write_bytes(xml)
            copy(str(described), str(finished), **self._copy_options())
            sync(finished)
            if self._description.category_names:
                names = self._place("aux.xml")
                names.write_bytes(_category_file(self._description.category_names))
                sync(names)
        if self._own:
            self.drop_rows()
        self._finished = True

    def drop_rows(self) -> None:
        """Remove the temporary files that a finished raster was made from."""
        levels = [] if self._pyramid is None else [level.path for level in self._pyramid.levels]
        for path in (*self.complete_files(), *levels, self._place("vrt")):
            path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the finished file its name, and take away what went with the file that it replaces.

        Raises:
            ValueError: it is not finished.
            OutputError: its name cannot be changed.
        """
        replace_all(self.renames(), self.leftovers())
        self.discard()

    def renames(self) -> dict[Path, Path]:
        """The finished files under their temporary names, and the names that they are to get.

        Raises:
            ValueError: they are not finished.
        """
        if not self._finished:
            raise ValueError(f"{self.path}: not finished")
        named = bool(self._description.category_names)
        names = {"aux.xml": Path(f"{self.path}.aux.xml")} if named else {}
        return {self._place(ending): path for ending, path in (names | {"tif": self.path}).items()}

    def leftovers(self) -> list[Path]:
        """Files that belong to an earlier raster of this name and would be read with the new one."""
        endings = (".ovr", ".msk") if self._description.category_names else (".ovr", ".msk", ".aux.xml")
        return [Path(f"{self.path}{ending}") for ending in endings]

    def discard(self) -> None:
        """Close the temporary files, and remove those that are this writer's own business."""
        self._parts.close()
        if self._pyramid is not None:
            self._pyramid.close()
        if self._own:
            for temporary in self.path.parent.glob(f"{glob.escape(self._stem)}.*"):
                temporary.unlink(missing_ok=True)

    def _beside(self, ending: str) -> Path:
        return self.path.parent / f"{self._stem}.{ending}"

    def _copy_options(self) -> dict[str, str]:
        threads = str(min(4, os.cpu_count() or 1))
        options = {"COMPRESS": "DEFLATE", "NUM_THREADS": threads, "BIGTIFF": "IF_SAFER"}
        if self._cog:
            options |= {"driver": "COG", "BLOCKSIZE": str(BLOCK)}
        else:
            options |= {"driver": "GTiff", "TILED": "YES", "BLOCKXSIZE": str(BLOCK), "BLOCKYSIZE": str(BLOCK)}
            options |= {"COPY_SRC_OVERVIEWS": "YES"}
        return options | self._options


def _category_file(names: Sequence[str]) -> bytes:
    """GDAL's sidecar: GeoTIFF has no place for category names; QGIS shows those it finds here."""
    root = ET.Element("PAMDataset")
    categories = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        ET.SubElement(categories, "Category").text = name
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"
