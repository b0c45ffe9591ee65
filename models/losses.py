"""Losses of BiCoR-Seg: cross-entropy with Dice, hierarchical heatmap supervision, Fisher discrimination;
and of labels that only say which classes a pixel may be.

Source: arXiv 2512.20255 and its released program; the cross-entropy here divides by the valid pixels only.
Of IDGBR (arXiv 2507.01573) the alignment of its features to a DINOv2 encoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .bicor_seg import BicorTrainingOutput as BicorTrainingOutput

IGNORE = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of DINOv2's pixels
TOKENS = 2  # patch tokens along each side of a feature pixel


@dataclass(frozen=True, kw_only=True)
class BicorLossWeights:
    """Published weights; `embeddings` is 0.0 there, `fisher_last` 1.0 in the published LoveDA recipe only.

    In long runs class embeddings keep growing until the gates that they set are open or shut everywhere;
    `embeddings` is the weight of their mean square.
    """

    smoothing: float = 0.05
    auxiliary: float = 0.4
    heatmaps: float = 0.1
    fisher: float = 0.1
    fisher_last: float = 0.0
    embeddings: float = 0.0


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.05) -> Tensor:
    """Label-smoothed cross-entropy, mean over valid pixels; zero where none is valid."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def dice(logits: Tensor, labels: Tensor, smooth: float = 0.05) -> Tensor:
    """1 - Dice of logits (B, N, H, W) and int64 labels, mean over the classes that occur; 255 is ignored."""
    valid = (labels != IGNORE).unsqueeze(1)
    probabilities = logits.softmax(1) * valid
    # gather instead of a one-hot tensor: an eighth of the memory at 512 px
    index = labels.where(valid[:, 0], torch.zeros_like(labels)).unsqueeze(1)
    hit = probabilities.gather(1, index) * valid
    classes = logits.shape[1]
    flat = (index.flatten() + classes * (~valid).flatten().to(index.dtype)).clamp(max=classes)
    overlap = hit.new_zeros(classes + 1).index_add(0, flat, hit.flatten())[:classes]
    counts = flat.new_zeros(classes + 1).index_add(
        0, flat, torch.ones_like(flat)
    )  # `bincount` waits for a GPU
    truth = counts[:classes].to(hit.dtype)
    total = probabilities.sum(dim=(0, 2, 3)) + truth
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    present = truth > 0
    return (loss * present).sum() / present.sum().clamp(min=1)


def set_loss(logits: Tensor, allowed: Tensor, smoothing: float = 0.03) -> Tensor:
    """Minus the log of the summed probabilities of the allowed classes, mean over known pixels; and Dice.

    Dice counts a pixel for a class where it is known whether it is of the class.

    Args:
        logits: (B, N, H, W).
        allowed: bool (B, N, H, W); all False where nothing is known.
        smoothing: share of the loss that any class of a pixel of one class may have.
    """
    known = allowed.any(1)
    logs = logits.log_softmax(1)
    loss = -torch.where(allowed, logs, logs.new_full((), -1e4)).logsumexp(1)
    single = allowed.sum(1) == 1
    loss = torch.where(single, (1 - smoothing) * loss - smoothing * logs.mean(1), loss)
    entropy = (loss * known).sum() / known.sum().clamp(min=1)
    decided = known.unsqueeze(1) & (~allowed | single.unsqueeze(1))
    truth = allowed & decided
    probability = logs.exp() * decided
    overlap = (probability * truth).sum((0, 2, 3))
    count = truth.sum((0, 2, 3))
    ratio = 1 - (2 * overlap + 0.05) / (probability.sum((0, 2, 3)) + count + 0.05)
    present = count > 0
    return entropy + (ratio * present).sum() / present.sum().clamp(min=1)


def class_sets(classes: int, sets: Iterable[Sequence[int]] = ()) -> Tensor:
    """Return what a label allows, bool (256, N): label k < N one class, N + k the k-th set, others none."""
    table = torch.zeros(256, classes, dtype=torch.bool)
    table[:classes] = torch.eye(classes, dtype=torch.bool)
    for label, members in enumerate(sets, classes):
        table[label, list(members)] = True
    return table


