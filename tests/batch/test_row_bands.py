"""A scene in bands of tile rows gives the outputs of the whole, wherever its bands are run."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from shared_scenes import KINDS, SMALL, assert_same, save_models, task_of

from rsseg_cli.batch.bands import PREFETCH_BANDS, SharedPasses, run_band, split_rows
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import with_device
from rsseg_cli.config import RefineConfig
from rsseg_cli.errors import SceneError
from rsseg_cli.inference import Engine

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


class Threads:
    """A pool of this process; bands and rows are pickled as between machines."""

    def __init__(self, workers, pause_s=0.0):
        self.workers, self.pause_s = workers, pause_s
        self.seen, self.bands, self.most, self.now = [], [], 0, 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1)  # networks are put into evaluation mode one after another
        self._runner = SceneRunner()

    def arithmetic(self, config):
        return Engine.arithmetic(config)

    def submit_band(self, band) -> Future:
        with self._lock:
            self.seen.append((band.first, band.end))
            self.bands.append(("map" if band.refine is None else "refine", band.first, band.end))
            self.now += 1
            self.most = max(self.most, self.now)
        future = self._pool.submit(self._run, pickle.dumps(band))
        future.add_done_callback(self._done)
        return future

    def _run(self, band):
        time.sleep(self.pause_s)
        return pickle.loads(pickle.dumps(run_band(pickle.loads(band), self._runner)))

    def _done(self, _):
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("case", ["holes", "resampled", "refined"])
def test_outputs_are_those_of_the_whole_scene(make_raster, models, tmp_path, case):
    model, refiner = models
    scene = make_raster(shape=(290, 100), kind="value", hole=(120, 0, 90, 70))
    more = {
        "holes": {"polygons": "fgb", "kinds": ("labels",)},
        "resampled": {"config": replace(SMALL, gsd_m=0.8)},
        "refined": {"refine": RefineConfig(refiner=refiner, tile_size=64)},
    }[case]
    here, there = (task_of(scene, tmp_path / name, model, **more) for name in ("here", "there"))
    expected = SceneRunner().run(here)
    pool, reported = Threads(2), []
    runner = SceneRunner(lambda task: SharedPasses(pool, there, min_rows=2))
    outcome = runner.run(with_device(there, "cpu"), lambda *progress: reported.append(progress))
    assert_same(there, outcome, here, expected)
    assert len(pool.seen) >= 2
    assert reported == sorted(reported)
    assert reported[-1][1] == reported[-1][2]
    assert len(list((tmp_path / "there").iterdir())) == len(list((tmp_path / "here").iterdir()))


def test_what_is_noted_is_of_the_whole_scene(make_raster, models, tmp_path):
    """Black where a file names no nodata value: seen by one of three bands, a share of the whole scene."""
    array = np.random.default_rng(0).integers(1, 255, (3, 290, 100)).astype(np.uint8)
    array[:, 200:240] = 0
    scene = make_raster(array=array)
    here, there = (
        task_of(scene, tmp_path / name, models[0], kinds=("labels",)) for name in ("here", "there")
    )
    expected = SceneRunner().run(here)
    outcome = SceneRunner(lambda _: SharedPasses(Threads(3), there)).run(there)
    assert "pure black" in expected.result.notes[0]
    assert_same(there, outcome, here, expected)


def run_shared(task, stop_at, stop):
    """Run a shared scene up to a share of its tiles; the outcome, and (pass, first, end) of its bands."""
    pool = Threads(2)

    def progress(_, done, total):
        if done >= stop_at * total:
            stop()

    return SceneRunner(lambda _: SharedPasses(pool, task, min_rows=1)).run(task, progress), pool.bands


def stop():
    raise KeyboardInterrupt


def die(task, stop_at):
    """The same in a process of its own, that is killed."""
    torch.set_num_threads(1)
    run_shared(task, stop_at, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shared_scene_resumes_by_rows(make_raster, models, tmp_path, killed):
    """Ended in its first pass, and in the one that refines: same outputs, counts and notes."""
    array = np.random.default_rng(0).integers(1, 255, (3, 290, 100)).astype(np.uint8)
    array[:, 10:50] = 0  # tells of holes, in the first rows
    scene = make_raster(array=array)
    more = {
        "refine": RefineConfig(refiner=models[1], tile_size=64),
        "kinds": ("labels", "confidence"),
        "config": replace(SMALL, checkpoint_s=0),
    }
    here, there = (task_of(scene, tmp_path / name, models[0], **more) for name in ("here", "there"))
    expected = SceneRunner().run(here)
    for number, stop_at in enumerate((0.3, 0.62)):
        task = replace(there, resume=number > 0)
        if killed:
            process = multiprocessing.get_context("spawn").Process(target=die, args=(task, stop_at))
            process.start()
            process.join(600)
            assert process.exitcode == -signal.SIGKILL
        else:
            with pytest.raises(KeyboardInterrupt):
                run_shared(task, stop_at, stop)
    outcome, bands = run_shared(replace(there, resume=True), 2, stop)
    assert {name for name, _, _ in bands} == {"refine"}
    assert bands[0][1] == 1  # row of windows: what is finished is not run again
    assert any("pure black" in note for note in outcome.result.notes)
    assert_same(there, outcome, here, expected)


def test_bands_under_way_are_bounded_in_number_and_bytes(make_raster, models, tmp_path):
    scene = make_raster(shape=(400, 70))
    for limit, most in ((1 << 30, 3 + PREFETCH_BANDS), (2 * 50 * 70 * 5, 2)):
        pool, limits = Threads(3), {"min_rows": 1, "max_pending_bytes": limit}
        task = task_of(scene, tmp_path / f"{limit}", models[0], kinds=KINDS)
        passes = SharedPasses(pool, task, **limits)
        assert SceneRunner(lambda _, passes=passes: passes).run(task).error == ""
        assert pool.most <= most
        assert [first for first, _ in pool.seen][1:] == [end for _, end in pool.seen][:-1]


def test_an_error_of_a_band_is_the_scenes(make_raster, models, tmp_path, monkeypatch):
    task = task_of(make_raster(shape=(400, 70)), tmp_path / "out", models[0])
    pool = Threads(2)
    monkeypatch.setattr(pool, "_run", lambda band: (_ for _ in ()).throw(SceneError("scene.tif: row 7")))
    outcome = SceneRunner(lambda _: SharedPasses(pool, task)).run(task)
    assert (outcome.error, outcome.error_kind) == ("scene.tif: row 7", "SceneError")
    assert [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("first", "end", "workers", "most", "expected"),
    [
        (0, 1, 4, 99, [(0, 1)]),
        (0, 4, 4, 99, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (0, 5, 2, 99, [(0, 2), (2, 5)]),
        (0, 64, 2, 99, [(0, 16), (16, 32), (32, 48), (48, 64)]),
        (60, 64, 1, 99, [(60, 64)]),
        (0, 8, 1, 3, [(0, 2), (2, 5), (5, 8)]),
        (8, 8, 2, 99, []),
    ],
)
def test_tile_rows_are_shared_out_evenly(first, end, workers, most, expected):
    assert split_rows(first, end, workers, most) == expected


def test_the_run_of_a_map_names_the_arithmetic_of_the_workers(make_raster, models, tmp_path):
    """Rows of a GPU are not resumed by the CPU of the process that writes them."""

    class Gpus(Threads):
        def arithmetic(self, config):
            choice = Engine.arithmetic(config)
            gpu = choice.other._replace(device="cuda", dtype="bfloat16")
            return choice._replace(compiled=gpu, other=gpu)

    scene, runs = make_raster(shape=(130, 100)), {}
    for pool in (Threads(2), Gpus(2)):
        task = task_of(scene, tmp_path / type(pool).__name__, models[0], kinds=("labels",))
        assert SceneRunner(lambda _, pool=pool, task=task: SharedPasses(pool, task)).run(task).error == ""
        with rasterio.open(task.outputs["labels"]) as dataset:
            runs[type(pool)] = dataset.tags()["RSSEG_RUN"]
    assert runs[Threads] != runs[Gpus]
