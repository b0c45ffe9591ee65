"""The classes of one's own data: names, colours, raw values, colours in masks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsseg_cli.data.label_format import IGNORE, Colour
from rsseg_cli.errors import DataError
from rsseg_cli.raster import classes
from rsseg_cli.weights import ClassSpec

MAX_BYTES = 1_000_000
ITEM_KEYS = {"name", "colour", "color", "value", "mask_colour", "mask_color"}


@dataclass(frozen=True)
class ClassTable:
    """Classes, and how masks tell them.

    Attributes:
        classes: class k is classes[k].
        colours: colour in masks to class number or 255; None where no colour was given.
        values: raw value to class number or 255; None where values are class numbers.
    """

    classes: tuple[ClassSpec, ...]
    colours: Mapping[Colour, int] | None = None
    values: Mapping[int, int] | None = None


def read_classes(text: str) -> ClassTable:
    """Read `a,b,c`, or a JSON file: a list of {"name", "colour", "value", "mask_colour"}, all but the name
    optional.

    `colour` is [red, green, blue] or "#rrggbb", on maps and, without `mask_colour`, in colour masks. `value`
    is the raw number in masks, or a list of them, for all classes or for none. An item called "unlabelled"
    is no class: its values and mask colours do not count.

    Raises:
        DataError: the file cannot be read, or items contradict each other; the item is named.
    """
    if not text.lower().endswith(".json"):
        names = [part.strip() for part in text.split(",")]
        _check_names(text, names)
        return ClassTable(ClassSpec.from_names(names))
    try:
        with Path(text).open(encoding="utf-8") as file:
            content = file.read(MAX_BYTES + 1)
        listed = json.loads(content if len(content) <= MAX_BYTES else "")
    except (OSError, ValueError, RecursionError) as err:
        raise DataError(f"{text}: cannot be read as JSON ({err}); needs a list of classes") from err
    if not isinstance(listed, list):
        raise DataError(f'{text}: needs a JSON list of {{"name", "colour"}}, found {type(listed).__name__}')
    items = [_item(text, number, item) for number, item in enumerate(listed, 1)]
    kept = [item for item in items if not _is_unlabelled(item)]
    _check_names(text, [item["name"] for item in kept])
    specs = [
        ClassSpec(item["name"], item["colour"]) if item["colour"] else str(item["name"]) for item in kept
    ]
    return ClassTable(ClassSpec.from_names(specs), _colours(text, items), _values(text, items))


def _is_unlabelled(item: Mapping[str, Any]) -> bool:
    return classes.is_unlabelled(item["name"])


def _check_names(text: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or not all(names) or twice:
        raise DataError(
            f"--classes {text}: needs different names, found {', '.join(twice or names) or 'none'}"
        )


def _item(text: str, number: int, item: Any) -> dict[str, Any]:
    """One class of the file with all keys.

    Raises:
        DataError: a key is unknown or of the wrong kind.
    """
    where = f"{text}, class {number}"
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"].strip():
        raise DataError(f'{where}: needs an object with "name", found {item!r:.80}')
    if set(item) - ITEM_KEYS:
        raise DataError(f"{where}: {', '.join(sorted(set(item) - ITEM_KEYS))} is unknown; known are "
                        f"{', '.join(sorted(ITEM_KEYS))}")  # fmt: skip
    colour = item.get("colour", item.get("color"))
    masks = item.get("mask_colour", item.get("mask_color", colour))
    if not (isinstance(masks, list) and masks and all(isinstance(part, list | str) for part in masks)):
        masks = [] if masks is None else [masks]
    values = item.get("value", [])
    values = values if isinstance(values, list) else [values]
    if not all(type(value) is int for value in values):
        raise DataError(f"{where}: value {item['value']!r:.80}; needs a whole number or a list of them")
    return {
        "name": item["name"].strip(),
        "colour": None if colour is None else _colour(where, colour),
        "masks": [_colour(where, mask) for mask in masks],
        "values": values,
    }


def _colour(where: str, value: Any) -> Colour:
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        value = [int(value[place : place + 2], 16) for place in (1, 3, 5)]
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(type(part) is int and 0 <= part <= 255 for part in value)
    ):
        raise DataError(
            f'{where}: colour {value!r:.80}; needs [red, green, blue] from 0 to 255, or "#rrggbb"'
        )
    return value[0], value[1], value[2]


def _numbered(items: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Items with their class number, or 255."""
    number, numbered = 0, []
    for item in items:
        numbered.append((IGNORE if _is_unlabelled(item) else number, item))
        number += not _is_unlabelled(item)
    return numbered


def _colours(text: str, items: Sequence[Mapping[str, Any]]) -> dict[Colour, int] | None:
    colours: dict[Colour, int] = {}
    for index, item in _numbered(items):
        for colour in item["masks"]:
            if colours.setdefault(colour, index) != index:
                raise DataError(
                    f"{text}: mask colour {colour} stands for two classes, one is {item['name']!r}"
                )
    return colours or None


def _values(text: str, items: Sequence[Mapping[str, Any]]) -> dict[int, int] | None:
    values: dict[int, int] = {}
    numbered = _numbered(items)
    given = [item for index, item in numbered if item["values"] and index != IGNORE]
    without = [item["name"] for index, item in numbered if not item["values"] and index != IGNORE]
    if given and without:
        raise DataError(f"{text}: value is given for some classes and not for {', '.join(without)}")
    for index, item in numbered:
        if not given and index != IGNORE:
            values[index] = index
        for value in item["values"]:
            if values.setdefault(value, index) != index:
                raise DataError(f"{text}: value {value} stands for two classes, one is {item['name']!r}")
    values.setdefault(IGNORE, IGNORE)
    unlabelled = any(item["values"] for index, item in numbered if index == IGNORE)
    return values if given or unlabelled else None
