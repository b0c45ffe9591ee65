"""One model from several training runs of the same start: the mean of their weights.

Source: model soups, arXiv 2203.05482. Runs that start from the same weights and seed often end in one valley,
where the mean of their weights scores better than each of them and costs no more to run. Runs of different
starts do not: compare on validation data before the mean is used.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.weights.registry import TrainedModel, load_model

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_PREFIX = "network."  # of the network's tensors in a run's checkpoints


def average_models(first: str | Path, others: Sequence[str | Path]) -> TrainedModel:
    """A model whose weights are the mean of all, described as the first, without its scores.

    Args:
        first: name or path of a model.
        others: names or paths of models, or checkpoints of runs (best.ckpt, last.ckpt), of the same network.

    Raises:
        UsageError: there is nothing to average.
        ModelError: a file cannot be read, or is of another network, bands or classes.
    """
    if not others:
        raise UsageError("one model alone: needs two or more to average")
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


def _weights(path: str | Path, model: TrainedModel) -> dict[str, Tensor]:
    """Weights of another run of the same network."""
    own = model.network.state_dict()
    if str(path).endswith(".ckpt"):
        state = _checkpoint(Path(path))
    else:
        other = load_model(path)
        if (other.spec.bands, other.spec.class_names) != (model.spec.bands, model.spec.class_names):
            raise ModelError(f"{path}: {_told(other)}; the first has {_told(model)}")
        state = other.network.state_dict()
    wrong = own.keys() ^ state.keys() or {n for n, tensor in own.items() if tensor.shape != state[n].shape}
    if wrong:
        raise ModelError(f"{path}: of another network than the first, see {min(wrong)}")
    return state


def _told(model: TrainedModel) -> str:
    return f"bands {', '.join(model.spec.bands)} and classes {', '.join(model.spec.class_names)}"


def _checkpoint(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ModelError(f"{path}: cannot be read as a checkpoint of rsseg train ({err})") from err
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ModelError(f"{path}: holds no weights; needs a checkpoint of rsseg train")
    return {
        name.removeprefix(CHECKPOINT_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(CHECKPOINT_PREFIX) and isinstance(tensor, torch.Tensor)
    }
