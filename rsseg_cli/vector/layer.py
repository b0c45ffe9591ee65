"""Content of a vector file: formats and their limits, attributes of polygons."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import UsageError
from rsseg_cli.raster import classes
from rsseg_cli.vector.polygons import Polygons

DRIVERS = {"GPKG": "GPKG", "FlatGeobuf": "FlatGeobuf", "GeoJSON": "GeoJSON", "Shapefile": "ESRI Shapefile"}
# Shapefile's names have ten characters.
SHORT = {
    "class_index": "class_idx",
    "perimeter_m": "perim_m",
    "confidence": "conf_mean",
    "confidence_min": "conf_min",
}
FULL_SCALE = 254.0
RESERVED = ("layer_styles", "spatial_ref_sys")


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
    colours: Mapping[int, classes.Colour]
    confidence: bool
    metadata: Mapping[str, str]
    several: bool = False
    qml: bool = False
    max_geometry_bytes: int = 1_000_000_000
    max_shapefile_bytes: int = 2**31 - 1

    def class_name(self, value: int) -> str:
        """The name of a class, "class N" where it has none."""
        return self.names.get(value, f"class {value}")

    def style(self, values: Collection[int]) -> bytes:
        """A QGIS style of the classes that occur; for the raster of the same name of all."""
        names = {value: self.class_name(value) for value in {*self.names, *values}}
        return classes.class_style(names, self.colours, self.columns[0], values or None)

    @property
    def driver(self) -> str:
        """GDAL's driver."""
        return DRIVERS[self.format]

    @property
    def geometry(self) -> str:
        """Type of the geometries."""
        return "MultiPolygon" if self.several else "Polygon"

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


def check_name(name: str, path: Path) -> None:
    """Refuse names that a GeoPackage keeps for itself."""
    reserved = name.casefold().startswith(("gpkg", "sqlite_")) or name.casefold() in RESERVED
    if reserved or not name.strip() or not name.isprintable():
        raise UsageError(
            f"--layer {name!r}: a GeoPackage has no layer of such a name; needs printable characters, not "
            f"gpkg..., sqlite_... or {', '.join(RESERVED)}. Pass another --layer for {path}"
        )


def targets(path: Path, kind: str, *, qml: bool) -> list[Path]:
    """Return the files that a format writes, the main one first."""
    endings = (".shp", ".shx", ".dbf", ".prj", ".cpg") if kind == "Shapefile" else (path.suffix,)
    return [path.with_suffix(ending) for ending in (*endings, *((".qml",) if qml else ()))]
