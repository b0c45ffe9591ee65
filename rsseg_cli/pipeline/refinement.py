"""What is to be refined, checked before a model is loaded or a byte written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rasterio.io import MemoryFile

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.inference import Scaling, windows
from rsseg_cli.pipeline.grids import Grids, find_grids
from rsseg_cli.pipeline.job import Job, check_outputs, scaling_of
from rsseg_cli.pipeline.result import Refined
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, classes, gdal
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, load_model, read_spec, registry

DEFAULT_BAND_PX = 8  # of a refiner that names no band, px that it sees
DEFAULT_SAMPLES = 4  # whose disagreement is asked for
Refiner = str | os.PathLike[str] | TrainedModel
_log = logging.getLogger("rsseg_cli")


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A refinement that was checked and may begin.

    Attributes:
        refiner: to load.
        spec: its description.
        info: of the scene, as it is read.
        bands: of it, 1-based, in the refiner's order.
        map: the grid of the refined map.
        order: the refiner's class of each class of the map.
        band_m: half the width of the band that may change, m.
        samples: to average.
        run: device, dtype, batch size and threads.
        kept: what must live as long as the scene is read.
    """

    refiner: Refiner
    spec: ModelSpec
    info: SceneInfo
    bands: tuple[int, ...]
    scaling: Scaling
    frame: windows.Frame
    map: Grid
    order: tuple[int, ...]
    band_m: float
    samples: int
    config: RefineConfig
    run: PredictConfig
    kept: MemoryFile | None = field(default=None, repr=False)

    def load(self) -> TrainedModel:
        return self.refiner if isinstance(self.refiner, TrainedModel) else load_model(self.refiner)

    def scene_reader(self) -> SceneReader:
        """Reads the scene as the refiner sees it."""
        return SceneReader(self.info, self.bands, self.frame.seen)

    @property
    def settings(self) -> dict[str, object]:
        """What made the refined map, for its tags."""
        config = self.config
        return {
            "steps": config.steps,
            "band_m": self.band_m,
            "ensemble": self.samples,
            "seed": config.seed,
            "tile_size": config.tile_size,
            "overlap": config.overlap,
            "gsd_m": config.gsd_m,
            "dtype": self.run.dtype,
            "bands": self.bands,
            "nodata": self.run.nodata,
            "bbox": self.run.bbox,
            "factors": self.scaling.factors,
            "offsets": self.scaling.offsets,
        }

    def result(
        self, *, steps: int, windows: int, windows_run: int, band_pixels: int, changed_pixels: int
    ) -> Refined:
        """What to tell of it when it is done."""
        return Refined(
            refiner=self.spec.name,
            steps=steps,
            band_m=self.band_m,
            ensemble=self.samples,
            seed=self.config.seed,
            windows=windows,
            windows_run=windows_run,
            band_pixels=band_pixels,
            changed_pixels=changed_pixels,
        )


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """A class raster that is refined.

    Attributes:
        bands: its classes, then what goes with them.
        table: class of a value, see `classes.ClassMatch`.
        window: (row, col, height, width) that is mapped.
    """

    info: SceneInfo
    bands: tuple[int, ...]
    table: classes.Labels
    window: tuple[int, int, int, int]

    def open(self) -> classes.ClassRaster:
        return classes.ClassRaster(self.info, self.table, bands=self.bands, window=self.window)


def prepare_for_job(
    job: Job, model: str | os.PathLike[str] | TrainedModel, config: RefineConfig
) -> tuple[Job, Refinement]:
    """Check the refinement of a map that is going to be predicted; the job gets its tags.

    Raises:
        ModelError: the model has no refiner, or one of other classes.
        SceneError, UsageError: the scene does not fit.
    """
    refiner = refiner_of(job.spec, model, config)
    spec = _refiner_spec(refiner)
    names = dict(enumerate(job.spec.class_names))
    match = classes.match(f"model {job.spec.name!r}", names, spec.name, spec.class_names)
    bands = _bands_of(job, spec)
    notes: list[str] = []
    window = (0, 0, job.grid.height, job.grid.width)
    grids = find_grids(job.info, bands, job.grid, window, spec, config.gsd_m, job.info.name, notes)
    refinement = _refinement(
        refiner,
        spec,
        grids,
        job.info,
        bands,
        match.order,
        config,
        job.config,
        "uncertainty" in job.paths,
        notes,
    )
    _tell(job.notes, [note for note in notes if note not in job.notes])
    settings = json.dumps(refinement.settings)
    tags = {"RSSEG_REFINER": spec.name, "RSSEG_REFINE_SETTINGS": settings}
    return replace(job, more_tags=tags), refinement


