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

from rsseg_cli.data.synthetic.light import Lean, Plane, Sun, photograph, roof_light, smooth_noise
from rsseg_cli.data.synthetic.plan import Body, Content, Plan, Surface
from rsseg_cli.data.synthetic.rows import draw_rows
from rsseg_cli.data.synthetic.style import CAR, CLASSIC, LAND, ROAD, VEGETATION, WATER, make_style
from rsseg_cli.data.synthetic.world import WorldCell

Index = NDArray[np.int64]


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

    def __init__(self, seed: int, gsd_m: float, style: str = CLASSIC) -> None:
        self.seed, self.gsd = seed, gsd_m
        self.style = make_style(seed, style)
        self.plan = Plan(self.style, seed)
        self._cells: dict[tuple[int, int], Content] = {}

    def draw(
        self, col: int, row: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (3, height, width) and labels (height, width) of a window."""
        margin = 6 + math.ceil(6 / self.gsd)
        reach = math.ceil(self.style.tallest_m / math.tan(self.style.sun_elevation) / self.gsd)
        sun_x, sun_y = math.sin(self.style.sun_azimuth), -math.cos(self.style.sun_azimuth)
        left, right, top, bottom = (
            margin + max(0, math.ceil(toward * reach)) for toward in (-sun_x, sun_x, -sun_y, sun_y)
        )
        lean = Lean(self.style, self.gsd)
        left, right, top, bottom = (
            a + b for a, b in zip((left, right, top, bottom), lean.margins(), strict=True)
        )
        view = View(col - left, row - top, width + left + right, height + top + bottom, self.gsd)
        canvas = Canvas(self, view)
        canvas.paint()
        inner = (slice(top, top + height), slice(left, left + width))
        source, wall = lean.seen(canvas.height, inner)
        image = photograph(canvas, source, wall, (self.seed, col + 2**30, row + 2**30))
        return image, canvas.labels[source].copy()

    def content(self, u: Plane, v: Plane) -> list[Content]:
        """The cells that cover these coordinates."""
        pad, spans = 30.0, []
        for values, size in zip((u, v), self.style.cell_m, strict=True):
            first = math.floor((float(values.min()) - pad) / size) - 1
            spans.append(range(first, math.floor((float(values.max()) + pad) / size) + 2))
        wanted = [(i, j) for i in spans[0] for j in spans[1]]
        wanted = [key for key in wanted if self._touches(key, u, v, pad)]
        self._cells = {key: self._cells.get(key) or WorldCell(self.plan, *key).build() for key in wanted}
        return list(self._cells.values())

    def _touches(self, key: tuple[int, int], u: Plane, v: Plane, pad: float) -> bool:
        near = True
        for values, index, size in zip((u, v), key, self.style.cell_m, strict=True):
            near &= (values > (index - 0.2) * size - pad) & (values < (index + 1.2) * size + pad)
        return bool(np.any(near))


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
        self.sun = Sun(self.style)

    def paint(self) -> None:
        step = max(4, round(2.4 / self.gsd))
        u, v = self._coordinates(step)
        cells = self.renderer.content(u, v)
        self._noises()
        self._ground([s for cell in cells for s in cell.surfaces])
        self._shore(u, v, step)
        for body in (*(b for cell in cells for b in cell.bodies), *(c for cell in cells for c in cell.cars)):
            self._body(body)
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
        low = 0.5 - 0.5 / step
        box = (low, low, 0.5 + (view.width - 0.5) / step, 0.5 + (view.height - 0.5) / step)
        image = Image.fromarray(coarse)
        return np.asarray(image.resize((view.width, view.height), Image.Resampling.BILINEAR, box=box))

    def _noises(self) -> None:
        def noise(scale_m: float, number: int) -> Plane:
            return smooth_noise(self.view, scale_m, self.renderer.seed * 64 + number)

        self.grain = noise(0.45, 1)
        self.mottle = 0.65 * noise(2.6, 2) + 0.5 * noise(1.1, 3)
        self.patchy = 0.75 * noise(14.0, 4) + 0.5 * noise(6.0, 5)
        self.broad = noise(70.0, 6)

    # ground

    def _burn(self, surfaces: Sequence[Surface]) -> NDArray[np.int32]:
        """Number of the last surface on each pixel, from 1; 0 for none."""
        shapes = [
            ({"type": "Polygon", "coordinates": [s.polygon.tolist()]}, k + 1) for k, s in enumerate(surfaces)
        ]
        if not shapes:
            return np.zeros(self.labels.shape, np.int32)
        transform = Affine(self.gsd, 0, self.view.x0, 0, self.gsd, self.view.y0)
        return rasterize(shapes, self.labels.shape, transform=transform, fill=0, dtype="int32")

    def _ground(self, surfaces: Sequence[Surface]) -> None:
        solid = [s for s in surfaces if s.alpha >= 1]
        table = [Surface(np.zeros((0, 2)), ROAD, self.style.asphalt, (0.03, 0.05, 0.05)), *solid]
        which = self._burn(solid)
        self.labels[:] = np.array([s.label for s in table], np.uint8)[which]
        rough = np.array([s.rough for s in table], np.float32)
        texture = 1 + rough[which, 0] * self.grain
        texture += rough[which, 1] * self.mottle
        texture += rough[which, 2] * self.patchy
        self._furrows(table, which, texture)
        for band, colours in enumerate(np.array([s.colour for s in table], np.float32).T):
            np.multiply(colours[which], texture, out=self.albedo[band])
        grass = self.labels == VEGETATION  # greener here and drier there
        dry = (0.045 * self.patchy + 0.05 * self.broad + 0.04 * self.mottle)[grass]
        self.albedo[0][grass] *= 1 + dry
        self.albedo[2][grass] *= 1 + 0.4 * dry
        if self.style.snow:
            self.labels[grass] = LAND
        draw_rows(self, table, which)
        self._lines([s for s in surfaces if s.alpha < 1])

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

    def _lines(self, surfaces: Sequence[Surface]) -> None:
        """Translucent paint: markings, tracks, wear."""
        which = self._burn(surfaces)
        rows, cols = np.nonzero(which)
        if len(rows) == 0:
            return
        k = which[rows, cols] - 1
        strength = np.clip(0.85 + 0.25 * self.mottle[rows, cols], 0.2, 1)
        alpha = np.array([s.alpha for s in surfaces], np.float32)[k] * strength
        colours = np.array([s.colour for s in surfaces], np.float32)[k].T
        self.albedo[:, rows, cols] += alpha * (colours - self.albedo[:, rows, cols])

    def _shore(self, u: Plane, v: Plane, step: int) -> None:
        """River and sea over whatever the cells hold, but under the bridges of main roads."""
        coarse = self.plan.shore_m(u, v)
        if float(coarse.min()) > 30:
            return
        shore = self._enlarge(np.minimum(coarse, 200.0), step) + 1.1 * self.patchy + 0.35 * self.mottle
        uu, vv = self._enlarge(u, step), self._enlarge(v, step)
        bridge = self._bridges(uu, vv)
        ramp = np.clip((30 - shore) / 30, 0, 1)  # gentle, or the bridge's end would shade the road
        flooded = (shore < 19) & ~bridge  # rows of vines end at the bank
        self.height[flooded], self.light[flooded] = 0.0, 1.0
        self.height[bridge] = 3.5 * ramp[bridge]
        style = self.style
        beach = 14.0 if style.surf else 3.0
        bank = (shore < beach + 5) & (shore >= 0) & ~bridge & (self.labels != WATER)
        sandy = bank & (shore < beach)
        self._fill(sandy, style.sand if style.surf or not style.green else style.track, LAND, 0.10)
        reeds = (style.meadow, VEGETATION) if style.green else (style.soil, LAND)
        self._fill(bank & ~sandy, *reeds, 0.16)
        wet = (shore < 0) & ~bridge
        grain, mottle, patchy, broad = (
            noise[wet] for noise in (self.grain, self.mottle, self.patchy, self.broad)
        )
        depth = -np.minimum(shore[wet], 0) / style.shelf_m
        if style.bed:  # banks and hollows
            banks = 0.5 * mottle + patchy + 2 * broad
            depth = np.logaddexp(0, 1.6 * depth - 0.5 * style.bed * banks - 1)
        clear = np.exp(-depth)
        ripple = 1 + 0.035 * style.waves * grain + 0.05 * style.waves * mottle + 0.05 * style.waves * patchy
        for plane, shallow, deep in zip(self.albedo, style.shallow, style.water, strict=True):
            plane[wet] = (shallow + (deep - shallow) * (1 - clear)) * ripple
        if style.bed:
            weeds = 0.7 * clear * np.clip(1.5 * (broad + 0.8 * patchy + 0.4 * mottle) - 0.7, 0, 1)
            self.albedo[:, wet] += weeds * (0.7 * np.array(style.tree_dark)[:, None] - self.albedo[:, wet])
        if style.surf:
            surf = np.clip(1 - np.abs(shore[wet] + 3.5 + 2 * patchy) / 1.4, 0, 1)
            surf = surf * np.clip(0.6 + 0.6 * mottle, 0, 1)
            self.albedo[:, wet] += 0.6 * surf * (0.92 - self.albedo[:, wet])
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
        self.albedo[:, mask] = np.array(colour, np.float32)[:, None] * texture
        self.labels[mask] = label

    # roofs and cars

    def _body(self, body: Body) -> None:
        gsd, view = self.gsd, self.view
        c, s = math.cos(body.angle), math.sin(body.angle)
        ex, ey = abs(c) * body.a + abs(s) * body.b, abs(s) * body.a + abs(c) * body.b
        c0, r0 = max(0, int((body.x - ex - view.x0) / gsd)), max(0, int((body.y - ey - view.y0) / gsd))
        c1 = min(view.width, int((body.x + ex - view.x0) / gsd) + 2)
        r1 = min(view.height, int((body.y + ey - view.y0) / gsd) + 2)
        if c0 >= c1 or r0 >= r1:
            return
        dx = (view.x0 + (np.arange(c0, c1) + 0.5) * gsd - body.x).astype(np.float32)[None, :]
        dy = (view.y0 + (np.arange(r0, r1) + 0.5) * gsd - body.y).astype(np.float32)[:, None]
        p, q = c * dx + s * dy, c * dy - s * dx
        edge_p, edge_q = np.float32(body.a) - np.abs(p), np.float32(body.b) - np.abs(q)
        rise, light, texture = roof_light(body, self.sun, gsd, p, q, edge_p, edge_q)
        z = body.eave_m + rise + self._deck(body)
        window = (slice(r0, r1), slice(c0, c1))
        on = (edge_p >= 0) & (edge_q >= 0) & (z > self.height[window])
        if not on.any():
            return
        rough = 0.035 if body.roof != CAR else 0.0
        texture = (texture + rough * self.mottle[window] + 0.03 * self.grain[window])[on]
        self.albedo[:, *window][:, on] = np.array(body.colour, np.float32)[:, None] * texture
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
        self, trees: NDArray[np.float64], which: Index, col: Index, row: Index
    ) -> tuple[Plane, Plane]:
        """Pixel centres relative to the crowns' centres, in crown radii with a lobed outline."""
        radius = trees[which, 2]
        dx = ((self.view.x0 + (col + 0.5) * self.gsd - trees[which, 0]) / radius).astype(np.float32)
        dy = ((self.view.y0 + (row + 0.5) * self.gsd - trees[which, 1]) / radius).astype(np.float32)
        phi = np.arctan2(dy, dx)
        turn = (trees[which, 4] * 40).astype(np.float32)
        lobes = 1 + 0.10 * np.sin(3 * phi + turn) + 0.08 * np.sin(5 * phi + 1.7 * turn)
        return dx * lobes, dy * lobes

    def _stamp(self, keys: Index, trees: NDArray[np.float64], members: Index, span: int) -> None:
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

    def _crowns(self, keys: Index, trees: NDArray[np.float64]) -> None:
        rows, cols = np.nonzero(keys)
        key = keys[rows, cols]
        z = (key >> 24).astype(np.float32) / 1000
        higher = z > self.height[rows, cols]
        rows, cols, z, which = rows[higher], cols[higher], z[higher], (key & 0xFFFFFF)[higher]
        dx, dy = self._offsets(trees, which, cols, rows)
        up = np.sqrt(np.maximum(0.12, 1 - dx * dx - dy * dy))
        norm = np.sqrt(dx * dx + dy * dy + up * up)
        slope = (dx * self.sun.x + dy * self.sun.y + up * self.sun.z) / norm / self.sun.z
        leaves = 0.30 * self.grain[rows, cols] + 0.14 * self.mottle[rows, cols]
        self.light[rows, cols] = np.clip(0.30 + 0.62 * slope + leaves, 0.12, 1.6)
        hue = trees[which, 4].astype(np.float32)
        level = (0.85 + 0.3 * ((hue * 7.3) % 1)).astype(np.float32)
        grain = 1 + 0.10 * self.grain[rows, cols]
        for plane, dark, light in zip(self.albedo, self.style.tree_dark, self.style.tree_light, strict=True):
            plane[rows, cols] = (dark + (light - dark) * hue) * level * grain
        self.height[rows, cols] = z
        self.labels[rows, cols] = VEGETATION
