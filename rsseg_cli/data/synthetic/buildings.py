"""Built-up plots of a drawn scene: houses with gardens, terraces, halls, car parks, containers, farms."""

from __future__ import annotations

import math

from rsseg_cli.data.synthetic.cells import CellBuilder
from rsseg_cli.data.synthetic.plan import PAVEMENT_M, Block, Body
from rsseg_cli.data.synthetic.style import FLAT, GABLE, HALL, LAND, ROAD, VEGETATION, WATER, Roof, shade

POOL = (0.33, 0.68, 0.76)
PANEL = (0.10, 0.13, 0.22)


class BuiltCell(CellBuilder):
    """Builds on the blocks of a cell. (s, t) runs along and across a block."""

    def streets(self, cell: Block, depth: float, length: float, street: float) -> list[Block]:
        """Divide a cell into blocks of about length x depth, with streets and pavements between them."""
        outer = cell.inset(-PAVEMENT_M)
        self.patch(outer, ROAD, self.style.side_asphalt, 7.0, rough=(0.03, 0.06, 0.05))
        across_u = self.rng.random() < 0.5
        du, dv = (length, depth) if across_u else (depth, length)
        wide, high = outer.u1 - outer.u0 + street, outer.v1 - outer.v0 + street
        nu, nv = max(1, round(wide / (du + street))), max(1, round(high / (dv + street)))
        wu, wv = wide / nu - street, high / nv - street
        blocks = []
        for u in (outer.u0 + k * (wu + street) for k in range(nu)):
            blocks += [Block(u, v, u + wu, v + wv) for v in (outer.v0 + m * (wv + street) for m in range(nv))]
        for block in blocks:
            self.patch(block, ROAD, self.style.pavement, 5.0, rough=(0.02, 0.05, 0.03))
        return [block.inset(PAVEMENT_M * 0.8) for block in blocks]

    def park_along(self, block: Block, share: float) -> None:
        """Park cars at the kerb on both long sides."""
        for t in (-3.0, block.depth + 3.0):
            s = self.rng.uniform(3, 10)
            while s < block.length - 4:
                if self.rng.random() < share:
                    self.car(*block.uv(s, t), block.along_u, math.pi * (t > 0))
                s += self.rng.uniform(5.3, 6.5)

    def tinted(self, low: float, high: float) -> Roof:
        """A flat roof, a little brighter or darker."""
        return FLAT, shade(self.style.flat_roof, self.rng.uniform(low, high))

    def lot(self, block: Block, s0: float, s1: float, t0: float, t1: float, front: float) -> None:
        """Build a house with drive and garden on a plot whose street lies at `front`."""
        style, rng = self.style, self.rng
        width, depth = s1 - s0, t1 - t0
        into = 1.0 if front == t0 else -1.0
        plot = block.part(s0, t0, s1, t1).inset(0.1)
        self.patch(plot, *style.yard(rng), rough=(0.05, 0.10, 0.08))
        if rng.random() < style.vacant_lots:
            self.scatter(plot, 120, 1.0, 3.0)
            return
        a = min(rng.uniform(4.6, 7.2) * style.house_scale, width / 2 - 1.3)
        b = min(rng.uniform(3.7, 5.0) * style.house_scale, depth / 2 - 3)
        if a < 2.5 or b < 2.5:
            self.scatter(plot, 300, 1.0, 2.5)
            return
        setback = style.setback_m + rng.uniform(-1, 1.5) + b
        s, t = (s0 + s1) / 2 + rng.uniform(-1, 1) * max(0, width / 2 - a - 1.2), front + into * setback
        roof = style.roof(rng)
        side = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < 0.85:
            drive = min(max(s + side * a * 0.6, s0 + 1.8), s1 - 1.8)
            paved = block.part(drive - 1.5, front, drive + 1.5, front + into * (setback - b + 0.5))
            self.patch(paved, ROAD, shade(style.drive, rng.uniform(0.88, 1.1)))
            if rng.random() < 0.55 and setback - b > 4.6:
                at = block.uv(drive, front + into * (setback - b - 2.7))
                self.car(*at, block.along_u, math.pi / 2)
        self.house(block, (s, t), (a, b), roof, side, into, (width, depth - setback))
        back = t + into * (b + rng.uniform(4.5, 7.0))
        if rng.random() < style.pools and t0 + 3 < back < t1 - 3:
            u, v = block.uv(s - side * a * 0.3, back)
            self.patch(Block(u - 3.6, v - 3.2, u + 3.6, v + 3.2), ROAD, style.pavement)
            pool = Block(u - 2.6, v - 2.0, u + 2.6, v + 2.0)
            self.patch(pool, WATER, POOL, 1.2, rough=(0.02, 0.02, 0.0))
        elif rng.random() < 0.35:
            corner = s0 + 2.2 if side > 0 else s1 - 2.2, t1 - 2.5 if into > 0 else t0 + 2.5
            shed = FLAT if rng.random() < 0.5 else GABLE, shade((0.55, 0.50, 0.45), rng.uniform(0.7, 1.2))
            self.body(block, corner, (1.5, 1.2), 2.2, shed)
        rear = (t + b + 1.5, t1 - 0.8) if into > 0 else (t0 + 0.8, t - b - 1.5)
        hedge = t1 - 0.4 if into > 0 else t0 + 0.4
        self.garden(block, (s0, s1), (t0, t1), rear, t - into * (b + 2.8), hedge)

    def house(
        self, block: Block, at: tuple[float, float], half: tuple[float, float], roof: Roof, side: float,
        into: float, room: tuple[float, float],
    ) -> None:  # fmt: skip
        """A house with a wing or a garage, chimney, panels; `room`: width of the plot, depth behind it."""
        style, rng, (s, t), (a, b), pitched = self.style, self.rng, at, half, roof[0] != FLAT
        eave = rng.uniform(2.8, 5.8)
        self.body(block, at, half, eave, roof)
        form = rng.random()
        if form < 0.45:  # L or T
            wing = min(b * 0.75, a * 0.6)
            reach = min(b * 0.9, max(2.0, room[1] - b - 2))
            joint = s + side * (a - wing), t + into * (b * 0.2 + reach / 2)
            if pitched:
                self.body(block, joint, (b * 0.8 + reach / 2, wing), eave, roof, turn=math.pi / 2)
            else:
                self.body(block, joint, (wing, b * 0.5 + reach / 2), eave, roof)
        elif form < 0.65 and room[0] / 2 - a > 2.4:
            garage = s - side * (a + 1.7), t + into * rng.uniform(-1, 1)
            self.body(block, garage, (1.9, 2.9), 2.6, self.tinted(0.8, 1.1))
        if pitched and rng.random() < 0.6:
            chimney = s + rng.uniform(-0.5, 0.5) * a, t + 0.8
            self.body(block, chimney, (0.45, 0.45), eave + b * 0.75 + 0.6, (FLAT, (0.42, 0.33, 0.30)))
        elif not pitched:
            self.roof_clutter(block, at, half, eave, 2)
        if pitched and rng.random() < style.solar:
            u, v = block.uv(s, t + b * 0.45 * (1 if rng.random() < 0.5 else -1))
            if self.is_dry(u, v, a + 4):
                x, y = self.plan.point(u, v)
                along, angle = a * rng.uniform(0.3, 0.6), self.angle(u, v, block.along_u)
                self.out.bodies.append(Body(x, y, along, b * 0.3, angle, eave + b * 0.45, FLAT, PANEL))

    def garden(
        self, block: Block, across: tuple[float, float], along: tuple[float, float],
        rear: tuple[float, float], front: float, hedge: float,
    ) -> None:  # fmt: skip
        """Plant trees behind a house and before it, and hedges beside and behind it."""
        rng, density, (s0, s1), (t0, t1) = self.rng, self.style.tree_density, across, along
        if rear[1] - rear[0] > 2:
            for _ in range(int(rng.poisson(2.4 * density))):
                self.tree(*block.uv(rng.uniform(s0 + 1, s1 - 1), rng.uniform(*rear)), rng.uniform(1.2, 3.8))
        if rng.random() < 0.4 * density:
            self.tree(*block.uv(rng.uniform(s0 + 1.5, s1 - 1.5), front), rng.uniform(1.0, 2.4))
        if rng.random() < 0.5 * density:
            self.row_of_trees(block.uv(s0 + 0.4, t0 + 1), block.uv(s0 + 0.4, t1 - 1), 1.1, 0.6, 0.9, gap=0.03)
        if rng.random() < 0.5 * density:
            self.row_of_trees(block.uv(s0 + 0.5, hedge), block.uv(s1 - 0.5, hedge), 1.3, 0.7, 1.1, gap=0.05)

    def roof_clutter(
        self, block: Block, at: tuple[float, float], half: tuple[float, float], eave: float, n: int
    ) -> None:
        """About `n` boxes of plant on a flat roof."""
        rng, (s, t), (a, b) = self.rng, at, half
        for _ in range(int(rng.poisson(n))):
            size = rng.uniform(0.5, 1.4)
            if a > size + 1 and b > size + 1:
                spot = s + rng.uniform(-1, 1) * (a - size - 0.6), t + rng.uniform(-1, 1) * (b - size - 0.6)
                box, height = (size, size * rng.uniform(0.5, 1)), eave + rng.uniform(0.8, 2.0)
                self.body(block, spot, box, height, (FLAT, shade((0.72, 0.72, 0.72), rng.uniform(0.6, 1.25))))

    def terrace(
        self, block: Block, ends: tuple[float, float], offset: float, depth: float, base: float, roof: Roof,
        across: bool,
    ) -> None:  # fmt: skip
        """A row of town houses along a block at t = `offset`, or across it at s = `offset` with gaps."""
        rng, (position, end) = self.rng, ends
        while position < end - 3:
            width = min(rng.uniform(9, 17 if across else 19), end - position)
            width = end - position if end - position - width < 7 else width
            if not across or rng.random() < 0.85:
                middle, half = position + width / 2, (width / 2, depth * rng.uniform(0.93, 1.0))
                at = (offset, middle) if across else (middle, offset)
                self.town_house(block, at, half, base, roof, math.pi / 2 if across else 0.0)
            position += width

    def town_house(
        self, block: Block, at: tuple[float, float], half: tuple[float, float], base: float, roof: Roof,
        turn: float,
    ) -> None:  # fmt: skip
        rng, (s, t), (a, b) = self.rng, at, half
        height = base + rng.uniform(-2.5, 2.5)
        if rng.random() < 0.25:
            roof = self.style.city_roof(rng)
        self.body(block, at, half, height, (roof[0], shade(roof[1], rng.uniform(0.85, 1.12))), turn)
        if roof[0] == FLAT:
            self.roof_clutter(block, at, half if turn == 0 else (b, a), height, 4)
            return
        for _ in range(int(rng.poisson(1.6))):
            spot = s + rng.uniform(-0.6, 0.6) * min(a, b), t + rng.uniform(-0.6, 0.6) * min(a, b)
            self.body(block, spot, (0.6, 0.4), height + b * 0.62, (FLAT, (0.5, 0.42, 0.38)), turn)

    def parking(self, block: Block, s0: float, s1: float, t0: float, depth: float) -> None:
        """A car park of two rows."""
        ground = shade(self.style.side_asphalt, self.rng.uniform(0.9, 1.1))
        self.patch(block.part(s0, t0, s1, t0 + depth), ROAD, ground, 2.0, rough=(0.03, 0.08, 0.06))
        filled = self.rng.uniform(0.3, 0.9)
        for row in (t0 + 2.7, t0 + depth - 2.7):
            s = s0 + 2.5
            while s < s1 - 2.5:
                ends = block.uv(s - 1.3, row - 2.4), block.uv(s - 1.3, row + 2.4)
                self.stripe(*ends, 0.12, self.style.marking, alpha=0.7)
                if self.rng.random() < filled:
                    at = block.uv(s, row + self.rng.normal(0, 0.15))
                    self.car(*at, block.along_u, math.pi / 2 * (1 if self.rng.random() < 0.5 else -1))
                s += 2.6

    def halls(self, block: Block, edge: float) -> None:
        """A row of halls, `edge` from the street."""
        style, rng = self.style, self.rng
        s, b = 6.0, (block.depth - 2 * edge - 26) / 2
        while s < block.length - 24:
            width = min(rng.uniform(28, 62), block.length - s - 6)
            at, half = (s + width / 2, edge + 4 + b), (width / 2 - 1, b)
            colour = style.halls[int(rng.integers(len(style.halls)))]
            form, height = HALL if rng.random() < 0.7 else FLAT, rng.uniform(6, 11)
            self.body(block, at, half, height, (form, shade(colour, rng.uniform(0.88, 1.08))))
            self.roof_clutter(block, at, half, height + 0.8, 9)
            if rng.random() < 0.5:
                annex = s + width * 0.3, edge + 4 + 2 * b + 2.4
                self.body(block, annex, (width * 0.2, 3.0), 4.5, self.tinted(0.8, 1.1))
            s += width + 7

    def containers(self, block: Block, edge: float) -> None:
        colours, s = self.style.container_colours, 6.0
        while s < block.length - 10:
            for row in range(4):
                if self.rng.random() < 0.6:
                    colour = colours[int(self.rng.integers(len(colours)))]
                    u, v = block.uv(s, block.depth - edge - 4 - row * 2.8)
                    if self.is_dry(u, v, 5):
                        angle = self.angle(u, v, block.along_u)
                        box = Body(*self.plan.point(u, v), 3.0, 1.2, angle, 2.6, FLAT, colour, None)
                        self.out.cars.append(box)
            s += self.rng.choice([6.4, 6.4, 6.4, 12.0])

    def farm(self, cell: Block) -> None:
        rng, style = self.rng, self.style
        yard = Block(cell.u0 + 6, cell.v0 + 6, cell.u0 + 52, cell.v0 + 44)
        self.patch(yard, LAND, style.gravel, 4.0, rough=(0.06, 0.14, 0.1))
        self.body(yard, (13, 10), (8, 5), 4.5, (GABLE, style.roof(rng)[1]))
        hall = HALL, style.halls[int(rng.integers(len(style.halls)))]
        self.body(yard, (30, 26), (13, 7.5), 6.5, hall)
        self.body(yard, (38, 8), (6, 4), 5, (GABLE, style.roof(rng)[1]))
        self.scatter(yard, 60, 2.0, 4.5)

    def site(self, cell: Block) -> None:
        """A building site: pits, and halls half finished."""
        rng, style = self.rng, self.style
        for _ in range(3):
            u, v = self.spot(cell, 25)
            inner = Block(u - 20, v - 14, u + 20, v + 14)
            self.patch(inner, LAND, shade(style.soil, 0.8), rough=(0.06, 0.1, 0.1))
            half, height = (rng.uniform(9, 15), rng.uniform(6, 9)), rng.uniform(4, 12)
            self.body(inner, (20, 14), half, height, (FLAT, shade(style.concrete, rng.uniform(0.9, 1.1))))
            for _ in range(4):
                at, along_u = (u + rng.uniform(-24, 24), v + rng.uniform(-19, 19)), rng.random() < 0.5
                self.car(*at, along_u, truck=rng.random() < 0.5)

    def pitch(self, u: float, v: float) -> None:
        """A football pitch."""
        a, b, look = 32.0, 21.0, (0.02, 0.04, 0.04)
        for k in range(8):
            left, tone = u - a + k * a / 4, shade(self.style.pitch, 0.93 if k % 2 else 1.05)
            self.patch(Block(left, v - b, left + a / 4, v + b), VEGETATION, tone, rough=look)
        a, b = a - 2, b - 2
        nw, ne, sw, se = (u - a, v - b), (u + a, v - b), (u - a, v + b), (u + a, v + b)
        for line in ((nw, ne), (sw, se), (nw, sw), (ne, se), ((u, v - b), (u, v + b))):
            self.stripe(*line, 0.2, self.style.marking, VEGETATION, alpha=0.8)
        self.ring((u, v), (6, 6), 0.0, 40, 0.2, self.style.marking, VEGETATION, alpha=0.8)
