"""Released IDGBR checkpoints and Stable Diffusion folders, at tiny size, as model files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from networks import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.errors import ModelError
from rsseg_cli.models import Idgbr
from rsseg_cli.weights import load_model
from rsseg_cli.weights.released_idgbr import ATTENTION, empty_prompt, read_idgbr, start_idgbr

CLASSES, WIDTH, TOKENS, TEXT = 3, 16, 3, 12
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "num_train_timesteps": 1000, "steps_offset": 1, "trained_betas": None}  # fmt: skip
torch.set_num_threads(1)


def guidance_state() -> dict[str, Tensor]:
    """Random weights under the released names; positions for a grid of 8."""
    network, state = tiny(guidance_heads=8), {}
    for index, (channels, grid) in enumerate(network.config.skip_shapes):
        last = index == len(network.config.skip_shapes) - 1
        shapes: dict[str, tuple[int, ...]] = {
            "conv.weight": (channels, 3 * channels, 1, 1),
            "conv.bias": (channels,),
            "attn.conv1_q.weight": (WIDTH, channels, 1, 1),
            "attn.conv1_k.weight": (WIDTH, 2 * channels, 1, 1),
            "attn.positional_embedding": (grid * grid, WIDTH),
            f"{ATTENTION}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{ATTENTION}.attn.in_proj_bias": (3 * WIDTH,),
            f"{ATTENTION}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{ATTENTION}.attn.out_proj.bias": (WIDTH,),
            f"{ATTENTION}.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
            f"{ATTENTION}.mlp.c_fc.bias": (4 * WIDTH,),
            f"{ATTENTION}.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
            f"{ATTENTION}.mlp.c_proj.bias": (WIDTH,),
            "attn.proj.weight": (channels, WIDTH, 1, 1),
        }
        norms = ("attn.ln_pre_q", "attn.ln_pre_k", "attn.ln_post")
        for norm in (*norms, *(f"{ATTENTION}.{part}" for part in ("ln_1q", "ln_1k", "ln_1v", "ln_2"))):
            shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (WIDTH,)
        start = "attn_blocks_mid" if last else f"attn_blocks_down.{index}"
        state |= {f"{start}.{name}": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    return state


def text_state() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (20, TEXT),
        "embeddings.position_embedding.weight": (TOKENS, TEXT),
        "final_layer_norm.weight": (TEXT,),
        "final_layer_norm.bias": (TEXT,),
    }
    for layer in range(2):
        start = f"encoder.layers.{layer}"
        linear = {f"self_attn.{part}_proj": (TEXT, TEXT) for part in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (2 * TEXT, TEXT), "mlp.fc2": (TEXT, 2 * TEXT)}
        for name, shape in linear.items():
            shapes |= {f"{start}.{name}.weight": shape, f"{start}.{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{start}.{norm}.weight": (TEXT,), f"{start}.{norm}.bias": (TEXT,)}
    return {f"text_model.{name}": torch.randn(shape) / 3 for name, shape in shapes.items()}


@cache
def contents() -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Folder -> config.json and tensors."""
    config = tiny(guidance_heads=8).config
    torch.manual_seed(2)
    first, second = Idgbr(config), Idgbr(config)
    unet, generator, codec = first.denoiser, second.denoiser, first.codec
    embedding = {
        "embedding_table": torch.randn(CLASSES, 3),
        "embedding_conv.0.weight": torch.randn(128, 3, 1, 1),
        "embedding_conv.0.bias": torch.randn(128),
        "embedding_conv.2.weight": torch.randn(CLASSES, 128, 1, 1),
        "embedding_conv.2.bias": torch.randn(CLASSES),
    }
    sizes = json.loads(unet.to_json_string())
    return {
        "unet_gen": (sizes, generator.state_dict()),
        "unet": ({**sizes, "_class_name": "UNet2DConditionModel"}, unet.state_dict()),
        "vae": (json.loads(codec.to_json_string()), codec.state_dict()),
        "interact_net": ({}, guidance_state()),
        "label_embed_net": ({}, embedding),
        "text_encoder": ({"hidden_act": "quick_gelu", "num_attention_heads": 2}, text_state()),
    }


