"""From a task to polygons: blocks in worker processes, joined in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from rsseg_cli.errors import OutputError
from rsseg_cli.system import give_back_memory, keep_memory
from rsseg_cli.vector.block import run_block
from rsseg_cli.vector.census import Census
from rsseg_cli.vector.join import Joiner
from rsseg_cli.vector.plan import BlockPlan
from rsseg_cli.vector.polygons import Polygons
from rsseg_cli.vector.simplify import PART_PX, StoredBoundaries, simplify_part
from rsseg_cli.vector.source import ClassSource, StoredSource, stored_source
from rsseg_cli.vector.survey import FINE, SurveyPlan, store_block, survey_block
from rsseg_cli.vector.task import VectorTask

AHEAD = 1  # results beyond those being made that may wait for their turn
_shared: Any = None


def in_order_of(
    function: Callable[..., Any], shared: Any, arguments: Iterable[tuple[Any, ...]], jobs: int
) -> Iterator[Any]:
    """Yield function(shared, *item) for each item, in order.

    Args:
        function: of a module's top level.
        arguments: taken as workers come to them.
        shared: sent once to each process.
        jobs: worker processes; with one the work is done in this process.
    """
    rest = iter(arguments)
    first = list(islice(rest, max(jobs, 1)))
    rest = chain(first, rest)
    if len(first) <= 1:
        for item in rest:
            yield function(shared, *item)
        return
    pool = ProcessPoolExecutor(len(first), mp_context=_context(), initializer=_start, initargs=(shared,))
    waiting: deque[Future[Any]] = deque()
    try:
        for item in rest:
            waiting.append(pool.submit(_run, function, item))
            if len(waiting) >= jobs + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            result = waiting.popleft().result()
            if not waiting:
                pool.shutdown()  # what the workers hold is free while the last result is used
            yield result
    except BrokenProcessPool as err:
        raise OutputError(
            "a worker process was ended from outside, perhaps for want of memory. Use --jobs 1."
        ) from err
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """Forked workers start at once, but not from a process with threads or torch in it."""
    plain = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    return multiprocessing.get_context("fork" if plain else "spawn")


def _start(shared: Any) -> None:
    global _shared
    _shared = shared
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    return function(_shared, *item)


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
