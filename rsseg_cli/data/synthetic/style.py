"""What a seed decides about a drawn scene: place, light, season, colours, habits of building."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BUILDING, LAND, ROAD, VEGETATION, WATER = range(5)
Colour = tuple[float, float, float]
Rng = np.random.Generator
FLAT, GABLE, HIP = range(3)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made brighter or darker."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


@dataclass(frozen=True, kw_only=True)
class Style:
    """What holds for a whole scene. Lengths in m, colours 0 to 1, angles in radians."""

    name: str
    green: bool = True
    zones: tuple[tuple[str, float], ...]
    fixed_zones: dict[tuple[int, int], str] = field(default_factory=dict)
    river_zones: tuple[str, ...] = ("park", "park", "forest", "fields")
    rotation: float
    origin: tuple[float, float]
    phases: tuple[float, float, float, float]
    bend_m: float
    cell_m: tuple[float, float] = (200.0, 190.0)
    river_every: int = 0
    river_column: int = 0
    river_share: float = 0.22
    coast_u: float | None = None
    sun_azimuth: float
    sun_elevation: float
    haze: float
    exposure: float = 1.0
    contrast: float = 1.0
    balance: Colour = (1.0, 1.0, 1.0)
    saturation: float = 0.84  # air and sensors grey what paint boxes hold
    softness: float = 1.0
    noise: float = 0.008
    arterial_m: float = 15.0
    street_m: float = 9.5
    lane_m: float = 6.2
    block_depth_m: float = 58.0
    lot_m: tuple[float, float] = (15.0, 23.0)
    house_scale: float = 1.0
    setback_m: float = 4.5
    empty_blocks: float = 0.05
    vacant_lots: float = 0.05
    parked: float = 0.35
    headway_m: float = 55.0
    pools: float = 0.08
    solar: float = 0.25
    tree_density: float = 1.0
    park_trees: float = 1.0
    street_trees: float = 0.7
    ponds: bool = True
    parcels: int = 4
    building_sites: float = 0.5
    asphalt: Colour
    side_asphalt: Colour
    pavement: Colour
    concrete: Colour
    drive: Colour
    marking: Colour = (0.86, 0.86, 0.83)
    centre_line: Colour = (0.86, 0.86, 0.83)
    soil: Colour
    gravel: Colour
    track: Colour
    sand: Colour
    lawn: Colour
    meadow: Colour
    verge: Colour
    pitch: Colour
    bare_yards: float = 0.08
    paved_yards: float = 0.08
    tree_dark: Colour
    tree_light: Colour
    roofs: tuple[tuple[int, Colour, float], ...]
    flat_roof: Colour
    city_roofs: tuple[tuple[int, Colour, float], ...]
    halls: tuple[Colour, ...]
    crops: tuple[tuple[int, Colour, float, float], ...]
    water: Colour
    shallow: Colour
    pond: Colour
    car_colours: tuple[Colour, ...] = (
        (0.88, 0.88, 0.88),
        (0.93, 0.93, 0.93),
        (0.10, 0.10, 0.11),
        (0.16, 0.17, 0.18),
        (0.48, 0.50, 0.52),
        (0.62, 0.64, 0.66),
        (0.46, 0.09, 0.08),
        (0.10, 0.18, 0.40),
        (0.30, 0.31, 0.33),
        (0.72, 0.70, 0.64),
    )
    container_colours: tuple[Colour, ...] = (
        (0.55, 0.20, 0.14),
        (0.14, 0.30, 0.50),
        (0.20, 0.42, 0.30),
        (0.78, 0.76, 0.72),
        (0.72, 0.45, 0.15),
    )

    def zone_of(self, i: int, j: int, river: bool, rng: Rng) -> str:
        """What cell (i, j) is used for; neighbours are often alike."""
        if (i, j) in self.fixed_zones:
            return self.fixed_zones[i, j]
        if river:
            return self.river_zones[int(rng.integers(len(self.river_zones)))]
        return str(_pick(rng, [(name, weight) for name, weight in self.zones]))

    def yard(self, rng: Rng) -> tuple[int, Colour]:
        """Label and colour of a plot's ground."""
        draw = rng.random()
        if draw < self.bare_yards:
            return LAND, _vary(rng, self.soil, 0.08)
        if draw < self.bare_yards + self.paved_yards:
            return ROAD, _vary(rng, self.pavement, 0.08)
        return VEGETATION, _vary(rng, self.lawn, 0.16)

    def roof(self, rng: Rng) -> tuple[int, Colour]:
        """Form and colour of a house's roof."""
        kind, colour = _pick(rng, [((k, c), w) for k, c, w in self.roofs])
        return kind, _vary(rng, colour, 0.10)

    def city_roof(self, rng: Rng) -> tuple[int, Colour]:
        """Form and colour of a town house's roof."""
        kind, colour = _pick(rng, [((k, c), w) for k, c, w in self.city_roofs])
        return kind, _vary(rng, colour, 0.08)

    def crop(self, rng: Rng, i: int, j: int, k: int) -> tuple[int, Colour, float, float]:
        """Label, colour, furrow distance (m) and furrow strength of a parcel; neighbours differ."""
        label, colour, period, strength = self.crops[
            (i * 5 + j * 3 + k + int(rng.integers(2))) % len(self.crops)
        ]
        return label, _vary(rng, colour, 0.06), period * float(rng.uniform(0.85, 1.2)), strength


