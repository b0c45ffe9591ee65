"""Run tasks in this process, with models kept loaded between them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rsseg_cli.batch.task import UNEXPECTED, SceneOutcome, SceneProgress, SceneTask
from rsseg_cli.config import RefineConfig
from rsseg_cli.errors import RssegError
from rsseg_cli.raster import gdal

if TYPE_CHECKING:
    from rsseg_cli.pipeline import PredictResult
    from rsseg_cli.pipeline import passes as passes_
    from rsseg_cli.weights import TrainedModel

_log = logging.getLogger(__name__)


class SceneRunner:
    """Runs tasks one after another in this process.

    Args:
        passes: where the passes over a task's scene run; None for this process.
    """

    def __init__(self, passes: Callable[[SceneTask], passes_.Passes] | None = None) -> None:
        self._passes = passes
        self._models: dict[str, TrainedModel] = {}
        self._refiners: dict[tuple[str, RefineConfig], RefineConfig] = {}

    def load(self, task: SceneTask) -> tuple[TrainedModel, RefineConfig | None]:
        """Load a task's model and refiner, once, and keep them on its device."""
        from rsseg_cli.inference import Engine, choose_device
        from rsseg_cli.pipeline import refinement
        from rsseg_cli.weights import load_model

        device = choose_device(task.config.device)
        if task.model not in self._models:
            self._models[task.model] = load_model(task.model)
            Engine.place(self._models[task.model].network, device)
        model = self._models[task.model]
        if task.refine is None:
            return model, None
        key = task.model, task.refine
        if key not in self._refiners:
            loaded = self._refiners[key] = refinement.with_refiner(model.spec, task.model, task.refine)
            Engine.place(cast("TrainedModel", loaded.refiner).network, device)
        return model, self._refiners[key]

    def run(self, task: SceneTask, progress: SceneProgress | None = None) -> SceneOutcome:
        """Map a scene; an error of the scene is its outcome, an error of `load` is raised."""
        model, refine = self.load(task)
        sheets: tuple[PredictResult, ...] = ()
        try:
            if task.sheets:
                from rsseg_cli.batch.mosaic import map_sheets

                result, sheets = map_sheets(
                    task, model.spec, lambda: self._predict(task, model, refine, progress)
                )
            else:
                result = self._predict(task, model, refine, progress)
        except RssegError as err:
            return SceneOutcome(index=task.index, error=_with_notes(err), error_kind=type(err).__name__)
        except KeyboardInterrupt as err:
            _log.info("%s: %s", gdal.display_name(task.scene), _with_notes(err, "stopped"))
            raise
        except Exception as err:  # one scene must not end the batch
            _log.error("%s: unexpected error\n%s", task.scene, traceback.format_exc().rstrip())
            message = _with_notes(err, _origin_of(err))
            return SceneOutcome(index=task.index, error=message, error_kind=UNEXPECTED)
        return SceneOutcome(index=task.index, result=result, sheets=sheets)

    def _predict(
        self,
        task: SceneTask,
        model: TrainedModel,
        refine: RefineConfig | None,
        progress: SceneProgress | None,
    ) -> PredictResult:
        from rsseg_cli.pipeline import predict

        more: dict[str, Any] = dict(task.outputs)
        return predict(
            task.scene,
            more.pop("labels"),
            model=model,
            config=task.config,
            vector_config=task.vector,
            refine=refine,
            resume=task.resume,
            progress=(lambda done, total: progress(task.index, done, total)) if progress else None,
            passes=self._passes(task) if self._passes else None,
            **more,
        )


def _with_notes(err: BaseException, message: str = "") -> str:
    """Return the message with the exception's notes, such as how many rows are kept."""
    return "; ".join([message or str(err), *getattr(err, "__notes__", ())])


def _origin_of(err: Exception) -> str:
    """`ZeroDivisionError: division by zero (job.py, line 12)`."""
    place = traceback.extract_tb(err.__traceback__)[-1]
    return f"{type(err).__name__}: {err} ({Path(place.filename).name}, line {place.lineno})"
