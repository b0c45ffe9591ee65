"""`rsseg demo-scene`: a drawn orthophoto, and its exact label map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo_scene(
    output: Annotated[
        Path, typer.Argument(metavar="OUT.tif", help="GeoTIFF to write: red, green, blue; UTM zone 32N.")
    ],
    size: Annotated[int, typer.Option(help="Width and height, px: 64 to 20000.", metavar="PX")] = 2048,
    seed: Annotated[
        int, typer.Option(help="Another number is another place, season and light.", metavar="N")
    ] = 0,
    gsd: Annotated[float, typer.Option(help="Metres a pixel on the ground: 0.1 to 1.5.", metavar="M")] = 0.3,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="LABELS.tif",
            help="Write the exact label map too: 0 building, 1 land, 2 road, 3 vegetation, 4 water.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Draw an orthophoto with roads, houses, trees, fields and water, to try things on.

    Example: rsseg demo-scene scene.tif --size 4096 --seed 7 --labels labels.tif
    """
    from rsseg_cli.data.synthetic.scene import write_scene

    write_scene(output, size=size, seed=seed, gsd_m=gsd, labels_path=labels, overwrite=overwrite)
    for path in (output, *([] if labels is None else [labels])):
        typer.echo(path)
