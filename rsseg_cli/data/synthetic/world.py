"""More uses of the cells of a drawn scene: vines and orchards, greenhouses, panels, old towns, wetlands."""

from __future__ import annotations

import math

import numpy as np

from rsseg_cli.data.synthetic.plan import Block, Rows
from rsseg_cli.data.synthetic.style import (
    FLAT,
    GABLE,
    HALL,
    LAND,
    ROAD,
    VEGETATION,
    WATER,
    Colour,
    shade,
    vary,
)  # fmt: skip
from rsseg_cli.data.synthetic.zones import ZonedCell

PANEL = (0.12, 0.15, 0.25)
FILM = ((0.84, 0.85, 0.83), (0.76, 0.79, 0.80), (0.64, 0.68, 0.70), (0.88, 0.87, 0.82))


class WorldCell(ZonedCell):
    """A cell with the uses of all styles."""

    def parcels(self, cell: Block, smallest_m2: float, edge: float) -> list[Block]:
        """Divide a cell at random into parcels below about twice `smallest_m2`, with edges between them."""
        rest, done = [cell], []
        while rest:
            block = rest.pop()
            if block.length * block.depth < 2 * smallest_m2 or block.length < 24:
                done.append(block.inset(edge))
                continue
            cut = block.length * self.rng.uniform(0.35, 0.65)
            rest += [block.part(0, 0, cut, block.depth), block.part(cut, 0, block.length, block.depth)]
        return [block for block in done if block.depth > 6]

    def middle_angle(self, block: Block, turned: bool = False) -> float:
        angle = self.angle((block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2, block.along_u)
        return angle + math.pi / 2 * turned

    def ground(self, cell: Block, rough: tuple[float, float, float] = (0.06, 0.10, 0.10)) -> None:
        """Rough grass where it is green, else soil."""
        label, _ = self.grass()
        self.patch(cell, label, self.style.verge if label == VEGETATION else self.style.soil, rough=rough)

    def floor(self, grass: float) -> tuple[int, Colour]:
        """Label and colour of the ground between rows: soil, or grass with this probability."""
        if self.rng.random() < grass * self.style.green:
            return VEGETATION, vary(self.rng, self.style.meadow, 0.1)
        return LAND, vary(self.rng, self.style.soil, 0.11)

    def tracks(self, cell: Block) -> None:
        """Farm tracks along two sides of a cell, and a farm now and then."""
        for t in (1.5, cell.depth - 1.5):
            if self.rng.random() < 0.6:
                ends = cell.uv(0, t), cell.uv(cell.length, t)
                self.stripe(*ends, 3.2, self.style.track, LAND, rough=(0.06, 0.1, 0.08))
        if self.rng.random() < 0.3:
            self.farm(cell)

    # crops in rows

    def zone_vineyard(self, cell: Block) -> None:
        rng, style = self.rng, self.style
        self.ground(cell)
        for block in self.parcels(cell, rng.uniform(2500, 9000), rng.uniform(0.8, 2.5)):
            leaf, floor = vary(rng, style.vine, 0.14), self.floor(0.2)
            spacing, height = rng.uniform(1.9, 3.2), rng.uniform(1.1, 2.0)
            width = spacing * rng.uniform(0.22, 0.5)
            along = 0.0 if rng.random() < 0.65 else rng.uniform(1.2, 2.6)
            width = width if along == 0 else min(along, spacing) * 0.6
            vines = Rows(spacing, width, leaf, along, height, 1.0, VEGETATION)
            angle = self.middle_angle(block, rng.random() < 0.3) + rng.normal(0, 0.03)
            self.patch(block, *floor, 1.5, rough=(0.05, 0.05, 0.07), angle=angle, rows=vines)
        self.tracks(cell)

    def zone_orchard(self, cell: Block) -> None:
        rng, style = self.rng, self.style
        self.ground(cell)
        for block in self.parcels(cell, rng.uniform(3000, 12000), rng.uniform(1.0, 3.0)):
            floor = self.floor(0.4)
            spacing, olive = rng.uniform(3.5, 8.5), rng.random() < 0.5
            crown = spacing * rng.uniform(0.45, 0.8)
            leaf = vary(rng, style.olive if olive else style.tree_light, 0.1)
            along, height = max(crown, spacing * rng.uniform(0.6, 1.0)), crown * rng.uniform(0.7, 1.0)
            trees = Rows(spacing, crown, shade(leaf, 0.85), along, height, 0.7, VEGETATION)
            angle = self.middle_angle(block)
            self.patch(block, *floor, 1.5, rough=(0.05, 0.06, 0.08), angle=angle, rows=trees)
        self.tracks(cell)

    def zone_strips(self, cell: Block) -> None:
        """Long narrow fields, ploughed, sown or green."""
        rng, style = self.rng, self.style
        self.ground(cell)
        angle, t, k = self.middle_angle(cell), 1.0, 0
        while t < cell.depth - 4:
            width = min(rng.uniform(*style.strip_m), cell.depth - 1 - t)
            label, colour, period, strength = style.crop(rng, self.i, self.j, k)
            ends = (0.0, cell.length) if rng.random() < 0.6 else (0.0, cell.length * rng.uniform(0.3, 0.9))
            look = {"angle": angle, "period_m": period, "furrow": strength * 1.5}
            inner = cell.part(ends[0], t, ends[1], t + width).inset(0.25)
            self.patch(inner, label, colour, rough=(0.035, 0.045, 0.06), **look)
            if ends[1] < cell.length - 8:
                label, colour, *_ = style.crop(rng, self.i, self.j, k + 2)
                self.patch(cell.part(ends[1], t, cell.length, t + width).inset(0.25), label, colour, **look)
            t, k = t + width, k + 1
        self.tracks(cell)

    def zone_terraces(self, cell: Block) -> None:
        """Steps along a slope, with walls or banks between them."""
        rng, style = self.rng, self.style
        self.ground(cell, (0.05, 0.10, 0.12))
        k, width = np.linspace(0, 1, 44), cell.v1 - cell.v0
        curve = 0.10 * width * np.sin(rng.uniform(4, 9) * k + rng.uniform(0, 6)) + 0.04 * width * np.sin(
            rng.uniform(12, 20) * k
        )
        flooded = rng.random() < style.paddies
        u, position, number = cell.u0 + (cell.u1 - cell.u0) * k, -0.15 * width, 0
        while position < 1.15 * width:
            step = rng.uniform(4.0, 13.0)
            start, end = sorted(rng.integers(0, 44, 2)) if rng.random() < 0.3 else (0, 43)
            piece = slice(start, max(end, start + 4) + 1)
            v = np.clip(cell.v0 + position + curve, cell.v0 + 1, cell.v1 - 1)
            inside = (v > cell.v0 + 1.5) & (v < cell.v1 - 1.5)
            if inside[piece].sum() > 4:
                line = np.nonzero(inside)[0]
                run = slice(max(line[0], piece.start), min(line[-1] + 1, piece.stop))
                if run.stop - run.start > 3:
                    self.terrace_step(u[run], v[run], step, number, flooded)
            position, number = position + step, number + 1
        self.scatter(cell.inset(4), 18, 1.2, 3.2, clumps=True)

    def terrace_step(self, u: np.ndarray, v: np.ndarray, step: float, number: int, flooded: bool) -> None:
        rng, style = self.rng, self.style
        (label, colour, *_), rough = style.crop(rng, self.i, self.j, number), (0.04, 0.06, 0.07)
        if flooded and rng.random() < 0.6:
            label, colour, rough = WATER, vary(rng, style.paddy, 0.12), (0.012, 0.02, 0.04)
        self.band(u, v, step - 0.5, colour, label, rough=rough)
        bank = shade(style.verge, 0.7) if style.green and rng.random() < 0.5 else shade(style.gravel, 0.75)
        self.band(u, v + step / 2, rng.uniform(0.5, 1.3), bank, VEGETATION if bank[1] > bank[0] else LAND)

    # under glass

    def zone_greenhouses(self, cell: Block) -> None:
        rng, style = self.rng, self.style
        self.patch(cell, LAND, style.soil, 3.0, rough=(0.05, 0.06, 0.06))
        for block in self.parcels(cell, rng.uniform(1500, 6000), rng.uniform(1.5, 3.5)):
            if rng.random() < 0.12:
                self.patch(block, WATER, vary(rng, style.pond, 0.15), rough=(0.02, 0.02, 0.02))
                continue
            film, height = vary(rng, FILM[int(rng.integers(len(FILM)))], 0.05), rng.uniform(3.0, 5.0)
            if rng.random() < 0.45:  # tunnels with gaps
                t, wide = 3.5, rng.uniform(3.2, 4.6)
                while t < block.depth - wide:
                    at, half = (block.length / 2, t), (block.length / 2 - 2, wide)
                    self.body(block, at, half, 2.6, (HALL, shade(film, rng.uniform(0.94, 1.03))))
                    t += 2 * wide + rng.uniform(0.8, 1.8)
                continue
            form, bay, t = (HALL if rng.random() < 0.6 else FLAT), rng.uniform(3.5, 6.5), 0.0
            while t + 2 * bay < block.depth:  # bays wall to wall
                tone = shade(film, rng.uniform(0.93, 1.02))
                self.body(block, (block.length / 2, t + bay), (block.length / 2, bay), height, (form, tone))
                t += 2 * bay
        self.tracks(cell)

    def zone_solar(self, cell: Block) -> None:
        rng, style = self.rng, self.style
        self.ground(cell)
        for block in self.parcels(cell.inset(4), 16000, 3.0):
            floor = self.grass() if rng.random() < 0.6 else (LAND, vary(rng, style.soil, 0.1))
            spacing = rng.uniform(4.5, 8.5)
            long = 0.0 if rng.random() < 0.3 else rng.uniform(12, 40)
            panels = Rows(spacing, spacing * rng.uniform(0.42, 0.62), vary(rng, PANEL, 0.15), long, 1.4)
            angle = style.panel_angle
            self.patch(block, floor[0], floor[1], rough=(0.05, 0.08, 0.08), angle=angle, rows=panels)
        at = self.spot(cell, 12)
        self.body(
            Block(at[0] - 6, at[1] - 3, at[0] + 6, at[1] + 3), (6, 3), (3.5, 1.6), 3.0, self.tinted(0.9, 1.2)
        )
        self.tracks(cell)

    # towns

    def zone_oldtown(self, cell: Block) -> None:
        """Houses wall to wall on crooked lots, lanes of three metres, a few courtyards."""
        rng, style = self.rng, self.style
        for block in self.streets(cell, rng.uniform(24, 36), rng.uniform(38, 80), rng.uniform(-0.8, 1.2)):
            draw = rng.random()
            if draw < 0.05:
                self.patch(block, ROAD, shade(style.concrete, 0.95), rough=(0.04, 0.07, 0.05))
                self.scatter(block, 60, 1.5, 3.5)
                continue
            s = 0.0
            while s < block.length - 1:
                width = rng.uniform(5.5, 13)
                width = block.length - s if block.length - s - width < 5 else width
                cut = block.depth * rng.uniform(0.38, 0.62)
                gap = rng.uniform(3, 6) if rng.random() < 0.25 else 0.0  # a courtyard
                for t0, t1 in ((0.0, cut - gap / 2), (cut + gap / 2, block.depth)):
                    form, colour = style.city_roof(rng)
                    half, at = (width / 2 + 0.15, (t1 - t0) / 2 + 0.1), (s + width / 2, (t0 + t1) / 2)
                    height = rng.uniform(5, 10.5)
                    self.body(block, at, half, height, (form, colour))
                    if form == FLAT and rng.random() < 0.5:
                        self.roof_clutter(block, at, half, height, 1)
                s += width

    def zone_informal(self, cell: Block) -> None:
        """Huts of sheet metal, close together and askew, with earth paths."""
        rng, style = self.rng, self.style
        self.patch(cell, LAND, shade(style.soil, 0.95), 3.0, rough=(0.07, 0.10, 0.08))
        pitch = rng.uniform(6.4, 8.4)
        nu, nv = int((cell.u1 - cell.u0) / pitch), int((cell.v1 - cell.v0) / pitch)
        block = Block(cell.u0, cell.v0, cell.u1, cell.v1)
        lanes = rng.random(nv) < 0.16
        for row in np.nonzero(~lanes)[0]:
            for col in np.nonzero(rng.random(nu) > 0.12)[0]:
                s, t = (col + 0.5) * pitch + rng.normal(0, 0.7), (row + 0.5) * pitch + rng.normal(0, 0.7)
                at = (s, t) if block.along_u else (t, s)
                half = rng.uniform(2.2, 4.2), rng.uniform(1.8, 3.0)
                form = GABLE if rng.random() < 0.4 else FLAT
                turn = rng.normal(0, 0.16) + (math.pi / 2 if rng.random() < 0.4 else 0)
                roof = form, vary(rng, style.huts[int(rng.integers(len(style.huts)))], 0.16)
                self.body(block, at, half, rng.uniform(2.2, 3.2), roof, turn)
        self.scatter(cell, 22, 1.0, 3.2)

    # water and wild land

    def zone_lake(self, cell: Block) -> None:
        """A lake or a reservoir: clear, green or muddy, shallow at its edge."""
        rng, style = self.rng, self.style
        self.zone_scrub(cell) if rng.random() < 0.5 else self.ground(cell)
        centre = (cell.u0 + cell.u1) / 2, (cell.v0 + cell.v1) / 2
        radius, state = cell.depth * rng.uniform(0.30, 0.40), rng.bit_generator.state
        shore = style.sand if rng.random() < 0.5 else shade(style.soil, 0.85)
        width = rng.uniform(2, 9)
        trees = np.array(self.out.trees).reshape(-1, 5)
        x, y = self.plan.point(*centre)
        keep = np.hypot(trees[:, 0] - x, trees[:, 1] - y) > radius * 1.3
        self.out.trees[:] = [tree for tree, kept in zip(self.out.trees, keep, strict=True) if kept]
        steps = 14
        for k in range(-1, steps):
            rng.bit_generator.state = state  # the same outline, smaller
            depth = max(k, 0) / (steps - 1)
            if k < 0:
                self.blob(centre, radius + width, LAND, shore, rough=(0.05, 0.08, 0.08))
                continue
            colour = tuple(a + (b - a) * depth for a, b in zip(style.shallow, style.water, strict=True))
            self.blob(centre, radius * (1 - 0.45 * depth), WATER, colour, rough=(0.015, 0.03, 0.05))

    def zone_ponds(self, cell: Block) -> None:
        """Basins side by side: fish, salt, paddies, sewage."""
        rng, style = self.rng, self.style
        self.ground(cell)
        for block in self.parcels(cell, rng.uniform(1200, 5000), rng.uniform(1.2, 2.5)):
            colour: Colour = style.basins[int(rng.integers(len(style.basins)))]
            if rng.random() < 0.15:
                self.patch(block, LAND, shade(style.soil, 0.8), 2.0, rough=(0.04, 0.07, 0.1))
                continue
            self.patch(block, WATER, shade(vary(rng, colour, 0.12), 1.12), 2.5, rough=(0.02, 0.04, 0.06))
            self.patch(block.inset(1.5), WATER, vary(rng, colour, 0.06), 3.0, rough=(0.015, 0.04, 0.07))
        self.tracks(cell)

    def zone_scrub(self, cell: Block) -> None:
        """Dry ground with shrubs, thick here and thin there."""
        rng, style = self.rng, self.style
        self.patch(cell, LAND, style.soil, 3.0, rough=(0.07, 0.10, 0.13))
        for _ in range(7):
            tone = vary(rng, style.straw, 0.08)
            self.blob(self.spot(cell, 12), rng.uniform(8, 30), LAND, tone, alpha=0.55)
        area = (cell.u1 - cell.u0) * (cell.v1 - cell.v0)
        n = int(area * style.shrubs / 1e4)
        u, v = rng.uniform(cell.u0, cell.u1, n), rng.uniform(cell.v0, cell.v1, n)
        thick = (
            np.sin(u / 31 + style.phases[0]) + np.sin(v / 27 + style.phases[1]) + rng.normal(0, 0.8, n) > -0.3
        )
        self.trees(u[thick], v[thick], 0.6, 2.4)
        if rng.random() < 0.6:
            k = np.linspace(0, 1, 40)
            track = cell.v0 + (cell.v1 - cell.v0) * (rng.uniform(0.2, 0.8) + 0.12 * np.sin(7 * k))
            self.band(
                cell.u0 + (cell.u1 - cell.u0) * k, track, 2.4, style.track, LAND, rough=(0.05, 0.08, 0.08)
            )
