"""Temperatures and statistics of the training data: chosen, written into model files, and what they do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import load_file

from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig, datasets
from rsseg_cli.errors import DataError, ModelError
from rsseg_cli.evaluation import evaluate
from rsseg_cli.inference import domain
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.pipeline import predict
from rsseg_cli.training import calibration
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, load_model, read_spec, save_model

NAMES = ("dark", "bright")
RUN = PredictConfig(tile_size=64, overlap=16, device="cpu", runtime="torch")


def write(path: Path, array: np.ndarray, where: int = 0) -> Path:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    transform = from_origin(500000 + 1000 * where, 5000000, 1, 1)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as written:
        written.write(array.astype(np.uint8))
    return path


def sheet(seed: int, side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Squares of two classes; a fifth of the labels is the other class, so that nobody can be certain."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 2, (8, 8)), np.ones((side // 8, side // 8))).astype(np.uint8)
    image = truth * 120 + 60 + rng.integers(0, 30, (3, side, side))
    labels = np.where(rng.random(truth.shape) < 0.2, 1 - truth, truth)
    return image, labels[None]


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Training scenes a and b, and c for validation."""
    folder = tmp_path / "sheets"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate("abc"):
        for kind, array in zip(("images", "masks"), sheet(number), strict=True):
            write(folder / kind / f"{name}.tif", array, number)
    return folder


def data_of(sheets: Path) -> DataConfig:
    return DataConfig(folders=(sheets,), val=("c",), classes=",".join(NAMES))


def certain(temperature: float = 1.0) -> TrainedModel:
    """A network that tells the squares apart by brightness, far too sure of itself."""
    torch.manual_seed(0)
    network = BicorSeg(BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16)).eval()
    explain = network.explain

    def brightness(image: torch.Tensor) -> Any:
        bright = 40 * (image.mean(1) - 0.55)
        return explain(image)._replace(logits=torch.stack([-bright, bright], 1))

    network.explain = brightness  # type: ignore[method-assign]
    spec = ModelSpec(
        name="squares", architecture="bicor-seg", classes=ClassSpec.from_names(NAMES), mean=(0.0,) * 3,
        std=(1.0,) * 3, network={"classes": 2, "encoder": "test_efficientnet", "channels": 16}, gsd_m=1.0,
        temperature=temperature,
    )  # fmt: skip
    return TrainedModel(network, spec)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_temperature_makes_confidence_the_share_of_right_pixels(sheets: Path) -> None:
    data = datasets.open_data(data_of(sheets))
    model = certain()
    spec = calibration.calibrate(model, data, config=RUN)
    found = spec.scores["calibration"]
    assert found["ece_before"] > 0.15
    assert found["ece_after"] < 0.03
    assert spec.temperature == found["temperature"] > 3
    assert found["log_loss_after"] < found["log_loss_before"]
    scored = evaluate(replace(model, spec=spec), data, "val", config=RUN).result.scores["calibration"]
    assert scored["ece"] == pytest.approx(found["ece_after"], abs=0.02)
    assert sum(row["pixels"] for row in scored["bins"]) == scored["pixels"] == 128 * 128


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_maps_are_the_same_at_any_temperature(sheets: Path, tmp_path: Path, tta: str) -> None:
    made = {}
    for temperature in (1.0, 16.0):
        paths = {
            kind: tmp_path / f"{kind}{temperature}.tif" for kind in ("map", "confidence", "probabilities")
        }
        config = replace(RUN, tta=tta)
        predict(sheets / "images/c.tif", paths.pop("map"), model=certain(temperature), config=config, **paths)
        plain = tmp_path / f"plain{temperature}.tif"  # blended as logits where no probabilities are wanted
        predict(sheets / "images/c.tif", plain, model=certain(temperature), config=config)
        made[temperature] = [
            read(tmp_path / f"map{temperature}.tif"),
            read(plain),
            *map(read, paths.values()),
        ]
    sharp, soft = made[1.0], made[16.0]
    assert np.array_equal(sharp[0], soft[0])
    assert np.array_equal(sharp[1], soft[1])
    assert soft[2].mean() < sharp[2].mean() - 10
    assert np.array_equal(soft[2][0], soft[3].max(0))
    assert np.abs(soft[3].sum(0).astype(int) - 254).max() <= 1


