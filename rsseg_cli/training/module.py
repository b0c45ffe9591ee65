"""Lightning modules: a base for every run, and the one of a segmentation network; optimiser and schedule."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from numpy.typing import NDArray
from timm.optim.lookahead import Lookahead
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rsseg_cli.data import datasets
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.evaluation import metrics
from rsseg_cli.models import BicorSeg, losses
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import TrainConfig
from rsseg_cli.training.crops import vary_colours
from rsseg_cli.weights import ModelSpec

END_SHARE = 0.01  # of the highest rate, where `end_rate` is 0
CHECKED_STEPS = 10  # on a GPU, one of so many looks at the loss


class MonitoredMetric(NamedTuple):
    """The score that chooses the best epoch: a key of the history, logged as val_KEY; mode is max or min."""

    key: str
    mode: str

    def best(self, values: list[float]) -> float:
        return max(values) if self.mode == "max" else min(values)


class TrainingModule(L.LightningModule):
    """Base of all runs: loss, optimiser, checkpoints, history; `network` expects normalised images.

    `history` has a dict an epoch: epoch (from 1), loss, rate (of the head, at its start), seconds, scores.
    """

    monitored: ClassVar[MonitoredMetric]

    def __init__(self, network: nn.Module, spec: ModelSpec, config: TrainConfig, total_steps: int) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.config = config
        self.total_steps = total_steps
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self.history: list[dict[str, Any]] = []
        self.step_loss = float("nan")
        self.losses_seen = torch.zeros(2)  # of this epoch's steps: the last one's, and their sum
        self.loss_count, self.epoch_started, self.epoch_rate = 0, 0.0, 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether each step looks at its loss, for which a GPU would have to be waited for."""
        return self.device.type == "cpu"

    @property
    def trained(self) -> nn.Module:
        """What the optimiser trains, frozen parameters excepted."""
        return self.network

    @abstractmethod
    def losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch of crops, and its parts by name."""

    @abstractmethod
    def progress_text(self, scores: Mapping[str, Any]) -> str:
        """Return an epoch's scores for the progress line."""

    def normalise(self, image: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return images of bytes as the network expects them; factors vary their colours."""
        image = image.float() / 255
        if factors is not None and self.config.colour:
            image = vary_colours(image, factors)
        return ((image - self.get_buffer("mean")) / self.get_buffer("std")).contiguous(
            memory_format=torch.channels_last
        )

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        loss, parts = self.losses(batch)
        seen = loss.detach().float()
        self.losses_seen = torch.stack([seen, self.losses_seen[1].to(seen.device) + seen])
        if self.is_waiting or self.loss_count % CHECKED_STEPS == 0:
            self._check_losses()
        self.loss_count += 1
        self.log("loss", loss, on_step=True, on_epoch=True)
        for name, part in parts.items():
            self.log(f"loss_{name}", part.detach(), on_step=True, on_epoch=False)
        return loss

    def _check_losses(self) -> float:
        """Return the sum of the epoch's losses, which the device must have computed; ModelError where one of
        them is no number."""
        self.step_loss, total = self.losses_seen.tolist()
        if math.isfinite(total):
            return total
        kept = f"epoch {len(self.history)} is kept" if self.history else "no epoch was finished"
        more = ", or --precision 32" if self.config.precision == "16" else ""
        raise ModelError(
            f"step {self.global_step + 1} (epoch {self.current_epoch + 1}): the loss is {self.step_loss}"
            f", training stops; {kept}. Pass a lower --lr than {self.config.learning_rate:g}{more}"
        )

    def on_train_epoch_start(self) -> None:
        self.losses_seen, self.loss_count, self.epoch_started = torch.zeros(2), 0, time.perf_counter()
        groups = self.optimizers().param_groups  # type: ignore[union-attr]
        self.epoch_rate = float(groups[-1]["lr"])
        self.log("rate", self.epoch_rate, on_step=False, on_epoch=True)

    def end_epoch(self, scores: Mapping[str, Any]) -> None:
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "loss": self._check_losses() / max(self.loss_count, 1),
                "rate": self.epoch_rate,
                "seconds": round(time.perf_counter() - self.epoch_started, 1),
                **scores,
            }
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint.get("history", []))

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.trained, self.config)
        return {
            "optimizer": optimizer,
            "lr_scheduler": build_schedule(optimizer, self.config, self.total_steps),
        }


class SegmentationModule(TrainingModule):
    """Loss, validation scores and optimiser of any (B, C, H, W) -> (B, N, H, W) network.

    A `BicorSeg` is trained with its own losses; other networks with the main one, cross-entropy and Dice.
    Scores in the history: miou, mean_f1, overall_accuracy and iou by class.
    """

    monitored = MonitoredMetric("miou", "max")
    sets: Tensor | None  # a buffer

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        config: TrainConfig,
        total_steps: int,
        protocol: datasets.ScoringProtocol | None = None,
        sets: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(network, spec, config, total_steps)
        table = losses.class_sets(len(spec.classes), sets.values()) if sets else None
        self.register_buffer("sets", table, persistent=False)
        self.class_names = spec.class_names
        self.protocol = protocol or datasets.ScoringProtocol()
        weights = dataclasses.fields(losses.BicorLossWeights)
        self.loss_weights = losses.BicorLossWeights(
            **{item.name: getattr(config, item.name) for item in weights}
        )
        self.confusion = torch.zeros(len(spec.classes), len(spec.classes), dtype=torch.int64)

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        image, labels, factors = batch
        parts = self._loss_parts(self.normalise(image, factors), labels.long())
        return torch.stack(list(parts.values())).sum(), parts

    def progress_text(self, scores: Mapping[str, Any]) -> str:
        return f"val mIoU {scores['miou']:.3f}"

    def _loss_parts(self, image: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the losses in float32 also where the network computes in half precision."""
        if not isinstance(self.network, BicorSeg):
            logits = self.network(image).float()
            with torch.autocast(image.device.type, enabled=False):
                return {"main": losses.label_loss(labels, self.config.smoothing, self.sets)(logits)}
        output = self.network.forward_training(image)
        with torch.autocast(image.device.type, enabled=False):
            exact = losses.BicorTrainingOutput(
                output.logits.float(),
                tuple(heatmaps.float() for heatmaps in output.heatmaps),
                tuple(embeddings.float() for embeddings in output.class_embeddings),
                output.auxiliary_logits.float(),
            )
            return losses.bicor_loss_parts(exact, labels, self.loss_weights, self.sets)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)

    def on_validation_epoch_start(self) -> None:
        self.confusion = torch.zeros_like(self.confusion, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        image, labels = batch
        classes = self(self.normalise(image)).max(1).indices
        labels = labels.where(labels < len(self.confusion), class_values.IGNORE)  # sets are not scored
        self.confusion += metrics.confusion_matrix(classes, labels, len(self.confusion))

    def on_validation_epoch_end(self) -> None:
        total = self.trainer.strategy.reduce(self.confusion, reduce_op="sum")
        scores = protocol_scores(total.cpu(), self.class_names, self.protocol)
        for name in ("miou", "mean_f1", "overall_accuracy"):
            self.log(f"val_{name}", scores[name])
        for name, iou in zip(self.class_names, scores["iou"], strict=True):
            self.log(f"val_iou/{name.replace('/', '_')}", iou)
        self.end_epoch({key: scores[key] for key in ("miou", "mean_f1", "overall_accuracy", "iou")})


def protocol_scores(
    confusion: Tensor | NDArray[np.integer], class_names: tuple[str, ...], protocol: datasets.ScoringProtocol
) -> dict[str, Any]:
    return dict(metrics.scores_of(confusion, protocol.left_out(class_names)))


def build_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """Build AdamW, inside Lookahead (arXiv 1907.08610) if asked for; its slow weights start as in timm."""
    optimizer: Optimizer = AdamW(parameter_groups(network, config), lr=config.learning_rate)
    if config.lookahead:
        optimizer = Lookahead(optimizer, alpha=config.lookahead_alpha, k=config.lookahead)
    return optimizer


def build_schedule(optimizer: Optimizer, config: TrainConfig, total_steps: int) -> dict[str, Any]:
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


class Averaging(WeightAveraging):
    """Average weights and statistics exponentially; the decay rises to `decay`, to forget the start.

    All stays on the device, and nothing waits for it.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=True)
        self._decay, self._count = decay, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:  # made on the CPU
            self._count = int(self._average_model.to(pl_module.device).n_averaged)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._average_model is None or trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        share = 1 - min(self._decay, (1 + self._count) / (10 + self._count)) if self._count else 1.0
        move_towards(self._average_model.module, pl_module, share)
        self._average_model.n_averaged += 1
        self._count += 1


@torch.no_grad()
def move_towards(average: nn.Module, network: nn.Module, share: float) -> None:
    """Move all numbers of a network by a share of the way to another's; whole numbers become the other's."""
    pairs = [
        (mean, value.detach())
        for means, values in (
            (average.parameters(), network.parameters()), (average.buffers(), network.buffers())
        )
        for mean, value in zip(means, values, strict=True)
    ]  # fmt: skip
    moved = [pair for pair in pairs if share < 1 and pair[0].is_floating_point()]
    kept = [pair for pair in pairs if share == 1 or not pair[0].is_floating_point()]
    for mean, value in kept:
        mean.copy_(value)
    if moved:
        means, values = zip(*moved, strict=True)
        steps = torch._foreach_sub(values, means)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(means, steps)  # exact where both are equal: frozen weights stay


def mixed_precision(precision: str, device: torch.device | str) -> str:
    """Return Lightning's name of a precision; "auto" is bf16 on CUDA devices that have it, else 32."""
    on_cuda = torch.device(device).type == "cuda"
    if precision == "auto":
        precision = "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    if precision == "16" and not on_cuda:
        raise UsageError("--precision 16: needs CUDA; pass --precision bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
