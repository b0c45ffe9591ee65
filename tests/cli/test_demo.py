"""`rsseg demo`: from nothing to a map, its picture and its score."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ClassSpec, ModelSpec, registry, save_model

torch.set_num_threads(1)
CLASSES = ("building", "land", "road", "vegetation", "water")


@pytest.fixture
def _landcover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network under the name of the model that the demo uses."""
    config = BicorSegConfig(classes=5, encoder="resnet18", channels=16, layers=1)
    spec = ModelSpec(
        name="landcover",
        architecture="bicor-seg",
        classes=ClassSpec.from_names(CLASSES),
        network=asdict(config),
        gsd_m=0.3,
        gsd_range_m=(0.2, 0.5),
    )
    path = save_model(tmp_path / "landcover.safetensors", BicorSeg(config), spec)
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(registry, "MODELS", {"landcover": registry.file_sha256(path)})


def run(*args: object) -> Any:
    return CliRunner().invoke(app, ["demo", *map(str, args)])


@pytest.mark.usefixtures("_landcover")
def test_demo_draws_maps_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    shown = run("-o", folder, "--size", 128)
    assert shown.exit_code == 0, shown.output
    for name in ("scene.tif", "labels.tif", "map.tif", "preview.png"):
        assert str(folder / name) in shown.stdout
        assert (folder / name).is_file()
    assert "against the drawn labels: building " in shown.stdout
    again = run("-o", folder, "--size", 128)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert run("-o", folder, "--size", 128, "--overwrite").exit_code == 0


def test_demo_needs_the_model_before_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MODELS", {})
    shown = run("-o", tmp_path / "demo")
    assert shown.exit_code == 1
    assert "model 'landcover'" in shown.stderr
    assert not (tmp_path / "demo").exists()
