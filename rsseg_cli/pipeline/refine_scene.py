"""Refine the boundaries of a map: a second pass of a diffusion model, where classes meet."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from torch import nn

from rsseg_cli.config import Dtype, PredictConfig, RefineConfig
from rsseg_cli.inference import Pass, RefinerEngine, passes, tiling
from rsseg_cli.inference import windows as geometry
from rsseg_cli.pipeline.checkpoint import Track, TrackedPass, WorkFolder
from rsseg_cli.pipeline.disk_space import check_space
from rsseg_cli.pipeline.fingerprint import fingerprint
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.merge import Merger
from rsseg_cli.pipeline.outputs import ROWS, Target
from rsseg_cli.pipeline.publication import earlier_result, finish_publication, stand, tagged
from rsseg_cli.pipeline.refinement import LabelSource, Refinement, prepare
from rsseg_cli.pipeline.result import PredictResult, Refined
from rsseg_cli.system import give_back_memory

_log = logging.getLogger("rsseg_cli")
REACH_PX = 2  # beside the network's own: rounding, and neighbours in resampling
RESAMPLED_PX = 1.5  # by which a boundary may lie elsewhere among the pixels that the refiner sees
COUNTED = ("windows_run", "band_pixels", "changed_pixels")  # of `Refined`, row by row
REFINED_LAYERS = (
    "labels",
    "confidence",
    "probabilities",
    "uncertainty",
)  # that refining changes, in this order


@dataclass(frozen=True)
class Windows:
    """What is run.

    Attributes:
        region: of the grid that the refiner sees.
        plan: windows over it.
    """

    region: geometry.Region
    plan: tiling.Plan


class RunSettings(TypedDict, total=False):
    """Fields of `PredictConfig` that refining looks at, by keyword."""

    batch_size: int | Literal["auto"]
    device: str
    dtype: Dtype
    bands: tuple[int, ...] | None
    nodata: float | None
    bbox: tuple[float, float, float, float] | None
    creation_options: Mapping[str, str]
    overwrite: bool
    readers: int


def refine(
    scene: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: RefineConfig | None = None,
    run: PredictConfig | None = None,
    uncertainty: str | os.PathLike[str] | None = None,
    preview: str | os.PathLike[str] | None = None,
    progress: passes.Progress | None = None,
    resume: bool = False,
    **settings: Unpack[RunSettings],
) -> PredictResult:
    """Draw the class boundaries of a map where the image has them.

    Only windows with a boundary are run, and only pixels in a band around boundaries may change, from one
    class to another; what has no class, and where the scene has no data, stays as it is. The result does not
    depend on how the scene is cut into windows as long as these overlap by as much as the network looks
    around. Memory does not grow with the scene's height.

    Args:
        scene: anything that GDAL reads; on another grid or in another CRS than the map it is warped to it.
        labels: class raster of any model whose classes are the refiner's, matched by name.
        output: GeoTIFF of the refined map, on the grid of `labels`.
        config: the refiner and its settings.
        run: how the scene is read and the network run: the fields of `RunSettings` are used; `bbox` is in the
            CRS of `labels`.
        uncertainty: GeoTIFF of the samples' disagreement, 0-254 for 0-1, 255 no data: the mutual information
            between class and sample, as a share of the most that so many samples can have. 0 where all
            samples say the same or none was drawn, 1 where each is certain of another class.
        preview: PNG of the scene with the map over it.
        progress: called with windows done and windows in all.
        resume: go on where an earlier run of the same call was killed or stopped, see `predict`.
        settings: fields of `run`, in place of its own.

    Raises:
        UsageError, SceneError, ModelError, OutputError: what is wrong and what to do; nothing was written.
    """
    start = time.monotonic()
    wanted = {"labels": output, "uncertainty": uncertainty, "preview": preview}
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    chosen = dataclasses.replace(run or PredictConfig(), **settings)

    def check(run: PredictConfig) -> tuple[Job, Refinement, LabelSource]:
        return prepare(os.fspath(scene), os.fspath(labels), paths, config or RefineConfig(), run)

    published = finish_publication(paths)
    standing = stand(paths, published, resume)
    job, refinement, source = check(dataclasses.replace(chosen, overwrite=True) if standing else chosen)
    check_space(job)
    trained = refinement.load()
    found = fingerprint(job, [trained], refinement, source)
    job = tagged(job, found)
    if standing:
        inputs = [os.fspath(scene), os.fspath(labels), *refinement.info.files, *source.info.files]
        result = earlier_result(job, published, found, inputs)
        if result is not None:
            return result
        if not chosen.overwrite:
            check(chosen)  # says what is in the way
    windows = plan_windows(refinement, trained.network, job.notes)
    cuts = refined_cuts(refinement, windows)

    with WorkFolder(paths, found, job.grid.height, resume=resume) as work, Target(job, work, cuts) as target:
        rows = TrackedPass(work, ROWS, cuts, target)
        if not rows.complete:
            left = rows.pass_over(job.layers, lambda done: progress and progress(done, len(windows.plan)))
            refine_pass(refinement, trained.network, windows, source, left, rows.track)
            rows.finish()
        refined = refined_of(refinement, trained.network, len(windows.plan), rows.counts()[1])
        result = target.commit(
            lambda: PredictResult(
                paths=paths,
                seconds=time.monotonic() - start,
                pixels=job.grid.width * job.grid.height,
                valid_pixels=target.counter.valid_pixels,
                classes=target.counter.classes(),
                notes=tuple(job.notes),
                refined=refined,
            )
        )
    give_back_memory()
    return result


def plan_windows(refinement: Refinement, network: nn.Module, notes: list[str]) -> Windows:
    """Windows that begin at multiples of the network's alignment, counted from the scene's origin.

    Args:
        notes: told where windows share too little.

    Raises:
        ModelError: the network is no refiner.
    """
    RefinerEngine.check(network)
    alignment, halo = int(network.alignment_px), int(network.halo_px)  # type: ignore[arg-type]
    config = refinement.config
    size = _rounded(config.tile_size, alignment)
    asked = 2 * halo if config.overlap is None else config.overlap
    overlap = min(_rounded(asked, alignment), size // 2 // alignment * alignment)
    region = refinement.frame.region(max(halo, alignment) + REACH_PX, alignment)
    # Windows agree between their halos, so that nothing need be blended.
    ramp = overlap - 2 * halo if overlap >= 2 * halo else overlap // 2
    plan = tiling.plan(region.height, region.width, size, overlap, ramp=ramp, step=alignment)
    if overlap < 2 * halo and len(plan) > 1:
        note = (
            f"windows of {size} px share {overlap} px, and refiner {refinement.spec.name!r} looks {halo} px "
            f"around: their edges may show; --tile-size {4 * _rounded(halo, alignment)} or more avoids it"
        )
        notes.append(note)
        _log.warning("%s", note)
    return Windows(region, plan)


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def refine_pass(
    refinement: Refinement,
    network: nn.Module,
    windows: Windows,
    source: LabelSource,
    rows: Pass,
    track: Track | None = None,
) -> None:
    """Stream scene and map through the refiner into rows of the refined map.

    Args:
        source: the map.
        rows: its tile rows are rows of windows.
        track: of an earlier run, that is gone on with; its `counts` are those of `refined_of`.
    """
    frame = refinement.frame
    layers = _refined_layers(rows.layers, len(refinement.order))
    track = track or Track()
    engine = RefinerEngine(
        network,
        order=refinement.order,
        scaling=refinement.scaling,
        config=refinement.config,
        samples=refinement.samples,
        run=track.config(refinement.run),
        probabilities=frame.resampled or "confidence" in layers or "probabilities" in layers,
        uncertainty="uncertainty" in layers,
    )
    with engine, ExitStack() as stack:
        row, col = _origin(frame)
        region = windows.region
        refined = dataclasses.replace(rows, layers=layers)
        assembler = passes.Assembler(
            engine,
            windows.plan,
            refined,
            resampler=_resampler(refinement, windows),
            window=None if frame.resampled else (row - region.row, col - region.col, *frame.window[2:]),
            masked=True,
        )
        track.batch_size = engine.batch_size(windows.plan.rows.size, windows.plan.cols.size)
        give_back_memory()
        coarse = stack.enter_context(source.open())
        scene = stack.enter_context(refinement.scene_reader())
        merger = stack.enter_context(Merger(refinement, coarse, rows.layers, layers, rows.write))
        reader = geometry.RefineReader(scene, coarse, frame, region, _seen_band(refinement))
        span = assembler.span
        windows_run: Counter[int] = Counter()  # by row of windows
        before, cuts = track.refined, refined_cuts(refinement, windows)

        def counts(rows: int | None) -> tuple[dict[int, Sequence[int]], dict[str, int]]:
            end = span.end if rows is None else bisect_left(cuts, rows)
            done = sum(count for row, count in list(windows_run.items()) if span.first <= row < end)
            found = zip(COUNTED, (done, merger.band_pixels, merger.changed_pixels), strict=True)
            return {}, {name: before.get(name, 0) + count for name, count in found}

        track.counts = counts

        def window_of(item: passes.TilePixels) -> geometry.Window:
            windows_run[item.tile.row_index] += 1
            return reader.window(item)

        passes.run_pass(
            engine,
            assembler,
            reader,
            dataclasses.replace(refined, write=merger.put),
            threads=refinement.run.readers,
            core_only=True,
            input_of=window_of,
        )
    give_back_memory()


def refined_of(
    refinement: Refinement, network: nn.Module, windows: int, counts: Mapping[str, int]
) -> Refined:
    """What refining came to in a number of windows."""
    return refinement.result(
        steps=refinement.config.steps or int(network.default_steps),  # type: ignore[arg-type]
        windows=windows,
        **{name: counts.get(name, 0) for name in COUNTED},
    )


def refined_cuts(refinement: Refinement, windows: Windows) -> tuple[int, ...]:
    """Rows of the map that each row of windows finishes; see `passes.row_cuts`."""
    row, _ = _origin(refinement.frame)
    height = refinement.frame.window[2]
    return passes.row_cuts(windows.plan, _resampler(refinement, windows), row - windows.region.row, height)


def _refined_layers(layers: Mapping[str, slice], classes: int) -> dict[str, slice]:
    """Channels of the refined rows, by what they hold."""
    refined, first = {}, 0
    for kind in REFINED_LAYERS:
        if kind in layers:
            size = classes if kind == "probabilities" else 1
            refined[kind] = slice(first, first + size)
            first += size
    return refined


def _origin(frame: geometry.Frame) -> tuple[int, int]:
    """(row, col) of `frame.seen`, in pixels of the labels, where the map begins."""
    return frame.window[0] + frame.offset[0], frame.window[1] + frame.offset[1]


def _resampler(refinement: Refinement, windows: Windows) -> passes.Resampler | None:
    frame, region = refinement.frame, windows.region
    if not frame.resampled:
        return None
    row, col = _origin(frame)
    start = row * frame.scale[0] - region.row, col * frame.scale[1] - region.col
    return passes.Resampler((region.height, region.width), frame.window[2:], frame.scale, start)


def _seen_band(refinement: Refinement) -> geometry.Band:
    """The band among the pixels that the refiner sees; wider where these are not the map's."""
    frame = refinement.frame
    gsd_m = frame.seen_gsd_m
    wider = RESAMPLED_PX * max(*gsd_m, *frame.gsd_m) if frame.resampled else 0.0
    return geometry.Band(refinement.band_m + wider, gsd_m)
