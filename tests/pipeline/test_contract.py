"""What others may hand over: networks of every kind, settings from numpy, scenes with traps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from rsseg_cli import PredictConfig, predict
from rsseg_cli.errors import ModelError, SceneError, UsageError
from rsseg_cli.weights import ModelSpec, TrainedModel

MakeRaster = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)
SMALL: dict[str, Any] = {"tile_size": 64, "overlap": 16}


class Calls(nn.Module):
    """A network that is a function."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.function(pixels)


def trained(
    network: nn.Module, classes: int = 3, bands: tuple[str, ...] = ("red", "green", "blue")
) -> TrainedModel:
    return TrainedModel(
        network, ModelSpec.for_network(classes=[f"c{k}" for k in range(classes)], bands=bands)
    )


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def noise(bands: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (bands, 150, 170), dtype=np.uint8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        lambda x: x.double(),
        lambda x: (x * 255).half(),
        lambda x: (x * 255).bfloat16(),
        lambda x: (x * 255).round().long(),
        lambda x: (x.sqrt() * 255).transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["same", "float64", "float16", "bfloat16", "int64", "strides"],
)
def test_logits_of_any_type(make_raster: MakeRaster, tmp_path: Path, function: Callable) -> None:
    array = noise()
    predict(make_raster(array=array), tmp_path / "map.tif", model=trained(Calls(function)), **SMALL)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], array.argmax(0))


@pytest.mark.parametrize("outputs", [(), ("confidence",)])
def test_a_networks_own_tensors_stay_as_they_are(make_raster: MakeRaster, tmp_path: Path, outputs) -> None:
    kept = torch.randn(1, 3, 64, 64)
    before = kept.clone()
    paths = {kind: tmp_path / f"{kind}.tif" for kind in outputs}
    model = trained(Calls(lambda x: kept))
    predict(make_raster(array=noise()), tmp_path / "map.tif", model=model, **paths, **SMALL)
    assert torch.equal(kept, before)


def test_logits_that_repeat_values(make_raster: MakeRaster, tmp_path: Path) -> None:
    constant = torch.tensor([0.0, 2.0, 1.0]).view(1, 3, 1, 1)
    network = Calls(lambda x: (constant + 0).expand(len(x), 3, *x.shape[2:]))
    predict(make_raster(array=noise()), tmp_path / "map.tif", model=trained(network), **SMALL)
    assert (read(tmp_path / "map.tif") == 1).all()


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_a_network_may_view_its_arrays(make_raster: MakeRaster, tmp_path: Path, tta) -> None:
    def viewing(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1).view(x.shape) * 50

    array = noise()
    batch = {"batch_size": 2, "tta": tta, **SMALL}
    predict(make_raster(array=array), tmp_path / "map.tif", model=trained(Calls(viewing)), **batch)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], array.argmax(0))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_keeps_the_type_of_its_weights(
    make_raster: MakeRaster, tmp_path: Path, weights, dtype
) -> None:
    network = nn.Conv2d(3, 3, 1, bias=False).to(weights)
    network.weight.data = torch.eye(3, dtype=weights).view(3, 3, 1, 1)
    array = (noise() // 16) * 16  # exact in eight bits
    model = trained(network)
    predict(make_raster(array=array), tmp_path / "map.tif", model=model, dtype=dtype, **SMALL)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], array.argmax(0))
    assert network.weight.dtype == weights


def test_training_mode_is_left_for_the_run_alone(make_raster: MakeRaster, tmp_path: Path) -> None:
    seen = []
    probe = Calls(lambda x: (seen.append(probe.training), x)[1])
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), probe).train()
    network[1].eval()
    predict(make_raster(array=noise()), tmp_path / "map.tif", model=trained(network), **SMALL)
    assert seen
    assert not any(seen)
    assert [part.training for part in network] == [True, False, True]
    assert network[0].num_batches_tracked == 0
    with pytest.raises(ModelError):
        predict(make_raster(), tmp_path / "other.tif", model=trained(network, 4), **SMALL)
    assert network.training


@pytest.mark.parametrize("gsd_m", [None, 0.8])
def test_nan_is_an_error_and_not_a_class(make_raster: MakeRaster, tmp_path: Path, gsd_m) -> None:
    scene = make_raster(array=noise())
    network = Calls(lambda x: torch.where(x[:, :1] > 0.8, torch.nan, x))
    with pytest.raises(ModelError, match=r"NaN at row \d+, column \d+ of the map; needs finite logits"):
        predict(scene, tmp_path / "map.tif", model=trained(network), gsd_m=gsd_m, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_classes_may_be_as_many_as_bytes_have(make_raster: MakeRaster, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 254, (1, 70, 90), dtype=np.uint8)
    network = Calls(lambda x: -((x * 255 - torch.arange(254).view(1, -1, 1, 1)) ** 2))
    model = trained(network, 254, ("grey",))
    predict(
        make_raster(array=array), tmp_path / "map.tif", model=model, preview=tmp_path / "map.png", **SMALL
    )
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), array)


