"""A refinement, checked before a model is loaded or a byte written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.inference import Scaling
from rsseg_cli.pipeline.grids import Grids, find_grids
from rsseg_cli.pipeline.job import Job, Model, check_outputs, scaling_of
from rsseg_cli.raster import SceneInfo, SceneReader, classes, gdal
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, load_model, read_spec, registry

DEFAULT_BAND_PX = 8  # of a refiner that names no band, px that it sees
DEFAULT_SAMPLES = 4  # where their disagreement is asked for


@dataclass(frozen=True, kw_only=True)
class Refinement(Grids):
    """A refinement that was checked and may begin.

    Attributes:
        refiner: to load; `spec` describes it.
        bands: of the scene, 1-based, in the refiner's order.
        order: the refiner's class of each class of the map.
        band_m: half the width of the band that may change.
    """

    refiner: Model
    spec: ModelSpec
    bands: tuple[int, ...]
    scaling: Scaling
    order: tuple[int, ...]
    band_m: float
    samples: int
    config: RefineConfig
    run: PredictConfig

    def load(self) -> TrainedModel:
        return self.refiner if isinstance(self.refiner, TrainedModel) else load_model(self.refiner)

    def scene_reader(self) -> SceneReader:
        """Return a reader of the scene as the refiner sees it."""
        return SceneReader(self.info, self.bands, self.frame.seen)

    @property
    def settings(self) -> dict[str, object]:
        """Settings that made the refined map, for its tags."""
        config = self.config
        return {
            "steps": config.steps, "band_m": self.band_m, "ensemble": self.samples, "seed": config.seed,
            "tile_size": config.tile_size, "overlap": config.overlap, "gsd_m": config.gsd_m,
            "dtype": self.run.dtype, "bands": self.bands, "nodata": self.run.nodata, "bbox": self.run.bbox,
            "factors": self.scaling.factors, "offsets": self.scaling.offsets,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """A class raster that is refined.

    Attributes:
        table: class of a value, see `ClassMatch`.
        window: (row, col, height, width) that is mapped.
    """

    info: SceneInfo
    bands: tuple[int, ...]
    table: classes.Labels
    window: tuple[int, int, int, int]

    def open(self) -> classes.ClassRaster:
        return classes.ClassRaster(self.info, self.table, bands=self.bands, window=self.window)


def prepare_for_job(job: Job, model: Model, config: RefineConfig) -> tuple[Job, Refinement]:
    """Check the refinement of a map that is going to be predicted; the job gets its tags."""
    refiner = refiner_of(job.spec, model, config)
    spec = _refiner_spec(refiner)
    order = _match(job.spec, spec).order
    bands = _bands_of(job, spec)
    notes: list[str] = []
    window = (0, 0, job.grid.height, job.grid.width)
    grids = find_grids(job.info, bands, job.grid, window, spec, config.gsd_m, job.info.name, notes)
    scaling = scaling_of(job.info, bands, spec, notes)
    uncertainty = "uncertainty" in job.paths
    refinement = _refinement(refiner, spec, grids, bands, scaling, order, config, job.config, uncertainty)
    job.warn(*(note for note in notes if note not in job.notes))
    settings = json.dumps(refinement.settings)
    tags = {"RSSEG_REFINER": spec.name, "RSSEG_REFINE_SETTINGS": settings}
    return replace(job, more_tags=tags), refinement


def refiner_of(spec: ModelSpec, model: Model, config: RefineConfig) -> Model:
    """Return the refiner that is asked for, or else the one that belongs to the model."""
    return cast("Model", config.refiner) if config.refiner is not None else _refiner_of(spec, model)


def with_refiner(spec: ModelSpec, model: Model, config: RefineConfig) -> RefineConfig:
    """Return the settings with a refiner whose classes are the model's, loaded: for many scenes."""
    refiner = refiner_of(spec, model, config)
    _match(spec, _refiner_spec(refiner))
    return replace(config, refiner=refiner if isinstance(refiner, TrainedModel) else load_model(refiner))


def _match(spec: ModelSpec, refiner: ModelSpec) -> classes.ClassMatch:
    """Match a model's classes to its refiner's."""
    names = dict(enumerate(spec.class_names))
    return classes.match(f"model {spec.name!r}", names, refiner.name, refiner.class_names)


