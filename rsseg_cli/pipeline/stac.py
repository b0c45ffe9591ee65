"""Results as STAC Items: where a map lies, what its files are, what it was made from.

Source: https://github.com/radiantearth/stac-spec (1.1), with the extensions that EXTENSIONS lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from rsseg_cli._version import __version__
from rsseg_cli.raster import Grid, classes, gdal

STAC_VERSION = "1.1.0"
BASE = "https://stac-extensions.github.io"
EXTENSIONS = [
    f"{BASE}/{name}/schema.json"
    for name in ("projection/v2.0.0", "classification/v2.0.0", "processing/v1.2.0", "raster/v2.0.0")
]
GEOTIFF = "image/tiff; application=geotiff"
COG = f"{GEOTIFF}; profile=cloud-optimized"
MEDIA = {
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.flatgeobuf",
    ".parquet": "application/vnd.apache.parquet",
    ".geoparquet": "application/vnd.apache.parquet",
    ".geojson": "application/geo+json",
    ".json": "application/geo+json",
    ".shp": "application/vnd.shp",
    ".png": "image/png",
    ".html": "text/html",
    ".htm": "text/html",
}
ROLES = {
    "labels": ["data", "labels"], "vector": ["data", "labels"], "preview": ["overview"],
    "html": ["overview"], "confidence": ["data", "confidence"], "uncertainty": ["data", "uncertainty"],
}  # fmt: skip
SCALE = 1 / 254  # of uint8 to 0 to 1
SIDE_POINTS = 33  # of a footprint's side
DIGITS = 7  # of degrees


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """What an Item tells of a map; `classes` as in `ModelSpec.stac_classes`, `bands` of probabilities."""

    grid: Grid
    scene: str
    model: str
    classes: Sequence[Mapping[str, Any]]
    bands: Sequence[str]
    paths: Mapping[str, Path]
    refiner: str = ""


def item_of(mapped: Mapped, path: Path) -> bytes:
    """Return the Item, JSON; addresses of local files are relative to `path`, where it will lie."""
    grid = mapped.grid
    shape = footprint(grid)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    by = f"model {mapped.model}" + (f", boundaries by {mapped.refiner}" if mapped.refiner else "")
    properties: dict[str, Any] = {
        "datetime": _taken(mapped.scene) or now,
        "created": now,
        "proj:code": _code(grid),
        "proj:shape": [grid.height, grid.width],
        "proj:transform": [*grid.transform[:6], 0, 0, 1],
        "processing:software": {"rsseg": __version__},
        "processing:lineage": f"Land cover of {Path(gdal.display_name(mapped.scene)).name}, by {by}",
    }
    if grid.crs is not None and properties["proj:code"] is None:
        properties["proj:wkt2"] = grid.wkt
    if grid.side_m is not None:
        properties["gsd"] = round(grid.side_m, 6)
    folder = path.absolute().parent
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": EXTENSIONS,
        "id": path.stem,
        "geometry": None if shape is None else shapely.geometry.mapping(shape),
        "properties": properties,
        "links": [{"rel": "derived_from", "href": _href(mapped.scene, folder), "type": GEOTIFF}],
        "assets": {
            kind: _asset(kind, file, folder, mapped) for kind, file in mapped.paths.items() if kind != "stac"
        },
    }
    if shape is not None:
        item["bbox"] = _bbox(shape)
    return json.dumps(item, indent=1, ensure_ascii=True).encode()


def _asset(kind: str, file: Path, folder: Path, mapped: Mapped) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": _href(str(file), folder),
        "type": MEDIA.get(file.suffix.lower(), COG),
        "roles": ROLES.get(kind, ["data"]),
    }
    if kind in ("labels", "vector"):
        asset["classification:classes"] = list(mapped.classes)
    if kind == "labels":
        asset |= {"data_type": "uint8", "nodata": classes.NODATA}
    elif asset["type"] == COG:
        names = mapped.bands if kind in ("probabilities", "heatmaps") else [kind]
        values = {"data_type": "uint8", "nodata": classes.NODATA, "raster:scale": SCALE}
        asset["bands"] = [{"name": name, **values} for name in names]
    return asset


def _href(path: str, folder: Path) -> str:
    if gdal.is_remote(path) or "://" in path or path.startswith("/vsi"):
        return gdal.display_name(path)
    return Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()


def _code(grid: Grid) -> str | None:
    if grid.crs is None:
        return None
    authority = grid.crs.to_authority()
    return ":".join(authority) if authority else None


def _taken(scene: str) -> str | None:
    """Return when a scene was taken, where its file says so."""
    with gdal.reading(scene) as dataset:
        text = gdal.tags(dataset).get("TIFFTAG_DATETIME", "")
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None


def footprint(grid: Grid) -> Any:
    """Return the outline of a grid in longitude and latitude, cut at the 180th meridian; None without a CRS.

    A grid around a pole reaches up to it.
    """
    if grid.crs is None:
        return None
    from pyproj import Transformer

    steps = np.linspace(0, 1, SIDE_POINTS)[:-1]
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    cols = np.concatenate([steps, one, 1 - steps, zero]) * grid.width
    rows = np.concatenate([zero, steps, one, 1 - steps]) * grid.height
    x, y = grid.transform * (cols, rows)  # type: ignore[operator]
    transformer = Transformer.from_crs(grid.wkt, "EPSG:4326", always_xy=True)
    lon, lat = map(np.asarray, transformer.transform(x, y))
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return None
    closed = np.unwrap(np.append(lon, lon[0]), period=360)
    points = np.column_stack([closed, np.append(lat, lat[0])])
    if abs(closed[-1] - closed[0]) > 180:  # around a pole
        pole = 90.0 if lat.mean() > 0 else -90.0
        points = np.vstack([points, (closed[-1], pole), (closed[0], pole)])
    outline = shapely.make_valid(shapely.Polygon(points))
    parts = []
    for turn in range(-2, 3):
        inside = shapely.intersection(outline, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        moved = shapely.transform(inside, lambda xy, turn=turn: xy - (360.0 * turn, 0.0))
        parts += [part for part in shapely.get_parts(moved) if part.geom_type == "Polygon" and part.area > 0]
    rounded = [shapely.set_precision(part, 10.0**-DIGITS) for part in parts]
    whole = shapely.union_all(rounded)  # around a pole the first part and the last one touch
    return None if whole.is_empty else shapely.orient_polygons(whole)


def _bbox(shape: Any) -> list[float]:
    """West, south, east, north; west is above east where the shape crosses the 180th meridian."""
    west, south, east, north = shapely.bounds(shape).tolist()
    boxes = shapely.bounds(shapely.get_parts(shape))
    if len(boxes) > 1 and west == -180 and east == 180:
        right = boxes[boxes[:, 2] < 180]
        left = boxes[boxes[:, 0] > -180]
        if len(right) and len(left):
            west, east = float(left[:, 0].min()), float(right[:, 2].max())
    return [west, south, east, north]
