"""Outputs before the validators of others, where these are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import geopandas  # before a command that imports pyogrio without it
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rio_cogeo import cog_validate
from typer.testing import CliRunner

from rsseg_cli.cli import app

PYTHON = "/usr/bin/python3"  # GDAL's samples belong to the system's Python
PACKAGES = ("map.gpkg", "simple.gpkg", "points.gpkg", "change.gpkg")
GPKG = [PYTHON, "-m", "osgeo_utils.samples.validate_gpkg"]


def works(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


def accepted(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of two years, large enough for overviews, and what the commands make of them."""
    folder = tmp_path_factory.mktemp("outputs")
    blocks = np.random.default_rng(0).integers(0, 3, (2, 40, 45), np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": 255, "crs": "EPSG:32632"}
    profile |= {"height": 600, "width": 675, "transform": from_origin(500_000, 5_200_000, 1, 1)}
    for year, labels in zip((2019, 2024), blocks.repeat(15, 1).repeat(15, 2), strict=True):
        with rasterio.open(folder / f"{year}.tif", "w", **profile) as dataset:
            dataset.write(labels, 1)
            dataset.update_tags(CLASS_0="land", CLASS_1="water", CLASS_2="road")
    before, after = str(folder / "2019.tif"), str(folder / "2024.tif")
    vectors = {name: str(folder / name) for name in PACKAGES}
    for args in (
        ["vectorize", before, "-o", vectors["map.gpkg"]],
        ["vectorize", before, "-o", vectors["simple.gpkg"], "--simplify", "2"],
        ["sample", before, "-n", "50", "--min-per-class", "10", "-o", vectors["points.gpkg"]],
        ["change", before, after, "-o", str(folder / "change.tif"), "--vector", vectors["change.gpkg"]],
    ):
        result = CliRunner().invoke(app, [*args, "--quiet"])
        assert result.exit_code == 0, result.output
    return folder


def test_rio_cogeo_accepts_maps_of_change(outputs: Path) -> None:
    assert cog_validate(outputs / "change.tif", strict=True, quiet=True) == (True, [], [])


@pytest.mark.skipif(not works(*GPKG[:1], "-c", "import osgeo_utils"), reason="GDAL's samples are missing")
@pytest.mark.parametrize("name", PACKAGES)
def test_gdal_accepts_geopackages(outputs: Path, name: str) -> None:
    accepted(*GPKG, "--extra", outputs / name)


@pytest.mark.skipif(not works("gdal", "vector", "check-coverage", "--help"), reason="GDAL is too old")
@pytest.mark.parametrize("name", ["map.gpkg", "simple.gpkg"])
def test_gdal_finds_no_gaps_or_overlaps(outputs: Path, name: str, tmp_path: Path) -> None:
    edges = tmp_path / "edges.gpkg"
    accepted("gdal", "vector", "check-coverage", outputs / name, edges)
    assert not edges.exists() or len(geopandas.read_file(edges)) == 0
