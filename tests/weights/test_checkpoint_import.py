"""Released checkpoints: same logits as the specification's equations behind torchvision's ConvNeXt."""

from __future__ import annotations

import json
import math
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.errors import ModelError
from rsseg_cli.weights import load_model
from rsseg_cli.weights.released import read_bicor_seg

CHANNELS, CLASSES, LAYERS = 32, 4, 2
WIDTHS = (40, 80, 160, 320)
GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
torch.set_num_threads(1)


def encoder_config() -> list[CNBlockConfig]:
    """ConvNeXt atto."""
    after = (*WIDTHS[1:], None)
    return [CNBlockConfig(*sizes) for sizes in zip(WIDTHS, after, (2, 2, 6, 2), strict=True)]


def random_like(names_and_shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through them."""
    return {
        f"net.{name}": torch.randn(shape) / math.sqrt(shape[1] if len(shape) > 1 else 4)
        for name, shape in names_and_shapes.items()
    }


@cache
def encoder_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = ConvNeXt(encoder_config()).features.state_dict()
    # as after training: no weight at its start of zero, one or 1e-6
    return {f"net.encoder.0.{name}": value + 0.1 * torch.randn_like(value) for name, value in weights.items()}


@cache
def neck_state(channels: int) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"feature_aggregator.weight": (channels, 4 * channels, 1, 1)}
    for index, width in enumerate(WIDTHS):
        shapes[f"proj_layers.{index}.proj.weight"] = (channels, width)
        shapes[f"proj_layers.{index}.proj.bias"] = (channels,)
    return random_like(shapes)


@cache
def decoder_state() -> dict[str, Tensor]:
    side = CHANNELS
    shapes: dict[str, tuple[int, ...]] = {
        "decoder.class_dict.class_embed.weight": (CLASSES, side),
        "decoder.upsampler.1.weight": (side // 4,),
        "decoder.upsampler.1.bias": (side // 4,),
        "decoder.classifier_proj.weight": (side // 16, side),
        "decoder.static_classifier.weight": (side // 16, side),
    }
    for layer in range(LAYERS):
        start = f"decoder.bicor_stack.layers.{layer}"
        shapes[f"{start}.dict_to_feat.weight"] = (side, side)
        shapes[f"{start}.feat_to_dict.weight"] = (side, side, 1, 1)
        for part in ("gate_mlp.0", "gate_mlp.2", "cand_mlp.0", "cand_mlp.2", "gamma_proj", "beta_proj"):
            shapes[f"{start}.{part}.weight"] = (side, 2 * side if part == "gate_mlp.0" else side)
            shapes[f"{start}.{part}.bias"] = (side,)
        for part in ("feat_ln", "dict_ln"):
            shapes[f"{start}.{part}.weight"] = shapes[f"{start}.{part}.bias"] = (side,)
    state = random_like(shapes)
    state["net.decoder.classifier_proj.weight"] *= 20  # logits of a few units
    return state


def released_state() -> dict[str, Tensor]:
    """Random weights under the released names, at the size of ConvNeXt atto."""
    return {**encoder_state(), **neck_state(CHANNELS), **decoder_state()}


def checkpoint(path: Path, state: dict[str, Any] | None = None, **more: Any) -> Path:
    """A Lightning checkpoint with all that stands beside the weights."""
    content = {
        "epoch": 44,
        "global_step": 1000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {**(state or released_state()), "loss.main_loss.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(5)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-4, "names": ["a", "b"]},
        **more,
    }
    torch.save(content, path)
    return path


def reference_logits(state: dict[str, Tensor], image: Tensor, topk_ratio: float) -> Tensor:
    """The specification's equations on torchvision's encoder, written apart from the program's network."""
    encoder = ConvNeXt(encoder_config()).features.eval()
    start = "net.encoder.0."
    encoder.load_state_dict(
        {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}
    )
    weights = {name.removeprefix("net."): t for name, t in state.items()}
    scales, x = [], image
    for index, part in enumerate(encoder):
        x = part(x)
        if index % 2:
            scales.append(x)
    return reference_decoder(weights, neck(weights, scales), topk_ratio)


def neck(weights: dict[str, Tensor], scales: list[Tensor]) -> Tensor:
    parts = []
    for index, scale in enumerate(scales):
        projected = F.linear(
            scale.permute(0, 2, 3, 1),
            weights[f"proj_layers.{index}.proj.weight"],
            weights[f"proj_layers.{index}.proj.bias"],
        ).permute(0, 3, 1, 2)
        parts.append(
            F.interpolate(projected, size=scales[0].shape[-2:], mode="bilinear", align_corners=False)
        )
    return F.conv2d(torch.cat(parts[::-1], 1), weights["feature_aggregator.weight"])


def reference_decoder(weights: dict[str, Tensor], features: Tensor, topk_ratio: float) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:  # over the last axis
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def mlp(name: str, x: Tensor) -> Tensor:
        x = F.gelu(F.linear(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]))
        return F.linear(x, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"])

    def pixels(name: str, x: Tensor) -> Tensor:
        return norm(name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    embeddings = weights["decoder.class_dict.class_embed.weight"].expand(features.shape[0], -1, -1)
    layers = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith("decoder.bicor_stack"))
    for layer in range(layers):
        start = f"decoder.bicor_stack.layers.{layer}"
        normed, flat = norm(f"{start}.dict_ln", embeddings), pixels(f"{start}.feat_ln", features)
        scores = torch.einsum("bnc,bchw->bnhw", normed @ weights[f"{start}.dict_to_feat.weight"].T, flat)
        scores = scores / math.sqrt(features.shape[1])
        heat, soft = scores.sigmoid().flatten(2), scores.softmax(1)
        k = min(max(64, round(topk_ratio * heat.shape[-1])), heat.shape[-1])
        kept = torch.where(heat >= heat.topk(k, -1).values[..., -1:], heat, 0)
        share = kept / (kept.sum(-1, keepdim=True) + 1e-6)
        values = F.conv2d(flat, weights[f"{start}.feat_to_dict.weight"]).flatten(2)
        gathered = torch.einsum("bnp,bcp->bnc", share, values)
        gate = mlp(f"{start}.gate_mlp", torch.cat([normed, gathered], -1)).sigmoid()
        embeddings = gate * mlp(f"{start}.cand_mlp", gathered) + (1 - gate) * embeddings
        gamma, beta = (
            F.linear(embeddings, weights[f"{start}.{name}.weight"], weights[f"{start}.{name}.bias"])
            for name in ("gamma_proj", "beta_proj")
        )
        modulated = torch.einsum(
            "bnhw,bnchw->bchw",
            soft,
            (1 + gamma.tanh())[..., None, None] * features[:, None] + beta[..., None, None],
        )
        features = 0.5 * features + 0.5 * modulated
    up = F.gelu(pixels("decoder.upsampler.1", F.pixel_shuffle(features, 2)))
    up = F.gelu(F.pixel_shuffle(up, 2))
    classes = embeddings @ weights["decoder.classifier_proj.weight"].T
    return torch.einsum("bnc,bchw->bnhw", classes, up)


def run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_import(source: Path, target: Path, *more: object, ratio: float = 0.02) -> Any:
    return run("models", "import", source, "--arch", "bicor-seg", "--layers", LAYERS, "--topk-ratio", ratio,
               "--classes", "a,b,c,d", "-o", target, *more)  # fmt: skip


@pytest.mark.parametrize("ratio", [0.02, 1.0])
def test_import_gives_the_released_logits(tmp_path: Path, ratio: float) -> None:
    state = released_state()
    result = run_import(checkpoint(tmp_path / "a.ckpt", state), tmp_path / "a.safetensors", ratio=ratio)
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "a.safetensors")
    image = torch.randn(2, 3, 128, 96)
    with torch.inference_mode():
        expected = reference_logits(state, image, ratio)
        result = model.network(image)
    assert expected.std() > 0.5
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "ratio"), [("loveda", 0.02), ("potsdam", 1.0)])
def test_import_keeps_the_released_decoder(tmp_path: Path, name: str, ratio: float) -> None:
    path = GOLDEN / f"bicor_decoder_{name}.safetensors"
    if not path.exists():
        pytest.skip("golden tensors are not here")
    golden = load_file(path)
    start = "weights."
    decoder = {f"net.decoder.{k.removeprefix(start)}": v for k, v in golden.items() if k.startswith(start)}
    source = checkpoint(tmp_path / "a.ckpt", {**encoder_state(), **neck_state(256), **decoder})
    network = read_bicor_seg(source, topk_ratio=ratio)
    with torch.inference_mode():
        features, _, embeddings = network.decoder.co_refine(golden["fused_features"])
        logits = network.decoder.classify(features, embeddings[-1])
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)


