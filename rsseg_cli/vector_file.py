"""Class raster to polygons: a coverage whose parts share their edges, in any vector format."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from rsseg_cli import __version__
from rsseg_cli.class_names import plain, read_class_colours, read_class_names
from rsseg_cli.config import VECTOR_ENDINGS, VectorConfig
from rsseg_cli.errors import OutputError, SceneError, UsageError
from rsseg_cli.gdal import gdal_env, gdal_errors, open_raster
from rsseg_cli.raster import SceneInfo, check_target, inspect, replace_all
from rsseg_cli.vector_block import BlockPlan, run_block
from rsseg_cli.vector_jobs import give_back_memory, in_order_of
from rsseg_cli.vector_join import Joiner
from rsseg_cli.vector_layer import Layer, check_format, columns_of, targets
from rsseg_cli.vector_measure import Ground, measure_ground
from rsseg_cli.vector_merge import merged_classes
from rsseg_cli.vector_polygons import Polygons
from rsseg_cli.vector_shape import BAND, make_shaping
from rsseg_cli.vector_source import ClassSource
from rsseg_cli.vector_style import Colour, colour_of
from rsseg_cli.vector_survey import (
    FINE,
    Census,
    StoredSource,
    SurveyPlan,
    store_block,
    stored_source,
    survey_block,
)
from rsseg_cli.vector_write import VectorWriter

if TYPE_CHECKING:
    import geopandas

Progress = Callable[[int, int], None]  # rows done, rows in all
BLOCK_PX = 3 << 19  # of a block: some 40 bytes each with its boundaries
LEAST_ROWS = 128
SHAPED_PX = 10 << 20  # where boundaries are shaped, bands of rows above and below are read too
PARALLEL_PX = 8 << 20  # smaller rasters are done before workers have started
MOST_JOBS = 8  # by default
WGS84 = "EPSG:4326"
MAX_TAG = 500
MERGED = ".merged.bin"  # in the scratch folder: classes after merging

logger = logging.getLogger("rsseg_cli")


@dataclass(frozen=True, kw_only=True)
class ClassPolygons:
    """Polygons of one class.

    Attributes:
        area_m2: on the ground, None without a CRS.
    """

    polygons: int
    area_m2: float | None


@dataclass(frozen=True, kw_only=True)
class VectorResult:
    """A finished vector file.

    Attributes:
        features: in the layer.
        classes: polygons by class name.
        seconds: wall time.
        stages: seconds by stage, summed over the worker processes.
        notes: what differs from what one might expect; logged as warnings too.
    """

    path: Path
    layer: str
    format: str
    features: int
    classes: dict[str, ClassPolygons]
    seconds: float
    stages: dict[str, float]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The result in types that JSON has."""
        return {
            "path": str(self.path),
            "layer": self.layer,
            "format": self.format,
            "features": self.features,
            "classes": {name: dataclasses.asdict(found) for name, found in self.classes.items()},
            "seconds": round(self.seconds, 3),
            "stages": {stage: round(seconds, 3) for stage, seconds in self.stages.items()},
            "notes": list(self.notes),
        }


