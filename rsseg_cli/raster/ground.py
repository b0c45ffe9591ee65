"""Areas and lengths of pixels on the ellipsoid: metres on the ground, in Mercator and degrees too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rsseg_cli.raster import Grid
from typing import TYPE_CHECKING

from numpy.polynomial import polynomial

if TYPE_CHECKING:
    from affine import Affine

    from rsseg_cli.raster import Grid

AREA_NODES = 33


def row_areas_m2(grid: Grid) -> NDArray[np.float64] | None:
    """Area of a pixel on the ground in each row of a grid, m2, at its middle column; None where it is not
    known.

    Measured at up to AREA_NODES rows; straight lines between them are within 1e-6 for scenes up to some
    degrees high.
    """
    nodes = np.unique(np.linspace(0, grid.height - 1, min(grid.height, AREA_NODES)).round().astype(int))
    sides = [grid.window(int(row), grid.width // 2, 1, 1).gsd_m for row in nodes]
    areas = [side[0] * side[1] for side in sides if side is not None]
    if len(areas) < len(nodes):
        return None
    transform = grid.transform
    square = math.hypot(transform.a, transform.d) * math.hypot(transform.b, transform.e)
    shear = abs(transform.a * transform.e - transform.b * transform.d) / square
    return np.interp(np.arange(grid.height), nodes, areas) * shear


NODES = (25, 13)  # rows and columns at which the grid is measured
DEGREES = (
    (0, 0),
    (1, 0),
    (2, 0),
    (4, 0),
    (1, 1),
    (2, 2),
    (6, 4),
)  # in row and column, tried one after the other
NEAR, NEAR_LENGTH = 1e-6, 1e-4  # of areas and squared lengths: the first polynomial that is as near is taken

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Squared lengths of steps along a row and a column, their product's cosine part, and pixel areas.

    Each is a polynomial in row and column, both scaled to -1 ... 1.

    Attributes:
        across, down, mixed, area: coefficients by power of row and column; in m2.
        height, width: of the raster, px.
        known: False where the raster has no CRS, and one pixel counts as one metre.
    """

    across: Floats
    down: Floats
    mixed: Floats
    area: Floats
    height: int
    width: int
    known: bool

    def pixel_area_m2(self, rows: Floats, cols: Floats) -> Floats:
        """Area of a pixel around a place."""
        return self._value(self.area, rows, cols)

    def lengths_m(self, rows: Floats, cols: Floats, d_rows: Floats, d_cols: Floats) -> Floats:
        """Lengths of short lines around places."""
        across, down = (self._value(part, rows, cols) for part in (self.across, self.down))
        squared: Floats = across * (d_cols * d_cols) + down * (d_rows * d_rows)
        if self.mixed.size > 1 or abs(self.mixed[0, 0]) > NEAR_LENGTH * self.across[0, 0]:
            squared += 2 * self._value(self.mixed, rows, cols) * d_rows * d_cols
        return np.sqrt(np.maximum(squared, 0))

    @property
    def pixel_m(self) -> tuple[float, float]:
        """Metres a pixel along a row and along a column, in the middle."""
        return float(self.across[0, 0]) ** 0.5, float(self.down[0, 0]) ** 0.5

    def _value(self, coefficients: Floats, rows: Floats, cols: Floats) -> Floats:
        if coefficients.size == 1:
            return np.broadcast_to(coefficients[0, 0], np.shape(rows))
        y, x = 2 * rows / self.height - 1, 2 * cols / self.width - 1
        return np.asarray(polynomial.polyval2d(y, x, coefficients), np.float64)


def measure_ground(grid: Grid) -> Ground:
    """Measure a grid at some places and fit what lies between."""
    rows, cols = (
        part.ravel()
        for part in np.meshgrid(
            np.linspace(0, grid.height, NODES[0]), np.linspace(0, grid.width, NODES[1]), indexing="ij"
        )
    )
    sides = _sides(grid, rows, cols)
    if sides is None:
        one, none = np.ones((1, 1)), np.zeros((1, 1))
        return Ground(
            across=one, down=one, mixed=none, area=one, height=grid.height, width=grid.width, known=False
        )
    across, down, angle = sides
    area = across * down * abs(np.sin(angle))
    places = 2 * rows / grid.height - 1, 2 * cols / grid.width - 1
    return Ground(
        across=_fit(across**2, *places, NEAR_LENGTH * area.min()),
        down=_fit(down**2, *places, NEAR_LENGTH * area.min()),
        mixed=_fit(across * down * np.cos(angle), *places, NEAR_LENGTH * area.min()),
        area=_fit(area, *places, NEAR * area.min()),
        height=grid.height,
        width=grid.width,
        known=True,
    )


def _fit(values: Floats, y: Floats, x: Floats, near: float) -> Floats:
    """Coefficients of the simplest polynomial that comes near enough to all values, or of the last one."""
    for degrees in DEGREES:
        terms = polynomial.polyvander2d(y, x, degrees)
        fitted = np.linalg.lstsq(terms, values, rcond=None)[0]
        if abs(terms @ fitted - values).max() <= near:
            break
    return np.asarray(fitted, np.float64).reshape(degrees[0] + 1, degrees[1] + 1)


def placed(transform: Affine, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """x and y of places in a grid."""
    return (
        transform.a * cols + transform.b * rows + transform.c,
        transform.d * cols + transform.e * rows + transform.f,
    )


def _sides(grid: Grid, rows: Floats, cols: Floats) -> tuple[Floats, Floats, Floats] | None:
    """Metres a pixel along row and column around places, and the angle between the two; None without CRS."""
    if grid.crs is None or grid.gsd_m is None:
        return None
    from pyproj import CRS, Transformer

    crs = CRS.from_wkt(grid.crs.to_wkt())
    ellipsoid = crs.get_geod()
    if ellipsoid is None:
        return None
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    ends = []
    for d_col, d_row in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)):
        ends.append(to_degrees.transform(*placed(grid.transform, cols + d_col, rows + d_row)))
    if not np.isfinite(ends).all():
        return None
    east, _, across = ellipsoid.inv(*ends[0], *ends[1])
    south, _, down = ellipsoid.inv(*ends[2], *ends[3])
    return np.asarray(across), np.asarray(down), np.radians(np.asarray(south) - np.asarray(east))
