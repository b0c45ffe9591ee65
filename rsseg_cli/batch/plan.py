"""Plan a batch and check it before work starts: outputs, model, options."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rsseg_cli import files
from rsseg_cli.batch.scenes import BatchScene, is_gdal_name
from rsseg_cli.batch.settings import BatchSettings
from rsseg_cli.batch.task import SceneTask
from rsseg_cli.errors import ModelError, OutputError, UsageError
from rsseg_cli.raster import gdal
from rsseg_cli.weights import read_spec

ENDINGS = {"preview": ".png", "html": ".html"}  # of other files than rasters
MAX_NAMED = 5  # paths in a message


def check_model(settings: BatchSettings) -> str:
    """Check model, refiner, formats and area before any scene is opened; return the model's name."""
    from rsseg_cli.pipeline import refinement, result
    from rsseg_cli.raster import Area, RasterWriter
    from rsseg_cli.vector import check_classes

    spec = read_spec(settings.model)
    if spec.is_refiner:
        raise ModelError(f"model {spec.name!r} refines maps and makes none; pass it as --refiner")
    if "heatmaps" in settings.layers and spec.architecture != "bicor-seg":
        raise ModelError(f"model {spec.name!r} has no class heatmaps; leave out --heatmaps")
    if settings.refine is not None:
        refinement.with_refiner(spec, settings.model, settings.refine)
    renamed, _ = refinement.remapped(spec, settings.config.remap)
    if settings.vector:
        names = dict(enumerate(result.with_unsure(renamed, settings.config).class_names))
        check_classes(settings.vector_config, names, f"model {spec.name!r}")
    RasterWriter.check_options(settings.config.creation_options)
    if settings.config.aoi is not None:
        Area.read_polygons(settings.config.aoi)
    return spec.name


def with_common_stretch(settings: BatchSettings, scenes: Sequence[BatchScene]) -> BatchSettings:
    """Return the settings with the range that all scenes share, if they are to share one."""
    config, spec = settings.config, read_spec(settings.model)
    if config.stretch != "batch" or spec.scaling != "stretch":
        return settings
    from rsseg_cli.raster import SceneInfo

    paths = [scene.path for scene in scenes]
    ranges = SceneInfo.common_ranges(paths, spec.bands, config.bands, config.nodata, config.alpha)
    stretch = tuple(value for pair in ranges for value in pair)
    return replace(settings, config=replace(config, stretch=stretch or "auto"))


def make_folder(path: Path) -> None:
    """Create an output folder if needed; its parent must exist. Object stores have no folders."""
    if files.address_of(path):
        return
    try:
        path.mkdir(exist_ok=True)
    except OSError as err:
        advice = f" Make {path.parent} first." if not path.parent.is_dir() else ""
        raise OutputError(
            f"{path}: the folder for the outputs cannot be made ({err.strerror}).{advice}"
        ) from err
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in this folder")


def plan_tasks(scenes: Sequence[BatchScene], settings: BatchSettings, model_name: str) -> list[SceneTask]:
    """Plan one task a scene; no two share an output."""
    suffix = f"_{model_name}" if settings.suffix is None else settings.suffix
    tasks = [
        task_of(settings, scene.path, outputs_of(scene, settings, suffix), index=index)
        for index, scene in enumerate(scenes)
    ]
    check_names(tasks, settings)
    return tasks


def task_of(settings: BatchSettings, scene: str, outputs: dict[str, Path], *, index: int = 0) -> SceneTask:
    return SceneTask(
        index=index,
        scene=scene,
        outputs=outputs,
        model=settings.model,
        config=settings.config,
        vector=settings.vector_config,
        refine=settings.refine,
    )


def outputs_of(scene: BatchScene, settings: BatchSettings, suffix: str) -> dict[str, Path]:
    """Return output paths by kind: FOLDER/SCENE + suffix + extension."""
    if scene.stem in ("", ".", "..") or any(sign in scene.stem for sign in "/\\\0"):
        raise UsageError(f"{scene.path[:200]}: no output can be named after {scene.stem!r:.80}")
    folder = settings.folder / scene.folder if settings.keep_tree else settings.folder
    stem = scene.stem + suffix
    outputs = {"labels": folder / f"{stem}.tif"}
    for kind, more in settings.layers.items():
        outputs[kind] = folder / f"{stem}{more}{ENDINGS.get(kind, '.tif')}"
    if settings.vector:
        outputs["vector"] = folder / f"{stem}.{settings.vector.lower()}"
    if settings.stac is not None:
        items = settings.stac / scene.folder if settings.keep_tree else settings.stac
        outputs["stac"] = items / f"{stem}.json"
    return outputs


def check_names(tasks: Sequence[SceneTask], settings: BatchSettings) -> None:
    """Check that no output is another scene's, a scene or the manifest, case ignored."""
    inputs = {
        _name(Path(scene)): scene for task in tasks for scene in scenes_of(task) if not is_gdal_name(scene)
    }
    seen: dict[str, str] = {_name(settings.manifest_path): "the manifest"}
    for scene, path in _named_outputs(tasks):
        name = _name(path)
        if name in inputs:
            raise UsageError(
                f"{path}: is an output of {scene} and a scene itself; choose another --output or --suffix"
            )
        if name in seen:
            other = seen[name]
            twice = "is given twice" if other == scene else f"and {other} would both be written to {path}"
            advice = (
                "" if other == scene or settings.keep_tree else "; pass --keep-tree to keep their folders"
            )
            raise UsageError(f"{scene}: {twice}{advice}")
        seen[name] = scene


def scenes_of(task: SceneTask) -> list[str]:
    return [sheet.scene for sheet in task.sheets] or [task.scene]


def all_outputs(task: SceneTask) -> Iterator[Path]:
    """Yield every output of a task; for a mosaic, those of its sheets."""
    yield from (path for _, path in _named_outputs([task]))


def _named_outputs(tasks: Iterable[SceneTask]) -> Iterator[tuple[str, Path]]:
    for task in tasks:
        for sheet in task.sheets:
            yield from ((sheet.scene, path) for path in sheet.outputs.values())
        yield from ((task.scene, path) for kind, path in task.outputs.items() if kind not in task.work)


def _name(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


def check_existing(tasks: Sequence[SceneTask], known: Collection[int]) -> None:
    existing = [
        path
        for task in tasks
        if not task.config.overwrite and task.index not in known
        for path in all_outputs(task)
        if gdal.size_of(path) is not None
    ]
    if existing:
        more = f" and {len(existing) - MAX_NAMED} more" if len(existing) > MAX_NAMED else ""
        named = ", ".join(map(str, existing[:MAX_NAMED])) + more
        raise OutputError(
            f"{len(existing)} outputs exist: {named}. Pass --resume to continue a batch (its manifest lists "
            "what is done), --skip-existing to keep them, or --overwrite to replace them."
        )


def make_folders(tasks: Iterable[SceneTask]) -> None:
    folders = {path.parent for task in tasks for path in all_outputs(task) if not files.address_of(path)}
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OutputError(f"{folder}: cannot be made ({err.strerror})") from err
