"""The refiner at the paper's architecture, tiny: against the released numbers, diffusers and itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from networks import TINY, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rsseg_cli.models.idgbr import Idgbr, IdgbrConfig
from rsseg_cli.models.idgbr_guidance import GuidanceBlock, LabelEmbedding, spread_codes
from rsseg_cli.models.losses import DinoAlignment
from rsseg_cli.weights.released_idgbr import BLOCK_PARTS

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "idgbr_guidance_block.safetensors"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def inputs(side: int = 32, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Image, coarse map with a corner without class, noise."""
    torch.manual_seed(1)
    coarse = (
        torch.randint(0, classes, (2, side // 8, side // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    )
    coarse[0, :4, :6] = 255
    return (
        torch.rand(2, 3, side, side) * 2 - 1,
        coarse.to(torch.uint8),
        torch.randn(2, 4, side // 4, side // 4),
    )


@pytest.mark.parametrize("grid", ["8", "12"])
def test_guidance_block_gives_the_released_numbers(grid: str) -> None:
    if not GOLDEN.exists():
        pytest.skip("golden tensors are not here")
    golden = load_file(GOLDEN)
    block = GuidanceBlock(32, 512, 8, 8)
    state = {}
    for name in block.state_dict():
        part, dot, rest = name.partition(".")
        state[name] = golden[f"weights.{BLOCK_PARTS[part]}{dot}{rest}"]
    block.load_state_dict(state)
    with torch.inference_mode():
        residual = block(golden[f"noisy_skip.{grid}"], golden[f"conditions.{grid}"])
    torch.testing.assert_close(residual, golden[f"residual.{grid}"], atol=1e-5, rtol=0)


def test_split_unet_is_diffusers_unet() -> None:
    network = tiny()
    unet, text = network.denoiser, network.prompt.expand(2, -1, -1)
    noisy, time = torch.randn(2, 4, 8, 12), torch.tensor([3, 500])
    with torch.inference_mode():
        embedding, features = unet.encode(noisy, time, text)
        assert [item.shape[1] for item in features] == [
            channels for channels, _ in network.config.skip_shapes
        ]
        residuals = [torch.randn_like(item) for item in features]
        result = unet.decode(embedding, [a + b for a, b in zip(features, residuals, strict=True)], text)
        whole = UNet2DConditionModel.forward(
            unet,
            noisy,
            time,
            text,
            down_block_additional_residuals=tuple(residuals[:-1]),
            mid_block_additional_residual=residuals[-1],
        ).sample
    torch.testing.assert_close(result, whole)


def test_every_parameter_of_the_guidance_network_gets_a_gradient() -> None:
    """From the second step on: at the first the two layers at zero hide all that lies between them."""
    network = tiny(moved=False, guidance_dropout=0.0).train()
    image, coarse, _ = inputs()
    parameters = list(network.stage_parameters("refiner"))
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network.refiner_losses(image, coarse, coarse.long())["loss"].backward()
        optimizer.step()
    trained = {**dict(network.guidance.named_parameters()), **dict(network.denoiser.named_parameters())}
    assert len(trained) == len(parameters)
    without = [name for name, item in trained.items() if item.grad is None or not item.grad.abs().max() > 0]
    assert not without
    frozen = [network.codec, network.condition_encoder, network.label_embedding]
    assert all(item.grad is None for part in frozen for item in part.parameters())


def test_guidance_begins_by_adding_nothing() -> None:
    network = tiny(moved=False)
    features = [torch.randn(1, width, 4, 4) for width, _ in network.config.skip_shapes]
    residuals = network.guidance(features, [torch.cat([item, item], 1) for item in features])
    assert all(not residual.any() for residual in residuals)


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (3, 1.0), (3, 2.5)])
def test_nothing_is_encoded_twice(steps: int, guidance: float) -> None:
    """Codec: image and coarse map in, a latent out. Conditions: once. The denoiser's encoder: once a step."""
    network, (image, coarse, noise) = tiny(), inputs()
    calls: dict[str, int] = {}

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1))

    count("codec in", network.codec.encoder)
    count("codec out", network.codec.decoder)
    count("conditions", network.condition_encoder.mid_block)
    count("encoder", network.denoiser.mid_block)
    count("guidance", network.guidance)
    count("decoder", network.denoiser.conv_out)
    with torch.inference_mode():
        logits = network(image, coarse, noise, steps=steps, guidance=guidance)
    assert logits.shape == (2, 3, 32, 32)
    assert logits.isfinite().all()
    once, each = {"codec in": 2, "codec out": 1, "conditions": 1}, ("encoder", "guidance", "decoder")
    assert calls == {**once, **dict.fromkeys(each, steps)}


