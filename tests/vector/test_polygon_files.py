"""What stands in and beside a vector file: other layers, journals, indices, styles, columns of bounds."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from shutil import which
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Geod, Transformer
from rasterio.enums import ColorInterp

from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import OutputError, SceneError, UsageError
from rsseg_cli.vector.vectorize_raster import to_geodataframe, vectorize

LABELS = np.array([[1, 1, 3, 3], [1, 1, 3, 7], [255, 255, 3, 3]], np.uint8)
AGAIN = VectorConfig(overwrite=True)


@pytest.fixture
def label_file(make_raster):
    """label_file(labels, ...) -> a class raster of 1 m pixels."""

    def make(labels=LABELS, name="labels.tif", nodata=255, **options):
        array = labels if labels.ndim == 3 else labels[None]
        options = {"gsd": 1.0, "nodata": nodata} | options
        path = make_raster(
            name, array=array, **{key: item for key, item in options.items() if key != "nodata"}
        )
        with rasterio.open(path, "r+") as dataset:
            if nodata is not None:
                dataset.nodata = nodata
        return path

    return make


def classes_of(path):
    return sorted(to_geodataframe(path).class_index)


def categories(qml):
    renderer = ET.fromstring(qml).find("renderer-v2")
    return {item.get("value"): item.get("label") for item in renderer.iter("category")}


def stored_style(path, layer):
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT styleQML FROM layer_styles WHERE f_table_name = ? AND useAsDefault"
        return database.execute(query, (layer,)).fetchone()[0]


# Values and nodata


@pytest.mark.parametrize("nodata", [np.nan, None, -9999.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pixels_that_are_no_number_have_no_data(label_file, dtype, nodata):
    labels = LABELS.astype(dtype)
    labels[LABELS == 255] = np.nan
    assert classes_of(label_file(labels, nodata=nodata)) == [1, 3, 7]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_class_band_with_an_alpha_band(label_file, dtype):
    bands = np.stack([LABELS, np.where(LABELS == 255, 0, 255)]).astype(dtype)
    path = label_file(bands, nodata=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    assert classes_of(path) == [1, 3, 7]


@pytest.mark.parametrize("kind", ["confidence", "uncertainty", "heatmaps"])
def test_a_raster_that_says_that_it_holds_no_classes_is_refused(label_file, tmp_path, kind):
    path = label_file()
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(RSSEG_LAYER=kind)
    with pytest.raises(SceneError, match=rf"labels\.tif: holds the {kind} of a map.*Give the map itself"):
        vectorize(path, tmp_path / "out.gpkg")
    assert not (tmp_path / "out.gpkg").exists()


def test_values_with_a_scale_are_no_classes(label_file):
    path = label_file()
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (1 / 254,)
    with pytest.raises(SceneError, match="have a scale, so they are no classes"):
        to_geodataframe(path)


def test_a_chosen_class_that_does_not_occur_is_named(label_file, tmp_path):
    result = vectorize(label_file(), tmp_path / "out.gpkg", VectorConfig(classes=("7", "9")))
    assert result.features == 1
    assert result.notes == (f"{tmp_path / 'labels.tif'}: holds no object of class 9",)


@pytest.mark.parametrize("rows", [0, 1, 3, 10])
def test_small_objects_without_a_neighbour_are_left_out(label_file, tmp_path, rows):
    labels = np.full((20, 30), 255, np.uint8)
    labels[2:9, 2:12], labels[5, 5], labels[12, 20], labels[15, 3:5] = 1, 2, 4, (5, 6)
    labels[11:19, 22:29] = 8
    config = VectorConfig(min_area_m2=5, block_rows=rows)
    result = vectorize(label_file(labels), tmp_path / "out.gpkg", config)
    assert {name: item.polygons for name, item in result.classes.items()} == {"class 1": 1, "class 8": 1}
    assert result.notes[-1].endswith("2 objects below --min-area touch no others; left out")


# GeoPackages with other layers


def test_other_layers_of_a_geopackage_stay(label_file, tmp_path):
    path, other = (
        tmp_path / "all.gpkg",
        geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)]),
    )
    other.to_file(path, layer="roads")
    labels = label_file()
    for features in (3, 1):  # then again, with one class
        config = VectorConfig(layer="cover", overwrite=True, classes=None if features == 3 else ("7",))
        vectorize(labels, path, config)
        assert set(map(str, pyogrio.list_layers(path)[:, 0])) == {"roads", "cover", "layer_styles"}
        assert geopandas.read_file(path, layer="roads").a.tolist() == [1]
        assert len(geopandas.read_file(path, layer="cover")) == features
        assert "3" in categories(stored_style(path, "cover")) or features == 1
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM layer_styles").fetchone() == (1,)
        assert database.execute("SELECT rtreecheck('rtree_cover_geom')").fetchone() == ("ok",)
    vectorize(labels, path, VectorConfig(layer="second", overwrite=True))
    assert {"roads", "cover", "second"} <= set(map(str, pyogrio.list_layers(path)[:, 0]))


def test_other_layers_that_only_the_journal_holds_stay(label_file, tmp_path):
    path, copy = tmp_path / "live.gpkg", tmp_path / "copy"
    geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)]).to_file(path, layer="roads")
    with closing(sqlite3.connect(path)) as database:  # another program has it open
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE notes (text)")
        database.execute("INSERT INTO notes VALUES ('kept')")
        database.commit()
        assert path.with_name("live.gpkg-wal").stat().st_size > 0
        vectorize(label_file(), path, VectorConfig(layer="cover", overwrite=True))
    assert not copy.exists()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT text FROM notes").fetchone() == ("kept",)


def test_a_geopackage_with_other_layers_that_is_in_use_is_refused(label_file, tmp_path):
    path = tmp_path / "live.gpkg"
    geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)]).to_file(path, layer="roads")
    before = path.read_bytes()
    with closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputError, match=r"holds other layers, and cannot be read .*locked"):
            vectorize(label_file(), path, VectorConfig(layer="cover", overwrite=True))
    assert path.read_bytes() == before


def test_a_geopackage_with_this_layer_alone_is_written_anew(label_file, tmp_path):
    path = tmp_path / "map.gpkg"
    vectorize(label_file(np.random.default_rng(0).integers(0, 3, (90, 90)).astype(np.uint8)), path)
    large = path.stat().st_size
    vectorize(label_file(), path, AGAIN)
    assert path.stat().st_size < large
    assert len(geopandas.read_file(path, layer="map")) == 3


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(2000)])
def test_what_is_no_geopackage_is_replaced(label_file, tmp_path, content):
    path = tmp_path / "map.gpkg"
    path.write_bytes(content)
    vectorize(label_file(), path, AGAIN)
    assert len(geopandas.read_file(path, layer="map")) == 3


RESERVED = [
    "gpkg_contents",
    "GPKG_extensions",
    "gpkg",
    "sqlite_x",
    "sqlite_sequence",
    "Layer_Styles",
    " ",
    "a\tb",
]


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_a_geopackage_keeps_for_itself_are_refused(label_file, tmp_path, name):
    with pytest.raises(UsageError, match="a GeoPackage has no layer of such a name"):
        vectorize(label_file(), tmp_path / "out.gpkg", VectorConfig(layer=name))
    if name.strip() and name.isprintable():
        with pytest.raises(UsageError, match="Pass another --layer"):  # the file's name is the layer's
            vectorize(label_file(), tmp_path / f"{name}.gpkg")
        assert vectorize(label_file(), tmp_path / f"{name}.gpkg", VectorConfig(layer="a")).layer == "a"
    assert vectorize(label_file(), tmp_path / "out.fgb", VectorConfig(layer=name)).features == 3


# Files beside a vector file


@pytest.mark.parametrize("ending", ["-journal", "-wal", "-shm"])
def test_a_stale_journal_goes_with_the_file_that_it_belonged_to(label_file, tmp_path, ending):
    path = tmp_path / "map.gpkg"
    stale = path.with_name(path.name + ending)
    for content in (b"not a journal" * 1000, _journal_of_another_file(tmp_path, ending)):
        stale.write_bytes(content)
        vectorize(label_file(), path, AGAIN)
        assert not stale.exists()
        assert len(geopandas.read_file(path, layer="map")) == 3


def _journal_of_another_file(folder: Path, ending: str) -> bytes:
    """A journal that is to be replayed."""
    path = folder / f"other{ending}.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {'DELETE' if ending == '-journal' else 'WAL'}")
        database.execute("PRAGMA cache_size = 1")
        database.execute("CREATE TABLE t (x)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 900,)] * 200)
        content = path.with_name(path.name + ending).read_bytes()
        database.execute("ROLLBACK")
    assert content
    return content


def test_indices_of_a_former_shapefile_go(label_file, tmp_path):
    path, shapes = tmp_path / "map.shp", [shapely.box(k, 0, k + 1, 1) for k in (0, 9)]
    old = geopandas.GeoDataFrame({"a": [1, 2]}, geometry=shapes, crs="EPSG:3857")
    old.to_file(path, SPATIAL_INDEX="YES")
    assert path.with_suffix(".qix").exists()
    for ending in (".sbn", ".sbx", ".cst", ".class_idx.atx", ".ain", ".shp.xml", ".QPJ"):
        path.with_name(f"map{ending}").write_bytes(b"old")
    kept = [tmp_path / "map2.qix", tmp_path / "map.txt"]
    for file in kept:
        file.write_bytes(b"of another")
    vectorize(label_file(crs=None), path, AGAIN)
    made = {file.name for file in tmp_path.glob("map*")}
    assert made == {"map.shp", "map.shx", "map.dbf", "map.cpg", *(file.name for file in kept)}  # no old .prj
    frame = geopandas.read_file(path, bbox=(0, 0, 4, 3))
    assert len(frame) == 3
    assert frame.crs is None


@pytest.mark.skipif(which("ogr2ogr") is None, reason="ogr2ogr is not installed")
def test_ogr2ogr_finds_all_features_where_an_index_was(label_file, tmp_path):
    path = tmp_path / "map.shp"
    vectorize(label_file(), path)
    subprocess.run(
        ["ogrinfo", str(path), "-sql", "CREATE SPATIAL INDEX ON map"], check=True, capture_output=True
    )
    far = Affine(1, 0, 600000, 0, -1, 5000000)
    vectorize(label_file(name="far.tif", transform=far), path, AGAIN)
    box = ["-spat", "599999", "4999990", "600010", "5000010"]
    subprocess.run(["ogr2ogr", *box, str(tmp_path / "found.fgb"), str(path)], check=True, capture_output=True)
    assert len(geopandas.read_file(tmp_path / "found.fgb")) == 3


# Styles


def test_a_style_has_the_values_that_occur_and_one_category_for_others(label_file, tmp_path):
    path = label_file()
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(CLASS_1="field", CLASS_5="never")
    vectorize(path, tmp_path / "map.gpkg", VectorConfig(qml=True))
    wanted = {"1": "field", "3": "class 3", "7": "class 7", "": "other"}
    assert categories(stored_style(tmp_path / "map.gpkg", "map")) == wanted
    assert categories((tmp_path / "map.qml").read_text()) == wanted


def test_a_palette_without_names_gives_colours_to_what_occurs(label_file, tmp_path):
    path = label_file(photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {value: (value, 0, 9) for value in range(256)})
    vectorize(path, tmp_path / "map.gpkg")
    style = stored_style(tmp_path / "map.gpkg", "map")
    assert list(categories(style)) == ["1", "3", "7", ""]
    colours = [
        item.get("value") for item in ET.fromstring(style).iter("Option") if item.get("name") == "color"
    ]
    assert colours[:3] == ["1,0,9,255", "3,0,9,255", "7,0,9,255"]


def test_an_empty_layer_has_a_style(label_file, tmp_path):
    vectorize(label_file(np.full((3, 3), 255, np.uint8)), tmp_path / "map.gpkg")
    assert list(categories(stored_style(tmp_path / "map.gpkg", "map"))) == [""]


# GeoParquet


def test_geoparquet_has_a_column_of_bounds(label_file, tmp_path):
    path = tmp_path / "map.parquet"
    vectorize(label_file(), path)
    whole = geopandas.read_parquet(path)
    stored = pq.read_table(path)
    assert stored.column_names[-2:] == ["geometry", "bbox"]
    bounds = np.array([list(item.values()) for item in stored["bbox"].to_pylist()])
    assert np.array_equal(bounds, whole.bounds.to_numpy())
    left, _, _, top = whole.total_bounds
    inside = geopandas.read_parquet(path, bbox=(left, top - 0.5, left + 0.5, top))
    assert inside.class_index.tolist() == [1]
    assert len(geopandas.read_parquet(path, bbox=(0, 0, 1, 1))) == 0
    group = pq.ParquetFile(path).metadata.row_group(0)
    statistics = {
        group.column(k).path_in_schema: group.column(k).statistics for k in range(group.num_columns)
    }
    assert statistics["bbox.xmin"].min == left
    assert statistics["geometry"] is None  # two more copies of the largest polygon


# The antimeridian

ACROSS = {
    "utm": ("EPSG:32660", Affine(10, 0, 828700, 0, -10, 1107100)),
    "mercator": ("EPSG:3857", Affine(100, 0, 20037508 - 3000, 0, -100, 1e6)),
    "pacific": ("EPSG:3832", Affine(1000, 0, 3310000, 0, -1000, -4e6)),
    "arctic": ("EPSG:3413", Affine(900, 0, -980000, 0, -900, 1005000)),
    "degrees": ("EPSG:4326", Affine(0.01, 0, 179.65, 0, -0.01, 10)),
    "negative degrees": ("EPSG:4326", Affine(0.01, 0, -180.35, 0, -0.01, 10)),
}


def chessboard(rows=4, cols=6, side=10):
    fields = np.indices((rows, cols)).sum(axis=0) % 3
    return np.kron(fields, np.ones((side, side), int)).astype(np.uint8)


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize(
    ("ending", "crs"), [("gpkg", "EPSG:4326"), ("geojson", ""), ("parquet", "EPSG:4258")]
)
def test_polygons_across_the_antimeridian_are_cut_there(make_raster, tmp_path, name, ending, crs):
    own, transform = ACROSS[name]
    labels = make_raster(array=chessboard()[None], crs=own, transform=transform)
    path = tmp_path / f"out.{ending}"
    result = vectorize(labels, path, VectorConfig(dst_crs=crs))
    frame = geopandas.read_parquet(path) if ending == "parquet" else geopandas.read_file(path, layer="out")
    parts = frame.explode(index_parts=False)
    assert result.features == len(frame) == 24
    assert len(parts) > 24
    assert shapely.is_valid(parts.geometry.values).all()
    assert set(frame.geom_type) == {"MultiPolygon"}
    assert (parts.bounds.maxx - parts.bounds.minx).max() < 5
    assert parts.total_bounds[[0, 2]].tolist() == [-180, 180]
    geod = Geod(ellps="WGS84")
    areas = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in frame.geometry]
    assert np.allclose(areas, frame.area_m2, rtol=2e-3)
    cut = frame[shapely.get_num_geometries(frame.geometry.values) > 1]
    assert np.array_equal(
        frame.vertices, shapely.get_num_coordinates(frame.geometry.values) - _rings(frame.geometry.values)
    )
    assert len(cut) >= 3


def _rings(shapes):
    owners = shapely.get_rings(shapes, return_index=True)[1]
    return np.bincount(owners, minlength=len(shapes))


@pytest.mark.parametrize("dissolve", [False, True])
def test_a_polygon_round_a_pole_reaches_it(make_raster, tmp_path, dissolve):
    transform = Affine(10000, 0, -310000, 0, -10000, 320000)
    labels = make_raster(array=np.ones((1, 60, 60), np.uint8), crs="EPSG:3413", transform=transform)
    vectorize(labels, tmp_path / "out.gpkg", VectorConfig(dst_crs="EPSG:4326", dissolve=dissolve))
    frame = geopandas.read_file(tmp_path / "out.gpkg", layer="out")
    assert frame.is_valid.all()
    _, south = Transformer.from_crs("EPSG:3413", "EPSG:4326", always_xy=True).transform(-310000, 320000)
    assert frame.total_bounds == pytest.approx([-180, south, 180, 90], abs=1e-6)
    assert frame.contains(shapely.MultiPoint([(lon, 89.5) for lon in range(-179, 180)])).all()


def test_map_wide_polygons_in_metres_are_cut_too(make_raster, tmp_path):
    own, transform = ACROSS["utm"]
    labels = make_raster(array=chessboard()[None], crs=own, transform=transform)
    vectorize(labels, tmp_path / "out.gpkg", VectorConfig(dst_crs="EPSG:3857"))
    parts = geopandas.read_file(tmp_path / "out.gpkg", layer="out").explode()
    assert (parts.bounds.maxx - parts.bounds.minx).max() < 200


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2193", "EPSG:32660", ""])
def test_polygons_stay_whole_where_nothing_jumps(make_raster, tmp_path, crs):
    own, transform = ("EPSG:32633", Affine(10, 0, 5e5, 0, -10, 5e6)) if crs == "EPSG:4326" else ACROSS["utm"]
    labels = make_raster(array=chessboard()[None], crs=own, transform=transform)
    vectorize(labels, tmp_path / "out.gpkg", VectorConfig(dst_crs=crs))
    assert set(geopandas.read_file(tmp_path / "out.gpkg", layer="out").geom_type) == {"Polygon"}


def test_a_geojson_of_0_to_360_degrees_is_in_180(make_raster, tmp_path):
    world = Affine(6, 0, 0, 0, -4, 80)
    labels = make_raster(array=chessboard()[None], crs="EPSG:4326", transform=world)
    vectorize(labels, tmp_path / "out.geojson")
    frame = geopandas.read_file(tmp_path / "out.geojson")
    assert frame.total_bounds.tolist() == [-180, -80, 180, 80]
    assert frame.area.sum() == pytest.approx(360 * 160, rel=1e-4)
    beyond = make_raster(
        "b.tif", array=chessboard()[None], crs="EPSG:4326", transform=Affine(0.1, 0, 190, 0, -0.1, 9)
    )
    vectorize(beyond, tmp_path / "b.geojson")
    assert geopandas.read_file(tmp_path / "b.geojson").total_bounds.round(6).tolist() == [-170, 5, -164, 9]
    vectorize(beyond, tmp_path / "b.gpkg")  # in its own coordinates, where none are asked for
    assert geopandas.read_file(tmp_path / "b.gpkg", layer="b").total_bounds.round(6).tolist() == [
        190,
        5,
        196,
        9,
    ]


@pytest.mark.parametrize(("crs", "kind"), [("EPSG:4978", "Geocentric"), ("EPSG:5703", "Vertical")])
def test_a_crs_without_a_plane_is_refused(label_file, tmp_path, crs, kind):
    with pytest.raises(
        UsageError, match=f"--dst-crs {crs}: is a {kind} CRS; needs a geographic or projected one"
    ):
        vectorize(label_file(), tmp_path / "out.gpkg", VectorConfig(dst_crs=crs))


def test_a_crs_that_nothing_leads_to_is_refused(label_file, tmp_path):
    with pytest.raises(UsageError, match="cannot be transformed to IAU_2015:30100"):  # the Moon's
        vectorize(label_file(), tmp_path / "out.gpkg", VectorConfig(dst_crs="IAU_2015:30100"))
    assert not (tmp_path / "out.gpkg").exists()
