"""One multipolygon a class, gathered in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.polygons import Polygons, union
from rsseg_cli.vector.storage import Column, release_pages

_HEAD = 9  # bytes: order, type, number of parts
_MULTIPOLYGON = 6


def dissolve(polygons: Iterator[Polygons], folder: Path) -> Iterator[Polygons]:
    """Yield one multipolygon a class, by class, once all polygons have been gathered in files of a folder."""
    gathered: dict[int, _ClassFile] = {}
    for part in polygons:
        for value in np.unique(part.table.classes).tolist():
            if value not in gathered:
                gathered[value] = _ClassFile(folder)
            gathered[value].add(part.take(np.flatnonzero(part.table.classes == value)))
    for _, own in sorted(gathered.items()):
        yield own.multipolygon()


class _ClassFile:
    """A class so far: its polygons in a file, and sums of their attributes."""

    def __init__(self, folder: Path) -> None:
        self._wkb, self._count = Column(folder, np.uint8), 0
        self._wkb.append(np.zeros(_HEAD, np.uint8))
        self._sums: list[Polygons] = []

    def add(self, polygons: Polygons) -> None:
        """Append polygons of the class."""
        for blob in polygons.wkb:
            several = blob[1] == _MULTIPOLYGON
            self._wkb.append(np.frombuffer(blob, np.uint8)[_HEAD if several else 0 :])
            self._count += int.from_bytes(bytes(blob[5:_HEAD]), "little") if several else 1
            release_pages(blob)
        self._sums.append(_sum(replace(polygons, wkb=np.full(len(polygons), b"", object))))
        if len(self._sums) > 64:
            self._sums = [_sum(Polygons.concat(self._sums))]

    def multipolygon(self) -> Polygons:
        """Return all polygons as one, in a file."""
        wkb = np.empty(1, object)
        wkb[0] = self._wkb.whole()
        head = b"\x01" + _MULTIPOLYGON.to_bytes(4, "little") + self._count.to_bytes(4, "little")
        wkb[0][:_HEAD] = np.frombuffer(head, np.uint8)
        return replace(_sum(Polygons.concat(self._sums)), wkb=wkb)


def _sum(polygons: Polygons) -> Polygons:
    """Sum up one class's polygons, without geometry."""
    nothing = np.zeros(0, np.int64)
    return Polygons(
        wkb=np.full(1, b"", object),
        table=polygons.table.take(nothing).joined(polygons.table, np.zeros(len(polygons), np.int64)),
        bounds=union(polygons.bounds),
        areas_m2=_exact_sum(polygons.areas_m2),
        perimeters_m=_exact_sum(polygons.perimeters_m),
        vertices=polygons.vertices.sum(keepdims=True),
    )


def _exact_sum(values: Floats) -> Floats:
    """Sum to four decimals, (1,): sums of integers do not depend on their order."""
    total: Floats = np.rint(values * 1e4).sum(keepdims=True) / 1e4
    return total
