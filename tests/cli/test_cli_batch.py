"""`rsseg predict` of many scenes: what a user types, reads and finds."""

import json
import os
from pathlib import Path

import geopandas
import numpy as np
import pytest
import torch
from affine import Affine
from batch_runs import SMALL, model_file, pixels, records_of, run, save_tiny, status_of  # noqa: F401
from shapely import box

from rsseg_cli.cli.progress import rate_text, short_names
from rsseg_cli.pipeline import OutputLock

torch.set_num_threads(1)


def test_scenes_are_mapped_as_one_by_one_and_a_bad_one_fails_alone(make_raster, run):
    for index in range(2):
        make_raster(f"s{index}.tif", seed=index)
    make_raster("two_bands.tif", bands=2)
    Path("torn.tif").write_bytes(Path("s0.tif").read_bytes()[:300])
    done = run("s0.tif", "two_bands.tif", "torn.tif", "gone.tif", "s1.tif", "-o", "maps")
    assert done.exit_code == 3, done.stderr
    assert sorted(path.name for path in Path("maps").iterdir() if path.suffix == ".tif") == [
        "s0_tiny.tif", "s1_tiny.tif",
    ]  # fmt: skip
    assert run("s1.tif", "-o", "alone.tif").exit_code == 0
    assert np.array_equal(pixels("alone.tif"), pixels("maps/s1_tiny.tif"))
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["s0.tif", "done"]
    assert lines[1].split()[:2] == ["two_bands.tif", "failed"]
    assert "needs 3 (red, green, blue)" in lines[1]
    assert "5 scenes: 2 done, 3 failed; 9600 px" in done.stdout
    assert "[5/5] s1.tif: 4800 px in " in done.stderr
    assert "Traceback" not in done.stderr
    records = records_of("maps/manifest.jsonl")
    failed = dict.fromkeys(["two_bands.tif", "torn.tif", "gone.tif"], "failed")
    assert status_of("maps/manifest.jsonl") == {"s0.tif": "done", **failed, "s1.tif": "done"}
    record = records[os.path.abspath("s1.tif")]
    assert record["size"] == os.path.getsize("s1.tif")
    assert record["modified"] == os.path.getmtime("s1.tif")
    assert len(record["model_sha256"]) == 64
    assert record["settings"]["predict"]["tile_size"] == 64
    assert record["outputs"]["labels"]["size"] == os.path.getsize("maps/s1_tiny.tif")
    assert sum(item["pixels"] for item in record["classes"].values()) == 4800
    assert record["seconds"] > 0