def _pick(rng: Rng, choices: list[tuple[Any, float]]) -> Any:
    weights = np.array([weight for _, weight in choices])
    return choices[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random() * 0.999999))][0]


def _vary(rng: Rng, colour: Colour, amount: float) -> Colour:
    level = 1 + float(rng.normal(0, amount))
    r, g, b = (float(np.clip(c * level * (1 + rng.normal(0, amount * 0.3)), 0.02, 0.97)) for c in colour)
    return r, g, b


TERRACOTTA, RED, BROWN = (0.62, 0.35, 0.25), (0.55, 0.25, 0.20), (0.40, 0.29, 0.24)
SLATE, GREY, WHITE, BLUE = (0.30, 0.32, 0.35), (0.50, 0.50, 0.50), (0.86, 0.86, 0.84), (0.32, 0.44, 0.58)

PLACES = ("suburb", "town", "rural", "desert", "coast", "industry", "tropics", "dense")


def make_style(seed: int) -> Style:
    """The style of a seed. Seed 0 is chosen by hand: the demonstration scene."""
    rng = np.random.default_rng([seed, 77])
    place = "demo" if seed == 0 else PLACES[int(rng.integers(len(PLACES)))]
    settings = _temperate(rng) | _layout(rng)
    settings |= {
        "demo": _demo,
        "suburb": _suburb,
        "town": _town,
        "rural": _rural,
        "desert": _desert,
        "coast": _coast,
        "industry": _industry,
        "tropics": _tropics,
        "dense": _dense,
    }[place](rng)
    if seed:
        settings = _recolour(rng, settings)
    return Style(name=place, **settings)


def _layout(rng: Rng) -> dict[str, Any]:
    return {
        "rotation": float(rng.uniform(-math.pi, math.pi)),
        "origin": (float(rng.uniform(-900, 900)), float(rng.uniform(-900, 900))),
        "phases": tuple(float(p) for p in rng.uniform(0, 2 * math.pi, 4)),
        "bend_m": float(rng.choice([0.5, 5.0, 11.0, 16.0])),
        "cell_m": (float(rng.uniform(150, 260)), float(rng.uniform(150, 260))),
        "river_every": int(rng.choice([0, 4, 5, 7])),
        "river_column": int(rng.integers(4)),
        "river_share": float(rng.uniform(0.14, 0.3)),
        "sun_azimuth": float(rng.uniform(math.radians(90), math.radians(270))),
        "sun_elevation": float(rng.uniform(math.radians(32), math.radians(68))),
        "haze": float(rng.uniform(0, 0.08)),
        "arterial_m": float(rng.uniform(12, 20)),
        "street_m": float(rng.uniform(8, 11)),
        "lane_m": float(rng.uniform(5.2, 7.5)),
        "block_depth_m": float(rng.uniform(50, 70)),
        "house_scale": float(rng.uniform(0.85, 1.25)),
        "setback_m": float(rng.uniform(2.5, 7.0)),
        "tree_density": float(rng.uniform(0.5, 1.5)),
        "parked": float(rng.uniform(0.1, 0.7)),
        "pools": float(rng.choice([0.0, 0.05, 0.2])),
        "solar": float(rng.uniform(0, 0.4)),
        "parcels": int(rng.integers(2, 8)),
    }


