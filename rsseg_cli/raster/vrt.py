"""The one writer of VRTs, and a reader of those that join whole files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

from affine import Affine

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.classes import NODATA
from rsseg_cli.raster.rows import Overviews, RowPart
from rsseg_cli.raster.rows import RowParts as RowParts

if TYPE_CHECKING:
    from rsseg_cli.raster.grid import Grid
    from rsseg_cli.raster.info import SceneInfo

MAX_BYTES = 256 * 2**20
TYPES = {"uint8": "Byte", "int8": "Int8"} | {
    name: name.replace("u", "U").replace("int", "Int").replace("float", "Float")
    for name in ("uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
}
RGB = ("red", "green", "blue")
COLOURS = ("gray", "palette", *RGB, "alpha")  # GDAL's names begin with a capital
Window = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class RasterMeta:
    """What an output raster says besides its pixels.

    `colours` are class -> (red, green, blue), NODATA transparent; `category_names` of class 0, 1, ... go to
    tags CLASS_0, ... and to `<path>.aux.xml`. Values times `scale` are the quantity.
    """

    count: int = 1
    overviews: Overviews = "mode"
    colours: Mapping[int, Sequence[int]] = field(default_factory=dict)
    category_names: Sequence[str] = ()
    band_names: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    nodata: int | None = NODATA
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.band_names and len(self.band_names) != self.count:
            raise ValueError(f"{len(self.band_names)} band names for {self.count} bands")


class Sheet(NamedTuple):
    """A sheet of a mosaic, and its (row, col, height, width) there, px."""

    info: SceneInfo
    window: Window


class _Source(NamedTuple):
    """A file that a band shows: all of the raster, or a window of it; `colour` 1 to 4 of its palette."""

    name: str
    band: str
    relative: bool = False
    window: Window | None = None
    block_shape: tuple[int, int] | None = None
    colour: int = 0


class _Band(NamedTuple):
    dtype: str
    sources: Iterable[_Source]
    description: str | None = None
    nodata: float | None = None
    colour: str = ""
    palette: Mapping[int, Sequence[int]] = {}
    overviews: Sequence[_Source] = ()
    scale: float = 1.0


def of_parts(parts: Sequence[RowPart], grid: Grid, meta: RasterMeta, overviews: Sequence[Path] = ()) -> str:
    """Return a VRT of files of rows, any number of them, and of overviews; it must lie beside them."""
    windows = {part.path.name: (part.row, 0, part.height, grid.width) for part in parts}
    return _of_rows(windows, grid, meta, [path.name for path in overviews])


def without_pixels(grid: Grid, meta: RasterMeta, overviews: Sequence[tuple[int, int]]) -> str:
    """Return a VRT of a raster without its pixels, with overviews of some (height, width)."""
    bands = [_Band(dtype="uint8", sources=(), nodata=meta.nodata)] * meta.count
    smaller = [
        _xml(replace(grid, crs=None, transform=Affine.identity(), height=height, width=width), bands)
        for height, width in overviews
    ]
    return _of_rows({}, grid, meta, smaller)


def _of_rows(files: Mapping[str, Window], grid: Grid, meta: RasterMeta, overviews: Sequence[str]) -> str:
    classes = {f"CLASS_{index}": name for index, name in enumerate(meta.category_names)}
    colour = "Palette" if meta.colours else "Gray" if meta.count == 1 else "Undefined"
    coloured = tuple(meta.band_names) == RGB
    bands = [
        _Band(
            dtype="uint8",
            sources=[_Source(name, str(band), True, window) for name, window in files.items()],
            description=meta.band_names[band - 1] if meta.band_names else None,
            nodata=meta.nodata,
            colour=RGB[band - 1].capitalize() if coloured else colour,
            palette=meta.colours,
            overviews=[_Source(name, str(band), not gdal.is_description(name)) for name in overviews],
            scale=meta.scale,
        )
        for band in range(1, meta.count + 1)
    ]
    return _xml(grid, bands, tags={**meta.tags, **classes})


def of_sheets(sheets: Sequence[Sheet], grid: Grid, *, nodata: float | None, masked: bool) -> str:
    """Return a VRT of sheets with the same bands; where they overlap the later one is seen.

    `nodata` is the value of pixels that no sheet covers; `masked` adds a mask of those that sheets hold as
    valid.
    """
    first = sheets[0].info

    def sources(band: str) -> list[_Source]:
        return [
            _Source(_gdal_name(info), band, window=window, block_shape=info.block_shape)
            for info, window in sheets
        ]

    bands = [
        _Band(
            dtype=dtype,
            sources=sources(str(band)),
            description=first.descriptions[band - 1],
            nodata=nodata,
            colour=colour.capitalize() if colour in COLOURS else "Undefined",
        )
        for band, (dtype, colour) in enumerate(
            zip(first.dtypes, first.colour_interpretations, strict=True), 1
        )
    ]
    mask = _Band(dtype="uint8", sources=sources("mask,1")) if masked else None
    return _xml(grid, bands, mask=mask)


def of_bands(info: SceneInfo, bands: Sequence[tuple[int, str]], grid: Grid, srs: str | None = None) -> str:
    """Return a VRT of chosen bands of a file, renamed; `srs` is WKT in place of the grid's CRS."""
    return _of_bands([(info, band, name) for band, name in bands], grid, srs)


