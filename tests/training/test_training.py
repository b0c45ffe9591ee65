"""Training runs at tiny size: what comes out is a model that predicts, and a run that goes on is the same."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from fake_datasets import make_landcoverai
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.data import LoadedScene, datasets
from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.training import train_model as training
from rsseg_cli.training.config import NetworkSettings, TrainConfig
from rsseg_cli.training.module import SegmentationModule, protocol_scores
from rsseg_cli.training.recipes import RECIPES, resolve_settings
from rsseg_cli.training.trainer import RunOptions
from rsseg_cli.weights import ClassSpec, ModelSpec, load_model


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def two_colours(tmp_path):
    """Three images of bright squares on dark ground, and masks of the squares: learnt in a few steps."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for name in ("train1", "val1", "test1"):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((32, 32))).astype(np.uint8)
        image = np.repeat((mask * 150 + 40 + rng.integers(0, 20, mask.shape))[..., None], 3, 2).astype(
            np.uint8
        )
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


COMMAND = (
    "bicor-seg --val val* --test test* --classes dark,bright --encoder-weights none --crop-size 64 "
    "--batch-size 4 --crops-per-epoch 24 --gsd 1 --device cpu --quiet"
)


def train(folder, *more, code=0):
    command = [*COMMAND.split(), "--data", folder, "--run-dir", folder / "run", *more]
    if "--init" not in more:
        command += ["--arch", "test_efficientnet"]
    result = CliRunner().invoke(app, ["train", *map(str, command)])
    assert result.exit_code == code, f"{result.output} {result.exception!r}"
    return result


def test_train_save_load(two_colours):
    output = two_colours / "model.safetensors"
    result = train(two_colours, "--epochs", 4, "--lr", 3e-3, "--colour", 0, "-o", output)
    assert "test mIoU" in result.stdout
    model = load_model(output)
    assert model.spec.class_names == ("dark", "bright")
    assert model.spec.gsd_m == 1.0
    assert model.spec.scores["test"]["miou"] > 0.8
    assert model.spec.training["epochs"] == 4
    assert "| bright |" in output.with_suffix(".md").read_text()

    second = two_colours / "second.safetensors"
    train(two_colours, "--epochs", 1, "--init", output, "--lr", 1e-6, "--ema", 0, "--overwrite", "-o", second)
    assert load_model(second).spec.scores["val"]["val_miou"] > 0.8


def test_errors_come_before_work(two_colours):
    output = two_colours / "model.safetensors"
    output.write_bytes(b"")
    assert "Pass --overwrite" in train(two_colours, "-o", output, code=1).output
    output.unlink()
    assert "--crop-size 50" in train(two_colours, "--crop-size", 50, "-o", output, code=2).output
    (two_colours / "images" / "val1.png").rename(two_colours / "images" / "other.png")
    error = train(two_colours, "-o", output, code=1).output
    assert "other" in error
    assert "val1" in error
    assert not output.exists()


