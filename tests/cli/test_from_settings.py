"""Options made of settings: names, types, defaults, what the user gave, and bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig, check_bounds, option
from rsseg_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Settings:
    side: int = option(64, "Side, px.", unit="px", minimum=32, maximum=256, step=32)
    share: float = option(0.5, "Share.", metavar="SHARE", minimum=0, below=1)
    rate: float | None = option(None, "Rate. Default: the model's.", "--fast-rate", "-r", above=0)
    count: int | Literal["auto"] = option("auto", "How many.", metavar="N|auto", minimum=1)
    kind: Literal["a", "b"] = option("a", "Kind.")
    word: str = option("", "Word. Default: none.", choices=("x", "y"))
    flag: bool = option(False, "A flag.")
    turns: bool = option(True, "Turns.", "--turns/--no-turns")
    numbers: tuple[int, ...] = option((1, 2), "Numbers.", metavar="A,B", example="3,4")
    names: tuple[str, ...] | None = option(None, "Names. Default: all.", metavar="A,B")
    files: tuple[Path, ...] = option((), "Files.", repeat=True)
    pair: tuple[float, float] | None = option(None, "Two numbers.", metavar="X Y")
    pairs: Mapping[str, str] = option(dict, "Pairs.", metavar="KEY=VALUE")
    hidden: int = 3

    def __post_init__(self) -> None:
        check_bounds(self)


def run(words: str, mark: Options | None = None) -> Any:
    """What a command gets for these words."""
    received = []
    kind: Any = dict if mark is not None and mark.of else Settings

    def command(*, value: Any) -> None:
        received.append(value)

    command.__annotations__ = {"value": Annotated[kind, mark or Options()], "return": None}
    app = typer.Typer(rich_markup_mode=None)
    app.command()(from_settings(command))
    done = CliRunner().invoke(app, words.split())
    if words == "--help":
        return " ".join(done.output.split())
    if done.exception is not None and not received:
        raise done.exception
    return received[0]


GIVEN = (
    "--side 96 --share 0.25 -r 2 --count 7 --kind b --word y --flag --no-turns --numbers 3,4 --names a,,b "
    "--files x --files y --pair 1 2 --pairs k=v"
)
READ = {
    "side": 96, "share": 0.25, "rate": 2.0, "count": 7, "kind": "b", "word": "y", "flag": True,
    "turns": False, "numbers": (3, 4), "names": ("a", "b"), "files": (Path("x"), Path("y")),
    "pair": (1.0, 2.0), "pairs": {"k": "v"},
}  # fmt: skip


def test_a_command_gets_the_settings() -> None:
    assert run("") == Settings()
    assert run(GIVEN) == Settings(**READ)


def test_a_command_gets_only_what_was_given() -> None:
    mark = Options(of=(Settings(side=128),))
    assert run("", mark) == {}
    assert run("--side 128 --count auto", mark) == {"side": 128, "count": "auto"}
    assert run(GIVEN, mark) == READ


def test_help_names_defaults_and_metavars() -> None:
    shown = run("--help")
    for words in (
        "--side PX Side, px. [default: 64]", "-r, --fast-rate", "--count N|auto How many. [default: auto]",
        "--kind <a|b> Kind. [default: a]", "--word <x|y> Word. Default: none.", "--flag A flag.",
        "--turns / --no-turns", "--numbers A,B Numbers. [default: 1,2]", "--pairs KEY=VALUE Pairs.",
    ):  # fmt: skip
        assert words in shown
    assert "hidden" not in shown
    shown = run("--help", Options("side turns numbers rate", {"turns": "Turn crops."}, (Settings(side=128),)))
    for words in ("Side, px. Default: 128.", "Turn crops. Default: on.", "Numbers. Default: 1,2."):
        assert words in shown
    assert "default: " not in shown
    assert "--share" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--side 100", "--side 100: needs a multiple of 32 from 32 to 256 px"),
        ("--share 1", "--share 1.0: needs 0 up to, but not including, 1"),
        ("--share nan", "--share nan: needs"),
        ("-r 0", "--fast-rate 0.0: needs above 0"),
        ("--count many", "--count many: needs a whole number or auto"),
        ("--count 0", "--count 0: needs 1 or more, or auto"),
        ("--numbers 1,x", "--numbers 1,x: needs whole numbers with commas between, as 3,4"),
        ("--pairs k", "--pairs 'k': needs KEY=VALUE"),
    ],
)
def test_errors_name_the_option_and_what_it_needs(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        run(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: PredictConfig(tile_size=500), "--tile-size 500: needs a multiple of 32 from 32 to 8192 px"),
        (lambda: PredictConfig(batch_size=0), "--batch-size 0: needs a whole number from 1, or auto"),
        (lambda: PredictConfig(tta="turn"), "--tta turn: needs none, flip, d4 or scales"),  # type: ignore[arg-type]
        (lambda: PredictConfig(gsd_m=-1), "--gsd -1.0: needs metres a pixel above 0"),
        (lambda: RefineConfig(seed=2**63), "needs a whole number from 0, less than 2**63"),
        (lambda: VectorConfig(simplify_m=math.inf), "--simplify inf: needs a number of m, 0 or more"),
        (lambda: VectorConfig(jobs=257), "--jobs 257: needs 1 to 256, or 0 for one per core"),
    ],
)
def test_the_library_checks_the_same_bounds(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        settings()
