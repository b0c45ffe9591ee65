"""What a run has finished, so that another can resume it: written whole, read with distrust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rsseg_cli import files as files_

MAX_BYTES = 64 << 20
VALUES = 256  # that a uint8 pixel may have

Area = Annotated[float, Meta(ge=0, lt=1e300)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
FileName = Annotated[str, Meta(pattern=r"\A(?!\.{1,2}\Z)[^/\\:\0]+\Z", description="without a folder")]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pass over the rows has come.

    Attributes:
        files: sizes by name, bytes.
        pixels, areas_m2: of each value in these rows, by `AreaCounter`; empty where they are not counted.
        counts: what else the pass counted: tiles unlike the training data, or what refining changed.
    """

    rows: Annotated[int, Meta(ge=1, le=2**31)]
    complete: bool = False
    files: dict[FileName, Count] = {}
    pixels: list[Count] = []
    areas_m2: list[Area] = []
    counts: dict[str, Count] = {}

    def __post_init__(self) -> None:
        if len(self.pixels) not in (0, VALUES) or len(self.areas_m2) != len(self.pixels):
            raise ValueError(f"counts {len(self.pixels)} and {len(self.areas_m2)} values, needs {VALUES}")


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """Complete files that are about to get their names, and `PredictResult.as_dict` of the run."""

    renames: list[tuple[Text, Text]]
    leftovers: list[Text]
    result: dict[str, Any]


class Journal(msgspec.Struct, kw_only=True):
    """The state of a run; outputs of `finished` kinds are complete under their temporary names."""

    fingerprint: dict[str, Any]
    version: Literal[1] = 1
    passes: dict[str, Checkpoint] = {}
    batches: dict[str, Annotated[int, Meta(ge=1)]] = {}
    finished: list[Text] = []
    publication: Publication | None = None

    def save(self, path: Path) -> None:
        """Replace the file at once; on a full disk (OSError) the one before is left."""
        with files_.write_atomic(path) as file:
            file.write_text(json.dumps(msgspec.to_builtins(self)), encoding="utf-8")

    @property
    def files(self) -> dict[str, int]:
        return {name: size for passed in self.passes.values() for name, size in passed.files.items()}


def read_journal(path: Path) -> Journal | None:
    """Read the journal of an earlier run, if there is one; a ValueError says what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ValueError(f"cannot be read ({err})") from err
    return parse_journal(data)


def parse_journal(data: bytes) -> Journal:
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
    try:
        # by `json`: names of files may hold bytes that are no UTF-8, as lone surrogates
        return msgspec.convert(json.loads(data), Journal, str_keys=True)
    except RecursionError as err:
        raise ValueError("is nested too deeply") from err
