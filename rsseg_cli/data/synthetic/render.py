"""Draws a window of a plan: ground, water, roofs, trees; then light and shadow; then what a camera does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy.ndimage import gaussian_filter

from rsseg_cli.data.synthetic.plan import CAR, FLAT, HALL, HIP, PITCH, Body, Content, Plan, Surface
from rsseg_cli.data.synthetic.style import LAND, ROAD, VEGETATION, WATER, make_style
from rsseg_cli.data.synthetic.zones import ZonedCell

BLOCK_PX = 2048
TALLEST_M = 34.0
Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class View:
    """A pixel window: column and row of its upper left pixel, size, and metres a pixel."""

    col: int
    row: int
    width: int
    height: int
    gsd_m: float

    @property
    def x0(self) -> float:
        return self.col * self.gsd_m

    @property
    def y0(self) -> float:
        return self.row * self.gsd_m


class Renderer:
    """Draws windows of the endless scene of one seed at one resolution. Same window, same pixels."""

    def __init__(self, seed: int, gsd_m: float) -> None:
        self.seed, self.gsd = seed, gsd_m
        self.style = make_style(seed)
        self.plan = Plan(self.style, seed)
        self._cells: dict[tuple[int, int], Content] = {}

    def draw(
        self, col: int, row: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (3, height, width) and labels (height, width) of a window."""
        margin = 6 + math.ceil(6 / self.gsd)
        reach = math.ceil(TALLEST_M / math.tan(self.style.sun_elevation) / self.gsd)
        sun_x, sun_y = math.sin(self.style.sun_azimuth), -math.cos(self.style.sun_azimuth)
        left = margin + max(0, math.ceil(-sun_x * reach))
        right = margin + max(0, math.ceil(sun_x * reach))
        top = margin + max(0, math.ceil(-sun_y * reach))
        bottom = margin + max(0, math.ceil(sun_y * reach))
        view = View(col - left, row - top, width + left + right, height + top + bottom, self.gsd)
        canvas = Canvas(self, view)
        canvas.paint()
        inner = (slice(top, top + height), slice(left, left + width))
        return canvas.photograph(inner, (self.seed, col + 2**30, row + 2**30)), canvas.labels[inner].copy()

    def content(self, u: Plane, v: Plane) -> list[Content]:
        """The cells that cover these coordinates."""
        size, pad = self.style.cell_m, 30.0
        i0, i1 = (
            math.floor((float(u.min()) - pad) / size[0]) - 1,
            math.floor((float(u.max()) + pad) / size[0]) + 1,
        )
        j0, j1 = (
            math.floor((float(v.min()) - pad) / size[1]) - 1,
            math.floor((float(v.max()) + pad) / size[1]) + 1,
        )
        wanted = [(i, j) for i in range(i0, i1 + 1) for j in range(j0, j1 + 1)]
        wanted = [key for key in wanted if self._touches(key, u, v, pad)]
        self._cells = {key: self._cells.get(key) or ZonedCell(self.plan, *key).build() for key in wanted}
        return list(self._cells.values())

    def _touches(self, key: tuple[int, int], u: Plane, v: Plane, pad: float) -> bool:
        (i, j), (cu, cv) = key, self.style.cell_m
        near = (
            (u > (i - 0.2) * cu - pad)
            & (u < (i + 1.2) * cu + pad)
            & (v > (j - 0.2) * cv - pad)
            & (v < (j + 1.2) * cv + pad)
        )
        return bool(near.any())