def write(folder: Path, *parts: str) -> Path:
    for part in parts:
        config, tensors = contents()[part]
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / part / WEIGHTS)
    return folder


def folders(folder: Path) -> tuple[Path, Path]:
    """A released checkpoint and a Stable Diffusion folder."""
    sd = write(folder / "sd", "unet", "vae", "text_encoder")
    (sd / "text_encoder" / WEIGHTS).rename(sd / "text_encoder" / "model.safetensors")
    (sd / "scheduler").mkdir()
    (sd / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return write(folder / "released", "unet_gen", "interact_net", "label_embed_net"), sd


def literal_block(state: dict[str, Tensor], start: str, noisy: Tensor, conditions: Tensor) -> Tensor:
    """The specification's equations, from the released names."""

    def weight(name: str) -> Tensor:
        return state[f"{start}.{name}"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weight(f"{name}.weight"), weight(f"{name}.bias"))

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).permute(2, 0, 1)  # (positions, B, C)

    height, width = noisy.shape[-2:]
    r = F.conv2d(torch.cat([noisy, conditions], 1), weight("conv.weight"), weight("conv.bias"))
    table = weight("attn.positional_embedding")
    side = round(len(table) ** 0.5)
    picture = table.reshape(1, side, side, WIDTH).permute(0, 3, 1, 2)
    positions = tokens(F.interpolate(picture, (height, width), mode="bicubic", align_corners=False))
    q = norm("attn.ln_pre_q", tokens(F.conv2d(r, weight("attn.conv1_q.weight"))) + positions)
    kv = norm("attn.ln_pre_k", tokens(F.conv2d(conditions, weight("attn.conv1_k.weight"))) + positions)
    projections = zip(
        (norm(f"{ATTENTION}.{name}", x) for name, x in (("ln_1q", q), ("ln_1k", kv), ("ln_1v", kv))),
        weight(f"{ATTENTION}.attn.in_proj_weight").chunk(3),
        weight(f"{ATTENTION}.attn.in_proj_bias").chunk(3),
        strict=True,
    )
    heads = 8
    query, key, value = (
        F.linear(*parts).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for parts in projections
    )
    shares = (query @ key.transpose(-1, -2) / (WIDTH / heads) ** 0.5).softmax(-1)
    attended = (shares @ value).permute(2, 0, 1, 3).flatten(-2)
    out = f"{ATTENTION}.attn.out_proj"
    v = kv + F.linear(attended, weight(f"{out}.weight"), weight(f"{out}.bias"))
    mlp = f"{ATTENTION}.mlp"
    hidden = F.linear(norm(f"{ATTENTION}.ln_2", v), weight(f"{mlp}.c_fc.weight"), weight(f"{mlp}.c_fc.bias"))
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    v = norm(
        "attn.ln_post", v + F.linear(hidden, weight(f"{mlp}.c_proj.weight"), weight(f"{mlp}.c_proj.bias"))
    )
    return F.conv2d(v.permute(1, 2, 0).unflatten(2, (height, width)), weight("attn.proj.weight")) + r


def literal_guidance(noisy: list[Tensor], conditions: list[Tensor]) -> list[Tensor]:
    state = contents()["interact_net"][1]
    names = [f"attn_blocks_down.{index}" for index in range(len(noisy) - 1)] + ["attn_blocks_mid"]
    return [literal_block(state, *parts) for parts in zip(names, noisy, conditions, strict=True)]


def run_import(source: Path, target: Path, *more: object) -> Any:
    arguments = ["models", "import", source, "--arch", "idgbr", "--classes", "a,b,c", "-o", target, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def network_inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)


