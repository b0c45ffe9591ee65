"""`rsseg predict` of several scenes: run them and print the results."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rsseg_cli.cli.messages import SOME_FAILED
from rsseg_cli.cli.options import show
from rsseg_cli.cli.progress import batch_progress, short_names
from rsseg_cli.cli.tables import class_lines, size_text
from rsseg_cli.errors import UsageError

if TYPE_CHECKING:
    from rsseg_cli.batch import BatchSettings, RayEngine, run

RASTER_ENDINGS = (".tif", ".tiff")

SHOWN = 40  # scenes in the table; the manifest has them all


def are_many(scenes: Sequence[str], output: Path | None, *, asked: bool) -> bool:
    """Return whether these are the scenes of a batch: several, or a list, glob or folder, or outputs in a
    folder, or options of a batch (`asked`). One scene with `-o MAP.tif`, or without -o, is one scene.
    """
    listed = len(scenes) > 1 or any(_names_many(scene) for scene in scenes)
    to_folder = output is not None and (output.is_dir() or not output.suffix)
    return listed or asked or to_folder


def _names_many(text: str) -> bool:
    from rsseg_cli.batch import scenes
    from rsseg_cli.raster import gdal

    if text == "-" or os.path.isdir(text):
        return text == "-" or not gdal.is_folder_of_one(text)
    if scenes.is_gdal_name(text) or os.path.lexists(text):
        return False
    return text.startswith("@") or any(sign in text for sign in "*?[")


def output_folder(output: Path | None) -> Path:
    if output is None:
        raise UsageError("several scenes need a folder for their maps: -o OUT_DIR")
    if not output.is_dir() and output.suffix.lower() in RASTER_ENDINGS:
        raise UsageError(f"-o {output}: several scenes need a folder for their maps, not the name of one map")
    return output


def ray_engine(
    address: str | None, split_mpx: float | None, workers: int | None, device: str, *, split: bool
) -> RayEngine:
    """Connect to Ray; `split` is for a single scene, which all workers share whatever its size."""
    if split_mpx is not None and not 0 <= split_mpx < math.inf:
        raise UsageError(f"--split-above {split_mpx}: needs megapixels, 0 or more")
    from rsseg_cli.batch import RayEngine

    split_px = (0 if split else None) if split_mpx is None else int(split_mpx * 1e6)
    return RayEngine(address=address, workers=workers or None, device=device, split_px=split_px)


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
    """Map the scenes that the arguments name; exit with 3 where some failed. For `jobs` see `LocalEngine`."""
    from rsseg_cli.batch import LocalEngine, list_scenes, run_batch

    stdin = sys.stdin.buffer if "-" in arguments else ()
    scenes = list_scenes(arguments, stdin=stdin, asset=asset, target=settings.folder)
    engine = ray or LocalEngine(jobs)
    try:
        with batch_progress(hidden=quiet) as progress:
            result = run_batch(scenes, settings, engine, progress)
    except KeyboardInterrupt as err:
        stopped = KeyboardInterrupt()
        stopped.add_note(
            f"{settings.manifest_path} lists what is done. To continue, repeat the command with --resume"
        )
        raise stopped from err
    show(result, batch_summary, as_json=as_json)
    if result.count("failed"):
        raise typer.Exit(SOME_FAILED)


def batch_summary(result: run.BatchResult) -> str:
    """One line per scene, of more than SHOWN only those that failed; then the sums."""
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
    statuses = Counter(report.reason or report.status for report in reports)
    kinds = sorted(statuses.keys() | {"done"}, key=lambda kind: (kind != "done", kind != "failed", kind))
    counts = ", ".join(f"{statuses[kind]} {kind}" for kind in kinds)
    count = f"{len(reports)} scene{'s' if len(reports) != 1 else ''}"
    lines.append(f"  {count}: {counts}; {size_text(pixels)}, in {result.seconds:.1f} s")
    lines.append(f"  manifest: {result.manifest}")
    return "\n".join(lines)


def _row(name: str, report: run.SceneReport) -> str:
    if report.status == "failed":
        return f"{name}  failed   {report.error}"
    if report.reason:
        return f"{name}  skipped  {report.reason}"
    details = report.details
    size = f"{size_text(details['pixels']):>10}  {details['seconds']:8.1f} s" if "pixels" in details else ""
    sheets = f"  {len(report.sheets)} sheets" if report.sheets else ""
    return f"{name}  {report.status:<7}  {size}{sheets}".rstrip()


def _classes(reports: Sequence[run.SceneReport]) -> list[str]:
    pixels: Counter[str] = Counter()
    areas: dict[str, float | None] = {}
    for report in reports:
        classes: dict[str, dict[str, Any]] = report.details.get("classes", {})
        for name, item in classes.items():
            pixels[name] += item["pixels"]
            before, own = areas.get(name, 0.0), item["area_m2"]
            areas[name] = None if before is None or own is None else before + own
    total = max(1, pixels.total())
    return class_lines({name: (count / total, areas[name]) for name, count in pixels.items()})
