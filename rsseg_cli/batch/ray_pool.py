"""Workers on a Ray cluster, with a future for each task."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rsseg_cli._version import __version__
from rsseg_cli.batch.bands import Band, BandRows, run_band
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import SceneOutcome, SceneTask, with_overwrite
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import RssegError, SceneError, UsageError
from rsseg_cli.raster import gdal

MAX_RETRIES = 1  # by Ray, on a restarted worker
MAX_MOVES = 2  # to other workers after that; a task that kills all of these would kill more
MAX_STARTS = 3  # failed ones in a row before the pool gives up
POLL_S = 0.5
NODE_POLL_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """Where a worker runs; `node` is Ray's name of the machine."""

    host: str
    node: str
    pid: int
    version: str


class RayWorker:
    """Runs scenes and bands one after another, as a Ray actor.

    User errors are returned, not raised: Ray would wrap them into an error of its own.
    """

    def __init__(self) -> None:
        self._runner = SceneRunner()
        self._used = False

    def hello(self) -> WorkerInfo:
        node = _context().get_node_id()
        return WorkerInfo(host=socket.gethostname(), node=node, pid=os.getpid(), version=__version__)

    def scene(self, task: SceneTask, needed: Sequence[str]) -> SceneOutcome | RssegError:
        """Map a scene; a worker that replaces a dead one resumes it."""
        try:
            _check_visible(needed)
        except SceneError as err:
            return SceneOutcome(index=task.index, error=str(err), error_kind=type(err).__name__)
        if not self._used and _context().was_current_actor_reconstructed:
            task = with_overwrite(task, resume=True)
        self._used = True
        try:
            return self._runner.run(task)
        except RssegError as err:
            return err

    def arithmetic(self, config: PredictConfig, needed: Sequence[str]) -> Any:
        from rsseg_cli.inference import Engine

        try:
            return Engine.arithmetic(config)
        except RssegError as err:
            return err

    def band(self, band: Band, needed: Sequence[str]) -> BandRows | RssegError:
        self._used = True
        try:
            _check_visible(needed)
            return run_band(band, self._runner)
        except RssegError as err:
            return err


def _context() -> Any:
    import ray

    return ray.get_runtime_context()


def files_of(task: SceneTask) -> tuple[str, ...]:
    """Return a task's files and folders on this machine, which every worker must see."""
    paths = [task.scene, task.model, *(str(path.parent) for path in task.outputs.values())]
    paths += [str(file) for file in (task.config.aoi, task.config.remap) if file is not None]
    if task.refine is not None and isinstance(task.refine.refiner, str | Path):
        paths.append(str(task.refine.refiner))
    local = (path for path in paths if os.path.isabs(path) and not gdal.is_remote(path))
    return tuple(dict.fromkeys(path for path in local if os.path.exists(path)))


def _check_visible(needed: Sequence[str]) -> None:
    for path in needed:
        if not Path(path).exists():
            raise SceneError(
                f"{path}: not found by the worker on {socket.gethostname()}; scenes, models and output "
                "folders must lie on storage that all machines of the cluster see under the same path"
            )


class WorkerLost(Exception):
    """A worker or its machine is lost."""