def test_import_gives_the_released_outputs(tmp_path: Path) -> None:
    released, sd = folders(tmp_path)
    result = run_import(released, tmp_path / "a.safetensors", "--sd", sd, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    network = load_model(tmp_path / "a.safetensors").network
    assert isinstance(network, Idgbr)
    noisy, image, coarse = network_inputs()
    time, text = torch.tensor([900, 30]), network.prompt.expand(2, -1, -1)
    with torch.inference_mode():
        conditions = network.encode_conditions(image, coarse)
        _, features = network.denoiser.encode(noisy, time, text)
        residuals = network.guidance(features, conditions)
        expected = literal_guidance(features, conditions)
        for result, needed in zip(residuals, expected, strict=True):
            assert needed.std() > 0.05
            torch.testing.assert_close(result, needed, atol=1e-5, rtol=1e-5)
        generator = UNet2DConditionModel.from_pretrained(released / "unet_gen")
        whole = generator(noisy, time, text, down_block_additional_residuals=tuple(expected[:-1]),
                          mid_block_additional_residual=expected[-1]).sample  # fmt: skip
        torch.testing.assert_close(network.predict(noisy, time, conditions), whole, atol=1e-4, rtol=1e-4)


def test_import_takes_conditions_codec_and_labels_from_their_folders(tmp_path: Path) -> None:
    released, sd = folders(tmp_path)
    network = read_idgbr(released, sd, CLASSES)
    _, image, coarse = network_inputs()
    ones, text = torch.ones(2, dtype=torch.long), network.prompt.expand(2, -1, -1)
    assert torch.equal(network.prompt[0], empty_prompt(sd / "text_encoder"))
    unet, codec = UNet2DConditionModel.from_pretrained(sd / "unet"), AutoencoderKL.from_pretrained(sd / "vae")
    seen: dict[int, Tensor] = {}
    unet.mid_block.register_forward_hook(lambda *args: seen.__setitem__(len(seen), args[2]))
    picture = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for latent in (image, coarse):
            unet(latent, ones, text)
        result = network.encode_conditions(image, coarse)[-1]
        torch.testing.assert_close(result, torch.cat([seen[0], seen[1]], 1), atol=1e-5, rtol=1e-5)
        latent = codec.encode(picture).latent_dist.mode() * codec.config.scaling_factor
        torch.testing.assert_close(network.encode(picture), latent)
        table, weights = contents()["label_embed_net"][1]["embedding_table"], contents()["label_embed_net"][1]
        torch.testing.assert_close(network.label_embedding.codes(), 2 * table.sigmoid() - 1)
        decoded = codec.decode(latent / codec.config.scaling_factor).sample
        hidden = F.conv2d(
            decoded, weights["embedding_conv.0.weight"], weights["embedding_conv.0.bias"]
        ).relu()
        logits = F.conv2d(hidden, weights["embedding_conv.2.weight"], weights["embedding_conv.2.bias"])
        torch.testing.assert_close(network.decode(latent), logits, atol=1e-4, rtol=1e-4)


def test_model_file_describes_itself_in_half_precision(tmp_path: Path) -> None:
    released, sd = folders(tmp_path)
    assert run_import(released, tmp_path / "a.safetensors", "--sd", sd, "--gsd", 0.3).exit_code == 0
    model = load_model(tmp_path / "a.safetensors")
    assert model.spec.is_refiner
    assert model.spec.architecture == "idgbr"
    assert model.spec.refinement == {"steps": 3}
    assert model.spec.gsd_m == 0.3
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["denoiser.conv_in.weight"].dtype == torch.float16
    assert not any(name.startswith("condition_encoder.up_blocks") for name in stored)
    whole, exact = model.network, read_idgbr(released, sd, CLASSES)
    image, coarse, noise = torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32), torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        logits = exact(image, coarse, noise)
        assert (whole(image, coarse, noise) - logits).abs().max() < 0.05 * logits.std()


