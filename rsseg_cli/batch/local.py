"""The engine of one machine: this process, or several, each with its networks loaded once."""

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

ENDED = "ProcessEnded"  # kind of the error of a scene whose process was ended from outside
STOP_S = 60.0  # that a scene under way may take to stop cleanly
_log = logging.getLogger("rsseg_cli")


class Process:
    """Starts with its first task, and again with the next one after its death.

    Args:
        threads: of the network on the CPU.
        device: of its tasks.
    """

    def __init__(self, threads: int, device: str = "") -> None:
        self.task: SceneTask | None = None
        self._threads, self._device = threads, device
        self._process: Any = None
        self._pipe: Any = None

    @property
    def pipe(self) -> Any:
        """Readable when `receive` has something."""
        return self._pipe

    def give(self, task: SceneTask) -> None:
        """Begin a task; there is none under way."""
        if self._process is None:
            self._start()
        self.task = task
        try:
            self._pipe.send(task)
        except OSError:  # it is dead, which `receive` finds
            return

    def receive(self, progress: SceneProgress | None) -> SceneOutcome | None:
        """The task's outcome; None where it goes on.

        Raises:
            RssegError: what would end every scene.
        """
        try:
            kind, told = self._pipe.recv()
        except (EOFError, OSError):
            return self._dead()
        if kind == "outcome":
            self.task = None
            outcome: SceneOutcome = told
            return outcome
        if kind == "error":
            raise told
        if kind == "log":
            _log.log(*told)
        elif progress is not None:
            progress(*told)
        return None

    def request_stop(self) -> None:
        """A task under way stops cleanly."""
        if self._process is None:
            return
        if self.task is not None:
            self._process.terminate()
        else:
            self._pipe.close()

    def join(self) -> None:
        """Wait for its end; what it tells on its way is passed on."""
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
        """Take what it still tells, until it ends: it could not end while its pipe is full."""
        with suppress(EOFError, OSError):
            while not self._pipe.closed and self._pipe.poll(max(0.0, until - time.monotonic())):
                kind, told = self._pipe.recv()
                if kind == "log":
                    _log.log(*told)

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
        advice = ", perhaps for want of memory; use fewer --jobs" if code == -signal.SIGKILL else ""
        message = f"{self.task.scene if self.task else ''}: its process was ended {how}{advice}"
        outcome = SceneOutcome(index=self.task.index if self.task else -1, error=message, error_kind=ENDED)
        self.task = None
        self._pipe.close()
        self._process.close()
        self._process = None
        return outcome


def wait_for(processes: Sequence[Process]) -> list[Process]:
    """Those that have something to tell, once one has."""
    by_pipe = {process.pipe: process for process in processes}
    return [by_pipe[pipe] for pipe in connection.wait(list(by_pipe))]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started inside ignores Ctrl-C from its first moment: its parent tells it to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class PipeLogHandler(logging.Handler):
    """Sends messages to the parent, which prints them."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(("log", (record.levelno, "%s", record.getMessage())))


def _work(pipe: Any, threads: int, device: str, level: int) -> None:
    """Do tasks until the parent closes the pipe, tells to stop, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the scene under way cleanly
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    logger = logging.getLogger("rsseg_cli")
    logger.handlers[:], logger.propagate = [PipeLogHandler(pipe)], False
    logger.setLevel(level)
    try:
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), threads))
        if device.startswith("cuda:"):  # what names no device means this one, and no other gets a context
            torch.cuda.set_device(device)
        runner = SceneRunner()
        while True:
            pipe.send(("outcome", runner.run(pipe.recv(), lambda *told: pipe.send(("tiles", told)))))
    except RssegError as err:
        pipe.send(("error", err))
    except (KeyboardInterrupt, EOFError, OSError):
        return


def _stop_with_parent() -> None:
    """Stop like on a signal when the parent is gone, killed perhaps: nobody waits for the work any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


CORES_A_PROCESS = 4  # of `auto`; fewer processes share a scene's work well, and need less memory


class LocalEngine:
    """Does the tasks of a batch on this machine.

    A process that is ended from outside, perhaps for want of memory, takes one scene with it: that is tried
    once more in a new process.

    Args:
        jobs: processes; 0 for one a GPU, or one for CORES_A_PROCESS cores; None for one, or one a GPU.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Iterator[SceneOutcome]:
        """See `batch_task.Engine`."""
        rest = iter(tasks)
        first = next(rest, None)
        if first is None:
            return
        places = devices_for(first.config.device, self._jobs)
        if len(places) > 1:
            yield from _in_processes(first, rest, places, progress)
            return
        runner = SceneRunner()
        yield runner.run(first, progress)
        for task in rest:
            yield runner.run(task, progress)


def devices_for(device: str, jobs: int | None) -> list[str]:
    """The device of each process.

    Raises:
        UsageError: there is no such device.
    """
    from rsseg_cli.inference.engine import choose_device

    chosen = choose_device(device)
    found = gpus() if device in ("auto", "cuda") else []
    if len(found) > 1:
        return [found[index % len(found)] for index in range(jobs or len(found))]
    if jobs == 0:
        jobs = max(1, cores() // CORES_A_PROCESS) if chosen.type == "cpu" else 1
    return [device] * (jobs or 1)


def gpus() -> list[str]:
    """The GPUs that this process sees: of those of the machine the ones that CUDA_VISIBLE_DEVICES names."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(
    first: SceneTask, rest: Iterator[SceneTask], places: list[str], progress: SceneProgress | None
) -> Iterator[SceneOutcome]:
    threads = max(1, cores() // len(places))
    processes: list[Process] = []
    tried: set[int] = set()
    try:
        for place in places:
            task = first if not processes else next(rest, None)
            if task is None:
                break
            processes.append(Process(threads, place))
            processes[-1].give(_with_one_job(with_device(task, place)))
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
    """Polygons in the process itself: it may not start others, and other scenes keep the cores busy."""
    return replace(task, vector=replace(task.vector, jobs=1))


def _retry_of(task: SceneTask) -> SceneTask:
    """From where the process ended; it may have published outputs that it did not tell of."""
    return replace(task, resume=True, config=replace(task.config, overwrite=True))
