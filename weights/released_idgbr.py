"""Checkpoints of the released IDGBR program, and Stable Diffusion 1.5 as a start for training.

    folder               what it holds                        here
    unet_gen             the trained denoiser                 denoiser
    unet                 Stable Diffusion's U-Net             condition_encoder: its encoder and mid block
    vae                  Stable Diffusion's codec             codec
    interact_net         conditional guidance network         guidance
    label_embed_net      label embedding                      label_embedding
    text_encoder         Stable Diffusion's; read once        prompt, the empty prompt's embedding

Sizes come from the config.json files and are compared with the tensors' shapes before any tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsseg_cli.errors import ModelError
from rsseg_cli.weights.header import check_names
from rsseg_cli.weights.tensor_folder import TensorFolder, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rsseg_cli.models import Idgbr, IdgbrConfig

ATTENTION = "attn.transformer.resblocks.0"
BLOCK_PARTS = {
    "merge": "conv",
    "query": "attn.conv1_q",
    "condition": "attn.conv1_k",
    "positions": "attn.positional_embedding",
    "query_norm": "attn.ln_pre_q",
    "condition_norm": "attn.ln_pre_k",
    "attention": f"{ATTENTION}.attn",
    "attention_query_norm": f"{ATTENTION}.ln_1q",
    "attention_key_norm": f"{ATTENTION}.ln_1k",
    "attention_value_norm": f"{ATTENTION}.ln_1v",
    "mlp_norm": f"{ATTENTION}.ln_2",
    "expand": f"{ATTENTION}.mlp.c_fc",
    "contract": f"{ATTENTION}.mlp.c_proj",
    "output_norm": "attn.ln_post",
    "projection": "attn.proj",
}
POSITIONS = "embeddings.position_embedding.weight"  # of the text encoder
MAX_LAYERS = 48
UNUSED = {"sample_size", "force_upcast", "upcast_attention"}  # settings without effect on exact numbers
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
}


@dataclass(frozen=True)
class Part:
    """A part of the network and its folder of tensors, which holds no others if `whole`."""

    network: nn.Module
    prefix: str
    folder: TensorFolder
    name_of: Callable[[str], str] = str
    whole: bool = True


def is_idgbr(path: Path) -> bool:
    """Whether a folder is a checkpoint of the released program, not Stable Diffusion alone."""
    return (path / "interact_net").is_dir() or (path / "unet_gen").is_dir()


def read_idgbr(path: Path, stable_diffusion: Path, classes: int, prompt: Path | None = None) -> Idgbr:
    """Read a released checkpoint of N `classes`; float32, in evaluation mode.

    `prompt` are safetensors of the empty prompt's embedding, where there is no text_encoder.
    """
    generator, interact = TensorFolder(path / "unet_gen"), TensorFolder(path / "interact_net")
    labels = TensorFolder(path / "label_embed_net")
    label_names = _embedding_names(labels)
    table = labels.shapes.get(label_names["table"], [])
    if table != [classes, 3]:
        given = f"{label_names['table']} is {table or 'not there'}"
        raise ModelError(f"{labels.path}: {given}; --classes names {classes}, which needs {[classes, 3]}")
    text = _read_prompt(stable_diffusion, prompt)
    config = _config(stable_diffusion, text, classes=classes, **_guidance_sizes(interact))
    network = _empty(config, stable_diffusion)
    _check_config(generator, network.denoiser)
    parts = [
        *_shared_parts(network, stable_diffusion),
        Part(network.denoiser, "denoiser", generator),
        Part(network.guidance, "guidance", interact, _guidance_name(len(config.skip_shapes))),
        Part(network.label_embedding, "label_embedding", labels, label_names.__getitem__),
    ]
    state = _read(parts) | {"prompt": text.unsqueeze(0)}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def start_idgbr(stable_diffusion: Path, classes: int, prompt: Path | None = None) -> Idgbr:
    """Read Stable Diffusion's networks; guidance network and label embedding get random weights.

    The denoiser is to learn to predict x0, which takes fewer steps than noise does.
    """
    text = _read_prompt(stable_diffusion, prompt)
    config = _config(stable_diffusion, text, classes=classes, prediction="clean")
    network = _empty(config, stable_diffusion)
    unet = TensorFolder(stable_diffusion / "unet")
    parts = [*_shared_parts(network, stable_diffusion), Part(network.denoiser, "denoiser", unet)]
    state = _read(parts) | {"prompt": text.unsqueeze(0)}
    network.load_state_dict(state, strict=False, assign=True)
    network.start_conditions()
    return network.eval()


def _config(folder: Path, text: Tensor, **more: Any) -> IdgbrConfig:
    from rsseg_cli.models import IdgbrConfig

    _check_schedule(folder / "scheduler" / "scheduler_config.json")
    unet, codec = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    tokens, channels = text.shape
    try:
        return IdgbrConfig(
            channels=unet["block_out_channels"],
            layers=unet["layers_per_block"],
            heads=unet["attention_head_dim"],
            groups=unet.get("norm_num_groups", 32),
            text_tokens=tokens,
            text_channels=channels,
            codec_channels=codec["block_out_channels"],
            codec_layers=codec["layers_per_block"],
            codec_groups=codec.get("norm_num_groups", 32),
            latent_channels=codec["latent_channels"],
            latent_scale=codec.get("scaling_factor", 0.18215),
            **more,
        )
    except KeyError as err:
        raise ModelError(f"{folder}: no {err} in unet/config.json or vae/config.json") from err
    except (TypeError, ValueError) as err:
        raise ModelError(f"{folder}: no network of Stable Diffusion 1.5's kind ({err})") from err


def _check_schedule(path: Path) -> None:
    given = read_json(path)
    for key, needed in SCHEDULE.items():
        if given.get(key, needed) != needed:
            raise ModelError(f"{path}: {key} is {given[key]!r:.80}; needs {needed!r}")


def _guidance_sizes(interact: TensorFolder) -> dict[str, int]:
    """Width of the attention and grid of the first block's positions; the heads are always 8."""
    name = f"attn_blocks_down.0.{BLOCK_PARTS['positions']}"
    shape = interact.shapes.get(name, [])
    if len(shape) != 2:
        raise ModelError(f"{interact.path}: {name} is {shape or 'not there'}; needs [positions, width]")
    return {"guidance_width": shape[1], "grid": round(shape[0] ** 0.5)}


