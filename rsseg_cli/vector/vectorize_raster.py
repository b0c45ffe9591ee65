"""Class raster to polygons: a coverage whose parts share their edges, in any vector format."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rsseg_cli import files
from rsseg_cli._version import __version__
from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import OutputError, SceneError, UsageError
from rsseg_cli.raster import Grid, SceneInfo, gdal
from rsseg_cli.vector.dissolve import dissolve
from rsseg_cli.vector.layer import Layer, check_name, columns_of, targets
from rsseg_cli.vector.polygons import Polygons
from rsseg_cli.vector.sketch import Sketch
from rsseg_cli.vector.stream import PolygonStream, Progress, WorkerPool
from rsseg_cli.vector.task import VectorTask, check_classes, make_task, metres, target_crs
from rsseg_cli.vector.write import copy_other_layers, write_layer

if TYPE_CHECKING:
    import geopandas

WGS84 = "EPSG:4326"
MAX_TAG = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassPolygons:
    """Polygons of one class, and their area on the ground: None without a CRS."""

    polygons: int
    area_m2: float | None


@dataclass(frozen=True, kw_only=True)
class VectorResult:
    """A finished vector file; `stages` has seconds by stage, `notes` what is unexpected, as was logged."""

    path: Path
    layer: str
    format: str
    features: int
    classes: dict[str, ClassPolygons]
    seconds: float
    stages: dict[str, float]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the result in types that JSON has."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "seconds": round(self.seconds, 3),
            "stages": {stage: round(seconds, 3) for stage, seconds in self.stages.items()},
            "notes": list(self.notes),
        }


def vectorize(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: VectorConfig | None = None,
    *,
    confidence: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> VectorResult:
    """Turn a class raster into polygons that share their edges.

    The file appears whole or not at all. Memory does not grow with the number of polygons, only with the
    largest one: some copies of it while it is written, and 200 bytes a hole. Temporary files beside the
    output hold decoded rows, vertices and simplified boundaries.

    Args:
        labels: raster of class indices, with nodata or a mask where there is no class. Names and colours come
            from its tags and palette.
        confidence: raster of the same size, 0-254 for 0-1; adds its mean and minimum to each polygon.

    Raises:
        UsageError, SceneError, DataError, OutputError: nothing was written.
    """
    start = time.monotonic()
    with prepare(labels, output, config or VectorConfig(), confidence=confidence) as job:
        files.replace_all(job.run(progress))
    layer = job.layer
    return VectorResult(
        path=layer.path,
        layer=layer.name,
        format=layer.format,
        features=job.features,
        classes=job.classes,
        seconds=time.monotonic() - start,
        stages=job.task.stages,
        notes=tuple(job.task.notes),
    )


def check_output(
    output: str | os.PathLike[str],
    config: VectorConfig,
    *,
    crs: str,
    names: Mapping[int, str],
    where: str,
    inputs: Sequence[str | Path] = (),
) -> None:
    """Refuse an output that cannot be written, before work starts; `crs` is the raster's WKT, "" for none."""
    path = Path(output)
    kind = format_of(path, config)
    target_crs(crs, _with_crs(config, kind, path, known=bool(crs), where=where).dst_crs, where)
    check_classes(config, names, where)
    if kind == "GPKG":
        check_name(config.layer or path.stem, path)
    styles = [Path(file).with_suffix(".qml") for file in inputs]  # they have a part for polygons too
    for target in targets(path, kind, qml=config.qml):
        files.check_target(target, overwrite=config.overwrite or target in styles, inputs=inputs)


def prepare(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: VectorConfig,
    *,
    confidence: str | os.PathLike[str] | None = None,
    labels_name: str = "",
    scratch: Path | None = None,
) -> VectorJob:
    """Check everything before work starts; `labels_name` is the raster's name if it does not have it yet.

    The caller removes `scratch`, the folder for temporary files; by default the job makes and removes one.
    """
    path = Path(output)
    kind = format_of(path, config)
    known = SceneInfo.of(os.fspath(labels)).grid.crs is not None
    config = _with_crs(config, kind, path, known=known, where=labels_name or os.fspath(labels))
    task = make_task(labels, confidence, config, labels_name)
    more = [Path(file) for file in (confidence, config.remap) if file is not None]
    inputs: list[str | Path] = [*task.info.files, *more]
    check_output(path, config, crs=task.own_crs, names=task.names, where=task.name, inputs=inputs)
    if kind == "Shapefile":
        task.warn(
            f"{path}: a Shapefile's names have ten characters (class_idx, perim_m, conf_mean, ...), "
            "its files 2 GB; scene, model and time are not kept"
        )
    return VectorJob(task, _layer(path, kind, task), scratch)


