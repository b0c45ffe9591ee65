"""Scores from a confusion matrix: by hand, and against torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsseg_cli.evaluation.metrics import (
    Reliability,
    confusion_matrix,
    count_confusion,
    ratio,
    scores_of,
    without_nan,
)

# Two classes, nine labelled pixels of ten; one labelled pixel is mapped as no class (2).
#   truth  0 0 0 0 0 1 1 1 1 -       class 0: 4 hits, 5 true, 5 mapped: IoU 4/6, F1 8/10
#   map    0 0 0 0 2 1 1 1 0 1       class 1: 3 hits, 4 true, 3 mapped: IoU 3/4, F1 6/7
TRUTH = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 255], np.uint8)
MAPPED = np.array([0, 0, 0, 0, 2, 1, 1, 1, 0, 1], np.uint8)


def test_every_score_by_hand() -> None:
    matrix = count_confusion(MAPPED, TRUTH, 2)
    assert matrix.tolist() == [[4, 0, 1], [1, 3, 0]]
    scores = scores_of(matrix)
    assert scores["iou"] == pytest.approx([4 / 6, 3 / 4])
    assert scores["f1"] == pytest.approx([8 / 10, 6 / 7])
    assert scores["precision"] == pytest.approx([4 / 5, 3 / 3])
    assert scores["recall"] == pytest.approx([4 / 5, 3 / 4])
    assert scores["miou"] == pytest.approx((4 / 6 + 3 / 4) / 2)
    assert scores["mean_f1"] == pytest.approx((8 / 10 + 6 / 7) / 2)
    assert scores["overall_accuracy"] == pytest.approx(7 / 9)
    chance = (5 * 5 + 4 * 3) / 81  # true x mapped of each class
    assert scores["kappa"] == pytest.approx((7 / 9 - chance) / (1 - chance))


def test_whatever_is_no_class_is_wrong() -> None:
    mapped = np.array([0, 2, 200, 255, -3], np.int16)
    assert count_confusion(mapped, np.zeros(5, np.uint8), 2).tolist() == [[1, 0, 4], [0, 0, 0]]


def test_out_of_means_keeps_its_pixels_in_everything_else() -> None:
    """Clutter (2) is half mistaken for class 0, whose IoU falls by it; the means are over classes 0 and 1."""
    matrix = np.array([[6, 0, 0, 0], [0, 4, 0, 0], [2, 0, 2, 0]])
    scores = scores_of(matrix, out_of_means=(2,))
    assert scores["iou"] == pytest.approx([6 / 8, 1, 2 / 4])
    assert scores["miou"] == pytest.approx((6 / 8 + 1) / 2)
    assert scores["mean_f1"] == pytest.approx((12 / 14 + 1) / 2)
    assert scores["overall_accuracy"] == pytest.approx(12 / 14)
    assert {name: value for name, value in scores.items() if "m" not in name} == {
        name: value for name, value in scores_of(matrix).items() if "m" not in name
    }


def test_classes_that_one_side_or_none_holds() -> None:
    """0 in both, 1 in the labels alone, 2 in the map alone, 3 in neither."""
    scores = scores_of(np.array([[5, 0, 1, 0, 0], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    assert scores["iou"] == pytest.approx([5 / 8, 0, 0, math.nan], nan_ok=True)
    assert scores["precision"] == pytest.approx([5 / 7, math.nan, 0, math.nan], nan_ok=True)
    assert scores["recall"] == pytest.approx([5 / 6, 0, math.nan, math.nan], nan_ok=True)
    assert scores["miou"] == pytest.approx(5 / 8 / 3)


def test_no_pixels_and_one_class_alone() -> None:
    nothing = scores_of(np.zeros((2, 3), np.int64))
    assert all(math.isnan(nothing[name]) for name in ("miou", "mean_f1", "overall_accuracy", "kappa"))
    alone = scores_of(np.array([[7, 0, 0], [0, 0, 0]]))
    assert alone["overall_accuracy"] == alone["miou"] == 1
    assert math.isnan(alone["kappa"])


def test_tensors_give_the_same_as_arrays() -> None:
    actual, labels = np.random.default_rng(0).integers(0, 4, (2, 500))
    labels[::7] = 255
    counted = confusion_matrix(torch.from_numpy(actual), torch.from_numpy(labels), 4)
    assert counted.tolist() == count_confusion(actual, labels.astype(np.uint8), 4)[:, :4].tolist()
    assert scores_of(counted) == scores_of(counted.numpy())


def test_large_counts_do_not_overflow() -> None:
    scores = scores_of(np.array([[10**12, 10**11, 0], [0, 10**12, 0]]))
    assert scores["overall_accuracy"] == pytest.approx(20 / 21)
    assert 0 < scores["kappa"] < 1


def random_maps(seed: int, classes: int, size: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Labels of uneven frequency, some unlabelled, and a map that is right half of the time."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(classes))
    truth = rng.choice(classes, size, p=shares)
    mapped = np.where(rng.random(size) < 0.5, truth, rng.integers(0, classes, size))
    truth[rng.random(size) < 0.2] = 255
    return mapped.astype(np.uint8), truth.astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchmetrics(seed: int) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    mapped, truth = random_maps(seed, 5)
    scores = scores_of(count_confusion(mapped, truth, 5))
    actual, labels = torch.from_numpy(mapped).long(), torch.from_numpy(truth).long()

    def theirs(name: str, **options: str) -> np.ndarray:
        metric = getattr(torchmetrics, name)(num_classes=5, ignore_index=255, **options)
        return metric(actual, labels).numpy()

    assert scores["iou"] == pytest.approx(theirs("MulticlassJaccardIndex", average="none"), abs=1e-6)
    assert scores["miou"] == pytest.approx(theirs("MulticlassJaccardIndex"), abs=1e-6)
    assert scores["f1"] == pytest.approx(theirs("MulticlassF1Score", average="none"), abs=1e-6)
    assert scores["mean_f1"] == pytest.approx(theirs("MulticlassF1Score"), abs=1e-6)
    assert scores["kappa"] == pytest.approx(theirs("MulticlassCohenKappa"), abs=1e-6)
    assert scores["overall_accuracy"] == pytest.approx(
        theirs("MulticlassAccuracy", average="micro"), abs=1e-6
    )


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    mapped, truth = random_maps(seed, 6)
    matrix = count_confusion(mapped, truth, 6)
    known, labels = truth != 255, list(range(6))
    assert (sklearn.confusion_matrix(truth[known], mapped[known], labels=labels) == matrix[:, :6]).all()
    scores = scores_of(matrix)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        truth[known], mapped[known], labels=labels, zero_division=np.nan
    )
    assert scores["precision"] == pytest.approx(precision, nan_ok=True)
    assert scores["recall"] == pytest.approx(recall, nan_ok=True)
    assert scores["f1"] == pytest.approx(f1, nan_ok=True)
    assert (matrix.sum(1) == support).all()
    assert scores["kappa"] == pytest.approx(sklearn.cohen_kappa_score(truth[known], mapped[known]))


@pytest.mark.parametrize("seed", range(3))
def test_pixels_of_no_class_are_a_further_class_to_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    mapped, truth = random_maps(seed, 4)
    mapped[::9] = 4
    scores, known = scores_of(count_confusion(mapped, truth, 4)), truth != 255
    theirs = sklearn.jaccard_score(truth[known], mapped[known], labels=[0, 1, 2, 3], average=None)
    assert scores["iou"] == pytest.approx(theirs)
    assert scores["kappa"] == pytest.approx(sklearn.cohen_kappa_score(truth[known], mapped[known]))
    assert scores["overall_accuracy"] == pytest.approx((truth == mapped)[known].mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 254), st.integers(1, 400))
def test_parts_add_up(seed: int, classes: int, cut: int) -> None:
    mapped, truth = random_maps(seed, classes, 400)
    parts = [count_confusion(mapped[part], truth[part], classes) for part in (slice(cut), slice(cut, None))]
    whole = count_confusion(mapped, truth, classes)
    assert (sum(parts) == whole).all()
    assert whole.sum() == (truth != 255).sum()


def test_nothing_over_nothing_and_something_over_nothing_are_nan() -> None:
    assert ratio([0, 1, 1], [0, 0, 2]) == pytest.approx([math.nan, math.nan, 0.5], nan_ok=True)


def test_numbers_that_json_lacks_become_none() -> None:
    values = {"a": (1, math.nan, [math.inf, 0.5]), 2: "nan", "none": None}
    assert without_nan(values) == {"a": [1, None, [None, 0.5]], "2": "nan", "none": None}


def test_reliability_by_hand() -> None:
    """Of 15 bins three hold pixels: 0 in the first, 127 of 254 in the eighth, 254 in the last."""
    confidence = np.array([0, 127, 127, 254, 254, 255, 254], np.uint8)  # 255 is no data
    right = np.array([0, 1, 1, 1, 0, 1, 1], bool)
    known = np.array([1, 1, 1, 1, 1, 1, 0], bool)
    reliability = Reliability()
    assert reliability.summary() is None
    for part in (np.s_[:4], np.s_[4:]):
        reliability.add(confidence[part], right[part], known[part])
    found = reliability.summary()
    assert found is not None
    assert found["pixels"] == 5
    assert found["mean_confidence"] == pytest.approx((2 * 0.5 + 2 * 1) / 5)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["ece"] == pytest.approx((2 / 5) * abs(1 - 0.5) + (2 / 5) * abs(0.5 - 1))
    filled = {k: tuple(row.values()) for k, row in enumerate(found["bins"]) if row["pixels"]}
    assert filled == {
        0: pytest.approx((0, 1 / 15, 1, 0, 0)),
        7: pytest.approx((7 / 15, 8 / 15, 2, 0.5, 1)),
        14: pytest.approx((14 / 15, 1, 2, 1, 0.5)),
    }
    assert len(found["bins"]) == 15
    assert found["bins"][1]["confidence"] is found["bins"][1]["accuracy"] is None
