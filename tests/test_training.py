"""Training runs at tiny size, through the command line: what comes out is a model that predicts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from rsseg_cli.cli.train import app
from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.metrics import confusion_matrix, scores_of
from rsseg_cli.models.bicor_seg import build_encoder
from rsseg_cli.training import (
    TrainConfig,
    learning_rate_factor,
    load_encoder,
    parameter_groups,
)
from rsseg_cli.weights import load_model


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


def train(folder, *more, code=0):
    command = [
        "bicor-seg",
        "--data",
        str(folder),
        "--val",
        "val*",
        "--test",
        "test*",
        "--classes",
        "dark,bright",
    ]
    command += [
        "--arch",
        "test_efficientnet",
        "--encoder-weights",
        "none",
        "--crop-size",
        "64",
        "--batch-size",
        "4",
    ]
    command += [
        "--crops-per-epoch",
        "24",
        "--gsd",
        "1",
        "--run-dir",
        str(folder / "run"),
        "--device",
        "cpu",
        "--quiet",
    ]
    result = CliRunner().invoke(app, [*command, *map(str, more)])
    assert result.exit_code == code, result.output
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
    train(two_colours, "--epochs", 1, "--init", output, "--lr", 1e-6, "--ema", 0, "-o", second)
    assert load_model(second).spec.scores["val"]["val_miou"] > 0.8


def test_resume_ends_like_an_uninterrupted_run(two_colours):
    """Three epochs in one go, and the same stopped after two: the same weights to the bit."""
    whole, parts = two_colours / "whole.safetensors", two_colours / "parts.safetensors"
    train(two_colours, "--epochs", 3, "--run-dir", two_colours / "a", "-o", whole)

    from rsseg_cli import training

    class Stop(Exception):
        pass

    def interrupt(self):
        if self.trainer.current_epoch == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.SegmentationModule, "on_train_epoch_start", interrupt)
        result = train(two_colours, "--epochs", 3, "--run-dir", two_colours / "b", "-o", parts, code=1)
        assert isinstance(result.exception, Stop)
    train(two_colours, "--epochs", 3, "--run-dir", two_colours / "b", "--resume", "-o", parts)

    expected = load_model(whole).network.state_dict()
    for key, value in load_model(parts).network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_errors_come_before_work(two_colours):
    output = two_colours / "model.safetensors"
    output.write_bytes(b"")
    assert "pass --overwrite" in str(train(two_colours, "-o", output, code=1).exception)
    output.unlink()
    assert isinstance(train(two_colours, "--crop-size", 50, "-o", output, code=1).exception, UsageError)
    (two_colours / "images" / "val1.png").rename(two_colours / "images" / "other.png")
    error = train(two_colours, "-o", output, code=1).exception
    assert isinstance(error, DataError)
    assert "other, val1" in str(error)
    assert not output.exists()


def test_classes_from_json(two_colours):
    listed = two_colours / "classes.json"
    listed.write_text(json.dumps([{"name": "dark", "colour": [1, 2, 3]}, {"name": "bright"}]))
    output = two_colours / "model.safetensors"
    train(two_colours, "--epochs", 1, "--classes", listed, "-o", output)
    assert load_model(output).spec.classes[0].colour == (1, 2, 3)
    listed.write_text("{")
    assert isinstance(
        train(two_colours, "--classes", listed, "-o", output, "--overwrite", code=1).exception, DataError
    )


def test_scores_by_hand():
    """Class 0 is right 4 times of 5, class 1 3 times of 4; one pixel is found as 2, one is unlabelled."""
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 255])
    found = torch.tensor([0, 0, 0, 0, 2, 1, 1, 1, 0, 2])
    matrix = confusion_matrix(found, labels, 3)
    assert matrix.tolist() == [[4, 0, 1], [1, 3, 0], [0, 0, 0]]
    scores = scores_of(matrix)
    assert scores["iou"] == pytest.approx([4 / 6, 3 / 4, 0])
    assert scores["f1"] == pytest.approx([8 / 10, 6 / 7, 0])
    assert scores["overall_accuracy"] == pytest.approx(7 / 9)
    assert scores["miou"] == pytest.approx((4 / 6 + 3 / 4) / 3)


def test_a_class_that_occurs_nowhere_is_left_out_of_means():
    scores = scores_of(torch.tensor([[5, 0], [0, 0]]))
    assert scores["miou"] == 1.0
    assert np.isnan(scores["iou"][1])


def test_learning_rate_rises_then_falls():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9:11] == [1.0, 1.0]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[99] == pytest.approx(0.01, abs=1e-3)


def test_groups_hold_every_parameter_once():
    network = nn.Module()
    network.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    network.head = nn.Conv2d(8, 2, 1)
    groups = parameter_groups(network, TrainConfig(learning_rate=1.0, encoder_rate=0.1))
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, network.parameters()))
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {
        (0.1, 0.0),
        (0.1, 0.01),
        (1.0, 0.0),
        (1.0, 0.01),
    }


def test_encoder_weights_by_order(tmp_path):
    import timm

    torch.manual_seed(0)
    classifier = timm.create_model("test_efficientnet")
    renamed = {f"tensor{index}": value for index, value in enumerate(classifier.state_dict().values())}
    torch.save(renamed, tmp_path / "weights.pth")
    encoder = build_encoder("test_efficientnet", 3)
    load_encoder(encoder, "test_efficientnet", tmp_path / "weights.pth")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[key]), key
    torch.save({"one": torch.zeros(1)}, tmp_path / "short.pth")
    with pytest.raises(ModelError, match="1 tensors"):
        load_encoder(encoder, "test_efficientnet", tmp_path / "short.pth")
    torch.save(classifier, tmp_path / "pickled.pth")
    with pytest.raises(ModelError, match="plain state dict"):
        load_encoder(encoder, "test_efficientnet", tmp_path / "pickled.pth")
