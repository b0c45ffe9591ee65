"""Rasters in and out: all that opens them lies behind these names."""

from rsseg_cli.area import Area, Grid, first_layer, read_area, window_of_bbox
from rsseg_cli.bands import select_bands
from rsseg_cli.creation import check_creation_options
from rsseg_cli.output import RasterWriter
from rsseg_cli.pixels import fill
from rsseg_cli.reader import SceneReader, overview
from rsseg_cli.replace import check_target, replace_all
from rsseg_cli.scene_info import SceneInfo, inspect
from rsseg_cli.stretch import percentile_ranges, type_range

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
