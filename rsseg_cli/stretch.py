"""The range of values that a scene of more than 8 bits is stretched from."""

from __future__ import annotations

import numpy as np

from rsseg_cli.reader import overview
from rsseg_cli.scene_info import SceneInfo

PERCENTILES = (2.0, 98.0)
SIZE_PX = 1024  # longest side of the overview that is looked at


def percentile_ranges(info: SceneInfo, bands: tuple[int, ...]) -> list[tuple[float, float]]:
    """2nd and 98th percentile of each band's valid pixels, from an overview; the second is the larger."""
    pixels, valid, _ = overview(info.path, bands, SIZE_PX, info.nodata if info.nodata_given else None)
    ranges = []
    for band in pixels:
        values = band[valid]
        low, high = np.percentile(values, PERCENTILES) if values.size else (0.0, 1.0)
        ranges.append((float(low), float(high) if high > low else float(low) + 1))
    return ranges


def type_range(dtype: str) -> tuple[float, float]:
    """What becomes 0 and 1 without stretching: all of an integer type, floats as they are."""
    kind = np.dtype(dtype)
    return (0.0, float(np.iinfo(kind).max)) if kind.kind in "iu" else (0.0, 1.0)
