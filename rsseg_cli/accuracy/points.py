"""Points of a sample as a vector file, and what was filled in."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files
from rsseg_cli.accuracy.strata import ClassMap, Strata
from rsseg_cli.data import datasets
from rsseg_cli.errors import DataError, OutputError, UsageError
from rsseg_cli.raster import classes
from rsseg_cli.vector import add_style

if TYPE_CHECKING:
    import geopandas

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
TRUTH = "class"
SHOWN = 8  # wrong values that a message lists


def check_vector_target(path: Path, overwrite: bool, inputs: Sequence[str]) -> None:
    """See `files.check_target`; refuse a file whose ending names no format too."""
    if path.suffix.lower() not in DRIVERS:
        raise UsageError(f"{path}: its ending names no format; needs one of {', '.join(DRIVERS)}")
    files.check_target(path, overwrite=overwrite, inputs=inputs)


def write_points(path: Path, source: ClassMap, strata: Strata, table: NDArray[np.int64]) -> None:
    """Write points with their stratum, weight and an empty field.

    `table` is int64 (points, 4), row, column, stratum and cluster, -1 for none.
    """
    from shapely import points

    rows, cols, stratum, cluster = table.T
    counts = np.bincount(stratum, minlength=len(strata))
    area = strata.areas
    names = np.array([item.name for item in strata], object)
    columns: dict[str, Any] = {
        "id": np.arange(1, len(table) + 1),
        TRUTH: np.full(len(table), "", object),
        "comment": np.full(len(table), "", object),
        "stratum": names[stratum],
        "stratum_m2": area[stratum],
        "weight": area[stratum] / counts[stratum],
        "row": rows,
        "col": cols,
    }
    if (cluster >= 0).any():
        columns["cluster"] = cluster
    write_vector(path, source, columns, points(*source.grid.xy(cols + 0.5, rows + 0.5)), "marker")


def write_vector(
    path: Path,
    source: ClassMap,
    columns: Mapping[str, Any],
    shapes: Any,
    symbol: Literal["marker", "fill"],
) -> None:
    """Write shapes on a map's grid to a file that appears whole; a GeoPackage carries a QGIS style."""
    import geopandas

    driver = DRIVERS[path.suffix.lower()]
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=source.grid.wkt or None)
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
            part = Path(folder) / path.name
            version = {"dataset_options": {"VERSION": "1.2"}} if driver == "GPKG" else {}  # for QGIS 3.22
            frame.to_file(part, driver=driver, layer=path.stem, engine="pyogrio", **version)
            if driver == "GPKG":
                add_style(part, path.stem, _class_style(source, symbol))
            files.sync(part)
            files.replace_all({part: path})
    except (RuntimeError, OSError, sqlite3.Error) as err:
        raise OutputError(f"{path}: cannot be written ({err})") from err


def _class_style(source: ClassMap, symbol: str) -> str:
    """Return a QGIS style: features without a class stand out, and the form has a list of classes."""
    colours = classes.read_colours(source.path)
    black: dict[str, Any] = {"outline_color": "0,0,0,255", "size": "3"}
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology|Fields|Forms")
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr=TRUTH)
    parts = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for value, name in source.names.items():
        fill = colours.get(value, (150, 150, 150))
        classes.add_category(*parts, name, name, fill, symbol, text=True, name="circle", **black)
    classes.add_category(*parts, "", "to be filled in", (255, 0, 200), symbol, name="cross_fill", **black)
    field = ET.SubElement(ET.SubElement(root, "fieldConfiguration"), "field", name=TRUTH)
    widget = ET.SubElement(field, "editWidget", type="ValueMap")
    listed = ET.SubElement(ET.SubElement(widget, "config"), "Option", type="Map")
    values = ET.SubElement(listed, "Option", type="List", name="map")
    for name in source.names.values():
        classes.add_options(values, {name: name})
    return classes.qml(root).decode()


@dataclass(frozen=True, kw_only=True)
class CheckedPoints:
    """Points whose truth was filled in.

    Attributes:
        rows, cols: pixel of the map under each point.
        truth: value of the true class.
        stratum: index into `stratum_names`; None where the file has no strata.
        empty: points left out, as nothing was filled in.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    truth: NDArray[np.int64]
    stratum: NDArray[np.int64] | None
    stratum_names: list[str]
    stratum_areas: NDArray[np.float64]
    cluster: NDArray[np.int64] | None
    empty: int


def read_points(path: str, source: ClassMap, field: str) -> CheckedPoints:
    """Read points with a true class, in the map's CRS; DataError where there is none, or one is unknown."""
    frame = _read(path, source)
    if field not in frame.columns:
        raise DataError(
            f"{path}: has no field {field!r}, but {', '.join(frame.columns.drop('geometry'))}. Pass --truth"
        )
    texts = ["" if value is None or value != value else str(value).strip() for value in frame[field]]
    values = [source.value_of(text) if text else None for text in texts]
    unknown = [text for text, value in zip(texts, values, strict=True) if text and value is None]
    if unknown:
        listed = ", ".join(list(dict.fromkeys(unknown))[:SHOWN])
        raise DataError(
            f"{path}: {listed} in field {field!r} is no class of the map, which has "
            f"{', '.join(source.names.values())}"
        )
    filled = np.array([value is not None for value in values], np.bool_)
    if not filled.any():
        raise DataError(f"{path}: field {field!r} is empty at every point; fill in the true classes first")
    frame = frame[filled]
    inverse = ~source.grid.transform
    cols, rows = inverse * (frame.geometry.x.to_numpy(), frame.geometry.y.to_numpy())
    names, stratum, areas = _strata(path, frame)
    return CheckedPoints(
        rows=np.floor(rows).astype(np.int64),
        cols=np.floor(cols).astype(np.int64),
        truth=np.array([value for value in values if value is not None], np.int64),
        stratum=stratum,
        stratum_names=names,
        stratum_areas=areas,
        cluster=frame["cluster"].to_numpy(np.int64) if "cluster" in frame.columns else None,
        empty=int(np.count_nonzero(~filled)),
    )


def _read(path: str, source: ClassMap) -> geopandas.GeoDataFrame:
    frame = datasets.read_shapes(path, source.grid, source.path)
    kinds = set(frame.geom_type)
    if kinds != {"Point"}:
        raise DataError(
            f"{path}: holds {', '.join(sorted(map(str, kinds))) or 'no geometries'}; needs points"
        )
    return frame


def _strata(
    path: str, frame: geopandas.GeoDataFrame
) -> tuple[list[str], NDArray[np.int64] | None, NDArray[np.float64]]:
    if not {"stratum", "stratum_m2"} <= set(frame.columns):
        return [], None, np.zeros(0)
    names, first, stratum = np.unique(
        frame["stratum"].astype(str).to_numpy(), return_index=True, return_inverse=True
    )
    areas = frame["stratum_m2"].to_numpy(np.float64)
    sizes = areas[first]
    if not (np.isfinite(areas).all() and (areas > 0).all() and np.allclose(areas, sizes[stratum])):
        raise DataError(
            f"{path}: field 'stratum_m2' must hold the same area, above 0, at all points of a stratum"
        )
    return [str(name) for name in names], stratum.astype(np.int64), sizes
