"""A prediction, checked before a model is loaded or a byte written: scene, grids, scaling, outputs."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rsseg_cli import files
from rsseg_cli.config import PredictConfig, VectorConfig, stretch_pairs
from rsseg_cli.errors import ModelError, OutputError, SceneError
from rsseg_cli.inference import Scaling
from rsseg_cli.pipeline.result import with_unsure
from rsseg_cli.raster import Area, Grid, RasterWriter, SceneInfo, SceneReader, classes
from rsseg_cli.system import physical_bytes
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, read_spec, registry

GSD_TOLERANCE = 0.01  # ground resolutions closer than this are the same
MAX_REFINER_FACTOR = 2.3  # for refiners, of coarser scenes: buildings-refiner gains at 0.2 m, not at 0.3
MAX_GSD_FACTOR = 3.0  # between a scene's ground resolution and the model's, beyond which it is warned of
OVERVIEWS = 4 / 3  # of the full resolution, with all its overviews
MAX_SHRINK = {"NONE": 1.0, "DEFLATE": 1032.0}  # https://zlib.net/zlib_tech.html
# Compressed bytes a pixel and band, of land cover of drawn and real scenes.
USUAL = {"labels": 0.06, "confidence": 0.6, "probabilities": 0.35, "heatmaps": 0.6, "uncertainty": 0.3}
USUAL_VECTOR = 0.1  # a pixel
Model = str | os.PathLike[str] | TrainedModel  # name or path, or loaded
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prediction that was checked and may begin.

    Attributes:
        spec: the model's, with the classes of the map.
        merge: the network's classes that make each class of the map; () where they are the same.
    """

    info: SceneInfo
    bands: tuple[int, ...]
    grid: Grid  # of the map: the scene's, or the part of it inside the bounding box
    network_grid: Grid  # that the network sees; the same unless the scene is resampled
    area: Area | None  # pixels outside have no data
    spec: ModelSpec
    scaling: Scaling
    config: PredictConfig
    paths: Mapping[str, Path]
    notes: list[str]
    vector: VectorConfig  # for the polygons, where `paths` has them
    more_tags: Mapping[str, str] = field(default_factory=dict)  # of the rasters, in place of the usual ones
    merge: tuple[tuple[int, ...], ...] = ()

    @property
    def network_classes(self) -> int:
        return sum(map(len, self.merge)) or len(self.spec.classes)

    @property
    def resampled(self) -> bool:
        return self.network_grid != self.grid

    @property
    def may_have_holes(self) -> bool:
        floats = any(np.dtype(self.info.dtypes[band - 1]).kind == "f" for band in self.bands)
        return self.info.has_mask or floats or self.area is not None

    def warn(self, *notes: str) -> None:
        """Note what differs from what one might expect, and log it."""
        for note in notes:
            self.notes.append(note)
            _log.warning("%s", note)

    def reader(self, grid: Grid, **more: Any) -> SceneReader:
        """Return a reader of the chosen bands on a grid; pixels outside the area have no data."""
        return SceneReader(self.info, self.bands, grid, region_mask=self.area, **more)

    def note_unmarked_holes(self) -> None:
        """Warn where a scene has much of pure black or white and no nodata value, unless its stretch did."""
        sampled = self.scaling.limits is not None and self.config.stretch == "auto"
        if sampled and self.grid == self.info.grid:
            return
        note = self.info.unmarked_holes(self.bands, self.grid)
        if note and not any(known.startswith(f"{note};") for known in self.notes):
            self.warn(note)

    @property
    def map_spec(self) -> ModelSpec:
        """The model's description with the classes of the map."""
        return with_unsure(self.spec, self.config)

    @property
    def layers(self) -> dict[str, slice]:
        """Channels of the finished uint8 rows, by the raster that they go to; confidence also where it only
        decides which pixels are unsure."""
        known = len(self.spec.classes)
        sizes = {
            "labels": 1, "confidence": 1, "probabilities": known, "heatmaps": known, "uncertainty": 1,
        }  # fmt: skip
        layers, first = {}, 0
        for kind, size in sizes.items():
            if kind in self.paths or (kind == "confidence" and self.config.min_confidence):
                layers[kind] = slice(first, first + size)
                first += size
        return layers


