"""From a task to polygons: blocks in worker processes, joined in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rsseg_cli.errors import OutputError
from rsseg_cli.heap import give_back_memory
from rsseg_cli.vector_block import BlockPlan, run_block
from rsseg_cli.vector_boundaries import PART_PX, StoredBoundaries, simplify_part
from rsseg_cli.vector_census import Census
from rsseg_cli.vector_jobs import in_order_of
from rsseg_cli.vector_join import Joiner
from rsseg_cli.vector_polygons import Polygons
from rsseg_cli.vector_source import ClassSource
from rsseg_cli.vector_survey import (
    FINE,
    StoredSource,
    SurveyPlan,
    store_block,
    stored_source,
    survey_block,
)
from rsseg_cli.vector_task import VectorTask

Progress = Callable[[int, int], None]  # rows done, rows in all
TRIMMED = 8  # blocks after which freed memory goes back: what the next one needs takes time to get
GIVEN, MERGED = ".given.bin", ".merged.bin"  # in the scratch folder: classes without small objects, holes


def stream_polygons(task: VectorTask, progress: Progress | None, folder: Path) -> Iterator[Polygons]:
    """Yield polygons block by block, in the order of their last pixels.

    Args:
        folder: for files that take what memory should not.
    """
    plan = task.plan(folder)
    if task.config.min_area_m2 or task.config.fill_holes_m2:
        before = time.perf_counter()
        plan = replace(plan, source=_merge(task, plan, folder))
        task.stages["merge"] = time.perf_counter() - before
    if plan.shaping.tolerance_m2:
        plan = replace(plan, boundaries=_simplify(task, plan, folder))
    joiner = Joiner(plan, folder)
    for number, ((_, end), block) in enumerate(_in_turn(task, plan, run_block, plan, task.blocks)):
        before = time.perf_counter()
        finished = joiner.add(block)
        block.seconds["join"] = time.perf_counter() - before
        _count(task, block.seconds)
        del block
        yield from finished
        del finished
        if number % TRIMMED == 0:
            give_back_memory()
        if progress is not None:
            progress(end, task.source.height)


def _in_turn(
    task: VectorTask,
    plan: BlockPlan,
    function: Callable[..., Any],
    shared: Any,
    items: Iterable[tuple[Any, ...]],
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Rows and result of each block, as `in_order_of` gives it; what sources keep for it alone goes."""
    sources = [source for source in (plan.source, plan.confidence) if isinstance(source, ClassSource)]
    results = in_order_of(function, shared, items, task.jobs)
    for rows, result in zip(task.blocks, results, strict=True):
        for source in sources:
            source.forget(*rows)
        yield rows, result


def _count(task: VectorTask, seconds: dict[str, float]) -> None:
    for stage, more in seconds.items():
        task.stages[stage] = task.stages.get(stage, 0) + more


def _simplify(task: VectorTask, plan: BlockPlan, folder: Path) -> StoredBoundaries:
    """The raster's simplified boundaries, in files."""
    stored = StoredBoundaries(
        folder=str(folder), height=task.source.height, width=task.source.width, side=PART_PX
    )
    for seconds in in_order_of(simplify_part, (plan, stored), stored.parts, task.jobs):
        _count(task, seconds)
    return stored


def _merge(task: VectorTask, plan: BlockPlan, folder: Path) -> StoredSource | ClassSource:
    """The classes after small objects, and then small holes, were given away, in a file of their own."""
    ground, config = task.ground, task.config
    mean_m2 = float(ground.pixel_area_m2(np.array(task.source.height / 2), np.array(task.source.width / 2)))
    source = plan.source
    for least_m2, holes in ((config.min_area_m2, False), (config.fill_holes_m2, True)):
        if least_m2:
            before = source
            path = folder / (MERGED if holes else GIVEN)
            survey = SurveyPlan(
                block=replace(plan, source=before),
                least=least_m2 / mean_m2 * FINE,
                holes=holes,
                mean_m2=mean_m2,
            )
            source = _given_away(task, survey, path)
            if isinstance(before, StoredSource):
                os.unlink(before.path)
    return source


def _given_away(task: VectorTask, survey: SurveyPlan, path: Path) -> StoredSource:
    """A source's classes after one kind of small things was given away."""
    source = survey.block.source
    census = Census(survey, task.ground.pixel_m, path.parent)
    for _, block in _in_turn(task, survey.block, survey_block, survey, task.blocks):
        census.add(block)
    census.finish()
    try:
        with open(path, "wb") as file:
            file.truncate(source.height * source.width * (2 if source.wide else 1))
    except OSError as err:
        raise OutputError(f"{path.parent}: cannot be written ({err}). Is the disk full?") from err
    items = ((*rows, *census.changes(number)) for number, rows in enumerate(task.blocks))
    for _ in _in_turn(task, survey.block, store_block, (survey.block, str(path)), items):
        pass
    return stored_source(source, path)
