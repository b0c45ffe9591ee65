"""`rsseg vectorize`: formats, styles, and what a user types and reads."""

import json
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from typer.testing import CliRunner

import rsseg_cli
from rsseg_cli.cli import app
from rsseg_cli.config import VectorConfig
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.vector import vectorize
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
LABELS = np.array([[1, 1, 2, 2], [1, 0, 2, 255], [1, 1, 2, 2]], np.uint8)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def label_file(make_raster):
    """label_file(labels=LABELS, name=...) -> path; a pixel is 0.5 x 0.5 m, 255 has no data."""

    def make(labels=LABELS, name="labels.tif", nodata=255, named=True, **options):
        path = make_raster(name, array=labels[None], **options)
        with rasterio.open(path, "r+") as dataset:
            if nodata is not None:
                dataset.nodata = nodata
            if named:
                dataset.update_tags(CLASS_0="water", CLASS_1="road", CLASS_2="roof & <tile>")
                dataset.update_tags(RSSEG_SCENE="ortho.tif", RSSEG_MODEL="landcover")
                dataset.write_colormap(1, {0: (0, 0, 200), 1: (90, 90, 90), 2: (200, 0, 0)})
        return path

    return make


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "geojson", "shp", "parquet"])
def test_every_format_holds_the_same_polygons(label_file, tmp_path, ending):
    target = tmp_path / f"out.{ending}"
    done = run("vectorize", label_file(), "-o", target)
    assert done.exit_code == 0, done.stderr
    found = (
        geopandas.read_parquet(target) if ending == "parquet" else geopandas.read_file(target, layer="out")
    )
    assert len(found) == 3
    assert shapely.is_valid(found.geometry.values).all()
    assert found.crs.to_epsg() == (4326 if ending == "geojson" else 32633)
    area = found.to_crs("EPSG:32633").area.sum()
    assert area == pytest.approx(0.25 * np.count_nonzero(LABELS != 255), rel=1e-4)
    index = "class_idx" if ending == "shp" else "class_index"
    by_class = found.set_index(index)
    assert by_class.loc[2, "class_name"] == "roof & <tile>"
    assert by_class.loc[1, "area_m2"] == pytest.approx(1.25, rel=1e-3)
    assert by_class.loc[0, "vertices"] == 4


def test_every_format_holds_the_same_empty_layer(label_file, tmp_path):
    empty = label_file(np.full((5, 5), 255, np.uint8))
    for ending in ("gpkg", "fgb", "geojson", "shp"):
        target = tmp_path / f"out.{ending}"
        done = run("vectorize", empty, "-o", target)
        assert done.exit_code == 0, done.stderr
        assert "0 features" in done.stdout
        info = pyogrio.read_info(target, layer="out")
        assert len(geopandas.read_file(target, layer="out")) == 0
        if ending != "geojson":  # which has no schema
            assert len(info["fields"]) == 5


def test_a_geopackage_carries_style_and_metadata(label_file, tmp_path):
    target = tmp_path / "polygons.gpkg"  # the name of the temporary one
    vectorize(label_file(), target, VectorConfig(layer="map"))
    with sqlite3.connect(target) as database:
        (name, qml, default) = database.execute(
            "SELECT f_table_name, styleQML, useAsDefault FROM layer_styles"
        ).fetchone()
    database.close()
    assert (name, default) == ("map", 1)
    labels = [item.get("label") for item in ET.fromstring(qml).iter("category")]
    assert labels == ["water", "road", "roof & <tile>", "other"]
    colours = [item.get("value") for item in ET.fromstring(qml).iter("Option") if item.get("name") == "color"]
    assert colours[:3] == ["0,0,200,255", "90,90,90,255", "200,0,0,255"]
    metadata = pyogrio.read_info(target, layer="map")["layer_metadata"]
    assert metadata["scene"] == "ortho.tif"
    assert metadata["model"] == "landcover"
    assert "T" in metadata["time"]
    assert list(tmp_path.glob(".*")) == []


def test_a_style_beside_other_formats(label_file, tmp_path):
    vectorize(label_file(), tmp_path / "a.shp", VectorConfig(qml=True))
    renderer = ET.parse(tmp_path / "a.qml").getroot().find("renderer-v2")
    assert renderer.get("attr") == "class_idx"


def test_confidence_becomes_mean_and_minimum(label_file, make_raster, tmp_path):
    sure = np.full(LABELS.shape, 127, np.uint8)
    sure[0, 0] = 0
    confidence = make_raster("sure.tif", array=sure[None])
    target = tmp_path / "out.gpkg"
    assert run("vectorize", label_file(), "-o", target, "--confidence", confidence).exit_code == 0
    found = geopandas.read_file(target, layer="out").set_index("class_name")
    assert found.loc["water", "confidence"] == 0.5
    assert found.loc["road", "confidence"] == pytest.approx(0.4, abs=1e-4)
    assert found.loc["road", "confidence_min"] == 0


