"""A scene of a batch as work that may be done anywhere, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig

if TYPE_CHECKING:
    from rsseg_cli.pipeline.result import PredictResult


def with_overwrite(task: SceneTask, *, resume: bool) -> SceneTask:
    """The same task, which may replace what an earlier run left."""
    return replace(task, config=replace(task.config, overwrite=True), resume=resume)


SceneProgress = Callable[[int, int, int], None]  # index of the task, tiles done, tiles in all
UNEXPECTED = "unexpected"  # kind of an error that is the program's own fault
_log = logging.getLogger("rsseg_cli")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A part of a mosaic that gets outputs of its own.

    Attributes:
        scene: path.
        outputs: rasters by kind.
        window: (row, col, height, width) in the mosaic, px.
    """

    scene: str
    outputs: Mapping[str, Path]
    window: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class SceneTask:
    """A scene that is to be mapped. Can be pickled.

    Attributes:
        index: its number in the batch, from 0; outcomes refer to it.
        scene: path or address.
        outputs: by kind, as in `PredictResult.paths`; "labels" is always there.
        model: name or path.
        refine: None without refining.
        resume: go on where an interrupted run of this scene stopped.
        sheets: of a mosaic, which `scene` joins: its rasters are cut into theirs, and are then removed.
        vrt: of a mosaic, what is to stand in `scene`.
    """

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
        """Kinds of outputs that are cut into sheets."""
        return frozenset(self.sheets[0].outputs) if self.sheets else frozenset()


@dataclass(frozen=True, kw_only=True)
class SceneOutcome:
    """What came of a task: a result or an error. Can be pickled.

    Attributes:
        index: of the task.
        result: None where it failed.
        error: message, "" where it did not fail.
        error_kind: name of the error's class, or UNEXPECTED.
        sheets: results of a mosaic's sheets, in their order.
    """

    index: int
    result: PredictResult | None = None
    error: str = ""
    error_kind: str = ""
    sheets: tuple[PredictResult, ...] = ()


class Engine(Protocol):
    """Does the tasks of a batch, in any order and anywhere. Closing the iterator stops the work under way."""

    def run(
        self, tasks: Iterable[SceneTask], progress: SceneProgress | None = None
    ) -> Iterator[SceneOutcome]:
        """Yield an outcome for each task. Tasks are taken as places become free.

        Raises:
            ModelError, UsageError: model or device cannot be used at all, so that every scene would fail.
        """


def with_device(task: SceneTask, device: str) -> SceneTask:
    """The same task for a certain device."""
    return replace(task, config=replace(task.config, device=device))
