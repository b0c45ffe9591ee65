"""Polygons to a vector file: batch by batch, and under its name once it is whole."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError, UsageError
from rsseg_cli.vector_rings import Polygons
from rsseg_cli.vector_style import Colour, add_style, make_qml

DRIVERS = {
    "GPKG": "GPKG",
    "FlatGeobuf": "FlatGeobuf",
    "GeoJSON": "GeoJSON",
    "Shapefile": "ESRI Shapefile",
    "GeoParquet": "Parquet",
}
# Shapefile's names have ten characters.
SHORT = {
    "class_index": "class_idx",
    "perimeter_m": "perim_m",
    "confidence": "conf_mean",
    "confidence_min": "conf_min",
}
SHAPEFILE_BYTES = 2**31 - 1
BATCH_BYTES = 48 << 20
BATCH_POLYGONS = 40_000
FULL_SCALE = 254.0
STORE = ".store.gpkg"  # in the scratch folder: polygons for a format that is not appended to
MERGED = ".merged.bin"  # in the scratch folder: classes after merging


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a vector file holds beside polygons.

    Attributes:
        format: a key of DRIVERS.
        crs: WKT, "" without.
        names, colours: of classes by value.
        confidence: whether there are its attributes.
        metadata: what made it.
    """

    path: Path
    name: str
    format: str
    crs: str
    names: Mapping[int, str]
    colours: Mapping[int, Colour]
    confidence: bool
    metadata: Mapping[str, str]
    dissolve: bool = False
    qml: bool = False

    def class_name(self, value: int) -> str:
        """A class's name, or what stands for it."""
        return self.names.get(value, f"class {value}")


