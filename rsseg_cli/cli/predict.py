"""`rsseg predict`: a scene in, its land-cover map out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rsseg_cli.cli.progress import Bar
from rsseg_cli.cli.refine_options import DEFAULTS as REFINE_DEFAULTS
from rsseg_cli.cli.refine_options import (
    BandM,
    Ensemble,
    Refiner,
    Seed,
    Steps,
    Uncertainty,
    refine_config,
    require_refine,
)
from rsseg_cli.cli.vector_options import DEFAULTS as VECTOR_DEFAULTS
from rsseg_cli.cli.vector_options import (
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
from rsseg_cli.config import PredictConfig, VectorConfig

if TYPE_CHECKING:
    from rsseg_cli.result import PredictResult, Refined

DEFAULTS = PredictConfig()
DEFAULT_MODEL = "landcover"


def predict_command(
    scene: Annotated[
        str,
        typer.Argument(
            metavar="SCENE", help="Any raster GDAL reads: GeoTIFF, VRT, /vsicurl/https://..., s3://... ."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.tif",
            help="Map of class indices, 255 without data. Default: SCENE_MODEL.tif beside a local scene, "
            "in the current folder for a remote one.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="A model that comes along, or a .safetensors file.")
    ] = DEFAULT_MODEL,
    confidence: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write the probability of the mapped class, 0-254 for 0-1; of pixels that were "
            "refined the refiner's.",
        ),
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write every class's probability, a band each; of pixels that were refined the "
            "refiner's.",
        ),
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write BiCoR-Seg's last class heatmaps, a band each.",
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also draw the scene with the map over it."),
    ] = None,
    vector: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the map's polygons: .gpkg .fgb .parquet .geojson .shp ; the options from "
            "--min-area to --jobs are about them.",
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
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Draw class boundaries anew by a refiner; all outputs are of the refined map. The options "
            "from --refiner to --uncertainty are about it.",
        ),
    ] = False,
    refiner: Refiner = None,
    steps: Steps = None,
    band_m: BandM = None,
    ensemble: Ensemble = None,
    seed: Seed = REFINE_DEFAULTS.seed,
    uncertainty: Uncertainty = None,
    tile_size: Annotated[
        int, typer.Option(metavar="PX", help="Side of a tile, px: a multiple of 32; of the refiner's too.")
    ] = DEFAULTS.tile_size,
    overlap: Annotated[
        int,
        typer.Option(metavar="PX", help="What neighbouring tiles share, px: 0 to half a tile."),
    ] = DEFAULTS.overlap,
    batch_size: Annotated[str, typer.Option(metavar="N|auto", help="Tiles that run at once.")] = str(
        DEFAULTS.batch_size
    ),
    tta: Annotated[
        Literal["none", "flip", "d4"],
        typer.Option(
            help="Average over flipped (4 times the work) or flipped and turned views (8 times).",
        ),
    ] = DEFAULTS.tta,
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps."),
    ] = DEFAULTS.device,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Arithmetic; auto is bfloat16 on CUDA, float32 elsewhere."),
    ] = DEFAULTS.dtype,
    bidx: Annotated[
        str | None,
        typer.Option(
            "--bidx",
            "-b",
            metavar="1,2,3",
            help="Bands of the scene in the model's order, from 1. Default: by name.",
        ),
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="Value of pixels without data, beside the file's own mask.",
        ),
    ] = None,
    gsd: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="Ground resolution that the network sees, metres a pixel. Default: the model's, where the "
            "scene's does not suit it.",
        ),
    ] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="LEFT BOTTOM RIGHT TOP",
            help="Map this part alone; in the scene's CRS.",
        ),
    ] = None,
    aoi: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Vector file; pixels outside its polygons are left out.",
        ),
    ] = None,
    co: Annotated[
        list[str] | None,
        typer.Option(
            "--co",
            metavar="KEY=VALUE",
            help="GDAL creation option of the outputs; repeatable.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Map the land cover of a scene, on the scene's own grid.

    Example: rsseg predict scene.tif -o map.tif --model landcover --confidence sure.tif --preview map.png
    """
    config = PredictConfig(
        tile_size=tile_size,
        overlap=overlap,
        batch_size=parse_batch_size(batch_size),
        tta=tta,
        device=device,
        dtype=dtype,
        bands=parse_bands(bidx),
        nodata=nodata,
        gsd_m=gsd,
        bbox=bbox,
        aoi=aoi,
        creation_options=parse_creation_options(co or []),
        overwrite=overwrite,
    )
    polygons = VectorConfig(
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
    )
    if vector is None and polygons != VECTOR_DEFAULTS:
        raise typer.BadParameter("options about polygons need --vector FILE", param_hint="--vector")
    refinement = refine_config(refiner, steps, band_m, ensemble, seed, tile_size=tile_size)
    require_refine(refine, refiner, steps, band_m, ensemble, seed or None, uncertainty)
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    from rsseg_cli.weights.registry import read_spec

    target = output or default_output(scene, read_spec(model).name)
    from rsseg_cli.pipeline import predict

    with Bar("tile", hidden=quiet) as bar:
        result = predict(
            scene,
            target,
            model=model,
            config=config,
            confidence=confidence,
            probabilities=probabilities,
            heatmaps=heatmaps,
            preview=preview,
            vector=vector,
            vector_config=polygons,
            refine=refinement if refine else None,
            uncertainty=uncertainty,
            progress=bar.show,
        )
    typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else summary(result))


def default_output(scene: str, model_name: str) -> Path:
    """SCENE_MODEL.tif beside a local scene, in the current folder for a remote one."""
    remote = scene.startswith("/vsi") or "://" in scene
    name = PurePosixPath(scene.partition("?")[0]).stem if remote else Path(scene).stem
    folder = Path() if remote else Path(scene).parent
    return folder / f"{name}_{model_name}.tif"


def summary(result: PredictResult) -> str:
    """Where the outputs lie and how the classes share the scene."""
    lines = [str(path) for path in result.paths.values()]
    width = max(map(len, result.classes))
    areas = [extent.area_m2 for extent in result.classes.values()]
    texts = [f"  {text:>12}" for text in area_texts([area for area in areas if area is not None])]
    for (name, extent), area in zip(result.classes.items(), texts or [""] * len(areas), strict=True):
        lines.append(f"  {name:<{width}}  {extent.share:7.2%}{area}")
    empty = 1 - result.valid_pixels / result.pixels
    size = f"{result.pixels / 1e6:.1f} Mpx" if result.pixels >= 1e5 else f"{result.pixels} px"
    lines.append(f"  {size}, {empty:.1%} without data, in {result.seconds:.1f} s")
    if result.refined is not None:
        lines.append(refined_summary(result.refined, result.valid_pixels))
    return "\n".join(lines)


def refined_summary(refined: Refined, valid_pixels: int) -> str:
    """How much of the map was looked at, and how much changed."""
    share = refined.changed_pixels / max(1, valid_pixels)
    windows = f"{refined.windows_run} of {refined.windows} windows run"
    return f"  refined by {refined.refiner}: {windows}, {share:.2%} of the pixels changed"


def area_texts(areas_m2: Sequence[float]) -> list[str]:
    """Areas in the unit that suits the largest: m2, from 1 ha on ha, from 1 km2 on km2."""
    largest = max(areas_m2, default=0.0)
    unit, size = ("m2", 1.0) if largest < 1e4 else ("ha", 1e4) if largest < 1e6 else ("km2", 1e6)
    return [f"<0.01 {unit}" if 0 < area < 0.005 * size else f"{area / size:.2f} {unit}" for area in areas_m2]


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