@pytest.mark.parametrize("kind", ["L", "P", "F"])
def test_masks_of_0_and_255_are_refused_before_training(two_colours, kind):
    """Nothing could be learnt of them: 255 is unlabelled, and no pixel is bright."""
    for path in (two_colours / "masks").iterdir():
        mask = Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255))
        if kind == "F":
            mask.convert("F").save(path.with_suffix(".tif"))
            path.unlink()
            continue
        mask = mask.convert(kind)
        if kind == "P":
            mask.putpalette([k // 3 for k in range(768)])
        mask.save(path)
    output = two_colours / "model.safetensors"
    error = " ".join(train(two_colours, "-o", output, code=1).output.split())
    assert "holds no bright, but" in error
    assert '"value": 255' in error
    assert not (two_colours / "run" / "last.ckpt").exists()
    listed = two_colours / "classes.json"
    listed.write_text(json.dumps([{"name": "dark", "value": 0}, {"name": "bright", "value": 255}]))
    train(two_colours, "--epochs", 1, "--classes", listed, "-o", output)
    assert load_model(output).spec.class_names == ("dark", "bright")


def test_samples_of_torchgeo_with_0_and_255_are_refused_as_files_are(tmp_path):
    make_landcoverai(tmp_path / "root", (0, 255))
    listed = tmp_path / "classes.json"
    listed.write_text(json.dumps([{"name": "dark", "value": 0}, {"name": "bright", "value": 255}]))
    for classes, code in (("dark,bright", 1), (listed, 0)):
        output = tmp_path / "model.safetensors"
        command = [
            *COMMAND.replace(" --val val* --test test* --classes dark,bright", "").split(),
            "--epochs",
            1,
        ]
        command += ["--dataset", "torchgeo:LandCoverAI", "--root", tmp_path / "root", "--classes", classes]
        command += ["--arch", "test_efficientnet", "--epochs", 1, "--run-dir", tmp_path / "run", "-o", output]
        result = CliRunner().invoke(app, ["train", *map(str, command)])
        assert result.exit_code == code, result.output
        assert output.exists() == (code == 0)
        if code:
            error = " ".join(result.output.split())
            assert "LandCoverAI train-0: holds no bright, but" in error
            assert '"value": 255' in error


def in_16_bits(folder, factor=40):
    """Images of 16 bits with a few very bright pixels, each image of its own range."""
    for number, path in enumerate(sorted((folder / "images").iterdir()), 1):
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1).astype(np.uint16) * factor * number
        pixels[:, :8] = 60000
        with rasterio.open(
            path.with_suffix(".tif"), "w", driver="GTiff", width=128, height=128, count=3, dtype="uint16"
        ) as dataset:
            dataset.write(pixels)
        path.unlink()


@pytest.mark.parametrize("stretch", ["auto", "0,9000", "batch"])
def test_a_model_keeps_the_stretch_that_it_was_trained_with(two_colours, stretch):
    in_16_bits(two_colours)
    output, given = two_colours / "model.safetensors", () if stretch == "auto" else ("--stretch", stretch)
    train(two_colours, "--epochs", 1, *given, "-o", output)
    ranges = load_model(output).spec.stretch
    scenes = sorted((two_colours / "images").iterdir())
    maps = two_colours / "maps"
    command = ["predict", *scenes, "-o", maps, "--model", output, "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, [*map(str, command)])
    notes = [
        next(note for note in item["notes"] if "stretched" in note).partition(" from ")[2]
        for item in json.loads(done.stdout)["results"]
    ]
    if stretch == "auto":
        assert ranges == ()
        assert len(set(notes)) == 3
        return
    low, high = (0.0, 9000.0) if stretch != "batch" else ranges[0]
    assert ranges == ((low, high),) * 3
    shown = f"{low:.4g} to {high:.4g}"
    assert notes == [shown] * 3
    if stretch == "batch":
        pixels = np.stack([rasterio.open(scene).read(1) for scene in scenes])
        np.testing.assert_allclose((low, high), np.percentile(pixels, (2, 98)), rtol=0.02)


def test_masks_of_floats_train_as_whole_numbers(two_colours):
    options = ("--epochs", 1, "--crops-per-epoch", 4, "--overwrite", "-o", two_colours / "model.safetensors")
    train(two_colours, *options)
    whole = load_model(two_colours / "model.safetensors").network.state_dict()
    for path in (two_colours / "masks").iterdir():
        Image.open(path).convert("F").save(path.with_suffix(".tif"))
        path.unlink()
    train(two_colours, *options)
    floats = load_model(two_colours / "model.safetensors").network.state_dict()
    assert all(torch.equal(value, floats[key]) for key, value in whole.items())


def test_classes_from_json(two_colours):
    listed = two_colours / "classes.json"
    listed.write_text(json.dumps([{"name": "dark", "colour": [1, 2, 3]}, {"name": "bright"}]))
    output = two_colours / "model.safetensors"
    train(two_colours, "--epochs", 1, "--classes", listed, "-o", output)
    assert load_model(output).spec.classes[0].colour == (1, 2, 3)
    listed.write_text("{")
    error = train(two_colours, "--classes", listed, "-o", output, "--overwrite", code=1).output
    assert "needs a JSON list" in error


SPEC = ModelSpec(
    name="t", architecture="external", classes=ClassSpec.from_names(["dark", "bright"]), gsd_m=1.0
)
TINY = {"crop_size": 64, "epochs": 3, "crops_per_epoch": 8, "batch_size": 2, "tile_size": 64}
PAPER = {key: value for key, value in RECIPES["paper:loveda"].items() if key not in vars(NetworkSettings())}


def squares(seed=0, side=64):
    """Bright squares on dark ground."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 2, (4, 4)), np.ones((side // 4, side // 4))).astype(np.uint8)
    noise = rng.integers(0, 20, (3, side, side))
    return LoadedScene(f"squares{seed}", (labels * 150 + 40 + noise).astype(np.uint8), labels, 1.0)


def scenes():
    return training.TrainingScenes([squares(0), squares(1)], [squares(2)], [])


def bicor_seg():
    torch.manual_seed(0)
    return BicorSeg(BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16))


def run(folder, config, network=None, **options):
    network = network or bicor_seg()
    result = training.fit_segmenter(
        network, SPEC, scenes(), config, RunOptions(run_dir=folder, device="cpu", **options)
    )
    return result, {key: value.clone() for key, value in network.state_dict().items()}


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("more", "stop"),
    [
        ({}, (2, 0)),  # between epochs
        ({}, (1, 3)),  # in the middle of one: goes on at its start
        ({"accumulate": 2, "crops_per_epoch": 12}, (1, 4)),
        (PAPER | TINY, (2, 1)),
        (PAPER | TINY | {"accumulate": 2, "crops_per_epoch": 12, "ema": 0.9}, (1, 0)),
        ({"patience": 1, "epochs": 5, "learning_rate": 1e-9}, (1, 2)),
    ],
    ids=["default", "middle", "accumulated", "lookahead", "lookahead, accumulated, averaged", "patience"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(more, stop, tmp_path, monkeypatch):
    """The same weights, scores and epochs to the bit, wherever it was stopped."""
    config = TrainConfig(**{**TINY, **more})
    whole, expected = run(tmp_path / "whole", config)

    step = SegmentationModule.training_step

    def stopping(self, batch, index):
        if (self.current_epoch, index) == stop:
            raise Stop
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", stopping)
        with pytest.raises(Stop):
            run(tmp_path / "parts", config)
    parts, actual = run(tmp_path / "parts", config, resume=True)
    for key, value in actual.items():
        assert torch.equal(value, expected[key]), key
    assert (parts.epoch, parts.score, parts.steps) == (whole.epoch, whole.score, whole.steps)
    assert [(item["loss"], item["miou"]) for item in parts.history[stop[0] :]] == [
        (item["loss"], item["miou"]) for item in whole.history[stop[0] :]
    ]
    assert [item["epoch"] for item in parts.history] == [item["epoch"] for item in whole.history]


def test_a_run_that_stopped_early_stays_as_it_is_when_resumed(tmp_path):
    config = TrainConfig(**{**TINY, "patience": 1, "epochs": 6, "learning_rate": 1e-9, "ema": 0.0})
    whole, expected = run(tmp_path, config)
    stopped = len(whole.history)
    assert stopped < 6
    again, actual = run(tmp_path, config, resume=True)
    assert len(again.history) == stopped
    assert all(torch.equal(value, expected[key]) for key, value in actual.items())


def test_accumulated_steps_are_those_of_the_large_batch(tmp_path):
    """Two batches of 2 make the step that one of 4 makes."""
    counted = []
    for batch, accumulate in ((4, 1), (2, 2)):
        config = TrainConfig(**{**TINY, "batch_size": batch, "accumulate": accumulate, "epochs": 1})
        result, _ = run(tmp_path / f"{batch}", config, nn.Conv2d(3, 2, 1))
        counted.append(result.steps)
    assert counted == [2, 2]


def test_rate_by_epoch_ends_at_the_published_rate(tmp_path):
    config = TrainConfig(**{**PAPER, **TINY})
    result, _ = run(tmp_path, config, nn.Conv2d(3, 2, 1))
    rates = [item["rate"] for item in result.history]
    assert rates == pytest.approx([8e-5, 1e-6 + (8e-5 - 1e-6) * 0.75, 1e-6 + (8e-5 - 1e-6) * 0.25])


class Hungry(nn.Module):
    """Runs out of memory above a batch size."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.conv = most, error, nn.Conv2d(3, 2, 1)

    def forward(self, image):
        if len(image) > self.most:
            raise self.error
        return self.conv(image)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:113] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_try(error, tmp_path):
    config = TrainConfig(**{**TINY, "batch_size": 4, "epochs": 1})
    with pytest.raises(ModelError, match=r"--batch-size 4 .* pass --batch-size 2, with --accumulate 2 "):
        run(tmp_path, config, Hungry(2, error))
    run(tmp_path, dataclasses.replace(config, batch_size=2, accumulate=2), Hungry(2, error))
    with pytest.raises(ModelError, match="--crop-size 64"):
        run(tmp_path, dataclasses.replace(config, batch_size=1, crop_size=128), Hungry(0, error))


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path, TrainConfig(**TINY), Hungry(1, RuntimeError("shapes differ")))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.calls = nn.Conv2d(3, 2, 1), 0

        def forward(self, image):
            self.calls += self.training
            return self.conv(image) * (float("nan") if self.calls > 6 else 1)

    with pytest.raises(ModelError, match=r"step 7 \(epoch 2\): the loss is nan.*epoch 1 is kept.*lower --lr"):
        run(tmp_path, TrainConfig(**TINY), Breaks())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


