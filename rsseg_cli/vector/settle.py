"""Squared outlines put in the place of simplified ones where no boundaries meet for it.

A squared outline may not meet what lies beside it, squared or not. Of two groups in each other's way the
larger one is squared. So which ones are depends on their neighbours alone, and each part of the raster can
decide it for its own groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector.curves import UNITS
from rsseg_cli.vector.graph import NONE, Graph, Ints
from rsseg_cli.vector.outlines import window_of
from rsseg_cli.vector.plan import BlockPlan
from rsseg_cli.vector.proposals import Proposal
from rsseg_cli.vector.simplify import StoredBoundaries
from rsseg_cli.vector.storage import Table, load_tables, store_tables


def decide_part(shared: tuple[BlockPlan, StoredBoundaries], row: int, col: int) -> None:
    """Store the keys of the groups of a part that are squared."""
    plan, stored = shared
    own = Proposal.load(stored.path(row, col, "proposed")).groups["key"]
    rejected = np.zeros(0, np.int64)
    if len(own):
        near = _near(stored, row, col)
        rows, cols = window_of(plan.source, stored.side, row, col)
        rejected = _rejected(near, stored.read(*rows, *cols), own)
    store_tables(stored.path(row, col, "decided"), np.setdiff1d(own, rejected))


def _near(stored: StoredBoundaries, row: int, col: int) -> Proposal:
    """Return the proposals of a part and those around it."""
    parts = [Proposal.load(stored.path(*part, "proposed")) for part in stored.around(row, col)]
    return Proposal.concat(parts)


@dataclass(frozen=True, kw_only=True)
class _Edges(Table):
    """Edges as they are if some groups are squared and others are not.

    Attributes:
        ends: (k, 2), positions in the raster.
        points: (k, 2, 2), x and y in 1/256 px.
        squared, not_squared: (k, 2), numbers of these groups, -1 for none.
    """

    ends: Ints
    points: Ints
    squared: Ints
    not_squared: Ints


def _rejected(near: Proposal, old: Graph, own: Ints) -> Ints:
    """Return the keys of the groups of `own` that are in the way of larger ones, or of what stays."""
    groups = near.groups[np.lexsort((near.groups["key"], -near.groups["area"]))]  # the more important first
    by_key = np.argsort(groups["key"])
    number = by_key[np.searchsorted(groups["key"][by_key], near.moved["group"])]
    gone_number = by_key[np.searchsorted(groups["key"][by_key], near.gone["group"])]
    edges = _Edges.concat([_squared_edges(near.moved, number), *_old_edges(near, number, gone_number, old)])
    is_own = np.append(np.isin(groups["key"], own), False)
    asked = np.flatnonzero(is_own[edges.squared].any(axis=1))
    lines = shapely.linestrings(edges.points.astype(np.float64))
    one, other = shapely.STRtree(lines).query(lines[asked], predicate="intersects")
    one = asked[one]
    possible = one != other
    for first, second in ((one, other), (other, one)):
        both = edges.squared[first][:, :, None] == edges.not_squared[second][:, None]
        possible &= ~(both & (edges.squared[first][:, :, None] != NONE)).any(axis=(1, 2))
    one, other = one[possible], other[possible]
    met = _cross(edges.take(one), edges.take(other))
    empty = asked[(edges.points[asked, 0] == edges.points[asked, 1]).all(axis=1)]
    losers = np.concatenate(
        [
            np.concatenate([edges.squared[one[met]], edges.squared[other[met]]], axis=1).max(axis=1),
            edges.squared[empty].max(axis=1),
        ]
    )
    return groups["key"][np.unique(losers)]


def _cross(one: _Edges, other: _Edges) -> NDArray[np.bool_]:
    """Tell which edges that touch have more in common than an end."""
    same = one.ends[:, :, None] == other.ends[:, None]  # (k, end of one, end of other)
    count = same.sum(axis=(1, 2))
    first, second = same.any(axis=2).argmax(axis=1), same.any(axis=1).argmax(axis=1)
    index = np.arange(len(first))
    ways = [
        (edges.points[index, 1 - end] - edges.points[index, end]).astype(np.float64)
        for edges, end in ((one, first), (other, second))
    ]
    along = (ways[0] * ways[1]).sum(axis=1) > 0
    overlap = along & (ways[0][:, 0] * ways[1][:, 1] == ways[0][:, 1] * ways[1][:, 0])
    return (count != 1) | overlap


def _squared_edges(moved: NDArray[Any], number: Ints) -> _Edges:
    """Return the edges of squared outlines; `number` is the group of each vertex."""
    vertex, slot = np.nonzero(moved["ends"] != NONE)
    there = moved["ends"][vertex, slot]
    ahead = 4 * moved["position"][vertex] + slot < there
    vertex, there = vertex[ahead], there[ahead] >> 2
    order = np.lexsort((moved["position"], number))
    base = int(max(moved["position"].max(initial=0), there.max(initial=0))) + 1
    keys = number[order] * base + moved["position"][order]
    other = order[np.searchsorted(keys, number[vertex] * base + there)]
    place = np.stack([moved["x"], moved["y"]], axis=1).astype(np.int64)
    alone = np.stack([number[vertex], np.full(len(vertex), NONE)], axis=1)
    return _Edges(
        ends=np.stack([moved["position"][vertex], there], axis=1),
        points=np.stack([place[vertex], place[other]], axis=1),
        squared=alone,
        not_squared=np.full_like(alone, NONE),
    )


def _old_edges(near: Proposal, number: Ints, gone_number: Ints, old: Graph) -> list[_Edges]:
    """Return edges as they are, and those that end at squared outlines as they would be."""
    positions = old.positions
    place = np.stack([old.cols, old.rows], axis=1).astype(np.int64) * UNITS
    halves = np.flatnonzero((old.twin != NONE) & (np.arange(len(old.twin)) < old.twin))
    pairs = np.stack([halves, old.twin[halves]], axis=1)
    vertices = pairs >> 2
    wall_of = np.full(len(old.twin) + 1, NONE, np.int64)
    gone = _found(positions, near.gone["position"])
    for slot in range(4):
        wall_of[4 * gone[gone != NONE] + slot] = gone_number[gone != NONE]
    at = _found(positions, near.moved["position"])
    record, ends = np.nonzero((near.moved["ends"] != NONE) & (at != NONE)[:, None])
    wall_of[4 * at[record] + ends] = number[record]
    # where vertices lie if their group is squared, for those that move
    mover, new = np.full(len(old), NONE, np.int64), place.copy()
    moved = np.stack([near.moved["x"], near.moved["y"]], axis=1).astype(np.int64)
    moves = np.flatnonzero(at != NONE)
    moves = moves[(moved[moves] != place[at[moves]]).any(axis=1)]
    mover[at[moves]], new[at[moves]] = number[moves], moved[moves]
    walls = wall_of[pairs].max(axis=1)
    ends, points = positions[vertices], place[vertices]
    movers = np.where((walls == NONE)[:, None], mover[vertices], NONE)
    linked = movers != NONE
    stays = np.where((walls == NONE)[:, None], movers, np.stack([walls, np.full_like(walls, NONE)], axis=1))
    parts = [_Edges(ends=ends, points=points, squared=np.full_like(stays, NONE), not_squared=stays)]
    for which in ((True, False), (False, True), (True, True)):
        chosen = np.flatnonzero((linked | ~np.array(which)).all(axis=1) & linked.any(axis=1))
        flags = np.array(which)
        parts.append(
            _Edges(
                ends=ends[chosen],
                points=np.where(flags[:, None], new[vertices[chosen]], points[chosen]),
                squared=np.where(flags, movers[chosen], NONE),
                not_squared=np.where(flags, NONE, movers[chosen]),
            )
        )
    return [*parts, _leaving(old, positions, place)]


def _leaving(old: Graph, positions: Ints, place: Ints) -> _Edges:
    """Return edges that run straight out of all that is known, some way."""
    slots = np.unpackbits(old.slots[:, None], axis=1, count=4, bitorder="little").astype(np.bool_)
    vertex, slot = np.nonzero(slots & (old.twin.reshape(-1, 4) == NONE))
    way = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])[slot] * (1 << 14) * UNITS
    none = np.full((len(vertex), 2), NONE)
    return _Edges(
        ends=np.stack([positions[vertex], np.full(len(vertex), NONE)], axis=1),
        points=np.stack([place[vertex], place[vertex] + way], axis=1),
        squared=none,
        not_squared=none,
    )


def _found(positions: Ints, wanted: Ints) -> Ints:
    """Return the index of each wanted position, -1 where it is not there."""
    at = np.searchsorted(positions, wanted).clip(max=len(positions) - 1)
    return np.where(positions[at] == wanted, at, NONE)


def apply_part(shared: tuple[StoredBoundaries, StoredBoundaries], row: int, col: int) -> None:
    """Store a part's boundaries with the outlines of squared groups."""
    stored, squared = shared
    keys = np.concatenate(
        [load_tables(stored.path(*part, "decided"), np.int64)[0] for part in stored.around(row, col)]
    )
    if not len(keys):
        stored.path(row, col).rename(squared.path(row, col))
        return
    near = _near(stored, row, col)
    vertices = stored.own(row, col)
    moved = near.moved[np.isin(near.moved["group"], keys)]
    place = np.stack(np.divmod(moved["position"], stored.width + 1), axis=1)
    moved = moved[((place >= [row, col]) & (place < [row + stored.side, col + stored.side])).all(axis=1)]
    gone = near.gone["position"][np.isin(near.gone["group"], keys)]
    vertices = vertices[~np.isin(vertices["position"], gone)]
    new = moved[~np.isin(moved["position"], vertices["position"])]
    added = np.zeros(len(new), vertices.dtype)
    for name in ("position", "slots", "border"):
        added[name] = new[name]
    added["ends"] = NONE
    vertices = np.concatenate([vertices, added])
    vertices = vertices[np.argsort(vertices["position"])]
    at = np.searchsorted(vertices["position"], moved["position"])
    record, slot = np.nonzero(moved["ends"] != NONE)
    vertices["ends"][at[record], slot] = moved["ends"][record, slot]
    place = np.stack(np.divmod(moved["position"], stored.width + 1), axis=1)
    vertices["dx"][at], vertices["dy"][at] = (
        moved["x"] - UNITS * place[:, 1],
        moved["y"] - UNITS * place[:, 0],
    )
    squared.write(vertices, row, col)
