"""Tools to fill a cell of a drawn scene: patches of ground, bands, bodies, cars, trees and its main roads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from shapely.geometry import box

from rsseg_cli.data.synthetic.plan import PAVEMENT_M, Array, Block, Body, Content, Plan, Surface
from rsseg_cli.data.synthetic.style import CAR, LAND, ROAD, VEGETATION, Colour, Roof, shade

Point = tuple[float, float]


class CellBuilder:
    """Fills one cell of the plan."""

    def __init__(self, plan: Plan, i: int, j: int) -> None:
        self.plan, self.style, self.i, self.j = plan, plan.style, i, j
        self.rng = plan.rng(i, j, 7)
        self.out = Content()
        self.may_flood = plan.is_river(i) or plan.style.coast_u is not None

    def build(self) -> Content:
        plan, style, i, j = self.plan, self.style, self.i, self.j
        river = plan.is_river(i)
        u0, u1 = plan.line(0, i) + plan.half_width(0, i), plan.line(0, i + 1) - plan.half_width(0, i + 1)
        bridged = (plan.is_arterial(1, j) or not river, plan.is_arterial(1, j + 1) or not river)
        v0 = plan.line(1, j) + (plan.half_width(1, j) if bridged[0] else 0.0)
        v1 = plan.line(1, j + 1) - (plan.half_width(1, j + 1) if bridged[1] else 0.0)
        cell = Block(u0, v0, u1, v1)
        zone = style.zone_of(i, j, river, self.rng)
        urban = zone in ("suburb", "dense", "towers", "industry", "oldtown")
        rounding = 9.0 if all(bridged) else 0.0
        label = ROAD if urban else VEGETATION if style.green else LAND
        self.patch(cell, label, style.pavement if urban else style.verge, rounding)
        if not river or zone == "bare":
            self.street_trees(cell, urban)
        getattr(self, f"zone_{zone}")(cell.inset(PAVEMENT_M if urban else 1.5))
        self.roads(cell, urban, bridged[0])
        return self.out

    # ground

    def patch(self, block: Block, label: int, colour: Colour, rounding: float = 0.0, **look: Any) -> None:
        """Cover a block; `rounding` is the radius of its corners, m."""
        if min(block.u1 - block.u0, block.v1 - block.v0) < 0.3:
            return
        shape = box(block.u0, block.v0, block.u1, block.v1)
        if rounding:
            r = min(rounding, block.depth / 2.2)
            shape = shape.buffer(-r).buffer(r, quad_segs=4)
        self.area(np.asarray(shape.segmentize(9.0).exterior.coords), label, colour, **look)

    def area(self, uv: Array, label: int, colour: Colour, **look: Any) -> None:
        polygon = np.stack(self.plan.to_xy(uv[:, 0], uv[:, 1]), axis=1)
        self.out.surfaces.append(Surface(polygon, label, colour, **look))

    def stripe(
        self, a: Point, b: Point, width: float, colour: Colour, label: int = ROAD, alpha: float = 1.0,
        **look: Any,
    ) -> None:  # fmt: skip
        """A straight band in (u, v), bent with the plan."""
        w = np.linspace(0, 1, max(2, int(math.hypot(b[0] - a[0], b[1] - a[1]) / 6) + 1))
        u, v = a[0] + (b[0] - a[0]) * w, a[1] + (b[1] - a[1]) * w
        self.band(u, v, width, colour, label, alpha, **look)

    def band(
        self, u: Array, v: Array, width: float, colour: Colour, label: int, alpha: float = 1.0, **look: Any
    ) -> None:
        x, y = self.plan.to_xy(u, v)
        dx, dy = np.gradient(x), np.gradient(y)
        norm = np.hypot(dx, dy) + 1e-9
        ox, oy = -dy / norm * width / 2, dx / norm * width / 2
        polygon = np.concatenate([np.stack([x + ox, y + oy], 1), np.stack([x - ox, y - oy], 1)[::-1]])
        self.out.surfaces.append(Surface(polygon, label, colour, alpha=alpha, **look))

    def ring(
        self, centre: Point, radii: Point, wobble: float, corners: int, width: float, colour: Colour,
        label: int, **look: Any,
    ) -> None:  # fmt: skip
        """A band round a centre."""
        phi = np.linspace(0, 2 * math.pi, corners)
        u = centre[0] + radii[0] * np.cos(phi)
        v = centre[1] + radii[1] * np.sin(phi) + wobble * np.sin(3 * phi)
        self.band(u, v, width, colour, label, **look)

    def blob(self, at: Point, radius: float, label: int, colour: Colour, **look: Any) -> None:
        phi = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        first, second = self.rng.uniform(0, 6), self.rng.uniform(0, 6)
        r = radius * (1 + 0.25 * (0.6 * np.sin(2 * phi + first) + 0.4 * np.sin(3 * phi + second)))
        self.area(np.stack([at[0] + r * np.cos(phi), at[1] + r * np.sin(phi)], 1), label, colour, **look)

    def spot(self, cell: Block, margin: float) -> Point:
        """A random point (u, v) of a cell."""
        u = self.rng.uniform(cell.u0 + margin, cell.u1 - margin)
        return u, self.rng.uniform(cell.v0 + margin, cell.v1 - margin)

    # things

    def is_dry(self, u: float, v: float, margin: float) -> bool:
        return not self.may_flood or float(self.plan.shore_m(np.float32(u), np.float32(v))) > margin  # type: ignore[arg-type]

    def angle(self, u: float, v: float, along_u: bool) -> float:
        x0, y0 = self.plan.point(u, v)
        x1, y1 = self.plan.point(u + 2.0 * along_u, v + 2.0 * (not along_u))
        return math.atan2(y1 - y0, x1 - x0)

    def body(self, block: Block, at: Point, half: Point, eave: float, roof: Roof, turn: float = 0.0) -> None:
        """A building at (s, t) of a block, half as long and wide as `half`, m; none where it is wet."""
        u, v = block.uv(*at)
        if self.is_dry(u, v, max(half) + 4):
            angle = self.angle(u, v, block.along_u) + turn
            self.out.bodies.append(Body(*self.plan.point(u, v), *half, angle, eave, *roof))

    def car(self, u: float, v: float, along_u: bool, turn: float = 0.0, truck: bool = False) -> None:
        """A car where it is dry; `traffic` puts them on bridges too."""
        if self.is_dry(u, v, 3):
            self.traffic(u, v, along_u, turn, truck)

    def traffic(self, u: float, v: float, along_u: bool, turn: float, truck: bool) -> None:
        x, y = self.plan.point(u, v)
        colour = self.style.car_colours[int(self.rng.integers(len(self.style.car_colours)))]
        a, b, h = (
            (4.5, 1.25, 3.2) if truck else (self.rng.uniform(1.95, 2.35), self.rng.uniform(0.86, 0.95), 1.4)
        )
        angle = self.angle(u, v, along_u) + turn + self.rng.normal(0, 0.02)
        self.out.cars.append(Body(x, y, a, b, angle, h, CAR, colour, None))

    def tree(self, u: float, v: float, radius: float) -> None:
        if self.is_dry(u, v, 1.0):
            x, y = self.plan.point(u, v)
            self.out.trees.append((x, y, radius, radius * self.rng.uniform(1.6, 2.6), self.rng.random()))

    def trees(self, u: Array, v: Array, low: float, high: float) -> None:
        if len(u) == 0:
            return
        keep = self.plan.shore_m(u.astype(np.float32), v.astype(np.float32)) > 1.0
        x, y = self.plan.to_xy(u[keep], v[keep])
        radius = low + (high - low) * self.rng.random(len(x)) ** 1.6
        height = radius * self.rng.uniform(1.6, 2.6, len(x))
        columns = (x, y, radius, height, self.rng.random(len(x)))
        self.out.trees.extend(zip(*(column.tolist() for column in columns), strict=True))

    def scatter(
        self, block: Block, per_hectare: float, low: float, high: float, clumps: bool = False
    ) -> None:
        area = max(0.0, (block.u1 - block.u0) * (block.v1 - block.v0))
        n = int(self.rng.poisson(area * per_hectare * self.style.tree_density / 1e4))
        u, v = self.rng.uniform(block.u0, block.u1, n), self.rng.uniform(block.v0, block.v1, n)
        if clumps and n:
            k = max(1, n // 12)
            which = self.rng.integers(0, k, n)
            u = np.clip(u[which] + self.rng.normal(0, 9, n), block.u0, block.u1)
            v = np.clip(v[which] + self.rng.normal(0, 9, n), block.v0, block.v1)
        self.trees(u, v, low, high)

    def row_of_trees(
        self, a: Point, b: Point, spacing: float, low: float, high: float, gap: float = 0.12
    ) -> None:
        n = int(math.hypot(b[0] - a[0], b[1] - a[1]) / spacing)
        w = (np.arange(n) + self.rng.uniform(0.3, 0.7, n)) / max(n, 1)
        w = w[self.rng.random(n) > gap]
        self.trees(a[0] + (b[0] - a[0]) * w, a[1] + (b[1] - a[1]) * w, low, high)

    # main roads round the cell

    def street_trees(self, cell: Block, urban: bool) -> None:
        if self.rng.random() > self.style.street_trees:
            return
        m = 1.3 if urban else 3.0
        u0, v0, u1, v1 = cell.u0 + m, cell.v0 + m, cell.u1 - m, cell.v1 - m
        along, across = (cell.u0 + 12, cell.u1 - 12), (cell.v0 + 12, cell.v1 - 12)
        rows = [[(u, v) for u in along] for v in (v0, v1)]
        columns = [[(u, v) for v in across] for u in (u0, u1)]
        for a, b in (rows[0], *columns, rows[1]):
            if self.rng.random() < 0.7:
                self.row_of_trees(a, b, self.rng.uniform(8, 14), 1.6, 3.4)

    def roads(self, cell: Block, urban: bool, bridged: bool) -> None:
        """Markings and traffic on this cell's left road, and on its upper one where that is `bridged`."""
        plan, u, v = self.plan, self.plan.line(0, self.i), self.plan.line(1, self.j)
        for axis, (a, b) in enumerate((((u, cell.v0), (u, cell.v1)), ((cell.u0, v), (cell.u1, v)))):
            if axis == 0 or bridged:
                index = (self.i, self.j)[axis]
                half, arterial = plan.half_width(axis, index), plan.is_arterial(axis, index)
                self.one_road(a, b, half, arterial, axis == 1, urban)

    def one_road(self, a: Point, b: Point, half: float, arterial: bool, along_u: bool, urban: bool) -> None:
        white, length = self.style.marking, math.hypot(b[0] - a[0], b[1] - a[1])
        side = (0.0, 1.0) if along_u else (1.0, 0.0)

        def at(distance: float, offset: float) -> Point:
            w = distance / length
            return a[0] + (b[0] - a[0]) * w + side[0] * offset, a[1] + (b[1] - a[1]) * w + side[1] * offset

        for offset in (-half * 0.5, half * 0.5):  # where wheels run, asphalt is darker
            worn = shade(self.style.asphalt, 0.93)
            self.stripe(at(-half, offset), at(length + half, offset), half * 0.5, worn, alpha=0.6)
        stop = 7.0
        offsets = (-half / 2, 0.0, half / 2) if arterial else (0.0,)
        for offset in offsets:
            if offset == 0.0 and arterial:
                for d in (-0.18, 0.18):
                    self.stripe(at(stop, d), at(length - stop, d), 0.16, self.style.centre_line, alpha=0.9)
                continue
            for k in range(int(max(0.0, length - 2 * stop) / 9)):
                self.stripe(at(stop + 9 * k, offset), at(stop + 9 * k + 4, offset), 0.16, white, alpha=0.9)
        for offset in (-half + 0.5, half - 0.5):
            self.stripe(at(0, offset), at(length, offset), 0.14, white, alpha=0.6)
        if urban and self.rng.random() < 0.8:
            for end in (2.2, length - 5.0):
                for k in range(int(half * 2 / 1.2)):
                    offset = -half + 0.8 + k * 1.2
                    self.stripe(at(end, offset), at(end + 2.8, offset), 0.55, white, alpha=0.85)
        lanes = (-0.75, -0.25, 0.25, 0.75) if arterial else (-0.5, 0.5)
        for lane in lanes:
            position = self.rng.uniform(0, 50)
            while position < length:
                u, v = at(position, lane * half)
                truck = arterial and self.rng.random() < 0.12
                put = self.car if self.style.coast_u is not None else self.traffic
                put(u, v, along_u, 0.0 if lane > 0 else math.pi, truck)
                position += self.rng.exponential(self.style.headway_m) + 9
