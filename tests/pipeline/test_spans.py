"""A pass over some tile rows gives the pixels of the pass over all of them, wherever it is cut."""

import itertools

import numpy as np
import pytest
import torch
from networks import Local, trained
from refiners import LocalRefiner, refiner
from scipy import ndimage

from rsseg_cli import PredictConfig, RefineConfig
from rsseg_cli.inference import Engine, Scaling, passes, tiling
from rsseg_cli.pipeline.job import prepare
from rsseg_cli.pipeline.passes import Passes, PassState, plan_tiles, plan_windows
from rsseg_cli.pipeline.refinement import prepare as prepare_refinement

torch.set_num_threads(1)


class Rows:
    """Keeps the rows that are handed on."""

    def __init__(self, shape):
        self.values = np.zeros(shape, np.uint8)
        self.seen = np.zeros(shape[1], int)

    def write(self, row, rows):
        self.values[:, row : row + rows.shape[1]] = rows
        self.seen[row : row + rows.shape[1]] += 1


class BatchCounts(Local):
    """Sees what else is in its batch, as kernels on some devices do in their last bits."""

    def forward(self, pixels):
        return super().forward(pixels) + pixels.mean() * torch.arange(5.0).view(1, -1, 1, 1)


def job_of(scene, tmp_path, kinds, network=None, **settings):
    spec = {"gsd_m": settings["gsd_m"], "gsd_range_m": (0.01, 100.0)} if "gsd_m" in settings else {}
    model = trained(network or Local(), 5, **spec)
    config = PredictConfig(**{"tile_size": 64, "overlap": 16, "batch_size": 1} | settings)
    paths = {kind: tmp_path / f"{kind}.tif" for kind in ("labels", *kinds)}
    return prepare(str(scene), paths, model, config), model


def mapped(job, model, first=0, end=None, state=None):
    channels = max(part.stop for part in job.layers.values())
    rows = Rows((channels, job.grid.height, job.grid.width))
    calls = []
    rest = passes.Pass(layers=job.layers, write=rows.write, progress=calls.append, first=first, end=end)
    Passes(model).map(job, rest, state or PassState())
    return rows, calls


@pytest.mark.parametrize(
    ("kinds", "gsd_m", "overlap"),
    [
        ((), None, 0),
        ((), None, 16),
        (("confidence", "probabilities"), None, 32),
        ((), 0.33, 32),
        (("confidence", "probabilities"), 0.4, 16),
        ((), 0.83, 16),
        (("confidence",), 0.65, 0),
    ],
)
def test_any_cut_gives_the_same_pixels(make_raster, tmp_path, kinds, gsd_m, overlap):
    """With a hole that takes out whole tiles, and one inside tiles."""
    scene = make_raster(
        shape=(150, 90), kind="value", hole=(50, 0, 70, 40), dtype="float32" if overlap == 16 else "uint8"
    )
    sizes = {} if gsd_m is None else {"gsd_m": gsd_m}
    job, model = job_of(scene, tmp_path, kinds, overlap=overlap, tile_size=64, **sizes)
    whole, calls = mapped(job, model)
    assert calls[-1] == len(plan_tiles(job))
    assert (whole.seen == 1).all()
    count = len(plan_tiles(job).rows)
    assert count > 1
    for cut in range(1, count):
        above, calls = mapped(job, model, 0, cut)
        assert calls[-1] <= len(plan_tiles(job))
        below, calls = mapped(job, model, cut)
        assert calls[0] > (cut - 2) * len(plan_tiles(job).cols)
        np.testing.assert_array_equal(above.seen + below.seen, 1)
        joined = np.where(above.seen[None, :, None], above.values, below.values)
        np.testing.assert_array_equal(joined, whole.values)


def test_each_tile_row_alone(make_raster, tmp_path):
    """Tile rows pushed together, whose blocks are no higher than the ramp."""
    scene = make_raster(shape=(100, 70))
    for gsd_m in (None, 0.4):
        job, model = job_of(
            scene, tmp_path, ["confidence"], tile_size=64, overlap=32, **({"gsd_m": gsd_m} if gsd_m else {})
        )
        whole, _ = mapped(job, model)
        parts = [mapped(job, model, row, row + 1)[0] for row in range(len(plan_tiles(job).rows))]
        assert (sum(part.seen for part in parts) == 1).all()
        for part in parts:
            rows = part.seen == 1
            np.testing.assert_array_equal(part.values[:, rows], whole.values[:, rows])


