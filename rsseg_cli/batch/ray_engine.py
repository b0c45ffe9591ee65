"""Run a batch on a Ray cluster: a scene on one worker, a large one in bands on all."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsseg_cli import errors
from rsseg_cli.batch.bands import SharedPasses
from rsseg_cli.batch.ray_pool import RayPool
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import SceneOutcome, SceneProgress, SceneTask, with_device
from rsseg_cli.errors import RssegError, SceneError, UsageError
from rsseg_cli.inference import passes
from rsseg_cli.pipeline import PredictResult
from rsseg_cli.raster import SceneInfo

CONNECT_S = 5.0
MAX_STARTS = 3  # Ray gives its own processes 15 s, which is short on a busy machine (ray issue 65983)
STORE_BYTES = 1 << 30  # shared memory for finished rows, on a cluster of this machine
INSTALL = "pip install 'rsseg[ray]'"
QUIET = {"log_to_driver": False, "logging_level": "CRITICAL"}
# Set before Ray is imported: no usage statistics, no lines of Ray's among the results on stdout. Its
# processes need 40 s to start on two busy processors.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "45",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_worker_niceness": "0",  # its default is 15: a busy machine would hardly let workers run
}
SPLIT_PX = 400_000_000  # larger scenes run in bands: 20,000 x 20,000 px
DEVICES = ("auto", "cpu", "cuda")


class RayEngine:
    """Runs the tasks of a batch on a Ray cluster.

    There is one worker a GPU, or a CPU if the cluster has no GPU or `device` is "cpu"; by default, as many as
    fit on the cluster. One worker maps and writes a scene. A scene above `split_px` runs in bands on all
    workers, and this process writes it. For `address` see `connected`.
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

            def start(task: SceneTask) -> Future[SceneOutcome]:
                """Send a task to one worker, or its bands to all."""
                task = absolute(task)
                if _size_px(task) > self._split_px:
                    return writer.submit(_split, task, pool, progress)
                polygons = replace(task.vector, jobs=task.vector.jobs or 1)  # other workers use the cores
                return pool.submit_scene(replace(task, vector=polygons))

            yield from _outcomes(tasks, start, workers)

    def run_one(self, task: SceneTask, progress: passes.Progress | None = None) -> PredictResult:
        report: SceneProgress | None = (lambda _, done, total: progress(done, total)) if progress else None
        with closing(self.run([task], report)) as outcomes:
            outcome = next(outcomes)
        if outcome.result is None:
            raise getattr(errors, outcome.error_kind, RssegError)(outcome.error)
        return outcome.result

    def _workers_of(self, ray: Any) -> tuple[int, int]:
        resources = ray.cluster_resources()
        gpus = 0 if self._device == "cpu" else int(resources.get("GPU", 0))
        if self._device == "cuda" and not gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU; pass cpu or auto")
        slots = gpus or int(resources.get("CPU", 0))
        return max(1, self._workers or slots), min(1, gpus)


def _split(task: SceneTask, pool: RayPool, progress: SceneProgress | None) -> SceneOutcome:
    """Map a scene in bands on all workers; no network runs in this process."""
    passes = SharedPasses(pool, task)
    return SceneRunner(lambda _: passes).run(with_device(task, "cpu"), progress)


def _outcomes(
    tasks: Iterable[SceneTask], start: Callable[[SceneTask], Future[SceneOutcome]], workers: int
) -> Iterator[SceneOutcome]:
    """In the order in which they come; one task a worker waits beside those under way."""
    waiting = iter(tasks)
    pending: dict[Future[SceneOutcome], SceneTask] = {}
    while True:
        while len(pending) < 2 * workers and (task := next(waiting, None)) is not None:
            pending[start(task)] = task
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
    model = os.path.abspath(task.model) if Path(task.model).is_file() else task.model
    aoi, remap = task.config.aoi, task.config.remap
    config = replace(task.config, aoi=aoi and aoi.absolute(), remap=remap and remap.absolute())
    refine = task.refine
    if refine is not None and isinstance(refine.refiner, str | Path) and Path(refine.refiner).is_file():
        refine = replace(refine, refiner=Path(refine.refiner).absolute())
    return replace(
        task,
        scene=os.path.abspath(task.scene) if Path(task.scene).exists() else task.scene,
        outputs={kind: path.absolute() for kind, path in task.outputs.items()},
        model=model,
        config=config,
        refine=refine,
    )


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


def ray_module() -> Any:
    """Import Ray with settings that keep it quiet."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"--engine ray: Ray is not installed; {INSTALL}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect to a cluster and yield Ray's module. An existing connection of this process is used and kept.

    Args:
        address: "auto" for this machine's cluster, or host:port of its head; None for $RAY_ADDRESS, else a
            cluster on this machine alone.
        workers: CPUs of a cluster on this machine alone; None for all.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with _sigterm_kept():
            if address == "local":
                _start(ray, workers)
            else:
                _join(ray, address)
        yield ray
    finally:
        with _sigterm_kept():
            ray.shutdown()


def _start(ray: Any, workers: int | None) -> None:
    for attempt in range(1, MAX_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **QUIET,
            )
            return
        except Exception as err:  # what Ray raises where its processes do not start
            ray.shutdown()
            if attempt == MAX_STARTS:
                raise UsageError(f"--engine ray: no cluster can be started on this machine ({err})") from err


def _join(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: needs host:port of the head; run rsseg on a machine of the cluster: "
            "this process writes the outputs"
        )
    if address == "auto":
        address = _address_of_this_machine()
    else:
        _check_address(address)
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, OSError, RuntimeError, ValueError) as err:
        raise UsageError(f"--ray-address {address}: cannot be joined ({err})") from err


def _address_of_this_machine() -> str:
    """Return that of this machine's cluster; Ray would wait for one that ended without `ray stop`."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        address = str(canonicalize_bootstrap_address("auto"))
        _check_address(address)
    except (ConnectionError, UsageError, ValueError) as err:
        raise UsageError(
            "--ray-address auto: no Ray cluster runs on this machine; start one with `ray start --head`, "
            "join one with `ray start --address HOST:6379`, or leave --ray-address out"
        ) from err
    return address


def _check_address(address: str) -> None:
    """Check that something listens: Ray itself waits for over half a minute and then ends the process."""
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray-address {address}: needs auto or host:port, as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as err:
        raise UsageError(
            f"--ray-address {address}: nothing answers there ({err}); `ray start --head` prints the head's "
            "address"
        ) from err


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore this program's SIGTERM handler, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
