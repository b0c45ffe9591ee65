"""Change between two maps of the same classes: a raster of what became what, and the areas."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from scipy import ndimage

from rsseg_cli import files
from rsseg_cli._version import __version__
from rsseg_cli.accuracy.config import ChangeConfig
from rsseg_cli.accuracy.strata import BLOCK_PX, ClassMap, Progress
from rsseg_cli.data import LabelFormat, LabelReader
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.raster import RasterWriter, SceneInfo, classes, gdal, vrt

UNCHANGED = 0
UNSURE = 1
FIRST = 2  # code of the first kind of change
GREY = (235, 235, 235)
DARK = (120, 120, 120)
FULL_SCALE = 254
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ChangeResult:
    """A finished change raster.

    Attributes:
        codes: value of the raster for each (before, after) that occurs.
        areas: (N, N), of what counts as change and, on the diagonal, of what does not; by class before and
            after, in m2 or, without a CRS, in pixels.
        unsure_area: where a map was not sure enough.
        suppressed_area: difference of the maps that --tolerance or --min-width do not count.
    """

    path: Path
    class_names: list[str]
    codes: dict[tuple[int, int], int]
    areas: NDArray[np.float64]
    unsure_area: float
    suppressed_area: float
    in_m2: bool

    def occurring(self) -> list[int]:
        """Return the values of the kinds of change that occur."""
        return [code for kind, code in self.codes.items() if self.areas[kind]]

    def as_dict(self) -> dict[str, Any]:
        factor, unit = (1e-4, "ha") if self.in_m2 else (1.0, "px")
        changes = [
            {
                "value": code,
                "from": self.class_names[before],
                "to": self.class_names[after],
                f"area_{unit}": float(self.areas[before, after]) * factor,
            }
            for (before, after), code in sorted(self.codes.items(), key=lambda item: item[1])
        ]
        return {
            "path": str(self.path),
            "changes": changes,
            "matrix": {
                "classes": self.class_names,
                f"rows_before_columns_after_{unit}": (self.areas * factor).tolist(),
            },
            f"unsure_{unit}": self.unsure_area * factor,
            f"not_counted_{unit}": self.suppressed_area * factor,
        }


def find_changes(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ChangeConfig | None = None,
    *,
    confidence_before: str | os.PathLike[str] | None = None,
    confidence_after: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    rows: int = 0,
) -> ChangeResult:
    """Write a raster of the changes from one map to another, on the grid of the first.

    Value 0 is unchanged, 1 unsure, 2 and up the kinds of change that occur; the names of the values and
    colours (of the later class) are in the file. Classes are matched by name.

    Args:
        confidence_before, confidence_after: 0 to 254 for 0 to 1, on any grid.
        rows: at once, 0 for as many as fit; changes no pixel.

    Raises:
        UsageError, SceneError, DataError, OutputError: nothing was written.
    """
    config, path = config or ChangeConfig(), Path(output)
    confidences = [confidence_before, confidence_after]
    if config.min_confidence and None in confidences:
        raise UsageError("--min-confidence: needs --confidence-before and --confidence-after")
    inputs = [os.fspath(item) for item in (before, after, *confidences) if item is not None]
    files.check_target(path, overwrite=config.overwrite, inputs=inputs)
    with ExitStack() as stack:
        pair = _Pair(os.fspath(before), os.fspath(after), stack)
        stack.enter_context(gdal.env())
        used = inputs[2:] if config.min_confidence else []
        finder = _Finder(pair, config, [_open_confidence(path, pair, stack) for path in used])
        rows = rows or max(16, BLOCK_PX // pair.grid.width)
        finder.count(rows, progress)
        codes = finder.codes()
        _write(path, pair, finder, codes, rows, config.overwrite, progress)
    return ChangeResult(
        path=path,
        class_names=pair.names,
        codes=codes,
        areas=finder.areas,
        unsure_area=finder.unsure,
        suppressed_area=finder.suppressed,
        in_m2=pair.first.in_m2,
    )


class _Pair:
    """Two maps with the same classes on the grid of the first."""

    def __init__(self, before: str, after: str, stack: ExitStack) -> None:
        self.first = stack.enter_context(ClassMap(before))
        second = ClassMap(after)
        self.names = _class_names(self.first, second)
        format = LabelFormat(class_names=tuple(self.names))
        self.grid = self.first.grid
        if (self.grid.crs is None) != (second.grid.crs is None):
            raise DataError(f"{after}: only one of both maps has a CRS; needs both or neither")
        self.table = np.full(classes.MAX_VALUES, classes.NODATA, np.uint8)
        for value in range(classes.INVALID):
            name = self.first.name(value)
            if name in self.names:
                self.table[value] = self.names.index(name)
        self.second_path = after
        self._second = stack.enter_context(LabelReader(after, self.grid, format))

    def read(self, row: int, height: int, pad: int) -> tuple[classes.Labels, classes.Labels]:
        """Return both maps in rows with `pad` rows and columns around, NODATA where they end."""
        padded = row - pad, -pad, height + 2 * pad, self.grid.width + 2 * pad
        before = self.table[self.first.read(*padded)]
        after = np.full(before.shape, classes.NODATA, np.uint8)
        window, inner = self.grid.clip(*padded)
        after[inner] = self._second.read(*window)
        return before, after


def _class_names(first: ClassMap, second: ClassMap) -> list[str]:
    names = [list(item.names.values()) for item in (first, second)]
    if not all(names):
        raise DataError(f"{(first if not names[0] else second).path}: names no classes; both maps need names")
    plain = [{classes.plain(name) for name in part} for part in names]
    if plain[0] != plain[1]:
        only = sorted(plain[0] ^ plain[1])
        raise DataError(
            f"{first.path}, {second.path}: need the same classes; {', '.join(only)} is in one of them alone"
        )
    return names[0]


def _open_confidence(path: str, pair: _Pair, stack: ExitStack) -> Any:
    """Open a raster on the grid of the maps; one on another grid gives its nearest pixel."""
    grid, own = pair.grid, SceneInfo.of(path).grid
    same_size = (own.height, own.width) == (grid.height, grid.width)
    placed = own.crs is not None and grid.crs is not None
    if not placed and (not same_size or own.crs != grid.crs):
        raise DataError(f"{path}: cannot be warped to the grid of {pair.first.path}; needs a CRS")
    dataset = stack.enter_context(gdal.open_raster(path))
    if not placed:
        return dataset
    return stack.enter_context(
        WarpedVRT(
            dataset, crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height,
            resampling=Resampling.nearest, nodata=classes.NODATA,
        )
    )  # fmt: skip


class _Finder:
    """Decides what is change, in rows, the same for any number of rows at once."""

    def __init__(self, pair: _Pair, config: ChangeConfig, confidences: Sequence[Any]) -> None:
        self._pair, self._confidences = pair, confidences
        self._limit, self._tolerance = config.min_confidence * FULL_SCALE, config.tolerance_px
        self._width = 0
        if config.min_width_m:
            if pair.grid.side_m is None:
                raise UsageError("--min-width: the maps have no CRS that leads to metres")
            self._width = math.ceil(config.min_width_m / pair.grid.side_m)
            if self._width > 256:
                raise UsageError(
                    f"--min-width {config.min_width_m:g}: is {self._width} px; needs 256 px or less"
                )
        count = len(pair.names)
        self.areas = np.zeros((count, count))
        self.unsure = self.suppressed = 0.0

    def rows(self, row: int, height: int) -> tuple[NDArray[np.int64], Mask, Mask]:
        """Return (height, width): before * N + after, -1 without data; where change counts; where unsure."""
        pad = self._tolerance + 2 * self._width
        before, after = self._pair.read(row, height, pad)
        count = len(self._pair.names)
        valid = (before != classes.NODATA) & (after != classes.NODATA)
        change = valid & (before != after)
        if self._tolerance:
            change &= ~self._explained(before, after, change)
        if self._width > 1:
            change = _wide(before.astype(np.int64) * 256 + after, change, self._width)
        inner = slice(pad, pad + height), slice(pad, pad + self._pair.grid.width)
        pairs = np.where(valid, before.astype(np.int64) * count + after, -1)[inner]
        unsure = np.zeros(pairs.shape, np.bool_)
        for raster in self._confidences:
            values = raster.read(1, window=Window(0, row, self._pair.grid.width, height))
            unsure |= (pairs >= 0) & ~(values >= self._limit)
        return pairs, change[inner] & ~unsure, unsure

    def _explained(self, before: classes.Labels, after: classes.Labels, change: Mask) -> Mask:
        """Return where the later class lay nearby before, and the earlier one lies nearby after."""
        explained = np.zeros(change.shape, np.bool_)
        near_before = {
            value: _dilated(before == value, self._tolerance) for value in np.unique(after[change])
        }
        near_after = {value: _dilated(after == value, self._tolerance) for value in np.unique(before[change])}
        for old, near_old in near_after.items():
            for new, near_new in near_before.items():
                explained |= change & (before == old) & (after == new) & near_old & near_new
        return explained

    def count(self, step: int, progress: Progress | None) -> None:
        count, height = len(self._pair.names), self._pair.grid.height
        for row in range(0, height, step):
            pairs, change, unsure = self.rows(row, min(step, height - row))
            weights = np.broadcast_to(self._pair.first.row_areas[row : row + len(pairs), None], pairs.shape)
            old, new = pairs // count, pairs % count
            counted = np.where(change, pairs, old * count + old)
            known = (pairs >= 0) & ~unsure
            self.areas += np.bincount(counted[known], weights[known], count * count).reshape(count, count)
            self.unsure += float(weights[unsure].sum())
            self.suppressed += float(weights[known & ~change & (old != new)].sum())
            if progress is not None:
                progress(row + len(pairs), 2 * height)

    def codes(self) -> dict[tuple[int, int], int]:
        """Return the value of each kind of change; the same for all maps of few classes."""
        count = len(self._pair.names)
        kinds = [(old, new) for old in range(count) for new in range(count) if old != new]
        if len(kinds) > classes.INVALID - FIRST:
            kinds = [kind for kind in kinds if self.areas[kind]]
        if len(kinds) > classes.INVALID - FIRST:
            raise DataError(
                f"{len(kinds)} kinds of change occur; a raster of bytes holds {classes.INVALID - FIRST}"
            )
        return {kind: FIRST + index for index, kind in enumerate(kinds)}


def _dilated(mask: Mask, reach: int) -> Mask:
    return ndimage.maximum_filter(mask, 2 * reach + 1, mode="constant", cval=False)


def _wide(kinds: NDArray[np.int64], change: Mask, width: int) -> Mask:
    """Return change that holds a square of `width` px of its kind, and what lies within `width` px of it."""
    kept = np.zeros(change.shape, np.bool_)
    for kind in np.unique(kinds[change]):
        mask = change & (kinds == kind)
        squares = ndimage.grey_opening(mask.view(np.uint8), (width, width), mode="constant", cval=0) > 0
        kept |= mask & _dilated(squares, width)
    return kept


def _write(
    path: Path,
    pair: _Pair,
    finder: _Finder,
    codes: dict[tuple[int, int], int],
    step: int,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    count, height = len(pair.names), pair.grid.height
    table = np.full(count * count + 1, classes.NODATA, np.uint8)
    table[[index * count + index for index in range(count)]] = UNCHANGED
    for (old, new), code in codes.items():
        table[old * count + new] = code
    with RasterWriter(path, pair.grid, _meta(pair, codes), overwrite=overwrite) as writer:
        for row in range(0, height, step):
            pairs, change, unsure = finder.rows(row, min(step, height - row))
            values = np.where(change, table[pairs], UNCHANGED).astype(np.uint8)
            values[unsure] = UNSURE
            values[pairs < 0] = classes.NODATA
            writer.write(row, values[None])
            if progress is not None:
                progress(height + row + len(pairs), 2 * height)
        writer.commit()


def _meta(pair: _Pair, codes: dict[tuple[int, int], int]) -> vrt.RasterMeta:
    colours = classes.read_colours(pair.first.path)
    of_name = {pair.first.name(value): colour for value, colour in colours.items()}
    names, palette = ["unchanged", "unsure"], {UNCHANGED: GREY, UNSURE: DARK}
    for (old, new), code in codes.items():
        names.append(f"{pair.names[old]} to {pair.names[new]}")
        palette[code] = of_name.get(pair.names[new], DARK)
    tags = {"SOFTWARE": f"rsseg {__version__}", "RSSEG_SCENE": f"{pair.first.path}, {pair.second_path}"}
    return vrt.RasterMeta(colours=palette, category_names=names, tags=tags)
