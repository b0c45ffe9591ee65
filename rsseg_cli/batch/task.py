"""A scene of a batch as a task that any process can run, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig

if TYPE_CHECKING:
    from rsseg_cli.pipeline import PredictResult


def with_overwrite(task: SceneTask, *, resume: bool) -> SceneTask:
    """Return the task with leave to replace what an earlier run left."""
    return replace(task, config=replace(task.config, overwrite=True), resume=resume)


SceneProgress = Callable[[int, int, int], None]  # index of the task, tiles done, tiles in all
UNEXPECTED = "unexpected"  # error kind of a fault of the program


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A part of a mosaic with outputs of its own; `window` is (row, col, height, width) in the mosaic, px.

    `notes` are warnings about its file, before it became a part.
    """

    scene: str
    outputs: Mapping[str, Path]
    window: tuple[int, int, int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SceneTask:
    """A scene to map, with outputs as in `PredictResult.paths`. Of a mosaic, `vrt` is the text of `scene`."""

    index: int
    scene: str
    outputs: Mapping[str, Path]
    model: str
    config: PredictConfig = field(default_factory=PredictConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)
    refine: RefineConfig | None = None
    resume: bool = False
    sheets: tuple[Sheet, ...] = ()
    vrt: str = field(default="", repr=False)

    @property
    def work(self) -> frozenset[str]:
        """Return the kinds of outputs that are cut into sheets."""
        return frozenset(self.sheets[0].outputs) if self.sheets else frozenset()


@dataclass(frozen=True, kw_only=True)
class SceneOutcome:
    """The result or error of a task, and the results of a mosaic's sheets, in their order."""

    index: int
    result: PredictResult | None = None
    error: str = ""
    error_kind: str = ""
    sheets: tuple[PredictResult, ...] = ()


class Engine(Protocol):
    """Runs the tasks of a batch, in any order and anywhere. Closing the iterator stops running tasks."""

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Generator[SceneOutcome, None, None]:
        """Yield an outcome for each task; tasks are taken as workers become free.

        Raises:
            ModelError, UsageError: no scene can run, because of the model or the device.
        """


def with_device(task: SceneTask, device: str) -> SceneTask:
    return replace(task, config=replace(task.config, device=device))
