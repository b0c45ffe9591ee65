"""Geometry of the report's charts; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rsseg_cli.evaluation.comparison import Comparison
from rsseg_cli.weights import ClassSpec

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 58
Value = float | None


def is_number(value: Value) -> bool:
    return value is not None and math.isfinite(value)


def hexadecimal(colour: Sequence[int]) -> str:
    red, green, blue = (min(255, max(0, int(part))) for part in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"


def boundary_chart(
    boundary: Mapping[str, Any], kind: str, title: str, classes: Sequence[ClassSpec]
) -> dict[str, Any]:
    """Scores from 0 to 1 by distance from a boundary, on a logarithmic axis.

    A curve per class that has scores, then the mean, which has no colour.
    """
    widths, values = boundary["widths_px"], boundary[kind]
    logs = [math.log(max(width, 1e-6)) for width in widths]
    low, span = min(logs), max(logs) - min(logs)
    inner = WIDTH - LEFT - RIGHT - 40
    xs = [LEFT + 20 + inner * ((log - low) / span if span else 0.5) for log in logs]

    def curve(name: str, colour: str, scores: Sequence[Value]) -> dict[str, Any]:
        points = [(x, _y(v), v) for x, v in zip(xs, scores, strict=True) if v is not None and is_number(v)]
        return {"name": name, "colour": colour, "points": points}

    curves = [
        curve(item.name, hexadecimal(item.colour), values["classes"][item.name])
        for item in classes
        if any(is_number(value) for value in values["classes"][item.name])
    ]
    metres = boundary.get("widths_m") or [None] * len(widths)
    return {
        "title": title,
        "levels": [(share / 5, _y(share / 5)) for share in range(6)],
        "ticks": list(zip(xs, widths, metres, strict=True)),
        "in_metres": bool(boundary.get("widths_m")),
        "curves": [*curves, curve("mean", "", values["mean"])],
    }


def interval_chart(comparison: Comparison) -> dict[str, Any]:
    """Differences of two models with their intervals around zero, a row each, in percentage points."""
    rows = comparison.rows()
    ends = [abs(end) for row in rows for end in (row.difference, *row.interval) if math.isfinite(end)]
    reach = max([*ends, 0.01]) * 1.1
    left, right, step, top = 150, 450, 26, 8

    def x(value: float) -> float:
        return (left + right) / 2 + value / reach * (right - left) / 2

    drawn = []
    for index, row in enumerate(rows):
        low, high = row.interval
        colour = f"rgb(var(--{'right' if row.difference > 0 else 'wrong'}))"
        known = math.isfinite(row.difference + low + high)
        drawn.append(
            {
                "name": row.name if len(row.name) <= 20 else f"{row.name[:19]}…",
                "y": top + step * (index + 0.5),
                "colour": "currentColor" if row.holds_zero else colour,
                "interval": (x(low), x(row.difference), x(high)) if known else None,
            }
        )
    tick = _round_down(reach / 2)
    steps = range(-int(reach / tick), int(reach / tick) + 1)
    return {
        "height": top + step * len(rows) + 34,
        "top": top,
        "bottom": top + step * len(rows),
        "label_x": left - 12,
        "middle": (left + right) / 2,
        "ticks": [(x(k * tick), f"{100 * k * tick:+g}" if k else "0") for k in steps],
        "rows": drawn,
    }


def _y(value: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, value)))


def _round_down(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten up to `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(k * power for k in (1, 2, 5) if k == 1 or k * power <= value * (1 + 1e-9))
