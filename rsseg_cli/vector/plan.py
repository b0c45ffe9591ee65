"""Settings that hold for all blocks of a raster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rsseg_cli.vector.geometry import Floats, PixelGeometry
from rsseg_cli.vector.storage import Limits

if TYPE_CHECKING:
    from affine import Affine

    from rsseg_cli.vector.simplify import StoredBoundaries
    from rsseg_cli.vector.source import ClassSource, StoredSource

Reproject = Callable[[Floats, Floats], tuple[Floats, Floats]]
MIN_RADIUS_PX, MAX_RADIUS_PX = 2.0, 32.0


@dataclass(frozen=True, kw_only=True)
class SimplifyOptions:
    """Shape of boundaries: triangles below an area go, corners are rounded; 0 for neither."""

    tolerance_m2: float = 0.0
    radius_px: float = 0.0

    @property
    def reach(self) -> int:
        """Corner rows above and below a block that rounding its corners reads."""
        return int(np.ceil(self.radius_px)) + 2 if self.radius_px else 0


def simplify_options(simplify_m: float, smooth: bool, ground: PixelGeometry) -> SimplifyOptions:
    """Convert settings in metres to a grid's; smoothing without a tolerance simplifies by a pixel."""
    area_m2 = float(ground.pixel_area_m2(np.array(ground.height / 2), np.array(ground.width / 2)))
    tolerance_m2 = simplify_m**2 or (area_m2 if smooth else 0.0)
    radius = 1.5 * (tolerance_m2 / area_m2) ** 0.5
    return SimplifyOptions(
        tolerance_m2=tolerance_m2,
        radius_px=float(np.clip(radius, MIN_RADIUS_PX, MAX_RADIUS_PX)) if smooth else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class SquareOptions:
    """Classes whose outlines are squared, and how far their walls may move."""

    classes: frozenset[int]
    max_shift_m: float


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Settings that hold for all blocks.

    Attributes:
        classes: those that become polygons; None for all.
        reproject: WKT of the raster's and the output's CRS, None if equal.
    """

    source: ClassSource | StoredSource
    confidence: ClassSource | None
    transform: Affine
    ground: PixelGeometry
    options: SimplifyOptions
    classes: frozenset[int] | None = None
    reproject: tuple[str, str] | None = None
    boundaries: StoredBoundaries | None = None
    squares: SquareOptions | None = None
    limits: Limits = field(default_factory=Limits)

    def reprojection(self) -> Reproject | None:
        """Return the function from the raster's coordinates to the output's."""
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
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
