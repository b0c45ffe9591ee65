"""Vector files: other programs read them, find what lies in a box, and may edit them."""

import sqlite3
from contextlib import closing

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import CRS

from rsseg_cli.errors import OutputError
from rsseg_cli.files import VECTOR_ENDINGS
from rsseg_cli.vector.layer import Layer
from rsseg_cli.vector.polygons import ObjectTable, Polygons
from rsseg_cli.vector.storage import MemmapStore, in_file, release_pages
from rsseg_cli.vector.write import write_layer

ENDINGS = {name: VECTOR_ENDINGS[f".{name}"] for name in ("gpkg", "fgb", "geojson", "shp", "parquet")}


def squares(count, seed=0):
    corners = np.random.default_rng(seed).uniform(0, 1e6, (count, 2))
    return shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + 3, corners[:, 1] + 7)


def polygons_of(shapes, first=0, blobs=None):
    count = len(shapes)
    numbers, zeros = np.arange(first, first + count), np.zeros(count, np.int64)
    confidence = dict.fromkeys(("confidence_counts", "confidence_sums", "confidence_mins"), zeros)
    wkb = np.empty(count, object)
    wkb[:] = shapely.to_wkb(shapes) if blobs is None else blobs
    return Polygons(
        wkb=wkb,
        bounds=shapely.bounds(shapes),
        table=ObjectTable(classes=numbers, lasts=zeros, **confidence),
        areas_m2=np.where(numbers % 2, np.nan, 21.0),
        perimeters_m=np.full(count, 20.0),
        vertices=np.full(count, 4),
    )


def written(path, shapes, layer="map", crs="EPSG:32633", blobs=None, **limits):
    description = Layer(
        path=path,
        name=layer,
        format=ENDINGS[path.suffix[1:]],
        crs=CRS.from_user_input(crs).to_wkt() if crs else "",
        names={0: "roof & <tile>"},
        colours={0: (1, 2, 3)},
        confidence=False,
        metadata={"scene": "a & b.tif"},
        **limits,
    )
    parts = (polygons_of(shapes[first : first + 400], first, blobs) for first in range(0, len(shapes), 400))
    write_layer(description, parts, path)
    return path


def read(path, **options):
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, **options)


@pytest.mark.parametrize("count", [0, 1, 400, 3000])
def test_every_row_comes_back_and_the_index_is_whole(tmp_path, count):
    shapes = squares(count)
    path = written(tmp_path / "a.gpkg", shapes)
    found = geopandas.read_file(path, layer="map", fid_as_index=True)
    assert list(found.index) == list(range(1, count + 1))
    assert list(found.geometry) == list(shapes)
    assert list(found.class_index) == list(range(count))
    assert list(found.class_name) == ["roof & <tile>", *(f"class {k}" for k in range(1, count))][:count]
    assert found.crs.to_epsg() == 32633
    assert list(found.area_m2.isna()) == [bool(k % 2) for k in range(count)]
    assert pyogrio.read_info(path, layer="map")["layer_metadata"] == {"scene": "a & b.tif"}
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT rtreecheck('rtree_map_geom')").fetchone() == ("ok",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    box = (2e5, 3e5, 4e5, 5e5)
    inside = geopandas.read_file(path, layer="map", bbox=box)
    assert sorted(inside.class_index) == list(np.flatnonzero(shapely.intersects(shapes, shapely.box(*box))))


def test_version_and_triggers_of_a_geopackage_agree(tmp_path):
    path = written(tmp_path / "a.gpkg", squares(3))
    with closing(sqlite3.connect(path)) as database:
        (number,) = database.execute("PRAGMA user_version").fetchone()
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'rtree_map_geom_%'"
        triggers = {name.removeprefix("rtree_map_geom_") for (name,) in database.execute(query)}
    assert number == 10200
    assert triggers == {"insert", "update1", "update2", "update3", "update4", "delete"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_keeps_order_and_attributes(tmp_path, ending):
    shapes = squares(900)
    if ending == "geojson":
        shapes = shapely.transform(shapes, lambda points: points / 1e5)
    crs = "EPSG:4326" if ending == "geojson" else "EPSG:32633"
    found = read(written(tmp_path / f"a.{ending}", shapes, crs=crs))
    index = "class_idx" if ending == "shp" else "class_index"
    if ending == "fgb":  # its index orders it
        found = found.sort_values(index, ignore_index=True)
    assert list(found[index]) == list(range(900))
    assert found.crs == crs
    assert list(found.area_m2.isna()) == [bool(k % 2) for k in range(900)]
    for one, other in zip(found.geometry, shapes, strict=True):
        assert one.normalize().equals_exact(other.normalize(), 1e-8)


@pytest.mark.parametrize("name", ['my "best" map', "it's", "a;b--", "name with spaces"])
def test_layers_of_any_name(tmp_path, name):
    path = written(tmp_path / "a.gpkg", squares(60), layer=name)
    assert len(geopandas.read_file(path, layer=name, bbox=(0, 0, 1e6, 1e6))) == 60


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "+proj=laea +lat_0=12 +lon_0=7", ""])
def test_a_crs_with_and_without_a_number(tmp_path, crs):
    found = geopandas.read_file(written(tmp_path / "a.gpkg", squares(3), crs=crs), layer="map").crs
    assert found == crs if crs else found is None or found.name == "Undefined SRS"


