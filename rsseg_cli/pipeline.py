"""Predict a scene: the joint of reader, plan, network, blend and writer."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import resample, streaming, tiling
from rsseg_cli.config import Dtype, PredictConfig, RefineConfig, Tta, VectorConfig
from rsseg_cli.engine import Engine, evaluation
from rsseg_cli.errors import UsageError
from rsseg_cli.job import Job, prepare
from rsseg_cli.passes import Finisher, Progress, give_back_memory, run_pass, span_of
from rsseg_cli.raster import SceneInfo
from rsseg_cli.refine_job import LabelSource, Refinement, prepare_for_job
from rsseg_cli.refine_merge import CoarseFile, Write
from rsseg_cli.refine_scene import Windows, plan_windows, refine_pass
from rsseg_cli.result import AreaCounter, PredictResult, Refined
from rsseg_cli.target import Target
from rsseg_cli.weights.registry import TrainedModel, load_model


class Passes(Protocol):
    """The two passes over a scene, where they do not run in this process; rows come in order."""

    def map(
        self,
        job: Job,
        layers: Mapping[str, slice],
        write: Write,
        progress: Callable[[int], object],
        first: int,
    ) -> None:
        """See `map_rows`; from tile row `first` on."""

    def refine(
        self,
        refinement: Refinement,
        windows: Windows,
        source: LabelSource,
        layers: Mapping[str, slice],
        write: Write,
        progress: Callable[[int], object],
        first: int,
    ) -> Refined:
        """See `refine_pass`; from row of windows `first` on."""


class PredictSettings(TypedDict, total=False):
    """Fields of `PredictConfig` by keyword, for calls that set one or two."""

    tile_size: int
    overlap: int
    batch_size: int | Literal["auto"]
    tta: Tta
    device: str
    dtype: Dtype
    bands: tuple[int, ...] | None
    nodata: float | None
    gsd_m: float | None
    bbox: tuple[float, float, float, float] | None
    aoi: Path | None
    creation_options: Mapping[str, str]
    overwrite: bool
    readers: int


def predict(
    scene: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | TrainedModel,
    config: PredictConfig | None = None,
    confidence: str | os.PathLike[str] | None = None,
    probabilities: str | os.PathLike[str] | None = None,
    heatmaps: str | os.PathLike[str] | None = None,
    preview: str | os.PathLike[str] | None = None,
    vector: str | os.PathLike[str] | None = None,
    vector_config: VectorConfig | None = None,
    refine: RefineConfig | None = None,
    uncertainty: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    passes: Passes | None = None,
    **settings: Unpack[PredictSettings],
) -> PredictResult:
    """Map the land cover of a scene: a raster of class indices on the scene's own grid, and what else is
    asked for.

    The outputs appear together when all of them are complete, or not at all. Memory does not grow with the
    scene's height.

    Args:
        scene: anything that GDAL reads: a path, /vsicurl/..., s3://...
        output: GeoTIFF of class indices: uint8, 255 where the scene has no data.
        model: name of a model that comes along, path of a model file, or a network with its spec.
        config: settings; the defaults suit most scenes.
        confidence: GeoTIFF of the probability of the class in the map, 0-254 for 0-1, 255 no data.
        probabilities: the same of every class, a band each.
        heatmaps: the same of BiCoR-Seg's last class heatmaps.
        preview: PNG of the scene with the map over it.
        vector: the map's polygons: GeoPackage, FlatGeobuf, GeoParquet, GeoJSON or Shapefile.
        vector_config: settings of these; `overwrite` is that of `config`.
        refine: draw the boundaries anew by a refiner, see `refine`. Class, confidence and probabilities of
            pixels that it looks at are the refiner's, all others the model's; polygons, picture and areas
            are of the refined map.
        uncertainty: of the refiner, see `refine`.
        progress: called with tiles done and tiles in all, those of refining included.
        passes: runs the networks elsewhere; None for this process. The outputs are written by this one.
        settings: fields of `config`, in place of its own.

    Raises:
        UsageError, SceneError, ModelError, OutputError: what is wrong and what to do; nothing was written.
    """
    start = time.monotonic()
    wanted = {
        "labels": output,
        "confidence": confidence,
        "probabilities": probabilities,
        "heatmaps": heatmaps,
        "preview": preview,
        "vector": vector,
        "uncertainty": uncertainty,
    }
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    chosen = dataclasses.replace(config or PredictConfig(), **settings)
    job = prepare(os.fspath(scene), paths, model, chosen, vector_config)
    if refine is not None:
        job, refinement = prepare_for_job(job, model, refine)
        counter, refined = _predict_refined(job, passes or _Here(_loaded(model)), refinement, progress)
    elif uncertainty is not None:
        raise UsageError("--uncertainty is the disagreement of a refiner's samples; needs --refine")
    else:
        counter, refined = _predict(job, passes or _Here(_loaded(model)), progress), None
    return PredictResult(
        paths=paths,
        seconds=time.monotonic() - start,
        pixels=job.grid.width * job.grid.height,
        valid_pixels=counter.valid_pixels,
        classes=counter.classes(),
        notes=tuple(job.notes),
        refined=refined,
    )


def _loaded(model: str | os.PathLike[str] | TrainedModel) -> TrainedModel:
    return model if isinstance(model, TrainedModel) else load_model(model)


class _Here:
    """The passes in this process."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model

    def map(
        self,
        job: Job,
        layers: Mapping[str, slice],
        write: Write,
        progress: Callable[[int], object],
        first: int,
    ) -> None:
        map_rows(job, self._model, layers, write, progress, first=first)

    def refine(
        self,
        refinement: Refinement,
        windows: Windows,
        source: LabelSource,
        layers: Mapping[str, slice],
        write: Write,
        progress: Callable[[int], object],
        first: int,
    ) -> Refined:
        network = refinement.load().network
        return refine_pass(refinement, network, windows, source, layers, write, progress, first=first)


