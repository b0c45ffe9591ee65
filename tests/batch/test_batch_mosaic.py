"""Sheets that touch as one scene: no seam at their borders."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from batch_runs import model_file, pixels, run  # noqa: F401

from rsseg_cli.batch.manifest import read_manifest
from rsseg_cli.data import synthetic
from rsseg_cli.raster import vrt

LEFT, TOP, GSD = 500000, 5000000, 0.5


@pytest.fixture(scope="module")
def drawn():
    return synthetic.draw_scene(256, 3)[0][:, :150, :200]


@pytest.fixture
def sheet(make_raster):
    """sheet(name, array, row, col, ...): a raster at its place in the scene."""

    def make(name, array, row=0, col=0, **more):
        transform = Affine(GSD, 0, LEFT + col * GSD, 0, -GSD, TOP - row * GSD)
        return make_raster(name, array=array, transform=transform, **more).name

    return make


def cut(sheet, array, **more):
    """Four sheets of unlike sizes."""
    rows, cols = slice(0, 70), slice(0, 130)
    parts = {"nw": (rows, cols), "ne": (rows, slice(130, 200)), "sw": (slice(70, 150), cols)}
    parts["se"] = (slice(70, 150), slice(130, 200))
    return {
        sheet(f"{name}.tif", array[:, down, across], down.start, across.start, **more): (down, across)
        for name, (down, across) in parts.items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        "none",
        "value",
        pytest.param("alpha", marks=pytest.mark.slow),
        pytest.param("mask", marks=pytest.mark.slow),
    ],
)
def test_sheets_get_the_pixels_of_the_whole_scene(sheet, drawn, run, kind, make_raster):
    array, more = drawn.copy(), {}
    if kind == "value":
        array[:, 40:90, 60:150] = 0
        more = {"kind": "value", "nodata": 0, "hole": (0, 0, 0, 0)}
    parts = cut(sheet, array, **({"kind": kind, "hole": (5, 5, 9, 9)} if kind in ("alpha", "mask") else more))
    if kind in ("alpha", "mask"):
        whole = np.zeros((3, *array.shape[1:]), np.uint8)
        valid = np.ones(array.shape[1:], bool)
        for down, across in parts.values():
            valid[down.start + 5 : down.start + 14, across.start + 5 : across.start + 14] = False
        scene = make_raster("whole.tif", array=np.where(valid, array, whole), nodata=0, kind="none")
        with rasterio.open(scene, "r+") as dataset:
            dataset.write(array)
        if kind == "mask":
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(scene, "r+") as dataset:
                dataset.write_mask(valid)
        else:
            scene = sheet("whole.tif", array, kind="alpha", hole=(5, 5, 9, 9))
            with rasterio.open(scene, "r+") as dataset:
                dataset.write((valid * 255).astype(np.uint8), 4)
        scene = "whole.tif"
    else:
        scene = sheet("whole.tif", array, **more)
    assert run(scene, "-o", "whole_map.tif", "--confidence", "whole_sure.tif").exit_code == 0
    done = run(*parts, "-o", "maps", "--mosaic", "--confidence", "_sure")
    assert done.exit_code == 0, done.stderr
    labels, sure = pixels("whole_map.tif"), pixels("whole_sure.tif")
    for name, (down, across) in parts.items():
        stem = f"maps/{Path(name).stem}_tiny"
        assert np.array_equal(pixels(f"{stem}.tif"), labels[:, down, across])
        assert np.array_equal(pixels(f"{stem}_sure.tif"), sure[:, down, across])
        with (
            rasterio.open(f"{stem}.tif") as own,
            rasterio.open(name) as scene,
            rasterio.open("whole_map.tif") as one,
        ):
            assert (own.transform, own.crs) == (scene.transform, scene.crs)
            assert own.colormap(1) == one.colormap(1)
            assert own.tags()["RSSEG_MODEL"] == "tiny"
    assert not list(Path("maps").glob(".*"))
    alone = run(*parts, "-o", "apart")
    assert alone.exit_code == 0
    apart = [pixels(f"apart/{Path(name).stem}_tiny.tif") for name in parts]
    wholes = [labels[:, down, across] for down, across in parts.values()]
    assert any(
        (own != whole).any() for own, whole in zip(apart, wholes, strict=True)
    )  # seams without --mosaic


def test_groups_holes_polygons_and_the_manifest(sheet, drawn, run):
    names = [*cut(sheet, drawn)][:3]  # an L: its fourth corner is no sheet's
    far = sheet("far.tif", drawn[:, :60, :60], 0, 1000)
    done = run(*names, far, "-o", "maps", "--mosaic", "--vector", "gpkg", "--json")
    assert done.exit_code == 0, done.stderr
    reported = json.loads(done.stdout)
    assert [item["status"] for item in reported["results"]] == ["done", "done"]
    mosaic, alone = reported["results"]
    assert [Path(item["input"]).name for item in mosaic["sheets"]] == names
    assert mosaic["pixels"] == mosaic["valid_pixels"] == 150 * 200 - 80 * 70
    assert Path(alone["input"]).name == "far.tif"
    files = {path.name for path in Path("maps").glob("*.gpkg")}
    assert files == {"nw_mosaic_tiny.gpkg", "far_tiny.gpkg"}
    records = read_manifest(Path("maps/manifest.jsonl"))
    assert len(records) == 2
    again = run(*names, far, "-o", "maps", "--mosaic", "--vector", "gpkg", "--resume")
    assert "2 of 2 done before; to do: none" in again.stderr, again.stderr
    Path("maps/ne_tiny.tif").unlink()
    again = run(*names, far, "-o", "maps", "--mosaic", "--vector", "gpkg", "--resume")
    assert again.exit_code == 0, again.stderr
    assert "1 of 2 done before; to do: 1 output missing or changed" in again.stderr
    assert Path("maps/ne_tiny.tif").exists()


def test_warnings_of_single_sheets_are_notes(sheet, drawn, run):
    """One sheet has overviews older than itself; JSON and manifest say so, of the sheet and of the mosaic."""
    names = [*cut(sheet, drawn)]
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(names[1], "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.average)
    os.utime(f"{names[1]}.ovr", (1e9, 1e9))
    done = run(*names, "-o", "maps", "--mosaic", "--json")
    assert done.exit_code == 0, done.stderr
    (reported,) = json.loads(done.stdout)["results"]
    (record,) = read_manifest(Path("maps/manifest.jsonl")).values()
    for whole in (reported, record):
        notes = [[note for note in part["notes"] if ".ovr is older" in note] for part in whole["sheets"]]
        assert [len(some) for some in notes] == [0, 1, 0, 0]
        assert notes[1][0] in whole["notes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"col": 50.4}, "b.tif: its pixels lie 0.4 px off the grid of a.tif"),
        ({"crs": "EPSG:32634"}, "b.tif: CRS EPSG:32634, a.tif has EPSG:32633"),
        ({"dtype": "uint16"}, "b.tif: types uint16, uint16, uint16, a.tif has uint8, uint8, uint8"),
        ({"bands": 4}, "b.tif: bands 4, a.tif has 3"),
        ({"kind": "value"}, "b.tif: nodata 0.0, a.tif has None"),
    ],
)
def test_sheets_that_do_not_fit_are_reported(sheet, drawn, run, change, message):
    array = drawn[:, :50, :50]
    sheet("a.tif", array)
    array = np.concatenate([array, array[:1]]) if change.pop("bands", 3) == 4 else array
    sheet("b.tif", array.astype(change.pop("dtype", "uint8")), 0, change.pop("col", 50), **change)
    done = run("a.tif", "b.tif", "-o", "maps", "--mosaic")
    assert done.exit_code == 1
    assert message in done.stderr
    assert [path.name for path in Path("maps").iterdir()] == []


def test_a_vrt_alone_stands_for_its_sheets(sheet, drawn, run):
    import subprocess

    names = [*cut(sheet, drawn)]
    build = ["gdalbuildvrt", "-q"]
    try:
        subprocess.run([*build, "index.vrt", *names], check=True)
        subprocess.run([*build, "-separate", "bands.vrt", *names[:1] * 3], check=True)
        subprocess.run([*build, "-tr", "1", "1", "coarse.vrt", *names], check=True)
    except FileNotFoundError:
        pytest.skip("needs gdalbuildvrt")
    assert vrt.sheets_of("index.vrt") == names
    assert vrt.sheets_of("bands.vrt") == []
    assert vrt.sheets_of("coarse.vrt") == []
    assert run("index.vrt", "-o", "one.tif").exit_code == 0
    done = run("index.vrt", "-o", "maps", "--mosaic")
    assert done.exit_code == 0, done.stderr
    assert "index.vrt: an index of 4 sheets" in done.stderr
    assert np.array_equal(pixels("maps/nw_tiny.tif"), pixels("one.tif")[:, :70, :130])
    assert not Path("maps/index_tiny.tif").exists()


def test_merged_classes_in_every_sheet_and_a_new_run_where_the_file_changes(sheet, drawn, run, tmp_path):
    parts = cut(sheet, drawn)
    merged = tmp_path / "classes.json"
    merged.write_text('[{"name": "built", "from": ["roof", "road"], "colour": [9, 8, 7]}]')
    command = (*parts, "-o", "maps", "--mosaic", "--vector", "gpkg", "--remap", merged)
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["results"][0]
    assert list(report["classes"]) == ["built", "tree"]
    for item in report["sheets"]:
        assert list(item["classes"]) == ["built", "tree"]
        with rasterio.open(item["paths"]["labels"]) as dataset:
            assert dataset.tags()["CLASS_0"] == "built"
            assert dataset.colormap(1)[0][:3] == (9, 8, 7)
            assert dataset.read().max() <= 1
    assert run(*command, "--resume").output.count("done before")
    merged.write_text('[{"name": "green", "from": ["tree"]}]')
    result = run(*command, "--resume", "--json")
    assert list(json.loads(result.stdout)["results"][0]["classes"]) == ["green", "roof", "road"]


def test_every_sheet_has_an_item(sheet, drawn, run, tmp_path):
    parts = cut(sheet, drawn)
    result = run(*parts, "-o", "maps", "--mosaic", "--stac", "items", "--json")
    assert result.exit_code == 0, result.output
    items = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "items").iterdir()}
    assert set(items) == {f"{Path(name).stem}_tiny" for name in parts}
    for name, item in items.items():
        href = item["assets"]["labels"]["href"]
        assert (tmp_path / "items" / href).samefile(tmp_path / "maps" / f"{name}.tif")
        assert (tmp_path / "items" / item["links"][0]["href"]).name == f"{name.removesuffix('_tiny')}.tif"
        with rasterio.open(tmp_path / "maps" / f"{name}.tif") as dataset:
            assert item["properties"]["proj:shape"] == list(dataset.shape)
    again = run(*parts, "-o", "maps", "--mosaic", "--stac", "items", "--resume")
    assert "done before" in again.output
