"""All that decides the pixels of a run, so that only the same run is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rsseg_cli._version import __version__
from rsseg_cli.errors import redact
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.weights import TrainedModel

# settings that change none; of a device the kind does, which of several it is does not
NOT_PIXELS = {"overwrite", "readers", "jobs", "block_rows", "device"}
LOCATIONS = {"scene", "files", "outputs", "labels", "aoi"}  # where files lie, not what is made of them
MAX_SHOWN = 4  # differences


def fingerprint(
    job: Job,
    models: Sequence[TrainedModel],
    arithmetic: tuple[str, str],
    refinement: Refinement | None = None,
    labels: LabelSource | None = None,
) -> dict[str, Any]:
    """Return the fingerprint of a run, in JSON types.

    Args:
        arithmetic: kind of device and dtype with which the models run.
    """
    grid = job.grid
    marks: dict[str, Any] = {
        "rsseg": __version__,
        "torch": torch.__version__,
        "device": arithmetic[0],
        "dtype": arithmetic[1],
        "scene": _file(job.info.path),
        "files": _files([*job.info.files, *([job.config.aoi] if job.config.aoi else [])]),
        "size": [grid.height, grid.width, job.network_grid.height, job.network_grid.width],
        "georeference": [*grid.transform.to_gdal(), grid.crs.to_wkt() if grid.crs is not None else ""],
        "bands": [job.bands, job.info.dtypes, job.info.band_nodata, job.info.has_mask, job.info.overviews],
        "scaling": dataclasses.asdict(job.scaling),
        "model": {model.spec.name: model.sha256() for model in models},
        "settings": _settings(job.config),
        "outputs": {kind: os.path.abspath(path) for kind, path in job.paths.items()},
    }
    if "vector" in job.paths:
        marks["vector"] = _settings(job.vector)
    if refinement is not None:
        marks["refining"] = refinement.settings | {"scene": _file(refinement.info.path)}
    if labels is not None:
        window = {_file(labels.info.path): [*labels.window, *labels.bands]}
        marks["labels"] = window | _files(labels.info.files)
    return json.loads(json.dumps(marks, default=str))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what two fingerprints differ; "" where they are the same."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    shown = [f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in keys[:MAX_SHOWN]]
    return "; ".join(shown) + (f"; and {len(keys) - MAX_SHOWN} more" if len(keys) > MAX_SHOWN else "")


def run_sha256(marks: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a fingerprint without the locations of files, so that machines agree on it."""
    return hashlib.sha256(json.dumps(_without_locations(marks), sort_keys=True).encode()).hexdigest()


def _settings(config: Any) -> dict[str, Any]:
    fields = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_PIXELS}
    return fields | {"aoi": _file(str(fields["aoi"]))} if fields.get("aoi") else fields


def _file(path: str) -> str:
    """Return the location of a file, without the signature of an address, which changes with each call."""
    if path.startswith("/vsimem/"):
        return os.path.basename(path)
    return redact(path) if "://" in path or path.startswith("/vsi") else os.path.abspath(path)


def _files(paths: Sequence[str | Path]) -> dict[str, list[int]]:
    """Return size and modification time (ns) of files on this machine.

    Sidecars that programs write when they open a scene are left out; `bands` has what they say of it.
    """
    states = {}
    for given in paths:
        path = os.fspath(given)
        if path.endswith(".aux.xml"):
            continue
        real = next(filter(os.path.isfile, _candidates(path)), None)
        if real is not None:
            status = os.stat(real)
            states[_file(path)] = [status.st_size, status.st_mtime_ns]
    return states


def _candidates(path: str) -> Iterator[str]:
    """Yield a path and the archives that it may lie in."""
    yield path
    if path.startswith(("/vsizip/", "/vsitar/", "/vsigzip/")):
        inner = path.split("/", 2)[2]
        while inner and inner != os.path.dirname(inner):
            yield inner
            inner = os.path.dirname(inner)


def _without_locations(marks: Any) -> Any:
    if not isinstance(marks, Mapping):
        return marks
    return {key: _without_locations(value) for key, value in marks.items() if key not in LOCATIONS}


def _leaves(marks: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(marks, Mapping) and marks:
        for key, value in marks.items():
            yield from _leaves(value, f"{name} {key}".strip())
    else:
        yield name, marks


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
