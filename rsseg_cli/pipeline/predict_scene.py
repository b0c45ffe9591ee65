"""Predict a scene: the joint of reader, plan, network, blend and writer."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypedDict, Unpack

from rsseg_cli.config import Dtype, PredictConfig, RefineConfig, Tta, VectorConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.inference import Engine, Pass, passes, tiling
from rsseg_cli.pipeline.checkpoint import Track, TrackedPass, WorkFolder
from rsseg_cli.pipeline.disk_space import check_space
from rsseg_cli.pipeline.fingerprint import fingerprint
from rsseg_cli.pipeline.job import Job, prepare
from rsseg_cli.pipeline.merge import COARSE, CoarseFile
from rsseg_cli.pipeline.outputs import ROWS, Target
from rsseg_cli.pipeline.publication import earlier_result, finish_publication, stand, tagged
from rsseg_cli.pipeline.refine_scene import Windows, plan_windows, refine_pass, refined_cuts, refined_of
from rsseg_cli.pipeline.refinement import LabelSource, Refinement, prepare_for_job
from rsseg_cli.pipeline.result import AreaCounter, PredictResult, Refined
from rsseg_cli.raster import SceneInfo
from rsseg_cli.system import give_back_memory
from rsseg_cli.weights import TrainedModel, load_model


class Passes(Protocol):
    """The two passes over a scene, where they do not run in this process; rows come in order."""

    def map(self, job: Job, rows: Pass, track: Track) -> None:
        """See `map_rows`."""

    def refine(
        self, refinement: Refinement, windows: Windows, source: LabelSource, rows: Pass, track: Track
    ) -> None:
        """See `refine_pass`."""


class PredictSettings(TypedDict, total=False):
    """Fields of `PredictConfig` by keyword, for calls that set one or two."""

    tile_size: int
    overlap: int
    batch_size: int | Literal["auto"]
    tta: Tta
    device: str
    dtype: Dtype
    bands: tuple[int, ...] | None
    nodata: float | None
    gsd_m: float | None
    bbox: tuple[float, float, float, float] | None
    aoi: Path | None
    creation_options: Mapping[str, str]
    overwrite: bool
    readers: int


def predict(
    scene: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | TrainedModel,
    config: PredictConfig | None = None,
    confidence: str | os.PathLike[str] | None = None,
    probabilities: str | os.PathLike[str] | None = None,
    heatmaps: str | os.PathLike[str] | None = None,
    preview: str | os.PathLike[str] | None = None,
    vector: str | os.PathLike[str] | None = None,
    vector_config: VectorConfig | None = None,
    refine: RefineConfig | None = None,
    uncertainty: str | os.PathLike[str] | None = None,
    progress: passes.Progress | None = None,
    resume: bool = False,
    passes: Passes | None = None,
    **settings: Unpack[PredictSettings],
) -> PredictResult:
    """Map the land cover of a scene: a raster of class indices on the scene's own grid, and what else is
    asked for.

    The outputs appear together when all of them are complete, or not at all. Memory does not grow with the
    scene's height. What is finished waits in the folder `.OUTPUT.rsseg` beside the output; a run that is
    killed or stopped leaves it for the next one.

    Args:
        scene: anything that GDAL reads: a path, /vsicurl/..., s3://...
        output: GeoTIFF of class indices: uint8, 255 where the scene has no data.
        model: name of a model that comes along, path of a model file, or a network with its spec.
        config: settings; the defaults suit most scenes.
        confidence: GeoTIFF of the probability of the class in the map, 0-254 for 0-1, 255 no data.
        probabilities: the same of every class, a band each.
        heatmaps: the same of BiCoR-Seg's last class heatmaps.
        preview: PNG of the scene with the map over it.
        vector: the map's polygons: GeoPackage, FlatGeobuf, GeoParquet, GeoJSON or Shapefile.
        vector_config: settings of these; `overwrite` is that of `config`.
        refine: draw the boundaries anew by a refiner, see `refine`. Class, confidence and probabilities of
            pixels that it looks at are the refiner's, all others the model's; polygons, picture and areas
            are of the refined map.
        uncertainty: of the refiner, see `refine`.
        progress: called with tiles done and tiles in all, those of refining included.
        resume: go on where an earlier run of the same call was killed or stopped. If there was none, or it
            was another call, or the scene has changed since, begin anew, with a warning.
        passes: runs the networks elsewhere; None for this process. The outputs are written by this one.
        settings: fields of `config`, in place of its own.

    Raises:
        UsageError, SceneError, ModelError, OutputError: what is wrong and what to do; nothing was written.
    """
    start = time.monotonic()
    wanted = {
        "labels": output,
        "confidence": confidence,
        "probabilities": probabilities,
        "heatmaps": heatmaps,
        "preview": preview,
        "vector": vector,
        "uncertainty": uncertainty,
    }
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    chosen = dataclasses.replace(config or PredictConfig(), **settings)
    if refine is None and uncertainty is not None:
        raise UsageError("--uncertainty is the disagreement of a refiner's samples; needs --refine")

    def check(config: PredictConfig) -> tuple[Job, Refinement | None]:
        job = prepare(os.fspath(scene), paths, model, config, vector_config)
        return (job, None) if refine is None else prepare_for_job(job, model, refine)

    published = finish_publication(paths)
    standing = stand(paths, published, resume)
    job, refinement = check(dataclasses.replace(chosen, overwrite=True) if standing else chosen)
    check_space(job, coarse=refinement is not None)
    trained = _loaded(model)
    models = [trained]
    if refinement is not None:  # loaded once
        refinement = dataclasses.replace(refinement, refiner=refinement.load())
        models.append(refinement.load())
    found = fingerprint(job, models, refinement)
    job = tagged(job, found)
    if standing:
        inputs = [os.fspath(scene), *job.info.files, *([str(chosen.aoi)] if chosen.aoi else [])]
        result = earlier_result(job, published, found, inputs)
        if result is not None:
            return result
        if not chosen.overwrite:
            check(chosen)  # says what is in the way

    def told(counter: AreaCounter, refined: Refined | None) -> PredictResult:
        return PredictResult(
            paths=paths,
            seconds=time.monotonic() - start,
            pixels=job.grid.width * job.grid.height,
            valid_pixels=counter.valid_pixels,
            classes=counter.classes(),
            notes=tuple(job.notes),
            refined=refined,
        )

    run = passes or _Here(trained)
    with WorkFolder(paths, found, job.grid.height, resume=resume) as work:
        if refinement is None:
            return _predict(job, run, work, progress, told)
        return _predict_refined(job, run, refinement, work, progress, told)


def _loaded(model: str | os.PathLike[str] | TrainedModel) -> TrainedModel:
    return model if isinstance(model, TrainedModel) else load_model(model)


class _Here:
    """The passes in this process."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model

    def map(self, job: Job, rows: Pass, track: Track) -> None:
        map_rows(job, self._model, rows, track)

    def refine(
        self, refinement: Refinement, windows: Windows, source: LabelSource, rows: Pass, track: Track
    ) -> None:
        refine_pass(refinement, refinement.load().network, windows, source, rows, track)


