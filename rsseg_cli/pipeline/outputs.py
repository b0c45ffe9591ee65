"""The outputs of a run: rasters, picture, polygons; they appear together, once all are complete."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files as files_
from rsseg_cli._version import __version__
from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline.checkpoint import RunState
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.journal import Checkpoint
from rsseg_cli.pipeline.result import AreaCounter, PredictResult
from rsseg_cli.raster import Grid, RasterWriter, classes, vrt
from rsseg_cli.vector import prepare

ROWS = "map"  # the pass that writes the outputs' rows
PREVIEW_SIZE_PX = 1200  # longest side of the picture
MASK_PX = 2**22  # pixels whose mask is read at once
PREVIEW_PERCENTILES = (1.0, 99.0)


class Target:
    """Takes finished rows of all rasters at once.

    Args:
        cuts: rows at which it may be interrupted, from 0 to the height.
        holes: resampled rows lose the holes of the map's own grid; not where they have lost them already.
    """

    def __init__(
        self, job: Job, run: RunState, cuts: Sequence[int], stack: ExitStack, *, holes: bool = True
    ) -> None:
        self.counter = AreaCounter(job.spec.class_names, job.grid)
        self._job, self._run, self._stack = job, run, stack
        self._layers = job.layers
        self._reported: set[Path] = set()
        self._writers = {
            kind: stack.enter_context(_open_writer(job, kind, run, cuts)) for kind in self._layers
        }
        self._mask = HoleMask(job, stack) if holes and job.resampled and job.may_have_holes else None
        self._thumbnail = _Thumbnail(job.grid) if "preview" in job.paths else None

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Take over the rows that an earlier run finished."""
        self.counter.restore(checkpoint.pixels, checkpoint.areas_m2)
        for kind, writer in self._writers.items():
            if self._run.is_finished(kind):
                continue
            for row, rows in writer.resume_from(checkpoint.rows):
                if kind == "labels" and self._thumbnail is not None:
                    self._thumbnail.add(row, rows[0])
            self._reported.update(writer.complete_files())

    def write(self, row: int, rows: NDArray[np.uint8]) -> None:
        """Write the next rows, uint8 (layers, rows, width)."""
        if self._mask is not None:
            self._mask.apply(row, rows)
        self.counter.add(row, rows[0])
        if self._thumbnail is not None:
            self._thumbnail.add(row, rows[0])
        for kind, channels in self._layers.items():
            self._writers[kind].write(row, rows[channels])

    def new_files(self) -> list[Path]:
        """List temporary files that became complete since the last call."""
        complete = [file for writer in self._writers.values() for file in writer.complete_files()]
        new = [file for file in complete if file not in self._reported]
        self._reported.update(new)
        return new

    def counted(self) -> tuple[list[int], list[float]]:
        return self.counter.counts

    def commit(self, result: Callable[[], PredictResult]) -> PredictResult:
        """Finish all outputs, then publish them: until all are finished, none appears or is replaced."""
        renames: dict[Path, Path] = {}
        leftovers: list[Path] = []
        if self._thumbnail is not None:
            renames[self._draw(self._thumbnail)] = self._job.paths["preview"]
        for kind in reversed(self._layers):  # the map comes last: where it is, everything is
            writer = self._writers[kind]
            if not self._run.is_finished(kind):
                writer.finish()
                self._run.finish(kind)
                self._run.forget(writer.complete_files())
                writer.drop_rows()
            leftovers += writer.leftovers()
        rasters: dict[Path, Path] = {}
        for kind in reversed(self._layers):
            rasters |= self._writers[kind].renames()
        if "vector" in self._job.paths:
            renames |= self._polygons({path: file for file, path in rasters.items()})
        finished = result()
        self._run.publish(renames | rasters, leftovers, finished.as_dict())
        return finished

    def _polygons(self, files: dict[Path, Path]) -> dict[Path, Path]:
        """Write the polygons of the finished map; `files` are its rasters' temporary ones, by name."""
        job, paths = self._job, self._job.paths
        polygons = prepare(
            files[paths["labels"]],
            paths["vector"],
            job.vector,
            confidence=files[paths["confidence"]] if "confidence" in paths else None,
            labels_name=str(paths["labels"]),
            scratch=self._run.dir.beside(self._run.dir.paths["vector"], "vector"),
        )
        self._stack.enter_context(polygons)
        renames = polygons.run(None)
        job.notes.extend(polygons.notes)
        return renames

    def _draw(self, thumbnail: _Thumbnail) -> Path:
        """Draw the preview beside its name."""
        from rsseg_cli.pipeline.preview import draw_preview

        job, grid = self._job, thumbnail.grid
        path, temporary = job.paths["preview"], self._run.dir.of("preview", "png")
        if self._run.is_finished("preview"):
            return temporary
        classes = tuple((item.name, item.colour) for item in job.spec.classes)
        gsd_m = grid.gsd_m
        image = _scene_image(job, grid)
        drawn = draw_preview(image, thumbnail.labels, classes, gsd_m[0] if gsd_m else None, job.spec.name)
        try:
            drawn.save(temporary)
            files_.sync(temporary)
        except OSError as err:
            raise OutputError(f"{path}: cannot be written ({err}). Is the disk full?") from err
        self._run.finish("preview")
        return temporary


