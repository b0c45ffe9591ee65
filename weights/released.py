"""Released BiCoR-Seg checkpoints (Lightning `.ckpt`), read without running their code.

Every tensor of our network has one counterpart: a checkpoint fits whole or is refused with the names that do
not. Sizes come from the tensors: ConvNeXt of any known size, channels, layers and classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rsseg_cli.errors import ModelError
from rsseg_cli.weights.header import check_names, to_float32
from rsseg_cli.weights.released_idgbr import is_idgbr, read_idgbr, start_idgbr
from rsseg_cli.weights.tensor_folder import check_plain, read_pickle

if TYPE_CHECKING:
    from torch import Tensor

    from rsseg_cli.models import BicorSeg, BicorSegConfig

__all__ = ["is_idgbr", "read_bicor_seg", "read_idgbr", "start_idgbr"]

PREFIX = "net."  # the network inside the Lightning module; losses and metrics stand beside it
CLASS_TABLE = "net.decoder.class_dict.class_embed"
ENCODERS: dict[tuple[tuple[int, ...], int], str] = {  # (blocks a stage, width of the first) -> timm's name
    ((2, 2, 6, 2), 40): "convnext_atto",
    ((2, 2, 6, 2), 48): "convnext_femto",
    ((2, 2, 6, 2), 64): "convnext_pico",
    ((2, 2, 8, 2), 80): "convnext_nano",
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
    ((3, 3, 27, 3), 256): "convnext_xlarge",
}
BLOCK_PARTS = {
    "conv_dw": "block.0", "norm": "block.2", "mlp.fc1": "block.3", "mlp.fc2": "block.5",
    "gamma": "layer_scale",
}  # fmt: skip
BRIDGE_PARTS = {
    "query": "dict_to_feat",
    "value": "feat_to_dict",
    "gate": "gate_mlp",
    "candidate": "cand_mlp",
    "scale": "gamma_proj",
    "shift": "beta_proj",
    "feature_norm": "feat_ln",
    "embedding_norm": "dict_ln",
}
OTHER_PARTS = {
    "encoder.stem_": "net.encoder.0.0.",
    "neck.fuse.": "net.feature_aggregator.",
    "decoder.class_table": CLASS_TABLE,
    "decoder.upsampler.norm.": "net.decoder.upsampler.1.",
    "decoder.classifier.": "net.decoder.classifier_proj.",
    "decoder.auxiliary_classifier.": "net.decoder.static_classifier.",
}


def read_bicor_seg(path: Path, *, topk_ratio: float, layers: int | None = None) -> BicorSeg:
    """Read a Lightning checkpoint or a plain state dict; float32, in evaluation mode.

    `topk_ratio` is held by no tensor; `layers` is the required number of HBIS layers.
    """
    import torch

    from rsseg_cli.models import BicorSeg

    stored = _read_tensors(path)
    config = _config(stored, path, topk_ratio)
    if layers is not None and layers != config.layers:
        raise ModelError(f"{path}: {config.layers} HBIS layers, --layers says {layers}")
    with torch.device("meta"):
        network = BicorSeg(config)
    order = _neck_order(stored, path)
    names = {own: _released_name(own, order) for own in network.state_dict()}
    check_names(set(names.values()), set(stored), path)
    renamed = {}
    for own, tensor in network.state_dict().items():
        name = names[own]
        if stored[name].squeeze().shape != tensor.squeeze().shape:
            shapes = f"{list(stored[name].shape)}, the network needs {list(tensor.shape)}"
            raise ModelError(f"{path}: tensor {name} is {shapes}")
        # linear layers and 1 x 1 convolutions differ only in trailing axes of length 1
        renamed[own] = to_float32(stored[name].reshape(tensor.shape), name, path)
    network.load_state_dict(renamed, strict=True, assign=True)
    return network.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    tensors = {name: value for name, value in read_pickle(path).items() if name.startswith(PREFIX)}
    if not tensors:
        raise ModelError(
            f"{path}: no tensors under '{PREFIX}'; this is no checkpoint of the released program"
        )
    for name, value in tensors.items():
        check_plain(path, name, value)
    # an embedding layer in the released program, one parameter in ours
    if f"{CLASS_TABLE}.weight" in tensors:
        tensors[CLASS_TABLE] = tensors.pop(f"{CLASS_TABLE}.weight")
    return tensors


def _config(stored: Mapping[str, Tensor], path: Path, topk_ratio: float) -> BicorSegConfig:
    from rsseg_cli.models import BicorSegConfig

    needed = (CLASS_TABLE, "net.encoder.0.0.0.weight")
    check_names(set(needed), set(needed) & stored.keys(), path)
    table, stem = (stored[name] for name in needed)
    if table.ndim != 2 or stem.ndim != 4:
        raise ModelError(f"{path}: {CLASS_TABLE} is {list(table.shape)}, {needed[1]} is {list(stem.shape)}")
    depths = tuple(_count(stored, rf"net\.encoder\.0\.{stage}\.(\d+)\.") for stage in (1, 3, 5, 7))
    encoder = ENCODERS.get((depths, stem.shape[0]))
    if encoder is None:
        known = ", ".join(ENCODERS.values())
        raise ModelError(f"{path}: ConvNeXt of {depths} blocks and width {stem.shape[0]}; known are {known}")
    try:
        return BicorSegConfig(
            classes=table.shape[0],
            encoder=encoder,
            channels=table.shape[1],
            layers=_count(stored, r"net\.decoder\.bicor_stack\.layers\.(\d+)\."),
            topk_ratio=topk_ratio,
            in_channels=stem.shape[1],
        )
    except ValueError as err:
        raise ModelError(f"{path}: {err}") from err


def _count(stored: Mapping[str, Tensor], pattern: str) -> int:
    """Count the different numbers that the pattern's group matches in the names."""
    return len({match[1] for name in stored if (match := re.match(pattern, name))})


def _neck_order(stored: Mapping[str, Tensor], path: Path) -> list[int]:
    """Return the numbers of the neck's projections, finest scale first, by their input widths."""
    widths = {}
    for index in range(4):
        weight = stored.get(f"net.proj_layers.{index}.proj.weight")
        if weight is None or weight.ndim < 2:
            raise ModelError(f"{path}: no matrix net.proj_layers.{index}.proj.weight in it")
        widths[index] = weight.shape[1]
    return sorted(widths, key=lambda index: widths[index])


def _released_name(own: str, neck_order: list[int]) -> str:
    if block := re.fullmatch(
        r"encoder\.stages_(\d)\.blocks\.(\d+)\.(conv_dw|norm|mlp\.fc[12]|gamma)(.*)", own
    ):
        stage, index, part, kind = block.groups()
        return f"net.encoder.0.{2 * int(stage) + 1}.{index}.{BLOCK_PARTS[part]}{kind}"
    if down := re.fullmatch(r"encoder\.stages_(\d)\.downsample\.(.*)", own):
        return f"net.encoder.0.{2 * int(down[1])}.{down[2]}"
    if projection := re.fullmatch(r"neck\.proj\.(\d)\.(.*)", own):
        return f"net.proj_layers.{neck_order[int(projection[1])]}.proj.{projection[2]}"
    if bridge := re.fullmatch(r"decoder\.layers\.(\d+)\.([a-z_]+)(.*)", own):
        return f"net.decoder.bicor_stack.layers.{bridge[1]}.{BRIDGE_PARTS[bridge[2]]}{bridge[3]}"
    for start, released in OTHER_PARTS.items():
        if own.startswith(start):
            return released + own.removeprefix(start)
    raise ValueError(f"{own} has no counterpart in the released program")
