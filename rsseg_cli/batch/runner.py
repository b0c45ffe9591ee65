"""Map scenes of a batch one after another, with models kept loaded between them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rsseg_cli.batch.task import UNEXPECTED, SceneOutcome, SceneProgress, SceneTask
from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import RssegError
from rsseg_cli.raster import gdal

if TYPE_CHECKING:
    from rsseg_cli.pipeline import PredictResult
    from rsseg_cli.pipeline import passes as passes_
    from rsseg_cli.weights import TrainedModel

_log = logging.getLogger(__name__)
Done = TypeVar("Done")


class SceneRunner:
    """Runs tasks one after another in this process, or by `passes` elsewhere."""

    def __init__(self, passes: Callable[[SceneTask], passes_.Passes] | None = None) -> None:
        self._passes = passes
        self._models: dict[str, TrainedModel] = {}
        self._refiners: dict[tuple[str, RefineConfig], RefineConfig] = {}

    def load(self, task: SceneTask) -> tuple[TrainedModel, RefineConfig | None]:
        """Load a task's model and refiner, once, and keep them on its device."""
        from rsseg_cli.pipeline import refinement
        from rsseg_cli.weights import registry

        if task.model not in self._models:
            stored = registry.StoredModel(task.model)
            _place(stored, task.config)
            self._models[task.model] = stored
        model = self._models[task.model]
        if task.refine is None:
            return model, None
        key = task.model, task.refine
        if key not in self._refiners:
            loaded = self._refiners[key] = refinement.with_refiner(model.spec, task.model, task.refine)
            _place(cast("TrainedModel", loaded.refiner), task.config)
        return model, self._refiners[key]

    def run(self, task: SceneTask, progress: SceneProgress | None = None) -> SceneOutcome:
        """Map a scene; an error of the scene is its outcome, an error of `load` is raised."""
        return finished(self.start(task, progress))

    def start(
        self, task: SceneTask, progress: SceneProgress | None = None
    ) -> SceneOutcome | Callable[[], SceneOutcome]:
        """Map a scene; return how it failed, or what finishes its outputs, in any thread, see `run`."""
        model, refine = self.load(task)
        if task.sheets:
            from rsseg_cli.batch.mosaic import map_sheets
            from rsseg_cli.pipeline import refinement

            spec, _ = refinement.remapped(model.spec, task.config.remap)

            def whole() -> PredictResult:
                return self._predict(task, model, refine, progress)

            found = _attempt(task, lambda: map_sheets(task, spec, whole))
            if isinstance(found, SceneOutcome):
                return found
            return lambda: SceneOutcome(index=task.index, result=found[0], sheets=found[1])
        rest = _attempt(task, lambda: self._predict(task, model, refine, progress, finish=lambda rest: rest))
        if isinstance(rest, SceneOutcome):
            return rest

        def done() -> SceneOutcome:
            result = _attempt(task, rest)
            return (
                result if isinstance(result, SceneOutcome) else SceneOutcome(index=task.index, result=result)
            )

        return done

    def _predict(
        self,
        task: SceneTask,
        model: TrainedModel,
        refine: RefineConfig | None,
        progress: SceneProgress | None,
        **more: Any,
    ) -> Any:
        from rsseg_cli.pipeline import predict

        more |= task.outputs
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


def finished(started: SceneOutcome | Callable[[], SceneOutcome]) -> SceneOutcome:
    return started if isinstance(started, SceneOutcome) else started()


def _attempt(task: SceneTask, do: Callable[[], Done]) -> Done | SceneOutcome:
    """Return a result, or the outcome of a scene that failed."""
    try:
        return do()
    except RssegError as err:
        return SceneOutcome(index=task.index, error=_with_notes(err), error_kind=type(err).__name__)
    except KeyboardInterrupt as err:
        _log.info("%s: %s", gdal.display_name(task.scene), _with_notes(err, "stopped"))
        raise
    except Exception as err:  # one scene must not end the batch
        _log.error("%s: unexpected error\n%s", task.scene, traceback.format_exc().rstrip())
        message = _with_notes(err, _origin_of(err))
        return SceneOutcome(index=task.index, error=message, error_kind=UNEXPECTED)


def _with_notes(err: BaseException, message: str = "") -> str:
    """Return the message with the exception's notes, such as how many rows are kept."""
    return "; ".join([message or str(err), *getattr(err, "__notes__", ())])


def _origin_of(err: Exception) -> str:
    """`ZeroDivisionError: division by zero (job.py, line 12)`."""
    place = traceback.extract_tb(err.__traceback__)[-1]
    return f"{type(err).__name__}: {err} ({Path(place.filename).name}, line {place.lineno})"


def _place(model: TrainedModel, config: PredictConfig) -> None:
    """Load a network onto the device for all scenes, unless it is compiled."""
    from rsseg_cli.inference import Engine

    if Engine.arithmetic(config).of(Engine.architecture(model)).runtime == "torch":
        Engine.place(model.network, Engine.choose_device(config.device))
