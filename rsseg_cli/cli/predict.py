"""`rsseg predict`: a scene in, its land-cover map out; or many."""

from __future__ import annotations

import json
import logging
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

import typer

from rsseg_cli.cli import batch as many
from rsseg_cli.cli import options as run
from rsseg_cli.cli.options import (
    REFINE_DEFAULTS,
    VECTOR_DEFAULTS,
    BandM,
    ClassNames,
    Dissolve,
    DstCrs,
    EngineName,
    Ensemble,
    FillHoles,
    Format,
    LayerName,
    MinArea,
    Qml,
    RayAddress,
    Refiner,
    Seed,
    Simplify,
    Smooth,
    SplitAbove,
    Steps,
    Uncertainty,
    class_list,
    ray_engine,
    refine_config,
    require_refine,
)
from rsseg_cli.cli.progress import Bar
from rsseg_cli.cli.tables import summary
from rsseg_cli.config import PredictConfig, VectorConfig

DEFAULTS = PredictConfig()
DEFAULT_MODEL = "landcover"


def predict_command(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE...",
            help="Any raster GDAL reads: GeoTIFF, VRT, /vsicurl/https://..., s3://... . Many: several of "
            "them, globs, folders, @LIST.txt, - for a list on standard input, a STAC ItemCollection.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.tif|OUT_DIR",
            help="Map of class indices, 255 without data. Default: SCENE_MODEL.tif beside a local scene, "
            "in the current folder for a remote one. Of many scenes the folder of their maps.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="A model that comes along, or a .safetensors file.")
    ] = DEFAULT_MODEL,
    confidence: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write the probability of the mapped class, 0-254 for 0-1; of pixels that were "
            "refined the refiner's. Of many scenes, here and below: what the files' names end in, as _sure.",
        ),
    ] = None,
    probabilities: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write every class's probability, a band each; of pixels that were refined the "
            "refiner's.",
        ),
    ] = None,
    heatmaps: Annotated[
        str | None,
        typer.Option(metavar="FILE.tif", help="Also write BiCoR-Seg's last class heatmaps, a band each."),
    ] = None,
    preview: Annotated[
        str | None,
        typer.Option(metavar="FILE.png", help="Also draw the scene with the map over it."),
    ] = None,
    vector: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FORMAT",
            help="Also write the map's polygons: .gpkg .fgb .parquet .geojson .shp ; of many scenes the "
            "format alone, as gpkg. The options from --min-area to --jobs are about them.",
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
    jobs: many.Jobs = None,
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
    suffix: many.Suffix = None,
    manifest: many.Manifest = None,
    resume: many.Resume = False,
    skip_existing: many.SkipExisting = False,
    keep_tree: many.KeepTree = False,
    mosaic: many.Mosaic = False,
    asset: many.AssetName = "",
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    split_above: SplitAbove = None,
    tile_size: run.TileSize = DEFAULTS.tile_size,
    overlap: run.Overlap = DEFAULTS.overlap,
    batch_size: run.BatchSize = str(DEFAULTS.batch_size),
    tta: run.Tta = DEFAULTS.tta,
    device: run.Device = DEFAULTS.device,
    dtype: run.Arithmetic = DEFAULTS.dtype,
    bidx: run.Bidx = None,
    nodata: run.Nodata = None,
    gsd: run.Gsd = None,
    bbox: run.Bbox = None,
    aoi: run.Aoi = None,
    co: run.Co = None,
    overwrite: run.Overwrite = False,
    as_json: run.Json = False,
    quiet: run.Quiet = False,
) -> None:
    """Map the land cover of a scene, on the scene's own grid; or of many scenes.

    One that fails does not stop the others: the manifest tells its error, and the exit code is 3.

    Example: rsseg predict scene.tif -o map.tif --model landcover --confidence sure.tif --preview map.png

    Example: rsseg predict sheets/*.tif -o maps --vector gpkg --jobs auto
    """
    config = PredictConfig(
        tile_size=tile_size,
        overlap=overlap,
        batch_size=run.parse_batch_size(batch_size),
        tta=tta,
        device=device,
        dtype=dtype,
        bands=run.parse_bands(bidx),
        nodata=nodata,
        gsd_m=gsd,
        bbox=bbox,
        aoi=aoi,
        creation_options=run.parse_creation_options(co or []),
        overwrite=overwrite,
    )
    workers = run.parse_jobs(jobs)
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
    )
    refinement = refine_config(refiner, steps, band_m, ensemble, seed, tile_size=tile_size)
    require_refine(refine, refiner, steps, band_m, ensemble, seed or None, uncertainty)
    asked = bool(suffix is not None or manifest or skip_existing or keep_tree or mosaic or asset)
    is_batch = many.are_many(scenes, output, asked=asked)
    ray = ray_engine(
        engine, ray_address, split_above, jobs=workers, device=device, alone=not is_batch and len(scenes) == 1
    )
    many_jobs = is_batch or ray is not None
    if vector is None and (polygons != VECTOR_DEFAULTS or (workers is not None and not many_jobs)):
        raise typer.BadParameter("options about polygons need --vector FILE", param_hint="--vector")
    if quiet:
        logging.getLogger("rsseg_cli").setLevel(logging.ERROR)
    layers = {
        "confidence": confidence,
        "probabilities": probabilities,
        "heatmaps": heatmaps,
        "preview": preview,
        "uncertainty": uncertainty,
    }
    if is_batch:
        from rsseg_cli.batch import BatchSettings
        from rsseg_cli.cli.batch import run_scenes

        settings = BatchSettings(
            folder=many.output_folder(output),
            model=model,
            suffix=suffix,
            layers={kind: text for kind, text in layers.items() if text is not None},
            vector=vector or "",
            config=config,
            vector_config=polygons,
            refine=refinement if refine else None,
            keep_tree=keep_tree,
            mosaic=mosaic,
            manifest=manifest,
            resume=resume,
            skip_existing=skip_existing,
        )
        run_scenes(scenes, settings, asset=asset, jobs=workers, ray=ray, as_json=as_json, quiet=quiet)
        return
    from dataclasses import replace

    from rsseg_cli.pipeline import predict
    from rsseg_cli.weights import read_spec

    target = output or default_output(scenes[0], read_spec(model).name)
    if ray is not None:
        from rsseg_cli.batch import SceneTask

        paths = {"labels": target, **layers, "vector": vector}
        task = SceneTask(
            index=0,
            scene=scenes[0],
            outputs={kind: Path(path) for kind, path in paths.items() if path is not None},
            model=model,
            config=config,
            vector=polygons,
            refine=refinement if refine else None,
            resume=resume,
        )
        with Bar("tile", hidden=quiet) as bar:
            result = ray.run_one(task, bar.show)
        typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else summary(result))
        return
    with Bar("tile", hidden=quiet) as bar:
        result = predict(
            scenes[0],
            target,
            model=model,
            config=config,
            **cast(Any, layers),  # output by kind
            vector=vector,
            vector_config=replace(polygons, jobs=workers or 0),
            refine=refinement if refine else None,
            resume=resume,
            progress=bar.show,
        )
    typer.echo(json.dumps(result.as_dict(), indent=2) if as_json else summary(result))


def default_output(scene: str, model_name: str) -> Path:
    """SCENE_MODEL.tif beside a local scene, in the current folder for a remote one."""
    remote = scene.startswith("/vsi") or "://" in scene
    name = PurePosixPath(scene.partition("?")[0]).stem if remote else Path(scene).stem
    folder = Path() if remote else Path(scene).parent
    return folder / f"{name}_{model_name}.tif"