def _temperate(rng: Rng) -> dict[str, Any]:
    season = float(rng.uniform(0, 1))  # 0 spring, 1 late summer: greens turn yellow
    green = (0.30 + 0.13 * season, 0.41 + 0.02 * season, 0.19)
    soil: Colour = ((0.56, 0.45, 0.34), (0.47, 0.37, 0.28), (0.66, 0.58, 0.46), (0.60, 0.42, 0.31))[
        int(rng.integers(4))
    ]
    return {
        "zones": (
            ("suburb", 4.0),
            ("dense", 1.5),
            ("towers", 1.0),
            ("industry", 1.0),
            ("park", 1.0),
            ("fields", 1.5),
            ("forest", 1.0),
            ("bare", 1.0),
        ),
        "asphalt": (0.39, 0.39, 0.40),
        "side_asphalt": (0.44, 0.44, 0.445),
        "pavement": (0.63, 0.61, 0.58),
        "concrete": (0.62, 0.61, 0.58),
        "drive": (0.62, 0.59, 0.55),
        "soil": soil,
        "gravel": (0.70, 0.65, 0.55),
        "track": (0.66, 0.58, 0.46),
        "sand": (0.76, 0.69, 0.56),
        "lawn": green,
        "meadow": shade(green, 0.9),
        "verge": shade(green, 1.02),
        "pitch": (0.30, 0.46, 0.20),
        "tree_dark": (0.15, 0.25, 0.11),
        "tree_light": (0.31 + 0.08 * season, 0.40, 0.17),
        "roofs": (
            (GABLE, TERRACOTTA, 4),
            (HIP, TERRACOTTA, 2),
            (GABLE, SLATE, 2),
            (HIP, BROWN, 1.5),
            (GABLE, RED, 1.5),
            (FLAT, GREY, 1),
            (FLAT, WHITE, 0.6),
            (GABLE, BLUE, 0.3),
        ),
        "flat_roof": (0.64, 0.63, 0.61),
        "city_roofs": (
            (GABLE, TERRACOTTA, 3),
            (FLAT, GREY, 2),
            (GABLE, SLATE, 2),
            (FLAT, WHITE, 1),
            (HIP, RED, 1),
        ),
        "halls": (
            WHITE,
            (0.70, 0.71, 0.72),
            BLUE,
            (0.55, 0.56, 0.57),
            (0.80, 0.79, 0.74),
            (0.50, 0.30, 0.26),
        ),
        "crops": (
            (VEGETATION, (0.33, 0.47, 0.20), 2.2, 0.05),
            (LAND, soil, 2.6, 0.08),
            (VEGETATION, (0.45, 0.53, 0.22), 1.8, 0.06),
            (LAND, (0.72, 0.62, 0.43), 3.0, 0.05),
            (VEGETATION, (0.26, 0.40, 0.19), 3.4, 0.12),
            (LAND, shade(soil, 0.8), 2.2, 0.07),
            (VEGETATION, (0.52, 0.57, 0.24), 2.8, 0.05),
        ),
        "water": (0.13, 0.24, 0.27),
        "shallow": (0.31, 0.37, 0.31),
        "pond": (0.16, 0.25, 0.22),
    }


