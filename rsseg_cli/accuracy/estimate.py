"""Accuracy and area from a probability sample: stratified ratio estimators.

Source: Olofsson et al. (2014), "Good practices for estimating area and assessing accuracy of land change",
Remote Sensing of Environment 148; Stehman (2014), "Estimating area and map accuracy for stratified random
sampling when the strata are different from the map classes", International Journal of Remote Sensing 35.

Every figure is a ratio R = Y / X of two population totals. With strata h of area W_h, n_h sampled units each
and unit means y, x,

    R = sum W_h y_h / sum W_h x_h
    V(R) = sum W_h^2 (s_yh^2 + R^2 s_xh^2 - 2 R s_xyh) / n_h / X^2

which is Olofsson's equations where the strata are the mapped classes, and the one-stage cluster estimator
where a unit is a cluster. Finite populations are not corrected for.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error; NaN where it is not defined."""

    value: float
    standard_error: float

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends of the normal interval, not below 0."""
        reach = NormalDist().inv_cdf(0.5 + level / 2) * self.standard_error
        return max(0.0, self.value - reach), self.value + reach

    def scaled(self, factor: float) -> Estimate:
        return Estimate(value=self.value * factor, standard_error=self.standard_error * factor)

    def as_dict(self, level: float) -> dict[str, Any]:
        """Return value, standard error and interval, None where not defined."""
        if not np.isfinite(self.value):
            return {"value": None, "standard_error": None, "interval": None}
        if not np.isfinite(self.standard_error):
            return {"value": self.value, "standard_error": None, "interval": None}
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval": list(self.interval(level)),
        }


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Checked pixels and what they stand for.

    Attributes:
        mapped, truth: class of each pixel, 0 to N - 1.
        stratum: of each pixel, index into `areas_m2`.
        cluster: number of each pixel's cluster; None where pixels were drawn one by one.
        areas_m2: area of each stratum.
    """

    mapped: Ints
    truth: Ints
    stratum: Ints
    areas_m2: Floats
    cluster: Ints | None = None

    @property
    def area_m2(self) -> float:
        return float(self.areas_m2.sum())

    def units(self) -> tuple[Ints, Ints]:
        """Return the unit of each pixel, from 0, and the stratum of each unit."""
        if self.cluster is None:
            return np.arange(len(self.truth)), self.stratum
        _, first, unit = np.unique(self.cluster, return_index=True, return_inverse=True)
        return unit, self.stratum[first]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Estimates of a sample with N classes.

    Attributes:
        counts: int64 (N, N), pixels by mapped class (rows) and truth.
        proportions: (N, N), of the area likewise; sums to 1.
        users, producers, f1, areas_m2: by class.
    """

    counts: Ints
    proportions: Floats
    overall: Estimate
    users: list[Estimate]
    producers: list[Estimate]
    f1: list[Estimate]
    areas_m2: list[Estimate]


def estimate(sample: Sample, classes: int) -> Accuracy:
    """Estimate accuracies and class areas.

    Raises:
        ValueError: a stratum has no unit.
    """
    total = _Totals(sample)
    one = np.ones(len(sample.truth))
    agree = (sample.mapped == sample.truth).astype(np.float64)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (sample.mapped, sample.truth), 1)
    cells = [
        [total.ratio((sample.mapped == row) & (sample.truth == col), one).value for col in range(classes)]
        for row in range(classes)
    ]
    users, producers, f1, areas = [], [], [], []
    for index in range(classes):
        mapped, truth = sample.mapped == index, sample.truth == index
        both = mapped & truth
        users.append(total.ratio(both, mapped))
        producers.append(total.ratio(both, truth))
        f1.append(total.ratio(2.0 * both, mapped.astype(np.float64) + truth))
        areas.append(total.ratio(truth, one).scaled(sample.area_m2))
    return Accuracy(
        counts=counts,
        proportions=np.array(cells),
        overall=total.ratio(agree, one),
        users=users,
        producers=producers,
        f1=f1,
        areas_m2=areas,
    )


class _Totals:
    """Ratios of totals over the strata."""

    def __init__(self, sample: Sample) -> None:
        self._unit, stratum = sample.units()
        self._members = [np.flatnonzero(stratum == h) for h in range(len(sample.areas_m2))]
        self._units = len(stratum)
        empty = [h for h, members in enumerate(self._members) if not len(members)]
        if empty:
            raise ValueError(f"stratum {empty[0]} has no unit")
        self._weights = sample.areas_m2 / sample.area_m2
        if sample.cluster is not None:  # a stratum holds as many units as its area has room for
            sizes = np.bincount(self._unit)
            self._weights = self._weights / [sizes[members].mean() for members in self._members]

    def ratio(self, of: NDArray[Any], to: NDArray[Any]) -> Estimate:
        y, x = (np.bincount(self._unit, values, self._units) for values in (of, to))
        whole = sum(w * x[members].mean() for w, members in zip(self._weights, self._members, strict=True))
        if whole == 0:
            return Estimate(value=np.nan, standard_error=np.nan)
        part = sum(w * y[members].mean() for w, members in zip(self._weights, self._members, strict=True))
        value = part / whole
        variance = 0.0
        for w, members in zip(self._weights, self._members, strict=True):
            rest = y[members] - value * x[members]
            if len(members) > 1:
                variance += w**2 * rest.var(ddof=1) / len(members)
            elif rest.any():
                variance = np.nan
        return Estimate(value=float(value), standard_error=float(np.sqrt(variance) / whole))