def test_dissolved_to_one_feature_a_class(label_file, tmp_path):
    labels = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    vectorize(label_file(labels), tmp_path / "d.gpkg", VectorConfig(dissolve=True, dst_crs="EPSG:4326"))
    found = geopandas.read_file(tmp_path / "d.gpkg", layer="d")
    assert list(found.geom_type) == ["MultiPolygon"] * 2
    assert [len(shape.geoms) for shape in found.geometry] == [3, 3]
    assert shapely.is_valid(found.geometry.values).all()
    assert found.crs.to_epsg() == 4326
    assert list(found.area_m2) == pytest.approx([0.75, 0.75], rel=1e-3)


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "parquet"])
def test_dissolving_does_not_depend_on_blocks(label_file, make_raster, tmp_path, ending):
    labels = np.random.default_rng(1).integers(0, 3, (40, 30)).astype(np.uint8)
    confidence = make_raster("sure.tif", array=labels[None] + 100)
    read = geopandas.read_parquet if ending == "parquet" else geopandas.read_file
    found = []
    for rows in (3, 7, 40):
        config = VectorConfig(dissolve=True, block_rows=rows, overwrite=True)
        vectorize(label_file(labels), tmp_path / f"d.{ending}", config, confidence=confidence)
        found.append(read(tmp_path / f"d.{ending}").sort_values("class_index", ignore_index=True))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert list(found[0].area_m2) == pytest.approx(0.25 * np.bincount(labels.ravel()), rel=1e-3)
    assert list(found[0].confidence) == pytest.approx(np.array([100, 101, 102]) / 254, abs=1e-4)


def test_what_is_reported_and_printed(label_file, tmp_path):
    source, target = label_file(), tmp_path / "out.gpkg"
    done = run("vectorize", source, "-o", target, "--classes", "Road,water")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{target}, layer out"
    assert lines[1].split() == ["water", "1", "0.25", "m2"]
    assert lines[-1].startswith("  2 features in ")
    assert done.stderr == ""
    reported = json.loads(run("vectorize", source, "-o", target, "--overwrite", "--json").stdout)
    assert reported["features"] == 3
    assert reported["format"] == "GPKG"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "out.xyz"], 2, "names no format"),
        (["-o", "out.gpkg", "--simplify", "-1"], 2, "--simplify -1.0: needs a number of m"),
        (["-o", "out.gpkg", "--classes", "trees"], 2, "no class of this name; it has water, road, roof"),
        (["-o", "out.gpkg", "--dst-crs", "nonsense"], 2, "no CRS that PROJ knows"),
        (["-o", "out.geojson", "--dst-crs", "EPSG:3857"], 2, "GeoJSON is in WGS 84"),
        (["-o", "missing/out.gpkg"], 1, "its folder does not exist"),
        (["-o", "labels.tif", "--format", "GPKG"], 1, "is the input itself"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    label_file, tmp_path, monkeypatch, arguments, code, message
):
    label_file()
    monkeypatch.chdir(tmp_path)
    done = run("vectorize", "labels.tif", *arguments)
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"labels.tif", "labels.tif.aux.xml"}


def test_a_file_that_exists_stays_without_overwrite(label_file, tmp_path):
    (tmp_path / "out.gpkg").write_text("mine")
    done = run("vectorize", label_file(), "-o", tmp_path / "out.gpkg")
    assert done.exit_code == 1
    assert "Pass --overwrite" in done.stderr
    assert (tmp_path / "out.gpkg").read_text() == "mine"


def test_rasters_that_are_no_class_rasters(make_raster, label_file, tmp_path):
    three = make_raster("rgb.tif")
    assert (
        "has 3 bands, needs the one of a class raster"
        in run("vectorize", three, "-o", tmp_path / "a.gpkg").stderr
    )
    floats = make_raster("floats.tif", bands=1, dtype="float32")
    done = run("vectorize", floats, "-o", tmp_path / "a.gpkg")
    assert "class indices are whole numbers" in done.stderr
    assert not (tmp_path / "a.gpkg").exists()
    assert list(tmp_path.glob(".a*")) == []


def test_without_a_crs_metres_are_pixels_and_areas_empty(label_file, tmp_path):
    done = run("vectorize", label_file(crs=None), "-o", tmp_path / "a.gpkg", "--min-area", "2")
    assert done.exit_code == 0, done.stderr
    assert "--min-area count in pixels" in done.stderr
    found = geopandas.read_file(tmp_path / "a.gpkg", layer="a")
    assert len(found) == 2  # the pixel of water went
    assert found.area_m2.isna().all()
    refused = run("vectorize", label_file(crs=None), "-o", tmp_path / "a.geojson")
    assert refused.exit_code == 1
    assert "has no CRS" in refused.stderr


