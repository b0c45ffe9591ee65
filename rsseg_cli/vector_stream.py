"""From a task to polygons: blocks in worker processes, joined in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rsseg_cli.errors import OutputError
from rsseg_cli.vector_block import BlockPlan, run_block
from rsseg_cli.vector_boundaries import PART_PX, StoredBoundaries, simplify_part
from rsseg_cli.vector_jobs import give_back_memory, in_order_of
from rsseg_cli.vector_join import Joiner
from rsseg_cli.vector_merge import merged_classes
from rsseg_cli.vector_polygons import Polygons
from rsseg_cli.vector_survey import (
    FINE,
    Census,
    StoredSource,
    SurveyPlan,
    store_block,
    stored_source,
    survey_block,
)
from rsseg_cli.vector_task import VectorTask

Progress = Callable[[int, int], None]  # rows done, rows in all
MERGED = ".merged.bin"  # in the scratch folder: classes after merging


def stream_polygons(task: VectorTask, progress: Progress | None, folder: Path) -> Iterator[Polygons]:
    """Yield polygons block by block, in the order of their last pixels.

    Args:
        folder: for files that take what memory should not.
    """
    plan = task.plan()
    if task.config.min_area_m2 or task.config.fill_holes_m2:
        before = time.perf_counter()
        plan = replace(plan, source=_merge(task, plan, folder / MERGED))
        task.stages["merge"] = time.perf_counter() - before
    if plan.shaping.tolerance_m2:
        plan = replace(plan, boundaries=_simplify(task, plan, folder))
    joiner = Joiner(plan, folder)
    for (_, end), block in zip(
        task.blocks, in_order_of(run_block, plan, task.blocks, task.jobs), strict=True
    ):
        before = time.perf_counter()
        finished = joiner.add(block)
        block.seconds["join"] = time.perf_counter() - before
        _count(task, block.seconds)
        del block
        yield from finished
        del finished
        give_back_memory()
        if progress is not None:
            progress(end, task.source.height)


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


def _merge(task: VectorTask, plan: BlockPlan, path: Path) -> StoredSource:
    """The classes after small objects and holes were given away, in a file of their own."""
    source, ground, config = task.source, task.ground, task.config
    mean_m2 = float(ground.pixel_area_m2(np.array(source.height / 2), np.array(source.width / 2)))
    smallest, hole = (area / mean_m2 * FINE for area in (config.min_area_m2, config.fill_holes_m2))
    survey = SurveyPlan(block=plan, smallest=smallest, hole=hole, mean_m2=mean_m2)
    census = Census()
    for block in in_order_of(survey_block, survey, task.blocks, task.jobs):
        census.add(block)
    before = np.concatenate(census.classes)
    classes = merged_classes(census, source.nodata, ground.pixel_m, smallest, hole)
    try:
        with open(path, "wb") as file:
            file.truncate(source.height * source.width * (2 if source.wide else 1))
    except OSError as err:
        raise OutputError(f"{path.parent}: cannot be written ({err}). Is the disk full?") from err
    items = [(*rows, *census.changes(number, before, classes)) for number, rows in enumerate(task.blocks)]
    del census, before, classes
    for _ in in_order_of(store_block, (plan, str(path)), items, task.jobs):
        pass
    return stored_source(source, path)
