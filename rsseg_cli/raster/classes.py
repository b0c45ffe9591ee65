"""Class rasters: the values of their pixels, and the names and colours that they carry."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.shutil import copy

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.raster import gdal, legend
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.legend import add_category as add_category
from rsseg_cli.raster.legend import add_options as add_options
from rsseg_cli.raster.legend import class_style as class_style
from rsseg_cli.raster.legend import colour_of as colour_of
from rsseg_cli.raster.legend import qml as qml
from rsseg_cli.raster.reader import SceneReader
from rsseg_cli.raster.remap import Hex as Hex
from rsseg_cli.raster.remap import Triple as Triple
from rsseg_cli.raster.remap import plain as plain
from rsseg_cli.raster.remap import read_items as read_items
from rsseg_cli.raster.remap import remapped as remapped
from rsseg_cli.raster.remap import rgb as rgb

NODATA = 255  # of a class raster: no class, no data
IGNORE = 255  # of labels: pixels that a loss or a score leaves out
INVALID = 254  # in tables of values: no class; classes end at 253
UNLABELLED_NAMES = ("unlabelled", "unlabeled", "ignore", "nodata", "no data")
MAX_VALUES = 256
MAX_NAME = 100
Labels = NDArray[np.uint8]
Colour = legend.Colour
logger = logging.getLogger(__name__)


class ClassRaster:
    """Windows of a class raster, its values looked up in a table.

    Args:
        table: uint8 (256,): class of each value, INVALID for values that must not occur.
        bands: the classes, then what else `rows` reads; by default the only band that is not alpha.
        window: (row, col, height, width) in which `rows` counts.
        none: class of pixels without data or outside the raster, and of values beyond 0 to 255.
    """

    def __init__(
        self,
        info: SceneInfo,
        table: Labels,
        *,
        bands: Sequence[int] | None = None,
        window: tuple[int, int, int, int] | None = None,
        none: int = NODATA,
    ) -> None:
        self.info, self.grid, self.table, self.none = info, info.grid, table, none
        self.window = window or (0, 0, info.grid.height, info.grid.width)
        self._strict = bool((table == INVALID).any())
        bands = bands or (class_band(info),)
        self._readers = [SceneReader(info, part) for part in (bands[:1], bands[1:]) if part]
        self._stack = ExitStack()

    @classmethod
    def matching(
        cls, path: str | Path, class_names: Sequence[str], aliases: Mapping[str, int] | None = None
    ) -> Self:
        """Match values to N classes by name, else by number; none of them, or no data, is N.

        `aliases` are plain names of further classes, and what they count as.
        """
        info = SceneInfo.of(path)
        table = _table_of(info.name, read_names(path), class_names, aliases or {})
        return cls(info, table, none=len(class_names))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for reader in self._readers:
                stack.enter_context(reader)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)

    def read(self, row: int, col: int, height: int, width: int) -> Labels:
        """Return the classes (height, width) of a window, which may reach beyond the raster."""
        window, part = self.grid.clip(row, col, height, width)
        if window == (row, col, height, width):
            return self._read(*window)
        labels = np.full((height, width), self.none, np.uint8)
        if min(window[2:]) > 0:
            labels[part] = self._read(*window)
        return labels

    def rows(self, row: int, height: int) -> tuple[Labels, NDArray[np.uint8] | None]:
        """Return classes (height, width) of rows of `window`, and (bands, height, width) of the others."""
        top, left, _, width = self.window
        others = [reader.read(top + row, left, height, width)[0] for reader in self._readers[1:]]
        return self.read(top + row, left, height, width), cast("Labels", others[0]) if others else None

    def _read(self, row: int, col: int, height: int, width: int) -> Labels:
        (values,), valid = self._readers[0].read(row, col, height, width)
        if values.dtype == np.uint8:
            labels = self.table[values]
        else:
            if not (values[valid] == np.floor(values[valid])).all():  # of whole numbers any type will do
                broken = values[valid & (values != np.floor(values))][0]
                raise SceneError(
                    f"{self.info.name}: value {broken:g} is no class; needs one band of class numbers"
                )
            inside = (values >= 0) & (values < MAX_VALUES)
            labels = self.table[np.where(inside, values, 0).astype(np.uint8)]
            labels[~inside] = INVALID if self._strict else self.none
        labels[~valid] = self.none
        if self._strict and (labels == INVALID).any():
            self._refuse(values, labels == INVALID, row, col)
        return labels

    def _refuse(self, values: NDArray[np.generic], invalid: NDArray[np.bool_], row: int, col: int) -> None:
        at = np.argwhere(invalid)[0]
        known = np.flatnonzero(self.table < INVALID)
        if len(known) == known[-1] - known[0] + 1:
            listed = f"{known[0]} to {known[-1]}"
        else:
            listed = ", ".join(map(str, known[:20]))
        raise SceneError(
            f"{self.info.name}: value {values[tuple(at)]} at row {row + at[0]}, column {col + at[1]} is "
            f"no class; the classes are {listed}, {NODATA} or the file's nodata value is no data"
        )


def class_band(info: SceneInfo) -> int:
    bands = info.colour_bands
    if len(bands) != 1 or np.dtype(info.dtypes[bands[0] - 1]).kind not in "iuf":
        dtypes = ", ".join(dict.fromkeys(info.dtypes))
        raise SceneError(
            f"{info.name}: {info.count} bands of {dtypes}; needs one band of class numbers, as `rsseg "
            "predict` writes it"
        )
    return bands[0]


def _table_of(
    where: str, names: Mapping[int, str], class_names: Sequence[str], aliases: Mapping[str, int]
) -> Labels:
    """Return uint8 (256,): class number of each value, N for none of the classes."""
    table = np.full(MAX_VALUES, len(class_names), np.uint8)
    if not names:
        table[: len(class_names)] = np.arange(len(class_names))
        return table
    matched = _numbers(names, class_names, aliases)
    for value, number in matched.items():
        table[value] = number
    others = [name for value, name in names.items() if value not in matched and not is_unlabelled(name)]
    if not matched:
        raise DataError(
            f"{where}: its classes are {', '.join(names.values())}; none of them is one of "
            f"{', '.join(class_names)}. Pass --classes, or other truth"
        )
    if others:
        logger.warning(
            "%s: %s is none of %s; pixels mapped so count as wrong", where, ", ".join(others),
            ", ".join(class_names),
        )  # fmt: skip
    return table


def _numbers(
    names: Mapping[int, str], known: Sequence[str], aliases: Mapping[str, int] | None = None
) -> dict[int, int]:
    """Return the number in `known` of each value whose name is there."""
    numbers = {plain(name): index for index, name in enumerate(known)} | dict(aliases or {})
    return {value: numbers[plain(name)] for value, name in names.items() if plain(name) in numbers}


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """How a raster's values and a refiner's classes belong together; `note` is for the user, or "".

    `table` is uint8 (256,): class of a value, numbered as in the refined map; NODATA or INVALID for others.
    """

    table: Labels
    order: tuple[int, ...]
    note: str = ""


def match(where: str, names: Mapping[int, str], refiner: str, known: Sequence[str]) -> ClassMatch:
    """Match a raster's classes with a refiner's by name; without names values are the refiner's numbers.

    The map keeps the raster's numbers where they are 0 to N - 1, else it takes the refiner's.
    """
    table = np.full(MAX_VALUES, INVALID, np.uint8)
    table[NODATA] = NODATA
    identity = tuple(range(len(known)))
    if not names:
        table[: len(known)] = identity
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(known))
        return ClassMatch(
            table=table, order=identity, note=f"{where}: names no classes; taken to be {listed}"
        )
    matched = _numbers(names, known)
    table[[value for value, name in names.items() if value not in matched and is_unlabelled(name)]] = NODATA
    _check_names(where, names.values(), refiner, known)
    if sorted(matched) == list(identity):
        table[: len(known)] = identity
        return ClassMatch(table=table, order=tuple(matched[value] for value in identity))
    for value, index in matched.items():
        table[value] = index
    listed = ", ".join(f"{value} becomes {index} ({known[index]})" for value, index in matched.items())
    return ClassMatch(table=table, order=identity, note=f"{where}: classes are renumbered: {listed}")


def _check_names(where: str, names: Iterable[str], refiner: str, known: Sequence[str]) -> None:
    names = [name for name in names if not is_unlabelled(name)]
    mapped, wanted = [plain(name) for name in names], [plain(name) for name in known]
    problems = {
        "the refiner does not know": [name for name in names if plain(name) not in wanted],
        "the map lacks": [name for name in known if plain(name) not in mapped],
        "the map has twice": sorted({name for name in mapped if mapped.count(name) > 1}),
    }
    if any(problems.values()):
        listed = "; ".join(f"{what} {', '.join(map(repr, of))}" for what, of in problems.items() if of)
        raise SceneError(
            f"{where}: its classes are not those of refiner {refiner!r}: {listed}. Pass the "
            "--refiner of the model that made the map, or rename the classes"
        )


def is_unlabelled(name: str) -> bool:
    return plain(name) in UNLABELLED_NAMES


def read_names(path: str | Path) -> dict[int, str]:
    """Return class names by pixel value: of the tags CLASS_0, ... that `predict` writes, else GDAL's.

    GDAL has them as category names, or in an attribute table.
    """
    with gdal.reading(path) as dataset:
        names = {
            int(number[1]): name
            for key, name in gdal.tags(dataset).items()
            if (number := re.fullmatch(r"CLASS_(\d{1,3})", key))
        }
        names = names or _described(dataset)[0]
    return {
        value: name.strip()[:MAX_NAME]
        for value, name in sorted(names.items())
        if value < MAX_VALUES and name.strip()
    }


def read_colours(path: str | Path) -> dict[int, Colour]:
    """Return the palette of a raster by pixel value, empty where it has none."""
    with gdal.reading(path) as dataset:
        if dataset.count and dataset.colorinterp[0].name == "palette":
            return {value: colour[:3] for value, colour in dataset.colormap(1).items()}
        return _described(dataset)[1]


def read_scene_name(path: str | Path) -> str:
    """Return the scene that `predict` made the raster from, "" where it does not say."""
    with gdal.reading(path) as dataset:
        return gdal.tags(dataset).get("RSSEG_SCENE", "")


def _described(dataset: Any) -> tuple[dict[int, str], dict[int, Colour]]:
    """Read category names and attribute table, which rasterio does not offer, from the raster's VRT."""
    with MemoryFile(ext=".vrt") as described:
        copy(dataset, described.name, driver="VRT")
        band = ET.fromstring(described.read()).find("VRTRasterBand[@band='1']")
    if band is None:
        return {}, {}
    categories = band.findall("CategoryNames/Category")[:MAX_VALUES]
    names, colours = legend.read_table(band)
    return {value: name.text or "" for value, name in enumerate(categories)} or names, colours
