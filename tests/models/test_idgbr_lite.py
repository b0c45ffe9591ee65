"""The lite refiner: codec, gradients, locality, steps."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rsseg_cli.errors import ModelError
from rsseg_cli.models.bicor_seg import BicorSeg, BicorSegConfig
from rsseg_cli.models.idgbr_lite import LiteRefiner, LiteRefinerConfig, _smaller
from rsseg_cli.weights import ClassSpec, ModelSpec, load_model, save_model

SMALL = {"classes": 3, "codec_channels": 32, "widths": (16, 16, 32), "middle": 1, "window_px": 32}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def network() -> LiteRefiner:
    return LiteRefinerConfig(**SMALL).build().eval()


def blobs(batch: int = 2, size: int = 64, classes: int = 3) -> torch.Tensor:
    cells = torch.randint(0, classes, (batch, 1, size // 16, size // 16)).float()
    return torch.nn.functional.interpolate(cells, scale_factor=16)[:, 0].long()


def test_shapes_steps_and_unknown_pixels(network: LiteRefiner) -> None:
    image, coarse, noise = (
        torch.randn(2, 3, 64, 96),
        torch.zeros(2, 64, 96).byte(),
        torch.randn(2, 48, 16, 24),
    )
    coarse[:, :8] = 255
    with torch.inference_mode():
        one = network(image, coarse, noise)
        three = network(image, coarse, noise, steps=3)
    assert one.shape == three.shape == (2, 3, 64, 96)
    assert torch.isfinite(one).all()
    assert not torch.equal(one, three)


def test_every_parameter_that_a_stage_trains_gets_a_gradient(network: LiteRefiner) -> None:
    network.train()
    labels, coarse, image = blobs(), blobs(), torch.randn(2, 3, 64, 64)
    for stage in ("codec", "refiner"):
        network.zero_grad(set_to_none=True)
        losses = (
            network.codec_losses(labels)
            if stage == "codec"
            else network.refiner_losses(image, coarse, labels)
        )
        losses["loss"].backward()
        trained = {id(item) for item in network.stage_parameters(stage)}
        without = [
            name
            for name, item in network.named_parameters()
            if id(item) in trained and (item.grad is None or not item.grad.abs().sum() > 0)
        ]
        assert without == [], stage


def test_the_image_encoder_stays_as_it_is(network: LiteRefiner) -> None:
    before = {name: value.clone() for name, value in network.conditions.encoder.state_dict().items()}
    network.train()
    network.refiner_losses(torch.randn(2, 3, 64, 64), blobs(), blobs())["loss"].backward()
    for name, value in network.conditions.encoder.state_dict().items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
def test_the_codec_loses_nothing(classes: int) -> None:
    codec = LiteRefinerConfig(**{**SMALL, "classes": classes}).build().codec
    labels = torch.randint(0, classes, (2, 64, 64))  # every pixel a boundary
    with torch.inference_mode():
        latent = codec.encode(labels)
        assert torch.equal(codec.decode(latent).argmax(1), labels)
    torch.testing.assert_close(latent.square().mean(1), torch.ones(2, 16, 16), rtol=1e-3, atol=0)


def test_between_two_maps_lies_no_third_class() -> None:
    """Half way between a map and one shifted by a pixel, each pixel has the class of one of the two."""
    codec = LiteRefinerConfig(**{**SMALL, "classes": 2}).build().codec
    one = blobs(1, 64, 2)
    other = one.roll(1, 2)
    with torch.inference_mode():
        between = codec.decode(0.6 * codec.encode(one) + 0.4 * codec.encode(other)).argmax(1)
    assert torch.equal(between, one)


def test_codec_training_keeps_boundaries(network: LiteRefiner) -> None:
    optimiser = torch.optim.AdamW(network.stage_parameters("codec"), lr=2e-3)
    for _ in range(20):
        loss = network.codec_losses(blobs(4))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    labels = blobs(4)
    with torch.inference_mode():
        result = network.codec.decode(network.codec.encode(labels)).argmax(1)
    assert (result == labels).float().mean() > 0.999


def test_denoising_learns_to_follow_the_image(network: LiteRefiner) -> None:
    """Labels that the image shows plainly, coarse maps shifted by 4 px: the loss falls."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        labels = blobs(4)
        image = torch.stack([(labels == index).float() for index in range(3)], 1)
        parts = network.refiner_losses(image, labels.roll((4, 4), (1, 2)), labels)
        loss = parts["loss"] + network.codec_losses(labels)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(parts["cross_entropy"].item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_pixel_does_not_depend_on_its_tile() -> None:
    """A window at a multiple of the alignment gives what the whole gives, away from the window's edge."""
    network = LiteRefinerConfig(**SMALL, steps=1).build().eval()
    size, start, reach = 768, 64, 320  # px; reach of this configuration, most of it the encoder's
    image, coarse = torch.randn(1, 3, size, size), blobs(1, size)
    noise = torch.randn(1, network.latent_channels, size // 4, size // 4)
    with torch.inference_mode():
        whole = network(image, coarse, noise)
        part = network(
            image[..., start:, start:], coarse[:, start:, start:], noise[..., start // 4 :, start // 4 :]
        )
    torch.testing.assert_close(part[..., reach:, reach:], whole[..., start + reach :, start + reach :])


def closer_pair() -> tuple[LiteRefiner, BicorSeg]:
    """A refiner that carries a segmentation network along, and that network."""
    sizes = {"channels": 16, "layers": 1, "neck": "conv"}
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16, layers=1, neck="conv")
    look = config.build().eval()
    network = LiteRefinerConfig(**SMALL, closer=sizes).build().eval()
    assert network.closer is not None
    network.conditions.encoder.load_state_dict(look.encoder.state_dict())
    network.closer.neck.load_state_dict(look.neck.state_dict())
    network.closer.decoder.load_state_dict(look.decoder.state_dict())
    return network, look


def test_a_closer_look_is_what_the_segmentation_network_sees() -> None:
    network, look = closer_pair()
    image = torch.randn(2, 3, 64, 64)
    assert network.closer is not None
    with torch.inference_mode():
        result = network.closer(network.conditions.see(image))
        torch.testing.assert_close(result, look(image).softmax(1))


@pytest.mark.parametrize("sizes", [(1.0,), (1.0, 0.5)])
def test_what_a_closer_look_knows_goes_before_what_it_sees(sizes: tuple[float, ...]) -> None:
    network, look = closer_pair()
    network.config = replace(network.config, closer_scales=sizes)
    image = torch.randn(2, 3, 64, 64)
    known = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    known[0] = torch.tensor([254, 0, 0], dtype=torch.uint8)[:, None, None]
    with torch.inference_mode():
        seen = look(image).softmax(1)
        if len(sizes) == 2:
            half = F.interpolate(image, (32, 32), mode="bilinear", antialias=True)
            seen = (seen + F.interpolate(look(half).softmax(1), (64, 64), mode="bilinear")) / 2
        expected = torch.where(known == 255, seen, known / 254)
        result = network._look(image, network.conditions.see(image), known)
        torch.testing.assert_close(result, expected)
        whole = known[:1].expand(2, -1, -1, -1)
        assert torch.equal(network._look(image, network.conditions.see(image), whole), whole / 254)


@pytest.mark.parametrize("size", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("shape", [(96, 64), (32, 160), (512, 448)], ids=str)
def test_smaller_images_are_those_of_antialiased_interpolation(size: float, shape: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *shape)
    smaller = _smaller(image, size)
    expected = F.interpolate(image.double(), smaller.shape[-2:], mode="bilinear", antialias=True)
    assert (smaller - expected).abs().max() < 1e-5


def test_a_closer_look_has_its_share_in_the_result() -> None:
    network, look = closer_pair()
    image, coarse, noise = torch.randn(1, 3, 64, 64), blobs(1), torch.randn(1, 48, 16, 16)
    with torch.inference_mode():
        alone = network(image, coarse, noise).softmax(1)
        network.config = replace(network.config, closer_share=0.25)
        result = network(image, coarse, noise).softmax(1)
        torch.testing.assert_close(result, 0.75 * alone + 0.25 * look(image).softmax(1), atol=1e-5, rtol=0)


def test_a_closer_look_takes_part_and_stays_frozen() -> None:
    network = LiteRefinerConfig(**SMALL, closer={"channels": 16, "layers": 1, "neck": "conv"}).build()
    assert network.denoiser.training  # as it is built, and as Lightning takes it
    assert network.closer is not None
    assert not any(
        part.training for part in [*network.closer.modules(), *network.conditions.encoder.modules()]
    )
    before = {name: value.clone() for name, value in network.closer.state_dict().items()}
    image, labels, coarse = torch.randn(2, 3, 64, 64), blobs(), blobs()
    torch.manual_seed(1)
    own = network.refiner_losses(image, coarse, labels)["cross_entropy"]
    own.backward()
    assert network.conditions.rough_in.weight.grad[:, network.latent_channels :].abs().sum() > 0
    assert not any(item.requires_grad for item in network.closer.parameters())
    for name, value in network.closer.state_dict().items():
        assert torch.equal(before[name], value), name
    sure = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).to(torch.uint8) * 254
    torch.manual_seed(1)
    given = network.refiner_losses(image, coarse, labels, sure)["cross_entropy"]
    assert given < own  # the network starts from it, and these are the labels themselves


def test_certain_classes_blend_to_the_latents_of_their_map() -> None:
    codec = LiteRefinerConfig(**SMALL).build().codec
    labels = blobs()
    sure = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        torch.testing.assert_close(codec.blend(sure), codec.encode(labels), rtol=1e-3, atol=1e-3)
        assert codec.blend(torch.full((1, 3, 8, 8), 1 / 3)).square().mean() < 0.5


def test_unlabelled_pixels_count_in_no_loss(network: LiteRefiner) -> None:
    labels = torch.full((1, 64, 64), 255)
    losses = network.refiner_losses(torch.randn(1, 3, 64, 64), blobs(1), labels)
    assert losses["cross_entropy"] == 0


def test_a_refiner_is_saved_and_loaded(network: LiteRefiner, tmp_path: Path) -> None:
    spec = ModelSpec(
        name="tiny", architecture="idgbr-lite", classes=ClassSpec.from_names(["a", "b", "c"]),
        network=asdict(network.config), refinement={"steps": 2, "band_m": 1.5, "model": "x"},
    )  # fmt: skip
    loaded = load_model(save_model(tmp_path / "tiny.safetensors", network, spec, dtype="float32"))
    assert loaded.spec.is_refiner
    assert loaded.spec.refinement == {"steps": 2, "band_m": 1.5, "model": "x"}
    image, coarse, noise = torch.randn(1, 3, 64, 64), blobs(1), torch.randn(1, 48, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(image, coarse, noise), network(image, coarse, noise))


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": (8, 8)},
        {"window_px": 20},
        {"noise": 0},
        {"steps": 0},
        {"encoder": "convnext_atto"},
        {"closer": {"channels": 17}},
        {"closer_scales": ()},
        {"closer_share": 0.5},
        {"closer_scales": (2.0,)},
        {"closer": {"width": 16}},
        {"closer": {"encoder": "resnet18"}},
    ],
)
def test_sizes_that_do_not_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        LiteRefinerConfig(**{**SMALL, **wrong}).build()


@pytest.mark.parametrize("refinement", [{"steps": 0}, {"steps": True}, {"band_m": -1.0}, {"band_m": "wide"}])
def test_refinement_settings_are_checked(refinement: dict) -> None:
    with pytest.raises(ModelError, match="refinement"):
        ModelSpec(
            name="r",
            architecture="idgbr-lite",
            classes=ClassSpec.from_names(["a", "b"]),
            refinement=refinement,
        )
