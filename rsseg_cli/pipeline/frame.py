"""What `predict` and `refine` share: checks, work folder, passes, publication."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rsseg_cli.config import PredictConfig
from rsseg_cli.pipeline.checkpoint import ResumablePass, RunState
from rsseg_cli.pipeline.disk_space import check_space
from rsseg_cli.pipeline.fingerprint import fingerprint
from rsseg_cli.pipeline.job import Job, Model
from rsseg_cli.pipeline.merge import COARSE, CoarseFile
from rsseg_cli.pipeline.outputs import ROWS, Target
from rsseg_cli.pipeline.passes import Passes, Progress, map_cuts, plan_tiles
from rsseg_cli.pipeline.publication import earlier_result, finish_publication, outputs_exist, with_run_id
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.pipeline.result import PredictResult
from rsseg_cli.pipeline.windows import plan_windows, refined_cuts, refined_of
from rsseg_cli.system import give_back_memory
from rsseg_cli.weights import TrainedModel, load_model


@dataclass(frozen=True, kw_only=True)
class ScenePlan:
    """A run that was checked and may begin.

    Attributes:
        model: that maps the scene; None where a map is refined.
        refinement: None where the map is not refined.
        labels: the map to refine, where this run does not make it.
    """

    job: Job
    inputs: Sequence[str]
    model: Model | None = None
    refinement: Refinement | None = None
    labels: LabelSource | None = None


def run_scene(
    paths: Mapping[str, Path],
    config: PredictConfig,
    prepare: Callable[[PredictConfig], ScenePlan],
    *,
    progress: Progress | None,
    resume: bool,
    passes: Passes | None = None,
) -> PredictResult:
    """Check a run, do what an earlier one left of it, and publish its outputs.

    Args:
        prepare: checks the run without loading weights or writing.
        passes: None for those in this process.
    """
    start = time.monotonic()
    published = finish_publication(paths)
    exist = outputs_exist(paths, published, resume)
    plan = prepare(replace(config, overwrite=True) if exist else config)
    check_space(plan.job, coarse=plan.model is not None and plan.refinement is not None)
    model, models = None, []
    if plan.model is not None:
        model = plan.model if isinstance(plan.model, TrainedModel) else load_model(plan.model)
        models.append(model)
    if plan.refinement is not None:
        models.append(plan.refinement.load())
        plan = replace(plan, refinement=replace(plan.refinement, refiner=models[-1]))
    passes = passes or Passes(model)
    arithmetic = passes.arithmetic(plan.job.config)
    marks = fingerprint(plan.job, models, arithmetic, plan.refinement, plan.labels)
    plan = replace(plan, job=with_run_id(plan.job, marks))
    if exist:
        result = earlier_result(plan.job, published, marks, plan.inputs)
        if result is not None:
            return result
        if not config.overwrite:
            prepare(config)  # says what is in the way
    with RunState(paths, marks, plan.job.grid.height, resume=resume) as run:
        result = _run_passes(plan, passes, run, progress, start)
    give_back_memory()
    return result


def _run_passes(
    plan: ScenePlan, passes: Passes, run: RunState, progress: Progress | None, start: float
) -> PredictResult:
    """Map the scene into the outputs, or into temporary files which are refined into the outputs."""
    job, refinement, source = plan.job, plan.refinement, plan.labels
    tiles = total = 0 if plan.model is None else len(plan_tiles(job))
    with ExitStack() as stack:
        if refinement is None:
            target = Target(job, run, map_cuts(job), stack)
            rows = ResumablePass(run, ROWS, map_cuts(job), target)
            _map(job, passes, rows, job.layers, progress, total)
            return target.commit(lambda: target.counter.result(job.paths, start, job.notes))
        network = refinement.load().network
        windows = plan_windows(refinement, network, job)
        total += len(windows.plan)
        cuts = refined_cuts(refinement, windows)
        target = Target(job, run, cuts, stack, holes=False)
        coarse = None
        if plan.model is not None:
            coarse = CoarseFile(job, run, map_cuts(job), stack)
            rows = ResumablePass(run, COARSE, map_cuts(job), coarse)
            _map(job, passes, rows, coarse.layers, progress, total)
        rows = ResumablePass(run, ROWS, cuts, target)
        if not rows.complete:
            source = coarse.finish() if coarse is not None else source
            if source is None:
                raise ValueError("no map to refine")
            rest = rows.rest(job.layers, lambda done: progress and progress(tiles + done, total))
            passes.refine(refinement, windows, source, rest, rows.state)
            rows.finish()
        refined = refined_of(refinement, network, len(windows.plan), rows.state.counted())
        if coarse is not None:
            coarse.drop()
        return target.commit(lambda: target.counter.result(job.paths, start, job.notes, refined))


def _map(
    job: Job,
    passes: Passes,
    rows: ResumablePass,
    layers: Mapping[str, slice],
    progress: Progress | None,
    total: int,
) -> None:
    """Run what is left of the first pass."""
    job.note_unmarked_holes()
    if rows.complete:
        return
    passes.map(job, rows.rest(layers, lambda done: progress and progress(done, total)), rows.state)
    rows.finish()
