"""Light on a drawn scene: smooth noise, sun on roofs, shadows, and what a camera makes of it all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from rsseg_cli.data.synthetic.plan import PITCH, Body
from rsseg_cli.data.synthetic.style import BUILDING, CAR, FLAT, HALL, HIP, Style

if TYPE_CHECKING:
    from rsseg_cli.data.synthetic.render import Canvas, View

Plane = NDArray[np.float32]
DIRECT, SKY, HAZE = (0.66, 0.635, 0.585), (0.335, 0.365, 0.42), (0.62, 0.68, 0.78)


class Sun:
    """The direction of the sun: east, south and up, of length 1."""

    def __init__(self, style: Style) -> None:
        self.azimuth, self.elevation = style.sun_azimuth, style.sun_elevation
        level = math.cos(self.elevation)
        self.x, self.y = math.sin(self.azimuth) * level, -math.cos(self.azimuth) * level
        self.z = math.sin(self.elevation)

    def on_slope(self, angle: float, sign: Plane, axis: str, pitch: float) -> Plane:
        """Light on a roof face that falls outwards along axis p or q, relative to level ground."""
        direction = (math.cos(angle), math.sin(angle)) if axis == "p" else (-math.sin(angle), math.cos(angle))
        level = direction[0] * self.x + direction[1] * self.y
        return np.clip((sign * level * pitch + self.z) / (math.hypot(1, pitch) * self.z), 0.0, 1.7)


def roof_light(
    body: Body, sun: Sun, gsd: float, p: Plane, q: Plane, edge_p: Plane, edge_q: Plane
) -> tuple[Plane, Plane, Plane]:
    """Rise above the eaves (m), light on the slope, and texture of a roof.

    Args:
        p, q: pixel centres along and across the body, m from its centre.
        edge_p, edge_q: distance from its ends and sides, m.
    """
    one = np.ones(p.shape, np.float32)
    if body.roof == CAR:
        front = np.abs(p - 0.42 * body.a) < 0.13 * body.a
        rear = np.abs(p + 0.55 * body.a) < 0.08 * body.a
        if body.a >= 3:  # a lorry: cab and box
            front, rear = np.abs(p - 0.62 * body.a) < 0.05 * body.a, np.zeros(p.shape, bool)
        return 0 * p, one, (one - 0.5 * front - 0.35 * rear).astype(np.float32)
    if body.roof == FLAT:
        parapet = np.minimum(edge_p, edge_q) < max(0.35, gsd * 0.6)
        streaks = 0.03 * np.sin(p * 1.1 + body.x) * np.sin(q * 0.9 + body.y)
        small = min(body.a, body.b) < 2
        return 0 * p, one, (one if small else np.where(parapet, 1.12, 0.98) + streaks).astype(np.float32)
    pitch, turned = PITCH[body.roof], body.a < body.b and body.roof != HIP
    along, across, side, half = (q, edge_p, p, body.a) if turned else (p, edge_q, q, body.b)
    rise = across * pitch
    light = sun.on_slope(body.angle, np.where(side >= 0, 1.0, -1.0), "p" if turned else "q", pitch)
    if body.roof == HIP:
        rise = np.minimum(edge_p, edge_q) * pitch
        end = sun.on_slope(body.angle, np.where(p >= 0, 1.0, -1.0), "p", pitch)
        light = np.where(edge_p < edge_q, end, light)
    ridge = np.where(np.abs(across - half) < max(0.18, gsd * 0.45), 0.10, 0.0)
    seam, ribs = (0.6, 3) if body.roof == HALL else (0.36, 1)
    stripes = 0.05 * np.sin(2 * np.pi * along / max(seam * ribs, 3 * gsd)) * min(1.0, 0.5 * seam / gsd + 0.25)
    courses = 0.025 * np.sin(2 * np.pi * across / max(0.35, 3 * gsd))
    eaves = np.where(across < max(0.2, gsd * 0.5), -0.07, 0.0)
    texture = one + ridge + stripes + courses + eaves
    return rise.astype(np.float32), light.astype(np.float32), texture.astype(np.float32)


def smooth_noise(view: View, scale_m: float, key: int) -> Plane:
    """Noise of deviation about 1 and grain `scale_m`; a point on the ground has one value in all windows."""
    pitch = max(scale_m, view.gsd_m)
    i0, j0 = math.floor(view.x0 / pitch) - 3, math.floor(view.y0 / pitch) - 3
    i1 = math.ceil((view.x0 + view.width * view.gsd_m) / pitch) + 4
    j1 = math.ceil((view.y0 + view.height * view.gsd_m) / pitch) + 4
    lattice = _hash_normal(np.arange(i0, i1), np.arange(j0, j1), key)
    left, top = view.x0 / pitch - i0, view.y0 / pitch - j0
    box = (left, top, left + view.width * view.gsd_m / pitch, top + view.height * view.gsd_m / pitch)
    smooth = Image.fromarray(lattice).resize((view.width, view.height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth) * np.float32(1.3)


def _hash_normal(i: NDArray[np.int64], j: NDArray[np.int64], key: int) -> Plane:
    """Nearly normal numbers at lattice points, (len(j), len(i)): sums of four bytes of a hash."""
    a = (i.astype(np.uint32) * np.uint32(0x9E3779B1))[None, :]
    b = (j.astype(np.uint32) * np.uint32(0x85EBCA77))[:, None]
    h = a ^ b ^ np.uint32((key * 0xC2B2AE3D + 0x27D4EB2F) & 0xFFFFFFFF)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x1B873593)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    h ^= h >> np.uint32(16)
    total = (h & 255) + ((h >> np.uint32(8)) & 255) + ((h >> np.uint32(16)) & 255) + (h >> np.uint32(24))
    return ((total.astype(np.float32) - 510) / 147.8).astype(np.float32)


def shadow(height: Plane, sun: Sun, gsd: float) -> Plane:
    """0 in sun, 1 in shadow: the highest line of sight to the sun, in steps that double."""
    sun_x, sun_y = math.sin(sun.azimuth), -math.cos(sun.azimuth)
    fall, highest = gsd * math.tan(sun.elevation), float(height.max())
    horizon, n = height.copy(), 1
    while n * fall < highest:
        target, source = _shifted(horizon.shape, round(sun_y * n), round(sun_x * n))
        shifted = horizon[source] - np.float32(n * fall)
        horizon[target] = np.maximum(horizon[target], shifted)
        n *= 2
    return gaussian_filter(np.clip((horizon - height - 0.25) / 0.5, 0, 1), 0.6)


def _shifted(shape: tuple[int, ...], dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (target, source) such that target pixel (r, c) meets source pixel (r + dy, c + dx)."""
    h, w = shape
    dy, dx = max(-h, min(h, dy)), max(-w, min(w, dx))
    target = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
    source = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
    return target, source


