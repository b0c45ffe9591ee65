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
        first = part[1] - 1 - origin[1]  # -1 at the raster's side
        pixels = labels[part[0] - 1 - origin[0] :, max(first, 0) :]
        pixels = np.pad(pixels, ((0, 0), (int(first < 0), 1)), constant_values=nodata)
        pixels = pixels[: side + 1, : side + 1]
        height, width = shape[0] - part[0], shape[1] - part[1]
        return cls(
            classes=classes,
            cols=_lines(pixels[1 : height + 1]) + np.int32(part[1]),
            rows=_lines(pixels[:, 1 : width + 1].T) + np.int32(part[0]),
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


def _lines(pixels: Labels) -> NDArray[np.int32]:
    """Return the columns that differ from the next one in all rows."""
    if not len(pixels):
        return np.zeros(0, _LINE)
    some = pixels[[0, len(pixels) // 2, -1]]
    at = np.flatnonzero((some[:, 1:] != some[:, :-1]).all(axis=0))
    return at[(pixels[:, at + 1] != pixels[:, at]).all(axis=0)].astype(_LINE)
