"""Run a batch on this machine, in this process or in several."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from multiprocessing import connection
from multiprocessing.connection import Connection
from queue import SimpleQueue

from rsseg_cli.batch.runner import SceneRunner, finished
from rsseg_cli.batch.task import SceneOutcome, SceneProgress, SceneTask, with_device, with_overwrite
from rsseg_cli.errors import OutputError, RssegError
from rsseg_cli.system import Process, cores

ENDED = "ProcessEnded"  # error kind of a scene whose process died
STOP_S = 60.0  # a running scene may take to stop cleanly
CORES_PER_PROCESS = 4  # for --jobs auto; fewer processes share a scene's work well, and need less memory
_log = logging.getLogger(__name__)


class WorkerProcess:
    """Runs tasks in a process that starts with its first task, and again after it has died."""

    def __init__(self, threads: int, device: str = "") -> None:
        self.task: SceneTask | None = None
        self._settings = threads, device, _log.getEffectiveLevel()
        self._process: Process | None = None

    @property
    def pipe(self) -> Connection | None:
        return self._process.connection if self._process else None

    def give(self, task: SceneTask) -> None:
        """Start a task; none is running."""
        self.task = task
        with suppress(OSError):  # it is dead: `receive` reports that
            if self._process is None:
                self._process = Process(serve)
                self._process.connection.send(self._settings)
            self._process.connection.send(task)

    def receive(self, progress: SceneProgress | None) -> SceneOutcome | None:
        """Return the task's outcome, None while it runs; raise what stops every scene."""
        if self._process is None:
            raise ValueError("no task was given")
        try:
            kind, value = self._process.connection.recv()
        except (EOFError, OSError):
            return self._dead(self._process)
        if kind == "outcome":
            self.task = None
            outcome: SceneOutcome = value
            return outcome
        if kind == "error":
            raise value
        if kind == "log":
            _log.log(*value)
        elif progress is not None:
            progress(*value)
        return None

    def request_stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def join(self) -> None:
        """Wait for the process to end; pass on its messages: it cannot end while its pipe is full."""
        if self._process is None:
            return
        until = time.monotonic() + STOP_S
        with suppress(EOFError, OSError):
            while self._process.connection.poll(max(0.0, until - time.monotonic())):
                kind, value = self._process.connection.recv()
                if kind == "log":
                    _log.log(*value)
        self._process.wait(max(1.0, until - time.monotonic()))
        self._process = None

    def _dead(self, process: Process) -> SceneOutcome:
        code = process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        advice = ", perhaps for lack of memory; use fewer --jobs" if code == -signal.SIGKILL else ""
        message = f"{self.task.scene if self.task else ''}: its process died {how}{advice}"
        outcome = SceneOutcome(index=self.task.index if self.task else -1, error=message, error_kind=ENDED)
        self.task = self._process = None
        return outcome