def _demo(rng: Rng) -> dict[str, Any]:
    return {
        "rotation": math.radians(-17),
        "origin": (-70.0, -20.0),
        "phases": (0.6, 2.1, 4.0, 1.2),
        "bend_m": 9.0,
        "cell_m": (205.0, 190.0),
        "fixed_zones": {
            (-2, 0): "forest",
            (-2, 1): "forest",
            (-2, 2): "forest",
            (-2, 3): "forest",
            (-1, -1): "suburb",
            (-1, 0): "suburb",
            (-1, 1): "dense",
            (-1, 2): "park",
            (-1, 3): "fields",
            (0, -1): "industry",
            (0, 0): "industry",
            (0, 1): "suburb",
            (0, 2): "suburb",
            (0, 3): "bare",
            (1, -1): "park",
            (1, 0): "park",
            (1, 1): "park",
            (1, 2): "forest",
            (1, 3): "fields",
            (2, -1): "fields",
            (2, 0): "fields",
            (2, 1): "suburb",
            (2, 2): "suburb",
        },
        "river_every": 5,
        "river_column": 1,
        "river_share": 0.27,
        "sun_azimuth": math.radians(142),
        "sun_elevation": math.radians(47),
        "haze": 0.02,
        "exposure": 1.07,
        "arterial_m": 15.0,
        "street_m": 9.5,
        "lane_m": 6.0,
        "block_depth_m": 56.0,
        "house_scale": 1.22,
        "setback_m": 4.2,
        "tree_density": 1.0,
        "parked": 0.35,
        "pools": 0.10,
        "solar": 0.25,
        "parcels": 5,
    }


def _suburb(rng: Rng) -> dict[str, Any]:
    return {
        "zones": (
            ("suburb", 8.0),
            ("park", 1.0),
            ("industry", 0.6),
            ("bare", 1.0),
            ("forest", 0.7),
            ("towers", 0.5),
        )
    }


def _town(rng: Rng) -> dict[str, Any]:
    return {
        "zones": (
            ("suburb", 3.0),
            ("dense", 3.0),
            ("towers", 1.5),
            ("park", 1.5),
            ("industry", 1.0),
            ("bare", 0.8),
        )
    }


def _dense(rng: Rng) -> dict[str, Any]:
    return {
        "zones": (("dense", 6.0), ("towers", 2.0), ("park", 1.0), ("industry", 0.7), ("bare", 0.4)),
        "parked": 0.8,
        "headway_m": 25.0,
    }


def _rural(rng: Rng) -> dict[str, Any]:
    return {
        "zones": (("fields", 7.0), ("forest", 1.5), ("suburb", 1.5), ("bare", 0.5)),
        "river_zones": ("fields", "forest", "park"),
        "cell_m": (float(rng.uniform(230, 420)), float(rng.uniform(230, 420))),
        "arterial_m": 9.0,
        "street_m": 5.5,
        "headway_m": 260.0,
        "street_trees": 0.4,
        "empty_blocks": 0.25,
        "vacant_lots": 0.2,
    }


def _industry(rng: Rng) -> dict[str, Any]:
    return {
        "zones": (("industry", 5.0), ("bare", 2.0), ("towers", 1.0), ("suburb", 1.0), ("fields", 1.0)),
        "headway_m": 35.0,
    }


def _coast(rng: Rng) -> dict[str, Any]:
    origin = (float(rng.uniform(-900, 900)), float(rng.uniform(-900, 900)))
    rotation = float(rng.uniform(-0.6, 0.6))
    return {
        "zones": (("suburb", 5.0), ("dense", 1.5), ("park", 1.5), ("towers", 1.0), ("bare", 1.0)),
        "origin": origin,
        "rotation": rotation,
        "coast_u": origin[0] + float(rng.uniform(-60, 190)),
        "river_every": 0,
        "pools": 0.3,
        "water": (0.08, 0.27, 0.36),
        "shallow": (0.35, 0.60, 0.58),
        "roofs": ((FLAT, WHITE, 3), (HIP, TERRACOTTA, 3), (GABLE, TERRACOTTA, 1), (HIP, GREY, 1)),
    }


