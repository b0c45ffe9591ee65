"""`rsseg vectorize`: a class raster in, polygons out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsseg_cli.cli.options import (
    VECTOR_DEFAULTS,
    ClassNames,
    Dissolve,
    DstCrs,
    FillHoles,
    Format,
    Jobs,
    LayerName,
    MinArea,
    Qml,
    Simplify,
    Smooth,
    class_list,
)
from rsseg_cli.cli.progress import Bar
from rsseg_cli.config import VectorConfig

if TYPE_CHECKING:
    from rsseg_cli.vector import VectorResult


def vectorize_command(
    labels: Annotated[
        str, typer.Argument(metavar="LABELS.tif", help="Raster of class indices, as rsseg predict writes it.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Vector file: .gpkg .fgb .parquet .geojson .shp ."
        ),
    ],
    confidence: Annotated[
        str | None,
        typer.Option(
            metavar="C.tif", help="Confidence of the map, from predict --confidence: adds mean and minimum."
        ),
    ] = None,
    min_area: MinArea = VECTOR_DEFAULTS.min_area_m2,
    fill_holes: FillHoles = VECTOR_DEFAULTS.fill_holes_m2,
    simplify: Simplify = VECTOR_DEFAULTS.simplify_m,
    smooth: Smooth = VECTOR_DEFAULTS.smooth,
    classes: ClassNames = None,
    dissolve: Dissolve = VECTOR_DEFAULTS.dissolve,
    dst_crs: DstCrs = VECTOR_DEFAULTS.dst_crs,
    layer: LayerName = VECTOR_DEFAULTS.layer,
    format_name: Format = VECTOR_DEFAULTS.format,
    qml: Qml = VECTOR_DEFAULTS.qml,
    jobs: Jobs = VECTOR_DEFAULTS.jobs,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Turn a class raster into polygons that share their edges.

    Example: rsseg vectorize map.tif -o map.gpkg --min-area 20 --simplify 1 --smooth
    """
    config = VectorConfig(
        simplify_m=simplify,
        smooth=smooth,
        min_area_m2=min_area,
        fill_holes_m2=fill_holes,
        classes=class_list(classes),
        dissolve=dissolve,
        dst_crs=dst_crs,
        layer=layer,
        format=format_name,
        qml=qml,
        jobs=jobs,
        overwrite=overwrite,
    )
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    from rsseg_cli.vector import vectorize

    with Bar("row", hidden=quiet) as bar:
        result = vectorize(labels, output, config, confidence=confidence, progress=bar.show)
    typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else summary(result))


def summary(result: VectorResult) -> str:
    """Where the file lies and what is in it."""
    from rsseg_cli.cli.tables import area_texts

    lines = [f"{result.path}, layer {result.layer}"]
    found = {name: item for name, item in result.classes.items() if item.polygons}
    width = max(map(len, found), default=0)
    areas = area_texts([item.area_m2 for item in found.values() if item.area_m2 is not None])
    for (name, item), area in zip(found.items(), areas or [""] * len(found), strict=True):
        lines.append(f"  {name:<{width}}  {item.polygons:>9}  {area:>12}".rstrip())
    lines.append(
        f"  {result.features} {'feature' if result.features == 1 else 'features'} in {result.seconds:.1f} s"
    )
    return "\n".join(lines)
