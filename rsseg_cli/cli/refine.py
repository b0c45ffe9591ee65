"""`rsseg refine`: a map in, the same map with its boundaries on the image's out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from rsseg_cli.cli.options import (
    REFINE_DEFAULTS,
    BandM,
    Ensemble,
    Refiner,
    Seed,
    Steps,
    Uncertainty,
    parse_bands,
    parse_batch_size,
    parse_creation_options,
    refine_config,
)
from rsseg_cli.cli.progress import Bar
from rsseg_cli.cli.tables import summary
from rsseg_cli.config import PredictConfig

RUN_DEFAULTS = PredictConfig()


def refine_command(
    scene: Annotated[
        str,
        typer.Argument(
            metavar="SCENE", help="The raster that was mapped; warped where its grid is not the map's."
        ),
    ],
    labels: Annotated[
        str,
        typer.Argument(
            metavar="LABELS.tif",
            help="Class raster of any model with the refiner's classes, matched by name.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="REFINED.tif", help="The refined map, on the grid of LABELS.tif."
        ),
    ],
    refiner: Refiner = None,
    steps: Steps = None,
    band_m: BandM = None,
    ensemble: Ensemble = None,
    seed: Seed = REFINE_DEFAULTS.seed,
    uncertainty: Uncertainty = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also draw the scene with the map over it."),
    ] = None,
    tile_size: Annotated[
        int, typer.Option(metavar="PX", help="Side of a window, px; rounded up to what the refiner takes.")
    ] = REFINE_DEFAULTS.tile_size,
    overlap: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="What neighbouring windows share, px: 0 to half a window. Default: as much as the refiner "
            "looks around, so that the windows cannot be seen.",
        ),
    ] = REFINE_DEFAULTS.overlap,
    batch_size: Annotated[str, typer.Option(metavar="N|auto", help="Windows that run at once.")] = str(
        RUN_DEFAULTS.batch_size
    ),
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")
    ] = RUN_DEFAULTS.device,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Arithmetic; auto is bfloat16 on CUDA, float32 elsewhere."),
    ] = RUN_DEFAULTS.dtype,
    bidx: Annotated[
        str | None,
        typer.Option(
            "--bidx",
            "-b",
            metavar="1,2,3",
            help="Bands of the scene in the refiner's order, from 1. Default: by name.",
        ),
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE", help="Value of the scene's pixels without data, beside the file's own mask."
        ),
    ] = None,
    gsd: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="Ground resolution that the refiner sees, metres a pixel. Default: its own, where the "
            "map's does not suit it.",
        ),
    ] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(metavar="LEFT BOTTOM RIGHT TOP", help="Refine this part alone; in the map's CRS."),
    ] = None,
    co: Annotated[
        list[str] | None,
        typer.Option("--co", metavar="KEY=VALUE", help="GDAL creation option of the outputs; repeatable."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a run that was stopped, from its last finished rows; begin anew, with a "
            "warning, where there is none or it was another.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Draw the class boundaries of a map where the scene has them.

    Only pixels near a boundary between classes may change; windows without one are not run.

    Example: rsseg refine scene.tif map.tif -o refined.tif --refiner buildings-refiner
    """
    config = refine_config(
        refiner, steps, band_m, ensemble, seed, tile_size=tile_size, overlap=overlap, gsd_m=gsd
    )
    run = PredictConfig(
        batch_size=parse_batch_size(batch_size),
        device=device,
        dtype=dtype,
        bands=parse_bands(bidx),
        nodata=nodata,
        bbox=bbox,
        creation_options=parse_creation_options(co or []),
        overwrite=overwrite,
    )
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    from rsseg_cli.pipeline import refine

    with Bar("window", hidden=quiet) as bar:
        result = refine(
            scene,
            labels,
            output,
            config=config,
            run=run,
            uncertainty=uncertainty,
            preview=preview,
            progress=bar.show,
            resume=resume,
        )
    typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else summary(result))
