"""Several looks at a scene as one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.inference.export import export_model
from rsseg_cli.models import BicorSeg, BicorSegConfig, looks
from rsseg_cli.weights import ModelSpec, load_model, save_model
from rsseg_cli.weights.registry import combine_models, first_look, rewrite_spec

LAND, ROOFS = ("building", "land", "water"), ("background", "building")


def save(path: Path, seed: int, classes: Sequence[str], **changes: object) -> Path:
    torch.manual_seed(seed)
    config = BicorSegConfig(classes=len(classes), encoder="test_efficientnet", channels=16)
    described = ModelSpec.for_network(classes=list(classes))
    spec = ModelSpec(
        name=path.stem,
        architecture="bicor-seg",
        classes=described.classes,
        network={"classes": len(classes), "encoder": "test_efficientnet", "channels": 16},
    )
    return save_model(path, BicorSeg(config), replace(spec, **changes), dtype="float32")


@pytest.fixture
def land(tmp_path: Path) -> Path:
    return save(tmp_path / "land.safetensors", 0, LAND)


@pytest.fixture
def roofs(tmp_path: Path) -> Path:
    return save(tmp_path / "roofs.safetensors", 1, ROOFS)


def test_probabilities_are_those_of_the_looks(land: Path, roofs: Path) -> None:
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    larger = F.interpolate(image, size=(128, 192), mode="bicubic", align_corners=False)
    network, partner = load_model(land).network, load_model(roofs).network

    with torch.no_grad():
        first = network(image).softmax(1)
        again, other = (
            F.interpolate(each(larger), size=(64, 96), mode="bilinear").softmax(1)
            for each in (network, partner)
        )
        found = combine_models(land, roofs, 2.0).network(image).softmax(1)

    building = first[:, 0] / 2 + again[:, 0] / 4 + other[:, 1] / 4
    rest = first[:, 1:] / first[:, 1:].sum(1, keepdim=True)
    others = first[:, 1:] / 2 + again[:, 1:] / 4 + rest * other[:, :1] / 4
    torch.testing.assert_close(found[:, 0], building)
    torch.testing.assert_close(found[:, 1:], others)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 64, 96))


def test_a_partner_of_the_same_classes_is_averaged(land: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.safetensors", 3, LAND[::-1])
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        looks_at = [load_model(path).network(image).softmax(1) for path in (land, other)]
        found = combine_models(land, other).network(image).softmax(1)
    torch.testing.assert_close(found, (looks_at[0] + looks_at[1].flip(1)) / 2)


def test_command_writes_a_model_that_loads(land: Path, roofs: Path, tmp_path: Path) -> None:
    output = tmp_path / "both.safetensors"
    arguments = ["models", "combine", str(land), "--partner", str(roofs), "--zoom", "1.5", "-o", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    model = load_model(output)
    assert model.spec.name == "both"
    assert model.spec.class_names == LAND
    assert model.spec.training["combined"] == [str(land), str(roofs)]
    assert model.network.config.partner_classes == [-1, 0]
    assert model.network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_it_is_exported_for_tiles_of_any_size(land: Path, roofs: Path, tmp_path: Path) -> None:
    exported = export_model(combine_models(land, roofs, 1.5), tmp_path / "both.onnx")
    assert exported.difference < 1e-4  # sides of several sizes are compared


def test_of_combined_models_the_first_looks_are_joined(land: Path, roofs: Path, tmp_path: Path) -> None:
    for first, partner in ((land, roofs), (roofs, land)):
        both = combine_models(first, partner, 1.5)
        save_model(tmp_path / f"{first.stem}_both.safetensors", both.network, both.spec, dtype="float32")
    again = combine_models(*(tmp_path / f"{one.stem}_both.safetensors" for one in (land, roofs)), 2.0)
    plain, image = combine_models(land, roofs, 2.0), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.network(image), plain.network(image))
    assert again.spec.network == plain.spec.network


def test_training_goes_on_from_the_first_look(land: Path, roofs: Path) -> None:
    model = first_look(combine_models(land, roofs, 1.5))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(model.network(image), load_model(land).network(image))
    assert model.spec.network == load_model(land).spec.network


def test_what_does_not_fit_is_refused(land: Path, roofs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="knows no class of"):
        combine_models(land, save(tmp_path / "a.safetensors", 0, ("snow", "rock")))
    with pytest.raises(ModelError, match="std"):
        combine_models(land, save(tmp_path / "b.safetensors", 0, ROOFS, std=(0.5, 0.5, 0.5)))
    with pytest.raises(UsageError, match="zoom 9"):
        combine_models(land, roofs, 9.0)
    with pytest.raises(UsageError, match="nothing to combine"):
        combine_models(land, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partner_classes": [0]}, "partner_classes"),
        ({"partner_classes": [0, 0]}, "partner_classes"),
        ({"partner_classes": [-1, 3]}, "partner_classes"),
        ({"partner_classes": [-1, -1]}, "partner_classes"),
        ({"zoom": 1e9}, "zoom"),
        ({"zoom": True}, "zoom"),
        ({"partner": "none"}, "partner"),
        ({"partner": {"classes": 2, "encoder": "local-dir:/tmp", "channels": 16}}, "not one of timm"),
        ({"partner": {"classes": 2, "encoder": "test_efficientnet", "zoom": 2.0}}, "no partner or zoom"),
    ],
)
def test_files_of_strangers_are_checked(
    land: Path, roofs: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    both = combine_models(land, roofs)
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_model(good, both.network, both.spec)
    rewrite_spec(good, bad, replace(both.spec, network=both.spec.network | changes))
    with pytest.raises(ModelError, match=said):
        load_model(bad)


def test_a_class_that_no_look_gives_is_finite() -> None:
    logits = torch.tensor([200.0, -200.0, -200.0]).view(1, 3, 1, 1)
    partner = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1)
    found = looks.mixed(logits, looks.Looks(None, partner), (looks.UNKNOWN, 0))
    assert torch.isfinite(found).all()
