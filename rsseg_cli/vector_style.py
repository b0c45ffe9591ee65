"""QGIS styles: one filled symbol a class, inside a GeoPackage or as .qml beside a file."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

Colour = tuple[int, int, int]
# for classes without a colour of their own
SPARE: tuple[Colour, ...] = (
    (78, 121, 167), (242, 142, 43), (89, 161, 79), (225, 87, 89), (118, 183, 178), (237, 201, 72),
    (176, 122, 161), (156, 117, 95), (255, 157, 167), (186, 176, 172),
)  # fmt: skip
OUTLINE = 0.6  # of the fill's brightness

STYLES_TABLE = """CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""


def colour_of(value: int, colours: Mapping[int, Colour]) -> Colour:
    """A class's own colour, or a spare one."""
    return colours.get(value, SPARE[value % len(SPARE)])


def make_qml(names: Mapping[int, str], colours: Mapping[int, Colour], field: str = "class_index") -> str:
    """A QGIS style.

    Args:
        names: of the classes in the legend, by value.
        field: attribute that holds the value.
    """
    root = ET.Element("qgis", version="3.28.0", styleCategories="Symbology")
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr=field, enableorderby="0")
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for place, (value, name) in enumerate(sorted(names.items())):
        shown = {"value": str(value), "type": "long", "symbol": str(place), "label": name, "render": "true"}
        ET.SubElement(categories, "category", shown)
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=str(place), alpha="1", clip_to_extent="1")
        layer = ET.SubElement(
            symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"}
        )
        options = ET.SubElement(layer, "Option", type="Map")
        fill = colour_of(value, colours)
        for key, text in {
            "color": ",".join(map(str, (*fill, 255))),
            "outline_color": ",".join(map(str, (*(int(part * OUTLINE) for part in fill), 255))),
            "outline_style": "solid",
            "outline_width": "0.1",
            "outline_width_unit": "MM",
            "joinstyle": "bevel",
            "style": "solid",
        }.items():
            ET.SubElement(options, "Option", type="QString", name=key, value=text)
    ET.indent(root)
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(
        root, encoding="unicode"
    )
