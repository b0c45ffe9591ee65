"""`rsseg demo`: draw a scene, map it, score the map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.errors import OutputError

GSD_M = 0.35  # of the demonstration: `landcover` reads it as it is
FILES = ("scene.tif", "labels.tif", "map.tif", "preview.png")
Seed = Annotated[int, opt.option("N", "Each number is another place, season and light.")]


def demo_scene(
    output: Annotated[Path, opt.argument("OUT.tif", "GeoTIFF to write: red, green, blue; UTM zone 32N.")],
    size: Annotated[int, opt.option("PX", "Width and height, px: 64 to 20000.")] = 2048,
    seed: Seed = 0,
    gsd: Annotated[float, opt.option("M", "Metres a pixel on the ground: 0.1 to 1.5.")] = 0.3,
    style: Annotated[
        str,
        opt.option(
            "NAME",
            "classic: eight kinds of place; any: one of all, in any light and season; or suburb, town, "
            "rural, desert, coast, industry, tropics, dense, vineyards, ploughland, greenhouses, solar, "
            "terraces, wetland, conifers, scrub, snow, oldtown, informal, flatroofs, villas, lakeshore.",
        ),
    ] = "classic",
    labels: Annotated[
        Path | None,
        opt.option(
            "LABELS.tif", "Also write the exact label map: 0 building, 1 land, 2 road, 3 vegetation, 4 water."
        ),
    ] = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Draw an artificial orthophoto.

    It shows roads, houses, trees, fields and water, to try things on.

    Example: rsseg demo-scene scene.tif --size 4096 --seed 7 --labels labels.tif
    """
    from rsseg_cli.data import synthetic

    synthetic.write_scene(
        output, size=size, seed=seed, gsd_m=gsd, style=style, labels_path=labels, overwrite=overwrite
    )
    for path in (output, *([] if labels is None else [labels])):
        typer.echo(path)


def demo_command(
    output: Annotated[Path, opt.output("FOLDER", "Folder for the files; created if needed.")] = Path("demo"),
    size: Annotated[int, opt.option("PX", "Width and height of the scene, px.")] = 2048,
    seed: Seed = 0,
    model: opt.Model = "landcover",
    overwrite: opt.Overwrite = False,
) -> None:
    """Draw a scene, map it, and score the map.

    The map is scored against the exact labels of the drawing.

    Example: rsseg demo -o demo
    """
    from rsseg_cli.data import synthetic
    from rsseg_cli.evaluation import PairConfig, score_pair
    from rsseg_cli.pipeline import predict
    from rsseg_cli.weights import read_spec

    read_spec(model)  # fails before anything is drawn
    scene, labels, land_cover, picture = (output / name for name in FILES)
    _make_folder(output, overwrite)
    synthetic.write_scene(scene, size=size, seed=seed, gsd_m=GSD_M, labels_path=labels, overwrite=overwrite)
    typer.echo(f"scene    {scene}: {size} x {size} px, drawn; its exact labels: {labels}")
    result = predict(scene, land_cover, model=model, preview=picture, overwrite=overwrite)
    typer.echo(f"map      {land_cover}: {result.seconds:.1f} s; open it in QGIS")
    typer.echo(f"picture  {picture}: the scene, the map over it, its legend")
    scores = score_pair(str(land_cover), str(labels), PairConfig()).scores
    rows = [(row["name"], row["iou"]) for row in scores["classes"]]
    by_class = ", ".join(f"{name} {'-' if iou is None else f'{iou:.2f}'}" for name, iou in rows)
    typer.echo(f"IoU      {scores['miou']:.2f} against the drawn labels: {by_class}")


def _make_folder(folder: Path, overwrite: bool) -> None:
    """Make the folder; refuse before anything is drawn where a file would be replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder}: cannot be made ({err})") from err
    present = [name for name in FILES if (folder / name).exists()]
    if present and not overwrite:
        raise OutputError(f"{folder}: {', '.join(present)} exist already; pass --overwrite to replace them")