class RayPool:
    """Long-lived Ray actors that run scenes and bands of scenes.

    Ray restarts a worker process that dies and runs its task again (`max_restarts`, `max_task_retries`). If
    that fails, as when a machine is lost, the task goes to the next free worker. Workers that do not fit on
    the cluster yet wait for resources. The pool is a context manager that ends the workers.

    Args:
        gpus: of each worker, 0 or 1.
    """

    def __init__(self, ray: Any, workers: int, gpus: int) -> None:
        self.workers = workers
        self._ray = ray
        self._actor_class = ray.remote(RayWorker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=MAX_RETRIES
        )
        self._actors: list[Any] = []
        self._idle: queue.Queue[tuple[Any, WorkerInfo] | RssegError] = queue.Queue()
        self._stop = threading.Event()
        self._tasks, self._starts = ThreadPoolExecutor(workers), ThreadPoolExecutor(workers)

    def __enter__(self) -> Self:
        for _ in range(self.workers):
            self._starts.submit(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for threads in (self._tasks, self._starts):
            threads.shutdown()
        for actor in self._actors:
            self._kill(actor)

    def submit_scene(self, task: SceneTask) -> Future[SceneOutcome]:
        """Map a scene on any worker; SceneError if its workers keep dying."""
        return self._tasks.submit(self._run, "scene", task, files_of(task), task.scene)

    def arithmetic(self, config: PredictConfig) -> Any:
        return self._tasks.submit(self._run, "arithmetic", config, (), "--device").result()

    def submit_band(self, band: Band) -> Future[BandRows]:
        return self._tasks.submit(self._run, "band", band, files_of(band.task), band.task.scene)

    def _start(self) -> None:
        """Start a worker, or say why none starts."""
        for left in reversed(range(MAX_STARTS)):
            actor = self._actor_class.remote()
            self._actors.append(actor)
            try:
                worker = self._wait(actor.hello.remote(), None)
                _check_version(worker)
                self._idle.put((actor, worker))
                return
            except BaseException as err:
                self._kill(actor)
                if not left or not isinstance(err, self._ray.exceptions.RayActorError):
                    self._idle.put(_unstarted(err))
                    return

    def _run(self, method: str, payload: Any, needed: Sequence[str], what: str) -> Any:
        for left in reversed(range(MAX_MOVES + 1)):
            actor, worker = self._next()
            try:
                answer = self._wait(getattr(actor, method).remote(payload, needed), worker)
            except (WorkerLost, self._ray.exceptions.RayActorError) as err:
                self._kill(actor)
                self._starts.submit(self._start)
                if not left:
                    raise _died(what, worker) from err
                if isinstance(payload, SceneTask):  # it may have published outputs without reporting them
                    payload = with_overwrite(payload, resume=True)
                _log.warning("%s: a worker on %s is lost; another one takes over", what, worker.host)
                continue
            except BaseException:
                self._idle.put((actor, worker))
                raise
            self._idle.put((actor, worker))
            if isinstance(answer, RssegError):
                raise answer
            return answer

    def _next(self) -> tuple[Any, WorkerInfo]:
        while not self._stop.is_set():
            with suppress(queue.Empty):
                worker = self._idle.get(timeout=POLL_S)
                if isinstance(worker, RssegError):
                    self._idle.put(worker)
                    raise worker
                return worker
        raise KeyboardInterrupt

    def _wait(self, reference: Any, worker: WorkerInfo | None) -> Any:
        """Wait for a worker's answer; `worker` is None before it has said where it runs."""
        asked = time.monotonic()
        while not self._stop.is_set():
            ready, _ = self._ray.wait([reference], timeout=POLL_S)
            if ready:
                return self._ray.get(reference)
            if worker is not None and time.monotonic() - asked > NODE_POLL_S:
                asked = time.monotonic()
                if not any(node["NodeID"] == worker.node and node["Alive"] for node in self._ray.nodes()):
                    raise WorkerLost
        raise KeyboardInterrupt

    def _kill(self, actor: Any) -> None:
        try:
            self._ray.kill(actor)
        except Exception as err:
            _log.debug("cannot end a worker: %s", err)


def _check_version(worker: WorkerInfo) -> None:
    if worker.version != __version__:
        raise UsageError(
            f"{worker.host}: has rsseg {worker.version}, this machine {__version__}; they must be the same"
        )


def _died(what: str, worker: WorkerInfo) -> SceneError:
    return SceneError(
        f"{what}: its workers keep dying, last on {worker.host}. Is there enough memory? Fewer workers "
        "(--jobs) or a smaller --tile-size need less"
    )


def _unstarted(err: BaseException) -> RssegError:
    if isinstance(err, RssegError):
        return err
    last = str(err).strip().splitlines()[-1:] or [type(err).__name__]
    return UsageError(
        f"--engine ray: workers cannot start ({last[0]:.300}); rsseg must be on all machines of the cluster, "
        "in the same version"
    )
