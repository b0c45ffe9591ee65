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
