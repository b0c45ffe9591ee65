"""The classes of one's own data: names, colours, raw values, colours in masks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from rsseg_cli.data.label_format import IGNORE, Colour
from rsseg_cli.errors import DataError
from rsseg_cli.raster import classes
from rsseg_cli.weights import ClassSpec

MAX_BYTES = 1_000_000
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Hex = Annotated[str, msgspec.Meta(pattern="^#[0-9a-fA-F]{6}$")]
Triple = tuple[Byte, Byte, Byte]


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    """A class as the file writes it."""

    name: str
    colour: Hex | Triple | None = None
    color: Hex | Triple | None = None
    mask_colour: Hex | list[Any] | None = None
    mask_color: Hex | list[Any] | None = None
    value: int | list[int] | None = None

    @property
    def map_colour(self) -> Colour | None:
        colour = self.colour or self.color
        return _rgb(colour) if colour else None

    @property
    def masks(self) -> list[Colour]:
        """Colours in masks: one or several, by default that of maps."""
        given: Any = self.mask_colour or self.mask_color or self.colour or self.color or []
        single = isinstance(given, str) or any(isinstance(part, int) for part in given)
        return [_rgb(part) for part in msgspec.convert([given] if single else given, list[Hex | Triple])]

    @property
    def values(self) -> list[int]:
        return self.value if isinstance(self.value, list) else [] if self.value is None else [self.value]


@dataclass(frozen=True)
class ClassTable:
    """Classes, and the class number or 255 of colours and raw values in masks; None where none were given."""

    classes: tuple[ClassSpec, ...]
    colours: Mapping[Colour, int] | None = None
    values: Mapping[int, int] | None = None


def read_classes(text: str) -> ClassTable:
    """Read `a,b,c`, or a JSON list of {"name", "colour", "value", "mask_colour"}, all but the name optional.

    `colour` is [red, green, blue] or "#rrggbb", on maps and, without `mask_colour`, in colour masks. `value`
    is the raw number in masks, or a list of them, for all classes or for none. An item called "unlabelled"
    is no class: its values and mask colours do not count.
    """
    if not text.lower().endswith(".json"):
        names = [part.strip() for part in text.split(",")]
        _check_names(text, names)
        return ClassTable(ClassSpec.from_names(names))
    items = _read(text)
    numbered: list[tuple[int, _Item]] = []
    kept: list[_Item] = []
    for item in items:
        unlabelled = classes.is_unlabelled(item.name)
        numbered.append((IGNORE if unlabelled else len(kept), item))
        kept += [] if unlabelled else [item]
    _check_names(text, [item.name for item in kept])
    specs = [ClassSpec(item.name, item.map_colour) if item.map_colour else item.name for item in kept]
    masks = ((colour, index, item.name) for index, item in numbered for colour in item.masks)
    colours = _unambiguous(text, "mask colour", masks)
    return ClassTable(ClassSpec.from_names(specs), colours or None, _values(text, kept, numbered))


def _read(text: str) -> list[_Item]:
    try:
        with Path(text).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{text}: is larger than {MAX_BYTES} bytes; needs a JSON list of classes")
        items = msgspec.json.decode(content, type=list[_Item])
        for number, item in enumerate(items):
            item.name = item.name.strip()
            if not item.name:
                raise msgspec.ValidationError(f"Expected a name - at `$[{number}].name`")
            try:
                _ = item.masks
            except msgspec.ValidationError as err:
                problem = str(err).partition(" - at ")[0]
                raise msgspec.ValidationError(f"{problem} - at `$[{number}].mask_colour`") from err
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        problem = re.sub(r" - at `\$\[(\d+)\]\.?([^`]*)`", _where, str(err))
        raise DataError(
            f'{text}: {problem}; needs a JSON list of {{"name", "colour", "value", "mask_colour"}}, colours '
            'as [red, green, blue] from 0 to 255 or "#rrggbb", values as whole numbers'
        ) from err
    return items


def _where(match: re.Match[str]) -> str:
    return f" in class {int(match[1]) + 1}{', ' + match[2] if match[2] else ''}"


def _rgb(colour: Any) -> Colour:
    red, green, blue = bytes.fromhex(colour[1:]) if isinstance(colour, str) else colour
    return red, green, blue


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
    return {IGNORE: IGNORE, **_unambiguous(text, "value", [*own, *raw])}
