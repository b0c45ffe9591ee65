"""Corrections that someone drew over a scene: polygons, lines and points with a class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize

from rsseg_cli.data import LabelFormat, datasets
from rsseg_cli.errors import DataError
from rsseg_cli.raster import Grid
from rsseg_cli.raster import classes as class_values

if TYPE_CHECKING:
    from shapely import STRtree
    from shapely.geometry.base import BaseGeometry

WIDTH_PX = {0: 2.0, 1: 1.0}  # radius that a point and half the width that a line gets, px of the model
OVERLAP_PX = 1.0  # area that two classes may share
SHOWN = 5
HELD_OUT = 0.2
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A shape in the grid's CRS; `number` counts from 1 in the file."""

    number: int
    index: int
    shape: BaseGeometry
    held_out: bool = False


class Corrections:
    """Corrections of a scene on a grid.

    Args:
        grid: the scene's, at the resolution that the network sees.
    """

    def __init__(self, path: Path, grid: Grid, items: Sequence[Correction]) -> None:
        from shapely import STRtree

        self.path, self.grid, self.items = path, grid, list(items)
        self._tree: STRtree = STRtree([item.shape for item in self.items])

    def labels(self, row: int, col: int, height: int, width: int, *, held_out: bool) -> NDArray[np.uint8]:
        """Return class numbers (height, width) of a window, IGNORE where nothing was drawn."""
        from shapely import box

        window = self.grid.window(row, col, height, width)
        touched = sorted(self._tree.query(box(*window.bounds)))
        shapes = [
            (self.items[index].shape, self.items[index].index)
            for index in touched
            if self.items[index].held_out == held_out
        ]
        if not shapes:
            return np.full((height, width), class_values.IGNORE, np.uint8)
        return rasterize(
            shapes, (height, width), transform=window.transform, fill=class_values.IGNORE, dtype="uint8"
        )

    def boxes(self, *, held_out: bool) -> list[tuple[int, tuple[int, int, int, int]]]:
        """Return the class and the window (row, col, height, width) of each shape."""
        return [
            (item.index, self.grid.window_of_bbox(item.shape.bounds, str(self.path)))
            for item in self.items
            if item.held_out == held_out
        ]


def read_corrections(
    path: Path, grid: Grid, class_names: Sequence[str], *, field: str = "", seed: int = 0
) -> Corrections:
    """Read the corrections of a scene, and set some aside for scoring: whole shapes, of each class with
    three or more a fifth, one at least.

    Raises:
        DataError: the file cannot be read, names unknown classes, lies outside the scene, or shapes of two
            classes overlap.
    """
    frame = datasets.read_shapes(path, grid)
    frame.geometry = frame.geometry.make_valid()
    known = LabelFormat(class_names=tuple(class_names), field=field)
    columns = list(frame.columns.drop("geometry"))
    name = known.field_in(path, columns)
    if not name:
        raise DataError(f"{path}: no attribute names a class ({', '.join(columns)}). Pass --label-field")
    frame = frame[[not _is_empty(value) for value in frame[name]]]
    if frame.empty:
        raise DataError(f"{path}: field {name!r} is empty throughout; fill in classes first")
    indices = [known.index_of(_plain(value)) for value in frame[name]]
    unknown = [str(value) for value, index in zip(frame[name], indices, strict=True) if index is None]
    if unknown:
        listed = ", ".join(list(dict.fromkeys(unknown))[:SHOWN])
        raise DataError(
            f"{path}: {listed} in field {name!r} is no class; needs one of {', '.join(class_names)}. "
            "Pass --new-classes for classes that the model does not know"
        )
    pixel = float(np.sqrt(abs(grid.transform.determinant)))
    shapes = [_widened(shape, pixel) for shape in frame.geometry]
    items = [
        Correction(number=number, index=int(index), shape=shape)
        for number, shape, index in zip(frame.index + 1, shapes, indices, strict=True)
        if index is not None and index != class_values.IGNORE
    ]
    items = _inside(path, grid, items)
    _check_overlaps(path, items, class_names, pixel)
    return Corrections(path, grid, _with_held_out(items, seed))


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _widened(shape: BaseGeometry, pixel: float) -> BaseGeometry:
    """Give points and lines an area."""
    kind = {"Point": 0, "MultiPoint": 0, "LineString": 1, "MultiLineString": 1}.get(shape.geom_type)
    return shape if kind is None else shape.buffer(WIDTH_PX[kind] * pixel)


def _inside(path: Path, grid: Grid, items: list[Correction]) -> list[Correction]:
    from shapely import Polygon

    corners = [
        grid.transform * point
        for point in ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))
    ]
    outline = Polygon(corners)
    inside = [item for item in items if item.shape.intersects(outline)]
    if not inside:
        raise DataError(f"{path}: no label lies inside the scene, which covers {_numbers(outline.bounds)}")
    if len(inside) < len(items):
        logger.warning(
            "%s: %d of %d labels lie outside the scene", path, len(items) - len(inside), len(items)
        )
    return inside


def _numbers(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)


def _check_overlaps(path: Path, items: list[Correction], names: Sequence[str], pixel: float) -> None:
    from shapely import STRtree

    tree = STRtree([item.shape for item in items])
    pairs = []
    for first, second in tree.query([item.shape for item in items], predicate="intersects").T:
        one, other = items[first], items[second]
        if first < second and one.index != other.index:
            area = one.shape.intersection(other.shape).area
            if area > OVERLAP_PX * pixel**2:
                pairs.append(f"{one.number} ({names[one.index]}) and {other.number} ({names[other.index]})")
    if pairs:
        more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        raise DataError(
            f"{path}: labels of different classes overlap: features {'; '.join(pairs[:SHOWN])}{more}"
        )


def _with_held_out(items: list[Correction], seed: int) -> list[Correction]:
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for index in sorted({item.index for item in items}):
        members = [item.number for item in items if item.index == index]
        if len(members) >= 3:
            chosen |= set(rng.choice(members, max(1, int(HELD_OUT * len(members))), replace=False).tolist())
    return [
        Correction(number=item.number, index=item.index, shape=item.shape, held_out=item.number in chosen)
        for item in items
    ]