def _empty(config: IdgbrConfig, folder: Path) -> Idgbr:
    """The network without memory for its weights, checked against the folder's configurations."""
    import torch

    try:
        with torch.device("meta"):
            network = config.build()
    except (TypeError, ValueError, RuntimeError, OverflowError) as err:
        raise ModelError(f"{folder}: its network cannot be built ({err})") from err
    for part, built in (("unet", network.denoiser), ("vae", network.codec)):
        _check_config(TensorFolder(folder / part), built)
    return network


def _check_config(folder: TensorFolder, network: Any) -> None:
    """Each setting of config.json must be the built network's, so that no other kind of network passes."""
    for key, needed in network.config.items():
        if key.startswith("_") or key in UNUSED or key not in folder.config:
            continue
        needed = list(needed) if isinstance(needed, tuple) else needed
        if folder.config[key] != needed:
            raise ModelError(
                f"{folder.path / 'config.json'}: {key} is {folder.config[key]!r:.80}; needs {needed!r}"
            )


def _shared_parts(network: Idgbr, folder: Path) -> list[Part]:
    unet = TensorFolder(folder / "unet")
    _check_names(network.denoiser, unet)  # the whole U-Net is there, of which the encoder is taken
    return [
        Part(network.condition_encoder, "condition_encoder", unet, whole=False),
        Part(network.codec, "codec", TensorFolder(folder / "vae")),
    ]


def _read(parts: list[Part]) -> dict[str, Tensor]:
    """Read tensors under the network's names; all names and shapes are checked before one is read."""
    for part in parts:
        if part.whole:
            _check_names(part.network, part.folder, part.name_of)
        for name, tensor in part.network.state_dict().items():
            part.folder.check(part.name_of(name), list(tensor.shape))
    return {
        f"{part.prefix}.{name}": part.folder.read(part.name_of(name)).reshape(tensor.shape)
        for part in parts
        for name, tensor in part.network.state_dict().items()
    }


def _check_names(network: nn.Module, folder: TensorFolder, name_of: Callable[[str], str] = str) -> None:
    check_names({name_of(name) for name in network.state_dict()}, set(folder.shapes), folder.path)


