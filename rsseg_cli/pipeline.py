"""Predict a scene: the joint of reader, plan, network, blend and writer."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg_cli import resample, stitch, streaming, tiling
from rsseg_cli.config import Dtype, PredictConfig, Tta, VectorConfig
from rsseg_cli.engine import Engine, evaluation
from rsseg_cli.errors import ModelError
from rsseg_cli.job import Job, prepare
from rsseg_cli.raster import SceneInfo
from rsseg_cli.result import NODATA, AreaCounter, PredictResult
from rsseg_cli.target import Target
from rsseg_cli.weights.registry import TrainedModel, load_model

FULL_SCALE = 254  # probabilities from 0 to 1 are stored as 0 to 254
MAX_EMPTY_TILES = 64  # that wait for a batch to fill
BROKEN = 254  # in place of a class where the network gave NaN; classes end at 253

Progress = Callable[[int, int], None]  # tiles done, tiles in all


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
    progress: Progress | None = None,
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
        progress: called with tiles done and tiles in all.
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
    }
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    chosen = dataclasses.replace(config or PredictConfig(), **settings)
    job = prepare(os.fspath(scene), paths, model, chosen, vector_config)
    counter = _run(job, model if isinstance(model, TrainedModel) else load_model(model), progress)
    return PredictResult(
        paths=paths,
        seconds=time.monotonic() - start,
        pixels=job.grid.width * job.grid.height,
        valid_pixels=counter.valid_pixels,
        classes=counter.classes(),
        notes=tuple(job.notes),
    )


def _run(job: Job, model: TrainedModel, progress: Progress | None) -> AreaCounter:
    """Stream the scene through the network into the outputs."""
    with evaluation(model.network):
        return _run_network(job, model, progress)


def _run_network(job: Job, model: TrainedModel, progress: Progress | None) -> AreaCounter:
    layers = job.layers
    engine = Engine(
        model.network,
        classes=len(job.spec.classes),
        scaling=job.scaling,
        config=job.config,
        heatmaps="heatmaps" in layers,
        probabilities=job.resampled or "confidence" in layers or "probabilities" in layers,
    )
    plan = tiling.plan(
        job.network_grid.height, job.network_grid.width, job.config.tile_size, job.config.overlap
    )
    finisher = _Finisher(job, engine, plan)
    _give_back_memory()
    with ExitStack() as stack:
        target = stack.enter_context(Target(job))
        reader = stack.enter_context(job.reader(job.network_grid))
        sink = stack.enter_context(
            streaming.RowSink(finisher.row_cuts, job.grid.width, finisher.channels, target.write)
        )
        feed = stack.enter_context(
            streaming.TileFeed(reader, plan, threads=_threads(job), block_width=_block_width(job))
        )
        _stream(engine, finisher, feed, sink, len(plan), progress)
        sink.finish()
        target.commit()
        job.note_unmarked_holes(reader)
        _give_back_memory()
    return target.counter


def _give_back_memory() -> None:
    """What was freed goes back to the system (glibc keeps it otherwise): some 70 MB after a scene."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _block_width(job: Job) -> int:
    """Columns of a stored block that reads should not cut; strips are left to GDAL's block cache."""
    return 1 if job.resampled or _is_striped(job.info) else job.info.block_shape[1]


def _threads(job: Job) -> int:
    """One where blocks are strips: every thread would decode whole strips for its own handle."""
    return 1 if _is_striped(job.info) else job.config.readers


def _is_striped(info: SceneInfo) -> bool:
    return info.block_shape[1] == info.grid.width


def _stream(
    engine: Engine,
    finisher: _Finisher,
    feed: streaming.TileFeed,
    sink: streaming.RowSink,
    tiles: int,
    progress: Progress | None,
) -> None:
    """Batch by batch; results of a batch are fetched while the device works on the next one."""
    waiting: list[_Finished] = []
    done = 0
    for batch in _batches(feed, engine):
        arrays = [item.pixels for item in batch if item.pixels is not None]
        scores = iter(engine.run(arrays) if arrays else ())
        finished = [
            block
            for item in batch
            for block in finisher.push(item, None if item.pixels is None else next(scores))
        ]
        del arrays, scores  # not kept while the next batch runs
        for block in waiting:
            sink.put(block.row, block.col, block.values())
        waiting = finished
        done += len(batch)
        if progress is not None:
            progress(done, tiles)
    for block in waiting:
        sink.put(block.row, block.col, block.values())


