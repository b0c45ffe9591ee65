"""Objects' attributes, and rings put together of pieces."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import NONE, Ints, in_order
from rsseg_cli.vector.spill import let_go
from rsseg_cli.vector.trace import NO_KEY, Joints, Pieces, spans

AT_ONCE = 1 << 17  # points taken together; some 100 bytes each


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """What is known of objects beside their rings.

    Attributes:
        classes: int64.
        lasts: int64, place of the last pixel in row-major order.
        confidence_counts, confidence_sums, confidence_mins: of their pixels, 0-254.
    """

    classes: Ints
    lasts: Ints
    confidence_counts: Ints
    confidence_sums: Ints
    confidence_mins: Ints

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, chosen: Ints | NDArray[np.bool_]) -> ObjectTable:
        """Some of the objects, in the given order."""
        return ObjectTable(**{part.name: getattr(self, part.name)[chosen] for part in fields(self)})

    def joined(self, other: ObjectTable, group_of: Ints) -> ObjectTable:
        """Objects of both tables as those of groups.

        Args:
            group_of: group of each object of this table, then of each of the other; groups count from 0.
        """
        both = {
            part.name: np.concatenate([getattr(self, part.name), getattr(other, part.name)])
            for part in fields(self)
        }
        count = int(group_of.max(initial=-1)) + 1
        classes, lasts, counts, sums = (np.zeros(count, np.int64) for _ in range(4))
        mins = np.full(count, 255, np.int64)
        classes[group_of] = both["classes"]
        np.maximum.at(lasts, group_of, both["lasts"])
        np.add.at(counts, group_of, both["confidence_counts"])
        np.add.at(sums, group_of, both["confidence_sums"])
        np.minimum.at(mins, group_of, both["confidence_mins"])
        return ObjectTable(
            classes=classes, lasts=lasts, confidence_counts=counts, confidence_sums=sums, confidence_mins=mins
        )


@dataclass(frozen=True, kw_only=True)
class Chains:
    """How pieces follow one another.

    Attributes:
        order: the pieces chain by chain.
        begins: where each chain begins among them, with the total at the end.
        closed: bool, which chains are whole rings.
        linked: bool (k, 2), joints' arrivals after which a piece follows.
    """

    order: Ints
    begins: Ints
    closed: NDArray[np.bool_]
    linked: NDArray[np.bool_]


def chain(pieces: Pieces, joints: Joints, decided: NDArray[np.bool_]) -> Chains:
    """Find the pieces that follow one another.

    Args:
        decided: joints of which it is known whether their two objects are one.
    """
    whole = np.flatnonzero(pieces.start_keys == NO_KEY)
    parts = np.flatnonzero(pieces.start_keys != NO_KEY)
    starts, ends = pieces.start_keys[parts], pieces.end_keys[parts]
    linked = np.zeros(joints.arrivals.shape, np.bool_)
    if len(parts) and decided.any():
        one = joints.objects[decided, 0] == joints.objects[decided, 1]
        departures = joints.departures[decided]
        departures = np.where(one[:, None], departures[:, ::-1], departures).ravel()
        arrivals = joints.arrivals[decided].ravel()
        place, met = _found(arrivals, ends)
        ends[met] = departures[place[met]]
        linked[decided] = np.isin(arrivals, pieces.end_keys[parts]).reshape(-1, 2)
        linked[decided] &= np.isin(departures, starts).reshape(-1, 2)
    place, met = _found(starts, ends)
    successors = np.where(met, place, NONE).astype(np.int32)
    reached = np.zeros(len(parts), np.bool_)
    reached[successors[met]] = True
    steps, begins = in_order(successors, np.concatenate([np.flatnonzero(~reached), np.flatnonzero(reached)]))
    closed = reached[steps[begins[:-1]]]
    return Chains(
        order=np.concatenate([parts[steps], whole]),
        begins=np.concatenate([begins[:-1], len(parts) + np.arange(len(whole) + 1)]),
        closed=np.concatenate([closed, np.ones(len(whole), np.bool_)]),
        linked=linked,
    )


def _found(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where among `keys` each wanted one is, and whether it is there."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    order = np.argsort(keys)
    place = order[np.searchsorted(keys[order], wanted).clip(max=len(order) - 1)]
    return place, keys[place] == wanted


def chained(parts: Pieces, chains: Chains) -> Pieces:
    """Pieces, point by point one after the other in the order of their chains, as one piece a chain."""
    begins = chains.begins
    chain_of = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    # A ring starts at its first vertex in row-major order.
    first = np.lexsort((parts.places, chain_of))[begins[:-1]]
    return Pieces(
        points=parts.points,
        begins=parts.begins[begins[:-1]],
        lengths=np.add.reduceat(parts.lengths, begins[:-1]) if len(begins) > 1 else parts.lengths,
        objects=parts.objects[begins[:-1]],
        start_keys=np.where(chains.closed, NO_KEY, parts.start_keys[begins[:-1]]),
        end_keys=np.where(chains.closed, NO_KEY, parts.end_keys[begins[1:] - 1]),
        places=parts.places[first],
        offsets=parts.begins[first] + parts.offsets[first] - parts.begins[begins[:-1]],
    )


def ring_areas(rings: Pieces) -> Ints:
    """Twice the rings' areas in units, negative where the region lies inside (y points down)."""
    areas = np.zeros(len(rings), np.int64)
    ends = np.cumsum(rings.lengths)
    start = 0
    while start < len(rings):
        at = int(ends[start] - rings.lengths[start])
        stop = max(start + 1, int(np.searchsorted(ends, at + AT_ONCE, "right")))
        if stop == start + 1:
            begin = rings.begins[start]
            ring = rings.points[begin : begin + rings.lengths[start]]
            for first in range(0, len(ring), AT_ONCE):
                x, y = ring[first : first + AT_ONCE + 1].astype(np.int64).T
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
        let_go(rings.points)
        start = stop
    return areas
