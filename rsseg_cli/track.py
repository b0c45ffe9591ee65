"""A pass over the rows of a map that notes how far it has come, and goes on where an earlier run stopped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.config import PredictConfig
from rsseg_cli.journal import Passed
from rsseg_cli.work_folder import WorkFolder

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
