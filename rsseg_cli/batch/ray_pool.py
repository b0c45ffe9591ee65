"""Workers on a Ray cluster, with a future for each task."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rsseg_cli._version import __version__
from rsseg_cli.batch.bands import Band, BandRows, run_band
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import SceneOutcome, SceneTask, with_overwrite
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import RssegError, SceneError, UsageError


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
        """Return where this worker runs."""
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

    def arithmetic(self, config: PredictConfig, needed: Sequence[str]) -> tuple[str, str] | RssegError:
        """Return the kind of device and the dtype with which this worker computes."""
        from rsseg_cli.inference import Engine

        try:
            return Engine.arithmetic(config)
        except RssegError as err:
            return err

    def band(self, band: Band, needed: Sequence[str]) -> BandRows | RssegError:
        """Run a part of a scene."""
        self._used = True
        try:
            _check_visible(needed)
            return run_band(band, self._runner)
        except RssegError as err:
            return err


def _context() -> Any:
    import ray

    return ray.get_runtime_context()


def _check_visible(needed: Sequence[str]) -> None:
    for path in needed:
        if not Path(path).exists():
            raise SceneError(
                f"{path}: not found by the worker on {socket.gethostname()}; scenes, models and output "
                "folders must lie on storage that all machines of the cluster see under the same path"
            )


MAX_RETRIES = 1  # by Ray, on a restarted worker
MAX_MOVES = 2  # to other workers after that; a task that kills all of these would kill more
MAX_STARTS = 3  # failed ones in a row before the pool gives up
POLL_S = 0.5
NODE_POLL_S = 10.0
_log = logging.getLogger(__name__)


@dataclass
class _Work:
    method: str
    payload: Any
    needed: Sequence[str]
    what: str
    future: Future[Any] = field(default_factory=Future)
    moves: int = 0  # to another worker


class _Stopped(Exception):
    """The pool is being closed."""


class _Lost(Exception):
    """A worker or its machine is lost."""


class RayPool:
    """Long-lived Ray actors, each served by a thread of this process.

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
        self._work: queue.Queue[_Work] = queue.Queue()
        self._open: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._problem: BaseException | None = None
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._fail(KeyboardInterrupt())
        deadline = time.monotonic() + 10
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def submit_scene(self, task: SceneTask, needed: Sequence[str] = ()) -> Future[SceneOutcome]:
        """Map a scene on any worker; SceneError if its workers keep dying."""
        return self._submit(_Work("scene", task, needed, task.scene))

    def arithmetic(self, config: PredictConfig) -> tuple[str, str]:
        """Return the kind of device and the dtype of a worker; all are taken to be alike."""
        answer: tuple[str, str] = self._submit(_Work("arithmetic", config, (), "--device")).result()
        return answer

    def submit_band(self, band: Band, needed: Sequence[str] = ()) -> Future[BandRows]:
        """Run a band on any worker."""
        return self._submit(_Work("band", band, needed, band.task.scene))

    def _submit(self, work: _Work) -> Future[Any]:
        with self._lock:
            if self._problem is not None:
                work.future.set_exception(self._problem)
                return work.future
            self._open.add(work.future)
        work.future.add_done_callback(self._open.discard)
        self._work.put(work)
        return work.future

    def _fail(self, problem: BaseException) -> None:
        """Fail all open and later tasks."""
        with self._lock:
            self._problem = self._problem or problem
            futures = list(self._open)
        for future in futures:
            if not future.done():
                future.set_exception(problem)

    def _serve(self) -> None:
        """Keep one worker running, and replace it when it is lost."""
        starts = 0
        while not self._stop.is_set():
            actor = None
            try:
                actor = self._actor_class.remote()
                worker = self._wait(actor.hello.remote(), None)
                _check_version(worker)
                starts = 0
                self._serve_with(actor, worker)
            except _Stopped:
                return
            except _Lost:
                continue
            except BaseException as err:
                starts += 1
                if starts < MAX_STARTS and isinstance(err, self._ray.exceptions.RayActorError):
                    continue
                if not self._stop.is_set():
                    self._fail(_unstarted(err))
                return
            finally:
                if actor is not None:
                    self._kill(actor)

    def _serve_with(self, actor: Any, worker: WorkerInfo) -> None:
        while True:
            work = self._next()
            try:
                answer = self._wait(getattr(actor, work.method).remote(work.payload, work.needed), worker)
            except (_Lost, self._ray.exceptions.RayActorError) as err:
                self._move(work, worker)
                raise _Lost from err
            except (self._ray.exceptions.RayError, OSError) as err:
                work.future.set_exception(err)
            else:
                if isinstance(answer, RssegError):
                    work.future.set_exception(answer)
                else:
                    work.future.set_result(answer)

    def _next(self) -> _Work:
        while not self._stop.is_set():
            try:
                work = self._work.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if work.moves or work.future.set_running_or_notify_cancel():
                return work
        raise _Stopped

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
                    raise _Lost
        raise _Stopped

    def _move(self, work: _Work, worker: WorkerInfo) -> None:
        work.moves += 1
        if work.moves > MAX_MOVES:
            work.future.set_exception(_died(work, worker))
            return
        if isinstance(work.payload, SceneTask):  # it may have published outputs without reporting them
            work.payload = with_overwrite(work.payload, resume=True)
        _log.warning("%s: a worker on %s is lost; another one takes over", work.what, worker.host)
        self._work.put(work)

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


def _died(work: _Work, worker: WorkerInfo) -> SceneError:
    return SceneError(
        f"{work.what}: its workers keep dying, last on {worker.host}. Is there enough memory? Fewer workers "
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