def test_command_writes_a_temperature_and_says_so(sheets: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", certain().network, certain().spec)
    given = "m.safetensors -o out.safetensors --data sheets --val c --classes dark,bright --device cpu"
    command = [sys.executable, "-m", "rsseg_cli", "models", "calibrate", *given.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_spec(tmp_path / "out.safetensors").temperature != 1


def test_the_description_is_written_beside_the_same_tensors(sheets: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    save_model(source, certain().network, certain().spec)
    source.with_suffix(".md").write_text("# squares\n\ntext\n\n## Commands\n\n    rsseg train\n")
    for _ in range(2):  # its own section is replaced
        spec = calibration.calibrate_file(str(source), target, data_of(sheets), config=RUN, overwrite=True)
        source.with_suffix(".md").write_text(target.with_suffix(".md").read_text())
    stored = read_spec(target)
    assert stored == spec
    assert stored.temperature != 1
    assert set(stored.training_tiles) == {"colour", "texture", "features"}
    before, after = load_file(source), load_file(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    card = target.with_suffix(".md").read_text()
    assert card.count("## Confidence") == 1
    assert card.index("## Confidence") < card.index("## Commands")
    assert f"{stored.scores['calibration']['ece_after']:.3f} with it" in card


def test_a_scene_unlike_the_training_data_is_noted(
    sheets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = certain()
    spec = calibration.calibrate(model, datasets.open_data(data_of(sheets)), config=RUN)
    model = replace(model, spec=spec)
    familiar = write(tmp_path / "familiar.tif", sheet(7)[0])
    snow = write(tmp_path / "snow.tif", 235 + np.random.default_rng(0).integers(0, 20, (3, 128, 128)))
    results = {
        path.stem: predict(path, tmp_path / f"{path.stem}_map.tif", model=model, config=RUN)
        for path in (familiar, snow)
    }
    assert results["familiar"].unlike.distance < 1 < results["snow"].unlike.distance
    assert results["familiar"].unlike.tiles == 9
    warnings = [note for note in results["snow"].notes if "looks unlike" in note]
    assert len(warnings) == 1
    assert "colour" in warnings[0]
    assert warnings[0] in caplog.text
    assert not any("looks unlike" in note for note in results["familiar"].notes)
    assert results["snow"].as_dict()["unlike"]["distance"] == results["snow"].unlike.distance


def test_scenes_without_labels_can_be_the_training_data(sheets: Path, tmp_path: Path) -> None:
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("c",), test=("*",), classes=",".join(NAMES)))
    assert not calibration.calibrate(certain(), data, "test", config=RUN).training_tiles
    scenes = [str(sheets / "images/a.tif")]
    assert calibration.calibrate(certain(), data, "test", training=scenes, config=RUN).training_tiles


def test_what_cannot_be_calibrated_is_said(sheets: Path, tmp_path: Path) -> None:
    wrong = replace(data_of(sheets), classes="dark,blue")
    with pytest.raises(DataError, match="has no class blue"):
        calibration.calibrate(certain(), datasets.open_data(wrong), config=RUN)
    with pytest.raises(ModelError, match="only a BiCoR-Seg model"):
        calibration.calibrate_file("landcover-refiner", tmp_path / "x.safetensors", data_of(sheets))


def test_model_files_are_not_trusted(sheets: Path, tmp_path: Path) -> None:
    spec = calibration.calibrate(certain(), datasets.open_data(data_of(sheets)), config=RUN)
    tiles = spec.training_tiles
    bad = replace(tiles["colour"], limit=float("nan"))
    for changes in (
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"training_tiles": {"colour": tiles["colour"]}},
        {"training_tiles": tiles | {"colour": bad}},
        {"training_tiles": tiles | {"colour": replace(tiles["colour"], matrix=((1.0,),))}},
    ):
        with pytest.raises(ModelError, match=r"temperature|training_tiles"):
            replace(spec, **changes)
    save_model(tmp_path / "m.safetensors", certain().network, spec)
    stored = load_model(tmp_path / "m.safetensors").spec
    assert stored == spec
    tile, pooled = torch.rand(1, 3, 64, 64), torch.rand(1, 64)
    distances = [
        domain.TileDistances(one, torch.device("cpu"))(tile, pooled).tolist() for one in (spec, stored)
    ]
    assert distances[0] == distances[1]  # JSON sorts the kinds
