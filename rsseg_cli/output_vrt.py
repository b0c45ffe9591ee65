"""A VRT that joins temporary files to one raster, and says what it carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rsseg_cli.halve import NODATA
from rsseg_cli.row_files import RowPart

if TYPE_CHECKING:
    from rsseg_cli.area import Grid


@dataclass(frozen=True, kw_only=True)
class RasterDescription:
    """What a raster carries beside its pixels.

    Attributes:
        grid: its pixels.
        count: bands.
        colours: class -> (red, green, blue), 0 to 255; makes a colour table, 255 transparent.
        category_names: of class 0, 1, ...
        band_names: descriptions.
        tags: what made it.
        nodata: value without data.
    """

    grid: Grid
    count: int
    colours: Mapping[int, Sequence[int]] = field(default_factory=dict)
    category_names: Sequence[str] = ()
    band_names: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    nodata: int | None = NODATA

    def vrt(self, parts: Sequence[RowPart], overviews: Sequence[Path] = ()) -> bytes:
        """XML of a VRT beside the files; those of the parts may be any number."""
        grid = self.grid
        root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
        if grid.crs is not None:
            ET.SubElement(root, "SRS").text = grid.crs.to_wkt()
        if not grid.transform.is_identity:
            numbers = (repr(float(number)) for number in grid.transform.to_gdal())
            ET.SubElement(root, "GeoTransform").text = ", ".join(numbers)
        metadata = ET.SubElement(root, "Metadata")
        classes = {f"CLASS_{index}": name for index, name in enumerate(self.category_names)}
        for key, value in {**self.tags, **classes}.items():
            ET.SubElement(metadata, "MDI", key=key).text = str(value)
        for band in range(1, self.count + 1):
            element = ET.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(band))
            self._add_band(element, band)
            for path in overviews:
                _add_file(ET.SubElement(element, "Overview"), path, band)
            for part in parts:
                _add_part(element, part, band, grid.width)
        return ET.tostring(root, encoding="utf-8")

    def _add_band(self, element: ET.Element, band: int) -> None:
        if self.band_names:
            ET.SubElement(element, "Description").text = self.band_names[band - 1]
        if self.nodata is not None:
            ET.SubElement(element, "NoDataValue").text = str(self.nodata)
        if not self.colours:
            ET.SubElement(element, "ColorInterp").text = "Gray" if self.count == 1 else "Undefined"
            return
        ET.SubElement(element, "ColorInterp").text = "Palette"
        table = ET.SubElement(element, "ColorTable")
        for index in range(256):
            red, green, blue = (int(part) for part in self.colours.get(index, (0, 0, 0)))
            opaque = "255" if index in self.colours else "0"
            ET.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=opaque)


def _add_part(element: ET.Element, part: RowPart, band: int, width: int) -> None:
    source = ET.SubElement(element, "SimpleSource")
    _add_file(source, part.path, band)
    # With its size known a file is opened when it is read: there may be thousands.
    size = {"RasterXSize": str(width), "RasterYSize": str(part.height), "DataType": "Byte"}
    ET.SubElement(source, "SourceProperties", size)
    extent = {"xOff": "0", "xSize": str(width), "ySize": str(part.height)}
    ET.SubElement(source, "SrcRect", extent | {"yOff": "0"})
    ET.SubElement(source, "DstRect", extent | {"yOff": str(part.row)})


def _add_file(element: ET.Element, path: Path, band: int) -> None:
    ET.SubElement(element, "SourceFilename", relativeToVRT="1").text = path.name
    ET.SubElement(element, "SourceBand").text = str(band)
