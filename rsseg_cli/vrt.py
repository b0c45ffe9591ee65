"""VRTs that join sheets: written for a mosaic, and read for the sheets behind one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rsseg_cli.errors import SceneError

if TYPE_CHECKING:
    from rsseg_cli.area import Grid
    from rsseg_cli.scene_info import SceneInfo

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
