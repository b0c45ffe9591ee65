"""The network against the released program's numbers, the literal equations and itself."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from rsseg_cli.models.bicor_seg import (
    BicorDecoder,
    BicorSeg,
    BicorSegConfig,
    HeatmapBridge,
    Neck,
    build_encoder,
    pixel_weights,
    smoothed,
)
from rsseg_cli.models.losses import (
    IGNORE,
    BicorLossWeights,
    bicor_loss_parts,
    cross_entropy,
    dice,
    fisher_discriminative,
)

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
TINY = {"encoder": "test_efficientnet", "channels": 32}
LAYER_NAMES = {
    "dict_to_feat": "query",
    "feat_to_dict": "value",
    "gate_mlp": "gate",
    "cand_mlp": "candidate",
    "gamma_proj": "scale",
    "beta_proj": "shift",
    "feat_ln": "feature_norm",
    "dict_ln": "embedding_norm",
}
HEAD_NAMES = {
    "class_dict.class_embed.weight": "class_table",
    "classifier_proj.weight": "classifier.weight",
    "static_classifier.weight": "auxiliary_classifier.weight",
    "upsampler.1.weight": "upsampler.norm.weight",
    "upsampler.1.bias": "upsampler.norm.bias",
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(classes: int = 4, **sizes) -> BicorSeg:
    torch.manual_seed(0)
    return BicorSeg(BicorSegConfig(classes=classes, **{**TINY, **sizes}))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("loveda", BicorSegConfig(classes=7, layers=2, topk_ratio=0.02)),
        ("potsdam", BicorSegConfig(classes=6, layers=3)),
    ],
)
def test_decoder_gives_the_released_numbers(name, config):
    path = GOLDEN / f"bicor_decoder_{name}.safetensors"
    if not path.exists():
        pytest.skip("golden tensors are not here")
    golden = load_file(path)
    decoder = BicorDecoder(config)
    renamed = {}
    for key, value in golden.items():
        if key.startswith("weights."):
            key = key.removeprefix("weights.").removeprefix("bicor_stack.")
            for theirs, ours in LAYER_NAMES.items():
                key = key.replace(f".{theirs}.", f".{ours}.")
            renamed[HEAD_NAMES.get(key, key)] = value
    decoder.load_state_dict(renamed)

    features, heatmaps, embeddings = decoder.co_refine(golden["fused_features"])

    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(decoder.classify(features, embeddings[-1]), golden["logits"], **close)
    torch.testing.assert_close(
        decoder.classify_auxiliary(golden["fused_features"]), golden["aux_logits"], **close
    )
    for layer in range(config.layers):
        torch.testing.assert_close(heatmaps[layer], golden[f"heatmap_logits.{layer}"], **close)
        torch.testing.assert_close(embeddings[layer], golden[f"class_embeddings.{layer}"], **close)
    torch.testing.assert_close(fisher_discriminative(embeddings[-1]), golden["fisher_last"][0], **close)


def test_published_size():
    network = BicorSeg(BicorSegConfig.paper(classes=7))
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(89.51e6, abs=0.01e6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96)])
@pytest.mark.parametrize("neck", ["published", "conv"])
def test_shapes(height, width, neck):
    network = tiny(neck=neck).eval()
    seen = network.explain(torch.rand(2, 3, height, width))
    assert seen.logits.shape == (2, 4, height, width)
    assert [heat.shape for heat in seen.heatmaps] == [(2, 4, height // 4, width // 4)] * 2
    assert [table.shape for table in seen.class_embeddings] == [(2, 4, 32)] * 2


def test_other_bands_and_encoders():
    network = tiny(in_channels=5, encoder="test_convnext").eval()
    assert network(torch.rand(1, 5, 32, 32)).shape == (1, 4, 32, 32)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="multiples of 32"):
        tiny()(torch.rand(1, 3, 40, 64))
    with pytest.raises(ValueError, match="strides"):
        build_encoder("test_vit", 3)
    for wrong in (
        {"channels": 20},
        {"layers": 0},
        {"topk_ratio": 0.0},
        {"classes": 0},
        {"classes": 255},
        {"smooth": 1},
        {"correction": -1},
        {"local": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BicorSegConfig(**{"classes": 3, **wrong})


def test_a_correction_starts_as_nothing_and_adds_to_the_logits_what_its_equation_says():
    plain, corrected = tiny().eval(), tiny(correction=6).eval()
    corrected.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(corrected(image), plain(image))

    head = corrected.correction
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    scales, logits = plain.encoder(image), plain(image)
    finer, coarser = scales[:2]
    coarser = F.interpolate(coarser, size=finer.shape[2:], mode="bilinear")
    inputs = torch.cat([finer, coarser, F.avg_pool2d(logits, 4)], 1)
    hidden = F.gelu(F.conv2d(inputs, head.hidden.weight[..., None, None], head.hidden.bias))
    change = F.conv2d(hidden, head.output.weight[..., None, None], head.output.bias)
    change = change + F.conv2d(inputs, head.linear.weight[..., None, None])
    change = change + head.scale * F.avg_pool2d(logits, 4)
    expected = logits + F.interpolate(change, size=(64, 96), mode="bilinear")
    assert torch.allclose(corrected(image), expected, atol=1e-4)
    assert torch.allclose(corrected.forward_training(image).logits, expected, atol=1e-4)


def test_a_local_correction_acts_on_tiles_that_are_more_like_its_own_places():
    plain, local = tiny().eval(), tiny(correction=6, local=True).eval()
    local.load_state_dict(plain.state_dict(), strict=False)
    head = local.correction
    torch.nn.init.normal_(head.output.bias)
    images = torch.stack([torch.full((3, 64, 64), value) for value in (0.0, 0.5, 1.0)])
    with torch.no_grad():
        pooled = plain.explain(images).pooled
        head.axes.normal_()
        own, middle, others = pooled @ head.axes.T
        head.own.copy_(own.expand_as(head.own))
        head.others.copy_(others.expand_as(head.others))
        change = (local(images) - plain(images)).mean((2, 3))

    near, far = ((middle - tiles).norm() for tiles in (own, others))
    expected = torch.tensor([1, far**6 / (far**6 + near**6), 0])
    assert torch.allclose(head.share(pooled), expected, atol=1e-3)
    assert torch.allclose(change, expected[:, None] * head.output.bias, atol=1e-3)


def test_smoothing_is_the_weighted_mean_of_neighbours_and_removes_patterns_of_single_pixels():
    plain, smooth = tiny().eval(), tiny(smooth=True).eval()
    smooth.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 64, 96)
    logits = plain(image)
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(logits.shape[1], 1, 3, 3)
    expected = F.conv2d(logits, kernel, groups=logits.shape[1])
    assert torch.allclose(smooth(image)[..., 1:-1, 1:-1], expected, atol=1e-5)
    rows, cols = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    for pattern in (rows % 2, cols % 2, (rows + cols) % 2):
        left = smoothed(pattern.float()[None, None])[..., 1:-1, 1:-1]
        assert torch.allclose(left, torch.full_like(left, 0.5))
    assert torch.allclose(smoothed(torch.full((1, 2, 4, 4), 3.0)), torch.full((1, 2, 4, 4), 3.0))


@pytest.mark.parametrize("neck", ["published", "conv"])
def test_every_parameter_gets_a_gradient(neck):
    network = tiny(neck=neck)
    output = network.forward_training(torch.rand(2, 3, 64, 64))
    parts = bicor_loss_parts(output, torch.randint(0, 4, (2, 64, 64)), BicorLossWeights(fisher_last=1.0))
    torch.stack(list(parts.values())).sum().backward()
    without = [
        name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum()
    ]
    assert without == []


def test_class_embeddings_are_held_small():
    """Many steps on one crop: with the weight, embeddings end smaller, and the fit is as good."""

    def trained(weight: float) -> tuple[float, float]:
        torch.manual_seed(0)
        network = tiny()
        image, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 4, (2, 2, 2))
        labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        weights = BicorLossWeights(embeddings=weight)
        for _ in range(60):
            output = network.forward_training(image)
            parts = bicor_loss_parts(output, labels, weights)
            optimizer.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            optimizer.step()
        return output.class_embeddings[-1].square().mean().item(), parts["main"].item()

    (grown, fit), (small, held_fit) = trained(0.0), trained(0.1)
    assert small < 0.7 * grown
    assert held_fit < 1.2 * fit + 0.05


def test_the_auxiliary_head_leaves_the_class_table_alone():
    network = tiny()
    network.forward_training(torch.rand(2, 3, 32, 32)).auxiliary_logits.sum().backward()
    assert network.decoder.class_table.grad is None


def test_neck_equals_concatenation():
    """Deepest scale first, resized, concatenated, one 1 x 1 convolution: the published order."""
    torch.manual_seed(0)
    neck = Neck([4, 6, 8, 10], 16, "published")
    scales = [torch.rand(1, width, 32 // 2**i, 16 // 2**i) for i, width in enumerate((4, 6, 8, 10))]
    resized = [
        F.interpolate(proj(scale), size=(32, 16), mode="bilinear", align_corners=False)
        for proj, scale in zip(neck.proj, scales, strict=True)
    ]
    literal = neck.fuse(torch.cat(resized[::-1], 1))
    torch.testing.assert_close(neck(scales), literal, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("topk_ratio", [1.0, 0.3])
def test_layer_equals_the_literal_equations(topk_ratio):
    torch.manual_seed(0)
    layer = HeatmapBridge(16, topk_ratio)
    features, embeddings = torch.randn(2, 16, 12, 20), torch.randn(2, 3, 16)
    normed_table = F.layer_norm(embeddings, (16,))
    normed = F.layer_norm(features.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
    heat = torch.einsum("bnc,bchw->bnhw", layer.query(normed_table), normed) / math.sqrt(16)

    kept = heat.sigmoid().flatten(2)
    if topk_ratio < 1:
        smallest = kept.sort(-1, descending=True).values[..., max(64, round(topk_ratio * 240)) - 1]
        kept = kept * (kept >= smallest[..., None])
    weights = kept / kept.sum(-1, keepdim=True)
    gathered = torch.einsum("bnp,bcp->bnc", weights, layer.value(normed).flatten(2))
    gate = layer.gate(torch.cat([normed_table, gathered], -1)).sigmoid()
    table = gate * layer.candidate(gathered) + (1 - gate) * embeddings
    scale, shift = 1 + layer.scale(table).tanh(), layer.shift(table)
    per_class = scale[..., None, None] * features[:, None] + shift[..., None, None]  # (B, N, C, h, w)
    literal = 0.5 * features + 0.5 * (heat.softmax(1)[:, :, None] * per_class).sum(1)

    refined, refined_table, heatmaps = layer(features, embeddings)
    torch.testing.assert_close(heatmaps, heat, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(refined_table, table, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(refined, literal, atol=1e-5, rtol=1e-4)


def test_pixel_weights_keep_at_least_64_and_fall_back_to_all():
    heat = torch.rand(1, 2, 10, 10)
    assert (pixel_weights(heat, 0.02) > 0).sum(-1).tolist() == [[64, 64]]
    assert (pixel_weights(torch.rand(1, 2, 4, 4), 0.02) > 0).all()
    cold = pixel_weights(torch.full((1, 1, 10, 10), 1e-9), 0.02)
    assert (cold > 0).all()


def test_eval_does_not_depend_on_the_batch():
    network = tiny().eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-5, rtol=1e-4)


def test_saved_weights_load_equal(tmp_path):
    network = tiny().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = BicorSeg(network.config).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(network(image), other(image))


class TestLosses:
    def test_cross_entropy_divides_by_valid_pixels(self):
        logits = torch.randn(1, 3, 4, 4)
        labels = torch.full((1, 4, 4), IGNORE)
        labels[0, 0] = torch.tensor([0, 1, 2, 0])
        plain = F.cross_entropy(logits[:, :, 0], labels[:, 0], label_smoothing=0.05)
        torch.testing.assert_close(cross_entropy(logits, labels), plain)
        assert cross_entropy(logits, torch.full((1, 4, 4), IGNORE)) == 0

    def test_dice_by_hand(self):
        """Two pixels of class 0, two of class 1, an ignored row; certain and half right."""
        certain = torch.tensor([[[[50.0, 50.0], [50.0, 50.0], [0, 0]], [[0, 0], [0, 0], [50.0, 50.0]]]])
        labels = torch.tensor([[[0, 0], [1, 1], [IGNORE, IGNORE]]])
        # class 0: overlap 2, found 4, true 2 -> 4.05 / 6.05
        # class 1: overlap 0, found 0, true 2 -> 0.05 / 2.05
        expected = 1 - (4.05 / 6.05 + 0.05 / 2.05) / 2
        assert float(dice(certain, labels)) == pytest.approx(expected, abs=1e-6)

    def test_dice_of_a_perfect_map_is_zero_and_of_none_is_zero(self):
        labels = torch.randint(0, 3, (2, 8, 8))
        perfect = F.one_hot(labels, 3).permute(0, 3, 1, 2) * 50.0
        assert float(dice(perfect, labels)) == pytest.approx(0, abs=1e-6)
        assert float(dice(perfect, torch.full_like(labels, IGNORE))) == 0

    def test_fisher_by_hand(self):
        table = torch.tensor([[[0.0, 0.0], [3.0, 0.0]], [[2.0, 0.0], [3.0, 0.0]]])
        # means (1, 0) and (3, 0): within (1 + 0 + 1 + 0) / 4, between 4
        assert float(fisher_discriminative(table)) == pytest.approx(0.5 / 4, abs=1e-6)
        assert fisher_discriminative(table[:1]) == 0
