"""Polygons to a vector file: a stream of Arrow batches that GDAL, or pyarrow for GeoParquet, writes."""

from __future__ import annotations

import json
import sqlite3
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files
from rsseg_cli.errors import OutputError
from rsseg_cli.vector.layer import Layer, columns_of
from rsseg_cli.vector.polygons import Polygons
from rsseg_cli.vector.storage import COPY_BYTES, Blob, release_pages
from rsseg_cli.vector.trace import portions

if TYPE_CHECKING:
    import pyarrow as pa

STYLES_TABLE = """CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""
BATCH_BYTES, ROW_BYTES = 32 << 20, 400  # of an Arrow batch, and of a polygon beside its geometry
PARQUET_GROUP = 40_000  # polygons; a group ends with the batch that fills it
SHAPEFILE_RECORD = 400  # bytes of a polygon's attributes
BBOX = ("xmin", "ymin", "xmax", "ymax")
GPKG_HEAD = 40  # bytes before the WKB: with a number of the CRS, and bounds
# A file that is not finished is thrown away, so no journal. The index of a million polygons fits the memory.
GPKG_CONFIG = {
    "OGR_SQLITE_JOURNAL": "OFF",
    "OGR_SQLITE_SYNCHRONOUS": "OFF",
    "OGR_GPKG_MAX_RAM_USAGE_RTREE": str(32 << 20),
}


def write_layer(layer: Layer, polygons: Iterator[Polygons], path: Path) -> None:
    """Write polygons to a new file, in order and batch by batch.

    Memory: a batch; of a large polygon some copies that GDAL makes.
    """
    import pyarrow as pa

    schema = _schema(layer)
    failures: list[BaseException] = []
    count = size = 0

    values: set[int] = set()
    later: dict[int, Blob] = {}

    def batches() -> Generator[pa.RecordBatch, None, None]:
        nonlocal count, size
        try:
            for part in polygons:
                sizes = np.array([len(blob) for blob in part.wkb], np.int64)
                first, count, size = count, count + len(sizes), size + int(sizes.sum())
                values.update(np.unique(part.table.classes).tolist())
                _check_limits(layer, int(sizes.max(initial=0)), count, size)
                if layer.format == "GPKG":
                    later.update(_put_off(part, first + 1, layer))
                yield from _batches(part, layer, schema)
        except BaseException as err:  # GDAL's own error would hide it
            failures.append(err)
            raise

    with closing(batches()) as stream:
        try:
            if layer.format == "GeoParquet":
                _write_parquet(stream, schema, layer, path)
            else:
                _write_with_gdal(pa.RecordBatchReader.from_batches(schema, stream), layer, path)
            if layer.format == "GPKG":
                _finish_geopackage(path, layer, count, values, later)
            if layer.qml:
                path.with_suffix(".qml").write_bytes(layer.style(values))
            files.sync(path)
        except (RuntimeError, OSError, pa.ArrowException, sqlite3.Error) as err:
            if not failures:
                raise OutputError(f"{layer.path}: cannot be written ({err}). Is the disk full?") from err
        if failures:
            raise failures[0]


def copy_other_layers(source: Path, layer: Layer, path: Path) -> None:
    """Copy a GeoPackage, with what its journal holds, if it holds more than this layer."""
    try:
        with _reading(source) as old:
            if not _holds_others(old, layer):
                return
            with closing(sqlite3.connect(path)) as new:
                old.backup(new)
    except sqlite3.OperationalError as err:  # in use, or its journal is another file's
        with suppress(sqlite3.DatabaseError), _reading(source, "&immutable=1") as old:
            if _holds_others(old, layer):
                raise OutputError(
                    f"{source}: holds other layers, and cannot be read ({err}). Close it in other programs, "
                    "or choose another output."
                ) from err
    except sqlite3.DatabaseError:  # no GeoPackage
        path.unlink(missing_ok=True)


@contextmanager
def _reading(path: Path, options: str = "") -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{options}", uri=True)) as database:
        yield database


def _holds_others(database: sqlite3.Connection, layer: Layer) -> bool:
    names = {str(name).casefold() for (name,) in database.execute("SELECT table_name FROM gpkg_contents")}
    return bool(names - {layer.name.casefold(), "layer_styles"})


def load_pyogrio() -> None:
    """Import pyogrio as where pandas is not installed: it takes half the time of a small raster otherwise.

    For programs of their own: geopandas would not find pyogrio complete later on.
    """
    absent = {"geopandas", "pandas"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is "not installed"
    import pyogrio  # noqa: F401

    for name in absent:
        del sys.modules[name]


def _schema(layer: Layer) -> pa.Schema:
    import pyarrow as pa

    kinds = {"i": pa.int32(), "f": pa.float64(), "O": pa.large_string()}
    fields = [
        (name, kinds[kind.kind]) for name, kind in zip(layer.columns, layer.fields.values(), strict=True)
    ]
    fields.append((layer.geometry_column, pa.large_binary()))
    if layer.format == "GeoParquet":
        fields.append(("bbox", pa.struct([(part, pa.float64()) for part in BBOX])))
    return pa.schema(fields)


def _put_off(polygons: Polygons, first: int, layer: Layer) -> Iterator[tuple[int, Blob]]:
    """Put the bounds in place of polygons that lie in files; yield these by number."""
    import shapely

    for number, blob in enumerate(polygons.wkb):
        if not isinstance(blob, bytes):
            box = shapely.box(*polygons.bounds[number])
            polygons.wkb[number] = shapely.to_wkb(shapely.multipolygons([box]) if layer.several else box)
            yield first + number, blob


def _batches(polygons: Polygons, layer: Layer, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield polygons as Arrow batches; one that lies in a file has a batch of its own."""
    import pyarrow as pa

    attributes = list(columns_of(polygons, layer).values())
    in_file = np.array([not isinstance(blob, bytes) for blob in polygons.wkb], np.bool_)
    sizes = np.array([len(blob) for blob in polygons.wkb], np.int64)
    for first, end in portions(np.where(in_file, BATCH_BYTES, sizes + ROW_BYTES), BATCH_BYTES):
        arrays = [_array(values[first:end]) for values in attributes]
        arrays.append(_binary(pa.large_binary(), polygons.wkb[first:end].tolist()))
        if layer.format == "GeoParquet":
            sides = [_array(side[first:end]) for side in polygons.bounds.T]
            arrays.append(pa.StructArray.from_arrays(sides, BBOX))
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: NDArray[Any]) -> pa.Array:
    """An Arrow array of buffers, as `pyarrow.array` would import pandas; NaN becomes null."""
    import pyarrow as pa

    if values.dtype == object:
        return _binary(pa.large_string(), [text.encode() for text in values.tolist()])
    present = None
    if values.dtype.kind == "f":
        present = pa.py_buffer(np.packbits(~np.isnan(values), bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [present, data])


def _binary(kind: pa.DataType, blobs: Sequence[Any]) -> pa.Array:
    """An Arrow array of bytes; a single one that lies in a file is not copied."""
    import pyarrow as pa

    offsets = np.cumsum([0, *map(len, blobs)], dtype=np.int64)
    data = blobs[0] if len(blobs) == 1 else b"".join(blobs)
    return pa.Array.from_buffers(kind, len(blobs), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _check_limits(layer: Layer, largest: int, count: int, size: int) -> None:
    """Refuse what a format cannot hold; `largest` geometry and `size` of all so far in bytes."""
    if layer.format == "GPKG" and largest > layer.max_geometry_bytes:
        raise OutputError(
            f"{layer.path}: a polygon of {largest // 16} vertices takes {largest / 1e9:.1f} GB, and a "
            "GeoPackage holds 1 GB in one. Write fewer with --simplify or --min-area, or .parquet."
        )
    if layer.format == "Shapefile" and max(size, count * SHAPEFILE_RECORD) > layer.max_shapefile_bytes:
        raise OutputError(
            f"{layer.path}: more than {count} polygons; a Shapefile holds 2 GB. Write a GeoPackage (.gpkg), "
            "FlatGeobuf (.fgb), or fewer polygons with --min-area."
        )


def _write_with_gdal(reader: pa.RecordBatchReader, layer: Layer, path: Path) -> None:
    import pyogrio

    about = ", ".join(f"{key}: {value}" for key, value in layer.metadata.items())
    options: dict[str, dict[str, Any]] = {
        # QGIS and GDAL of any age can edit version 1.2, but not rename a layer with the triggers of 1.4.
        "GPKG": {"dataset_options": {"VERSION": "1.2"}, "layer_metadata": dict(layer.metadata)},
        "GeoJSON": {"RFC7946": "YES", "COORDINATE_PRECISION": "9", "DESCRIPTION": about},
        "FlatGeobuf": {"DESCRIPTION": about, "TITLE": layer.name, "TEMPORARY_DIR": str(path.parent)},
        "Shapefile": {"ENCODING": "UTF-8"},
    }
    with warnings.catch_warnings(), _gdal_config(GPKG_CONFIG):
        warnings.simplefilter("ignore")  # a Shapefile's names are shortened here already
        pyogrio.write_arrow(
            reader,
            path,
            driver=layer.driver,
            layer=path.stem if layer.format == "Shapefile" else layer.name,
            geometry_name=layer.geometry_column,
            geometry_type=layer.geometry,
            crs=layer.crs or None,
            **options[layer.format],
        )


@contextmanager
def _gdal_config(options: dict[str, str]) -> Iterator[None]:
    """Set options of pyogrio's GDAL for a while."""
    import pyogrio

    before = {name: pyogrio.get_gdal_config_option(name) for name in options}
    pyogrio.set_gdal_config_options(options)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


def _write_parquet(batches: Iterator[pa.RecordBatch], schema: pa.Schema, layer: Layer, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet
    from pyproj import CRS

    crs = CRS.from_wkt(layer.crs).to_json_dict() if layer.crs else None
    column = {"encoding": "WKB", "geometry_types": [layer.geometry], "crs": crs}
    column["covering"] = {"bbox": {part: ["bbox", part] for part in BBOX}}
    about = {
        "version": "1.1.0",
        "primary_column": layer.geometry_column,
        "columns": {layer.geometry_column: column},
    }
    described = schema.with_metadata({"geo": json.dumps(about), **layer.metadata})
    counted = [*layer.columns, *(f"bbox.{part}" for part in BBOX)]
    options = {"compression": "zstd", "use_dictionary": ["class_name"], "write_statistics": counted}
    with parquet.ParquetWriter(path, described, **options) as writer:
        group: list[pa.RecordBatch] = []
        for batch in batches:
            group.append(batch)
            if sum(map(len, group)) >= PARQUET_GROUP or sum(part.nbytes for part in group) >= BATCH_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        writer.write_table(pa.Table.from_batches(group, schema))


def _fill_in(database: sqlite3.Connection, layer: Layer, polygons: Mapping[int, Blob]) -> None:
    """Write polygons in place of their bounds, bit by bit: GDAL would hold three copies of each."""
    table = layer.name.replace('"', '""')
    triggers = database.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (layer.name,)
    ).fetchall()  # they call functions that only GDAL has
    for name, _ in triggers:
        database.execute('DROP TRIGGER "' + name.replace('"', '""') + '"')
    for number, wkb in polygons.items():
        where = f'FROM "{table}" WHERE fid = ?'
        (head,) = database.execute(f"SELECT substr(geom, 1, {GPKG_HEAD}) {where}", (number,)).fetchone()
        database.execute(
            f'UPDATE "{table}" SET geom = zeroblob(?) WHERE fid = ?', (GPKG_HEAD + len(wkb), number)
        )
        with database.blobopen(layer.name, "geom", number) as blob:
            blob.write(head)
            for begin in range(0, len(wkb), COPY_BYTES):
                blob.write(bytes(wkb[begin : begin + COPY_BYTES]))
                release_pages(wkb)
    for _, sql in triggers:
        database.execute(sql)


def _finish_geopackage(
    path: Path, layer: Layer, features: int, values: set[int], later: Mapping[int, Blob]
) -> None:
    """Write what was put off and the default style; check the index, whose errors GDAL only logs."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        _fill_in(database, layer, later)
        index = f"rtree_{layer.name}_geom_rowid".replace('"', '""')
        if database.execute(f'SELECT count(*) FROM "{index}"').fetchone() != (features,):
            raise sqlite3.DatabaseError("its spatial index is not complete")
    add_style(path, layer.name, layer.style(values).decode())


def add_style(path: Path, layer: str, qml: str) -> None:
    """Make a QGIS style the default of a GeoPackage's layer."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(STYLES_TABLE)
        database.execute("DELETE FROM layer_styles WHERE f_table_name = ?", (layer,))
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, "
            "styleName, styleQML, styleSLD, useAsDefault, description, owner) VALUES "
            "('', '', ?, 'geom', 'classes', ?, '', 1, 'Colours of the classes', '')",
            (layer, qml),
        )
        database.execute(
            "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier, description) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', '')"
        )
