"""`rsseg refine`: redraw the boundaries of a map along those of its scene."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.progress import StageBars
from rsseg_cli.cli.tables import summary
from rsseg_cli.config import PredictConfig, RefineConfig

RUN = "batch_size device runtime dtype bands nodata alpha stretch bbox creation_options overwrite"
RUN_HELP = {
    "batch_size": "Windows in a batch.",
    "bands": "Bands of the scene in the refiner's order, from 1. Default: by name.",
    "bbox": "Refine only this area, in the map's CRS.",
}


@from_settings
def refine_command(
    scene: Annotated[
        str, opt.argument("SCENE", "The mapped raster; warped where its grid is not the map's.")
    ],
    labels: Annotated[
        str,
        opt.argument("LABELS.tif", "Class raster of any model with the refiner's classes, matched by name."),
    ],
    output: Annotated[Path, opt.output("REFINED.tif", "The refined map, on the grid of LABELS.tif.")],
    *,
    config: Annotated[RefineConfig, Options("refiner steps band_m ensemble seed tile_size overlap gsd_m")],
    uncertainty: opt.Uncertainty = None,
    preview: opt.Preview = None,
    run: Annotated[PredictConfig, Options(RUN, help=RUN_HELP)],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume a stopped run from its last finished rows; start over, with a warning, where there "
            "is none or its settings differ.",
        ),
    ] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Redraw the class boundaries of a map where the scene has them.

    Only pixels near a boundary between classes may change; windows without one are not run.

    Example: rsseg refine scene.tif map.tif -o refined.tif --refiner buildings-refiner
    """
    from rsseg_cli.pipeline import refine

    with StageBars({"refine": "window", "write": "row"}, hidden=quiet) as bars:
        result = refine(
            scene, labels, output, config=config, run=run, uncertainty=uncertainty, preview=preview,
            progress=partial(bars.show, "refine"), stages=bars.show, resume=resume,
        )  # fmt: skip
    opt.show(result, summary, as_json=as_json)
