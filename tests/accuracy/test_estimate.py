"""Estimators: published examples, and intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from rsseg_cli.accuracy.estimate import Accuracy, Estimate, Sample, estimate

Z95 = 1.959964
# Olofsson et al. (2014), table 8: deforestation, forest gain, stable forest, stable non-forest; map by truth.
OLOFSSON_COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
OLOFSSON_PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
PIXEL_M2 = 900.0


def sample_of(counts: np.ndarray, areas: np.ndarray) -> Sample:
    mapped, truth = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    return Sample(mapped=mapped, truth=truth, stratum=mapped, areas_m2=areas.astype(float))


def olofsson() -> Accuracy:
    return estimate(sample_of(OLOFSSON_COUNTS, OLOFSSON_PIXELS * PIXEL_M2), 4)


def test_areas_are_those_that_olofsson_published() -> None:
    deforestation = olofsson().areas_m2[0]

    assert deforestation.value / PIXEL_M2 == pytest.approx(235_086, abs=1)
    low, high = deforestation.interval(0.95)
    assert (high - low) / 2 / PIXEL_M2 == pytest.approx(68_418, rel=2e-4)


def test_accuracies_are_those_that_olofsson_published() -> None:
    accuracy = olofsson()

    def two_digits(values: list) -> list[tuple[float, float]]:
        return [(round(item.value, 2), round(Z95 * item.standard_error, 2)) for item in values]

    assert two_digits([accuracy.overall]) == [(0.95, 0.02)]
    assert two_digits(accuracy.users) == [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    assert [round(item.value, 2) for item in accuracy.producers] == [0.75, 0.85, 0.93, 0.96]
    assert accuracy.counts.tolist() == OLOFSSON_COUNTS.tolist()
    assert accuracy.proportions.sum() == pytest.approx(1)
    assert accuracy.proportions[0].round(4).tolist() == [0.0176, 0, 0.0013, 0.0011]


# Stehman (2014), table 2: strata of 40,000, 30,000, 20,000 and 10,000 units, not the map's classes.
STRATA = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
MAPPED = "AAAAAAABBB" + "ABBBBBBBBB" + "BBCCCCCCBB" + "DDDDDDDDDD"
TRUTH = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"


def test_strata_that_are_not_the_mapped_classes_give_what_stehman_published() -> None:
    stratum, mapped, truth = (
        np.array(["ABCD".index(name) for name in names]) for names in (STRATA, MAPPED, TRUTH)
    )
    areas = np.array([40_000.0, 30_000, 20_000, 10_000])

    accuracy = estimate(Sample(mapped=mapped, truth=truth, stratum=stratum, areas_m2=areas), 4)

    def rounded(item: Estimate, digits: int = 3) -> tuple[float, float]:
        return round(item.value, digits), round(item.standard_error, 3)

    assert rounded(accuracy.overall) == (0.63, 0.085)
    assert rounded(accuracy.users[1]) == (0.574, 0.125)
    assert rounded(accuracy.producers[1]) == (0.794, 0.117)
    assert rounded(accuracy.areas_m2[0].scaled(1e-5)) == (0.35, 0.082)
    assert rounded(accuracy.areas_m2[2].scaled(1e-5)) == (0.20, 0.064)
    assert round(accuracy.proportions[1, 2], 2) == 0.08


def drawn_population(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Map and truth of 200 x 200 px, three classes of 8, 32 and 60 %, 85 % agreement in patches."""
    truth = np.repeat(np.repeat(rng.choice(3, (50, 50), p=(0.08, 0.32, 0.6)), 4, 0), 4, 1)
    wrong = np.repeat(np.repeat(rng.random((100, 100)) < 0.15, 2, 0), 2, 1)
    return np.where(wrong, (truth + rng.integers(1, 3, truth.shape)) % 3, truth), truth


def figures(accuracy: Accuracy) -> list:
    return [accuracy.overall, *accuracy.users, *accuracy.producers, *accuracy.f1, *accuracy.areas_m2]


def true_figures(mapped: np.ndarray, truth: np.ndarray) -> list[float]:
    whole = estimate(Sample(mapped=mapped.ravel(), truth=truth.ravel(), stratum=np.zeros(mapped.size, int),
                            areas_m2=np.array([float(mapped.size)])), 3)  # fmt: skip
    return [item.value for item in figures(whole)]


@pytest.mark.parametrize("design", ["stratified", "random", "cluster"])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent(design: str) -> None:
    rng = np.random.default_rng(5)
    mapped, truth = drawn_population(rng)
    wanted = true_figures(mapped, truth)
    runs, held = 1000, np.zeros(len(wanted))
    strata = [np.flatnonzero(mapped.ravel() == index) for index in range(3)]
    blocks = np.arange(mapped.size).reshape(40, 5, 40, 5).swapaxes(1, 2).reshape(1600, 25)
    for _ in range(runs):
        cluster = None
        if design == "stratified":
            chosen = np.concatenate([rng.choice(members, 250, replace=False) for members in strata])
            stratum, areas = mapped.ravel()[chosen], np.array([float(len(members)) for members in strata])
        elif design == "random":
            chosen = rng.choice(mapped.size, 900, replace=False)
            stratum, areas = np.zeros(len(chosen), int), np.array([float(mapped.size)])
        else:
            numbers = rng.choice(len(blocks), 120, replace=False)
            chosen, cluster = blocks[numbers].ravel(), np.repeat(numbers, 25)
            stratum, areas = np.zeros(len(chosen), int), np.array([float(mapped.size)])
        sample = Sample(mapped=mapped.ravel()[chosen], truth=truth.ravel()[chosen], stratum=stratum,
                        areas_m2=areas, cluster=cluster)  # fmt: skip
        for index, (item, value) in enumerate(zip(figures(estimate(sample, 3)), wanted, strict=True)):
            low, high = item.interval(0.95)
            held[index] += low <= value <= high

    assert 0.93 <= held.mean() / runs <= 0.97
    assert (held / runs).min() > 0.9


def test_a_stratum_of_one_unit_has_no_standard_error() -> None:
    sample = Sample(mapped=np.array([0, 1, 1]), truth=np.array([0, 1, 0]), stratum=np.array([0, 1, 1]),
                    areas_m2=np.array([1.0, 9.0]))  # fmt: skip

    accuracy = estimate(sample, 2)

    assert accuracy.overall.value == pytest.approx(0.55)
    assert np.isnan(accuracy.overall.standard_error)
    assert accuracy.overall.as_dict(0.95)["interval"] is None
