"""A small picture of the scene around each point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rasterio.warp import transform

from rsseg_cli import files
from rsseg_cli.accuracy.strata import ClassMap
from rsseg_cli.errors import DataError
from rsseg_cli.raster import SceneInfo, SceneReader, classes, gdal

SCALE = 3  # pixels of the picture a pixel of the scene
MARK = (255, 0, 200)
CUT = (2, 98)  # percentiles that become black and white, of scenes that are not 8 bit


def check_chips(folder: Path, source: ClassMap, image: str | None) -> SceneInfo:
    """Return the scene of the pictures; refuse a folder that cannot take them."""
    name = image or classes.read_scene_name(source.path)
    if not name:
        raise DataError(f"{source.path}: does not say which scene it was made from. Pass --image")
    info = SceneInfo.of(name).in_colour()
    if (info.grid.crs is None) != (source.grid.crs is None):
        raise DataError(f"{name} or {source.path}: has no CRS; needs both or neither")
    files.check_folder(folder, "--chips")
    return info


def write_chips(
    folder: Path, info: SceneInfo, source: ClassMap, pixels: NDArray[np.int64], size: int
) -> None:
    """Write FOLDER/00001.png and so on: the scene around each point, which lies in the middle of the frame.

    Args:
        pixels: int64 (points, 2), row and column in the map.
        size: side of a picture, px of the scene.
    """
    folder.mkdir(exist_ok=True)
    x, y = source.grid.xy(*(pixels[:, ::-1].T + np.float64(0.5)))
    if info.grid.crs is not None and info.grid.crs != source.grid.crs:
        with gdal.errors(DataError, info.name):
            x, y = map(np.asarray, transform(source.grid.crs, info.grid.crs, x, y))
    cols, rows = ~info.grid.transform * (x, y)
    bands = info.colour_bands[:3] if len(info.colour_bands) >= 3 else info.colour_bands[:1]
    with SceneReader(info, bands) as reader:
        for number, (row, col) in enumerate(zip(rows, cols, strict=True), 1):
            picture = _chip(reader, int(np.floor(row)), int(np.floor(col)), size)
            picture.save(folder / f"{number:05d}.png")


def _chip(reader: SceneReader, row: int, col: int, size: int) -> Image.Image:
    window, part = reader.grid.clip(row - size // 2, col - size // 2, size, size)
    chip = np.zeros((size, size, 3), np.uint8)
    if min(window[2:]) > 0:
        chip[part] = _to_bytes(*reader.read(*window)).transpose(1, 2, 0)
    picture = Image.fromarray(chip).resize((size * SCALE, size * SCALE), Image.Resampling.NEAREST)
    middle, side = size // 2 * SCALE, SCALE
    ImageDraw.Draw(picture).rectangle(
        (middle - side, middle - side, middle + 2 * side - 1, middle + 2 * side - 1), outline=MARK
    )
    return picture


def _to_bytes(array: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return uint8 (3, height, width); other types are stretched over the picture."""
    array = np.broadcast_to(array, (3, *array.shape[1:]))
    if array.dtype == np.uint8:
        return np.where(valid, array, 0).astype(np.uint8)
    values = array.astype(np.float64)
    if not valid.any():
        return np.zeros(array.shape, np.uint8)
    low, high = np.nanpercentile(values[:, valid], CUT, axis=1)
    spread = np.maximum(high - low, 1e-9)[:, None, None]
    return np.where(valid, ((values - low[:, None, None]) / spread).clip(0, 1) * 255, 0).astype(np.uint8)
