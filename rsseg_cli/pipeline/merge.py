"""Refined rows merged into the map: only pixels that may change do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError
from rsseg_cli.inference import passes, windows
from rsseg_cli.pipeline.checkpoint import RunState
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.journal import Checkpoint
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.pipeline.view import HoleMask
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, classes, gdal, vrt

ROWS_PX = 2**21  # of the map that are merged at once
Rows = NDArray[np.uint8]
Write = Callable[[int, Rows], None]
COARSE = "coarse"  # the pass that makes the coarse map


class Merger:
    """Takes refined rows of the mapped window, whose class is 255 outside what was run, and writes the map.

    Where the refiner sees another resolution than the map's, the band and the scene's holes are those of the
    map's own pixels.
    """

    def __init__(
        self,
        refinement: Refinement,
        coarse: classes.ClassRaster,
        layers: Mapping[str, slice],
        refined: Mapping[str, slice],
        write: Write,
        stack: ExitStack,
    ) -> None:
        self.band_pixels = 0
        self.changed_pixels = 0
        self._coarse, self._layers, self._refined, self._write = coarse, layers, refined, write
        self._has_both = bool(refinement.merge)
        frame = refinement.frame
        self._band = windows.Band(refinement.band_m, frame.gsd_m) if frame.resampled else None
        self._scene: SceneReader | None = None
        if frame.resampled and refinement.info.has_mask:
            self._scene = stack.enter_context(SceneReader(refinement.info, refinement.bands, refinement.map))

    def put(self, row: int, rows: Rows) -> None:
        """Merge and hand on the next rows, uint8 (channels, rows, width)."""
        step = max(1, ROWS_PX // rows.shape[2])
        for first in range(0, rows.shape[1], step):
            self._write(row + first, self._merged(row + first, rows[:, first : first + step]))

    def _merged(self, row: int, refined: Rows) -> Rows:
        labels, others = self._coarse.rows(row, refined.shape[1])
        if self._has_both and others is not None:
            labels, others = others[0], others[1:]
        change = refined[0] != classes.NODATA
        if self._band is not None:
            change &= self._near(self._band, row, refined.shape[1])
            if self._scene is not None:
                change &= self._scene.read(row, 0, refined.shape[1], refined.shape[2])[1]
        self.band_pixels += int(np.count_nonzero(change))
        self.changed_pixels += int(np.count_nonzero(change & (refined[0] != labels)))
        parts = [labels[None]] + ([] if others is None else [others])
        if "uncertainty" in self._layers:
            parts.append(np.where(labels == classes.NODATA, np.uint8(classes.NODATA), np.uint8(0))[None])
        merged = np.concatenate(parts)
        for kind, channels in self._refined.items():
            np.copyto(merged[self._layers[kind]], refined[channels], where=change)
        return merged

    def _near(self, band: windows.Band, row: int, height: int) -> NDArray[np.bool_]:
        top, left, _, width = self._coarse.window
        margin = band.margin
        labels = self._coarse.read(top + row - margin, left - margin, height + 2 * margin, width + 2 * margin)
        return band.mask(labels)


class CoarseFile:
    """The coarse map and its layers, in temporary files of the run."""

    def __init__(self, job: Job, run: RunState, cuts: Sequence[int], stack: ExitStack) -> None:
        self._job, self._run = job, run
        self.layers = {kind: part for kind, part in job.layers.items() if kind != "uncertainty"}
        if job.merge:  # the refiner looks at the network's own classes
            shifted = {kind: slice(part.start + 1, part.stop + 1) for kind, part in self.layers.items()}
            self.layers = {passes.UNMERGED: slice(0, 1), **shifted}
        self._count = max(part.stop for part in self.layers.values())
        self._rows = vrt.RowParts(
            lambda row: run.dir.folder / f"coarse.{row}.tif", self._count, job.grid.width, cuts
        )
        stack.callback(self._rows.close)
        self._reported = 0
        self.holes = HoleMask(job, stack) if job.resampled and job.may_have_holes else None

    def resume_from(self, checkpoint: Checkpoint) -> None:
        if checkpoint.files:
            self._rows.resume_from(checkpoint.rows)
            self._reported = len(self._rows.parts)

    def write(self, row: int, rows: Rows) -> None:
        if self.holes is not None:
            self.holes.apply(row, rows)
        where = str(self._run.dir.folder)
        with gdal.env(), gdal.errors(OutputError, f"{where}: cannot be written", "Is the disk full?"):
            self._rows.push(rows)

    def new_files(self) -> list[Path]:
        new = [part.path for part in self._rows.parts[self._reported :]]
        self._reported += len(new)
        return new

    def counted(self) -> tuple[list[int], list[float]]:
        """Return nothing: areas are those of the refined map."""
        return [], []

    def finish(self) -> LabelSource:
        grid = self._job.grid
        plain = Grid(crs=None, transform=Affine.identity(), height=grid.height, width=grid.width)
        path = self._run.dir.folder / "coarse.vrt"
        with gdal.errors(OutputError, f"{path}: cannot be written", "Is the disk full?"):
            text = vrt.of_parts(self._rows.parts, plain, vrt.RasterMeta(count=self._count, nodata=None))
            path.write_text(text, "utf-8")
        count = self._job.network_classes
        table = np.full(256, classes.INVALID, np.uint8)
        table[:count], table[classes.NODATA] = np.arange(count), classes.NODATA
        info = SceneInfo.of(path)
        return LabelSource(
            info=info,
            bands=tuple(range(1, info.count + 1)),
            table=table,
            window=(0, 0, grid.height, grid.width),
        )

    def drop(self) -> None:
        files = [part.path for part in self._rows.parts]
        self._run.forget(files)
        for file in files:
            file.unlink(missing_ok=True)
