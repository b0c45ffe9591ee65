"""Areas and lengths between pixels in metres on the ground, in Mercator and degrees too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from rsseg_cli.raster import Grid

NODES = (25, 13)  # rows and columns at which the grid is measured
# In row and column, tried in this order.
DEGREES = ((0, 0), (1, 0), (2, 0), (4, 0), (1, 1), (2, 2), (6, 4))
# Tolerance of areas and of squared lengths; the first polynomial within it is taken.
AREA_TOLERANCE, LENGTH_TOLERANCE = 1e-6, 1e-4
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PixelGeometry:
    """Squared lengths of steps along a row and a column, their product's cosine part, and pixel areas.

    Each is a polynomial in row and column, both scaled to -1 ... 1: coefficients by power, m2. `known` is
    False where the raster has no CRS, and one pixel counts as one metre.
    """

    across: Floats
    down: Floats
    mixed: Floats
    area: Floats
    height: int
    width: int
    known: bool

    @classmethod
    def of(cls, grid: Grid) -> PixelGeometry:
        """Measure a grid at some points and fit polynomials to them."""
        lines = np.linspace(0, grid.height, NODES[0]), np.linspace(0, grid.width, NODES[1])
        rows, cols = (part.ravel() for part in np.meshgrid(*lines, indexing="ij"))
        sides = None if grid.gsd_m is None else grid.pixel_sides(rows, cols)
        shape = {"height": grid.height, "width": grid.width}
        if sides is None:
            one, none = np.ones((1, 1)), np.zeros((1, 1))
            return cls(across=one, down=one, mixed=none, area=one, known=False, **shape)
        across, down, angle = sides
        area = across * down * abs(np.sin(angle))
        points = 2 * rows / grid.height - 1, 2 * cols / grid.width - 1
        return cls(
            across=_fit(across**2, *points, LENGTH_TOLERANCE * area.min()),
            down=_fit(down**2, *points, LENGTH_TOLERANCE * area.min()),
            mixed=_fit(across * down * np.cos(angle), *points, LENGTH_TOLERANCE * area.min()),
            area=_fit(area, *points, AREA_TOLERANCE * area.min()),
            known=True,
            **shape,
        )

    def pixel_area_m2(self, rows: Floats, cols: Floats) -> Floats:
        """Return the area of a pixel around each point."""
        return self._value(self.area, rows, cols)

    def lengths_m(self, rows: Floats, cols: Floats, d_rows: Floats, d_cols: Floats) -> Floats:
        """Return the lengths of short lines around points."""
        across, down = (self._value(part, rows, cols) for part in (self.across, self.down))
        squared: Floats = across * (d_cols * d_cols) + down * (d_rows * d_rows)
        if self.mixed.size > 1 or abs(self.mixed[0, 0]) > LENGTH_TOLERANCE * self.across[0, 0]:
            squared += 2 * self._value(self.mixed, rows, cols) * d_rows * d_cols
        return np.sqrt(np.maximum(squared, 0))

    def axes_m(self, rows: Floats, cols: Floats) -> Floats:
        """Return (n, 2, 2): metres on the ground per column and row around points, x along the row."""
        across, down, mixed = (self._value(part, rows, cols) for part in (self.across, self.down, self.mixed))
        side = np.sqrt(across)
        height = np.sqrt(np.maximum(down - mixed * mixed / across, 0))
        return np.stack([np.stack([side, mixed / side], -1), np.stack([0 * side, height], -1)], -2)

    @property
    def pixel_m(self) -> tuple[float, float]:
        """Metres per pixel along a row and along a column, in the middle."""
        return float(self.across[0, 0]) ** 0.5, float(self.down[0, 0]) ** 0.5

    def _value(self, coefficients: Floats, rows: Floats, cols: Floats) -> Floats:
        if coefficients.size == 1:
            return np.broadcast_to(coefficients[0, 0], np.shape(rows))
        y, x = 2 * rows / self.height - 1, 2 * cols / self.width - 1
        return np.asarray(polynomial.polyval2d(y, x, coefficients), np.float64)


def to_xy(transform: Affine, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Return the x and y of points in a grid, px."""
    x = transform.a * cols + transform.b * rows + transform.c
    return x, transform.d * cols + transform.e * rows + transform.f


def _fit(values: Floats, y: Floats, x: Floats, tolerance: float) -> Floats:
    """Return the coefficients of the simplest polynomial within the tolerance, or of the last one."""
    for degrees in DEGREES:
        terms = polynomial.polyvander2d(y, x, degrees)
        fitted = np.linalg.lstsq(terms, values, rcond=None)[0]
        if abs(terms @ fitted - values).max() <= tolerance:
            break
    return np.asarray(fitted, np.float64).reshape(degrees[0] + 1, degrees[1] + 1)
