"""Run a batch: every scene succeeds or fails by itself, and the manifest records it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rsseg_cli.batch.manifest import (
    RESUMABLE,
    Manifest,
    Record,
    provenance_of,
    reason_to_run,
    record_of,
    with_sizes,
)
from rsseg_cli.batch.plan import (
    all_outputs,
    check_existing,
    check_model,
    make_folders,
    plan_tasks,
    with_common_stretch,
)
from rsseg_cli.batch.plan import make_folder as make_folder
from rsseg_cli.batch.scenes import BatchScene
from rsseg_cli.batch.settings import BatchSettings
from rsseg_cli.batch.task import Engine, SceneOutcome, SceneTask, with_overwrite
from rsseg_cli.errors import OutputError, OutsideError
from rsseg_cli.files import address_of
from rsseg_cli.pipeline import OutputLock
from rsseg_cli.raster import gdal

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
BEFORE, EXISTING, OUTSIDE = "done before", "already there", "outside the area"  # why a scene is skipped
# of a report, in the manifest
RESULT_FIELDS = (
    "seconds", "pixels", "valid_pixels", "classes", "notes", "refined", "unlike", "computed", "reason",
    "error", "error_kind",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """Status of one scene (path, URL without credentials, or VRT); `details` is `PredictResult.as_dict`."""

    scene: str
    status: str
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    error_kind: str = ""
    sheets: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        more = {"error": self.error, "error_kind": self.error_kind} if self.status == FAILED else {}
        more |= {"reason": self.reason} if self.reason else {}
        sheets = {"sheets": list(self.sheets)} if self.sheets else {}
        return {"input": self.scene, "status": self.status, **self.details, **more, **sheets}


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """A finished batch; reports are in the order of the scenes."""

    manifest: Path
    reports: tuple[SceneReport, ...]
    seconds: float

    def count(self, status: str) -> int:
        return sum(report.status == status for report in self.reports)

    def as_dict(self) -> dict[str, Any]:
        return {
            "manifest": str(self.manifest),
            "scenes": len(self.reports),
            **{status: self.count(status) for status in (DONE, FAILED, SKIPPED)},
            "seconds": round(self.seconds, 3),
            "results": [report.as_dict() for report in self.reports],
        }


class BatchCallback(Protocol):
    """Receives the progress of a batch."""

    def on_start(self, scenes: Mapping[int, str], skipped: int) -> None:
        """Work starts on these scenes, by task index."""

    def on_tiles(self, task: int, done: int, total: int) -> None:
        """Progress of a running task."""

    def on_scene_end(self, task: int, report: SceneReport) -> None:
        """A task has ended."""


def run_batch(
    scenes: Sequence[BatchScene],
    settings: BatchSettings,
    engine: Engine,
    callback: BatchCallback | None = None,
) -> BatchResult:
    """Map many scenes. A scene that fails is recorded, and the others continue.

    After an interrupt the manifest says what is done; `resume` continues from there.

    Raises:
        RssegError: the batch as a whole cannot run.
        OutsideError: all scenes lie outside the requested area.
    """
    start = time.monotonic()
    model_name = check_model(settings)
    settings = with_common_stretch(settings, scenes)
    make_folder(settings.folder)
    if settings.mosaic:
        from rsseg_cli.batch.mosaic import plan_mosaics

        tasks = plan_mosaics(scenes, settings, model_name)
    else:
        tasks = plan_tasks(scenes, settings, model_name)
    path = settings.manifest_path
    with locked(path), Manifest(path) as manifest:
        reports = _Batch(tasks, settings, manifest).run(engine, callback)
    if reports and all(report.reason == OUTSIDE for report in reports):
        notes = [str(note) for note in reports[0].details.get("notes", ())]
        raise OutsideError("; ".join([*notes, f"all {len(reports)} scenes lie outside"]))
    return BatchResult(manifest=path, reports=reports, seconds=time.monotonic() - start)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a manifest: one batch at a time."""
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist. Make {path.parent} first.")
    lock = OutputLock(path.with_name(f".{path.name}.rsseg"), path)
    lock.acquire()
    try:
        yield
    finally:
        lock.remove()


