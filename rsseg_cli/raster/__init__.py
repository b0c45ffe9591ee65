"""Rasters in and out: grids, scenes, class rasters, and the files that hold them."""

from rsseg_cli.raster import classes, gdal, vrt
from rsseg_cli.raster.area import Area
from rsseg_cli.raster.grid import Grid
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.reader import SceneReader
from rsseg_cli.raster.writer import RasterWriter

__all__ = ["Area", "Grid", "RasterWriter", "SceneInfo", "SceneReader", "classes", "gdal", "vrt"]