def _predict(job: Job, passes: Passes, progress: Progress | None) -> AreaCounter:
    """Stream the scene through the network into the outputs."""
    tiles = len(plan_of(job))
    with Target(job) as target:
        passes.map(job, job.layers, target.write, lambda done: progress and progress(done, tiles), 0)
        target.commit()
        give_back_memory()
    return target.counter


def _predict_refined(
    job: Job, passes: Passes, refinement: Refinement, progress: Progress | None
) -> tuple[AreaCounter, Refined]:
    """Map the scene into a temporary file, and refine that into the outputs."""
    trained = refinement.load()
    refinement = dataclasses.replace(refinement, refiner=trained)  # loaded once
    windows = plan_windows(refinement, trained.network, job.notes)
    tiles = len(plan_of(job))
    total = tiles + len(windows.plan)
    with Target(job, holes=False) as target, CoarseFile(job) as coarse:
        passes.map(job, coarse.layers, coarse.write, lambda done: progress and progress(done, total), 0)
        refined = passes.refine(
            refinement,
            windows,
            coarse.finish(),
            job.layers,
            target.write,
            lambda done: progress and progress(tiles + done, total),
            0,
        )
        target.commit()
    return target.counter, refined


def plan_of(job: Job) -> tiling.Plan:
    """The tiles that the network sees."""
    seen, config = job.network_grid, job.config
    return tiling.plan(seen.height, seen.width, config.tile_size, config.overlap)


def map_rows(
    job: Job,
    model: TrainedModel,
    layers: Mapping[str, slice],
    write: Callable[[int, NDArray[np.uint8]], None],
    progress: Callable[[int], object],
    *,
    first: int = 0,
    end: int | None = None,
) -> None:
    """Stream the scene through the network; finished rows go to `write`.

    Args:
        layers: channels of the rows, by what they hold.
        write: called in a thread of its own with a first row of the map and uint8 (layers, rows, width).
        progress: called with the number of tiles done, of all.
        first, end: tile rows whose finished rows are wanted, the same as of all.
    """
    with evaluation(model.network), ExitStack() as stack:
        engine = Engine(
            model.network,
            classes=len(job.spec.classes),
            scaling=job.scaling,
            config=job.config,
            heatmaps="heatmaps" in layers,
            probabilities=job.resampled or "confidence" in layers or "probabilities" in layers,
        )
        plan = plan_of(job)
        span = span_of(plan, engine, resampled=job.resampled, first=first, end=end)
        finisher = Finisher(
            engine,
            plan,
            layers=layers,
            classes=len(job.spec.classes),
            resampler=_resampler(job),
            span=span,
        )
        give_back_memory()
        reader = stack.enter_context(job.reader(job.network_grid))
        sink = stack.enter_context(
            streaming.RowSink(finisher.row_cuts, job.grid.width, finisher.channels, write)
        )
        feed = stack.enter_context(
            streaming.TileFeed(
                reader,
                plan,
                threads=_threads(job),
                block_width=_block_width(job),
                first_row=span.run_first,
                end_row=span.run_end,
            )
        )
        run_pass(
            lambda items: engine.run([item.pixels for item in items]), engine, finisher, feed, sink, progress
        )
        job.note_unmarked_holes(reader)


def _resampler(job: Job) -> resample.Resampler | None:
    if not job.resampled:
        return None
    seen, grid = job.network_grid, job.grid
    return resample.Resampler((seen.height, seen.width), (grid.height, grid.width))


def _block_width(job: Job) -> int:
    """Columns of a stored block that reads should not cut; strips are left to GDAL's block cache."""
    return 1 if job.resampled or _is_striped(job.info) else job.info.block_shape[1]


def _threads(job: Job) -> int:
    """One where blocks are strips: every thread would decode whole strips for its own handle."""
    return 1 if _is_striped(job.info) else job.config.readers


def _is_striped(info: SceneInfo) -> bool:
    return info.block_shape[1] == info.grid.width