def test_losses_are_looked_at_late_on_a_gpu_and_none_is_missed(tmp_path, monkeypatch):
    """There a step does not wait for its loss; the epoch's end finds what no step looked at."""

    class Elsewhere(SegmentationModule):
        is_waiting = False

    class Breaks(nn.Conv2d):
        calls = 0

        def forward(self, image):
            self.calls += self.training
            return super().forward(image) * (float("nan") if self.calls == 4 else 1)

    monkeypatch.setattr(training, "SegmentationModule", Elsewhere)
    with pytest.raises(ModelError, match=r"step 5 \(epoch 1\): the loss is nan.*no epoch was finished"):
        run(tmp_path, TrainConfig(**TINY), Breaks(3, 2, 1))
    assert not (tmp_path / "last.ckpt").exists()


def test_logs(tmp_path):
    run(tmp_path, TrainConfig(**{**TINY, "crops_per_epoch": 24, "epochs": 2}))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    wanted = {"val_miou", "val_iou/dark", "val_iou/bright", "loss_epoch", "rate", "epoch", "step"}
    parts = {f"loss_{part}" for part in ("main", "auxiliary", "heatmaps", "fisher", "embeddings")}
    assert wanted | parts <= set(rows[0])
    assert sum(bool(row["val_miou"]) for row in rows) == 2
    step = next(row for row in rows if row["loss_main"])
    total = sum(float(step[part]) for part in parts)
    assert total == pytest.approx(float(step["loss_step"]), rel=1e-4)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_protocol_leaves_classes_out_of_the_means():
    """dark: 8 of 10 right and none found wrongly; bright: 2 wrongly, 10 right; clutter never right."""
    confusion = torch.tensor([[8, 2, 0], [0, 10, 0], [0, 5, 0]])
    names = ("dark", "bright", "clutter")
    scores = protocol_scores(confusion, names, datasets.ScoringProtocol(out_of_means=("clutter",)))
    assert scores["miou"] == pytest.approx((8 / 10 + 10 / 17) / 2)
    assert protocol_scores(confusion, names, datasets.ScoringProtocol())["miou"] < scores["miou"]


