"""What a seed decides about a drawn scene: setting, light, season, colours, density of building."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import numpy as np

BUILDING, LAND, ROAD, VEGETATION, WATER = range(5)
FLAT, GABLE, HIP, CAR, HALL = range(5)  # forms of roofs
Colour = tuple[float, float, float]
Roof = tuple[int, Colour]
Rng = np.random.Generator
NAMES: dict[str, Any] = {"land": LAND, "vegetation": VEGETATION, "flat": FLAT, "gable": GABLE, "hip": HIP}
PLACES = ("suburb", "town", "rural", "desert", "coast", "industry", "tropics", "dense")
STYLES = (
    *PLACES, "vineyards", "ploughland", "greenhouses", "solar", "terraces", "wetland", "conifers", "scrub",
    "snow", "oldtown", "informal", "flatroofs", "villas", "lakeshore",
)  # fmt: skip
CLASSIC, ANY = "classic", "any"
TALL_ZONES = {"towers", "dense"}


def shade(colour: Colour, factor: float) -> Colour:
    """Make a colour brighter or darker."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


class Style(SimpleNamespace):
    """Settings of a whole scene, those of places.toml. Lengths in m, colours 0 to 1, angles in radians."""

    def zone_of(self, i: int, j: int, river: bool, rng: Rng) -> str:
        """Choose the use of cell (i, j)."""
        if (i, j) in self.fixed_zones:
            return self.fixed_zones[i, j]
        if river:
            return self.river_zones[int(rng.integers(len(self.river_zones)))]
        return str(_pick(rng, self.zones)[0])

    def yard(self, rng: Rng) -> tuple[int, Colour]:
        """Label and colour of a plot's ground."""
        draw = rng.random()
        if draw < self.bare_yards:
            return LAND, vary(rng, self.soil, 0.08)
        if draw < self.bare_yards + self.paved_yards:
            return ROAD, vary(rng, self.pavement, 0.08)
        return VEGETATION, vary(rng, self.lawn, 0.16)

    def roof(self, rng: Rng) -> Roof:
        """Form and colour of a house's roof."""
        kind, colour, _ = _pick(rng, self.roofs)
        return kind, vary(rng, colour, 0.10)

    def city_roof(self, rng: Rng) -> Roof:
        """Form and colour of a town house's roof."""
        kind, colour, _ = _pick(rng, self.city_roofs)
        return kind, vary(rng, colour, 0.08)

    def crop(self, rng: Rng, i: int, j: int, k: int) -> tuple[int, Colour, float, float]:
        """Label, colour, furrow distance (m) and furrow strength of a parcel; neighbours differ."""
        label, colour, period, strength = self.crops[
            (i * 5 + j * 3 + k + int(rng.integers(2))) % len(self.crops)
        ]
        return label, vary(rng, colour, 0.06), period * float(rng.uniform(0.85, 1.2)), strength


def make_style(seed: int, style: str = CLASSIC) -> Style:
    """Make the style of a seed. Seed 0 of the classic styles is the demonstration scene."""
    classic, tables = style == CLASSIC, _tables()
    rng = np.random.default_rng([seed, 77 if classic else 78])
    places = PLACES if classic else STYLES
    place = "demo" if classic and seed == 0 else places[int(rng.integers(len(places)))]
    if style in STYLES:
        place = style
    names = NAMES | {name: tuple(colour) for name, colour in tables["colours"].items()}
    settings: dict[str, Any] = {}
    for table in (tables["base"], tables[place]):
        for key, item in table.items():
            settings[key] = _value(rng, item, names | settings)
    settings["coast_u"] = settings["origin"][0] + settings["coast_m"] if "coast_m" in settings else None
    settings["fixed_zones"] = {
        (i, j + k): zone for i, j, *zones in settings.get("fixed_zones", ()) for k, zone in enumerate(zones)
    }
    if seed or not classic:
        settings |= _camera(rng) | {name: vary(rng, settings[name], 0.08) for name in tables["materials"]}
    if not classic:
        _widen(rng, settings)
    settings["subject"] = "" if classic else settings["zones"][0][0]
    return Style(**settings, name=place)


@cache
def _tables() -> dict[str, Any]:
    folder = files(__package__)
    texts = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("places.toml", "world.toml"))
    return tomllib.loads("\n".join(texts))


def _value(rng: Rng, item: Any, names: dict[str, Any]) -> Any:
    """A setting of places.toml, drawn where it says so; see the top of that file."""
    if isinstance(item, list):
        return tuple(_value(rng, part, names) for part in item)
    if isinstance(item, str):
        return names.get(item, item)
    if not isinstance(item, dict):
        return item
    if "season" in item:
        start, change = item["season"]
        return tuple(a + b * names["season"] for a, b in zip(start, change, strict=True))
    if "shade" in item:
        return shade(names[item["shade"][0]], item["shade"][1])
    if "choice" in item:
        return _value(rng, item["choice"][int(rng.integers(len(item["choice"])))], names)
    if "integers" in item:
        return int(rng.integers(*item["integers"]))
    if "degrees" in item and not isinstance(item["degrees"], list):
        return math.radians(item["degrees"])
    if "degrees" in item or "uniform" in item:
        low, high = item.get("uniform") or map(math.radians, item["degrees"])
        drawn = tuple(float(rng.uniform(low, high)) for _ in range(item.get("size", 1)))
        return drawn if "size" in item else drawn[0]
    return tuple(item.items())


def _camera(rng: Rng) -> dict[str, Any]:
    return {
        "exposure": float(rng.uniform(0.82, 1.2)),
        "contrast": float(rng.uniform(0.85, 1.25)),
        "balance": tuple(float(part) for part in 1 + rng.normal(0, 0.035, 3)),
        "saturation": float(rng.uniform(0.5, 1.0)),
        "softness": float(rng.uniform(0.7, 1.7)),
        "noise": float(rng.uniform(0.004, 0.02)),
    }


def _widen(rng: Rng, settings: dict[str, Any]) -> None:
    """Long shadows, haze, oblique views, autumn and stronger casts, each in some scenes."""
    tall = not TALL_ZONES.isdisjoint(name for name, _ in settings["zones"])
    settings["tallest_m"] = settings["tallest_m"] if tall else 16.0
    if rng.random() < 0.25:
        settings["sun_elevation"] = math.radians(rng.uniform(24 if tall else 12, 32))
    if rng.random() < 0.2:
        settings["haze"] = float(rng.uniform(0.08, 0.3))
    if rng.random() < 0.4:
        settings["lean"] = math.tan(math.radians(rng.uniform(3, 12 if tall else 22)))
        settings["lean_azimuth"] = float(rng.uniform(-math.pi, math.pi))
    if rng.random() < 0.12 and settings["green"]:
        settings["tree_light"] = vary(rng, (0.50, 0.36, 0.15), 0.12)
    settings["exposure"] *= float(rng.uniform(0.85, 1.15))
    settings["balance"] = tuple(
        part * float(cast) for part, cast in zip(settings["balance"], 1 + rng.normal(0, 0.04, 3), strict=True)
    )


def _pick(rng: Rng, choices: tuple[Any, ...]) -> Any:
    """One of some tuples whose last item is a weight."""
    weights = np.array([choice[-1] for choice in choices])
    return choices[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random() * 0.999999))]


def vary(rng: Rng, colour: Colour, amount: float) -> Colour:
    level = 1 + float(rng.normal(0, amount))
    r, g, b = (float(np.clip(c * level * (1 + rng.normal(0, amount * 0.3)), 0.02, 0.97)) for c in colour)
    return r, g, b
