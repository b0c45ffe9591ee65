"""The commands of README and docs: options that exist, and runs on drawn data."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import geopandas
import pytest
import rasterio
import typer.main
from typer.testing import CliRunner

from rsseg_cli.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {  # what cannot run here as it stands, and where it is tested
    "--dataset": "tests/training, with small data sets of the same layout",
    "models import": "tests/weights, with a checkpoint that the test makes",
    "--ray-address": "tests/batch, with a cluster of this machine",
    "--engine ray": "tests/batch, with a cluster of this machine",
    "items.json": "tests/batch, with items that the test makes",
    "s3://": "tests/batch, with an object store of this machine",
    "index.vrt": "tests/batch, with sheets that touch",
}
PROGRAMS = r"(make|git|uv|pip|docker|qgis_process|python|\.venv/bin/python|export|ray) "
NOT_RUN = {  # lines of other programs that these tests leave alone, and who runs them
    "git clone REPOSITORY": "every clone",
    "uv tool install": "tests/test_package.py installs the wheel",
    "pip install": "tests/test_package.py installs the wheel",
    "docker": "no registry can be reached; tests/test_release.py reads the Dockerfile",
    "make test": "this suite",
    "make gpu": "tests/test_gpu.py",
    "-m gpu": "tests/test_gpu.py",
    "benchmarks/gpu.py": "tests/test_gpu.py",
    "tests/golden": "this suite",
    "qgis_process": "tests/qgis, by the name that Debian gives the program",
    "ray ": "tests/batch/test_ray_start.py",
    "export RAY": "tests/batch/test_ray_start.py",
}
FILLED_IN = {"sample": 1, "suggest": 2}  # what a person labels next: the map's place among the arguments
SHORTER = {  # so that a run takes seconds
    "adapt": "--minutes 0.1",
    "train": "--epochs 1 --crops-per-epoch 2 --crop-size 128 --batch-size 2 --device cpu",
}


def commands(page: Path) -> Iterator[str]:
    """Every `rsseg` line of a page's code blocks, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if re.match(r"(    |\$ )rsseg ", line):
            yield line.strip().removeprefix("$ ")


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_commands_exist(page: Path) -> None:
    for line in commands(page):
        command, rest = typer.main.get_command(app), words(line)
        context = command.make_context("rsseg", [], resilient_parsing=True)
        while rest and hasattr(command, "commands"):
            if rest[0] == "--progress":
                rest = rest[2:]
            name = rest.pop(0)
            command = command.get_command(context, name)
            assert command is not None, f"{line}: no command {name}"
            context = command.make_context(name, [], parent=context, resilient_parsing=True)
        given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
        known = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
        assert given <= known, f"{line}: {given - known}"


def run(*args: str, folder: Path) -> None:
    """In this process, which loads torch once."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, f"{shlex.join(args)}\n{done.stderr[-3000:]}\n{done.exception!r}"


def fill_in(path: Path, map_path: Path) -> None:
    """Give each point or square the class of the map at its middle."""
    places = geopandas.read_file(path)
    middles = places.representative_point()
    with rasterio.open(map_path) as raster:
        places["class"] = [str(value) for (value,) in raster.sample(zip(middles.x, middles.y, strict=True))]
    places.to_file(path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "sheets/images").mkdir(parents=True)
    (folder / "sheets/masks").mkdir()
    run("demo-scene", "scene.tif", "--labels", "labels.tif", "--size", "512", "--seed", "7", folder=folder)
    for index, name in enumerate(("east_1", "north_1", "west_1")):
        files = f"sheets/images/{name}.tif", "--labels", f"sheets/masks/{name}.tif"
        run("demo-scene", *files, "--size", "512", "--seed", str(index), folder=folder)
        shutil.copy(folder / files[0], folder / f"sheets/{name}.tif")
    run("predict", "scene.tif", "-o", "map.tif", "--confidence", "sure.tif", folder=folder)
    run("predict", "scene.tif", "--model", "buildings", "-o", "buildings.tif", folder=folder)
    run("vectorize", "labels.tif", "-o", "truth.gpkg", folder=folder)
    green = '[{"name": "green", "from": ["land", "vegetation"]}]'
    (folder / "classes.json").write_text(green, encoding="utf-8")
    for year in (2019, 2024):
        shutil.copy(folder / "map.tif", folder / f"map_{year}.tif")
    with rasterio.open(folder / "map_2024.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as changed:
        changed.write((changed.read(1)[:, ::-1]), 1)
    shutil.copy(ROOT / "weights/landcover.safetensors", folder / "mine.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(drawn, folder)
    for line in commands(page):
        if any(part in line for part in ELSEWHERE):
            continue
        args = [
            name
            for word in words(line)
            for name in (
                sorted(map(str, (p.relative_to(folder) for p in folder.glob(word))))
                if "*" in word and "/" in word
                else [word]
            )
        ]
        args += shlex.split(SHORTER.get(args[0], ""))
        if args[0] != "models" and "--resume" not in args:
            args.append("--overwrite")
        run(*args, folder=folder)
        if args[0] in FILLED_IN:
            fill_in(folder / args[args.index("-o") + 1], folder / args[FILLED_IN[args[0]]])


def other_commands(page: Path) -> Iterator[str]:
    """Every line of a page's code blocks that calls another program."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if re.match(rf"(    |\$ ){PROGRAMS}", line):
            yield line.strip().removeprefix("$ ")


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_lines_of_other_programs_run(page: Path, tmp_path: Path) -> None:
    lines = [line for line in other_commands(page) if not any(part in line for part in NOT_RUN)]
    if not lines:
        pytest.skip("none that this test runs")
    clone = tmp_path / "rsseg"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
    os.utime(clone / "pyproject.toml", (0, 0))  # older than the environment, which must stay
    environment = os.environ | {"MAKEFLAGS": f"-- VENV={sys.prefix} PYTHON=false"}
    for line in lines:
        done = subprocess.run(
            ["bash", "-euc", line], cwd=clone, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
