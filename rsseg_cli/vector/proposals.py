"""Squared outlines of a part of the raster, as they would take the place of the simplified ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.graph import NONE, Graph, Ints, Labels
from rsseg_cli.vector.outlines import (
    DEGREE,
    Buildings,
    find_buildings,
    find_chains,
    outline_graph,
    window_of,
)
from rsseg_cli.vector.plan import BlockPlan, Stopwatch
from rsseg_cli.vector.simplify import StoredBoundaries
from rsseg_cli.vector.squaring import ATTEMPTS, Chained, Squarer
from rsseg_cli.vector.storage import writing
from rsseg_cli.vector.trace import Tracer, spans
from rsseg_cli.vector.walls import Outlines

UNITS = 256
SMALLEST = 9.0  # building that is squared, in squares of the largest shift
MIN_IOU = 0.85  # of a squared building with what it was
GROUP = np.dtype([("key", "<i8"), ("area", "<i8"), ("low", "<i4", 2), ("high", "<i4", 2)])
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
        groups: key, the index of the first pixel; area; bounds in corner rows and columns.
        moved: vertices of the squared outlines, x and y in 1/256 px; `ends` along outlines, others -1.
        gone: positions of the vertices that these take the place of.
    """

    groups: NDArray[Any]
    moved: NDArray[Any]
    gone: NDArray[Any]

    def store(self, path: Path) -> None:
        """Write to a file."""
        with writing(path.parent), open(path, "wb") as file:
            for table in (self.groups, self.moved, self.gone):
                np.save(file, table, allow_pickle=False)

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
        with open(path, "rb") as file:
            groups, moved, gone = (np.load(file, allow_pickle=False) for _ in range(3))
        return cls(groups=groups, moved=moved, gone=gone)


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
    source, squares = plan.source, plan.squares
    if squares is None or row >= source.height or col >= source.width:  # the raster's last corners alone
        return none
    rows, cols = window_of(source, stored.side, row, col)
    # Corner (1, 1) of the window is its first in the raster: one row and column of pixels lie around it.
    labels = source.read(rows[0] - 1, rows[1] - rows[0] + 2, cols[0] - 1, cols[1] - cols[0] + 2)
    part = (
        row - rows[0] + 1,
        row + stored.side - rows[0] + 1,
        col - cols[0] + 1,
        col + stored.side - cols[0] + 1,
    )
    area_m2 = float(plan.ground.pixel_area_m2(*(np.array(sum(span) / 2) for span in (rows, cols))))
    smallest = SMALLEST * squares.max_shift_m**2 / area_m2
    buildings = find_buildings(labels, squares.classes, source.nodata, part, smallest)
    if (buildings.group_of == NONE).all():
        return none
    old = stored.read(*rows, *cols)
    window = _Window(plan, buildings, old, (rows[0] - 1, cols[0] - 1), labels)
    return window.propose(squares.max_shift_m)


