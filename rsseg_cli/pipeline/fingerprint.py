"""All that decides the pixels of a run, so that only the same run is gone on with."""

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
from rsseg_cli.inference import choose_device
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.weights import TrainedModel

# settings that change none; of a device the kind does, which of several it is does not
NOT_PIXELS = {"overwrite", "readers", "jobs", "block_rows", "device"}
PLACES = {"scene", "files", "outputs", "labels", "aoi"}  # what says where files lie, not what is made of them
SHOWN = 4  # differences that are told


def fingerprint(
    job: Job,
    models: Sequence[TrainedModel],
    refinement: Refinement | None = None,
    labels: LabelSource | None = None,
) -> dict[str, Any]:
    """In types that JSON has.

    Args:
        models: that are run.
        labels: the map that is refined.
    """
    grid = job.grid
    found: dict[str, Any] = {
        "rsseg": __version__,
        "torch": torch.__version__,
        "device": choose_device(job.config.device).type,
        "scene": _file(job.info.path),
        "files": _files([*job.info.files, *([job.config.aoi] if job.config.aoi else [])]),
        "size": [grid.height, grid.width, job.network_grid.height, job.network_grid.width],
        "place": [*grid.transform.to_gdal(), grid.crs.to_wkt() if grid.crs is not None else ""],
        "bands": [job.bands, job.info.dtypes, job.info.band_nodata, job.info.has_mask, job.info.overviews],
        "scaling": dataclasses.asdict(job.scaling),
        "model": {model.spec.name: weights_sha256(model) for model in models},
        "settings": _settings(job.config),
        "outputs": {kind: os.path.abspath(path) for kind, path in job.paths.items()},
    }
    if "vector" in job.paths:
        found["vector"] = _settings(job.vector)
    if refinement is not None:
        found["refining"] = refinement.settings | {"scene": _file(refinement.info.path)}
    if labels is not None:
        found["labels"] = {_file(labels.info.path): [*labels.window, *labels.bands]} | _files(
            labels.info.files
        )
    return json.loads(json.dumps(found, default=str))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two fingerprints differ in, in words; "" where they are the same."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    told = [f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in keys[:SHOWN]]
    return "; ".join(told) + (f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def run_sha256(found: Mapping[str, Any]) -> str:
    """SHA-256 of a fingerprint but for where files lie, so that it is the same on any machine."""
    return hashlib.sha256(json.dumps(_without_places(found), sort_keys=True).encode()).hexdigest()


def weights_sha256(model: TrainedModel) -> str:
    """SHA-256 over what a model says of itself and its weights, by name; 20 ms for 7 MB."""
    digest = hashlib.sha256(repr(model.spec).encode())
    for name, values in sorted(model.network.state_dict().items()):
        digest.update(f"{type(model.network).__name__} {name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings(config: Any) -> dict[str, Any]:
    found = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_PIXELS}
    return found | {"aoi": _file(str(found["aoi"]))} if found.get("aoi") else found


def _file(path: str) -> str:
    """Where a file lies; of an address without what changes from call to call, as signatures do."""
    if path.startswith("/vsimem/"):
        return os.path.basename(path)
    return redact(path) if "://" in path or path.startswith("/vsi") else os.path.abspath(path)


def _files(paths: Sequence[str | Path]) -> dict[str, list[int]]:
    """Size and modification time (ns) of files on this machine.

    Sidecars that programs write when they look at a scene are left out; what they say of it is in `bands`.
    """
    found = {}
    for given in paths:
        path = os.fspath(given)
        if path.endswith(".aux.xml"):
            continue
        real = next(filter(os.path.isfile, _candidates(path)), None)
        if real is not None:
            status = os.stat(real)
            found[_file(path)] = [status.st_size, status.st_mtime_ns]
    return found


def _candidates(path: str) -> Iterator[str]:
    """A path, and the archives that it may lie in."""
    yield path
    if path.startswith(("/vsizip/", "/vsitar/", "/vsigzip/")):
        inner = path.split("/", 2)[2]
        while inner and inner != os.path.dirname(inner):
            yield inner
            inner = os.path.dirname(inner)


def _without_places(found: Any) -> Any:
    if not isinstance(found, Mapping):
        return found
    return {key: _without_places(value) for key, value in found.items() if key not in PLACES}


def _leaves(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping) and found:
        for key, value in found.items():
            yield from _leaves(value, f"{name} {key}".strip())
    else:
        yield name, found


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