def test_stable_diffusion_alone_is_a_start_for_training(tmp_path: Path) -> None:
    _, sd = folders(tmp_path)
    result = run_import(sd, tmp_path / "a.safetensors", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "a.safetensors")
    network = model.network
    assert isinstance(network, Idgbr)
    assert (model.spec.mean, model.spec.std) == ((0.5,) * 3, (0.5,) * 3)
    assert network.config.prediction == "clean"
    unet = contents()["unet"][1]
    assert torch.equal(network.denoiser.conv_out.weight, unet["conv_out.weight"])
    assert not network.guidance.blocks[0].merge.weight.any()
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    parameters = [item for stage in ("codec", "refiner") for item in network.stage_parameters(stage)]
    assert all(item.requires_grad for item in parameters)
    losses = network.refiner_losses(torch.rand(1, 3, 32, 32), labels, labels)
    losses["loss"].backward()
    assert network.denoiser.conv_in.weight.grad.any()


def test_older_and_other_files_are_read(tmp_path: Path) -> None:
    """Old names of attention in codecs, parts of a large file, pickles of tensors, a given prompt."""
    released, sd = folders(tmp_path)
    expected = read_idgbr(released, sd, CLASSES).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    codec = {}
    for name, tensor in contents()["vae"][1].items():
        if ".attentions." in name:
            for new, former in old.items():
                name = name.replace(f".{new}.", f".{former}.")
        codec[name] = tensor.contiguous()
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in codec
    save_file(codec, sd / "vae" / WEIGHTS)
    unet = list(contents()["unet"][1].items())
    (sd / "unet" / WEIGHTS).unlink()
    for index, part in enumerate((unet[:40], unet[40:])):
        save_file(dict(part), sd / "unet" / f"diffusion_pytorch_model-0000{index + 1}-of-00002.safetensors")
    (released / "interact_net" / WEIGHTS).unlink()
    torch.save(contents()["interact_net"][1], released / "interact_net" / "diffusion_pytorch_model.bin")
    prompt = empty_prompt(sd / "text_encoder")
    save_file({"empty": prompt[None]}, tmp_path / "prompt.safetensors")
    shutil.rmtree(sd / "text_encoder")
    result = read_idgbr(released, sd, CLASSES, tmp_path / "prompt.safetensors").state_dict()
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


