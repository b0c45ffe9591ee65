"""What a run keeps on disk of its state, so that another can go on after a kill."""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import OutputError, RssegError, SceneError
from rsseg_cli.inference import Pass
from rsseg_cli.pipeline.fingerprint import differences
from rsseg_cli.pipeline.journal import Journal, Passed, Publication, read_journal
from rsseg_cli.pipeline.workdir import PUBLISHED, OutputLock, Place, empty, remove
from rsseg_cli.raster import gdal

Extremes = Mapping[int, Sequence[int]]
Rows = NDArray[np.uint8]


@dataclass(kw_only=True)
class Track:
    """What a pass counts beside the pixels of its rows.

    Attributes:
        batch_size: tiles a batch that an earlier run measured, as pixels may depend on it; set by the pass.
        extremes: `SceneReader.extreme_counts` of an earlier run.
        refined: counts of refining by an earlier run, by name.
        counts: both, that run's included, of the rows above one, or of all once the pass is through; set by
            the pass.
    """

    batch_size: int | None = None
    extremes: Extremes = field(default_factory=dict)
    refined: Mapping[str, int] = field(default_factory=dict)
    counts: Callable[[int | None], tuple[Extremes, Mapping[str, int]]] | None = None

    def config(self, config: PredictConfig) -> PredictConfig:
        """The settings, with the batch size that was measured before."""
        return config if self.batch_size is None else replace(config, batch_size=self.batch_size)


class RowTaker(Protocol):
    """Keeps the rows of a pass in files."""

    def adopt(self, passed: Passed) -> None:
        """Take over the rows that an earlier run finished."""

    def write(self, row: int, rows: Rows) -> None:
        """Take the next rows, uint8 (layers, rows, width)."""

    def new_files(self) -> list[Path]:
        """Files that became complete since the last call."""

    def counted(self) -> tuple[Sequence[int], Sequence[float]]:
        """Pixels and m2 by value in all rows so far; empty where they are not counted."""


class TrackedPass:
    """Rows on their way to files, from where an earlier run stopped.

    Args:
        work: where the state is noted.
        name: of the pass there.
        cuts: rows that tile row i alone finishes are cuts[i] to cuts[i + 1].
        taker: of the rows.

    Attributes:
        first: tile row to begin with: the first that finished none of the rows that are there.
        complete: the earlier run was through.
    """

    def __init__(self, work: WorkFolder, name: str, cuts: Sequence[int], taker: RowTaker) -> None:
        self._work, self._name, self._taker = work, name, taker
        self._ends, self._height = set(cuts), cuts[-1]
        self.first, self.complete, self.track = 0, False, Track()
        passed = work.passed(name)
        if passed is not None:
            taker.adopt(passed)
            self.first = bisect_left(cuts, passed.rows)
            self.complete = passed.complete or self.first == len(cuts) - 1
            batch_size = work.batches.get(name)
            self.track = Track(batch_size=batch_size, extremes=passed.extremes, refined=passed.refined)

    def pass_over(self, layers: Mapping[str, slice], progress: Callable[[int], object]) -> Pass:
        """What is left of the pass."""
        return Pass(layers=layers, write=self.write, progress=progress, first=self.first)

    def write(self, row: int, rows: Rows) -> None:
        """Hand rows on; where they end at a cut, note it."""
        self._taker.write(row, rows)
        if row + rows.shape[1] in self._ends:
            self._note(row + rows.shape[1])

    def finish(self) -> None:
        """Note that the pass is through."""
        self._note(None)

    def counts(self, rows: int | None = None) -> tuple[Extremes, Mapping[str, int]]:
        """What was counted in the rows above one, or in all."""
        if self.track.counts is None:
            return self.track.extremes, self.track.refined
        return self.track.counts(rows)

    def _note(self, rows: int | None) -> None:
        if self.track.batch_size is not None:
            self._work.batches[self._name] = self.track.batch_size
        extremes, refined = self.counts(rows)
        pixels, areas_m2 = self._taker.counted()
        passed = Passed(
            rows=self._height if rows is None else rows,
            complete=rows is None,
            pixels=pixels,
            areas_m2=areas_m2,
            extremes=extremes,
            refined=refined,
        )
        self._work.checkpoint(self._name, passed, self._taker.new_files())


CHECKPOINT_S = 5.0  # at least, between two; shorter runs are not worth going on with
_log = logging.getLogger("rsseg_cli")


