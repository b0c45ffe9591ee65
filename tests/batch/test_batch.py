"""Scenes as tasks: networks stay loaded, errors stay with their scene."""

import multiprocessing
import os
import pickle
import signal
from dataclasses import asdict

import pytest
import rasterio
import torch

from rsseg_cli.batch import local as batch_local
from rsseg_cli.batch.local import ENDED, LocalEngine, WorkerProcess, cores, devices_for
from rsseg_cli.batch.task import SceneTask
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
SMALL = PredictConfig(tile_size=64, overlap=16)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    external = ModelSpec.for_network(classes=["roof", "road", "tree"])
    spec = ModelSpec(name="tiny", architecture="bicor-seg", classes=external.classes, network=asdict(config))
    return str(save_model(tmp_path_factory.mktemp("model") / "model.safetensors", BicorSeg(config), spec))


def task(index, scene, folder, model, **more):
    outputs = {"labels": folder / f"map{index}.tif"}
    return SceneTask(index=index, scene=str(scene), outputs=outputs, model=model, config=SMALL, **more)


def test_a_scene_fails_alone_and_tells_why(make_raster, model_file, tmp_path):
    scenes = [
        make_raster("a.tif"),
        tmp_path / "none.tif",
        make_raster("c.tif", bands=2),
        make_raster("d.tif"),
    ]
    seen = []
    tasks = [task(index, scene, tmp_path, model_file) for index, scene in enumerate(scenes)]
    tasks = pickle.loads(pickle.dumps(tasks))
    outcomes = list(LocalEngine().run(tasks, lambda *told: seen.append(told)))
    outcomes = pickle.loads(pickle.dumps(outcomes))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]
    assert [outcome.error_kind for outcome in outcomes] == ["", "SceneError", "SceneError", ""]
    assert "none.tif" in outcomes[1].error
    assert "2 bands" in outcomes[2].error
    assert outcomes[3].result.pixels == 60 * 80
    assert seen[-1] == (3, 2, 2)
    with rasterio.open(tmp_path / "map3.tif") as dataset:
        assert dataset.shape == (60, 80)
    assert not (tmp_path / "map1.tif").exists()


def test_a_model_that_cannot_be_loaded_ends_the_batch(make_raster, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x02 a pickle")
    with pytest.raises(ModelError, match="pickle"):
        next(LocalEngine().run([task(0, make_raster(), tmp_path, str(broken))]))


def test_places_of_processes():
    assert devices_for("cpu", None) == ["cpu"]
    assert devices_for("cpu", 3) == ["cpu"] * 3
    assert len(devices_for("cpu", 0)) == max(1, cores() // 4)


@pytest.mark.slow
def test_a_process_a_device(make_raster, model_file, tmp_path, monkeypatch):
    """Two devices, here of the processor: each has a process of its own, and its tasks stay with it."""
    monkeypatch.setattr(batch_local, "gpus", lambda: ["cpu:0", "cpu:1"])
    assert devices_for("auto", None) == devices_for("auto", 0) == ["cpu:0", "cpu:1"]
    assert devices_for("auto", 3) == ["cpu:0", "cpu:1", "cpu:0"]
    assert devices_for("cpu:0", None) == ["cpu:0"]
    given = []

    class Told(WorkerProcess):
        def give(self, task):
            super().give(task)
            given.append((self._process.pid, task.config.device))

    monkeypatch.setattr(batch_local, "WorkerProcess", Told)
    scenes = [make_raster(f"s{index}.tif", seed=index) for index in range(5)]
    outcomes = list(
        LocalEngine().run([task(i, scene, tmp_path, model_file) for i, scene in enumerate(scenes)])
    )
    assert sorted((outcome.index, outcome.error) for outcome in outcomes) == [(i, "") for i in range(5)]
    assert len(given) == 5
    assert sorted(device for _, device in set(given)) == ["cpu:0", "cpu:1"]
    assert len({pid for pid, _ in given}) == 2


def end_the_process_of(scene):
    """A progress callback that kills this process's child when a scene begins, the first time."""
    killed = []

    def told(index, done, total):
        if index == scene and not killed:
            killed.append(index)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    return told


@pytest.mark.slow
def test_processes_give_what_one_process_gives_and_may_die(make_raster, model_file, tmp_path):
    (tmp_path / "one").mkdir()
    scenes = [make_raster(f"s{index}.tif", seed=index, shape=(200, 150)) for index in range(4)]
    scenes[1] = tmp_path / "none.tif"
    tasks = [task(index, scene, tmp_path, model_file) for index, scene in enumerate(scenes)]
    # both processes are killed while they work: their scenes are done in new ones
    outcomes = list(LocalEngine(2).run(tasks, end_the_process_of(0)))
    assert sorted(outcome.index for outcome in outcomes) == [0, 1, 2, 3]
    assert {outcome.index: outcome.error_kind for outcome in outcomes} == {
        0: "",
        1: "SceneError",
        2: "",
        3: "",
    }
    alone = [task(index, scene, tmp_path / "one", model_file) for index, scene in enumerate(scenes)]
    list(LocalEngine().run(alone))
    for index in (0, 2, 3):
        with (
            rasterio.open(tmp_path / f"map{index}.tif") as many,
            rasterio.open(tmp_path / "one" / f"map{index}.tif") as one,
        ):
            assert (many.read() == one.read()).all()
    assert not multiprocessing.active_children()


def test_a_dead_process_is_an_outcome_and_another_takes_its_place(make_raster, model_file, tmp_path):
    def told(index, done, total):
        if index == 0:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    tasks = [task(0, make_raster(), tmp_path, model_file)]
    process = WorkerProcess(1)
    try:
        process.give(tasks[0])
        while (outcome := process.receive(told)) is None:
            pass
        assert outcome.error_kind == ENDED
        assert "died by signal 9, perhaps for lack of memory; use fewer --jobs" in outcome.error
        process.give(tasks[0])  # in a new process
        while (outcome := process.receive(None)) is None:
            pass
        assert outcome.error == ""
    finally:
        process.request_stop()
        process.join()
