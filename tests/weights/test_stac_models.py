"""STAC Items of models: by the core schemas, and by the model of the Machine Learning Model extension."""

from __future__ import annotations

import json

import pytest
from stac_model.schema import MLModelProperties
from stac_schemas import check_item
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.weights import read_spec, registry


@pytest.mark.parametrize("name", ["landcover", "buildings", "landcover-refiner"])
def test_an_item_describes_a_model(name):
    result = CliRunner().invoke(app, ["models", "show", name, "--stac"])
    assert result.exit_code == 0, result.output
    item = json.loads(result.stdout)
    check_item(item)
    spec, path = read_spec(name), registry.model_file(name)
    asset = item["assets"]["model"]
    assert asset["href"] == path.absolute().as_uri()
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"] == "safetensors"
    assert asset["file:size"] == path.stat().st_size
    assert asset["file:checksum"] == f"1220{registry.file_sha256(path)}"
    assert [band["name"] for band in asset["bands"]] == list(spec.bands)
    assert any(uri.endswith("mlm/v1.5.0/schema.json") for uri in item["stac_extensions"])
    described = item["properties"]["mlm:output"][0]["classification:classes"]
    assert [entry.pop("title") for entry in described] == list(spec.class_names)  # not known to stac-model
    model = MLModelProperties(**item["properties"])
    assert model.name == spec.name
    assert [band for band in model.input[0].bands] == list(spec.bands)
    assert model.input[0].value_scaling[0].mean == pytest.approx(spec.mean[0] * 255)
    assert model.output[0].result.shape == [-1, len(spec.classes), -1, -1]
    assert described[0]["color_hint"] == "{:02X}{:02X}{:02X}".format(*spec.classes[0].colour)
