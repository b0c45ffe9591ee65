"""A real Ray cluster of this machine: the same pixels as without it, whatever happens to its workers."""

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shared_scenes import SMALL, assert_same, save_models, task_of, workers_at

from rsseg_cli.batch.ray_engine import RayEngine, absolute, connected
from rsseg_cli.batch.ray_pool import RayWorker, files_of
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import UsageError

pytest.importorskip("ray")
torch.set_num_threads(1)
CASES = ("holes", "resampled", "refined", "small", "missing", "two bands")


@pytest.mark.parametrize("remembered", [None, "127.0.0.1:1", "nonsense"])
def test_no_cluster_is_reported(tmp_path, monkeypatch, remembered):
    """First in this file, and nowhere else: "auto" finds any cluster of the machine, this file's too.

    Ray itself remembers a cluster that ended without `ray stop`, and waits for it.
    """
    if remembered is not None:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(remembered)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        pytest.raises(
            UsageError, match="no Ray cluster runs on this machine; start one with `ray start --head`"
        ),
        connected("auto", None),
    ):
        pass


@pytest.fixture(scope="module")
def cluster():
    """With places for two workers; engines use the connection that is there."""
    with connected("local", 2) as ray:
        yield ray


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def kill_one(method: str, killed: list[int], wait_s: float = 300) -> None:
    """SIGKILL to the first worker that is seen inside a method."""
    deadline = time.monotonic() + wait_s
    while not killed and time.monotonic() < deadline:
        for pid in workers_at(method)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.005)


@pytest.fixture(scope="module")
def batch(cluster, models, tmp_path_factory):
    """Scenes of every kind in one run, one of whose workers is killed in the middle of a band.

    Returns:
        (task, outcome) by case; made here instead of there where the case says "here".
    """
    folder = tmp_path_factory.mktemp("batch")
    model, refiner = models
    from rasters import make_raster as factory

    make = factory.__wrapped__(folder)
    large = {"kind": "value", "hole": (120, 0, 90, 70), "shape": (290, 100)}
    scenes = {name: make(f"{name}.tif", **large) for name in CASES[:3]}
    scenes |= {
        "small": make("small.tif"),
        "missing": folder / "no such.tif",
        "two bands": make("two.tif", bands=2),
    }
    more = {
        "holes": {"polygons": "fgb", "kinds": ("labels",)},
        "resampled": {"config": replace(SMALL, gsd_m=0.8)},
        "refined": {"refine": RefineConfig(refiner=refiner, tile_size=64)},
        "small": {"polygons": "fgb"},
    }
    tasks = {
        (case, place): task_of(scenes[case], folder / place, model, index=index, **more.get(case, {}))
        for index, case in enumerate(CASES)
        for place in ("here", "there")
    }
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=("band", killed), daemon=True)
    killer.start()
    engine = RayEngine(split_px=10_000, workers=2)
    there = list(engine.run([tasks[case, "there"] for case in CASES]))
    killer.join()
    assert killed
    runner = SceneRunner()
    found = {(case, "here"): (tasks[case, "here"], runner.run(tasks[case, "here"])) for case in CASES}
    return found | {(CASES[item.index], "there"): (tasks[CASES[item.index], "there"], item) for item in there}


@pytest.mark.parametrize("case", ["holes", "resampled", "refined", "small"])
def test_outputs_are_those_of_this_process_to_the_pixel(batch, case):
    """Three of these scenes ran in bands on two workers, one of which was killed in a band."""
    assert_same(*batch[case, "there"], *batch[case, "here"])


def test_a_scene_fails_alone_with_the_words_of_this_process(batch):
    for case in ("missing", "two bands"):
        ours, theirs = batch[case, "there"][1], batch[case, "here"][1]
        assert ours.error
        assert (ours.error, ours.error_kind) == (theirs.error, theirs.error_kind)
    assert not list(batch["missing", "there"][0].outputs["labels"].parent.glob("*4.tif"))


def test_what_a_worker_does_not_see_is_reported(cluster, make_raster, models, tmp_path):
    task = absolute(task_of(make_raster(), tmp_path / "out", models[0]))
    needed = files_of(task)
    assert needed == (task.scene, task.model, str(tmp_path / "out"))
    outcome = RayWorker().scene(task, (*needed, "/net/sheets/a.tif"))
    assert outcome.error_kind == "SceneError"
    assert outcome.error.startswith(f"/net/sheets/a.tif: not found by the worker on {socket.gethostname()}; ")
    assert "storage that all machines" in outcome.error
    assert files_of(replace(task, scene="s3://bucket/a.tif")) == needed[1:]


def test_paths_do_not_depend_on_the_folder(make_raster, tmp_path, monkeypatch):
    make_raster("a.tif")
    monkeypatch.chdir(tmp_path)
    task = task_of("a.tif", Path("out"), "landcover", config=PredictConfig(aoi=Path("aoi.gpkg")))
    there = absolute(task)
    assert there.scene == str(tmp_path / "a.tif")
    assert there.outputs["labels"] == tmp_path / "out" / "labels0.tif"
    assert (there.model, there.config.aoi) == ("landcover", tmp_path / "aoi.gpkg")
    assert absolute(replace(task, scene="s3://bucket/a.tif")).scene == "s3://bucket/a.tif"
