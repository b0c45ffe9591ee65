"""`rsseg change`: what changed between two maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rsseg_cli.accuracy import config as kinds
from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.messages import say
from rsseg_cli.cli.progress import Bar
from rsseg_cli.config import VectorConfig


@from_settings
def change_command(
    before: Annotated[str, opt.argument("BEFORE.tif", "Earlier map, as rsseg predict writes it.")],
    after: Annotated[
        str, opt.argument("AFTER.tif", "Later map of the same classes, on any grid, in any CRS.")
    ],
    output: Annotated[Path, opt.output("FILE.tif", "Raster of changes, on the earlier map's grid.")],
    *,
    vector: Annotated[
        Path | None,
        opt.option("FILE", "Also write polygons of the changes: .gpkg .fgb .parquet .geojson .shp"),
    ] = None,
    config: Annotated[kinds.ChangeConfig, Options()],
    confidence_before: Annotated[
        str | None, opt.option("C.tif", "Confidence of the earlier map, from predict --confidence.")
    ] = None,
    confidence_after: Annotated[str | None, opt.option("C.tif", "Confidence of the later map.")] = None,
    polygons: Annotated[VectorConfig, Options("min_area_m2 simplify_m smooth dst_crs")],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Map what changed between two maps, and measure the areas.

    Value 0 is unchanged, 1 unsure (--min-confidence), 2 and up are kinds of change, named in the file. Areas
    are pixel counts and biased as those of any map; `rsseg sample` and `rsseg assess` on the raster of
    changes give estimates with intervals.

    Example: rsseg change map_2019.tif map_2024.tif -o change.tif --tolerance 2 --vector change.gpkg
    """
    from rsseg_cli import vector as vectors
    from rsseg_cli.accuracy import find_changes
    from rsseg_cli.raster import SceneInfo

    settings = replace(polygons, overwrite=config.overwrite)
    if vector is not None:
        crs = SceneInfo.of(before).grid.wkt
        vectors.check_output(vector, settings, crs=crs, names={}, where=before, inputs=[before, after])
    with Bar("compare", "row", hidden=quiet) as bar:
        result = find_changes(
            before, after, output, config, confidence_before=confidence_before,
            confidence_after=confidence_after, progress=bar.show,
        )  # fmt: skip
    if vector is not None:
        occurring = tuple(map(str, result.occurring()))
        if occurring:
            vectors.vectorize(output, vector, replace(settings, classes=occurring))
        else:
            say(f"rsseg: {vector}: not written, as nothing changed")
    opt.show(result, summary, as_json=as_json)


def summary(result: Any) -> str:
    """Word the kinds of change by area."""
    figures = result.as_dict()
    unit = "ha" if result.in_m2 else "px"
    rows = [(f"{item['from']} to {item['to']}", item[f"area_{unit}"]) for item in figures["changes"]]
    rows = sorted([row for row in rows if row[1] > 0], key=lambda row: -row[1])
    rows.append(("unsure", figures[f"unsure_{unit}"]))
    rows.append(("different, but not counted", figures[f"not_counted_{unit}"]))
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [str(result.path), *(f"  {name:<{width}}  {area:>14,.2f} {unit}" for name, area in rows)]
    )