def test_settings_may_come_from_numpy(make_raster: MakeRaster, tmp_path: Path) -> None:
    scene = make_raster(array=noise(), nodata=0)
    bbox = np.array([500010, 4999950, 500050, 4999990], np.float32)
    predict(
        scene,
        tmp_path / "map.tif",
        model=trained(nn.Identity()),
        bbox=bbox,
        bands=np.array([3, 2, 1]),
        nodata=np.uint8(0),
        creation_options={"LEVEL": 9},
        **SMALL,
    )
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.bounds == tuple(bbox)


@pytest.mark.parametrize("nodata", [np.inf, -np.inf, 0.5, -1e39, 256])
def test_nodata_that_bytes_cannot_hold_hides_nothing(make_raster: MakeRaster, tmp_path: Path, nodata) -> None:
    result = predict(
        make_raster(array=noise()), tmp_path / "map.tif", model=trained(nn.Identity()), nodata=nodata, **SMALL
    )
    assert result.valid_pixels == result.pixels


def test_boxes_are_finite() -> None:
    for bbox in ((-np.inf, 0, 1, 1), (0, 0, np.nan, 1), (0, 0, 1)):
        with pytest.raises(UsageError, match="--bbox"):
            PredictConfig(bbox=bbox)  # type: ignore[arg-type]


@pytest.mark.parametrize("bidx", [None, (1, 2, 3, 4)])
def test_a_fourth_band_that_was_named_alpha_by_default(
    make_raster: MakeRaster, tmp_path: Path, bidx, caplog
) -> None:
    array = noise(4)
    scene = make_raster(array=array)
    with rasterio.open(scene) as dataset:
        assert dataset.colorinterp[3].name == "alpha"  # nobody asked for it
    model = trained(nn.Identity(), 4, ("red", "green", "blue", "nir"))
    predict(scene, tmp_path / "map.tif", model=model, bands=bidx, **SMALL)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], array.argmax(0))
    assert "band 4 is" in caplog.text
    assert "taken as" in caplog.text


def test_an_alpha_band_that_marks_pixels_is_no_colour(make_raster: MakeRaster, tmp_path: Path) -> None:
    model = trained(nn.Identity(), 4, ("red", "green", "blue", "nir"))
    with pytest.raises(SceneError, match=r"if it is data pass --bidx 1,2,3,4\."):
        predict(make_raster(kind="alpha"), tmp_path / "map.tif", model=model, **SMALL)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_and_exits_with_130(
    make_raster: MakeRaster, heed_interrupts, tmp_path: Path, sent
) -> None:
    scene = make_raster(array=np.ones((3, 4000, 3000), np.uint8), compress="deflate")
    command = [
        sys.executable,
        "-m",
        "rsseg_cli",
        "predict",
        str(scene),
        "--model",
        "buildings",
        "--gsd",
        "0.5",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".scene_buildings.tif.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip().endswith("rsseg: interrupted")
    assert stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize(
    ("dtype", "value", "colour"), [("uint8", 0, "black"), ("uint8", 255, "white"), ("uint16", 65535, "white")]
)
@pytest.mark.parametrize("gsd_m", [None, 1.0])
def test_unmarked_holes_are_reported_once(
    make_raster: MakeRaster, tmp_path: Path, caplog, dtype, value, colour, gsd_m
) -> None:
    array = make_noise(dtype)
    array[:, :80, :100] = value  # of 240 x 320 px
    scene = make_raster(array=array)
    result = predict(scene, tmp_path / "map.tif", model=trained(nn.Identity()), gsd_m=gsd_m, **SMALL)
    (line,) = [message for message in caplog.messages if "pure" in message]
    assert line == result.notes[-1]
    reported, share, rest = re.fullmatch(r"(.*): ([\d.]+)% of (.*)", line).groups()  # type: ignore[union-attr]
    assert reported == str(scene)
    assert float(share) == pytest.approx(10.4, abs=2.5)  # a sample
    assert rest == (
        f"the pixels are pure {colour} ({value}) and the file names no nodata value; "
        f"pass --nodata {value} if they are holes"
    )


@pytest.mark.parametrize("case", ["few", "one band", "marked", "given", "float"])
def test_extreme_pixels_without_need_are_not_reported(
    make_raster: MakeRaster, tmp_path: Path, caplog, case
) -> None:
    array = make_noise("uint8")
    array[slice(1) if case == "one band" else slice(None), : 8 if case == "few" else 80, :40] = 0
    array = array / np.float32(255) if case == "float" else array
    scene = make_raster(array=array, **({"kind": "value", "nodata": 7} if case == "marked" else {}))
    given = {"nodata": 0} if case == "given" else {}
    predict(scene, tmp_path / "map.tif", model=trained(nn.Identity()), **given, **SMALL)
    assert "pure" not in caplog.text


def make_noise(dtype: str) -> np.ndarray:
    """Pixels between black and white, (3, 240, 320)."""
    return np.random.default_rng(0).integers(1, np.iinfo(dtype).max, (3, 240, 320)).astype(dtype)
