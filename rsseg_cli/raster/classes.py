"""What a class raster says of itself: its classes' names and colours by value, and its scene."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.shutil import copy

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.reader import SceneReader

NODATA = 255  # of a class raster: no class, no data
IGNORE = 255  # of labels: pixels that a loss or a score leaves out
INVALID = 254  # in tables of values: no class; classes end at 253

UNLABELLED_NAMES = ("unlabelled", "unlabeled", "ignore", "nodata", "no data")


logger = logging.getLogger(__name__)
Labels = NDArray[np.uint8]


class MapReader:
    """Reads a class raster as class numbers.

    Values are brought to the classes by name where the raster names them, else they are class numbers. What
    is none of the classes, or without data, is N.

    Raises:
        SceneError: it cannot be opened.
        DataError: it is no class raster, or none of its classes is known.
    """

    def __init__(self, path: str | Path, class_names: tuple[str, ...]) -> None:
        self.info = SceneInfo.of(path)
        self.grid = self.info.grid
        self.table = _class_table(self.info.name, read_names(path), class_names)
        bands = self.info.colour_bands
        if len(bands) != 1 or np.dtype(self.info.dtypes[bands[0] - 1]).kind not in "iu":
            dtypes = ", ".join(dict.fromkeys(self.info.dtypes))
            raise DataError(
                f"{self.info.name}: {self.info.count} bands of {dtypes}; needs one band of class numbers, as "
                "`rsseg predict` writes it"
            )
        self.none = len(class_names)
        self._reader = SceneReader(self.info, bands)

    def __enter__(self) -> MapReader:
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def read(self, row: int, col: int, height: int, width: int) -> Labels:
        """uint8 (height, width): class numbers, N for none of the classes."""
        (values,), valid = self._reader.read(row, col, height, width)
        if values.dtype != np.uint8:
            valid = valid & (values >= 0) & (values < len(self.table))
            values = np.where(valid, values, 0).astype(np.uint8)
        return np.where(valid, self.table[values], np.uint8(self.none))


def _class_table(where: str, names: Mapping[int, str], class_names: tuple[str, ...]) -> Labels:
    """uint8 (256,): class number of a map's values, N for none of the classes."""
    table = np.full(256, len(class_names), np.uint8)
    if not names:
        table[: len(class_names)] = np.arange(len(class_names))
        return table
    known = {plain(name): index for index, name in enumerate(class_names)}
    strange = []
    for value, name in names.items():
        if plain(name) in known:
            table[value] = known[plain(name)]
        elif plain(name) not in UNLABELLED_NAMES:
            strange.append(name)
    if (table == len(class_names)).all():
        raise DataError(
            f"{where}: its classes are {', '.join(names.values())}; none of them is one of "
            f"{', '.join(class_names)}. Pass --classes, or other truth"
        )
    if strange:
        logger.warning(
            "%s: %s is none of %s; what is mapped so counts as wrong", where, ", ".join(strange),
            ", ".join(class_names),
        )  # fmt: skip
    return table


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """How a raster's values and a refiner's classes belong together.

    Attributes:
        table: uint8 (256,): class of a value, numbered as in the refined map; 255 no data, 254 not known.
        order: the refiner's class of each of the map's.
        note: what to tell of it, "" for nothing.
    """

    table: Labels
    order: tuple[int, ...]
    note: str = ""