def test_resume_does_what_is_missing_or_changed(make_raster, run, model_file, tmp_path):
    scenes = [make_raster(f"s{index}.tif", seed=index).name for index in range(4)]
    first = run(*scenes, "-o", "maps", "--json")
    assert first.exit_code == 0, first.stderr
    reported = json.loads(first.stdout)
    assert (reported["scenes"], reported["done"], [item["status"] for item in reported["results"]]) == (
        4,
        4,
        ["done"] * 4,
    )
    again = run(*scenes, "-o", "maps")
    assert again.exit_code == 1
    assert "4 outputs exist: " in again.stderr
    assert "--resume" in again.stderr
    kept = {name: os.stat(f"maps/{name[:2]}_tiny.tif").st_mtime_ns for name in scenes}
    Path("maps/s1_tiny.tif").unlink()
    make_raster("s2.tif", seed=9)
    with Path("maps/s3_tiny.tif").open("ab") as file:
        file.write(b"more")
    done = run(*scenes, "-o", "maps", "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    reported = json.loads(done.stdout)
    assert [item["status"] for item in reported["results"]] == ["skipped", "done", "done", "done"]
    assert reported["results"][0]["pixels"] == 4800
    assert "1 of 4 done before; to do: 2 output missing or changed, 1 scene changed" in done.stderr
    changed = {name for name in scenes if os.stat(f"maps/{name[:2]}_tiny.tif").st_mtime_ns != kept[name]}
    assert changed == {"s1.tif", "s2.tif", "s3.tif"}
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    assert "to do: 4 model changed" in run(*scenes, "-o", "maps", "--resume", model=other).stderr
    assert (
        "to do: 4 settings changed"
        in run(*scenes, "-o", "maps", "--resume", "--nodata", "7", model=other).stderr
    )


def test_resume_after_a_kill_in_the_middle(make_raster, run):
    scenes = [make_raster(f"s{index}.tif", seed=index).name for index in range(3)]
    assert run(*scenes, "-o", "maps").exit_code == 0
    lines = Path("maps/manifest.jsonl").read_bytes().splitlines(keepends=True)
    # killed while it wrote that s1 was done; s2 had not begun
    Path("maps/manifest.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:200])
    Path("maps/s2_tiny.tif").unlink()
    done = run(*scenes, "-o", "maps", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "1 of 3 done before; to do: 1 new, 1 not finished" in done.stderr
    assert status_of("maps/manifest.jsonl") == dict.fromkeys(scenes, "done")
    assert "3 of 3 done before; to do: none" in run(*scenes, "-o", "maps", "--resume").stderr


def test_resume_leaves_files_that_it_does_not_know(make_raster, run):
    scene = make_raster("s0.tif").name
    Path("maps").mkdir()
    Path("maps/s0_tiny.tif").write_text("mine")
    done = run(scene, "-o", "maps", "--resume")
    assert done.exit_code == 1
    assert "1 outputs exist" in done.stderr
    assert Path("maps/s0_tiny.tif").read_text() == "mine"
    skipped = run(scene, "-o", "maps", "--skip-existing")
    assert skipped.exit_code == 0
    assert "1 scene: 0 done, 1 already there" in skipped.stdout
    assert run(scene, "-o", "maps", "--overwrite").exit_code == 0
    assert pixels("maps/s0_tiny.tif").shape == (1, 60, 80)


def test_a_second_batch_on_a_manifest_is_refused(make_raster, run):
    make_raster("a.tif")
    Path("maps").mkdir()
    lock = OutputLock(Path("maps/.manifest.jsonl.rsseg"), Path("maps/manifest.jsonl"))
    lock.acquire()
    try:
        done = run("a.tif", "-o", "maps")
        assert done.exit_code == 1
        assert f"manifest.jsonl: is being written by process {os.getpid()} on " in done.stderr
        assert run("a.tif", "-o", "maps", "--manifest", "other.jsonl").exit_code == 0
    finally:
        lock.remove()
    assert run("a.tif", "-o", "maps", "--overwrite").exit_code == 0
    assert not list(Path("maps").glob(".*"))


def test_further_outputs_have_the_maps_name_and_an_ending(make_raster, run):
    make_raster("a.tif")
    more = ("--vector", "gpkg", "--confidence", "_sure", "--preview", "_view", "--suffix", "_cover")
    done = run("a.tif", "-o", "maps", *more, "--jobs", "1", "--json")
    assert done.exit_code == 0, done.stderr
    names = {"a_cover.tif", "a_cover.gpkg", "a_cover_sure.tif", "a_cover_view.png", "manifest.jsonl"}
    beside = {"a_cover.tif.aux.xml", "a_cover.qml", "a_cover_sure.qml"}
    assert {path.name for path in Path("maps").iterdir()} - beside == names
    assert {Path(path).name for path in json.loads(done.stdout)["results"][0]["paths"].values()} < names


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["s0.tif", "s1.tif"], 2, "several scenes need a folder for their maps: -o OUT_DIR"),
        (["s0.tif", "s1.tif", "-o", "map.tif"], 2, "-o map.tif: several scenes need a folder"),
        (["s0.tif", "s0.tif", "-o", "maps"], 2, "s0.tif: is given twice"),
        (["s0.tif", "sub/S0.tif", "-o", "maps"], 2, "pass --keep-tree to keep their folders"),
        (["s0.tif", "s0_tiny.tif", "-o", "."], 2, "s0_tiny.tif: is an output of s0.tif and a scene itself"),
        (["s*.tiff", "-o", "maps"], 2, "s*.tiff: no file has such a name"),
        (["@none.txt", "-o", "maps"], 1, "none.txt: the list of scenes cannot be read"),
        (["sub", "-o", "sub"], 2, "sub: is also the output folder"),
        (
            ["s0.tif", "-o", "maps", "--vector", "polygons.gpkg"],
            2,
            "--vector polygons.gpkg: with many scenes, pass the format",
        ),
        (["s0.tif", "-o", "maps", "--confidence", "c.tif"], 2, "as _confidence, without folder and .tif"),
        (["s0.tif", "-o", "maps", "--resume", "--skip-existing"], 2, "--resume and --skip-existing"),
        (
            ["s0.tif", "-o", "maps", "--mosaic", "--bbox", "0", "0", "1", "1"],
            2,
            "with --mosaic; pass --aoi FILE",
        ),
        (["s0.tif", "-o", "maps", "--aoi", "s1.tif"], 2, "--aoi s1.tif: cannot be read as a vector file"),
        (["s0.tif", "-o", "maps", "--aoi", "gone.gpkg"], 2, "--aoi gone.gpkg: cannot be read"),
        (["s0.tif", "-o", "maps", "--classes", "moat", "--vector", "gpkg"], 2, "has no class of this name"),
        (["s0.tif", "-o", "none/maps"], 1, "Make none first"),
        (["s0.tif", "-o", "maps", "--manifest", "s1.tif"], 1, "s1.tif: line 1 is not a record of a batch"),
        (["s0.tif", "-o", "maps", "--jobs", "some"], 2, "needs 1 to 256, or auto"),
        (["s0.tif", "-o", "maps", "--jobs", "0"], 2, "--jobs '0': needs 1 to 256, or auto"),
        (["s0.tif", "--engine", "ray", "--split-above", "inf"], 2, "--split-above inf: needs megapixels"),
        (["s0.tif", "s1.tif", "-o", "maps", "--device", "cuda:77"], 2, "--device cuda:77"),
    ],
)
def test_what_is_wrong_is_reported_before_work_starts(make_raster, run, arguments, code, message):
    Path("sub").mkdir()
    for name in ("s0.tif", "s1.tif", "sub/S0.tif"):
        make_raster(name)
    done = run(*arguments)
    assert done.exit_code == code, done.stdout + done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(Path().rglob("*_tiny.tif"))


