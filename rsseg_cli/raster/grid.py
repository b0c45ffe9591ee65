"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from affine import Affine
from rasterio.crs import CRS

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where pixels lie.

    Attributes:
        crs: coordinate system, None without.
        transform: (col, row) to (x, y); may be rotated or south-up.
        width, height: px.
    """

    crs: CRS | None
    transform: Affine
    width: int
    height: int

    def scaled(self, *, width: int, height: int) -> Grid:
        """The same extent with another number of pixels."""
        steps = Affine.scale(self.width / width, self.height / height)
        return Grid(crs=self.crs, transform=self.transform * steps, width=width, height=height)

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        """The grid of a window, px."""
        return Grid(
            crs=self.crs, transform=self.transform * Affine.translation(col, row), width=width, height=height
        )

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """left, bottom, right, top of the box around all pixels, in the CRS."""
        corners = [
            self.transform * point
            for point in ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height))
        ]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @cached_property
    def gsd_m(self) -> tuple[float, float] | None:
        """Metres on the ground a pixel, along a row and along a column, at the centre; None without CRS.

        Measured on the ellipsoid, so that Mercator's stretch and degrees do not enter.
        """
        if self.crs is None:
            return None
        from pyproj import CRS as ProjCRS
        from pyproj import Transformer
        from pyproj.exceptions import ProjError

        col, row = self.width / 2, self.height / 2
        points = [
            self.transform * (col + dx, row + dy) for dx, dy in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))
        ]
        try:
            crs = ProjCRS.from_wkt(self.crs.to_wkt())
            ellipsoid = crs.get_geod()
            if crs.geodetic_crs is None or ellipsoid is None or crs.is_geocentric:
                return None
            to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
            lon, lat = to_degrees.transform([x for x, _ in points], [y for _, y in points])
            _, _, metres = ellipsoid.inv(
                [lon[0], lon[2]], [lat[0], lat[2]], [lon[1], lon[3]], [lat[1], lat[3]]
            )
        except ProjError:
            return None
        if not all(math.isfinite(length) and length > 0 for length in metres):
            return None
        return float(metres[0]), float(metres[1])