class _Window:
    """Outlines of a window whose first pixel lies at `origin`; `old` are the simplified boundaries."""

    def __init__(
        self,
        plan: BlockPlan,
        buildings: Buildings,
        old: Graph,
        origin: tuple[int, int],
        labels: Labels,
    ) -> None:
        self._plan, self._buildings, self._origin = plan, buildings, origin
        # columns and rows in which a boundary runs through the whole window, so that no vertex tells of it
        self._through = [
            np.flatnonzero((part[:, 1:] != part[:, :-1])[1:-1].all(axis=0)) + 1 for part in (labels, labels.T)
        ]
        rows, cols = (
            part.astype(np.int64) - first for part, first in zip((old.rows, old.cols), origin, strict=True)
        )
        inside = (rows >= 1) & (rows < labels.shape[0]) & (cols >= 1) & (cols < labels.shape[1])
        self._graph = graph = outline_graph(buildings, rows[inside], cols[inside], plan.source.nodata)
        self._old, self._others = old, old.positions
        global_rows, global_cols = (
            graph.rows.astype(np.int64) + origin[0],
            graph.cols.astype(np.int64) + origin[1],
        )
        self._positions = global_rows * (old.width + 1) + global_cols
        at = np.searchsorted(self._others, self._positions).clip(max=len(old) - 1)
        self._stored = self._others[at] == self._positions
        self._slots = np.where(self._stored, old.slots[at], graph.slots)
        self._border = self._stored & old.border[at]
        self._chains = find_chains(graph, buildings, self._border | (self._slots == 15))
        none = np.zeros(len(buildings.objects), np.bool_)
        tracer = Tracer(graph, buildings.objects, 1, len(labels), none, plan.source.nodata)
        elements, begins, objects, _, _ = tracer.trace()
        own = objects != NONE
        lengths = np.diff(begins)
        self._traced = (
            elements[np.repeat(own, lengths)] >> 2,
            np.append(0, np.cumsum(lengths[own])),
            objects[own],
        )

    def propose(self, max_shift_m: float) -> Proposal:
        """Return the squared outlines of groups that keep their shape and reach no vertex beside them."""
        chains, graph = self._chains, self._graph
        owners = np.repeat(np.arange(len(chains.groups)), np.diff(chains.begins))
        names, groups = np.unique(chains.groups, return_inverse=True)
        points, axes, middles = self._metres(groups, len(names))
        inverse = np.linalg.inv(axes)[groups]
        chained = Chained(
            outlines=Outlines(points=points, begins=chains.begins, closed=chains.closed, fixed=chains.fixed),
            vertices=chains.vertices,
            stems=chains.stems,
            pinned=(DEGREE[self._slots] > 2)[chains.vertices],
            optional=chains.fixed.all(axis=1) | self._holes(),
            groups=groups,
        )
        wanted = np.bincount(groups[owners], self._loose(chains.vertices), minlength=len(names)) == 0
        pixel_m = float(np.sqrt(np.abs(np.linalg.det(axes)).min()))
        kept = self._stored[chains.vertices]
        place = np.stack([graph.cols, graph.rows], axis=1).astype(np.int64) * UNITS
        good = np.zeros(len(names), np.bool_)
        for part, charges in ATTEMPTS:
            squarer = Squarer(chained, part * max_shift_m, pixel_m)
            for charge in charges:
                squared = squarer.square(wanted & ~good, charge)
                found = np.bincount(groups, squared.done, minlength=len(names)) > 0
                if not found.any():
                    continue
                done = squared.done[owners]
                remain = np.where(done, squared.kept, self._stored[chains.vertices])
                moved = place.copy()
                new = np.einsum("nij,nj->ni", inverse[owners[done]], squared.points[done])
                new += middles[groups[owners[done]]]
                moved[chains.vertices[done]] = np.rint(new * UNITS).astype(np.int64)
                found[np.isin(names, self._spoilt(names[found], chains.vertices[remain], moved))] = False
                own = found[groups[owners]]
                kept[own] = remain[own]
                place[chains.vertices[own]] = moved[chains.vertices[own]]
                good |= found
        return self._stored_form(names[good], owners, kept, place)

    def _loose(self, vertices: Ints) -> NDArray[np.bool_]:
        """Tell from which vertices edges of others lead straight out of all that is known."""
        at = np.searchsorted(self._others, self._positions[vertices]).clip(max=len(self._old) - 1)
        slots = self._slots[vertices] & ~self._graph.slots[vertices]
        beside = np.unpackbits(slots[:, None], axis=1, count=4, bitorder="little").astype(np.bool_)
        return (beside & (self._old.twin.reshape(-1, 4)[at] == NONE)).any(axis=1)

    def _spoilt(self, groups: Ints, kept: Ints, place: Ints) -> Ints:
        """Return groups with a building that is no polygon, has another shape or swallows a vertex beside it.

        Args:
            groups: those that are looked at.
            kept: vertices that remain of these.
            place: where vertices lie then.
        """
        group_of, (vertices, begins, objects) = self._buildings.group_of, self._traced
        rings = np.flatnonzero(np.isin(group_of[objects], groups))
        lengths = np.diff(begins)[rings]
        vertices, ring = vertices[spans(begins[rings], lengths)], np.repeat(np.arange(len(rings)), lengths)
        keep = np.zeros(len(self._graph), np.bool_)
        keep[kept] = True
        few = np.bincount(ring, keep[vertices]) < 3
        lost = np.unique(objects[rings[few]])
        chosen = ~np.isin(objects[rings], lost)[ring]
        vertices, ring = vertices[chosen], ring[chosen]
        names, owner = np.unique(objects[rings[ring]], return_inverse=True)
        if not len(names):
            return group_of[lost]
        raw = np.stack([self._graph.cols, self._graph.rows], axis=1).astype(np.int64) * UNITS
        outer = _signed(raw[vertices], ring) < 0
        old, new = (
            _polygons(where[vertices[chosen]] / UNITS, ring[chosen], owner[chosen], outer)
            for where, chosen in ((raw, self._stored[vertices]), (place, keep[vertices]))
        )
        sound = shapely.is_valid(new)
        change = shapely.symmetric_difference(old[sound], new[sound])
        changed, areas = shapely.area(change), shapely.area(old[sound]) + shapely.area(new[sound])
        alike = areas - changed >= MIN_IOU * (areas + changed)  # twice the common and the joint area
        alike[self._swallows(change, group_of[names[sound]])] = False
        alike &= ~self._crosses(old[sound], new[sound])
        sound[sound] = alike
        return np.concatenate([group_of[lost], group_of[names[~sound]]])

    def _crosses(self, old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which polygons newly reach a boundary that runs through the window."""
        crosses = np.zeros(len(old), np.bool_)
        before, after = shapely.bounds(old), shapely.bounds(new)
        for axis, lines in enumerate(self._through):
            counts = [
                np.searchsorted(lines, bounds[:, axis + 2], "right") - np.searchsorted(lines, bounds[:, axis])
                for bounds in (before, after)
            ]
            crosses |= counts[0] != counts[1]
        return crosses

    def _swallows(self, changes: NDArray[Any], groups: Ints) -> Ints:
        """Return changes in which vertices of others lie."""
        old, chains = self._old, self._chains
        points = shapely.points(np.stack([old.cols - self._origin[1], old.rows - self._origin[0]], axis=1))
        change, point = shapely.STRtree(points).query(changes, predicate="intersects")
        count = len(self._buildings.objects)
        chain_groups = np.repeat(chains.groups, np.diff(chains.begins))
        own = self._positions[chains.vertices] * count + chain_groups
        return np.unique(change[~np.isin(self._others[point] * count + groups[change], own)])

    def _stored_form(self, names: Ints, owners: Ints, kept: NDArray[np.bool_], place: Ints) -> Proposal:
        """Return vertices of squared groups by their position in the raster."""
        chains, graph, origin = self._chains, self._graph, self._origin
        group = chains.groups[owners]
        own = np.isin(group, names)
        gone = own & ~kept & self._stored[chains.vertices]
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
        moved["border"] = self._border[vertex]
        moved["ends"] = np.where(
            group_of_end.reshape(-1, 4)[vertex] == pairs[:, :1], ends.reshape(-1, 4)[vertex], NONE
        )
        moved["x"], moved["y"] = (place[vertex] + np.array(origin[::-1]) * UNITS).T
        groups = self._groups(names)
        moved["group"] = groups["key"][np.searchsorted(names, pairs[:, 0])]
        raw = np.stack([graph.rows, graph.cols], axis=1)[vertex].astype(np.int64) + origin
        new = np.stack([moved["y"], moved["x"]], axis=1)
        number = np.searchsorted(names, pairs[:, 0])
        groups["low"], groups["high"] = np.iinfo(np.int32).max, 0
        for where in (raw, new // UNITS, -(-new // UNITS)):
            np.minimum.at(groups["low"], number, where.astype(np.int32))
            np.maximum.at(groups["high"], number, where.astype(np.int32))
        gone_rows = np.zeros(np.count_nonzero(gone), GONE)
        gone_rows["group"] = groups["key"][np.searchsorted(names, group[gone])]
        gone_rows["position"] = self._positions[chains.vertices[gone]]
        return Proposal(groups=groups, moved=moved, gone=np.unique(gone_rows))

    def _groups(self, names: Ints) -> NDArray[Any]:
        """Return keys and areas of groups."""
        objects, width = self._buildings.objects, self._buildings.labels.shape[1]
        lengths = np.diff(objects.starts, append=self._buildings.labels.size)
        group = np.append(self._buildings.group_of, NONE)[objects.of_run]
        chosen = np.flatnonzero(np.isin(group, names))
        number = np.searchsorted(names, group[chosen])
        table = np.zeros(len(names), GROUP)
        table["area"] = np.bincount(number, lengths[chosen], minlength=len(names))
        first = np.full(len(names), np.iinfo(np.int64).max)
        np.minimum.at(first, number, objects.starts[chosen])
        row, col = np.divmod(first, width)
        table["key"] = (row + self._origin[0]) * self._plan.source.width + col + self._origin[1]
        return table

    def _holes(self) -> NDArray[np.bool_]:
        """Tell which chains go round a hole."""
        chains, graph = self._chains, self._graph
        begins = chains.begins[:-1]
        x, y = graph.cols[chains.vertices].astype(np.int64), graph.rows[chains.vertices].astype(np.int64)
        step = x[:-1] * y[1:] - x[1:] * y[:-1]
        step[chains.begins[1:-1] - 1] = 0
        area = np.add.reduceat(np.append(step, 0), begins)
        first = chains.leaving[begins]
        objects = self._buildings.objects
        inner_left = objects.at(*_left_pixel(graph, first))
        on_left = self._buildings.group_of[inner_left] != NONE
        return chains.closed & ((area < 0) != on_left)

    def _metres(self, groups: Ints, count: int) -> tuple[Floats, Floats, Floats]:
        """Return points of chains in metres from the middle of their group, its axes and that middle.

        Axes (group, 2, 2) are metres per column and row, middles (group, 2) columns and rows of the window.
        """
        chains, graph = self._chains, self._graph
        owners = np.repeat(groups, np.diff(chains.begins))
        at = np.stack([graph.cols, graph.rows], axis=1)[chains.vertices].astype(np.float64)
        sums = np.stack([np.bincount(owners, part, minlength=count) for part in at.T], axis=1)
        middles = sums / np.bincount(owners, minlength=count)[:, None]
        axes = self._plan.ground.axes_m(middles[:, 1] + self._origin[0], middles[:, 0] + self._origin[1])
        return np.einsum("nij,nj->ni", axes[owners], at - middles[owners]), axes, middles


def _left_pixel(graph: Graph, halves: Ints) -> tuple[Ints, Ints]:
    slots = halves & 3
    row, col = np.array([-1, 0, 0, -1]), np.array([0, -1, 0, -1])
    return graph.rows[halves >> 2] + row[slots], graph.cols[halves >> 2] + col[slots]


def _signed(points: Ints, ring: Ints) -> Floats:
    """Return twice the signed area of rings whose points follow one another, from their number on."""
    begins = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))
    following = np.arange(1, len(points) + 1)
    following[np.append(begins[1:], len(points)) - 1] = begins
    (x, y), (next_x, next_y) = points.T.astype(np.float64), points[following].T.astype(np.float64)
    area = np.zeros(int(ring.max(initial=-1)) + 1)
    area[ring[begins]] = np.add.reduceat(x * next_y - next_x * y, begins)
    return area


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