def _open_writer(job: Job, kind: str, run: RunState, cuts: Sequence[int]) -> RasterWriter:
    labels, names = kind == "labels", job.spec.class_names
    band_names = names if kind in ("probabilities", "heatmaps") else ()
    meta = vrt.RasterMeta(
        count=len(band_names) or 1,
        overviews="mode" if labels else "average",
        colours={index: item.colour for index, item in enumerate(job.spec.classes)} if labels else {},
        category_names=names if labels else (),
        band_names=band_names,
        tags=_tags(job, kind),
    )
    return RasterWriter(
        job.paths[kind],
        job.grid,
        meta,
        options=job.config.creation_options,
        overwrite=job.config.overwrite,
        cuts=cuts,
        temporary=functools.partial(run.dir.of, kind),
        finished=run.is_finished(kind),
    )


def _tags(job: Job, kind: str) -> dict[str, str]:
    config = job.config
    settings = {
        "tile_size": config.tile_size, "overlap": config.overlap, "tta": config.tta, "dtype": config.dtype,
        "bands": job.bands, "nodata": config.nodata, "gsd_m": config.gsd_m, "bbox": config.bbox,
        "aoi": None if config.aoi is None else str(config.aoi),
        "factors": job.scaling.factors, "offsets": job.scaling.offsets,
    }  # fmt: skip
    tags = {
        "TIFFTAG_SOFTWARE": f"rsseg {__version__}",
        "RSSEG_LAYER": kind,
        "RSSEG_MODEL": job.spec.name,
        "RSSEG_SCENE": job.info.name,
        "RSSEG_SETTINGS": json.dumps(settings),
    }
    tags |= job.more_tags
    return tags if kind == "labels" else {**tags, "RSSEG_SCALE": "0-254 is 0-1, 255 is no data"}


class HoleMask:
    """Holes of the map's own grid, for resampled rows: these have values wherever the network ran."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._reader = stack.enter_context(job.reader(job.grid))

    def apply(self, row: int, rows: NDArray[np.uint8]) -> None:
        """Set pixels of rows (layers, rows, width) to no data where the scene has none."""
        step = max(1, MASK_PX // rows.shape[2])
        for first in range(0, rows.shape[1], step):
            part = rows[:, first : first + step]
            _, valid = self._reader.read(row + first, 0, part.shape[1], part.shape[2])
            if not valid.all():
                part[:, ~valid] = classes.NODATA


class _Thumbnail:
    """The map at the preview's size: the class at the centre of each of its pixels."""

    def __init__(self, grid: Grid) -> None:
        shrink = max(1.0, max(grid.width, grid.height) / PREVIEW_SIZE_PX)
        self.grid = grid.scaled(
            width=max(1, round(grid.width / shrink)), height=max(1, round(grid.height / shrink))
        )
        self.labels = np.full((self.grid.height, self.grid.width), classes.NODATA, np.uint8)
        self._rows = ((np.arange(self.grid.height) + 0.5) * grid.height / self.grid.height).astype(int)
        self._cols = ((np.arange(self.grid.width) + 0.5) * grid.width / self.grid.width).astype(int)

    def add(self, row: int, labels: NDArray[np.uint8]) -> None:
        first, end = np.searchsorted(self._rows, (row, row + len(labels)))
        self.labels[first:end] = labels[self._rows[first:end] - row][:, self._cols]


def _scene_image(job: Job, grid: Grid) -> NDArray[np.uint8]:
    """Return the first three bands, or the only one thrice: uint8 (3, height, width), white for no data."""
    with job.reader(grid) as reader:
        pixels, valid = reader.read(0, 0, grid.height, grid.width)
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    if pixels.dtype != np.uint8:
        valid_values = pixels[:, valid].astype(np.float64)
        low, high = np.percentile(valid_values, PREVIEW_PERCENTILES) if valid_values.size else (0.0, 1.0)
        with np.errstate(invalid="ignore"):
            scaled = (pixels.astype(np.float64) - low) / max(high - low, 1e-12) * 255
        pixels = np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)
    return np.where(valid, pixels, np.uint8(255))
