"""Arithmetic on blocks of pixels: comparison with nodata, resampling by exact weights, filling of holes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = NDArray[np.generic]
Mask = NDArray[np.bool_]
COARSE_RELAXATIONS = 3


def axis_weights(
    start: int, count: int, scale: float, offset: float, source_size: int
) -> tuple[int, int, csr_matrix]:
    """Return weights that resample one axis to target pixels `start` to `start + count`.

    A target pixel's weights depend only on its number: windows agree exactly where they overlap. Bilinear,
    the kernel as wide as a target pixel where pixels grow; the mean over the target pixel where they more
    than double. Target pixel 0 starts at source pixel `offset`.

    Returns:
        (first, length, weights): source pixels `first` to `first + length` are needed; `weights` are
        (count, length) and sum to 1 a row.
    """
    from scipy.sparse import csr_matrix  # 10 MB, which scenes on their own grid do not need

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
    used = taps[weights > 0]  # no pixel, and so no block, beyond these is read
    first, last = int(used.min()), int(used.max())
    taps = np.clip(taps, first, last)
    pointers = np.arange(0, taps.size + 1, taps.shape[1])
    matrix = csr_matrix(
        (weights.astype(np.float32).ravel(), (taps - first).ravel(), pointers), (count, last - first + 1)
    )
    return first, last - first + 1, matrix


def resample(array: Array, valid: Mask, down: csr_matrix, across: csr_matrix) -> tuple[Array, Mask]:
    """Return weighted means of the valid pixels, and where half of a pixel's weight is valid.

    Arrays are (bands, rows, cols), masks too or (rows, cols); integers are rounded.
    """
    wide = array.dtype.itemsize > 2 and array.dtype != np.float32
    work: type[np.floating] = np.float64 if wide else np.float32
    down, across = down.astype(work), across.astype(work)
    if valid.ndim == 3:
        parts = [resample(plane[None], mask, down, across) for plane, mask in zip(array, valid, strict=True)]
        return np.concatenate([mean for mean, _ in parts]), np.stack([mask for _, mask in parts])
    complete = bool(valid.all())
    shares = None if complete else _weigh(valid.astype(work), down, across)
    means = np.empty((len(array), down.shape[0], across.shape[0]), array.dtype)
    for band, values in enumerate(array):
        known: NDArray[np.floating] = (values if complete else np.where(valid, values, 0)).astype(work)
        mean = _weigh(known, down, across)
        if shares is not None:
            # Full weight is 1 but for the last bits: not divided, or windows with and without holes differ.
            partial = (shares < 1 - 1e-5) & (shares > 0)
            mean[partial] /= shares[partial]
        means[band] = _as_type(mean, array.dtype)
    return means, np.ones(means.shape[1:], np.bool_) if shares is None else shares > 0.5 - 1e-5


def _weigh(plane: NDArray[np.floating], down: csr_matrix, across: csr_matrix) -> NDArray[np.floating]:
    rows = down @ plane
    return (across @ np.ascontiguousarray(rows.T)).T


def _as_type(values: NDArray[np.floating], dtype: np.dtype[Any]) -> Array:
    """Return means in the type of the pixels; of integers rounded, and within the type's limits."""
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    low, high = values.dtype.type(limits.min), values.dtype.type(limits.max)
    if int(high) > limits.max:  # 2**31 - 1 is no float32
        high = np.nextafter(high, low)
    return np.clip(np.rint(values), low, high).astype(dtype)


def differs_from(array: Array, nodata: tuple[float | None, ...]) -> Mask | None:
    """Return (bands, rows, cols), False where a band has its nodata value; None where none can occur."""
    stored = [_as_stored(value, array.dtype) for value in nodata]
    if all(value is None for value in stored):
        return None
    planes = [
        np.ones(values.shape, np.bool_) if value is None else values != value
        for values, value in zip(array, stored, strict=True)
    ]
    return np.stack(planes)


def _as_stored(value: float | None, dtype: np.dtype[Any]) -> np.generic | None:
    """Return a nodata value in the array's dtype; None if it cannot occur (`isfinite` catches NaN)."""
    if value is None or math.isnan(value):
        return None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max or value != int(value):
            return None
        return dtype.type(int(value))
    return dtype.type(value)


def fill(array: Array, valid: Mask) -> Array:
    """Fill invalid pixels of (bands, rows, cols) smoothly, as a membrane over each hole; a copy if any."""
    if valid.all() or not valid.any():
        return array
    window = _surroundings(valid)
    known = valid[window]
    values = np.where(known, array[(slice(None), *window)], 0).astype(np.float32)
    smooth = _pull_push(values, known)
    filled = array.copy()
    np.copyto(filled[(slice(None), *window)], _as_type(smooth, array.dtype), where=~known)
    return filled


def _surroundings(valid: Mask, margin: int = 16) -> tuple[slice, slice]:
    """Return the rows and columns of all invalid pixels and `margin` px around them."""
    bounds = []
    for axis in (1, 0):
        (holes,) = np.nonzero(~valid.all(axis))
        size = valid.shape[1 - axis]
        bounds.append(slice(max(0, int(holes[0]) - margin), min(size, int(holes[-1]) + 1 + margin)))
    return bounds[0], bounds[1]


def _pull_push(values: NDArray[np.float32], known: Mask, finest: bool = True) -> NDArray[np.float32]:
    """Fill unknown pixels from the image at half the size, then relax them towards their neighbours' mean."""
    height, width = known.shape
    if known.all() or not known.any():
        return values
    weights = known.astype(np.float32)
    if height % 2 or width % 2:
        pad = ((0, height % 2), (0, width % 2))
        weights, padded = np.pad(weights, pad), np.pad(values, ((0, 0), *pad))
    else:
        padded = values
    counts = _sum_fours(weights)
    coarse = _sum_fours(padded)
    coarse /= np.maximum(counts, 1)
    coarse = _pull_push(coarse, counts > 0, finest=False)
    smooth = _double(_double(coarse, 2), 1)[:, :height, :width]
    unknown = ~known
    smooth = np.where(known, values, smooth)
    for band in smooth:
        _relax(band, unknown, 1 if finest else COARSE_RELAXATIONS)
    return smooth


def _relax(band: NDArray[np.float32], unknown: Mask, times: int) -> None:
    """Set unknown pixels to the mean of their four neighbours, in place."""
    framed = np.pad(band, 1, mode="edge")
    for number in range(times):
        if number:
            framed[0], framed[-1] = framed[1], framed[-2]
            framed[:, 0], framed[:, -1] = framed[:, 1], framed[:, -2]
        mean = framed[:-2, 1:-1] + framed[2:, 1:-1]
        mean += framed[1:-1, :-2]
        mean += framed[1:-1, 2:]
        mean *= np.float32(0.25)
        np.copyto(framed[1:-1, 1:-1], mean, where=unknown)
    band[...] = framed[1:-1, 1:-1]


def _sum_fours(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = values[..., ::2, :] + values[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _double(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Twice as many pixels along an axis, linear between the old ones' centres."""
    shape = list(values.shape)
    shape[axis] *= 2
    doubled = np.empty(shape, np.float32)
    near, far = (np.moveaxis(values * np.float32(share), axis, 0) for share in (0.75, 0.25))
    target = np.moveaxis(doubled, axis, 0)
    np.add(near[1:], far[:-1], out=target[2::2])
    np.add(near[:-1], far[1:], out=target[1:-1:2])
    target[0], target[-1] = values.take(0, axis), values.take(-1, axis)
    return doubled