def wait_for(processes: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Wait for messages; return the processes that have some."""
    by_pipe = {process.pipe: process for process in processes if process.pipe is not None}
    return [by_pipe[pipe] for pipe in connection.wait(list(by_pipe)) if isinstance(pipe, Connection)]


class PipeLogHandler(logging.Handler):
    """Sends log messages to the parent process."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(("log", (record.levelno, "%s", record.getMessage())))


def serve(pipe: Connection) -> None:
    """Run the parent's tasks until it sends SIGTERM or dies."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the running scene cleanly
    tasks: SimpleQueue[SceneTask] = SimpleQueue()
    try:
        threads, device, level = pipe.recv()
        threading.Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
        logger = logging.getLogger("rsseg_cli")
        logger.handlers[:], logger.propagate = [PipeLogHandler(pipe)], False
        logger.setLevel(level)
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), threads))
        os.environ.setdefault("GDAL_NUM_THREADS", str(threads))
        if device.startswith("cuda:"):  # the default device; no other one gets a context
            torch.cuda.set_device(device)
        runner = SceneRunner()
        while True:
            pipe.send(("outcome", runner.run(tasks.get(), lambda *tiles: pipe.send(("tiles", tiles)))))
    except RssegError as err:
        pipe.send(("error", err))
    except (KeyboardInterrupt, EOFError, OSError):
        return


def _receive(pipe: Connection, tasks: SimpleQueue[SceneTask]) -> None:
    """Take tasks while others run; stop as on SIGTERM when the parent is dead."""
    with suppress(EOFError, OSError):
        while True:
            tasks.put(pipe.recv())
    os.kill(os.getpid(), signal.SIGTERM)


class LocalEngine:
    """Runs the tasks of a batch on this machine.

    A scene whose process died, perhaps for lack of memory, is run once more in a new process.

    Args:
        jobs: processes; 0 for one a GPU or every CORES_PER_PROCESS cores; None for one, or one a GPU.
        devices: one a process, in place of `jobs` and the tasks' own.
    """

    def __init__(self, jobs: int | None = None, *, devices: Sequence[str] = ()) -> None:
        self._jobs, self._devices = jobs, devices

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Generator[SceneOutcome, None, None]:
        rest = iter(tasks)
        first = next(rest, None)
        if first is None:
            return
        devices = self._devices or devices_for(first.config.device, self._jobs)
        if len(devices) > 1:
            yield from _in_processes(first, rest, devices, progress)
            return
        yield from _in_turn(chain([first], rest), progress)


def _in_turn(tasks: Iterable[SceneTask], progress: SceneProgress | None) -> Iterator[SceneOutcome]:
    """Map scenes in this thread, and finish the outputs of each one while the next is mapped.

    A scene is reported before the outputs of the next one are finished. One that fails, and was mapped while
    there was no room for the outputs of another, is mapped once more: what it wrote then may be damaged.
    """
    runner = SceneRunner()
    mapped: deque[SceneOutcome | Callable[[], SceneOutcome]] = deque()
    finishing: deque[tuple[SceneTask, Future[SceneOutcome]]] = deque()
    lacked_room = False

    def oldest() -> SceneOutcome:
        task, future = finishing.popleft()
        outcome = future.result()
        return finished(runner.start(task, progress)) if outcome.error and lacked_room else outcome

    with ThreadPoolExecutor(1, thread_name_prefix="rsseg-finish") as finisher:
        try:
            for task in tasks:
                mapped.append(runner.start(task, progress))
                if finishing:
                    outcome = oldest()
                    lacked_room = outcome.error_kind == OutputError.__name__
                    yield outcome
                    failed = mapped[0]
                    if isinstance(failed, SceneOutcome) and (
                        lacked_room or failed.error_kind == OutputError.__name__
                    ):
                        mapped[0] = runner.start(task, progress)
                finishing.append((task, finisher.submit(finished, mapped.popleft())))
        except GeneratorExit:
            raise
        except BaseException:  # report what was mapped before first
            finishing.extend((task, finisher.submit(finished, started)) for started in mapped)
            while finishing:
                yield finishing.popleft()[1].result()
            raise
        while finishing:
            yield oldest()


def devices_for(device: str, jobs: int | None, gpus: Sequence[str] | None = None) -> list[str]:
    """Return the device of each process; `gpus` are those that this process sees."""
    from rsseg_cli.inference import Engine

    chosen = Engine.choose_device(device)
    visible = (_gpus() if gpus is None else gpus) if device in ("auto", "cuda") else ()
    if len(visible) > 1:
        return [visible[index % len(visible)] for index in range(jobs or len(visible))]
    if jobs == 0:
        jobs = max(1, cores() // CORES_PER_PROCESS) if chosen.type == "cpu" else 1
    return [device] * (jobs or 1)


def _gpus() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)]


def _in_processes(
    first: SceneTask, rest: Iterator[SceneTask], devices: Sequence[str], progress: SceneProgress | None
) -> Iterator[SceneOutcome]:
    threads = max(1, cores() // len(devices))
    processes: list[WorkerProcess] = []
    tried: set[int] = set()
    try:
        for device in devices:
            task = first if not processes else next(rest, None)
            if task is None:
                break
            processes.append(WorkerProcess(threads, device))
            processes[-1].give(_for_process(task, device))
        while busy := [process for process in processes if process.task is not None]:
            for process in wait_for(busy):
                task = process.task
                outcome = process.receive(progress)
                if outcome is None or task is None:
                    continue
                if outcome.error_kind == ENDED and task.index not in tried:
                    tried.add(task.index)
                    # it may have published outputs without reporting them
                    process.give(with_overwrite(task, resume=True))
                    continue
                yield outcome
                following = next(rest, None)
                if following is not None:
                    process.give(_for_process(following, task.config.device))
    finally:
        for process in processes:
            process.request_stop()
        for process in processes:
            process.join()


def _for_process(task: SceneTask, device: str) -> SceneTask:
    """Make polygons in the process itself: it may not start others, and other scenes use the cores."""
    return replace(with_device(task, device), vector=replace(task.vector, jobs=1))
