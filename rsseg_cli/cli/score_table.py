"""Scores as a table for people; `rsseg eval` and `rsseg score` print the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer


def print_scores(scores: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """Print `score_table` on stdout."""
    typer.echo(score_table(scores, names))


def score_table(scores: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Classes and their means, what holds for the whole map, and boundaries by width.

    Args:
        scores: what `--json` prints: `classes`, a list of objects with `name`, `iou`, `f1`, `precision`,
            `recall`, `pixels` (None where a class does not occur); `miou`, `mean_f1`, `overall_accuracy`,
            `kappa`; `boundary` with `wfm`, `widths_px`, maybe `widths_m`, and `boundary_iou` and
            `trimap_accuracy`, each `{"mean": [a value a width], "classes": {name: [a value a width]}}`.
        names: classes to show; all without.
    """
    rows = [row for row in scores["classes"] if not names or row["name"] in names]
    width = max(16, *(len(row["name"]) for row in rows))
    head = f"{'class':<{width}}{'IoU':>8}{'F1':>8}{'precision':>11}{'recall':>8}{'pixels':>14}"
    lines = [head]
    lines += [
        f"{row['name']:<{width}}{_decimal(row['iou']):>8}{_decimal(row['f1']):>8}"
        f"{_decimal(row['precision']):>11}{_decimal(row['recall']):>8}{row['pixels']:>14,}"
        for row in rows
    ]
    lines.append(f"{'mean':<{width}}{_decimal(scores['miou']):>8}{_decimal(scores['mean_f1']):>8}")
    lines += [
        "",
        f"overall accuracy {_decimal(scores['overall_accuracy'])}, kappa {_decimal(scores['kappa'])}",
    ]
    boundary = scores.get("boundary")
    return "\n".join(lines + (_boundary_lines(boundary, width) if boundary else []))


def _boundary_lines(boundary: Mapping[str, Any], width: int) -> list[str]:
    metres = boundary.get("widths_m")
    lines = [f"boundaries: WFm {_decimal(boundary.get('wfm'))}", ""]
    lines.append(_row("within px", [f"{px:g}" for px in boundary["widths_px"]], width))
    if metres:
        lines.append(_row("within m", [f"{m:.3g}" for m in metres], width))
    for kind, title in (("boundary_iou", "Boundary IoU"), ("trimap_accuracy", "trimap accuracy")):
        lines.append(_row(title, [_decimal(value) for value in boundary[kind]["mean"]], width))
    return lines


def _row(title: str, cells: Sequence[str], width: int) -> str:
    return f"{title:<{width}}" + "".join(f"{cell:>8}" for cell in cells)


def _decimal(score: float | None) -> str:
    """Three decimals; `-` for the score of a class that occurs nowhere."""
    return "-" if score is None or score != score else f"{score:.3f}"


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print `comparison_table` on stdout."""
    typer.echo(comparison_table(comparison))


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Scores of two models side by side, their differences, and intervals of these.

    Args:
        comparison: `Comparison.as_dict`.
    """
    rows = [*comparison["overall"], *({**row, "name": f"IoU {row['name']}"} for row in comparison["iou"])]
    rows += [{**row, "name": f"F1 {row['name']}"} for row in comparison["f1"]]
    width = max(16, *(len(row["name"]) for row in rows)) + 1
    names = [_cut(comparison[key], 14) for key in ("first", "second")]
    interval = f"{comparison['level']:.0%} interval"
    lines = [f"{'':<{width}}{names[0]:>15}{names[1]:>15}{'difference':>12}{interval:>20}"]
    lines += [
        f"{row['name']:<{width}}{_decimal(row['first']):>15}{_decimal(row['second']):>15}"
        f"{_signed(row['difference']):>12}{_signed(row['low']):>10} to {_signed(row['high'])}"
        f"{'' if row['holds_zero'] else '  *'}"
        for row in rows
    ]
    more = f"* zero lies outside; intervals over {comparison['tiles']} tiles"
    return "\n".join([*lines, more])


def _signed(score: float | None) -> str:
    return "-" if score is None or score != score else f"{score:+.3f}"


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def parse_widths(text: str) -> tuple[int, ...]:
    """Pixels with commas between; a usage error otherwise."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as err:
        raise typer.BadParameter(
            f"{text!r}: needs whole pixels with commas between, as 1,3,5,10", param_hint="--boundary-widths"
        ) from err
