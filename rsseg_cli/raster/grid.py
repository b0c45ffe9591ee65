"""Where the pixels of a raster lie, and how large they are on the ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS

from rsseg_cli.errors import OutsideError

SNAP_PX = 1e-4  # a box drawn on pixel edges, written with few digits, does not grow by a pixel
AREA_NODES, AREA_BLOCKS = 33, 32
AREA_TOLERANCE = 1e-4
Floats = NDArray[np.float64]
Window = tuple[int, int, int, int]  # row, col, height, width


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where pixels lie: `transform` is (col, row) to (x, y), rotated or south-up or not; sizes are px."""

    crs: CRS | None
    transform: Affine
    width: int
    height: int

    @property
    def wkt(self) -> str:
        return "" if self.crs is None else str(self.crs.to_wkt())

    def scaled(self, *, width: int, height: int) -> Grid:
        """Return the same extent with another number of pixels."""
        steps = Affine.scale(self.width / width, self.height / height)
        return Grid(crs=self.crs, transform=self.transform * steps, width=width, height=height)

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        return Grid(
            crs=self.crs, transform=self.transform * Affine.translation(col, row), width=width, height=height
        )

    def clip(self, row: int, col: int, height: int, width: int) -> tuple[Window, tuple[slice, slice]]:
        """Return what of a window lies in the grid, perhaps nothing, and where that is in the window."""
        top, left = max(row, 0), max(col, 0)
        down = max(0, min(row + height, self.height) - top)
        across = max(0, min(col + width, self.width) - left)
        part = slice(top - row, top - row + down), slice(left - col, left - col + across)
        return (top, left, down, across), part

    def check_window(self, row: int, col: int, height: int, width: int) -> None:
        if not (0 <= row < row + height <= self.height and 0 <= col < col + width <= self.width):
            raise ValueError(f"window {(row, col, height, width)} outside {self.height} x {self.width} px")

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """left, bottom, right, top of the box around all pixels, in the CRS."""
        corners = [
            self.transform * point
            for point in ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height))
        ]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def xy(self, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
        steps = self.transform
        return steps.a * cols + steps.b * rows + steps.c, steps.d * cols + steps.e * rows + steps.f

    def window_of_bbox(self, bbox: Sequence[float], name: str = "--bbox") -> Window:
        """Return (row, col, height, width) of the pixels that a box touches; OutsideError without any."""
        left, bottom, right, top = bbox
        corners = [
            ~self.transform * point for point in ((left, top), (right, top), (left, bottom), (right, bottom))
        ]
        cols, rows = zip(*corners, strict=True)
        first_row, last_row = _snap(rows, self.height)
        first_col, last_col = _snap(cols, self.width)
        if first_row >= last_row or first_col >= last_col:
            raise self.outside(f"{name} {_numbers(bbox)}")
        return first_row, first_col, last_row - first_row, last_col - first_col

    def outside(self, name: str) -> OutsideError:
        extent = f"{_numbers(self.bounds)} (left, bottom, right, top)"
        return OutsideError(f"{name}: lies outside the scene, which covers {extent}")

    def pixel_sides(self, rows: ArrayLike, cols: ArrayLike) -> tuple[Floats, Floats, Floats] | None:
        """Measure pixels on the ellipsoid, so that Mercator's stretch and degrees do not enter.

        Args:
            rows, cols: centres of the pixels, px; (0, 0) is the upper left corner of the grid.

        Returns:
            Metres a pixel along a row and along a column, and the angle between the two; None without a CRS
            that leads to degrees.
        """
        if self.crs is None:
            return None
        from pyproj import CRS as ProjCRS
        from pyproj import Transformer
        from pyproj.exceptions import ProjError

        row, col = np.asarray(rows, np.float64), np.asarray(cols, np.float64)
        try:
            crs = ProjCRS.from_wkt(self.wkt)
            ellipsoid = crs.get_geod()
            if crs.geodetic_crs is None or ellipsoid is None or crs.is_geocentric:
                return None
            to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
            west, east, north, south = (
                to_degrees.transform(*self.xy(col + dx, row + dy))
                for dx, dy in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))
            )
            if not np.isfinite([west, east, north, south]).all():
                return None
            lines = ellipsoid.inv(*west, *east), ellipsoid.inv(*north, *south)
        except ProjError:
            return None
        # azimuths in the middle of each line, turned by 90 degrees
        (row_azimuth, across), (col_azimuth, down) = (
            (np.asarray(start) + (np.asarray(back) - start) % 360 / 2, np.asarray(length))
            for start, back, length in lines
        )
        return across, down, np.radians(col_azimuth - row_azimuth)

    @cached_property
    def gsd_m(self) -> tuple[float, float] | None:
        """Metres on the ground per pixel, along a row and along a column, at the centre; None if unknown."""
        sides = self.pixel_sides([self.height / 2], [self.width / 2])
        if sides is None:
            return None
        across, down = float(sides[0][0]), float(sides[1][0])
        return (across, down) if all(math.isfinite(m) and m > 0 for m in (across, down)) else None

    @property
    def side_m(self) -> float | None:
        """Side of a square as large as the pixel at the centre, metres; None if unknown."""
        return None if self.gsd_m is None else math.sqrt(math.prod(self.gsd_m))

    def areas_m2(self) -> tuple[Floats, Floats, Floats] | None:
        """Return rows (n,), first columns of blocks (k,) and the area of pixels there, m2 (n, k), or None.

        Areas between these rows can be interpolated. Within AREA_TOLERANCE along rows there is one block.
        """
        rows = np.unique(np.linspace(0, self.height - 1, min(self.height, AREA_NODES)).round().astype(int))
        edges = np.unique(np.linspace(0, self.width, min(self.width, AREA_BLOCKS) + 1).round().astype(int))
        middles = np.array([self.width // 2 + 0.5, *((edges[:-1] + edges[1:]) / 2)])
        sides = self.pixel_sides(*(part.ravel() for part in np.meshgrid(rows + 0.5, middles, indexing="ij")))
        if sides is None:
            return None
        across, down, angle = sides
        areas = (across * down * abs(np.sin(angle))).reshape(len(rows), len(middles))
        if not (np.isfinite(areas).all() and areas.min() > 0):
            return None
        if np.ptp(areas, axis=1).max() < AREA_TOLERANCE * areas.min():
            return rows, edges[:1], areas[:, :1]
        return rows, edges[:-1], areas[:, 1:]


def _snap(positions: Sequence[float], size: int) -> tuple[int, int]:
    first = np.floor(min(positions) + SNAP_PX)
    last = np.ceil(max(positions) - SNAP_PX)
    return int(np.clip(first, 0, size)), int(np.clip(last, 0, size))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in values)
