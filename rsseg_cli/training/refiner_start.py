"""Describe and build refiners to train, and fill them from another refiner or from published weights."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from rsseg_cli.data import LabelledData
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.models import BicorSegConfig, LiteRefiner, LiteRefinerConfig
from rsseg_cli.training.config import CLOSER_USE, ModelInfo, RefinerNetworkSettings
from rsseg_cli.training.recipes import RefinerSettings
from rsseg_cli.training.start import (
    LITE,
    described,
    imagenet_lite,
    input_statistics,
    load_encoder,
    pretrained,
)
from rsseg_cli.weights import ModelSpec, load_model, read_spec, registry

logger = logging.getLogger(__name__)
SIZES = {item.name for item in dataclasses.fields(LiteRefinerConfig)} - {"closer", *CLOSER_USE}
CLOSER_SIZES = ("channels", "layers", "topk_ratio", "neck", "smooth")
CODEC_RANGE = 0.5  # mean and deviation that bring [0, 1] to the [-1, 1] of Stable Diffusion's codec


def describe_refiner(
    settings: RefinerSettings, data: LabelledData, info: ModelInfo, base_model: str = ""
) -> ModelSpec:
    chosen = settings.network
    start = _start_spec(chosen.init, data) if chosen.init else None
    architecture, network = (start.architecture, start.network) if start else _network_of(chosen, data)
    looking = _closer_spec(chosen.closer, data, architecture, network) if chosen.closer else None
    if looking:
        sizes = {key: value for key, value in looking.network.items() if key in CLOSER_SIZES}
        network = network | {"closer": sizes}
    network = network | _closer_use(chosen, network)
    if chosen.align and architecture != "idgbr":
        raise UsageError(f"--align {chosen.align}: is for refiners of --arch paper, {chosen.init} is none")
    mean, std = input_statistics(chosen, len(data.bands))
    if architecture == "idgbr" and not chosen.mean and not chosen.std:
        mean = std = (CODEC_RANGE,) * len(data.bands)
    if start:
        mean, std = chosen.mean or start.mean, chosen.std or start.std
    if looking:
        mean, std = looking.mean, looking.std  # the encoder is that model's
    refinement = {"steps": network.get("steps", 1), "band_m": settings.refining.band_m}
    refinement |= _base_model(base_model, looking, start)
    return described(
        data, info, start, settings.training.scales,
        architecture=architecture, network=network, mean=mean, std=std, refinement=refinement,
    )  # fmt: skip


def _closer_use(chosen: RefinerNetworkSettings, network: dict[str, Any]) -> dict[str, Any]:
    """Return how the closer look is used, where the settings say; UsageError where there is none."""
    given = {key: value for key in CLOSER_USE if (value := getattr(chosen, key)) not in ((), None)}
    if given and not network.get("closer"):
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option}: needs --closer MODEL, or --init with such a refiner")
    try:
        if given:
            LiteRefinerConfig(**(network | given))
    except ValueError as err:
        raise UsageError(f"--{str(err).replace('closer_', 'closer-', 1)}") from err
    return given


def _base_model(model: str, looking: ModelSpec | None, start: ModelSpec | None) -> dict[str, Any]:
    before = start.refinement if start else {}
    model = model or str(before.get("model", ""))
    if model in registry.list_models():
        gsd_m = read_spec(model).gsd_m
    elif looking is not None:
        gsd_m = looking.gsd_m
    else:
        gsd_m = before.get("model_gsd_m") if model == before.get("model") else None
    return {"model": model} | ({"model_gsd_m": gsd_m} if gsd_m else {})


def _start_spec(init: str, data: LabelledData) -> ModelSpec:
    start = read_spec(init)
    if not start.is_refiner:
        raise ModelError(f"--init {init}: architecture {start.architecture}; needs a refiner to start from")
    for kind, own, given in (
        ("classes", data.class_names, start.class_names),
        ("bands", data.bands, start.bands),
    ):
        if own != given:
            raise ModelError(
                f"--init {init}: {kind} {', '.join(given)}, the data has {', '.join(own)}; needs the same"
            )
    return start


def _closer_spec(model: str, data: LabelledData, architecture: str, network: dict[str, Any]) -> ModelSpec:
    """Read the model that looks closer, which has to share classes, bands and encoder with the refiner."""
    spec = read_spec(model)
    encoder, own = network.get("encoder"), spec.network.get("encoder")
    needed = ("bicor-seg", data.class_names, data.bands, encoder)
    if architecture != "idgbr-lite" or (spec.architecture, spec.class_names, spec.bands, own) != needed:
        raise ModelError(
            f"--closer {model}: {spec.architecture} of {', '.join(spec.class_names)} on {own}; needs a "
            f"BiCoR-Seg model of {', '.join(data.class_names)} on {encoder}, and --arch lite"
        )
    looking = BicorSegConfig(**spec.network)
    if looking.looks_again or looking.correction:
        logger.warning("--closer %s: its first look alone, without further looks or a correction", model)
    return spec


def _network_of(chosen: RefinerNetworkSettings, data: LabelledData) -> tuple[Any, dict[str, Any]]:
    given = {key: value for key, value in vars(chosen).items() if key in SIZES and value}
    try:
        if chosen.arch == "lite":
            if chosen.encoder and not timm.is_model(chosen.encoder):
                raise UsageError(f"--encoder {chosen.encoder!r:.100}: needs an encoder of timm")
            sizes = LiteRefinerConfig(classes=len(data.classes), in_channels=len(data.bands), **given)
            return "idgbr-lite", dict(vars(sizes))
        from rsseg_cli.models import IdgbrConfig  # here alone: it loads diffusers

        wrong = sorted(given.keys() - {"steps", "time_sampling"})
        if wrong:
            raise UsageError(f"--{wrong[0].replace('_', '-')}: is a size of --arch lite, this is paper")
        if len(data.bands) != 3:
            raise UsageError(f"--arch paper: takes three bands, the data has {', '.join(data.bands)}")
        return "idgbr", dict(vars(IdgbrConfig(classes=len(data.classes), **given)))
    except ValueError as err:
        raise UsageError(str(err)) from err


def build_refiner(spec: ModelSpec, chosen: RefinerNetworkSettings, seed: int) -> tuple[nn.Module, ModelSpec]:
    """Build a refiner for `spec`, started as the settings say; return it and the spec with its sizes."""
    torch.manual_seed(seed)
    if spec.architecture == "idgbr" and not chosen.init:
        return _build_paper(spec, chosen)
    if chosen.init:
        network = load_model(chosen.init).network
        logger.info("all tensors taken from %s", chosen.init)
        if spec.architecture == "idgbr-lite":
            network.config = LiteRefinerConfig(**spec.network)  # type: ignore[assignment]  # which may use the closer look otherwise
    else:
        weights = "none" if chosen.closer else chosen.encoder_weights  # `closer` has its own
        network = _build_lite(LiteRefinerConfig(**spec.network), weights)
    if chosen.closer:
        network = _with_closer(network, LiteRefinerConfig(**spec.network), chosen.closer)
    return network, spec


def _with_closer(network: nn.Module, config: LiteRefinerConfig, model: str) -> LiteRefiner:
    """Build a refiner that includes a model; the weights from its look to the conditions start at 0."""
    wider = LiteRefiner(config)
    given, own = network.state_dict(), wider.state_dict()
    key = "conditions.rough_in.weight"
    if given[key].shape != own[key].shape:
        given[key] = torch.cat([given[key], torch.zeros_like(given[key])], 1)
    looking = {
        name.replace("encoder.", "conditions.encoder.", 1)
        if name.startswith("encoder.")
        else f"closer.{name}": value
        for name, value in load_model(model).network.state_dict().items()
    }
    wider.load_state_dict({name: looking.get(name, given.get(name)) for name in own})
    return wider


def _build_lite(config: LiteRefinerConfig, weights: str) -> LiteRefiner:
    if weights == "imagenet" and config.encoder not in LITE.values():
        return pretrained(LiteRefiner, config)
    refiner = LiteRefiner(config)
    if weights in registry.list_models() or weights.endswith(".safetensors"):
        _take_encoder(refiner.conditions.encoder, weights)
    elif weights != "none":
        path = imagenet_lite(config.encoder) if weights == "imagenet" else Path(weights)
        load_encoder(refiner.conditions.encoder, config.encoder, path)
    return refiner


def _take_encoder(encoder: nn.Module, model: str) -> None:
    """Fill an encoder with that of a segmentation model."""
    given = {
        key.removeprefix("encoder."): value
        for key, value in load_model(model).network.state_dict().items()
        if key.startswith("encoder.")
    }
    own = encoder.state_dict()
    wrong = [key for key, value in own.items() if key not in given or given[key].shape != value.shape]
    if wrong:
        raise ModelError(
            f"--encoder-weights {model}: its encoder lacks {wrong[0]} or has it at another size; needs a "
            "segmentation model with the refiner's --encoder"
        )
    encoder.load_state_dict({key: given[key] for key in own})


def _build_paper(spec: ModelSpec, chosen: RefinerNetworkSettings) -> tuple[nn.Module, ModelSpec]:
    from rsseg_cli.models import Idgbr, IdgbrConfig
    from rsseg_cli.weights import released

    if not chosen.sd:
        logger.warning("--arch paper without --sd: starts from random weights")
        return Idgbr(IdgbrConfig(**spec.network)), spec
    network = released.start_idgbr(Path(chosen.sd), len(spec.classes))
    wanted = {key: spec.network[key] for key in ("steps", "time_sampling")}
    network.config = dataclasses.replace(network.config, **wanted)
    network.default_steps = network.config.steps
    return network, dataclasses.replace(spec, network=dict(vars(network.config)))


def build_alignment(network: nn.Module, weights: str) -> nn.Module | None:
    """Return the alignment of a paper-size refiner's features to DINOv2's tokens; None without `weights`."""
    if not weights:
        return None
    from rsseg_cli.models import Idgbr, losses

    if not isinstance(network, Idgbr):
        raise UsageError(f"--align {weights}: is for refiners of --arch paper")
    try:
        return losses.DinoAlignment(Path(weights), network.config.channels[-1])
    except ValueError as err:
        raise ModelError(f"--align {err}") from err
