"""Run a batch on a Ray cluster: a scene on one worker, a large one in bands on all."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsseg_cli import errors
from rsseg_cli.batch.bands import Band, BandRows, SharedPasses
from rsseg_cli.batch.ray_cluster import connected, ray_module
from rsseg_cli.batch.ray_pool import RayPool
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import SceneOutcome, SceneProgress, SceneTask, with_device
from rsseg_cli.errors import RssegError, SceneError, UsageError
from rsseg_cli.inference import passes
from rsseg_cli.pipeline import PredictResult
from rsseg_cli.raster import SceneInfo, gdal

SPLIT_PX = 400_000_000  # larger scenes run in bands: 20,000 x 20,000 px
DEVICES = ("auto", "cpu", "cuda")


class RayEngine:
    """Runs the tasks of a batch on a Ray cluster.

    There is one worker a GPU, or a CPU if the cluster has no GPU or `device` is "cpu". One worker maps and
    writes a scene. A scene above `split_px` runs in bands on all workers, and this process writes it.

    Args:
        address: see `ray_cluster.connected`.
        workers: None for as many as fit on the cluster.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int | None = None,
        device: str = "auto",
        split_px: int | None = None,
    ) -> None:
        ray_module()
        if device not in DEVICES:
            raise UsageError(f"--device {device}: with --engine ray it is one of {', '.join(DEVICES)}")
        self._address, self._workers, self._device = address, workers or None, device
        self._split_px = SPLIT_PX if split_px is None else split_px

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Generator[SceneOutcome, None, None]:
        """See `task.Engine`; `progress` reports split scenes only."""
        with ExitStack() as stack:
            ray = stack.enter_context(connected(self._address, self._workers))
            workers, gpus = self._workers_of(ray)
            writer = ThreadPoolExecutor(1, thread_name_prefix="rsseg-shared")
            stack.callback(writer.shutdown, cancel_futures=True)
            pool = stack.enter_context(RayPool(ray, workers, gpus))
            yield from _outcomes(tasks, _Dispatch(pool, writer, self._split_px, progress), workers)

    def run_one(self, task: SceneTask, progress: passes.Progress | None = None) -> PredictResult:
        """Map one scene, or raise its error."""
        report: SceneProgress | None = (lambda _, done, total: progress(done, total)) if progress else None
        with closing(self.run([task], report)) as outcomes:
            outcome = next(outcomes)
        if outcome.result is None:
            raise getattr(errors, outcome.error_kind, RssegError)(outcome.error)
        return outcome.result

    def _workers_of(self, ray: Any) -> tuple[int, int]:
        """Return the number of workers, and of GPUs of each."""
        resources = ray.cluster_resources()
        gpus = 0 if self._device == "cpu" else int(resources.get("GPU", 0))
        if self._device == "cuda" and not gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU; pass cpu or auto")
        slots = gpus or int(resources.get("CPU", 0))
        return max(1, self._workers or slots), min(1, gpus)


class _Dispatch:
    """Sends a task to one worker, or its bands to all."""

    def __init__(
        self, pool: RayPool, writer: ThreadPoolExecutor, split_px: int, progress: SceneProgress | None
    ) -> None:
        self._pool, self._writer, self._split_px, self._progress = pool, writer, split_px, progress

    def start(self, task: SceneTask) -> Future[SceneOutcome]:
        task = absolute(task)
        if _size_px(task) <= self._split_px:
            polygons = replace(task.vector, jobs=task.vector.jobs or 1)  # other workers use the cores
            return self._pool.submit_scene(replace(task, vector=polygons), files_of(task))
        return self._writer.submit(self._split, task)

    def _split(self, task: SceneTask) -> SceneOutcome:
        passes = SharedPasses(_PoolForScene(self._pool, files_of(task)), task)
        runner = SceneRunner(lambda _: passes)
        return runner.run(with_device(task, "cpu"), self._progress)  # no network runs in this process


class _PoolForScene:
    """A pool for the bands of a scene, with the files that it needs."""

    def __init__(self, pool: RayPool, needed: tuple[str, ...]) -> None:
        self._pool, self._needed = pool, needed
        self.workers, self.arithmetic = pool.workers, pool.arithmetic

    def submit_band(self, band: Band) -> Future[BandRows]:
        return self._pool.submit_band(band, self._needed)


def _outcomes(tasks: Iterable[SceneTask], dispatch: _Dispatch, workers: int) -> Iterator[SceneOutcome]:
    """In the order in which they come; one task a worker waits beside those under way."""
    waiting = iter(tasks)
    pending: dict[Future[SceneOutcome], SceneTask] = {}
    while True:
        while len(pending) < 2 * workers and (task := next(waiting, None)) is not None:
            pending[dispatch.start(task)] = task
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield _outcome(pending.pop(future), future)


def _outcome(task: SceneTask, future: Future[SceneOutcome]) -> SceneOutcome:
    try:
        return future.result()
    except SceneError as err:  # of the pool; errors of a task are outcomes
        return SceneOutcome(index=task.index, error=str(err), error_kind=type(err).__name__)


def absolute(task: SceneTask) -> SceneTask:
    """Return the task with absolute paths."""
    model = _absolute(task.model) if Path(task.model).is_file() else task.model
    config = task.config
    if config.aoi is not None:
        config = replace(config, aoi=config.aoi.absolute())
    refine = task.refine
    if refine is not None and isinstance(refine.refiner, str | Path) and Path(refine.refiner).is_file():
        refine = replace(refine, refiner=Path(refine.refiner).absolute())
    return replace(
        task,
        scene=_absolute(task.scene) if Path(task.scene).exists() else task.scene,
        outputs={kind: path.absolute() for kind, path in task.outputs.items()},
        model=model,
        config=config,
        refine=refine,
    )


def files_of(task: SceneTask) -> tuple[str, ...]:
    """Return a task's files and folders on this machine, which every worker must see."""
    paths = [task.scene, task.model, *(str(path.parent) for path in task.outputs.values())]
    if task.config.aoi is not None:
        paths.append(str(task.config.aoi))
    if task.refine is not None and isinstance(task.refine.refiner, str | Path):
        paths.append(str(task.refine.refiner))
    local = (path for path in paths if os.path.isabs(path) and not gdal.is_remote(path))
    return tuple(dict.fromkeys(path for path in local if os.path.exists(path)))


def _absolute(path: str) -> str:
    return os.path.abspath(path)


def _size_px(task: SceneTask) -> int:
    """Return the number of pixels to map; 0 for an unreadable scene, which the worker reports."""
    try:
        grid = SceneInfo.of(task.scene, task.config.nodata).grid
        if task.config.bbox is not None:
            _, _, height, width = grid.window_of_bbox(task.config.bbox)
            return height * width
    except RssegError:
        return 0
    return grid.height * grid.width
