"""Accuracy and area from a probability sample: stratified ratio estimators.

Source: Olofsson et al. (2014), "Good practices for estimating area and assessing accuracy of land change",
Remote Sensing of Environment 148; Stehman (2014), "Estimating area and map accuracy for stratified random
sampling when the strata are different from the map classes", International Journal of Remote Sensing 35.

Every figure is a ratio R = Y / X of two population totals. With strata h of area W_h, n_h sampled units each
and unit means y, x,

    R = sum W_h y_h / sum W_h x_h
    V(R) = sum W_h^2 (s_yh^2 + R^2 s_xh^2 - 2 R s_xyh) / n_h / X^2

which is Olofsson's equations where the strata are the mapped classes, and the one-stage cluster estimator
where a unit is a cluster. Finite populations are not corrected for. V(R) is too small where few clusters have
x: the squared residual of each cluster is divided by 1 - its share of X (Bell and McCaffrey).

Areas from points have normal intervals, as published. Those of accuracies are skewed near 0 and 1: from
points they are Wilson's, for the effective number of points R (1 - R) / V(R) (Dean and Pagano); from clusters
they are Student's on the logit scale, as are those of areas, with as many degrees of freedom as clusters less
strata (Korn and Graubard). Without an error found, or with errors alone, the end is that of Clopper and
Pearson (1934) for the effective number of units in X, (sum x)^2 / sum x^2 with weighted x.

Source: Bell and McCaffrey (2002), "Bias reduction in standard errors for linear regression with multi-stage
samples", Survey Methodology 28; Dean and Pagano (2015), "Evaluating confidence interval methods for binomial
proportions in clustered surveys", Journal of Survey Statistics and Methodology 3; Korn and Graubard (1998),
"Confidence intervals for proportions with small expected number of positive counts estimated from survey
data", Survey Methodology 24.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MAX_SHARE = 1 - 1e-9  # of a total that one unit has
MAX_LOGIT = 700.0  # whose exponential is finite


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error; NaN where it is not defined.

    Attributes:
        units: effective number of units that a share is of; NaN has a normal interval.
        degrees: of freedom; None where units are points.
        whole: of which the value is a share.
    """

    value: float
    standard_error: float
    units: float = np.nan
    degrees: int | None = None
    whole: float = 1.0

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends of a share's interval within 0 and the whole; of others, not below 0."""
        quantile = 0.5 + level / 2
        reach = NormalDist().inv_cdf(quantile)
        if np.isnan(self.units):
            reach *= self.standard_error
            return max(0.0, self.value - reach), self.value + reach
        share, error = self.value / self.whole, self.standard_error / self.whole
        if share <= 0:
            low, high = 0.0, 1 - (1 - quantile) ** (1 / self.units)
        elif share >= 1:
            low, high = (1 - quantile) ** (1 / self.units), 1.0
        elif self.degrees is None:
            low, high = _wilson(share, error, reach)
        else:
            low, high = _logit(share, error, float(stdtrit(self.degrees, quantile)))
        return low * self.whole, high * self.whole

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


def _wilson(share: float, error: float, reach: float) -> tuple[float, float]:
    per_unit = reach**2 * error**2 / (share * (1 - share))
    middle = (share + per_unit / 2) / (1 + per_unit)
    half = math.sqrt((reach * error) ** 2 + per_unit**2 / 4) / (1 + per_unit)
    return middle - half, middle + half


def _logit(share: float, error: float, reach: float) -> tuple[float, float]:
    odds = share / (1 - share)
    factor = math.exp(min(reach * error / (share * (1 - share)), MAX_LOGIT))
    return odds / (odds + factor), odds * factor / (odds * factor + 1)


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
    counts = np.zeros((classes, classes), np.int64)
    proportions = np.zeros((classes, classes))
    np.add.at(counts, (sample.mapped, sample.truth), 1)
    np.add.at(proportions, (sample.mapped, sample.truth), total.weights)
    every = np.arange(classes)[:, np.newaxis]
    mapped, truth = (sample.mapped == every).astype(np.float64), (sample.truth == every).astype(np.float64)
    both, one = mapped * truth, np.ones_like(truth)
    areas = [share.scaled(sample.area_m2) for share in total.ratios(truth, one)]
    return Accuracy(
        counts=counts,
        proportions=proportions / proportions.sum(),
        overall=total.ratios(both.sum(0, keepdims=True), one[:1])[0],
        users=total.ratios(both, mapped),
        producers=total.ratios(both, truth),
        f1=total.ratios(2 * both, mapped + truth),
        areas_m2=areas if sample.cluster is not None else [replace(area, units=np.nan) for area in areas],
    )


class _Totals:
    """Ratios of totals over the strata.

    Attributes:
        weights: share of the area that each pixel stands for.
    """

    def __init__(self, sample: Sample) -> None:
        self._unit, stratum = sample.units()
        self._members = [np.flatnonzero(stratum == h) for h in range(len(sample.areas_m2))]
        numbers = np.array([len(members) for members in self._members])
        if not numbers.all():
            raise ValueError(f"stratum {int(numbers.argmin())} has no unit")
        shares = sample.areas_m2 / sample.area_m2
        self._clusters = sample.cluster is not None
        if self._clusters:  # a stratum holds as many units as its area has room for
            sizes = np.bincount(self._unit)
            shares = shares / [sizes[members].mean() for members in self._members]
        self._per_unit = shares / numbers
        self.weights: Floats = self._per_unit[sample.stratum]

    def _of_units(self, values: Floats) -> Floats:
        """Sum the values of pixels (N, pixels) by unit."""
        if not self._clusters:
            return values
        return np.stack([np.bincount(self._unit, row) for row in values])

    def ratios(self, of: Floats, to: Floats) -> list[Estimate]:
        """Estimate ratios of totals of values of pixels, each (N, pixels)."""
        part, whole = of @ self.weights, to @ self.weights
        y, x = self._of_units(of), self._of_units(to)
        variance, squares = np.zeros(len(part)), np.zeros(len(part))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = part / whole
            for w, members in zip(self._per_unit, self._members, strict=True):
                n, xs = len(members), x[:, members]
                squares += w**2 * (xs**2).sum(1)
                if n == 1:
                    variance[xs.any(1)] = np.nan
                    continue
                rest = y[:, members] - value[:, np.newaxis] * xs
                rest -= rest.mean(1, keepdims=True)
                if self._clusters:
                    rest /= np.sqrt(1 - np.minimum(w * xs / whole[:, np.newaxis], MAX_SHARE))
                variance += w**2 * n / (n - 1) * (rest**2).sum(1)
            error, units = np.sqrt(variance) / whole, whole**2 / squares
        degrees = y.shape[1] - len(self._members) if self._clusters else None
        return [
            Estimate(value=float(v), standard_error=float(e), units=float(u), degrees=degrees)
            for v, e, u in zip(value, error, units, strict=True)
        ]