def test_import_describes_the_model(tmp_path: Path) -> None:
    more = ("--gsd", 0.09, "--bands", "nir,red,green", "--colours", "#000000,#ffffff,0a0b0c,#ff0000")
    result = run_import(checkpoint(tmp_path / "a.ckpt"), tmp_path / "a.safetensors", *more)
    assert result.exit_code == 0, result.output
    shown = json.loads(run("models", "show", tmp_path / "a.safetensors", "--json").output)
    assert shown["bands"] == ["nir", "red", "green"]
    assert shown["gsd_m"] == 0.09
    assert shown["network"]["encoder"] == "convnext_atto"
    assert shown["network"]["layers"] == LAYERS
    assert shown["network"]["topk_ratio"] == 0.02
    assert [item["colour"] for item in shown["classes"]] == [
        [0, 0, 0],
        [255, 255, 255],
        [10, 11, 12],
        [255, 0, 0],
    ]


def test_import_refuses_an_existing_output(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    source = checkpoint(tmp_path / "a.ckpt")
    result = run_import(source, tmp_path / "a.safetensors")
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"
    assert run_import(source, tmp_path / "a.safetensors", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--layers", 3), "2 HBIS layers, --layers says 3"),
        (("--classes", "a,b"), "4 classes"),
        (("--classes", "a,a,b,c"), "different names"),
        (("--topk-ratio", 0), "0 < ratio <= 1"),
        (("--topk-ratio", "nan"), "0 < ratio <= 1"),
        (("--gsd", -1), "metres"),
        (("--colours", "#00"), "1 colours for 4 classes"),
        (("--colours", "#00,#11,#22,#zz"), "#rrggbb"),
        (("--bands", "red,green"), "3 bands"),
        (("-o", "a.pt"), ".safetensors"),
    ],
)
def test_import_refuses_wrong_options(tmp_path: Path, more: tuple[object, ...], words: str) -> None:
    result = run_import(checkpoint(tmp_path / "a.ckpt"), tmp_path / "a.safetensors", *more)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert not (tmp_path / "a.safetensors").exists()