def _desert(rng: Rng) -> dict[str, Any]:
    sand: Colour = ((0.80, 0.74, 0.64), (0.74, 0.66, 0.54), (0.83, 0.80, 0.75), (0.72, 0.57, 0.44))[
        int(rng.integers(4))
    ]
    return {
        "green": False,
        "zones": (
            ("suburb", 5.0),
            ("bare", 3.0),
            ("towers", 1.2),
            ("industry", 1.2),
            ("dense", 1.0),
            ("park", 0.8),
        ),
        "river_zones": ("bare", "park"),
        "soil": sand,
        "gravel": shade(sand, 0.92),
        "track": shade(sand, 0.88),
        "sand": shade(sand, 1.04),
        "verge": shade(sand, 0.97),
        "pavement": (0.72, 0.69, 0.64),
        "concrete": (0.74, 0.72, 0.68),
        "asphalt": (0.42, 0.41, 0.41),
        "bare_yards": 0.5,
        "paved_yards": 0.28,
        "tree_density": float(rng.uniform(0.2, 0.7)),
        "house_scale": float(rng.uniform(1.1, 1.5)),
        "roofs": (
            (FLAT, WHITE, 4),
            (FLAT, (0.74, 0.70, 0.62), 3),
            (HIP, (0.62, 0.42, 0.32), 1.5),
            (FLAT, GREY, 1),
        ),
        "city_roofs": ((FLAT, WHITE, 3), (FLAT, (0.70, 0.66, 0.58), 3), (FLAT, GREY, 1)),
        "flat_roof": (0.76, 0.74, 0.70),
        "lawn": (0.33, 0.42, 0.22),
        "meadow": (0.36, 0.42, 0.24),
        "tree_dark": (0.17, 0.25, 0.15),
        "tree_light": (0.32, 0.39, 0.22),
        "water": ((0.05, 0.10, 0.11), (0.07, 0.26, 0.24), (0.10, 0.20, 0.28))[int(rng.integers(3))],
        "pools": 0.15,
        "lot_m": (18.0, 30.0),
    }


def _tropics(rng: Rng) -> dict[str, Any]:
    return {
        "zones": (("suburb", 4.0), ("forest", 2.0), ("fields", 1.5), ("bare", 1.5), ("dense", 1.0)),
        "soil": (0.62, 0.40, 0.27),
        "gravel": (0.66, 0.48, 0.35),
        "track": (0.66, 0.45, 0.31),
        "roofs": (
            (GABLE, (0.60, 0.62, 0.64), 3),
            (GABLE, (0.45, 0.30, 0.22), 2),
            (HIP, (0.52, 0.28, 0.20), 1),
            (GABLE, BLUE, 1),
            (FLAT, GREY, 2),
            (GABLE, (0.30, 0.46, 0.36), 0.7),
        ),
        "house_scale": float(rng.uniform(0.65, 0.95)),
        "lot_m": (10.0, 17.0),
        "block_depth_m": 44.0,
        "side_asphalt": (0.50, 0.45, 0.40),
        "bare_yards": 0.4,
        "tree_density": float(rng.uniform(1.0, 2.0)),
        "parked": 0.1,
        "headway_m": 110.0,
        "water": (0.27, 0.25, 0.17),
        "shallow": (0.45, 0.38, 0.26),
        "tree_dark": (0.12, 0.26, 0.10),
        "tree_light": (0.27, 0.43, 0.15),
    }


def _recolour(rng: Rng, settings: dict[str, Any]) -> dict[str, Any]:
    """The sensor's and the season's hand: exposure, tint, contrast, and each material a little off."""
    out = dict(settings)
    out["exposure"] = float(rng.uniform(0.82, 1.2))
    out["contrast"] = float(rng.uniform(0.85, 1.25))
    out["balance"] = tuple(float(part) for part in 1 + rng.normal(0, 0.035, 3))
    out["saturation"] = float(rng.uniform(0.5, 1.0))
    out["softness"] = float(rng.uniform(0.7, 1.7))
    out["noise"] = float(rng.uniform(0.004, 0.02))
    for name in (
        "asphalt",
        "side_asphalt",
        "pavement",
        "concrete",
        "drive",
        "soil",
        "gravel",
        "track",
        "sand",
        "lawn",
        "meadow",
        "verge",
        "pitch",
        "tree_dark",
        "tree_light",
        "flat_roof",
        "water",
        "shallow",
        "pond",
    ):
        out[name] = _vary(rng, out[name], 0.08)
    return out
