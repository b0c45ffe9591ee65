"""Uses of the cells of a drawn scene: suburbs, towns, industry, parks, fields, forest, bare ground.

A cell depends only on the seed and its own index, so only the cells in sight are made.
"""

from __future__ import annotations

import math

import numpy as np

from rsseg_cli.data.synthetic.buildings import BuiltCell
from rsseg_cli.data.synthetic.plan import Block
from rsseg_cli.data.synthetic.style import FLAT, LAND, ROAD, VEGETATION, WATER, Colour, shade


class ZonedCell(BuiltCell):
    """A cell with one method for each use; `build` calls `zone_NAME`."""

    def grass(self) -> tuple[int, Colour]:
        """Label and colour of open ground: lawn, or soil where nothing is green."""
        return (VEGETATION, self.style.lawn) if self.style.green else (LAND, self.style.soil)

    def zone_suburb(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.streets(cell, style.block_depth_m, rng.uniform(70, 125), style.lane_m):
            if block.depth < 24 or rng.random() < style.empty_blocks:
                self.green_block(block)
                continue
            self.park_along(block, style.parked)
            half = block.depth / 2
            for t0, t1, front in ((0.0, half, 0.0), (half, block.depth, block.depth)):
                s = 0.0
                while s < block.length - 8:
                    width = min(rng.uniform(*style.lot_m), block.length - s)
                    if block.length - s - width < style.lot_m[0] * 0.7:
                        width = block.length - s
                    self.lot(block, s, s + width, t0, t1, front)
                    s += width

    def green_block(self, block: Block) -> None:
        rng = self.rng
        self.patch(block, *self.grass(), 4.0, rough=(0.05, 0.10, 0.10))
        self.scatter(block, 90, 1.5, 4.5, clumps=True)
        for _ in range(int(rng.integers(2, 4))):
            ends = [block.uv(rng.uniform(0, block.length), t) for t in (0, block.depth)]
            self.stripe(ends[0], ends[1], 1.8, self.style.gravel, LAND)

    def zone_dense(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.streets(cell, rng.uniform(48, 62), rng.uniform(55, 85), style.lane_m + 3):
            if rng.random() < 0.08:
                self.green_block(block)
                continue
            self.park_along(block, 0.75)
            if rng.random() < 0.45 and style.green:
                self.patch(block, VEGETATION, shade(style.lawn, 0.9), rough=(0.06, 0.14, 0.1))
            else:
                paved = shade(style.concrete, rng.uniform(0.75, 1.0))
                self.patch(block, ROAD, paved, rough=(0.04, 0.08, 0.06))
            self.scatter(block.inset(16), 130, 1.5, 4.0)
            depth = min(rng.uniform(5.2, 6.6), block.depth / 2 - 5)
            base, roof = rng.uniform(9, 16), style.city_roof(rng)
            for t in (depth, block.depth - depth):
                self.terrace(block, (0.0, block.length), t, depth, base, roof, across=False)
            for s in (depth, block.length - depth):
                ends = 2 * depth, block.depth - 2 * depth
                self.terrace(block, ends, s, depth, base, roof, across=True)

    def zone_towers(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        for block in self.streets(cell, rng.uniform(75, 95), rng.uniform(90, 130), style.lane_m + 2):
            label, colour = (VEGETATION, style.lawn) if style.green else (ROAD, style.concrete)
            self.patch(block, label, colour, 4.0, rough=(0.05, 0.12, 0.1))
            n = max(1, int(block.length // 42))
            for k in range(n):
                half = rng.uniform(12, 17), rng.uniform(6.5, 9)
                at = (k + 0.5) * block.length / n, block.depth * rng.uniform(0.24, 0.34)
                height = rng.uniform(14, 30)
                self.body(block, at, half, height, self.tinted(0.75, 1.15))
                self.body(block, at, (3.0, 2.5), height + 2.6, (FLAT, shade(style.flat_roof, 0.8)))
                self.roof_clutter(block, at, half, height, 6)
            self.parking(block, 3, block.length - 3, block.depth * 0.58, 17.0)
            self.scatter(block.inset(2 if block.depth < 40 else 3), 45, 1.5, 3.5)

    def zone_industry(self, cell: Block) -> None:
        style, rng, edge = self.style, self.rng, 5.0
        for block in self.streets(cell, rng.uniform(75, 105), rng.uniform(95, 150), style.lane_m + 3):
            paved = shade(style.concrete, rng.uniform(0.8, 1.0))
            self.patch(block, ROAD, paved, 4.0, rough=(0.04, 0.08, 0.06))
            for t in (0.0, block.depth - edge):
                self.patch(block.part(0, t, block.length, t + edge), *self.grass(), rough=(0.05, 0.1, 0.1))
                ends = block.uv(4, t + edge / 2), block.uv(block.length - 4, t + edge / 2)
                self.row_of_trees(*ends, 9, 1.6, 3.2, gap=0.3)
            self.halls(block, edge)
            if rng.random() < 0.7:
                self.parking(block, 4, block.length - 4, block.depth - edge - 17.5, 16.5)
            else:
                self.containers(block, edge)

    def zone_park(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        rough = (0.05, 0.10, 0.10) if style.green else (0.035, 0.045, 0.05)
        self.patch(cell, *self.grass(), 6.0, rough=rough)
        for _ in range(5):
            at = self.spot(cell, 25)
            tone = shade(style.meadow, rng.uniform(0.88, 1.12))
            self.blob(at, rng.uniform(10, 24), VEGETATION, tone, rough=(0.06, 0.14, 0.12))
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
        self.ring((u, v), (w * 0.74, h * 0.74), 6.0, 80, 2.6, gravel, LAND)
        k = np.linspace(0, 1, 30)
        for across_u in (True, False, bool(rng.integers(2))):
            p, q = rng.uniform(-0.8, 0.8, 2)
            line, bulge = 2 * k - 1, rng.uniform(-28, 28) * np.sin(math.pi * k)
            if across_u:
                self.band(u + w * line, v + h * (p + (q - p) * k) + bulge, 2.0, gravel, LAND)
            else:
                self.band(u + w * (p + (q - p) * k) + bulge, v + h * line, 2.0, gravel, LAND)

    def pond(self, cell: Block) -> tuple[float, float, float]:
        """Draw a pond; return x, y and the radius that trees keep from it."""
        rng = self.rng
        u = cell.u0 + rng.uniform(0.36, 0.62) * (cell.u1 - cell.u0)
        v = cell.v0 + rng.uniform(0.42, 0.64) * (cell.v1 - cell.v0)
        radius = cell.depth * rng.uniform(0.12, 0.17)
        state, bank = rng.bit_generator.state, shade(self.style.meadow, 0.8)
        self.blob((u, v), radius + 2.2, VEGETATION, bank, rough=(0.08, 0.15, 0.1))
        rng.bit_generator.state = state  # the same outline, smaller
        self.blob((u, v), radius, WATER, self.style.pond, rough=(0.02, 0.03, 0.05))
        return (*self.plan.point(u, v), radius * 1.25)

    def zone_fields(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        self.patch(cell, self.grass()[0], style.verge, 4.0, rough=(0.06, 0.12, 0.1))
        parcels = [cell]
        while len(parcels) < style.parcels:
            parcels.sort(key=lambda item: -item.length * item.depth)
            largest = parcels.pop(0)
            cut = largest.length * rng.uniform(0.35, 0.65)
            parcels += [
                largest.part(0, 0, cut, largest.depth),
                largest.part(cut, 0, largest.length, largest.depth),
            ]
        for k, parcel in enumerate(parcels):
            self.parcel(parcel, k)
        if rng.random() < 0.6:
            self.farm(cell)

    def parcel(self, parcel: Block, k: int) -> None:
        """Till a field, with tracks and a hedge or a lane along it."""
        style, rng = self.style, self.rng
        angle = self.angle((parcel.u0 + parcel.u1) / 2, (parcel.v0 + parcel.v1) / 2, parcel.along_u)
        label, colour, period, strength = style.crop(rng, self.i, self.j, k)
        inner = parcel.inset(rng.uniform(1.0, 2.6))
        if inner.depth < 4:
            return
        furrows = {"angle": angle, "period_m": period, "furrow": strength}
        self.patch(inner, label, colour, 2.5, rough=(0.035, 0.045, 0.05), **furrows)
        if rng.random() < 0.8:  # tractor tracks
            worn = shade(style.soil, 0.8) if label == VEGETATION else shade(colour, 0.85)
            t = rng.uniform(5, 9)
            while t < inner.depth - 3:
                for wheel in (t - 0.9, t + 0.9):
                    ends = inner.uv(2, wheel), inner.uv(inner.length - 2, wheel)
                    self.stripe(*ends, 0.5, worn, label, alpha=0.4)
                t += 18.0
        ends = parcel.uv(0, 0), parcel.uv(parcel.length, 0)
        if rng.random() < 0.55 * style.tree_density:
            self.row_of_trees(*ends, rng.uniform(3, 7), 1.4, 3.6, gap=0.25)
        elif rng.random() < 0.4:
            self.stripe(*ends, 3.0, style.track, LAND, rough=(0.06, 0.1, 0.08))

    def zone_forest(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        floor = shade(style.meadow, 0.75) if style.green else style.soil
        self.patch(cell, self.grass()[0], floor, rough=(0.08, 0.16, 0.12))
        k = np.linspace(0, 1, 40)
        for _ in range(2):
            a, b = rng.uniform(0, 1, 2)
            line = a + (b - a) * k + 0.06 * np.sin(9 * k + a)
            u, v = cell.u0 + (cell.u1 - cell.u0) * k, cell.v0 + (cell.v1 - cell.v0) * line
            self.band(u, v, 2.8, style.track, LAND)
        spacing = 4.4 if style.green else 8.0
        nu, nv = int((cell.u1 - cell.u0) / spacing), int((cell.v1 - cell.v0) / spacing)
        gu, gv = np.meshgrid(np.arange(nu), np.arange(nv))
        u = cell.u0 + (gu.ravel() + rng.uniform(0, 1, nu * nv)) * spacing
        v = cell.v0 + (gv.ravel() + rng.uniform(0, 1, nu * nv)) * spacing
        waves = np.sin(u / 23 + style.phases[0]) + np.sin(v / 19 + style.phases[1])
        keep = (waves + rng.normal(0, 0.25, len(u)) < 0.95) & (rng.random(len(u)) < 0.95)
        self.trees(u[keep], v[keep], 1.9, 4.6)

    def zone_bare(self, cell: Block) -> None:
        style, rng = self.style, self.rng
        self.patch(cell, LAND, style.soil, 6.0, rough=(0.035, 0.045, 0.055))
        for _ in range(9):
            at, radius = self.spot(cell, 15), rng.uniform(6, 26)
            self.blob(at, radius, LAND, shade(style.soil, rng.uniform(0.84, 1.16)), alpha=0.45)
        for _ in range(5):
            a, b, c = rng.uniform(0, 1, 3)
            k = np.linspace(0, 1, 40)
            u = cell.u0 + (cell.u1 - cell.u0) * k
            v = cell.v0 + (cell.v1 - cell.v0) * (a + (b - a) * k + 0.1 * np.sin(6 * k + 6 * c))
            for wheel in (-0.9, 0.9):
                track = np.clip(v + wheel, cell.v0 + 2, cell.v1 - 2)
                self.band(u, track, 0.7, shade(style.soil, 0.82), LAND, 0.55)
        if rng.random() < style.building_sites:
            self.site(cell)
        if style.green:
            for _ in range(6):
                at, radius = self.spot(cell, 12), rng.uniform(4, 13)
                tone = shade(style.meadow, rng.uniform(0.9, 1.2))
                self.blob(at, radius, VEGETATION, tone, rough=(0.09, 0.2, 0.12))
        self.scatter(cell.inset(4), 16, 0.7, 2.2, clumps=True)
