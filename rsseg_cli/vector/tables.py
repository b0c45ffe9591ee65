"""What makes an SQLite file a GeoPackage: OGC 12-128r18, annexes C and F."""

from __future__ import annotations

TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
    organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL,
    description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL,
    identifier TEXT UNIQUE, description TEXT DEFAULT '',
    last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
    min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
    CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_ogr_contents (table_name TEXT NOT NULL PRIMARY KEY, feature_count INTEGER DEFAULT NULL);
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
    geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
    CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
    CONSTRAINT uk_gc_table_name UNIQUE (table_name),
    CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
    CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_extensions (table_name TEXT, column_name TEXT, extension_name TEXT NOT NULL,
    definition TEXT NOT NULL, scope TEXT NOT NULL,
    CONSTRAINT ge_tce UNIQUE (table_name, column_name, extension_name));
CREATE TABLE gpkg_metadata (id INTEGER CONSTRAINT m_pk PRIMARY KEY ASC NOT NULL,
    md_scope TEXT NOT NULL DEFAULT 'dataset', md_standard_uri TEXT NOT NULL,
    mime_type TEXT NOT NULL DEFAULT 'text/xml', metadata TEXT NOT NULL DEFAULT '');
CREATE TABLE gpkg_metadata_reference (reference_scope TEXT NOT NULL, table_name TEXT, column_name TEXT,
    row_id_value INTEGER, timestamp DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
    md_file_id INTEGER NOT NULL, md_parent_id INTEGER,
    CONSTRAINT crmr_mfi_fk FOREIGN KEY (md_file_id) REFERENCES gpkg_metadata(id),
    CONSTRAINT crmr_mpi_fk FOREIGN KEY (md_parent_id) REFERENCES gpkg_metadata(id));
INSERT INTO gpkg_spatial_ref_sys VALUES
    ('Undefined Cartesian SRS', -1, 'NONE', -1, 'undefined',
        'undefined Cartesian coordinate reference system'),
    ('Undefined geographic SRS', 0, 'NONE', 0, 'undefined',
        'undefined geographic coordinate reference system');
INSERT INTO gpkg_extensions VALUES
    ('gpkg_metadata', NULL, 'gpkg_metadata', 'http://www.geopackage.org/spec120/#extension_metadata',
        'read-write'),
    ('gpkg_metadata_reference', NULL, 'gpkg_metadata',
        'http://www.geopackage.org/spec120/#extension_metadata', 'read-write');
"""
NO_CRS_WKT = (
    'LOCAL_CS["Undefined SRS",LOCAL_DATUM["unknown",32767],UNIT["unknown",0],AXIS["Easting",EAST],'
    'AXIS["Northing",NORTH]]'
)

# what keeps the index right when another program edits the layer: OGC 12-128r18
BOX = "ST_MinX(NEW.geom), ST_MaxX(NEW.geom), ST_MinY(NEW.geom), ST_MaxY(NEW.geom)"
_FULL, _EMPTY = "({0}.geom NOTNULL AND NOT ST_IsEmpty({0}.geom))", "({0}.geom ISNULL OR ST_IsEmpty({0}.geom))"
_NEW, _OLD, _NO_NEW, _NO_OLD = (text.format(row) for text in (_FULL, _EMPTY) for row in ("NEW", "OLD"))
TRIGGERS = {
    "insert": ("INSERT", _NEW, "INSERT OR REPLACE INTO {index} VALUES (NEW.fid, {box})"),
    "update2": (
        "UPDATE OF geom",
        f"OLD.fid = NEW.fid AND {_NO_NEW}",
        "DELETE FROM {index} WHERE id = OLD.fid",
    ),
    "update4": (
        "UPDATE",
        f"OLD.fid != NEW.fid AND {_NO_NEW}",
        "DELETE FROM {index} WHERE id IN (OLD.fid, NEW.fid)",
    ),
    "update5": (
        "UPDATE",
        f"OLD.fid != NEW.fid AND {_NEW}",
        "DELETE FROM {index} WHERE id = OLD.fid; INSERT OR REPLACE INTO {index} VALUES (NEW.fid, {box})",
    ),
    "update6": (
        "UPDATE OF geom",
        f"OLD.fid = NEW.fid AND {_NEW} AND {_OLD}",
        "UPDATE {index} SET (minx, maxx, miny, maxy) = ({box}) WHERE id = NEW.fid",
    ),
    "update7": (
        "UPDATE OF geom",
        f"OLD.fid = NEW.fid AND {_NEW} AND {_NO_OLD}",
        "INSERT INTO {index} VALUES (NEW.fid, {box})",
    ),
    "delete": ("DELETE", "OLD.geom NOTNULL", "DELETE FROM {index} WHERE id = OLD.fid"),
}