@dataclass(kw_only=True)
class _Task:
    """A vectorisation that was checked and may begin."""

    info: SceneInfo
    name: str
    config: VectorConfig
    source: ClassSource
    confidence: ClassSource | None
    ground: Ground
    names: Mapping[int, str]
    colours: Mapping[int, Colour]
    crs: str
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        if self.config.jobs:
            return self.config.jobs
        large = self.source.height * self.source.width >= PARALLEL_PX
        return min(MOST_JOBS, _cores()) if large else 1

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and end row of each block."""
        shaped = self.config.simplify_m or self.config.smooth
        pixels, least = (SHAPED_PX, BAND) if shaped else (BLOCK_PX, LEAST_ROWS)
        step = self.config.block_rows or max(least, pixels // self.source.width // least * least)
        height = self.source.height
        return [(first, min(first + step, height)) for first in range(0, height, step)]

    def plan(self) -> BlockPlan:
        own = self.info.grid.crs.to_wkt() if self.info.grid.crs is not None else ""
        shaping = make_shaping(self.config.simplify_m, self.config.smooth, self.ground)
        return BlockPlan(
            source=self.source,
            confidence=self.confidence,
            transform=self.info.grid.transform,
            ground=self.ground,
            shaping=shaping,
            classes=_chosen(self.config.classes, self.names, self.info.name),
            reproject=None if self.crs == own else (own, self.crs),
        )


def vectorize(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: VectorConfig | None = None,
    *,
    confidence: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> VectorResult:
    """Turn a class raster into polygons that share their edges.

    The file appears whole or not at all. Memory does not grow with the raster's size, but for the vertices of
    the largest objects.

    Args:
        labels: raster of class indices, with nodata or a mask where there is no class. Names and colours are
            taken from its tags and palette.
        output: vector file; its ending says the format.
        config: settings.
        confidence: raster of the same size, 0-254 for 0-1; adds its mean and minimum to each polygon.
        progress: called with rows done and rows in all.

    Raises:
        UsageError, SceneError, DataError, OutputError: what is wrong and what to do; nothing was written.
    """
    start = time.monotonic()
    writer, run = prepare(labels, output, config or VectorConfig(), confidence=confidence)
    with writer:
        classes, stages, notes = run(progress)
        replace_all(writer.finish())
    layer = writer.layer
    return VectorResult(
        path=layer.path,
        layer=layer.name,
        format=layer.format,
        features=writer.features,
        classes=classes,
        seconds=time.monotonic() - start,
        stages=stages,
        notes=notes,
    )


Run = Callable[[Progress | None], tuple[dict[str, ClassPolygons], dict[str, float], tuple[str, ...]]]


def check_output(
    output: str | os.PathLike[str],
    config: VectorConfig,
    *,
    crs: str,
    names: Mapping[int, str],
    where: str,
    inputs: Sequence[str | Path] = (),
) -> None:
    """Refuse what cannot be written before any work starts.

    Args:
        crs: WKT of the class raster's, "" without.
        names: of its classes by value.
        where: what messages call it.
        inputs: files that must not be replaced.

    Raises:
        UsageError, OutputError: what is wrong and what to do.
    """
    path = Path(output)
    kind = format_of(path, config)
    check_format(kind, path)
    if kind == "GeoJSON" and not crs:
        raise _no_geojson(path, where)
    _target_crs(crs, _with_crs(config, kind, path).dst_crs, where)
    _chosen(config.classes, names, where)
    for target in targets(path, kind, qml=config.qml):
        check_target(target, overwrite=config.overwrite, inputs=inputs)


def prepare(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: VectorConfig,
    *,
    confidence: str | os.PathLike[str] | None = None,
    labels_name: str = "",
) -> tuple[VectorWriter, Run]:
    """Check everything; a writer, and what fills it once it is open.

    Args:
        labels_name: what the raster is going to be called, where it has not got its name yet.
    """
    path = Path(output)
    kind = format_of(path, config)
    grid = inspect(os.fspath(labels)).grid
    if kind == "GeoJSON" and grid.crs is None:
        raise _no_geojson(path, labels_name or os.fspath(labels))
    task = _task(labels, confidence, _with_crs(config, kind, path), labels_name)
    inputs: list[str | Path] = [*task.info.files, *([Path(confidence)] if confidence is not None else [])]
    own = task.info.grid.crs.to_wkt() if task.info.grid.crs is not None else ""
    check_output(path, config, crs=own, names=task.names, where=task.name, inputs=inputs)
    layer = _layer(path, kind, task)
    _note_format(layer, task)
    for note in task.notes:
        logger.warning("%s", note)
    writer = VectorWriter(layer)

    def run(progress: Progress | None) -> tuple[dict[str, ClassPolygons], dict[str, float], tuple[str, ...]]:
        counts: dict[int, list[float]] = {value: [0, 0.0] for value in sorted(task.names)}
        for polygons in _polygons(task, progress, writer.scratch):
            before = time.perf_counter()
            writer.write(polygons)
            task.stages["write"] = task.stages.get("write", 0) + time.perf_counter() - before
            for value in np.unique(polygons.table.classes).tolist():
                chosen = polygons.table.classes == value
                total = counts.setdefault(value, [0, 0.0])
                total[0] += int(np.count_nonzero(chosen))
                total[1] += float(polygons.areas_m2[chosen].sum())
        known = task.ground.known
        classes = {
            layer.class_name(value): ClassPolygons(polygons=int(count), area_m2=area if known else None)
            for value, (count, area) in counts.items()
        }
        return classes, task.stages, tuple(task.notes)

    return writer, run


def to_geodataframe(
    labels: str | os.PathLike[str],
    config: VectorConfig | None = None,
    *,
    confidence: str | os.PathLike[str] | None = None,
) -> geopandas.GeoDataFrame:
    """Polygons of a class raster as a GeoDataFrame; what concerns files in `config` does not matter.

    Raises:
        UsageError, SceneError, DataError: what is wrong and what to do.
    """
    import geopandas
    import shapely

    task = _task(labels, confidence, config or VectorConfig())
    layer = _layer(Path("polygons.gpkg"), "GPKG", task)
    with TemporaryDirectory(prefix="rsseg-") as folder:
        parts = list(_polygons(task, None, Path(folder)))
        wkb = [blob if isinstance(blob, bytes) else blob.tobytes() for part in parts for blob in part.wkb]
    columns = [columns_of(part, layer) for part in parts] or [columns_of(None, layer)]
    return geopandas.GeoDataFrame(
        {name: np.concatenate([part[name] for part in columns]) for name in columns[0]},
        geometry=shapely.from_wkb(np.array(wkb, object)),
        crs=task.crs or None,
    )


def format_of(path: Path, config: VectorConfig) -> str:
    """The format by name or ending.

    Raises:
        UsageError: the ending is not known.
    """
    if config.format != "auto":
        return config.format
    found = VECTOR_ENDINGS.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"{path}: its ending names no format; needs one of {', '.join(VECTOR_ENDINGS)}, or pass --format"
        )
    return found


def _no_geojson(path: Path, where: str) -> OutputError:
    return OutputError(f"{path}: GeoJSON is in WGS 84 and {where} has no CRS. Write a GeoPackage (.gpkg).")


def _with_crs(config: VectorConfig, kind: str, path: Path) -> VectorConfig:
    """RFC 7946 knows WGS 84 alone."""
    if kind != "GeoJSON":
        return config
    if config.dst_crs and config.dst_crs.upper() not in (WGS84, "OGC:CRS84", "CRS84"):
        raise UsageError(
            f"--dst-crs {config.dst_crs}: GeoJSON is in WGS 84 (RFC 7946). Leave it out, or write "
            f"{path.stem}.gpkg"
        )
    return dataclasses.replace(config, dst_crs=WGS84)


def _task(
    labels: str | os.PathLike[str],
    confidence: str | os.PathLike[str] | None,
    config: VectorConfig,
    name: str = "",
) -> _Task:
    info = inspect(os.fspath(labels))
    source = _source(info)
    names = dict(read_class_names(info.path))
    notes = []
    own = info.grid.crs.to_wkt() if info.grid.crs is not None else ""
    crs = _target_crs(own, config.dst_crs, name or info.name)
    ground = measure_ground(info.grid)
    if not ground.known:
        given = [name for name, value in _metres(config).items() if value]
        told = f"; {' and '.join(given)} count in pixels" if given else ""
        notes.append(
            f"{name or info.name}: has no CRS, so areas and lengths on the ground are left empty{told}"
        )
    _chosen(config.classes, names, info.name)
    return _Task(
        info=info,
        name=name or info.name,
        config=config,
        source=source,
        confidence=None if confidence is None else _confidence(os.fspath(confidence), info),
        ground=ground,
        names=names,
        colours=read_class_colours(info.path),
        crs=crs,
        notes=notes,
    )


def _metres(config: VectorConfig) -> dict[str, float]:
    return {
        "--simplify": config.simplify_m,
        "--min-area": config.min_area_m2,
        "--fill-holes": config.fill_holes_m2,
    }


def _source(info: SceneInfo) -> ClassSource:
    if info.count != 1:
        raise SceneError(
            f"{info.name}: has {info.count} bands, needs the one of a class raster. Map a "
            "scene with rsseg predict first."
        )
    value = info.nodata
    byte = info.dtypes[0] == "uint8"
    masked = info.has_mask and value is None
    # 255 stands for no data where the raster means nothing else by it.
    wide = not byte or masked or value is None or value != 255
    return ClassSource(
        path=info.path,
        height=info.grid.height,
        width=info.grid.width,
        nodata=65535 if wide else 255,
        file_nodata=value,
        masked=masked,
        wide=wide,
    )


def _confidence(path: str, labels: SceneInfo) -> ClassSource:
    info = inspect(path)
    if (info.grid.width, info.grid.height) != (labels.grid.width, labels.grid.height) or not (
        info.grid.transform.almost_equals(labels.grid.transform, 1e-9)
    ):
        raise SceneError(
            f"{info.name}: {info.grid.width} x {info.grid.height} px is another grid than that of "
            f"{labels.name}, {labels.grid.width} x {labels.grid.height} px; needs that of the same map"
        )
    if info.count != 1 or info.dtypes[0] != "uint8":
        raise SceneError(
            f"{info.name}: {info.count} band(s) of {info.dtypes[0]}; needs one of uint8, 0-254 for 0-1, as "
            "predict --confidence writes"
        )
    return ClassSource(
        path=path,
        height=info.grid.height,
        width=info.grid.width,
        nodata=255,
        file_nodata=255,
        masked=False,
        wide=False,
    )


def _chosen(classes: tuple[str, ...] | None, names: Mapping[int, str], where: str) -> frozenset[int] | None:
    """Values of the named classes; a number stands for itself."""
    if classes is None:
        return None
    by_name = {plain(name): value for value, name in names.items()}
    values = []
    for name in classes:
        if plain(name) in by_name:
            values.append(by_name[plain(name)])
        elif name.strip().isdecimal() and int(name) < 65535:
            values.append(int(name))
        else:
            known = ", ".join(names.values()) or "none; pass class indices"
            raise UsageError(f"--classes {name}: {where} has no class of this name; it has {known}")
    return frozenset(values)


def _target_crs(own: str, asked: str, where: str) -> str:
    """WKT of the polygons' CRS."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    if not asked:
        return own
    if not own:
        raise UsageError(f"{where}: has no CRS, so its polygons cannot be brought to {asked}")
    try:
        wanted = CRS.from_user_input(asked)
    except CRSError as err:
        raise UsageError(f"--dst-crs {asked}: is no CRS that PROJ knows; write it as EPSG:4326") from err
    return own if wanted == CRS.from_wkt(own) else wanted.to_wkt()


