"""Labels on coarser pixels of a parallel grid: the label with the largest area under each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rsseg_cli.label_format import IGNORE, Labels

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def source_pixels(start: int, count: int, scale: float, offset: float, size: int) -> slice:
    """Label pixels along one axis that lie under target pixels `start` to `start + count`; maybe none.

    Args:
        scale: label pixels a target pixel.
        offset: where target pixel 0 starts, label px.
        size: number of label pixels.
    """
    first = max(0, math.floor(offset + start * scale))
    return slice(first, max(first, min(size, math.ceil(offset + (start + count) * scale))))


def box_weights(start: int, count: int, scale: float, offset: float, pixels: slice) -> csr_matrix:
    """float32 (count, label pixels): length of each of `pixels` under each target pixel."""
    from scipy.sparse import csr_matrix

    low = (offset + (start + np.arange(count)) * scale)[:, None]
    taps = np.floor(low).astype(np.int64) + np.arange(math.ceil(scale) + 1)
    weights = np.minimum(taps + 1, low + scale) - np.maximum(taps, low)
    weights[(weights < 0) | (taps < pixels.start) | (taps >= pixels.stop)] = 0
    places = np.clip(taps, pixels.start, pixels.stop - 1) - pixels.start
    pointers = np.arange(0, taps.size + 1, taps.shape[1])
    shape = (count, pixels.stop - pixels.start)
    return csr_matrix((weights.astype(np.float32).ravel(), places.ravel(), pointers), shape)


def most_frequent(labels: Labels, down: csr_matrix, across: csr_matrix) -> Labels:
    """The label with the largest area under each target pixel, of several the smallest; 255 without any.

    Args:
        labels: (rows, cols); 255 votes as any other.
        down, across: of `box_weights`.
    """
    largest = np.zeros((down.shape[0], across.shape[0]), np.float32)
    found = np.full(largest.shape, IGNORE, np.uint8)
    (present,) = np.nonzero(np.bincount(labels.ravel(), minlength=256))
    for label in present:
        area = (across @ np.ascontiguousarray((down @ (labels == label).astype(np.float32)).T)).T
        wins = area > largest * np.float32(1 + 1e-5)
        found[wins], largest[wins] = label, area[wins]
    return found
