"""A refinement, checked before a model is loaded or a byte written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig
from rsseg_cli.errors import ModelError, SceneError, UsageError
from rsseg_cli.inference import Scaling, windows
from rsseg_cli.pipeline.job import Job, Model, check_outputs, network_grid, open_model, scaling_of, spec_of
from rsseg_cli.pipeline.job import remapped as remapped
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, classes, gdal
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, read_spec, registry

DEFAULT_BAND_PX = 8  # of a refiner that names no band, px that it sees
DEFAULT_SAMPLES = 4  # where their disagreement is asked for


ALIGNED_PX = 1e-3


@dataclass(frozen=True, kw_only=True)
class Grids:
    """Scene and map on common ground; the file of `vrt_owner` must live as long as the scene is read."""

    frame: windows.Frame
    map: Grid
    info: SceneInfo
    vrt_owner: MemoryFile | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Refinement(Grids):
    """A refinement that was checked and may begin.

    Attributes:
        order: the refiner's class of each class of the map.
        band_m: half the width of the band that may change.
        merge: of the job.
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
    merge: tuple[tuple[int, ...], ...] = ()

    def load(self) -> TrainedModel:
        return open_model(self.refiner)

    def scene_reader(self) -> SceneReader:
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
    """A class raster of which a window (row, col, height, width) is refined; `table` as in `ClassMatch`."""

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
    order = _match(spec_of(model), spec).order
    bands, notes, window = _bands_of(job, spec), list[str](), (0, 0, job.grid.height, job.grid.width)
    grids = find_grids(job.info, bands, job.grid, window, spec, config.gsd_m, job.info.name, notes)
    scaling = scaling_of(job.info, bands, spec, job.config, notes)
    refinement = _refinement(refiner, grids, bands, scaling, order, config, job.config, job.paths)
    refinement = replace(refinement, merge=job.merge)
    job.notes.extend(note for note in job.info.notes if note not in job.notes)
    job.warn(*(note for note in notes if note not in job.notes))
    tags = {"RSSEG_REFINER": spec.name, "RSSEG_REFINE_SETTINGS": json.dumps(refinement.settings)}
    return replace(job, more_tags={**job.more_tags, **tags}), refinement


def with_refiner(spec: ModelSpec, model: Model, config: RefineConfig) -> RefineConfig:
    """Return the settings with a refiner whose classes are the model's, for many scenes."""
    refiner = refiner_of(spec, model, config)
    _match(spec, _refiner_spec(refiner))
    return replace(config, refiner=open_model(refiner))


def _match(spec: ModelSpec, refiner: ModelSpec) -> classes.ClassMatch:
    names = dict(enumerate(spec.class_names))
    return classes.match(f"model {spec.name!r}", names, refiner.name, refiner.class_names)


def prepare(
    scene: str, labels: str, paths: Mapping[str, Path], config: RefineConfig, run: PredictConfig
) -> tuple[Job, Refinement, LabelSource]:
    """Check scene, map, refiner, outputs and settings, without loading weights or writing."""
    map_info = SceneInfo.of(labels)
    made_by = _model_of_map(labels)
    refiner = _refiner_of_map(map_info.name, made_by, config)
    spec = _refiner_spec(refiner)
    band = classes.class_band(map_info)
    names = classes.read_names(labels)
    match = classes.match(map_info.name, names, spec.name, spec.class_names)
    notes = [match.note] if match.note else []
    info = SceneInfo.of(scene, run.nodata, run.alpha).in_colour(spec.bands, run.bands)
    inputs: list[str | Path] = [scene, labels, *info.files, *map_info.files]
    inputs += [] if isinstance(refiner, TrainedModel) else [Path(refiner)]
    check_outputs(paths, inputs, run)
    bands = info.select_bands(spec.bands, run.bands, spec.name)
    grid = map_info.grid
    window = (0, 0, grid.height, grid.width) if run.bbox is None else grid.window_of_bbox(run.bbox)
    grids = find_grids(info, bands, grid, window, spec, config.gsd_m, map_info.name, notes)
    scaling = scaling_of(info, bands, spec, run, notes)
    refinement = _refinement(refiner, grids, bands, scaling, match.order, config, run, paths)
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
    job.notes.extend(info.notes + map_info.notes)
    job.warn(*notes)
    return job, refinement, LabelSource(info=map_info, bands=(band,), table=match.table, window=window)


def _refinement(
    refiner: Model,
    grids: Grids,
    bands: tuple[int, ...],
    scaling: Scaling,
    order: tuple[int, ...],
    config: RefineConfig,
    run: PredictConfig,
    paths: Mapping[str, Path],
) -> Refinement:
    spec = _refiner_spec(refiner)
    default_m = DEFAULT_BAND_PX * sum(grids.frame.seen_gsd_m) / 2
    uncertainty = "uncertainty" in paths
    samples = config.ensemble or (DEFAULT_SAMPLES if uncertainty else 1)
    if uncertainty and samples < 2:
        raise UsageError("--uncertainty is the disagreement of samples; needs --ensemble 2 or more")
    steps = config.steps if config.steps is not None else spec.refinement.get("steps")
    return Refinement(
        **vars(grids), refiner=refiner, spec=spec, bands=bands, scaling=scaling, order=order, samples=samples,
        band_m=float(config.band_m or spec.refinement.get("band_m") or default_m),
        config=replace(config, steps=steps), run=run,
    )  # fmt: skip


