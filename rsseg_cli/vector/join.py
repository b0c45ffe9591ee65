"""Blocks put together: objects and rings that go on from one block of rows to the next."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rsseg_cli.vector.block import BlockResult
from rsseg_cli.vector.graph import NONE, Ints
from rsseg_cli.vector.plan import BlockPlan
from rsseg_cli.vector.polygons import Polygons, make_polygons
from rsseg_cli.vector.rings import Chains, ObjectTable, chain, chained
from rsseg_cli.vector.spill import Spill, in_file
from rsseg_cli.vector.trace import Joints, Pieces, known_keys, put

HELD_POINTS = 1 << 20  # 8 bytes each
# What waits is put together once it is more, in pieces or in blocks that they came in.
MOST_PIECES, MOST_BLOCKS = 1 << 17, 256


def _nothing() -> Ints:
    return np.zeros(0, np.int64)


class Joiner:
    """Takes blocks from top to bottom and gives the polygons that are complete.

    Memory: 60 bytes for each ring of objects that go on, and for each part of one that ends in the last
    block, some 200 where they are put together; MOST_PIECES others; some bytes a column. Vertices wait in
    files.

    Args:
        folder: for these files.
    """

    def __init__(self, plan: BlockPlan, folder: Path) -> None:
        width = plan.source.width
        self._spill = Spill(folder)
        self._plan = plan
        self._reproject = plan.reprojection()
        self._table = ObjectTable(
            classes=_nothing(),
            lasts=_nothing(),
            confidence_counts=_nothing(),
            confidence_sums=_nothing(),
            confidence_mins=_nothing(),
        )
        self._bottom = np.full(width, NONE, np.int32)
        self._upper_ends = np.full(width + 1, NONE, np.int64)
        self._waiting: list[Pieces] = []
        self._whole = 0  # pieces that were left when they were last put together
        self._joints = Joints(
            objects=np.zeros((0, 2), np.int64),
            arrivals=np.zeros((0, 2), np.int64),
            departures=np.zeros((0, 2), np.int64),
        )

    def add(self, block: BlockResult) -> list[Polygons]:
        """Polygons that end in, or just above, the next block, in the order of their last pixels."""
        before, group_of = len(self._table), self._groups(block)
        self._table = self._table.joined(block.table, group_of)
        goes_on = np.zeros(len(self._table), np.bool_)
        goes_on[group_of[before + block.bottom[block.bottom != NONE]]] = True
        number = np.full(
            len(self._table) + 1, NONE, np.int64
        )  # the last for objects that are written already
        for chosen in (goes_on, ~goes_on):
            number[:-1][chosen] = np.arange(np.count_nonzero(chosen))
        self._take_in(block, before, group_of)
        finished = self._finish(goes_on, number)
        self._table = self._table.take(goes_on)
        self._gather()
        self._put_away()
        self._bottom = (
            np.where(block.bottom == NONE, NONE, number[group_of[before + block.bottom]]).astype(np.int32)
            if len(group_of)
            else block.bottom
        )
        self._upper_ends[block.columns] = block.upper_ends
        return _merged(finished, block.polygons)

    def _gather(self) -> None:
        """Make one piece of those that follow one another, once many wait."""
        count = sum(map(len, self._waiting))
        if count <= max(MOST_PIECES, 2 * self._whole) and len(self._waiting) <= MOST_BLOCKS:
            return
        joints = self._joints
        decided = (joints.objects[:, 0] == joints.objects[:, 1]) | (joints.objects == NONE).any(axis=1)
        gathered, chains = _chained(self._waiting, joints, decided, self._spill)
        self._waiting, self._whole = [gathered], len(gathered)
        kept = ~chains.linked.all(axis=1)
        self._joints = Joints(
            objects=joints.objects[kept], arrivals=joints.arrivals[kept], departures=joints.departures[kept]
        )

    def _put_away(self) -> None:
        """Bring the points that wait to a file once they are many."""
        held = [pieces for pieces in self._waiting if not in_file(pieces.points)]
        if sum(len(pieces.points) for pieces in held) > HELD_POINTS:
            self._waiting = [
                pieces if in_file(pieces.points) else replace(pieces, points=self._spill.store(pieces.points))
                for pieces in self._waiting
            ]

    def _groups(self, block: BlockResult) -> Ints:
        """The object of each object so far, then of each of the block's."""
        before, total = len(self._table), len(self._table) + len(block.table)
        met = (self._bottom != NONE) & (block.top != NONE)
        links = (self._bottom[met], block.top[met] + before)
        graph = coo_array((np.ones(len(links[0]), np.bool_), links), shape=(total, total))
        return connected_components(graph, directed=False)[1].astype(np.int64) if total else _nothing()

    def _take_in(self, block: BlockResult, before: int, group_of: Ints) -> None:
        groups = np.append(group_of, NONE)
        for pieces in self._waiting:
            pieces.objects[:] = groups[pieces.objects]
        pieces = block.pieces
        if len(pieces):
            self._waiting.append(
                replace(
                    pieces,
                    objects=group_of[before + pieces.objects],
                    start_keys=known_keys(pieces.start_keys, self._upper_ends),
                    end_keys=known_keys(pieces.end_keys, self._upper_ends),
                )
            )
        new = block.joints
        parts = (
            (groups[self._joints.objects], group_of[before + new.objects]),
            (self._joints.arrivals, known_keys(new.arrivals, self._upper_ends)),
            (self._joints.departures, known_keys(new.departures, self._upper_ends)),
        )
        self._joints = Joints(
            **{
                name: np.concatenate(part)
                for name, part in zip(("objects", "arrivals", "departures"), parts, strict=True)
            }
        )

    def _finish(self, goes_on: NDArray[np.bool_], number: Ints) -> Polygons:
        """Polygons of the objects that do not go on; the others' pieces wait."""
        done = np.append(~goes_on, False)
        joints = self._joints
        rings, chains = _chained(
            self._taken(done), joints, np.ones(len(joints.objects), np.bool_), self._spill
        )
        if not chains.closed.all():
            raise ValueError("a ring's pieces do not meet")
        rings.objects[:] = number[rings.objects]
        for pieces in self._waiting:
            pieces.objects[:] = number[pieces.objects]
        left = np.where(done[joints.objects], NONE, number[joints.objects])
        used = (left != NONE).any(axis=1)
        self._joints = Joints(
            objects=left[used], arrivals=joints.arrivals[used], departures=joints.departures[used]
        )
        plan = self._plan
        table = self._table.take(~goes_on)
        return make_polygons(rings, table, plan.ground, plan.transform, self._reproject, self._spill)

    def _taken(self, done: NDArray[np.bool_]) -> list[Pieces]:
        """Pieces of some objects, which wait no longer."""
        waiting, self._waiting = self._waiting[::-1], []
        taken = []
        while waiting:
            pieces = waiting.pop()
            own = done[pieces.objects]
            if own.any():
                taken.append(pieces if own.all() else pieces.take(np.flatnonzero(own)))
            if not own.all():
                self._waiting.append(_shrunk(pieces.take(np.flatnonzero(~own))) if own.any() else pieces)
        return taken


