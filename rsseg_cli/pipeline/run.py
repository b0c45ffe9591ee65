"""Predict and refine: checks, work folder, passes, publication."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.inference import Engine
from rsseg_cli.pipeline import refinement as refinements
from rsseg_cli.pipeline.checkpoint import ResumablePass, RunState
from rsseg_cli.pipeline.earlier import (
    earlier_result,
    fingerprint,
    finish_publication,
    outputs_exist,
    with_run_id,
)
from rsseg_cli.pipeline.job import Job, Model, check_space, open_model, prepare
from rsseg_cli.pipeline.merge import COARSE, CoarseFile
from rsseg_cli.pipeline.outputs import ROWS, Stages, Target
from rsseg_cli.pipeline.passes import (
    LabelSource,
    Passes,
    Progress,
    Refinement,
    map_cuts,
    plan_tiles,
    plan_windows,
    refined_cuts,
    refined_of,
)
from rsseg_cli.pipeline.remote import with_uploads
from rsseg_cli.pipeline.result import PredictResult
from rsseg_cli.pipeline.unlike import Unlike
from rsseg_cli.system import give_back_memory

PathLike = str | os.PathLike[str]
Finish = Callable[[Callable[[], PredictResult]], Any]


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """A run that was checked and may begin; `labels` is the map to refine, where no model makes it."""

    job: Job
    inputs: Sequence[str]
    model: Model | None = None
    refinement: Refinement | None = None
    labels: LabelSource | None = None


def predict(
    scene: PathLike,
    output: PathLike,
    *,
    model: Model,
    config: PredictConfig | None = None,
    confidence: PathLike | None = None,
    probabilities: PathLike | None = None,
    heatmaps: PathLike | None = None,
    preview: PathLike | None = None,
    html: PathLike | None = None,
    stac: PathLike | None = None,
    vector: PathLike | None = None,
    vector_config: VectorConfig | None = None,
    refine: RefineConfig | None = None,
    uncertainty: PathLike | None = None,
    progress: Progress | None = None,
    stages: Stages | None = None,
    resume: bool = False,
    passes: Passes | None = None,
    finish: Finish = call,
    **settings: Any,
) -> PredictResult:
    """Map the land cover of a scene: a raster of class indices on the scene's own grid, and other outputs.

    All outputs appear together when they are complete, or none. Memory does not grow with the scene's height.
    Temporary files lie in the folder `.OUTPUT.rsseg` beside the output; a run that is killed or stopped
    leaves it for the next one. A `RssegError` says what is wrong and what to do; then nothing was written.

    Args:
        scene: anything that GDAL reads: a path, /vsicurl/..., s3://...
        output: GeoTIFF of class indices: uint8, 255 where the scene has no data. It and other outputs may lie
            in object stores (s3://, gs://, az://): they are made on this machine, then uploaded whole.
        model: name of a bundled model, path of a model file, or a network with its spec.
        confidence: GeoTIFF of the probability of the class in the map, 0-254 for 0-1, 255 no data.
        preview: PNG of the scene with the map over it.
        html: page with scene, map, class areas and polygons, in one file of 10 MB at most.
        stac: STAC Item of the map, .json.
        vector: the map's polygons: GeoPackage, FlatGeobuf, GeoParquet, GeoJSON or Shapefile.
        vector_config: settings of the polygons; `overwrite` is that of `config`.
        refine: redraw the boundaries by a refiner, see `refine`. Class, confidence and probabilities of the
            pixels that it looks at are the refiner's, all others the model's; polygons, picture and areas
            are of the refined map.
        uncertainty: of the refiner, see `refine`.
        progress: called with tiles done and tiles in all, those of refining included.
        stages: called with "write" or "trace", rows done and rows in all, while rasters and polygons are
            written after that.
        resume: continue where an earlier run of the same call was killed or stopped. If there was none, or it
            was another call, or the scene has changed since, start over with a warning.
        passes: runs the networks elsewhere; None for this process. The outputs are written by this one.
        finish: called once the scene is mapped, with a function that finishes and publishes the outputs; what
            it returns is returned. Another thread may call that function, while this one maps another scene.
        settings: fields of `config`, in place of its own.
    """
    wanted = {
        "labels": output,
        "confidence": confidence,
        "probabilities": probabilities,
        "heatmaps": heatmaps,
        "preview": preview,
        "html": html,
        "stac": stac,
        "vector": vector,
        "uncertainty": uncertainty,
    }
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    if refine is None and uncertainty is not None:
        raise UsageError("--uncertainty is the disagreement of a refiner's samples; needs --refine")

    chosen = replace(config or PredictConfig(), **settings)

    def make(paths: Mapping[str, Path], finish: Finish) -> Any:
        def check(config: PredictConfig) -> ScenePlan:
            job = prepare(os.fspath(scene), paths, model, config, vector_config)
            refinement = None
            if refine is not None:
                job, refinement = refinements.prepare_for_job(job, model, refine)
            inputs = [os.fspath(scene), *job.info.files, *([str(config.aoi)] if config.aoi else [])]
            return ScenePlan(job=job, inputs=inputs, model=model, refinement=refinement)

        return _run_scene(
            paths,
            chosen,
            check,
            progress=progress,
            stages=stages,
            resume=resume,
            passes=passes,
            finish=finish,
        )

    return with_uploads(paths, make, finish, overwrite=chosen.overwrite, resume=resume)


def refine(
    scene: PathLike,
    labels: PathLike,
    output: PathLike,
    *,
    config: RefineConfig | None = None,
    run: PredictConfig | None = None,
    uncertainty: PathLike | None = None,
    preview: PathLike | None = None,
    progress: Progress | None = None,
    stages: Stages | None = None,
    resume: bool = False,
    **settings: Any,
) -> PredictResult:
    """Redraw the class boundaries of a map where the image has them.

    Only windows with a boundary are run, and only pixels in a band around boundaries may change, from one
    class to another; pixels without a class or without scene data stay as they are. The result does not
    depend on how the scene is cut into windows as long as these overlap by as much as the network looks
    around. Memory does not grow with the scene's height.

    Args:
        scene: anything that GDAL reads; on another grid or in another CRS than the map it is warped to it.
        labels: class raster of any model whose classes are the refiner's, matched by name.
        output: GeoTIFF of the refined map, on the grid of `labels`.
        run: how the scene is read and the network run; tiling, `tta`, `gsd_m` and `aoi` are not used, `bbox`
            is in the CRS of `labels`.
        uncertainty: GeoTIFF of the samples' disagreement, 0-254 for 0-1, 255 no data: the mutual information
            between class and sample, as a share of the largest that so many samples can have. 0 where all
            samples agree or none was drawn, 1 where each is certain of another class.
        preview: PNG of the scene with the map over it.
        resume: continue an earlier run of the same call, see `predict`.
        settings: fields of `run`, in place of its own.
    """
    wanted = {"labels": output, "uncertainty": uncertainty, "preview": preview}
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}

    def check(run: PredictConfig) -> ScenePlan:
        job, refinement, source = refinements.prepare(
            os.fspath(scene), os.fspath(labels), paths, config or RefineConfig(), run
        )
        inputs = [os.fspath(scene), os.fspath(labels), *refinement.info.files, *source.info.files]
        return ScenePlan(job=job, inputs=inputs, refinement=refinement, labels=source)

    chosen = replace(run or PredictConfig(), **settings)
    return _run_scene(paths, chosen, check, progress=progress, stages=stages, resume=resume)


def _run_scene(
    paths: Mapping[str, Path],
    config: PredictConfig,
    prepare: Callable[[PredictConfig], ScenePlan],
    *,
    progress: Progress | None,
    stages: Stages | None,
    resume: bool,
    passes: Passes | None = None,
    finish: Finish = call,
) -> PredictResult:
    """Check a run by `prepare`, do what an earlier one left of it, and publish its outputs."""
    start = time.monotonic()
    published = finish_publication(paths)
    exist = outputs_exist(paths, published, resume)
    plan = prepare(replace(config, overwrite=True) if exist else config)
    check_space(plan.job, coarse=plan.model is not None and plan.refinement is not None)
    model, models = None, []
    if plan.model is not None:
        model = open_model(plan.model)
        models.append(model)
    if plan.refinement is not None:
        models.append(plan.refinement.load())
        plan = replace(plan, refinement=replace(plan.refinement, refiner=models[-1]))
    passes = passes or Passes(model)
    arithmetic = passes.arithmetic(plan.job.config)
    computed = {each.spec.name: arithmetic.of(Engine.architecture(each))._asdict() for each in models}
    marks = fingerprint(plan.job, models, computed, plan.refinement, plan.labels)
    plan = replace(plan, job=with_run_id(plan.job, marks))
    if exist:
        result = earlier_result(plan.job, published, marks, plan.inputs)
        if result is not None:
            return finish(partial(replace, result, computed=computed))
        if not config.overwrite:
            prepare(config)  # says what is in the way
    height, interval_s = plan.job.grid.height, config.checkpoint_s
    opened = ExitStack()
    with ExitStack() as while_mapping:
        while_mapping.enter_context(opened)
        run = opened.enter_context(RunState(paths, marks, height, resume=resume, interval_s=interval_s))
        commit = _run_passes(plan, passes, run, progress, stages, start, opened)
        while_mapping.pop_all()

    def rest() -> PredictResult:
        with opened:
            result = commit()
        give_back_memory()
        return replace(result, computed=computed)

    return finish(rest)


def _run_passes(
    plan: ScenePlan,
    passes: Passes,
    run: RunState,
    progress: Progress | None,
    stages: Stages | None,
    start: float,
    stack: ExitStack,
) -> Callable[[], PredictResult]:
    """Map the scene into the outputs, or into temporary files which are refined into the outputs; return what
    finishes them."""
    job, refinement, source = plan.job, plan.refinement, plan.labels
    tiles = total = 0 if plan.model is None else len(plan_tiles(job))
    if refinement is None:
        target = Target(job, run, map_cuts(job), stack)
        rows = ResumablePass(run, ROWS, map_cuts(job), target)
        rows.state.pictures, rows.state.holes = target.pictures, target.holes
        unlike = _map(job, passes, rows, job.layers, progress, total)
        return partial(
            target.commit, lambda: target.counter.result(job.paths, start, job.notes, unlike=unlike), stages
        )
    windows = plan_windows(refinement, job)
    total += len(windows.plan)
    cuts = refined_cuts(refinement, windows)
    target = Target(job, run, cuts, stack, holes=False)
    coarse = unlike = None
    if plan.model is not None:
        coarse = CoarseFile(job, run, map_cuts(job), stack)
        rows = ResumablePass(run, COARSE, map_cuts(job), coarse)
        rows.state.pictures, rows.state.holes = target.pictures, coarse.holes
        unlike = _map(job, passes, rows, coarse.layers, progress, total)
    rows = ResumablePass(run, ROWS, cuts, target)
    if not rows.complete:
        source = coarse.finish() if coarse is not None else source
        if source is None:
            raise ValueError("no map to refine")
        rest = rows.rest(job.layers, lambda done: progress and progress(tiles + done, total))
        passes.refine(refinement, windows, source, rest, rows.state)
        rows.finish()
    refined = refined_of(refinement, len(windows.plan), rows.state.counted())
    if coarse is not None:
        coarse.drop()
    return partial(
        target.commit, lambda: target.counter.result(job.paths, start, job.notes, refined, unlike), stages
    )


def _map(
    job: Job,
    passes: Passes,
    rows: ResumablePass,
    layers: Mapping[str, slice],
    progress: Progress | None,
    total: int,
) -> Unlike | None:
    """Map the rest of a scene; return how much of it is unlike the training data, and warn of it."""
    job.note_unmarked_holes()
    if not rows.complete:
        passes.map(job, rows.rest(layers, lambda done: progress and progress(done, total)), rows.state)
        rows.finish()
    unlike = Unlike.of(rows.state.counted())
    if warning := unlike and unlike.warning(job.info.name, job.spec.name):
        job.warn(warning)
    return unlike