def match(where: str, names: Mapping[int, str], refiner: str, known: Sequence[str]) -> ClassMatch:
    """Match a raster's classes with a refiner's by name; without names, values are the refiner's numbers.

    The map keeps the raster's numbers where they are 0 to N - 1, else it takes the refiner's.

    Args:
        names: by value.
        known: of the refiner's classes.

    Raises:
        SceneError: a class of one side is none of the other's.
    """
    table = np.full(256, INVALID, np.uint8)
    table[NODATA] = NODATA
    count = len(known)
    if not names:
        table[:count] = np.arange(count)
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(known))
        return ClassMatch(
            table=table, order=tuple(range(count)), note=f"{where}: names no classes; taken to be {listed}"
        )
    places = {plain(name): index for index, name in enumerate(known)}
    found: dict[int, int] = {}
    for value, name in names.items():
        if plain(name) in places:
            found[value] = places[plain(name)]
        elif plain(name) in UNLABELLED_NAMES:
            table[value] = NODATA
    _check_names(where, names, refiner, known)
    if sorted(found) == list(range(count)):
        table[:count] = np.arange(count)
        return ClassMatch(table=table, order=tuple(found[value] for value in range(count)))
    for value, index in found.items():
        table[value] = index
    listed = ", ".join(f"{value} becomes {index} ({known[index]})" for value, index in found.items())
    return ClassMatch(
        table=table, order=tuple(range(count)), note=f"{where}: classes are renumbered: {listed}"
    )


def _check_names(where: str, names: Mapping[int, str], refiner: str, known: Sequence[str]) -> None:
    mapped = [plain(name) for name in names.values() if plain(name) not in UNLABELLED_NAMES]
    strange = [
        name for name in names.values() if plain(name) in set(mapped) - {plain(item) for item in known}
    ]
    missing = [name for name in known if plain(name) not in mapped]
    twice = sorted({name for name in mapped if mapped.count(name) > 1})
    if not (strange or missing or twice):
        return
    parts = [
        f"{text} {', '.join(map(repr, items))}"
        for text, items in (
            ("the refiner does not know", strange),
            ("the map lacks", missing),
            ("the map has twice", twice),
        )
        if items
    ]
    raise SceneError(
        f"{where}: its classes are not those of refiner {refiner!r}: {'; '.join(parts)}. Pass the "
        "--refiner of the model that made the map, or rename the classes"
    )


class CoarseMap:
    """Windows of the map that is refined.

    Args:
        info: of the raster.
        bands: what is stored: the classes, then whatever else goes with them.
        table: class of a value, see `ClassMatch`.
        window: (row, col, height, width) of the raster that is mapped.
    """

    def __init__(
        self, info: SceneInfo, bands: Sequence[int], table: Labels, window: tuple[int, int, int, int]
    ) -> None:
        self._info, self._table, self.window = info, table, window
        self.height, self.width = info.grid.height, info.grid.width
        self._labels = SceneReader(info, bands[:1])
        self._others = SceneReader(info, bands[1:]) if len(bands) > 1 else None

    def __enter__(self) -> Self:
        self._labels.__enter__()
        if self._others is not None:
            self._others.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._others is not None:
            self._others.__exit__(kind, error, trace)
        self._labels.__exit__(kind, error, trace)

    def labels(self, row: int, col: int, height: int, width: int) -> Labels:
        """Classes (height, width) of any window, 255 without data and outside the raster.

        Raises:
            SceneError: a value is no class, or the pixels cannot be read.
        """
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.height), min(col + width, self.width)
        if (top, left, bottom, right) == (row, col, row + height, col + width):
            return self._read(row, col, height, width)
        labels = np.full((height, width), NODATA, np.uint8)
        if top < bottom and left < right:
            part = slice(top - row, bottom - row), slice(left - col, right - col)
            labels[part] = self._read(top, left, bottom - top, right - left)
        return labels

    def rows(self, row: int, height: int) -> tuple[Labels, NDArray[np.uint8] | None]:
        """Classes (height, width) of the mapped window from a row of it on, and what goes with them."""
        top, left, _, width = self.window
        others = None if self._others is None else self._others.read(top + row, left, height, width)[0]
        return self.labels(top + row, left, height, width), cast("NDArray[np.uint8] | None", others)

    def _read(self, row: int, col: int, height: int, width: int) -> Labels:
        (values,), valid = self._labels.read(row, col, height, width)
        small = values if values.dtype == np.uint8 else np.clip(values, 0, INVALID).astype(np.uint8)
        labels = self._table[small]
        if values.dtype != np.uint8:
            labels[(values < 0) | (values > NODATA)] = INVALID
            labels[values == NODATA] = NODATA
        labels[~valid] = NODATA
        strange = labels == INVALID
        if strange.any():
            self._refuse(values, strange, row, col)
        return labels

    def _refuse(self, values: NDArray[np.generic], strange: NDArray[np.bool_], row: int, col: int) -> None:
        at = np.argwhere(strange)[0]
        known = np.flatnonzero(self._table < INVALID)
        if len(known) == known[-1] - known[0] + 1:
            listed = f"{known[0]} to {known[-1]}"
        else:
            listed = ", ".join(map(str, known[:20]))
        raise SceneError(
            f"{self._info.name}: value {values[tuple(at)]} at row {row + at[0]}, column {col + at[1]} is "
            f"no class; the classes are {listed}, {NODATA} or the file's nodata value is no data"
        )


