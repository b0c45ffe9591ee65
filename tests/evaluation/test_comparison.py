"""Differences of two models: known answers, and intervals that hold what they promise."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from rsseg_cli.errors import DataError
from rsseg_cli.evaluation.comparison import compare

NAMES = ("roof", "ground")


def tile(index, matrix, scene="a"):
    """A tile with the confusion of `matrix`, and no pixel outside the classes."""
    confusion = np.array(matrix, np.int64)
    if confusion.shape[0] == confusion.shape[1]:
        confusion = np.pad(confusion, ((0, 0), (0, 1)))
    return SimpleNamespace(scene=scene, row=0, col=index, confusion=confusion)


def test_scores_of_both_and_their_difference_by_hand():
    first = [tile(0, [[3, 1], [0, 4]]), tile(1, [[3, 1], [0, 4]])]
    second = [tile(1, [[2, 2], [2, 2]]), tile(0, [[2, 2], [2, 2]])]
    actual = compare(first, second, NAMES)
    assert [item.name for item in actual.rows()] == ["mIoU", "mean F1", "overall accuracy", *NAMES]
    roof, ground = actual.iou
    assert (roof.first, roof.second) == (3 / 4, 2 / 6)
    assert (ground.first, ground.second) == (4 / 5, 2 / 6)
    assert actual.f1[0].first == pytest.approx(6 / 7)
    assert actual.overall[0].difference == pytest.approx((3 / 4 + 4 / 5) / 2 - 1 / 3)
    assert actual.overall[2].difference == pytest.approx(7 / 8 - 4 / 8)
    # equal tiles: every resample is the same, the interval is the difference itself
    assert roof.interval == pytest.approx((roof.difference, roof.difference))
    assert not roof.holds_zero


def test_equal_models_hold_zero_everywhere():
    generator = np.random.default_rng(0)
    tiles = [tile(k, generator.integers(1, 50, (2, 2))) for k in range(30)]
    actual = compare(tiles, tiles, NAMES)
    assert all(
        item.interval == (0, 0) and item.holds_zero for item in (*actual.overall, *actual.iou, *actual.f1)
    )


def test_pixels_outside_the_classes_are_wrong():
    actual = compare([tile(0, [[3, 0, 1], [0, 4, 0]])], [tile(0, [[3, 1, 0], [0, 4, 0]])], NAMES)
    assert actual.iou[0].difference == 0  # roof lost one pixel in both
    assert actual.iou[1].difference == pytest.approx(4 / 4 - 4 / 5)  # but only the second called it ground


def test_classes_out_of_the_means_and_classes_that_do_not_occur():
    first, second = [tile(0, np.diag([2, 2, 0]))], [tile(0, [[1, 1, 0], [0, 2, 0], [0, 0, 0]])]
    actual = compare(first, second, ("roof", "ground", "sea"), out_of_means=(1,))
    assert math.isnan(actual.iou[2].first)
    assert math.isnan(actual.iou[2].interval[0])
    assert actual.iou[2].holds_zero
    assert (actual.overall[0].first, actual.overall[0].second) == (1, 0.5)  # roof alone
    stored = json.loads(json.dumps(actual.as_dict(), allow_nan=False))
    assert stored["iou"][2]["difference"] is None
    assert stored["tiles"] == 1


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter():
    generator = np.random.default_rng(1)
    first, second = ([tile(k, generator.integers(1, 90, (2, 2))) for k in range(25)] for _ in range(2))
    actual = compare(first, second, NAMES)
    assert compare(first, second, NAMES) == actual
    assert compare(first, second, NAMES, seed=1) != actual
    assert compare(first, second, NAMES, chunk_values=7000) == actual


def test_few_tiles_are_reported():
    tiles = [tile(k, [[5, 1], [1, 5]]) for k in range(20)]
    assert "few" not in compare(tiles, tiles, NAMES).explanation
    few = compare(tiles[:19], tiles[:19], NAMES, names=("old", "new"))
    assert few.few_tiles
    assert "19 tiles are few (under 20)" in few.explanation
    assert "old minus new" in few.explanation


def test_tiles_without_labels_do_not_count():
    tiles = [tile(0, [[1, 0], [0, 1]]), tile(1, [[0, 0], [0, 0]])]
    assert compare(tiles, tiles, NAMES).tiles == 1
    with pytest.raises(DataError, match="no tile holds labels"):
        compare(tiles[1:], tiles[1:], NAMES)


def test_other_tiles_are_an_error():
    with pytest.raises(DataError, match="1 tiles are not in both, first \\('b', 0, 0\\)"):
        compare(
            [tile(0, [[1, 0], [0, 1]])], [tile(0, [[1, 0], [0, 1]]), tile(0, [[1, 0], [0, 1]], "b")], NAMES
        )


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    """Tiles with their own difficulty, which both models share: what a percentage over pixels would miss."""
    generator = np.random.default_rng(5)
    size, tiles, rounds, pixels = (1.5, 2.0), 60, 200, 4000
    ease = generator.beta(6, 2, 400_000)
    truth = np.mean(ease ** size[0]) - np.mean(ease ** size[1])
    held = 0
    for _ in range(rounds):
        drawn = generator.beta(6, 2, tiles)
        right = [generator.binomial(pixels, drawn**power) for power in size]
        models = [
            [tile(k, [[count, pixels - count], [0, 0]]) for k, count in enumerate(counts)] for counts in right
        ]
        low, high = compare(*models, NAMES, resamples=500).overall[2].interval
        held += low <= truth <= high
    assert 0.90 <= held / rounds <= 0.99
