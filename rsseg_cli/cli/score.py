"""`rsseg score`: how well a map agrees with truth."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from rsseg_cli.cli.tables import parse_widths, print_scores

DEFAULT_WIDTHS = "1,3,5,10"


def score_command(
    predicted: Annotated[
        str,
        typer.Argument(metavar="PREDICTED.tif", help="Map of class numbers, as `rsseg predict` writes it."),
    ],
    truth: Annotated[
        str,
        typer.Argument(
            metavar="TRUTH",
            help="Label raster, or polygons (GPKG, GeoJSON, Shapefile, FlatGeobuf); on any grid, in any CRS.",
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            metavar="A,B|FILE.json",
            help="Class names in the order of the truth's values, or a JSON list of name, value, colour. "
            "Default: the names that the map carries.",
        ),
    ] = "",
    boundary_widths: Annotated[
        str,
        typer.Option(metavar="1,3,...", help="Distances from a border for its scores, px of the map."),
    ] = DEFAULT_WIDTHS,
    label_field: Annotated[
        str,
        typer.Option(
            metavar="FIELD",
            help="Attribute of the polygons that names their class. Default: class, class_name, label or "
            "class_index.",
        ),
    ] = "",
    vector_class: Annotated[
        str, typer.Option(metavar="NAME", help="Class of all polygons, where no attribute names it.")
    ] = "",
    outside: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Class of the ground outside all polygons, or 'unlabelled'. Default: background or other, "
            "where there is such a class.",
        ),
    ] = "",
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(metavar="LEFT BOTTOM RIGHT TOP", help="Score this part alone; in the map's CRS."),
    ] = None,
    aoi: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Vector file; score inside its polygons alone."),
    ] = None,
    erode: Annotated[
        int,
        typer.Option(
            metavar="PX",
            help="Leave out labels this near to a border between classes; boundary scores keep them.",
        ),
    ] = 0,
    out_of_means: Annotated[
        str, typer.Option(metavar="A,B", help="Classes that do not enter the means, as clutter.")
    ] = "",
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write a page of scores and of the worst places."),
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            metavar="SCENE", help="The mapped scene, for the report's pictures. Default: the map names it."
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Score a map against truth.

    Classes of map and truth are brought together by name. Pixels without a label never count; what is mapped
    as no class, or has no data, where there is a label, counts as wrong.

    With --json: miou, mean_f1, overall_accuracy, kappa; classes, a list of name, iou, f1, precision, recall,
    pixels; boundary with wfm, widths_px, widths_m, and boundary_iou and trimap_accuracy, both with mean (a
    value for each width) and classes (a name to a value for each width), the latter with overall too;
    pixels, pixels_outside_classes, unlabelled_share. What is not defined is null.

    Example: rsseg score map.tif buildings.gpkg --vector-class building --bbox 500000 4990000 501000 4991000
    """
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    from rsseg_cli.cli.progress import Bar
    from rsseg_cli.evaluation.pair import PairConfig, score_pair

    config = PairConfig(
        classes=classes,
        boundary_widths_px=parse_widths(boundary_widths),
        erode_px=erode,
        out_of_means=tuple(name.strip() for name in out_of_means.split(",") if name.strip()),
        field=label_field,
        vector_class=vector_class,
        outside=outside,
        bbox=bbox,
        aoi=aoi,
        image=image,
    )
    if report is not None:
        from rsseg_cli.evaluation.report import check_report_folder

        check_report_folder(report, overwrite=overwrite)
    with Bar("block", hidden=quiet) as bar:
        score = score_pair(predicted, truth, config, progress=bar.show)
    if report is not None:
        page = _write_report(report, predicted, truth, config, score, overwrite)
        typer.echo(f"rsseg: report: {page}", err=True)
    if as_json:
        typer.echo(json.dumps(score.result.scores, indent=2, ensure_ascii=False))
        return

    print_scores(score.result.scores)
    typer.echo(_foot(score.result.scores))


def _write_report(folder: Path, predicted: str, truth: str, config: Any, score: Any, overwrite: bool) -> Path:
    from rsseg_cli.evaluation.report import write_report

    settings = {
        "map": predicted,
        "truth": truth,
        "bbox": "" if config.bbox is None else " ".join(f"{edge:.10g}" for edge in config.bbox),
        "aoi": config.aoi or "",
        "eroded by, px": config.erode_px or "",
        "out of means": ", ".join(config.out_of_means),
    }
    return write_report(
        folder,
        score.result,
        title=f"{Path(predicted).name} against {Path(truth).name}",
        classes=score.classes,
        settings={name: value for name, value in settings.items() if value},
        overwrite=overwrite,
    )


def _foot(scores: dict[str, Any]) -> str:
    """What was scored, in a line."""
    pixels = scores["pixels"]
    size = f"{pixels / 1e6:.1f} Mpx" if pixels >= 1e5 else f"{pixels} px"
    return f"{size} scored, {scores['unlabelled_share']:.1%} unlabelled"
