"""Build a task's manifest record, and compare it with an earlier one."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from rsseg_cli._version import __version__
from rsseg_cli.batch.manifest import Record
from rsseg_cli.batch.scenes import is_remote_scene
from rsseg_cli.batch.settings import BatchSettings
from rsseg_cli.batch.task import SceneTask
from rsseg_cli.raster import gdal
from rsseg_cli.weights import read_spec, registry

# settings without effect on the outputs, and the refiner, which has a field of its own
NOT_IN_OUTPUTS = {"device", "batch_size", "overwrite", "readers", "jobs", "block_rows", "refiner"}
RESUMABLE = {
    "started": "not finished",
    "failed": "failed before",
}  # reasons to resume a scene


def provenance_of(settings: BatchSettings) -> Record:
    """Return the fields that all scenes share: program, model, refiner, settings."""
    refiner = None
    if settings.refine is not None:
        from rsseg_cli.pipeline import refinement

        named = refinement.refiner_of(read_spec(settings.model), settings.model, settings.refine)
        refiner = cast("str | os.PathLike[str]", named)  # of a batch's settings never a network
    aoi = settings.config.aoi
    return {
        "rsseg": __version__,
        "model": settings.model,
        "model_sha256": registry.file_sha256(registry.model_file(settings.model)),
        "refiner": None if refiner is None else os.fspath(refiner),
        "refiner_sha256": None if refiner is None else registry.file_sha256(registry.model_file(refiner)),
        "settings": {
            "predict": _plain(settings.config),
            "vector": _plain(settings.vector_config) if settings.vector else None,
            "refine": None if settings.refine is None else _plain(settings.refine),
            "aoi_sha256": registry.file_sha256(aoi) if aoi is not None and aoi.is_file() else None,
            "mosaic": settings.mosaic,
        },
    }


def _plain(config: Any) -> dict[str, Any]:
    """Return the fields that affect the outputs, as JSON returns them."""
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    kept = {name: value for name, value in fields.items() if name not in NOT_IN_OUTPUTS}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str, sort_keys=True))
    return plain


def record_of(task: SceneTask, shared: Record) -> Record:
    """Return the record of a task that has not started."""
    parts: list[Record] = [
        {"input": input_name(sheet.scene), **_state([sheet.scene]), "outputs": _outputs(sheet.outputs)}
        for sheet in task.sheets
    ]
    scenes = [sheet.scene for sheet in task.sheets] or files_behind(task.scene)
    own = {kind: path for kind, path in task.outputs.items() if kind not in task.work}
    sheets = {"sheets": parts} if parts else {}
    return {"input": input_name(task.scene), **_state(scenes), "outputs": _outputs(own), **sheets, **shared}


def input_name(scene: str) -> str:
    """Return the absolute path, or the URL without credentials."""
    return gdal.display_name(scene) if is_remote_scene(scene) else os.path.abspath(scene)


def files_behind(scene: str) -> list[str]:
    """Return the file, and for a VRT the files that it reads."""
    if is_remote_scene(scene) or not scene.lower().endswith(".vrt"):
        return [scene]
    from rsseg_cli.errors import SceneError
    from rsseg_cli.raster import SceneInfo

    try:
        return list(dict.fromkeys([scene, *SceneInfo.of(scene).files]))
    except SceneError:  # reported when the scene is mapped
        return [scene]


def _state(scenes: Iterable[str]) -> Record:
    """Return total bytes and latest modification (seconds since 1970) of files; None if there is none."""
    stats = []
    for scene in scenes:
        try:
            stats.append(os.stat(scene))
        except (OSError, ValueError):
            continue
    if not stats:
        return {"size": None, "modified": None}
    return {"size": sum(item.st_size for item in stats), "modified": max(item.st_mtime for item in stats)}


def _outputs(paths: Mapping[str, Path]) -> dict[str, Record]:
    return {kind: {"path": str(path.absolute())} for kind, path in paths.items()}


def with_sizes(record: Record) -> Record:
    """Add the outputs' present sizes."""
    outputs = {kind: {**item, "size": _size(item["path"])} for kind, item in record["outputs"].items()}
    sheets = {"sheets": [with_sizes(sheet) for sheet in record["sheets"]]} if "sheets" in record else {}
    return {**record, "outputs": outputs, **sheets}


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def reason_to_run(planned: Record, earlier: Record | None) -> str:
    """Return why a task must run, in a word or two; "" if it is done or outside the area, and unchanged."""
    if earlier is None:
        return "new"
    for title, keys in (
        ("scene", ("size", "modified")),
        ("model", ("model_sha256", "refiner_sha256")),
        ("settings", ("settings",)),
    ):
        if any(planned[key] != earlier.get(key) for key in keys):
            return f"{title} changed"
    sheets = earlier.get("sheets") or []
    if len(planned.get("sheets", [])) != len(sheets):
        return "sheets changed"
    pairs = [(planned, earlier), *zip(planned.get("sheets", []), sheets, strict=True)]
    if any(_state_of(own) != _state_of(other) for own, other in pairs[1:]):
        return "sheets changed"
    if earlier["status"] == "skipped":
        return ""
    if earlier["status"] != "done":
        return RESUMABLE[earlier["status"]]
    return "output missing or changed" if any(_is_lost(own, other) for own, other in pairs) else ""


def _state_of(sheet: Any) -> tuple[Any, ...]:
    return tuple(sheet.get(key) for key in ("input", "size", "modified")) if isinstance(sheet, dict) else ()


def _is_lost(planned: Record, earlier: Record) -> bool:
    """Whether an output is missing or of another size."""
    left = earlier.get("outputs")
    left = left if isinstance(left, dict) else {}
    for kind, item in planned["outputs"].items():
        other = left.get(kind)
        if not isinstance(other, dict) or other.get("path") != item["path"]:
            return True
        if other.get("size") is None or other["size"] != _size(item["path"]):
            return True
    return False
