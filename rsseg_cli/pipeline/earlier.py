"""What an earlier run left: is it the same run, and are its outputs complete or about to get their names?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rasterio
from rasterio.windows import Window

from rsseg_cli import files as files_
from rsseg_cli._version import __version__
from rsseg_cli.errors import redact
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.journal import Journal, read_journal
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.pipeline.result import AreaCounter, PredictResult, result_from_dict
from rsseg_cli.pipeline.workdir import WorkDir
from rsseg_cli.raster import gdal
from rsseg_cli.weights import TrainedModel

# settings that change none; `computed` has what device, runtime and dtype come to, `classes` what remap does
NOT_PIXELS = {
    "overwrite", "readers", "checkpoint_s", "jobs", "block_rows", "device", "runtime", "dtype", "remap",
}  # fmt: skip
LOCATIONS = {"scene", "files", "outputs", "labels", "aoi"}  # where files lie, not what is made of them
MAX_SHOWN = 4  # differences
RUN_TAG = "RSSEG_RUN"  # of the rasters: `run_sha256` of the run that made them
_log = logging.getLogger(__name__)


def finish_publication(paths: Mapping[str, Path]) -> Journal | None:
    """Give the names that a killed run of these outputs was about to give; return its journal, if any."""
    work = WorkDir(paths)
    work.sweep()
    if not work.journal.is_file():
        return None
    work.lock.acquire()
    try:
        journal = read_journal(work.journal)
        if journal is None or journal.publication is None or not work.owns(journal.publication):
            return None
        renames = [(Path(file), Path(name)) for file, name in journal.publication.renames]
        files_.finish_replacing(renames, list(map(Path, journal.publication.leftovers)), tag=work.tag)
        _log.warning("%s: published the outputs of an earlier run that was killed at that", work.output)
        work.remove()
    except (ValueError, RecursionError):  # a run that resumes warns of a damaged journal
        return None
    finally:
        work.lock.release()
    return journal


def outputs_exist(paths: Mapping[str, Path], published: Journal | None, resume: bool) -> bool:
    """Whether all outputs exist, so that a run that resumes may have nothing to do."""
    return resume and (published is not None or all(path.is_file() for path in paths.values()))


def with_run_id(job: Job, fingerprint: Mapping[str, Any]) -> Job:
    """Return the job with a tag that marks its rasters as those of this run."""
    return dataclasses.replace(job, more_tags={**job.more_tags, RUN_TAG: run_sha256(fingerprint)})


def earlier_result(
    job: Job, published: Journal | None, fingerprint: Mapping[str, Any], inputs: Sequence[str]
) -> PredictResult | None:
    """Return the result of an earlier run whose `outputs_exist`, if it is what is asked for (`with_run_id`)
    and no input has changed since.
    """
    if published is not None and published.publication is not None:
        with suppress(ValueError):
            result = result_from_dict(published.publication.result)
            return None if differences(published.fingerprint, fingerprint) else result
    if not _are_of_this_run(job, inputs):
        return None
    _log.warning("%s: is complete, by an earlier run of the same command", job.paths["labels"])
    return _counted(job)


def _are_of_this_run(job: Job, inputs: Sequence[str]) -> bool:
    written_ns = min((path.stat().st_mtime_ns for path in job.paths.values() if path.is_file()), default=0)
    if any(_changed_ns(file) > written_ns for file in inputs):
        return False
    for kind in job.layers.keys() & job.paths.keys():
        try:
            with gdal.open_raster(job.paths[kind]) as dataset:
                tags, size = dataset.tags(), (dataset.height, dataset.width)
        except rasterio.RasterioIOError:
            return False
        expected = kind, job.more_tags[RUN_TAG], (job.grid.height, job.grid.width)
        if (tags.get("RSSEG_LAYER"), tags.get(RUN_TAG), size) != expected:
            return False
    return True


def _changed_ns(file: str) -> int:
    """Return when a file's content or name was last changed; 0 for a file that is not on this machine."""
    try:
        status = os.stat(file)
    except OSError:
        return 0
    return max(status.st_mtime_ns, status.st_ctime_ns)


def _counted(job: Job) -> PredictResult:
    start = time.monotonic()
    counter = AreaCounter(job.map_spec.class_names, job.grid)
    with gdal.open_raster(job.paths["labels"]) as dataset:
        step = dataset.block_shapes[0][0]
        for row in range(0, job.grid.height, step):
            window = Window(0, row, job.grid.width, min(step, job.grid.height - row))
            counter.add(row, dataset.read(1, window=window))
    notes = (*job.notes, "was complete before; counted from the map")
    return counter.result(job.paths, start, notes)


def fingerprint(
    job: Job,
    models: Sequence[TrainedModel],
    computed: Mapping[str, Mapping[str, str]],
    refinement: Refinement | None = None,
    labels: LabelSource | None = None,
) -> dict[str, Any]:
    """Return the fingerprint of a run, in JSON types; `computed` tells device, runtime, dtype by model."""
    grid = job.grid
    marks: dict[str, Any] = {
        "rsseg": __version__,
        "computed": {name: {**how, "version": version(how["runtime"])} for name, how in computed.items()},
        "scene": _file(job.info.path),
        "files": _files([*job.info.files, *([job.config.aoi] if job.config.aoi else [])]),
        "size": [grid.height, grid.width, job.network_grid.height, job.network_grid.width],
        "georeference": [*grid.transform.to_gdal(), grid.wkt],
        "bands": [job.bands, job.info.dtypes, job.info.band_nodata, job.info.has_mask, job.info.overviews],
        "scaling": dataclasses.asdict(job.scaling),
        "model": {model.spec.name: model.sha256() for model in models},
        "settings": _settings(job.config),
        "outputs": {kind: os.path.abspath(path) for kind, path in job.paths.items()},
    }
    if job.merge:
        marks["classes"] = [job.merge, [dataclasses.astuple(item) for item in job.spec.classes]]
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
