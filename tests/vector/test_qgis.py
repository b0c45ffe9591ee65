"""QGIS loads maps and polygons with their styles: what its legend lists, what it draws."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsseg_cli.config import VectorConfig
from rsseg_cli.raster import RasterWriter, SceneInfo, vrt
from rsseg_cli.vector.vectorize_raster import vectorize

PYTHON = Path("/usr/bin/python3")  # QGIS belongs to the system's Python
SCRIPT = """
import json, sys
from qgis.core import QgsApplication, QgsMapRendererSequentialJob, QgsMapSettings, QgsRasterBandStats
from qgis.core import QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor
application = QgsApplication([], False)
application.initQgis()
found = []
for path in sys.argv[1:]:
    raster = path.endswith(".tif")
    layer = QgsRasterLayer(path, "layer") if raster else QgsVectorLayer(path, "layer", "ogr")
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setExtent(layer.extent())
    settings.setOutputSize(QSize(400, 300))
    settings.setBackgroundColor(QColor(255, 0, 255))
    settings.setDestinationCrs(layer.crs())
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    picture = job.renderedImage()
    at = [picture.pixelColor(50 + 100 * col, 50 + 100 * row).name() for row in range(3) for col in range(4)]
    item = {"valid": layer.isValid(), "kind": layer.renderer().type(), "pixels": at}
    if raster:
        item["legend"] = [label for label, _ in layer.legendSymbologyItems()]
        both = QgsRasterBandStats.Min | QgsRasterBandStats.Max
        statistics = layer.dataProvider().bandStatistics(1, both)
        item["range"] = [statistics.minimumValue, statistics.maximumValue]
    else:
        item["features"] = layer.featureCount()
        item["legend"] = [entry.label() for entry in layer.renderer().legendSymbolItems()]
    found.append(item)
print(json.dumps(found), flush=True)
import os
os._exit(0)
"""
LABELS = np.array([[0, 1, 1, 2], [0, 255, 2, 2], [1, 1, 0, 0]], np.uint8)
COLOURS = {0: (200, 0, 10), 1: (0, 0, 250), 2: (0, 180, 0)}
NOTHING = "#ff00ff"


def has_qgis():
    try:
        command = [PYTHON, "-c", "import qgis.core"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def has_parquet():
    code = "from osgeo import ogr; raise SystemExit(ogr.GetDriverByName('Parquet') is None)"
    return subprocess.run([PYTHON, "-W", "ignore", "-c", code], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not has_qgis(), reason="QGIS is not installed")


def loaded(*paths):
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    for name in ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA"):  # of other builds
        environment.pop(name, None)
    command = [PYTHON, "-W", "ignore", "-c", SCRIPT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def colours_of(labels, colours=COLOURS):
    return [
        "#{:02x}{:02x}{:02x}".format(*colours[value]) if value in colours else NOTHING
        for value in labels.flat
    ]


@pytest.fixture
def grid(make_raster):
    return SceneInfo.of(make_raster(shape=(3, 4), gsd=1.0)).grid


def write(path, grid, array, **meta):
    with RasterWriter(path, grid, vrt.RasterMeta(**meta)) as writer:
        writer.write(0, array[None])
        writer.commit()
    return path


def test_a_map_and_polygons_of_the_same_name_have_their_styles(grid, tmp_path):
    names = ("roof & <tile>", "water", "wood")
    path = write(tmp_path / "map.tif", grid, LABELS, category_names=names, colours=COLOURS)
    for ending in ("gpkg", "fgb"):
        vectorize(path, tmp_path / f"map.{ending}", VectorConfig(qml=ending == "fgb"))
    raster, stored, beside = loaded(path, f"{tmp_path / 'map.gpkg'}|layername=map", tmp_path / "map.fgb")
    assert raster["kind"] == "paletted"
    assert raster["legend"] == list(names)
    assert stored["legend"] == beside["legend"] == [*names, "other"]
    for item in (raster, stored, beside):
        assert item["valid"]
        assert item["pixels"] == colours_of(LABELS)


def test_polygons_of_every_format_are_opened(grid, tmp_path):
    path = write(tmp_path / "map.tif", grid, LABELS, category_names=("roof", "water", "wood"))
    outputs = [tmp_path / f"polygons.{ending}" for ending in ("gpkg", "geojson", "fgb", "shp")]
    if has_parquet():
        outputs.append(tmp_path / "polygons.parquet")
    counts = [vectorize(path, output, VectorConfig()).features for output in outputs]
    opened = loaded(*outputs)
    assert [item["features"] for item in opened] == counts
    assert all(item["valid"] and counts[0] > 3 and set(item["pixels"]) != {NOTHING} for item in opened)


def test_a_style_that_polygons_replaced_draws_all_of_the_map(grid, tmp_path):
    names = ("roof", "water", "wood")
    path = write(tmp_path / "map.tif", grid, LABELS, category_names=names, colours=COLOURS)
    vectorize(path, tmp_path / "map.fgb", VectorConfig(qml=True, classes=("water",)))
    raster, polygons = loaded(path, tmp_path / "map.fgb")
    assert raster["legend"] == list(names)
    assert raster["pixels"] == colours_of(LABELS)
    assert polygons["legend"] == ["water", "other"]


def test_polygons_without_names_are_all_drawn(make_raster, tmp_path):
    labels = LABELS.astype(np.int16) * 3
    path = make_raster("plain.tif", array=labels[None], gsd=1.0)
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 3 * 255
    vectorize(path, tmp_path / "map.gpkg")
    (item,) = loaded(f"{tmp_path / 'map.gpkg'}|layername=map")
    assert item["legend"] == ["class 0", "class 3", "class 6", "other"]
    assert item["pixels"].count(NOTHING) == 1
    assert len(set(item["pixels"])) == 4


def test_features_of_another_class_are_drawn_as_other(grid, tmp_path):
    import sqlite3

    path = write(tmp_path / "map.tif", grid, LABELS, category_names=("a", "b", "c"), colours=COLOURS)
    vectorize(path, tmp_path / "new.gpkg", VectorConfig(classes=("a", "b")))
    with sqlite3.connect(tmp_path / "new.gpkg") as database:  # as if a user had edited it
        for trigger, _ in database.execute(
            "SELECT name, 0 FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            database.execute(f'DROP TRIGGER "{trigger}"')
        database.execute("UPDATE new SET class_index = 9 WHERE class_index = 0")
    (item,) = loaded(f"{tmp_path / 'new.gpkg'}|layername=new")
    assert item["legend"] == ["a", "b", "other"]
    assert item["pixels"] == colours_of(LABELS, {0: (160, 160, 160), 1: COLOURS[1]})


def test_confidence_reads_from_0_to_1_with_a_ramp(grid, tmp_path):
    values = np.array([[0, 254, 254, 127], [0, 255, 127, 127], [254, 254, 0, 0]], np.uint8)
    meta = {"overviews": "average", "band_names": ("confidence",), "scale": 1 / 254}
    (item,) = loaded(write(tmp_path / "sure.tif", grid, values, **meta))
    assert item["kind"] == "singlebandpseudocolor"
    assert item["range"] == pytest.approx([0, 1])
    assert item["legend"] == ["0", "0.25", "0.5", "0.75", "1"]
    assert item["pixels"] == colours_of(values, {0: (68, 1, 84), 127: (33, 145, 140), 254: (253, 231, 37)})
