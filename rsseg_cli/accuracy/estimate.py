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

Areas have normal intervals, as published; of clusters, those of accuracies. Accuracies near 1, of a class
that few units hold, are skewed, so theirs are normal on the logit scale, with the variance of the jackknife,
which does not shrink as V(R) does where few units have x. Without an error found, or with errors alone, the
end is that of Clopper and Pearson (1934) for the effective number of units in X, (sum x)^2 / sum x^2 with
weighted x.

Source: Korn and Graubard (1998), "Confidence intervals for proportions with small expected number of positive
counts estimated from survey data", Survey Methodology 24; Shao and Tu (1995), "The Jackknife and Bootstrap".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SMALLEST = 1e-9  # share of a total that is left without a unit
MAX_LOGIT = 700.0  # whose exponential is finite


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error; NaN where it is not defined.

    Attributes:
        jackknife_error: of a share, by which the interval is made.
        units: effective number of units that the share is of.
        whole: of which the value is a share.
    """

    value: float
    standard_error: float
    jackknife_error: float = np.nan
    units: float = np.nan
    whole: float = 1.0

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends of a share's interval within 0 and the whole; of others, not below 0."""
        reach = NormalDist().inv_cdf(0.5 + level / 2)
        if np.isnan(self.units):
            reach *= self.standard_error
            return max(0.0, self.value - reach), self.value + reach
        share = self.value / self.whole
        if not 0 < share < 1:
            end = (0.5 - level / 2) ** (1 / self.units)
            return (0.0, (1 - end) * self.whole) if share <= 0 else (end * self.whole, self.whole)
        odds = share / (1 - share)
        factor = math.exp(min(reach * self.jackknife_error / (share * (1 - share)), MAX_LOGIT))
        return self.whole * odds / (odds + factor), self.whole * odds * factor / (odds * factor + 1)

    def scaled(self, factor: float) -> Estimate:
        value, error, whole = (part * factor for part in (self.value, self.standard_error, self.whole))
        return replace(self, value=value, standard_error=error, whole=whole)

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
        [total.of((sample.mapped == row) & (sample.truth == col)) for col in range(classes)]
        for row in range(classes)
    ]
    users, producers, f1, areas = [], [], [], []
    for index in range(classes):
        mapped, truth = sample.mapped == index, sample.truth == index
        both = mapped & truth
        users.append(total.ratio(both, mapped))
        producers.append(total.ratio(both, truth))
        f1.append(total.ratio(2.0 * both, mapped.astype(np.float64) + truth))
        share = total.ratio(truth, one)
        share = share if sample.cluster is not None else replace(share, units=np.nan)
        areas.append(share.scaled(sample.area_m2))
    return Accuracy(
        counts=counts,
        proportions=np.array(cells) / total.of(one),
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

    def of(self, values: NDArray[Any]) -> float:
        """Return the total of a value of pixels, in shares of the area."""
        sums = np.bincount(self._unit, values, self._units)
        return float(
            sum(w * sums[members].mean() for w, members in zip(self._weights, self._members, strict=True))
        )

    def ratio(self, of: NDArray[Any], to: NDArray[Any]) -> Estimate:
        whole, part = self.of(to), self.of(of)
        if whole == 0:
            return Estimate(value=np.nan, standard_error=np.nan)
        y, x = (np.bincount(self._unit, values, self._units) for values in (of, to))
        value = part / whole
        variance = jackknife = squares = 0.0
        for w, members in zip(self._weights, self._members, strict=True):
            n, ys, xs = len(members), y[members], x[members]
            rest = ys - value * xs
            squares += (w / n) ** 2 * (xs**2).sum()
            if n > 1:
                variance += w**2 * rest.var(ddof=1) / n
                left = whole + w * (xs.mean() - xs) / (n - 1)  # without each unit in turn
                known = left > SMALLEST * whole
                changes = (part + w * (ys.mean() - ys) / (n - 1))[known] / left[known] - value
                jackknife += (n - 1) / n * (changes**2).sum()
            elif rest.any():
                variance = np.nan
        return Estimate(
            value=float(value),
            standard_error=float(np.sqrt(variance) / whole),
            jackknife_error=float(np.sqrt(jackknife)),
            units=float(whole**2 / squares),
        )
