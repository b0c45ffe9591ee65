"""Curves and intervals of the report, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsseg_cli.weights import ClassSpec


def swatch(item: ClassSpec) -> str:
    return f'<span class="swatch" style="color:{hexadecimal(item.colour)}"></span>{escape(item.name)}'


def swatch_of(classes: Sequence[ClassSpec], index: int) -> str:
    return swatch(classes[index]) if index < len(classes) else "none of these"


def score_text(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else "–"


def signed_text(value: float | None) -> str:
    return f"{value:+.3f}".replace("-", "−") if value is not None and math.isfinite(value) else "–"


def count_text(pixels: int) -> str:
    return f"{pixels / 1e6:.1f} million" if pixels >= 1e6 else f"{pixels:,}"


def legend_items(classes: Sequence[ClassSpec]) -> str:
    return "".join(f"<li>{swatch(item)}</li>" for item in classes)


def class_name(classes: Sequence[ClassSpec], index: int) -> str:
    return classes[index].name if index < len(classes) else "none of these"


WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 58
Value = float | None


def is_number(value: Value) -> bool:
    return value is not None and math.isfinite(value)


def hexadecimal(colour: Sequence[int]) -> str:
    red, green, blue = (min(255, max(0, int(part))) for part in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"


def curves(
    title: str,
    widths_px: Sequence[float],
    widths_m: Sequence[float] | None,
    lines: Sequence[tuple[str, Sequence[int], Sequence[Value]]],
    mean: Sequence[Value],
) -> str:
    """Scores from 0 to 1 by distance from a boundary.

    Args:
        title: what is drawn, for screen readers too.
        widths_px, widths_m: of the bands, rising; they stand on a logarithmic axis.
        lines: name, colour and values of each class; None where there is none.
        mean: of the classes, drawn dashed and above them.
    """
    places = _places(widths_px)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += [_level(share / 5) for share in range(6)]
    bottom = HEIGHT - BOTTOM
    for index, (x, width) in enumerate(zip(places, widths_px, strict=True)):
        parts.append(_line(x, bottom, x, bottom + 5, "axisline"))
        parts.append(_text(x, bottom + 19, f"{width:g}", "middle"))
        if widths_m:
            parts.append(_text(x, bottom + 34, f"{widths_m[index]:.2g}", "middle"))
    parts.append(_text(LEFT - 8, bottom + 19, "px", "end"))
    if widths_m:
        parts.append(_text(LEFT - 8, bottom + 34, "m", "end"))
    below = HEIGHT - (6 if widths_m else 20)
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, below, "distance from a boundary", "middle"))
    for name, colour, values in lines:
        parts.append(
            _curve(places, values, f"{name}", f'stroke="{hexadecimal(colour)}"', hexadecimal(colour))
        )
    parts.append(_curve(places, mean, "mean", "", ""))
    return "".join([*parts, "</svg>"])


def intervals(rows: Sequence[tuple[str, Value, Value, Value]]) -> str:
    """Differences with their intervals around zero, one below the other.

    Args:
        rows: name, difference, lower and upper end, as shares; None where there is none.
    """
    ends = [abs(end) for _, *values in rows for end in values if end is not None and math.isfinite(end)]
    reach = max([*ends, 0.01]) * 1.1
    left, right, step, top = 150, 450, 26, 8
    height = top + step * len(rows) + 34
    at = lambda value: (left + right) / 2 + value / reach * (right - left) / 2  # noqa: E731
    bottom = top + step * len(rows)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="differences with intervals">']
    tick = _round_step(reach / 2)
    for k in range(-int(reach / tick), int(reach / tick) + 1):
        parts.append(_line(at(k * tick), top, at(k * tick), bottom, "grid" if k else "axisline"))
        parts.append(_text(at(k * tick), bottom + 16, f"{100 * k * tick:+g}" if k else "0", "middle"))
    parts.append(_text((left + right) / 2, bottom + 31, "difference, percentage points", "middle"))
    for row, (name, difference, low, high) in enumerate(rows):
        y = top + step * (row + 0.5)
        parts.append(_text(left - 12, y + 4, _short(name), "end", "name"))
        if difference is None or low is None or high is None or not math.isfinite(difference + low + high):
            continue
        colour = (
            "currentColor" if low <= 0 <= high else f"rgb(var(--{'right' if difference > 0 else 'wrong'}))"
        )
        style = f'style="stroke:{colour};fill:{colour}"'
        parts.append(
            f'<line x1="{at(low):.1f}" y1="{y:.1f}" x2="{at(high):.1f}" y2="{y:.1f}" {style} '
            'stroke-width="2"/>'
            f'<circle cx="{at(difference):.1f}" cy="{y:.1f}" r="4" {style}/>'
        )
    return "".join([*parts, "</svg>"])


def _places(widths_px: Sequence[float]) -> list[float]:
    """x of each width, evenly spread by its logarithm."""
    logs = [math.log(max(width, 1e-6)) for width in widths_px]
    low, span = min(logs), max(logs) - min(logs)
    inner = WIDTH - LEFT - RIGHT - 40
    return [LEFT + 20 + inner * ((log - low) / span if span else 0.5) for log in logs]


def _y(value: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, value)))


def _level(value: float) -> str:
    kind = "grid" if value else "axisline"
    label = _text(LEFT - 8, _y(value) + 4, f"{value:.1f}", "end")
    return _line(LEFT, _y(value), WIDTH - RIGHT, _y(value), kind) + label


def _curve(places: Sequence[float], values: Sequence[Value], name: str, stroke: str, fill: str) -> str:
    points = [
        (x, _y(v), v) for x, v in zip(places, values, strict=True) if v is not None and math.isfinite(v)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    drawn = f'<polyline class="halo" points="{path}" stroke-width="4"/>' if stroke else ""
    drawn += f'<polyline class="curve{"" if stroke else " all"}" points="{path}" {stroke}/>'
    dot = f'fill="{fill}"' if fill else 'style="fill:var(--ink)"'
    dots = "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4" {dot}>'
        f"<title>{escape(name)}: {v:.3f}</title></circle>"
        for x, y, v in points
    )
    return f"<g>{drawn}{dots}</g>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _round_step(most: float) -> float:
    power = 10.0 ** math.floor(math.log10(most))
    return max(k * power for k in (1, 2, 5) if k == 1 or k * power <= most * (1 + 1e-9))
