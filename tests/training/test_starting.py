"""Networks before training: filled from ImageNet weights or another model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.training.config import NetworkSettings
from rsseg_cli.training.start import (
    build_network,
    input_statistics,
    load_encoder,
    network_sizes,
    start_from_model,
)
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_encoder_weights_by_order(tmp_path):
    import timm

    torch.manual_seed(0)
    classifier = timm.create_model("test_efficientnet")
    renamed = {f"tensor{index}": value for index, value in enumerate(classifier.state_dict().values())}
    torch.save(renamed, tmp_path / "weights.pth")
    encoder = BicorSeg(BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16)).encoder
    load_encoder(encoder, "test_efficientnet", tmp_path / "weights.pth")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[key]), key
    torch.save({"one": torch.zeros(1)}, tmp_path / "short.pth")
    with pytest.raises(ModelError, match="1 tensors"):
        load_encoder(encoder, "test_efficientnet", tmp_path / "short.pth")
    torch.save(classifier, tmp_path / "pickled.pth")
    with pytest.raises(ModelError, match="plain state dict"):
        load_encoder(encoder, "test_efficientnet", tmp_path / "pickled.pth")


def spec_of(names, bands=("red", "green", "blue")):
    settings = NetworkSettings(arch="test_efficientnet", channels=16)
    mean, std = input_statistics(settings, len(bands))
    return ModelSpec(
        name="t", architecture="bicor-seg",
        classes=ClassSpec.from_names(names), bands=bands, mean=mean, std=std,
        network=network_sizes(settings, len(names), len(bands)),
    )  # fmt: skip


def trained(names, bands=("red", "green", "blue")):
    torch.manual_seed(1)
    spec = spec_of(names, bands)
    return TrainedModel(BicorSeg(BicorSegConfig(**spec.network)), spec)


def test_classes_keep_their_rows_by_name(caplog):
    """road and water change places, roof is new: all else is taken as it is."""
    start = trained(["road", "water", "wood"])
    caplog.set_level("INFO", "rsseg_cli")
    network, spec = start_from_model(start, spec_of(["water", "roof", "road", "wood"]), "start")
    rows, given = network.decoder.class_table, start.network.decoder.class_table
    assert torch.equal(rows[0], given[1])
    assert torch.equal(rows[2], given[0])
    assert torch.equal(rows[3], given[2])
    assert not any(torch.equal(rows[1], row) for row in given)
    assert spec.network["classes"] == 4
    for key, value in start.network.state_dict().items():
        if key != "decoder.class_table":
            assert torch.equal(network.state_dict()[key], value), key
    count = len(network.state_dict())
    assert f"{count} of {count} tensors taken from start" in caplog.text
    assert "water, road, wood by name" in caplog.text


def test_bands_keep_their_columns_by_name():
    start = trained(["road", "water"])
    network, _ = start_from_model(start, spec_of(["road", "water"], ("nir", "red", "green", "blue")), "start")
    first = next(value for value in network.state_dict().values() if value.ndim == 4)
    given = next(value for value in start.network.state_dict().values() if value.ndim == 4)
    assert torch.allclose(first[:, 1:] * 4 / 3, given)
    assert torch.allclose(first[:, 0] * 4 / 3, given.mean(1))


def test_a_network_of_ones_own_is_no_start():
    start = trained(["road"])
    external = dataclasses.replace(start.spec, architecture="external")
    with pytest.raises(ModelError, match="external"):
        start_from_model(TrainedModel(start.network, external), start.spec, "start")


def test_sizes_by_arch():
    assert network_sizes(NetworkSettings(), 3, 3) == vars(BicorSegConfig.lite(3))
    assert network_sizes(NetworkSettings(arch="paper", layers=3), 6, 3) == vars(BicorSegConfig.paper(6, 3))
    with pytest.raises(UsageError, match="--arch 'resnet'"):
        network_sizes(NetworkSettings(arch="resnet"), 3, 3)
    with pytest.raises(UsageError, match="channels 40"):
        network_sizes(NetworkSettings(channels=40), 3, 3)
    spec = dataclasses.replace(spec_of(["road"]), network={"classes": 1, "encoder": "vit_tiny_patch16_224"})
    with pytest.raises(UsageError, match="--arch vit_tiny"):
        build_network(spec, NetworkSettings(encoder_weights="none"), 0)


@pytest.mark.parametrize(("arch", "parameters"), [("lite", 3.5), ("lite2", 5.0)])
def test_lite_sizes_begin_from_imagenet(arch, parameters):
    settings = NetworkSettings(arch=arch)
    spec = dataclasses.replace(spec_of(["road"]), network=network_sizes(settings, 1, 3))
    network, _ = build_network(spec, settings, 0)
    assert sum(value.numel() for value in network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.3)
    other, _ = build_network(spec, settings, 1)
    for key, value in network.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[key]), key


def test_mean_and_deviation_of_each_band():
    assert input_statistics(NetworkSettings(), 3)[0] == (0.485, 0.456, 0.406)
    assert input_statistics(NetworkSettings(), 4)[0] == (0.485, 0.456, 0.406, 0.449)
    assert input_statistics(NetworkSettings(std=(0.1, 0.2)), 2) == ((0.485, 0.456), (0.1, 0.2))
    with pytest.raises(UsageError, match="--mean: 1 numbers for 3 bands"):
        input_statistics(NetworkSettings(mean=(0.5,)), 3)


def test_imagenet_weights_for_four_bands(tmp_path):
    import timm

    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    network, _ = build_network(
        spec_of(["road"], ("nir", "red", "green", "blue")),
        NetworkSettings(encoder_weights=str(tmp_path / "weights.pth")),
        0,
    )
    assert next(iter(network.encoder.state_dict().values())).shape[1] == 4
