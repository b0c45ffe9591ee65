"""`rsseg score`: score a map against truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.messages import say
from rsseg_cli.cli.progress import Bar
from rsseg_cli.cli.tables import score_table, size_text
from rsseg_cli.evaluation import PairConfig


@from_settings
def score_command(
    predicted: Annotated[
        str, opt.argument("PREDICTED.tif", "Map of class indices, as `rsseg predict` writes it.")
    ],
    truth: Annotated[
        str,
        opt.argument(
            "TRUTH",
            "Label raster, or polygons (GPKG, GeoJSON, Shapefile, FlatGeobuf); on any grid, in any CRS.",
        ),
    ],
    *,
    config: Annotated[PairConfig, Options()],
    report: opt.ReportFolder = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Score a map against truth.

    Classes of map and truth are matched by name. Pixels without a label never count; labelled pixels that
    are mapped as no class, or have no data, count as wrong.

    With --json: miou, mean_f1, overall_accuracy, kappa; classes, a list of name, iou, f1, precision, recall,
    pixels; boundary with wfm, widths_px, widths_m, and boundary_iou and trimap_accuracy, both with mean (a
    value for each width) and classes (a name to a value for each width), the latter with overall too;
    pixels, pixels_outside_classes, unlabelled_share; intervals, 95% ones of miou, mean_f1, overall_accuracy,
    iou by class and boundary_iou, from blocks of the map drawn again. Undefined values are null.

    Example: rsseg score map.tif buildings.gpkg --vector-class building --bbox 500000 4990000 501000 4991000
    """
    if report is not None:
        from rsseg_cli.evaluation import report as reports

        reports.check_report_folder(report, overwrite=overwrite)
    from rsseg_cli.evaluation import score_pair

    with Bar("score", "block", hidden=quiet) as bar:
        result = score_pair(predicted, truth, config, progress=bar.show)
    if report is not None:
        page = _write_report(report, predicted, truth, config, result, overwrite)
        say(f"rsseg: report: {page}")
    scores = result.scores
    if as_json:
        opt.echo_json(scores)
        return
    typer.echo(score_table(scores))
    typer.echo(f"{size_text(scores['pixels'])} scored, {scores['unlabelled_share']:.1%} unlabelled")


def _write_report(
    folder: Path, predicted: str, truth: str, config: PairConfig, result: Any, overwrite: bool
) -> Path:
    from rsseg_cli.evaluation import report as reports

    settings = {
        "map": predicted,
        "truth": truth,
        "bbox": "" if config.bbox is None else " ".join(f"{edge:.10g}" for edge in config.bbox),
        "aoi": config.aoi or "",
        "eroded by, px": config.erode_px or "",
        "out of means": ", ".join(config.out_of_means),
    }
    return reports.write_report(
        folder,
        result,
        title=f"{Path(predicted).name} against {Path(truth).name}",
        settings={name: value for name, value in settings.items() if value},
        overwrite=overwrite,
    )
