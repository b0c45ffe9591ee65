"""Parts of a scene: a bounding box or the polygons of a vector file, as pixels of its grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask

from rsseg_cli.errors import UsageError

if TYPE_CHECKING:
    from rsseg_cli.raster import Grid

logger = logging.getLogger(__name__)
SNAP_PX = 1e-4  # a box drawn on pixel edges, written with few digits, does not grow by a pixel


def window_of_bbox(grid: Grid, bbox: Sequence[float], name: str = "--bbox") -> tuple[int, int, int, int]:
    """Pixels that a box touches, snapped outwards and clipped; of a rotated grid, the window around the box.

    Args:
        bbox: left, bottom, right, top in the grid's CRS.
        name: what messages call the box.

    Returns:
        (row, col, height, width).

    Raises:
        UsageError: the box lies outside the grid.
    """
    left, bottom, right, top = bbox
    corners = [
        ~grid.transform * point for point in ((left, top), (right, top), (left, bottom), (right, bottom))
    ]
    cols, rows = zip(*corners, strict=True)
    first_row, last_row = _snap(rows, grid.height)
    first_col, last_col = _snap(cols, grid.width)
    if first_row >= last_row or first_col >= last_col:
        extent = ", ".join(f"{value:.10g}" for value in grid.bounds)
        box = ", ".join(f"{value:.10g}" for value in bbox)
        raise UsageError(
            f"{name} {box}: lies outside the scene, which covers {extent} (left, bottom, right, top)"
        )
    return first_row, first_col, last_row - first_row, last_col - first_col


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
            UsageError: they lie outside the grid.
        """
        from shapely import total_bounds

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


def read_area(path: Path, grid: Grid) -> Area:
    """Polygons of the first layer of a vector file, brought to the grid's CRS.

    Raises:
        UsageError: the file cannot be read, has no polygons, or none inside the grid; or only one of both has
            a CRS.
    """
    import geopandas
    from pyogrio.errors import DataSourceError
    from pyproj import CRS
    from shapely import make_valid

    try:
        frame = geopandas.read_file(path, columns=[], engine="pyogrio")
    except (DataSourceError, OSError, ValueError) as err:
        raise UsageError(f"--aoi {path}: cannot be read as a vector file ({err})") from err
    shapes = getattr(frame, "geometry", None) if isinstance(frame, geopandas.GeoDataFrame) else None
    if shapes is None:
        raise UsageError(f"--aoi {path}: has no geometries; needs polygons")
    shapes = shapes[shapes.notna() & ~shapes.is_empty & shapes.geom_type.isin(["Polygon", "MultiPolygon"])]
    if shapes.empty:
        kinds = ", ".join(sorted({str(kind) for kind in frame.geom_type.dropna()})) or "nothing"
        raise UsageError(f"--aoi {path}: holds {kinds}; needs polygons")
    if grid.crs is None and shapes.crs is not None:
        raise UsageError(f"--aoi {path}: has a CRS, the scene has none, so they cannot be brought together")
    if shapes.crs is None and grid.crs is not None:
        logger.warning("--aoi %s has no CRS; taken to be in the scene's", path)
    elif grid.crs is not None:
        shapes = shapes.to_crs(CRS.from_wkt(grid.crs.to_wkt()))
    area = Area([shape if shape.is_valid else make_valid(shape) for shape in shapes], f"--aoi {path}")
    area.window(grid)
    return area
