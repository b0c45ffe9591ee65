"""Options of refining, as several commands take them."""

from __future__ import annotations

from typing import Annotated

import typer

from rsseg_cli.config import RefineConfig

DEFAULTS = RefineConfig()

Refiner = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH",
        help="A refiner that comes along, or a .safetensors file. Default: the one that belongs to the "
        "model.",
    ),
]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Sampling steps. Default: the refiner's own.")]
BandM = Annotated[
    float | None,
    typer.Option(
        "--band-m",
        metavar="M",
        help="Only pixels this near to a boundary between classes may change, metres. Default: the "
        "refiner's.",
    ),
]
Ensemble = Annotated[
    int | None,
    typer.Option(
        metavar="K", help="Average so many samples. Default: 1, and 4 where --uncertainty is asked for."
    ),
]
Seed = Annotated[int, typer.Option(metavar="S", help="Of the refiner's noise.")]
Uncertainty = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.tif",
        help="Also write how far the refiner's samples disagree, 0-254 for 0-1: 0 where all say the same "
        "or none was drawn, 1 where each is sure of another class (mutual information, as a share of the "
        "most it can be).",
    ),
]


def refine_config(
    refiner: str | None,
    steps: int | None,
    band_m: float | None,
    ensemble: int | None,
    seed: int,
    *,
    tile_size: int = DEFAULTS.tile_size,
    overlap: int | None = None,
    gsd_m: float | None = None,
) -> RefineConfig:
    """The settings that these options tell."""
    if ensemble is not None and ensemble < 1:
        raise typer.BadParameter(f"{ensemble}: needs 1 or more", param_hint="--ensemble")
    return RefineConfig(
        refiner=refiner,
        steps=steps,
        band_m=band_m,
        ensemble=ensemble or 0,
        seed=seed,
        tile_size=tile_size,
        overlap=overlap,
        gsd_m=gsd_m,
    )


def require_refine(refine: bool, *given: object) -> None:
    """Refuse options about refining, None where they are not given, without it."""
    if not refine and any(value is not None for value in given):
        raise typer.BadParameter("options about refining need --refine", param_hint="--refine")
