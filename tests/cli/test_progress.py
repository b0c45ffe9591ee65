"""`--progress json`: lines on stderr that programs read, from every command that works long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rasters import MakeRaster
from shapely import box
from shared_scenes import save_models
from typer.testing import CliRunner

from rsseg_cli.cli import app

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
RUN = ("--tile-size", 64, "--runtime", "torch")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


def events(*arguments: object, code: int = 0, form: str = "json") -> list[dict[str, Any]]:
    """What the program says on stderr, all of it lines of JSON."""
    done = CliRunner().invoke(app, ["--progress", form, *map(str, arguments)])
    assert done.exit_code == code, f"{done.stderr}\n{done.exception!r}"
    return [json.loads(line) for line in done.stderr.splitlines()]


def stages(lines: list[dict[str, Any]], scene: str | None = None) -> list[dict[str, Any]]:
    """Lines about progress; each stage's counts rise to their total, which says that no time is left."""
    found = [item for item in lines if item["event"] == "progress" and item.get("scene") == scene]
    for _, of_stage in groupby(found, key=itemgetter("stage")):
        counts = list(of_stage)
        assert [item["done"] for item in counts] == sorted(item["done"] for item in counts)
        assert counts[-1]["done"] == counts[-1]["total"]
        assert counts[-1].get("eta", 0) == 0
    return found


def test_every_step_from_a_scene_to_suggestions(
    make_raster: MakeRaster, models: tuple[Path, Path], tmp_path: Path
) -> None:
    scene, (model, refiner) = make_raster(shape=(200, 260)), models
    at = {name: tmp_path / name for name in ("map.tif", "c.tif", "r.tif", "map.gpkg", "m.fgb", "look.gpkg")}
    options = ("--overlap", 16, "--model", model, "--confidence", at["c.tif"])
    refining = ("--refiner", refiner, *RUN)
    shapes = ("--min-area", 5, "--fill-holes", 5, "--simplify", 1)
    commands = {
        ("map", "write", "trace"): (
            "predict", scene, "-o", at["map.tif"], "--vector", at["m.fgb"], *options, *RUN, *shapes,
        ),
        ("refine", "write"): ("refine", scene, at["map.tif"], "-o", at["r.tif"], *refining),
        ("trace",): (
            "vectorize", at["map.tif"], "-o", at["map.gpkg"], *shapes, "--regularize",
            "--regularize-classes", "roof",
        ),
        ("score",): ("score", at["r.tif"], at["map.tif"]),
        ("read",): ("suggest", scene, at["map.tif"], "--confidence", at["c.tif"], "-o", at["look.gpkg"]),
    }  # fmt: skip
    for names, command in commands.items():
        lines = events(*command)
        assert tuple(name for name, _ in groupby(stages(lines), key=itemgetter("stage"))) == names
        assert lines[-1] == {"event": "done"}


