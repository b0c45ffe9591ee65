"""Refine the boundaries of a map: a second pass of a diffusion model, where classes meet."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.pipeline.frame import ScenePlan, run_scene
from rsseg_cli.pipeline.passes import Progress
from rsseg_cli.pipeline.predict_scene import PredictSettings
from rsseg_cli.pipeline.refinement import prepare
from rsseg_cli.pipeline.result import PredictResult


def refine(
    scene: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: RefineConfig | None = None,
    run: PredictConfig | None = None,
    uncertainty: str | os.PathLike[str] | None = None,
    preview: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    **settings: Unpack[PredictSettings],
) -> PredictResult:
    """Redraw the class boundaries of a map where the image has them.

    Only windows with a boundary are run, and only pixels in a band around boundaries may change, from one
    class to another; pixels without a class or without scene data stay as they are. The result does not
    depend on how the scene is cut into windows as long as these overlap by as much as the network looks
    around. Memory does not grow with the scene's height.

    Args:
        scene: anything that GDAL reads; on another grid or in another CRS than the map it is warped to it.
        labels: class raster of any model whose classes are the refiner's, matched by name.
        output: GeoTIFF of the refined map, on the grid of `labels`.
        run: how the scene is read and the network run; tiling, `tta`, `gsd_m` and `aoi` are not used, `bbox`
            is in the CRS of `labels`.
        uncertainty: GeoTIFF of the samples' disagreement, 0-254 for 0-1, 255 no data: the mutual information
            between class and sample, as a share of the largest that so many samples can have. 0 where all
            samples agree or none was drawn, 1 where each is certain of another class.
        preview: PNG of the scene with the map over it.
        resume: continue an earlier run of the same call, see `predict`.
        settings: fields of `run`, in place of its own.
    """
    wanted = {"labels": output, "uncertainty": uncertainty, "preview": preview}
    paths = {kind: Path(path) for kind, path in wanted.items() if path is not None}

    def check(run: PredictConfig) -> ScenePlan:
        job, refinement, source = prepare(
            os.fspath(scene), os.fspath(labels), paths, config or RefineConfig(), run
        )
        inputs = [os.fspath(scene), os.fspath(labels), *refinement.info.files, *source.info.files]
        return ScenePlan(job=job, inputs=inputs, refinement=refinement, labels=source)

    chosen = replace(run or PredictConfig(), **settings)
    return run_scene(paths, chosen, check, progress=progress, resume=resume)
