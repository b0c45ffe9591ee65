"""Outlines with straight walls in place of ragged ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector import walls as wall
from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.graph import NONE, Ints
from rsseg_cli.vector.trace import spans

MAX_OBLIQUE, MANY_OBLIQUE = (
    0.23,
    0.12,
)  # share of a group's corners without a right angle; of more than two such
MIN_DONE = 0.7  # share of a group's outlines, without holes, for which walls were found
THIN, THIN_PX = 0.34, 1.0  # of the largest shift, and of a pixel, the height of stairs: walls end elsewhere
FREE_CHARGE = 3.0  # of a wall in any direction, in walls
ATTEMPTS = (
    (1.0, (2.0, 0.5)),
    (0.5, (2.0,)),
)  # parts of the largest shift, and charges of walls to try in turn
MIN_HOLE = 8.0  # length of a hole that is squared, in largest shifts
SHARPEST = np.radians(50)  # corner between a wall in any direction and another
TIP = 1.5  # largest shift of a corner, in those of walls


@dataclass(frozen=True, kw_only=True)
class Squared:
    """New outlines.

    Attributes:
        kept: bool, points that remain.
        points: (n, 2), where the kept ones lie.
        done: bool (k,), outlines that were squared, of groups where all were but for optional ones.
    """

    kept: NDArray[np.bool_]
    points: Floats
    done: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Chained:
    """Outlines by groups.

    Attributes:
        vertices: of each point; where outlines meet it is the same.
        stems: bool (k, 2), ends that lie on the walls of other outlines.
        pinned: bool, points that must remain.
        optional: bool (k,), outlines that may stay as they are.
        groups: (k,), counted from 0.
    """

    outlines: wall.Outlines
    vertices: Ints
    stems: NDArray[np.bool_]
    pinned: NDArray[np.bool_]
    optional: NDArray[np.bool_]
    groups: Ints

    def reordered(self, order: Ints) -> Chained:
        """Return the outlines with their points in another order."""
        return replace(
            self,
            outlines=replace(self.outlines, points=self.outlines.points[order]),
            vertices=self.vertices[order],
            pinned=self.pinned[order],
        )


class Squarer:
    """Squares outlines of some groups with walls from which no point of an outline is farther than `shift_m`.

    Args:
        wanted: groups.
        charges: of a wall, in cubes of the largest shift, to try in turn.
    """

    def __init__(
        self,
        chained: Chained,
        shift_m: float,
        pixel_m: float,
        wanted: NDArray[np.bool_],
        charges: tuple[float, ...],
    ) -> None:
        outlines, groups, self._shift_m = chained.outlines, chained.groups, shift_m
        chosen = wanted[groups]
        tolerances = (max(height, THIN_PX * pixel_m) for height in (THIN * shift_m, shift_m))
        thinned, coarse = wall.thin(outlines, chosen[outlines.owners], tolerances)
        self._angles = wall.directions(outlines, coarse, groups)
        angles = self._angles[groups]
        self._order = order = _from_outermost(outlines, outlines.rotated(angles))
        self._chained = chained.reordered(order)
        thinned = thinned[order]
        thinned[outlines.begins[:-1]] = thinned[outlines.begins[1:] - 1] = True
        outlines = self._chained.outlines
        self._points = outlines.rotated(angles)
        self._sums = wall.prefix_sums(self._points, outlines.begins)
        chosen &= ~(chained.optional & outlines.closed) | (outlines.lengths >= MIN_HOLE * shift_m)
        each = shift_m**3 * np.outer(charges, [1, 1, FREE_CHARGE])
        self._walls = wall.segment(outlines, self._points, self._sums, thinned, chosen, shift_m, each)

    def square(self, wanted: NDArray[np.bool_], attempt: int) -> Squared:
        """Square the outlines of those groups that are wanted still, by one of the charges."""
        chained, order, points = self._chained, self._order, self._points
        outlines, groups = chained.outlines, chained.groups
        walls, solved = self._walls[attempt]
        walls, solved = walls.take(wanted[groups[walls.outlines]]), solved & wanted[groups]
        walls = _meeting_at(walls, points, chained.pinned, self._shift_m)
        angles = self._angles + wall.turn(walls, self._sums, groups)
        points = outlines.rotated(angles[groups])
        fit = _Fit(outlines, points, walls, chained.pinned)
        fit.join(chained.vertices, chained.stems & solved[:, None])
        solved &= fit.sound(TIP * self._shift_m)
        good = np.bincount(groups, ~solved & ~chained.optional, minlength=len(angles)) == 0
        oblique, corners = fit.oblique_corners(groups)
        good &= wanted & (oblique <= MAX_OBLIQUE * corners)
        good &= oblique <= np.maximum(2, MANY_OBLIQUE * corners)
        outer = np.where(chained.optional & outlines.closed, 0.0, outlines.lengths)
        total, done = (np.bincount(groups, part, minlength=len(angles)) for part in (outer, outer * solved))
        good &= done >= MIN_DONE * total
        kept, moved = np.zeros(len(order), np.bool_), np.empty_like(points)
        kept[order], moved[order] = fit.kept, outlines.rotated_back(fit.points, angles[groups])
        ends, begins = outlines.begins[1:][outlines.closed] - 1, outlines.begins[:-1][outlines.closed]
        kept[ends], moved[ends] = kept[begins], moved[begins]
        return Squared(kept=kept, points=moved, done=solved & good[groups])


def _from_outermost(outlines: wall.Outlines, points: Floats) -> Ints:
    """Return the order of points in which closed outlines begin where u + v is the largest: at a corner."""
    begins, counts, owners = outlines.begins[:-1], np.diff(outlines.begins), outlines.owners
    reach = points.sum(axis=1)
    farthest = np.flatnonzero(reach == np.maximum.reduceat(reach, begins)[owners])
    first = farthest[np.searchsorted(farthest, begins)] - begins
    step = np.arange(len(points)) - begins[owners]
    turned = (step + first[owners]) % np.maximum(counts - 1, 1)[owners]
    return np.where(outlines.closed[owners], turned, step) + begins[owners]


def _meeting_at(walls: wall.Walls, points: Floats, pinned: NDArray[np.bool_], reach_m: float) -> wall.Walls:
    """Return walls that meet where other boundaries end, if they met nearby."""
    inner = np.flatnonzero(walls.outlines[1:] == walls.outlines[:-1]) + 1
    at, near = walls.starts[inner], np.flatnonzero(pinned)
    if not len(at) or not len(near):
        return walls
    after = np.searchsorted(at, near).clip(max=len(at) - 1)
    both = np.stack([np.maximum(after - 1, 0), after], axis=1)
    distances = np.hypot(*np.moveaxis(points[at[both]] - points[near][:, None], 2, 0))
    which = distances.argmin(axis=1)
    nearest, distance = both[np.arange(len(near)), which], distances.min(axis=1)
    possible = (distance <= reach_m) & (near > walls.starts[inner - 1][nearest])
    possible &= near < walls.ends[inner][nearest]
    order = np.argsort(-distance[possible], kind="stable")  # the nearest last, so that it counts
    starts, ends = walls.starts.copy(), walls.ends.copy()
    starts[inner[nearest[possible][order]]] = near[possible][order]
    ends[inner - 1] = starts[inner]
    crossed = np.isin(walls.outlines, walls.outlines[starts >= ends])
    return replace(
        walls, starts=np.where(crossed, walls.starts, starts), ends=np.where(crossed, walls.ends, ends)
    )


class _Fit:
    """Lines of walls and the points where they meet."""

    def __init__(
        self, outlines: wall.Outlines, points: Floats, walls: wall.Walls, pinned: NDArray[np.bool_]
    ) -> None:
        self._outlines, self._raw, self._walls = outlines, points, walls
        self._lines = wall.fit_lines(walls, wall.prefix_sums(points, outlines.begins))
        own = walls.outlines
        self._first = np.append(True, own[1:] != own[:-1])[: len(own)]
        self._last = np.append(own[1:] != own[:-1], True)[: len(own)]
        self._before = np.arange(len(own)) - 1
        self._before[self._first] = np.flatnonzero(self._last)
        for end, at in ((0, self._first), (1, self._last)):
            chosen = np.flatnonzero(at & outlines.fixed[own, end])
            self._through(chosen, points[(walls.starts, walls.ends)[end][chosen]])
        self.kept, self.points = pinned.copy(), points.copy()
        self._wall_of = np.full(len(points), NONE, np.int64)
        within = spans(walls.starts, walls.ends - walls.starts + 1)
        self._wall_of[within] = np.repeat(np.arange(len(own)), walls.ends - walls.starts + 1)
        self.kept[walls.starts] = self.kept[walls.ends] = True
        self._place()

    def _through(self, walls: Ints, points: Floats) -> None:
        """Move the lines of walls to points."""
        self._lines[walls, 2] = (self._lines[walls, :2] * points).sum(axis=1)

    def _place(self) -> None:
        """Place the points that remain on the lines of their walls and, at corners, on both."""
        walls, lines, raw = self._walls, self._lines, self._raw
        rest = np.flatnonzero(self.kept & (self._wall_of != NONE))
        self.points[rest] = wall.project(raw[rest], lines[self._wall_of[rest]])
        closed = self._outlines.closed[walls.outlines]
        corners = np.flatnonzero(~self._first | closed)
        self._corners = corners
        at = wall.meet(lines[self._before[corners]], lines[corners])
        self.points[walls.starts[corners]] = at
        self.points[walls.ends[self._before[corners]]] = at
        # an open one begins with its own wall, which wall_of does not say where two meet
        begins = np.flatnonzero(self._first & ~closed)
        self.points[walls.starts[begins]] = wall.project(raw[walls.starts[begins]], lines[begins])
        for end, at_end in ((0, self._first), (1, self._last)):
            fixed = (walls.starts, walls.ends)[end][at_end & self._outlines.fixed[walls.outlines, end]]
            self.points[fixed] = raw[fixed]

    def join(self, vertices: Ints, stems: NDArray[np.bool_]) -> None:
        """End walls between buildings where they meet the outlines that pass."""
        which, end = np.nonzero(stems)
        if not len(which):
            return
        outlines = self._outlines
        tips = np.where(end == 0, outlines.begins[which], outlines.begins[which + 1] - 1)
        passing = np.flatnonzero(self.kept & (self._wall_of != NONE) & np.isin(vertices, vertices[tips]))
        passing = passing[~np.isin(passing, tips)]
        order = np.argsort(vertices[passing], kind="stable")
        at = np.searchsorted(vertices[passing][order], vertices[tips]).clip(max=max(len(order) - 1, 0))
        if not len(order):
            self.points[tips] = np.nan
            return
        hosts = passing[order][at]
        known = vertices[hosts] == vertices[tips]
        self.points[tips[~known]] = np.nan
        tips, hosts, end = tips[known], hosts[known], end[known]
        own = self._wall_of[tips]
        at_corner = np.isin(hosts, np.concatenate([self._walls.starts, self._walls.ends]))
        self._through(own[at_corner], self.points[hosts[at_corner]])
        self._place()
        met = wall.meet(self._lines[own], self._lines[self._wall_of[hosts]])
        usual = at_corner | np.isnan(met[:, 0])
        self.points[tips] = np.where(usual[:, None], self.points[hosts], met)
        self.points[hosts] = self.points[tips]

    def sound(self, largest_m: float) -> NDArray[np.bool_]:
        """Tell which outlines' walls run on in their direction, and meet near where they met."""
        walls, count = self._walls, len(self._outlines)
        way = self._raw[walls.ends] - self._raw[walls.starts]
        new = self.points[walls.ends] - self.points[walls.starts]
        bad = ~((way * new).sum(axis=1) > 0)
        unit = new / np.maximum(np.hypot(*new.T), 1e-9)[:, None]
        corners = self._corners
        bad[corners] |= (unit[corners] * unit[self._before[corners]]).sum(axis=1) < -np.cos(SHARPEST)
        for ends in (walls.starts, walls.ends):
            bad |= ~(self._shifts(ends, walls.outlines, largest_m) <= largest_m)
        return np.bincount(walls.outlines, bad, minlength=count) == 0

    def _shifts(self, points: Ints, owners: Ints, enough_m: float) -> Floats:
        """Return the distances of new points from where they were, from the outline if that is far."""
        shifts = np.hypot(*(self.points[points] - self._raw[points]).T)
        far = np.flatnonzero((shifts > enough_m) & np.isfinite(shifts))
        if len(far):
            lines, number = np.unique(owners[far], return_inverse=True)
            begins, counts = self._outlines.begins[lines], np.diff(self._outlines.begins)[lines]
            rings = shapely.linestrings(
                self._raw[spans(begins, counts)], indices=np.repeat(np.arange(len(lines)), counts)
            )
            shifts[far] = shapely.distance(shapely.points(self.points[points[far]]), rings[number])
        return shifts

    def oblique_corners(self, groups: Ints) -> tuple[Ints, Ints]:
        """Return the numbers of corners of each group without a right angle, and of all."""
        walls, corners = self._walls, self._corners
        pair = walls.kinds[corners], walls.kinds[self._before[corners]]
        oblique = (pair[0] == wall.FREE) | (pair[1] == wall.FREE)
        group, count = groups[walls.outlines[corners]], int(groups.max(initial=-1)) + 1
        return np.bincount(group[oblique], minlength=count), np.bincount(group, minlength=count)