def prepare(
    scene: str,
    paths: Mapping[str, Path],
    model: Model,
    config: PredictConfig,
    vector: VectorConfig | None = None,
) -> Job:
    """Check scene, model, outputs and settings against each other, without loading weights or writing."""
    spec, merge = remapped(spec_of(model), config.remap)
    if spec.is_refiner:
        raise ModelError(f"model {spec.name!r} refines maps and makes none; pass it as --refiner")
    has_heatmaps = spec.architecture == "bicor-seg" or (
        isinstance(model, TrainedModel) and hasattr(model.network, "explain")
    )
    if "heatmaps" in paths and not has_heatmaps:
        raise ModelError(
            f"model {spec.name!r} has no class heatmaps; leave out --heatmaps or use a BiCoR-Seg model"
        )
    info = SceneInfo.of(scene, config.nodata, config.alpha).in_colour(spec.bands, config.bands)
    inputs: list[str | Path] = [scene, *info.files]
    inputs += [] if isinstance(model, TrainedModel) else [Path(model)]
    inputs += [file for file in (config.aoi, config.remap) if file]
    check_outputs(paths, inputs, config)
    polygons = replace(vector or VectorConfig(), overwrite=config.overwrite)
    if "vector" in paths:
        from rsseg_cli.vector import check_output  # loads scipy

        check_output(
            paths["vector"],
            polygons,
            crs=info.grid.wkt,
            names=dict(enumerate(with_unsure(spec, config).class_names)),
            where=info.name,
            inputs=inputs,
        )
    bands = info.select_bands(spec.bands, config.bands, spec.name)
    grid = info.grid
    if config.bbox is not None:
        grid = grid.window(*grid.window_of_bbox(config.bbox))
    notes: list[str] = []
    seen = network_grid(grid, spec, config.gsd_m, info.name, notes)
    job = Job(
        info=info,
        bands=bands,
        grid=grid,
        network_grid=seen,
        area=Area.read(config.aoi, grid) if config.aoi is not None else None,
        spec=spec,
        scaling=scaling_of(info, bands, spec, config, notes),
        config=config,
        paths=paths,
        notes=[],
        vector=polygons,
        merge=merge,
        more_tags={"RSSEG_REMAP": _remap_tag(spec_of(model), spec, merge)} if merge else {},
    )
    _check_memory(job)
    job.notes.extend(info.notes + (job.area.notes if job.area is not None else []))
    job.warn(*notes)
    return job


def open_model(model: Model) -> TrainedModel:
    """Return a model; the network of one in a file is loaded on first use."""
    return model if isinstance(model, TrainedModel) else registry.StoredModel(model)


def spec_of(model: Model) -> ModelSpec:
    return model.spec if isinstance(model, TrainedModel) else read_spec(model)


def remapped(spec: ModelSpec, path: Path | None) -> tuple[ModelSpec, tuple[tuple[int, ...], ...]]:
    """Return a spec with the classes that a file makes of its own, and `Job.merge`."""
    if path is None:
        return spec, ()
    new = classes.remapped(path, spec.class_names, f"model {spec.name!r}")
    made = zip(new.names, new.colours, new.groups, strict=True)
    specs = tuple(ClassSpec(name, colour or spec.classes[group[0]].colour) for name, colour, group in made)
    return replace(spec, classes=specs), new.groups


def _remap_tag(before: ModelSpec, after: ModelSpec, merge: tuple[tuple[int, ...], ...]) -> str:
    names = before.class_names
    made = zip(after.class_names, merge, strict=True)
    return json.dumps({name: [names[old] for old in group] for name, group in made}, ensure_ascii=False)


