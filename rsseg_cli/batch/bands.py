"""Split one scene over workers: bands of tile rows run there, and their rows come back in order."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter, deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.inference import passes as tile_passes
from rsseg_cli.pipeline import passes

if TYPE_CHECKING:
    from rsseg_cli.batch.runner import SceneRunner
    from rsseg_cli.batch.task import SceneTask
    from rsseg_cli.config import PredictConfig
    from rsseg_cli.inference import tiling
    from rsseg_cli.raster import Grid
    from rsseg_cli.weights import TrainedModel

PREFETCH_BANDS = 2  # beyond one a worker, running or waiting to be written
ZLIB_LEVEL = 1  # 200 MB/s a core; class rows shrink 10 to 50 times


@dataclass(frozen=True, kw_only=True)
class RefineJob:
    """Inputs of the refining pass besides the scene."""

    refinement: passes.Refinement
    windows: passes.Windows
    source: passes.LabelSource


@dataclass(frozen=True, kw_only=True)
class Band:
    """Tile rows of a pass over a scene, with the `job` of the first or `refine` of the second."""

    task: SceneTask
    job: passes.Job | None = None
    refine: RefineJob | None = None
    layers: Mapping[str, slice]
    first: int
    end: int = 0


class Block(NamedTuple):
    """Finished rows (layers, rows, width), compressed, and the counts of the band down to the last one."""

    row: int
    shape: tuple[int, ...]
    packed: bytes
    counts: Mapping[str, int]

    def values(self) -> NDArray[np.uint8]:
        """Return the rows, uint8 (layers, rows, width)."""
        return np.frombuffer(bytearray(zlib.decompress(self.packed)), np.uint8).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class BandRows:
    """Finished rows of a band, from top to bottom."""

    blocks: tuple[Block, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


class BandPool(Protocol):
    """Workers that run bands."""

    @property
    def workers(self) -> int:
        """Bands that run at a time."""

    def arithmetic(self, config: PredictConfig) -> Any:
        """Return `Engine.arithmetic` of a worker."""

    def submit_band(self, band: Band) -> Future[BandRows]:
        """Run a band on any worker."""


class SharedPasses(passes.Passes):
    """The passes over a scene by the workers of a pool; see `passes.Passes`.

    Bands are written in their order. So many are under way that every worker has one.

    Args:
        min_rows: tile rows of a band, if the scene has enough: each band runs one or two rows twice.
        max_pending_bytes: of unpacked finished rows in all bands under way.
    """

    def __init__(
        self, pool: BandPool, task: SceneTask, *, min_rows: int = 16, max_pending_bytes: int = 4 << 30
    ) -> None:
        super().__init__()
        self._pool, self._task = pool, task
        self._min_rows, self._max_pending_bytes = min_rows, max_pending_bytes

    def arithmetic(self, config: PredictConfig) -> Any:
        """Return how the workers compute; `config` is that of this process."""
        return self._pool.arithmetic(self._task.config)

    def map(self, job: passes.Job, rows: tile_passes.Pass, state: passes.PassState) -> None:
        band = Band(task=self._task_of(state), job=job, layers=dict(rows.layers), first=rows.first)
        self._write(band, rows, state, passes.plan_tiles(job), job.grid)

    def refine(
        self,
        refinement: passes.Refinement,
        windows: passes.Windows,
        source: passes.LabelSource,
        rows: tile_passes.Pass,
        state: passes.PassState,
    ) -> None:
        """See `passes.Passes`. The workers read the map from its file."""
        bare = replace(refinement, refiner="")  # each worker has loaded it
        job = RefineJob(refinement=bare, windows=windows, source=source)
        band = Band(task=self._task_of(state), refine=job, layers=dict(rows.layers), first=rows.first)
        self._write(band, rows, state, windows.plan, refinement.map)

    def _write(
        self, band: Band, rows: tile_passes.Pass, state: passes.PassState, plan: tiling.Plan, grid: Grid
    ) -> None:
        """Run a pass in bands, and hand on their rows and counts."""
        above, here = Counter(state.counted_before), Counter[str]()
        state.counts = lambda _: dict(above + here)
        with closing(self._run(band, plan.rows, _row_bytes(rows, grid, plan.rows))) as bands:
            for end, finished in bands:
                for block in finished.blocks:
                    here = Counter(block.counts)
                    rows.write(block.row, block.values())
                above, here = above + Counter(finished.counts), Counter()
                rows.progress(end * len(plan.cols))

    def _task_of(self, state: passes.PassState) -> SceneTask:
        return replace(self._task, config=state.config(self._task.config))

    def _run(
        self, band: Band, axis: tiling.Axis, row_bytes: int
    ) -> Generator[tuple[int, BandRows], None, None]:
        """Yield the end and the rows of each part of a pass; `row_bytes` is the size of a tile row's rows."""
        room = self._max_pending_bytes // row_bytes
        pending = max(1, min(self._pool.workers + PREFETCH_BANDS, room))
        max_rows = max(1, room // pending)
        spans = iter(split_rows(band.first, len(axis), self._pool.workers, max_rows, self._min_rows))
        waiting: deque[tuple[int, Future[BandRows]]] = deque()
        try:
            while True:
                while len(waiting) < pending and (span := next(spans, None)) is not None:
                    part = replace(band, first=span[0], end=span[1])
                    waiting.append((span[1], self._pool.submit_band(part)))
                if not waiting:
                    return
                end, future = waiting.popleft()
                yield end, future.result()
                del future  # free the rows before the next ones arrive
        finally:
            for _, future in waiting:
                future.cancel()


def split_rows(
    first: int, end: int, workers: int, max_rows: int, min_rows: int = 16
) -> list[tuple[int, int]]:
    """Cut tile rows into bands of nearly equal size: the same number a worker, at most `max_rows` high."""
    count = end - first
    rounds = max(1, count // (workers * min_rows))
    bands = min(count, max(workers * rounds, -(-count // max_rows)))
    cuts = [first + count * index // bands for index in range(bands + 1)] if count else [first]
    return list(itertools.pairwise(cuts))


def run_band(band: Band, runner: SceneRunner) -> BandRows:
    model, refine = runner.load(band.task)
    blocks: list[Block] = []
    state = passes.PassState()

    def keep(row: int, rows: NDArray[np.uint8]) -> None:
        counts = state.counted(row + rows.shape[1])
        blocks.append(Block(row, rows.shape, zlib.compress(rows.tobytes(), ZLIB_LEVEL), counts))

    rows = tile_passes.Pass(
        layers=band.layers, write=keep, progress=lambda _: None, first=band.first, end=band.end
    )
    if band.refine is not None and refine is not None:
        second = band.refine
        refiner = cast("TrainedModel", refine.refiner)  # the runner loads it
        refining = replace(second.refinement, refiner=refiner, run=band.task.config)
        passes.Passes().refine(refining, second.windows, second.source, rows, state)
    elif band.job is not None:
        job = replace(band.job, config=band.task.config)
        passes.Passes(model).map(job, rows, state)
    else:
        raise ValueError("a band of neither pass")
    return BandRows(blocks=tuple(blocks), counts=dict(state.counted()))


def _row_bytes(rows: tile_passes.Pass, grid: Grid, axis: tiling.Axis) -> int:
    return rows.channels * grid.width * -(-grid.height // len(axis))
