"""`rsseg demo`: from nothing to a map, its picture and its score."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.cli.demo import GSD_M
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ClassSpec, ModelSpec, read_spec, save_model

torch.set_num_threads(1)
CLASSES = ("building", "land", "road", "vegetation", "water")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained network for the classes of drawn scenes."""
    config = BicorSegConfig(classes=5, encoder="resnet18", channels=16, layers=1)
    spec = ModelSpec(
        name="untrained",
        architecture="bicor-seg",
        classes=ClassSpec.from_names(CLASSES),
        network=asdict(config),
        gsd_m=0.3,
        gsd_range_m=(0.2, 0.5),
    )
    return save_model(tmp_path / "untrained.safetensors", BicorSeg(config), spec)


def run(*args: object) -> Any:
    return CliRunner().invoke(app, ["demo", *map(str, args)])


def test_demo_draws_maps_and_scores(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "new" / "demo"
    arguments = ("-o", folder, "--size", 128, "--model", model)
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    for name in ("scene.tif", "labels.tif", "map.tif", "preview.png"):
        assert str(folder / name) in shown.stdout
        assert (folder / name).is_file()
    assert "against the drawn labels: building " in shown.stdout
    again = run(*arguments)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert run(*arguments, "--overwrite").exit_code == 0


def test_demo_is_drawn_at_a_resolution_of_its_model() -> None:
    low, high = read_spec("landcover").gsd_range_m
    assert low <= GSD_M <= high


def test_demo_needs_the_model_before_it_draws(tmp_path: Path) -> None:
    shown = run("-o", tmp_path / "demo", "--model", tmp_path / "missing.safetensors")
    assert shown.exit_code == 1
    assert "missing.safetensors" in shown.stderr
    assert not (tmp_path / "demo").exists()
