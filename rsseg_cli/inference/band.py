"""Which pixels of a class map may change: those near a boundary between two classes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.raster import classes

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
CLOSE = 1e-6  # of the distance, against rounding


class Band:
    """The pixels within a distance of a class boundary.

    A pixel beside another class (above, below, left or right) lies at a boundary, half a pixel away from it;
    any other pixel lies half a pixel further away than its centre from that of the nearest pixel at a
    boundary. Pixels at a boundary are always in the band. The edge to pixels without a class is no boundary.

    Args:
        distance_m: half the width of the band.
        gsd_m: metres a pixel along a row and along a column.
    """

    def __init__(self, distance_m: float, gsd_m: tuple[float, float]) -> None:
        across, down = gsd_m
        radius = max(0.0, distance_m - (across + down) / 4) * (1 + CLOSE)
        steps = range(int(radius / down) + 1)
        self._widths = [int(math.sqrt(max(0.0, radius**2 - (step * down) ** 2)) / across) for step in steps]
        self.margin = max(len(self._widths) - 1, self._widths[0]) + 1

    def mask(self, labels: Labels) -> Mask:
        """Pixels in the band, without `margin` px along each edge.

        Args:
            labels: class numbers (h + 2 margin, w + 2 margin), 255 where no class is known.
        """
        inner = (slice(self.margin, -self.margin),) * 2
        edges = boundary_pixels(labels)
        if not edges.any():
            return np.zeros(edges[inner].shape, np.bool_)
        near = np.zeros_like(edges)
        grown, width, height = edges, 0, len(edges)
        for step in range(len(self._widths) - 1, -1, -1):  # widths fall with the steps
            while width < self._widths[step]:
                more = min(self._widths[step] - width, 2 * width + 1)
                grown, width = _widened(grown, more), width + more
            near[step:] |= grown[: height - step]
            near[: height - step] |= grown[step:]
        near &= labels != classes.NODATA
        return near[inner]


def boundary_pixels(labels: Labels) -> Mask:
    """Pixels with another class above, below, left or right."""
    edges = np.zeros(labels.shape, np.bool_)
    known = labels != classes.NODATA
    down = (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    across = (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    return edges


def _widened(mask: Mask, by: int) -> Mask:
    """Rows of runs at least 2 `by` - 1 px long, each grown by so much on both sides."""
    wide = mask.copy()
    wide[:, by:] |= mask[:, :-by]
    wide[:, :-by] |= mask[:, by:]
    return wide