def test_guidance_is_carried_beyond_the_prediction_without_conditions() -> None:
    network, (image, coarse, noise) = tiny(), inputs()
    with torch.inference_mode():
        latents = network.encode(image), network.encode(network.label_embedding(coarse))
        conditions, time = network.encode_conditions(*latents), torch.tensor([700, 20])
        text = network.prompt.expand(2, -1, -1)
        free = UNet2DConditionModel.forward(network.denoiser, noise, time, text).sample
        bound = network.predict(noise, time, conditions)
        result = network.predict(noise, time, conditions, 3.0)
    assert (bound - free).abs().max() > 0.01
    torch.testing.assert_close(result, free + 3 * (bound - free), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["noise", "clean"])
@pytest.mark.parametrize("start", [None, 400])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sampler_finds_what_an_exact_prediction_tells(
    monkeypatch: pytest.MonkeyPatch, prediction: str, start: int | None, steps: int
) -> None:
    network, (image, coarse, noise) = tiny(prediction=prediction, start_time=start), inputs()
    truth = network.encode(torch.randn(2, 3, 32, 32))
    seen = []

    def exact(noisy: Tensor, time: Tensor, *_: object) -> Tensor:
        seen.append((noisy, int(time[0])))
        return truth if prediction == "clean" else network.schedule.noise_of(noisy, truth, time)

    monkeypatch.setattr(network, "predict", exact)
    with torch.inference_mode():
        logits = network(image, coarse, noise, steps=steps)
        torch.testing.assert_close(logits, network.decode(truth), atol=1e-3, rtol=1e-3)
        begin = noise
        if start is not None:
            latent = network.encode(network.label_embedding(coarse))
            begin = network.schedule.add_noise(latent, noise, torch.tensor([start, start]))
    torch.testing.assert_close(seen[0][0], begin)
    assert seen[0][1] == (start or 999)
    assert len(seen) == steps


def test_result_follows_from_image_coarse_map_and_noise_alone() -> None:
    network, (image, coarse, noise) = tiny(), inputs()
    with torch.inference_mode():
        first = network(image, coarse, noise)
        torch.manual_seed(99)  # the codec's posterior is not sampled
        assert torch.equal(first, network(image, coarse.long(), noise))
        for changed in (
            (-image, coarse, noise),
            (image, 2 - coarse.clamp(max=2), noise),
            (image, coarse, -noise),
        ):
            assert (network(*changed) - first).abs().max() > 1e-6
        torch.testing.assert_close(first[:1], network(image[:1], coarse[:1], noise[:1]), atol=1e-4, rtol=1e-4)


def test_half_precision_runs() -> None:
    network, (image, coarse, noise) = tiny(), inputs()
    half = copy.deepcopy(network).to(torch.bfloat16)
    with torch.inference_mode():
        exact = network(image, coarse, noise, guidance=2.0)
        rounded = half(image.bfloat16(), coarse, noise.bfloat16(), guidance=2.0)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(image, coarse, noise)
    assert rounded.dtype == mixed.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.5 * exact.std()


def test_label_colours_lie_at_full_distance() -> None:
    assert torch.pdist(spread_codes(2)).min() == pytest.approx(2 * 3**0.5)
    assert torch.pdist(spread_codes(4)).min() == pytest.approx(2 * 2**0.5)
    assert torch.pdist(spread_codes(8)).min() == 2
    assert torch.pdist(spread_codes(9)).min() == pytest.approx(3**0.5)  # the cube's middle
    assert len(spread_codes(254).unique(dim=0)) == 254
    torch.testing.assert_close(LabelEmbedding(5).codes(), 0.9 * spread_codes(5))


def test_labels_become_their_colours() -> None:
    embedding = LabelEmbedding(2)
    picture = embedding(torch.tensor([[[0, 1, 255]]], dtype=torch.uint8))
    torch.testing.assert_close(picture[0, :, 0].T, 0.9 * torch.tensor([[-1.0] * 3, [1.0] * 3, [0.0] * 3]))
    with pytest.raises(IndexError):
        embedding(torch.tensor([[[3]]]))