class VectorJob:
    """A checked vectorisation; leaving its context removes what was not published."""

    def __init__(self, task: VectorTask, layer: Layer, scratch: Path | None) -> None:
        self.task, self.layer = task, layer
        self._given, self._scratch = scratch, scratch
        self.sketch: Sketch | None = None  # gets the polygons too
        self.features = 0
        self.classes: dict[str, ClassPolygons] = {}

    @property
    def notes(self) -> list[str]:
        """Unexpected properties of the result."""
        return self.task.notes

    def draw_on(self, grid: Grid) -> Sketch:
        """Return what draws the polygons of `run` on a picture."""
        self.sketch = Sketch(grid, self.task.crs)
        return self.sketch

    def __enter__(self) -> Self:
        path = self.layer.path
        try:
            if self._given is not None:
                shutil.rmtree(self._given, ignore_errors=True)
                self._given.mkdir()
            else:
                made = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
                self._scratch = Path(made)
        except OSError as err:
            raise OutputError(f"{path}: cannot be written ({err})") from err
        return self

    def __exit__(self, *error: object) -> None:
        if self._given is None and self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, progress: Progress | None) -> dict[Path, Path]:
        """Write all files to the scratch folder; return temporary file -> its name, the main file last."""
        layer, folder = self.layer, self._scratch
        if folder is None:
            raise ValueError("the job is not open")
        if layer.format == "GPKG":
            copy_other_layers(layer.path, layer, folder / layer.path.name)
        with WorkerPool(self.task.workers) as pool:
            stream = PolygonStream(self.task, pool, folder)
            polygons = self._counted(stream.polygons(progress))
            if self.task.config.dissolve:
                polygons = dissolve(polygons, folder)
            write_layer(layer, self._timed(polygons), folder / layer.path.name)
        made = {folder / path.name: path for path in targets(layer.path, layer.format, qml=layer.qml)}
        main = folder / layer.path.name
        return {file: made[file] for file in sorted(made, key=lambda file: file == main) if file.exists()}

    def _counted(self, polygons: Iterator[Polygons]) -> Iterator[Polygons]:
        """Add up polygons and areas by class."""
        totals: dict[int, list[float]] = {value: [0, 0.0] for value in sorted(self.task.names)}
        for part in polygons:
            for value in np.unique(part.table.classes).tolist():
                chosen = part.table.classes == value
                total = totals.setdefault(value, [0, 0.0])
                total[0] += int(np.count_nonzero(chosen))
                total[1] += float(part.areas_m2[chosen].sum())
            if self.sketch is not None:
                self.sketch.add(part)
            yield part
        known = self.task.plan.ground.known
        self.classes = {
            self.layer.class_name(value): ClassPolygons(polygons=int(count), area_m2=area if known else None)
            for value, (count, area) in totals.items()
        }
        for value in sorted(self.task.plan.classes or ()):
            if not totals.get(value, (0,))[0]:
                self.task.warn(f"{self.task.name}: holds no object of {self.layer.class_name(value)}")

    def _timed(self, polygons: Iterator[Polygons]) -> Iterator[Polygons]:
        """Count features, and the time that the writer takes for them."""
        stages = self.task.stages
        for part in polygons:
            self.features += len(part)
            before = time.perf_counter()
            yield part
            stages["write"] = stages.get("write", 0) + time.perf_counter() - before


def to_geodataframe(
    labels: str | os.PathLike[str],
    config: VectorConfig | None = None,
    *,
    confidence: str | os.PathLike[str] | None = None,
) -> geopandas.GeoDataFrame:
    """Return the polygons of a class raster; settings of files in `config` are ignored."""
    import geopandas
    import shapely

    task = make_task(labels, confidence, config or VectorConfig())
    layer = _layer(Path("polygons.gpkg"), "GPKG", task)
    with TemporaryDirectory(prefix="rsseg-") as folder, WorkerPool(task.workers) as pool:
        parts = list(PolygonStream(task, pool, Path(folder)).polygons())
        wkb = [blob if isinstance(blob, bytes) else blob.tobytes() for part in parts for blob in part.wkb]
    columns = [columns_of(part, layer) for part in parts] or [columns_of(None, layer)]
    return geopandas.GeoDataFrame(
        {name: np.concatenate([part[name] for part in columns]) for name in columns[0]},
        geometry=shapely.from_wkb(np.array(wkb, object)),
        crs=task.crs or None,
    )


def format_of(path: Path, config: VectorConfig) -> str:
    """Return the format by name or ending."""
    if config.format != "auto":
        return config.format
    if path.suffix.lower() not in files.VECTOR_ENDINGS:
        raise UsageError(
            f"{path}: its ending names no format; needs one of {', '.join(files.VECTOR_ENDINGS)}, or pass "
            "--format"
        )
    return files.VECTOR_ENDINGS[path.suffix.lower()]


def _with_crs(config: VectorConfig, kind: str, path: Path, *, known: bool, where: str) -> VectorConfig:
    """Reproject to WGS 84 for GeoJSON (RFC 7946); `known` tells whether the raster has a CRS."""
    if kind != "GeoJSON":
        return config
    if not known:
        raise OutputError(f"{path}: GeoJSON is in WGS 84 and {where} has no CRS. Write a GeoPackage (.gpkg).")
    if config.dst_crs and config.dst_crs.upper() not in (WGS84, "OGC:CRS84", "CRS84"):
        raise UsageError(
            f"--dst-crs {config.dst_crs}: GeoJSON is in WGS 84 (RFC 7946). Leave it out, or write "
            f"{path.stem}.gpkg"
        )
    return dataclasses.replace(config, dst_crs=WGS84)


def _layer(path: Path, kind: str, task: VectorTask) -> Layer:
    config = task.config
    tags = _tags(task.info.path)
    metadata = {
        "software": f"rsseg {__version__}",
        "labels": task.name,
        "scene": tags.get("RSSEG_SCENE", ""),
        "model": tags.get("RSSEG_MODEL", ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": ", ".join(f"{name[2:]} {value:g}" for name, value in metres(config).items() if value)
        + (", smooth" if config.smooth else "")
        + (", --regularize" if config.regularize else ""),
    }
    return Layer(
        path=path,
        name=config.layer or path.stem,
        format=kind,
        crs=task.crs,
        names=task.names,
        colours=task.colours,
        confidence=task.plan.confidence is not None,
        metadata={key: text for key, text in metadata.items() if text},
        several=config.dissolve or task.seam is not None,
        qml=config.qml,
    )


def _tags(path: str) -> dict[str, str]:
    with gdal.env(path), gdal.errors(SceneError, path), gdal.open_raster(path) as dataset:
        return {key: value[:MAX_TAG] for key, value in gdal.tags(dataset).items()}
