"""Weights of missed and false edge pixels, for the weighted F-measure (WFm) of a map's edges.

Margolin et al., CVPR 2014, as in their released code, on binary edge maps: edge is where the Sobel gradient
(3 x 3) of the class numbers is not zero, and the pixels around (3 x 3). A missed edge pixel weighs less
among ones that were found, a false one more the farther it lies from an edge. Sums over the parts of a scene
add up: it is one image, however large, and no cut into tiles changes its score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]

HALF_WINDOW = 3  # px; Margolin's Gaussian is 7 x 7 px
SIGMA_PX = 5.0
HALF_WEIGHT_PX = 5.0  # from an edge, where a false edge pixel weighs half of what it gains with distance
FAR_PX = 128  # false edge pixels farther from an edge weigh 2 in full: at most 2e-8 more than they should
HALO_PX = FAR_PX + 2  # an edge pixel needs two more pixels on each side to be known as one


def edges(values: Labels, known: Mask) -> Mask:
    """Where the Sobel gradient is not zero, and the eight pixels around, among `known` pixels.

    A gradient is taken only where all nine pixels are known.
    """
    gradient = np.zeros(values.shape, np.bool_)
    gradient[1:-1, 1:-1] = _has_gradient(values.astype(np.int16))
    gradient &= ~_grow(~known)
    return _grow(gradient) & known


def _has_gradient(values: NDArray[np.int16]) -> Mask:
    """Of (rows, cols) the inner (rows - 2, cols - 2)."""
    down = values[:-2] + 2 * values[1:-1] + values[2:]
    across = values[:, :-2] + 2 * values[:, 1:-1] + values[:, 2:]
    return (down[:, 2:] != down[:, :-2]) | (across[2:] != across[:-2])


def _grow(mask: Mask) -> Mask:
    """The mask and the eight pixels around each of its pixels."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    grown = wide.copy()
    grown[1:] |= wide[:-1]
    grown[:-1] |= wide[1:]
    return grown


def missed_weight(edge: Mask, found: Mask, known: Mask, core: tuple[slice, slice]) -> float:
    """Sum over missed edge pixels of their error, softened by that of the edge around them.

    Margolin's code: a pixel that is no edge takes the error of the nearest edge pixel (of equally near ones
    an error counts), errors are smoothed, zero where unknown, and the smaller of an edge pixel's error and
    its smoothed error stands.
    """
    missed = edge & ~found
    if not missed[core].any():
        return 0.0
    from scipy.ndimage import correlate1d

    error = (_nearest_is(missed, edge & found) & known).astype(np.float64)
    offsets = np.arange(-HALF_WINDOW, HALF_WINDOW + 1)
    kernel = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        error = correlate1d(error, kernel, axis, mode="constant")
    return float(np.minimum(error[core][missed[core]], 1).sum())


def _nearest_is(these: Mask, others: Mask) -> Mask:
    """Where the nearest pixel of both masks is one of `these`, as far as an edge pixel's Gaussian reaches.

    The corner of its window is 3 px down and 3 px across, so that an edge pixel lies within sqrt(18) px.
    """
    nearest, decided = these.copy(), these | others
    for ring in _RINGS:
        hit, other = np.zeros_like(these), np.zeros_like(these)
        for down, across in ring:
            (rows, from_rows), (cols, from_cols) = overlap(down), overlap(across)
            hit[rows, cols] |= these[from_rows, from_cols]
            other[rows, cols] |= others[from_rows, from_cols]
        nearest |= hit & ~decided
        decided |= hit | other
    return nearest


def _rings() -> list[list[tuple[int, int]]]:
    """Offsets (down, across) of equal length, from the shortest to the window's corner."""
    rings: dict[int, list[tuple[int, int]]] = {}
    reach = range(-HALF_WINDOW - 1, HALF_WINDOW + 2)
    for down in reach:
        for across in reach:
            rings.setdefault(down**2 + across**2, []).append((down, across))
    return [rings[length] for length in sorted(rings) if 0 < length <= 2 * HALF_WINDOW**2]


_RINGS = _rings()


def overlap(shift: int) -> tuple[slice, slice]:
    """Along an axis, pixels and those `shift` px further on."""
    if shift >= 0:
        return slice(None, -shift or None), slice(shift, None)
    return slice(-shift, None), slice(None, shift)


def false_weight(edge: Mask, found: Mask, core: tuple[slice, slice]) -> float:
    """Sum over false edge pixels of 2 - 0.5 ** (distance from the nearest edge / 5 px)."""
    false = found[core] & ~edge[core]
    count = np.count_nonzero(false)
    if count == 0:
        return 0.0
    if not edge.any():
        return 2.0 * count
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~edge)[core][false]
    weights = 2 - np.exp2(-distance / HALF_WEIGHT_PX)
    return float(np.where(distance <= FAR_PX, weights, 2.0).sum())
