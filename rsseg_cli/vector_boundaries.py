"""Simplified boundaries of a whole raster: made part by part, kept in files, read by rows.

A part takes some rows and some columns, so that what a worker holds does not grow with the raster's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError
from rsseg_cli.vector_block import BlockPlan, Stopwatch
from rsseg_cli.vector_graph import DOWN, LEFT, NONE, RIGHT, UP, Graph, Ints, build_graph
from rsseg_cli.vector_simplify import CELL, Simplifier

PART_PX = 8 * CELL  # side of a part; a cell more is read on each side
_OPPOSITE = {RIGHT: LEFT, LEFT: RIGHT, DOWN: UP, UP: DOWN}
_VERTEX = np.dtype([("place", "<i8"), ("ends", "<i8", 4), ("slots", "u1"), ("rim", "?")])
_COUNT = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class StoredBoundaries:
    """A graph in files, one for each part of the raster.

    Attributes:
        folder: where they lie.
        height, width: of the raster, px.
        side: corner rows and columns of a part, a multiple of CELL.
    """

    folder: str
    height: int
    width: int
    side: int

    @property
    def parts(self) -> list[tuple[int, int]]:
        """First corner row and column of each part."""
        return [
            (row, col)
            for row in range(0, self.height + 1, self.side)
            for col in range(0, self.width + 1, self.side)
        ]

    def path(self, row: int, col: int) -> Path:
        """File of the part that begins at a corner row and column."""
        return Path(self.folder) / f".corners-{row}-{col}.bin"

    def store(self, graph: Graph, row: int, col: int) -> None:
        """Write the vertices of a part.

        Raises:
            OutputError: the disk is full.
        """
        own = (graph.rows >= row) & (graph.rows < row + self.side)
        own &= (graph.cols >= col) & (graph.cols < col + self.side)
        chosen, places = np.flatnonzero(own), graph.places
        ends = graph.twin.reshape(-1, 4)[chosen]
        vertices = np.empty(len(chosen), _VERTEX)
        vertices["place"], vertices["slots"] = places[chosen], graph.slots[chosen]
        vertices["ends"] = np.where(ends == NONE, NONE, 4 * places[ends >> 2] + (ends & 3))
        vertices["rim"] = graph.rim[chosen]
        begins = np.searchsorted(graph.rows[chosen], row + np.arange(self.side + 1)).astype(_COUNT)
        path = self.path(row, col)
        try:
            path.write_bytes(begins.tobytes() + vertices.tobytes())
        except OSError as err:
            raise OutputError(f"{path.parent.parent}: cannot be written ({err}). Is the disk full?") from err

    def read(self, low: int, high: int) -> Graph:
        """The graph of the corner rows `low` to `high`, and of the vertices that their edges lead to."""
        found = [
            self._rows(row, col, low, high)
            for row in range(low // self.side * self.side, high + 1, self.side)
            for col in range(0, self.width + 1, self.side)
        ]
        vertices = np.concatenate(found)
        vertices = vertices[np.argsort(vertices["place"])]
        return _graph(vertices, self.width)

    def _rows(self, row: int, col: int, low: int, high: int) -> NDArray[Any]:
        """Vertices of a part in some of its rows."""
        with open(self.path(row, col), "rb") as file:
            first, end = max(low - row, 0), min(high + 1 - row, self.side)
            file.seek(first * _COUNT.itemsize)
            begins = np.frombuffer(file.read((end - first + 1) * _COUNT.itemsize), _COUNT)
            file.seek((self.side + 1) * _COUNT.itemsize + int(begins[0]) * _VERTEX.itemsize)
            return np.frombuffer(file.read(int(begins[-1] - begins[0]) * _VERTEX.itemsize), _VERTEX)


def _graph(vertices: NDArray[Any], width: int) -> Graph:
    """The graph of stored vertices in their order."""
    own, ends = vertices["place"], np.ascontiguousarray(vertices["ends"])
    known = ends != NONE
    far = np.setdiff1d(ends[known] >> 2, own)
    places = np.concatenate([own, far])
    order = np.argsort(places)
    place, slots = places[order], np.concatenate([vertices["slots"], np.zeros(len(far), np.uint8)])[order]
    rows, cols = (part.astype(np.int32) for part in np.divmod(place, width + 1))
    at = np.searchsorted(place, own)
    twin = np.full((len(place), 4), NONE, np.int32)
    twin[at] = np.where(known, 4 * np.searchsorted(place, ends >> 2) + (ends & 3), NONE)
    for slot, by_line in ((RIGHT, at), (DOWN, at[np.argsort(cols[at], kind="stable")])):
        _link_straight(twin, slots, by_line, (rows, cols)[slot == DOWN], slot)
    rim = np.concatenate([vertices["rim"], np.zeros(len(far), np.bool_)])[order]
    return Graph(rows=rows, cols=cols, slots=slots, twin=twin.ravel(), rim=rim, width=width)


def _link_straight(
    twin: NDArray[np.int32], slots: NDArray[np.uint8], by_line: Ints, lines: NDArray[np.int32], slot: int
) -> None:
    """Set ends that no part knew: edges that run straight to the next vertex in their row or column.

    Args:
        by_line: vertices row by row, or column by column.
        lines: row or column of each vertex.
        slot: RIGHT or DOWN.
    """
    here, ahead = by_line[:-1], by_line[1:]
    same = lines[here] == lines[ahead]
    for one, other, way in ((here, ahead, slot), (ahead, here, _OPPOSITE[slot])):
        open_end = same & (slots[one] >> way & 1).astype(bool) & (twin[one, way] == NONE)
        twin[one[open_end], way] = 4 * other[open_end] + _OPPOSITE[way]


def simplify_part(shared: tuple[BlockPlan, StoredBoundaries], row: int, col: int) -> dict[str, float]:
    """Simplify the boundaries of a part and store them; seconds by stage."""
    plan, stored = shared
    watch = Stopwatch()
    source, reach = plan.source, stored.side + CELL
    rows, cols = (
        (max(place - CELL, 0), min(place + reach, size))
        for place, size in ((row, source.height), (col, source.width))
    )
    # Corners lie between pixels: one more row and column of these on each side, but for the raster's sides.
    first, end = max(cols[0] - 1, 0), min(cols[1] + 1, source.width)
    labels = source.read(rows[0] - 1, rows[1] - rows[0] + 2, first, end - first)
    watch.lap("read")
    graph = build_graph(labels, rows[0], source.nodata, first, source.width)
    del labels
    watch.lap("boundaries")
    if len(graph):
        simplifier = Simplifier(graph, plan.shaping.tolerance_m2, plan.ground, rows, cols)
        for offset in (0, CELL // 2):
            simplifier.run(offset)
        graph = graph.without(~simplifier.alive)
    watch.lap("shape")
    stored.store(graph, row, col)
    watch.lap("hand over")
    return watch.seconds
