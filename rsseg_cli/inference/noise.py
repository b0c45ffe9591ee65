"""Normal noise that belongs to its place: each value follows from pixel, seed and sample alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# SplitMix64's numbers, as signed 64-bit integers; overflow wraps, as it must
STEP = 0x9E3779B97F4A7C15 - 2**64
FACTORS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
LOW_HALF = 0xFFFFFFFF


def normal_noise(
    shape: tuple[int, int, int], rows: Tensor, cols: Tensor, *, seed: int, sample: int = 0
) -> Tensor:
    """Return standard normal numbers of windows, float32 (B, channels, height, width).

    They depend on the pixel, counted from the scene's origin, on seed and sample, not on the window. Devices
    agree to the last bit, but for one number in many millions: all is computed in integers and float64.

    Args:
        shape: (channels, height, width) of a window.
        rows, cols: int64 (B,), the windows' first pixels.
    """
    channels, height, width = shape
    device = rows.device
    below = rows[:, None] + torch.arange(height, device=device)
    beside = cols[:, None] + torch.arange(width, device=device)
    pixels = _mix(below[:, :, None] << 32 | beside[:, None])  # (B, h, w)
    pairs = torch.arange((channels + 1) // 2, device=device)
    keys = _mix(_mix(torch.full_like(pairs, seed)) ^ (sample << 32 | pairs))
    bits = _mix(pixels[:, None] ^ keys[:, None, None])  # (B, pairs, h, w)
    radius = _open_unit(_shifted(bits, 32)).log_().mul_(-2).sqrt_()
    angle = _open_unit(bits & LOW_HALF).mul_(2 * math.pi)
    waves = torch.stack([radius * angle.cos(), radius * angle.sin()], 2)
    return waves.flatten(1, 2)[:, :channels].float()


def _mix(values: Tensor) -> Tensor:
    """SplitMix64's output for these states."""
    values = values + STEP
    values = (values ^ _shifted(values, 30)) * FACTORS[0]
    values = (values ^ _shifted(values, 27)) * FACTORS[1]
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, by: int) -> Tensor:
    """Shift right as unsigned integers."""
    return values >> by & (1 << 64 - by) - 1


def _open_unit(bits: Tensor) -> Tensor:
    """32 random bits to float64 in (0, 1)."""
    return bits.double().add_(0.5).div_(2.0**32)
