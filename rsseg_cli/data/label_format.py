"""Classes of labels: as the user lists them, and as a file says them by number, colour or attribute."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.raster import classes
from rsseg_cli.weights import ClassSpec

IGNORE, INVALID = classes.IGNORE, classes.INVALID  # in tables: unlabelled; no class
MAX_CLASSES = 254
OTHER_NAMES = ("background", "other")
FIELDS = ("class", "class_name", "label", "class_index", "class_inde")  # the last as Shapefiles cut it
Colour = tuple[int, int, int]
Labels = NDArray[np.uint8]
ClassSets = Mapping[str, tuple[int, ...]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """What the values of a label file mean. Class numbers count from 0; 255 is unlabelled.

    Attributes:
        colours: (red, green, blue) to class number or 255: for masks of three or four bands, and for one
            band with a palette unless `values` are given.
        values: raw value to class number or 255, for masks of one band and numbers in a vector attribute;
            without it values are class numbers. A value named here counts even if it is the file's nodata.
        aliases: plain names of further classes, and the class number that they count as.
        field, vector_class, outside: of polygons, as the options of `DataConfig` explain them.
        by_pixel: a label raster of the image's size lies on the image's pixels, whatever its georeferencing.
        unknown: what a colour outside `colours` does: "error", or "unlabelled", which is counted.
        sets: classes that a pixel may be of, by the set's name; set k has the label N + k beside N classes.
    """

    class_names: tuple[str, ...]
    colours: Mapping[Colour, int] | None = None
    values: Mapping[int, int] | None = None
    aliases: Mapping[str, int] = dataclasses.field(default_factory=dict)
    field: str = ""
    vector_class: str = ""
    outside: str = ""
    by_pixel: bool = False
    unknown: Literal["error", "unlabelled"] = "error"
    sets: ClassSets = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = len(self.class_names) + len(self.sets)
        if not self.class_names or labels > MAX_CLASSES:
            raise DataError(f"{labels} classes; needs 1 to {MAX_CLASSES}")
        for index in [*(self.colours or {}).values(), *(self.values or {}).values()]:
            if index != IGNORE and not 0 <= index < labels:
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
        labels = (*self.class_names, *self.sets)
        own = {classes.plain(name): index for index, name in enumerate(labels)}
        return own | dict(self.aliases)

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
        """Class number of polygons without attribute; UsageError where it does not follow."""
        if self.vector_class:
            return self._index_by_name[classes.plain(self.vector_class)]
        plain = map(classes.plain, self.class_names)
        drawn = [index for index, name in enumerate(plain) if name not in OTHER_NAMES]
        if len(drawn) != 1 or len(self.class_names) > 2:
            raise UsageError(
                f"polygons carry no class (looked for {', '.join(FIELDS[:-1])}) and the classes are "
                f"{', '.join(self.class_names)}. Pass --label-field or --vector-class"
            )
        return drawn[0]

    def field_in(self, path: Path, fields: Sequence[str]) -> str:
        """Return the attribute of a file that names the class; "" where all polygons are of one class."""
        if self.field and self.field not in fields:
            raise DataError(f"{path}: has no attribute {self.field!r}; it has {', '.join(fields) or 'none'}")
        if self.field or self.vector_class:
            return self.field
        by_name = {name.casefold(): name for name in reversed(fields)}
        return next((by_name[name] for name in FIELDS if name in by_name), "")

    def index_of(self, value: Any) -> int | None:
        """Class number of a vector attribute's value (a name or a number), 255 for unlabelled, else None."""
        if isinstance(value, str):
            name = classes.plain(value)
            if name in self._index_by_name:
                return self._index_by_name[name]
            if classes.is_unlabelled(name):
                return IGNORE
            return self.index_of(float(name)) if re.fullmatch(r"\d{1,15}(\.0*)?", name, re.ASCII) else None
        if not isinstance(value, int | float | np.number) or not np.isfinite(value) or int(value) != value:
            return None
        if self.values is not None:
            return self.values.get(int(value), IGNORE if value == IGNORE else None)
        labels = len(self.class_names) + len(self.sets)
        return int(value) if 0 <= value < labels or value == IGNORE else None

    def table(self, size: int = 256) -> Labels:
        """Class number of raw values 0 to `size` - 1; 254 where a value is no class."""
        table = np.full(size, INVALID, np.uint8)
        values = {index: index for index in range(len(self.class_names) + len(self.sets))}
        for raw, index in {IGNORE: IGNORE, **(values if self.values is None else self.values)}.items():
            if 0 <= raw < size:
                table[raw] = index
        return table

    def colour_table(self) -> Labels:
        """Class number by red << 16 | green << 8 | blue; 254 where a colour is no class. 16 MiB, shared."""
        return _colour_table(tuple(sorted((self.colours or {}).items())))


def span_text(box: Sequence[float]) -> str:
    """A box (left, bottom, right, top) in words."""
    return f"x {box[0]:.10g} to {box[2]:.10g}, y {box[1]:.10g} to {box[3]:.10g}"


@lru_cache(maxsize=2)
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> Labels:
    table = np.full(1 << 24, INVALID, np.uint8)
    for (red, green, blue), index in colours:
        table[red << 16 | green << 8 | blue] = index
    table.flags.writeable = False
    return table


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    """A class as the file writes it."""

    name: str
    colour: classes.Hex | classes.Triple | None = None
    color: classes.Hex | classes.Triple | None = None
    mask_colour: classes.Hex | list[Any] | None = None
    mask_color: classes.Hex | list[Any] | None = None
    value: int | list[int] | None = None
    any_of: list[str] = []

    @property
    def map_colour(self) -> Colour | None:
        colour = self.colour or self.color
        return classes.rgb(colour) if colour else None

    @property
    def masks(self) -> list[Colour]:
        """Colours in masks: one or several, by default that of maps."""
        given: Any = self.mask_colour or self.mask_color or self.colour or self.color or []
        single = isinstance(given, str) or any(isinstance(part, int) for part in given)
        return [
            classes.rgb(part)
            for part in msgspec.convert([given] if single else given, list[classes.Hex | classes.Triple])
        ]

    @property
    def values(self) -> list[int]:
        return self.value if isinstance(self.value, list) else [] if self.value is None else [self.value]


