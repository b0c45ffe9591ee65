"""VRTs that join sheets: written for a mosaic, and read for the sheets behind one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rsseg_cli.raster.classes import NODATA
from rsseg_cli.raster.rows import RowPart
from rsseg_cli.raster.rows import RowParts as RowParts

if TYPE_CHECKING:
    from rsseg_cli.raster.grid import Grid
from rsseg_cli.errors import SceneError

if TYPE_CHECKING:
    from rsseg_cli.raster.grid import Grid
    from rsseg_cli.raster.info import SceneInfo


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


MAX_BYTES = 256 * 2**20
TYPES = {"uint8": "Byte", "int8": "Int8"} | {
    name: name.replace("u", "U").replace("int", "Int").replace("float", "Float")
    for name in ("uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
}
COLOURS = ("gray", "palette", "red", "green", "blue", "alpha")  # GDAL's names begin with a capital


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A sheet in a mosaic.

    Attributes:
        window: (row, col, height, width) in the mosaic, px.
    """

    info: SceneInfo
    window: tuple[int, int, int, int]


def describe(sheets: Sequence[Placed], grid: Grid, *, nodata: float | None, masked: bool) -> str:
    """A VRT of sheets that have the same bands; where they overlap the later one is seen.

    Args:
        nodata: value of pixels that no sheet covers, besides the sheets' own.
        masked: a mask band tells which pixels sheets cover and hold as valid.
    """
    first = sheets[0].info
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        ET.SubElement(root, "SRS").text = grid.crs.to_wkt()
    ET.SubElement(root, "GeoTransform").text = ", ".join(
        repr(float(part)) for part in grid.transform.to_gdal()
    )
    for band, dtype in enumerate(first.dtypes, 1):
        element = ET.SubElement(root, "VRTRasterBand", dataType=TYPES[dtype], band=str(band))
        if first.descriptions[band - 1]:
            ET.SubElement(element, "Description").text = first.descriptions[band - 1]
        if nodata is not None:
            ET.SubElement(element, "NoDataValue").text = repr(nodata)
        colour = first.colour_interpretations[band - 1]
        ET.SubElement(element, "ColorInterp").text = colour.capitalize() if colour in COLOURS else "Undefined"
        _add_sources(element, sheets, str(band), TYPES[dtype])
    if masked:
        mask = ET.SubElement(ET.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        _add_sources(mask, sheets, "mask,1", "Byte")
    return ET.tostring(root, encoding="unicode")


def _add_sources(element: ET.Element, sheets: Sequence[Placed], band: str, dtype: str) -> None:
    for sheet in sheets:
        row, col, height, width = (str(number) for number in sheet.window)
        block_height, block_width = (str(side) for side in sheet.info.block_shape)
        source = ET.SubElement(element, "SimpleSource")
        name = ET.SubElement(source, "SourceFilename", relativeToVRT="0", shared="0")
        name.text = _gdal_name(sheet.info)
        ET.SubElement(source, "SourceBand").text = band
        # so that the file is not opened before its pixels are read
        properties = {"RasterXSize": width, "RasterYSize": height, "DataType": dtype}
        blocks = {"BlockXSize": block_width, "BlockYSize": block_height}
        ET.SubElement(source, "SourceProperties", {**properties, **blocks})
        ET.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
        ET.SubElement(source, "DstRect", xOff=col, yOff=row, xSize=width, ySize=height)


def _gdal_name(info: SceneInfo) -> str:
    """An absolute path, or GDAL's name of an address."""
    if info.path.startswith("/vsi"):
        return info.path
    if "://" in info.path:
        return info.files[0] if info.files else info.path
    return str(Path(info.path).absolute())


def sheets_behind(path: str | Path) -> list[str]:
    """The rasters that a VRT joins, each once, if that is all it does; else none.

    All bands of whole files at their own resolution and in their own order.

    Raises:
        SceneError: it cannot be read.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SceneError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} of a VRT are read")
        root = ET.fromstring(path.read_bytes())
    except OSError as err:
        raise SceneError(f"{path}: cannot be read ({err.strerror})") from err
    except ET.ParseError as err:
        raise SceneError(f"{path}: is not a VRT ({err})") from err
    if root.tag != "VRTDataset" or root.get("subClass") is not None:
        return []
    found: dict[str, None] = {}
    bands: list[list[str]] = []
    for element in root.findall("VRTRasterBand"):
        names = [
            _whole_source(source, element.get("band", ""), path) for source in element if _is_source(source)
        ]
        if not names or "" in names or element.get("subClass") is not None:
            return []
        bands.append(names)
        found |= dict.fromkeys(names)
    return list(found) if bands and all(set(names) == set(found) for names in bands) else []


def _is_source(element: ET.Element) -> bool:
    return element.tag.endswith("Source")


def _whole_source(source: ET.Element, band: str, path: Path) -> str:
    """The file of a source that is the whole of that band, unscaled; "" of any other."""
    name, taken, given = source.find("SourceFilename"), source.find("SrcRect"), source.find("DstRect")
    changes = {"ScaleRatio", "ScaleOffset", "LUT", "Exponent", "ColorTableComponent"}
    if (
        name is None
        or not name.text
        or source.tag not in ("SimpleSource", "ComplexSource")
        or source.findtext("SourceBand", "1") != band
        or any(part.tag in changes for part in source)
    ):
        return ""
    if taken is not None and given is not None:
        sizes = source.find("SourceProperties")
        for side, whole in (("xSize", "RasterXSize"), ("ySize", "RasterYSize")):
            size = float(taken.get(side, "0"))
            if size != float(given.get(side, "0")) or (
                sizes is not None and size != float(sizes.get(whole, size))
            ):
                return ""
        if float(taken.get("xOff", "0")) or float(taken.get("yOff", "0")):
            return ""
    relative = name.get("relativeToVRT", "0") == "1"
    return str(path.parent / name.text) if relative else name.text