def test_another_program_may_edit_it(tmp_path):
    path = written(tmp_path / "a.gpkg", squares(100))
    more = geopandas.GeoDataFrame({"class_index": [7]}, geometry=[shapely.box(-9, -9, -8, -8)], crs=32633)
    more.to_file(path, layer="map", mode="a")
    assert list(geopandas.read_file(path, layer="map", bbox=(-10, -10, -7, -7)).class_index) == [7]
    assert pyogrio.read_info(path, layer="map")["features"] == 101
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT rtreecheck('rtree_map_geom')").fetchone() == ("ok",)


@pytest.mark.parametrize("ending", ["gpkg", "parquet"])
def test_a_geometry_in_a_file_is_written(tmp_path, ending):
    circle = shapely.Point(5, 5).buffer(3, quad_segs=50_000)
    stored = MemmapStore(tmp_path).store(np.frombuffer(shapely.to_wkb(circle), np.uint8))
    assert in_file(stored)
    others = shapely.to_wkb(squares(2)).tolist()
    shapes = np.array([*squares(1), circle, *squares(2)[1:]])
    path = written(tmp_path / f"a.{ending}", shapes, blobs=[others[0], stored, others[1]])
    frame = read(path)
    assert frame.geometry[1].equals_exact(circle, 0)
    assert [len(shape.exterior.coords) for shape in frame.geometry[[0, 2]]] == [5, 5]
    if ending == "gpkg":
        assert geopandas.read_file(path, layer="map", bbox=(7.9, 4.9, 8, 5)).class_index.tolist() == [1]
        assert objects_in(path) == objects_in(written(tmp_path / "b.gpkg", squares(3)))


def objects_in(path):
    """Tables, indices and triggers of a GeoPackage."""
    with closing(sqlite3.connect(path)) as database:
        return sorted(database.execute("SELECT type, name, sql FROM sqlite_master"))


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"a\.gpkg: a polygon of 5 vertices takes .* --simplify"):
        written(tmp_path / "a.gpkg", squares(1), max_geometry_bytes=90)
    with pytest.raises(OutputError, match=r"a\.shp: more than 800 polygons; a Shapefile holds 2 GB"):
        written(tmp_path / "a.shp", squares(900), max_shapefile_bytes=200_000)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_error_on_the_way_is_the_one_that_is_raised(tmp_path, ending):
    layer = Layer(
        path=tmp_path / f"a.{ending}",
        name="a",
        format=ENDINGS[ending],
        crs="",
        names={},
        colours={},
        confidence=False,
        metadata={},
    )

    def parts():
        yield polygons_of(squares(10))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_layer(layer, parts(), layer.path)


@pytest.mark.parametrize("size", [40_000, 1_500_000, 3_300_000, 3_700_000])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_named(tmp_path, small_disk, ending, size):
    path = small_disk(size) / f"a.{ending}"
    shapes = squares(20_000)
    try:
        written(path, shapes)
    except OutputError as err:
        message = str(err)
    else:  # there was room
        assert len(read(path)) == 20_000
        return
    assert "Is the disk full?" in message


def test_arrays_in_files_keep_what_they_hold(tmp_path):
    array = np.arange(300_000).reshape(-1, 3)
    stored = MemmapStore(tmp_path).store(array)
    release_pages(stored)
    stored[5] = 0
    release_pages(stored[7:])
    assert np.array_equal(stored[6:], array[6:])
    assert not stored[5].any()
    assert list(tmp_path.iterdir()) == []
    assert not in_file(array)
