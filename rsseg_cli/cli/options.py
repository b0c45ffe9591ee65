"""Options of a network's run over a scene, and what their texts mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rsseg_cli.batch import RayEngine
from pathlib import Path

from rsseg_cli.config import RefineConfig, VectorConfig

EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine", help="local: this machine. ray: workers of a Ray cluster, see docs/scale.md (rsseg[ray])."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT",
        help="The Ray cluster: auto for the one that this machine belongs to. Default: $RAY_ADDRESS, else a "
        "cluster of this machine alone, for this run.",
    ),
]
SplitAbove = Annotated[
    float | None,
    typer.Option(
        metavar="MPX",
        help="With --engine ray: scenes of more megapixels are shared out among all workers, others go to "
        "one each. Default: 400; a scene that is the only one is always shared out.",
    ),
]


def ray_engine(
    engine: str,
    address: str | None,
    split_mpx: float | None,
    *,
    jobs: int | None,
    device: str,
    alone: bool,
) -> RayEngine | None:
    """The engine, where Ray is asked for.

    Args:
        jobs: workers; None or 0 for as many as the cluster has places for.
        alone: there is but one scene.

    Raises:
        UsageError: Ray is not installed, or the device is none of its workers'.
    """
    if engine == "local":
        if address is not None or split_mpx is not None:
            raise typer.BadParameter(
                "--ray-address and --split-above need --engine ray", param_hint="--engine"
            )
        return None
    if split_mpx is not None and not split_mpx >= 0:
        raise typer.BadParameter(f"{split_mpx}: needs megapixels, 0 or more", param_hint="--split-above")
    from rsseg_cli.batch import RayEngine

    split_px = (0 if alone else None) if split_mpx is None else int(split_mpx * 1e6)
    return RayEngine(address=address, workers=jobs or None, device=device, split_px=split_px)


REFINE_DEFAULTS = RefineConfig()

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
    tile_size: int = REFINE_DEFAULTS.tile_size,
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


VECTOR_DEFAULTS = VectorConfig()

MinArea = Annotated[
    float,
    typer.Option(
        "--min-area",
        metavar="M2",
        help="Give objects below this area on the ground to the neighbour with the longest shared edge.",
    ),
]
Simplify = Annotated[
    float,
    typer.Option(
        "--simplify",
        metavar="M",
        help="Take out corners that stand out by less than a square of this side, metres on the ground; "
        "shared edges stay shared.",
    ),
]
Smooth = Annotated[
    bool,
    typer.Option(
        "--smooth", help="Round corners; boundaries are simplified by a pixel first, or --simplify."
    ),
]
FillHoles = Annotated[
    float,
    typer.Option("--fill-holes", metavar="M2", help="Fill holes below this area, those without data too."),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes", metavar="NAME,NAME", help="Write these classes alone, by name or index. Default: all."
    ),
]
Dissolve = Annotated[
    bool, typer.Option("--dissolve", help="One multipolygon a class, not a polygon an object.")
]
DstCrs = Annotated[
    str,
    typer.Option(
        "--dst-crs", metavar="CRS", help="CRS of the polygons, as EPSG:4326. Default: the raster's."
    ),
]
LayerName = Annotated[
    str, typer.Option("--layer", metavar="NAME", help="Name of the layer. Default: the file's.")
]
Format = Annotated[
    Literal["auto", "GPKG", "FlatGeobuf", "GeoParquet", "GeoJSON", "Shapefile"],
    typer.Option("--format", help="auto goes by the ending: .gpkg .fgb .parquet .geojson .shp ."),
]
Qml = Annotated[
    bool, typer.Option("--qml", help="Write a QGIS style beside the file; a GeoPackage carries its own.")
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", metavar="N", help="Worker processes; 0 is one a core for large rasters."),
]


def class_list(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


TileSize = Annotated[
    int, typer.Option(metavar="PX", help="Side of a tile, px: a multiple of 32; of the refiner's too.")
]
Overlap = Annotated[
    int, typer.Option(metavar="PX", help="What neighbouring tiles share, px: 0 to half a tile.")
]
BatchSize = Annotated[str, typer.Option(metavar="N|auto", help="Tiles that run at once.")]
Tta = Annotated[
    Literal["none", "flip", "d4", "scales"],
    typer.Option(
        help="Average over flipped (4 times the work) or flipped and turned views (8 times), or the tile "
        "and the tile at twice its size (5 times)."
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Arithmetic = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Arithmetic; auto is bfloat16 on CUDA, float32 elsewhere."),
]
Bidx = Annotated[
    str | None,
    typer.Option(
        "--bidx",
        "-b",
        metavar="1,2,3",
        help="Bands of the scene in the model's order, from 1. Default: by name.",
    ),
]
Nodata = Annotated[
    float | None,
    typer.Option(metavar="VALUE", help="Value of pixels without data, beside the file's own mask."),
]
Gsd = Annotated[
    float | None,
    typer.Option(
        metavar="M",
        help="Ground resolution that the network sees, metres a pixel. Default: the model's, where the "
        "scene's does not suit it.",
    ),
]
Bbox = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option(metavar="LEFT BOTTOM RIGHT TOP", help="Map this part alone; in the scene's CRS."),
]
Aoi = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Vector file; pixels outside its polygons are left out."),
]
Co = Annotated[
    list[str] | None,
    typer.Option("--co", metavar="KEY=VALUE", help="GDAL creation option of the outputs; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]


def parse_batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r}: needs a number of tiles, or auto", param_hint="--batch-size")
    return int(text)


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as err:
        raise typer.BadParameter(
            f"{text!r}: needs bands from 1 with commas between, as 4,3,2", param_hint="--bidx"
        ) from err


def parse_creation_options(pairs: list[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{pair!r}: needs KEY=VALUE, as COMPRESS=ZSTD", param_hint="--co")
        options[key] = value
    return options


def parse_jobs(text: str | None) -> int | None:
    """0 for auto; None where it is not given."""
    if text is None or text == "auto":
        return None if text is None else 0
    if not text.isdecimal() or int(text) > 256:
        raise typer.BadParameter(f"{text!r}: needs 1 to 256, or auto", param_hint="--jobs")
    return int(text)