class WorkFolder:
    """What a run keeps on disk of its state; a context manager around all that it writes.

    Leaving it removes the folder, unless an error ended the run that another one may get past, and it had
    worked for a while: then finished rows are kept.

    Args:
        paths: outputs by kind.
        fingerprint: all that decides the pixels.
        height: rows of the map.
        resume: go on where an earlier run of the same fingerprint stopped.

    Raises:
        OutputError: another run holds the outputs.
    """

    def __init__(
        self, paths: Mapping[str, Path], fingerprint: Mapping[str, Any], height: int, *, resume: bool
    ) -> None:
        self.place = Place(paths)
        self._lock = OutputLock(self.place.folder, self.place.output)
        self._resume, self._height = resume, height
        self._journal = Journal(fingerprint=dict(fingerprint))
        self._unsynced: dict[str, Path] = {}
        self._saved = self._resumed = False
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        there = self.place.folder.exists()
        self._lock.acquire()
        try:
            if there:
                found = self._found()
                if found is not None:
                    self._journal, self._saved, self._resumed = found, True, True
                if self._clean(keep=found is not None) and found is None:
                    _log.info("%s: removed what a run that had died left beside it", self.place.output)
        except BaseException:
            self._lock.release()
            raise
        self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._is_worth_keeping(error):
            remove(self.place, self._lock)
            return
        self._clean(keep=True)
        self._lock.release()
        error.add_note(self._how_to_go_on())

    # --- what an earlier run left

    def _found(self) -> Journal | None:
        """The journal of an earlier run that is gone on with."""
        output = self.place.output
        if not self._resume:
            return None
        try:
            journal = read_journal(self.place.journal)
            changed = differences({} if journal is None else journal.fingerprint, self._journal.fingerprint)
        except (ValueError, RecursionError) as err:
            _log.warning("%s: the journal of an earlier run is damaged (%s); begins anew", output, err)
            return None
        if journal is None:
            _log.warning("%s: an earlier run left no finished rows; begins anew", output)
            return None
        if changed:
            _log.warning("%s: an earlier run was another one (%s); begins anew", output, changed)
            return None
        wrong = [name for name, size in journal.files.items() if _size(self.place.folder / name) != size]
        missing = [kind for kind in journal.finished if not self._is_finished(kind)]
        if wrong or missing:
            _log.warning("%s: %s of an earlier run is damaged; begins anew", output, (wrong + missing)[0])
            return None
        journal.publication = None
        return journal

    def _is_finished(self, kind: str) -> bool:
        ending = "png" if kind == "preview" else "tif"
        return kind in self.place.paths and self.place.of(kind, ending).is_file()

    def _clean(self, *, keep: bool) -> bool:
        """Remove what the journal does not count on; with `keep` False all but the lock. Was there any?"""
        place = self.place
        kept = set(self._lock.files)
        if keep:
            kept |= {place.journal, *(place.folder / name for name in self._journal.files)}
            for kind in self._journal.finished:
                kept |= {place.of(kind, ending) for ending in PUBLISHED}
        return empty(place, kept)

    # --- the state

    @property
    def batches(self) -> dict[str, int]:
        """Tiles a batch, by pass: measured once, as results may depend on them."""
        return self._journal.batches

    def passed(self, name: str) -> Passed | None:
        """How far an earlier run's pass came."""
        return self._journal.passes.get(name)

    def is_finished(self, kind: str) -> bool:
        return kind in self._journal.finished

    def checkpoint(self, name: str, passed: Passed, files: Sequence[Path]) -> None:
        """Note how far a pass has come; from time to time on disk.

        Args:
            files: complete since the last call; sizes are filled in.

        Raises:
            OutputError: the disk is full.
        """
        before = self._journal.passes.get(name)
        sizes = {**(before.files if before else {}), **{file.name: file.stat().st_size for file in files}}
        self._unsynced |= {file.name: file for file in files}
        self._journal.passes[name] = replace(passed, files=sizes)
        if time.monotonic() - self._last >= CHECKPOINT_S:
            self._save()

    def finish(self, kind: str) -> None:
        """Note that an output is complete under its temporary name."""
        self._journal.finished.append(kind)
        if self._saved or time.monotonic() - self._last >= CHECKPOINT_S:
            self._save()

    def forget(self, files: Sequence[Path]) -> None:
        """Files are about to be removed: what they held is complete elsewhere."""
        gone = {file.name for file in files}
        for name, passed in self._journal.passes.items():
            left = {file: size for file, size in passed.files.items() if file not in gone}
            self._journal.passes[name] = replace(passed, files=left)
        self._unsynced = {name: file for name, file in self._unsynced.items() if name not in gone}
        if self._saved:
            self._save()

    def publish(
        self, renames: Mapping[Path, Path], leftovers: Sequence[Path], result: Mapping[str, Any]
    ) -> None:
        """Give complete files their names: all, or none where one cannot be given.

        If it is killed in between the next run does the rest.

        Raises:
            OutputError: a name cannot be given.
        """
        self._journal.publication = Publication(
            renames=[(os.path.abspath(file), os.path.abspath(path)) for file, path in renames.items()],
            leftovers=[os.path.abspath(path) for path in leftovers],
            result=result,
        )
        saved, since = self._saved, self._last
        self._save()
        try:
            files.replace_all(renames, leftovers, tag=self.place.tag)
        except BaseException:
            self._journal.publication = None
            self._save()
            self._saved, self._last = saved, since  # whether it is worth keeping does not depend on this
            raise

    def _save(self) -> None:
        try:
            for file in self._unsynced.values():
                files.sync(file)
            self._unsynced.clear()
            self._journal.save(self.place.journal)
        except OSError as err:
            raise OutputError(f"{self.place.journal}: cannot be written ({err}). Is the disk full?") from err
        self._saved, self._last = True, time.monotonic()

    # --- the end of a run that failed

    def _is_worth_keeping(self, error: BaseException) -> bool:
        """Whether the same command may get further, from rows that took a while."""
        remote = gdal.is_remote(str(self._journal.fingerprint.get("scene", "")))
        passing = isinstance(error, OutputError) or (isinstance(error, SceneError) and remote)
        passing |= not isinstance(error, RssegError) or "out of memory" in str(error)
        if not passing and not self._resumed:
            return False
        late = time.monotonic() - self._last >= CHECKPOINT_S
        if self._journal.passes and (late or self._saved):
            with suppress(OutputError):  # what was saved before holds
                self._save()
        return self._saved and bool(self._journal.passes)

    def _how_to_go_on(self) -> str:
        rows = list(self._journal.passes.values())[-1].rows
        kept = f"{rows} of {self._height} rows are kept in {self.place.folder}"
        return f"{kept}; run the same command with --resume to go on"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1
