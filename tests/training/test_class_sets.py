"""Labels that say which classes a pixel may be: read, trained on, left out of scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig, LabelReader, datasets
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.evaluation import evaluate
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.raster import SceneInfo
from rsseg_cli.training import config as settings
from rsseg_cli.training import resolve_refiner_settings, train_refiner
from rsseg_cli.training.module import SegmentationModule
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel

ITEMS = [
    {"name": "road", "value": 1},
    {"name": "roof", "value": 2},
    {"name": "grass", "value": 3},
    {"name": "sealed", "value": 9, "any_of": ["Roof", "road"]},
]


def write(path: Path, array: np.ndarray) -> None:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=from_origin(5e5, 5e6, 1, 1), **profile
    ) as target:
        target.write(array.astype(np.uint8))


@pytest.fixture
def sheets(tmp_path: Path) -> DataConfig:
    """Two scenes, half of whose labels are sealed, the rest road and grass."""
    folder = tmp_path / "sheets"
    labels = np.full((1, 64, 64), 9)
    labels[:, 32:, :32], labels[:, 32:, 32:] = 1, 3
    for name in ("a", "b"):
        for kind, array in (("images", np.repeat(labels * 20, 3, 0)), ("masks", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write(folder / kind / f"{name}.tif", array)
    (tmp_path / "classes.json").write_text(json.dumps(ITEMS))
    return DataConfig(folders=(folder,), val=("b",), classes=str(tmp_path / "classes.json"))


def spec() -> ModelSpec:
    return ModelSpec(
        name="t", architecture="bicor-seg", classes=ClassSpec.from_names(["road", "roof", "grass"]), gsd_m=1.0
    )


def test_a_set_has_the_number_behind_the_classes(sheets: DataConfig) -> None:
    data = datasets.open_data(sheets)
    assert data.class_names == ("road", "roof", "grass")
    assert data.sets == {"sealed": (0, 1)}
    scene = data.sources[0]
    with LabelReader(scene.labels, SceneInfo.of(scene.image).grid, scene.label_format(())) as reader:
        values, counts = np.unique(reader.read(0, 0, 64, 64), return_counts=True)
    assert values.tolist() == [0, 2, 3]
    assert counts.tolist() == [1024, 1024, 2048]


@pytest.mark.parametrize(
    ("any_of", "problem"),
    [(["roof", "lake"], "no class lake"), (["road", "roof", "grass"], "all classes; call it unlabelled")],
)
def test_sets_that_say_nothing_are_refused(
    sheets: DataConfig, tmp_path: Path, any_of: list[str], problem: str
) -> None:
    (tmp_path / "classes.json").write_text(json.dumps([*ITEMS[:3], {**ITEMS[3], "any_of": any_of}]))
    with pytest.raises(DataError, match=problem):
        datasets.open_data(sheets)


def test_the_loss_lets_a_pixel_be_any_of_its_set(sheets: DataConfig) -> None:
    data = datasets.open_data(sheets)
    scene = data.sources[0].load(spec(), None)
    torch.manual_seed(0)
    network = BicorSeg(BicorSegConfig(classes=3, encoder="test_efficientnet", channels=16))
    module = SegmentationModule(network, spec(), settings.TrainConfig(), 1, sets=data.sets)
    image, labels = torch.from_numpy(scene.image)[None], torch.from_numpy(scene.labels)[None]
    batch = image, labels, torch.ones(1, 6)  # colours as they are
    loss, parts = module.losses(batch)
    assert set(parts) == {"main", "auxiliary", "heatmaps", "fisher", "embeddings"}
    loss.backward()
    before = loss.item()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        module.losses(batch)[0].backward()
        optimizer.step()
    assert module.losses(batch)[0] < 0.9 * before
    mapped = network(module.normalise(image)).argmax(1)[0, :32]
    assert ((mapped == 0) | (mapped == 1)).float().mean() > 0.9
    module.on_validation_epoch_start()
    module.validation_step((image, labels), 0)
    assert module.confusion.sum() == 2048


def test_scores_leave_sets_out_and_say_so(sheets: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = BicorSeg(BicorSegConfig(classes=3, encoder="test_efficientnet", channels=16))
    config = PredictConfig(tile_size=64, overlap=0, device="cpu", runtime="torch")
    scored = evaluate(TrainedModel(network, spec()), datasets.open_data(sheets), "val", config=config)
    assert scored.result.confusion.sum() == 2048
    assert "labelled sealed say only which classes they may be; left out" in caplog.text


def test_refiners_learn_from_single_classes_alone(sheets: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a refiner learns from no sets of classes \(sealed\)"):
        train_refiner(
            tmp_path / "r.safetensors", sheets, resolve_refiner_settings({}),
            settings.RunOptions(run_dir=tmp_path / "run"), settings.ModelInfo(name="r"),
        )  # fmt: skip
