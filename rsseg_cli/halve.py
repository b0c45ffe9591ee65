"""Overviews: uint8 rows at half the size."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

NODATA = 255
Overviews = Literal["mode", "average"]
Rows = NDArray[np.uint8]


def halve(rows: Rows, resampling: Overviews) -> Rows:
    """(bands, rows, cols) at half the size, rounded up; 255 only where all four pixels are 255.

    "mode": the value that most of the valid pixels have, of equals the upper left. "average": their mean,
    rounded.
    """
    _, height, width = rows.shape
    if height % 2 or width % 2:
        rows = np.pad(rows, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    a, b = rows[:, ::2, ::2], rows[:, ::2, 1::2]
    c, d = rows[:, 1::2, ::2], rows[:, 1::2, 1::2]
    if resampling == "average":
        return _mean_of_four(a, b, c, d)
    return _mode_of_four(*(np.ascontiguousarray(part) for part in (a, b, c, d)))


def _mode_of_four(a: Rows, b: Rows, c: Rows, d: Rows) -> Rows:
    by_a = (a == b) | (a == c) | (a == d)
    by_b = (b == c) | (b == d)
    by_c = c == d
    first = a
    if any(int(part.max()) == NODATA for part in (a, b, c, d)):
        by_a &= a != NODATA
        by_b &= b != NODATA
        by_c &= c != NODATA
        for other in (b, c, d):
            first = np.where(first == NODATA, other, first)
    return np.where(by_a, a, np.where(by_b, b, np.where(by_c, c, first)))


def _mean_of_four(a: Rows, b: Rows, c: Rows, d: Rows) -> Rows:
    parts = (a, b, c, d)
    total = sum((part.astype(np.uint16) for part in parts[1:]), a.astype(np.uint16))
    if not any(int(part.max()) == NODATA for part in parts):
        return ((total + 2) >> 2).astype(np.uint8)
    empty = sum(((part == NODATA).astype(np.uint16) for part in parts[1:]), (a == NODATA).astype(np.uint16))
    count = np.maximum(4 - empty, 1)
    mean = (total - NODATA * empty + count // 2) // count
    return np.where(empty == 4, NODATA, mean).astype(np.uint8)
