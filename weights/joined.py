"""Models joined to one: by the mean of their weights, or of what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.weights.registry import TrainedModel, load_model

if TYPE_CHECKING:
    from torch import Tensor

LOOKS = ("zoom", "partner", "partner_classes")  # settings of the looks after the first


def average_models(first: str | Path, others: Sequence[str | Path]) -> TrainedModel:
    """Average the weights of models; the result is described as the first, without its scores.

    Source: model soups, arXiv 2203.05482. Runs that start from the same weights and seed often end in one
    valley, where the mean of their weights scores better than each. `others` are models or checkpoints.
    """
    if not others:
        raise UsageError("only one model: needs two or more to average")
    model = load_model(first)
    own = model.network.state_dict()
    states = [own, *(_weights(other, model) for other in others)]
    mean = {
        name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in own.items()
    }
    model.network.load_state_dict(mean)
    averaged = [str(first), *map(str, others)]
    training = {**model.spec.training, "averaged": averaged}
    return TrainedModel(model.network, dataclasses.replace(model.spec, training=training, scores={}))


def combine_models(first: str | Path, partner: str | Path | None, zoom: float = 1.0) -> TrainedModel:
    """Join models whose probabilities are averaged: one network, described as the first, without its scores.

    Of models that are themselves combined the first look is taken.

    Args:
        partner: its classes with names of the first's are the same; what it gives to others, the classes
            that it does not know share. It sees the first's resolution.
        zoom: times the size at which the first looks a second time, and the partner once.
    """
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    models = [first_look(load_model(name)) for name in (first, partner) if name is not None]
    for name, model in zip((first, partner), models, strict=False):
        if not isinstance(model.network, BicorSeg):
            raise ModelError(f"{name}: needs a BiCoR-Seg model")
    if partner is None and zoom == 1:
        raise UsageError("nothing to combine: needs a partner, or a zoom other than 1")
    spec, own = models[0].spec, models[0].spec.class_names
    sizes: dict[str, Any] = {**spec.network, "zoom": zoom}
    state = models[0].network.state_dict()
    if partner is not None:
        other = models[1].spec
        for what in ("bands", "mean", "std"):
            if getattr(other, what) != getattr(spec, what):
                raise ModelError(
                    f"{partner}: {what} {getattr(other, what)}; {first} has {getattr(spec, what)}"
                )
        if not set(own) & set(other.class_names):
            raise ModelError(f"{partner}: knows no class of {first}")
        sizes["partner"] = other.network
        sizes["partner_classes"] = [own.index(name) if name in own else -1 for name in other.class_names]
        state |= {f"partner.{name}": value for name, value in models[1].network.state_dict().items()}
    try:
        network = BicorSeg(BicorSegConfig(**sizes))
    except ValueError as err:
        raise UsageError(f"cannot be combined: {err}") from err
    network.load_state_dict(state)
    training = {**spec.training, "combined": [str(first), *([] if partner is None else [str(partner)])]}
    spec = dataclasses.replace(spec, network=sizes, training=training, scores={})
    return TrainedModel(network.eval(), spec)


def first_look(model: TrainedModel) -> TrainedModel:
    """Return a model that looks once and has no partner."""
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    if not isinstance(model.network, BicorSeg) or not model.network.config.looks_again:
        return model
    sizes = {key: value for key, value in model.spec.network.items() if key not in LOOKS}
    network = BicorSeg(BicorSegConfig(**sizes)).eval()
    given = model.network.state_dict()
    network.load_state_dict({key: given[key] for key in network.state_dict()})
    return dataclasses.replace(model, network=network, spec=dataclasses.replace(model.spec, network=sizes))


def _weights(path: str | Path, model: TrainedModel) -> dict[str, Tensor]:
    """Read the weights of another run of the same network."""
    own = model.network.state_dict()
    if str(path).endswith(".ckpt"):
        state = _checkpoint(Path(path))
    else:
        other = load_model(path)
        if (other.spec.bands, other.spec.class_names) != (model.spec.bands, model.spec.class_names):
            raise ModelError(f"{path}: {_interface(other)}; the first has {_interface(model)}")
        state = other.network.state_dict()
    wrong = own.keys() ^ state.keys() or {n for n, tensor in own.items() if tensor.shape != state[n].shape}
    if wrong:
        raise ModelError(f"{path}: of another network than the first, see {min(wrong)}")
    return state


def _interface(model: TrainedModel) -> str:
    return f"bands {', '.join(model.spec.bands)} and classes {', '.join(model.spec.class_names)}"


def _checkpoint(path: Path) -> dict[str, Any]:
    from rsseg_cli.weights.tensor_folder import read_pickle

    prefix = "network."
    state = {
        name.removeprefix(prefix): value
        for name, value in read_pickle(path).items()
        if name.startswith(prefix) and hasattr(value, "shape")
    }
    if not state:
        raise ModelError(f"{path}: holds no weights; needs a checkpoint of rsseg train")
    return state
