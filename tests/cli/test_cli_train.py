"""`rsseg train` from the command line: whole runs on generated data sets, messages, help."""

from __future__ import annotations

import inspect
import logging
import re
import shlex
from dataclasses import fields

import fake_datasets
import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.cli.train import train_bicor_seg
from rsseg_cli.training import config, resolve_settings
from rsseg_cli.weights import load_model

SMALL = (
    "--arch test_efficientnet --channels 32 --encoder-weights none --crop-size 64 --batch-size 2 --epochs 1 "
    "--crops-per-epoch 8 --device cpu"
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    logging.getLogger("rsseg_cli").setLevel(logging.NOTSET)


def rsseg(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, f"{result.output} {result.exception!r}"
    return result


@pytest.mark.parametrize(
    ("dataset", "image", "bands"),
    [
        ("loveda", "Val/Urban/images_png/8.png", ("red", "green", "blue")),
        ("vaihingen", "top/top_mosaic_09cm_area6.tif", ("nir", "red", "green")),
        ("potsdam", "4_Ortho_RGBIR/top_potsdam_5_15_RGBIR.tif", ("red", "green", "blue")),
    ],
)
def test_published_recipe_from_train_to_predict(dataset, image, bands, tmp_path):
    root, output = tmp_path / "data", tmp_path / "model.safetensors"
    getattr(fake_datasets, f"make_{dataset}")(root)
    trained = rsseg(
        "train", "bicor-seg", "--dataset", dataset, "--root", root, "--recipe", "paper", *SMALL.split(),
        "--run-dir", tmp_path / "run", "--lr", 1e-3, "-o", output,
    )  # fmt: skip
    assert re.search(r"^epoch 1/1  loss \d+\.\d+  val mIoU \d\.\d+  ETA 0:00$", trained.stderr, re.MULTILINE)
    assert re.search(r"^labelled +\d+\.\d%", trained.stderr, re.MULTILINE)
    spec = load_model(output).spec
    assert spec.bands == bands
    assert spec.training["recipe"] == f"paper:{dataset}"
    assert spec.training["fisher_last"] == (1.0 if dataset == "loveda" else 0.0)
    assert spec.scores["test"]["miou"] >= 0
    assert not list((tmp_path / "run").glob("scenes*"))
    saved = resolve_settings(config=tmp_path / "run" / "settings.toml")
    assert saved.training.learning_rate == 1e-3
    assert (saved.network.arch, saved.training.lookahead) == ("test_efficientnet", 5)

    chosen = ["--bidx", "1,2,3"] if dataset == "vaihingen" else []
    rsseg("predict", root / image, "--model", output, "-o", tmp_path / "map.tif", "--device", "cpu", *chosen)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.read(1).max() < len(spec.classes)

    card = output.with_suffix(".md").read_text()
    for heading in ("Data", "Test scores", "Validation", "What it was not tested on", "Run"):
        assert f"## {heading}" in card
    assert f"rsseg train bicor-seg --output {output} --dataset {dataset}" in card


def test_settings_file_gives_the_same_run(tmp_path):
    """A run from options, and one from the settings that it saved: the same weights to the bit."""
    root = tmp_path / "data"
    fake_datasets.make_potsdam(root)
    data = ["train", "bicor-seg", "--dataset", "potsdam", "--root", root, "--device", "cpu", "--quiet"]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    done = rsseg(
        *data, *SMALL.split(), "--lookahead", 2, "--seed", 3, "--run-dir", tmp_path / "a", "-o", first
    )
    assert done.stderr == ""
    rsseg(*data, "--config", tmp_path / "a" / "settings.toml", "--run-dir", tmp_path / "b", "-o", second)
    expected = load_model(first).network.state_dict()
    for key, value in load_model(second).network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_fine_tuning_keeps_classes_by_name(tmp_path):
    """From LoveDA's classes to Potsdam's: building is known, sizes are the model's."""
    fake_datasets.make_loveda(tmp_path / "loveda", count=2, val_count=1, domains=("Urban",))
    fake_datasets.make_potsdam(tmp_path / "potsdam", count=2, test_count=1)
    start, output = tmp_path / "start.safetensors", tmp_path / "tuned.safetensors"
    common = ["--device", "cpu", "--crop-size", 64, "--crops-per-epoch", 4, "--batch-size", 2, "--epochs", 1]
    rsseg(
        "train", "bicor-seg", "--dataset", "loveda", "--root", tmp_path / "loveda", "--domains", "urban",
        "--arch", "test_efficientnet", "--encoder-weights", "none", *common,
        "--run-dir", tmp_path / "a", "-o", start,
    )  # fmt: skip
    potsdam = ["train", "bicor-seg", "--dataset", "potsdam", "--root", tmp_path / "potsdam", "--init", start]
    done = rsseg(*potsdam, *common, "--lr", 1e-12, "--ema", 0, "--run-dir", tmp_path / "b", "-o", output)
    tuned, before = load_model(output), load_model(start)
    assert "tensors taken from" in done.stderr
    assert "building by name" in done.stderr
    assert tuned.spec.training["recipe"] == "finetune"
    assert tuned.spec.gsd_m == before.spec.gsd_m
    row = tuned.network.decoder.class_table[tuned.spec.class_names.index("building")]
    known = before.network.decoder.class_table[before.spec.class_names.index("building")]
    assert torch.allclose(row, known, atol=1e-4)
    error = rsseg(*potsdam, *common, "--layers", 3, "-o", tmp_path / "x.safetensors", code=2)
    assert "--layers with --init" in error.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data {0} --classes a,b --recipe paper", "paper:loveda, paper:vaihingen, paper:potsdam"),
        ("--data {0} --classes a,b --crops-per-epoch some", "--crops-per-epoch some"),
        ("--data {0} --classes a,b --mean 1,x,3", "--mean 1,x,3"),
        ("--data {0} --classes a,b --config {0}/none.toml", "none.toml"),
        ("--data {0} --classes a,b --epochs 0", "--epochs 0"),
        ("", "--data"),
    ],
)
def test_usage_errors(words, message, tmp_path):
    command = shlex.split(words.format(tmp_path))
    result = rsseg("train", "bicor-seg", *command, "-o", tmp_path / "model.safetensors", code=2)
    assert message in result.stderr
    assert not (tmp_path / "runs").exists()


