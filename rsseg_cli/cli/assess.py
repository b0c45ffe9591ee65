"""`rsseg assess`: accuracy and class areas of a map, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rsseg_cli.accuracy import config as kinds
from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.messages import say
from rsseg_cli.cli.progress import Bar


@from_settings
def assess_command(
    labels: opt.ClassMap,
    points: Annotated[
        str, opt.argument("POINTS", "Points of `rsseg sample` with the true classes filled in.")
    ],
    *,
    output: Annotated[
        Path | None, opt.output("FOLDER", "Write a report (HTML), the figures (JSON) and tables (CSV).")
    ] = None,
    config: Annotated[kinds.AssessConfig, Options()],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Estimate accuracy and class areas from checked points, with intervals.

    Uses the strata and clusters that `rsseg sample` wrote; other points are taken as a random sample in each
    mapped class.

    With --json: overall_accuracy; classes, a list of name, users_accuracy, producers_accuracy, f1, area_ha
    (area_px without a CRS), mapped_area_ha; each estimate with value, standard_error, interval,
    effective_units, few_units (the interval may be too narrow) and further_points; error_matrix in points
    and in proportions of the area; strata; notes.

    Example: rsseg assess map.tif points.gpkg -o assessment
    """
    from rsseg_cli.accuracy import assess, check_assessment_folder, write_assessment

    if output is not None:
        check_assessment_folder(output, overwrite=config.overwrite)
    with Bar("read", "row", hidden=quiet) as bar:
        result = assess(labels, points, config, progress=bar.show)
    if output is not None:
        title = f"{Path(labels).name} checked at {result.points} points"
        page = write_assessment(output, result, title=title, overwrite=config.overwrite)
        say(f"rsseg: report: {page}")
    opt.show(result, summary, as_json=as_json)


def summary(result: Any) -> str:
    """Word accuracies and areas in a table."""
    rows = result.table()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    few = [f"* {sentence}" for sentence in result.few]
    return "\n".join([*lines, "", f"{result.points} points, intervals of {result.level:.0%}", *few])