def of_files(bands: Sequence[tuple[SceneInfo, int, str]]) -> str:
    """Return a VRT of bands of several files, by their new names; SceneError if their grids differ."""
    first = bands[0][0]
    for info, _, _ in bands:
        if info.grid != first.grid:
            sizes = [f"{part.name} ({part.grid.width} x {part.grid.height} px)" for part in (first, info)]
            raise SceneError(f"{' and '.join(sizes)}: have different grids; needs bands of one grid")
    return _of_bands(bands, first.grid)


def of_palette(info: SceneInfo) -> str:
    """Return a VRT of the colours of a band of palette indices: red, green, blue, and the band's mask."""
    name = _gdal_name(info)
    bands = [
        _Band(dtype="uint8", sources=[_Source(name, "1", colour=number)], colour=colour.capitalize())
        for number, colour in enumerate(RGB, 1)
    ]
    mask = _Band(dtype="uint8", sources=[_Source(name, "mask,1")]) if info.has_mask else None
    return _xml(info.grid, bands, mask=mask)


def _of_bands(bands: Sequence[tuple[SceneInfo, int, str]], grid: Grid, srs: str | None = None) -> str:
    chosen = [
        _Band(
            dtype=info.dtypes[band - 1],
            sources=[_Source(_gdal_name(info), str(band))],
            description=name,
            nodata=info.band_nodata[band - 1],
        )
        for info, band, name in bands
    ]
    return _xml(grid, chosen, srs=srs)


def _xml(
    grid: Grid,
    bands: Sequence[_Band],
    *,
    srs: str | None = None,
    tags: Mapping[str, str] | None = None,
    mask: _Band | None = None,
) -> str:
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    srs = srs or (None if grid.crs is None else grid.crs.to_wkt())
    if srs:
        ET.SubElement(root, "SRS").text = srs
    if not grid.transform.is_identity:
        numbers = (repr(float(number)) for number in grid.transform.to_gdal())
        ET.SubElement(root, "GeoTransform").text = ", ".join(numbers)
    if tags:
        metadata = ET.SubElement(root, "Metadata")
        for key, value in tags.items():
            ET.SubElement(metadata, "MDI", key=key).text = str(value)
    for number, band in enumerate(bands, 1):
        _add_band(root, band, number)
    if mask is not None:
        _add_band(ET.SubElement(root, "MaskBand"), mask)
    return ET.tostring(root, encoding="unicode")