def refiner_of(
    spec: ModelSpec, model: str | os.PathLike[str] | TrainedModel, config: RefineConfig
) -> Refiner:
    """The refiner that is asked for, or else the one that belongs to the model.

    Raises:
        ModelError: none is asked for, and the model has none.
    """
    return config.refiner if config.refiner is not None else _refiner_of(spec, model)


def with_refiner(
    spec: ModelSpec, model: str | os.PathLike[str] | TrainedModel, config: RefineConfig
) -> RefineConfig:
    """The settings with a refiner whose classes are the model's, loaded: for many scenes.

    Raises:
        ModelError: the model has no refiner, or it is none.
        SceneError: its classes are others.
    """
    refiner = refiner_of(spec, model, config)
    found = _refiner_spec(refiner)
    classes.match(f"model {spec.name!r}", dict(enumerate(spec.class_names)), found.name, found.class_names)
    return replace(config, refiner=refiner if isinstance(refiner, TrainedModel) else load_model(refiner))


def prepare(
    scene: str,
    labels: str,
    paths: Mapping[str, Path],
    config: RefineConfig,
    run: PredictConfig,
) -> tuple[Job, Refinement, LabelSource]:
    """Check scene, map, refiner, outputs and settings against each other, without loading weights or writing.

    Raises:
        ModelError: no refiner is given or known, or it is none.
        SceneError: scene or map cannot be read, or do not fit each other or the refiner.
        OutputError, UsageError: outputs or settings.
    """
    found = SceneInfo.of(labels)
    made_by = _tags_of(labels)
    refiner = config.refiner if config.refiner is not None else _refiner_of_map(found.name, made_by)
    spec = _refiner_spec(refiner)
    band = classes.class_band(found)
    names = classes.read_names(labels)
    match = classes.match(found.name, names, spec.name, spec.class_names)
    notes = [match.note] if match.note else []
    info = SceneInfo.of(scene, run.nodata)
    inputs: list[str | Path] = [scene, labels, *info.files, *found.files]
    inputs += [] if isinstance(refiner, TrainedModel) else [Path(refiner)]
    check_outputs(paths, inputs, run)
    bands = info.select_bands(spec.bands, run.bands, spec.name)
    area = found.grid
    window = (0, 0, area.height, area.width) if run.bbox is None else area.window_of_bbox(run.bbox)
    grids = find_grids(info, bands, area, window, spec, config.gsd_m, found.name, notes)
    refinement = _refinement(
        refiner, spec, grids, info, bands, match.order, config, run, "uncertainty" in paths, notes
    )
    colours = classes.read_colours(labels) if names else {}
    shown = replace(spec, classes=_classes(spec, match.order, colours))
    tags = {
        "RSSEG_MODEL": made_by.get("RSSEG_MODEL", "unknown"),
        "RSSEG_REFINER": spec.name,
        "RSSEG_LABELS": found.name,
        "RSSEG_SCENE": info.name,
        "RSSEG_SETTINGS": json.dumps(refinement.settings),
    }
    job = Job(
        info=grids.info,
        bands=bands,
        grid=grids.map,
        network_grid=grids.map,
        area=None,
        spec=shown,
        scaling=refinement.scaling,
        config=run,
        paths=paths,
        notes=[],
        vector=VectorConfig(),
        more_tags=tags,
    )
    _tell(job.notes, notes)
    return job, refinement, LabelSource(info=found, bands=(band,), table=match.table, window=window)