@dataclass(frozen=True)
class ClassTable:
    """Classes, and the class number or 255 of colours and raw values in masks; None where none were given."""

    classes: tuple[ClassSpec, ...]
    colours: Mapping[Colour, int] | None = None
    values: Mapping[int, int] | None = None
    sets: ClassSets = dataclasses.field(default_factory=dict)

    def without_sets(self, text: str) -> ClassTable:
        """Return the table for scores: pixels of a set of classes are unlabelled, and a warning says so."""
        if not self.sets:
            return self
        logger.warning(
            "%s: pixels labelled %s say only which classes they may be; left out", text, ", ".join(self.sets)
        )
        known = len(self.classes)

        def single(table: Mapping[Any, int] | None) -> dict[Any, int] | None:
            return (
                {key: index if index < known else IGNORE for key, index in table.items()} if table else None
            )

        return ClassTable(self.classes, single(self.colours), single(self.values))


def read_classes(text: str) -> ClassTable:
    """Read `a,b,c`, or a JSON list of {"name", "colour", "value", "mask_colour"}, all but the name optional.

    `colour` is [red, green, blue] or "#rrggbb", on maps and, without `mask_colour`, in colour masks. `value`
    is the raw number in masks, or a list of them, for all classes or for none. An item called "unlabelled"
    is no class: its values and mask colours do not count. An item with "any_of", names of classes, is a set:
    its pixels are of one of these.
    """
    if not text.lower().endswith(".json"):
        names = [part.strip() for part in text.split(",")]
        _check_names(text, names)
        return ClassTable(ClassSpec.from_names(names))
    items = _read(text)
    numbered: list[tuple[int, _Item]] = []
    kept: list[_Item] = []
    sets = [item for item in items if item.any_of]
    for item in items:
        if item.any_of:
            continue
        unlabelled = classes.is_unlabelled(item.name)
        numbered.append((IGNORE if unlabelled else len(kept), item))
        kept += [] if unlabelled else [item]
    numbered += [(len(kept) + number, item) for number, item in enumerate(sets)]
    _check_names(text, [item.name for item in (*kept, *sets)])
    specs = [ClassSpec(item.name, item.map_colour) if item.map_colour else item.name for item in kept]
    masks = ((colour, index, item.name) for index, item in numbered for colour in item.masks)
    colours = _unambiguous(text, "mask colour", masks)
    allowed = {item.name: _members(text, item, [one.name for one in kept]) for item in sets}
    values = _values(text, [*kept, *sets], numbered)
    return ClassTable(ClassSpec.from_names(specs), colours or None, values, allowed)


def _members(text: str, item: _Item, names: Sequence[str]) -> tuple[int, ...]:
    """Class numbers of a set; fewer than all classes, or it says nothing."""
    known = {classes.plain(name): index for index, name in enumerate(names)}
    unknown = [name for name in item.any_of if classes.plain(name) not in known]
    members = tuple(sorted({known[classes.plain(name)] for name in item.any_of if name not in unknown}))
    if unknown or len(members) == len(names):
        problem = f"no class {', '.join(unknown)}" if unknown else "all classes; call it unlabelled"
        raise DataError(f"{text}: any_of of {item.name!r} names {problem}")
    return members


def _read(text: str) -> list[_Item]:
    try:
        items = classes.read_items(Path(text), _Item)
        for number, item in enumerate(items, 1):
            item.name = item.name.strip()
            if not item.name:
                raise ValueError(f"Expected a name in class {number}, name")
            try:
                _ = item.masks
            except msgspec.ValidationError as err:
                problem = str(err).partition(" - at ")[0]
                raise ValueError(f"{problem} in class {number}, mask_colour") from err
    except ValueError as err:
        raise DataError(
            f'{text}: {err}; needs a JSON list of {{"name", "colour", "value", "mask_colour", "any_of"}}'
            ', colours as [red, green, blue] from 0 to 255 or "#rrggbb", values as whole numbers'
        ) from err
    return items


def _check_names(text: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or not all(names) or twice:
        raise DataError(
            f"--classes {text}: needs different names, found {', '.join(twice or names) or 'none'}"
        )


def _unambiguous(text: str, kind: str, meanings: Iterable[tuple[Any, int, str]]) -> dict[Any, int]:
    """Class number by colour or value, each of one class only."""
    table: dict[Any, int] = {}
    for key, index, name in meanings:
        if table.setdefault(key, index) != index:
            raise DataError(f"{text}: {kind} {key} stands for two classes, one is {name!r}")
    return table


def _values(text: str, kept: list[_Item], numbered: list[tuple[int, _Item]]) -> dict[int, int] | None:
    without = [item.name for item in kept if not item.values]
    given = len(without) < len(kept)
    if given and without:
        raise DataError(f"{text}: value is given for some classes and not for {', '.join(without)}")
    if not any(item.values for _, item in numbered):
        return None
    own = [] if given else [(index, index, item.name) for index, item in enumerate(kept)]
    raw = [(value, index, item.name) for index, item in numbered for value in item.values]
    return _unambiguous(text, "value", [*own, *raw])
