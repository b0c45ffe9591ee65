"""The R-tree of an SQLite table, made of many boxes at once.

SQLite takes boxes one by one, 20 us each; packed by place and written node by node they take a tenth of it,
and the nodes overlap less. Boxes come in the order of a scene's rows, so that what is packed together lies
together. Their layout is that of SQLite's extension "rtree", GeoPackage's spatial index.
Source: Leutenegger et al. 1997, "STR: a simple and efficient algorithm for R-tree packing".
"""

from __future__ import annotations

import sqlite3

import numpy as np
from numpy.typing import NDArray

_CELL = np.dtype([("id", ">i8"), ("box", ">f4", 4)])  # left, right, bottom, top
_HEAD = 4  # bytes: depth of the tree (in the root), number of cells
ROOT = 1
GROUP = 1 << 16  # boxes that are packed together


class SpatialIndex:
    """A new R-tree that takes boxes in the order of their rows.

    Memory: GROUP boxes, and one in 51 of those before.

    Args:
        table: its name.
    """

    def __init__(self, database: sqlite3.Connection, table: str) -> None:
        self._database, self._quoted = database, table.replace('"', '""')
        database.execute(f'CREATE VIRTUAL TABLE "{self._quoted}" USING rtree(id, minx, maxx, miny, maxy)')
        query = f'SELECT length(data) FROM "{self._quoted}_node" WHERE nodeno = {ROOT}'
        self._size = database.execute(query).fetchone()[0]
        self._most = (self._size - _HEAD) // _CELL.itemsize
        self._count, self._following = 0, ROOT + 1
        self._held: list[NDArray[np.void]] = []
        self._leaves: list[NDArray[np.void]] = []

    def add(self, boxes: NDArray[np.float64]) -> None:
        """Take the next rows' boxes: (n, 4), left, bottom, right, top."""
        cells = np.zeros(len(boxes), _CELL)
        cells["id"] = self._count + np.arange(1, len(boxes) + 1)
        cells["box"] = _outwards(boxes)
        self._count += len(boxes)
        self._held.append(cells)
        if sum(map(len, self._held)) >= GROUP:
            self._write_leaves()

    def finish(self) -> None:
        """Write what is left, and the nodes above."""
        depth = 0
        if self._leaves or sum(map(len, self._held)) > self._most:
            self._write_leaves()
            depth, self._held = 1, self._leaves
        cells = _joined(self._held)
        while len(cells) > self._most:
            cells = self._pack(cells, "parent")
            depth += 1
        root = np.array([ROOT])
        self._own(cells, root.repeat(len(cells)), "parent" if depth else "rowid")
        self._write(root, [cells], depth)

    def _write_leaves(self) -> None:
        held, self._held = _joined(self._held), []
        if len(held):
            self._leaves.append(self._pack(held, "rowid"))

    def _pack(self, cells: NDArray[np.void], what: str) -> NDArray[np.void]:
        """Put cells into nodes and write these; the nodes' own cells."""
        cells = _packed(cells, self._most)
        begins = np.arange(0, len(cells), self._most)
        nodes = np.arange(self._following, self._following + len(begins))
        self._following += len(begins)
        parts = np.split(cells, begins[1:])
        self._write(nodes, parts)
        self._own(cells, np.repeat(nodes, [len(part) for part in parts]), what)
        above = np.zeros(len(begins), _CELL)
        above["id"] = nodes
        for side, choose in enumerate((np.minimum, np.maximum, np.minimum, np.maximum)):
            above["box"][:, side] = choose.reduceat(cells["box"][:, side], begins)
        return above

    def _own(self, cells: NDArray[np.void], nodes: NDArray[np.int64], what: str) -> None:
        """Say in which node each cell's row, or the node that it stands for, lies."""
        order = np.argsort(cells["id"])  # SQLite adds rows faster at a table's end
        self._database.executemany(
            f'INSERT INTO "{self._quoted}_{what}" VALUES (?, ?)',
            zip(cells["id"][order].tolist(), nodes[order].tolist(), strict=True),
        )

    def _write(self, nodes: NDArray[np.int64], parts: list[NDArray[np.void]], depth: int = 0) -> None:
        rows = (
            (
                int(node),
                (depth.to_bytes(2, "big") + len(part).to_bytes(2, "big") + part.tobytes()).ljust(
                    self._size, b"\0"
                ),
            )
            for node, part in zip(nodes, parts, strict=True)
        )
        self._database.executemany(f'INSERT OR REPLACE INTO "{self._quoted}_node" VALUES (?, ?)', rows)


def _joined(parts: list[NDArray[np.void]]) -> NDArray[np.void]:
    return np.concatenate([np.zeros(0, _CELL), *parts], dtype=_CELL)  # numpy alone would turn the bytes round


def _outwards(boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Left, right, bottom and top in single precision, never inside the box."""
    rounded = boxes[:, [0, 2, 1, 3]].astype(np.float32)
    exact = boxes[:, [0, 2, 1, 3]]
    for side, (inside, away) in enumerate(((np.greater, -np.inf), (np.less, np.inf)) * 2):
        moved = inside(rounded[:, side], exact[:, side])
        rounded[moved, side] = np.nextafter(rounded[moved, side], np.float32(away))
    return rounded


def _packed(cells: NDArray[np.void], most: int) -> NDArray[np.void]:
    """Cells in upright strips from left to right, from bottom to top in each."""
    strips = int(np.ceil(np.sqrt(np.ceil(len(cells) / most))))
    boxes = cells["box"].astype(np.float32)
    x, y = boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]
    strip = np.empty(len(cells), np.int32)
    strip[np.argsort(x, kind="stable")] = np.arange(len(cells)) // (-(-len(cells) // (strips * most)) * most)
    return cells[np.lexsort((y, strip))]
