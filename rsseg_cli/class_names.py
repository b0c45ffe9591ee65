"""What a class raster says of itself: its classes' names and colours by value, and its scene."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from rasterio.io import MemoryFile
from rasterio.shutil import copy

from rsseg_cli.errors import SceneError
from rsseg_cli.gdal import display_name, gdal_env, gdal_errors, open_raster, tags_of

Colour = tuple[int, int, int]
MAX_VALUES = 256
MAX_NAME = 100


def plain(name: str) -> str:
    """A name as it is compared: without capitals and space around."""
    return name.strip().casefold()


def read_class_names(path: str | Path) -> dict[int, str]:
    """Names by pixel value, empty where the raster has none.

    From the tags CLASS_0, CLASS_1, ... that `predict` writes, else from GDAL's category names.

    Raises:
        SceneError: it cannot be opened.
    """
    with gdal_env(str(path)), gdal_errors(SceneError, display_name(path)), open_raster(path) as dataset:
        names = {
            int(match[1]): name
            for key, name in tags_of(dataset).items()
            if (match := re.fullmatch(r"CLASS_(\d{1,3})", key))
        } or _categories(dataset)
    return {
        value: name.strip()[:MAX_NAME]
        for value, name in sorted(names.items())
        if value < MAX_VALUES and name.strip()
    }


def read_class_colours(path: str | Path) -> dict[int, Colour]:
    """Colours by pixel value of a raster with a palette, else empty.

    Raises:
        SceneError: it cannot be opened.
    """
    with gdal_env(str(path)), gdal_errors(SceneError, display_name(path)), open_raster(path) as dataset:
        if dataset.count == 0 or dataset.colorinterp[0].name != "palette":
            return {}
        return {value: colour[:3] for value, colour in dataset.colormap(1).items()}


def read_scene_name(path: str | Path) -> str:
    """The scene that `predict` made the raster of, "" where it does not say.

    Raises:
        SceneError: it cannot be opened.
    """
    with gdal_env(str(path)), gdal_errors(SceneError, display_name(path)), open_raster(path) as dataset:
        return tags_of(dataset).get("RSSEG_SCENE", "")


def _categories(dataset: Any) -> dict[int, str]:
    """GDAL's category names, which rasterio does not hand out: from the raster's description as a VRT."""
    with MemoryFile(ext=".vrt") as described:
        copy(dataset, described.name, driver="VRT")
        root = ET.fromstring(described.read())
    names = root.findall("VRTRasterBand[@band='1']/CategoryNames/Category")
    return {value: name.text or "" for value, name in enumerate(names[:MAX_VALUES])}
