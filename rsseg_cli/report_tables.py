"""Tables and curves of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.report_charts import curves, hexadecimal, intervals, is_number
from rsseg_cli.report_text import class_name, legend_items, score_text, signed_text, swatch

if TYPE_CHECKING:
    from rsseg_cli.compare import Comparison
    from rsseg_cli.weights.spec import ClassSpec

MANY_CLASSES = 8  # more columns than these stand closer, their names upright
LEAST_SHOWN = 0.0005  # share of a row from which a cell of the confusion matrix is written out


def class_table(
    scores: Mapping[str, Any],
    classes: Sequence[ClassSpec],
    confusion: NDArray[np.int64],
    out_of_means: Sequence[str] = (),
) -> str:
    total = max(1, int(confusion.sum()))
    rows = []
    for item, row, truth in zip(classes, scores["classes"], confusion.sum(1), strict=True):
        iou = row["iou"]
        aside = '<span class="aside">not in the means</span>' if item.name in out_of_means else ""
        bar = f'<i><i style="width:{100 * iou:.1f}%"></i></i>' if is_number(iou) else ""
        cells = "".join(f"<td>{score_text(row[key])}</td>" for key in ("f1", "precision", "recall"))
        rows.append(
            f"<tr><th>{swatch(item)}{aside}</th><td>{score_text(iou)}</td>"
            f'<td class="bar" style="color:{hexadecimal(item.colour)}">{bar}</td>{cells}'
            f'<td title="{int(truth):,} px">{int(truth) / total:.1%}</td></tr>'
        )
    mean = f"<td>{score_text(scores['miou'])}</td><td></td><td>{score_text(scores['mean_f1'])}</td>"
    rows.append(f'<tr class="mean"><th>mean</th>{mean}<td></td><td></td><td></td></tr>')
    titles = ("class", "IoU", "", "F1", "precision", "recall", "share of truth")
    head = "".join(f"<th>{name}</th>" for name in titles)
    return (
        "<h2>Classes</h2>"
        f'<div class="scroll"><table class="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def confusion_table(confusion: NDArray[np.int64], classes: Sequence[ClassSpec]) -> str:
    """Rows truth, columns map; the column of pixels outside all classes where there are any."""
    columns = len(classes) + bool(confusion[:, len(classes) :].sum())
    head = "".join(f"<th>{_plain_head(classes, index)}</th>" for index in range(columns))
    rows = []
    for truth, item in enumerate(classes):
        whole = int(confusion[truth].sum())
        cells = "".join(
            _cell(int(confusion[truth, found]), whole, truth == found, item.name, class_name(classes, found))
            for found in range(columns)
        )
        rows.append(f'<tr><th>{swatch(item)}</th>{cells}<td class="total">{whole:,}</td></tr>')
    return (
        "<h2>What is mapped as what</h2>"
        '<p class="note">Each row is a class of the truth; its cells say which share of it the map holds as '
        "what. Pixel counts appear on hover.</p>"
        f'<div class="scroll"><table class="matrix{" dense" * (columns > MANY_CLASSES)}"><thead><tr>'
        '<th class="axis">truth ↓  map →</th>'
        f"{head}<th>pixels</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plain_head(classes: Sequence[ClassSpec], index: int) -> str:
    return swatch(classes[index]) if index < len(classes) else "none of these"


def _cell(count: int, whole: int, right: bool, truth: str, found: str) -> str:
    share = count / whole if whole else 0.0
    text = "" if share < LEAST_SHOWN else f"{100 * share:.1f}"
    strength = (0.1 + 0.75 * share if right else min(0.9, 0.06 + 1.4 * share)) if text else 0.0
    style = f"background:rgba(var(--{'right' if right else 'wrong'}), {strength:.2f})"
    if strength > 0.5:
        style += ";color:#fff"
    title = f"{truth} mapped as {found}: {count:,} of {whole:,} px"
    return f'<td style="{style}" title="{escape(title)}">{text}</td>'


def boundary_section(scores: Mapping[str, Any], classes: Sequence[ClassSpec]) -> str:
    boundary = scores.get("boundary")
    if not boundary:
        return ""
    charts = []
    for kind, name in (("boundary_iou", "Boundary IoU"), ("trimap_accuracy", "Trimap accuracy")):
        values = boundary[kind]
        lines = [
            (item.name, item.colour, values["classes"][item.name])
            for item in classes
            if any(is_number(value) for value in values["classes"][item.name])
        ]
        chart = curves(name, boundary["widths_px"], boundary.get("widths_m"), lines, values["mean"])
        charts.append(f"<figure><figcaption>{name}</figcaption>{chart}</figure>")
    mean = '<li><span class="dash"></span>mean</li>'
    return (
        "<h2>Boundaries</h2>"
        '<p class="note">Boundary IoU compares the bands inside each class along its outline; trimap '
        "accuracy is the share of right pixels near boundaries of the truth. Both by the width of the "
        "band.</p>"
        f'<ul class="legend">{legend_items(classes)}{mean}</ul><div class="charts">{"".join(charts)}</div>'
    )


def comparison_section(comparison: Comparison) -> str:
    rows, drawn = [], []
    for item in comparison.rows():
        low, high = item.interval
        differs = "" if not is_number(low) else "not clear" if item.holds_zero else "yes"
        rows.append(
            f"<tr><th>{escape(item.name)}</th><td>{score_text(item.first)}</td>"
            f"<td>{score_text(item.second)}</td><td>{signed_text(item.difference)}</td>"
            f"<td>{signed_text(low)} to {signed_text(high)}</td><td>{differs}</td></tr>"
        )
        drawn.append((item.name, item.difference, low, high))
    head = (
        f"<th></th><th>{escape(comparison.first)}</th><th>{escape(comparison.second)}</th>"
        f"<th>difference</th><th>{comparison.config.level:.0%} interval</th><th>differs</th>"
    )
    return (
        f"<h2>Against {escape(comparison.second)}</h2>"
        f'<p class="note">{escape(comparison.explanation)}</p>'
        f'<div class="versus"><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><figure>{intervals(drawn)}</figure></div>"
    )
