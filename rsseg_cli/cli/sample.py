"""`rsseg sample`: draw points at which to check a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rsseg_cli.accuracy import config as kinds
from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.progress import Bar


@from_settings
def sample_command(
    labels: opt.ClassMap,
    output: Annotated[Path, opt.output("FILE", "Points: .gpkg .geojson .fgb")],
    *,
    config: Annotated[kinds.SampleConfig, Options()],
    chips: Annotated[
        Path | None, opt.option("FOLDER", "Also write a picture of the scene around each point.")
    ] = None,
    image: Annotated[
        str | None, opt.option("SCENE", "Scene of the pictures. Default: the one that the map names.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Draw points at which to check a map.

    Fill in the field "class" of each point, in QGIS from a list, and pass the file to `rsseg assess`. Points
    are in random order: the first ones are a sample too.

    Example: rsseg sample map.tif -n 600 -o points.gpkg
    """
    from rsseg_cli.accuracy import draw_sample

    with Bar("read", "row", hidden=quiet) as bar:
        result = draw_sample(labels, output, config, chips=chips, image=image, progress=bar.show)
    opt.show(result, summary, as_json=as_json)


def summary(result: Any) -> str:
    """Word the path of the file and how many points each stratum has."""
    width = max(map(len, result.strata))
    lines = [f"{result.path}: {result.points} points"]
    lines += [
        f"  {name:<{width}}  {points:>6}  {share:>7.2%} of the area"
        for name, (points, share) in result.strata.items()
    ]
    if result.standard_error is not None:
        lines.append(f"  expected standard error of the overall accuracy: {result.standard_error:.3f}")
    return "\n".join(lines)
