"""Tables and summaries that commands print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsseg_cli.pipeline import PredictResult
    from rsseg_cli.pipeline import result as results


def score_table(scores: Mapping[str, Any]) -> str:
    """Word the scores that `--json` prints: classes and their means, overall scores, boundaries by width.

    The score of a class that occurs nowhere is None, shown as `-`.
    """
    rows = scores["classes"]
    intervals = scores.get("intervals") or {}
    known = intervals.get("miou", [None])[0] is not None
    width = max(16, *(len(row["name"]) for row in rows))
    head = f"{intervals['level']:.0%} interval" if known else ""
    lines = [_class_line("class", ["IoU", head, "F1", "precision", "recall", "pixels"], width, known)]
    for row in rows:
        ends = _ends(intervals["iou"][row["name"]]) if known else ""
        decimals = [_decimal(row[key]) for key in ("f1", "precision", "recall")]
        cells = [_decimal(row["iou"]), ends, *decimals, f"{row['pixels']:,}"]
        lines.append(_class_line(row["name"], cells, width, known))
    ends = _ends(intervals["miou"]) if known else ""
    lines.append(
        _class_line("mean", [_decimal(scores["miou"]), ends, _decimal(scores["mean_f1"])], width, known)
    )
    overall = f"overall accuracy {_decimal(scores['overall_accuracy'])}, kappa {_decimal(scores['kappa'])}"
    if calibration := scores.get("calibration"):
        overall += f", expected calibration error {_decimal(calibration['ece'])}"
    lines += ["", overall]
    if boundary := scores.get("boundary"):
        lines += _boundary_lines(boundary, intervals["boundary_iou"]["mean"] if known else [], width)
    return "\n".join([*lines, *([interval_note(intervals)] if known else [])])


def interval_note(intervals: Mapping[str, Any]) -> str:
    """What the intervals were made of."""
    few = "; these are few: the intervals are rough, and too narrow" if intervals["few"] else ""
    return (
        f"{intervals['level']:.0%} intervals by drawing {intervals['blocks']} blocks of up to "
        f"{intervals['block_px']} px again, {intervals['resamples']} times{few}"
    )


def _class_line(name: str, cells: Sequence[str], width: int, with_interval: bool) -> str:
    places = (8, 17 if with_interval else 0, 8, 11, 8, 14)
    return f"{name:<{width}}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, places, strict=False))


def _ends(interval: Sequence[float | None]) -> str:
    return f"{_decimal(interval[0])} to {_decimal(interval[1])}"


def _boundary_lines(
    boundary: Mapping[str, Any], intervals: Sequence[Sequence[float | None]], width: int
) -> list[str]:
    metres = boundary.get("widths_m")
    lines = [f"boundaries: WFm {_decimal(boundary.get('wfm'))}", ""]
    lines.append(_row("within px", [f"{px:g}" for px in boundary["widths_px"]], width))
    if metres:
        lines.append(_row("within m", [f"{m:.3g}" for m in metres], width))
    lines.append(_row("Boundary IoU", map(_decimal, boundary["boundary_iou"]["mean"]), width))
    for end, title in enumerate(("  interval from", "  to")):
        if intervals:
            lines.append(_row(title, [_decimal(interval[end]) for interval in intervals], width))
    lines.append(_row("trimap accuracy", map(_decimal, boundary["trimap_accuracy"]["mean"]), width))
    return lines


def _row(title: str, cells: Iterable[str], width: int) -> str:
    return f"{title:<{width}}" + "".join(f"{cell:>8}" for cell in cells)


def _decimal(score: float | None) -> str:
    return "-" if score is None or score != score else f"{score:.3f}"


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Word `Comparison.as_dict`: scores of two models side by side, differences and their intervals."""
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


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def summary(result: PredictResult) -> str:
    lines = [str(path) for path in result.paths.values()]
    lines += class_lines({name: (item.share, item.area_m2) for name, item in result.classes.items()})
    empty = 1 - result.valid_pixels / result.pixels
    lines.append(f"  {size_text(result.pixels)}, {empty:.1%} without data, in {result.seconds:.1f} s")
    if result.refined is not None:
        lines.append(refined_summary(result.refined, result.valid_pixels))
    return "\n".join(lines)


def class_lines(classes: dict[str, tuple[float, float | None]]) -> list[str]:
    """Word each class's name, share (0 to 1) and, where all are known, area (m2)."""
    width = max(map(len, classes), default=0)
    areas = [area for _, area in classes.values()]
    known = [area for area in areas if area is not None]
    texts = area_texts(known) if len(known) == len(areas) else []
    ends = [f"  {text:>12}" for text in texts] or [""] * len(areas)
    shares = [(name, share) for name, (share, _) in classes.items()]
    return [f"  {name:<{width}}  {share:7.2%}{end}" for (name, share), end in zip(shares, ends, strict=True)]


def size_text(pixels: int) -> str:
    return f"{pixels / 1e6:.1f} Mpx" if pixels >= 1e5 else f"{pixels} px"


def refined_summary(refined: results.Refined, valid_pixels: int) -> str:
    share = refined.changed_pixels / max(1, valid_pixels)
    windows = f"{refined.windows_run} of {refined.windows} windows run"
    return f"  refined by {refined.refiner}: {windows}, {share:.2%} of the pixels changed"


def area_texts(areas_m2: Sequence[float]) -> list[str]:
    """Word areas in the unit that suits the largest: m2, ha from 1 ha, km2 from 1 km2."""
    largest = max(areas_m2, default=0.0)
    unit, size = ("m2", 1.0) if largest < 1e4 else ("ha", 1e4) if largest < 1e6 else ("km2", 1e6)
    return [f"<0.01 {unit}" if 0 < area < 0.005 * size else f"{area / size:.2f} {unit}" for area in areas_m2]