def _batches(feed: streaming.TileFeed, engine: Engine) -> Iterator[list[streaming.TilePixels]]:
    """Tiles in order, as many as the device takes at once; tiles without data come along."""
    batch: list[streaming.TilePixels] = []
    filled = 0
    for item in feed:
        batch.append(item)
        filled += item.pixels is not None
        if filled == engine.batch_size(item.tile.height, item.tile.width) or len(batch) == MAX_EMPTY_TILES:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


class _Finished(NamedTuple):
    """A rectangle of the map whose uint8 values (channels, h, w) `fetch` brings from the device."""

    row: int
    col: int
    fetch: Callable[[], NDArray[np.uint8]]

    def values(self) -> NDArray[np.uint8]:
        values = self.fetch()
        broken = values[0] == BROKEN
        if broken.any():
            row, col = np.argwhere(broken)[0]
            raise ModelError(
                f"the network gave NaN at row {self.row + row}, column {self.col + col} of the map; "
                "needs finite logits. Lower precision may overflow: try --dtype float32"
            )
        return values


class _Finisher:
    """Scores of tiles to finished rectangles of the map: blended, brought to its grid, classified."""

    def __init__(self, job: Job, engine: Engine, plan: tiling.Plan) -> None:
        self._engine = engine
        self._layers = job.layers
        self._classes = len(job.spec.classes)
        ramps = [
            torch.from_numpy(tiling.ramp_weights(axis.ramp)).to(engine.device)
            for axis in (plan.rows, plan.cols)
        ]
        self._stitcher = stitch.Stitcher(
            plan,
            (ramps[0], ramps[1]),
            functools.partial(torch.softmax, dim=0) if engine.gives_logits else None,
        )
        self._resampler: resample.Resampler | None = None
        self.row_cuts: Sequence[int] = plan.rows.cuts
        if job.resampled:
            source, target = job.network_grid, job.grid
            self._resampler = resample.Resampler((source.height, source.width), (target.height, target.width))
            self.row_cuts = self._resampler.rows.cuts(plan.rows.cuts)

    @property
    def channels(self) -> int:
        return max(layer.stop for layer in self._layers.values())

    def push(self, item: streaming.TilePixels, scores: torch.Tensor | None) -> Iterator[_Finished]:
        """What is finished with a tile; `scores` (channels, h, w) is None where the tile was not run."""
        tile = item.tile
        block = self._stitcher.skip(tile) if scores is None else self._stitcher.push(tile, scores)
        if self._resampler is not None:
            values = block.values
            if values is None:
                shape = (self._engine.channels, block.height, block.width)
                values = torch.zeros(shape, device=self._engine.device)
            for row, col, strip in self._resampler.push(block.row, block.col, values):
                yield _Finished(row, col, self._engine.to_host(self._classify(strip)))
            return
        first_row, first_col = block.row - tile.row, block.col - tile.col
        valid = item.valid[first_row : first_row + block.height, first_col : first_col + block.width]
        if block.values is None:
            empty = np.full((self.channels, block.height, block.width), NODATA, np.uint8)
            yield _Finished(block.row, block.col, lambda: empty)
            return
        fetch = self._engine.to_host(self._classify(block.values))
        yield _Finished(
            block.row, block.col, fetch if valid.all() else functools.partial(_masked, fetch, valid)
        )

    @torch.inference_mode()
    def _classify(self, values: torch.Tensor) -> torch.Tensor:
        """uint8 (layers, h, w) of scores (channels, h, w)."""
        scores = values[: self._classes]
        best = scores.max(0)  # on the CPU its indices are 40 times faster than argmax
        labels = best.indices.to(torch.uint8).masked_fill_(best.values.isnan(), BROKEN)
        if self._resampler is not None:  # beside pixels that were not run for want of data
            labels[best.values <= 0] = NODATA
        parts = [labels[None]]
        if "confidence" in self._layers:
            parts.append(_to_bytes(best.values[None]))
        if "probabilities" in self._layers:
            parts.append(_to_bytes(scores))
        if "heatmaps" in self._layers:
            parts.append(_to_bytes(values[self._classes :]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _to_bytes(values: torch.Tensor) -> torch.Tensor:
    """[0, 1] to 0-254, rounded."""
    return (values * FULL_SCALE).add_(0.5).clamp_(0, FULL_SCALE).to(torch.uint8)


def _masked(fetch: Callable[[], NDArray[np.uint8]], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    values = fetch()
    values[:, ~valid] = NODATA
    return values
