"""Batches by the command line, with a tiny model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import rasterio
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, save_model

SMALL = ("--tile-size", "64", "--overlap", "16")


def save_tiny(path, seed=0):
    torch.manual_seed(seed)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    external = ModelSpec.for_network(classes=["roof", "road", "tree"])
    spec = ModelSpec(name="tiny", architecture="bicor-seg", classes=external.classes, network=asdict(config))
    return save_model(path, BicorSeg(config), spec, overwrite=True)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def run(model_file, monkeypatch, tmp_path):
    """run(arguments) in the folder of the scenes."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin=None, model=model_file):
        given = ["predict", *map(str, arguments), "--model", str(model), *SMALL]
        return CliRunner().invoke(app, given, input=stdin)

    return call


def pixels(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def records_of(manifest):
    """The last record of each scene, by its path."""
    records = map(json.loads, Path(manifest).read_text().splitlines())
    return {record["input"]: record for record in records}


def status_of(manifest):
    return {Path(name).name: record["status"] for name, record in records_of(manifest).items()}
