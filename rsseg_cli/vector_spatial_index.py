"""The R-tree of an SQLite table, made at once.

SQLite takes boxes one by one, 20 us each; packed by place and written node by node they take a tenth of it,
and the nodes overlap less. Their layout is that of SQLite's extension "rtree", GeoPackage's spatial index.
Source: Leutenegger et al. 1997, "STR: a simple and efficient algorithm for R-tree packing".
"""

from __future__ import annotations

import sqlite3

import numpy as np
from numpy.typing import NDArray

_CELL = np.dtype([("id", ">i8"), ("box", ">f4", 4)])  # left, right, bottom, top
_HEAD = 4  # bytes: depth of the tree (in the root), number of cells
ROOT = 1


def fill_index(database: sqlite3.Connection, table: str, boxes: NDArray[np.float64]) -> None:
    """Fill an empty R-tree.

    Args:
        table: its name.
        boxes: (n, 4), left, bottom, right, top of the rows 1 ... n.
    """
    quoted = table.replace('"', '""')
    size = database.execute(f'SELECT length(data) FROM "{quoted}_node" WHERE nodeno = {ROOT}').fetchone()[0]
    most = (size - _HEAD) // _CELL.itemsize
    cells = np.zeros(len(boxes), _CELL)
    cells["id"] = np.arange(1, len(boxes) + 1)
    cells["box"] = _outwards(boxes)
    depth, following = 0, ROOT + 1
    while len(cells) > most:
        cells = _packed(cells, most)
        begins = np.arange(0, len(cells), most)
        nodes = np.arange(following, following + len(begins))
        following += len(begins)
        parts = np.split(cells, begins[1:])
        _write(database, quoted, nodes, parts, size)
        owner = np.repeat(nodes, [len(part) for part in parts]).tolist()
        what = "rowid" if depth == 0 else "parent"
        database.executemany(
            f'INSERT INTO "{quoted}_{what}" VALUES (?, ?)', zip(cells["id"].tolist(), owner, strict=True)
        )
        above = np.zeros(len(begins), _CELL)
        above["id"] = nodes
        for side, choose in enumerate((np.minimum, np.maximum, np.minimum, np.maximum)):
            above["box"][:, side] = choose.reduceat(cells["box"][:, side], begins)
        cells, depth = above, depth + 1
    what = "rowid" if depth == 0 else "parent"
    database.executemany(
        f'INSERT INTO "{quoted}_{what}" VALUES (?, {ROOT})', zip(cells["id"].tolist(), strict=True)
    )
    _write(database, quoted, np.array([ROOT]), [cells], size, depth)


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


def _write(
    database: sqlite3.Connection,
    quoted: str,
    nodes: NDArray[np.int64],
    parts: list[NDArray[np.void]],
    size: int,
    depth: int = 0,
) -> None:
    rows = (
        (
            int(node),
            (depth.to_bytes(2, "big") + len(part).to_bytes(2, "big") + part.tobytes()).ljust(size, b"\0"),
        )
        for node, part in zip(nodes, parts, strict=True)
    )
    database.executemany(f'INSERT OR REPLACE INTO "{quoted}_node" VALUES (?, ?)', rows)
