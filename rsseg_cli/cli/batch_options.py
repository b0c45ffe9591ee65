"""Options of `rsseg predict` for many scenes, and whether there are many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.errors import UsageError

RASTER_ENDINGS = (".tif", ".tiff")

Suffix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What the maps' names have behind the scenes'. Default: _MODEL."),
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help="Where it is told of each scene what was done, a line of JSON each. Default: "
        "OUT_DIR/manifest.jsonl.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with a run that was stopped: a scene from its last finished rows; of many scenes those "
        "that the manifest does not tell as done, or that have changed since.",
    ),
]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out scenes whose outputs all exist.")
]
KeepTree = Annotated[
    bool, typer.Option("--keep-tree", help="Lay outputs into folders as their scenes lie in.")
]
Mosaic = Annotated[
    bool,
    typer.Option(
        "--mosaic",
        help="Map sheets that touch as one scene, so that their borders show no seam; rasters are written "
        "sheet by sheet, polygons and picture of the whole.",
    ),
]
AssetName = Annotated[
    str,
    typer.Option(
        "--asset",
        metavar="NAME",
        help="Name or role of the assets of a STAC ItemCollection that are the scenes. Default: role data, "
        "or visual.",
    ),
]
Jobs = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N|auto",
        help="Worker processes: of one scene for its polygons, of many scenes for the scenes. Default of "
        "many: one, or one a GPU; auto: one a GPU, or one for every 4 cores.",
    ),
]


def are_many(scenes: Sequence[str], output: Path | None, *, asked: bool) -> bool:
    """Whether these are the scenes of a batch: several, or a list, glob or folder, or outputs in a folder.

    One scene with `-o MAP.tif`, or without -o, is one scene.

    Args:
        asked: options of a batch were given.
    """
    listed = len(scenes) > 1 or any(_names_many(scene) for scene in scenes)
    to_folder = output is not None and (output.is_dir() or not output.suffix)
    return listed or asked or to_folder


def _names_many(text: str) -> bool:
    if text == "-" or os.path.isdir(text):
        return True
    if text.startswith("/vsi") or "://" in text or os.path.lexists(text):
        return False
    return text.startswith("@") or any(sign in text for sign in "*?[")


def output_folder(output: Path | None) -> Path:
    """Where the maps of many scenes go.

    Raises:
        UsageError: it is not given, or is the name of a map.
    """
    if output is None:
        raise UsageError("many scenes need the folder of their maps: -o OUT_DIR")
    if not output.is_dir() and output.suffix.lower() in RASTER_ENDINGS:
        raise UsageError(f"-o {output}: many scenes need a folder for their maps, not the name of one")
    return output
