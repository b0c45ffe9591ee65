"""Grids of pixels, and parts of them: a bounding box, the polygons of a vector file."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import geometry_mask

from rsseg_cli.errors import OutsideError, UsageError

if TYPE_CHECKING:
    from geopandas import GeoSeries

logger = logging.getLogger("rsseg_cli")
SNAP_PX = 1e-4  # a box drawn on pixel edges, written with few digits, does not grow by a pixel


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where pixels lie.

    Attributes:
        crs: coordinate system, None without.
        transform: (col, row) to (x, y); may be rotated or south-up.
        width, height: px.
    """

    crs: CRS | None
    transform: Affine
    width: int
    height: int

    def scaled(self, *, width: int, height: int) -> Grid:
        """The same extent with another number of pixels."""
        steps = Affine.scale(self.width / width, self.height / height)
        return Grid(crs=self.crs, transform=self.transform * steps, width=width, height=height)

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        """The grid of a window, px."""
        return Grid(
            crs=self.crs, transform=self.transform * Affine.translation(col, row), width=width, height=height
        )

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """left, bottom, right, top of the box around all pixels, in the CRS."""
        corners = [
            self.transform * point
            for point in ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height))
        ]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @cached_property
    def gsd_m(self) -> tuple[float, float] | None:
        """Metres on the ground a pixel, along a row and along a column, at the centre; None without CRS.

        Measured on the ellipsoid, so that Mercator's stretch and degrees do not enter.
        """
        if self.crs is None:
            return None
        from pyproj import CRS as ProjCRS
        from pyproj import Transformer
        from pyproj.exceptions import ProjError

        col, row = self.width / 2, self.height / 2
        points = [
            self.transform * (col + dx, row + dy) for dx, dy in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))
        ]
        try:
            crs = ProjCRS.from_wkt(self.crs.to_wkt())
            ellipsoid = crs.get_geod()
            if crs.geodetic_crs is None or ellipsoid is None or crs.is_geocentric:
                return None
            to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
            lon, lat = to_degrees.transform([x for x, _ in points], [y for _, y in points])
            _, _, metres = ellipsoid.inv(
                [lon[0], lon[2]], [lat[0], lat[2]], [lon[1], lon[3]], [lat[1], lat[3]]
            )
        except ProjError:
            return None
        if not all(math.isfinite(length) and length > 0 for length in metres):
            return None
        return float(metres[0]), float(metres[1])


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