def _add_band(parent: ET.Element, band: _Band, number: int | None = None) -> None:
    attributes = {} if number is None else {"band": str(number)}
    element = ET.SubElement(parent, "VRTRasterBand", {"dataType": TYPES[band.dtype]} | attributes)
    if band.description:
        ET.SubElement(element, "Description").text = band.description
    if band.nodata is not None:
        ET.SubElement(element, "NoDataValue").text = repr(band.nodata)
    if band.scale != 1:
        ET.SubElement(element, "Scale").text = repr(band.scale)
    if band.colour:
        ET.SubElement(element, "ColorInterp").text = band.colour
    if band.palette:
        table = ET.SubElement(element, "ColorTable")
        for index in range(256):
            red, green, blue = (int(part) for part in band.palette.get(index, (0, 0, 0)))
            opaque = "255" if index in band.palette else "0"
            ET.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=opaque)
    for overview in band.overviews:
        _add_file(ET.SubElement(element, "Overview"), overview)
    for source in band.sources:
        _add_source(element, source, TYPES[band.dtype])


def _add_source(parent: ET.Element, source: _Source, dtype: str) -> None:
    element = ET.SubElement(parent, "ComplexSource" if source.colour else "SimpleSource")
    _add_file(element, source)
    if source.colour:
        ET.SubElement(element, "ColorTableComponent").text = str(source.colour)
    if source.window is None:
        return
    row, col, height, width = map(str, source.window)
    # With its size known a file is opened when it is read: there may be thousands.
    properties = {"RasterXSize": width, "RasterYSize": height, "DataType": dtype}
    if source.block_shape is not None:
        block_height, block_width = map(str, source.block_shape)
        properties |= {"BlockXSize": block_width, "BlockYSize": block_height}
    ET.SubElement(element, "SourceProperties", properties)
    ET.SubElement(element, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
    ET.SubElement(element, "DstRect", xOff=col, yOff=row, xSize=width, ySize=height)


def _add_file(element: ET.Element, source: _Source) -> None:
    attributes = {"relativeToVRT": str(int(source.relative))}
    if source.block_shape is not None:  # one of many sheets: its handle is not kept for other bands
        attributes["shared"] = "0"
    ET.SubElement(element, "SourceFilename", attributes).text = source.name
    ET.SubElement(element, "SourceBand").text = source.band


def _gdal_name(info: SceneInfo) -> str:
    if info.path.startswith("/vsi") or gdal.is_description(info.path):
        return info.path
    if "://" in info.path:
        return info.files[0] if info.files else info.path
    return str(Path(info.path).absolute())


def sheets_of(path: str | Path) -> list[str]:
    """Return the rasters that a VRT joins, each once, if it only shows all bands of whole files."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SceneError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} of a VRT are read")
        return _sheets(ET.fromstring(path.read_bytes()), path)
    except OSError as err:
        raise SceneError(f"{path}: cannot be read ({err.strerror})") from err
    except (ET.ParseError, ValueError) as err:
        raise SceneError(f"{path}: is not a VRT ({err}). Check it with gdalinfo.") from err


def _sheets(root: ET.Element, path: Path) -> list[str]:
    if root.tag != "VRTDataset" or root.get("subClass") is not None:
        return []
    sheets: dict[str, None] = {}
    bands: list[list[str]] = []
    for element in root.findall("VRTRasterBand"):
        names = [
            _whole_source(source, element.get("band", ""), path)
            for source in element
            if source.tag.endswith("Source")
        ]
        if not names or "" in names or element.get("subClass") is not None:
            return []
        bands.append(names)
        sheets |= dict.fromkeys(names)
    return list(sheets) if bands and all(set(names) == set(sheets) for names in bands) else []


def _whole_source(source: ET.Element, band: str, path: Path) -> str:
    """Return the file of a source that is the whole of that band, unscaled; "" for any other."""
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
