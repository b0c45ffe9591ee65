"""Blocks put together: objects and rings that continue from one block of rows to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.block import BlockResult
from rsseg_cli.vector.graph import NONE, Ints, components, walk_chains
from rsseg_cli.vector.plan import BlockPlan
from rsseg_cli.vector.polygons import ObjectTable, Polygons, make_polygons
from rsseg_cli.vector.storage import MemmapStore, in_file
from rsseg_cli.vector.trace import NO_KEY, Junctions, RingFragments, known_keys, put


class Joiner:
    """Takes blocks from top to bottom and returns the polygons that are complete.

    Memory: 60 bytes for each ring of open objects, and for each fragment of one that ends in the last block,
    some 200 while they are joined; `Limits.fragments` others; some bytes a column. Vertices wait in files.
    """

    def __init__(self, plan: BlockPlan, folder: Path) -> None:
        width, pairs = plan.source.width, np.zeros((0, 2), np.int64)
        self._plan, self._store = plan, MemmapStore(folder)
        self._table = ObjectTable(**dict.fromkeys(ObjectTable.columns(), np.zeros(0, np.int64)))
        self._bottom = np.full(width, NONE, np.int32)
        self._upper_ends = np.full(width + 1, NONE, np.int64)
        self._junctions = Junctions(objects=pairs, arrivals=pairs, departures=pairs)
        self._waiting: list[RingFragments] = []
        self._whole = 0  # fragments that were left when they were last put together

    def add(self, block: BlockResult) -> list[Polygons]:
        """Return polygons that end in, or just above, the block, in the order of their last pixels."""
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
        """Join fragments that follow one another, once many wait."""
        count = sum(map(len, self._waiting))
        limits = self._plan.limits
        if count <= max(limits.fragments, 2 * self._whole) and len(self._waiting) <= limits.blocks:
            return
        junctions = self._junctions
        one = junctions.objects[:, 0] == junctions.objects[:, 1]
        decided = one | (junctions.objects == NONE).any(axis=1)
        gathered, chains = self._chained(self._waiting, decided)
        self._waiting, self._whole = [gathered], len(gathered)
        self._junctions = junctions.take(np.asarray(~chains.linked.all(axis=1)))

    def _put_away(self) -> None:
        """Move the waiting points to a file once there are many."""
        held = [number for number, part in enumerate(self._waiting) if not in_file(part.points)]
        if sum(len(self._waiting[number].points) for number in held) > self._plan.limits.held_points:
            for number in held:
                part = self._waiting[number]
                self._waiting[number] = replace(part, points=self._store.store(part.points))

    def _groups(self, block: BlockResult) -> Ints:
        """Return the joined object of each object so far, then of each of the block's."""
        before = len(self._table)
        met = (self._bottom != NONE) & (block.top != NONE)
        links = self._bottom[met], block.top[met] + before
        return components(*links, before + len(block.table)).astype(np.int64)

    def _take_in(self, block: BlockResult, before: int, group_of: Ints) -> None:
        groups = np.append(group_of, NONE)
        for fragments in self._waiting:
            fragments.objects[:] = groups[fragments.objects]
        fragments = block.fragments
        if len(fragments):
            self._waiting.append(
                replace(
                    fragments,
                    objects=group_of[before + fragments.objects],
                    start_keys=known_keys(fragments.start_keys, self._upper_ends),
                    end_keys=known_keys(fragments.end_keys, self._upper_ends),
                )
            )
        old, new = self._junctions, block.junctions
        arrivals, departures = (known_keys(keys, self._upper_ends) for keys in (new.arrivals, new.departures))
        old = replace(old, objects=groups[old.objects])
        new = Junctions(objects=group_of[before + new.objects], arrivals=arrivals, departures=departures)
        self._junctions = Junctions.concat([old, new])

    def _finish(self, goes_on: NDArray[np.bool_], number: Ints) -> Polygons:
        """Return polygons of the objects that are complete; fragments of the others wait."""
        done = np.append(~goes_on, False)
        junctions = self._junctions
        rings, chains = self._chained(self._taken(done), np.ones(len(junctions.objects), np.bool_))
        if not chains.closed.all():
            raise ValueError("a ring's fragments do not meet")
        rings.objects[:] = number[rings.objects]
        for fragments in self._waiting:
            fragments.objects[:] = number[fragments.objects]
        left = np.where(done[junctions.objects], NONE, number[junctions.objects])
        self._junctions = replace(junctions, objects=left).take((left != NONE).any(axis=1))
        return make_polygons(rings, self._table.take(~goes_on), self._plan, self._store)

    def _taken(self, done: NDArray[np.bool_]) -> list[RingFragments]:
        """Remove and return the waiting fragments of some objects."""
        waiting, self._waiting = self._waiting[::-1], []
        taken = []
        while waiting:
            fragments = waiting.pop()
            own = done[fragments.objects]
            if own.any():
                taken.append(fragments if own.all() else fragments.take(np.flatnonzero(own)))
            if not own.all():
                self._waiting.append(
                    _shrunk(fragments.take(np.flatnonzero(~own))) if own.any() else fragments
                )
        return taken

    def _chained(
        self, parts: list[RingFragments], decided: NDArray[np.bool_]
    ) -> tuple[RingFragments, Chains]:
        """Join fragments of several blocks; `parts` is emptied."""
        block_of = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        all_points = [part.points for part in parts]
        fragments = _together(parts)
        chains = chain(fragments, self._junctions, decided)
        fragments.reorder(chains.order)
        block_of = block_of[chains.order]
        ends = np.cumsum(fragments.lengths)
        starts = ends - fragments.lengths
        total = int(ends[-1]) if len(ends) else 0
        points = (np if total <= self._plan.limits.held_points else self._store).empty((total, 2), np.int32)
        for number, own_points in enumerate(all_points):
            own = np.flatnonzero(block_of == number)
            put(points, starts[own], own_points, fragments.begins[own], fragments.lengths[own])
        return chained(replace(fragments, points=points, begins=starts), chains), chains


