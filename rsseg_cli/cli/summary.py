"""What commands print about a finished map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsseg_cli.pipeline.result import PredictResult, Refined


def summary(result: PredictResult) -> str:
    """Where the outputs lie and how the classes share the scene."""
    lines = [str(path) for path in result.paths.values()]
    lines += class_lines({name: (item.share, item.area_m2) for name, item in result.classes.items()})
    empty = 1 - result.valid_pixels / result.pixels
    lines.append(f"  {size_text(result.pixels)}, {empty:.1%} without data, in {result.seconds:.1f} s")
    if result.refined is not None:
        lines.append(refined_summary(result.refined, result.valid_pixels))
    return "\n".join(lines)


def class_lines(classes: dict[str, tuple[float, float | None]]) -> list[str]:
    """A line a class: name, share (0 to 1), area (m2) where all are known."""
    width = max(map(len, classes), default=0)
    areas = [area for _, area in classes.values()]
    known = [area for area in areas if area is not None]
    texts = area_texts(known) if len(known) == len(areas) else []
    ends = [f"  {text:>12}" for text in texts] or [""] * len(areas)
    shares = [(name, share) for name, (share, _) in classes.items()]
    return [f"  {name:<{width}}  {share:7.2%}{end}" for (name, share), end in zip(shares, ends, strict=True)]


def size_text(pixels: int) -> str:
    return f"{pixels / 1e6:.1f} Mpx" if pixels >= 1e5 else f"{pixels} px"


def refined_summary(refined: Refined, valid_pixels: int) -> str:
    """How much of the map was looked at, and how much changed."""
    share = refined.changed_pixels / max(1, valid_pixels)
    windows = f"{refined.windows_run} of {refined.windows} windows run"
    return f"  refined by {refined.refiner}: {windows}, {share:.2%} of the pixels changed"


def area_texts(areas_m2: Sequence[float]) -> list[str]:
    """Areas in the unit that suits the largest: m2, from 1 ha on ha, from 1 km2 on km2."""
    largest = max(areas_m2, default=0.0)
    unit, size = ("m2", 1.0) if largest < 1e4 else ("ha", 1e4) if largest < 1e6 else ("km2", 1e6)
    return [f"<0.01 {unit}" if 0 < area < 0.005 * size else f"{area / size:.2f} {unit}" for area in areas_m2]
