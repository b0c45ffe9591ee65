"""Polygons on a picture: the largest ones as outlines in pixels, in a bounded number of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg_cli.vector.layer import FULL_SCALE
from rsseg_cli.vector.polygons import Polygons

if TYPE_CHECKING:
    from rsseg_cli.raster import Grid

STEPS = 2  # of coordinates in a pixel of the picture
MIN_SIDE_PX = 4.0  # of the box around a polygon that can be pointed at
TOLERANCE_PX = 0.75
MAX_WKB_BYTES = 64 << 20  # of a polygon that is drawn


class Sketch:
    """Collects outlines of polygons as they are finished; memory: twice `max_bytes`.

    Args:
        grid: of the picture.
        crs: of the polygons, as WKT; "" for that of the grid.
        max_bytes: of all outlines together.
    """

    def __init__(self, grid: Grid, crs: str, max_bytes: int) -> None:
        from pyproj import Transformer

        own = grid.wkt
        self._to_own = Transformer.from_crs(crs, own, always_xy=True) if crs and crs != own else None
        self._to_px = ~grid.transform
        self._max_bytes, self._least_px2 = max_bytes, MIN_SIDE_PX**2
        self._kept: list[tuple[float, dict[str, Any]]] = []
        self._bytes = self._count = 0

    def add(self, polygons: Polygons) -> None:
        """Take finished polygons."""
        self._count += len(polygons)
        corners = polygons.bounds.reshape(-1, 2)
        sides = np.abs(np.diff(self._pixels(corners).reshape(-1, 2, 2), axis=1))[:, 0]
        large = (sides.prod(1) >= self._least_px2) & (sides.min(1, initial=np.inf) >= 1)
        for index in np.flatnonzero(large).tolist():
            if len(polygons.wkb[index]) <= MAX_WKB_BYTES:
                self._keep(polygons, index)

    def _keep(self, polygons: Polygons, index: int) -> None:
        blob, table = polygons.wkb[index], polygons.table
        shape = shapely.transform(shapely.from_wkb(bytes(blob[:])), self._pixels)
        # ring by ring: keeping thousands of holes apart takes minutes, and none can tell at this scale
        path = outline(shapely.simplify(shapely.get_rings(shape), TOLERANCE_PX))
        if not path:
            return
        area_m2, count = float(polygons.areas_m2[index]), int(table.confidence_counts[index])
        item = {
            "class": int(table.classes[index]),
            "area_m2": round(area_m2, 1) if np.isfinite(area_m2) else None,
            "confidence": round(int(table.confidence_sums[index]) / count / FULL_SCALE, 3) if count else None,
            "box": [round(STEPS * side) for side in shapely.bounds(shape).tolist()],
            "path": path,
        }
        self._kept.append((float(shapely.area(shape)), item))
        self._bytes += _size(item)
        if self._bytes > 2 * self._max_bytes:
            self._drop_smallest()
            self._least_px2 = max(self._least_px2, self._kept[-1][0])

    def _drop_smallest(self) -> None:
        self._kept.sort(key=lambda pair: -pair[0])
        sizes = np.cumsum([_size(item) for _, item in self._kept])
        del self._kept[max(1, int(np.searchsorted(sizes, self._max_bytes, "right"))) :]
        self._bytes = sum(_size(item) for _, item in self._kept)

    @property
    def steps(self) -> int:
        return STEPS

    @property
    def polygons(self) -> list[dict[str, Any]]:
        """The largest polygons, in that order; `path` is SVG's, in STEPS a pixel."""
        self._drop_smallest()
        return [item for _, item in self._kept]

    @property
    def left_out(self) -> int:
        """Number of polygons that are not shown."""
        return self._count - len(self._kept)

    def _pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T if self._to_own is None else self._to_own.transform(*points.T)
        return np.column_stack(self._to_px * (np.asarray(x), np.asarray(y)))


def _size(item: dict[str, Any]) -> int:
    return len(item["path"]) + 100


def outline(rings: NDArray[Any]) -> str:
    """Return rings as a path of SVG, relative and whole; "" where nothing is left."""
    parts = []
    for ring in rings:
        points = np.rint(shapely.get_coordinates(ring) * STEPS).astype(np.int64)
        steps = np.diff(points, axis=0)
        steps = steps[steps.any(1)][:-1]  # it closes itself
        if len(steps) >= 2:
            moves = " ".join(f"{x} {y}" for x, y in steps.tolist())
            parts.append(f"M{points[0, 0]} {points[0, 1]}l{moves}z")
    return "".join(parts)