class Sentinel:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unsafe_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    source = checkpoint(tmp_path / "a.ckpt", hyper_parameters=Sentinel(trap))
    with pytest.raises(
        ModelError, match=r"its pickle needs .*mkdir, which can run any code; not loaded"
    ) as refusal:
        read_bicor_seg(source, topk_ratio=1)
    assert "weights_only" not in str(refusal.value)  # nobody is told to run it after all
    plain = tmp_path / "b.ckpt"
    plain.write_bytes(pickle.dumps(Sentinel(trap)))
    with pytest.raises(ModelError):
        read_bicor_seg(plain, topk_ratio=1)
    assert not trap.exists()


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = released_state()
    lacking = {name: tensor for name, tensor in state.items() if "gamma_proj.bias" not in name}
    with pytest.raises(
        ModelError, match=r"2 tensors missing: net.decoder.bicor_stack.layers.0.gamma_proj.bias"
    ):
        read_bicor_seg(checkpoint(tmp_path / "a.ckpt", lacking), topk_ratio=1)
    with pytest.raises(ModelError, match=r"1 tensors unexpected: net\.extra"):
        read_bicor_seg(checkpoint(tmp_path / "a.ckpt", {**state, "net.extra": torch.ones(1)}), topk_ratio=1)
    wrong = {**state, "net.feature_aggregator.weight": torch.ones(3, 3)}
    with pytest.raises(ModelError, match=r"net.feature_aggregator.weight is \[3, 3\], the network needs"):
        read_bicor_seg(checkpoint(tmp_path / "a.ckpt", wrong), topk_ratio=1)
    infinite = {**state, "net.feature_aggregator.weight": state["net.feature_aggregator.weight"] / 0}
    with pytest.raises(ModelError, match="not finite"):
        read_bicor_seg(checkpoint(tmp_path / "a.ckpt", infinite), topk_ratio=1)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": 3},
        {"state_dict": {}},
        {"state_dict": {"net.decoder.class_dict.class_embed.weight": torch.ones(4)}},
        {"state_dict": {"net.x": "text"}},
        {"state_dict": {"net.x": torch.ones(2, 2).to_sparse()}},
        {"model": {"a": torch.ones(1)}},
        [1, 2],
        nn.Parameter(torch.ones(2)),
    ],
)
def test_other_files_of_torch_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=r"a\.ckpt: "):
        read_bicor_seg(tmp_path / "a.ckpt", topk_ratio=1)


def test_damaged_and_absent_files_are_refused(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "a.ckpt").read_bytes()
    for index, content in enumerate(
        (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\x80\x02.", b"text" * 99)
    ):
        path = tmp_path / f"{index}.ckpt"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=path.name):
            read_bicor_seg(path, topk_ratio=1)
    for path in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(ModelError, match=path.name):
            read_bicor_seg(path, topk_ratio=1)
