"""What the cells of a drawn scene are used for: suburbs, towns, works, parks, fields, woods, bare ground.

A cell depends on the seed and its own index alone, so only the cells in sight are made.
"""

from __future__ import annotations

import math

import numpy as np

from rsseg_cli.data.synthetic.cells import CellBuilder
from rsseg_cli.data.synthetic.plan import FLAT, GABLE, HALL, HIP, PAVEMENT_M, Block, Body
from rsseg_cli.data.synthetic.style import LAND, ROAD, VEGETATION, WATER, Colour, shade


class ZonedCell(CellBuilder):
    """A cell with one method a use; `build` calls `zone_NAME`."""

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
                    block, ROAD, shade(style.concrete, rng.uniform(0.75, 1.0)), rough=(0.04, 0.08, 0.06)
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
                block, ROAD, shade(style.concrete, rng.uniform(0.8, 1.0)), 4.0, rough=(0.04, 0.08, 0.06)
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
        label, colour = (VEGETATION, style.lawn) if style.green else (LAND, style.soil)
        rough = (0.05, 0.10, 0.10) if style.green else (0.035, 0.045, 0.05)
        self.patch(cell, label, colour, 6.0, rough=rough)
        for _ in range(5):
            u, v = rng.uniform(cell.u0 + 25, cell.u1 - 25), rng.uniform(cell.v0 + 25, cell.v1 - 25)
            tone = shade(style.meadow, rng.uniform(0.88, 1.12))
            self.blob(u, v, rng.uniform(10, 24), VEGETATION, tone, rough=(0.06, 0.14, 0.12))
        self.paths(cell)
        before, kept_free = len(self.out.trees), []
        if not self.plan.is_river(self.i):
            if style.ponds:
                kept_free.append(self.pond(cell))
            if cell.depth > 110 and rng.random() < 0.8:
                u, v = cell.u0 + 0.71 * (cell.u1 - cell.u0), cell.v0 + 0.26 * (cell.v1 - cell.v0)
                self.pitch(u, v)
                kept_free.append((*self.plan.point(u, v), 34.0))
        self.scatter(cell.inset(5), 75 * style.park_trees, 2.0, 5.4, clumps=True)
        self.scatter(cell.inset(5), 14, 2.0, 4.5)
        for x, y, radius in kept_free:
            new = self.out.trees[before:]
            self.out.trees[before:] = [tree for tree in new if math.hypot(tree[0] - x, tree[1] - y) > radius]

    def paths(self, cell: Block) -> None:
        """Gravel paths: a round one, and others from side to side."""
        rng, gravel = self.rng, self.style.gravel
        u, v = (cell.u0 + cell.u1) / 2, (cell.v0 + cell.v1) / 2
        w, h = (cell.u1 - cell.u0) / 2, (cell.v1 - cell.v0) / 2
        phi = np.linspace(0, 2 * math.pi, 80)
        self.band(
            u + w * 0.74 * np.cos(phi), v + h * 0.74 * np.sin(phi) + 6 * np.sin(3 * phi), 2.6, gravel, LAND
        )
        k = np.linspace(0, 1, 30)
        for across_u in (True, False, bool(rng.integers(2))):
            p, q = rng.uniform(-0.8, 0.8, 2)
            line, bulge = 2 * k - 1, rng.uniform(-28, 28) * np.sin(math.pi * k)
            if across_u:
                self.band(u + w * line, v + h * (p + (q - p) * k) + bulge, 2.0, gravel, LAND)
            else:
                self.band(u + w * (p + (q - p) * k) + bulge, v + h * line, 2.0, gravel, LAND)

    def pond(self, cell: Block) -> tuple[float, float, float]:
        """Draws one; x, y and the radius that trees keep from it."""
        rng = self.rng
        u = cell.u0 + rng.uniform(0.36, 0.62) * (cell.u1 - cell.u0)
        v = cell.v0 + rng.uniform(0.42, 0.64) * (cell.v1 - cell.v0)
        radius = cell.depth * rng.uniform(0.12, 0.17)
        state = rng.bit_generator.state
        self.blob(u, v, radius + 2.2, VEGETATION, shade(self.style.meadow, 0.8), rough=(0.08, 0.15, 0.1))
        rng.bit_generator.state = state  # the same outline, smaller
        self.blob(u, v, radius, WATER, self.style.pond, rough=(0.02, 0.03, 0.05))
        return (*self.plan.point(u, v), radius * 1.25)

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
                rough=(0.035, 0.045, 0.05),
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
        self.patch(cell, LAND, style.soil, 6.0, rough=(0.035, 0.045, 0.055))
        for _ in range(9):
            self.blob(
                rng.uniform(cell.u0 + 15, cell.u1 - 15),
                rng.uniform(cell.v0 + 15, cell.v1 - 15),
                rng.uniform(6, 26),
                LAND,
                shade(style.soil, rng.uniform(0.84, 1.16)),
                alpha=0.45,
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