class _Batch:
    """Passes tasks to an engine and records their outcomes in the manifest."""

    def __init__(self, tasks: Sequence[SceneTask], settings: BatchSettings, manifest: Manifest) -> None:
        shared = provenance_of(settings)
        self._manifest = manifest
        self._records = {task.index: record_of(task, shared) for task in tasks}
        earlier = {index: manifest.records.get(record["input"]) for index, record in self._records.items()}
        self._reports: dict[int, SceneReport] = {}
        self._resumed: set[int] = set()
        if settings.resume:
            self._resume(earlier)
        if settings.skip_existing:
            self._skip_existing(tasks)
        todo = [task for task in tasks if task.index not in self._reports]
        known = {
            index
            for index, record in earlier.items()
            if settings.resume and record is not None and record["status"] != SKIPPED
        }
        check_existing(todo, known)
        make_folders(todo)
        self._todo = [
            with_overwrite(task, resume=task.index in self._resumed) if task.index in known else task
            for task in todo
        ]

    def _resume(self, earlier: dict[int, Record | None]) -> None:
        """Skip what is done, and log why the rest is not."""
        reasons: Counter[str] = Counter()
        for index, record in self._records.items():
            before = earlier[index]
            reason = reason_to_run(record, before)
            if reason or before is None:
                reasons[reason] += 1
                if reason in RESUMABLE.values():
                    self._resumed.add(index)
            else:
                self._reports[index] = _earlier_report(before)
        summary = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        _log.info("%d of %d done before; to do: %s", len(self._reports), len(earlier), summary or "none")

    def _skip_existing(self, tasks: Sequence[SceneTask]) -> None:
        for task in tasks:
            if all(gdal.size_of(path) is not None for path in all_outputs(task)):
                scene = self._records[task.index]["input"]
                paths = {
                    kind: address_of(path) or str(path)
                    for kind, path in task.outputs.items()
                    if kind not in task.work
                }
                self._reports[task.index] = SceneReport(
                    scene=scene, status=SKIPPED, reason=EXISTING, details={"paths": paths}
                )

    def run(self, engine: Engine, callback: BatchCallback | None) -> tuple[SceneReport, ...]:
        """Run the remaining tasks; return the reports of all scenes, in their order."""
        if callback is not None:
            scenes = {task.index: self._records[task.index]["input"] for task in self._todo}
            callback.on_start(scenes, len(self._reports))
        if self._todo:
            on_tiles = callback.on_tiles if callback is not None else None
            with closing(engine.run(self._started(), on_tiles)) as outcomes:
                for outcome in outcomes:
                    report = self._finish(outcome)
                    if callback is not None:
                        callback.on_scene_end(outcome.index, report)
        return tuple(self._reports[index] for index in sorted(self._records))

    def _started(self) -> Iterator[SceneTask]:
        """Record each task as it starts, so that its outputs are known to be this batch's."""
        for task in self._todo:
            self._manifest.add({**self._records[task.index], "status": "started"})
            yield task

    def _finish(self, outcome: SceneOutcome) -> SceneReport:
        record = self._records[outcome.index]
        report = _report(record, outcome)
        if report.status == DONE:
            record = with_sizes(record)
        if report.sheets:
            pairs = zip(record["sheets"], report.sheets, strict=True)
            record["sheets"] = [{**sheet, **_chosen(result, RESULT_FIELDS[1:])} for sheet, result in pairs]
        self._manifest.add({**record, **_chosen(report.as_dict()), "status": report.status})
        self._reports[outcome.index] = report
        return report


def _report(record: Record, outcome: SceneOutcome) -> SceneReport:
    scene = record["input"]
    if outcome.error_kind == OutsideError.__name__:
        return SceneReport(scene=scene, status=SKIPPED, reason=OUTSIDE, details={"notes": [outcome.error]})
    if outcome.result is None:
        return SceneReport(scene=scene, status=FAILED, error=outcome.error, error_kind=outcome.error_kind)
    sheets = tuple(
        {"input": sheet["input"], **result.as_dict()}
        for sheet, result in zip(record.get("sheets", ()), outcome.sheets, strict=True)
    )
    return SceneReport(scene=scene, status=DONE, details=outcome.result.as_dict(), sheets=sheets)


def _earlier_report(record: Record) -> SceneReport:
    details = _chosen(record)
    if record["status"] == SKIPPED:
        return SceneReport(scene=record["input"], status=SKIPPED, reason=OUTSIDE, details=details)
    return SceneReport(
        scene=record["input"],
        status=SKIPPED,
        reason=BEFORE,
        details={"paths": _paths(record), **details},
        sheets=tuple(
            {"input": sheet["input"], "paths": _paths(sheet), **_chosen(sheet)}
            for sheet in record.get("sheets", ())
        ),
    )


def _paths(record: Record) -> dict[str, str]:
    return {kind: item["path"] for kind, item in record["outputs"].items()}


def _chosen(record: Record, fields: Sequence[str] = RESULT_FIELDS) -> Record:
    return {key: record[key] for key in fields if key in record}
