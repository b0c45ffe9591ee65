"""What GIS programs show of a raster's values: names from attribute tables, styles, scales."""

import json
import subprocess
from pathlib import Path
from shutil import which
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio

from rsseg_cli.raster import legend, vrt
from rsseg_cli.raster.classes import read_colours, read_names
from rsseg_cli.raster.info import SceneInfo
from rsseg_cli.raster.writer import RasterWriter

NAMES, COLOURS = ("roof & <tile>", "water"), {0: (200, 0, 10), 1: (0, 0, 250)}


def table(fields, rows, attributes=""):
    """A sidecar with an attribute table; fields are (name, type, usage)."""
    defined = "".join(
        f'<FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for index, (name, kind, usage) in enumerate(fields)
    )
    cells = "".join(
        f'<Row index="{index}">{"".join(f"<F>{cell}</F>" for cell in row)}</Row>'
        for index, row in enumerate(rows)
    )
    body = f"<GDALRasterAttributeTable {attributes}>{defined}{cells}</GDALRasterAttributeTable>"
    return f'<PAMDataset><PAMRasterBand band="1">{body}</PAMRasterBand></PAMDataset>'


BY_USAGE = [("v", 0, 5), ("n", 0, 1), ("text", 2, 2), ("r", 0, 6), ("g", 0, 7), ("b", 0, 8)]
ARCGIS = [
    ("VALUE", 0, 0),
    ("COUNT", 1, 0),
    ("Class_Name", 2, 0),
    ("Red", 1, 0),
    ("Green", 1, 0),
    ("Blue", 1, 0),
]
RANGES = [("from", 0, 3), ("to", 0, 4), ("what", 2, 0)]


@pytest.mark.parametrize(
    ("content", "names", "colours"),
    [
        (table(BY_USAGE, [(3, 9, "wood", 1, 2, 3), (7, 9, "water", 4, 5, 6)]), {3: "wood", 7: "water"},
         {3: (1, 2, 3), 7: (4, 5, 6)}),
        (table(ARCGIS, [("3", "9.0", "wood", "0.5", "0.0", "1.0"), ("300", 1, "far", 1, 1, 1)]), {3: "wood"},
         {3: (128, 0, 255)}),
        (table(RANGES, [(1, 3, "low"), (250, 900, "high"), (9, 5, "none")]),
         {**dict.fromkeys((1, 2, 3), "low"), **dict.fromkeys(range(250, 256), "high")}, {}),
        (table([("label", 2, 0)], [("a",), ("",), ("c",)]), {0: "a", 2: "c"}, {}),
        (table([("label", 2, 2)], [("a",), ("b",)], 'Row0Min="10" BinSize="5"'), {10: "a", 15: "b"}, {}),
        (table([("Value", 0, 5), ("Count", 0, 1)], [(1, 5)]), {}, {}),
        (table([("Value", 0, 5)], [()]), {}, {}),
    ],
    ids=["usage", "ArcGIS", "ranges", "rows", "bins", "no names", "no cells"],
)  # fmt: skip
def test_names_and_colours_of_an_attribute_table(make_raster, content, names, colours):
    path = make_raster(bands=1)
    Path(f"{path}.aux.xml").write_text(content)
    assert read_names(path) == names
    assert read_colours(path) == colours


def test_category_names_and_tags_come_before_an_attribute_table(make_raster):
    path = make_raster(bands=1)
    content = table(BY_USAGE, [(0, 9, "wood", 1, 2, 3)])
    categories = "<CategoryNames><Category>first</Category></CategoryNames><GDALR"
    Path(f"{path}.aux.xml").write_text(content.replace("<GDALR", categories, 1))
    assert read_names(path) == {0: "first"}


def write(path, meta, array=None, **options):
    array = np.array([[[0, 1, 255]]], np.uint8) if array is None else array
    grid = SceneInfo.of(options.pop("like")).grid.window(0, 0, *array.shape[1:])
    with RasterWriter(path, grid, meta, **options) as writer:
        writer.write(0, array)
        writer.commit()
    return path


