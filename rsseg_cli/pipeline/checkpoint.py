"""The state of a run on disk, from which another can resume it after a kill."""

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

import msgspec
import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files as files_
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import OutputError, RssegError, SceneError
from rsseg_cli.inference import passes
from rsseg_cli.pipeline.earlier import differences
from rsseg_cli.pipeline.journal import Checkpoint, Journal, Publication, read_journal
from rsseg_cli.pipeline.view import HoleMask, Pictures
from rsseg_cli.pipeline.workdir import PUBLISHED, WorkDir
from rsseg_cli.raster import gdal

Counts = Mapping[str, int]
Rows = NDArray[np.uint8]
ENDINGS = {"preview": ("png",), "html": ("jpg", "png")}  # of files that an output is finished with
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PassState:
    """What an earlier run measured and counted beside the pixels of its rows.

    Attributes:
        batch_size: tiles a batch at the end of an earlier run, as pixels may depend on it.
        current_batch_size: set by the pass; falls where memory runs out.
        counted_before: counts of that run.
        counts: set by the pass: its counts, that run's included, of the rows above one, or of all.
        pictures, holes: see what a pass in this process reads.
    """

    batch_size: int | None = None
    current_batch_size: Callable[[], int] | None = None
    counted_before: Counts = field(default_factory=dict)
    counts: Callable[[int | None], Counts] | None = None
    pictures: Pictures | None = None
    holes: HoleMask | None = None

    def config(self, config: PredictConfig) -> PredictConfig:
        return config if self.batch_size is None else replace(config, batch_size=self.batch_size)

    def counted(self, rows: int | None = None) -> Counts:
        """Return what was counted in the rows above one, or in all."""
        return self.counted_before if self.counts is None else self.counts(rows)


