"""A prediction, checked before a model is loaded or a byte written: scene, grids, scaling, outputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rsseg_cli import files
from rsseg_cli.config import PredictConfig, VectorConfig
from rsseg_cli.errors import ModelError, OutputError, SceneError
from rsseg_cli.inference import Scaling
from rsseg_cli.raster import Area, Grid, RasterWriter, SceneInfo, SceneReader
from rsseg_cli.system import physical_bytes
from rsseg_cli.vector import check_output
from rsseg_cli.weights import ModelSpec, TrainedModel, read_spec

GSD_TOLERANCE = 0.01  # ground resolutions closer than this are the same
HOLE_SHARE = 0.005  # of pixels of one extreme value, from which they may be unmarked holes
Model = str | os.PathLike[str] | TrainedModel  # name or path, or loaded
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prediction that was checked and may begin."""

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

    @property
    def resampled(self) -> bool:
        return self.network_grid != self.grid

    @property
    def may_have_holes(self) -> bool:
        """Whether pixels without data are possible."""
        floats = any(np.dtype(self.info.dtypes[band - 1]).kind == "f" for band in self.bands)
        return self.info.has_mask or floats or self.area is not None

    def warn(self, *notes: str) -> None:
        """Note what differs from what one might expect, and log it."""
        for note in notes:
            self.notes.append(note)
            _log.warning("%s", note)

    def reader(self, grid: Grid) -> SceneReader:
        """Return a reader of the chosen bands on a grid; pixels outside the area have no data."""
        return SceneReader(self.info, self.bands, grid, region_mask=self.area)

    def note_unmarked_holes(self) -> None:
        """Warn where a scene has much of pure black or white and no nodata value."""
        value, share = self.info.unmarked_holes(self.bands, self.grid)
        if share > HOLE_SHARE:
            colour = "white" if value else "black"
            self.warn(
                f"{self.info.name}: {share:.1%} of the pixels are pure {colour} ({value}) and the file names "
                f"no nodata value; pass --nodata {value} if they are holes"
            )

    @property
    def layers(self) -> dict[str, slice]:
        """Channels of the finished uint8 rows, by the raster that they go to."""
        classes = len(self.spec.classes)
        sizes = {
            "labels": 1, "confidence": 1, "probabilities": classes, "heatmaps": classes, "uncertainty": 1,
        }  # fmt: skip
        layers, first = {}, 0
        for kind, size in sizes.items():
            if kind in self.paths:
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
    spec = model.spec if isinstance(model, TrainedModel) else read_spec(model)
    if spec.is_refiner:
        raise ModelError(f"model {spec.name!r} refines maps and makes none; pass it as --refiner")
    has_heatmaps = spec.architecture == "bicor-seg"
    if isinstance(model, TrainedModel):
        has_heatmaps = hasattr(model.network, "explain")
    if "heatmaps" in paths and not has_heatmaps:
        raise ModelError(
            f"model {spec.name!r} has no class heatmaps; leave out --heatmaps or use a BiCoR-Seg model"
        )
    info = SceneInfo.of(scene, config.nodata)
    inputs: list[str | Path] = [scene, *info.files]
    inputs += [] if isinstance(model, TrainedModel) else [Path(model)]
    check_outputs(paths, inputs + ([config.aoi] if config.aoi else []), config)
    polygons = replace(vector or VectorConfig(), overwrite=config.overwrite)
    if "vector" in paths:
        check_output(
            paths["vector"],
            polygons,
            crs=info.grid.crs.to_wkt() if info.grid.crs is not None else "",
            names=dict(enumerate(spec.class_names)),
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
        scaling=scaling_of(info, bands, spec, notes),
        config=config,
        paths=paths,
        notes=[],
        vector=polygons,
    )
    _check_memory(job)
    job.warn(*notes)
    return job


def _check_memory(job: Job) -> None:
    """Refuse a scene so wide that what is carried from tile row to tile row is more than all memory."""
    seen, config = job.network_grid, job.config
    overlap = min(config.overlap, seen.height)
    finished = min(config.tile_size, seen.height) - overlap
    pixel_bytes = sum(np.dtype(job.info.dtypes[band - 1]).itemsize for band in job.bands)
    layers = max(part.stop for part in job.layers.values())  # uint8; scores are float32
    needed = seen.width * (overlap * (pixel_bytes + 1 + 4 * len(job.spec.classes)) + finished * layers)
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
        endings = (".png",) if kind == "preview" else (".tif", ".tiff")
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

    Its pixels are square on the ground, at the network's own resolution, where the scene's do not suit.
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
    low, high = target / (1 + GSD_TOLERANCE), target * (1 + GSD_TOLERANCE)
    if asked_gsd_m is None and spec.gsd_range_m is not None:
        low, high = spec.gsd_range_m
    if all(low <= side <= high for side in gsd_m):
        return grid
    width = max(1, round(grid.width * gsd_m[0] / target))
    height = max(1, round(grid.height * gsd_m[1] / target))
    shown = f"{scene}: ground resolution {gsd_m[0]:.3g} x {gsd_m[1]:.3g} m"
    why = f" is outside {low:.3g} to {high:.3g} m; read at" if asked_gsd_m is None else "; read at the asked"
    notes.append(
        f"{shown}{why} {target:.3g} m: {width} x {height} px in place of {grid.width} x {grid.height}"
    )
    return grid.scaled(width=width, height=height)


def scaling_of(info: SceneInfo, bands: tuple[int, ...], spec: ModelSpec, notes: list[str]) -> Scaling:
    """Return the multiplication and addition a band that make pixel values the network's input."""
    ranges = info.type_ranges(bands)
    stretched = spec.scaling == "stretch" and any(info.dtypes[band - 1] != "uint8" for band in bands)
    if stretched:
        ranges = info.percentile_ranges(bands)
        shown = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in ranges)
        dtype = info.dtypes[bands[0] - 1]
        notes.append(f"{info.name}: {dtype} values are stretched to 0 to 1, band by band from {shown}")
    factors, offsets, limits = [], [], []
    for (low, high), mean, std in zip(ranges, spec.mean, spec.std, strict=True):
        factors.append(1 / ((high - low) * std))
        offsets.append((-low / (high - low) - mean) / std)
        limits.append((-mean / std, (1 - mean) / std))
    return Scaling(
        factors=tuple(factors), offsets=tuple(offsets), limits=tuple(limits) if stretched else None
    )