def _layer(path: Path, kind: str, task: _Task) -> Layer:
    config = task.config
    tags = _tags(task.info.path)
    values = task.names or {value: f"class {value}" for value in sorted(task.colours)}
    metadata = {
        "software": f"rsseg {__version__}",
        "labels": task.name,
        "scene": tags.get("RSSEG_SCENE", ""),
        "model": tags.get("RSSEG_MODEL", ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": ", ".join(f"{name[2:]} {value:g}" for name, value in _metres(config).items() if value)
        + (", smooth" if config.smooth else ""),
    }
    return Layer(
        path=path,
        name=config.layer or path.stem,
        format=kind,
        crs=task.crs,
        names=values,
        colours={value: colour_of(value, task.colours) for value in values},
        confidence=task.confidence is not None,
        metadata={key: text for key, text in metadata.items() if text},
        dissolve=config.dissolve,
        qml=config.qml,
    )


def _tags(path: str) -> dict[str, str]:
    with gdal_env(path), gdal_errors(SceneError, path), open_raster(path) as dataset:
        return {key: str(value)[:MAX_TAG] for key, value in dataset.tags().items()}


def _note_format(layer: Layer, task: _Task) -> None:
    """Tell a format's limits."""
    if layer.format == "Shapefile":
        task.notes.append(
            f"{layer.path}: a Shapefile's names have ten characters (class_idx, perim_m, conf_mean, ...), "
            "its files 2 GB; scene, model and time are not kept"
        )


def _polygons(task: _Task, progress: Progress | None, folder: Path) -> Iterator[Polygons]:
    """Polygons block by block, in the order of their last pixels."""
    plan = task.plan()
    if task.config.min_area_m2 or task.config.fill_holes_m2:
        before = time.perf_counter()
        plan = dataclasses.replace(plan, source=_merge(task, plan, folder / MERGED))
        task.stages["merge"] = time.perf_counter() - before
    joiner = Joiner(plan, folder)
    for (_, end), block in zip(
        task.blocks, in_order_of(run_block, plan, task.blocks, task.jobs), strict=True
    ):
        before = time.perf_counter()
        finished = joiner.add(block)
        block.seconds["join"] = time.perf_counter() - before
        for stage, seconds in block.seconds.items():
            task.stages[stage] = task.stages.get(stage, 0) + seconds
        del block
        yield from finished
        del finished
        give_back_memory()
        if progress is not None:
            progress(end, task.source.height)


def _merge(task: _Task, plan: BlockPlan, path: Path) -> StoredSource:
    """The classes after small objects and holes were given away, in a file of their own."""
    source, ground, config = task.source, task.ground, task.config
    mean_m2 = float(ground.pixel_area_m2(np.array(source.height / 2), np.array(source.width / 2)))
    smallest, hole = (area / mean_m2 * FINE for area in (config.min_area_m2, config.fill_holes_m2))
    survey = SurveyPlan(block=plan, largest=max(smallest, hole), mean_m2=mean_m2)
    census = Census()
    for block in in_order_of(survey_block, survey, task.blocks, task.jobs):
        census.add(block)
    before = np.concatenate(census.classes)
    classes = merged_classes(census, source.nodata, ground.pixel_m, smallest, hole)
    try:
        with open(path, "wb") as file:
            file.truncate(source.height * source.width * (2 if source.wide else 1))
    except OSError as err:
        raise OutputError(f"{path.parent}: cannot be written ({err}). Is the disk full?") from err
    items = []
    for (first, end), numbers in zip(task.blocks, census.numbers, strict=True):
        changed = np.flatnonzero(classes[numbers] != before[numbers]).astype(np.int32)
        items.append((first, end, changed, classes[numbers[changed]]))
    for _ in in_order_of(store_block, (plan, str(path)), items, task.jobs):
        pass
    return stored_source(source, path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