def test_reports_and_files_left_out_are_lines_too(make_raster: MakeRaster, tmp_path: Path) -> None:
    labels = make_raster(array=np.indices((1, 64, 64), np.uint8)[2] // 32)
    with rasterio.open(labels, "r+") as dataset:
        dataset.update_tags(CLASS_0="land", CLASS_1="roof")
    points, polygons = tmp_path / "points.gpkg", tmp_path / "change.gpkg"
    lines = events("change", labels, labels, "-o", tmp_path / "change.tif", "--vector", polygons)
    assert lines[-2]["message"] == f"{polygons}: not written, as nothing changed"
    events("sample", labels, "-n", 40, "-o", points)
    checked = geopandas.read_file(points)
    checked["class"] = [stratum.split(",")[0] for stratum in checked["stratum"]]
    checked.to_file(points, layer="points")
    lines = events("assess", labels, points, "-o", tmp_path / "assessment")
    assert lines[-2]["message"] == f"report: {tmp_path / 'assessment' / 'index.html'}"


def test_training_says_how_far_it_is(
    make_raster: MakeRaster, models: tuple[Path, Path], tmp_path: Path
) -> None:
    scene = make_raster(shape=(200, 260))
    names, left, top = ["roof", "road", "tree"], 500000, 5000000
    shapes = [box(left + 40 * n, top - 40, left + 40 * n + 30, top - 10) for n in range(3)]
    geopandas.GeoDataFrame({"class": names}, geometry=shapes, crs=32633).to_file(tmp_path / "drawn.gpkg")
    options = ("--model", models[0], "--steps", 2, "--no-replay", "-o", tmp_path / "new.safetensors")
    lines = events("adapt", scene, tmp_path / "drawn.gpkg", *options)
    assert [item["stage"] for item in stages(lines)][-1] == "train"
    assert any(item.get("message") for item in stages(lines))


def test_messages_are_lines_too(make_raster: MakeRaster, models: tuple[Path, Path], tmp_path: Path) -> None:
    command = ("predict", make_raster(), "-o", tmp_path / "map.tif", "--model", models[0], *RUN)
    command = (*command, "--overlap", 16)
    lines = events(*command, "--gsd", 2)  # of which there is a warning
    said = [item for item in lines if item["event"] == "log"]
    assert "warning" in {item["level"] for item in said}
    assert not any(item["message"].startswith("rsseg:") for item in said)
    lines = events(*command, "--gsd", 2, "--overwrite", "--quiet")
    assert lines == [{"event": "done"}]


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--model", "lancover"), 1, "lancover"),
        (("--overlap", "300"), 2, "--overlap 300: needs 0 to half the tile"),
        (("--modle", "landcover"), 2, "No such option: --modle"),
    ],
)
def test_the_last_line_is_the_error(
    make_raster: MakeRaster, tmp_path: Path, more: tuple[str, ...], code: int, words: str
) -> None:
    last = events("predict", make_raster(), "-o", tmp_path / "map.tif", *more, code=code)[-1]
    assert (last["event"], last["exit_code"]) == ("error", code)
    assert words in last["message"]


def test_a_batch_names_its_scenes(make_raster: MakeRaster, models: tuple[Path, Path], tmp_path: Path) -> None:
    scenes = [make_raster(f"{name}.tif") for name in "ab"]
    options = ("-o", tmp_path / "maps", "--model", models[0], *RUN, "--overlap", 16)
    lines = events("predict", *scenes, tmp_path / "gone.tif", *options, code=3)
    assert [item["done"] for item in stages(lines)] == [0, 1, 2, 3]
    for name in ("a.tif", "b.tif"):
        assert {item["stage"] for item in stages(lines, name)} == {"map"}
    (failed,) = [item for item in lines if item["event"] == "log" and item["level"] == "error"]
    assert failed["message"].startswith("gone.tif: ")
    assert lines[-1]["exit_code"] == 3


def test_off_leaves_messages(make_raster: MakeRaster, models: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--model", models[0], *RUN, "--overlap", 16, "--gsd", 2)
    scenes = [make_raster(f"{name}.tif") for name in "ab"]
    done = CliRunner().invoke(
        app, ["--progress", "off", "predict", *map(str, (*scenes, "-o", tmp_path / "maps", *options))]
    )
    assert done.exit_code == 0, done.stderr
    assert "warning: " in done.stderr
    assert "[1/2]" not in done.stderr


def test_a_run_whose_reader_has_gone_stops(
    make_raster: MakeRaster, models: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    target = tmp_path / "map.tif"
    command = ("predict", make_raster(shape=(700, 700)), "-o", target, "--model", models[0], *RUN)
    done = subprocess.run(
        [sys.executable, "-m", "rsseg_cli", "--progress", "json", *map(str, command), "--overlap", "16"],
        stderr=theirs, check=False, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(theirs)
    assert done.returncode == 130
    assert not target.exists()
