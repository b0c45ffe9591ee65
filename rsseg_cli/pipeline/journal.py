"""What a run has finished, so that another can go on: written whole, read with distrust."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsseg_cli import files

VERSION = 1
MAX_BYTES = 64 << 20
MAX_ROWS = 2**31
VALUES = 256  # that a uint8 pixel may have


@dataclass(frozen=True, kw_only=True)
class Passed:
    """How far a pass over the rows has come.

    Attributes:
        rows: that are in complete files.
        complete: the pass is through, with all that it counts.
        files: names and sizes of these, bytes.
        pixels, areas_m2: of each value in these rows, by `AreaCounter`; empty where they are not counted.
        extremes: `SceneReader.extreme_counts`.
        refined: `Refined`'s counts by name.
    """

    rows: int
    complete: bool = False
    files: Mapping[str, int] = field(default_factory=dict)
    pixels: Sequence[int] = ()
    areas_m2: Sequence[float] = ()
    extremes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    refined: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Files that are complete and about to get their names.

    Attributes:
        renames: file and name, in order.
        leftovers: files to remove.
        result: of the run, as JSON has it.
    """

    renames: Sequence[tuple[str, str]]
    leftovers: Sequence[str]
    result: Mapping[str, Any]


@dataclass(kw_only=True)
class Journal:
    """The state of a run.

    Attributes:
        fingerprint: all that decides its pixels.
        passes: by name.
        batches: tiles a batch, by pass, where that was measured.
        finished: kinds of outputs that are complete under their temporary names.
        publication: once everything is.
    """

    fingerprint: Mapping[str, Any]
    passes: dict[str, Passed] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    publication: Publication | None = None

    def save(self, path: Path) -> None:
        """Write it whole, on disk, in place of the one before.

        Raises:
            OSError: the disk is full; the one before is left.
        """
        with files.write_atomic(path) as file:
            file.write_text(json.dumps({"version": VERSION, **asdict(self)}), encoding="utf-8")

    @property
    def files(self) -> dict[str, int]:
        """Names and sizes of files that it counts on."""
        return {name: size for passed in self.passes.values() for name, size in passed.files.items()}


def read_journal(path: Path) -> Journal | None:
    """The journal of an earlier run; None if there is none.

    Raises:
        ValueError: it is damaged or of another version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ValueError(f"cannot be read ({err})") from err
    return parse_journal(data)


def parse_journal(data: bytes) -> Journal:
    """A journal from its bytes.

    Raises:
        ValueError: they are no journal of this version.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
    try:
        found = json.loads(data)
    except RecursionError as err:
        raise ValueError("is nested too deeply") from err
    root = _dict(found)
    if root.get("version") != VERSION:
        raise ValueError(f"has version {root.get('version')!r:.20}, needs {VERSION}")
    publication = root.get("publication")
    return Journal(
        fingerprint=_dict(root.get("fingerprint")),
        passes={name: _passed(item) for name, item in _dict(root.get("passes")).items()},
        batches={name: _int(item, 1) for name, item in _dict(root.get("batches")).items()},
        finished=[_text(item) for item in _list(root.get("finished"))],
        publication=None if publication is None else _publication(_dict(publication)),
    )


def _passed(found: object) -> Passed:
    item = _dict(found)
    pixels, areas_m2 = _list(item.get("pixels")), _list(item.get("areas_m2"))
    if len(pixels) not in (0, VALUES) or len(areas_m2) != len(pixels):
        raise ValueError(f"counts {len(pixels)} and {len(areas_m2)} values, needs {VALUES}")
    return Passed(
        rows=_int(item.get("rows"), 1, MAX_ROWS),
        complete=item.get("complete") is True,
        files={_name(name): _int(size) for name, size in _dict(item.get("files")).items()},
        pixels=[_int(count) for count in pixels],
        areas_m2=[_number(area) for area in areas_m2],
        extremes={_int_of(row): _three(counts) for row, counts in _dict(item.get("extremes")).items()},
        refined={name: _int(count) for name, count in _dict(item.get("refined")).items()},
    )


def _publication(item: dict[str, Any]) -> Publication:
    pairs = [_list(pair) for pair in _list(item.get("renames"))]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a rename needs a file and a name")
    return Publication(
        renames=[(_text(pair[0]), _text(pair[1])) for pair in pairs],
        leftovers=[_text(name) for name in _list(item.get("leftovers"))],
        result=_dict(item.get("result")),
    )


def _dict(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} in place of an object")
    return found


def _list(found: object) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{type(found).__name__} in place of a list")
    return found


def _text(found: object) -> str:
    if not isinstance(found, str) or "\0" in found:
        raise ValueError(f"{type(found).__name__} in place of text")
    return found


def _name(found: str) -> str:
    """A file's name, without a folder."""
    if found in ("", ".", "..") or any(sign in found for sign in "/\\:\0"):
        raise ValueError(f"{found!r:.60} is no name of a file")
    return found


def _int(found: object, least: int = 0, most: int = 2**63 - 1) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise ValueError(f"{found!r:.30}: needs a whole number from {least} to {most}")
    return found


def _int_of(found: str) -> int:
    """JSON's keys are text."""
    if not found.isascii() or not found.isdecimal() or len(found) > 10:
        raise ValueError(f"{found!r:.30}: needs a row")
    return int(found)


def _number(found: object) -> float:
    if not isinstance(found, int | float) or isinstance(found, bool) or not abs(found) < 1e300:
        raise ValueError(f"{found!r:.30}: needs a number")
    return float(found)


def _three(found: object) -> list[int]:
    counts = [_int(count) for count in _list(found)]
    if len(counts) != 3:
        raise ValueError(f"{len(counts)} counts, needs 3")
    return counts
