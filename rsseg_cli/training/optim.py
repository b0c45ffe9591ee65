"""Optimiser and learning-rate schedule of a training run."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from timm.optim.lookahead import Lookahead
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rsseg_cli.errors import UsageError
from rsseg_cli.training.config import TrainConfig

END_SHARE = 0.01  # of the highest rate, where `end_rate` is 0


def build_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """Build AdamW, inside Lookahead (arXiv 1907.08610) of `config.lookahead` steps if not 0.

    As in timm, the slow weights start as the weights after the first `lookahead` steps.
    """
    optimizer: Optimizer = AdamW(parameter_groups(network, config), lr=config.learning_rate)
    if config.lookahead:
        optimizer = Lookahead(optimizer, alpha=config.lookahead_alpha, k=config.lookahead)
    return optimizer


def build_schedule(optimizer: Optimizer, config: TrainConfig, total_steps: int) -> dict[str, Any]:
    """Return a run's learning-rate schedule for Lightning."""
    total = config.epochs if config.schedule == "epoch" else total_steps
    end = config.end_rate / config.learning_rate if config.end_rate else END_SHARE
    schedule = LambdaLR(
        optimizer, lambda count: learning_rate_factor(count, total, config.warmup, min(end, 1.0))
    )
    return {"scheduler": schedule, "interval": config.schedule}


def learning_rate_factor(count: int, total: int, warmup: float, end: float = END_SHARE) -> float:
    """Rise linearly over the share `warmup` of all steps or epochs, then fall as a cosine from 1 to `end`."""
    rise = round(total * warmup) if warmup == 0 else max(1, round(total * warmup))
    if count < rise:
        return (count + 1) / rise
    done = min(1.0, (count - rise) / max(1, total - rise))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the parameters that are not frozen by rate (encoder, head) and weight decay."""
    groups = []
    for is_encoder in (True, False):
        for is_vector in (True, False):
            members = [
                parameter
                for name, parameter in network.named_parameters()
                if parameter.requires_grad
                and (".encoder." in f".{name}") == is_encoder
                and (parameter.ndim < 2) == is_vector
            ]
            rate = config.learning_rate * (config.encoder_rate if is_encoder else 1.0)
            decay = 0.0 if is_vector and not config.decay_vectors else config.weight_decay
            groups.append({"params": members, "lr": rate, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def averaged_weights(decay: float) -> WeightAveraging:
    """Average weights and statistics exponentially; the decay rises to `decay`, to forget the start."""

    def average(means: Any, values: Any, count: Tensor | int) -> None:
        step = int(count)  # one synchronisation with the device a step, not one a tensor
        now = min(decay, (1 + step) / (10 + step))
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean += (value - mean) * (1 - now)  # exact where both are equal: frozen weights stay
            else:
                mean.copy_(value)

    return WeightAveraging(multi_avg_fn=average, use_buffers=True)


def mixed_precision(precision: str, device: torch.device | str) -> str:
    """Return Lightning's name of a precision; "auto" is bf16 on CUDA devices that have it, else 32."""
    on_cuda = torch.device(device).type == "cuda"
    if precision == "auto":
        precision = "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    if precision == "16" and not on_cuda:
        raise UsageError("--precision 16: needs CUDA; pass --precision bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