def test_scenes_of_one_name_are_reported_apart():
    assert short_names(["/a/x/1.tif", "/a/2.tif"]) == ["1.tif", "2.tif"]
    assert short_names(["/a/x/1.tif", "/a/1.tif", "/a/y z/1.tif"]) == ["x/1.tif", "1.tif", "y z/1.tif"]
    assert short_names(["s3://b/1.tif", "/a/1.tif"]) == ["s3://b/1.tif", "/a/1.tif"]


def test_rates_are_short_and_without_exponents():
    shown = [rate_text(pixels, 10.0) for pixels in (190_000, 7_700_000, 1_204_000_000)]
    assert shown == ["0.019 Mpx/s", "0.77 Mpx/s", "120 Mpx/s"]


def test_folders_globs_lists_and_trees(make_raster, run):
    for folder in ("north", "north/x", "south"):
        Path(folder).mkdir()
        make_raster(f"{folder}/s 1.tif")
    Path("north/.hidden.tif").write_text("")
    Path("list.txt").write_text("# sheets\r\nnorth/s 1.tif\r\n\r\nsouth/s*.tif\n")
    for number, (arguments, stdin, found) in enumerate(
        [
            (["north"], None, {"s 1_tiny.tif", "x/s 1_tiny.tif"}),
            (["@list.txt"], None, {"north/s 1_tiny.tif", "south/s 1_tiny.tif"}),
            (["-"], "north/x/s 1.tif\0south/s 1.tif\0", {"north/x/s 1_tiny.tif", "south/s 1_tiny.tif"}),
            (["north/**/s*.tif"], None, {"s 1_tiny.tif", "x/s 1_tiny.tif"}),
        ]
    ):
        folder = Path(f"out{number}")
        done = run(*arguments, "-o", folder, "--keep-tree", stdin=stdin)
        assert done.exit_code == 0, done.stderr
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.tif")} == found


