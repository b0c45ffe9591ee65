"""The worst tiles of a map: which they are, and their pictures, read window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsseg_cli.data import LabelReader
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluation.tiles import MapAndTruth, TileScore, Window
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, classes

MAX_TILES = 12
MIN_LABELLED = 0.05  # share of a tile; of less one cannot tell how good the map is there
PICTURE_PX = 384  # longest side of a picture
SHOWN_PX = 512  # longest side of the ground shown, px of the map
CELL_PX = 32  # wrong pixels of a large tile are counted in cells of this side
CONFUSIONS = 3  # named below a tile


@dataclass(frozen=True, kw_only=True)
class WorstTile:
    """A part of a map that is far from the truth, ready to be shown.

    `image` is uint8 (h, w, 3), None where there is none; `truth` and `mapped` are uint8 (h, w), class or 255;
    all of one size, at most PICTURE_PX a side. The window may be a part of the tile, of which `labelled`,
    `wrong` and `confusions` (class, mapped as, pixels; most first) are.
    """

    scene: str
    row: int
    col: int
    height: int
    width: int
    image: NDArray[np.uint8] | None
    truth: NDArray[np.uint8]
    mapped: NDArray[np.uint8]
    crs: str
    centre: tuple[float, float] | None
    lonlat: tuple[float, float] | None
    width_m: float | None
    labelled: int
    wrong: int
    confusions: tuple[tuple[int, int, int], ...]


def wrong_pixels(confusion: NDArray[np.int64]) -> int:
    """Labelled pixels that were mapped as something else, or not at all."""
    return int(confusion.sum() - np.trace(confusion))


def worst_tiles(tiles: Sequence[TileScore], scenes: int, limit: int = MAX_TILES) -> list[TileScore]:
    """The tiles with most wrong pixels, the worst first.

    At most 2 a scene, or `limit` divided by the number of scenes where that is more, so that one bad scene
    does not hide the others. What is not among the worst of some scenes is not among the worst of all.
    """
    a_scene = max(2, math.ceil(limit / max(1, scenes)))
    taken: dict[str, int] = {}
    chosen: list[TileScore] = []
    for tile in sorted(
        tiles, key=lambda tile: (-wrong_pixels(tile.confusion), tile.scene, tile.row, tile.col)
    ):
        enough = tile.confusion.sum() >= MIN_LABELLED * tile.height * tile.width
        if enough and wrong_pixels(tile.confusion) and taken.get(tile.scene, 0) < a_scene:
            taken[tile.scene] = taken.get(tile.scene, 0) + 1
            chosen.append(tile)
    return chosen[:limit]


class WorstTiles:
    """The worst tiles of the scenes seen so far, read at once, so that the maps may be deleted."""

    def __init__(self, scenes: int) -> None:
        self._scenes = scenes
        self._read: list[tuple[TileScore, WorstTile]] = []

    def add(self, tiles: Sequence[TileScore]) -> None:
        read = {id(tile): shown for tile, shown in self._read}
        worst = worst_tiles([*(tile for tile, _ in self._read), *tiles], self._scenes)
        self._read = [(tile, read.get(id(tile)) or read_worst_tile(tile)) for tile in worst]

    @property
    def shown(self) -> tuple[WorstTile, ...]:
        return tuple(shown for _, shown in self._read)


def read_worst_tile(tile: TileScore) -> WorstTile:
    """Read a tile's pictures: of a large tile, the part with most wrong pixels.

    Memory: a strip of the tile, and the pictures.
    """
    info = SceneInfo.of(tile.predicted)
    table = np.where(tile.class_table < len(tile.confusion), tile.class_table, np.uint8(classes.IGNORE))
    with (
        classes.ClassRaster(info, table) as raster,
        LabelReader(tile.truth, info.grid, tile.truth_format) as truth_reader,
    ):
        pair = MapAndTruth(raster, truth_reader, area=tile.area)
        window = _densest(pair, tile)
        mapped, truth = pair.mapped(window), pair.labels(window)[0]
    grid = info.grid.window(*window)
    shrink = min(1.0, PICTURE_PX / max(truth.shape))
    size = max(1, round(truth.shape[0] * shrink)), max(1, round(truth.shape[1] * shrink))
    gsd, centre = grid.gsd_m, grid.transform * (grid.width / 2, grid.height / 2)
    return WorstTile(
        scene=tile.scene,
        row=window[0],
        col=window[1],
        height=window[2],
        width=window[3],
        image=_picture(tile.image, grid.scaled(height=size[0], width=size[1])) if tile.image else None,
        truth=_shrunk(truth, size),
        mapped=_shrunk(mapped, size),
        crs=_crs_name(grid.crs),
        centre=None if grid.crs is None else centre,
        lonlat=_lonlat(grid.crs, centre),
        width_m=None if gsd is None else gsd[0] * grid.width,
        labelled=int(tile.confusion.sum()),
        wrong=wrong_pixels(tile.confusion),
        confusions=_confusions(tile.confusion),
    )


def _densest(pair: MapAndTruth, tile: TileScore) -> Window:
    """The window of at most SHOWN_PX a side with most wrong pixels, in steps of CELL_PX."""
    rows, cols = min(tile.height, SHOWN_PX), min(tile.width, SHOWN_PX)
    if (rows, cols) == (tile.height, tile.width):
        return tile.row, tile.col, rows, cols
    strips = [
        (tile.row + top, tile.col, min(SHOWN_PX, tile.height - top), tile.width)
        for top in range(0, tile.height, SHOWN_PX)
    ]
    counts = np.concatenate([_cells(pair.mapped(strip), pair.labels(strip)[0]) for strip in strips])
    down, across = min(len(counts), SHOWN_PX // CELL_PX), min(counts.shape[1], SHOWN_PX // CELL_PX)
    sums = np.pad(counts.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    best = np.unravel_index(int(windows.argmax()), windows.shape)
    row = min(int(best[0]) * CELL_PX, tile.height - rows)
    col = min(int(best[1]) * CELL_PX, tile.width - cols)
    return tile.row + row, tile.col + col, rows, cols


def _cells(mapped: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Wrong pixels by cells of CELL_PX a side."""
    wrong = ((truth != classes.IGNORE) & (truth != mapped)).astype(np.int64)
    rows, cols = (np.arange(0, side, CELL_PX) for side in wrong.shape)
    return np.add.reduceat(np.add.reduceat(wrong, rows, 0), cols, 1)


