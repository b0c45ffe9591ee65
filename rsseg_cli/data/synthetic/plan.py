"""What stands where in a drawn scene: an endless plan of streets, blocks, fields and a river.

Everything is in metres: x to the right, y downwards from the scene's upper left corner. The plan is laid out
in a straight frame (u, v) whose streets follow u and v, and bent into (x, y) by a smooth warp, so that roads
curve. A cell is what lies between four main roads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.synthetic.style import BUILDING, CAR, FLAT, GABLE, HALL, HIP, LAND, Colour, Rng, Style

PITCH = {FLAT: 0.0, GABLE: 0.7, HIP: 0.6, CAR: 0.0, HALL: 0.16}
PAVEMENT_M = 2.2
SUBJECT_M = 75.0  # from the scene's upper left corner, to the right and down
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that stand on a surface along its angle.

    `along_m` is the distance of the plants, or the length of a table of panels; 0: unbroken. `ragged` is 0
    for panels and about 1 for plants.
    """

    spacing_m: float
    width_m: float
    colour: Colour
    along_m: float = 0.0
    height_m: float = 1.5
    ragged: float = 0.0
    label: int = LAND


@dataclass(frozen=True, slots=True)
class Surface:
    """A patch of ground. Polygon (n, 2) in x, y; roughness of 0.5, 3 and 15 m; furrows along `angle`."""

    polygon: Array
    label: int
    colour: Colour
    rough: tuple[float, float, float] = (0.03, 0.04, 0.04)
    angle: float = 0.0
    period_m: float = 0.0
    furrow: float = 0.0
    alpha: float = 1.0
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """A box with a roof round (x, y), 2a long along `angle`, 2b wide. Label None keeps what lies beneath."""

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
        if style.subject:
            self._show(style.subject)

    def _show(self, subject: str) -> None:
        """Move the coast to SUBJECT_M, or the middle of a cell that gets the subject's zone."""
        at = np.float64(SUBJECT_M)
        u, v = map(float, self.to_uv(at, at))  # type: ignore[arg-type]
        if self.style.coast_u is not None:
            self.style.coast_u = u
            return
        i, j = (math.floor(at / size) for at, size in zip((u, v), self.style.cell_m, strict=True))
        i += self.is_river(i)
        self.style.fixed_zones[i, j] = subject
        u, v = (self.line(0, i) + self.line(0, i + 1)) / 2, (self.line(1, j) + self.line(1, j + 1)) / 2
        x, y = self.point(u, v)
        right, down = x - SUBJECT_M, y - SUBJECT_M
        self.style.origin = (
            self.style.origin[0] + self._cos * right + self._sin * down,
            self.style.origin[1] - self._sin * right + self._cos * down,
        )

    def to_xy(self, u: Array, v: Array) -> tuple[Array, Array]:
        """(u, v) -> (x, y), m."""
        du, dv = self._bend(u, v)
        p, q = u + du - self.style.origin[0], v + dv - self.style.origin[1]
        return self._cos * p - self._sin * q, self._sin * p + self._cos * q

    def to_uv(self, x: Array, y: Array) -> tuple[Array, Array]:
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

    def _bend(self, u: Array, v: Array) -> tuple[Array, Array]:
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
            wave = 0.75 * np.sin(v / 70 + style.phases[1]) + 0.25 * np.sin(v / 31 + style.phases[2])
            width_here = half * (1 + 0.22 * np.sin(v / 53 + style.phases[3]))
            distance = np.minimum(distance, np.abs(u - (centre + swing * wave)) - width_here)
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

    def part(self, s0: float, t0: float, s1: float, t1: float) -> Block:
        """The rectangle between two corners, in any order."""
        (a, b), (c, d) = self.uv(s0, t0), self.uv(s1, t1)
        return Block(min(a, c), min(b, d), max(a, c), max(b, d))