def side_by_side(make_raster, names, **more):
    """Sheets of 80 x 60 px of 0.5 m, 40 m from one to the next eastwards."""
    for index, name in enumerate(names):
        make_raster(name, seed=index, transform=Affine(0.5, 0, 500000 + 40 * index, 0, -0.5, 5000000), **more)
    return list(names)


def test_sheets_outside_the_area_are_skipped(make_raster, run):
    """Of an area in two parts: the sheet between them, and one that only shares an edge with it, too."""
    scenes = side_by_side(make_raster, ["a.tif", "b.tif", "c.tif", "d.tif"])
    parts = [box(500010, 4999980, 500040, 5000000), box(500090, 4999980, 500120, 5000000)]
    geopandas.GeoDataFrame(geometry=parts, crs="EPSG:32633").to_file("area.gpkg")
    done = run(*scenes, "-o", "maps", "--aoi", "area.gpkg")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split(maxsplit=2) == ["b.tif", "skipped", "outside the area"]
    assert "4 scenes: 2 done, 2 outside the area; 9600 px" in done.stdout
    assert "[4/4] d.tif: outside the area" in done.stderr
    assert sorted(path.name for path in Path("maps").glob("*.tif")) == ["a_tiny.tif", "c_tiny.tif"]
    record = records_of("maps/manifest.jsonl")[os.path.abspath("b.tif")]
    assert (record["status"], record["reason"]) == ("skipped", "outside the area")
    assert "--aoi area.gpkg: lies outside the scene, which covers 500040, " in record["notes"][0]
    again = run(*scenes, "-o", "maps", "--aoi", "area.gpkg", "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    assert "4 of 4 done before; to do: none" in again.stderr
    reasons = [item["reason"] for item in json.loads(again.stdout)["results"]]
    assert reasons == ["done before", "outside the area", "done before", "outside the area"]
    # another area: b has a part in it; what lies where its map goes is not this batch's
    parts = [box(500050, 4999980, 500060, 5000000)]
    geopandas.GeoDataFrame(geometry=parts, crs="EPSG:32633").to_file("area.gpkg")
    Path("maps/b_tiny.tif").write_text("mine")
    refused = run(*scenes, "-o", "maps", "--aoi", "area.gpkg", "--resume")
    assert refused.exit_code == 1
    assert "1 outputs exist: maps/b_tiny.tif" in refused.stderr
    Path("maps/b_tiny.tif").unlink()
    assert run(*scenes, "-o", "maps", "--aoi", "area.gpkg", "--resume").exit_code == 0
    assert status_of("maps/manifest.jsonl") == dict.fromkeys(scenes, "skipped") | {"b.tif": "done"}


def test_a_box_is_each_scenes_own_and_outside_all_of_them_an_error(make_raster, run):
    scenes = side_by_side(make_raster, ["a.tif", "b.tif"])
    inside = ("--bbox", 500030, 4999980, 500040, 5000000)
    done = run(*scenes, "-o", "maps", *inside)
    assert done.exit_code == 0, done.stderr
    assert pixels("maps/a_tiny.tif").shape == (1, 40, 20)
    assert status_of("maps/manifest.jsonl") == {"a.tif": "done", "b.tif": "skipped"}
    outside = ("--bbox", 10, 50, 11, 51)  # degrees, say
    for more in ((), ("--resume",)):
        nothing = run(*scenes, "-o", "none", *outside, *more)
        assert nothing.exit_code == 2, nothing.stderr
        line = nothing.stderr.splitlines()[-1]
        assert "--bbox 10, 50, 11, 51: lies outside the scene, which covers 500000, 4999970, 500040" in line
        assert "all 2 scenes lie outside" in line
    assert not list(Path("none").glob("*.tif"))
