"""Noise that belongs to a place on the ground: any window draws the same numbers there.

Each number is a function of (seed, sample, channel, row, column) alone: a counter hashed by SplitMix64
(Steele et al., OOPSLA 2014), brought to a normal distribution by Box and Muller's transform.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)


def normal_noise(
    shape: tuple[int, int, int], row: int, col: int, *, seed: int, sample: int = 0
) -> NDArray[np.float32]:
    """Standard normal numbers of a window.

    Args:
        shape: (channels, height, width).
        row, col: where the window begins, counted from the scene's origin, 0 or more.
        seed: 0 to 2**63 - 1.
        sample: further samples have other noise at the same places.
    """
    channels, height, width = shape
    rows = np.arange(row, row + height, dtype=np.uint64)[:, None] << _HALF
    places = rows | np.arange(col, col + width, dtype=np.uint64)
    noise = np.empty(shape, np.float32)
    hashed = _mix(places)
    for pair in range((channels + 1) // 2):
        key = _mix(_mix(np.full(1, seed, np.uint64)) ^ np.uint64(sample << 32 | pair))
        bits = _mix(hashed ^ key)
        radius = np.sqrt(-2 * np.log(_open_unit(bits >> _HALF)))
        angle = 2 * np.pi * _open_unit(bits & np.uint64(0xFFFFFFFF))
        for channel, wave in zip(range(2 * pair, channels), (np.cos, np.sin), strict=False):
            noise[channel] = radius * wave(angle)
    return noise


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output for these states; overflow wraps, as it must."""
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[1]
    return values ^ (values >> np.uint64(31))


def _open_unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """32 random bits to (0, 1)."""
    return (bits.astype(np.float64) + 0.5) / 2.0**32