class RowSink(Protocol):
    """Keeps the rows of a pass in files."""

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Take over the rows that an earlier run finished."""

    def write(self, row: int, rows: Rows) -> None:
        """Take the next rows, uint8 (layers, rows, width)."""

    def new_files(self) -> list[Path]:
        """List files that became complete since the last call."""

    def counted(self) -> tuple[list[int], list[float]]:
        """Return pixels and m2 by value in all rows so far; empty where they are not counted."""


class ResumablePass:
    """A pass whose rows go to files, from where an earlier run stopped: at tile row `first`.

    Rows that tile row i alone finishes are cuts[i] to cuts[i + 1].
    """

    def __init__(self, run: RunState, name: str, cuts: Sequence[int], sink: RowSink) -> None:
        self._run, self._name, self._sink = run, name, sink
        self._ends, self._height = set(cuts), cuts[-1]
        self.first, self.complete, self.state = 0, False, PassState()
        checkpoint = run.checkpoint(name)
        if checkpoint is not None:
            sink.resume_from(checkpoint)
            self.first = bisect_left(cuts, checkpoint.rows)
            self.complete = checkpoint.complete or self.first == len(cuts) - 1
            self.state = PassState(batch_size=run.batches.get(name), counted_before=checkpoint.counts)

    def rest(self, layers: Mapping[str, slice], progress: Callable[[int], object]) -> passes.Pass:
        return passes.Pass(layers=layers, write=self.write, progress=progress, first=self.first)

    def write(self, row: int, rows: Rows) -> None:
        """Hand rows on; make a checkpoint where they end at a cut."""
        self._sink.write(row, rows)
        if row + rows.shape[1] in self._ends:
            self._checkpoint(row + rows.shape[1])

    def finish(self) -> None:
        self._checkpoint(None)

    def _checkpoint(self, rows: int | None) -> None:
        if self.state.current_batch_size is not None:
            self._run.batches[self._name] = self.state.current_batch_size()
        pixels, areas_m2 = self._sink.counted()
        checkpoint = Checkpoint(
            rows=self._height if rows is None else rows,
            complete=rows is None,
            pixels=pixels,
            areas_m2=areas_m2,
            counts=dict(self.state.counted(rows)),
        )
        self._run.add_checkpoint(self._name, checkpoint, self._sink.new_files())


class RunState:
    """The state of a run on disk; a context manager around all that the run writes.

    Leaving it removes the work folder, unless the run had worked for `interval_s`, the time between
    checkpoints, and was ended by an error that another run may get past: then finished rows are kept.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        fingerprint: Mapping[str, Any],
        height: int,
        *,
        resume: bool,
        interval_s: float,
    ) -> None:
        self.dir = WorkDir(paths)
        self._resume, self._height, self._interval_s = resume, height, interval_s
        self._journal = Journal(fingerprint=dict(fingerprint))
        self._unsynced: dict[str, Path] = {}
        self._saved = self._resumed = False
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        existed = self.dir.folder.exists()
        try:
            self.dir.lock.acquire()
            earlier = self._earlier_journal() if existed and self._resume else None
            if earlier is not None:
                self._journal, self._saved, self._resumed = earlier, True, True
            if existed and self._clean(keep=earlier is not None) and earlier is None:
                _log.info("%s: removed temporary files of a run that had died", self.dir.output)
        except BaseException:  # an interrupt too: nobody else removes what was just made
            if self.dir.lock.held and not existed:
                self.dir.remove()
            else:
                self.dir.lock.release()
                with suppress(OSError):
                    self.dir.folder.rmdir()
            raise
        self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._is_worth_keeping(error):
            self.dir.remove()
            return
        self._clean(keep=True)
        self.dir.lock.release()
        rows = list(self._journal.passes.values())[-1].rows
        kept = f"{rows} of {self._height} rows are kept in {self.dir.folder}"
        error.add_note(f"{kept}; run the same command with --resume to continue")

    def _earlier_journal(self) -> Journal | None:
        """Read the journal to resume from, if any; warn where there is none that fits."""
        try:
            journal = read_journal(self.dir.journal)
            problem = "an earlier run left no finished rows" if journal is None else self._problem_of(journal)
        except (ValueError, RecursionError) as err:
            journal, problem = None, f"the journal of an earlier run is damaged ({err})"
        if problem:
            _log.warning("%s: %s; starting over", self.dir.output, problem)
            return None
        if journal is not None:
            journal.publication = None
        return journal

    def _problem_of(self, journal: Journal) -> str:
        changed = differences(journal.fingerprint, self._journal.fingerprint)
        if changed:
            return f"an earlier run was another one ({changed})"
        wrong = [name for name, size in journal.files.items() if _size(self.dir.folder / name) != size]
        wrong += [kind for kind in journal.finished if not self._is_there(kind)]
        return f"{wrong[0]} of an earlier run is damaged" if wrong else ""

    def _is_there(self, kind: str) -> bool:
        endings = ENDINGS.get(kind, ("tif",))
        return kind in self.dir.paths and all(self.dir.of(kind, ending).is_file() for ending in endings)

    def _clean(self, *, keep: bool) -> bool:
        """Remove files that the journal does not name, or without `keep` all but the lock; were there any?"""
        kept = set(self.dir.lock.files)
        if keep:
            kept |= {self.dir.journal, *(self.dir.folder / name for name in self._journal.files)}
            for kind in self._journal.finished:
                kept |= {self.dir.of(kind, ending) for ending in PUBLISHED}
        return self.dir.clear(kept)

    @property
    def batches(self) -> dict[str, int]:
        """Tiles a batch, by pass: measured once, as results may depend on them."""
        return self._journal.batches

    def checkpoint(self, name: str) -> Checkpoint | None:
        return self._journal.passes.get(name)

    def is_finished(self, kind: str) -> bool:
        return kind in self._journal.finished

    def add_checkpoint(self, name: str, checkpoint: Checkpoint, files: Sequence[Path]) -> None:
        """Record how far a pass has come; from time to time on disk. `checkpoint` is without its files."""
        before = self._journal.passes.get(name)
        sizes = {**(before.files if before else {}), **{file.name: file.stat().st_size for file in files}}
        self._unsynced |= {file.name: file for file in files}
        self._journal.passes[name] = msgspec.structs.replace(checkpoint, files=sizes)
        if time.monotonic() - self._last >= self._interval_s:
            self._save()

    def finish(self, kind: str) -> None:
        self._journal.finished.append(kind)
        if self._saved or time.monotonic() - self._last >= self._interval_s:
            self._save()

    def forget(self, files: Sequence[Path]) -> None:
        """Drop files that are about to be removed: what they hold is complete elsewhere."""
        gone = {file.name for file in files}
        for name, checkpoint in self._journal.passes.items():
            left = {file: size for file, size in checkpoint.files.items() if file not in gone}
            self._journal.passes[name] = msgspec.structs.replace(checkpoint, files=left)
        self._unsynced = {name: file for name, file in self._unsynced.items() if name not in gone}
        if self._saved:
            self._save()

    def publish(self, renames: Mapping[Path, Path], result: Mapping[str, Any]) -> None:
        """Give complete files their names: all, or none where one cannot be given.

        If this process is killed in between, the next run does the rest.
        """
        self._journal.publication = Publication(
            renames=[(os.path.abspath(file), os.path.abspath(path)) for file, path in renames.items()],
            leftovers=[os.path.abspath(path) for path in files_.stale(renames.values())],
            result=dict(result),
        )
        saved, since = self._saved, self._last
        self._save()
        try:
            files_.replace_all(renames, tag=self.dir.tag)
        except BaseException:
            self._journal.publication = None
            self._save()
            self._saved, self._last = saved, since  # whether it is worth keeping does not depend on this
            raise

    def _save(self) -> None:
        try:
            for file in self._unsynced.values():
                files_.sync(file)
            self._unsynced.clear()
            self._journal.save(self.dir.journal)
        except OSError as err:
            raise files_.write_error(self.dir.journal, err) from err
        self._saved, self._last = True, time.monotonic()

    def _is_worth_keeping(self, error: BaseException) -> bool:
        """Whether the same command may get further, from rows that took a while."""
        remote = gdal.is_remote(str(self._journal.fingerprint.get("scene", "")))
        passing = isinstance(error, OutputError) or (isinstance(error, SceneError) and remote)
        passing |= not isinstance(error, RssegError) or "out of memory" in str(error)
        if not passing and not self._resumed:
            return False
        late = time.monotonic() - self._last >= self._interval_s
        if self._journal.passes and (late or self._saved):
            with suppress(OutputError):  # what was saved before holds
                self._save()
        return self._saved and bool(self._journal.passes)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1
