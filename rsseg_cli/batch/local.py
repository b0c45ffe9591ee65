"""Run a batch on this machine, in this process or in several."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection
from typing import Any

from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import SceneOutcome, SceneProgress, SceneTask, with_device
from rsseg_cli.errors import RssegError
from rsseg_cli.system import cores

ENDED = "ProcessEnded"  # error kind of a scene whose process died
STOP_S = 60.0  # a running scene may take to stop cleanly
CORES_PER_PROCESS = 4  # for --jobs auto; fewer processes share a scene's work well, and need less memory
_log = logging.getLogger(__name__)


class WorkerProcess:
    """Runs tasks in a process that starts with its first task, and again after it has died."""

    def __init__(self, threads: int, device: str = "") -> None:
        self.task: SceneTask | None = None
        self._threads, self._device = threads, device
        self._process: Any = None
        self._pipe: Any = None

    @property
    def pipe(self) -> Any:
        """Readable when `receive` has a message."""
        return self._pipe

    def give(self, task: SceneTask) -> None:
        """Start a task; none is running."""
        if self._process is None:
            self._start()
        self.task = task
        try:
            self._pipe.send(task)
        except OSError:  # it is dead: `receive` reports that
            return

    def receive(self, progress: SceneProgress | None) -> SceneOutcome | None:
        """Return the task's outcome, None while it runs; raise what stops every scene."""
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            return self._dead()
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
        """Have the running task stop cleanly."""
        if self._process is None:
            return
        if self.task is not None:
            self._process.terminate()
        else:
            self._pipe.close()

    def join(self) -> None:
        """Wait for the process to end; pass on its messages."""
        if self._process is None:
            return
        until = time.monotonic() + STOP_S
        self._drain(until)
        self._process.join(max(1.0, until - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._process.close()

    def _drain(self, until: float) -> None:
        """Read its messages until it ends: it cannot end while its pipe is full."""
        with suppress(EOFError, OSError):
            while not self._pipe.closed and self._pipe.poll(max(0.0, until - time.monotonic())):
                kind, value = self._pipe.recv()
                if kind == "log":
                    _log.log(*value)

    def _start(self) -> None:
        # not forked: torch and GDAL have threads, and other processes' pipes would be inherited
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        level = _log.getEffectiveLevel()
        arguments = theirs, self._threads, self._device, level
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        with _interrupts_ignored():
            self._process.start()
        theirs.close()

    def _dead(self) -> SceneOutcome:
        self._process.join()
        code = self._process.exitcode
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        advice = ", perhaps for lack of memory; use fewer --jobs" if code == -signal.SIGKILL else ""
        message = f"{self.task.scene if self.task else ''}: its process died {how}{advice}"
        outcome = SceneOutcome(index=self.task.index if self.task else -1, error=message, error_kind=ENDED)
        self.task = None
        self._pipe.close()
        self._process.close()
        self._process = None
        return outcome


def wait_for(processes: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Wait for messages; return the processes that have some."""
    by_pipe = {process.pipe: process for process in processes}
    return [by_pipe[pipe] for pipe in connection.wait(list(by_pipe))]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in a process that is started inside: its parent stops it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class PipeLogHandler(logging.Handler):
    """Sends log messages to the parent process."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(("log", (record.levelno, "%s", record.getMessage())))


def _work(pipe: Any, threads: int, device: str, level: int) -> None:
    """Run tasks until the parent closes the pipe, sends SIGTERM or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the running scene cleanly
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    logger = logging.getLogger("rsseg_cli")
    logger.handlers[:], logger.propagate = [PipeLogHandler(pipe)], False
    logger.setLevel(level)
    try:
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), threads))
        if device.startswith("cuda:"):  # the default device; no other one gets a context
            torch.cuda.set_device(device)
        runner = SceneRunner()
        while True:
            pipe.send(("outcome", runner.run(pipe.recv(), lambda *tiles: pipe.send(("tiles", tiles)))))
    except RssegError as err:
        pipe.send(("error", err))
    except (KeyboardInterrupt, EOFError, OSError):
        return


def _stop_with_parent() -> None:
    """Stop as on SIGTERM when the parent is dead."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


class LocalEngine:
    """Runs the tasks of a batch on this machine.

    A scene whose process died, perhaps for lack of memory, is run once more in a new process.

    Args:
        jobs: processes; 0 for one a GPU or every CORES_PER_PROCESS cores; None for one, or one a GPU.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Iterator[SceneOutcome]:
        """See `task.Engine`."""
        rest = iter(tasks)
        first = next(rest, None)
        if first is None:
            return
        devices = devices_for(first.config.device, self._jobs)
        if len(devices) > 1:
            yield from _in_processes(first, rest, devices, progress)
            return
        runner = SceneRunner()
        yield runner.run(first, progress)
        for task in rest:
            yield runner.run(task, progress)


def devices_for(device: str, jobs: int | None) -> list[str]:
    """Return the device of each process."""
    from rsseg_cli.inference import choose_device

    chosen = choose_device(device)
    visible = gpus() if device in ("auto", "cuda") else []
    if len(visible) > 1:
        return [visible[index % len(visible)] for index in range(jobs or len(visible))]
    if jobs == 0:
        jobs = max(1, cores() // CORES_PER_PROCESS) if chosen.type == "cpu" else 1
    return [device] * (jobs or 1)


def gpus() -> list[str]:
    """Return the GPUs that this process sees, after CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)]


def _in_processes(
    first: SceneTask, rest: Iterator[SceneTask], devices: list[str], progress: SceneProgress | None
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
            processes[-1].give(_with_one_job(with_device(task, device)))
        while busy := [process for process in processes if process.task is not None]:
            for process in wait_for(busy):
                task = process.task
                outcome = process.receive(progress)
                if outcome is None or task is None:
                    continue
                if outcome.error_kind == ENDED and task.index not in tried:
                    tried.add(task.index)
                    process.give(_retry_of(task))
                    continue
                yield outcome
                following = next(rest, None)
                if following is not None:
                    process.give(_with_one_job(with_device(following, task.config.device)))
    finally:
        for process in processes:
            process.request_stop()
        for process in processes:
            process.join()


def _with_one_job(task: SceneTask) -> SceneTask:
    """Make polygons in the process itself: it may not start others, and other scenes use the cores."""
    return replace(task, vector=replace(task.vector, jobs=1))


def _retry_of(task: SceneTask) -> SceneTask:
    """Resume where the process died; it may have published outputs without reporting them."""
    return replace(task, resume=True, config=replace(task.config, overwrite=True))
