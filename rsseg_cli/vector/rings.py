"""Objects' attributes, and rings put together of fragments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import NONE, Ints, walk_chains
from rsseg_cli.vector.storage import release_pages
from rsseg_cli.vector.trace import NO_KEY, Junctions, RingFragments, spans


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """Attributes of objects beside their rings.

    Attributes:
        lasts: int64, last pixel in row-major order.
        confidence_counts, confidence_sums, confidence_mins: of their pixels, 0-254.
    """

    classes: Ints
    lasts: Ints
    confidence_counts: Ints
    confidence_sums: Ints
    confidence_mins: Ints

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def concat(cls, tables: Sequence[ObjectTable]) -> ObjectTable:
        """Concatenate tables; none give an empty one."""
        none = np.zeros(0, np.int64)
        columns = {part.name: [getattr(table, part.name) for table in tables] for part in fields(cls)}
        return cls(**{name: np.concatenate([none, *parts]) for name, parts in columns.items()})

    def take(self, chosen: Ints | NDArray[np.bool_]) -> ObjectTable:
        """Select objects, in the given order."""
        return ObjectTable(**{part.name: getattr(self, part.name)[chosen] for part in fields(self)})

    def joined(self, other: ObjectTable, group_of: Ints) -> ObjectTable:
        """Combine the objects of both tables by group, counted from 0: this table's, then the other's."""
        both = ObjectTable.concat([self, other])
        count = int(group_of.max(initial=-1)) + 1
        classes, lasts, counts, sums = (np.zeros(count, np.int64) for _ in range(4))
        mins = np.full(count, 255, np.int64)
        classes[group_of] = both.classes
        np.maximum.at(lasts, group_of, both.lasts)
        np.add.at(counts, group_of, both.confidence_counts)
        np.add.at(sums, group_of, both.confidence_sums)
        np.minimum.at(mins, group_of, both.confidence_mins)
        return ObjectTable(
            classes=classes, lasts=lasts, confidence_counts=counts, confidence_sums=sums, confidence_mins=mins
        )


@dataclass(frozen=True, kw_only=True)
class Chains:
    """How fragments follow one another.

    Attributes:
        order: the fragments chain by chain.
        begins: begin of each chain in `order`, with the total at the end.
        closed: bool, which chains are whole rings.
        linked: bool (k, 2), arrivals at junctions that a fragment follows.
    """

    order: Ints
    begins: Ints
    closed: NDArray[np.bool_]
    linked: NDArray[np.bool_]


def chain(fragments: RingFragments, junctions: Junctions, decided: NDArray[np.bool_]) -> Chains:
    """Find the fragments that follow one another; at `decided` junctions it is known whether the objects are
    one.
    """
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


def ring_areas(rings: RingFragments, at_once: int) -> Ints:
    """Return twice the rings' areas in units, negative if the region lies inside (y points down)."""
    areas = np.zeros(len(rings), np.int64)
    ends = np.cumsum(rings.lengths)
    start = 0
    while start < len(rings):
        at = int(ends[start] - rings.lengths[start])
        stop = max(start + 1, int(np.searchsorted(ends, at + at_once, "right")))
        if stop == start + 1:
            begin = rings.begins[start]
            ring = rings.points[begin : begin + rings.lengths[start]]
            for first in range(0, len(ring), at_once):
                x, y = ring[first : first + at_once + 1].astype(np.int64).T
                areas[start] += (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
            (x0, x1), (y0, y1) = ring[[-1, 0]].astype(np.int64).T
            areas[start] += x0 * y1 - x1 * y0
        else:
            lengths = rings.lengths[start:stop]
            x, y = rings.points.take(spans(rings.begins[start:stop], lengths), axis=0).astype(np.int64).T
            last = np.cumsum(lengths)
            following = np.arange(1, len(x) + 1)
            following[last - 1] = last - lengths
            crossed = x * y[following] - x[following] * y
            areas[start:stop] = np.add.reduceat(crossed, last - lengths)
        release_pages(rings.points)
        start = stop
    return areas