class VectorWriter:
    """Takes polygons in order; used as a context manager, which removes what was not published.

    GeoPackages are appended to, Parquet files are written group by group, the other formats are made from a
    temporary GeoPackage. Memory: a batch; with `dissolve` all polygons.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.features = 0
        self._folder: Path | None = None
        self._waiting: list[Polygons] = []
        self._bytes = self._polygons = 0
        self._dissolved: dict[int, list[Polygons]] = {}
        self._parquet: Any = None

    def __enter__(self) -> Self:
        try:
            self._folder = Path(
                tempfile.mkdtemp(
                    prefix=f".{self.layer.path.name}.", suffix=".tmp", dir=self.layer.path.parent
                )
            )
        except OSError as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err})") from err
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """A folder beside the target that goes with the writer."""
        if self._folder is None:
            raise ValueError("the writer is not open")
        return self._folder

    @property
    def _store(self) -> Path:
        """Where polygons are appended."""
        return self.scratch / (self.layer.path.name if self.layer.format == "GPKG" else STORE)

    def write(self, polygons: Polygons) -> None:
        """Write the next polygons.

        Raises:
            OutputError: the disk is full.
        """
        if self.layer.dissolve:
            self._keep_by_class(polygons)
            return
        self._waiting.append(polygons)
        self._polygons += len(polygons)
        self._bytes += 16 * int(polygons.vertices.sum())
        if self._bytes >= BATCH_BYTES or self._polygons >= BATCH_POLYGONS:
            self._flush()

    def _keep_by_class(self, polygons: Polygons) -> None:
        for value in np.unique(polygons.table.classes):
            self._dissolved.setdefault(int(value), []).append(
                polygons.take(np.flatnonzero(polygons.table.classes == value))
            )

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._bytes = self._polygons = 0
        wkb = np.concatenate([part.wkb for part in waiting] or [np.zeros(0, object)])
        columns = [columns_of(part, self.layer) for part in waiting] or [columns_of(None, self.layer)]
        fields = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
        self._append(wkb, fields)

    def _append(self, wkb: NDArray[np.object_], fields: dict[str, NDArray[Any]]) -> None:
        if self.layer.format == "GeoParquet":
            self._append_parquet(wkb, fields)
        else:
            self._append_geopackage(wkb, fields)
        self.features += len(wkb)

    def _append_geopackage(self, wkb: NDArray[np.object_], fields: dict[str, NDArray[Any]]) -> None:
        import pyogrio
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

        first = not self._store.exists()
        options: dict[str, Any] = {}
        if first:
            options = {"layer_metadata": dict(self.layer.metadata), "GEOMETRY_NAME": "geom"}
            if self.layer.format != "GPKG":
                options["SPATIAL_INDEX"] = "NO"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="'crs' was not provided")
                pyogrio.raw.write(
                    self._store,
                    geometry=wkb,
                    field_data=list(fields.values()),
                    fields=np.array(list(fields), object),
                    geometry_type="MultiPolygon" if self.layer.dissolve else "Polygon",
                    crs=self.layer.crs or None,
                    driver="GPKG",
                    layer=self.layer.name,
                    append=not first,
                    **options,
                )
        except (DataSourceError, DataLayerError, FeatureError, OSError) as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err}). Is the disk full?") from err

    def _append_parquet(self, wkb: NDArray[np.object_], fields: dict[str, NDArray[Any]]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: pa.array(values) for name, values in fields.items()}
        table = pa.table({**columns, "geometry": pa.array(wkb, pa.binary())})
        if self._parquet is None:
            schema = table.schema.with_metadata(_parquet_metadata(self.layer))
            self._parquet = parquet.ParquetWriter(
                self.scratch / self.layer.path.name, schema, compression="zstd"
            )
        self._parquet.write_table(table)

    def finish(self) -> dict[Path, Path]:
        """Complete the file; temporary file -> its name, the main file last.

        Raises:
            OutputError: the format cannot hold the polygons, or the disk is full.
        """
        if self.layer.dissolve:
            for value, parts in sorted(self._dissolved.items()):
                self._append(*_dissolved(value, parts, self.layer))
        if self._waiting or not self.features:
            self._flush()
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
        elif self.layer.format == "GPKG":
            self._finish_geopackage()
        else:
            self._convert()
        return self._renames()

    def _finish_geopackage(self) -> None:
        qml = make_qml(self.layer.names, self.layer.colours)
        try:
            add_style(self._store, self.layer.name, qml)
        except sqlite3.Error as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err}). Is the disk full?") from err

    def _convert(self) -> None:
        """The temporary GeoPackage to another format, a part at a time."""
        import pyogrio
        from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

        layer, target = self.layer, self._store.parent / self.layer.path.name
        if layer.format == "Shapefile":
            self._check_shapefile()
        try:
            with (
                warnings.catch_warnings(),
                pyogrio.raw.open_arrow(
                    self._store, sql=_select(layer), batch_size=8192, use_pyarrow=False
                ) as (
                    found,
                    stream,
                ),
            ):
                warnings.simplefilter("ignore")  # shapefile's names are shortened here already
                pyogrio.write_arrow(
                    stream,
                    target,
                    driver=DRIVERS[layer.format],
                    layer=layer.path.stem if layer.format == "Shapefile" else layer.name,
                    geometry_type="MultiPolygon" if layer.dissolve else "Polygon",
                    crs=layer.crs or None,
                    geometry_name=found["geometry_name"] or "geom",
                    **_layer_options(layer),
                )
        except (DataSourceError, DataLayerError, FeatureError, OSError) as err:
            raise OutputError(f"{layer.path}: cannot be written ({err}). Is the disk full?") from err

    def _check_shapefile(self) -> None:
        stored = self._store.stat().st_size  # of the same coordinates with a little more around them
        records = self.features * 400
        if max(stored * 0.9, records) > SHAPEFILE_BYTES:
            raise OutputError(
                f"{self.layer.path}: {self.features} polygons take {stored / 1e9:.1f} GB; a Shapefile holds "
                "2 GB. Write a GeoPackage (.gpkg), FlatGeobuf (.fgb), or fewer polygons with --min-area."
            )

    def _renames(self) -> dict[Path, Path]:
        layer, folder = self.layer, self._store.parent
        if layer.qml:
            field = SHORT["class_index"] if layer.format == "Shapefile" else "class_index"
            (folder / f"{layer.path.stem}.qml").write_text(
                make_qml(layer.names, layer.colours, field), encoding="utf-8"
            )
        files = sorted(file for file in folder.iterdir() if file.name not in (STORE, MERGED))
        files.sort(key=lambda file: file.name == layer.path.name)
        return {file: layer.path.parent / file.name for file in files}


def targets(path: Path, kind: str, *, qml: bool) -> list[Path]:
    """Files that are going to be written."""
    endings = (".shp", ".shx", ".dbf", ".prj", ".cpg") if kind == "Shapefile" else (path.suffix,)
    return [path.with_suffix(ending) for ending in (*endings, *((".qml",) if qml else ()))]


def check_format(name: str, path: Path) -> None:
    """Refuse a format whose library is missing.

    Raises:
        UsageError: what to install.
    """
    if name != "GeoParquet":
        return
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as err:
        raise UsageError(
            f"{path}: GeoParquet needs pyarrow. Install it: pip install pyarrow (or "
            "pip install 'rsseg[parquet]')."
        ) from err


def columns_of(polygons: Polygons | None, layer: Layer) -> dict[str, NDArray[Any]]:
    """Attributes by name; those of no polygons for None."""
    if polygons is None:
        kinds: dict[str, Any] = {"class_index": np.int32, "class_name": object}
        kinds |= {"area_m2": np.float64, "perimeter_m": np.float64}
        kinds |= {"confidence": np.float64, "confidence_min": np.float64} if layer.confidence else {}
        return {name: np.zeros(0, kind) for name, kind in {**kinds, "vertices": np.int32}.items()}
    table = polygons.table
    names = {int(value): layer.class_name(int(value)) for value in np.unique(table.classes)}
    columns: dict[str, NDArray[Any]] = {
        "class_index": table.classes.astype(np.int32),
        "class_name": np.array([names[value] for value in table.classes.tolist()], object),
        "area_m2": polygons.areas_m2.round(4),
        "perimeter_m": polygons.perimeters_m.round(4),
    }
    if layer.confidence:
        present = table.confidence_counts > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = table.confidence_sums / table.confidence_counts / FULL_SCALE
        columns["confidence"] = np.where(present, mean, np.nan).round(4)
        columns["confidence_min"] = np.where(present, table.confidence_mins / FULL_SCALE, np.nan).round(4)
    return {**columns, "vertices": polygons.vertices.astype(np.int32)}


def _dissolved(
    value: int, parts: list[Polygons], layer: Layer
) -> tuple[NDArray[np.object_], dict[str, NDArray[Any]]]:
    """All polygons of a class as one multipolygon."""
    polygons = [wkb for part in parts for wkb in part.wkb]
    multi = b"\x01" + (6).to_bytes(4, "little") + len(polygons).to_bytes(4, "little") + b"".join(polygons)
    counts = sum(int(part.table.confidence_counts.sum()) for part in parts)
    sums = sum(int(part.table.confidence_sums.sum()) for part in parts)
    fields: dict[str, NDArray[Any]] = {
        "class_index": np.array([value], np.int32),
        "class_name": np.array([layer.class_name(value)], object),
        "area_m2": np.array([sum(part.areas_m2.sum() for part in parts)]).round(4),
        "perimeter_m": np.array([sum(part.perimeters_m.sum() for part in parts)]).round(4),
    }
    if layer.confidence:
        lowest = min(int(part.table.confidence_mins.min()) for part in parts) / FULL_SCALE
        fields["confidence"] = np.array([sums / counts / FULL_SCALE if counts else np.nan]).round(4)
        fields["confidence_min"] = np.array([lowest if counts else np.nan]).round(4)
    fields["vertices"] = np.array([sum(int(part.vertices.sum()) for part in parts)], np.int32)
    wkb = np.empty(1, object)
    wkb[0] = multi
    return wkb, fields


def _select(layer: Layer) -> str | None:
    """Columns under the names that a Shapefile has room for."""
    if layer.format != "Shapefile":
        return None
    columns = [f'"{name}" AS "{SHORT.get(name, name)}"' for name in columns_of(None, layer)]
    return f'SELECT geom, {", ".join(columns)} FROM "{layer.name}"'


def _layer_options(layer: Layer) -> dict[str, Any]:
    about = ", ".join(f"{key}: {value}" for key, value in layer.metadata.items())
    if layer.format == "GeoJSON":
        return {"RFC7946": "YES", "COORDINATE_PRECISION": "9", "DESCRIPTION": about}
    if layer.format == "FlatGeobuf":
        return {"DESCRIPTION": about, "TITLE": layer.name, "TEMPORARY_DIR": str(layer.path.parent)}
    return {"ENCODING": "UTF-8"}


def _parquet_metadata(layer: Layer) -> dict[bytes, bytes]:
    import json

    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["MultiPolygon" if layer.dissolve else "Polygon"],
    }
    column["crs"] = None
    if layer.crs:
        from pyproj import CRS

        column["crs"] = CRS.from_wkt(layer.crs).to_json_dict()
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {
        b"geo": json.dumps(about).encode(),
        **{key.encode(): text.encode() for key, text in layer.metadata.items()},
    }
