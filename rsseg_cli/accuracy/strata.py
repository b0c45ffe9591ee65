"""Strata of a map: which pixel lies in which, how large they are, and how they share a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.evaluation import boundary
from rsseg_cli.raster import SceneInfo, classes

BLOCK_PX = 1 << 20  # pixels of the map that are read at a time
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]


class ClassMap(classes.ClassRaster):
    """A class raster of any values, with their names.

    Attributes:
        names: of the values that the raster names.
        row_areas: area of a pixel in each row, m2, the mean along it; 1 where the ground is not known.
    """

    def __init__(self, path: str) -> None:
        super().__init__(SceneInfo.of(path), np.arange(classes.MAX_VALUES, dtype=np.uint8))
        self.path = path
        self.names = {
            value: name
            for value, name in classes.read_names(path).items()
            if not classes.is_unlabelled(name) and value != classes.NODATA
        }
        measured = self.grid.areas_m2()
        self.in_m2 = measured is not None
        self.row_areas: Floats = np.ones(self.grid.height)
        if measured is not None:
            rows, _, areas = measured
            self.row_areas = np.interp(np.arange(self.grid.height), rows, areas.mean(1))

    def name(self, value: int) -> str:
        return self.names.get(value, f"class {value}")

    def value_of(self, text: str) -> int | None:
        """Return the value that a name or number means, None for none."""
        named = {classes.plain(name): value for value, name in self.names.items()}
        if classes.plain(text) in named:
            return named[classes.plain(text)]
        try:
            number = float(text)
        except ValueError:
            return None
        known = (
            number.is_integer() and 0 <= number < classes.NODATA and (int(number) in self.names or not named)
        )
        return int(number) if known else None


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A part of the map, of one mapped class or, without a `value`, of all."""

    name: str
    value: int | None = None


class Strata:
    """The strata of a map, and how many pixels each has in every row.

    Memory: 4 bytes a row and stratum.

    Attributes:
        counts: uint32 (rows, strata).
        areas: of each stratum, m2 or px.
    """

    def __init__(
        self, source: ClassMap, *, by_class: bool, boundary_px: int, progress: Progress | None = None
    ) -> None:
        self._map, self._by_class, self._boundary_px = source, by_class, boundary_px
        height = source.grid.height
        width = classes.MAX_VALUES if boundary_px == 0 else 2 * classes.MAX_VALUES
        parts: list[Ints] = []
        step = max(1, BLOCK_PX // source.grid.width)
        for row in range(0, height, step):
            keys = self._keys(row, min(step, height - row))
            lines = np.arange(len(keys), dtype=np.int64)[:, None] * (width + 1)
            count = np.bincount((lines + keys).ravel(), minlength=len(keys) * (width + 1))
            parts.append(count.reshape(len(keys), width + 1)[:, :width].astype(np.uint32))
            if progress is not None:
                progress(row + len(keys), height)
        counts = np.concatenate(parts)
        self._numbers = np.flatnonzero(counts.any(0))
        if not len(self._numbers):
            raise DataError(f"{source.path}: no pixel has a class")
        self.counts = counts[:, self._numbers]
        self.areas: Floats = self.counts.T.astype(np.float64) @ source.row_areas
        self.strata = [self._stratum(int(key)) for key in self._numbers]

    def _keys(self, row: int, height: int) -> NDArray[np.int64]:
        """Return the key of the stratum of each pixel of some rows; the largest key is that of no stratum."""
        pad, width = self._boundary_px, self._map.grid.width
        values = self._map.read(row - pad, -pad, height + 2 * pad, width + 2 * pad)
        inner = slice(pad, pad + height), slice(pad, pad + width)
        keys = values[inner].astype(np.int64) if self._by_class else np.zeros((height, width), np.int64)
        none = classes.MAX_VALUES
        if pad:
            keys = 2 * keys + boundary.near_border(values, pad)[inner]
            none *= 2
        return np.where(values[inner] == classes.NODATA, none, keys)

    def _stratum(self, key: int) -> Stratum:
        if not self._by_class:
            return Stratum(name="all")
        if not self._boundary_px:
            return Stratum(name=self._map.name(key), value=key)
        where = "near a boundary" if key % 2 else "inside"
        return Stratum(name=f"{self._map.name(key // 2)}, {where}", value=key // 2)

    def class_name(self, stratum: Stratum) -> str:
        return stratum.name if stratum.value is None else self._map.name(stratum.value)

    def columns(self, row: int, stratum: int) -> NDArray[np.intp]:
        return np.flatnonzero(self._keys(row, 1)[0] == self._numbers[stratum])

    def __iter__(self) -> Iterator[Stratum]:
        return iter(self.strata)

    def __len__(self) -> int:
        return len(self.strata)


def sample_size(areas: Floats, accuracies: Floats, standard_error: float) -> int:
    """Return the number of points that give the overall accuracy a standard error.

    Source: Cochran (1977), Sampling Techniques, equation 5.25; Olofsson et al. (2014), equation 13.
    """
    deviation = float(areas @ np.sqrt(accuracies * (1 - accuracies)) / areas.sum())
    return max(2, int(np.ceil((deviation / standard_error) ** 2)))


def allocate(total: int, shares: Floats, pixels: Ints, minimum: int) -> Ints:
    """Share points among strata: small ones get the minimum, the others divide the rest by their shares.

    Args:
        pixels: size of each stratum; none gets more points.

    Raises:
        UsageError: there are fewer than two points a stratum.
    """
    minimum = min(minimum, total // len(shares))
    if minimum < 2 and len(shares) > 1:
        raise UsageError(f"{total} points for {len(shares)} strata: needs 2 or more for each")
    fixed = np.zeros(len(shares), np.bool_)
    while True:
        rest = total - minimum * int(fixed.sum())
        wanted = np.where(fixed, minimum, rest * shares / max(shares[~fixed].sum(), 1e-300))
        small = ~fixed & (wanted < minimum)
        if not small.any():
            break
        fixed |= small
    numbers = np.floor(wanted).astype(np.int64)
    order = np.argsort(numbers - wanted, kind="stable")
    numbers[order[: total - int(numbers.sum())]] += 1
    return np.minimum(numbers, pixels)
