"""Output rasters: uint8, written row by row; a cloud-optimised GeoTIFF appears whole or not at all."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.io import MemoryFile
from rasterio.shutil import copy

from rsseg_cli.errors import OutputError, UsageError
from rsseg_cli.files import check_target, replace_all, sync
from rsseg_cli.raster import cog, gdal, legend, vrt
from rsseg_cli.raster.classes import NODATA
from rsseg_cli.raster.rows import BLOCK, Pyramid, RowPart, RowParts, Rows, is_large

if TYPE_CHECKING:
    from rsseg_cli.raster.grid import Grid

# What would change pixels or their position; outputs are exact and on the scene's grid.
FORBIDDEN_OPTIONS = {
    "TILING_SCHEME", "TARGET_SRS", "RES", "EXTENT", "ALIGNED_LEVELS", "ZOOM_LEVEL",
    "ZOOM_LEVEL_STRATEGY", "ADD_ALPHA", "NBITS", "OVERVIEWS", "OVERVIEW_COUNT", "OVERVIEW_RESAMPLING",
    "RESAMPLING", "WARP_RESAMPLING", "COPY_SRC_OVERVIEWS", "PHOTOMETRIC",
}  # fmt: skip
LOSSY = {"JPEG", "WEBP", "JXL", "LERC", "LERC_DEFLATE", "LERC_ZSTD"}
BLOCK_OPTIONS = {"BLOCKSIZE", "BLOCKXSIZE", "BLOCKYSIZE"}
_numbers = itertools.count()


class RasterWriter(AbstractContextManager["RasterWriter"]):
    """Writes a raster from top to bottom; it appears under its name at `commit`, whole, or never.

    `commit` is `finish` and then `publish`; rasters that belong together are all finished before one is
    published. Leaving the context removes the temporary files, unless `temporary` says where they lie.

    Args:
        cuts: rows at which temporary files begin, and the height: all rows above a cut that was passed are in
            complete files, from which `resume_from` continues. None by default.
        temporary: path of the temporary file with an ending, on the target's file system for "tif".
        finished: an earlier run finished the temporary "tif": it is only published.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        meta: vrt.RasterMeta | None = None,
        *,
        options: Mapping[str, str] | None = None,
        overwrite: bool = False,
        cuts: Sequence[int] | None = None,
        temporary: Callable[[str], Path] | None = None,
        finished: bool = False,
    ) -> None:
        self.path, self.grid = Path(path), grid
        self.meta = meta = meta or vrt.RasterMeta()
        check_target(self.path, overwrite=overwrite)
        self.check_options(options or {})
        self._sidecars = _sidecars(self.path, meta, overwrite=overwrite)
        self._options = _upper(options or {})
        self._rows, self._cuts = 0, cuts or ()
        self._finished = finished
        self._stem = f".{self.path.name}.{os.getpid()}.{next(_numbers)}"
        self._temporary, self._own = temporary or self._beside, set[Path]()
        self._pyramid: Pyramid | None = None
        copying = self._copy_options()
        large = is_large(meta.count, grid.width, int(copying["BLOCKSIZE"]))
        self._blocks = None if large else cog.block_options(copying)  # None: GDAL writes the file again
        self._parts = RowParts(
            lambda row: self._temporary(f"{row}.tif"), meta.count, grid.width, cuts or (0,)
        )
        if finished:
            return
        try:
            with gdal.env(), gdal.errors(OutputError, str(self.path)):
                self._pyramid = Pyramid(
                    lambda level: self._temporary(f"level{level}.tif"),
                    meta.count, grid.height, grid.width, meta.overviews, self._blocks,
                )  # fmt: skip
        except BaseException:
            self.discard()
            raise

    @staticmethod
    def check_options(options: Mapping[str, str]) -> None:
        """Refuse creation options that GDAL does not know, would ignore, or that change pixels."""
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
        if options:
            _try_options(options)

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, row: int, array: Rows) -> None:
        """Write the next rows, uint8 (bands, rows, width); ValueError for any other array or row."""
        if array.dtype != np.uint8:
            raise ValueError(f"{self.path}: array is {array.dtype}, needs uint8")
        if array.ndim != 3 or array.shape[0] != self.meta.count or array.shape[2] != self.grid.width:
            raise ValueError(
                f"{self.path}: array is {array.shape}, needs ({self.meta.count}, rows, {self.grid.width})"
            )
        if row != self._rows or row + array.shape[1] > self.grid.height:
            raise ValueError(
                f"{self.path}: rows {row} to {row + array.shape[1]}, due {self._rows} to {self.grid.height}"
            )
        with self._writing():
            if self._cuts:
                self._parts.push(array)
            self._add_to_levels(array)
        self._rows += array.shape[1]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with gdal.env(), gdal.errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            yield

    def _add_to_levels(self, rows: Rows) -> None:
        if self._pyramid is not None:
            self._pyramid.push(rows)

    def resume_from(self, rows: int) -> Iterator[tuple[int, Rows]]:
        """Continue below the first `rows` rows, which a run with the same cuts wrote; yield them."""
        where, advice = f"{self.path}: its temporary files are damaged", "Run again without --resume."
        with gdal.env(), gdal.errors(OutputError, where, advice):
            self._parts.resume_from(rows)
            for array in self._parts.read():
                self._add_to_levels(array)
                yield self._rows, array
                self._rows += array.shape[1]

    def complete_files(self) -> list[Path]:
        """Return the temporary files that are complete: those of the rows above the last cut passed."""
        return [part.path for part in self._parts.parts]

    def commit(self) -> None:
        self.finish()
        self.publish()

    def finish(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Build the file under its temporary name, on disk; the target stays as it is.

        `progress` is called with the share that is done, at least at the end.
        """
        if self._rows != self.grid.height:
            raise ValueError(f"{self.path}: {self._rows} of {self.grid.height} rows written")
        if self._pyramid is None:
            raise ValueError(f"{self.path}: finished before")
        finished, described = self._temporary("tif"), self._temporary("vrt")
        with self._writing():
            levels, options = self._pyramid.complete(), self._copy_options()
            if self._blocks is None:
                whole = [RowPart(levels[0], 0, self.grid.height)]
                described.write_text(vrt.of_parts(whole, self.grid, self.meta, levels[1:]), "utf-8")
                copy(str(described), str(finished), driver="COG", **options)
            else:
                shapes = [(level.height, level.width) for level in self._pyramid.levels[1:]]
                described.write_text(vrt.without_pixels(self.grid, self.meta, shapes), "utf-8")
                copy(str(described), str(finished), driver="COG", **options, SPARSE_OK="YES")
                cog.fill(finished, levels, progress)
            sync(finished)
            for ending, (_, content) in self._sidecars.items():
                self._temporary(ending).write_bytes(content)
                sync(self._temporary(ending))
        if self._own:
            self.drop_rows()
        self._finished = True
        progress(1.0)

    def drop_rows(self) -> None:
        """Remove the temporary files that a finished raster was made from."""
        levels = [] if self._pyramid is None else [level.path for level in self._pyramid.levels]
        for path in (*self.complete_files(), *levels, self._temporary("vrt")):
            path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the finished file its name, and remove what belonged to the file that it replaces."""
        replace_all(self.renames())
        self.discard()

    def renames(self) -> dict[Path, Path]:
        """Return the finished files under their temporary names, and the names that they are to get."""
        if not self._finished:
            raise ValueError(f"{self.path}: not finished")
        beside = {self._temporary(ending): path for ending, (path, _) in self._sidecars.items()}
        made = {
            file: path for file, path in beside.items() if file.exists()
        }  # an earlier run's may be others
        return {**made, self._temporary("tif"): self.path}

    def discard(self) -> None:
        self._parts.close()
        if self._pyramid is not None:
            self._pyramid.close()
        for path in self._own:
            path.unlink(missing_ok=True)

    def _beside(self, ending: str) -> Path:
        path = self.path.parent / f"{self._stem}.{ending}"
        self._own.add(path)
        return path

    def _copy_options(self) -> dict[str, str]:
        options = {"COMPRESS": "DEFLATE", "NUM_THREADS": str(gdal.threads()), "BIGTIFF": "IF_SAFER"}
        return options | {"BLOCKSIZE": str(BLOCK)} | self._options


def _try_options(options: Mapping[str, str]) -> None:
    """Write a tiny raster with the options, as rasterio raises nothing for an unknown one."""
    complaints = BufferingHandler(capacity=100)
    gdal_log = logging.getLogger("rasterio._env")
    level = gdal_log.level
    shown = " ".join(f"--co {key}={value}" for key, value in options.items())
    with gdal.env(), MemoryFile() as source, MemoryFile() as target:
        profile = {"driver": "GTiff", "width": 16, "height": 16, "count": 1, "dtype": "uint8"}
        with gdal.open_raster(source.name, "w", nodata=NODATA, **profile) as dataset:
            dataset.write(np.zeros((1, 16, 16), np.uint8))
        gdal_log.addHandler(complaints)
        gdal_log.setLevel(logging.WARNING)
        try:
            with gdal.errors(UsageError, shown):
                copy(source.name, target.name, driver="COG", **_upper(options))
        finally:
            gdal_log.removeHandler(complaints)
            gdal_log.setLevel(level)
    if complaints.buffer:
        messages = [record.getMessage() for record in complaints.buffer]
        messages = [re.sub(r"^CPLE_\w+ in ([\w-]+\.tif: )?", "", message) for message in messages]
        raise UsageError(f"{shown}: {'; '.join(messages)}")


def _upper(options: Mapping[str, str]) -> dict[str, str]:
    return {key.upper(): value for key, value in options.items()}


def _is_block_size(value: str) -> bool:
    return value.isdecimal() and 64 <= int(value) <= 4096 and int(value) % 16 == 0


def _sidecars(path: Path, meta: vrt.RasterMeta, *, overwrite: bool) -> dict[str, tuple[Path, bytes]]:
    """Return name and content of the files beside a raster, by ending: names of classes, a QGIS style.

    A style that is there already stays, unless its raster is to be replaced.
    """
    made: dict[str, tuple[Path, bytes]] = {}
    style, names = path.with_suffix(".qml"), dict(enumerate(meta.category_names))
    if names:
        made["aux.xml"] = Path(f"{path}.aux.xml"), legend.sidecar(meta.category_names, meta.colours)
    if (names or meta.scale != 1) and (overwrite or not style.exists()):
        made["qml"] = style, legend.class_style(names, meta.colours) if names else legend.ramp_style()
    return made
