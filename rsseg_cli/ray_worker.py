"""What runs on the machines of a Ray cluster: a process that keeps its networks loaded."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsseg_cli import __version__
from rsseg_cli.batch_plan import with_overwrite
from rsseg_cli.batch_task import SceneOutcome, SceneRunner, SceneTask
from rsseg_cli.errors import RssegError, SceneError
from rsseg_cli.row_bands import Band, BandRows, run_band


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker runs.

    Attributes:
        node: Ray's name of the machine.
    """

    host: str
    node: str
    pid: int
    version: str


class RayWorker:
    """Runs scenes and bands one after another; made into a Ray actor by `ray_pool`.

    What a user can cause is returned, not raised: Ray would wrap it into an error of its own.
    """

    def __init__(self) -> None:
        self._runner = SceneRunner()
        self._again = False

    def hello(self) -> Place:
        """Say where this is."""
        node = _context().get_node_id()
        return Place(host=socket.gethostname(), node=node, pid=os.getpid(), version=__version__)

    def scene(self, task: SceneTask, needed: Sequence[str]) -> SceneOutcome | RssegError:
        """Map a scene. A worker in place of one that died goes on where that one was.

        Args:
            needed: files and folders that the sender sees.
        """
        try:
            _check_seen(needed)
        except SceneError as err:
            return SceneOutcome(index=task.index, error=str(err), error_kind=type(err).__name__)
        if not self._again and _context().was_current_actor_reconstructed:
            task = with_overwrite(task, resume=True)
        self._again = True
        try:
            return self._runner.run(task)
        except RssegError as err:
            return err

    def band(self, band: Band, needed: Sequence[str]) -> BandRows | RssegError:
        """Run a part of a scene."""
        self._again = True
        try:
            _check_seen(needed)
            return run_band(band, self._runner)
        except RssegError as err:
            return err


def _context() -> Any:
    import ray

    return ray.get_runtime_context()


def _check_seen(needed: Sequence[str]) -> None:
    for path in needed:
        if not Path(path).exists():
            raise SceneError(
                f"{path}: not found by the worker on {socket.gethostname()}; scenes, models and output "
                "folders must lie on storage that all machines of the cluster see under the same path"
            )