Told = Callable[[AreaCounter, Refined | None], PredictResult]


def _predict(
    job: Job, run: Passes, work: WorkFolder, progress: passes.Progress | None, told: Told
) -> PredictResult:
    """Stream the scene through the network into the outputs."""
    tiles = len(plan_of(job))
    with Target(job, work, _cuts(job)) as target:
        rows = TrackedPass(work, ROWS, _cuts(job), target)
        _map(job, run, job.layers, rows, lambda done: progress and progress(done, tiles))
        result = target.commit(lambda: told(target.counter, None))
        give_back_memory()
    return result


def _predict_refined(
    job: Job,
    run: Passes,
    refinement: Refinement,
    work: WorkFolder,
    progress: passes.Progress | None,
    told: Told,
) -> PredictResult:
    """Map the scene into temporary files, and refine these into the outputs."""
    network = refinement.load().network
    windows = plan_windows(refinement, network, job.notes)
    cuts = refined_cuts(refinement, windows)
    tiles = len(plan_of(job))
    total = tiles + len(windows.plan)
    with (
        Target(job, work, cuts, holes=False) as target,
        CoarseFile(job, work, _cuts(job)) as coarse,
    ):
        mapped = TrackedPass(work, COARSE, _cuts(job), coarse)
        _map(job, run, coarse.layers, mapped, lambda done: progress and progress(done, total))
        rows = TrackedPass(work, ROWS, cuts, target)
        if not rows.complete:
            second = rows.pass_over(job.layers, lambda done: progress and progress(tiles + done, total))
            run.refine(refinement, windows, coarse.finish(), second, rows.track)
            rows.finish()
        refined = refined_of(refinement, network, len(windows.plan), rows.counts()[1])
        coarse.drop()
        result = target.commit(lambda: told(target.counter, refined))
    give_back_memory()
    return result


