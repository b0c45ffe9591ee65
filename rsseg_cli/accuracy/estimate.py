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

Areas from points have normal intervals, as published. Other shares are skewed near 0 and 1: accuracies from
points and areas from clusters have Wilson's, for the effective number of units R (1 - R) / V(R) (Dean and
Pagano); accuracies from clusters, whose X is random, have Student's on the logit scale. From clusters there
are as many degrees of freedom as clusters less strata (Korn and Graubard). Without an error found, or with
errors alone, the end is that of Clopper and Pearson (1934) for the effective number of units in X,
(sum x)^2 / sum x^2 with weighted x.

None of these holds what it says where few units carry the standard error. Their effective number is

    (sum r^2)^2 / (sum r^4 + u^4), r the weighted residual of a unit, y - R x less its stratum's mean

which for a share of unweighted points is the number of errors, or of what is right where that is less; u is
the residual that one unit would have in the heaviest stratum where none was found. Figures with fewer than
`FEW` are marked; normal intervals need `FEW_NORMAL`, Cochran's (1977) n > 25 G^2 for skewness G.

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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MAX_SHARE = 1 - 1e-9  # of a total that one unit has
MAX_LOGIT = 700.0  # whose exponential is finite
FEW, FEW_NORMAL = 5, 25  # units below which an interval, and one that is normal, may be too narrow
NO_RESIDUAL = 1e-18  # sum of squares, but for rounding


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error; NaN where it is not defined.

    Attributes:
        units: effective number of units that a share is of.
        degrees: of freedom; None where units are points.
        whole: of which the value is a share.
        support: effective number of units that the standard error rests on.
        points: checked in the strata that the figure comes from.
    """

    value: float
    standard_error: float
    method: Literal["normal", "wilson", "logit"] = "normal"
    units: float = np.nan
    degrees: int | None = None
    whole: float = 1.0
    support: float = 0.0
    points: int = 0

    @property
    def needed(self) -> int:
        """Return the support without which the interval may be too narrow."""
        return FEW_NORMAL if self.method == "normal" else FEW

    @property
    def rests_on_few(self) -> bool:
        return not self.support >= self.needed

    @property
    def further_points(self) -> int:
        """Return how many more points should give the support, taken as one unit where there is none."""
        return math.ceil(max(0.0, self.points * (self.needed / max(self.support, 1.0) - 1)))

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends of a share's interval within 0 and the whole; of others, not below 0."""
        quantile = 0.5 + level / 2
        if self.degrees is None:
            reach = NormalDist().inv_cdf(quantile)
        else:
            reach = float(stdtrit(self.degrees, quantile))
        if self.method == "normal":
            reach *= self.standard_error
            return max(0.0, self.value - reach), self.value + reach
        share, error = self.value / self.whole, self.standard_error / self.whole
        if share <= 0:
            low, high = 0.0, 1 - (1 - quantile) ** (1 / self.units)
        elif share >= 1:
            low, high = (1 - quantile) ** (1 / self.units), 1.0
        else:
            low, high = (_wilson if self.method == "wilson" else _logit)(share, error, reach)
        return low * self.whole, high * self.whole

    def scaled(self, factor: float) -> Estimate:
        value, error, whole = (part * factor for part in (self.value, self.standard_error, self.whole))
        return replace(self, value=value, standard_error=error, whole=whole)

    def as_dict(self, level: float) -> dict[str, Any]:
        """Return value, standard error, interval, None where not defined, and what they rest on."""
        known = np.isfinite(self.value)
        defined = known and np.isfinite(self.standard_error)
        return {
            "value": self.value if known else None,
            "standard_error": self.standard_error if defined else None,
            "interval": list(self.interval(level)) if defined else None,
            "effective_units": self.support,
            "few_units": self.rests_on_few,
            "further_points": self.further_points,
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
    """Estimate accuracies and class areas; ValueError where a stratum has no unit."""
    total = Totals(sample)
    counts = np.zeros((classes, classes), np.int64)
    proportions = np.zeros((classes, classes))
    np.add.at(counts, (sample.mapped, sample.truth), 1)
    np.add.at(proportions, (sample.mapped, sample.truth), total.weights)
    figures = total.figures(sample.mapped, sample.truth, classes)
    return Accuracy(
        counts=counts,
        proportions=proportions,
        overall=figures["overall"][0],
        users=figures["users"],
        producers=figures["producers"],
        f1=figures["f1"],
        areas_m2=[share.scaled(sample.area_m2) for share in figures["areas"]],
    )


class Totals:
    """Ratios of totals over the strata; `weights` are the share of the area that each pixel stands for."""

    def __init__(self, sample: Sample) -> None:
        self._unit, stratum = sample.units()
        self._members = [np.flatnonzero(stratum == h) for h in range(len(sample.areas_m2))]
        numbers = np.array([len(members) for members in self._members])
        if not numbers.all():
            raise ValueError(f"stratum {int(numbers.argmin())} has no unit")
        shares = sample.areas_m2 / sample.area_m2
        self._points = np.bincount(sample.stratum)
        self._clusters = sample.cluster is not None
        if self._clusters:  # a stratum holds as many units as its area has room for
            sizes = np.bincount(self._unit)
            shares = shares / [sizes[members].mean() for members in self._members]
        self._per_unit = shares / numbers
        self.weights: Floats = self._per_unit[sample.stratum]

    def figures(self, mapped: Ints, truth: Ints, classes: int) -> dict[str, list[Estimate]]:
        """Estimate accuracies, and areas as shares of the whole.

        Args:
            mapped, truth: (pixels,), or (samples, pixels) of samples by one design, figures of all then.
        """
        every = np.arange(classes)[:, np.newaxis]
        is_mapped, is_truth = (
            (labels[..., np.newaxis, :] == every).astype(np.float64).reshape(-1, labels.shape[-1])
            for labels in (mapped, truth)
        )
        both, one = is_mapped * is_truth, np.ones_like(is_truth)
        right = np.atleast_2d(mapped == truth).astype(np.float64)
        areas = self.ratios(is_truth, one)
        return {
            "overall": self.ratios(right, np.ones_like(right)),
            "users": self.ratios(both, is_mapped, everywhere=False),
            "producers": self.ratios(both, is_truth),
            "f1": self.ratios(2 * both, is_mapped + is_truth),
            "areas": [replace(area, method="wilson" if self._clusters else "normal") for area in areas],
        }

    def _of_units(self, values: Floats) -> Floats:
        """Sum the values of pixels (N, pixels) by unit."""
        if not self._clusters:
            return values
        return np.stack([np.bincount(self._unit, row) for row in values])

    def ratios(self, of: Floats, to: Floats, *, everywhere: bool = True) -> list[Estimate]:
        """Estimate ratios of totals of values of pixels, each (N, pixels).

        With `everywhere` a stratum where `to` was not found may hold it.
        """
        part, whole = of @ self.weights, to @ self.weights
        y, x = self._of_units(of), self._of_units(to)
        variance, fourth, unseen, squares, points = np.zeros((5, len(part)))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = part / whole
            for w, members, checked in zip(self._per_unit, self._members, self._points, strict=True):
                n, xs = len(members), x[:, members]
                squares += w**2 * (xs**2).sum(1)
                concerned = xs.any(1) | everywhere
                points += checked * concerned
                if n == 1:
                    variance[xs.any(1)] = np.nan
                    continue
                rest = y[:, members] - value[:, np.newaxis] * xs
                rest -= rest.mean(1, keepdims=True)
                if self._clusters:
                    rest /= np.sqrt(1 - np.minimum(w * xs / whole[:, np.newaxis], MAX_SHARE))
                square = rest**2
                of_stratum = square.sum(1)
                variance += w**2 * n / (n - 1) * of_stratum
                fourth += w**4 * (square**2).sum(1)
                none_found = concerned & (of_stratum < NO_RESIDUAL)
                unseen = np.maximum(unseen, np.where(none_found, w * np.maximum(value, 1 - value), 0))
            error, units = np.sqrt(variance) / whole, whole**2 / squares
            error[np.isclose(units, 1) & (value > 0) & (value < 1)] = np.nan  # one unit has all of X
            support = np.nan_to_num(variance**2 / (fourth + unseen**4))
        method: Literal["logit", "wilson"] = "logit" if self._clusters else "wilson"
        degrees = y.shape[1] - len(self._members) if self._clusters else None
        return [
            Estimate(
                value=float(v),
                standard_error=float(e),
                method=method,
                units=float(u),
                degrees=degrees,
                support=float(s),
                points=int(p),
            )
            for v, e, u, s, p in zip(value, error, units, support, points, strict=True)
        ]
