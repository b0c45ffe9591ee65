"""`rsseg vectorize`: turn a class raster into polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.progress import Bar
from rsseg_cli.cli.tables import area_texts
from rsseg_cli.config import VectorConfig

if TYPE_CHECKING:
    from rsseg_cli.vector import VectorResult


@from_settings
def vectorize_command(
    labels: Annotated[
        str, opt.argument("LABELS.tif", "Raster of class indices, as rsseg predict writes it.")
    ],
    output: Annotated[Path, opt.output("FILE", "Vector file: .gpkg .fgb .parquet .geojson .shp")],
    *,
    confidence: Annotated[
        str | None,
        opt.option("C.tif", "Confidence of the map, from predict --confidence: adds mean and minimum."),
    ] = None,
    config: Annotated[VectorConfig, Options()],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Turn a class raster into polygons that share their edges.

    Example: rsseg vectorize map.tif -o map.gpkg --min-area 20 --simplify 1 --smooth
    """
    from rsseg_cli.vector import load_pyogrio, vectorize

    load_pyogrio()
    with Bar("trace", "row", hidden=quiet) as bar:
        result = vectorize(labels, output, config, confidence=confidence, progress=bar.show)
    opt.show(result, summary, as_json=as_json)


def summary(result: VectorResult) -> str:
    lines = [f"{result.path}, layer {result.layer}"]
    written = {name: item for name, item in result.classes.items() if item.polygons}
    width = max(map(len, written), default=0)
    areas = area_texts([item.area_m2 for item in written.values() if item.area_m2 is not None])
    for (name, item), area in zip(written.items(), areas or [""] * len(written), strict=True):
        lines.append(f"  {name:<{width}}  {item.polygons:>9}  {area:>12}".rstrip())
    lines.append(
        f"  {result.features} {'feature' if result.features == 1 else 'features'} in {result.seconds:.1f} s"
    )
    return "\n".join(lines)
