"""Scenes as tasks: networks stay loaded, errors stay with their scene."""

import pickle
from dataclasses import asdict

import pytest
import rasterio
import torch

from rsseg_cli.batch_local import LocalEngine
from rsseg_cli.batch_task import SceneTask
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.models.bicor_seg import BicorSeg, BicorSegConfig
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