def label_band(info: SceneInfo) -> int:
    """The band of a class raster.

    Raises:
        SceneError: it has several, or holds no whole numbers.
    """
    bands = info.colour_bands
    if len(bands) != 1 or np.dtype(info.dtypes[bands[0] - 1]).kind not in "iu":
        dtypes = ", ".join(dict.fromkeys(info.dtypes))
        raise SceneError(
            f"{info.name}: {info.count} bands of {dtypes}; needs one band of class numbers, as `rsseg "
            "predict` writes it"
        )
    return bands[0]


Colour = tuple[int, int, int]
MAX_VALUES = 256
MAX_NAME = 100


def plain(name: str) -> str:
    """A name as it is compared: without capitals and space around."""
    return name.strip().casefold()


def read_names(path: str | Path) -> dict[int, str]:
    """Names by pixel value, empty where the raster has none.

    From the tags CLASS_0, CLASS_1, ... that `predict` writes, else from GDAL's category names.

    Raises:
        SceneError: it cannot be opened.
    """
    with (
        gdal.env(str(path)),
        gdal.errors(SceneError, gdal.display_name(path)),
        gdal.open_raster(path) as dataset,
    ):
        names = {
            int(match[1]): name
            for key, name in gdal.tags(dataset).items()
            if (match := re.fullmatch(r"CLASS_(\d{1,3})", key))
        } or _categories(dataset)
    return {
        value: name.strip()[:MAX_NAME]
        for value, name in sorted(names.items())
        if value < MAX_VALUES and name.strip()
    }


def read_colours(path: str | Path) -> dict[int, Colour]:
    """Colours by pixel value of a raster with a palette, else empty.

    Raises:
        SceneError: it cannot be opened.
    """
    with (
        gdal.env(str(path)),
        gdal.errors(SceneError, gdal.display_name(path)),
        gdal.open_raster(path) as dataset,
    ):
        if dataset.count == 0 or dataset.colorinterp[0].name != "palette":
            return {}
        return {value: colour[:3] for value, colour in dataset.colormap(1).items()}


def read_scene_name(path: str | Path) -> str:
    """The scene that `predict` made the raster of, "" where it does not say.

    Raises:
        SceneError: it cannot be opened.
    """
    with (
        gdal.env(str(path)),
        gdal.errors(SceneError, gdal.display_name(path)),
        gdal.open_raster(path) as dataset,
    ):
        return gdal.tags(dataset).get("RSSEG_SCENE", "")


def _categories(dataset: Any) -> dict[int, str]:
    """GDAL's category names, which rasterio does not hand out: from the raster's description as a VRT."""
    with MemoryFile(ext=".vrt") as described:
        copy(dataset, described.name, driver="VRT")
        root = ET.fromstring(described.read())
    names = root.findall("VRTRasterBand[@band='1']/CategoryNames/Category")
    return {value: name.text or "" for value, name in enumerate(names[:MAX_VALUES])}
