"""Squared outlines of a part of the raster, as they would take the place of the simplified ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.graph import NONE, Graph, Ints
from rsseg_cli.vector.outlines import (
    DEGREE,
    Groups,
    find_chains,
    find_groups,
    outline_graph,
    signed,
    window_of,
)
from rsseg_cli.vector.plan import BlockPlan, Stopwatch
from rsseg_cli.vector.simplify import StoredBoundaries
from rsseg_cli.vector.squaring import ATTEMPTS, Chained, Squarer
from rsseg_cli.vector.storage import load_tables, store_tables
from rsseg_cli.vector.surroundings import Surroundings
from rsseg_cli.vector.trace import spans
from rsseg_cli.vector.walls import Outlines

UNITS = 256
SMALLEST = 9.0  # building that is squared, in squares of the largest shift
MIN_IOU = 0.85  # of a squared building with what it was
ROUND = 0.7  # largest area that squaring changes, in that between an outline and its ellipse
GROUP = np.dtype([("key", "<i8"), ("area", "<i8")])
MOVED = np.dtype(
    [
        ("group", "<i8"),
        ("position", "<i8"),
        ("ends", "<i8", 4),
        ("slots", "u1"),
        ("border", "?"),
        ("x", "<i4"),
        ("y", "<i4"),
    ]
)
GONE = np.dtype([("group", "<i8"), ("position", "<i8")])


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Groups that may be squared.

    Attributes:
        groups: key, the first half-edge around it in the raster; area, half px.
        moved: vertices of the squared outlines, x and y in 1/256 px; `ends` along outlines, others -1.
        gone: positions of the vertices that these take the place of.
    """

    groups: NDArray[Any]
    moved: NDArray[Any]
    gone: NDArray[Any]

    def store(self, path: Path) -> None:
        """Write to a file."""
        store_tables(path, self.groups, self.moved, self.gone)

    @classmethod
    def concat(cls, proposals: list[Proposal]) -> Proposal:
        """Return the groups of several."""
        return cls(
            groups=np.concatenate([part.groups for part in proposals]),
            moved=np.concatenate([part.moved for part in proposals]),
            gone=np.concatenate([part.gone for part in proposals]),
        )

    @classmethod
    def load(cls, path: Path) -> Proposal:
        """Read from a file."""
        groups, moved, gone = load_tables(path, GROUP, MOVED, GONE)
        return cls(groups=groups, moved=moved, gone=gone)


def join_parts(shared: tuple[StoredBoundaries, StoredBoundaries], row: int, col: int) -> None:
    """Store boundaries and surroundings of a part that are stored in smaller ones; these go."""
    stored, wide = shared
    places = [
        place
        for place in stored.parts
        if row <= place[0] < row + wide.side and col <= place[1] < col + wide.side
    ]
    vertices = np.concatenate([stored.own(*place) for place in places])
    wide.write(vertices[np.argsort(vertices["position"])], row, col)
    around = {place: Surroundings.load(stored.path(*place, "around")) for place in places}
    for place in places:
        stored.path(*place).unlink()
        stored.path(*place, "around").unlink()
    Surroundings.joined(around).store(wide.path(row, col, "around"))


def propose_part(shared: tuple[BlockPlan, StoredBoundaries], row: int, col: int) -> dict[str, float]:
    """Store the squared outlines of the groups whose middle lies in a part; return seconds by stage."""
    plan, stored = shared
    watch = Stopwatch()
    proposal = _propose(plan, stored, row, col)
    proposal.store(stored.path(row, col, "proposed"))
    watch.lap("square")
    return watch.seconds


def _propose(plan: BlockPlan, stored: StoredBoundaries, row: int, col: int) -> Proposal:
    none = Proposal(groups=np.zeros(0, GROUP), moved=np.zeros(0, MOVED), gone=np.zeros(0, GONE))
    squares = plan.squares
    if squares is None:
        return none
    near = {part: Surroundings.load(stored.path(*part, "around")) for part in stored.around(row, col)}
    around = np.concatenate([part.classes for part in near.values()])
    if not len(around):
        return none
    rows, cols = window_of(plan.source, stored.side, row, col)
    area_m2 = float(plan.ground.pixel_area_m2(*(np.array(sum(span) / 2) for span in (rows, cols))))
    smallest = SMALLEST * squares.max_shift_m**2 / area_m2
    old = stored.read(*rows, *cols)
    groups = find_groups(old, around, squares.classes, (row, col, stored.side), smallest)
    if not len(groups.keys):
        return none
    lines = [
        np.concatenate([lines.cols for part, lines in near.items() if part[0] == row]),
        np.concatenate([lines.rows for part, lines in near.items() if part[1] == col]),
    ]
    return _Window(plan, groups, old, [np.sort(line) for line in lines]).propose(squares.max_shift_m)


