"""From a task to polygons: blocks in worker processes, joined in order."""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rsseg_cli.errors import OutputError
from rsseg_cli.system import Process, give_back_memory, keep_memory
from rsseg_cli.vector.block import run_block
from rsseg_cli.vector.join import Joiner
from rsseg_cli.vector.plan import BlockPlan
from rsseg_cli.vector.polygons import Polygons
from rsseg_cli.vector.proposals import join_parts, propose_part
from rsseg_cli.vector.regions import FINE, RegionPlan, find_block_regions, store_block
from rsseg_cli.vector.settle import apply_part, decide_part
from rsseg_cli.vector.simplify import StoredBoundaries, simplify_part
from rsseg_cli.vector.small_regions import SmallRegionResolver
from rsseg_cli.vector.source import ClassSource, StoredSource, stored_source
from rsseg_cli.vector.storage import writing
from rsseg_cli.vector.task import VectorTask

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PREFETCH_RESULTS = 1  # finished results that may wait for their turn


class WorkerPool:
    """Worker processes for one run; leaving the context ends them. One job is done in this process."""

    def __init__(self, jobs: int) -> None:
        self._jobs = max(jobs, 1)
        self._workers: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self._jobs)  # one waits for each worker

    def __enter__(self) -> Self:
        try:
            for _ in range(self._jobs if self._jobs > 1 else 0):
                self._workers.append(_Worker())
                self._idle.put(self._workers[-1])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and their work."""
        for worker in self._workers:
            worker.process.terminate()
        self._threads.shutdown(cancel_futures=True)  # they read the connections' ends
        for worker in self._workers:
            worker.process.wait()
            worker.process.connection.close()
        self._workers.clear()

    def ordered_map(
        self,
        function: Callable[..., Any],
        shared: Any,
        arguments: Iterable[tuple[Any, ...]],
        *,
        last: bool = False,
    ) -> Iterator[Any]:
        """Yield function(shared, *item) for each item, in order; `last` ends the workers before the end."""
        if not self._workers:
            for item in arguments:
                yield function(shared, *item)
            return
        pickled = pickle.dumps(shared)
        waiting: deque[Future[Any]] = deque()
        for item in arguments:
            waiting.append(self._threads.submit(self._run, pickled, function, item))
            if len(waiting) >= self._jobs + PREFETCH_RESULTS:
                yield waiting.popleft().result()
        while waiting:
            result = waiting.popleft().result()
            if last and not waiting:
                self.close()
            yield result

    def _run(self, shared: bytes, function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.run(shared, function, item)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that runs one function at a time."""

    def __init__(self) -> None:
        self.process = Process(serve)
        self._shared = b""

    def run(self, shared: bytes, function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
        try:
            self.process.connection.send((None if shared is self._shared else shared, function, item))
            self._shared = shared
            error, result = self.process.connection.recv()
        except (EOFError, OSError) as err:
            raise OutputError(_how_it_ended(self.process.wait())) from err
        if error is not None:
            raise error
        return result


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "a worker process was killed (SIGKILL), as when memory runs out. Use fewer --jobs."
    if code < 0:
        return f"a worker process was ended by {signal.Signals(-code).name}. Start again, or use --jobs 1."
    return f"a worker process ended with exit code {code}; it has printed why. Try --jobs 1."


def serve(connection: Connection) -> None:
    """Run functions for the process at the other end until it closes the connection."""
    keep_memory()
    shared = None
    answer: tuple[Exception | None, Any]
    with suppress(EOFError, OSError):
        while True:
            pickled, function, item = connection.recv()
            try:
                shared = shared if pickled is None else pickle.loads(pickled)
                answer = None, function(shared, *item)
            except Exception as err:  # any error belongs to the caller
                err.add_note(traceback.format_exc())
                answer = err, None
            connection.send(answer)
            del answer, item


Progress = Callable[[int, int], None]  # rows done, rows in all: those of the raster, for each pass over it
TRIM_BLOCKS = 8  # blocks after which freed memory goes back: what the next one needs takes time to get
GIVEN, MERGED = ".given.bin", ".merged.bin"  # in the scratch folder: classes without small objects, holes


class PolygonStream:
    """Vectorises a task block by block, each stage over all blocks."""

    def __init__(self, task: VectorTask, pool: WorkerPool, folder: Path) -> None:
        self._task, self._pool, self._folder = task, pool, folder
        self._progress: Progress | None = None
        self._passes, self._done = 1, 0.0

    def polygons(self, progress: Progress | None = None) -> Iterator[Polygons]:
        """Yield finished polygons after each block, in the order of their last pixels."""
        task = self._task
        plan = task.plan_in(self._folder)
        merges = sum(size > 0 for size in (task.config.min_area_m2, task.config.fill_holes_m2))
        shapes = bool(plan.options.tolerance_m2) or plan.squares is not None
        self._progress, self._passes = progress, 1 + 2 * merges + shapes + (plan.squares is not None)
        if task.config.min_area_m2 or task.config.fill_holes_m2:
            before = time.perf_counter()
            plan = replace(plan, source=self._merge(plan))
            task.stages["merge"] = time.perf_counter() - before
        if shapes:
            plan = replace(plan, boundaries=self._simplify(plan))
        if plan.squares is not None:
            plan = replace(plan, boundaries=self._square(plan))
        joiner = Joiner(plan, self._folder)
        results = self._by_block(plan, run_block, plan, task.blocks, last=True)
        for number, block in enumerate(results):
            before = time.perf_counter()
            finished = joiner.add(block)
            block.seconds["join"] = time.perf_counter() - before
            self._count(block.seconds)
            del block
            yield from finished if task.seam is None else map(task.seam.cut, finished)
            del finished
            if number % TRIM_BLOCKS == 0:
                give_back_memory()

    def _by_block(
        self,
        plan: BlockPlan,
        function: Callable[..., Any],
        shared: Any,
        items: Iterable[tuple[Any, ...]],
        *,
        last: bool = False,
    ) -> Iterator[Any]:
        """Yield the result of each block; then drop what its sources keep for it."""
        sources = [source for source in (plan.source, plan.confidence) if isinstance(source, ClassSource)]
        results = self._pool.ordered_map(function, shared, items, last=last)
        for rows, result in zip(self._task.blocks, results, strict=True):
            for source in sources:
                source.forget(*rows)
            yield result
            self._advance((rows[1] - rows[0]) / plan.source.height)

    def _advance(self, share: float) -> None:
        """Say how many rows are done, all passes over them together; `share` is that of a pass."""
        self._done += share
        if self._progress is not None:
            height = self._task.info.grid.height
            self._progress(round(self._done * height), self._passes * height)

    def _count(self, seconds: dict[str, float]) -> None:
        stages = self._task.stages
        for stage, more in seconds.items():
            stages[stage] = stages.get(stage, 0) + more

    def _simplify(self, plan: BlockPlan) -> StoredBoundaries:
        """Store the raster's simplified boundaries in files."""
        source = plan.source
        stored = StoredBoundaries(folder=str(self._folder), height=source.height, width=source.width)
        for seconds in self._pool.ordered_map(simplify_part, (plan, stored), stored.parts):
            self._count(seconds)
            self._advance(1 / len(stored.parts))
        return stored

    def _square(self, plan: BlockPlan) -> StoredBoundaries:
        """Store the boundaries with squared outlines of buildings in files."""
        before, parts = time.perf_counter(), plan.boundaries
        if parts is None:
            raise ValueError("boundaries are stored before they are squared")
        stored = parts.widened()
        if stored.side > parts.side:
            for _ in self._pool.ordered_map(join_parts, (parts, stored), stored.parts):
                pass
        squared = replace(stored, kind="squared")
        for function, shared in (
            (propose_part, (plan, stored)),
            (decide_part, (plan, stored)),
            (apply_part, (stored, squared)),
        ):
            for _ in self._pool.ordered_map(function, shared, stored.parts):
                self._advance(1 / 3 / len(stored.parts))
        for part in stored.parts:
            for kind in ("around", "proposed", "decided", stored.kind):
                stored.path(*part, kind).unlink(missing_ok=True)
        self._task.stages["square"] = time.perf_counter() - before
        return squared

    def _merge(self, plan: BlockPlan) -> StoredSource | ClassSource:
        """Merge small objects, then small holes, into their neighbours, in a file of classes."""
        ground, config, source = plan.ground, self._task.config, plan.source
        middle = np.array(source.height / 2), np.array(source.width / 2)
        mean_m2 = float(ground.pixel_area_m2(*middle))
        for min_m2, holes in ((config.min_area_m2, False), (config.fill_holes_m2, True)):
            if min_m2:
                before = source
                regions = RegionPlan(
                    block=replace(plan, source=before),
                    min_area=min_m2 / mean_m2 * FINE,
                    holes=holes,
                    mean_m2=mean_m2,
                )
                source = self._merged(regions, self._folder / (MERGED if holes else GIVEN))
                if isinstance(before, StoredSource):
                    os.unlink(before.path)
        return source

    def _merged(self, regions: RegionPlan, path: Path) -> StoredSource:
        """Store a source's classes after one kind of small regions was merged."""
        source, blocks = regions.block.source, self._task.blocks
        resolver = SmallRegionResolver(regions, regions.block.ground.pixel_m, path.parent)
        for block in self._by_block(regions.block, find_block_regions, regions, blocks):
            resolver.add(block)
        resolver.finish()
        if resolver.dropped:
            self._task.warn(
                f"{self._task.name}: {resolver.dropped} objects below --min-area touch no others; left out"
            )
        with writing(path.parent), open(path, "wb") as file:
            file.truncate(source.height * source.width * (2 if source.wide else 1))
        items = ((*rows, *resolver.changes(number)) for number, rows in enumerate(blocks))
        for _ in self._by_block(regions.block, store_block, (regions.block, str(path)), items):
            pass
        return stored_source(source, path)
