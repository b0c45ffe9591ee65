"""Grids of pixels, and parts of them: a bounding box, the polygons of a vector file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask

from rsseg_cli.errors import OutsideError, UsageError

if TYPE_CHECKING:
    from geopandas import GeoSeries
from rsseg_cli.raster.grid import Grid

logger = logging.getLogger("rsseg_cli")
SNAP_PX = 1e-4  # a box drawn on pixel edges, written with few digits, does not grow by a pixel


def window_of_bbox(grid: Grid, bbox: Sequence[float], name: str = "--bbox") -> tuple[int, int, int, int]:
    """Pixels that a box touches, snapped outwards and clipped; of a rotated grid, the window around the box.

    Args:
        bbox: left, bottom, right, top in the grid's CRS.
        name: what messages call the box.

    Returns:
        (row, col, height, width).

    Raises:
        OutsideError: the box lies outside the grid.
    """
    left, bottom, right, top = bbox
    corners = [
        ~grid.transform * point for point in ((left, top), (right, top), (left, bottom), (right, bottom))
    ]
    cols, rows = zip(*corners, strict=True)
    first_row, last_row = _snap(rows, grid.height)
    first_col, last_col = _snap(cols, grid.width)
    if first_row >= last_row or first_col >= last_col:
        raise _outside(f"{name} {_numbers(bbox)}", grid)
    return first_row, first_col, last_row - first_row, last_col - first_col


def _outside(name: str, grid: Grid) -> OutsideError:
    extent = f"{_numbers(grid.bounds)} (left, bottom, right, top)"
    return OutsideError(f"{name}: lies outside the scene, which covers {extent}")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in values)


def _snap(positions: Sequence[float], size: int) -> tuple[int, int]:
    first = np.floor(min(positions) + SNAP_PX)
    last = np.ceil(max(positions) - SNAP_PX)
    return int(np.clip(first, 0, size)), int(np.clip(last, 0, size))


class Area:
    """Polygons in a grid's CRS; only pixels whose centre lies inside one belong to the area.

    Memory: the polygons; masks are made window by window.
    """

    def __init__(self, polygons: Sequence[Any], name: str = "--aoi") -> None:
        from shapely import STRtree

        self.name = name
        self._polygons = list(polygons)
        self._tree = STRtree(self._polygons)

    def window(self, grid: Grid) -> tuple[int, int, int, int]:
        """(row, col, height, width) of the pixels around all polygons.

        Raises:
            OutsideError: they lie outside the grid, or so between and beside its pixels that none belongs to
                the area.
        """
        from shapely import MultiPoint, total_bounds

        columns, rows = (0.5, grid.width - 0.5), (0.5, grid.height - 0.5)
        centres = MultiPoint([grid.transform * (col, row) for col in columns for row in rows]).convex_hull
        if not len(self._tree.query(centres, predicate="intersects")):
            raise _outside(self.name, grid)
        return window_of_bbox(grid, tuple(float(edge) for edge in total_bounds(self._polygons)), self.name)

    def mask(self, grid: Grid) -> NDArray[np.bool_]:
        """(height, width) of `grid`, True inside a polygon."""
        from shapely import box

        touched = [
            self._polygons[index] for index in self._tree.query(box(*grid.bounds), predicate="intersects")
        ]
        if not touched:
            return np.zeros((grid.height, grid.width), np.bool_)
        return geometry_mask(touched, (grid.height, grid.width), grid.transform, invert=True)


def first_layer(path: str | Path) -> str:
    """The first layer that holds geometries; GeoPackages keep styles and the like in further tables.

    Raises:
        pyogrio.errors.DataSourceError: no vector file.
        ValueError: it has no such layer.
    """
    import pyogrio

    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not layers:
        raise ValueError("it holds no layer with geometries")
    if len(layers) > 1:
        logger.warning("%s: layer %s is read, of %s", path, layers[0], ", ".join(layers))
    return layers[0]


def read_polygons(path: Path) -> GeoSeries:
    """Polygons of the first layer of a vector file, in its CRS.

    Raises:
        UsageError: the file cannot be read or has none.
    """
    import geopandas
    from pyogrio.errors import DataSourceError
    from shapely.errors import ShapelyError

    try:
        frame = geopandas.read_file(path, layer=first_layer(path), columns=[], engine="pyogrio")
    except (DataSourceError, OSError, ValueError, ShapelyError) as err:
        raise UsageError(f"--aoi {path}: cannot be read as a vector file ({err})") from err
    shapes = frame.geometry
    shapes = shapes[shapes.notna() & ~shapes.is_empty & shapes.geom_type.isin(["Polygon", "MultiPolygon"])]
    if shapes.empty:
        kinds = ", ".join(sorted({str(kind) for kind in frame.geom_type.dropna()})) or "nothing"
        raise UsageError(f"--aoi {path}: holds {kinds}; needs polygons")
    return shapes


def read_area(path: Path, grid: Grid) -> Area:
    """Polygons of the first layer of a vector file, brought to the grid's CRS.

    Raises:
        OutsideError: no polygon lies inside the grid.
        UsageError: the file cannot be read or has no polygons; or only one of both has a CRS.
    """
    from pyproj import CRS as ProjCRS
    from pyproj.exceptions import ProjError
    from shapely import make_valid

    shapes = read_polygons(path)
    if grid.crs is None and shapes.crs is not None:
        raise UsageError(f"--aoi {path}: has a CRS, the scene has none, so they cannot be brought together")
    if shapes.crs is None and grid.crs is not None:
        logger.warning("--aoi %s has no CRS; taken to be in the scene's", path)
    elif grid.crs is not None:
        try:
            shapes = shapes.to_crs(ProjCRS.from_wkt(grid.crs.to_wkt()))
        except ProjError as err:
            raise UsageError(f"--aoi {path}: cannot be brought to the scene's CRS ({err})") from err
    area = Area([shape if shape.is_valid else make_valid(shape) for shape in shapes], f"--aoi {path}")
    area.window(grid)
    return area
