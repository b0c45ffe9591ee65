"""Scenes as tasks: networks stay loaded, errors stay with their scene."""

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import rasterio
import torch

from rsseg_cli.batch.local import ENDED, LocalEngine, WorkerProcess, devices_for
from rsseg_cli.batch.task import SceneTask
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.system import cores
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
SMALL = PredictConfig(tile_size=64, overlap=16)
LISTINGS = ("os.listdir", "os.scandir", "glob.glob", "glob.glob/2", "pathlib.Path.glob", "pathlib.Path.rglob")


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


def test_a_scene_fails_alone_and_says_why(make_raster, model_file, tmp_path):
    scenes = [
        make_raster("a.tif"),
        tmp_path / "none.tif",
        make_raster("c.tif", bands=2),
        make_raster("d.tif"),
    ]
    seen = []
    tasks = [task(index, scene, tmp_path, model_file) for index, scene in enumerate(scenes)]
    tasks = pickle.loads(pickle.dumps(tasks))
    outcomes = list(LocalEngine().run(tasks, lambda *tiles: seen.append(tiles)))
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


def test_a_scene_is_finished_while_the_next_is_mapped(make_raster, model_file, tmp_path):
    tasks = [task(index, make_raster(f"{index}.tif"), tmp_path, model_file) for index in range(3)]
    events = []
    for outcome in LocalEngine().run(tasks, lambda index, done, total: events.append(f"{index} is mapped")):
        assert outcome.result.paths["labels"].exists()
        events.append(f"{outcome.index} is published")
    published = [events.index(f"{index} is published") for index in range(3)]
    assert published == sorted(published)
    assert events.index("1 is mapped") < published[0]
    assert events.index("2 is mapped") < published[1]


def test_what_was_mapped_is_told_before_an_interrupt(make_raster, model_file, tmp_path):
    def stop(index, done, total):
        if index == 1:
            raise KeyboardInterrupt

    tasks = [task(index, make_raster(f"{index}.tif"), tmp_path, model_file) for index in range(2)]
    outcomes = LocalEngine().run(tasks, stop)
    assert next(outcomes).result.paths["labels"].exists()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert [path.name for path in tmp_path.glob(".map*")] == []


def test_work_for_a_scene_does_not_grow_with_the_folder(make_raster, model_file, tmp_path):
    """Neither files beside a scene nor those beside its outputs are listed."""
    (tmp_path / "maps").mkdir()
    tasks = [task(index, make_raster(f"{index}.tif"), tmp_path / "maps", model_file) for index in range(4)]
    more = {"confidence": "c.tif", "preview": "p.png", "vector": "v.gpkg"}
    tasks = [
        replace(
            each,
            outputs=each.outputs
            | {kind: tmp_path / "maps" / f"{each.index}{end}" for kind, end in more.items()},
        )
        for each in tasks
    ]
    listed, counts = [], []
    sys.addaudithook(lambda event, given: listed.append(str(given[0])) if event in LISTINGS else None)
    for outcome in LocalEngine().run(tasks):
        assert outcome.error == ""
        counts.append(len(listed))
    assert counts[0] > 0
    assert not {str(tmp_path), str(tmp_path / "maps")} & set(listed)


def test_a_model_that_cannot_be_loaded_ends_the_batch(make_raster, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x02 a pickle")
    with pytest.raises(ModelError, match="pickle"):
        next(LocalEngine().run([task(0, make_raster(), tmp_path, str(broken))]))


def children() -> list[int]:
    """Processes that this one has started."""
    return [
        int(word) for path in Path("/proc/self/task").glob("*/children") for word in path.read_text().split()
    ]


def kill_children() -> None:
    for child in children():
        os.kill(child, signal.SIGKILL)


def test_devices_of_processes():
    assert devices_for("cpu", None) == ["cpu"]
    assert devices_for("cpu", 3) == ["cpu"] * 3
    assert len(devices_for("cpu", 0)) == max(1, cores() // 4)
    two = ["cuda:0", "cuda:1"]
    assert devices_for("auto", None, two) == devices_for("auto", 0, two) == two
    assert devices_for("auto", 3, two) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_for("cpu", None, two) == ["cpu"]


@pytest.mark.slow
def test_a_process_a_device(make_raster, model_file, tmp_path):
    """Two devices, here of the processor: each has a process, which stays for the next scene."""
    before, running = set(children()), set()
    scenes = [make_raster(f"s{index}.tif", seed=index) for index in range(5)]
    engine = LocalEngine(devices=["cpu:0", "cpu:0"])
    tasks = [task(i, scene, tmp_path, model_file) for i, scene in enumerate(scenes)]
    outcomes = list(engine.run(tasks, lambda *_: running.update(set(children()) - before)))
    assert sorted((outcome.index, outcome.error) for outcome in outcomes) == [(i, "") for i in range(5)]
    assert len(running) == 2
    assert set(children()) == before


@pytest.mark.slow
def test_a_plain_script_needs_no_main_guard(make_raster, model_file, tmp_path):
    for index in range(2):
        make_raster(f"s{index}.tif", seed=index)
    script = tmp_path / "script.py"
    script.write_text(
        "print('imported')\n"
        "from pathlib import Path\n"
        "from rsseg_cli.batch import BatchSettings, LocalEngine, list_scenes, run_batch\n"
        "scenes = list_scenes(['s0.tif', 's1.tif'])\n"
        f"settings = BatchSettings(folder=Path('maps'), model={model_file!r})\n"
        "print(run_batch(scenes, settings, LocalEngine(jobs=2)).count('done'))\n"
    )
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["imported", "2"]), done.stderr


def end_the_processes_at(scene):
    """A progress callback that kills this process's children when a scene begins, the first time."""
    killed = []

    def report(index, done, total):
        if index == scene and not killed:
            killed.append(index)
            kill_children()

    return report


@pytest.mark.slow
def test_processes_give_what_one_process_gives_and_may_die(make_raster, model_file, tmp_path):
    (tmp_path / "one").mkdir()
    scenes = [make_raster(f"s{index}.tif", seed=index, shape=(200, 150)) for index in range(4)]
    scenes[1] = tmp_path / "none.tif"
    tasks = [task(index, scene, tmp_path, model_file) for index, scene in enumerate(scenes)]
    # both processes are killed while they work: their scenes are done in new ones
    outcomes = list(LocalEngine(2).run(tasks, end_the_processes_at(0)))
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
    assert not children()


def test_a_dead_process_is_an_outcome_and_another_takes_its_place(make_raster, model_file, tmp_path):
    def report(index, done, total):
        if index == 0:
            kill_children()

    tasks = [task(0, make_raster(), tmp_path, model_file)]
    process = WorkerProcess(1)
    try:
        process.give(tasks[0])
        while (outcome := process.receive(report)) is None:
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
