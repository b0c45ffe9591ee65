"""The same runs on a CPU and, where there is one, on a GPU: labels, refined maps, scores, training.

`make gpu` runs them on a machine with a CUDA device; elsewhere those marked `gpu` are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Local, read, trained
from PIL import Image
from refiners import LocalRefiner, refiner
from torch import nn
from typer.testing import CliRunner

from rsseg_cli import PredictConfig, RefineConfig, evaluate, load_model, predict, refine
from rsseg_cli.cli import app
from rsseg_cli.data import LabelFormat, LabelledData, datasets
from rsseg_cli.inference import Engine, RefinerEngine, Scaling
from rsseg_cli.models import BicorSegConfig
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
ON_GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
TILES = {"tile_size": 64, "overlap": 16, "batch_size": 4}
SCALING = Scaling(factors=(1 / 255,) * 3, offsets=(0.0,) * 3)


def equal_share(first, second):
    return (read(first) == read(second)).mean()


@pytest.fixture
def scene(make_raster):
    return make_raster(shape=(150, 330), kind="value", hole=(20, 30, 90, 60))


@ON_GPU
def test_auto_takes_the_gpu_and_bfloat16_where_its_hardware_does():
    assert Engine.choose_device("auto").type == "cuda"
    arithmetic = Engine.arithmetic(PredictConfig()).of("bicor-seg")
    has_bfloat16 = torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
    assert arithmetic == ("cuda", "torch", "bfloat16" if has_bfloat16 else "float32")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.999), ("bfloat16", 0.9), ("auto", 0.9)])
def test_labels_are_those_of_the_cpu(scene, tmp_path, device, dtype, share):
    exact, found = tmp_path / "exact.tif", tmp_path / "found.tif"
    for path, computed in ((exact, {"device": "cpu", "dtype": "float32"}), (found, {"device": device})):
        model = trained(Local(), 5)
        predict(scene, path, model=model, **{"dtype": dtype, "runtime": "torch"} | TILES | computed)
    assert equal_share(exact, found) >= share
    np.testing.assert_array_equal(read(exact) == 255, read(found) == 255)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "more",
    [{"tta": "d4"}, {"tta": "scales"}, {"gsd_m": 0.3}, {"batch_size": "auto"}, {"dtype": "float16"}],
    ids=str,
)
def test_other_settings_give_the_labels_of_the_cpu(scene, tmp_path, device, more):
    spec = {"gsd_m": 0.3, "gsd_range_m": (0.01, 100.0)} if "gsd_m" in more else {}
    exact, found = tmp_path / "exact.tif", tmp_path / "found.tif"
    for path, where in ((exact, "cpu"), (found, device)):
        kept = {"dtype": "float32"} if where == "cpu" else {}
        options = {"dtype": "float32", "runtime": "torch", "device": where} | TILES | more | kept
        predict(scene, path, model=trained(Local(), 5, **spec), **options)
    assert equal_share(exact, found) >= (0.95 if "dtype" in more else 0.999)


@pytest.mark.parametrize("device", DEVICES)
def test_refined_maps_are_those_of_the_cpu(scene, tmp_path, device):
    model = refiner(LocalRefiner(5), [f"class {index}" for index in range(5)])
    labels, maps = tmp_path / "labels.tif", []
    predict(scene, labels, model=trained(Local(), 5), device="cpu", **TILES)
    for where in ("cpu", device):
        maps.append(tmp_path / f"{len(maps)}.tif")
        config = RefineConfig(refiner=model, band_m=4.0, ensemble=2, tile_size=64)
        refine(scene, labels, maps[-1], config=config, device=where, dtype="float32", batch_size=4)
    assert equal_share(*maps) >= 0.999
    assert equal_share(labels, maps[1]) < 0.999


@pytest.mark.parametrize("device", DEVICES)
def test_noise_has_the_same_bits(device):
    rows, cols = torch.tensor([0, 1_000_000]), torch.tensor([70_000, 3])
    here = RefinerEngine.noise((48, 128, 128), rows, cols, seed=3, sample=1)
    there = RefinerEngine.noise((48, 128, 128), rows.to(device), cols.to(device), seed=3, sample=1)
    assert (there.cpu() != here).float().mean() < 1e-5
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_calls_of_one_shape_give_the_same_however_they_are_launched(device):
    config = PredictConfig(device=device, runtime="torch", dtype="float32", batch_size=3)
    rng = np.random.default_rng(0)
    batches = [list(rng.integers(0, 256, (size, 3, 64, 64), dtype=np.uint8)) for size in (3, 3, 2, 3, 2, 2)]
    network = BicorSegConfig(classes=5, encoder="tf_efficientnet_lite0", channels=32, neck="conv").build()
    with Engine(network, classes=5, scaling=SCALING, config=config) as engine:
        first = [engine.run(batch).clone() for batch in batches]
        later = [engine.run(batch).clone() for _ in range(3) for batch in batches]
    for index, scores in enumerate(later):
        torch.testing.assert_close(scores, first[index % len(batches)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_was_stopped_is_resumed(make_raster, tmp_path, device):
    scene = make_raster(shape=(500, 200))
    journal = tmp_path / ".parts.tif.rsseg" / "journal.json"

    def stop(done, total):
        if done * 2 > total:
            end = time.monotonic() + 10  # rows are written behind
            while not journal.exists() and time.monotonic() < end:
                time.sleep(0.01)
            raise KeyboardInterrupt

    options = {"model": trained(Local(), 5), "device": device, "checkpoint_s": 0.0, **TILES}
    predict(scene, tmp_path / "whole.tif", **options)
    with pytest.raises(KeyboardInterrupt):
        predict(scene, tmp_path / "parts.tif", progress=stop, **options)
    done = []
    resumed = {"progress": lambda tiles, total: done.append(tiles), "resume": True}
    predict(scene, tmp_path / "parts.tif", **resumed, **options)
    assert done[0] > TILES["batch_size"]  # it did not start over
    assert equal_share(tmp_path / "whole.tif", tmp_path / "parts.tif") == 1


class Wide(nn.Module):
    """Needs 8 MiB a tile of 64 px for what lies between, and gives Local's scores."""

    def __init__(self):
        super().__init__()
        self.local = Local()

    def forward(self, pixels):
        between = pixels.repeat(1, 170, 1, 1) * 1.0
        return self.local(between[:, :3]) + 0 * between.mean()


