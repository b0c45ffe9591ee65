"""Rasters in and out: all that opens them lies behind these names."""

from rsseg_cli.raster.area import Area, first_layer, read_area, window_of_bbox
from rsseg_cli.raster.bands import select_bands
from rsseg_cli.raster.files import check_target, replace_all
from rsseg_cli.raster.grid import Grid
from rsseg_cli.raster.info import SceneInfo, inspect
from rsseg_cli.raster.pixels import fill
from rsseg_cli.raster.reader import SceneReader, overview, percentile_ranges, type_range
from rsseg_cli.raster.writer import RasterWriter, check_creation_options

__all__ = [
    "Area",
    "Grid",
    "RasterWriter",
    "SceneInfo",
    "SceneReader",
    "check_creation_options",
    "check_target",
    "fill",
    "first_layer",
    "inspect",
    "overview",
    "percentile_ranges",
    "read_area",
    "replace_all",
    "select_bands",
    "type_range",
    "window_of_bbox",
]
