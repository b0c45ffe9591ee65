"""How a label file says its classes: by number, by colour, or by an attribute of its polygons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.raster import classes

IGNORE, INVALID = classes.IGNORE, classes.INVALID  # in tables: unlabelled; no class
MAX_CLASSES = 254
OTHER_NAMES = ("background", "other")
FIELDS = ("class", "class_name", "label", "class_index", "class_inde")  # the last as Shapefiles cut it
Colour = tuple[int, int, int]
Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """What the values of a label file mean. Class numbers count from 0; 255 is unlabelled.

    Attributes:
        colours: (red, green, blue) to class number or 255: for masks of three or four bands, and for one
            band with a palette unless `values` are given.
        values: raw value to class number or 255, for masks of one band and numbers in a vector attribute;
            without it values are class numbers. A value named here counts even if it is the file's nodata.
        field: vector attribute that names the class, by name or number. "": one called class, class_name,
            label or class_index; without any of these, or with `vector_class`, all polygons are of one class.
        vector_class: class of polygons without attribute. "": of two classes the one that is not called
            background or other.
        outside: class of ground outside all polygons, or "unlabelled". "": the class called background or
            other, else unlabelled.
        by_pixel: a label raster of the image's size lies on the image's pixels, whatever its georeferencing.
        unknown: what a colour outside `colours` does: "error", or "unlabelled", which is counted.
    """

    class_names: tuple[str, ...]
    colours: Mapping[Colour, int] | None = None
    values: Mapping[int, int] | None = None
    field: str = ""
    vector_class: str = ""
    outside: str = ""
    by_pixel: bool = False
    unknown: Literal["error", "unlabelled"] = "error"

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) <= MAX_CLASSES:
            raise DataError(f"{len(self.class_names)} classes; needs 1 to {MAX_CLASSES}")
        for index in [*(self.colours or {}).values(), *(self.values or {}).values()]:
            if index != IGNORE and not 0 <= index < len(self.class_names):
                raise DataError(f"class number {index}; needs 0 to {len(self.class_names) - 1}, or {IGNORE}")
        for colour in self.colours or ():
            if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                raise DataError(f"colour {colour}: needs three numbers from 0 to 255")
        for option, name in (("--vector-class", self.vector_class), ("--outside", self.outside)):
            ignored = option == "--outside" and classes.is_unlabelled(name)
            if name and not ignored and classes.plain(name) not in self._index_by_name:
                raise UsageError(f"{option} {name}: is no class; needs one of {', '.join(self.class_names)}")

    @cached_property
    def _index_by_name(self) -> dict[str, int]:
        return {classes.plain(name): index for index, name in enumerate(self.class_names)}

    @cached_property
    def outside_index(self) -> int:
        """Class number of ground outside all polygons, or 255."""
        if self.outside:
            return self._index_by_name.get(classes.plain(self.outside), IGNORE)
        return next(
            (self._index_by_name[name] for name in OTHER_NAMES if name in self._index_by_name), IGNORE
        )

    @cached_property
    def polygon_index(self) -> int:
        """Class number of polygons without attribute.

        Raises:
            UsageError: it is not named and does not follow from the classes.
        """
        if self.vector_class:
            return self._index_by_name[classes.plain(self.vector_class)]
        drawn = [index for name, index in self._index_by_name.items() if name not in OTHER_NAMES]
        if len(drawn) != 1 or len(self.class_names) > 2:
            raise UsageError(
                f"polygons carry no class (looked for {', '.join(FIELDS[:-1])}) and the classes are "
                f"{', '.join(self.class_names)}. Pass --label-field or --vector-class"
            )
        return drawn[0]

    def index_of(self, value: Any) -> int | None:
        """Class number of a vector attribute's value (a name or a number), 255 for unlabelled, else None."""
        if isinstance(value, str):
            name = classes.plain(value)
            if name in self._index_by_name:
                return self._index_by_name[name]
            if classes.is_unlabelled(name):
                return IGNORE
            return self.index_of(int(name)) if name.isascii() and name.isdigit() and len(name) < 19 else None
        if not isinstance(value, int | float | np.number) or not np.isfinite(value) or int(value) != value:
            return None
        if self.values is not None:
            return self.values.get(int(value))
        return int(value) if 0 <= value < len(self.class_names) or value == IGNORE else None

    def table(self, size: int = 256) -> Labels:
        """Class number of raw values 0 to `size` - 1; 254 where a value is no class."""
        table = np.full(size, INVALID, np.uint8)
        values = {IGNORE: IGNORE, **{index: index for index in range(len(self.class_names))}}
        for raw, index in (values if self.values is None else self.values).items():
            if 0 <= raw < size:
                table[raw] = index
        return table

    def colour_table(self) -> Labels:
        """Class number by red << 16 | green << 8 | blue; 254 where a colour is no class. 16 MiB, shared."""
        return _colour_table(tuple(sorted((self.colours or {}).items())))


@lru_cache(maxsize=2)
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> Labels:
    table = np.full(1 << 24, INVALID, np.uint8)
    for (red, green, blue), index in colours:
        table[red << 16 | green << 8 | blue] = index
    table.flags.writeable = False
    return table
