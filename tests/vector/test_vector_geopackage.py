"""GeoPackages: other programs read them, find what lies in a box, and may edit them."""

import sqlite3
from contextlib import closing

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely

from rsseg_cli.errors import OutputError
from rsseg_cli.vector.geopackage import GeoPackage
from rsseg_cli.vector.rtree import SpatialIndex
from rsseg_cli.vector.spill import Spill, in_file, let_go

FIELDS = {"class_index": np.dtype(np.int32), "class_name": np.dtype(object), "area_m2": np.dtype(np.float64)}


def squares(count, seed=0):
    places = np.random.default_rng(seed).uniform(0, 1e6, (count, 2))
    return shapely.box(places[:, 0], places[:, 1], places[:, 0] + 3, places[:, 1] + 7)


def written(path, shapes, layer="map", crs="EPSG:32633", blobs=None, qml="<qgis/>"):
    from pyproj import CRS

    package = GeoPackage(
        path,
        layer,
        geometry="POLYGON",
        crs=CRS.from_user_input(crs).to_wkt() if crs else "",
        fields=FIELDS,
        metadata={"scene": "a & b.tif"},
        indexed=True,
    )
    with closing(package):
        for begin in range(0, len(shapes), 400):
            part = shapes[begin : begin + 400]
            numbers = np.arange(begin, begin + len(part), dtype=np.int32)
            columns = {
                "class_index": numbers,
                "class_name": np.array([f"class {k}" for k in numbers], object),
                "area_m2": np.where(numbers % 2, np.nan, 21.0),
            }
            wkb = np.empty(len(part), object)
            wkb[:] = shapely.to_wkb(part) if blobs is None else blobs
            package.append(wkb, shapely.bounds(part), columns)
        package.finish(qml)
    return path


@pytest.mark.parametrize("group", [1 << 16, 500])
@pytest.mark.parametrize("count", [0, 1, 51, 52, 3000])
def test_every_row_comes_back_and_the_index_is_whole(tmp_path, monkeypatch, count, group):
    monkeypatch.setattr("rsseg_cli.vector.rtree.GROUP", group)
    shapes = squares(count)
    path = written(tmp_path / "a.gpkg", shapes)
    found = geopandas.read_file(path, layer="map")
    assert list(found.geometry) == list(shapes)
    assert list(found.class_index) == list(range(count))
    assert found.crs.to_epsg() == 32633
    assert list(found.area_m2.isna()) == [bool(k % 2) for k in range(count)]
    assert pyogrio.read_info(path, layer="map")["layer_metadata"] == {"scene": "a & b.tif"}
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT rtreecheck('rtree_map_geom')").fetchone() == ("ok",)
    box = (2e5, 3e5, 4e5, 5e5)
    inside = geopandas.read_file(path, layer="map", bbox=box)
    assert sorted(inside.class_index) == list(np.flatnonzero(shapely.intersects(shapes, shapely.box(*box))))


def test_an_index_holds_boxes_that_single_precision_cannot(tmp_path):
    boxes = np.array([[684300.3, 5336700.1, 684300.6, 5336700.4], [-684300.3, -9.7, -684300.1, -9.6]])
    with closing(sqlite3.connect(":memory:")) as database:
        index = SpatialIndex(database, 'a"b')
        index.add(boxes[:1])
        index.add(boxes[1:])
        index.finish()
        found = np.array(database.execute('SELECT minx, miny, maxx, maxy FROM "a""b" ORDER BY id').fetchall())
    assert (found[:, :2] <= boxes[:, :2]).all()
    assert (found[:, 2:] >= boxes[:, 2:]).all()
    assert abs(found - boxes).max() < 1


@pytest.mark.parametrize("name", ['my "best" map', "it's", "a;b--", "name with spaces"])
def test_layers_of_any_name(tmp_path, name):
    path = written(tmp_path / "a.gpkg", squares(60), layer=name)
    assert len(geopandas.read_file(path, layer=name, bbox=(0, 0, 1e6, 1e6))) == 60


@pytest.mark.parametrize(
    ("crs", "number"),
    [("EPSG:4326", 4326), ("EPSG:3857", 3857), ("+proj=laea +lat_0=12 +lon_0=7", 100000), ("", 99999)],
)
def test_a_crs_with_and_without_a_number(tmp_path, crs, number):
    path = written(tmp_path / "a.gpkg", squares(3), crs=crs)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT srs_id FROM gpkg_geometry_columns").fetchone() == (number,)
    found = geopandas.read_file(path, layer="map").crs
    assert found == crs if crs else found is None


def test_another_program_may_edit_it(tmp_path):
    path = written(tmp_path / "a.gpkg", squares(100))
    more = geopandas.GeoDataFrame({"class_index": [7]}, geometry=[shapely.box(-9, -9, -8, -8)], crs=32633)
    more.to_file(path, layer="map", mode="a")
    assert list(geopandas.read_file(path, layer="map", bbox=(-10, -10, -7, -7)).class_index) == [7]
    assert pyogrio.read_info(path, layer="map")["features"] == 101
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT rtreecheck('rtree_map_geom')").fetchone() == ("ok",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_geometry_in_a_file_is_copied_bit_by_bit(tmp_path):
    circle = shapely.Point(5, 5).buffer(3, quad_segs=50_000)
    blob = Spill(tmp_path).store(np.frombuffer(shapely.to_wkb(circle), np.uint8))
    assert in_file(blob)
    path = written(tmp_path / "a.gpkg", np.array([circle]), blobs=[blob])
    assert geopandas.read_file(path, layer="map").geometry[0].equals_exact(circle, 0)


def test_a_geometry_above_sqlites_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rsseg_cli.vector.geopackage.MOST_BYTES", 100)
    blob = np.frombuffer(shapely.to_wkb(squares(1)[0]), np.uint8)
    with pytest.raises(OutputError, match=r"a\.gpkg: a polygon of 5 vertices takes .* --simplify"):
        written(tmp_path / "a.gpkg", squares(1), blobs=[blob])


def test_arrays_in_files_keep_what_they_hold(tmp_path):
    array = np.arange(300_000).reshape(-1, 3)
    stored = Spill(tmp_path).store(array)
    let_go(stored)
    stored[5] = 0
    let_go(stored[7:])
    assert np.array_equal(stored[6:], array[6:])
    assert not stored[5].any()
    assert list(tmp_path.iterdir()) == []
    assert not in_file(array)
