"""Polygons to a vector file: batch by batch, and under its name once it is whole."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError
from rsseg_cli.vector.dissolve import Dissolver
from rsseg_cli.vector.geopackage import GeoPackage
from rsseg_cli.vector.layer import DRIVERS, Layer, columns_of, make_qml, targets
from rsseg_cli.vector.polygons import Polygons

SHAPEFILE_BYTES = 2**31 - 1


def convert(store: Path, target: Path, layer: Layer, features: int) -> None:
    """Write a GeoPackage's layer in another format, a part at a time.

    Raises:
        OutputError: the format cannot hold the polygons, or the disk is full.
    """
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    if layer.format == "Shapefile":
        _check_shapefile(store, layer, features)
    try:
        with (
            warnings.catch_warnings(),
            pyogrio.raw.open_arrow(store, sql=_select(layer), batch_size=8192, use_pyarrow=False) as opened,
        ):
            found, stream = opened
            warnings.simplefilter("ignore")  # shapefile's names are shortened here already
            pyogrio.write_arrow(
                stream,
                target,
                driver=DRIVERS[layer.format],
                layer=layer.path.stem if layer.format == "Shapefile" else layer.name,
                geometry_type=layer.geometry,
                crs=layer.crs or None,
                geometry_name=found["geometry_name"] or "geom",
                **_layer_options(layer),
            )
    except (DataSourceError, DataLayerError, FeatureError, OSError) as err:
        raise OutputError(f"{layer.path}: cannot be written ({err}). Is the disk full?") from err


def _check_shapefile(store: Path, layer: Layer, features: int) -> None:
    stored = store.stat().st_size  # of the same coordinates with a little more around them
    records = features * 400
    if max(stored * 0.9, records) > SHAPEFILE_BYTES:
        raise OutputError(
            f"{layer.path}: {features} polygons take {stored / 1e9:.1f} GB; a Shapefile holds "
            "2 GB. Write a GeoPackage (.gpkg), FlatGeobuf (.fgb), or fewer polygons with --min-area."
        )


def _select(layer: Layer) -> str:
    """Columns under the names that a Shapefile has room for."""
    columns = [f'"{name}" AS "{short}"' for name, short in zip(layer.fields, layer.columns, strict=True)]
    quoted = layer.name.replace('"', '""')
    return f'SELECT geom, {", ".join(columns)} FROM "{quoted}"'


def _layer_options(layer: Layer) -> dict[str, Any]:
    about = ", ".join(f"{key}: {value}" for key, value in layer.metadata.items())
    if layer.format == "GeoJSON":
        return {"RFC7946": "YES", "COORDINATE_PRECISION": "9", "DESCRIPTION": about}
    if layer.format == "FlatGeobuf":
        return {"DESCRIPTION": about, "TITLE": layer.name, "TEMPORARY_DIR": str(layer.path.parent)}
    return {"ENCODING": "UTF-8"}


class ParquetFile:
    """A GeoParquet file, group by group.

    Args:
        path: where it is written.
    """

    def __init__(self, path: Path, layer: Layer) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        kinds = {"i": pa.int32(), "f": pa.float64(), "O": pa.string()}
        fields = [(name, kinds[kind.kind]) for name, kind in layer.fields.items()]
        self._schema = pa.schema([*fields, ("geometry", pa.binary())], metadata=_parquet_metadata(layer))
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def append(self, wkb: NDArray[np.object_], columns: dict[str, NDArray[Any]]) -> None:
        """Add polygons."""
        import pyarrow as pa

        geometry = [blob if isinstance(blob, bytes) else blob.tobytes() for blob in wkb]
        arrays = [pa.array(values, from_pandas=True) for values in columns.values()]
        self._writer.write_table(pa.table([*arrays, pa.array(geometry, pa.binary())], schema=self._schema))

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def _parquet_metadata(layer: Layer) -> dict[bytes, bytes]:
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": [layer.geometry], "crs": None}
    if layer.crs:
        from pyproj import CRS

        column["crs"] = CRS.from_wkt(layer.crs).to_json_dict()
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return {
        b"geo": json.dumps(about).encode(),
        **{key.encode(): text.encode() for key, text in layer.metadata.items()},
    }


GROUP = 40_000  # polygons of a Parquet group
GROUP_BYTES = 48 << 20
STORE = ".store.gpkg"  # in the scratch folder: polygons for a format that is not appended to


class VectorWriter:
    """Takes polygons in order; used as a context manager, which removes what was not published.

    GeoPackages and Parquet files are appended to, the other formats are made from a temporary GeoPackage.
    Memory: a batch of polygons; large ones are copied from file to file.

    Args:
        scratch: folder for what is temporary, made anew and left to the caller; one of its own by default.
    """

    def __init__(self, layer: Layer, scratch: Path | None = None) -> None:
        self.layer = layer
        self._given = scratch
        self.features = 0
        self._folder: Path | None = None
        self._file: GeoPackage | ParquetFile | None = None
        self._dissolver: Dissolver | None = None
        self._waiting: list[Polygons] = []

    def __enter__(self) -> Self:
        layer = self.layer
        try:
            if self._given is not None:
                shutil.rmtree(self._given, ignore_errors=True)
                self._given.mkdir()
            self._folder = self._given or Path(
                tempfile.mkdtemp(prefix=f".{layer.path.name}.", suffix=".tmp", dir=layer.path.parent)
            )
            if layer.dissolve:
                self._dissolver = Dissolver(self._folder)
        except OSError as err:
            raise OutputError(f"{layer.path}: cannot be written ({err})") from err
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._folder is not None and self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """A folder beside the target that goes with the writer."""
        if self._folder is None:
            raise ValueError("the writer is not open")
        return self._folder

    def write(self, polygons: Polygons) -> None:
        """Write the next polygons.

        Raises:
            OutputError: the disk is full.
        """
        if self._dissolver is not None:
            self._dissolver.add(polygons)
            return
        self._append(polygons)

    def _append(self, polygons: Polygons) -> None:
        self.features += len(polygons)
        if self.layer.format != "GeoParquet":
            self._append_geopackage(polygons)
            return
        self._waiting.append(polygons)
        waiting = [len(blob) for part in self._waiting for blob in part.wkb]
        if len(waiting) >= GROUP or sum(waiting) >= GROUP_BYTES:
            self._append_group()

    def _append_geopackage(self, polygons: Polygons | None) -> None:
        try:
            if self._file is None:
                self._file = self._new_geopackage()
            if polygons is not None and isinstance(self._file, GeoPackage):
                self._file.append(polygons.wkb, polygons.boxes, columns_of(polygons, self.layer))
        except sqlite3.Error as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err}). Is the disk full?") from err

    @property
    def _store(self) -> Path:
        """The GeoPackage that is written."""
        return self.scratch / (self.layer.path.name if self.layer.format == "GPKG" else STORE)

    def _new_geopackage(self) -> GeoPackage:
        layer = self.layer
        return GeoPackage(
            self._store,
            layer.name,
            geometry=layer.geometry.upper(),
            crs=layer.crs,
            fields=layer.fields,
            metadata=layer.metadata,
            indexed=layer.format == "GPKG",
        )

    def _append_group(self) -> None:
        waiting, self._waiting = self._waiting, []
        columns = [columns_of(part, self.layer) for part in (waiting or (None,))]
        if not isinstance(self._file, ParquetFile):
            self._file = ParquetFile(self.scratch / self.layer.path.name, self.layer)
        self._file.append(
            np.concatenate([np.zeros(0, object), *(part.wkb for part in waiting)]),
            {name: np.concatenate([part[name] for part in columns]) for name in columns[0]},
        )

    def finish(self) -> dict[Path, Path]:
        """Complete the file; temporary file -> its name, the main file last.

        Raises:
            OutputError: the format cannot hold the polygons, or the disk is full.
        """
        layer = self.layer
        if self._dissolver is not None:
            for polygons in self._dissolver.finish():
                self._append(polygons)
        if layer.format == "GeoParquet":
            self._finish_parquet()
        else:
            self._finish_geopackage()
            if layer.format != "GPKG":
                convert(self._store, self.scratch / layer.path.name, layer, self.features)
        if layer.qml:
            text = make_qml(layer.names, layer.colours, layer.columns[0])
            (self.scratch / f"{layer.path.stem}.qml").write_text(text, encoding="utf-8")
        found = [
            (self.scratch / path.name, path) for path in targets(layer.path, layer.format, qml=layer.qml)
        ]
        found.sort(key=lambda names: names[1] == layer.path)
        return {file: path for file, path in found if file.exists()}

    def _finish_parquet(self) -> None:
        if self._waiting or self._file is None:
            self._append_group()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _finish_geopackage(self) -> None:
        self._append_geopackage(None)
        try:
            if isinstance(self._file, GeoPackage):
                self._file.finish(make_qml(self.layer.names, self.layer.colours))
        except (sqlite3.Error, OSError) as err:
            raise OutputError(f"{self.layer.path}: cannot be written ({err}). Is the disk full?") from err