def fisher_discriminative(embeddings: Tensor) -> Tensor:
    """Scatter of each class's embeddings (B, N, C) over the batch, over the distance between classes.

    Zero for a batch of one and for a single class.
    """
    batch, classes, _ = embeddings.shape
    if batch < 2 or classes < 2:
        return embeddings.new_zeros(())
    means = embeddings.mean(0)  # (N, C)
    within = (embeddings - means).square().sum(-1).mean()
    first, second = torch.triu_indices(classes, classes, offset=1, device=embeddings.device)
    between = (means[first] - means[second]).square().sum(-1).mean().clamp(min=1e-4)
    return within / (between + 1e-6)


def label_loss(labels: Tensor, smoothing: float, sets: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return the loss of logits (B, N, H, W) on labels (B, H, W): cross-entropy and Dice, or `set_loss`."""
    if sets is None:
        return lambda logits: cross_entropy(logits, labels, smoothing) + dice(logits, labels)
    allowed = sets[labels].permute(0, 3, 1, 2)
    return lambda logits: set_loss(logits, allowed, smoothing)


def bicor_loss_parts(
    output: BicorTrainingOutput, labels: Tensor, weights: BicorLossWeights, sets: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the weighted parts of the training loss, of int64 labels (B, H, W); 255 is ignored.

    `sets` is `class_sets` of labels that may be of several classes; `set_loss` is then in place of
    cross-entropy and Dice.
    """
    main = auxiliary = label_loss(labels, weights.smoothing, sets)
    if sets is None:
        auxiliary = partial(cross_entropy, labels=labels, smoothing=weights.smoothing)

    heatmap_loss = output.logits.new_zeros(())
    small_loss = output.logits.new_zeros(())
    fisher_loss = weights.fisher_last * fisher_discriminative(output.class_embeddings[-1])
    for heatmaps, embeddings in zip(output.heatmaps, output.class_embeddings, strict=True):
        resized = F.interpolate(heatmaps, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        heatmap_loss = heatmap_loss + weights.heatmaps * main(resized)
        fisher_loss = fisher_loss + weights.fisher * fisher_discriminative(embeddings)
        small_loss = small_loss + weights.embeddings * embeddings.square().mean()
    return {
        "main": main(output.logits),
        "auxiliary": weights.auxiliary * auxiliary(output.auxiliary_logits),
        "heatmaps": heatmap_loss,
        "fisher": fisher_loss,
        "embeddings": small_loss,
    }


class DinoAlignment(nn.Module):
    """Alignment of a refiner's `channels` features to DINOv2's patch tokens, by a trained projection.

    For `Idgbr.refiner_losses`. `weights` are safetensors of `encoder` as timm names them (DINOv2's are
    Apache-2.0); the encoder is frozen.
    """

    def __init__(self, weights: Path, channels: int, encoder: str = "vit_small_patch14_dinov2") -> None:
        import timm

        super().__init__()
        self.encoder: Any = timm.create_model(encoder, num_classes=0, dynamic_img_size=True)
        self.encoder.requires_grad_(False)
        try:
            self.encoder.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError) as err:
            raise ValueError(f"{weights}: no weights of timm's {encoder} ({err})") from err
        self.projection = nn.Conv2d(channels, cast(Any, self.encoder).num_features, 1)

    def _normalised(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (MEAN, STD))
        return (image * 0.5 + 0.5 - mean) / std

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """1 - cosine of projected features (B, C, h, w) and tokens of the image (B, 3, H, W) in [-1, 1]."""
        return 1 - F.cosine_similarity(self.projection(features), self._tokens(image, features), dim=1).mean()

    @torch.no_grad()
    def _tokens(self, image: Tensor, features: Tensor) -> Tensor:
        """Mean token of each feature pixel, (B, D, h, w)."""
        rows, cols = (TOKENS * side for side in features.shape[-2:])
        patch = self.encoder.patch_embed.patch_size[0]
        pixels = F.interpolate(
            image, size=(rows * patch, cols * patch), mode="bilinear", align_corners=False, antialias=True
        )
        self.encoder.eval()
        tokens = self.encoder.forward_features(self._normalised(pixels))[:, self.encoder.num_prefix_tokens :]
        return F.avg_pool2d(tokens.transpose(1, 2).unflatten(2, (rows, cols)), TOKENS)
