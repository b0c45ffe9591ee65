"""GeoPackages, row by row.

A GeoPackage is an SQLite file, and SQLite itself takes the rows here: GDAL keeps a polygon several times
while it writes it, and its Python binding brings 100 MB of libraries along. Geometries stand in the last
column, where SQLite can set aside room for one and take it bit by bit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from rsseg_cli import files
from rsseg_cli.errors import OutputError
from rsseg_cli.vector.layer import STYLES_TABLE
from rsseg_cli.vector.rtree import SpatialIndex
from rsseg_cli.vector.spill import Blob, chunks
from rsseg_cli.vector.tables import BOX, NO_CRS_WKT, TABLES, TRIGGERS

if TYPE_CHECKING:
    from pyproj import CRS

APPLICATION, VERSION = 0x47504B47, 10300  # "GPKG", 1.3
NO_SRS = 99999  # as GDAL writes it
OWN_SRS = 100000  # a CRS without EPSG number
ROWS = 50  # of a statement
SMALL = 1 << 16  # bytes of a geometry that goes with its row: SQLite keeps the rows it was last given
MOST_BYTES = 1_000_000_000  # of one geometry: SQLite's limit
_SQL_TYPES = {"i": "MEDIUMINT", "f": "REAL", "O": "TEXT"}


class GeoPackage:
    """One layer of polygons in a new file.

    Args:
        layer: its name.
        geometry: "POLYGON" or "MULTIPOLYGON".
        crs: WKT, "" without.
        fields: type of each attribute.
        metadata: of the layer.
        indexed: with a spatial index.
    """

    def __init__(
        self,
        path: Path,
        layer: str,
        *,
        geometry: str,
        crs: str,
        fields: Mapping[str, np.dtype[Any]],
        metadata: Mapping[str, str],
        indexed: bool,
    ) -> None:
        self._path, self._layer, self._fields = path, layer, list(fields)
        self._count = 0
        self._extent: NDArray[np.float64] | None = None  # left, bottom, right, top
        # Autocommit, and no journal: a file that is not finished is thrown away.
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            for setting in ("journal_mode = OFF", "synchronous = OFF"):
                self._database.execute(f"PRAGMA {setting}")
            self._database.execute(f"PRAGMA application_id = {APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {VERSION}")
            self._database.execute("BEGIN")
            for statement in TABLES.split(";\n"):
                self._database.execute(statement)
            self._srs = self._add_crs(crs)
            columns = [f"{_name(name)} {_SQL_TYPES[kind.kind]}" for name, kind in fields.items()]
            self._database.execute(
                f"CREATE TABLE {_name(layer)} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
                f"{', '.join(columns)}, geom {geometry})"
            )
            self._describe(geometry, metadata)
            self._index = SpatialIndex(self._database, self._index_name) if indexed else None
        except BaseException:
            self._database.close()
            raise

    @property
    def _index_name(self) -> str:
        return f"rtree_{self._layer}_geom"

    def close(self) -> None:
        """Let the file go; what was not finished stays unfinished."""
        self._database.close()

    def _insert(self, table: str, *values: Any) -> None:
        self._database.execute(f"INSERT OR IGNORE INTO {table} VALUES ({_marks(len(values))})", values)

    def _add_crs(self, wkt: str) -> int:
        """Number of a CRS; the table holds it and WGS 84."""
        from pyproj import CRS

        wgs84 = CRS.from_epsg(4326)
        table = "gpkg_spatial_ref_sys"
        self._insert(table, wgs84.name, 4326, "EPSG", 4326, _definition(wgs84, ""), None)
        if not wkt:
            self._insert(table, "Undefined SRS", NO_SRS, "GDAL", NO_SRS, NO_CRS_WKT, None)
            return NO_SRS
        crs = CRS.from_wkt(wkt)
        code = crs.to_epsg(min_confidence=100)
        number, organization = (code, "EPSG") if code else (OWN_SRS, "NONE")
        self._insert(table, crs.name, number, organization, number, _definition(crs, wkt), None)
        return number

    def _describe(self, geometry: str, metadata: Mapping[str, str]) -> None:
        root = ET.Element("GDALMultiDomainMetadata")
        domain = ET.SubElement(root, "Metadata")
        for key, text in metadata.items():
            ET.SubElement(domain, "MDI", key=key).text = text
        execute = self._database.execute
        execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) "
            "VALUES (?, 'features', ?, ?)",
            (self._layer, self._layer, self._srs),
        )
        execute(
            "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', ?, ?, 0, 0)",
            (self._layer, geometry, self._srs),
        )
        execute(
            "INSERT INTO gpkg_metadata (id, md_standard_uri, metadata) VALUES (1, 'http://gdal.org', ?)",
            (ET.tostring(root, encoding="unicode"),),
        )
        execute(
            "INSERT INTO gpkg_metadata_reference (reference_scope, table_name, md_file_id) "
            "VALUES ('table', ?, 1)",
            (self._layer,),
        )

    def append(
        self, wkb: NDArray[np.object_], boxes: NDArray[np.float64], columns: Mapping[str, NDArray[Any]]
    ) -> None:
        """Add polygons.

        Args:
            wkb: bytes, or blobs too large to hold.
            boxes: (n, 4), left, bottom, right, top.
            columns: attributes by name; NaN becomes NULL.

        Raises:
            OutputError: a geometry is larger than SQLite takes.
            sqlite3.Error: the disk is full.
        """
        heads = _heads(boxes, self._srs)
        attributes = zip(*(columns[name].tolist() for name in self._fields), strict=True)
        large: list[tuple[int, bytes, Blob]] = []

        def rows() -> Iterator[tuple[Any, ...]]:
            for number, (head, body, values) in enumerate(
                zip(heads, wkb, attributes, strict=True), self._count + 1
            ):
                if isinstance(body, bytes) and len(body) <= SMALL:
                    yield number, *values, head + body
                else:
                    large.append((number, head, body))
                    yield number, *values, None

        insert, marks = f"INSERT INTO {_name(self._layer)} VALUES ", f"({_marks(len(self._fields) + 2)})"
        waiting = rows()
        while len(some := list(islice(waiting, ROWS))) == ROWS:
            self._database.execute(insert + ", ".join([marks] * ROWS), list(chain.from_iterable(some)))
        self._database.executemany(insert + marks, some)
        for number, head, body in large:
            self._write_large(number, head, body)
        self._count += len(wkb)
        if self._index is not None:
            self._index.add(boxes)
        if len(boxes):
            ends = boxes if self._extent is None else np.vstack([boxes, self._extent])
            self._extent = np.concatenate([ends[:, :2].min(0), ends[:, 2:].max(0)])

    def _write_large(self, number: int, head: bytes, body: Blob) -> None:
        """Give a row its geometry bit by bit."""
        size = len(head) + len(body)
        if size > MOST_BYTES:
            raise OutputError(
                f"{self._path.name}: a polygon of {len(body) // 16} vertices takes {size / 1e9:.1f} GB, and "
                "a GeoPackage holds 1 GB in one. Write fewer with --simplify or --min-area, or .parquet."
            )
        table = _name(self._layer)
        self._database.execute(f"UPDATE {table} SET geom = zeroblob(?) WHERE fid = ?", (size, number))
        with self._database.blobopen(self._layer, "geom", number) as blob:
            blob.write(head)
            for part in chunks(body):
                blob.write(part)

    def finish(self, qml: str) -> None:
        """Complete the file.

        Args:
            qml: the layer's QGIS style.

        Raises:
            sqlite3.Error: the disk is full.
        """
        execute, layer = self._database.execute, self._layer
        if self._index is not None:
            self._finish_index(self._index)
        if self._extent is not None:
            extent = self._extent.tolist()
            execute("UPDATE gpkg_contents SET min_x = ?, min_y = ?, max_x = ?, max_y = ?", extent)
        self._add_style(qml)
        execute("INSERT INTO gpkg_ogr_contents VALUES (?, ?)", (layer, self._count))
        for event, sign in (("INSERT", "+"), ("DELETE", "-")):
            execute(
                f"CREATE TRIGGER {_name(f'trigger_{event.lower()}_feature_count_{layer}')} AFTER {event} ON "
                f"{_name(layer)} BEGIN UPDATE gpkg_ogr_contents SET feature_count = feature_count {sign} 1 "
                f"WHERE lower(table_name) = lower({_text(layer)}); END"
            )
        execute("COMMIT")
        self._database.close()
        files.sync(self._path)

    def _finish_index(self, spatial: SpatialIndex) -> None:
        table = self._index_name
        spatial.finish()
        layer, index = _name(self._layer), _name(table)
        for name, (event, condition, action) in TRIGGERS.items():
            self._database.execute(
                f"CREATE TRIGGER {_name(f'{table}_{name}')} AFTER {event} ON {layer} WHEN {condition} "
                f"BEGIN {action.format(index=index, box=BOX)}; END"
            )
        self._insert(
            "gpkg_extensions",
            self._layer,
            "geom",
            "gpkg_rtree_index",
            "http://www.geopackage.org/spec120/#extension_rtree",
            "write-only",
        )

    def _add_style(self, qml: str) -> None:
        """Make a style the layer's default."""
        self._database.execute(STYLES_TABLE)
        self._database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, "
            "styleName, styleQML, styleSLD, useAsDefault, description, owner) VALUES "
            "('', '', ?, 'geom', 'classes', ?, '', 1, 'Colours of the classes', '')",
            (self._layer, qml),
        )
        self._database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', '')"
        )


def _heads(boxes: NDArray[np.float64], srs: int) -> list[bytes]:
    """Headers of geometries: magic, version 0, little-endian with a box, the CRS, the box."""
    heads = np.zeros(
        len(boxes), [("magic", "S2"), ("version", "u1"), ("flags", "u1"), ("srs", "<i4"), ("box", "<f8", 4)]
    )
    heads["magic"], heads["flags"], heads["srs"] = b"GP", 3, srs
    heads["box"] = boxes[:, [0, 2, 1, 3]]
    whole, size = heads.tobytes(), heads.itemsize
    return [whole[begin : begin + size] for begin in range(0, len(whole), size)]


def _definition(crs: CRS, wkt: str) -> str:
    """What the tables hold of a CRS: WKT 1, or newer where that has no words for it."""
    from pyproj.exceptions import CRSError

    try:
        return str(crs.to_wkt("WKT1_GDAL"))
    except CRSError:
        return wkt


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _name(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
