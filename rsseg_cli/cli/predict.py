"""`rsseg predict`: map the land cover of a scene, or of many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rsseg_cli.batch import BatchSettings, SceneTask
from rsseg_cli.cli import options as opt
from rsseg_cli.cli.batch import are_many, output_folder, ray_engine, run_scenes
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.progress import StageBars
from rsseg_cli.cli.tables import summary
from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig, option
from rsseg_cli.errors import UsageError

if TYPE_CHECKING:
    from rsseg_cli.batch import RayEngine

BATCH = BatchSettings(folder=Path(), model="")
Scenes = Annotated[
    list[str],
    opt.argument(
        "SCENE...",
        "Any raster GDAL reads: GeoTIFF, VRT, /vsicurl/https://..., s3://... . Several: scenes, "
        "globs, folders, @LIST.txt, - for a list on standard input, a STAC ItemCollection.",
    ),
]
Jobs = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N|auto",
        help="Worker processes: for one scene, of its polygons; for several, of the scenes. Default for "
        "several: one, or one per GPU; auto: one per GPU, or one for every 4 cores.",
    ),
]
Refine = Annotated[
    bool,
    typer.Option(
        "--refine",
        help="Redraw class boundaries with a refiner; all outputs show the refined map. The options from "
        "--refiner to --uncertainty apply to it.",
    ),
]
Asset = Annotated[
    str,
    opt.option(
        "NAME",
        "Name or role of the assets of a STAC ItemCollection that are the scenes; red,green,blue "
        "joins assets of one band each. Default: role data, or visual.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is made of a scene; of many, in a folder: then the rest are endings of names, and a format."""

    # fmt: off
    output: Path | None = option(
        None,
        "Map of class indices, 255 without data. Default: SCENE_MODEL.tif beside a local scene, in the "
        "current folder for a remote one. For several scenes, the folder of their maps. Here and below it "
        "may be s3://, gs:// or az://, to be uploaded to.",
        "--output", "-o", metavar="OUT.tif|OUT_DIR",
    )
    model: str = option(
        "landcover", "A bundled model, or the path of a .safetensors or .onnx file.", metavar="NAME|PATH"
    )
    confidence: str | None = option(
        None,
        "Also write the probability of the mapped class, 0-254 for 0-1; the refiner's, for refined "
        "pixels. For several scenes, here and below: the ending of the files' names, such as _sure.",
        metavar="FILE.tif",
    )
    probabilities: str | None = option(
        None, "Also write every class's probability, a band each; the refiner's, for refined pixels.",
        metavar="FILE.tif",
    )
    heatmaps: str | None = option(
        None, "Also write BiCoR-Seg's last class heatmaps, a band each.", metavar="FILE.tif"
    )
    preview: str | None = option(None, "Also draw the scene with the map over it.", metavar="FILE.png")
    html: str | None = option(
        None,
        "Also write a page to look at without a GIS: scene and map with a divider, class areas and, with "
        "--vector, polygons under the pointer. One file of 10 MB at most, which loads nothing.",
        metavar="FILE.html",
    )
    stac: Path | None = option(
        None, "Also write a STAC Item of each map, named after it, in this folder.", metavar="DIR"
    )
    vector: str | None = option(
        None,
        "Also write the map's polygons: .gpkg .fgb .parquet .geojson .shp; for several scenes only "
        "the format, such as gpkg. The options from --min-area to --jobs apply to them.",
        metavar="FILE|FORMAT",
    )
    # fmt: on

    def layers(self, uncertainty: str | None) -> dict[str, Any]:
        """Further rasters and the picture, by kind."""
        kinds = ("confidence", "probabilities", "heatmaps", "uncertainty", "preview", "html")
        names = {**vars(self), "uncertainty": uncertainty}
        return {kind: names[kind] for kind in kinds if names[kind] is not None}


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the scenes are mapped."""

    # fmt: off
    engine: Literal["local", "ray"] = option(
        "local", "local: this machine. ray: workers of a Ray cluster, see docs/scale.md (rsseg[ray])."
    )
    ray_address: str | None = option(
        None,
        "The Ray cluster: auto for the one that this machine belongs to. Default: $RAY_ADDRESS, "
        "else a cluster on this machine, for this run only.",
        metavar="auto|HOST:PORT",
    )
    split_above: float | None = option(
        None,
        "With --engine ray: split scenes of more megapixels among all workers; each other scene "
        "goes to one worker. Default: 400; a single scene is always split.",
        metavar="MPX",
    )
    # fmt: on


@from_settings
def predict_command(
    scenes: Scenes,
    *,
    outputs: Annotated[Outputs, Options()],
    polygons: Annotated[
        VectorConfig,
        Options(
            "min_area_m2 fill_holes_m2 simplify_m smooth regularize max_shift_m regularize_classes classes "
            "dissolve dst_crs layer format qml"
        ),
    ],
    jobs: Jobs = None,
    refine: Refine = False,
    refinement: Annotated[RefineConfig, Options("refiner steps band_m ensemble seed")],
    uncertainty: opt.Uncertainty = None,
    batch: Annotated[
        dict[str, Any], Options("suffix manifest resume skip_existing keep_tree mosaic", of=(BATCH,))
    ],
    asset: Asset = "",
    run_by: Annotated[Workers, Options()],
    config: Annotated[PredictConfig, Options()],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Map the land cover of one or many scenes.

    A map has the grid of its scene. A scene that fails does not stop the others: the manifest states its
    error, and the exit code is 3.

    Example: rsseg predict scene.tif -o map.tif --model landcover --confidence sure.tif --preview map.png

    Example: rsseg predict sheets/*.tif -o maps --vector gpkg --jobs auto
    """
    workers = opt.parse_jobs(jobs)
    if not refine and (refinement != RefineConfig() or uncertainty is not None):
        raise UsageError("options about refining need --refine")
    is_batch = are_many(scenes, outputs.output, asked=bool(asset or batch.keys() - {"resume"}))
    ray = None
    if run_by.engine == "ray":
        ray = ray_engine(run_by.ray_address, run_by.split_above, workers, config.device, split=not is_batch)
    elif run_by != Workers():
        raise UsageError("--ray-address and --split-above need --engine ray")
    jobs_of_polygons = workers if not is_batch and ray is None else None
    if outputs.vector is None and (polygons != VectorConfig() or jobs_of_polygons is not None):
        raise UsageError("options about polygons need --vector FILE")
    layers = outputs.layers(uncertainty)
    settings: dict[str, Any] = {
        "model": outputs.model,
        "config": config,
        "refine": replace(refinement, tile_size=config.tile_size) if refine else None,
    }
    if is_batch:
        run_scenes(
            scenes,
            BatchSettings(
                folder=output_folder(outputs.output), layers=layers, vector=outputs.vector or "",
                stac=outputs.stac,
                vector_config=polygons, **settings, **batch,
            ),
            asset=asset, jobs=workers, ray=ray, as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    opt.show(
        _map_one(scenes[0], outputs, settings, layers, polygons, workers, ray, "resume" in batch, quiet),
        summary, as_json=as_json,
    )  # fmt: skip


def _map_one(
    scene: str,
    outputs: Outputs,
    settings: dict[str, Any],
    layers: dict[str, Any],
    polygons: VectorConfig,
    workers: int | None,
    ray: RayEngine | None,
    resume: bool,
    quiet: bool,
) -> Any:
    from rsseg_cli.pipeline import predict
    from rsseg_cli.weights import read_spec

    target = outputs.output or default_output(scene, read_spec(outputs.model).name)
    if outputs.stac is not None:
        from rsseg_cli.batch import run

        run.make_folder(outputs.stac)
        layers = {**layers, "stac": outputs.stac / f"{target.stem}.json"}
    with StageBars({"map": "tile", "write": "row", "trace": "row"}, hidden=quiet) as bars:
        mapped = partial(bars.show, "map")
        if ray is None:
            return predict(
                scene, target, vector=outputs.vector, resume=resume, progress=mapped, stages=bars.show,
                vector_config=replace(polygons, jobs=workers or 0), **settings, **layers,
            )  # fmt: skip
        paths = {"labels": str(target), **layers, "vector": outputs.vector}
        task = SceneTask(
            index=0, scene=scene, vector=polygons, resume=resume, **settings,
            outputs={kind: Path(path) for kind, path in paths.items() if path is not None},
        )  # fmt: skip
        return ray.run_one(task, mapped)


def default_output(scene: str, model_name: str) -> Path:
    """SCENE_MODEL.tif beside a local scene, in the current folder for a remote one."""
    from rsseg_cli.batch import scenes

    folder = Path() if scenes.is_gdal_name(scene) else Path(scene).parent
    return folder / f"{scenes.stem_of(scene)}_{model_name}.tif"
