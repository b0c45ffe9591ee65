"""The passes over a scene, in this process or elsewhere."""

from __future__ import annotations

from functools import partial

from rsseg_cli.config import PredictConfig
from rsseg_cli.inference import Engine, Pass, passes, tiling
from rsseg_cli.pipeline.checkpoint import PassState
from rsseg_cli.pipeline.job import Job
from rsseg_cli.pipeline.refinement import LabelSource, Refinement
from rsseg_cli.pipeline.windows import Windows, refine_pass
from rsseg_cli.raster import SceneInfo
from rsseg_cli.system import give_back_memory
from rsseg_cli.weights import TrainedModel

Progress = passes.Progress
__all__ = [
    "Job", "LabelSource", "PassState", "Passes", "Refinement", "Windows",
    "map_pass", "plan_tiles", "refine_pass",
]  # fmt: skip


class Passes:
    """The two passes over a scene, in this process; subclasses run them elsewhere. Rows come in order.

    Args:
        model: that maps; not needed where a map is refined.
    """

    def __init__(self, model: TrainedModel | None = None) -> None:
        self._model = model

    def arithmetic(self, config: PredictConfig) -> tuple[str, str]:
        """Return the kind of device and the dtype with which networks run: results depend on both."""
        return Engine.arithmetic(config)

    def map(self, job: Job, rows: Pass, state: PassState) -> None:
        """See `map_pass`."""
        if self._model is None:
            raise ValueError("no model to map with")
        map_pass(job, self._model, rows, state)

    def refine(
        self, refinement: Refinement, windows: Windows, source: LabelSource, rows: Pass, state: PassState
    ) -> None:
        """See `refine_pass`."""
        refine_pass(refinement, refinement.load().network, windows, source, rows, state)


def plan_tiles(job: Job) -> tiling.Plan:
    """Return the tiles that the network sees."""
    seen, config = job.network_grid, job.config
    return tiling.plan(seen.height, seen.width, config.tile_size, config.overlap)


def map_cuts(job: Job) -> tuple[int, ...]:
    """Return the rows of the map that each tile row finishes; see `passes.row_cuts`."""
    return passes.row_cuts(plan_tiles(job), _resampler(job))


def map_pass(job: Job, model: TrainedModel, rows: Pass, state: PassState | None = None) -> None:
    """Stream the scene through the network into finished rows; `state` is that to resume from."""
    state = state or PassState()
    engine = Engine(
        model.network,
        classes=len(job.spec.classes),
        scaling=job.scaling,
        config=state.config(job.config),
        heatmaps="heatmaps" in rows.layers,
        probabilities=job.resampled or "confidence" in rows.layers or "probabilities" in rows.layers,
    )
    with engine:
        plan = plan_tiles(job)
        assembler = passes.Assembler(engine, plan, rows, resampler=_resampler(job))
        state.current_batch_size = partial(engine.batch_size, plan.rows.size, plan.cols.size)
        give_back_memory()
        with job.reader(job.network_grid) as reader:
            striped = _is_striped(job.info)
            passes.run_pass(
                engine,
                assembler,
                reader,
                rows,
                # Blocks that are strips are left to GDAL's cache: each thread would decode them whole.
                threads=1 if striped else job.config.readers,
                block_width=1 if job.resampled or striped else job.info.block_shape[1],
            )


def _resampler(job: Job) -> passes.Resampler | None:
    if not job.resampled:
        return None
    seen, grid = job.network_grid, job.grid
    return passes.Resampler((seen.height, seen.width), (grid.height, grid.width))


def _is_striped(info: SceneInfo) -> bool:
    return info.block_shape[1] == info.grid.width
