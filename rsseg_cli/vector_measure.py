"""Metres on the ground for a raster's pixels: areas and lengths on the ellipsoid, right in Mercator and degrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rsseg_cli.raster import Grid

NODES = (25, 13)  # rows and columns at which the grid is measured
DEGREES = (6, 4)  # of the polynomials between them: within 1e-6 up to some degrees of latitude
EVEN = 1e-9  # a grid that varies less is taken as even

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Squared lengths of steps along a row and a column, their product's cosine part, and pixel areas.

    Each is a polynomial in row and column, both scaled to -1 ... 1.

    Attributes:
        across, down, mixed, area: coefficients (7, 5); in m2.
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
        across, down, mixed = (self._value(part, rows, cols) for part in (self.across, self.down, self.mixed))
        squared: Floats = across * d_cols**2 + down * d_rows**2 + 2 * mixed * d_rows * d_cols
        return np.sqrt(np.maximum(squared, 0))

    @property
    def pixel_m(self) -> tuple[float, float]:
        """Metres a pixel along a row and along a column, in the middle."""
        return float(self.across[0, 0]) ** 0.5, float(self.down[0, 0]) ** 0.5

    def _value(self, coefficients: Floats, rows: Floats, cols: Floats) -> Floats:
        if not coefficients.ravel()[1:].any():
            return np.full(np.shape(rows), coefficients[0, 0])
        y, x = 2 * rows / self.height - 1, 2 * cols / self.width - 1
        value: Floats = polynomial.polyval2d(y, x, coefficients)
        return value


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
        one, none = (np.pad([[value]], ((0, DEGREES[0]), (0, DEGREES[1]))) for value in (1.0, 0.0))
        return Ground(
            across=one, down=one, mixed=none, area=one, height=grid.height, width=grid.width, known=False
        )
    across, down, angle = sides
    y, x = 2 * rows / grid.height - 1, 2 * cols / grid.width - 1
    terms = polynomial.polyvander2d(y, x, DEGREES)
    values = np.stack([across**2, down**2, across * down * np.cos(angle), across * down * abs(np.sin(angle))])
    fitted = np.linalg.lstsq(terms, values.T, rcond=None)[0].T.reshape(4, DEGREES[0] + 1, DEGREES[1] + 1)
    for coefficients, value in zip(fitted, values, strict=True):
        if np.ptp(value) <= EVEN * values[3].mean():
            coefficients[:] = 0
            coefficients[0, 0] = value.mean()
    return Ground(
        across=fitted[0],
        down=fitted[1],
        mixed=fitted[2],
        area=fitted[3],
        height=grid.height,
        width=grid.width,
        known=True,
    )


def _sides(grid: Grid, rows: Floats, cols: Floats) -> tuple[Floats, Floats, Floats] | None:
    """Metres a pixel along row and column around places, and the angle between the two; None without CRS."""
    if grid.crs is None or grid.gsd_m is None:
        return None
    from pyproj import CRS, Transformer

    crs = CRS.from_wkt(grid.crs.to_wkt())
    ellipsoid = crs.get_geod()
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    ends = []
    for d_col, d_row in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)):
        ends.append(to_degrees.transform(*(grid.transform * (cols + d_col, rows + d_row))))
    if not np.isfinite(ends).all():
        return None
    east, _, across = ellipsoid.inv(*ends[0], *ends[1])
    south, _, down = ellipsoid.inv(*ends[2], *ends[3])
    return np.asarray(across), np.asarray(down), np.radians(np.asarray(south) - np.asarray(east))