class _Window:
    """Groups of a window with its simplified boundaries; `lines` run straight through it: columns, rows."""

    def __init__(self, plan: BlockPlan, groups: Groups, old: Graph, lines: list[NDArray[Any]]) -> None:
        self._plan, self._groups, self._old, self._lines = plan, groups, old, lines
        self._graph, self._at, self._group_of = outline_graph(old, groups.rings)
        self._positions, self._slots = self._graph.positions, old.slots[self._at]
        self._chains = find_chains(self._graph, self._group_of, self._graph.border | (self._slots == 15))
        owners = np.repeat(self._chains.groups, np.diff(self._chains.begins))
        self._own = np.sort(self._at[self._chains.vertices] * len(groups.keys) + owners)

    def propose(self, max_shift_m: float) -> Proposal:
        """Return the squared outlines of groups that keep their shape and reach no vertex beside them."""
        chains, graph = self._chains, self._graph
        owners = np.repeat(np.arange(len(chains.groups)), np.diff(chains.begins))
        groups, count = chains.groups, len(self._groups.keys)
        points, axes, middles = self._metres(groups, count)
        inverse = np.linalg.inv(axes)[groups]
        chained = Chained(
            outlines=Outlines(points=points, begins=chains.begins, closed=chains.closed, fixed=chains.fixed),
            vertices=chains.vertices,
            stems=chains.stems,
            pinned=(DEGREE[self._slots] > 2)[chains.vertices],
            optional=chains.fixed.all(axis=1) | self._holes(),
            groups=groups,
        )
        wanted = np.bincount(groups[owners], self._loose(chains.vertices), minlength=count) == 0
        pixel_m = float(np.sqrt(np.abs(np.linalg.det(axes)).min()))
        kept = np.ones(len(chains.vertices), np.bool_)
        place = np.stack([graph.cols, graph.rows], axis=1).astype(np.int64) * UNITS
        good = np.zeros(count, np.bool_)
        for part, charges in ATTEMPTS:
            squarer = Squarer(chained, part * max_shift_m, pixel_m, wanted & ~good, charges)
            for attempt in range(len(charges)):
                squared = squarer.square(wanted & ~good, attempt)
                found = np.bincount(groups, squared.done, minlength=count) > 0
                if not found.any():
                    continue
                done = squared.done[owners]
                remain = squared.kept | ~done
                moved = place.copy()
                new = np.einsum("nij,nj->ni", inverse[owners[done]], squared.points[done])
                new += middles[groups[owners[done]]]
                moved[chains.vertices[done]] = np.rint(new * UNITS).astype(np.int64)
                found[self._spoilt(found, chains.vertices[remain], moved)] = False
                own = found[groups[owners]]
                kept[own] = remain[own]
                place[chains.vertices[own]] = moved[chains.vertices[own]]
                good |= found
        return self._stored_form(good, owners, kept, place)

    def _loose(self, vertices: Ints) -> NDArray[np.bool_]:
        """Tell from which vertices edges of others lead straight out of all that is known."""
        slots = self._slots[vertices] & ~self._graph.slots[vertices]
        beside = np.unpackbits(slots[:, None], axis=1, count=4, bitorder="little").astype(np.bool_)
        return (beside & (self._old.twin.reshape(-1, 4)[self._at[vertices]] == NONE)).any(axis=1)

    def _spoilt(self, groups: NDArray[np.bool_], kept: Ints, place: Ints) -> Ints:
        """Return groups with a building that is no polygon, has another shape or swallows a vertex beside it.

        Args:
            groups: which are looked at.
            kept: vertices that remain of these.
            place: where vertices lie then.
        """
        rings = self._groups.rings
        rings = rings.take(np.flatnonzero(groups[rings.groups]))
        vertices, ring = np.searchsorted(self._at, rings.halves >> 2), rings.owners
        keep = np.zeros(len(self._graph), np.bool_)
        keep[kept] = True
        few = np.bincount(ring, keep[vertices]) < 3
        lost = np.isin(rings.buildings, rings.buildings[few])
        chosen = ~lost[ring]
        vertices, ring = vertices[chosen], ring[chosen]
        if not len(vertices):
            return rings.groups[lost]
        names, owner = np.unique(rings.buildings[ring], return_inverse=True)
        group = np.zeros(len(names), np.int64)
        group[owner] = rings.groups[ring]
        raw = np.stack([self._graph.cols, self._graph.rows], axis=1).astype(np.int64)
        outer = signed(raw[vertices], ring) < 0
        old = _polygons(raw[vertices].astype(np.float64), ring, owner, outer)
        keeps = keep[vertices]
        new = _polygons(place[vertices[keeps]] / UNITS, ring[keeps], owner[keeps], outer)
        sound = shapely.is_valid(new)
        change = shapely.symmetric_difference(old[sound], new[sound])
        changed, areas = shapely.area(change), shapely.area(old[sound]) + shapely.area(new[sound])
        alike = areas - changed >= MIN_IOU * (areas + changed)  # twice the common and the joint area
        alike &= changed < ROUND * _from_ellipse(old[sound])
        alike[self._swallows(change, group[sound])] = False
        alike &= ~self._crosses(old[sound], new[sound])
        sound[sound] = alike
        return np.concatenate([rings.groups[lost], group[~sound]])

    def _crosses(self, old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which polygons newly reach a boundary that runs through the window."""
        crosses = np.zeros(len(old), np.bool_)
        before, after = shapely.bounds(old), shapely.bounds(new)
        for axis, lines in enumerate(self._lines):
            counts = [
                np.searchsorted(lines, bounds[:, axis + 2], "right") - np.searchsorted(lines, bounds[:, axis])
                for bounds in (before, after)
            ]
            crosses |= counts[0] != counts[1]
        return crosses

    def _swallows(self, changes: NDArray[Any], groups: Ints) -> Ints:
        """Return changes in which vertices of others lie."""
        bounds = np.nan_to_num(shapely.bounds(changes), nan=-1.0)
        left, top = np.ceil(bounds[:, :2]).astype(np.int64).T
        right, bottom = np.floor(bounds[:, 2:]).astype(np.int64).T
        heights = np.maximum(bottom - top + 1, 0)
        change, row = np.repeat(np.arange(len(changes)), heights), spans(top, heights)
        positions, begin = self._old.positions, row * (self._old.width + 1)
        first = np.searchsorted(positions, begin + left[change])
        counts = np.searchsorted(positions, begin + right[change], "right") - first
        change, vertex = np.repeat(change, counts), spans(first, counts)
        pair = vertex * len(self._groups.keys) + groups[change]
        others = self._own[np.searchsorted(self._own, pair).clip(max=len(self._own) - 1)] != pair
        change, vertex = change[others], vertex[others]
        return change[shapely.intersects_xy(changes[change], self._old.cols[vertex], self._old.rows[vertex])]

    def _stored_form(
        self, good: NDArray[np.bool_], owners: Ints, kept: NDArray[np.bool_], place: Ints
    ) -> Proposal:
        """Return vertices of squared groups by their position in the raster."""
        chains, graph, keys = self._chains, self._graph, self._groups.keys
        group = chains.groups[owners]
        own = good[group]
        gone = own & ~kept
        ends = np.full(4 * len(graph), NONE, np.int64)
        group_of_end = np.full(4 * len(graph), NONE, np.int64)
        arriving = np.append(
            0, graph.twin[np.maximum(chains.leaving[:-1], 0)]
        )  # half-edge back from each point
        at = np.flatnonzero(own & kept)
        first = np.flatnonzero(np.append(True, owners[at[1:]] != owners[at[:-1]])[: len(at)])
        following = np.append(at[1:], NONE)[: len(at)]
        following[np.append(first[1:], len(at))[: len(first)] - 1] = at[first]  # round closed ones
        linked = chains.closed[owners[at]] & ~kept[chains.begins[:-1]][owners[at]]
        linked |= following > at
        start, end = chains.leaving[at[linked]], arriving[following[linked]].astype(np.int64)
        ends[start] = 4 * self._positions[end >> 2] + (end & 3)
        ends[end] = 4 * self._positions[start >> 2] + (start & 3)
        group_of_end[start] = group_of_end[end] = group[at[linked]]
        pairs = np.unique(np.stack([group[at], chains.vertices[at]], axis=1), axis=0)
        vertex = pairs[:, 1]
        moved = np.zeros(len(pairs), MOVED)
        moved["position"], moved["slots"] = self._positions[vertex], self._slots[vertex]
        moved["border"] = graph.border[vertex]
        moved["ends"] = np.where(
            group_of_end.reshape(-1, 4)[vertex] == pairs[:, :1], ends.reshape(-1, 4)[vertex], NONE
        )
        moved["x"], moved["y"] = place[vertex].T
        moved["group"] = keys[pairs[:, 0]]
        groups = np.zeros(np.count_nonzero(good), GROUP)
        groups["key"], groups["area"] = keys[good], self._groups.areas[good]
        gone_rows = np.zeros(np.count_nonzero(gone), GONE)
        gone_rows["group"], gone_rows["position"] = (
            keys[group[gone]],
            self._positions[chains.vertices[gone]],
        )
        return Proposal(groups=groups, moved=moved, gone=np.unique(gone_rows))

    def _holes(self) -> NDArray[np.bool_]:
        """Tell which chains go round a hole."""
        chains, graph = self._chains, self._graph
        begins = chains.begins[:-1]
        x, y = graph.cols[chains.vertices].astype(np.int64), graph.rows[chains.vertices].astype(np.int64)
        step = x[:-1] * y[1:] - x[1:] * y[:-1]
        step[chains.begins[1:-1] - 1] = 0
        area = np.add.reduceat(np.append(step, 0), begins)
        first = chains.leaving[begins]
        on_left = self._group_of[first] != NONE
        return chains.closed & ((area < 0) != on_left)

    def _metres(self, groups: Ints, count: int) -> tuple[Floats, Floats, Floats]:
        """Return points of chains in metres from the middle of their group, its axes and that middle.

        Axes (group, 2, 2) are metres per column and row, middles (group, 2) columns and rows.
        """
        chains, graph = self._chains, self._graph
        owners = np.repeat(groups, np.diff(chains.begins))
        at = np.stack([graph.cols, graph.rows], axis=1)[chains.vertices].astype(np.float64)
        sums = np.stack([np.bincount(owners, part, minlength=count) for part in at.T], axis=1)
        middles = sums / np.bincount(owners, minlength=count)[:, None]
        axes = self._plan.ground.axes_m(middles[:, 1], middles[:, 0])
        return np.einsum("nij,nj->ni", axes[owners], at - middles[owners]), axes, middles


def _from_ellipse(polygons: NDArray[Any]) -> Floats:
    """Return the area between outlines of polygons and the ellipses of the same second moments."""
    rings = shapely.get_exterior_ring(polygons)
    points, owners = shapely.get_coordinates(rings, return_index=True)
    inner = owners[1:] == owners[:-1]
    owner = owners[1:][inner]

    def total(values: Floats) -> NDArray[Any]:
        return np.bincount(owner, values, minlength=len(polygons))

    points = points - shapely.get_coordinates(shapely.centroid(shapely.polygons(rings)))[owners]
    one, other = points[:-1][inner], points[1:][inner]
    cross = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    area = total(cross) / 2
    both = one + other
    products = (
        both[:, :, None] * both[:, None] + one[:, :, None] * one[:, None] + other[:, :, None] * other[:, None]
    )
    moments = np.stack([total(cross * part) for part in products.reshape(-1, 4).T], axis=1).reshape(-1, 2, 2)
    inverse = np.linalg.inv(moments / (24 * area[:, None, None]))
    middle = both / 2
    radii = np.einsum("ni,nij,nj->n", middle, inverse[owner], middle) / 4  # squared, 1 on the ellipse
    return total(np.abs(cross) / 2 * np.abs(1 - 1 / np.maximum(radii, 1e-3)))


def _polygons(points: Floats, ring: Ints, owner: Ints, outer: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the polygons of owners, counted from 0, each of one outer ring and holes."""
    order = np.lexsort((ring, ~outer[ring], owner))
    points, ring, owner = points[order], ring[order], owner[order]
    begins = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))
    counts = np.diff(np.append(begins, len(points))) + 1
    at = spans(begins, counts)
    last = np.cumsum(counts) - 1
    at[last] = begins  # closed
    offsets = np.append(0, np.cumsum(counts))
    first_rings = np.append(np.searchsorted(owner[begins], np.arange(int(owner[-1]) + 1)), len(begins))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, points[at], (offsets, first_rings))
