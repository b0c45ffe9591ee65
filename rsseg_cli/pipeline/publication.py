"""Outputs of an earlier run: about to get their names when it was killed, or complete."""

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

from rsseg_cli import files as files_
from rsseg_cli.pipeline.fingerprint import differences, run_sha256
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.journal import Journal, read_journal
from rsseg_cli.pipeline.result import AreaCounter, PredictResult, result_from_dict
from rsseg_cli.pipeline.workdir import WorkDir
from rsseg_cli.raster import gdal

RUN_TAG = "RSSEG_RUN"  # of the rasters: `run_sha256` of the run that made them
_log = logging.getLogger(__name__)


def finish_publication(paths: Mapping[str, Path]) -> Journal | None:
    """Give the names that a killed run of these outputs was about to give.

    Returns:
        its journal; None where nothing was to be done.
    """
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
    return replace(job, more_tags={**job.more_tags, RUN_TAG: run_sha256(fingerprint)})


def earlier_result(
    job: Job, published: Journal | None, fingerprint: Mapping[str, Any], inputs: Sequence[str]
) -> PredictResult | None:
    """Return the result of an earlier run whose `outputs_exist`, if it is what is asked for.

    Args:
        job: `with_run_id`.
        inputs: files; none of them may have changed since.
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
    for kind in job.layers:
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
    """Return what a finished map says of itself."""
    start = time.monotonic()
    counter = AreaCounter(job.spec.class_names, job.grid)
    with gdal.open_raster(job.paths["labels"]) as dataset:
        step = dataset.block_shapes[0][0]
        for row in range(0, job.grid.height, step):
            window = Window(0, row, job.grid.width, min(step, job.grid.height - row))
            counter.add(row, dataset.read(1, window=window))
    notes = (*job.notes, "was complete before; counted from the map")
    return counter.result(job.paths, start, notes)
