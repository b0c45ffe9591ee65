"""Scenes that are drawn, with their labels."""

from rsseg_cli.data.synthetic.scene import CLASSES, GSD_RANGE_M, draw_scene, write_scene
from rsseg_cli.data.synthetic.style import STYLES

__all__ = ["CLASSES", "GSD_RANGE_M", "STYLES", "draw_scene", "write_scene"]