@pytest.mark.parametrize("nodata", [None, 0, 7])
def test_other_values_for_no_data(label_file, tmp_path, nodata):
    labels = np.array([[0, 0, 255], [7, 255, 255]], np.uint8)
    found = rsseg_cli.to_geodataframe(label_file(labels, nodata=nodata, named=False))
    assert set(found.class_index) == {0, 7, 255} - {nodata}
    assert found.class_name[0] == f"class {found.class_index[0]}"


def test_a_mask_marks_no_data(make_raster):
    path = make_raster("masked.tif", array=np.ones((1, 20, 30), np.uint8), kind="mask", hole=(5, 5, 4, 4))
    found = rsseg_cli.to_geodataframe(path)
    assert found.area.sum() == 0.25 * (600 - 16)


def test_predict_writes_polygons_with_the_map(make_raster, tmp_path):
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    external = ModelSpec.for_network(classes=["roof", "road", "tree"])
    spec = ModelSpec(name="tiny", architecture="bicor-seg", classes=external.classes, network=asdict(config))
    model = save_model(tmp_path / "model.safetensors", BicorSeg(config), spec)
    scene = make_raster(shape=(70, 90))
    common = (
        "predict",
        scene,
        "--model",
        model,
        "--tile-size",
        "64",
        "--overlap",
        "16",
        "-o",
        tmp_path / "m.tif",
    )
    refused = run(*common, "--min-area", "3")
    assert refused.exit_code == 2
    assert "need --vector FILE" in refused.stderr
    refused = run(*common, "--vector", tmp_path / "m.gpkg", "--classes", "lake")
    assert "no class of this name; it has roof, road, tree" in refused.stderr
    assert not (tmp_path / "m.tif").exists()
    sure = tmp_path / "sure.tif"
    done = run(*common, "--vector", tmp_path / "m.gpkg", "--min-area", "1", "--confidence", sure, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["paths"]["vector"] == str(tmp_path / "m.gpkg")
    found = geopandas.read_file(tmp_path / "m.gpkg", layer="m")
    assert found.area.sum() == pytest.approx(0.25 * 70 * 90)
    assert set(found.class_name) <= {"roof", "road", "tree"}
    assert found.confidence.between(0, 1).all()
    metadata = pyogrio.read_info(tmp_path / "m.gpkg", layer="m")["layer_metadata"]
    assert metadata["labels"] == str(tmp_path / "m.tif")
    assert metadata["model"] == "tiny"


def test_the_program_runs_with_two_workers(label_file, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (600, 80)).astype(np.uint8)
    command = [
        sys.executable,
        "-m",
        "rsseg_cli",
        "vectorize",
        str(label_file(labels)),
        "-o",
        str(tmp_path / "o.gpkg"),
    ]
    done = subprocess.run([*command, "--jobs", "2"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert shapely.coverage_is_valid(geopandas.read_file(tmp_path / "o.gpkg", layer="o").geometry.values)


def test_classes_are_merged_by_a_file(label_file, tmp_path):
    remap = tmp_path / "classes.json"
    remap.write_text('[{"name": "hard", "from": ["road", "roof & <tile>"], "colour": "#0a0b0c"}]')
    out = tmp_path / "merged.gpkg"
    result = run("vectorize", label_file(), "-o", out, "--remap", remap, "--json")
    assert result.exit_code == 0, result.output
    classes = json.loads(result.stdout)["classes"]
    assert list(classes) == ["hard", "water"]
    assert [item["area_m2"] for item in classes.values()] == pytest.approx([10 / 4, 1 / 4], rel=1e-3)
    frame = geopandas.read_file(out)
    assert sorted(zip(frame.class_name, frame.class_index, strict=True)) == [("hard", 0), ("water", 1)]
    with sqlite3.connect(out) as database:
        ((style,),) = database.execute("select styleQML from layer_styles").fetchall()
    assert "#0a0b0c" in style
    assert "#0000c8" in style


def test_a_value_without_a_name_cannot_be_remapped(label_file, tmp_path):
    labels = LABELS.copy()
    labels[2, 3] = 7
    remap = tmp_path / "classes.json"
    remap.write_text('[{"name": "hard", "from": ["road", "roof & <tile>"]}]')
    result = run("vectorize", label_file(labels), "-o", tmp_path / "m.gpkg", "--remap", remap)
    assert result.exit_code == 1
    assert "value 7 in row 2, column 3 has no name, so --remap does not say" in result.output
    assert not (tmp_path / "m.gpkg").exists()
    remap.write_text('[{"name": "hard", "from": ["street"]}]')
    result = run("vectorize", label_file(), "-o", tmp_path / "m.gpkg", "--remap", remap)
    assert result.exit_code == 2
    assert "no class of" in result.output
