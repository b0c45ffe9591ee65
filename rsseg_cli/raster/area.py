"""Areas of interest: the polygons of a vector file on a grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.features import geometry_mask

from rsseg_cli.errors import UsageError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.grid import Grid

if TYPE_CHECKING:
    from geopandas import GeoSeries

logger = logging.getLogger(__name__)


class Area:
    """Polygons in a grid's CRS; pixels whose centre lies inside one belong to the area."""

    def __init__(self, polygons: Sequence[Any], name: str = "--aoi") -> None:
        from shapely import STRtree

        self.name = name
        self.notes: list[str] = []  # warnings that decide about pixels
        self._polygons = list(polygons)
        self._tree = STRtree(self._polygons)

    @classmethod
    def read(cls, path: Path, grid: Grid) -> Self:
        """Read a vector file's polygons in the grid's CRS; OutsideError if none lies inside."""
        from pyproj import CRS as ProjCRS
        from pyproj.exceptions import ProjError
        from shapely import make_valid

        notes: list[str] = []
        shapes = cls.read_polygons(path, notes)
        if grid.crs is None and shapes.crs is not None:
            raise UsageError(f"--aoi {path}: has a CRS, the scene has none; needs both or neither")
        if shapes.crs is None and grid.crs is not None:
            notes.append(f"--aoi {path}: has no CRS; taken to be in the scene's")
        elif grid.crs is not None:
            try:
                shapes = shapes.to_crs(ProjCRS.from_wkt(grid.wkt))
            except ProjError as err:
                raise UsageError(f"--aoi {path}: cannot be reprojected to the scene's CRS ({err})") from err
        area = cls([shape if shape.is_valid else make_valid(shape) for shape in shapes], f"--aoi {path}")
        area.window(grid)
        area.notes.extend(notes)
        for note in notes:
            logger.warning("%s", note)
        return area

    @staticmethod
    def read_polygons(path: Path, notes: list[str] | None = None) -> GeoSeries:
        import geopandas
        from pyogrio.errors import DataSourceError
        from shapely.errors import ShapelyError

        try:
            layer = gdal.first_layer(path, notes)
            frame = geopandas.read_file(path, layer=layer, columns=[], engine="pyogrio")
        except (DataSourceError, OSError, ValueError, ShapelyError) as err:
            raise UsageError(f"--aoi {path}: cannot be read as a vector file ({err})") from err
        shapes = frame.geometry
        polygonal = shapes.geom_type.isin(["Polygon", "MultiPolygon"])
        shapes = shapes[shapes.notna() & ~shapes.is_empty & polygonal]
        if shapes.empty:
            kinds = ", ".join(sorted({str(kind) for kind in frame.geom_type.dropna()})) or "nothing"
            raise UsageError(f"--aoi {path}: holds {kinds}; needs polygons")
        return shapes

    def window(self, grid: Grid) -> tuple[int, int, int, int]:
        """Return (row, col, height, width) of the pixels around all polygons."""
        from shapely import MultiPoint, total_bounds

        columns, rows = (0.5, grid.width - 0.5), (0.5, grid.height - 0.5)
        centres = MultiPoint([grid.transform * (col, row) for col in columns for row in rows]).convex_hull
        if not len(self._tree.query(centres, predicate="intersects")):
            raise grid.outside(self.name)
        return grid.window_of_bbox([float(edge) for edge in total_bounds(self._polygons)], self.name)

    def mask(self, grid: Grid) -> NDArray[np.bool_]:
        """Return (height, width) of `grid`, True inside a polygon."""
        from shapely import box

        indices = self._tree.query(box(*grid.bounds), predicate="intersects")
        if not len(indices):
            return np.zeros((grid.height, grid.width), np.bool_)
        touched = [self._polygons[index] for index in indices]
        return geometry_mask(touched, (grid.height, grid.width), grid.transform, invert=True)
