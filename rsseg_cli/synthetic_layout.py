"""What stands where in a drawn scene: an endless plan of streets, blocks, fields and a river.

Everything is in metres: x to the right, y downwards from the scene's upper left corner. The plan is laid out in a
straight frame (u, v) whose streets follow u and v, and bent into (x, y) by a smooth warp, so that roads curve. A
cell is what lies between four main roads; it depends on the seed and its own index alone, so only the cells in sight
are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import box

from rsseg_cli.synthetic_style import BUILDING, LAND, ROAD, VEGETATION, WATER, Colour, Style, shade

Rng = np.random.Generator
FLAT, GABLE, HIP, CAR, HALL = range(5)
PITCH = {FLAT: 0.0, GABLE: 0.7, HIP: 0.6, CAR: 0.0, HALL: 0.16}
HOUSE_SETBACK_M = 5.5
PAVEMENT_M = 2.2


@dataclass(frozen=True, slots=True)
class Surface:
    """A patch of ground. Polygon (n, 2) in x, y; roughness of 0.5, 3 and 15 m; furrows along `angle`."""

    polygon: NDArray[np.float64]
    label: int
    colour: Colour
    rough: tuple[float, float, float] = (0.03, 0.04, 0.04)
    angle: float = 0.0
    period_m: float = 0.0
    furrow: float = 0.0
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class Body:
    """A box with a roof, centred on (x, y), 2a long along `angle`, 2b wide. Label None keeps what lies beneath."""

    x: float
    y: float
    a: float
    b: float
    angle: float
    eave_m: float
    roof: int
    colour: Colour
    label: int | None = BUILDING


@dataclass
class Content:
    """What a cell holds. `trees` rows: x, y, crown radius, height, hue 0 to 1."""

    surfaces: list[Surface] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    cars: list[Body] = field(default_factory=list)
    trees: list[tuple[float, float, float, float, float]] = field(default_factory=list)


class Plan:
    """The warp between (u, v) and (x, y), the grid of main roads, and the river."""

    def __init__(self, style: Style, seed: int) -> None:
        self.style, self.seed = style, seed
        self._cos, self._sin = math.cos(style.rotation), math.sin(style.rotation)
        self._lines: dict[tuple[int, int], float] = {}

    def to_xy(
        self, u: NDArray[np.float64], v: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(u, v) -> (x, y), m."""
        du, dv = self._bend(u, v)
        p, q = u + du - self.style.origin[0], v + dv - self.style.origin[1]
        return self._cos * p - self._sin * q, self._sin * p + self._cos * q

    def to_uv(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(x, y) -> (u, v), m, by fixed-point iteration: the bend is a contraction."""
        p = self._cos * x + self._sin * y + self.style.origin[0]
        q = -self._sin * x + self._cos * y + self.style.origin[1]
        u, v = p, q
        for _ in range(12):
            du, dv = self._bend(u, v)
            u, v = p - du, q - dv
        return u, v

    def point(self, u: float, v: float) -> tuple[float, float]:
        x, y = self.to_xy(np.float64(u), np.float64(v))  # type: ignore[arg-type]
        return float(x), float(y)

    def _bend(
        self, u: NDArray[np.float64], v: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        amount, (a, b, c, d) = self.style.bend_m, self.style.phases
        du = amount * np.sin(v / 95 + a) + 0.5 * amount * np.sin((0.6 * u + v) / 61 + b)
        dv = amount * np.sin(u / 107 + c) + 0.5 * amount * np.sin((u - 0.5 * v) / 67 + d)
        return du, dv

    def rng(self, *key: int) -> Rng:
        return np.random.default_rng([self.seed, *(k + 2**20 for k in key)])

    def line(self, axis: int, index: int) -> float:
        """Where main road `index` runs: u for axis 0, v for axis 1."""
        if (axis, index) not in self._lines:
            jitter = float(self.rng(axis, index, 1).uniform(-0.16, 0.16))
            self._lines[axis, index] = (index + jitter) * self.style.cell_m[axis]
        return self._lines[axis, index]

    def is_arterial(self, axis: int, index: int) -> bool:
        return (index + axis) % 2 == 0

    def half_width(self, axis: int, index: int) -> float:
        """Half of main road `index`'s width, m."""
        return self.style.arterial_m / 2 if self.is_arterial(axis, index) else self.style.street_m / 2

    def is_river(self, i: int) -> bool:
        """Whether the column of cells between roads i and i + 1 carries the river."""
        return self.style.river_every > 0 and i % self.style.river_every == self.style.river_column

    def river_columns(self, u_low: float, u_high: float) -> Iterator[tuple[float, float]]:
        """Centre and width of each river column that may touch [u_low, u_high]."""
        size = self.style.cell_m[0]
        for i in range(math.floor(u_low / size) - 2, math.ceil(u_high / size) + 2):
            if self.is_river(i):
                left, right = self.line(0, i), self.line(0, i + 1)
                yield (left + right) / 2, right - left

    def shore_m(self, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distance from the shore, m, negative in water; the drawing adds fine irregularities."""
        style = self.style
        distance = np.full(np.shape(u), 1e6, np.float32)
        for centre, width in self.river_columns(float(np.min(u)), float(np.max(u))):
            half = width * style.river_share / 2
            swing = max(0.0, width / 2 - half - 22)
            middle = centre + swing * (
                0.75 * np.sin(v / 70 + style.phases[1]) + 0.25 * np.sin(v / 31 + style.phases[2])
            )
            distance = np.minimum(
                distance, np.abs(u - middle) - half * (1 + 0.22 * np.sin(v / 53 + style.phases[3]))
            )
        if style.coast_u is not None:
            wave = 26 * np.sin(v / 150 + style.phases[0]) + 9 * np.sin(v / 41 + style.phases[2])
            distance = np.minimum(distance, u - style.coast_u - wave)
        return distance.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle in (u, v) with its long side first: s runs along it, t across, both from its corner."""

    u0: float
    v0: float
    u1: float
    v1: float

    @property
    def along_u(self) -> bool:
        return self.u1 - self.u0 >= self.v1 - self.v0

    @property
    def length(self) -> float:
        return max(self.u1 - self.u0, self.v1 - self.v0)

    @property
    def depth(self) -> float:
        return min(self.u1 - self.u0, self.v1 - self.v0)

    def uv(self, s: float, t: float) -> tuple[float, float]:
        return (self.u0 + s, self.v0 + t) if self.along_u else (self.u0 + t, self.v0 + s)

    def inset(self, margin: float) -> Block:
        return Block(self.u0 + margin, self.v0 + margin, self.u1 - margin, self.v1 - margin)

    def cut(self, s0: float, s1: float) -> Block:
        a, b = self.uv(s0, 0), self.uv(s1, self.depth)
        return Block(a[0], a[1], b[0], b[1])


class CellBuilder:
    """Fills one cell of the plan."""

    def __init__(self, plan: Plan, i: int, j: int) -> None:
        self.plan, self.style, self.i, self.j = plan, plan.style, i, j
        self.rng = plan.rng(i, j, 7)
        self.out = Content()

    def build(self) -> Content:
        plan, style, i, j = self.plan, self.style, self.i, self.j
        river = plan.is_river(i)
        u0, u1 = plan.line(0, i) + plan.half_width(0, i), plan.line(0, i + 1) - plan.half_width(0, i + 1)
        bridged = (plan.is_arterial(1, j) or not river, plan.is_arterial(1, j + 1) or not river)
        v0 = plan.line(1, j) + (plan.half_width(1, j) if bridged[0] else 0.0)
        v1 = plan.line(1, j + 1) - (plan.half_width(1, j + 1) if bridged[1] else 0.0)
        cell = Block(u0, v0, u1, v1)
        zone = style.zone_of(i, j, river, self.rng)
        urban = zone in ("suburb", "dense", "towers", "industry")
        rounding = 9.0 if all(bridged) else 0.0
        self.patch(
            cell,
            ROAD if urban else VEGETATION if style.green else LAND,
            style.pavement if urban else style.verge,
            rounding,
        )
        if not river or zone == "bare":
            self.street_trees(cell, urban)
        getattr(self, f"zone_{zone}")(cell.inset(PAVEMENT_M if urban else 1.5))
        self.roads(cell, urban, river, bridged)
        return self.out

    # ground

    def patch(
        self,
        block: Block,
        label: int,
        colour: Colour,
        rounding: float = 0.0,
        *,
        step: float = 9.0,
        **look: object,
    ) -> None:
        if min(block.u1 - block.u0, block.v1 - block.v0) < 0.3:
            return
        shape = box(block.u0, block.v0, block.u1, block.v1)
        if rounding:
            r = min(rounding, block.depth / 2.2)
            shape = shape.buffer(-r).buffer(r, quad_segs=4)
        self.area(np.asarray(shape.segmentize(step).exterior.coords), label, colour, **look)

    def area(self, uv: NDArray[np.float64], label: int, colour: Colour, **look: object) -> None:
        polygon = np.stack(self.plan.to_xy(uv[:, 0], uv[:, 1]), axis=1)
        self.out.surfaces.append(Surface(polygon, label, colour, **look))  # type: ignore[arg-type]

    def stripe(
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        width: float,
        colour: Colour,
        label: int = ROAD,
        alpha: float = 1.0,
        **look: object,
    ) -> None:
        """A straight band in (u, v), bent with the plan."""
        length = math.hypot(b[0] - a[0], b[1] - a[1])
        n = max(2, int(length / 6) + 1)
        w = np.linspace(0, 1, n)
        u, v = a[0] + (b[0] - a[0]) * w, a[1] + (b[1] - a[1]) * w
        self.band(u, v, width, colour, label, alpha, **look)

    def band(
        self,
        u: NDArray[np.float64],
        v: NDArray[np.float64],
        width: float,
        colour: Colour,
        label: int,
        alpha: float = 1.0,
        **look: object,
    ) -> None:
        x, y = self.plan.to_xy(u, v)
        dx, dy = np.gradient(x), np.gradient(y)
        norm = np.hypot(dx, dy) + 1e-9
        ox, oy = -dy / norm * width / 2, dx / norm * width / 2
        polygon = np.concatenate([np.stack([x + ox, y + oy], 1), np.stack([x - ox, y - oy], 1)[::-1]])
        self.out.surfaces.append(Surface(polygon, label, colour, alpha=alpha, **look))  # type: ignore[arg-type]

    def blob(
        self,
        u: float,
        v: float,
        radius: float,
        label: int,
        colour: Colour,
        roughness: float = 0.25,
        **look: object,
    ) -> None:
        phi = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        r = radius * (
            1
            + roughness
            * (
                0.6 * np.sin(2 * phi + self.rng.uniform(0, 6))
                + 0.4 * np.sin(3 * phi + self.rng.uniform(0, 6))
            )
        )
        self.area(np.stack([u + r * np.cos(phi), v + r * np.sin(phi)], 1), label, colour, **look)

    # things

    def is_dry(self, u: float, v: float, margin: float) -> bool:
        return float(self.plan.shore_m(np.float32(u), np.float32(v))) > margin  # type: ignore[arg-type]

    def angle(self, u: float, v: float, along_u: bool) -> float:
        x0, y0 = self.plan.point(u, v)
        x1, y1 = self.plan.point(u + 2.0 * along_u, v + 2.0 * (not along_u))
        return math.atan2(y1 - y0, x1 - x0)

    def body(
        self,
        block: Block,
        s: float,
        t: float,
        a: float,
        b: float,
        eave: float,
        roof: int,
        colour: Colour,
        label: int | None = BUILDING,
        *,
        turn: float = 0.0,
    ) -> None:
        u, v = block.uv(s, t)
        if not self.is_dry(u, v, max(a, b) + 4):
            return
        x, y = self.plan.point(u, v)
        angle = self.angle(u, v, block.along_u) + turn
        self.out.bodies.append(Body(x, y, a, b, angle, eave, roof, colour, label))

    def car(self, u: float, v: float, along_u: bool, turn: float = 0.0, truck: bool = False) -> None:
        if not self.is_dry(u, v, 3):
            return
        x, y = self.plan.point(u, v)
        colour = self.style.car_colours[int(self.rng.integers(len(self.style.car_colours)))]
        a, b, h = (
            (4.5, 1.25, 3.2) if truck else (self.rng.uniform(1.95, 2.35), self.rng.uniform(0.86, 0.95), 1.4)
        )
        angle = self.angle(u, v, along_u) + turn + self.rng.normal(0, 0.02)
        self.out.cars.append(Body(x, y, a, b, angle, h, CAR, colour, None))

    def tree(self, u: float, v: float, radius: float, height: float | None = None) -> None:
        if self.is_dry(u, v, 1.0):
            x, y = self.plan.point(u, v)
            self.out.trees.append(
                (x, y, radius, height or radius * self.rng.uniform(1.6, 2.6), self.rng.random())
            )

    def trees(self, u: NDArray[np.float64], v: NDArray[np.float64], low: float, high: float) -> None:
        if len(u) == 0:
            return
        keep = self.plan.shore_m(u.astype(np.float32), v.astype(np.float32)) > 1.0
        x, y = self.plan.to_xy(u[keep], v[keep])
        radius = low + (high - low) * self.rng.random(len(x)) ** 1.6
        height = radius * self.rng.uniform(1.6, 2.6, len(x))
        self.out.trees.extend(
            zip(
                x.tolist(),
                y.tolist(),
                radius.tolist(),
                height.tolist(),
                self.rng.random(len(x)).tolist(),
                strict=True,
            )
        )

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
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        spacing: float,
        low: float,
        high: float,
        gap: float = 0.12,
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
        for a, b in (
            ((cell.u0 + 12, cell.v0 + m), (cell.u1 - 12, cell.v0 + m)),
            ((cell.u0 + m, cell.v0 + 12), (cell.u0 + m, cell.v1 - 12)),
            ((cell.u1 - m, cell.v0 + 12), (cell.u1 - m, cell.v1 - 12)),
            ((cell.u0 + 12, cell.v1 - m), (cell.u1 - 12, cell.v1 - m)),
        ):
            if self.rng.random() < 0.7:
                self.row_of_trees(a, b, self.rng.uniform(8, 14), 1.6, 3.4)

    def roads(self, cell: Block, urban: bool, river: bool, bridged: tuple[bool, bool]) -> None:
        """Markings and traffic on this cell's left and upper roads."""
        plan = self.plan
        along = (
            (
                (plan.line(0, self.i), cell.v0),
                (plan.line(0, self.i), cell.v1),
                plan.half_width(0, self.i),
                plan.is_arterial(0, self.i),
            ),
            (
                (cell.u0, plan.line(1, self.j)),
                (cell.u1, plan.line(1, self.j)),
                plan.half_width(1, self.j),
                plan.is_arterial(1, self.j),
            ),
        )
        for axis, (a, b, half, arterial) in enumerate(along):
            if axis == 1 and not bridged[0]:
                continue
            self.one_road(a, b, half, arterial, axis == 1, urban)

    def one_road(
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        half: float,
        arterial: bool,
        along_u: bool,
        urban: bool,
    ) -> None:
        white, length = self.style.marking, math.hypot(b[0] - a[0], b[1] - a[1])
        side = (0.0, 1.0) if along_u else (1.0, 0.0)

        def at(distance: float, offset: float) -> tuple[float, float]:
            w = distance / length
            return a[0] + (b[0] - a[0]) * w + side[0] * offset, a[1] + (b[1] - a[1]) * w + side[1] * offset

        for offset in (-half * 0.5, half * 0.5):  # where wheels run, asphalt is darker
            self.stripe(
                at(-half, offset),
                at(length + half, offset),
                half * 0.5,
                shade(self.style.asphalt, 0.93),
                alpha=0.6,
            )
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
                self.car(
                    u, v, along_u, 0.0 if lane > 0 else math.pi, truck=arterial and self.rng.random() < 0.12
                )
                position += self.rng.exponential(self.style.headway_m) + 9

    # zones

    def split(self, cell: Block, depth: float, length: float, street: float) -> list[Block]:
        """Blocks of about length x depth with streets between them."""
        across_u = self.rng.random() < 0.5
        du, dv = (length, depth) if across_u else (depth, length)
        nu = max(1, round((cell.u1 - cell.u0 + street) / (du + street)))
        nv = max(1, round((cell.v1 - cell.v0 + street) / (dv + street)))
        wu, wv = (cell.u1 - cell.u0 + street) / nu - street, (cell.v1 - cell.v0 + street) / nv - street
        return [
            Block(
                cell.u0 + k * (wu + street),
                cell.v0 + m * (wv + street),
                cell.u0 + k * (wu + street) + wu,
                cell.v0 + m * (wv + street) + wv,
            )
            for k in range(nu)
            for m in range(nv)
        ]

    def residential_streets(self, cell: Block, depth: float, length: float, street: float) -> list[Block]:
        outer = cell.inset(-PAVEMENT_M)
        self.patch(outer, ROAD, self.style.side_asphalt, 7.0, rough=(0.03, 0.06, 0.05))
        blocks = self.split(outer, depth, length, street)
        for block in blocks:
            self.patch(block, ROAD, self.style.pavement, 5.0, rough=(0.02, 0.05, 0.03))
        return [block.inset(PAVEMENT_M * 0.8) for block in blocks]

    def park_along(self, block: Block, share: float) -> None:
        """Cars parked at the kerb on both long sides."""
        for t in (-3.0, block.depth + 3.0):
            s = self.rng.uniform(3, 10)
            while s < block.length - 4:
                if self.rng.random() < share:
                    u, v = block.uv(s, t)
                    self.car(u, v, block.along_u, math.pi * (t > 0))
                s += self.rng.uniform(5.3, 6.5)

    def zone_suburb(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.residential_streets(cell, style.block_depth_m, rng.uniform(70, 125), style.lane_m):
            if block.depth < 24 or rng.random() < style.empty_blocks:
                self.green_block(block)
                continue
            self.park_along(block, style.parked)
            for t0, t1, front in ((0.0, block.depth / 2, 0.0), (block.depth / 2, block.depth, block.depth)):
                s = 0.0
                while s < block.length - 8:
                    width = min(rng.uniform(*style.lot_m), block.length - s)
                    if block.length - s - width < style.lot_m[0] * 0.7:
                        width = block.length - s
                    self.lot(block, s, s + width, t0, t1, front)
                    s += width

    def lot(self, block: Block, s0: float, s1: float, t0: float, t1: float, front: float) -> None:
        style, rng = self.style, self.rng
        width, depth = s1 - s0, t1 - t0
        into = 1.0 if front == t0 else -1.0
        corner, opposite = block.uv(s0, t0), block.uv(s1, t1)
        plot = Block(corner[0] + 0.1, corner[1] + 0.1, opposite[0] - 0.1, opposite[1] - 0.1)
        label, colour = style.yard(rng)
        self.patch(plot, label, colour, rough=(0.05, 0.10, 0.08))
        if rng.random() < style.vacant_lots:
            self.scatter(plot, 120, 1.0, 3.0)
            return
        a, b = (
            min(rng.uniform(4.6, 7.2) * style.house_scale, width / 2 - 1.3),
            min(rng.uniform(3.7, 5.0) * style.house_scale, depth / 2 - 3),
        )
        if a < 2.5 or b < 2.5:
            self.scatter(plot, 300, 1.0, 2.5)
            return
        setback = style.setback_m + rng.uniform(-1, 1.5) + b
        s, t = (s0 + s1) / 2 + rng.uniform(-1, 1) * max(0, width / 2 - a - 1.2), front + into * setback
        roof, tile = style.roof(rng)
        side = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < 0.85:
            drive = min(max(s + side * a * 0.6, s0 + 1.8), s1 - 1.8)
            p, q = block.uv(drive - 1.5, front), block.uv(drive + 1.5, front + into * (setback - b + 0.5))
            self.patch(
                Block(min(p[0], q[0]), min(p[1], q[1]), max(p[0], q[0]), max(p[1], q[1])),
                ROAD,
                shade(style.drive, rng.uniform(0.88, 1.1)),
            )
            if rng.random() < 0.55 and setback - b > 4.6:
                u, v = block.uv(drive, front + into * (setback - b - 2.7))
                self.car(u, v, block.along_u, math.pi / 2)
        eave = rng.uniform(2.8, 5.8)
        self.body(block, s, t, a, b, eave, roof, tile, turn=0.0)
        form = rng.random()
        if form < 0.45:  # L or T
            wing = min(b * 0.75, a * 0.6)
            reach = min(b * 0.9, max(2.0, depth - setback - b - 2))
            self.body(
                block,
                s + side * (a - wing),
                t + into * (b * 0.2 + reach / 2),
                wing,
                b * 0.5 + reach / 2,
                eave,
                HIP if roof == HIP else FLAT if roof == FLAT else GABLE,
                tile,
                turn=0.0,
            ) if roof == FLAT else self.wing(
                block,
                s + side * (a - wing),
                t + into * (b * 0.2 + reach / 2),
                b * 0.8 + reach / 2,
                wing,
                eave,
                roof,
                tile,
            )
        elif form < 0.65 and width / 2 - a > 2.4:
            self.body(
                block,
                s - side * (a + 1.7),
                t + into * rng.uniform(-1, 1),
                1.9,
                2.9,
                2.6,
                FLAT,
                shade(style.flat_roof, rng.uniform(0.8, 1.1)),
            )
        if roof != FLAT and rng.random() < 0.6:  # chimney
            self.body(
                block,
                s + rng.uniform(-0.5, 0.5) * a,
                t + 0.8,
                0.45,
                0.45,
                eave + b * 0.75 + 0.6,
                FLAT,
                (0.42, 0.33, 0.30),
            )
        elif roof == FLAT:
            self.roof_clutter(block, s, t, a, b, eave, 2)
        if roof != FLAT and rng.random() < style.solar:
            self.solar(block, s, t, a, b, eave)
        back = t + into * (b + rng.uniform(4.5, 7.0))
        if rng.random() < style.pools and t0 + 3 < back < t1 - 3:
            u, v = block.uv(s - side * a * 0.3, back)
            self.patch(Block(u - 3.6, v - 3.2, u + 3.6, v + 3.2), ROAD, style.pavement)
            self.patch(
                Block(u - 2.6, v - 2.0, u + 2.6, v + 2.0),
                WATER,
                (0.33, 0.68, 0.76),
                1.2,
                rough=(0.02, 0.02, 0.0),
            )
        elif rng.random() < 0.35:
            self.body(
                block,
                s0 + 2.2 if side > 0 else s1 - 2.2,
                t1 - 2.5 if into > 0 else t0 + 2.5,
                1.5,
                1.2,
                2.2,
                FLAT if rng.random() < 0.5 else GABLE,
                shade((0.55, 0.50, 0.45), rng.uniform(0.7, 1.2)),
            )
        self.garden(block, s0, s1, t0, t1, into, t, b)

    def wing(
        self, block: Block, s: float, t: float, a: float, b: float, eave: float, roof: int, colour: Colour
    ) -> None:
        self.body(block, s, t, a, b, eave, roof, colour, turn=math.pi / 2)

    def solar(self, block: Block, s: float, t: float, a: float, b: float, eave: float) -> None:
        u, v = block.uv(s, t + b * 0.45 * (1 if self.rng.random() < 0.5 else -1))
        x, y = self.plan.point(u, v)
        if self.is_dry(u, v, a + 4):
            self.out.bodies.append(
                Body(
                    x,
                    y,
                    a * self.rng.uniform(0.3, 0.6),
                    b * 0.3,
                    self.angle(u, v, block.along_u),
                    eave + b * 0.45,
                    FLAT,
                    (0.10, 0.13, 0.22),
                )
            )

    def garden(
        self, block: Block, s0: float, s1: float, t0: float, t1: float, into: float, t_house: float, b: float
    ) -> None:
        rng, density = self.rng, self.style.tree_density
        rear = (t_house + b + 1.5, t1 - 0.8) if into > 0 else (t0 + 0.8, t_house - b - 1.5)
        if rear[1] - rear[0] > 2:
            for _ in range(int(rng.poisson(2.4 * density))):
                u, v = block.uv(rng.uniform(s0 + 1, s1 - 1), rng.uniform(*rear))
                self.tree(u, v, rng.uniform(1.2, 3.8))
        if rng.random() < 0.4 * density:
            u, v = block.uv(rng.uniform(s0 + 1.5, s1 - 1.5), t_house - into * (b + 2.8))
            self.tree(u, v, rng.uniform(1.0, 2.4))
        if rng.random() < 0.5 * density:  # hedge along one side
            self.row_of_trees(block.uv(s0 + 0.4, t0 + 1), block.uv(s0 + 0.4, t1 - 1), 1.1, 0.6, 0.9, gap=0.03)
        if rng.random() < 0.5 * density:
            back = t1 - 0.4 if into > 0 else t0 + 0.4
            self.row_of_trees(block.uv(s0 + 0.5, back), block.uv(s1 - 0.5, back), 1.3, 0.7, 1.1, gap=0.05)

    def roof_clutter(self, block: Block, s: float, t: float, a: float, b: float, eave: float, n: int) -> None:
        for _ in range(int(self.rng.poisson(n))):
            size = self.rng.uniform(0.5, 1.4)
            if a > size + 1 and b > size + 1:
                self.body(
                    block,
                    s + self.rng.uniform(-1, 1) * (a - size - 0.6),
                    t + self.rng.uniform(-1, 1) * (b - size - 0.6),
                    size,
                    size * self.rng.uniform(0.5, 1),
                    eave + self.rng.uniform(0.8, 2.0),
                    FLAT,
                    shade((0.72, 0.72, 0.72), self.rng.uniform(0.6, 1.25)),
                )

    def green_block(self, block: Block) -> None:
        label, colour = (VEGETATION, self.style.lawn) if self.style.green else (LAND, self.style.soil)
        self.patch(block, label, colour, 4.0, rough=(0.05, 0.10, 0.10))
        self.scatter(block, 90, 1.5, 4.5, clumps=True)
        n = int(self.rng.integers(2, 4))
        for _ in range(n):
            self.stripe(
                block.uv(self.rng.uniform(0, block.length), 0),
                block.uv(self.rng.uniform(0, block.length), block.depth),
                1.8,
                self.style.gravel,
                LAND,
            )

    def zone_dense(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.residential_streets(
            cell, rng.uniform(48, 62), rng.uniform(55, 85), style.lane_m + 3
        ):
            if rng.random() < 0.08:
                self.green_block(block)
                continue
            self.park_along(block, 0.75)
            kind = rng.random()
            if kind < 0.45 and style.green:
                self.patch(block, VEGETATION, shade(style.lawn, 0.9), rough=(0.06, 0.14, 0.1))
            else:
                self.patch(
                    block, ROAD, shade(style.concrete, rng.uniform(0.75, 1.0)), rough=(0.05, 0.14, 0.1)
                )
            self.scatter(block.inset(16), 130, 1.5, 4.0)
            depth = min(rng.uniform(5.2, 6.6), block.depth / 2 - 5)
            base = rng.uniform(9, 16)
            roof, tile = style.city_roof(rng)
            for t in (depth, block.depth - depth):
                self.terrace(block, 0.0, block.length, t, depth, base, roof, tile)
            inner = Block(block.u0, block.v0, block.u1, block.v1)
            for s in (depth, block.length - depth):
                self.terrace_across(inner, s, 2 * depth, block.depth - 2 * depth, depth, base, roof, tile)

    def terrace(
        self, block: Block, s0: float, s1: float, t: float, depth: float, base: float, roof: int, tile: Colour
    ) -> None:
        s = s0
        while s < s1 - 3:
            width = min(self.rng.uniform(9, 19), s1 - s)
            width = s1 - s if s1 - s - width < 7 else width
            self.city_house(
                block, s + width / 2, t, width / 2, depth * self.rng.uniform(0.93, 1.0), base, roof, tile, 0.0
            )
            s += width

    def terrace_across(
        self, block: Block, s: float, t0: float, t1: float, depth: float, base: float, roof: int, tile: Colour
    ) -> None:
        t = t0
        while t < t1 - 3:
            width = min(self.rng.uniform(9, 17), t1 - t)
            width = t1 - t if t1 - t - width < 7 else width
            if self.rng.random() < 0.85:
                self.city_house(
                    block,
                    s,
                    t + width / 2,
                    width / 2,
                    depth * self.rng.uniform(0.93, 1.0),
                    base,
                    roof,
                    tile,
                    math.pi / 2,
                )
            t += width

    def city_house(
        self,
        block: Block,
        s: float,
        t: float,
        a: float,
        b: float,
        base: float,
        roof: int,
        tile: Colour,
        turn: float,
    ) -> None:
        rng = self.rng
        height = base + rng.uniform(-2.5, 2.5)
        if rng.random() < 0.25:
            roof, tile = self.style.city_roof(rng)
        self.body(block, s, t, a, b, height, roof, shade(tile, rng.uniform(0.85, 1.12)), turn=turn)
        if roof == FLAT:
            aa, bb = (a, b) if turn == 0 else (b, a)
            self.roof_clutter(block, s, t, aa, bb, height, 4)
        else:
            for _ in range(int(rng.poisson(1.6))):
                self.body(
                    block,
                    s + rng.uniform(-0.6, 0.6) * min(a, b),
                    t + rng.uniform(-0.6, 0.6) * min(a, b),
                    0.6,
                    0.4,
                    height + b * 0.62,
                    FLAT,
                    (0.5, 0.42, 0.38),
                    turn=turn,
                )

    def zone_towers(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.residential_streets(
            cell, rng.uniform(75, 95), rng.uniform(90, 130), style.lane_m + 2
        ):
            label, colour = (VEGETATION, style.lawn) if style.green else (ROAD, style.concrete)
            self.patch(block, label, colour, 4.0, rough=(0.05, 0.12, 0.1))
            n = max(1, int(block.length // 42))
            for k in range(n):
                s = (k + 0.5) * block.length / n
                a, b = rng.uniform(12, 17), rng.uniform(6.5, 9)
                t = block.depth * rng.uniform(0.24, 0.34)
                height = rng.uniform(14, 30)
                self.body(block, s, t, a, b, height, FLAT, shade(style.flat_roof, rng.uniform(0.75, 1.15)))
                self.body(block, s, t, 3.0, 2.5, height + 2.6, FLAT, shade(style.flat_roof, 0.8))
                self.roof_clutter(block, s, t, a, b, height, 6)
            self.parking(block, 3, block.length - 3, block.depth * 0.58, 17.0)
            self.scatter(
                Block(block.u0 + 2, block.v0 + 2, block.u1 - 2, block.v1 - 2)
                if block.depth < 40
                else block.inset(3),
                45,
                1.5,
                3.5,
            )

    def parking(self, block: Block, s0: float, s1: float, t0: float, depth: float) -> None:
        p, q = block.uv(s0, t0), block.uv(s1, t0 + depth)
        self.patch(
            Block(p[0], p[1], q[0], q[1]),
            ROAD,
            shade(self.style.side_asphalt, self.rng.uniform(0.9, 1.1)),
            2.0,
            rough=(0.03, 0.08, 0.06),
        )
        filled = self.rng.uniform(0.3, 0.9)
        for row in (t0 + 2.7, t0 + depth - 2.7):
            s = s0 + 2.5
            while s < s1 - 2.5:
                self.stripe(
                    block.uv(s - 1.3, row - 2.4),
                    block.uv(s - 1.3, row + 2.4),
                    0.12,
                    self.style.marking,
                    alpha=0.7,
                )
                if self.rng.random() < filled:
                    u, v = block.uv(s, row + self.rng.normal(0, 0.15))
                    self.car(u, v, block.along_u, math.pi / 2 * (1 if self.rng.random() < 0.5 else -1))
                s += 2.6

    def zone_industry(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.residential_streets(
            cell, rng.uniform(75, 105), rng.uniform(95, 150), style.lane_m + 3
        ):
            self.patch(
                block, ROAD, shade(style.concrete, rng.uniform(0.8, 1.0)), 4.0, rough=(0.05, 0.14, 0.1)
            )
            edge = 5.0
            for t in (0.0, block.depth - edge):
                p, q = block.uv(0, t), block.uv(block.length, t + edge)
                self.patch(
                    Block(p[0], p[1], q[0], q[1]),
                    VEGETATION if style.green else LAND,
                    style.lawn if style.green else style.soil,
                    rough=(0.05, 0.1, 0.1),
                )
                self.row_of_trees(
                    block.uv(4, t + edge / 2), block.uv(block.length - 4, t + edge / 2), 9, 1.6, 3.2, gap=0.3
                )
            s = 6.0
            while s < block.length - 24:
                width = min(rng.uniform(28, 62), block.length - s - 6)
                b = (block.depth - 2 * edge - 26) / 2
                colour = style.halls[int(rng.integers(len(style.halls)))]
                roof = HALL if rng.random() < 0.7 else FLAT
                height = rng.uniform(6, 11)
                self.body(
                    block,
                    s + width / 2,
                    edge + 4 + b,
                    width / 2 - 1,
                    b,
                    height,
                    roof,
                    shade(colour, rng.uniform(0.88, 1.08)),
                )
                self.roof_clutter(block, s + width / 2, edge + 4 + b, width / 2 - 1, b, height + 0.8, 9)
                if rng.random() < 0.5:
                    self.body(
                        block,
                        s + width * 0.3,
                        edge + 4 + 2 * b + 2.4,
                        width * 0.2,
                        3.0,
                        4.5,
                        FLAT,
                        shade(style.flat_roof, rng.uniform(0.8, 1.1)),
                    )
                s += width + 7
            if rng.random() < 0.7:
                self.parking(block, 4, block.length - 4, block.depth - edge - 17.5, 16.5)
            else:
                self.containers(block, edge)

    def containers(self, block: Block, edge: float) -> None:
        s = 6.0
        while s < block.length - 10:
            for row in range(4):
                if self.rng.random() < 0.6:
                    colour = self.style.container_colours[
                        int(self.rng.integers(len(self.style.container_colours)))
                    ]
                    u, v = block.uv(s, block.depth - edge - 4 - row * 2.8)
                    x, y = self.plan.point(u, v)
                    if self.is_dry(u, v, 5):
                        self.out.cars.append(
                            Body(x, y, 3.0, 1.2, self.angle(u, v, block.along_u), 2.6, FLAT, colour, None)
                        )
            s += self.rng.choice([6.4, 6.4, 6.4, 12.0])

    def zone_park(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        self.patch(
            cell,
            VEGETATION if style.green else LAND,
            style.lawn if style.green else style.soil,
            6.0,
            rough=(0.05, 0.10, 0.13),
        )
        cu, cv = (cell.u0 + cell.u1) / 2, (cell.v0 + cell.v1) / 2
        w, h = (cell.u1 - cell.u0) / 2, (cell.v1 - cell.v0) / 2
        for _ in range(5):
            self.blob(
                rng.uniform(cell.u0 + 25, cell.u1 - 25),
                rng.uniform(cell.v0 + 25, cell.v1 - 25),
                rng.uniform(10, 24),
                VEGETATION,
                shade(style.meadow, rng.uniform(0.85, 1.15)),
                rough=(0.06, 0.14, 0.12),
            )
        phi = np.linspace(0, 2 * math.pi, 80)
        self.band(
            cu + w * 0.74 * np.cos(phi),
            cv + h * 0.74 * np.sin(phi) + 6 * np.sin(3 * phi),
            2.6,
            style.gravel,
            LAND,
        )
        for _ in range(4):
            a, b = rng.uniform(0, 2 * math.pi, 2)
            k = np.linspace(0, 1, 30)
            bulge = rng.uniform(-28, 28) * np.sin(math.pi * k)
            self.band(
                cu + w * ((1 - k) * math.cos(a) + k * math.cos(b)) * 0.95 + bulge,
                cv + h * ((1 - k) * math.sin(a) + k * math.sin(b)) * 0.95 - bulge,
                2.0,
                style.gravel,
                LAND,
            )
        river = self.plan.is_river(self.i)
        pond = (
            cu + rng.uniform(-0.3, 0.3) * w,
            cv + rng.uniform(-0.3, 0.3) * h,
            min(w, h) * rng.uniform(0.24, 0.34),
        )
        if not river and style.ponds:
            state = rng.bit_generator.state
            self.blob(*pond[:2], pond[2] + 2.2, VEGETATION, shade(style.meadow, 0.8), rough=(0.08, 0.15, 0.1))
            rng.bit_generator.state = state
            self.blob(*pond[:2], pond[2], WATER, style.pond, rough=(0.02, 0.03, 0.05))
        if min(w, h) > 45 and not river and rng.random() < 0.8:
            self.pitch(cu + w * 0.45, cv - h * 0.5)
        before = len(self.out.trees)
        self.scatter(cell.inset(5), 75 * style.park_trees, 2.0, 5.4, clumps=True)
        self.scatter(cell.inset(5), 14, 2.0, 4.5)
        if not river and style.ponds:
            x, y = self.plan.point(pond[0], pond[1])
            near = (pond[2] * 1.25) ** 2
            self.out.trees[before:] = [
                tree for tree in self.out.trees[before:] if (tree[0] - x) ** 2 + (tree[1] - y) ** 2 > near
            ]

    def pitch(self, u: float, v: float) -> None:
        a, b = 32.0, 21.0
        for k in range(8):
            left = u - a + k * a / 4
            self.patch(
                Block(left, v - b, left + a / 4, v + b),
                VEGETATION,
                shade(self.style.pitch, 0.93 if k % 2 else 1.05),
                rough=(0.02, 0.04, 0.04),
            )
        white = self.style.marking
        a, b = a - 2, b - 2
        for p, q in (
            ((u - a, v - b), (u + a, v - b)),
            ((u - a, v + b), (u + a, v + b)),
            ((u - a, v - b), (u - a, v + b)),
            ((u + a, v - b), (u + a, v + b)),
            ((u, v - b), (u, v + b)),
        ):
            self.stripe(p, q, 0.2, white, VEGETATION, alpha=0.8)
        phi = np.linspace(0, 2 * math.pi, 40)
        self.band(u + 6 * np.cos(phi), v + 6 * np.sin(phi), 0.2, white, VEGETATION, alpha=0.8)

    def zone_fields(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        self.patch(cell, VEGETATION if style.green else LAND, style.verge, 4.0, rough=(0.06, 0.12, 0.1))
        parcels = [cell]
        while len(parcels) < style.parcels:
            parcels.sort(key=lambda item: -item.length * item.depth)
            largest = parcels.pop(0)
            cut = largest.length * rng.uniform(0.35, 0.65)
            parcels += [largest.cut(0, cut), largest.cut(cut, largest.length)]
        angle = 0.0
        for k, parcel in enumerate(parcels):
            angle = self.angle((parcel.u0 + parcel.u1) / 2, (parcel.v0 + parcel.v1) / 2, parcel.along_u)
            label, colour, period, strength = style.crop(rng, self.i, self.j, k)
            margin = rng.uniform(1.0, 2.6)
            inner = parcel.inset(margin)
            if inner.depth < 4:
                continue
            self.patch(
                inner,
                label,
                colour,
                2.5,
                rough=(0.035, 0.05, 0.09),
                angle=angle,
                period_m=period,
                furrow=strength,
            )
            if rng.random() < 0.8:  # tractor tracks
                t = rng.uniform(5, 9)
                while t < inner.depth - 3:
                    for offset in (-0.9, 0.9):
                        self.stripe(
                            inner.uv(2, t + offset),
                            inner.uv(inner.length - 2, t + offset),
                            0.5,
                            shade(style.soil, 0.8) if label == VEGETATION else shade(colour, 0.85),
                            label,
                            alpha=0.4,
                        )
                    t += 18.0
            if rng.random() < 0.55 * style.tree_density:
                self.row_of_trees(
                    parcel.uv(0, 0), parcel.uv(parcel.length, 0), rng.uniform(3, 7), 1.4, 3.6, gap=0.25
                )
            elif rng.random() < 0.4:
                self.stripe(
                    parcel.uv(0, 0),
                    parcel.uv(parcel.length, 0),
                    3.0,
                    style.track,
                    LAND,
                    rough=(0.06, 0.1, 0.08),
                )
        if rng.random() < 0.6:
            self.farm(cell)

    def farm(self, cell: Block) -> None:
        rng, style = self.rng, self.style
        yard = Block(cell.u0 + 6, cell.v0 + 6, cell.u0 + 52, cell.v0 + 44)
        self.patch(yard, LAND, style.gravel, 4.0, rough=(0.06, 0.14, 0.1))
        self.body(yard, 13, 10, 8, 5, 4.5, GABLE, style.roof(rng)[1])
        self.body(yard, 30, 26, 13, 7.5, 6.5, HALL, style.halls[int(rng.integers(len(style.halls)))])
        self.body(yard, 38, 8, 6, 4, 5, GABLE, style.roof(rng)[1])
        self.scatter(yard, 60, 2.0, 4.5)

    def zone_forest(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        self.patch(
            cell,
            VEGETATION if style.green else LAND,
            shade(style.meadow, 0.75) if style.green else style.soil,
            rough=(0.08, 0.16, 0.12),
        )
        k = np.linspace(0, 1, 40)
        for _ in range(2):
            a, b = rng.uniform(0, 1, 2)
            self.band(
                cell.u0 + (cell.u1 - cell.u0) * k,
                cell.v0 + (cell.v1 - cell.v0) * (a + (b - a) * k + 0.06 * np.sin(9 * k + a)),
                2.8,
                style.track,
                LAND,
            )
        spacing = 4.4 if style.green else 8.0
        nu, nv = int((cell.u1 - cell.u0) / spacing), int((cell.v1 - cell.v0) / spacing)
        gu, gv = np.meshgrid(np.arange(nu), np.arange(nv))
        u = cell.u0 + (gu.ravel() + rng.uniform(0, 1, nu * nv)) * spacing
        v = cell.v0 + (gv.ravel() + rng.uniform(0, 1, nu * nv)) * spacing
        glade = (
            np.sin(u / 23 + style.phases[0]) + np.sin(v / 19 + style.phases[1]) + rng.normal(0, 0.25, len(u))
        )
        keep = (glade < 0.95) & (rng.random(len(u)) < 0.95)
        self.trees(u[keep], v[keep], 1.9, 4.6)

    def zone_bare(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        self.patch(cell, LAND, style.soil, 6.0, rough=(0.06, 0.12, 0.16))
        for _ in range(9):
            self.blob(
                rng.uniform(cell.u0 + 15, cell.u1 - 15),
                rng.uniform(cell.v0 + 15, cell.v1 - 15),
                rng.uniform(6, 26),
                LAND,
                shade(style.soil, rng.uniform(0.84, 1.16)),
                rough=(0.06, 0.14, 0.14),
                alpha=0.6,
            )
        for _ in range(5):
            a, b, c = rng.uniform(0, 1, 3)
            k = np.linspace(0, 1, 40)
            u = cell.u0 + (cell.u1 - cell.u0) * k
            v = cell.v0 + (cell.v1 - cell.v0) * (a + (b - a) * k + 0.1 * np.sin(6 * k + 6 * c))
            for offset in (-0.9, 0.9):
                self.band(
                    u, np.clip(v + offset, cell.v0 + 2, cell.v1 - 2), 0.7, shade(style.soil, 0.82), LAND, 0.55
                )
        if rng.random() < style.building_sites:
            self.site(cell)
        if style.green:
            for _ in range(6):
                self.blob(
                    rng.uniform(cell.u0 + 12, cell.u1 - 12),
                    rng.uniform(cell.v0 + 12, cell.v1 - 12),
                    rng.uniform(4, 13),
                    VEGETATION,
                    shade(style.meadow, rng.uniform(0.9, 1.2)),
                    rough=(0.09, 0.2, 0.12),
                )
        self.scatter(cell.inset(4), 16, 0.7, 2.2, clumps=True)

    def site(self, cell: Block) -> None:
        """A building site: pits, heaps, halls half finished."""
        rng, style = self.rng, self.style
        for _ in range(3):
            u, v = rng.uniform(cell.u0 + 25, cell.u1 - 25), rng.uniform(cell.v0 + 25, cell.v1 - 25)
            inner = Block(u - 20, v - 14, u + 20, v + 14)
            self.patch(inner, LAND, shade(style.soil, 0.8), rough=(0.06, 0.1, 0.1))
            self.body(
                inner,
                20,
                14,
                rng.uniform(9, 15),
                rng.uniform(6, 9),
                rng.uniform(4, 12),
                FLAT,
                shade(style.concrete, rng.uniform(0.9, 1.1)),
            )
            for _ in range(4):
                self.car(
                    u + rng.uniform(-24, 24),
                    v + rng.uniform(-19, 19),
                    rng.random() < 0.5,
                    truck=rng.random() < 0.5,
                )
