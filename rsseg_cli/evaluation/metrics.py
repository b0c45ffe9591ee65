"""Scores of a map against labels, from one confusion matrix; whether its confidences hold.

Rows are true classes, columns mapped ones; a last column counts pixels mapped as none of the classes, which
are wrong. Pixels without a label are in no cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.raster import classes as class_values

if TYPE_CHECKING:
    from torch import Tensor

FULL_SCALE = 254  # a confidence of 1 in uint8; 255 is no data
BINS = 15  # of confidences


def confusion_matrix(mapped: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count pixels by true (rows) and mapped class (columns), int64 (N, N); 255 in `labels` is left out."""
    cells = classes**2
    pairs = labels.long() * classes + mapped
    pairs = pairs.masked_fill(labels == class_values.IGNORE, cells).flatten()
    counts = pairs.new_zeros(cells + 1)  # no `bincount`, which waits for a GPU
    return counts.index_add_(0, pairs, pairs.new_ones(pairs.shape))[:cells].view(classes, classes)


def count_confusion(
    mapped: NDArray[np.integer], labels: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """Count the same of arrays, int64 (N, N + 1); the last column counts values beyond N - 1 in `mapped`."""
    labelled = labels != class_values.IGNORE
    columns = mapped[labelled].astype(np.int32)
    columns[(columns < 0) | (columns > classes)] = classes
    pairs = labels[labelled] * np.int32(classes + 1) + columns
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_scores(confusion: Any, out_of_means: Sequence[int] = ()) -> dict[str, NDArray[np.float64]]:
    """All scores of confusion matrices (..., N, N) or (..., N, N + 1), in memory (not on a GPU).

    IoU and F1 of a class are NaN where neither labels nor map hold it; such a class is left out of the means.
    A class that only one of both holds has 0. Precision is NaN where the map never has the class, recall
    where the labels never have it; kappa where both hold one and the same class alone.

    Args:
        out_of_means: classes that are left out of `miou` and `mean_f1`, and of nothing else.

    Returns:
        (...): miou, mean_f1, overall_accuracy, kappa; (..., N) by class: iou, f1, precision, recall.
    """
    matrix = np.asarray(confusion, np.float64)
    classes = matrix.shape[-2]
    hits, truth = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1)
    mapped, total = matrix.sum(-2)[..., :classes], truth.sum(-1)
    iou, f1 = ratio(hits, truth + mapped - hits), ratio(2 * hits, truth + mapped)
    counted = np.setdiff1d(np.arange(classes), out_of_means)
    agreement, chance = ratio(hits.sum(-1), total), ratio((truth * mapped).sum(-1), total**2)
    return {
        "miou": mean_of(iou[..., counted]),
        "mean_f1": mean_of(f1[..., counted]),
        "overall_accuracy": agreement,
        "kappa": ratio(agreement - chance, 1 - chance),
        "iou": iou,
        "f1": f1,
        "precision": ratio(hits, mapped),
        "recall": ratio(hits, truth),
    }


def scores_of(confusion: NDArray[np.integer] | Tensor, out_of_means: Sequence[int] = ()) -> dict[str, Any]:
    """`class_scores` of one matrix as numbers and lists."""
    return {name: values.tolist() for name, values in class_scores(confusion, out_of_means).items()}


def mean_of(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN of none."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def without_nan(values: Any) -> Any:
    """Replace NaN and infinite numbers, which JSON does not have, by None."""
    if isinstance(values, Mapping):
        return {str(key): without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """NaN where `whole` is 0."""
    above, below = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


class Reliability:
    """Counts pixels, and right ones, by confidence (uint8): whether confidences hold.

    Source: arXiv 1706.04599, equations 2, 3 and 5 to 9.
    """

    def __init__(self) -> None:
        self.pixels = np.zeros(FULL_SCALE + 1, np.int64)
        self.right = np.zeros(FULL_SCALE + 1, np.int64)

    def add(self, confidence: NDArray[np.uint8], right: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Count the pixels that have a label (`known`) and a confidence."""
        known = known & (confidence <= FULL_SCALE)
        for counts, chosen in ((self.pixels, known), (self.right, known & right)):
            counts += np.bincount(confidence[chosen], minlength=len(counts))

    def summary(self) -> dict[str, Any] | None:
        """Return the expected calibration error and its bins of equal width; None of no pixels."""
        total = int(self.pixels.sum())
        if not total:
            return None
        values = np.arange(FULL_SCALE + 1) / FULL_SCALE
        bin_of = np.minimum((values * BINS).astype(np.intp), BINS - 1)
        pixels, right, sums = (
            np.bincount(bin_of, weights, BINS) for weights in (self.pixels, self.right, self.pixels * values)
        )
        rows = [
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "pixels": int(pixels[index]),
                "confidence": sums[index] / pixels[index] if pixels[index] else None,
                "accuracy": right[index] / pixels[index] if pixels[index] else None,
            }
            for index in range(BINS)
        ]
        return {
            "ece": float(np.abs(right - sums).sum() / total),
            "mean_confidence": float(sums.sum() / total),
            "accuracy": float(right.sum() / total),
            "pixels": total,
            "bins": rows,
        }
