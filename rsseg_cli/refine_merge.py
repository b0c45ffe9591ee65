"""Refined rows into the map's: what may change, changes; all else stays as it was mapped."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError
from rsseg_cli.gdal import gdal_env, gdal_errors
from rsseg_cli.job import Job
from rsseg_cli.row_files import TiledFile
from rsseg_cli.raster import SceneReader, inspect
from rsseg_cli.refine_band import UNKNOWN, Band
from rsseg_cli.refine_job import LabelSource, Refinement
from rsseg_cli.refine_labels import STRANGE, CoarseMap
from rsseg_cli.target import HoleMask

ROWS_PX = 2**21  # of the map that are merged at once
Rows = NDArray[np.uint8]
Write = Callable[[int, Rows], None]
_numbers = itertools.count()


class Merger:
    """Takes refined rows of the mapped window, hands whole rows of the map on.

    Where the refiner sees another resolution than the map's, the band and the scene's holes are those of the
    map's own pixels.

    Args:
        coarse: the map.
        layers: of the map's rows, by what they hold.
        refined: of the refined rows; class 255 where there is nothing to say.
        write: called with a first row and uint8 (layers, rows, width), in order.
    """

    def __init__(
        self,
        refinement: Refinement,
        coarse: CoarseMap,
        layers: Mapping[str, slice],
        refined: Mapping[str, slice],
        write: Write,
    ) -> None:
        self.band_pixels = 0
        self.changed_pixels = 0
        self._coarse, self._layers, self._refined, self._write = coarse, layers, refined, write
        frame = refinement.frame
        self._band = Band(refinement.band_m, frame.gsd_m) if frame.resampled else None
        self._scene: SceneReader | None = None
        self._stack = ExitStack()
        if frame.resampled and refinement.info.has_mask:
            self._scene = SceneReader(refinement.info, refinement.bands, refinement.map)

    def __enter__(self) -> Self:
        if self._scene is not None:
            self._stack.enter_context(self._scene)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def put(self, row: int, rows: Rows) -> None:
        """Merge and hand on the next rows, uint8 (channels, rows, width)."""
        step = max(1, ROWS_PX // rows.shape[2])
        for first in range(0, rows.shape[1], step):
            self._write(row + first, self._merged(row + first, rows[:, first : first + step]))

    def _merged(self, row: int, refined: Rows) -> Rows:
        labels, others = self._coarse.rows(row, refined.shape[1])
        change = refined[0] != UNKNOWN
        if self._band is not None:
            change &= self._near(self._band, row, refined.shape[1])
            if self._scene is not None:
                change &= self._scene.read(row, 0, refined.shape[1], refined.shape[2])[1]
        self.band_pixels += int(np.count_nonzero(change))
        self.changed_pixels += int(np.count_nonzero(change & (refined[0] != labels)))
        parts = [labels[None]] + ([] if others is None else [others])
        if "uncertainty" in self._layers:
            parts.append(np.where(labels == UNKNOWN, np.uint8(UNKNOWN), np.uint8(0))[None])
        merged = np.concatenate(parts)
        for kind, channels in self._refined.items():
            np.copyto(merged[self._layers[kind]], refined[channels], where=change)
        return merged

    def _near(self, band: Band, row: int, height: int) -> NDArray[np.bool_]:
        """The band of the map's own pixels."""
        top, left, _, width = self._coarse.window
        margin = band.margin
        labels = self._coarse.labels(
            top + row - margin, left - margin, height + 2 * margin, width + 2 * margin
        )
        return band.mask(labels)


class CoarseFile:
    """The map before refining, with what goes with it: a temporary file beside the output, removed at the
    end."""

    def __init__(self, job: Job) -> None:
        self._job = job
        path = job.paths["labels"]
        self.path = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.coarse.tif")
        self._layers = {kind: part for kind, part in job.layers.items() if kind != "uncertainty"}
        self._file: TiledFile | None = None
        self._holes: HoleMask | None = None
        self._stack = ExitStack()

    @property
    def layers(self) -> dict[str, slice]:
        """Channels of its rows, by what they hold."""
        return self._layers

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.path.unlink, missing_ok=True)
            if self._job.resampled and self._job.may_have_holes:
                self._holes = stack.enter_context(HoleMask(self._job))
            count = max(part.stop for part in self._layers.values())
            with gdal_env(), gdal_errors(OutputError, str(self.path)):
                self._file = TiledFile(self.path, count, self._job.grid.height, self._job.grid.width)
            stack.callback(self._file.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, row: int, rows: Rows) -> None:
        """Write the next rows, uint8 (layers, rows, width)."""
        if self._holes is not None:
            self._holes.drop(row, rows)
        if self._file is None:
            raise ValueError("the file is not open")
        with gdal_errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            for _ in self._file.push(rows):
                pass

    def finish(self) -> LabelSource:
        """The file, complete and readable."""
        if self._file is None:
            raise ValueError("the file is not open")
        with gdal_errors(OutputError, f"{self.path}: cannot be written", "Is the disk full?"):
            self._file.close()
        classes = len(self._job.spec.classes)
        table = np.full(256, STRANGE, np.uint8)
        table[:classes], table[UNKNOWN] = np.arange(classes), UNKNOWN
        info = inspect(self.path)
        grid = self._job.grid
        return LabelSource(
            info=info,
            bands=tuple(range(1, info.count + 1)),
            table=table,
            window=(0, 0, grid.height, grid.width),
        )
