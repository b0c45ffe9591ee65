"""Suggestions: unsure squares, spread over the scene, the looks and the classes."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from maps import NAMES, patches, write_map

from rsseg_cli.accuracy import suggest
from rsseg_cli.accuracy.config import SuggestConfig
from rsseg_cli.errors import DataError


def scene_of(path: Path, values: np.ndarray, map_path: Path) -> Path:
    with rasterio.open(map_path) as dataset:
        profile = {**dataset.profile, "count": 3, "nodata": None}
    bands = np.stack([values * 40, 200 - values * 30, np.full(values.shape, 90)]).astype(np.uint8)
    with rasterio.open(path, "w", **profile) as target:
        target.write(bands)
    return path


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A map that is sure but in three regions: two look alike, one does not."""
    values = patches((480, 480), (0.2, 0.5, 0.3), 1, 24)
    sure = np.full(values.shape, 250, np.uint8)
    sure[24:120, 24:120] = 120
    sure[24:120, 360:456] = 125
    sure[360:456, 200:300] = 140
    labels = write_map(tmp_path / "map.tif", values)
    return (
        scene_of(tmp_path / "scene.tif", values, labels), labels,
        write_map(tmp_path / "sure.tif", sure, names=()),
    )  # fmt: skip


def test_squares_are_unsure_apart_and_of_all_classes(tmp_path: Path, paths: tuple[Path, Path, Path]) -> None:
    result = suggest(*paths, tmp_path / "look.gpkg", SuggestConfig(number=9, size_m=24))

    squares = geopandas.read_file(tmp_path / "look.gpkg", layer="look")
    assert squares["rank"].tolist() == list(range(1, 10))
    assert (squares["class"] == "").all()
    assert (squares["confidence"] < 0.6).all()
    assert squares.geometry.area.round(3).unique().tolist() == [576.0]
    assert set(squares["predicted"]) == set(NAMES)
    regions = [("top" if item.row < 200 else "bottom") + ("left" if item.col < 180 else "right")
               for item in result.squares[:4]]  # fmt: skip
    assert len(set(regions)) == 3
    assert not squares.geometry.unary_union.area < 9 * 576 - 1  # none overlap


def test_a_mixed_square_becomes_its_plainest_part(tmp_path: Path) -> None:
    values = np.zeros((48, 48), np.uint8)
    values[:, 30:] = 1  # the square of the third column holds both
    values[::2, 24:30] = 2
    sure = np.full(values.shape, 250, np.uint8)
    sure[24:36, 24:36] = 100
    labels = write_map(tmp_path / "map.tif", np.where(values == 2, 0, values))
    scene = scene_of(tmp_path / "scene.tif", values, labels)
    confidence = write_map(tmp_path / "sure.tif", sure, names=())

    result = suggest(scene, labels, confidence, tmp_path / "look.gpkg", SuggestConfig(number=1, size_m=24))

    square = result.squares[0]
    assert (square.col, square.size, square.predicted) == (30, 6, NAMES[1])
    assert 24 <= square.row <= 30
    assert square.confidence == pytest.approx(100 / 254, abs=1e-3)
    assert geopandas.read_file(tmp_path / "look.gpkg").geometry.area.round(3).tolist() == [144.0]


def test_a_square_says_why(tmp_path: Path, paths: tuple[Path, Path, Path]) -> None:
    result = suggest(*paths, tmp_path / "look.gpkg", SuggestConfig(number=1))

    square = result.squares[0]
    assert square.reason.startswith(f"mapped as {square.predicted}")
    assert f"confidence {square.confidence:.2f}" in square.reason


def test_rasters_of_other_grids_are_refused(tmp_path: Path, paths: tuple[Path, Path, Path]) -> None:
    scene, labels, _ = paths
    other = write_map(tmp_path / "other.tif", np.zeros((9, 9), np.uint8), names=())

    with pytest.raises(DataError, match="is not on the grid"):
        suggest(scene, labels, other, tmp_path / "look.gpkg")
    with pytest.raises(DataError, match="smaller than a square"):
        suggest(scene, labels, other, tmp_path / "look.gpkg", SuggestConfig(size_m=5000))