def test_codec_stage_learns_colours_and_classes() -> None:
    network, labels = tiny(moved=False), inputs()[1].long()
    parameters = list(network.stage_parameters("codec"))
    before = [item.detach().clone() for item in parameters]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        parts = network.codec_losses(labels)
        assert parts["loss"].item() == pytest.approx(sum(v.item() for k, v in parts.items() if k != "loss"))
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])  # a random codec lets little through
    assert all((item != old).any() for item, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("prediction", ["noise", "clean"])
def test_ignored_labels_do_not_count(prediction: str) -> None:
    network, (image, coarse, _) = tiny(prediction=prediction), inputs()
    labels = coarse.long().clamp(max=2)

    def loss(truth: Tensor) -> Tensor:
        torch.manual_seed(5)
        return network.refiner_losses(image, coarse, truth)["loss"]

    assert loss(torch.full_like(labels, 255)) == 0
    part = labels.clone()
    part[:, :, 16:] = 255
    assert loss(part) > 0
    assert loss(part) != loss(labels)


def test_guidance_dropout_hides_the_conditions() -> None:
    network, (image, coarse, _) = tiny(guidance_dropout=0.9999), inputs()
    network.refiner_losses(image, coarse, coarse.long())["loss"].backward()
    assert all(not item.grad.any() for item in network.guidance.parameters() if item.grad is not None)
    assert any(item.grad.any() for item in network.denoiser.parameters() if item.grad is not None)


def test_training_times_end_where_sampling_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (image, coarse, _) = tiny(start_time=30), inputs()
    times = []
    whole = network.schedule.add_noise
    monkeypatch.setattr(network.schedule, "add_noise", lambda *args: times.append(args[2]) or whole(*args))
    with torch.no_grad():
        for _ in range(10):
            network.refiner_losses(image, coarse, coarse.long())
    assert torch.cat(times).max() <= 30


def test_paper_size_is_stable_diffusions() -> None:
    with torch.device("meta"):
        network = Idgbr(IdgbrConfig.paper(6))

    def millions(part: nn.Module) -> float:
        return round(sum(item.numel() for item in part.parameters()) / 1e6, 1)

    assert (millions(network.denoiser), millions(network.codec)) == (859.5, 83.7)
    assert (network.latent_stride, network.latent_channels, network.alignment_px) == (8, 4, 64)
    assert network.config.skip_shapes == (
        (320, 64), (320, 64), (320, 64), (320, 32), (640, 32), (640, 32), (640, 16), (1280, 16), (1280, 16),
        (1280, 8), (1280, 8), (1280, 8), (1280, 8),
    )  # fmt: skip
    stored = network.condition_encoder.state_dict()
    assert not any(name.startswith(("up_blocks", "conv_out", "conv_norm_out")) for name in stored)
    assert network.schedule.signal_share.device.type == "cpu"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"classes": 0}, "classes 0"),
        ({"classes": 255}, "1 to 254"),
        ({"classes": True}, "classes True"),
        ({"channels": (8,)}, "2 to 6"),
        ({"channels": (8, 10)}, "multiples of 4"),
        ({"channels": (8, 10**9)}, "up to 4096"),
        ({"codec_channels": [8, 8, 9]}, "codec_channels"),
        ({"heads": 3}, "multiples of their heads"),
        ({"layers": 1000}, "layers 1000"),
        ({"grid": 6}, "grid 6: needs a multiple of 4"),
        ({"prediction": "velocity"}, "noise or clean"),
        ({"start_time": 1000}, "1 to 999"),
        ({"start_time": 5, "steps": 6}, "1 to 5"),
        ({"time_sampling": "often"}, "uniform or cubic"),
        ({"guidance_dropout": 1.0}, "guidance_dropout"),
        ({"latent_scale": float("nan")}, "latent_scale"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IdgbrConfig(**{**TINY, **sizes})


def test_sides_must_fit_the_grid() -> None:
    network = tiny()
    assert network.alignment_px == 16
    with pytest.raises(ValueError, match=r"\(24, 32\) px: height and width must be multiples of 16"):
        network(torch.zeros(1, 3, 24, 32), torch.zeros(1, 24, 32), torch.zeros(1, 4, 6, 8))


def test_alignment_pulls_features_towards_tokens(tmp_path: Path) -> None:
    encoder = "test_vit"
    torch.manual_seed(0)
    save_file(timm.create_model(encoder, num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    network, (image, coarse, _) = tiny(), inputs()
    align = DinoAlignment(tmp_path / "vit.safetensors", network.config.channels[-1], encoder)
    parts = network.refiner_losses(image, coarse, coarse.long(), align)
    assert parts["loss"].item() == pytest.approx(parts["denoising"].item() + parts["alignment"].item())
    assert 0 < parts["alignment"].item() < 1  # 0.5 (1 - cosine)
    parts["alignment"].backward()
    assert align.projection.weight.grad is not None
    assert all(item.grad is None for item in align.encoder.parameters())
    assert network.denoiser.conv_in.weight.grad.any()
    (tmp_path / "other.safetensors").write_bytes(b"text")
    for name in ("other", "absent"):
        with pytest.raises(ValueError, match=name):
            DinoAlignment(tmp_path / f"{name}.safetensors", 16, encoder)
