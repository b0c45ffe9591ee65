"""What a process is given: standard streams that are closed or broken, few file descriptors, odd names."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from batch_runs import pixels, save_tiny

from rsseg_cli.raster import Grid, SceneInfo, vrt

ROOT = Path(__file__).resolve().parents[2]
STREAMS = ("<&-", ">&-", "2>&-")
CLOSED = [" ".join(some) for count in (1, 2, 3) for some in itertools.combinations(STREAMS, count)]
OFTEN = (">&-", "2>&-", "<&- >&- 2>&-")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def start(make_raster, model_file, tmp_path):
    """start(arguments, redirected=...) -> the finished process, in the folder of `scene.tif`."""
    make_raster()

    def run(*arguments, redirected="", before="", environment=None, **more):
        options = ("--model", model_file, "--tile-size", "64", "--overlap", "16")
        command = [sys.executable, "-m", "rsseg_cli", "predict", *arguments, *options]
        script = f'{before} exec "$@" {redirected}'
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
        return subprocess.run(
            ["sh", "-c", script, "sh", *map(str, command)], cwd=tmp_path, env=environment, check=False,
            **({"capture_output": True, "text": True} | more),
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    "closed", [*OFTEN, *(pytest.param(item, marks=pytest.mark.slow) for item in CLOSED if item not in OFTEN)]
)
def test_a_map_needs_no_standard_streams(start, tmp_path, closed):
    before = (tmp_path / "scene.tif").read_bytes()
    done = start("scene.tif", "-o", "map.tif", "--vector", "map.gpkg", redirected=closed)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert (done.stdout == "") == (">&-" in closed.split())
    assert pixels(tmp_path / "map.tif").shape == (1, 60, 80)
    assert (tmp_path / "map.gpkg").exists()
    assert (tmp_path / "scene.tif").read_bytes() == before


@pytest.fixture(params=["pipe", "full disk"])
def broken(request):
    """A stream that takes nothing."""
    if request.param == "full disk":
        with Path("/dev/full").open("wb") as stream:
            yield stream
        return
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as stream:
        yield stream


def test_messages_that_nobody_reads_stop_nothing(start, tmp_path, broken):
    """The scene is resampled, of which there is a warning."""
    streams = {"stdout": subprocess.PIPE, "stderr": broken, "capture_output": False}
    done = start("scene.tif", "-o", "map.tif", "--gsd", "0.7", **streams)
    assert done.returncode == 0
    assert "map.tif" in done.stdout
    assert pixels(tmp_path / "map.tif").shape == (1, 60, 80)


def test_a_result_that_nobody_reads_leaves_the_map(start, tmp_path, broken):
    done = start("scene.tif", "-o", "map.tif", stdout=broken, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert pixels(tmp_path / "map.tif").shape == (1, 60, 80)


def test_a_working_folder_that_is_gone_is_named(start, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = start(tmp_path / "scene.tif", "-o", "map.tif", before=f"cd {gone}; rmdir {gone};")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "rsseg: error: the working folder does not exist any more; change to another one"
    )
    assert "Traceback" not in done.stderr


@pytest.fixture
def sheets(make_raster, tmp_path):
    """A VRT of 16 x 16 files, and their pixels."""
    count, side = 16, 20
    array = np.random.default_rng(0).integers(1, 255, (3, count * side, count * side), dtype=np.uint8)
    windows = [
        (row, col, side, side)
        for row in range(0, array.shape[1], side)
        for col in range(0, array.shape[2], side)
    ]
    grid = Grid(crs=None, transform=Affine.identity(), width=array.shape[2], height=array.shape[1])
    parts = []
    for number, (row, col, height, width) in enumerate(windows):
        path = make_raster(f"s{number}.tif", array=array[:, row : row + height, col : col + width], crs=None)
        parts.append(vrt.Sheet(SceneInfo.of(path), (row, col, height, width)))
    (tmp_path / "all.vrt").write_text(vrt.of_sheets(parts, grid, nodata=None, masked=False))
    return make_raster("whole.tif", array=array, crs=None)


def test_a_scene_of_many_files_needs_few_at_a_time(start, sheets, tmp_path):
    done = start("all.vrt", "-o", "map.tif", before="ulimit -n 96;")
    assert done.returncode == 0, done.stderr
    assert start("whole.tif", "-o", "same.tif").returncode == 0
    np.testing.assert_array_equal(pixels(tmp_path / "map.tif"), pixels(tmp_path / "same.tif"))


def test_a_limit_of_open_files_is_named(start, sheets):
    done = start("all.vrt", "-o", "map.tif", before="ulimit -n 8;")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "This process may have 8 files open; allow more: ulimit -n 4096" in done.stderr
    assert "damaged" not in done.stderr


def test_a_low_soft_limit_is_raised(start, sheets):
    done = start("all.vrt", "-o", "map.tif", before="ulimit -S -n 40;")
    assert done.returncode == 0, done.stderr


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "environment", [ASCII, ASCII | {"PYTHONIOENCODING": "ascii"}], ids=["locale", "stream"]
)
def test_names_that_are_not_ascii_work_in_any_locale(start, tmp_path, environment):
    os.rename(tmp_path / "scene.tif", tmp_path / "Größe ü.tif")
    more = ("--vector", "Fläche.gpkg", "--preview", "Bild é.png", "--confidence", "sicher ß.tif")
    done = start("Größe ü.tif", "-o", "Karte ü.tif", *more, environment=environment, text=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert {"Karte ü.tif", "Fläche.gpkg", "Bild é.png", "sicher ß.tif"} <= names