def _shrunk(pieces: Pieces) -> Pieces:
    """Pieces without the points of those that are gone, once these are most."""
    if in_file(pieces.points):
        return pieces
    return pieces.compact() if 2 * int(pieces.lengths.sum()) < len(pieces.points) else pieces


def _chained(
    parts: list[Pieces], joints: Joints, decided: NDArray[np.bool_], spill: Spill
) -> tuple[Pieces, Chains]:
    """Pieces from several blocks, which are let go; those that follow one another as one."""
    block_of = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    all_points = [part.points for part in parts]
    pieces = _together(parts)
    chains = chain(pieces, joints, decided)
    pieces.put_in_order(chains.order)
    block_of = block_of[chains.order]
    ends = np.cumsum(pieces.lengths)
    starts = ends - pieces.lengths
    total = int(ends[-1]) if len(ends) else 0
    points = (np if total <= HELD_POINTS else spill).empty((total, 2), np.int32)
    for number, own_points in enumerate(all_points):
        own = np.flatnonzero(block_of == number)
        put(points, starts[own], own_points, pieces.begins[own], pieces.lengths[own])
    return chained(replace(pieces, points=points, begins=starts), chains), chains


def _together(parts: list[Pieces]) -> Pieces:
    """One list of pieces, without their points; `parts` is emptied."""
    columns: dict[str, list[Ints]] = {
        field.name: [getattr(part, field.name) for part in parts]
        for field in fields(Pieces)
        if field.name != "points"
    }
    parts.clear()
    joined = {name: np.concatenate(columns.pop(name) or [_nothing()]) for name in list(columns)}
    return Pieces(points=np.zeros((0, 2), np.int32), **joined)


def _merged(joined: Polygons, inside: Polygons) -> list[Polygons]:
    """Two lists as one in the order of last pixels."""
    if not len(joined) or not len(inside):
        return [part for part in (joined, inside) if len(part)]
    both = {
        name: np.concatenate([getattr(joined, name), getattr(inside, name)])
        for name in ("wkb", "boxes", "areas_m2", "perimeters_m", "vertices")
    }
    table = joined.table.joined(inside.table, np.arange(len(joined) + len(inside)))
    together = Polygons(table=table, **both)
    return [together.take(np.argsort(table.lasts))]