def _shrunk(fragments: RingFragments) -> RingFragments:
    """Drop the points of fragments that are gone, once these are the majority."""
    if in_file(fragments.points):
        return fragments
    return fragments.compact() if 2 * int(fragments.lengths.sum()) < len(fragments.points) else fragments


def _together(parts: list[RingFragments]) -> RingFragments:
    """Concatenate fragments, without their points; `parts` is emptied."""
    columns = {name: [getattr(part, name) for part in parts] for name in RingFragments.columns()}
    parts.clear()
    joined = {name: np.concatenate(columns.pop(name) or [np.zeros(0, np.int64)]) for name in list(columns)}
    return RingFragments(points=np.zeros((0, 2), np.int32), **joined)


def _merged(joined: Polygons, inside: Polygons) -> list[Polygons]:
    """Merge two lists in the order of last pixels."""
    if not len(joined) or not len(inside):
        return [part for part in (joined, inside) if len(part)]
    together = Polygons.concat([joined, inside])
    return [together.take(np.argsort(together.table.lasts))]


@dataclass(frozen=True, kw_only=True)
class Chains:
    """How fragments follow one another.

    Attributes:
        begins: begin of each chain in `order`, with the total at the end.
        closed: bool, which chains are whole rings.
        linked: bool (k, 2), arrivals at junctions that a fragment follows.
    """

    order: Ints
    begins: Ints
    closed: NDArray[np.bool_]
    linked: NDArray[np.bool_]


def chain(fragments: RingFragments, junctions: Junctions, decided: NDArray[np.bool_]) -> Chains:
    """Find the fragments that follow one another; `decided` junctions are known to join objects or not."""
    whole = np.flatnonzero(fragments.start_keys == NO_KEY)
    parts = np.flatnonzero(fragments.start_keys != NO_KEY)
    starts, ends = fragments.start_keys[parts], fragments.end_keys[parts]
    linked = np.zeros(junctions.arrivals.shape, np.bool_)
    if len(parts) and decided.any():
        one = junctions.objects[decided, 0] == junctions.objects[decided, 1]
        departures = junctions.departures[decided]
        departures = np.where(one[:, None], departures[:, ::-1], departures).ravel()
        arrivals = junctions.arrivals[decided].ravel()
        position, met = _lookup(arrivals, ends)
        ends[met] = departures[position[met]]
        linked[decided] = np.isin(arrivals, fragments.end_keys[parts]).reshape(-1, 2)
        linked[decided] &= np.isin(departures, starts).reshape(-1, 2)
    position, met = _lookup(starts, ends)
    successors = np.where(met, position, NONE).astype(np.int32)
    reached = np.zeros(len(parts), np.bool_)
    reached[successors[met]] = True
    steps, begins = walk_chains(
        successors, np.concatenate([np.flatnonzero(~reached), np.flatnonzero(reached)])
    )
    closed = reached[steps[begins[:-1]]]
    return Chains(
        order=np.concatenate([parts[steps], whole]),
        begins=np.concatenate([begins[:-1], len(parts) + np.arange(len(whole) + 1)]),
        closed=np.concatenate([closed, np.ones(len(whole), np.bool_)]),
        linked=linked,
    )


def _lookup(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the index in `keys` of each wanted one, and whether it is there."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    order = np.argsort(keys)
    position = order[np.searchsorted(keys[order], wanted).clip(max=len(order) - 1)]
    return position, keys[position] == wanted


def chained(parts: RingFragments, chains: Chains) -> RingFragments:
    """Merge fragments, whose points follow one another in the order of their chains, into one a chain."""
    begins = chains.begins
    chain_of = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    # A ring starts at its first vertex in row-major order.
    first = np.lexsort((parts.positions, chain_of))[begins[:-1]]
    return RingFragments(
        points=parts.points,
        begins=parts.begins[begins[:-1]],
        lengths=np.add.reduceat(parts.lengths, begins[:-1]) if len(begins) > 1 else parts.lengths,
        objects=parts.objects[begins[:-1]],
        start_keys=np.where(chains.closed, NO_KEY, parts.start_keys[begins[:-1]]),
        end_keys=np.where(chains.closed, NO_KEY, parts.end_keys[begins[1:] - 1]),
        positions=parts.positions[first],
        offsets=parts.begins[first] + parts.offsets[first] - parts.begins[begins[:-1]],
    )