def prepare(
    scene: str,
    labels: str,
    paths: Mapping[str, Path],
    config: RefineConfig,
    run: PredictConfig,
) -> tuple[Job, Refinement, LabelSource]:
    """Check scene, map, refiner, outputs and settings, without loading weights or writing."""
    map_info = SceneInfo.of(labels)
    made_by = _model_of_map(labels)
    refiner = cast("Model | None", config.refiner)
    refiner = _refiner_of_map(map_info.name, made_by) if refiner is None else refiner
    spec = _refiner_spec(refiner)
    band = classes.class_band(map_info)
    names = classes.read_names(labels)
    match = classes.match(map_info.name, names, spec.name, spec.class_names)
    notes = [match.note] if match.note else []
    info = SceneInfo.of(scene, run.nodata)
    inputs: list[str | Path] = [scene, labels, *info.files, *map_info.files]
    inputs += [] if isinstance(refiner, TrainedModel) else [Path(refiner)]
    check_outputs(paths, inputs, run)
    bands = info.select_bands(spec.bands, run.bands, spec.name)
    grid = map_info.grid
    window = (0, 0, grid.height, grid.width) if run.bbox is None else grid.window_of_bbox(run.bbox)
    grids = find_grids(info, bands, grid, window, spec, config.gsd_m, map_info.name, notes)
    scaling = scaling_of(info, bands, spec, notes)
    uncertainty = "uncertainty" in paths
    refinement = _refinement(refiner, spec, grids, bands, scaling, match.order, config, run, uncertainty)
    colours = classes.read_colours(labels) if names else {}
    tags = {
        "RSSEG_MODEL": made_by or "unknown",
        "RSSEG_REFINER": spec.name,
        "RSSEG_LABELS": map_info.name,
        "RSSEG_SCENE": info.name,
        "RSSEG_SETTINGS": json.dumps(refinement.settings),
    }
    job = Job(
        info=grids.info,
        bands=bands,
        grid=grids.map,
        network_grid=grids.map,
        area=None,
        spec=replace(spec, classes=_classes(spec, match.order, colours)),
        scaling=scaling,
        config=run,
        paths=paths,
        notes=[],
        vector=VectorConfig(),
        more_tags=tags,
    )
    job.warn(*notes)
    return job, refinement, LabelSource(info=map_info, bands=(band,), table=match.table, window=window)


def _refinement(
    refiner: Model,
    spec: ModelSpec,
    grids: Grids,
    bands: tuple[int, ...],
    scaling: Scaling,
    order: tuple[int, ...],
    config: RefineConfig,
    run: PredictConfig,
    uncertainty: bool,
) -> Refinement:
    steps = config.steps if config.steps is not None else spec.refinement.get("steps")
    band_m = (
        config.band_m or spec.refinement.get("band_m") or DEFAULT_BAND_PX * sum(grids.frame.seen_gsd_m) / 2
    )
    samples = config.ensemble or (DEFAULT_SAMPLES if uncertainty else 1)
    if uncertainty and samples < 2:
        raise UsageError("--uncertainty is the disagreement of samples; needs --ensemble 2 or more")
    return Refinement(
        **vars(grids),
        refiner=refiner,
        spec=spec,
        bands=bands,
        scaling=scaling,
        order=order,
        band_m=float(band_m),
        samples=samples,
        config=replace(config, steps=steps),
        run=run,
    )


def _refiner_of(spec: ModelSpec, model: Model) -> Model:
    """Return the refiner that belongs to a model: a bundled one, or a file beside the model's."""
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
        f"model {spec.name!r}: its refiner {name!r} is not bundled, and no {name}.safetensors lies beside "
        "the model's file; pass --refiner PATH"
    )


def _refiner_of_map(where: str, name: str) -> Model:
    """Return that of the model that a map names, if it is bundled: a file may name anything."""
    if name in registry.list_models():
        return _refiner_of(read_spec(name), name)
    raise ModelError(f"{where}: does not name a bundled model; pass --refiner NAME or PATH")


def _refiner_spec(refiner: Model) -> ModelSpec:
    spec = refiner.spec if isinstance(refiner, TrainedModel) else read_spec(refiner)
    if not spec.is_refiner:
        raise ModelError(f"--refiner: model {spec.name!r} makes maps and refines none; needs a refiner")
    return spec


def _bands_of(job: Job, spec: ModelSpec) -> tuple[int, ...]:
    """Return the scene's bands in the refiner's order; as chosen for the model, where it has them."""
    chosen = dict(zip(job.spec.bands, job.bands, strict=True))
    if all(name in chosen for name in spec.bands):
        return tuple(chosen[name] for name in spec.bands)
    return job.info.select_bands(spec.bands, None, spec.name)


def _classes(
    spec: ModelSpec, order: Sequence[int], colours: Mapping[int, tuple[int, int, int]]
) -> tuple[ClassSpec, ...]:
    """Return the map's classes in its order, in its own colours where it has them."""
    kept = len(set(colours.values())) >= len(order)
    classes = [spec.classes[index] for index in order]
    return tuple(
        replace(item, colour=colours.get(value, item.colour) if kept else item.colour)
        for value, item in enumerate(classes)
    )


def _model_of_map(path: str) -> str:
    """Return the name of the model that made a map; "" if its file does not say."""
    with gdal.env(path), gdal.errors(ModelError, path), gdal.open_raster(path) as dataset:
        name = gdal.tags(dataset).get("RSSEG_MODEL", "")
    return name if len(name) <= 100 and name.isprintable() else ""
