"""The engine of one machine: this process, or several, each with its networks loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rsseg_cli.batch_process import ENDED, Process, wait_for
from rsseg_cli.batch_task import SceneOutcome, SceneProgress, SceneRunner, SceneTask, on_device

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
        places = places_for(first.config.device, self._jobs)
        if len(places) > 1:
            yield from _in_processes(first, rest, places, progress)
            return
        runner = SceneRunner()
        yield runner.run(first, progress)
        for task in rest:
            yield runner.run(task, progress)


def places_for(device: str, jobs: int | None) -> list[str]:
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
            processes[-1].give(_beside_others(on_device(task, place)))
        while busy := [process for process in processes if process.task is not None]:
            for process in wait_for(busy):
                task = process.task
                outcome = process.receive(progress)
                if outcome is None or task is None:
                    continue
                if outcome.error_kind == ENDED and task.index not in tried:
                    tried.add(task.index)
                    process.give(_once_more(task))
                    continue
                yield outcome
                following = next(rest, None)
                if following is not None:
                    process.give(_beside_others(on_device(following, task.config.device)))
    finally:
        for process in processes:
            process.tell_to_stop()
        for process in processes:
            process.join()


def _beside_others(task: SceneTask) -> SceneTask:
    """Polygons in the process itself: it may not start others, and other scenes keep the cores busy."""
    return replace(task, vector=replace(task.vector, jobs=1))


def _once_more(task: SceneTask) -> SceneTask:
    """From where the process ended; it may have published outputs that it did not tell of."""
    return replace(task, resume=True, config=replace(task.config, overwrite=True))
