"""Tiles and blend weights of a plan, by hand."""

from __future__ import annotations

import numpy as np

from rsseg_cli.inference import tiling


def tiles_of(layout, first_row=0):
    """All tiles of a plan from a tile row on, in order."""
    return [
        layout.tile(row, col) for row in range(first_row, len(layout.rows)) for col in range(len(layout.cols))
    ]


def weights_of(axis, index):
    """Blend weights of a tile along an axis, float32 (size,); on a ramp two tiles' sum to one exactly."""
    start, (first, end) = axis.starts[index], axis.extent(index)
    weights = np.zeros(axis.size, np.float32)
    weights[first - start : end - start] = 1
    if index > 0:
        weights[first - start : first - start + axis.ramp] = tiling.ramp_weights(axis.ramp)
    if index < len(axis) - 1:
        weights[end - start - axis.ramp : end - start] = 1 - tiling.ramp_weights(axis.ramp)
    return weights