def _check_memory(job: Job) -> None:
    """Refuse a scene so wide that what is carried from tile row to tile row is more than all memory."""
    seen, config = job.network_grid, job.config
    overlap = min(config.overlap, seen.height)
    finished = min(config.tile_size, seen.height) - overlap
    pixel_bytes = sum(np.dtype(job.info.dtypes[band - 1]).itemsize for band in job.bands)
    layers = max(part.stop for part in job.layers.values())  # uint8; scores are float32
    needed = seen.width * (overlap * (pixel_bytes + 1 + 4 * job.network_classes) + finished * layers)
    memory = physical_bytes()
    if memory is not None and needed > memory:
        raise SceneError(
            f"{job.info.name}: {seen.width} px wide, of which a row of tiles takes at least "
            f"{needed / 1e9:.1f} GB; this machine has {memory / 1e9:.1f} GB of memory. Map parts of it by "
            "--bbox, or lower --overlap and --tile-size."
        )


def check_outputs(paths: Mapping[str, Path], inputs: list[str | Path], config: PredictConfig) -> None:
    """Refuse outputs that share a file, are of the wrong kind or may not be written."""
    seen: dict[str, str] = {}
    for kind, path in paths.items():
        file = os.path.realpath(path)  # Path.resolve stumbles over a circle of links
        if file in seen:
            raise OutputError(f"{path}: is both the {seen[file]} and the {kind}; give each a name of its own")
        seen[file] = kind
        if kind == "vector":  # by its format
            continue
        endings = {"preview": (".png",), "html": (".html", ".htm"), "stac": (".json",)}.get(
            kind, (".tif", ".tiff")
        )
        if path.suffix.lower() not in endings:
            raise OutputError(
                f"{path}: the {kind} is written as {endings[0][1:].upper()}; its name ends in {endings[0]}"
            )
        files.check_target(path, overwrite=config.overwrite, inputs=inputs)
    RasterWriter.check_options(config.creation_options)


def network_grid(
    grid: Grid, spec: ModelSpec, asked_gsd_m: float | None, scene: str, notes: list[str]
) -> Grid:
    """Return the grid that the network sees.

    Its pixels are square on the ground, at a resolution of the network's, where the scene's do not suit.
    """
    target = asked_gsd_m or spec.gsd_m
    if target is None:
        return grid
    gsd_m = grid.gsd_m
    if gsd_m is None:
        side = spec.assumed_gsd_m
        if side is None:
            raise SceneError(f"{scene}: has no CRS, so --gsd {target:g} cannot be met; leave it out")
        notes.append(f"{scene}: has no CRS; taken to be at the model's ground resolution, {side:g} m")
        gsd_m = (side, side)
    low, high = (asked_gsd_m is None and spec.gsd_range_m) or (target, target)
    is_known = all(low <= side * (1 + GSD_TOLERANCE) and side <= high * (1 + GSD_TOLERANCE) for side in gsd_m)
    mean_m = math.sqrt(gsd_m[0] * gsd_m[1])
    if asked_gsd_m is None:
        target = spec.network_gsd_m(mean_m, is_known=is_known)
    if is_known and (asked_gsd_m is not None or mean_m <= target * (1 + GSD_TOLERANCE)):
        return grid
    width = max(1, round(grid.width * gsd_m[0] / target))
    height = max(1, round(grid.height * gsd_m[1] / target))
    shown = f"{scene}: ground resolution {gsd_m[0]:.3g} x {gsd_m[1]:.3g} m"
    read = f"{target:.3g} m: {width} x {height} px in place of {grid.width} x {grid.height}"
    if asked_gsd_m is not None:
        notes.append(f"{shown}; read at the asked {read}")
    elif is_known:
        _log.info("%s; the model maps it better at %s", shown, read)
    else:
        _note_unknown_gsd(gsd_m, (low, high), scene, notes, refines=spec.is_refiner)
        notes.append(f"{shown} is outside {low:.3g} to {high:.3g} m; read at {read}")
    return grid.scaled(width=width, height=height)


