"""The outputs of a run: rasters, picture, polygons; they appear together, once all are complete."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files as files_
from rsseg_cli._version import __version__
from rsseg_cli.pipeline.checkpoint import RunState
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.journal import Checkpoint
from rsseg_cli.pipeline.result import AreaCounter, PredictResult
from rsseg_cli.pipeline.view import HoleMask, Picture, Pictures
from rsseg_cli.raster import RasterWriter, classes, vrt

Stages = Callable[[str, int, int], None]  # stage, rows done, rows in all

ROWS = "map"  # the pass that writes the outputs' rows
FULL_SCALE = 254  # of probabilities in uint8: 1.0


class Target:
    """Takes finished rows of all rasters at once; resampled rows lose the `holes` of the map's own grid."""

    def __init__(
        self, job: Job, run: RunState, cuts: Sequence[int], stack: ExitStack, *, holes: bool = True
    ) -> None:
        self.counter = AreaCounter(job.map_spec.class_names, job.grid)
        self._job, self._run, self._stack = job, run, stack
        self._layers = job.layers
        self._reported: set[Path] = set()
        self._writers = {
            kind: stack.enter_context(_open_writer(job, kind, run, cuts))
            for kind in self._layers
            if kind in job.paths
        }
        self._least = math.ceil(job.config.min_confidence * FULL_SCALE)
        is_class = job.config.unsure == "class"
        self._unsure = len(job.spec.classes) if is_class else classes.NODATA
        self.holes = HoleMask(job, stack) if holes and job.resampled and job.may_have_holes else None
        self.pictures = Pictures(job)
        self._polygons_drawn: Callable[[int], dict[str, Any]] | None = None

    def resume_from(self, checkpoint: Checkpoint) -> None:
        self.counter.restore(checkpoint.pixels, checkpoint.areas_m2)
        for kind, writer in self._writers.items():
            if self._run.is_finished(kind):
                continue
            for row, rows in writer.resume_from(checkpoint.rows):
                if kind == "labels":
                    self.pictures.add_labels(row, rows[0])
            self._reported.update(writer.complete_files())

    def write(self, row: int, rows: NDArray[np.uint8]) -> None:
        if self.holes is not None:
            self.holes.apply(row, rows)
        if self._least:
            labels, confidence = rows[0], rows[self._layers["confidence"]][0]
            labels[(confidence < self._least) & (labels != classes.NODATA)] = self._unsure
        self.counter.add(row, rows[0])
        self.pictures.add_labels(row, rows[0])
        for kind, writer in self._writers.items():
            writer.write(row, rows[self._layers[kind]])

    def new_files(self) -> list[Path]:
        complete = [file for writer in self._writers.values() for file in writer.complete_files()]
        new = [file for file in complete if file not in self._reported]
        self._reported.update(new)
        return new

    def counted(self) -> tuple[list[int], list[float]]:
        return self.counter.counts

    def commit(self, result: Callable[[], PredictResult], stages: Stages | None) -> PredictResult:
        """Finish all outputs, then publish them: until all are finished, none appears or is replaced."""
        stages = stages or _unreported
        renames: dict[Path, Path] = {}
        if "preview" in self.pictures:
            renames[self._draw(self.pictures["preview"])] = self._job.paths["preview"]
        if "html" in self.pictures:
            self._draw_page_pictures(self.pictures["html"])
        height, count = self._job.grid.height, len(self._writers)
        for number, (kind, writer) in enumerate(reversed(self._writers.items())):
            # the map last: where it is, everything is
            if not self._run.is_finished(kind):
                writer.finish(
                    lambda share, before=number: stages(  # type: ignore[misc]
                        "write", round((before + share) * height), count * height
                    )
                )
                self._run.finish(kind)
                self._run.forget(writer.complete_files())
                writer.drop_rows()
        rasters: dict[Path, Path] = {}
        for writer in reversed(self._writers.values()):
            rasters |= writer.renames()
        if "vector" in self._job.paths:
            renames |= self._polygons({path: file for file, path in rasters.items()}, stages)
            named = set(renames.values())  # one style may be of both
            rasters = {file: path for file, path in rasters.items() if path not in named}
        finished = result()
        if "html" in self.pictures:
            renames[self._page(finished)] = self._job.paths["html"]
        if "stac" in self._job.paths:
            renames[self._item(finished)] = self._job.paths["stac"]
        self._run.publish(renames | rasters, finished.as_dict())
        return finished

    def _polygons(self, files: dict[Path, Path], stages: Stages) -> dict[Path, Path]:
        """Write the polygons of the finished map; `files` are its rasters' temporary ones, by name."""
        from rsseg_cli.vector import prepare  # loads scipy

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
        sketch = None
        if "html" in self.pictures:
            sketch = polygons.draw_on(self.pictures["html"].grid)
        renames = polygons.run(functools.partial(stages, "trace"))
        if sketch is not None:
            self._polygons_drawn = sketch.drawn().packed
        job.notes.extend(polygons.notes)
        return renames

    def _draw(self, picture: Picture) -> Path:
        from rsseg_cli.pipeline.preview import draw_preview

        job, grid = self._job, picture.grid
        path, temporary = job.paths["preview"], self._run.dir.of("preview", "png")
        if self._run.is_finished("preview"):
            return temporary
        classes = tuple((item.name, item.colour) for item in job.map_spec.classes)
        gsd_m = grid.gsd_m
        drawn = draw_preview(
            picture.image(), picture.labels, classes, gsd_m[0] if gsd_m else None, job.spec.name
        )
        try:
            drawn.save(temporary, compress_level=2)  # 4 times faster than by default, 3 % larger
            files_.sync(temporary)
        except OSError as err:
            raise files_.write_error(path, err) from err
        self._run.finish("preview")
        return temporary

    def _draw_page_pictures(self, picture: Picture) -> None:
        """Write the page's pictures now: what a resumed run has not read is not there at its end."""
        from rsseg_cli.pipeline.page import draw_pictures

        if self._run.is_finished("html"):
            return
        colours = [item.colour for item in self._job.map_spec.classes]
        for ending, content in zip(
            ("jpg", "png"), draw_pictures(picture.image(), picture.labels, colours), strict=True
        ):
            self._write("html", ending, content)
        self._run.finish("html")

    def _page(self, result: PredictResult) -> Path:
        from rsseg_cli.pipeline.page import PageText, render

        job, grid = self._job, self.pictures["html"].grid
        text = PageText(
            title=Path(job.info.name).name,
            model=job.spec.name,
            size=(job.grid.height, job.grid.width),
            width_m=grid.gsd_m[0] * grid.width if grid.gsd_m else None,
            classes=[(item.name, item.colour) for item in job.map_spec.classes],
            areas=result.classes,
        )
        scene, drawn = (self._run.dir.of("html", ending).read_bytes() for ending in ("jpg", "png"))
        page = render(text, scene, drawn, (grid.height, grid.width), self._polygons_drawn)
        return self._write("html", "html", page)

    def _item(self, result: PredictResult) -> Path:
        from rsseg_cli.pipeline.stac import Mapped, item_of

        job = self._job
        mapped = Mapped(
            grid=job.grid,
            scene=job.info.title or job.info.path,
            model=job.spec.name,
            classes=job.map_spec.stac_classes,
            bands=job.spec.class_names,
            paths=job.paths,
            refiner=result.refined.refiner if result.refined is not None else "",
        )
        return self._write("stac", "json", item_of(mapped, job.paths["stac"]))

    def _write(self, kind: str, ending: str, content: bytes) -> Path:
        """Write a temporary file of an output."""
        file = self._run.dir.of(kind, ending)
        try:
            file.write_bytes(content)
            files_.sync(file)
        except OSError as err:
            raise files_.write_error(self._job.paths[kind], err) from err
        return file


