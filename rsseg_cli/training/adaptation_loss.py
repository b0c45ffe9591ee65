"""What an adaptation minimises: labels, and what the model says where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.raster import classes as class_values

HEATMAPS = 0.1  # weights beside that of the labels: of the heatmaps,
DISTIL = 0.5  # of what the model says where nothing is labelled,
KEEP = 8.0  # of what it says on artificial scenes where it is right,
LEARN = 0.2  # and of their labels where it is wrong


def adaptation_loss(
    logits: Tensor,
    heatmaps: Sequence[Tensor],
    before: Tensor,
    labels: Tensor,
    is_drawn: Tensor,
    meaning: Tensor,
) -> Tensor:
    """Sum of the losses of a batch.

    Args:
        logits: (B, N, H, W).
        heatmaps: logits of each layer (B, N, h, w).
        before: shares of classes (B, N or fewer, H, W) that the model says.
        labels: (B, H, W), IGNORE where nothing is known.
        is_drawn: (B,), of artificial scenes, whose labels are complete.
        meaning: (N, N), shares of the classes that are meant where the model says a class.
    """
    own = torch.where(is_drawn.view(-1, 1, 1), class_values.IGNORE, labels)
    loss = _of_labels(logits, own)
    for heatmap in heatmaps:
        resized = F.interpolate(heatmap, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = loss + HEATMAPS * _of_labels(resized, own)
    shares, said = logits.log_softmax(1), before.argmax(1)
    before = F.pad(before, (0, 0, 0, 0, 0, shares.shape[1] - before.shape[1]))  # no share of new classes
    meant = meaning[said].permute(0, 3, 1, 2)
    trust = meant.gather(1, said[:, None])
    unknown = (own == class_values.IGNORE) & ~is_drawn.view(-1, 1, 1)
    change = F.kl_div(shares, trust * before + (1 - trust) * meant, reduction="none").sum(1)
    loss = loss + DISTIL * (change * unknown).sum() / unknown.sum().clamp(min=1)
    if is_drawn.any():
        wrong = F.cross_entropy(
            logits[is_drawn], labels[is_drawn], ignore_index=class_values.IGNORE, reduction="none"
        )
        change = F.kl_div(shares[is_drawn], before[is_drawn], reduction="none").sum(1)
        right = said[is_drawn] == labels[is_drawn]
        loss = loss + torch.where(right, KEEP * change, LEARN * wrong).mean()
    return loss


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, each class that occurs with the same weight."""
    counts = torch.bincount(labels.flatten(), minlength=256)[: logits.shape[1]].float()
    if not counts.any():
        return logits.sum() * 0
    weight = torch.where(counts > 0, 1 / counts.clamp(min=1), torch.zeros(()))
    return F.cross_entropy(logits, labels, weight, ignore_index=class_values.IGNORE, label_smoothing=0.02)
