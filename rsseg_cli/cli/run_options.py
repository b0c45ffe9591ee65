"""Options of a network's run over a scene, and what their texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

TileSize = Annotated[
    int, typer.Option(metavar="PX", help="Side of a tile, px: a multiple of 32; of the refiner's too.")
]
Overlap = Annotated[
    int, typer.Option(metavar="PX", help="What neighbouring tiles share, px: 0 to half a tile.")
]
BatchSize = Annotated[str, typer.Option(metavar="N|auto", help="Tiles that run at once.")]
Tta = Annotated[
    Literal["none", "flip", "d4", "scales"],
    typer.Option(
        help="Average over flipped (4 times the work) or flipped and turned views (8 times), or the tile "
        "and the tile at twice its size (5 times)."
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Arithmetic = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Arithmetic; auto is bfloat16 on CUDA, float32 elsewhere."),
]
Bidx = Annotated[
    str | None,
    typer.Option(
        "--bidx",
        "-b",
        metavar="1,2,3",
        help="Bands of the scene in the model's order, from 1. Default: by name.",
    ),
]
Nodata = Annotated[
    float | None,
    typer.Option(metavar="VALUE", help="Value of pixels without data, beside the file's own mask."),
]
Gsd = Annotated[
    float | None,
    typer.Option(
        metavar="M",
        help="Ground resolution that the network sees, metres a pixel. Default: the model's, where the "
        "scene's does not suit it.",
    ),
]
Bbox = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option(metavar="LEFT BOTTOM RIGHT TOP", help="Map this part alone; in the scene's CRS."),
]
Aoi = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Vector file; pixels outside its polygons are left out."),
]
Co = Annotated[
    list[str] | None,
    typer.Option("--co", metavar="KEY=VALUE", help="GDAL creation option of the outputs; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]


def parse_batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r}: needs a number of tiles, or auto", param_hint="--batch-size")
    return int(text)


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as err:
        raise typer.BadParameter(
            f"{text!r}: needs bands from 1 with commas between, as 4,3,2", param_hint="--bidx"
        ) from err


def parse_creation_options(pairs: list[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{pair!r}: needs KEY=VALUE, as COMPRESS=ZSTD", param_hint="--co")
        options[key] = value
    return options


def parse_jobs(text: str | None) -> int | None:
    """0 for auto; None where it is not given."""
    if text is None or text == "auto":
        return None if text is None else 0
    if not text.isdecimal() or int(text) > 256:
        raise typer.BadParameter(f"{text!r}: needs 1 to 256, or auto", param_hint="--jobs")
    return int(text)
