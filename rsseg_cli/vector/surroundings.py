"""What pixels say of the boundaries that are kept of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.graph import Graph, Labels
from rsseg_cli.vector.storage import load_tables, store_tables
from rsseg_cli.vector.trace import LEFT_COL, LEFT_ROW

AROUND = np.dtype([("position", "<i8"), ("classes", "<u2", 4)])
_LINE = np.dtype("<i4")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a part's pixels say of its vertices.

    Attributes:
        classes: of the pixels on the left of each vertex's half-edges, with its position.
        cols, rows: those in which a boundary runs straight through the whole part.
    """

    classes: NDArray[Any]
    cols: NDArray[np.int32]
    rows: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        labels: Labels,
        origin: tuple[int, int],
        graph: Graph,
        part: tuple[int, int],
        side: int,
        shape: tuple[int, int],
        nodata: int,
    ) -> Surroundings:
        """Look at pixels, the first of which lies at `origin`, around the vertices of a part of a raster."""
        classes = np.zeros(len(graph), AROUND)
        classes["position"] = graph.positions
        for slot in range(4):
            rows, cols = graph.rows + LEFT_ROW[slot] - origin[0], graph.cols + LEFT_COL[slot] - origin[1]
            inside = (cols >= 0) & (cols < labels.shape[1])
            classes["classes"][:, slot] = np.where(inside, labels[rows, np.where(inside, cols, 0)], nodata)
        top, left = part[0] - origin[0], part[1] - origin[1]
        height, width = (min(side, size - first) for size, first in zip(shape, part, strict=True))
        across = labels[top - 1 : top + side, left : left + width].T
        end = min(left + side, labels.shape[1] + 1)
        return cls(
            classes=classes,
            cols=_lines(labels[top : top + height], left, end, nodata) + np.int32(part[1]),
            rows=_lines(across, 1, across.shape[1], nodata) + np.int32(part[0]),
        )

    @classmethod
    def joined(cls, parts: dict[tuple[int, int], Surroundings]) -> Surroundings:
        """Return what parts that make up a larger one say together, by first corner row and column."""

        def through(name: str, axis: int) -> NDArray[np.int32]:
            """Lines that run through all parts one after the other."""
            lines: dict[int, list[NDArray[np.int32]]] = {}
            for place, part in parts.items():
                lines.setdefault(place[axis], []).append(getattr(part, name))
            return np.concatenate([reduce(np.intersect1d, following) for following in lines.values()])

        classes = np.concatenate([part.classes for part in parts.values()])
        return cls(classes=classes, cols=through("cols", 1), rows=through("rows", 0))

    def of_classes(self, wanted: frozenset[int]) -> Surroundings:
        """Return what is said of vertices beside some classes."""
        beside = np.isin(self.classes["classes"], list(wanted)).any(axis=1)
        return replace(self, classes=self.classes[beside])

    def store(self, path: Path) -> None:
        """Write to a file."""
        store_tables(path, self.classes, self.cols, self.rows)

    @classmethod
    def load(cls, path: Path) -> Surroundings:
        """Read from a file."""
        classes, cols, rows = load_tables(path, AROUND, _LINE, _LINE)
        return cls(classes=classes, cols=cols, rows=rows)


def _lines(pixels: Labels, first: int, end: int, nodata: int) -> NDArray[np.int32]:
    """Return the columns from `first` on, counted from there, that differ from the one before in all rows."""

    def columns(rows: Labels, at: NDArray[Any]) -> Labels:
        inside = (at >= 0) & (at < rows.shape[1])
        return np.where(inside, rows[:, np.where(inside, at, 0)], nodata)

    if not len(pixels):
        return np.zeros(0, _LINE)
    at = np.arange(first, end)
    for rows in (pixels[[0, len(pixels) // 2, -1]], pixels):
        at = at[(columns(rows, at) != columns(rows, at - 1)).all(axis=0)]
    return (at - first).astype(_LINE)