Break = Callable[[Path, Path], object]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r, _: shutil.rmtree(r / "interact_net"), r"interact_net: no such folder"),
        (lambda _, s: shutil.rmtree(s / "vae"), r"vae.config\.json: cannot be read"),
        (lambda _, s: shutil.rmtree(s / "text_encoder"), "--prompt-embedding"),
        (lambda r, _: (r / "unet_gen" / WEIGHTS).unlink(), "unet_gen: no file of tensors"),
        (lambda r, _: (r / "unet_gen" / WEIGHTS).write_bytes(b"12345678" * 9), "unet_gen.*truncated"),
        (lambda _, s: (s / "unet" / "config.json").write_text("[" * 10**5), r"unet.config\.json: no JSON"),
        (lambda _, s: (s / "unet" / "config.json").write_text(" " * 10**6 + "{}"), "larger than 1000000"),
        (lambda _, s: (s / "vae" / "config.json").write_text("{}"), "no 'block_out_channels'"),
        (lambda _, s: edit_json(s / "unet" / "config.json", block_out_channels=[8, 10**9]), "up to 4096"),
        (lambda _, s: edit_json(s / "unet" / "config.json", block_out_channels="320"), "multiples of"),
        (lambda _, s: edit_json(s / "unet" / "config.json", layers_per_block=10**9), "layers 1000000000"),
        (lambda _, s: edit_json(s / "unet" / "config.json", attention_head_dim=[2, 2]), r"heads \[2, 2\]"),
        (lambda _, s: edit_json(s / "unet" / "config.json", use_linear_projection=True), "needs False"),
        (lambda _, s: edit_json(s / "vae" / "config.json", act_fn="relu"), "act_fn is 'relu'; needs 'silu'"),
        (
            lambda _, s: edit_json(s / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
            "prediction_type is 'v_prediction'; needs 'epsilon'",
        ),
        (
            lambda r, _: edit_json(r / "unet_gen" / "config.json", cross_attention_dim=7),
            r"unet_gen.*cross_attention_dim is 7; needs 12",
        ),
        (
            lambda r, _: edit_tensors(r / "unet_gen" / WEIGHTS, lambda t: t.pop("conv_out.bias")),
            r"unet_gen: 1 tensors missing: conv_out\.bias",
        ),
        (
            lambda _, s: edit_tensors(s / "unet" / WEIGHTS, lambda t: t.update(extra=torch.ones(1))),
            r"unet: 1 tensors unexpected: extra",
        ),
        (
            lambda _, s: edit_tensors(s / "vae" / WEIGHTS, lambda t: t["quant_conv.bias"].fill_(torch.nan)),
            r"quant_conv\.bias holds values that are not finite",
        ),
        (
            lambda r, _: edit_tensors(
                r / "interact_net" / WEIGHTS,
                lambda t: t.update({"attn_blocks_mid.attn.proj.weight": torch.ones(3, 3)}),
            ),
            r"attn_blocks_mid\.attn\.proj\.weight is \[3, 3\], the network needs \[16, 16, 1, 1\]",
        ),
        (
            lambda r, _: edit_tensors(
                r / "interact_net" / WEIGHTS,
                lambda t: t.update({"attn_blocks_down.0.attn.positional_embedding": torch.ones(10**6, 16)}),
            ),
            "grid 1000",
        ),
        (
            lambda r, _: edit_tensors(
                r / "label_embed_net" / WEIGHTS, lambda t: t.update(embedding_table=torch.ones(4, 3))
            ),
            r"embedding_table is \[4, 3\]; --classes names 3",
        ),
        (
            lambda _, s: edit_tensors(
                s / "text_encoder" / "model.safetensors",
                lambda t: t.update({"text_model.encoder.layers.1.mlp.fc1.weight": torch.ones(2, 2)}),
            ),
            "do not fit one another",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: Break, words: str) -> None:
    released, sd = folders(tmp_path)
    spoil(released, sd)
    with pytest.raises(ModelError, match=words):
        read_idgbr(released, sd, CLASSES)


class Sentinel:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_unsafe_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    released, sd = folders(tmp_path)
    (released / "unet_gen" / WEIGHTS).unlink()
    torch.save({"a": Sentinel(tmp_path / "trap")}, released / "unet_gen" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="can run any code; not loaded"):
        read_idgbr(released, sd, CLASSES)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, "2 tensors"),
        ({"a": torch.ones(5)}, "needs one"),
        ({"a": torch.ones(2, 2, 3)}, "needs one"),
        ({"a": torch.full((2, TEXT), torch.inf)}, "not finite"),
        ({"a": torch.ones(2, 7)}, "cross_attention_dim is 12; needs 7"),
        (None, "no safetensors file"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor] | None, words: str
) -> None:
    _, sd = folders(tmp_path)
    prompt = tmp_path / "prompt.safetensors"
    prompt.write_bytes(b"text") if tensors is None else save_file(tensors, prompt)
    with pytest.raises(ModelError, match=words):
        start_idgbr(sd, CLASSES, prompt)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--topk-ratio", 1), "--topk-ratio belongs to --arch bicor-seg"),
        (("--layers", 2), "--layers belongs to --arch bicor-seg"),
        (("--arch", "bicor-seg", "--topk-ratio", 1, "--sd", "x"), "--sd belongs to --arch idgbr"),
        (("--arch", "bicor-seg"), "--topk-ratio None: needs 0 < ratio <= 1"),
        (("--bands", "red,green"), "3 bands; --classes names 3, --bands 2"),
        (("--classes", "a,b"), "--classes names 2"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, more: tuple[object, ...], words: str) -> None:
    released, sd = folders(tmp_path)
    sources = () if "--arch" in more else ("--sd", sd)
    result = run_import(released, tmp_path / "a.safetensors", *sources, *more)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert not (tmp_path / "a.safetensors").exists()
