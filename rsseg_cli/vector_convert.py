"""Formats that GDAL or Arrow write."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError
from rsseg_cli.vector_layer import DRIVERS, Layer

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
