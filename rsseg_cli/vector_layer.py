"""What a vector file holds: formats and their limits, attributes of polygons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import UsageError
from rsseg_cli.vector_polygons import Polygons
from rsseg_cli.vector_style import Colour

DRIVERS = {
    "GPKG": "GPKG",
    "FlatGeobuf": "FlatGeobuf",
    "GeoJSON": "GeoJSON",
    "Shapefile": "ESRI Shapefile",
    "GeoParquet": "Parquet",
}
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
        format: a key of DRIVERS.
        crs: WKT, "" without.
        names, colours: of classes by value.
        confidence: whether there are its attributes.
        metadata: what made it.
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

    def class_name(self, value: int) -> str:
        """A class's name, or what stands for it."""
        return self.names.get(value, f"class {value}")

    @property
    def geometry(self) -> str:
        """Type of the geometries."""
        return "MultiPolygon" if self.dissolve else "Polygon"

    @property
    def fields(self) -> dict[str, np.dtype[Any]]:
        """Type of each attribute."""
        kinds: dict[str, Any] = {"class_index": np.int32, "class_name": object}
        kinds |= {"area_m2": np.float64, "perimeter_m": np.float64}
        kinds |= {"confidence": np.float64, "confidence_min": np.float64} if self.confidence else {}
        return {name: np.dtype(kind) for name, kind in {**kinds, "vertices": np.int32}.items()}

    @property
    def columns(self) -> list[str]:
        """The attributes' names as the format has room for them."""
        short = SHORT if self.format == "Shapefile" else {}
        return [short.get(name, name) for name in self.fields]


def columns_of(polygons: Polygons | None, layer: Layer) -> dict[str, NDArray[Any]]:
    """Attributes by name; those of no polygons for None."""
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
    """Files that are going to be written."""
    endings = (".shp", ".shx", ".dbf", ".prj", ".cpg") if kind == "Shapefile" else (path.suffix,)
    return [path.with_suffix(ending) for ending in (*endings, *((".qml",) if qml else ()))]


def check_format(name: str, path: Path) -> None:
    """Refuse a format whose library is missing.

    Raises:
        UsageError: what to install.
    """
    if name != "GeoParquet":
        return
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as err:
        raise UsageError(
            f"{path}: GeoParquet needs pyarrow. Install it: pip install pyarrow (or "
            "pip install 'rsseg[parquet]')."
        ) from err