class Canvas:
    """One window's planes: albedo (3, h, w), height, slope light, labels."""

    def __init__(self, renderer: Renderer, view: View) -> None:
        self.renderer, self.view, self.style = renderer, view, renderer.style
        self.plan, self.gsd = renderer.plan, view.gsd_m
        shape = (view.height, view.width)
        self.labels = np.full(shape, ROAD, np.uint8)
        self.albedo = np.empty((3, *shape), np.float32)
        self.height = np.zeros(shape, np.float32)
        self.light = np.ones(shape, np.float32)
        elevation, azimuth = self.style.sun_elevation, self.style.sun_azimuth
        self.sun = (
            math.sin(azimuth) * math.cos(elevation),
            -math.cos(azimuth) * math.cos(elevation),
            math.sin(elevation),
        )

    def paint(self) -> None:
        step = max(4, round(2.4 / self.gsd))
        u, v = self._coordinates(step)
        cells = self.renderer.content(u, v)
        self._noises()
        self._ground([s for cell in cells for s in cell.surfaces])
        self._shore(u, v, step)
        self._bodies([b for cell in cells for b in cell.bodies])
        self._bodies([c for cell in cells for c in cell.cars])
        self._trees([t for cell in cells for t in cell.trees])

    # coordinates and noise

    def _coordinates(self, step: int) -> tuple[Plane, Plane]:
        """u, v at every `step`-th pixel, one sample beyond the window's end."""
        view = self.view
        x = view.x0 + (np.arange(0, view.width + 2 * step, step) + 0.5) * self.gsd
        y = view.y0 + (np.arange(0, view.height + 2 * step, step) + 0.5) * self.gsd
        gx, gy = np.meshgrid(x, y)
        u, v = self.plan.to_uv(gx, gy)
        return u.astype(np.float32), v.astype(np.float32)

    def _enlarge(self, coarse: Plane, step: int) -> Plane:
        """Bilinear: coarse[k] lies at pixel k * step."""
        view = self.view
        box = (
            0.5 - 0.5 / step,
            0.5 - 0.5 / step,
            0.5 + (view.width - 0.5) / step,
            0.5 + (view.height - 0.5) / step,
        )
        return np.asarray(
            Image.fromarray(coarse).resize((view.width, view.height), Image.Resampling.BILINEAR, box=box)
        )

    def noise(self, scale_m: float, key: int) -> Plane:
        """Smooth noise, deviation about 1, grain `scale_m`; a place has the same value in any window."""
        view, pitch = self.view, max(scale_m, self.gsd)
        i0, j0 = math.floor(view.x0 / pitch) - 3, math.floor(view.y0 / pitch) - 3
        i1 = math.ceil((view.x0 + view.width * self.gsd) / pitch) + 4
        j1 = math.ceil((view.y0 + view.height * self.gsd) / pitch) + 4
        lattice = _hash_normal(np.arange(i0, i1), np.arange(j0, j1), self.renderer.seed * 64 + key)
        left, top = view.x0 / pitch - i0, view.y0 / pitch - j0
        box = (left, top, left + view.width * self.gsd / pitch, top + view.height * self.gsd / pitch)
        smooth = Image.fromarray(lattice).resize((view.width, view.height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(smooth) * np.float32(1.3)

    def _noises(self) -> None:
        self.grain = self.noise(0.45, 1)
        self.mottle = 0.65 * self.noise(2.6, 2) + 0.5 * self.noise(1.1, 3)
        self.patchy = 0.75 * self.noise(14.0, 4) + 0.5 * self.noise(6.0, 5)
        self.broad = self.noise(70.0, 6)

    # ground

    def _ground(self, surfaces: Sequence[Surface]) -> None:
        view = self.view
        solid = [s for s in surfaces if s.alpha >= 1]
        base = Surface(np.zeros((0, 2)), ROAD, self.style.asphalt, (0.03, 0.05, 0.05))
        table = [base, *solid]
        transform = Affine(self.gsd, 0, view.x0, 0, self.gsd, view.y0)
        which = rasterize(
            [({"type": "Polygon", "coordinates": [s.polygon.tolist()]}, k + 1) for k, s in enumerate(solid)]
            or [_NOWHERE],
            out_shape=self.labels.shape,
            transform=transform,
            fill=0,
            dtype="int32",
        )
        self.labels[:] = np.array([s.label for s in table], np.uint8)[which]
        rough = np.array([s.rough for s in table], np.float32)
        texture = 1 + rough[which, 0] * self.grain
        texture += rough[which, 1] * self.mottle
        texture += rough[which, 2] * self.patchy
        self._furrows(table, which, texture)
        colours = np.array([s.colour for s in table], np.float32)
        for band in range(3):
            np.multiply(colours[:, band][which], texture, out=self.albedo[band])
        self._tint_grass()
        self._lines([s for s in surfaces if s.alpha < 1], transform)

    def _furrows(self, table: Sequence[Surface], which: NDArray[np.int32], texture: Plane) -> None:
        strength = np.array([s.furrow for s in table], np.float32)
        rows, cols = np.nonzero((strength > 0)[which])
        if len(rows) == 0:
            return
        k = which[rows, cols]
        angle = np.array([s.angle for s in table], np.float32)[k]
        period = np.maximum(np.array([s.period_m or 1.0 for s in table], np.float32), 3.2 * self.gsd)[k]
        x = (self.view.col + cols + 0.5).astype(np.float32) * np.float32(self.gsd)
        y = (self.view.row + rows + 0.5).astype(np.float32) * np.float32(self.gsd)
        across = -np.sin(angle) * x + np.cos(angle) * y + 0.35 * self.patchy[rows, cols]
        wave = np.sin(2 * np.pi * across / period) * (0.75 + 0.35 * self.mottle[rows, cols])
        swath = np.sin(2 * np.pi * across / 18.0)
        texture[rows, cols] += strength[k] * wave + 0.02 * swath

    def _tint_grass(self) -> None:
        """Grass is greener here and dryer there."""
        grass = self.labels == VEGETATION
        dry = (0.045 * self.patchy + 0.05 * self.broad + 0.04 * self.mottle)[grass]
        self.albedo[0][grass] *= 1 + dry
        self.albedo[2][grass] *= 1 + 0.4 * dry

    def _lines(self, surfaces: Sequence[Surface], transform: Affine) -> None:
        """Translucent paint: markings, tracks, wear."""
        if not surfaces:
            return
        which = rasterize(
            [
                ({"type": "Polygon", "coordinates": [s.polygon.tolist()]}, k + 1)
                for k, s in enumerate(surfaces)
            ],
            out_shape=self.labels.shape,
            transform=transform,
            fill=0,
            dtype="int32",
            all_touched=False,
        )
        rows, cols = np.nonzero(which)
        k = which[rows, cols] - 1
        alpha = np.array([s.alpha for s in surfaces], np.float32)[k] * np.clip(
            0.85 + 0.25 * self.mottle[rows, cols], 0.2, 1
        )
        for band in range(3):
            colour = np.array([s.colour[band] for s in surfaces], np.float32)[k]
            self.albedo[band][rows, cols] += alpha * (colour - self.albedo[band][rows, cols])

    def _shore(self, u: Plane, v: Plane, step: int) -> None:
        """River and sea over whatever the cells hold, but under the bridges of main roads."""
        coarse = self.plan.shore_m(u, v)
        if float(coarse.min()) > 30:
            return
        shore = self._enlarge(np.minimum(coarse, 200.0), step) + 1.1 * self.patchy + 0.35 * self.mottle
        uu, vv = self._enlarge(u, step), self._enlarge(v, step)
        bridge = self._bridges(uu, vv)
        ramp = np.clip((30 - shore) / 30, 0, 1)  # gentle, or the bridge's end would shade the road
        self.height[bridge] = 3.5 * ramp[bridge]
        style = self.style
        beach = 14.0 if style.coast_u is not None else 3.0
        bank = (shore < beach + 5) & (shore >= 0) & ~bridge & (self.labels != WATER)
        sandy = bank & (shore < beach)
        reeds = bank & ~sandy
        self._fill(
            sandy, style.sand if style.coast_u is not None or not style.green else style.track, LAND, 0.10
        )
        self._fill(
            reeds, style.meadow if style.green else style.soil, VEGETATION if style.green else LAND, 0.16
        )
        wet = (shore < 0) & ~bridge
        depth = 1 - np.exp(np.minimum(shore[wet], 0) / (28.0 if style.coast_u is not None else 7.0))
        ripple = 1 + 0.035 * self.grain[wet] + 0.05 * self.mottle[wet] + 0.05 * self.patchy[wet]
        for band in range(3):
            mix = style.shallow[band] + (style.water[band] - style.shallow[band]) * depth
            self.albedo[band][wet] = mix * ripple
        if style.coast_u is not None:
            surf = np.clip(1 - np.abs(shore[wet] + 3.5 + 2 * self.patchy[wet]) / 1.4, 0, 1) * np.clip(
                0.6 + 0.6 * self.mottle[wet], 0, 1
            )
            for band in range(3):
                self.albedo[band][wet] += 0.6 * surf * (0.92 - self.albedo[band][wet])
        self.labels[wet] = WATER

    def _bridges(self, u: Plane, v: Plane) -> NDArray[np.bool_]:
        plan, mask = self.plan, np.zeros(u.shape, bool)
        if self.style.coast_u is not None:
            return mask
        size = self.style.cell_m[1]
        for j in range(math.floor(float(v.min()) / size) - 1, math.ceil(float(v.max()) / size) + 2):
            if plan.is_arterial(1, j):
                mask |= np.abs(v - plan.line(1, j)) < plan.half_width(1, j) + 1.2
        return mask

    def _fill(
        self, mask: NDArray[np.bool_], colour: tuple[float, float, float], label: int, rough: float
    ) -> None:
        texture = 1 + rough * (0.5 * self.grain[mask] + 0.8 * self.mottle[mask])
        for band in range(3):
            self.albedo[band][mask] = colour[band] * texture
        self.labels[mask] = label

    # roofs and cars

    def _bodies(self, bodies: Sequence[Body]) -> None:
        for body in bodies:
            self._body(body)

    def _body(self, body: Body) -> None:
        gsd, view = self.gsd, self.view
        c, s = math.cos(body.angle), math.sin(body.angle)
        ex, ey = abs(c) * body.a + abs(s) * body.b, abs(s) * body.a + abs(c) * body.b
        c0, c1 = (
            max(0, int((body.x - ex - view.x0) / gsd)),
            min(view.width, int((body.x + ex - view.x0) / gsd) + 2),
        )
        r0, r1 = (
            max(0, int((body.y - ey - view.y0) / gsd)),
            min(view.height, int((body.y + ey - view.y0) / gsd) + 2),
        )
        if c0 >= c1 or r0 >= r1:
            return
        dx = (view.x0 + (np.arange(c0, c1) + 0.5) * gsd - body.x).astype(np.float32)[None, :]
        dy = (view.y0 + (np.arange(r0, r1) + 0.5) * gsd - body.y).astype(np.float32)[:, None]
        p, q = c * dx + s * dy, c * dy - s * dx
        edge_p, edge_q = np.float32(body.a) - np.abs(p), np.float32(body.b) - np.abs(q)
        rise, light, texture = self._roof(body, p, q, edge_p, edge_q)
        z = body.eave_m + rise + self._deck(body)
        window = (slice(r0, r1), slice(c0, c1))
        on = (edge_p >= 0) & (edge_q >= 0) & (z > self.height[window])
        if not on.any():
            return
        texture = (
            texture + (0.035 if body.roof != CAR else 0.0) * self.mottle[window] + 0.03 * self.grain[window]
        )
        for band in range(3):
            self.albedo[band][window][on] = (body.colour[band] * texture)[on]
        self.light[window][on] = light[on]
        self.height[window][on] = z[on]
        if body.label is not None:
            self.labels[window][on] = body.label

    def _deck(self, body: Body) -> float:
        """How high the road lies that a car stands on: bridges."""
        row = math.floor((body.y - self.view.y0) / self.gsd)
        col = math.floor((body.x - self.view.x0) / self.gsd)
        inside = 0 <= row < self.view.height and 0 <= col < self.view.width
        on_road = body.label is None and inside and self.labels[row, col] == ROAD
        return float(self.height[row, col]) if on_road else 0.0

    def _roof(
        self, body: Body, p: Plane, q: Plane, edge_p: Plane, edge_q: Plane
    ) -> tuple[Plane, Plane, Plane]:
        """Rise above the eaves, light on the slope, texture."""
        pitch, gsd = PITCH[body.roof], self.gsd
        one = np.ones(p.shape, np.float32)
        if body.roof == CAR:
            front = np.abs(p - 0.42 * body.a) < 0.13 * body.a
            rear = np.abs(p + 0.55 * body.a) < 0.08 * body.a
            if body.a >= 3:  # a lorry: cab and box
                front, rear = np.abs(p - 0.62 * body.a) < 0.05 * body.a, np.zeros(p.shape, bool)
            return 0 * p, one, (one - 0.5 * front - 0.35 * rear).astype(np.float32)
        if body.roof == FLAT:
            rim = np.minimum(edge_p, edge_q) < max(0.35, gsd * 0.6)
            small = min(body.a, body.b) < 2
            streaks = 0.03 * np.sin(p * 1.1 + body.x) * np.sin(q * 0.9 + body.y)
            return 0 * p, one, (one if small else np.where(rim, 1.12, 0.98) + streaks).astype(np.float32)
        sides = [(edge_q, np.where(q >= 0, 1.0, -1.0), "q")]
        rise = edge_q * pitch
        if body.a < body.b and body.roof != HIP:
            rise, sides = edge_p * pitch, [(edge_p, np.where(p >= 0, 1.0, -1.0), "p")]
        _, sign, axis = sides[0]
        light = self._slope_light(body.angle, sign, axis, pitch)
        along, across = (p, edge_q) if axis == "q" else (q, edge_p)
        if body.roof == HIP:
            end = edge_p < edge_q
            rise = np.minimum(edge_p, edge_q) * pitch
            light = np.where(
                end, self._slope_light(body.angle, np.where(p >= 0, 1.0, -1.0), "p", pitch), light
            )
        half = body.b if axis == "q" else body.a
        ridge = np.where(np.abs(across - half) < max(0.18, gsd * 0.45), 0.10, 0.0)
        seam = 0.6 if body.roof == HALL else 0.36
        stripes = (
            0.05
            * np.sin(2 * np.pi * along / max(seam * (3 if body.roof == HALL else 1), 3 * gsd))
            * min(1.0, 0.5 * seam / gsd + 0.25)
        )
        courses = 0.025 * np.sin(2 * np.pi * across / max(0.35, 3 * gsd))
        eaves = np.where(across < max(0.2, gsd * 0.5), -0.07, 0.0)
        return (
            rise.astype(np.float32),
            light.astype(np.float32),
            (one + ridge + stripes + courses + eaves).astype(np.float32),
        )

    def _slope_light(
        self, angle: float, sign: NDArray[np.float64], axis: str, pitch: float
    ) -> NDArray[np.float64]:
        """Sun on a roof face that falls outwards along axis p or q, relative to level ground."""
        direction = (math.cos(angle), math.sin(angle)) if axis == "p" else (-math.sin(angle), math.cos(angle))
        horizontal = direction[0] * self.sun[0] + direction[1] * self.sun[1]
        return np.clip(
            (sign * horizontal * pitch + self.sun[2]) / (math.hypot(1, pitch) * self.sun[2]), 0.0, 1.7
        )

    # trees

    def _trees(self, rows: Sequence[tuple[float, float, float, float, float]]) -> None:
        view, gsd = self.view, self.gsd
        trees = np.array(rows, np.float64).reshape(-1, 5)
        reach = trees[:, 2] * 1.3 + gsd
        x, y = trees[:, 0] - view.x0, trees[:, 1] - view.y0
        trees = trees[
            (x > -reach) & (x < view.width * gsd + reach) & (y > -reach) & (y < view.height * gsd + reach)
        ]
        if len(trees) == 0:
            return
        keys = np.zeros(self.labels.size, np.int64)
        spans = np.ceil(trees[:, 2] * 1.25 / gsd).astype(int)
        for span in np.unique(spans):
            members = np.nonzero(spans == span)[0]
            count = max(1, 1_500_000 // (2 * span + 1) ** 2)
            for start in range(0, len(members), count):
                self._stamp(keys, trees, members[start : start + count], int(span))
        self._crowns(keys.reshape(self.labels.shape), trees)

    def _offsets(
        self,
        trees: NDArray[np.float64],
        which: NDArray[np.int64],
        col: NDArray[np.int64],
        row: NDArray[np.int64],
    ) -> tuple[Plane, Plane]:
        """Pixel centres relative to the crowns' centres, in crown radii with a lobed outline."""
        radius = trees[which, 2]
        dx = ((self.view.x0 + (col + 0.5) * self.gsd - trees[which, 0]) / radius).astype(np.float32)
        dy = ((self.view.y0 + (row + 0.5) * self.gsd - trees[which, 1]) / radius).astype(np.float32)
        phi = np.arctan2(dy, dx)
        turn = (trees[which, 4] * 40).astype(np.float32)
        lobes = 1 + 0.10 * np.sin(3 * phi + turn) + 0.08 * np.sin(5 * phi + 1.7 * turn)
        return dx * lobes, dy * lobes

    def _stamp(
        self, keys: NDArray[np.int64], trees: NDArray[np.float64], members: NDArray[np.int64], span: int
    ) -> None:
        col = np.floor((trees[members, 0] - self.view.x0) / self.gsd).astype(np.int64)
        row = np.floor((trees[members, 1] - self.view.y0) / self.gsd).astype(np.int64)
        grid = np.arange(-span, span + 1)
        oy, ox = (a.ravel() for a in np.meshgrid(grid, grid, indexing="ij"))
        cols, rows = (col[:, None] + ox).ravel(), (row[:, None] + oy).ravel()
        which = np.repeat(members, len(ox))
        inside = (cols >= 0) & (cols < self.view.width) & (rows >= 0) & (rows < self.view.height)
        cols, rows, which = cols[inside], rows[inside], which[inside]
        dx, dy = self._offsets(trees, which, cols, rows)
        square = dx * dx + dy * dy
        ragged = 1 + 0.16 * self.grain[rows, cols]
        on = square < ragged
        cols, rows, which, square = cols[on], rows[on], which[on], square[on]
        z = trees[which, 3] * (0.45 + 0.55 * np.sqrt(np.maximum(0, 1 - square)))
        key = (z * 1000).astype(np.int64) << 24 | which
        np.maximum.at(keys, rows * self.view.width + cols, key)

    def _crowns(self, keys: NDArray[np.int64], trees: NDArray[np.float64]) -> None:
        rows, cols = np.nonzero(keys)
        key = keys[rows, cols]
        z = (key >> 24).astype(np.float32) / 1000
        higher = z > self.height[rows, cols]
        rows, cols, z, which = rows[higher], cols[higher], z[higher], (key & 0xFFFFFF)[higher]
        dx, dy = self._offsets(trees, which, cols, rows)
        up = np.sqrt(np.maximum(0.12, 1 - dx * dx - dy * dy))
        norm = np.sqrt(dx * dx + dy * dy + up * up)
        slope = (dx * self.sun[0] + dy * self.sun[1] + up * self.sun[2]) / norm / self.sun[2]
        leaves = 0.30 * self.grain[rows, cols] + 0.14 * self.mottle[rows, cols]
        self.light[rows, cols] = np.clip(0.30 + 0.62 * slope + leaves, 0.12, 1.6)
        hue = trees[which, 4].astype(np.float32)
        level = (0.85 + 0.3 * ((hue * 7.3) % 1)).astype(np.float32)
        for band in range(3):
            dark, light = self.style.tree_dark[band], self.style.tree_light[band]
            self.albedo[band][rows, cols] = (
                (dark + (light - dark) * hue) * level * (1 + 0.10 * self.grain[rows, cols])
            )
        self.height[rows, cols] = z
        self.labels[rows, cols] = VEGETATION

    # light and camera

    def _shadow(self) -> Plane:
        """0 in sun, 1 in shadow: the highest line of sight to the sun, by doubling steps."""
        sun_x, sun_y = math.sin(self.style.sun_azimuth), -math.cos(self.style.sun_azimuth)
        fall = self.gsd * math.tan(self.style.sun_elevation)
        horizon, n = self.height.copy(), 1
        highest = float(self.height.max())
        while n * fall < highest:
            dx, dy = round(sun_x * n), round(sun_y * n)
            target, source = _shifted(horizon.shape, dy, dx)
            shifted = horizon[source] - np.float32(n * fall)
            horizon[target] = np.maximum(horizon[target], shifted)
            n *= 2
        return gaussian_filter(np.clip((horizon - self.height - 0.25) / 0.5, 0, 1), 0.6)

    def photograph(self, inner: tuple[slice, slice], key: tuple[int, ...]) -> NDArray[np.uint8]:
        """What the camera sees of the inner window, uint8 (3, h, w)."""
        style, shadow = self.style, self._shadow()
        sunlit = self.light * (1 - shadow)
        elevation = math.sin(style.sun_elevation)
        direct, sky = (0.66, 0.635, 0.585), (0.335, 0.365, 0.42)
        drift = 1 + 0.02 * self.broad
        occlusion = gaussian_filter(self.height, 1.6 / self.gsd) - self.height
        ambient = 1 - np.clip(occlusion / 9, 0, 0.4)
        sigma = style.softness * float(np.clip(0.16 / self.gsd, 0.42, 0.8))
        rng = np.random.default_rng(list(key))
        out = np.empty((3, inner[0].stop - inner[0].start, inner[1].stop - inner[1].start), np.float32)
        for band in range(3):
            plane = self.albedo[band] * (direct[band] * sunlit + sky[band] * ambient) * drift
            plane = gaussian_filter(plane, sigma, truncate=3)[inner]
            plane = plane * (1 - style.haze) + style.haze * (0.62, 0.68, 0.78)[band]
            plane = plane * (style.balance[band] * style.exposure * (1.02 + 0.10 * (elevation - 0.7)))
            out[band] = np.float32(0.4) + np.float32(style.contrast) * (plane - np.float32(0.4))
        gain = np.float32(style.noise)
        common = rng.standard_normal(out.shape[1:], dtype=np.float32)
        for band in range(3):
            own = rng.standard_normal(out.shape[1:], dtype=np.float32)
            out[band] += gain * (0.8 * common + 0.6 * own) * np.sqrt(0.25 + np.maximum(out[band], 0))
        return (np.clip(_soften_colour(out, style.saturation), 0, 1) * np.float32(254.999)).astype(np.uint8)


_NOWHERE = ({"type": "Polygon", "coordinates": [[(-9e6, -9e6), (-9e6, -8e6), (-8e6, -9e6), (-9e6, -9e6)]]}, 0)


def _soften_colour(rgb: Plane, saturation: float) -> Plane:
    """Colour at half the resolution of brightness, as JPEG keeps it."""
    grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return np.stack([grey + saturation * gaussian_filter(band - grey, 0.9, truncate=2.5) for band in rgb])


def _shifted(shape: tuple[int, ...], dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (target, source) such that target pixel (r, c) meets source pixel (r + dy, c + dx)."""
    h, w = shape
    dy, dx = max(-h, min(h, dy)), max(-w, min(w, dx))
    target = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
    source = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
    return target, source


def _hash_normal(i: NDArray[np.int64], j: NDArray[np.int64], key: int) -> Plane:
    """Nearly normal numbers at integer places (len(j), len(i)), by hashing the place: sums of four bytes."""
    a = (i.astype(np.uint32) * np.uint32(0x9E3779B1))[None, :]
    b = (j.astype(np.uint32) * np.uint32(0x85EBCA77))[:, None]
    h = a ^ b ^ np.uint32((key * 0xC2B2AE3D + 0x27D4EB2F) & 0xFFFFFFFF)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x1B873593)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    h ^= h >> np.uint32(16)
    total = (h & 255) + ((h >> np.uint32(8)) & 255) + ((h >> np.uint32(16)) & 255) + (h >> np.uint32(24))
    return ((total.astype(np.float32) - 510) / 147.8).astype(np.float32)