def refiner_of(spec: ModelSpec, model: Model, config: RefineConfig) -> Model:
    """Return the refiner that is asked for, or the model's: a bundled one, or a file beside the model's."""
    if config.refiner is not None:
        return cast("Model", config.refiner)
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


def _refiner_of_map(where: str, name: str, config: RefineConfig) -> Model:
    """Return the refiner of the model that a map names, if it is bundled: a file may name anything."""
    if config.refiner is not None:
        return cast("Model", config.refiner)
    if name in registry.list_models():
        return refiner_of(read_spec(name), name, config)
    raise ModelError(f"{where}: does not name a bundled model; pass --refiner NAME or PATH")


def _refiner_spec(refiner: Model) -> ModelSpec:
    spec = spec_of(refiner)
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


def find_grids(
    info: SceneInfo,
    bands: Sequence[int],
    labels: Grid,
    window: tuple[int, int, int, int],
    spec: ModelSpec,
    asked_gsd_m: float | None,
    labels_name: str,
    notes: list[str],
) -> Grids:
    """Align scene and map, a `window` of which is refined; choose the resolution that the refiner sees."""
    by_pixel = (labels.crs is None or info.grid.crs is None) and _size(labels) == _size(info.grid)
    offset = (0, 0) if by_pixel else _offset(info.grid, labels)
    base = labels if offset is None else info.grid
    seen = network_grid(base, spec, asked_gsd_m, labels_name if offset is None else info.name, notes)
    scale = (1.0, 1.0) if seen == base else (seen.height / base.height, seen.width / base.width)
    gsd_m = base.gsd_m
    if gsd_m is None:
        side = spec.assumed_gsd_m or 1.0
        gsd_m = (side, side)
        if spec.assumed_gsd_m is None:
            notes.append(f"{info.name}: has no CRS; the band around boundaries is taken in pixels")
    frame = windows.Frame(
        seen=seen, scale=scale, offset=offset or (0, 0), labels=_size(labels), window=window, gsd_m=gsd_m
    )
    shown = (info.grid if by_pixel else labels).window(*window)
    if offset is not None or _is_readable(info, bands, seen):
        return Grids(frame=frame, map=shown, info=info)
    _check_overlap(info, labels, labels_name)
    warped, owner = _warp(info, seen)
    return Grids(frame=frame, map=shown, info=warped, vrt_owner=owner)


def _size(grid: Grid) -> tuple[int, int]:
    return grid.height, grid.width


def _offset(scene: Grid, labels: Grid) -> tuple[int, int] | None:
    """Return (row, col) of the scene where the labels begin, if they lie on its pixels."""
    if labels.crs != scene.crs:
        return None
    steps = ~scene.transform * labels.transform
    drift = max(abs(steps.a - 1), abs(steps.b), abs(steps.d), abs(steps.e - 1))
    row, col = round(steps.f), round(steps.c)
    near = max(abs(steps.f - row), abs(steps.c - col), drift * max(_size(labels))) < ALIGNED_PX
    inside = (
        row >= 0 and col >= 0 and row + labels.height <= scene.height and col + labels.width <= scene.width
    )
    return (row, col) if near and inside else None


def _is_readable(info: SceneInfo, bands: Sequence[int], grid: Grid) -> bool:
    try:
        SceneReader(info, bands, grid)
    except ValueError:
        return False
    return True


def _check_overlap(info: SceneInfo, labels: Grid, labels_name: str) -> None:
    scene = info.grid
    if labels.crs is None or scene.crs is None:
        without = [name for name, grid in ((labels_name, labels), (info.name, scene)) if grid.crs is None]
        sizes = f"{labels.width} x {labels.height} and {scene.width} x {scene.height} px"
        raise SceneError(
            f"{labels_name}, {info.name}: {sizes}, and no CRS in {' and '.join(without)}, so they cannot be "
            "aligned; needs the same size, or georeferencing"
        )
    with gdal.errors(SceneError, f"{labels_name}: cannot be transformed to the CRS of {info.name}"):
        left, bottom, right, top = transform_bounds(labels.crs, scene.crs, *labels.bounds)
    west, south, east, north = scene.bounds
    if not (left < east and west < right and bottom < north and south < top):
        raise SceneError(
            f"{labels_name}: covers {_box((left, bottom, right, top))}, "
            f"{info.name} {_box(scene.bounds)} (left, bottom, right, top in the scene's CRS); they do not "
            "overlap. Pass the scene that was mapped"
        )


def _box(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)


def _warp(info: SceneInfo, grid: Grid) -> tuple[SceneInfo, MemoryFile]:
    """Return the scene on another grid, as a virtual raster in memory; pixels outside it have no data."""
    memory = MemoryFile(ext=f"/{Path(info.name).name}.vrt")
    options: dict[str, object] = {} if "alpha" in info.colour_interpretations else {"add_alpha": True}
    if info.nodata_given:
        options["src_nodata"] = info.nodata
    options |= {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    where = f"{info.name}: cannot be warped to the map's grid"
    with (
        gdal.env(info.path),
        gdal.errors(SceneError, where),
        info.open(plain=True) as dataset,
        WarpedVRT(dataset, resampling=Resampling.bilinear, **options) as warped,
    ):
        copy(warped, memory.name, driver="VRT")
    return SceneInfo.of(memory.name, alpha="mask"), memory