def _shrunk(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Nearest pixels; classes have no average."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def _picture(path: Any, grid: Grid) -> NDArray[np.uint8] | None:
    """uint8 (h, w, 3) of a scene on `grid`; None where it cannot be shown, which spoils no report."""
    try:
        info = SceneInfo.of(path).in_colour()
        with SceneReader(info, _display_bands(info), grid) as reader:
            array, valid = reader.read(0, 0, grid.height, grid.width)
    except (RssegError, ValueError):  # ValueError: the image lies on another grid than the map
        return None
    picture = _stretched(array, valid)
    return np.ascontiguousarray(np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0))


def _display_bands(info: SceneInfo) -> tuple[int, ...]:
    """Red, green, blue; else the first three bands as they are, else the first alone."""
    try:
        return info.select_bands(("red", "green", "blue"))
    except RssegError:
        bands = info.colour_bands or (1,)
        return bands[:3] if len(bands) >= 3 else bands[:1]


def _stretched(array: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """8-bit values as they are, others between their 2nd and 98th percentile; white without data."""
    if array.dtype != np.uint8:
        values = array.astype(np.float32)
        known = values[:, valid]
        low, high = np.percentile(known, (2, 98), axis=1) if known.size else (np.zeros(1), np.ones(1))
        low, high = low[:, None, None], np.maximum(high, low + 1e-6)[:, None, None]
        array = np.clip(np.nan_to_num((values - low) / (high - low)) * 255, 0, 255).round().astype(np.uint8)
    return np.where(valid, array, np.uint8(255))


def _crs_name(crs: Any) -> str:
    if crs is None:
        return ""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else "the scene's own CRS"


def _lonlat(crs: Any, point: tuple[float, float]) -> tuple[float, float] | None:
    if crs is None:
        return None
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        lon, lat = Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True).transform(*point)
    except ProjError:
        return None
    return (lon, lat) if math.isfinite(lon) and math.isfinite(lat) else None


def _confusions(confusion: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:CONFUSIONS]
    pairs = [(int(flat // wrong.shape[1]), int(flat % wrong.shape[1])) for flat in order]
    return tuple((*pair, int(wrong[pair])) for pair in pairs if wrong[pair])