def _unreported(stage: str, done: int, total: int) -> None:
    """Stand in for a callback that was not given."""


def _open_writer(job: Job, kind: str, run: RunState, cuts: Sequence[int]) -> RasterWriter:
    labels, spec = kind == "labels", job.map_spec if kind == "labels" else job.spec
    names = spec.class_names
    band_names = names if kind in ("probabilities", "heatmaps") else ("class" if labels else kind,)
    meta = vrt.RasterMeta(
        count=len(band_names),
        overviews="mode" if labels else "average",
        colours={index: item.colour for index, item in enumerate(spec.classes)} if labels else {},
        category_names=names if labels else (),
        band_names=band_names,
        tags=_tags(job, kind),
        scale=1.0 if labels else 1 / FULL_SCALE,
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
    if config.min_confidence:
        settings["min_confidence"] = config.min_confidence
    tags = {
        "TIFFTAG_SOFTWARE": f"rsseg {__version__}",
        "RSSEG_LAYER": kind,
        "RSSEG_MODEL": job.spec.name,
        "RSSEG_SCENE": job.info.name,
        "RSSEG_SETTINGS": json.dumps(settings),
    }
    tags |= job.more_tags
    return tags if kind == "labels" else {**tags, "RSSEG_SCALE": "0-254 is 0-1, 255 is no data"}