def test_a_class_raster_has_a_style_and_a_table_of_its_classes_alone(make_raster, tmp_path):
    meta = vrt.RasterMeta(category_names=NAMES, colours=COLOURS)
    path = write(tmp_path / "map.tif", meta, like=make_raster())
    root = ET.parse(tmp_path / "map.qml").getroot()
    entries = [
        (item.get("value"), item.get("label"), item.get("color")) for item in root.iter("paletteEntry")
    ]
    assert entries == [("0", NAMES[0], "#c8000a"), ("1", NAMES[1], "#0000fa")]
    band = ET.parse(f"{path}.aux.xml").find("PAMRasterBand")
    assert legend.read_table(band) == (dict(enumerate(NAMES)), COLOURS)


def test_a_raster_with_a_scale_reads_as_its_quantity(make_raster, tmp_path):
    meta = vrt.RasterMeta(overviews="average", band_names=("confidence",), scale=1 / 254)
    path = write(tmp_path / "sure.tif", meta, np.array([[[0, 127, 254, 255]]], np.uint8), like=make_raster())
    with rasterio.open(path) as dataset:
        assert dataset.descriptions == ("confidence",)
        scaled = dataset.read(1, masked=True) * dataset.scales[0] + dataset.offsets[0]
        assert scaled.tolist() == [[0, 0.5, 1, None]]
    values = [item.get("value") for item in ET.parse(tmp_path / "sure.qml").getroot().iter("item")]
    assert values == ["0", "0.25", "0.5", "0.75", "1"]


def test_a_style_that_is_there_stays_unless_its_raster_is_replaced(make_raster, tmp_path):
    meta, style = vrt.RasterMeta(category_names=NAMES, colours=COLOURS), tmp_path / "map.qml"
    style.write_text("mine")
    write(tmp_path / "map.tif", meta, like=make_raster())
    assert style.read_text() == "mine"
    write(tmp_path / "map.tif", meta, like=make_raster(), overwrite=True)
    assert "paletteEntry" in style.read_text()


def test_a_raster_that_an_earlier_run_finished_without_a_style_is_published(make_raster, tmp_path):
    meta, style = vrt.RasterMeta(category_names=NAMES, colours=COLOURS), tmp_path / "map.qml"
    style.write_text("mine")
    grid = SceneInfo.of(make_raster()).grid.window(0, 0, 1, 3)
    options = {"temporary": lambda ending: tmp_path / f"work.{ending}"}
    with RasterWriter(tmp_path / "map.tif", grid, meta, **options) as writer:
        writer.write(0, np.array([[[0, 1, 255]]], np.uint8))
        writer.finish()
    style.unlink()
    with RasterWriter(tmp_path / "map.tif", grid, meta, finished=True, **options) as writer:
        writer.publish()
    assert (tmp_path / "map.tif").exists()
    assert not style.exists()


@pytest.mark.skipif(which("gdalinfo") is None, reason="gdalinfo is not installed")
def test_gdalinfo_reads_table_scale_and_description(make_raster, tmp_path):
    meta = vrt.RasterMeta(category_names=NAMES, colours=COLOURS, band_names=("class",), scale=0.5)
    path = write(tmp_path / "map.tif", meta, like=make_raster())
    done = subprocess.run(["gdalinfo", "-json", str(path)], capture_output=True, text=True, check=True)
    info = json.loads(done.stdout)
    assert [row["f"][:2] for row in info["rat"]["row"]] == [[0, NAMES[0]], [1, NAMES[1]]]
    assert [field["name"] for field in info["rat"]["fieldDefn"]] == [
        "Value",
        "Class_name",
        "Red",
        "Green",
        "Blue",
    ]
    (band,) = info["bands"]
    assert (band["description"], band["scale"], band["noDataValue"]) == ("class", 0.5, 255)