def _refinement(
    refiner: Refiner,
    spec: ModelSpec,
    grids: Grids,
    info: SceneInfo,
    bands: tuple[int, ...],
    order: tuple[int, ...],
    config: RefineConfig,
    run: PredictConfig,
    uncertainty: bool,
    notes: list[str],
) -> Refinement:
    across, down = grids.frame.seen_gsd_m
    steps = config.steps if config.steps is not None else spec.refinement.get("steps")
    band_m = config.band_m or spec.refinement.get("band_m") or DEFAULT_BAND_PX * (across + down) / 2
    samples = config.ensemble or (DEFAULT_SAMPLES if uncertainty else 1)
    if uncertainty and samples < 2:
        from rsseg_cli.errors import UsageError

        raise UsageError("--uncertainty is the disagreement of samples; needs --ensemble 2 or more")
    return Refinement(
        refiner=refiner,
        spec=spec,
        info=grids.info,
        bands=bands,
        scaling=scaling_of(info, bands, spec, notes),
        frame=grids.frame,
        map=grids.map,
        order=order,
        band_m=float(band_m),
        samples=samples,
        config=replace(config, steps=steps),
        run=run,
        kept=grids.kept,
    )


def _refiner_of(spec: ModelSpec, model: str | os.PathLike[str] | TrainedModel) -> Refiner:
    """The refiner that belongs to a model: one that comes along, or a file beside the model's."""
    name = spec.refiner
    if name is None:
        with_one = [known for known in registry.list_models() if read_spec(known).refiner is not None]
        raise ModelError(
            f"model {spec.name!r} has no refiner of its own; pass --refiner NAME or PATH, or take "
            f"--model {' or '.join(with_one)}, which has one"
        )
    if name in registry.list_models():
        return name
    if not isinstance(model, TrainedModel) and Path(name).name == name:
        beside = registry.model_file(model).parent / f"{name}.safetensors"
        if beside.is_file():
            return beside
    raise ModelError(
        f"model {spec.name!r}: its refiner {name!r} does not come along, and no {name}.safetensors lies "
        "beside the model's file; pass --refiner PATH"
    )


def _refiner_of_map(where: str, tags: Mapping[str, str]) -> Refiner:
    """That of the model that a map names, if it comes along: a file may name anything."""
    name = tags.get("RSSEG_MODEL", "")
    if name in registry.list_models():
        return _refiner_of(read_spec(name), name)
    raise ModelError(f"{where}: does not name a model that comes along; pass --refiner NAME or PATH")


def _refiner_spec(refiner: Refiner) -> ModelSpec:
    spec = refiner.spec if isinstance(refiner, TrainedModel) else read_spec(refiner)
    if not spec.is_refiner:
        raise ModelError(f"--refiner: model {spec.name!r} makes maps and refines none; needs a refiner")
    return spec


def _bands_of(job: Job, spec: ModelSpec) -> tuple[int, ...]:
    """The scene's bands in the refiner's order; as chosen for the model, where that has them."""
    chosen = dict(zip(job.spec.bands, job.bands, strict=True))
    if all(name in chosen for name in spec.bands):
        return tuple(chosen[name] for name in spec.bands)
    return job.info.select_bands(spec.bands, None, spec.name)


def _classes(
    spec: ModelSpec, order: Sequence[int], colours: Mapping[int, tuple[int, int, int]]
) -> tuple[ClassSpec, ...]:
    """The map's classes in its order, in its own colours where it has them."""
    kept = len(set(colours.values())) >= len(order)
    classes = [spec.classes[index] for index in order]
    return tuple(
        replace(item, colour=colours.get(value, item.colour) if kept else item.colour)
        for value, item in enumerate(classes)
    )


def _tags_of(path: str) -> dict[str, str]:
    """The tags of a map that may be copied to another."""
    with gdal.env(path), gdal.errors(ModelError, path), gdal.open_raster(path) as dataset:
        tags = gdal.tags(dataset)
    return {
        key: value
        for key, value in tags.items()
        if key == "RSSEG_MODEL" and len(value) <= 100 and value.isprintable()
    }


def _tell(told: list[str], notes: Sequence[str]) -> None:
    for note in notes:
        told.append(note)
        _log.warning("%s", note)
