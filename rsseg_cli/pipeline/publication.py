"""Outputs of an earlier run: that were getting their names when it was killed, or that are complete."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import rasterio
from rasterio.windows import Window

from rsseg_cli import files
from rsseg_cli.pipeline.fingerprint import differences, run_sha256
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.journal import Journal, read_journal
from rsseg_cli.pipeline.result import AreaCounter, PredictResult, result_from_dict
from rsseg_cli.pipeline.workdir import OutputLock, Place, discard, remove, rubbish_of
from rsseg_cli.raster import gdal

RUN_TAG = "RSSEG_RUN"  # of the rasters: `run_sha256` of the run that made them
_log = logging.getLogger("rsseg_cli")


def finish_publication(paths: Mapping[str, Path]) -> Journal | None:
    """Give the names that a killed run of these outputs was about to give.

    Returns:
        its journal; None where nothing was to be done.

    Raises:
        OutputError: a living run holds the outputs, or a name cannot be given.
    """
    place = Place(paths)
    discard(rubbish_of(place.folder))
    if not place.journal.is_file():
        return None
    lock = OutputLock(place.folder, place.output)
    lock.acquire()
    try:
        journal = read_journal(place.journal)
        if journal is None or journal.publication is None or not place.owns(journal.publication):
            return None
        renames = [(Path(file), Path(name)) for file, name in journal.publication.renames]
        files.finish_replacing(renames, list(map(Path, journal.publication.leftovers)), tag=place.tag)
        _log.warning(
            "%s: an earlier run was killed while its outputs got their names; they have them now",
            place.output,
        )
        remove(place, lock)
    except (ValueError, RecursionError):  # a damaged journal is told of where it matters
        return None
    finally:
        lock.release()
    return journal


def stand(paths: Mapping[str, Path], published: Journal | None, resume: bool) -> bool:
    """Whether the outputs are all there, so that a run that resumes may have nothing to do."""
    return resume and (published is not None or all(path.is_file() for path in paths.values()))


def tagged(job: Job, found: Mapping[str, Any]) -> Job:
    """The job, whose rasters say which run they are of."""
    return replace(job, more_tags={**job.more_tags, RUN_TAG: run_sha256(found)})


def earlier_result(
    job: Job, published: Journal | None, found: Mapping[str, Any], inputs: Sequence[str]
) -> PredictResult | None:
    """The result of an earlier run whose outputs `stand`, if it is what is asked for.

    Args:
        job: `tagged`.
        found: the fingerprint.
        inputs: files; none of them may have changed since.
    """
    if published is not None and published.publication is not None:
        with suppress(ValueError):
            result = result_from_dict(published.publication.result)
            return None if differences(published.fingerprint, found) else result
    if not _are_of_this_run(job, inputs):
        return None
    _log.warning("%s: is complete, by an earlier run of the same command", job.paths["labels"])
    return _counted(job)


def _are_of_this_run(job: Job, inputs: Sequence[str]) -> bool:
    written_ns = min((path.stat().st_mtime_ns for path in job.paths.values() if path.is_file()), default=0)
    if any(_changed_ns(file) > written_ns for file in inputs):
        return False
    for kind in job.layers:
        try:
            with gdal.open_raster(job.paths[kind]) as dataset:
                tags, size = dataset.tags(), (dataset.height, dataset.width)
        except rasterio.RasterioIOError:
            return False
        if tags.get("RSSEG_LAYER") != kind or tags.get(RUN_TAG) != job.more_tags[RUN_TAG]:
            return False
        if size != (job.grid.height, job.grid.width):
            return False
    return True


def _changed_ns(file: str) -> int:
    """When a file's content or name was last changed; 0 for what lies elsewhere."""
    try:
        status = os.stat(file)
    except OSError:
        return 0
    return max(status.st_mtime_ns, status.st_ctime_ns)


def _counted(job: Job) -> PredictResult:
    """What can be told of a map that is there."""
    begin = time.monotonic()
    grid = job.grid
    counter = AreaCounter(job.spec.class_names, grid.row_areas_m2())
    with gdal.open_raster(job.paths["labels"]) as dataset:
        step = dataset.block_shapes[0][0]
        for row in range(0, grid.height, step):
            window = Window(0, row, grid.width, min(step, grid.height - row))
            counter.add(row, dataset.read(1, window=window))
    return PredictResult(
        paths=dict(job.paths),
        seconds=time.monotonic() - begin,
        pixels=grid.width * grid.height,
        valid_pixels=counter.valid_pixels,
        classes=counter.classes(),
        notes=(*job.notes, "was complete before; counted from the map"),
    )