def _note_unknown_gsd(
    gsd_m: tuple[float, float], known_m: tuple[float, float], scene: str, notes: list[str], *, refines: bool
) -> None:
    side, (low, high) = float(np.sqrt(gsd_m[0] * gsd_m[1])), known_m
    furthest = MAX_REFINER_FACTOR if refines else MAX_GSD_FACTOR
    if side > high * furthest or side < low / MAX_GSD_FACTOR:
        factor = side / high if side > high else low / side
        coarser = "coarser" if side > high else "finer"
        advice = (
            "expect no better boundaries, and leave out the refiner where they are worse"
            if refines
            else "expect a poor map. Take another model, or choose the resolution that it sees by --gsd"
        )
        notes.append(
            f"{scene}: {side:.3g} m a pixel, {factor:.3g} times {coarser} than the {low:.3g} to {high:.3g} m "
            f"that the {'refiner' if refines else 'model'} was trained for; it does not know such imagery, "
            f"so {advice}"
        )


def scaling_of(
    info: SceneInfo, bands: tuple[int, ...], spec: ModelSpec, config: PredictConfig, notes: list[str]
) -> Scaling:
    """Return the multiplication and addition a band that make pixel values the network's input."""
    dtypes = [info.dtypes[band - 1] for band in bands]
    ranges = stretch_pairs(config.stretch, len(bands))
    if config.stretch == "auto":
        ranges = spec.fixed_ranges(dtypes)
    ranges, stretched = info.ranges(bands, ranges, stretch=spec.scaling == "stretch")
    if stretched:
        shown = "band by band from " + ", ".join(f"{low:.4g} to {high:.4g}" for low, high in ranges)
        if len(set(ranges)) == 1:
            shown = "from {:.4g} to {:.4g}".format(*ranges[0])
        dtype = info.dtypes[bands[0] - 1]
        notes.append(f"{info.name}: {dtype} values are stretched to 0 to 1, {shown}")
    factors, offsets, limits = [], [], []
    for (low, high), mean, std in zip(ranges, spec.mean, spec.std, strict=True):
        factors.append(1 / ((high - low) * std))
        offsets.append((-low / (high - low) - mean) / std)
        limits.append((-mean / std, (1 - mean) / std))
    return Scaling(
        factors=tuple(factors), offsets=tuple(offsets), limits=tuple(limits) if stretched else None
    )


def check_space(job: Job, *, coarse: bool = False) -> None:
    """Compare the space that is needed, with a `coarse` map beside the refined one, with what is free.

    How much outputs shrink is not known before: an empty map, to a thousandth. A run is refused only where
    its outputs cannot fit at all: uncompressed ones at their full size, DEFLATE's at a 1032nd. Where the
    usual size does not fit there is a warning; a disk that fills up ends a run, and --resume continues it.
    """
    minimum: defaultdict[Path, float] = defaultdict(float)
    usual: defaultdict[Path, float] = defaultdict(float)
    pixels = job.grid.width * job.grid.height
    options = {key.upper(): value.upper() for key, value in job.config.creation_options.items()}
    shrink = MAX_SHRINK.get(options.get("COMPRESS", "DEFLATE"), math.inf)
    work = job.paths["labels"].parent
    for kind in job.layers.keys() & job.paths.keys():
        part = job.layers[kind]
        full = pixels * (part.stop - part.start) * OVERVIEWS
        minimum[job.paths[kind].parent] += full / shrink
        usual[job.paths[kind].parent] += full * (USUAL[kind] if shrink > 1 else 1)
        usual[work] += full * USUAL[kind] * (3 if coarse and kind != "uncertainty" else 2)
    if "vector" in job.paths:
        rasters = (job.vector.min_area_m2 > 0) + (job.vector.fill_holes_m2 > 0)  # temporary
        usual[job.paths["vector"].parent] += pixels * (USUAL_VECTOR + rasters)
    for folder in usual:
        free = _free(folder)
        same_disk = [other for other in usual if os.stat(other).st_dev == os.stat(folder).st_dev]
        needed, likely = (sum(sizes[other] for other in same_disk) for sizes in (minimum, usual))
        where = f"{folder.absolute()}: {size_text(free)} free"
        if needed > free:
            raise OutputError(
                f"{where}, the outputs take at least {size_text(needed)}. Make room, or write to another disk"
            )
        if likely > free and folder == same_disk[0]:
            advice = "If the disk fills up, make room and pass --resume"
            _log.warning("%s, the run may take some %s. %s", where, size_text(likely), advice)


def size_text(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # a file system that does not say
        return 1 << 62
