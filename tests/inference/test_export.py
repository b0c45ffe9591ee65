"""Exported networks: the same probabilities in other programs, and again in rsseg."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import openvino
import pytest
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.inference import export
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, read_spec, save_model

torch.set_num_threads(1)
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
NAMES = ("roof", "road \"'<&", "tree")


def tiny(**sizes):
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16, **sizes)
    spec = ModelSpec(
        name="tiny", architecture="bicor-seg", classes=ClassSpec.from_names(NAMES), network=asdict(config),
        gsd_m=0.5, gsd_range_m=(0.4, 0.6),
    )  # fmt: skip
    return TrainedModel(BicorSeg(config).eval(), spec)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    return export.export_model(model, path)


def own(model, image):
    """Probabilities of an image from 0 to 1."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.spec.mean, model.spec.std))
    with torch.inference_mode():
        return model.network((torch.from_numpy(image) - mean) / std).softmax(1).numpy()


def image(batch, height, width):
    return np.random.default_rng(9).random((batch, 3, height, width), np.float32)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 192), (2, 320, 96)])
def test_onnx_runtime_computes_the_file_at_any_size(model, exported, shape):
    session = onnxruntime.InferenceSession(exported.path)
    (given,) = session.run(None, {"image": image(*shape)})
    np.testing.assert_allclose(given, own(model, image(*shape)), atol=1e-4)
    assert 0 < exported.difference < 1e-4
    assert exported.pixels == 128 * 128 + 2 * 96 * 160


def test_deepness_finds_what_it_asks_for(exported):
    """By the names and forms in which its ModelBase reads them; both sides of outputs have one name."""
    session = onnxruntime.InferenceSession(exported.path)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["model_type"]) == "Segmentor"
    assert json.loads(known["class_names"]) == {"0": "roof", "1": NAMES[1], "2": "tree"}
    assert float(json.loads(known["resolution"])) == 50
    assert int(json.loads(known["tile_size"])) == 512
    assert 0 <= int(json.loads(known["tiles_overlap"])) <= 80
    assert json.loads(known["standardization_mean"]) == [0, 0, 0]
    assert json.loads(known["standardization_std"]) == [1, 1, 1]
    assert json.loads(known["seg_thresh"]) == 0
    (given,) = session.get_outputs()
    assert len(given.shape) == 4
    assert given.shape[2] == given.shape[3]
    assert isinstance(session.get_inputs()[0].shape[0], str)  # any batch
    assert session.get_inputs()[0].shape[1] == 3


def test_openvino_reads_its_file(model, tmp_path):
    assert export.export_model(model, tmp_path / "tiny.xml").difference < 1e-4
    assert (tmp_path / "tiny.bin").stat().st_size > 100_000
    graph = openvino.Core().read_model(tmp_path / "tiny.xml")
    assert json.loads(graph.get_rt_info(["rsseg", "class_names"]).value)["2"] == "tree"
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled([image(2, 64, 96)])[0], own(model, image(2, 64, 96)), atol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.bin", "tiny.xml"]


@pytest.mark.slow
def test_torch_reads_its_file(model, tmp_path):
    assert export.export_model(model, tmp_path / "tiny.pt2").difference < 1e-5
    extra = {"rsseg_model": ""}
    program = torch.export.load(tmp_path / "tiny.pt2", extra_files=extra).module()
    tiles = image(3, export.TILE_PX, export.TILE_PX)
    given = program(torch.from_numpy(tiles)).detach().numpy()
    np.testing.assert_allclose(given, own(model, tiles), atol=1e-5)
    assert ModelSpec.from_json(extra["rsseg_model"]).class_names == NAMES
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.pt2"]


def test_a_file_that_gives_something_else_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 1e-9)
    with pytest.raises(
        ModelError, match=r"differ from the network's by up to .*, more than 1e-09; not written"
    ):
        export.export_model(model, tmp_path / "tiny.onnx")
    assert not list(tmp_path.iterdir())


def test_the_description_tells_that_normalisation_is_inside(model, exported):
    spec = read_spec(exported.path)
    assert spec.architecture == "onnx"
    assert (spec.mean, spec.std) == ((0.0,) * 3, (1.0,) * 3)
    kept = {
        name: getattr(spec, name) for name in ("name", "classes", "bands", "scaling", "gsd_m", "gsd_range_m")
    }
    assert kept == {name: getattr(model.spec, name) for name in kept}


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.onnx, \.xml, \.pt2"):
        export.export_model(model, tmp_path / "tiny.tflite")
    with pytest.raises(ModelError, match=r"topk_ratio 0\.5"):
        export.export_model(tiny(topk_ratio=0.5), tmp_path / "tiny.onnx")
    spec = replace(model.spec, architecture="idgbr-lite")
    with pytest.raises(ModelError, match="idgbr-lite is not exported"):
        export.export_model(TrainedModel(model.network, spec), tmp_path / "tiny.onnx")


def test_the_command_tells_the_largest_difference(model, tmp_path):
    save_model(tmp_path / "tiny.safetensors", model.network, model.spec)
    command = ["models", "export", str(tmp_path / "tiny.safetensors"), "-o", str(tmp_path / "tiny.onnx")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "probabilities differ from the network's by" in result.output
    assert "on 47104 pixels" in result.output
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "exists. Pass --overwrite" in refused.output
    onnx.checker.check_model(str(tmp_path / "tiny.onnx"))
