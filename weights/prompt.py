"""The empty prompt's embedding, from Stable Diffusion's text encoder: a constant that replaces it.

Source: CLIP's text transformer, arXiv 2103.00020, as in Hugging Face's CLIPTextModel.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rsseg_cli.errors import ModelError
from rsseg_cli.weights.tensor_folder import TensorFolder

if TYPE_CHECKING:
    from torch import Tensor

STARTS = ("text_model.", "")  # of the names, as older and newer programs write them
POSITIONS = "embeddings.position_embedding.weight"
MAX_LAYERS = 48


def start_of(encoder: TensorFolder) -> str:
    """Return the prefix of the names of a text encoder's tensors."""
    for start in STARTS:
        if len(encoder.shapes.get(f"{start}{POSITIONS}", [])) == 2:
            return start
    raise ModelError(f"{encoder.path}: no matrix {STARTS[0]}{POSITIONS}; this is not a CLIP text encoder")


def empty_prompt(folder: Path) -> Tensor:
    """Embed the empty prompt by the text encoder in `folder`: float32 (tokens, channels)."""
    import torch
    from torch.nn import functional as F

    encoder = TensorFolder(folder)
    start, config = start_of(encoder), encoder.config
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
