"""`rsseg predict` of many scenes: runs them and prints what came of it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsseg_cli.cli.progress import BatchProgress, short_names
from rsseg_cli.cli.tables import class_lines, size_text
from rsseg_cli.errors import UsageError

if TYPE_CHECKING:
    from rsseg_cli.batch import BatchResult, BatchSettings, RayEngine, SceneReport

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


SOME_FAILED = 3
INTERRUPTED = 130
SHOWN = 40  # scenes in the table; the manifest has them all


def run_scenes(
    arguments: Sequence[str],
    settings: BatchSettings,
    *,
    asset: str,
    jobs: int | None,
    ray: RayEngine | None = None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Map the scenes that the arguments name, and exit with 3 where some failed.

    Args:
        jobs: worker processes of this machine, 0 for as many as suit, None for one, or one a GPU.
        ray: a cluster that does the work instead.
    """
    from rsseg_cli.batch import LocalEngine, list_scenes, run_batch

    stdin = sys.stdin.buffer if "-" in arguments else ()
    scenes = list_scenes(arguments, stdin=stdin, asset=asset, target=settings.folder)
    engine = ray or LocalEngine(jobs)
    try:
        with BatchProgress(hidden=quiet) as progress:
            result = run_batch(scenes, settings, engine, progress)
    except KeyboardInterrupt as err:
        typer.echo(
            f"rsseg: interrupted; {settings.manifest_path} tells what is done. To go on, give the same "
            "command with --resume",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from err
    typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else batch_summary(result))
    if result.count("failed"):
        raise typer.Exit(SOME_FAILED)


def batch_summary(result: BatchResult) -> str:
    """A line a scene, of more than SHOWN those that failed; then all together."""
    reports = result.reports
    names = short_names([report.scene for report in reports])
    named = list(zip(names, reports, strict=True))
    listed = named if len(named) <= SHOWN else [pair for pair in named if pair[1].error][:SHOWN]
    width = max((len(name) for name, _ in listed), default=0)
    lines = [_row(f"{name:<{width}}", report) for name, report in listed]
    failed = result.count("failed")
    if len(reports) > SHOWN and failed > SHOWN:
        lines.append(f"  ... and {failed - SHOWN} more that failed")
    lines += _classes(reports)
    pixels = sum(item.details.get("pixels", 0) for item in reports)
    found = Counter(report.reason or report.status for report in reports)
    kinds = sorted(found.keys() | {"done"}, key=lambda kind: (kind != "done", kind != "failed", kind))
    counts = ", ".join(f"{found[kind]} {kind}" for kind in kinds)
    count = f"{len(reports)} scene{'s' if len(reports) != 1 else ''}"
    lines.append(f"  {count}: {counts}; {size_text(pixels)}, in {result.seconds:.1f} s")
    lines.append(f"  manifest: {result.manifest}")
    return "\n".join(lines)


def _row(name: str, report: SceneReport) -> str:
    if report.status == "failed":
        return f"{name}  failed   {report.error}"
    if report.reason:
        return f"{name}  skipped  {report.reason}"
    told = report.details
    size = f"{size_text(told['pixels']):>10}  {told['seconds']:8.1f} s" if "pixels" in told else ""
    sheets = f"  {len(report.sheets)} sheets" if report.sheets else ""
    return f"{name}  {report.status:<7}  {size}{sheets}".rstrip()


def _classes(reports: Sequence[SceneReport]) -> list[str]:
    """Shares and areas over all scenes whose results are known."""
    pixels: Counter[str] = Counter()
    areas: dict[str, float | None] = {}
    for report in reports:
        found: dict[str, dict[str, Any]] = report.details.get("classes", {})
        for name, item in found.items():
            pixels[name] += item["pixels"]
            before, own = areas.get(name, 0.0), item["area_m2"]
            areas[name] = None if before is None or own is None else before + own
    total = max(1, pixels.total())
    return class_lines({name: (count / total, areas[name]) for name, count in pixels.items()})
