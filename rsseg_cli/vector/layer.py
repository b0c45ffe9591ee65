"""Content of a vector file: formats and their limits, attributes of polygons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.polygons import Polygons

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
    """Return a QGIS style."""
    root = ET.Element("qgis", version="3.28.0", styleCategories="Symbology")
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr=field, enableorderby="0")
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for position, (value, name) in enumerate(sorted(names.items())):
        shown = {
            "value": str(value),
            "type": "long",
            "symbol": str(position),
            "label": name,
            "render": "true",
        }
        ET.SubElement(categories, "category", shown)
        symbol = ET.SubElement(
            symbols, "symbol", type="fill", name=str(position), alpha="1", clip_to_extent="1"
        )
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


DRIVERS = {"GPKG": "GPKG", "FlatGeobuf": "FlatGeobuf", "GeoJSON": "GeoJSON", "Shapefile": "ESRI Shapefile"}
# Shapefile's names have ten characters.
SHORT = {
    "class_index": "class_idx",
    "perimeter_m": "perim_m",
    "confidence": "conf_mean",
    "confidence_min": "conf_min",
}
FULL_SCALE = 254.0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a vector file holds beside polygons.

    Attributes:
        format: "GeoParquet", which pyarrow writes, or a key of DRIVERS.
        crs: WKT, "" for none.
    """

    path: Path
    name: str
    format: str
    crs: str
    names: Mapping[int, str]
    colours: Mapping[int, Colour]
    confidence: bool
    metadata: Mapping[str, str]
    dissolve: bool = False
    qml: bool = False
    max_geometry_bytes: int = 1_000_000_000
    max_shapefile_bytes: int = 2**31 - 1

    def class_name(self, value: int) -> str:
        """The name of a class, "class N" where it has none."""
        return self.names.get(value, f"class {value}")

    @property
    def driver(self) -> str:
        """GDAL's driver."""
        return DRIVERS[self.format]

    @property
    def geometry(self) -> str:
        """Type of the geometries."""
        return "MultiPolygon" if self.dissolve else "Polygon"

    @property
    def geometry_column(self) -> str:
        """Name of the column of geometries."""
        return "geometry" if self.format == "GeoParquet" else "geom"

    @property
    def fields(self) -> dict[str, np.dtype[Any]]:
        """Type of each attribute."""
        kinds: dict[str, Any] = {"class_index": np.int32, "class_name": object}
        kinds |= {"area_m2": np.float64, "perimeter_m": np.float64}
        kinds |= {"confidence": np.float64, "confidence_min": np.float64} if self.confidence else {}
        return {name: np.dtype(kind) for name, kind in {**kinds, "vertices": np.int32}.items()}

    @property
    def columns(self) -> list[str]:
        """Names of the attributes, as short as the format needs them."""
        short = SHORT if self.format == "Shapefile" else {}
        return [short.get(name, name) for name in self.fields]


def columns_of(polygons: Polygons | None, layer: Layer) -> dict[str, NDArray[Any]]:
    """Return attributes by name; empty ones for None."""
    if polygons is None:
        return {name: np.zeros(0, kind) for name, kind in layer.fields.items()}
    table = polygons.table
    names = {int(value): layer.class_name(int(value)) for value in np.unique(table.classes)}
    columns: dict[str, NDArray[Any]] = {
        "class_index": table.classes.astype(np.int32),
        "class_name": np.array([names[value] for value in table.classes.tolist()], object),
        "area_m2": polygons.areas_m2.round(4),
        "perimeter_m": polygons.perimeters_m.round(4),
    }
    if layer.confidence:
        present = table.confidence_counts > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = table.confidence_sums / table.confidence_counts / FULL_SCALE
        columns["confidence"] = np.where(present, mean, np.nan).round(4)
        columns["confidence_min"] = np.where(present, table.confidence_mins / FULL_SCALE, np.nan).round(4)
    return {**columns, "vertices": polygons.vertices.astype(np.int32)}


def targets(path: Path, kind: str, *, qml: bool) -> list[Path]:
    """Return the files that a format writes, the main one first."""
    endings = (".shp", ".shx", ".dbf", ".prj", ".cpg") if kind == "Shapefile" else (path.suffix,)
    return [path.with_suffix(ending) for ending in (*endings, *((".qml",) if qml else ()))]
