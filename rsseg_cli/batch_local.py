"""The engine of one machine: this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rsseg_cli.batch_task import SceneOutcome, SceneProgress, SceneRunner, SceneTask


class LocalEngine:
    """Does the tasks of a batch on this machine."""

    def __init__(self, jobs: int | None = None, device: str = "auto") -> None:
        self._jobs, self._device = jobs, device

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Iterator[SceneOutcome]:
        """See `batch_task.Engine`."""
        runner = SceneRunner()
        for task in tasks:
            yield runner.run(task, progress)
