"""The two passes over a scene, in this process or elsewhere: the map, and windows on its boundaries."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rsseg_cli.config import PredictConfig
from rsseg_cli.inference import Engine, RefinerEngine, domain, passes, tiling
from rsseg_cli.inference import windows as geometry
from rsseg_cli.pipeline.checkpoint import Counts, PassState
from rsseg_cli.pipeline.job import Job, network_grid, prepare
from rsseg_cli.pipeline.merge import Merger
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.pipeline.result import Refined
from rsseg_cli.pipeline.unlike import UnlikeCounter
from rsseg_cli.raster import SceneInfo, gdal
from rsseg_cli.system import give_back_memory
from rsseg_cli.weights import TrainedModel

REACH_PX = 2  # beside the network's own: rounding, and neighbours in resampling
RESAMPLED_PX = 1.5  # by which a boundary may lie elsewhere among the pixels that the refiner sees
MAX_DECODERS = 8  # blocks of a row that are decoded at once, each in a thread
COUNTED = ("windows_run", "band_pixels", "changed_pixels")  # of `Refined`, row by row
REFINED_LAYERS = ("labels", "confidence", "probabilities", "uncertainty")  # that refining changes, in order
Progress = passes.Progress
__all__ = [
    "Job", "LabelSource", "PassState", "Passes", "Refinement", "Windows",
    "network_grid", "plan_tiles", "prepare",
]  # fmt: skip


class Passes:
    """The two passes over a scene, in this process; subclasses run them elsewhere. Rows come in order.

    Args:
        model: that maps; not needed where a map is refined.
    """

    def __init__(self, model: TrainedModel | None = None) -> None:
        self._model = model

    def arithmetic(self, config: PredictConfig) -> Any:
        """Return `Engine.arithmetic` where the networks run."""
        return Engine.arithmetic(config)

    def map(self, job: Job, rows: passes.Pass, state: PassState) -> None:
        """Stream the scene through the network into finished rows; `state` is that to resume from."""
        if self._model is None:
            raise ValueError("no model to map with")
        engine = Engine(
            self._model,
            classes=job.network_classes,
            scaling=job.scaling,
            config=state.config(job.config),
            heatmaps="heatmaps" in rows.layers,
            probabilities=job.resampled
            or bool({"confidence", "probabilities"} & {*rows.layers} or job.merge),
            describe=domain.tile_distances(job.spec, job.config.device),
        )
        with engine:
            plan = plan_tiles(job)
            seen = UnlikeCounter(engine.transfers.fetch)
            rows = replace(rows, observe=seen.add)
            assembler = passes.Assembler(
                engine,
                plan,
                rows,
                resampler=_map_resampler(job),
                merge=job.merge,
                temperature=job.spec.temperature,
            )
            span, cuts, before = assembler.span, map_cuts(job), Counter(state.counted_before)

            def counts(rows: int | None) -> Counts:
                end = span.end if rows is None else bisect_left(cuts, rows)
                return dict(before + Counter(seen.counts(span.first, end)))

            state.counts = counts
            state.current_batch_size = partial(engine.batch_size, plan.rows.size, plan.cols.size)
            give_back_memory()
            on_read = state.pictures.see if state.pictures else None
            on_source = None if state.holes is None else state.holes.see
            with job.reader(job.network_grid, on_read=on_read, on_source=on_source) as reader:
                passes.run_pass(
                    engine,
                    assembler,
                    reader,
                    rows,
                    threads=job.config.readers,
                    block_width=1 if job.resampled else block_width(job.info),
                )

    def refine(
        self,
        refinement: Refinement,
        windows: Windows,
        source: LabelSource,
        rows: passes.Pass,
        state: PassState,
    ) -> None:
        """Stream scene and map through the refiner into rows of the refined map.

        Args:
            state: to resume from; its `counts` are those of `refined_of`.
        """
        frame, region = refinement.frame, windows.region
        merge = refinement.merge
        layers = _refined_layers(rows.layers, len(merge) or len(refinement.order))
        engine = RefinerEngine(
            refinement.load(),
            order=refinement.order,
            scaling=refinement.scaling,
            config=refinement.config,
            samples=refinement.samples,
            run=state.config(refinement.run),
            probabilities=frame.resampled or bool({"confidence", "probabilities"} & {*layers} or merge),
            uncertainty="uncertainty" in layers,
            merge=merge,
        )
        with engine, ExitStack() as stack:
            row, col = _origin(frame)
            assembler = passes.Assembler(
                engine,
                windows.plan,
                replace(rows, layers=layers),
                resampler=_window_resampler(refinement, windows),
                window=None if frame.resampled else (row - region.row, col - region.col, *frame.window[2:]),
                masked=True,
                merge=merge,
                temperature=refinement.spec.temperature,
            )
            sides = windows.plan.rows.size, windows.plan.cols.size
            state.current_batch_size = partial(engine.batch_size, *sides)
            give_back_memory()
            coarse = stack.enter_context(source.open())
            scene = stack.enter_context(refinement.scene_reader())
            merger = Merger(refinement, coarse, rows.layers, layers, rows.write, stack)
            reader = geometry.RefineReader(scene, coarse, frame, region, _seen_band(refinement))
            span, cuts, before = assembler.span, refined_cuts(refinement, windows), state.counted_before
            windows_run: Counter[int] = Counter()  # by row of windows

            def counts(rows: int | None) -> Counts:
                end = span.end if rows is None else bisect_left(cuts, rows)
                done = sum(count for row, count in list(windows_run.items()) if span.first <= row < end)
                counted = zip(COUNTED, (done, merger.band_pixels, merger.changed_pixels), strict=True)
                return {name: before.get(name, 0) + count for name, count in counted}

            def window_of(item: passes.TilePixels) -> geometry.Window:
                windows_run[item.tile.row_index] += 1
                return reader.window(item)

            state.counts = counts
            passes.run_pass(
                engine,
                assembler,
                reader,
                replace(rows, layers=layers, write=merger.put),
                threads=refinement.run.readers,
                core_only=True,
                input_of=window_of,
            )
        give_back_memory()


def plan_tiles(job: Job) -> tiling.Plan:
    seen, config = job.network_grid, job.config
    return tiling.plan(seen.height, seen.width, config.tile_size, config.overlap)


def map_cuts(job: Job) -> tuple[int, ...]:
    """Return the rows of the map that each tile row finishes; see `passes.row_cuts`."""
    return passes.row_cuts(plan_tiles(job), _map_resampler(job))


def _map_resampler(job: Job) -> passes.Resampler | None:
    if not job.resampled:
        return None
    seen, grid = job.network_grid, job.grid
    return passes.Resampler((seen.height, seen.width), (grid.height, grid.width))


def block_width(info: SceneInfo) -> int:
    """Return of how many columns reads are multiples, so that all threads have a block; 1 of strips."""
    width = info.block_shape[1]
    return 1 if width == info.grid.width else width * min(gdal.threads(), MAX_DECODERS)


@dataclass(frozen=True)
class Windows:
    """Windows over a region of the grid that the refiner sees."""

    region: geometry.Region
    plan: tiling.Plan


def plan_windows(refinement: Refinement, job: Job) -> Windows:
    """Plan windows that begin at multiples of the network's alignment, counted from the scene's origin."""
    shape = RefinerEngine.shape(refinement.load())
    alignment, halo = shape.alignment_px, shape.halo_px
    config = refinement.config
    size = _rounded(config.tile_size, alignment)
    asked = 2 * halo if config.overlap is None else config.overlap
    overlap = min(_rounded(asked, alignment), size // 2 // alignment * alignment)
    region = refinement.frame.region(max(halo, alignment) + REACH_PX, alignment)
    # Windows agree between their halos, so that nothing need be blended.
    ramp = overlap - 2 * halo if overlap >= 2 * halo else overlap // 2
    plan = tiling.plan(region.height, region.width, size, overlap, ramp=ramp, step=alignment)
    if overlap < 2 * halo and len(plan) > 1:
        job.warn(
            f"windows of {size} px share {overlap} px, and refiner {refinement.spec.name!r} looks {halo} px "
            f"around: their edges may show; --tile-size {4 * _rounded(halo, alignment)} or more avoids it"
        )
    return Windows(region, plan)


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def refined_of(refinement: Refinement, windows: int, counts: Mapping[str, int]) -> Refined:
    return Refined(
        refiner=refinement.spec.name,
        steps=refinement.config.steps or RefinerEngine.shape(refinement.load()).default_steps,
        band_m=refinement.band_m,
        ensemble=refinement.samples,
        seed=refinement.config.seed,
        windows=windows,
        **{name: counts.get(name, 0) for name in COUNTED},
    )


def refined_cuts(refinement: Refinement, windows: Windows) -> tuple[int, ...]:
    """Return the rows of the map that each row of windows finishes; see `passes.row_cuts`."""
    row, _ = _origin(refinement.frame)
    height = refinement.frame.window[2]
    return passes.row_cuts(
        windows.plan, _window_resampler(refinement, windows), row - windows.region.row, height
    )


def _refined_layers(layers: Mapping[str, slice], classes: int) -> dict[str, slice]:
    refined, first = {}, 0
    for kind in REFINED_LAYERS:
        if kind in layers:
            size = classes if kind == "probabilities" else 1
            refined[kind] = slice(first, first + size)
            first += size
    return refined


def _origin(frame: geometry.Frame) -> tuple[int, int]:
    """Return (row, col) of `frame.seen`, in pixels of the labels, where the map begins."""
    return frame.window[0] + frame.offset[0], frame.window[1] + frame.offset[1]


def _window_resampler(refinement: Refinement, windows: Windows) -> passes.Resampler | None:
    frame, region = refinement.frame, windows.region
    if not frame.resampled:
        return None
    row, col = _origin(frame)
    start = row * frame.scale[0] - region.row, col * frame.scale[1] - region.col
    return passes.Resampler((region.height, region.width), frame.window[2:], frame.scale, start)


def _seen_band(refinement: Refinement) -> geometry.Band:
    """Return the band among the pixels that the refiner sees; wider where these are not the map's."""
    frame = refinement.frame
    gsd_m = frame.seen_gsd_m
    wider = RESAMPLED_PX * max(*gsd_m, *frame.gsd_m) if frame.resampled else 0.0
    return geometry.Band(refinement.band_m + wider, gsd_m)