@pytest.mark.parametrize("batch_size", [2, 3])
def test_tiles_are_in_the_same_batch_wherever_a_run_begins(make_raster, tmp_path, batch_size):
    scene = make_raster(shape=(700, 90))
    job, model = job_of(
        scene, tmp_path, [], network=BatchCounts(), tile_size=64, overlap=16, batch_size=batch_size
    )
    whole, _ = mapped(job, model)
    for first, end in [(0, 3), (3, 7), (6, 12), (7, 8), (9, None)]:
        part, _ = mapped(job, model, first, end)
        rows = part.seen == 1
        assert rows.any()
        np.testing.assert_array_equal(part.values[:, rows], whole.values[:, rows])


def test_a_pass_may_continue_with_the_batches_that_memory_left(make_raster, tmp_path):
    class Growing(BatchCounts):
        """Has memory for two batches of eight tiles, then for four at a time."""

        def forward(self, pixels):
            self.calls += 1
            if self.calls > 2 and len(pixels) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(pixels)

    scene = make_raster(shape=(1100, 150))
    network = Growing()
    network.calls = 0
    job, model = job_of(scene, tmp_path, [], network=network, tile_size=64, overlap=16, batch_size=8)
    assert len(plan_tiles(job).cols) == 3
    state = PassState()
    whole, _ = mapped(job, model, state=state)
    assert state.current_batch_size() == 4
    job, model = job_of(scene, tmp_path, [], network=BatchCounts(), tile_size=64, overlap=16, batch_size=8)
    before, _ = mapped(job, model)
    assert (before.values != whole.values).any()
    for first in (9, 13, 17):
        part, _ = mapped(job, model, first, state=PassState(batch_size=4))
        rows = part.seen == 1
        np.testing.assert_array_equal(part.values[:, rows], whole.values[:, rows])


@pytest.mark.parametrize(("resampled", "most"), [(False, 1), (True, 2)])
def test_few_tile_rows_are_run_again(resampled, most):
    for length, overlap in itertools.product(range(64, 700, 13), (0, 8, 20, 32)):
        layout = tiling.plan(length, 64, 64, overlap)
        engine = Engine(
            torch.nn.Identity(),
            classes=5,
            scaling=Scaling(factors=(1.0,), offsets=(0.0,)),
            config=PredictConfig(batch_size=1),
        )
        for first in range(len(layout.rows)):
            span = passes.span_of(layout, engine, resampled=resampled, first=first)
            assert 0 <= first - span.run_first <= min(most, first)
            if not resampled and overlap == 0:
                assert span.run_first == first


@pytest.mark.parametrize("gsd_m", [None, 1.0])
def test_a_refining_pass_may_be_cut_anywhere(make_raster, tmp_path, gsd_m):
    noise = np.random.default_rng(3).normal(size=(3, 150, 120))
    classes = np.stack([ndimage.gaussian_filter(part, 5) for part in noise]).argmax(0).astype(np.uint8)
    labels = make_raster("labels.tif", array=classes[None], nodata=255)
    scene = make_raster(shape=(150, 120), kind="value", hole=(60, 30, 20, 40))
    paths = {kind: tmp_path / f"{kind}-refined.tif" for kind in ("labels", "uncertainty")}
    config = RefineConfig(refiner=refiner(LocalRefiner()), band_m=1.5, tile_size=32, ensemble=2, gsd_m=gsd_m)
    job, refinement, source = prepare_refinement(
        str(scene), str(labels), paths, config, PredictConfig(batch_size=1)
    )
    windows = plan_windows(refinement, job)

    def refined(first=0, end=None):
        rows = Rows((2, *classes.shape))
        state = PassState()
        wanted = passes.Pass(layers=job.layers, write=rows.write, progress=int, first=first, end=end)
        Passes().refine(refinement, windows, source, wanted, state)
        return rows, state.counted()

    whole, reported = refined()
    count = len(windows.plan.rows)
    assert count > 2
    for cut in range(1, count):
        (above, first_half), (below, second_half) = refined(0, cut), refined(cut)
        np.testing.assert_array_equal(above.seen + below.seen, 1)
        joined = np.where(above.seen[None, :, None], above.values, below.values)
        np.testing.assert_array_equal(joined, whole.values)
        for name in ("windows_run", "band_pixels", "changed_pixels"):
            assert first_half[name] + second_half[name] == reported[name]
    assert reported != first_half