def _guidance_name(blocks: int) -> Callable[[str], str]:
    """Released name of a tensor of a guidance network whose last block is the mid block's."""

    def name_of(own: str) -> str:
        _, index, part, *rest = own.split(".")
        start = "attn_blocks_mid" if int(index) == blocks - 1 else f"attn_blocks_down.{index}"
        return ".".join([start, BLOCK_PARTS[part], *rest])

    return name_of


def _embedding_names(folder: TensorFolder) -> Mapping[str, str]:
    plain = "embedding_table" in folder.shapes  # a parameter, or an embedding layer
    names = {"table": "embedding_table" if plain else "embedding_table.weight"}
    for layer in (0, 2):
        for kind in ("weight", "bias"):
            names[f"classifier.{layer}.{kind}"] = f"embedding_conv.{layer}.{kind}"
    return names


def _read_prompt(folder: Path, prompt: Path | None) -> Tensor:
    """The empty prompt's embedding (tokens, channels): of the text encoder, or the one tensor of a file."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if prompt is None:
        encoder = folder / "text_encoder"
        if not encoder.is_dir():
            raise ModelError(
                f"{encoder}: no such folder; the empty prompt's embedding is computed from it once. Where it "
                "lacks, pass --prompt-embedding FILE.safetensors"
            )
        return empty_prompt(encoder)
    try:
        tensors = list(load_file(prompt).values())
    except (OSError, SafetensorError) as err:
        raise ModelError(f"{prompt}: no safetensors file ({err})") from err
    shape = list(tensors[0].shape) if tensors else []
    if len(tensors) != 1 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise ModelError(
            f"{prompt}: {len(tensors)} tensors, the first {shape}; needs one, [tokens, channels]"
        )
    embedding = tensors[0].to(torch.float32).reshape(shape[-2:])
    if not torch.isfinite(embedding).all():
        raise ModelError(f"{prompt}: values that are not finite")
    return embedding


def empty_prompt(folder: Path) -> Tensor:
    """Embed the empty prompt by the text encoder in `folder`: float32 (tokens, channels).

    Source: CLIP's text transformer, arXiv 2103.00020, as in Hugging Face's CLIPTextModel.
    """
    import torch
    from torch.nn import functional as F

    encoder = TensorFolder(folder)
    # older and newer programs write their names with a prefix or without
    starts = [
        start for start in ("text_model.", "") if len(encoder.shapes.get(f"{start}{POSITIONS}", [])) == 2
    ]
    if not starts:
        raise ModelError(f"{folder}: no matrix text_model.{POSITIONS}; this is not a CLIP text encoder")
    start, config = starts[0], encoder.config
    heads, epsilon = config.get("num_attention_heads", 12), config.get("layer_norm_eps", 1e-5)
    if config.get("hidden_act", "quick_gelu") != "quick_gelu" or type(heads) is not int or heads < 1:
        raise ModelError(f"{folder / 'config.json'}: no CLIP text encoder as Stable Diffusion 1.5 has it")

    def linear(name: str, x: Tensor) -> Tensor:
        weight, bias = (encoder.read(f"{start}{name}.{kind}") for kind in ("weight", "bias"))
        return F.linear(x, weight, bias)

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = (encoder.read(f"{start}{name}.{kind}") for kind in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(1, (heads, -1)).transpose(0, 1)  # (heads, tokens, channels / heads)

    try:
        with torch.no_grad():
            positions = encoder.read(f"{start}{POSITIONS}")
            words = encoder.read(f"{start}embeddings.token_embedding.weight")
            # the vocabulary's last two words mark start and end; the end also fills the rest
            x = torch.cat([words[-2:-1], words[-1:].expand(len(positions) - 1, -1)]) + positions
            for layer in range(MAX_LAYERS):
                name = f"encoder.layers.{layer}"
                if f"{start}{name}.layer_norm1.weight" not in encoder.shapes:
                    break
                y = norm(f"{name}.layer_norm1", x)
                q, k, v = (split(linear(f"{name}.self_attn.{part}_proj", y)) for part in ("q", "k", "v"))
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
                x = x + linear(f"{name}.self_attn.out_proj", attended)
                hidden = linear(f"{name}.mlp.fc1", norm(f"{name}.layer_norm2", x))
                x = x + linear(f"{name}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
            return norm("final_layer_norm", x)
    except (RuntimeError, TypeError, IndexError) as err:
        raise ModelError(f"{folder}: its tensors do not fit one another ({err})") from err
