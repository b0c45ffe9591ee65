"""Classes as the user needs them: merged, renamed and recoloured by a JSON file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from rsseg_cli.errors import UsageError
from rsseg_cli.files import read_limited

MAX_BYTES = 1_000_000
MAX_CLASSES = 254
MAX_NAME = 100
MAX_SHOWN = 20  # class names in a message
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Hex = Annotated[str, msgspec.Meta(pattern="^#[0-9a-fA-F]{6}$")]
Triple = tuple[Byte, Byte, Byte]
Colour = tuple[int, int, int]
Item = TypeVar("Item")
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


class _Item(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A class as the file writes it."""

    name: Name
    of: Name | Annotated[list[Name], msgspec.Meta(min_length=1)] | None = msgspec.field(
        default=None, name="from"
    )
    colour: Hex | Triple | None = None
    color: Hex | Triple | None = None

    @property
    def sources(self) -> list[str]:
        given = self.name if self.of is None else self.of
        return [given] if isinstance(given, str) else given


@dataclass(frozen=True, kw_only=True)
class Remapped:
    """Classes after a remap, in order.

    Attributes:
        groups: positions of the earlier classes that make each class; every earlier class is in one.
        colours: None where the file gives no colour.
        aliases: plain name of every class that the file names in "from" -> position of what it becomes.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    colours: tuple[Colour | None, ...]
    aliases: dict[str, int]

    @property
    def position(self) -> dict[int, int]:
        """The class that each earlier one becomes."""
        return {old: new for new, group in enumerate(self.groups) for old in group}


def remapped(path: Path, names: Sequence[str], where: str) -> Remapped:
    """Apply a file of new classes to classes of these names, all of them known to `where`.

    The file is a JSON list of {"name", "from", "colour"}: "from" names the classes that become the new one,
    by default the class of that name. Classes that the file does not name follow its own, as they are. An
    entry none of whose "from" is a class, while its name is one, was applied before.

    Raises:
        UsageError: the file cannot be read, or does not fit the classes.
    """
    numbers = {plain(name): index for index, name in enumerate(names)}
    groups: dict[str, tuple[int, ...]] = {}
    colours: list[Colour | None] = []
    taken: dict[int, str] = {}
    aliases: dict[str, int] = {}
    for item in _read(path):
        sources = [plain(name) for name in item.sources]
        if plain(item.name) in map(plain, groups):
            raise UsageError(f"--remap {path}: two classes are named {item.name!r}; list both under one")
        missing = [name for name, key in zip(item.sources, sources, strict=True) if key not in numbers]
        if len(missing) == len(sources) and plain(item.name) in numbers:
            group = [numbers[plain(item.name)]]
        elif missing:
            raise UsageError(
                f"--remap {path}: {item.name!r} is made from {missing[0]!r}, which is no class of {where}; "
                f"it has {_listed(names)}"
            )
        else:
            group = [numbers[key] for key in sources]
        twice = [names[old] for old in group if old in taken or group.count(old) > 1]
        if twice:
            also = taken.get(numbers[plain(twice[0])], item.name)
            raise UsageError(
                f"--remap {path}: class {twice[0]!r} becomes {also!r} and {item.name!r}; needs one of them"
            )
        taken |= dict.fromkeys(group, item.name)
        aliases |= dict.fromkeys(sources, len(groups))
        groups[item.name] = tuple(group)
        given = item.colour or item.color
        colours.append(rgb(given) if given else None)
    for old, name in enumerate(names):
        if old in taken:
            continue
        if plain(name) in map(plain, groups):
            raise UsageError(
                f"--remap {path}: the new class {name!r} has the name of a class that stays as it is; add "
                f'{name!r} to its "from", or choose another name'
            )
        groups[name] = (old,)
        colours.append(None)
    return Remapped(
        names=tuple(groups), groups=tuple(groups.values()), colours=tuple(colours), aliases=aliases
    )


def _read(path: Path) -> list[_Item]:
    try:
        items = read_items(path, _Item)
        for number, item in enumerate(items, 1):
            if not item.name.isprintable() or item.name != item.name.strip():
                raise ValueError(f"Expected printable characters in class {number}, name")
    except ValueError as err:
        raise UsageError(
            f'--remap {path}: {err}; needs a JSON list of {{"name", "from", "colour"}}: a name, the '
            'classes that it is made from, a colour as [red, green, blue] from 0 to 255 or "#rrggbb"'
        ) from err
    if not 1 <= len(items) <= MAX_CLASSES:
        raise UsageError(f"--remap {path}: {len(items)} classes; needs 1 to {MAX_CLASSES}")
    return items


def read_items(path: Path, kind: type[Item]) -> list[Item]:
    """Read a JSON list of classes from a file that is not trusted; ValueError says what is wrong where."""
    try:
        return msgspec.json.decode(read_limited(path, MAX_BYTES), type=list[kind])  # type: ignore[valid-type]
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as err:
        raise ValueError(re.sub(r" - at `\$\[(\d+)\]\.?([^`]*)`", _where, str(err))) from err


def _where(match: re.Match[str]) -> str:
    return f" in class {int(match[1]) + 1}{', ' + match[2] if match[2] else ''}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return (", ".join(names[:MAX_SHOWN]) or "none with a name") + more


def rgb(colour: Any) -> Colour:
    """Return (red, green, blue) of "#rrggbb" or three numbers."""
    red, green, blue = bytes.fromhex(colour[1:]) if isinstance(colour, str) else colour
    return red, green, blue


def plain(name: str) -> str:
    """Return a name as it is compared: without capitals and surrounding spaces."""
    return name.strip().casefold()