def test_settings_of_a_run(tmp_path, caplog):
    caplog.set_level("WARNING", "rsseg_cli")
    settings = resolve_settings({"epochs": 3})
    training.check_run(tmp_path, resume=False, overwrite=False)
    training.save_settings(tmp_path, settings, resume=False)
    assert resolve_settings(config=tmp_path / "settings.toml") == settings
    with pytest.raises(DataError, match="--resume"):
        training.check_run(tmp_path, resume=True, overwrite=False)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UsageError, match=r"--resume .*--overwrite"):
        training.check_run(tmp_path, resume=False, overwrite=False)
    training.check_run(tmp_path, resume=True, overwrite=False)
    training.save_settings(tmp_path, resolve_settings({"epochs": 5}), resume=True)
    assert "epochs was 3 and is now 5" in caplog.text
    training.check_run(tmp_path, resume=False, overwrite=True)
    training.save_settings(tmp_path, settings, resume=False)
    assert not (tmp_path / "last.ckpt").exists()


def test_halves_on_the_processor(tmp_path):
    """bf16 mixes: losses in float32, weights stay float32."""
    result, weights = run(tmp_path, TrainConfig(**TINY, precision="bf16"))
    assert result.precision == "bf16-mixed"
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu9"}, "--device tpu9"),
        ({"devices": "two"}, "--devices two"),
        ({"strategy": "fast"}, "--strategy fast"),
    ],
)
def test_devices_that_there_are_not(options, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        training.fit_segmenter(
            nn.Conv2d(3, 2, 1), SPEC, scenes(), TrainConfig(**TINY),
            RunOptions(**{"run_dir": tmp_path, "device": "cpu", **options}),
        )  # fmt: skip
    with pytest.raises(UsageError, match="--precision 16"):
        run(tmp_path, TrainConfig(**TINY, precision="16"), nn.Conv2d(3, 2, 1))


def test_crops_must_fill_a_step(tmp_path):
    config = dataclasses.replace(TrainConfig(**TINY), crops_per_epoch="auto", batch_size=4, epochs=1)
    result, _ = run(tmp_path, config, nn.Conv2d(3, 2, 1))
    assert (result.crops_per_epoch, result.steps) == (4, 1)  # two scenes make two crops; a step takes four
    with pytest.raises(UsageError, match="a step's 8 crops"):
        TrainConfig(**{**TINY, "batch_size": 4, "accumulate": 2, "crops_per_epoch": 7})


@pytest.mark.slow
def test_two_processes_see_the_crops_of_one(two_colours):
    """Two with batches of 2 by gloo, and one with batches of 4: both learn alike, and one file is written."""
    scores = []
    for devices, batch in ((1, 4), (2, 2)):
        output = two_colours / f"{devices}.safetensors"
        command = [*COMMAND.split(), "--data", two_colours, "--arch", "test_efficientnet", "--epochs", 2]
        command += ["--run-dir", two_colours / f"run{devices}", "--devices", devices, "-o", output]
        command += ["--batch-size", batch] + (["--strategy", "ddp"] if devices > 1 else [])
        done = subprocess.run(
            [sys.executable, "-m", "rsseg_cli", "train", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("validation mIoU") == 1
        scores.append(load_model(output).spec.scores)
    assert scores[0]["val"]["steps"] == scores[1]["val"]["steps"] == 12
    total = [sum(map(sum, part["test"]["confusion"])) for part in scores]
    assert total[0] == total[1]
    assert scores[1]["val"]["val_miou"] == pytest.approx(scores[0]["val"]["val_miou"], abs=0.15)
