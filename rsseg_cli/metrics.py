"""Scores of a map against labels, from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

UNLABELLED = 255


@dataclass(frozen=True, kw_only=True)
class ScoringProtocol:
    """What of a data set counts, as its published results count it.

    Attributes:
        name: of the data set whose protocol this is; "" for one's own data.
        out_of_means: names of classes whose IoU and F1 do not enter the means (ISPRS: clutter).
        erode_px: labels within this distance of a border between classes are left out (ISPRS also
            publishes labels eroded by 3 px).
    """

    name: str = ""
    out_of_means: tuple[str, ...] = ()
    erode_px: int = 0


def confusion_matrix(found: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count pixels by true class (rows) and found class (columns), unlabelled ones left out.

    Args:
        found, labels: integers of the same shape; `labels` may hold 255, unlabelled.
        classes: N.

    Returns:
        int64 (N, N).
    """
    valid = labels != UNLABELLED
    pairs = labels[valid] * classes + found[valid]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores_of(confusion: Tensor) -> dict[str, Any]:
    """mIoU, mean F1, overall accuracy, and IoU and F1 by class.

    A class that neither labels nor map hold has NaN and is left out of the means.
    """
    matrix = confusion.double()
    hit, truth, found = matrix.diag(), matrix.sum(1), matrix.sum(0)
    either = truth + found - hit
    iou = torch.where(either > 0, hit / either.clamp(min=1), torch.nan)
    f1 = torch.where(either > 0, 2 * hit / (truth + found).clamp(min=1), torch.nan)
    return {
        "miou": float(iou.nanmean()),
        "mean_f1": float(f1.nanmean()),
        "overall_accuracy": float(hit.sum() / matrix.sum().clamp(min=1)),
        "iou": [float(value) for value in iou],
        "f1": [float(value) for value in f1],
    }
