"""Arithmetic on blocks of pixels: resampling by exact weights, filling of holes. numpy and scipy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Array = NDArray[np.generic]
Mask = NDArray[np.bool_]
RELAXATIONS = 2


def axis_weights(
    start: int, count: int, scale: float, offset: float, source_size: int
) -> tuple[int, int, csr_matrix]:
    """Weights that carry one axis of a source to target pixels `start` to `start + count`.

    A target pixel's weights depend on its number alone, so that windows agree exactly where they overlap.
    Bilinear, with the kernel as wide as a target pixel where pixels grow; the mean over the target pixel
    where they more than double.

    Args:
        scale: source pixels a target pixel.
        offset: where target pixel 0 starts, source px.

    Returns:
        (first, length, weights): source pixels `first` to `first + length` are needed; weights (count,
        length) sum to 1 a row.
    """
    centre = offset + (np.arange(start, start + count) + 0.5) * scale
    radius = scale / 2 if scale > 2 else max(1.0, scale)
    lowest = np.floor(centre - radius).astype(np.int64)
    taps = lowest[:, None] + np.arange(int(np.ceil(2 * radius)) + 1)
    if scale > 2:
        low, high = centre[:, None] - radius, centre[:, None] + radius
        weights = np.minimum(taps + 1, high) - np.maximum(taps, low)
    else:
        weights = 1 - np.abs(taps + 0.5 - centre[:, None]) / radius
    weights = np.maximum(weights, 0)
    weights[(taps < 0) | (taps >= source_size)] = 0
    weights /= weights.sum(1, keepdims=True)
    taps = np.clip(taps, 0, source_size - 1)
    first, last = int(taps.min()), int(taps.max())
    pointers = np.arange(0, taps.size + 1, taps.shape[1])
    matrix = csr_matrix(
        (weights.astype(np.float32).ravel(), (taps - first).ravel(), pointers), (count, last - first + 1)
    )
    return first, last - first + 1, matrix


def resample(array: Array, valid: Mask, down: csr_matrix, across: csr_matrix) -> tuple[Array, Mask]:
    """Weighted means of the valid pixels; a target pixel is valid where at least half of its weight is.

    Args:
        array: (bands, rows, cols); values of invalid pixels do not matter.
        valid: (rows, cols).
        down, across: weights of the two axes, see `axis_weights`.

    Returns:
        the same dtype, integers rounded; and the valid mask.
    """
    wide = array.dtype.itemsize > 2 and array.dtype != np.float32
    work = np.float64 if wide else np.float32
    down, across = down.astype(work), across.astype(work)
    complete = bool(valid.all())
    shares = None if complete else _weigh(valid.astype(work), down, across)
    means = np.empty((len(array), down.shape[0], across.shape[0]), array.dtype)
    for band, values in enumerate(array):
        known = values.astype(work) if complete else np.where(valid, values, 0).astype(work)
        mean = _weigh(known, down, across)
        if shares is not None:
            # Full weight is 1 but for the last bits: not divided, or windows with and without holes differ.
            partial = (shares < 1 - 1e-5) & (shares > 0)
            mean[partial] /= shares[partial]
        means[band] = np.rint(mean) if np.issubdtype(array.dtype, np.integer) else mean
    return means, np.ones(means.shape[1:], np.bool_) if shares is None else shares > 0.5 - 1e-5


def _weigh(plane: NDArray[np.floating], down: csr_matrix, across: csr_matrix) -> NDArray[np.floating]:
    rows = down @ plane
    return (across @ np.ascontiguousarray(rows.T)).T


def fill(array: Array, valid: Mask) -> Array:
    """`array` with invalid pixels drawn from their surroundings, smoothly, as a membrane over each hole.

    Args:
        array: (bands, rows, cols).
        valid: (rows, cols).

    Returns:
        `array` itself where every pixel is valid or none is, else a copy of the same dtype.
    """
    if valid.all() or not valid.any():
        return array
    window = _surroundings(valid)
    known = valid[window]
    values = np.where(known, array[(slice(None), *window)], 0).astype(np.float32)
    smooth = _pull_push(values, known)
    filled = array.copy()
    target = filled[(slice(None), *window)]
    np.copyto(
        target,
        np.rint(smooth) if np.issubdtype(array.dtype, np.integer) else smooth,
        where=~known,
        casting="unsafe",
    )
    return filled


def _surroundings(valid: Mask, margin: int = 16) -> tuple[slice, slice]:
    """Rows and columns that hold all invalid pixels and `margin` px around them."""
    bounds = []
    for axis in (1, 0):
        (holes,) = np.nonzero(~valid.all(axis))
        size = valid.shape[1 - axis]
        bounds.append(slice(max(0, int(holes[0]) - margin), min(size, int(holes[-1]) + 1 + margin)))
    return bounds[0], bounds[1]


def _pull_push(values: NDArray[np.float32], known: Mask) -> NDArray[np.float32]:
    """Fill unknown pixels from the image at half the size, then relax them towards their neighbours' mean."""
    height, width = known.shape
    if known.all() or not known.any():
        return values
    pad = ((0, height % 2), (0, width % 2))
    weights = np.pad(known, pad).astype(np.float32)
    sums = _sum_fours(np.pad(values, ((0, 0), *pad)) if height % 2 or width % 2 else values)
    counts = _sum_fours(weights)
    coarse = _pull_push(sums / np.maximum(counts, 1), counts > 0)
    smooth = _double(_double(coarse, 1), 2)[:, :height, :width]
    smooth = np.where(known, values, smooth)
    for _ in range(RELAXATIONS):
        framed = np.pad(smooth, ((0, 0), (1, 1), (1, 1)), mode="edge")
        mean = framed[:, :-2, 1:-1] + framed[:, 2:, 1:-1]
        mean += framed[:, 1:-1, :-2]
        mean += framed[:, 1:-1, 2:]
        mean *= 0.25
        np.copyto(smooth, mean, where=~known)
    return smooth


def _sum_fours(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = values[..., ::2, :] + values[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _double(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Twice as many pixels along `axis`, linear between their centres."""
    values = np.moveaxis(values, axis, 0)
    doubled = np.empty((2 * len(values), *values.shape[1:]), np.float32)
    near = values * np.float32(0.75)
    doubled[0::2] = near
    doubled[1::2] = near
    far = values * np.float32(0.25)
    doubled[2::2] += far[:-1]
    doubled[1:-1:2] += far[1:]
    doubled[0] += far[0]
    doubled[-1] += far[-1]
    return np.moveaxis(doubled, 0, axis)
