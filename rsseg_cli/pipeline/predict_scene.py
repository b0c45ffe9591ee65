"""Predict a scene: a map, its probabilities, picture and polygons."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from rsseg_cli.config import Dtype, PredictConfig, RefineConfig, Tta, VectorConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.pipeline.frame import ScenePlan, run_scene
from rsseg_cli.pipeline.job import Model, prepare
from rsseg_cli.pipeline.passes import Passes, Progress
from rsseg_cli.pipeline.refinement import prepare_for_job
from rsseg_cli.pipeline.result import PredictResult


class PredictSettings(TypedDict, total=False):
    """Fields of `PredictConfig` by keyword, for calls that set one or two."""

    tile_size: int
    overlap: int
    batch_size: int | Literal["auto"]
    tta: Tta
    device: str
    dtype: Dtype
    bands: tuple[int, ...] | None
    nodata: float | None
    gsd_m: float | None
    bbox: tuple[float, float, float, float] | None
    aoi: Path | None
    creation_options: Mapping[str, str]
    overwrite: bool
    readers: int


def predict(
    scene: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: Model,
    config: PredictConfig | None = None,
    confidence: str | os.PathLike[str] | None = None,
    probabilities: str | os.PathLike[str] | None = None,
    heatmaps: str | os.PathLike[str] | None = None,
    preview: str | os.PathLike[str] | None = None,
    vector: str | os.PathLike[str] | None = None,
    vector_config: VectorConfig | None = None,
    refine: RefineConfig | None = None,
    uncertainty: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    passes: Passes | None = None,
    **settings: Unpack[PredictSettings],
) -> PredictResult:
    """Map the land cover of a scene: a raster of class indices on the scene's own grid, and other outputs.

    All outputs appear together when they are complete, or none. Memory does not grow with the scene's height.
    Temporary files lie in the folder `.OUTPUT.rsseg` beside the output; a run that is killed or stopped
    leaves it for the next one. A `RssegError` says what is wrong and what to do; then nothing was written.

    Args:
        scene: anything that GDAL reads: a path, /vsicurl/..., s3://...
        output: GeoTIFF of class indices: uint8, 255 where the scene has no data.
        model: name of a bundled model, path of a model file, or a network with its spec.
        confidence: GeoTIFF of the probability of the class in the map, 0-254 for 0-1, 255 no data.
        preview: PNG of the scene with the map over it.
        vector: the map's polygons: GeoPackage, FlatGeobuf, GeoParquet, GeoJSON or Shapefile.
        vector_config: settings of the polygons; `overwrite` is that of `config`.
        refine: redraw the boundaries by a refiner, see `refine`. Class, confidence and probabilities of the
            pixels that it looks at are the refiner's, all others the model's; polygons, picture and areas
            are of the refined map.
        uncertainty: of the refiner, see `refine`.
        progress: called with tiles done and tiles in all, those of refining included.
        resume: continue where an earlier run of the same call was killed or stopped. If there was none, or it
            was another call, or the scene has changed since, start over with a warning.
        passes: runs the networks elsewhere; None for this process. The outputs are written by this one.
        settings: fields of `config`, in place of its own.
    """
    wanted = {
        "labels": output,
        "confidence": confidence,
        "probabilities": probabilities,
        "heatmaps": heatmaps,
        "preview": preview,
        "vector": vector,
        "uncertainty": uncertainty,
    }
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    if refine is None and uncertainty is not None:
        raise UsageError("--uncertainty is the disagreement of a refiner's samples; needs --refine")

    def check(config: PredictConfig) -> ScenePlan:
        job = prepare(os.fspath(scene), paths, model, config, vector_config)
        refinement = None
        if refine is not None:
            job, refinement = prepare_for_job(job, model, refine)
        inputs = [os.fspath(scene), *job.info.files, *([str(config.aoi)] if config.aoi else [])]
        return ScenePlan(job=job, inputs=inputs, model=model, refinement=refinement)

    chosen = replace(config or PredictConfig(), **settings)
    return run_scene(paths, chosen, check, progress=progress, resume=resume, passes=passes)
