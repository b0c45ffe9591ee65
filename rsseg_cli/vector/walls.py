"""Straight walls fitted to outlines, most of them along a main direction or at right angles to it.

An outline is cut into walls so that the sum over all walls of the squared distances along the outline, in m2
times m, and of a charge for each wall is the least (the segmentation of Potts 1952 with alternating axes),
by dynamic programming over the corners that thinning leaves. Sums along the outline are differences of
prefix sums, so that a wall costs the same whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.graph import Ints
from rsseg_cli.vector.storage import Table
from rsseg_cli.vector.trace import portions, spans

ALONG, ACROSS, FREE = range(3)  # kinds of walls: v is constant, u is constant, any direction
MAX_CORNERS = 100  # of a thinned outline
CHUNK = 1 << 17  # pairs of thinned corners fitted at once
FREE_ANGLE = np.radians(20)  # by which its direction differs from the main ones
_ALIKE = np.where(np.eye(3), np.inf, 0.0)  # walls of one kind do not follow each other


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """Lines of points in metres from a point near them, one after the other; a closed one ends at its first.

    Attributes:
        begins: (k + 1,), first point of each, with the total at the end.
        fixed: bool (k, 2), which ends must stay where they are.
    """

    points: Floats
    begins: Ints
    closed: NDArray[np.bool_]
    fixed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.closed)

    @property
    def owners(self) -> Ints:
        """Outline of each point."""
        return np.repeat(np.arange(len(self)), np.diff(self.begins))

    @property
    def lengths(self) -> Floats:
        """Length of each outline."""
        steps = np.hypot(*np.diff(self.points, axis=0, append=self.points[-1:]).T)
        steps[self.begins[1:] - 1] = 0
        return np.add.reduceat(steps, self.begins[:-1])

    def rotated(self, angles: Floats) -> Floats:
        """Return points (n, 2) in axes that are turned by an angle for each outline."""
        u, v = self.points.T
        cos, sin = np.cos(angles)[self.owners], np.sin(angles)[self.owners]
        return np.stack([u * cos + v * sin, v * cos - u * sin], axis=1)

    def rotated_back(self, points: Floats, angles: Floats) -> Floats:
        """Undo `rotated`."""
        u, v = points.T
        cos, sin = np.cos(angles)[self.owners], np.sin(angles)[self.owners]
        return np.stack([u * cos - v * sin, v * cos + u * sin], axis=1)


@dataclass(frozen=True, kw_only=True)
class Walls(Table):
    """Walls in the order of their outlines, from point `starts` to point `ends` of all points."""

    outlines: Ints
    starts: Ints
    ends: Ints
    kinds: Ints


def thin(
    outlines: Outlines, kept: NDArray[np.bool_], tolerances_m: Iterable[float]
) -> Iterator[NDArray[np.bool_]]:
    """Yield the kept points that remain when those nearer than a tolerance to the line past them go.

    The nearest go first, and no two neighbours at once; ends stay. Each tolerance begins with what remains.
    """
    chosen = np.flatnonzero(kept)
    points, owners = outlines.points[chosen], outlines.owners[chosen]
    count = len(chosen)
    before, after = np.arange(count) - 1, np.arange(count) + 1
    is_end = np.append(True, owners[1:] != owners[:-1])[:count]
    is_end[:-1] |= is_end[1:]
    is_end[-1:] = True
    heights = np.full(count + 1, np.inf)  # the last for points beyond the first and last
    left = np.bincount(owners, minlength=len(outlines))
    remain = np.ones(count, np.bool_)
    changed = np.flatnonzero(~is_end)
    for tolerance_m in tolerances_m:
        while True:
            here, to = (
                points[changed] - points[before[changed]],
                points[after[changed]] - points[before[changed]],
            )
            base = np.hypot(*to.T)
            height = np.abs(here[:, 0] * to[:, 1] - here[:, 1] * to[:, 0]) / np.where(base > 0, base, 1.0)
            heights[changed] = np.where(base > 0, height, np.hypot(*here.T))
            near = np.flatnonzero(heights < tolerance_m)
            own = heights[near]
            # of equal ones the first goes
            gone = near[(own < heights[before[near]]) & (own <= heights[after[near]])]
            gone = gone[left[owners[gone]] > 4]
            if not len(gone):
                break
            remain[gone] = False
            heights[gone] = np.inf
            left -= np.bincount(owners[gone], minlength=len(left))
            after[before[gone]], before[after[gone]] = after[gone], before[gone]
            changed = np.concatenate([before[gone], after[gone]])
            changed = changed[~is_end[changed]]
        thinned = np.zeros(len(kept), np.bool_)
        thinned[chosen[remain]] = True
        yield thinned


def directions(outlines: Outlines, kept: NDArray[np.bool_], groups: Ints) -> Floats:
    """Return each group's main direction.

    It is the one with the most length near it or its perpendicular, where the line that fits the
    outline from one kept point to the next counts, to the mean of them.
    """
    owners, corners = outlines.owners, np.flatnonzero(kept)
    points = outlines.points
    sums = prefix_sums(points, outlines.begins)
    edges = np.flatnonzero(owners[corners[1:]] == owners[corners[:-1]])
    starts, ends = corners[edges], corners[edges + 1]
    group = groups[owners[starts]]
    _, _, _, uu, vv, uv = _centred(sums, starts, ends)
    lengths = np.hypot(*(points[ends] - points[starts]).T)
    angles = np.arctan2(2 * uv, uu - vv) / 2 % (np.pi / 2)
    count = int(groups.max(initial=-1)) + 1
    bins = 90
    bin_of = np.minimum((angles / (np.pi / 2) * bins).astype(np.int64), bins - 1)
    weights = np.bincount(group * bins + bin_of, lengths**2, minlength=count * bins).reshape(count, bins)
    away = np.abs((np.arange(bins)[:, None] - np.arange(bins) + bins // 2) % bins - bins // 2)
    near = weights @ np.where(away <= 12, np.exp(-((away / 4) ** 2) / 2), 0.0)
    best = (near.argmax(axis=1) + 0.5) * (np.pi / 2) / bins
    for width in (np.radians(10), np.radians(5)):
        off = _off(angles, best[group])
        close = np.abs(off) < width
        mean = np.bincount(group[close], (lengths**2 * off)[close], minlength=count)
        best = best + mean / np.maximum(
            np.bincount(group[close], (lengths**2)[close], minlength=count), 1e-12
        )
    return best


def _off(angles: Floats, main: Floats) -> Floats:
    """Return differences from the nearer of a direction and its perpendicular."""
    quarter = np.pi / 2
    return (angles - main + quarter / 2) % quarter - quarter / 2


def prefix_sums(points: Floats, begins: Ints) -> Floats:
    """Return (6, n), sums up to each point, along the line, of 1, u, v, u2, v2 and u v."""
    (u, v), (du, dv) = points[:-1].T, np.diff(points, axis=0).T
    lengths = np.hypot(du, dv)
    lengths[begins[1:-1] - 1] = 0  # from one line to the next
    mu, mv = u + du / 2, v + dv / 2
    parts = [1.0, mu, mv, mu * mu + du * du / 12, mv * mv + dv * dv / 12, mu * mv + du * dv / 12]
    sums = np.zeros((6, len(points)))
    for part, total in zip(parts, sums, strict=True):
        np.cumsum(part * lengths, out=total[1:])
    return sums


def segment(
    outlines: Outlines,
    points: Floats,
    sums: Floats,
    kept: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
    max_shift_m: float,
    charges: Floats,
) -> list[tuple[Walls, NDArray[np.bool_]]]:
    """Cut outlines into walls from which no point of the outline is farther than `max_shift_m`.

    Args:
        points: of the outlines, along their main directions, with their prefix sums.
        kept: points at which walls may meet.
        wanted: outlines that are cut.
        charges: (c, 3), of a wall of each kind, m3.

    Returns:
        For each of the charges: walls, and which outlines have any.
    """
    candidates = np.flatnonzero(kept)
    begins = np.searchsorted(candidates, outlines.begins)
    extremes = _Extremes(points, candidates)
    tables, solved = [np.zeros((0, 5), np.int64)], np.zeros((len(charges), len(outlines)), np.bool_)
    for chosen in _batches(np.where(wanted, np.diff(begins), 0)):
        search = _Search(outlines, chosen, points, sums, candidates, begins[chosen], np.diff(begins)[chosen])
        search.run(extremes, max_shift_m, charges)
        solved[:, chosen] = search.solved
        tables.append(search.walls())
    charge, outline, start, end, kind = np.concatenate(tables).T
    walls = Walls(outlines=outline, starts=start, ends=end, kinds=kind)
    order = np.lexsort((start, outline))
    return [(walls.take(order[charge[order] == number]), own) for number, own in enumerate(solved)]


def _batches(counts: Ints) -> Iterator[Ints]:
    """Yield outlines by their number of corners, the largest first, as many as have about CHUNK pairs."""
    order = np.argsort(-counts, kind="stable")
    order = order[(counts[order] <= MAX_CORNERS) & (counts[order] > 1)]
    for start, stop in portions(counts[order] ** 2 // 2, CHUNK):
        yield order[start:stop]


class _Extremes:
    """Least and greatest u and v of points between corners: those of 1, 2, 4, ... edges from each on."""

    def __init__(self, points: Floats, corners: Ints) -> None:
        signed = np.concatenate([points, -points], axis=1)
        within = np.minimum.reduceat(signed, corners)
        within = np.minimum(within, signed[np.append(corners[1:], corners[-1:])])
        levels = [within]
        for level in range(int(MAX_CORNERS).bit_length() - 1):
            ahead = np.minimum(np.arange(len(within)) + (1 << level), len(within) - 1)
            within = np.minimum(within, within[ahead])
            levels.append(within)
        self._levels, self._count = np.concatenate(levels), len(within)

    def between(self, starts: Ints, counts: Ints) -> tuple[Floats, Floats]:
        """Return the least and the greatest (2, n), over `counts` edges from each start on."""
        level = np.frexp(counts)[1] - 1
        begins = level * self._count + starts
        one, other = (self._levels.take(first, axis=0) for first in (begins, begins + counts - (1 << level)))
        found = np.minimum(one, other).T.copy()
        return found[:2], -found[2:]


class _Search:
    """The cheapest walls of outlines, those with the most corners first.

    Closed outlines are tried with a first wall of each kind; their last wall is of another kind.
    """

    def __init__(
        self,
        outlines: Outlines,
        chosen: Ints,
        points: Floats,
        sums: Floats,
        corners: Ints,
        begins: Ints,
        counts: Ints,
    ) -> None:
        self._names, self._points, self._sums, self._corners = chosen, points, sums, corners
        self._begins, self._counts = begins, counts
        self._closed, self._fixed = outlines.closed[chosen], outlines.fixed[chosen]
        # pairs of corners, by the second: number of outlines that have it, and pairs before
        self._rows = np.searchsorted(-counts, -np.arange(counts[0] + 1))
        self._pairs = np.cumsum(np.arange(counts[0] + 1) * self._rows)

    def run(self, extremes: _Extremes, max_shift_m: float, charges: Floats) -> None:
        """Find the cheapest walls up to each corner, for each kind of the first and of the last wall."""
        rows, width = len(self._counts), int(self._counts[0])
        self._costs = self._of_pairs(extremes, max_shift_m)
        # (corner, kind, charge, first, row): cheapest up to a corner, and up to walls of a kind from it on
        self._total = np.full((width, 3, len(charges), 3, rows), np.inf)
        self._rest = rest = np.full_like(self._total, np.inf)
        rest[0] = np.where(self._closed & ~np.eye(3, dtype=np.bool_)[:, None, :, None], np.inf, 0.0)
        each = charges.T[:, :, None, None]
        possible = np.append(np.flatnonzero(np.isfinite(self._costs).any(axis=0)), self._costs.shape[1])
        begins = self._pairs[: width - 1]
        starts = (possible[np.searchsorted(possible, begins)] - begins) // self._rows[1:width]
        for end, start in enumerate(np.minimum(starts, np.arange(width - 1)).tolist(), 1):
            own = self._rows[end]
            cost = self._costs[:, self._pairs[end - 1] : self._pairs[end]].reshape(3, end, own)[:, start:]
            sums = rest[start:end, ..., :own] + cost.swapaxes(0, 1)[:, :, None, None]
            total = np.minimum.reduce(sums) + each
            self._total[end, ..., :own] = total
            np.minimum(total[[1, 0, 0]], total[[2, 2, 1]], out=rest[end, ..., :own])
        last = self._total[self._counts - 1, ..., np.arange(rows)]  # (row, kind, charge, first)
        last = last.transpose(0, 2, 3, 1) + np.where(self._closed[:, None, None, None], _ALIKE, 0.0)
        last = last.reshape(rows, len(charges), 9)
        self._best = last.argmin(axis=2)
        self.solved = np.isfinite(last.min(axis=2)).T

    def _of_pairs(self, extremes: _Extremes, max_shift_m: float) -> Floats:
        """Return (kinds, pairs), the squared distances from walls between two corners, infinite for most.

        Pairs are in the order of their end, their start and their outline.
        """
        ends = np.arange(len(self._rows))
        ends, starts = np.repeat(ends, ends), spans(np.zeros_like(ends), ends)
        rows = self._rows[ends]
        row = spans(np.zeros_like(rows), rows)
        begins = self._begins[row]
        first, last = begins + np.repeat(starts, rows), begins + np.repeat(ends, rows)
        low, high = extremes.between(first, last - first)
        sums = self._sums.take(self._corners, axis=1)
        length, su, sv, suu, svv, suv = sums.take(last, axis=1) - sums.take(first, axis=1)
        from_end = self._fixed[row, 0] & (first == begins)
        to_end = self._fixed[row, 1] & (last == begins + self._counts[row] - 1)
        known = length > 0
        costs = np.full((3, len(row)), np.inf)
        for kind, axis, total, squares in ((ALONG, 1, sv, svv), (ACROSS, 0, su, suu)):
            narrow = np.flatnonzero((high[axis] - low[axis] <= 2 * max_shift_m) & known)
            total, long, at = total[narrow], length[narrow], self._points[self._corners, axis]
            mean = np.where(from_end[narrow], at[first[narrow]], total / long)
            mean = np.where(to_end[narrow], at[last[narrow]], mean)
            farthest = np.maximum(high[axis, narrow] - mean, mean - low[axis, narrow])
            cost = np.maximum(squares[narrow] - 2 * mean * total + mean * mean * long, 0)
            costs[kind, narrow] = np.where(farthest <= max_shift_m, cost, np.inf)
        per = 1 / np.where(known, length, 1.0)
        uu, vv, uv = suu - su * su * per, svv - sv * sv * per, suv - su * sv * per
        # the least sum of squared distances is at least the determinant by the trace
        largest = length * (max_shift_m / 2) ** 2
        thin = np.flatnonzero((uu * vv - uv * uv < largest * (uu + vv)) & known & ~from_end & ~to_end)
        uu, vv, uv = uu[thin], vv[thin], uv[thin]
        spread = np.hypot(uu - vv, 2 * uv)
        cost = np.maximum((uu + vv - spread) / 2, 0)
        # twice the angle to the axes: far from both where its sine is large
        oblique = np.abs(2 * uv) > np.sin(2 * FREE_ANGLE) * spread
        costs[FREE, thin] = np.where(oblique & (cost < largest[thin]), cost, np.inf)
        return costs

    def walls(self) -> Ints:
        """Return (n, 5), of the cheapest walls: charge, outline, first and last point, kind."""
        charge, row = np.nonzero(self.solved)
        first, kind = np.divmod(self._best[row, charge], 3)
        state = np.stack([charge, row, first, self._counts[row] - 1, kind])
        parts = [np.zeros((5, 0), np.int64)]
        while state.shape[1]:
            charge, row, first, end, kind = state
            start = np.arange(end.max())[:, None]
            possible = start < end
            pair = np.where(possible, self._pairs[end - 1] + row + start * self._rows[end], 0)
            cost = self._costs[kind, pair] + self._rest[start, kind, charge, first, row]
            start = np.where(possible, cost, np.inf).argmin(axis=0)
            parts.append(np.stack([charge, row, start, end, kind]))
            before = self._total[start, :, charge, first, row] + _ALIKE[kind]
            state = np.stack([charge, row, first, start, before.argmin(axis=1)])[:, start > 0]
        charge, row, start, end, kind = np.concatenate(parts, axis=1)
        corners = (self._corners[self._begins[row] + corner] for corner in (start, end))
        return np.stack([charge, self._names[row], *corners, kind], axis=1)


def turn(walls: Walls, sums: Floats, groups: Ints) -> Floats:
    """Return the angle by which each group's axes follow its walls best; `groups` are those of outlines."""
    _, _, _, uu, vv, uv = _centred(sums, walls.starts, walls.ends)
    group = groups[walls.outlines]
    along = walls.kinds == ALONG
    sign = np.where(walls.kinds == FREE, 0, np.where(along, 1, -1))
    count = int(groups.max(initial=-1)) + 1
    skew = np.bincount(group, sign * uv, minlength=count)
    weight = np.bincount(group, np.abs(sign) * np.where(along, uu, vv), minlength=count)
    return skew / np.maximum(weight, 1e-12)


