"""Output rasters: uint8, nodata 255, written row by row; a cloud-optimised GeoTIFF appears whole or not."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
from rasterio.shutil import copy
from rasterio.windows import Window

from rsseg_cli.creation import check_creation_options, upper
from rsseg_cli.errors import OutputError
from rsseg_cli.gdal import gdal_env, gdal_errors, open_raster
from rsseg_cli.halve import NODATA, Overviews, Rows, halve
from rsseg_cli.replace import check_target, replace_all, sync

if TYPE_CHECKING:
    from rsseg_cli.area import Grid

BLOCK = 512
HALVED_ROWS = 64  # at once, for an overview; even
_numbers = itertools.count()


class TiledFile:
    """One resolution of the output in a temporary tiled file; whole rows of blocks are written, each once."""

    def __init__(self, path: Path, count: int, height: int, width: int) -> None:
        self.path = path
        self.height, self.width = height, width
        self.rows_written = 0
        self._pending = 0
        # A block row of all bands is held in memory: lower blocks for wide outputs of many bands.
        self._block = BLOCK if count * width * BLOCK <= 64 << 20 else 128
        self._buffer = np.empty((count, self._block, width), np.uint8)
        profile = {"driver": "GTiff", "dtype": "uint8", "count": count, "height": height, "width": width}
        profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": self._block, "interleave": "band"}
        profile |= {"compress": "zstd", "zstd_level": 1, "bigtiff": "if_safer"}
        self._dataset: Any = open_raster(path, "w", **profile)

    def push(self, rows: Rows) -> Iterator[Rows]:
        """Take rows; yield each row of blocks as it is written, valid until the next."""
        while rows.shape[1]:
            taken = min(rows.shape[1], self._block - self._pending)
            self._buffer[:, self._pending : self._pending + taken] = rows[:, :taken]
            self._pending += taken
            rows = rows[:, taken:]
            if self._pending == self._block or self.rows_written + self._pending == self.height:
                yield self._flush()

    def _flush(self) -> Rows:
        block = self._buffer[:, : self._pending]
        self._dataset.write(block, window=Window(0, self.rows_written, self.width, self._pending))
        self.rows_written += self._pending
        self._pending = 0
        return block

    def reopen(self) -> None:
        """Close, so that everything written is on disk with its directory, and go on."""
        self.close()
        self._dataset = open_raster(self.path, "r+")

    def close(self) -> None:
        if not self._dataset.closed:
            self._dataset.close()


class RasterWriter:
    """Writes a raster from top to bottom; it appears under its name at `commit`, whole, or never.

    `commit` is `finish` and then `publish`; several rasters that belong together are all finished before the
    first is published.

    Overviews are made from the rows as they pass. Used as a context manager: leaving without `commit` removes
    what was written.

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
        flush_every: rows after which to `checkpoint`; 0 never.
        inputs: files that must not be replaced.

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
        flush_every: int = 0,
        inputs: Sequence[str | Path] = (),
    ) -> None:
        self.path = Path(path)
        check_target(self.path, overwrite=overwrite, inputs=inputs)
        check_creation_options(creation_options or {}, cog=cog)
        self.grid, self.count = grid, count
        self._resampling: Overviews = overviews
        self._colours, self._categories = dict(colours or {}), tuple(category_names or ())
        self._band_names, self._tags = tuple(band_names or ()), dict(tags or {})
        if self._band_names and len(self._band_names) != count:
            raise ValueError(f"{len(self._band_names)} band names for {count} bands")
        self._options = upper(creation_options or {})
        self._cog, self._flush_every, self._flushed = cog, flush_every, 0
        self._rows = 0
        self._finished = False
        self._stem = f".{self.path.name}.{os.getpid()}.{next(_numbers)}"
        self._levels: list[TiledFile] = []
        try:
            with gdal_env(), gdal_errors(OutputError, str(self.path)):
                height, width = grid.height, grid.width
                while not self._levels or max(self._levels[-1].height, self._levels[-1].width) > BLOCK:
                    temporary = self._temporary(f"level{len(self._levels)}.tif")
                    self._levels.append(TiledFile(temporary, count, height, width))
                    height, width = -(-height // 2), -(-width // 2)
        except BaseException:
            self.discard()
            raise

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
        with gdal_errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            self._push(0, array)
            self._rows += array.shape[1]
            if self._flush_every and self._rows - self._flushed >= self._flush_every:
                self.checkpoint()

    def _push(self, level: int, rows: Rows) -> None:
        if level == len(self._levels):
            return
        for block in self._levels[level].push(rows):
            if level + 1 == len(self._levels):
                continue
            for first in range(0, block.shape[1], HALVED_ROWS):
                part = halve(block[:, first : first + HALVED_ROWS], self._resampling)
                self._push(level + 1, part)

    def checkpoint(self) -> int:
        """Make what was written readable after a crash.

        Returns:
            rows that are on disk; up to a row of blocks less than were written.
        """
        with gdal_env(), gdal_errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            for level in self._levels:
                level.reopen()
        self._flushed = self._rows
        return self._levels[0].rows_written

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
        finished, described = self._temporary("tif"), self._temporary("vrt")
        with gdal_env(), gdal_errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            for level in self._levels:
                level.close()
            described.write_bytes(self._describe())
            copy(str(described), str(finished), **self._copy_options())
            sync(finished)
            if self._categories:
                names = self._temporary("aux.xml")
                names.write_bytes(_category_file(self._categories))
                sync(names)
            for level in self._levels:
                level.path.unlink()
        self._finished = True

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
        names = {"aux.xml": Path(f"{self.path}.aux.xml")} if self._categories else {}
        return {self._temporary(ending): path for ending, path in (names | {"tif": self.path}).items()}

    def leftovers(self) -> list[Path]:
        """Files that belong to an earlier raster of this name and would be read with the new one."""
        endings = (".ovr", ".msk") if self._categories else (".ovr", ".msk", ".aux.xml")
        return [Path(f"{self.path}{ending}") for ending in endings]

    def discard(self) -> None:
        """Remove the temporary files."""
        for level in self._levels:
            level.close()
        for temporary in self.path.parent.glob(f"{_escape(self._stem)}.*"):
            temporary.unlink(missing_ok=True)

    def _temporary(self, ending: str) -> Path:
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

    def _describe(self) -> bytes:
        """A VRT that joins the levels and says what the file carries."""
        full = self._levels[0]
        root = ET.Element("VRTDataset", rasterXSize=str(full.width), rasterYSize=str(full.height))
        if self.grid.crs is not None:
            ET.SubElement(root, "SRS").text = self.grid.crs.to_wkt()
        if not self.grid.transform.is_identity:
            numbers = (repr(float(number)) for number in self.grid.transform.to_gdal())
            ET.SubElement(root, "GeoTransform").text = ", ".join(numbers)
        metadata = ET.SubElement(root, "Metadata")
        classes = {f"CLASS_{index}": name for index, name in enumerate(self._categories)}
        for key, value in {**self._tags, **classes}.items():
            ET.SubElement(metadata, "MDI", key=key).text = str(value)
        for band in range(1, self.count + 1):
            self._describe_band(ET.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(band)), band)
        return ET.tostring(root, encoding="utf-8")

    def _describe_band(self, element: ET.Element, band: int) -> None:
        if self._band_names:
            ET.SubElement(element, "Description").text = self._band_names[band - 1]
        ET.SubElement(element, "NoDataValue").text = str(NODATA)
        if self._colours:
            ET.SubElement(element, "ColorInterp").text = "Palette"
            table = ET.SubElement(element, "ColorTable")
            for index in range(256):
                red, green, blue = (int(part) for part in self._colours.get(index, (0, 0, 0)))
                opaque = "255" if index in self._colours else "0"
                ET.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=opaque)
        else:
            ET.SubElement(element, "ColorInterp").text = "Gray" if self.count == 1 else "Undefined"
        for level in self._levels[1:]:
            _add_source(ET.SubElement(element, "Overview"), level.path.name, band)
        _add_source(ET.SubElement(element, "SimpleSource"), self._levels[0].path.name, band)


def _add_source(element: ET.Element, name: str, band: int) -> None:
    ET.SubElement(element, "SourceFilename", relativeToVRT="1").text = name
    ET.SubElement(element, "SourceBand").text = str(band)


def _category_file(names: Sequence[str]) -> bytes:
    """GDAL's sidecar: GeoTIFF has no place for category names; QGIS shows those it finds here."""
    root = ET.Element("PAMDataset")
    categories = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        ET.SubElement(categories, "Category").text = name
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"


def _escape(name: str) -> str:
    import glob

    return glob.escape(name)