@ON_GPU
def test_a_batch_that_does_not_fit_is_halved(scene, tmp_path, caplog):
    options = {"model": trained(Wide(), 5), "dtype": "float32", "tile_size": 64, "overlap": 16}
    predict(scene, tmp_path / "whole.tif", device="cuda", batch_size=1, **options)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    limit = torch.cuda.memory_reserved() + (96 << 20)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        predict(scene, tmp_path / "halved.tif", device="cuda", batch_size=28, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory on cuda: batch size" in caplog.text
    assert equal_share(tmp_path / "whole.tif", tmp_path / "halved.tif") >= 0.999


@ON_GPU
def test_two_processes_share_a_gpu(scene, tmp_path):
    command = [sys.executable, "-m", "rsseg_cli", "predict", str(scene), "--model", "landcover", "-q"]
    command += ["--device", "cuda", "--tile-size", "64", "--overlap", "16"]
    running = [
        subprocess.Popen([*command, "-o", str(tmp_path / f"{number}.tif")], stderr=subprocess.PIPE)
        for number in range(2)
    ]
    for process in running:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()
    assert equal_share(tmp_path / "0.tif", tmp_path / "1.tif") >= 0.999


class Level(nn.Module):
    """Class by the first band, whose levels lie 100 apart."""

    def __init__(self):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([50.0, 150, 250]) / 255)

    def forward(self, pixels):
        return -((pixels[:, :1] - self.levels[None, :, None, None]) ** 2) * 100


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_scored(make_raster, device):
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    image = make_raster("image.tif", array=np.stack([labels * 100 + 50] * 3))
    truth = make_raster("truth.tif", array=labels[None])
    names = ("roof", "road", "tree")
    labelled = datasets.LabelledScene(image, truth, "test", format=LabelFormat(class_names=names))
    data = LabelledData("drawn", (labelled,), ClassSpec.from_names(names))
    model = TrainedModel(Level().eval(), ModelSpec.for_network(classes=names, name="levels"))
    done = evaluate(model, data, "test", config=PredictConfig(device=device, **TILES))
    assert done.result.scores["miou"] == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_run_learns_stops_and_is_resumed(tmp_path, device):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for name in ("train1", "val1"):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((32, 32))).astype(np.uint8)
        image = np.repeat((mask * 150 + 40)[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    output = tmp_path / "model.safetensors"
    command = ["train", "bicor-seg", "--val", "val*", "--classes", "dark,bright", "--encoder-weights", "none"]
    command += ["--arch", "test_efficientnet", "--crop-size", "64", "--batch-size", "4", "--gsd", "1", "-q"]
    command += ["--crops-per-epoch", "8", "--workers", "0", "--data", str(tmp_path), "-o", str(output)]
    command += ["--run-dir", str(tmp_path / "run"), "--device", device]
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume", "--overwrite"]):
        result = CliRunner().invoke(app, [*command, *more])
        assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    assert load_model(output).spec.training["epochs"] == 2
    predict(tmp_path / "images" / "val1.png", tmp_path / "map.tif", model=output, device=device)


def test_the_benchmark_runs_at_tiny_sizes(tmp_path):
    """On a CPU too; without rasterio only what needs no files is measured."""
    (tmp_path / "rasterio.py").write_text("raise ModuleNotFoundError('none', name='rasterio')")
    figures = []
    for more, changed in (([], {}), (["--sections", "bare,program,training"], {"PYTHONPATH": str(tmp_path)})):
        output = tmp_path / f"{len(figures)}.json"
        command = [sys.executable, str(SCRIPT), "--quick", "--device", "cpu", "--output", str(output), *more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | changed)
        figures.append(json.loads(output.read_text()))
    whole, without = figures
    states = {name: part["state"] for name, part in whole.items() if name != "machine"}
    assert set(states.values()) == {"done"}, states
    assert whole["program"]["landcover-small"]["share_of_bare"] > 0
    assert whole["program"]["buildings"]["windows_run"] >= 0
    assert whole["labels"]["noise_equal"] == 1
    assert whole["labels"]["float32"]["equal"] == 1
    assert whole["training"]["lite"]["steps_s"] > 0
    assert without["bare"]["state"] == "done"
    assert without["program"]["state"] == without["training"]["state"] == "skipped: no rasterio"
