"""Class rasters as class numbers: whatever values stand for the classes in the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.class_names import plain, read_class_names
from rsseg_cli.errors import DataError
from rsseg_cli.label_format import UNLABELLED_NAMES
from rsseg_cli.raster import SceneReader, inspect

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
        self.info = inspect(path)
        self.grid = self.info.grid
        self.table = _class_table(self.info.name, read_class_names(path), class_names)
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
