"""What holds for all blocks of a raster that becomes polygons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rsseg_cli.vector.geometry import PixelGeometry
import time
from typing import TYPE_CHECKING

from rsseg_cli.vector.polygons import Reproject

if TYPE_CHECKING:
    from affine import Affine

    from rsseg_cli.vector.geometry import PixelGeometry
    from rsseg_cli.vector.simplify import StoredBoundaries
    from rsseg_cli.vector.source import ClassSource, StoredSource


LEAST_RADIUS_PX, MOST_RADIUS_PX = 2.0, 32.0


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """How boundaries are shaped.

    Attributes:
        tolerance_m2: triangles below this area go; 0 for none.
        radius_px: of rounded corners; 0 for none.
    """

    tolerance_m2: float = 0.0
    radius_px: float = 0.0

    @property
    def reach(self) -> int:
        """Corner rows above and below a block that rounding its corners looks at."""
        return int(np.ceil(self.radius_px)) + 2 if self.radius_px else 0


def make_shaping(simplify_m: float, smooth: bool, ground: PixelGeometry) -> Shaping:
    """Settings in metres to those of a grid; smoothing without a tolerance simplifies by a pixel."""
    area_m2 = float(ground.pixel_area_m2(np.array(ground.height / 2), np.array(ground.width / 2)))
    tolerance_m2 = simplify_m**2 or (area_m2 if smooth else 0.0)
    radius = 1.5 * (tolerance_m2 / area_m2) ** 0.5
    return Shaping(
        tolerance_m2=tolerance_m2,
        radius_px=float(np.clip(radius, LEAST_RADIUS_PX, MOST_RADIUS_PX)) if smooth else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What holds for all blocks.

    Attributes:
        source, confidence: rasters of class and confidence.
        classes: those that become polygons; None for all.
        reproject: WKT of the output's CRS, None for the raster's own.
        boundaries: simplified ones, where the shaping has a tolerance.
    """

    source: ClassSource | StoredSource
    confidence: ClassSource | None
    transform: Affine
    ground: PixelGeometry
    shaping: Shaping
    classes: frozenset[int] | None = None
    reproject: tuple[str, str] | None = None
    boundaries: StoredBoundaries | None = None

    def reprojection(self) -> Reproject | None:
        """Function from the raster's coordinates to the output's."""
        if self.reproject is None:
            return None
        from pyproj import Transformer

        transformer = Transformer.from_crs(*self.reproject, always_xy=True)
        return lambda x, y: transformer.transform(x, y)


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
