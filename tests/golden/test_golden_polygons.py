"""Polygons of a stored class raster, by each option and in each format: exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from golden_files import EXPECTED
from program import masked, polygon_facts, polygons, reported, run

from rsseg_cli import VectorConfig, to_geodataframe, vectorize

CLASSES = EXPECTED / "classes.tif"
OPTIONS = {
    "plain": (),
    "simplified": ("--simplify", "1"),
    "cleaned": ("--min-area", "20", "--fill-holes", "20"),
    "drawn_anew": ("--simplify", "1", "--min-area", "20", "--fill-holes", "20", "--smooth"),
    "smooth": ("--smooth",),
    "dissolved": ("--dissolve",),
    "dissolved_and_cleaned": ("--dissolve", "--min-area", "20", "--simplify", "1"),
    "two_classes": ("--classes", "building,3", "--min-area", "10"),
    "degrees": ("--dst-crs", "EPSG:4326", "--simplify", "1"),
    "two_jobs": ("--jobs", "2"),
}
FORMATS = ("gpkg", "fgb", "geojson", "shp", "parquet")


@pytest.mark.parametrize("name", OPTIONS)
def test_options(golden, folder, name):
    answer = run("vectorize", CLASSES, "-o", "p.gpkg", *OPTIONS[name], "--json")
    golden.check_json(f"polygons/{name}", polygon_facts(polygons(folder / "p.gpkg")), exact=True)
    golden.check_json(f"polygons/{name}_reported", masked(json.loads(answer.stdout), folder), exact=True)


def test_two_jobs_change_nothing():
    paths = [EXPECTED / "polygons" / f"{name}.json" for name in ("plain", "two_jobs")]
    plain, jobs = (json.loads(path.read_text("utf-8")) for path in paths)
    assert plain == jobs


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats(golden, folder, suffix):
    """The same polygons in every format, with its own limits on names and types, and a QGIS style."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = folder / f"p.{suffix}"
    run("vectorize", CLASSES, "-o", path, "--min-area", "20", "--simplify", "1", "--qml")
    golden.check_json(f"polygons/format_{suffix}", polygon_facts(polygons(path)), exact=True)
    golden.check_json(f"polygons/files_{suffix}", sorted(item.name for item in folder.iterdir()))


@pytest.mark.parametrize("name", ["plain", "drawn_anew"])
def test_places_without_data(golden, folder, name):
    """They have no polygons; small ones may be filled."""
    with rasterio.open(CLASSES) as dataset:
        profile, classes = dataset.profile | {"driver": "GTiff"}, dataset.read(1)
        tags = {key: value for key, value in dataset.tags().items() if key.startswith("CLASS_")}
    for row, col, side in ((0, 0, 150), (200, 300, 5), (400, 100, 80)):
        classes[row : row + side, col : col + side] = 255
    with rasterio.open(folder / "holes.tif", "w", **profile) as dataset:
        dataset.write(classes, 1)
        dataset.update_tags(**tags)
    run("vectorize", "holes.tif", "-o", "p.fgb", *OPTIONS[name])
    golden.check_json(f"polygons/holes_{name}", polygon_facts(polygons(folder / "p.fgb")), exact=True)


def test_confidence(golden, folder):
    """A drawn confidence, so that mean and minimum are exact."""
    with rasterio.open(CLASSES) as dataset:
        profile, valid = dataset.profile | {"driver": "GTiff"}, dataset.read(1) != 255
    rows, cols = np.mgrid[: profile["height"], : profile["width"]]
    with rasterio.open(folder / "sure.tif", "w", **profile) as dataset:
        dataset.write(np.where(valid, (rows * 3 + cols) % 255, 255).astype(np.uint8), 1)
    run("vectorize", CLASSES, "-o", "p.fgb", "--confidence", "sure.tif", "--min-area", "20")
    golden.check_json("polygons/confidence", polygon_facts(polygons(folder / "p.fgb")), exact=True)


def test_messages(golden, folder):
    golden.check_text("messages/vectorize", reported(run("vectorize", CLASSES, "-o", "p.gpkg"), folder))
    again = run("vectorize", CLASSES, "-o", "p.gpkg", exit_code=None)
    golden.check_text("messages/vectorize_exists", reported(again, folder))


def test_the_library_gives_what_the_command_gives(folder):
    config = VectorConfig(simplify_m=1, min_area_m2=20, fill_holes_m2=20, smooth=True)
    result = vectorize(CLASSES, folder / "p.gpkg", config=config)
    facts = polygon_facts(polygons(folder / "p.gpkg"))
    assert facts == json.loads((EXPECTED / "polygons/drawn_anew.json").read_text())
    assert result.as_dict()["features"] == facts["polygons"]
    assert polygon_facts(to_geodataframe(CLASSES, config=config))["sha256"] == facts["sha256"]
