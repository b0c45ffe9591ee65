"""One multipolygon a class, gathered in files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from rsseg_cli.errors import OutputError
from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.polygons import Polygons
from rsseg_cli.vector.rings import ObjectTable
from rsseg_cli.vector.storage import MemmapStore, chunks, release_pages

_HEAD = 9  # bytes: order, type, number of parts
_MULTIPOLYGON = 6


@dataclass(kw_only=True)
class _Gathered:
    """A class so far: its polygons in a file, and a table of their sums."""

    file: IO[bytes]
    count: int = 0
    size: int = 0
    sums: list[Polygons] = field(default_factory=list)


def dissolve(polygons: Iterator[Polygons], folder: Path) -> Iterator[Polygons]:
    """Yield one multipolygon a class once all polygons have been gathered in files of a folder."""
    gathered = Dissolver(folder)
    for part in polygons:
        gathered.add(part)
    yield from gathered.finish()


class Dissolver:
    """Gathers polygons in files of a folder, by class."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._store = folder, MemmapStore(folder)
        self._classes: dict[int, _Gathered] = {}

    def add(self, polygons: Polygons) -> None:
        """Gather polygons."""
        for value in np.unique(polygons.table.classes).tolist():
            part = polygons.take(np.flatnonzero(polygons.table.classes == value))
            if value not in self._classes:
                self._classes[value] = _Gathered(file=tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
            found = self._classes[value]
            try:
                for blob in part.wkb:
                    found.file.writelines(chunks(blob))
            except OSError as err:
                raise OutputError(
                    f"{self._folder.parent}: cannot be written ({err}). Is the disk full?"
                ) from err
            found.count += len(part)
            found.size += sum(map(len, part.wkb))
            found.sums.append(_sum(replace(part, wkb=np.full(len(part), b"", object))))
            if len(found.sums) > 64:
                found.sums = [_sum(Polygons.concat(found.sums))]

    def finish(self) -> Iterator[Polygons]:
        """Yield a multipolygon for each class, by class."""
        for _, found in sorted(self._classes.items()):
            yield self._multipolygon(found)

    def _multipolygon(self, found: _Gathered) -> Polygons:
        whole = self._store.empty(_HEAD + found.size, np.uint8)
        head = b"\x01" + _MULTIPOLYGON.to_bytes(4, "little") + found.count.to_bytes(4, "little")
        whole[:_HEAD] = np.frombuffer(head, np.uint8)
        found.file.seek(0)
        position = _HEAD
        while part := found.file.read(1 << 20):
            whole[position : position + len(part)] = np.frombuffer(part, np.uint8)
            position += len(part)
            release_pages(whole)
        found.file.close()
        wkb = np.empty(1, object)
        wkb[0] = whole
        return replace(_sum(Polygons.concat(found.sums)), wkb=wkb)


def _sum(polygons: Polygons) -> Polygons:
    """Sum up one class's polygons, without geometry."""
    boxes = polygons.boxes
    return Polygons(
        wkb=np.full(1, b"", object),
        boxes=np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None],
        table=ObjectTable.concat([]).joined(polygons.table, np.zeros(len(polygons), np.int64)),
        areas_m2=_exact_sum(polygons.areas_m2),
        perimeters_m=_exact_sum(polygons.perimeters_m),
        vertices=polygons.vertices.sum(keepdims=True),
    )


def _exact_sum(values: Floats) -> Floats:
    """Sum to four decimals, (1,): sums of integers do not depend on their order."""
    total: Floats = np.rint(values * 1e4).sum(keepdims=True) / 1e4
    return total