def test_every_setting_is_an_option():
    options = set(inspect.signature(train_bicor_seg).parameters) | {"learning_rate"}
    assert {
        field.name for kind in (config.NetworkSettings, config.TrainConfig) for field in fields(kind)
    } <= options


def test_help_fits_a_terminal():
    text = CliRunner().invoke(app, ["train", "bicor-seg", "--help"], env={"COLUMNS": "80"}).output
    assert max(map(len, text.splitlines())) <= 80
    assert "Example: rsseg train bicor-seg" in text
    assert re.search(r"--lr RATE +Highest learning rate of the head. Default:\s+0.001", text)


def test_a_run_is_not_written_over(tmp_path):
    fake_datasets.make_potsdam(tmp_path / "data", count=2, test_count=1)
    command = ["train", "bicor-seg", "--dataset", "potsdam", "--root", tmp_path / "data", *SMALL.split()]
    command += ["--run-dir", tmp_path / "run"]
    rsseg(*command, "-o", tmp_path / "a.safetensors")
    error = rsseg(*command, "-o", tmp_path / "b.safetensors", code=2)
    assert "holds a run already; pass --resume" in error.stderr
    weights = np.frombuffer((tmp_path / "a.safetensors").read_bytes(), np.uint8)
    rsseg(*command, "--resume", "-o", tmp_path / "b.safetensors")  # a finished run: the file is made again
    assert len(weights) > 0
