"""Outputs that were getting their names when their run was killed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsseg_cli.config import PredictConfig
from rsseg_cli.fingerprint import differences
from rsseg_cli.journal import Journal, read_journal
from rsseg_cli.lock import OutputLock
from rsseg_cli.replace import finish_replacing
from rsseg_cli.result import PredictResult, result_from_dict
from rsseg_cli.work_place import Place, empty

_log = logging.getLogger("rsseg_cli")


def finish_publication(paths: Mapping[str, Path]) -> Journal | None:
    """Give the names that a killed run of these outputs was about to give.

    Returns:
        its journal; None where nothing was to be done.

    Raises:
        OutputError: a living run holds the outputs, or a name cannot be given.
    """
    place = Place(paths)
    if not place.journal.is_file():
        return None
    lock = OutputLock(place.folder, place.output)
    lock.acquire()
    try:
        journal = read_journal(place.journal)
        if journal is None or journal.publication is None or not place.owns(journal.publication):
            return None
        renames = [(Path(file), Path(name)) for file, name in journal.publication.renames]
        finish_replacing(renames, list(map(Path, journal.publication.leftovers)), tag=place.tag)
        _log.warning(
            "%s: an earlier run was killed while its outputs got their names; they have them now",
            place.output,
        )
        empty(place, kept=lock.files)
        lock.remove()
    except (ValueError, RecursionError):  # a damaged journal is told of where it matters
        return None
    finally:
        lock.release()
    return journal


def settled(config: PredictConfig, published: Journal | None, resume: bool) -> PredictConfig:
    """Settings to check a run with: outputs that were just given their names are in nobody's way."""
    return replace(config, overwrite=True) if resume and published is not None else config


def earlier_result(published: Journal | None, found: Mapping[str, Any], resume: bool) -> PredictResult | None:
    """The result of the run whose outputs were just given their names, if it is what is asked for."""
    if not resume or published is None or published.publication is None:
        return None
    try:
        result = result_from_dict(published.publication.result)
    except ValueError:
        return None
    return None if differences(published.fingerprint, found) else result
