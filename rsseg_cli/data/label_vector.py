"""Vector labels: polygons with a class, painted onto a grid."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.features import rasterize

from rsseg_cli.data.label_format import LabelFormat, Labels, span_text
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.raster import Grid, gdal

logger = logging.getLogger(__name__)
VECTOR_SUFFIXES = {".gpkg", ".geojson", ".json", ".shp", ".fgb"}
BOX_POINTS = 21  # a side, when a box is transformed to another CRS


def is_vector(path: Path) -> bool:
    """Whether a label file is read as polygons, by its suffix."""
    return path.suffix.lower() in VECTOR_SUFFIXES


def vector_crs(path: Path | str) -> str:
    """CRS of a vector file's first layer, as text; "" if it has none or cannot be read."""
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        return str(pyogrio.read_info(path, layer=gdal.first_layer(path))["crs"] or "")
    except (DataSourceError, OSError, ValueError):
        return ""


def read_shapes(path: Path | str, grid: Grid, grid_of: str = "the scene") -> Any:
    """Return a GeoDataFrame of the features with a geometry, in file order and the grid's CRS."""
    import geopandas

    try:
        frame = geopandas.read_file(path, layer=gdal.first_layer(path), engine="pyogrio")
    except (RuntimeError, OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as a vector file ({err})") from err
    frame = frame[frame.geometry.notna() & ~frame.geometry.is_empty].reset_index(drop=True)
    if (frame.crs is None) != (grid.crs is None):
        alone = grid_of if frame.crs is None else "it"
        raise DataError(f"{path}: only {alone} has a CRS; needs both or neither")
    frame = frame.to_crs(grid.wkt) if grid.wkt else frame
    lost = np.count_nonzero(~np.isfinite(frame.bounds.to_numpy()).all(axis=1))
    if lost:
        raise DataError(
            f"{path}: {lost} of {len(frame)} shapes lie outside the CRS of {grid_of}. Check its CRS (ogrinfo "
            "-so); GeoJSON that names none is taken as EPSG:4326"
        )
    return frame


class VectorLabels:
    """Polygons of the first layer of a file, painted by pixel centre, later ones over earlier ones.

    Memory: the polygons that reach into the grid's bounding box.
    """

    direct = False
    block_size = 512
    unknown_px = 0

    def __init__(self, path: Path, grid: Grid, format: LabelFormat) -> None:
        from shapely import STRtree

        self.path, self.grid, self._outside = path, grid, format.outside_index
        frame = _read(path, format, grid)
        classes = _classes(path, frame, format)
        shapes = _polygons(path, frame, grid)
        self._shapes = list(shapes)
        self._classes = classes[frame.index.get_indexer(shapes.index)]
        self._tree = STRtree(self._shapes)

    def close(self) -> None:
        self._shapes, self._tree = [], None

    @property
    def touches(self) -> bool:
        """Whether a polygon reaches into the grid."""
        from shapely import box

        return bool(self._tree.query(box(*self.grid.bounds), predicate="intersects").size)

    def elsewhere(self) -> str:
        """What is wrong where no polygon of the file lies on or around the grid; "" where some lie around."""
        import pyogrio

        info = pyogrio.read_info(self.path, layer=gdal.first_layer(self.path), force_total_bounds=True)
        bounds, crs = info["total_bounds"], info["crs"]
        if bounds is None or not np.isfinite(bounds).all():
            return ""  # empty
        grid = _box_in(crs, self.grid) or (None if crs and self.grid.crs else self.grid.bounds)
        swapped = bounds[1], bounds[0], bounds[3], bounds[2]
        if grid is None or _meet(bounds, grid):  # None across the antimeridian
            return ""
        text = (
            f"{self.path}: lies elsewhere: it has {span_text(bounds)} in {crs or 'no CRS'} and does not "
            f"overlap the raster's {span_text(grid)}"
        )
        ours = self.grid.crs.to_string() if self.grid.crs else ""
        if crs and _meet(bounds, self.grid.bounds):
            return f"{text}. Its coordinates are those of the raster's CRS: set it by ogr2ogr -a_srs {ours}"
        if _meet(swapped, grid):
            return f"{text}. Its x and y are swapped"
        return f"{text}. Check its CRS (ogrinfo -so); GeoJSON that names none is taken as EPSG:4326"

    def block(self, row: int, col: int, height: int, width: int) -> Labels:
        """Labels of a window of the grid."""
        from shapely import box

        window = self.grid.window(row, col, height, width)
        touched = sorted(self._tree.query(box(*window.bounds)))
        if not touched:
            return np.full((height, width), self._outside, np.uint8)
        return rasterize(
            [(self._shapes[index], int(self._classes[index])) for index in touched],
            (height, width), transform=window.transform, fill=self._outside, dtype="uint8",
        )  # fmt: skip


def _meet(box: Any, other: Any) -> bool:
    return bool(box[0] <= other[2] and other[0] <= box[2] and box[1] <= other[3] and other[1] <= box[3])


def check_vector(path: Path, format: LabelFormat) -> None:
    """Read all features' attributes and refuse unknown classes, without geometries in memory."""
    _classes(path, _read(path, format, None), format)


def _read(path: Path, format: LabelFormat, grid: Grid | None) -> Any:
    """Features in file order with the attribute that names the class; without `grid`, no geometries."""
    import geopandas
    import pyogrio
    from pyogrio.errors import DataSourceError

    advice = "needs GPKG, GeoJSON, Shapefile or FlatGeobuf with polygons"
    try:
        layer = gdal.first_layer(path)
        info = pyogrio.read_info(path, layer=layer)
        field = format.field_in(path, list(map(str, info["fields"])))
        box = None if grid is None else _box_in(info["crs"], grid)
        frame = geopandas.read_file(
            path, layer=layer, columns=[field] if field else [], engine="pyogrio", bbox=box,
            fid_as_index=True, read_geometry=grid is not None,
        )  # fmt: skip
    except (DataSourceError, OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as a vector file ({err}); {advice}") from err
    frame = frame.sort_index()  # a spatial index may give features in its own order
    frame.attrs["field"] = field
    return frame


def _box_in(crs: str | None, grid: Grid) -> tuple[float, float, float, float] | None:
    """The grid's bounding box in a layer's CRS, None where it is unknown."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    if crs is None or grid.crs is None:
        return None
    left, bottom, right, top = grid.bounds
    try:
        target = CRS.from_user_input(crs)
        to_layer = Transformer.from_crs(CRS.from_wkt(grid.wkt), target, always_xy=True)
        box = to_layer.transform_bounds(left, bottom, right, top, densify_pts=BOX_POINTS)
    except ProjError:
        return None
    margin = 0.01 * max(box[2] - box[0], box[3] - box[1])
    if not np.isfinite(box).all() or box[0] > box[2]:  # over the antimeridian
        return None
    return box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin


def _classes(path: Path, frame: Any, format: LabelFormat) -> Any:
    """uint8 class numbers of all features."""
    field = frame.attrs["field"]
    if not field:
        try:
            return np.full(len(frame), format.polygon_index, np.uint8)
        except UsageError as err:
            raise DataError(f"{path}: {err}") from err
    known: dict[Any, int] = {}
    classes = np.empty(len(frame), np.uint8)
    for index, (number, value) in enumerate(frame[field].items()):
        value = value if isinstance(value, Hashable) else str(value)
        if value not in known:
            label = format.index_of(value)
            if label is None:
                raise DataError(
                    f"{path}: feature {number} has {field} {_shown(value)}, which is no class; needs one of "
                    f"{', '.join(format.class_names)}, or 0 to {len(format.class_names) - 1}. Pass "
                    "--label-field for another attribute, or --vector-class if all polygons are of one class"
                )
            known[value] = label
        classes[index] = known[value]
    return classes


def _shown(value: Any) -> str:
    return "nothing" if value is None or value != value else repr(value)[:80]


def _polygons(path: Path, frame: Any, grid: Grid) -> Any:
    """The polygons among the features, valid and in the grid's CRS."""
    from pyproj import CRS
    from pyproj.exceptions import ProjError

    shapes = frame.geometry
    shapes = shapes[shapes.notna() & ~shapes.is_empty]
    flat = shapes[shapes.geom_type.isin(["Polygon", "MultiPolygon", "GeometryCollection"])]
    if len(flat) < len(shapes):
        kinds = ", ".join(sorted(set(shapes.geom_type) - set(flat.geom_type)))
        if flat.empty:
            raise DataError(f"{path}: holds {kinds}; needs polygons")
        logger.warning("%s: %d features of %s are left out", path, len(shapes) - len(flat), kinds)
    if grid.crs is None and flat.crs is not None:
        raise DataError(f"{path}: has a CRS, its image has none, so that they cannot be aligned")
    if flat.crs is None and grid.crs is not None:
        logger.warning("%s has no CRS; taken to be in the image's", path)
    elif grid.crs is not None:
        try:
            flat = flat.to_crs(CRS.from_wkt(grid.wkt))
        except ProjError as err:
            raise DataError(f"{path}: cannot be transformed to its image's CRS ({err})") from err
    flat = flat.make_valid()
    finite = np.isfinite(flat.bounds.to_numpy()).all(axis=1)
    if not finite.all():
        logger.warning("%s: %d polygons lie outside the image's CRS", path, int((~finite).sum()))
    return flat[finite]
