"""What GIS programs show of a raster's values: attribute tables, category names, QGIS styles."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
# for classes without a colour of their own
SPARE = (
    (78, 121, 167), (242, 142, 43), (89, 161, 79), (225, 87, 89), (118, 183, 178), (237, 201, 72),
    (176, 122, 161), (156, 117, 95), (255, 157, 167), (186, 176, 172),
)  # fmt: skip
OTHER = (160, 160, 160)
OUTLINE = 0.6  # of the fill's brightness
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis
MAX_VALUES = 256
# GDAL's numbers of a column's usage and type, and names of columns whose usage is generic, as ArcGIS has them
NAME, MIN, MAX, MIN_MAX, RED, GREEN, BLUE = 2, 3, 4, 5, 6, 7, 8
INTEGER, REAL, TEXT = range(3)
USAGES = {
    "value": MIN_MAX, "val": MIN_MAX, "code": MIN_MAX, "gridcode": MIN_MAX, "class_value": MIN_MAX,
    "class_name": NAME, "classname": NAME, "class": NAME, "name": NAME, "label": NAME, "category": NAME,
    "landcover": NAME, "land_cover": NAME, "description": NAME,
    "red": RED, "green": GREEN, "blue": BLUE,
}  # fmt: skip


def colour_of(value: int, colours: Mapping[int, Sequence[int]]) -> Sequence[int]:
    """Return a class's own colour, or a spare one."""
    return colours.get(value, SPARE[value % len(SPARE)])


def read_table(band: ET.Element) -> tuple[dict[int, str], dict[int, Colour]]:
    """Return names and colours by value from the attribute table in GDAL's description of a band."""
    names: dict[int, str] = {}
    raw: dict[int, list[float]] = {}
    table = band.find("GDALRasterAttributeTable")
    for low, high, row in [] if table is None else _rows(table):
        for value in range(max(low, 0), min(high + 1, MAX_VALUES)):
            if row.get(NAME, "").strip():
                names[value] = row[NAME]
            if {RED, GREEN, BLUE} <= row.keys():
                raw[value] = [_number(row[part]) for part in (RED, GREEN, BLUE)]
    full = (
        255 if table is not None and _has_shares(table) and max(map(max, raw.values()), default=2) <= 1 else 1
    )
    clipped = {
        value: [round(min(max(part * full, 0), 255)) for part in parts] for value, parts in raw.items()
    }
    return names, {value: (red, green, blue) for value, (red, green, blue) in clipped.items()}


def _rows(table: ET.Element) -> Iterator[tuple[int, int, dict[int, str]]]:
    """Yield lowest and highest value of each row, and its cells by usage."""
    usages: list[int] = []
    for field in table.findall("FieldDefn"):
        usage = int(field.findtext("Usage") or 0)
        usage = usage or USAGES.get((field.findtext("Name") or "").strip().casefold(), 0)
        usages.append(0 if usage in usages else usage)
    if NAME not in usages:  # a table with one column of text
        kinds = [int(field.findtext("Type") or 0) for field in table.findall("FieldDefn")]
        if kinds.count(TEXT) == 1:
            usages[kinds.index(TEXT)] = NAME
    first, step = (float(table.get(key) or default) for key, default in (("Row0Min", 0), ("BinSize", 1)))
    for index, row in enumerate(table.findall("Row")[: 2 * MAX_VALUES]):
        cells = dict(zip(usages, (cell.text or "" for cell in row.findall("F")), strict=False))
        try:
            low = float(cells.get(MIN_MAX) or cells.get(MIN) or first + step * index)
            high = float(cells.get(MIN_MAX) or cells.get(MAX) or low)
            yield int(low), int(min(high, MAX_VALUES)), cells
        except (ValueError, OverflowError):
            continue


def _has_shares(table: ET.Element) -> bool:
    """Whether colours are real numbers: ArcGIS writes 0 to 1."""
    kinds = {(field.findtext("Name") or "").casefold(): field.findtext("Type") for field in table}
    return kinds.get("red") == str(REAL)


def _number(text: str) -> float:
    try:
        return float(text) if math.isfinite(float(text)) else 0.0
    except ValueError:
        return 0.0


