"""Scenes in parts: variables of netCDF, HDF5 and Zarr files, folders of Sentinel-2 products."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import gdal

MAX_PARTS = 64
MAX_VRT_BYTES = 1 << 20
MAX_NAMED = 8  # in a message
BAND_FILES = ("*_B02_10m.jp2", "*_B03_10m.jp2", "*_B04_10m.jp2", "*_B08_10m.jp2")  # of Sentinel-2, level 2A
OLD_BAND_FILES = ("*_B02.jp2", "*_B03.jp2", "*_B04.jp2", "*_B08.jp2")  # level 1C
BAND_NAMES = ("blue", "green", "red", "nir")
logger = logging.getLogger(__name__)


def raster_of(path: str) -> str:
    """Return what GDAL opens for a path: of a product's folder a VRT of its bands of 10 m."""
    if gdal.is_remote(path) or not gdal.is_product(path):
        return path
    from rsseg_cli.raster import vrt
    from rsseg_cli.raster.info import SceneInfo

    for patterns in (BAND_FILES, OLD_BAND_FILES):
        files = [sorted(Path(path).rglob(f"IMG_DATA/**/{pattern}")) for pattern in patterns]
        if all(len(group) == 1 for group in files):
            bands = [(SceneInfo.of(group[0]), 1, name) for group, name in zip(files, BAND_NAMES, strict=True)]
            return vrt.of_files(bands)
    metadata = sorted(Path(path).glob("MTD_MSI*.xml"))
    advice = f"Pass a file in it, such as {metadata[0]}" if metadata else "Pass a raster file in it"
    raise SceneError(
        f"{path}: holds no single set of Sentinel-2 bands of 10 m (IMG_DATA/.../*_B02*.jp2). {advice}"
    )


def names_of_sources(path: str, count: int) -> tuple[str | None, ...]:
    """Return the names of the files of a local VRT that shows one file a band, as gdalbuildvrt -separate."""
    try:
        if not path.lower().endswith(".vrt") or os.path.getsize(path) > MAX_VRT_BYTES:
            return ()
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError, ValueError):
        return ()
    names = []
    for band in root.findall("VRTRasterBand"):
        files = [source.findtext("SourceFilename") for source in band if source.tag.endswith("Source")]
        names += [Path(file).stem for file in files if file] if len(files) == 1 else []
    return tuple(names) if len(set(names)) == count == len(names) else ()


def join(dataset: Any, name: str, advice: str) -> str:
    """Return a VRT of the parts of a container that have one band each and the finest grid.

    Raises:
        SceneError: there are others; it lists them.
    """
    from rsseg_cli.raster import vrt
    from rsseg_cli.raster.info import SceneInfo

    parts = [_absolute(part, dataset) for part in dataset.subdatasets]
    if dataset.driver == "Zarr":  # GDAL lists its folders as the disk does
        parts.sort()
    if not parts:
        raise SceneError(f"{name}: holds no bands itself. {advice}")
    infos = [SceneInfo.of(part) for part in parts[:MAX_PARTS]]
    ten_metres = [info.path for info in infos if ":10m:" in info.path]  # Sentinel-2, by GDAL's driver
    if len(ten_metres) == 1:
        return ten_metres[0]
    # Coordinates are parts too, and a product may have bands of several resolutions.
    planes = [info for info in infos if min(info.grid.width, info.grid.height) > 1] or infos
    finest = max((info.grid for info in planes), key=lambda grid: grid.width * grid.height)
    chosen = [info for info in planes if info.grid == finest]
    if all(info.count == 1 for info in chosen) and (len(chosen) > 1 or len(planes) == 1):
        names = [info.descriptions[0] or info.path.rpartition(":")[2].strip('"/') for info in chosen]
        logger.info("%s: bands %s", name, ", ".join(names))
        return vrt.of_files([(info, 1, text) for info, text in zip(chosen, names, strict=True)])
    listed = ", ".join(
        f"{gdal.display_name(info.path)} ({info.count} band{'s' * (info.count > 1)} of {info.grid.width} x "
        f"{info.grid.height} px)"
        for info in infos[:MAX_NAMED]
    )
    more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
    raise SceneError(f"{name}: holds no bands itself. Pass one of its parts in its place: {listed}{more}")


def _absolute(part: str, dataset: Any) -> str:
    """Return a part's name with the absolute path of its file, quoted where it has colons."""
    path = dataset.name
    if not os.path.exists(path):
        return part
    absolute = os.path.abspath(path)
    part = part.replace(f'"{path}"', path, 1)  # rasterio 1.5 quotes every path, 1.4 none
    return part.replace(path, f'"{absolute}"' if ":" in absolute else absolute, 1)