def _centred(sums: Floats, starts: Ints, ends: Ints) -> tuple[Floats, ...]:
    """Return lengths, mean u and v, and the sums of squares and products around them, between points."""
    length, su, sv, suu, svv, suv = sums[:, ends] - sums[:, starts]
    u, v = su / length, sv / length
    return length, u, v, suu - su * u, svv - sv * v, suv - su * v


def fit_lines(walls: Walls, sums: Floats) -> Floats:
    """Return (walls, 3), a, b and c of the lines a u + b v = c through the means of walls."""
    _, u, v, uu, vv, uv = _centred(sums, walls.starts, walls.ends)
    angles = np.arctan2(2 * uv, uu - vv) / 2  # of the wall
    angles = np.choose(walls.kinds, [0.0, np.pi / 2, angles])
    a, b = -np.sin(angles), np.cos(angles)
    return np.stack([a, b, a * u + b * v], axis=1)


def meet(one: Floats, other: Floats) -> Floats:
    """Return the points (n, 2) where lines meet; NaN for those within some degrees of each other."""
    (a, b, c), (d, e, f) = one.T, other.T
    cross = a * e - b * d
    cross = np.where(np.abs(cross) < np.sin(FREE_ANGLE / 2), np.nan, cross)
    return np.stack([(c * e - b * f) / cross, (a * f - c * d) / cross], axis=1)


def project(points: Floats, lines: Floats) -> Floats:
    """Return the nearest points of lines to points."""
    normals = lines[:, :2]
    return points + normals * (lines[:, 2] - (points * normals).sum(axis=1))[:, None]
