"""The manifest of a batch: one JSON line a scene, with its inputs, settings and status.

Lines are only appended, each in one write that is on disk before work continues: a killed batch loses at most
the line it was writing. The last line of a scene counts. A file beside the manifest reserves space for it;
on a full disk it shrinks, so that failures for lack of space can be recorded.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, cast

import msgspec

from rsseg_cli._version import __version__
from rsseg_cli.batch.scenes import is_gdal_name
from rsseg_cli.batch.settings import BatchSettings
from rsseg_cli.batch.task import SceneTask
from rsseg_cli.errors import DataError, OutputError, SceneError
from rsseg_cli.files import check_regular, location_of
from rsseg_cli.raster import SceneInfo, gdal
from rsseg_cli.weights import read_spec, registry

MAX_LINE_BYTES = 64 * 2**20  # a mosaic of 100,000 sheets
RESERVE_BYTES = 2**20  # some 200 scenes that fail
RESERVE_STEP = 2**12  # by which it shrinks: what is given back may be taken by others
# settings without effect on the outputs, and the refiner, which has a field of its own
NOT_IN_OUTPUTS = {
    "device", "batch_size", "overwrite", "readers", "checkpoint_s", "jobs", "block_rows", "refiner",
}  # fmt: skip
# settings that manifests of earlier versions lack, and what they were
LATER = {
    "remap": None, "min_confidence": 0.0, "unsure": "nodata", "regularize": False, "max_shift_m": 0.0,
    "regularize_classes": None,
}  # fmt: skip
RESUMABLE = {"started": "not finished", "failed": "failed before"}  # reasons to resume a scene

Record = dict[str, Any]


class Entry(msgspec.Struct):
    """What every record of a manifest has."""

    input: str
    status: Literal["started", "done", "failed", "skipped"]
    outputs: dict[str, Any] = {}


class Manifest:
    """Appends records to a file; a context manager that closes it.

    The file is created if needed; an incomplete last line is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular(path)
        self.records, whole_bytes = _read(path) if path.exists() else ({}, 0)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, whole_bytes)
        except OSError as err:
            raise OutputError(f"{path}: the manifest cannot be written ({err.strerror})") from err
        self._reserve = path.with_name(f".{path.name}.reserve")
        try:
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))  # some disks store zeros as nothing
        except OSError:  # a disk that has no such room leaves all of it to the maps
            self._drop_reserve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._drop_reserve()

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record and flush it to disk. On OutputError the file is unchanged."""
        stamped = {**record, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(stamped, ensure_ascii=True).encode() + b"\n"
        while not self._append(line):
            pass
        self.records[stamped["input"]] = stamped

    def _append(self, line: bytes) -> bool:
        """Try to write a line; False if another try may find more space."""
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as err:
            os.ftruncate(self._file, before)
            if err.errno in (errno.ENOSPC, errno.EDQUOT) and self._give_room(len(line)):
                return False
            raise OutputError(f"{self.path}: the manifest cannot be written ({err.strerror})") from err
        return True

    def _drop_reserve(self) -> None:
        with suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    def _give_room(self, size: int) -> bool:
        """Shrink the reserve; False if it is empty."""
        with suppress(OSError):
            left = self._reserve.stat().st_size
            os.truncate(self._reserve, max(0, left - max(size, RESERVE_STEP)))
            return left > 0
        return False


def read_manifest(path: Path) -> dict[str, Record]:
    """Read the last record of each input; an incomplete last line is ignored."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Record], int]:
    """Return the last record of each input, and the bytes of all whole lines."""
    records: dict[str, Record] = {}
    size = number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > MAX_LINE_BYTES or line.strip(b"\0")[:1] not in (b"", b"{"):
                        raise _no_manifest(path, number)
                    break  # cut off while it was written
                record = _record(line, path, number)
                records[record["input"]] = record
                size += len(line)
    except OSError as err:
        raise DataError(f"{path}: the manifest cannot be read ({err.strerror})") from err
    return records, size


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        record: Record = json.loads(line)
        msgspec.convert(record, Entry)
    except (ValueError, RecursionError) as err:
        raise _no_manifest(path, number) from err
    return record


def _no_manifest(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}: line {number} is not a record of a batch; needs a manifest that rsseg wrote, or a new name"
    )


def provenance_of(settings: BatchSettings) -> Record:
    """Return the fields that all scenes share: program, model, refiner, settings."""
    refiner = None
    if settings.refine is not None:
        from rsseg_cli.pipeline import refinement

        named = refinement.refiner_of(read_spec(settings.model), settings.model, settings.refine)
        refiner = cast("str | os.PathLike[str]", named)  # of a batch's settings never a network
    aoi, remap = settings.config.aoi, settings.config.remap
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
            **({"remap_sha256": registry.file_sha256(remap)} if remap is not None else {}),
        },
    }


def _plain(config: Any) -> dict[str, Any]:
    """Return the fields that affect the outputs, as JSON returns them."""
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    given = {name: value for name, value in fields.items() if name not in LATER or value != LATER[name]}
    kept = {name: value for name, value in given.items() if name not in NOT_IN_OUTPUTS}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str, sort_keys=True))
    return plain


def record_of(task: SceneTask, shared: Record) -> Record:
    parts: list[Record] = [
        {"input": input_name(sheet.scene), **_state([sheet.scene]), "outputs": _outputs(sheet.outputs)}
        for sheet in task.sheets
    ]
    scenes = [sheet.scene for sheet in task.sheets] or files_behind(task.scene)
    own = {kind: path for kind, path in task.outputs.items() if kind not in task.work}
    sheets = {"sheets": parts} if parts else {}
    return {"input": input_name(task.scene), **_state(scenes), "outputs": _outputs(own), **sheets, **shared}


def input_name(scene: str) -> str:
    return gdal.display_name(scene) if is_gdal_name(scene) else os.path.abspath(scene)


def files_behind(scene: str) -> list[str]:
    """Return the file, and for a VRT the files that it reads."""
    if is_gdal_name(scene) or not scene.lower().endswith(".vrt"):
        return [scene]
    with suppress(SceneError):  # reported when the scene is mapped
        return list(dict.fromkeys([scene, *SceneInfo.of(scene).files]))
    return [scene]


def _state(scenes: Iterable[str]) -> Record:
    """Return total bytes and latest modification (seconds since 1970) of files; None if there is none."""
    stats = []
    for scene in scenes:
        with suppress(OSError, ValueError):
            stats.append(os.stat(scene))
    if not stats:
        return {"size": None, "modified": None}
    return {"size": sum(item.st_size for item in stats), "modified": max(item.st_mtime for item in stats)}


def _outputs(paths: Mapping[str, Path]) -> dict[str, Record]:
    return {kind: {"path": location_of(path)} for kind, path in paths.items()}


def with_sizes(record: Record) -> Record:
    outputs = {kind: {**item, "size": gdal.size_of(item["path"])} for kind, item in record["outputs"].items()}
    sheets = {"sheets": [with_sizes(sheet) for sheet in record["sheets"]]} if "sheets" in record else {}
    return {**record, "outputs": outputs, **sheets}


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
    left = earlier.get("outputs")
    left = left if isinstance(left, dict) else {}
    for kind, item in planned["outputs"].items():
        other = left.get(kind)
        if not isinstance(other, dict) or other.get("path") != item["path"]:
            return True
        if other.get("size") is None or other["size"] != gdal.size_of(item["path"]):
            return True
    return False