def _map(
    job: Job,
    run: Passes,
    layers: Mapping[str, slice],
    rows: TrackedPass,
    progress: Callable[[int], object],
) -> None:
    """The first pass, or what is left of it."""
    if rows.complete:
        reader = job.reader(job.network_grid)
        reader.add_extreme_counts(rows.counts()[0])
        job.note_unmarked_holes(reader)
        return
    run.map(job, rows.pass_over(layers, progress), rows.track)
    rows.finish()


def _cuts(job: Job) -> tuple[int, ...]:
    """Rows of the map that each tile row finishes."""
    return passes.row_cuts(plan_of(job), _resampler(job))


def plan_of(job: Job) -> tiling.Plan:
    """The tiles that the network sees."""
    seen, config = job.network_grid, job.config
    return tiling.plan(seen.height, seen.width, config.tile_size, config.overlap)


def map_rows(job: Job, model: TrainedModel, rows: Pass, track: Track | None = None) -> None:
    """Stream the scene through the network into finished rows.

    Args:
        track: of an earlier run, that is gone on with.
    """
    track = track or Track()
    engine = Engine(
        model.network,
        classes=len(job.spec.classes),
        scaling=job.scaling,
        config=track.config(job.config),
        heatmaps="heatmaps" in rows.layers,
        probabilities=job.resampled or "confidence" in rows.layers or "probabilities" in rows.layers,
    )
    with engine:
        plan = plan_of(job)
        assembler = passes.Assembler(engine, plan, rows, resampler=_resampler(job))
        track.batch_size = engine.batch_size(plan.rows.size, plan.cols.size)
        give_back_memory()
        with job.reader(job.network_grid) as reader:
            above = assembler.first_source_row
            reader.add_extreme_counts({row: counts for row, counts in track.extremes.items() if row < above})
            track.counts = lambda _: (reader.extreme_counts, {})
            passes.run_pass(
                engine, assembler, reader, rows, threads=_threads(job), block_width=_block_width(job)
            )
            job.note_unmarked_holes(reader)


def _resampler(job: Job) -> passes.Resampler | None:
    if not job.resampled:
        return None
    seen, grid = job.network_grid, job.grid
    return passes.Resampler((seen.height, seen.width), (grid.height, grid.width))


def _block_width(job: Job) -> int:
    """Columns of a stored block that reads should not cut; strips are left to GDAL's block cache."""
    return 1 if job.resampled or _is_striped(job.info) else job.info.block_shape[1]


def _threads(job: Job) -> int:
    """One where blocks are strips: every thread would decode whole strips for its own handle."""
    return 1 if _is_striped(job.info) else job.config.readers


def _is_striped(info: SceneInfo) -> bool:
    return info.block_shape[1] == info.grid.width
