"""Polygons cut where the output's coordinates jump: at the 180th meridian (RFC 7946, section 3.1.9).

They are cut in the raster's own CRS, along a strip of a ten-thousandth of a pixel, and transformed then. At a
pole, where all meridians meet, a disc of a tenth of a pixel goes too: its rim becomes the pole's line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import CRS, Transformer

from rsseg_cli.errors import DataError
from rsseg_cli.vector.geometry import Floats
from rsseg_cli.vector.polygons import OUTSIDE_CRS, Polygons

if TYPE_CHECKING:
    from rsseg_cli.raster import Grid

NODES, SAMPLES = 33, 20_001  # of each row and column of the raster; of the meridian
WIDTH_PX, POLE_WIDTHS = 1e-4, 1000
JUMP_M = 1e6


@dataclass(frozen=True, kw_only=True)
class Seam:
    """Where the output's coordinates jump: a strip in the raster's CRS, empty if the raster lies beside it.

    `turn` is a whole circle in the output's units, 0 where these are metres; x that is nearer than `snap` to
    half of it lies on the seam, y nearer than `pole` to a quarter at a pole.
    """

    strip: Any
    crs: tuple[str, str]
    turn: float = 0.0
    snap: float = 0.0
    pole: float = 0.0

    def cut(self, polygons: Polygons) -> Polygons:
        """Return polygons in the raster's CRS as multipolygons in the output's."""
        shapes = shapely.from_wkb([bytes(blob) for blob in polygons.wkb])
        met = shapely.intersects(self.strip, shapes)
        shapes[met] = shapely.difference(shapes[met], self.strip)
        parts, owners = shapely.get_parts(shapely.transform(shapes, self._transformed), return_index=True)
        shapes = shapely.multipolygons(parts, indices=owners)
        rings = np.bincount(shapely.get_rings(shapes, return_index=True)[1], minlength=len(shapes))
        wkb = np.empty(len(shapes), object)
        wkb[:] = shapely.to_wkb(shapes, byte_order=1).tolist()
        vertices = shapely.get_num_coordinates(shapes) - rings
        return replace(polygons, wkb=wkb, bounds=shapely.bounds(shapes), vertices=vertices)

    def _transformed(self, points: Floats) -> Floats:
        x, y = Transformer.from_crs(*self.crs, always_xy=True).transform(*points.T)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise DataError(OUTSIDE_CRS)
        if self.turn:
            x = (x + self.turn / 2) % self.turn - self.turn / 2
            at_pole = np.abs(y) > self.turn / 4 - self.pole
            y = np.where(at_pole, np.copysign(self.turn / 4, y), y)
            snap = np.where(at_pole, self.turn / POLE_WIDTHS, self.snap)
            x = np.where(np.abs(x) > self.turn / 2 - snap, np.copysign(self.turn / 2, x), x)
        return np.stack([x, y], axis=1)


def find_seam(grid: Grid, own: str, crs: str) -> Seam | None:
    """Return where the coordinates of a grid jump in another CRS; None where they do not."""
    source, target = CRS.from_wkt(own), CRS.from_wkt(crs)
    flat = target.sub_crs_list[0] if target.is_compound else target
    earth = flat.geodetic_crs
    if earth is None:
        return None
    turn = 2 * np.pi / earth.axis_info[0].unit_conversion_factor
    nodes = np.meshgrid(np.linspace(0, grid.width, NODES), np.linspace(0, grid.height, NODES))
    x, y = grid.xy(*(part.ravel() for part in nodes))
    area = shapely.MultiPoint(np.stack([x, y], axis=1)).convex_hull
    poles = _poles(source, earth, turn, area)
    lines = list(_meridians(source, flat, earth, turn, area, (x, y)))
    bends = [np.abs(line[2:] - 2 * line[1:-1] + line[:-2]).max(initial=0) / 4 for line in lines]
    width = max(WIDTH_PX * abs(grid.transform.determinant) ** 0.5, *bends, 0.0)
    simple = [shapely.simplify(shapely.LineString(line), width / 10) for line in lines]
    inner = [line for line in simple if line.intersects(area.buffer(-2 * width))]
    transformer = Transformer.from_crs(source, target, always_xy=True)
    gap = max((_gap(line.intersection(area), width, transformer) for line in inner), default=0.0)
    strip = shapely.union_all([line.buffer(width, cap_style="flat") for line in inner])
    if not flat.is_geographic:
        return Seam(strip=strip, crs=(own, crs)) if gap > JUMP_M else None
    discs = [shapely.Point(pole).buffer(POLE_WIDTHS * width, quad_segs=64) for pole in poles.values()]
    rims = [np.abs(transformer.transform(*disc.exterior.xy)[1]).min() for disc in discs]
    strip = shapely.union_all([strip, *discs])
    reach = np.abs(transformer.transform(x, y)[0])
    beyond = reach[np.isfinite(reach)].max(initial=0.0) > turn / 2
    return (
        Seam(
            strip=strip,
            crs=(own, crs),
            turn=turn,
            snap=min(gap, abs(turn - gap)),
            pole=1.01 * (turn / 4 - min(rims, default=turn / 4)),
        )
        if inner or beyond
        else None
    )


def _poles(source: CRS, earth: CRS, turn: float, area: Any) -> dict[float, tuple[float, float]]:
    """Return the poles in an area, by latitude."""
    transformer = Transformer.from_crs(earth, source, always_xy=True)
    places = {latitude: transformer.transform(0.0, latitude) for latitude in (-turn / 4, turn / 4)}
    return {
        latitude: at
        for latitude, at in places.items()
        if not source.is_geographic and np.isfinite(at).all() and area.intersects(shapely.Point(at))
    }


def _meridians(
    source: CRS, target: CRS, earth: CRS, turn: float, area: Any, nodes: tuple[Floats, Floats]
) -> Iterator[Floats]:
    """Yield lines (n, 2) near the area along the meridian at which the target's coordinates jump."""
    operation = None if target.is_geographic else target.coordinate_operation
    origins = [part for part in (operation.params if operation else []) if "ongitude of" in part.name]
    centre = sum(float(part.value) * part.unit_conversion_factor for part in origins[:1]) / (2 * np.pi) * turn
    to_earth = Transformer.from_crs(source, earth, always_xy=True)
    from_earth = Transformer.from_crs(earth, source, always_xy=True)
    latitudes = np.asarray(to_earth.transform(*nodes)[1])
    latitudes = latitudes[np.isfinite(latitudes)]
    if not len(latitudes):
        return
    latitudes = np.append(latitudes, list(_poles(source, earth, turn, area)))
    low, high = latitudes.min(), latitudes.max()
    margin = (high - low) / 100
    latitudes = np.linspace(max(low - margin, -turn / 4), min(high + margin, turn / 4), SAMPLES)
    left, bottom, right, top = area.bounds
    reach = max(right - left, top - bottom)
    circle = 2 * np.pi / source.axis_info[0].unit_conversion_factor if source.is_geographic else 0.0
    seen: set[float] = set()
    for side in (-1, 1):
        x, y = from_earth.transform(np.full(SAMPLES, centre + side * turn / 2), latitudes)
        for shift in (-circle, 0.0, circle) if circle else (0.0,):
            line = np.stack([np.asarray(x) + shift, y], axis=1)
            near = np.isfinite(line).all(axis=1)
            near &= (line[:, 0] > left - reach) & (line[:, 0] < right + reach)
            near &= (line[:, 1] > bottom - reach) & (line[:, 1] < top + reach)
            for run in np.split(np.flatnonzero(near), np.flatnonzero(np.diff(np.flatnonzero(near)) > 1) + 1):
                key = float(line[run[0], 0]) if len(run) > 1 else np.nan
                if len(run) > 1 and key not in seen:
                    seen.add(key)
                    yield line[run]


def _gap(line: Any, width: float, transformer: Transformer) -> float:
    """Return how far apart points on both sides of a line are in the output's CRS."""
    line = max(shapely.get_parts(line), key=shapely.length)
    points = shapely.line_interpolate_point(line, [0.49, 0.5, 0.51], normalized=True)
    before, middle, after = shapely.get_coordinates(points)
    along = (after - before) / np.hypot(*(after - before))
    offset = 3 * width * np.array([-along[1], along[0]])
    x, y = transformer.transform(*np.stack([middle - offset, middle + offset]).T)
    return float(np.hypot(x[1] - x[0], y[1] - y[0]))
