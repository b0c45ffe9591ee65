"""One scene shared out: bands of tile rows run elsewhere, and their finished rows come back in order."""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.pipeline import map_rows, plan_of
from rsseg_cli.refine_scene import Windows, refine_pass
from rsseg_cli.result import Refined
from rsseg_cli.track import Track

if TYPE_CHECKING:
    from rsseg_cli.batch_task import SceneRunner, SceneTask
    from rsseg_cli.job import Job
    from rsseg_cli.refine_job import LabelSource, Refinement
    from rsseg_cli.refine_merge import Write
    from rsseg_cli.tiling import Axis
    from rsseg_cli.weights import TrainedModel

MIN_TILE_ROWS = 16  # of a band where the scene has enough of them: one or two are run again for each band
AHEAD = 2  # bands beside one a worker that may be under way or wait to be written
BYTES_UNDER_WAY = 4 << 30  # of finished rows, before they are packed, in all bands under way
PACKING = 1  # zlib's level: 200 MB/s a core, and class rows become 10 to 50 times smaller


@dataclass(frozen=True, kw_only=True)
class RefineJob:
    """What the second pass needs beside the scene."""

    refinement: Refinement
    windows: Windows
    source: LabelSource


@dataclass(frozen=True, kw_only=True)
class Band:
    """Tile rows of a pass over a scene. Can be pickled.

    Attributes:
        task: the scene and its networks.
        job: of the first pass; the second pass is `refine` where that is given.
        layers: of the finished rows, by what they hold.
        first, end: tile rows, or rows of windows.
    """

    task: SceneTask
    job: Job | None = None
    refine: RefineJob | None = None
    layers: Mapping[str, slice]
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class BandRows:
    """Finished rows of a band. Can be pickled.

    Attributes:
        blocks: (first row, shape, packed uint8 (layers, rows, width)), from top to bottom.
        extremes: `SceneReader.extreme_counts` of what was read.
        refined: what refining came to in this band.
    """

    blocks: tuple[tuple[int, tuple[int, ...], bytes], ...]
    extremes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    refined: Refined | None = None

    def unpacked(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each first row with its uint8 (layers, rows, width)."""
        for row, shape, packed in self.blocks:
            yield row, np.frombuffer(bytearray(zlib.decompress(packed)), np.uint8).reshape(shape)


class BandPool(Protocol):
    """Workers that run bands."""

    @property
    def workers(self) -> int:
        """How many bands run at a time."""

    def submit_band(self, band: Band) -> Future[BandRows]:
        """Run a band by any worker."""


class SharedPasses:
    """The passes over a scene by the workers of a pool; see `pipeline.Passes`.

    Bands are written in their order. So many are under way that every worker has one, and fewer where their
    rows would take more than BYTES_UNDER_WAY.

    Args:
        task: the scene.
    """

    def __init__(self, pool: BandPool, task: SceneTask) -> None:
        self._pool, self._task = pool, task

    def map(
        self,
        job: Job,
        layers: Mapping[str, slice],
        write: Write,
        progress: Callable[[int], object],
        first: int,
    ) -> None:
        """See `pipeline.map_rows`."""
        band = Band(task=self._task, job=job, layers=dict(layers), first=0, end=0)
        plan = plan_of(job)
        rows_bytes = _depth(layers) * job.grid.width * -(-job.grid.height // len(plan.rows))
        parts = self._run(
            band, plan.rows, first, rows_bytes, write, lambda end: progress(end * len(plan.cols))
        )
        reader = job.reader(job.network_grid)  # not opened: told what the workers' readers counted
        reader.add_extreme_counts({row: count for part in parts for row, count in part.extremes.items()})
        job.note_unmarked_holes(reader)

    def refine(
        self,
        refinement: Refinement,
        windows: Windows,
        source: LabelSource,
        layers: Mapping[str, slice],
        write: Write,
        progress: Callable[[int], object],
        first: int,
    ) -> Refined:
        """See `refine_scene.refine_pass`. The workers read the map from its file."""
        bare = replace(refinement, refiner="")  # each worker has loaded it
        job = RefineJob(refinement=bare, windows=windows, source=source)
        band = Band(task=self._task, refine=job, layers=dict(layers), first=0, end=0)
        plan, grid = windows.plan, refinement.map
        rows_bytes = _depth(layers) * grid.width * -(-grid.height // len(plan.rows))
        parts = self._run(
            band, plan.rows, first, rows_bytes, write, lambda end: progress(end * len(plan.cols))
        )
        return _together([part.refined for part in parts if part.refined is not None])

    def _run(
        self,
        band: Band,
        rows: Axis,
        first: int,
        rows_bytes: int,
        write: Write,
        progress: Callable[[int], object],
    ) -> list[BandRows]:
        """Run all bands, and hand their rows on; what is returned has lost them."""
        under_way = max(1, min(self._pool.workers + AHEAD, BYTES_UNDER_WAY // max(1, rows_bytes)))
        most = max(1, BYTES_UNDER_WAY // max(1, rows_bytes) // under_way)
        spans = iter(share_out(first, len(rows), self._pool.workers, most))
        waiting: deque[tuple[int, Future[BandRows]]] = deque()
        done: list[BandRows] = []
        try:
            while True:
                while len(waiting) < under_way and (span := next(spans, None)) is not None:
                    part = replace(band, first=span[0], end=span[1])
                    waiting.append((span[1], self._pool.submit_band(part)))
                if not waiting:
                    return done
                end, future = waiting.popleft()
                finished = future.result()
                for row, values in finished.unpacked():
                    write(row, values)
                done.append(replace(finished, blocks=()))
                progress(end)
        finally:
            for _, future in waiting:
                future.cancel()


def share_out(first: int, end: int, workers: int, most: int) -> list[tuple[int, int]]:
    """Tile rows in bands of nearly the same size.

    As many for each worker, of at least MIN_TILE_ROWS where there are enough; none above `most`.
    """
    count = end - first
    rounds = max(1, count // (workers * MIN_TILE_ROWS))
    bands = min(count, max(workers * rounds, -(-count // most)))
    cuts = [first + count * index // bands for index in range(bands + 1)] if count else [first]
    return list(itertools.pairwise(cuts))


def run_band(band: Band, runner: SceneRunner) -> BandRows:
    """Run the network of a band in this process."""
    model, refine = runner.load(band.task)
    blocks: list[tuple[int, tuple[int, ...], bytes]] = []

    def keep(row: int, rows: NDArray[np.uint8]) -> None:
        blocks.append((row, rows.shape, zlib.compress(rows.tobytes(), PACKING)))

    refined: Refined | None = None
    extremes: dict[int, Sequence[int]] = {}
    ignored: Callable[[int], Any] = int
    if band.refine is not None and refine is not None:
        second = band.refine
        refiner = cast("TrainedModel", refine.refiner)  # the runner loads it
        refinement = replace(second.refinement, refiner=refiner, run=band.task.config)
        refined = refine_pass(
            refinement, refinement.load().network, second.windows, second.source, band.layers, keep, ignored,
            first=band.first, end=band.end,
        )  # fmt: skip
    elif band.job is not None:
        job = replace(band.job, config=band.task.config)
        track = Track()
        map_rows(job, model, band.layers, keep, ignored, first=band.first, end=band.end, track=track)
        extremes = dict(track.counts(None)[0]) if track.counts else {}
    else:
        raise ValueError("a band of neither pass")
    return BandRows(blocks=tuple(blocks), extremes=extremes, refined=refined)


def _depth(layers: Mapping[str, slice]) -> int:
    return max(part.stop for part in layers.values())


def _together(parts: Sequence[Refined]) -> Refined:
    """What refining came to in all bands."""
    counted = ("windows", "windows_run", "band_pixels", "changed_pixels")
    return replace(parts[0], **{name: sum(getattr(part, name) for part in parts) for name in counted})