def sidecar(names: Sequence[str], colours: Mapping[int, Sequence[int]]) -> bytes:
    """Return `<raster>.aux.xml`, where GDAL, QGIS and ArcGIS find names and colours of class 0, 1, ..."""
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    categories = ET.SubElement(band, "CategoryNames")
    for name in names:
        ET.SubElement(categories, "Category").text = name
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    columns = (("Value", INTEGER, MIN_MAX), ("Class_name", TEXT, NAME))
    colour_columns = (("Red", INTEGER, RED), ("Green", INTEGER, GREEN), ("Blue", INTEGER, BLUE))
    for index, (name, kind, usage) in enumerate((*columns, *colour_columns)):
        field = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(field, tag).text = str(text)
    for value, name in enumerate(names):
        row = ET.SubElement(table, "Row", index=str(value))
        for cell in (value, name, *colour_of(value, colours)):
            ET.SubElement(row, "F").text = str(cell)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"


def class_style(
    names: Mapping[int, str],
    colours: Mapping[int, Sequence[int]],
    field: str = "class_index",
    occurring: Collection[int] | None = None,
) -> bytes:
    """Return a QGIS style of classes by value, for a raster and for polygons with an attribute alike.

    Polygons are of the values that occur, by default all; others look like "other". Pixels of further values
    are not drawn.
    """
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", _PALETTED)
    palette = ET.SubElement(renderer, "colorPalette")
    kinds = {"type": "categorizedSymbol", "attr": field, "enableorderby": "0", "forceraster": "0"}
    vectors = ET.SubElement(root, "renderer-v2", kinds)
    categories, symbols = ET.SubElement(vectors, "categories"), ET.SubElement(vectors, "symbols")
    for value, name in sorted(names.items()):
        fill = colour_of(value, colours)
        entry = {"value": str(value), "label": name, "alpha": "255", "color": _hex(fill)}
        ET.SubElement(palette, "paletteEntry", entry)
        if occurring is None or value in occurring:
            add_category(categories, symbols, str(value), name, fill)
    add_category(categories, symbols, "", "other", OTHER)
    return qml(root)


_PALETTED = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}


def add_category(
    categories: ET.Element,
    symbols: ET.Element,
    value: str,
    label: str,
    fill: Sequence[int],
    kind: str = "fill",
    *,
    text: bool = False,
    **options: str,
) -> None:
    """Add a category with its symbol, a fill or marker; an empty value stands for all others."""
    number = str(len(categories))
    type_of_value = "long" if value and not text else "string"
    shown = {"value": value, "type": type_of_value, "symbol": number, "label": label, "render": "true"}
    ET.SubElement(categories, "category", shown)
    symbol = ET.SubElement(symbols, "symbol", type=kind, name=number, alpha="1", clip_to_extent="1")
    attributes = {"class": f"Simple{kind.title()}", "enabled": "1", "locked": "0", "pass": "0"}
    add_options(ET.SubElement(symbol, "layer", attributes), {
        "color": ",".join(map(str, (*fill, 255))),
        "outline_color": ",".join(map(str, (*(int(part * OUTLINE) for part in fill), 255))),
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
        "joinstyle": "bevel",
        "style": "solid",
        **options,
    })  # fmt: skip


def add_options(parent: ET.Element, texts: Mapping[str, str]) -> None:
    """Add a map of texts, as QGIS stores settings."""
    options = ET.SubElement(parent, "Option", type="Map")
    for key, text in texts.items():
        ET.SubElement(options, "Option", type="QString", name=key, value=text)


def ramp_style() -> bytes:
    """Return a QGIS style for a raster whose scaled values go from 0 to 1."""
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    kinds = _PALETTED | {"type": "singlebandpseudocolor", "classificationMin": "0", "classificationMax": "1"}
    renderer = ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", kinds)
    shader = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED", classificationMode="1", minimumValue="0", maximumValue="1", clip="0",
    )  # fmt: skip
    for step, colour in enumerate(RAMP):
        value = step / (len(RAMP) - 1)
        item = {"value": f"{value:g}", "label": f"{value:g}", "alpha": "255", "color": _hex(colour)}
        ET.SubElement(shader, "item", item)
    return qml(root)


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def qml(root: ET.Element) -> bytes:
    ET.indent(root)
    head = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + ET.tostring(root, encoding="utf-8") + b"\n"
