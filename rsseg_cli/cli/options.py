"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rsseg_cli.errors import UsageError

LABELLED = (  # settings of `DataConfig` for labels that are there to be compared with
    "dataset root domains folders images masks scenes val test val_share classes field vector_class outside "
    "nodata alpha stretch"
)


def _silence(quiet: bool) -> bool:
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    return quiet


def argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help)


def option(metavar: str, help: str, *flags: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=help)


def output(metavar: str, help: str) -> Any:
    return option(metavar, help, "--output", "-o")


Model = Annotated[str, option("NAME|PATH", "A bundled model, or the path of a .safetensors file.")]
ModelFile = Annotated[str, argument("NAME|PATH", "A bundled model, or a model file.")]
ModelOutput = Annotated[Path, typer.Option("--output", "-o", help="Model file to write, .safetensors.")]
ClassMap = Annotated[str, argument("MAP.tif", "Raster of class indices, as rsseg predict writes it.")]
Preview = Annotated[Path | None, option("FILE.png", "Also draw the scene with the map over it.")]
Uncertainty = Annotated[
    str | None,
    option(
        "FILE.tif",
        "Also write how much the refiner's samples disagree, 0-254 for 0-1: 0 where they agree or none "
        "was drawn, 1 where each is sure of another class (mutual information, divided by its maximum).",
    ),
]
ReportFolder = Annotated[
    Path | None,
    option("FOLDER", "Also write a page of scores and of the worst tiles, and the scores as JSON."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.", callback=_silence)
]


def echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show(result: Any, text: Callable[[Any], str], *, as_json: bool) -> None:
    """Print what came out, as JSON or as `text` words it."""
    if as_json:
        echo_json(result.as_dict())
    else:
        typer.echo(text(result))


def parse_jobs(text: str | None) -> int | None:
    """Read `--jobs`: 0 for auto, None where it is not given."""
    if text is None or text == "auto":
        return None if text is None else 0
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= 256:
        raise UsageError(f"--jobs {text!r}: needs 1 to 256, or auto")
    return int(text)
