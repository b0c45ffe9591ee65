"""Outputs of every command: what is no regular file is refused before work, and left as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from batch_runs import model_file  # noqa: F401
from typer.testing import CliRunner

from rsseg_cli.cli import app

KINDS = {
    "pipe": (os.mkfifo, "is a pipe"),
    "link to a file": (lambda path: link(path, "goal", Path.touch), "is a link to goal"),
    "link to a pipe": (lambda path: link(path, "goal", os.mkfifo), "is a link to goal"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "is a link to nowhere"),
    "link to a device": (lambda path: path.symlink_to("/dev/null"), "is a link to /dev/null"),
    "folder": (Path.mkdir, "is a folder"),
}
PREDICT = ("predict", "scene.tif", "-o", "map.tif", "--model", "model.safetensors", "--overwrite")
COMMANDS = {
    "predict": ("map.tif", PREDICT),
    "confidence": ("c.tif", (*PREDICT, "--confidence", "c.tif")),
    "preview": ("p.png", (*PREDICT, "--preview", "p.png")),
    "polygons": ("p.gpkg", (*PREDICT, "--vector", "p.gpkg")),
    "file of a shapefile": ("p.dbf", (*PREDICT, "--vector", "p.shp")),
    "journal of a GeoPackage": ("p.gpkg-wal", (*PREDICT, "--vector", "p.gpkg")),
    "overviews of a map": ("map.tif.ovr", PREDICT),
    "vectorize": ("v.gpkg", ("vectorize", "labels.tif", "-o", "v.gpkg", "--overwrite")),
    "drawn scene": ("d.tif", ("demo-scene", "d.tif", "--size", "64", "--overwrite")),
    "drawn labels": (
        "l.tif",
        ("demo-scene", "d.tif", "--size", "64", "--overwrite", "--labels", "l.tif"),
    ),
    "average": (
        "mean.safetensors",
        (
            "models",
            "average",
            "model.safetensors",
            "model.safetensors",
            "-o",
            "mean.safetensors",
            "--overwrite",
        ),
    ),
    "manifest": (
        "m.jsonl",
        ("predict", "scene.tif", "-o", "maps", "--model", "model.safetensors", "--manifest", "m.jsonl"),
    ),
    "report": (
        "report/index.html",
        ("score", "labels.tif", "labels.tif", "--report", "report", "--overwrite"),
    ),
}


def link(path, goal, make):
    make(path.with_name(goal))
    path.symlink_to(goal)


@pytest.fixture
def here(make_raster, model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_raster("scene.tif", shape=(40, 40))
    make_raster("labels.tif", array=np.zeros((1, 40, 40), np.uint8), nodata=255)
    shutil.copy(model_file, "model.safetensors")
    return tmp_path


def state_of(folder):
    """Every file's kind and number, but for what the program may make beside them."""
    return {path.name: (path.lstat().st_ino, path.lstat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_refused_and_left(here, command, kind):
    make, message = KINDS[kind]
    name, arguments = COMMANDS[command]
    if (command, kind) == ("predict", "folder"):
        pytest.skip("several scenes may have a folder for their maps")
    Path(name).parent.mkdir(exist_ok=True)
    make(Path(name))
    before = state_of(here)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    assert f"rsseg: error: {name}: {message}" in done.stderr.replace(f"{here}/", "")
    after = state_of(here)
    made = set(after) - set(before)
    assert {name: after[name] for name in before} == before
    assert made <= {"maps"}


def test_a_link_to_a_folder_may_hold_outputs(here):
    Path("real").mkdir()
    Path("linked").symlink_to("real")
    done = CliRunner().invoke(app, [*PREDICT[:3], "linked/map.tif", *PREDICT[4:]])
    assert done.exit_code == 0, done.output
    assert Path("real/map.tif").is_file()
