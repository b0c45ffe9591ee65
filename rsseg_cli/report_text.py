"""Words and marks of the report: classes with their colours, numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from rsseg_cli.report_charts import hexadecimal

if TYPE_CHECKING:
    from rsseg_cli.weights.spec import ClassSpec


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