class Lean:
    """A camera off nadir: what stands high is pushed outwards, over what lies behind it."""

    def __init__(self, style: Style, gsd: float) -> None:
        self.pixels_a_m = style.lean / gsd
        self.x, self.y = math.sin(style.lean_azimuth), -math.cos(style.lean_azimuth)
        self.reach = math.ceil(style.tallest_m * self.pixels_a_m)

    def margins(self) -> tuple[int, int, int, int]:
        """Pixels needed beyond a window: left, right, top, bottom."""
        x, y = math.ceil(abs(self.x) * self.reach), math.ceil(abs(self.y) * self.reach)
        return x * (self.x > 0), x * (self.x < 0), y * (self.y > 0), y * (self.y < 0)

    def seen(
        self, height: Plane, inner: tuple[slice, slice]
    ) -> tuple[tuple[slice, slice] | tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_] | None]:
        """The pixel of the canvas that each pixel of the inner window shows, and where that is a wall."""
        if not self.reach:
            return inner, None
        rows, cols = inner
        shift = np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.int64)
        seen = height[inner].copy()
        for distance in range(1, math.ceil(float(height.max()) * self.pixels_a_m) + 1):
            dy, dx = round(self.y * distance), round(self.x * distance)
            behind = height[rows.start - dy : rows.stop - dy, cols.start - dx : cols.stop - dx]
            higher = behind * self.pixels_a_m >= distance
            shift[higher], seen[higher] = distance, behind[higher]
        at_row = np.arange(rows.start, rows.stop)[:, None] - np.rint(self.y * shift).astype(np.int64)
        at_col = np.arange(cols.start, cols.stop)[None, :] - np.rint(self.x * shift).astype(np.int64)
        return (at_row, at_col), seen * self.pixels_a_m > shift + 1.5


def photograph(
    canvas: Canvas,
    source: tuple[slice, slice] | tuple[NDArray[np.int64], NDArray[np.int64]],
    wall: NDArray[np.bool_] | None,
    key: tuple[int, ...],
) -> NDArray[np.uint8]:
    """What a camera sees of a canvas, uint8 (3, h, w): `source` and `wall` as `Lean.seen` returns them."""
    style, gsd = canvas.style, canvas.gsd
    sunlit = canvas.light * (1 - shadow(canvas.height, canvas.sun, gsd))
    drift = 1 + 0.02 * canvas.broad
    occlusion = gaussian_filter(canvas.height, 1.6 / gsd) - canvas.height
    ambient = 1 - np.clip(occlusion / 9, 0, 0.4)
    sigma = style.softness * float(np.clip(0.16 / gsd, 0.42, 0.8))
    rng = np.random.default_rng(list(key))
    out = np.empty((3, *canvas.labels[source].shape), np.float32)
    if wall is not None:
        wall &= canvas.labels[source] == BUILDING
        facing = -math.cos(style.lean_azimuth - canvas.sun.azimuth)
        wall_light = 0.55 + 0.25 * facing
    for band in range(3):
        plane = canvas.albedo[band] * (DIRECT[band] * sunlit + SKY[band] * ambient) * drift
        if wall is None:
            plane = gaussian_filter(plane, sigma, truncate=3)[source]
        else:
            plane = plane[source]
            plane[wall] = (0.4 * plane[wall] + 0.5 * style.concrete[band]) * wall_light
            plane = gaussian_filter(plane, sigma, truncate=3)
        plane = plane * (1 - style.haze) + style.haze * HAZE[band]
        plane = plane * (style.balance[band] * style.exposure * (1.02 + 0.10 * (canvas.sun.z - 0.7)))
        out[band] = np.float32(0.4) + np.float32(style.contrast) * (plane - np.float32(0.4))
    gain = np.float32(style.noise)
    common = rng.standard_normal(out.shape[1:], dtype=np.float32)
    for band in range(3):
        own = rng.standard_normal(out.shape[1:], dtype=np.float32)
        out[band] += gain * (0.8 * common + 0.6 * own) * np.sqrt(0.25 + np.maximum(out[band], 0))
    return (np.clip(_soften_colour(out, style.saturation), 0, 1) * np.float32(254.999)).astype(np.uint8)


def _soften_colour(rgb: Plane, saturation: float) -> Plane:
    """Colour at half the resolution of brightness, as JPEG keeps it."""
    grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return np.stack([grey + saturation * gaussian_filter(band - grey, 0.9, truncate=2.5) for band in rgb])
