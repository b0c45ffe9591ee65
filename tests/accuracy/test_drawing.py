"""Samples: designs, sizes, what the points carry."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from maps import NAMES, patches, write_map
from PIL import Image

from rsseg_cli.accuracy import draw_sample
from rsseg_cli.accuracy.config import SampleConfig
from rsseg_cli.accuracy.strata import allocate, sample_size
from rsseg_cli.errors import DataError, OutputError, UsageError

SHARES = (0.05, 0.7, 0.25)


@pytest.fixture
def values() -> np.ndarray:
    values = patches((400, 300), SHARES, 1)
    values[:30] = 255
    return values


def draw(
    tmp_path: Path, values: np.ndarray, name: str = "points.gpkg", **settings: object
) -> geopandas.GeoDataFrame:
    path = tmp_path / "map.tif"
    if not path.exists():
        write_map(path, values)
    draw_sample(path, tmp_path / name, SampleConfig(**settings))  # type: ignore[arg-type]
    return geopandas.read_file(tmp_path / name, layer=Path(name).stem)


def test_size_and_allocation_are_those_that_olofsson_published() -> None:
    """Section 5.1.1: shares of 0.02, 0.015, 0.32, 0.645, expected accuracies 0.7, 0.6, 0.9, 0.95."""
    shares, accuracies = np.array([0.02, 0.015, 0.32, 0.645]), np.array([0.7, 0.6, 0.9, 0.95])
    plenty = np.full(4, 10**9)

    assert sample_size(shares, accuracies, 0.01) == 641
    assert allocate(640, shares, plenty, 2).tolist() == [13, 9, 205, 413]
    assert allocate(640, shares, plenty, 75).tolist() == [75, 75, 162, 328]
    assert allocate(640, np.ones(4), plenty, 2).tolist() == [160] * 4
    assert allocate(640, shares, np.array([30, 50, 10**6, 10**6]), 75).tolist()[:2] == [30, 50]


def test_too_few_points_are_refused() -> None:
    with pytest.raises(UsageError, match="5 points for 4 strata"):
        allocate(5, np.ones(4), np.full(4, 100), 50)


def test_stratified_points_lie_in_their_class_and_stand_for_its_area(
    tmp_path: Path, values: np.ndarray
) -> None:
    points = draw(tmp_path, values, points=200)

    with rasterio.open(tmp_path / "map.tif") as dataset:
        at = np.array(
            [dataset.index(x, y) for x, y in zip(points.geometry.x, points.geometry.y, strict=True)]
        )
    assert at.tolist() == points[["row", "col"]].to_numpy().tolist()
    assert [NAMES[value] for value in values[at[:, 0], at[:, 1]]] == points["stratum"].tolist()
    assert len(np.unique(at, axis=0)) == len(points) == 200
    assert points["stratum"].value_counts()["building"] == 50
    assert (points["class"] == "").all()
    assert points["weight"].sum() == pytest.approx((values != 255).sum() * 4, rel=3e-3)
    for index, name in enumerate(NAMES):
        assert points["weight"][points["stratum"] == name].sum() == pytest.approx(
            (values == index).sum() * 4, rel=3e-3
        )


def test_a_seed_gives_the_same_points_in_random_order(tmp_path: Path, values: np.ndarray) -> None:
    first, second = draw(tmp_path, values, points=150), draw(tmp_path, values, "b.gpkg", points=150)
    other = draw(tmp_path, values, "c.gpkg", points=150, seed=1)

    assert first.geometry.geom_equals(second.geometry).all()
    assert not first.geometry.geom_equals(other.geometry).all()
    half = first["stratum"][:75].value_counts()
    assert half.min() > 10


@pytest.mark.parametrize("design", ["random", "systematic", "cluster"])
def test_other_designs_cover_the_map(tmp_path: Path, values: np.ndarray, design: str) -> None:
    points = draw(tmp_path, values, points=180, design=design, cluster_px=30)

    assert 150 <= len(points) <= 210
    assert (values[points["row"], points["col"]] != 255).all()
    assert points["row"].min() < 80
    assert points["row"].max() > 340
    assert ("cluster" in points.columns) == (design == "cluster")
    if design == "systematic":
        assert len(np.unique(np.diff(np.unique(points["row"])))) <= 2
    if design == "cluster":
        spread = points.groupby("cluster")[["row", "col"]].agg(np.ptp)
        assert spread.to_numpy().max() < 30


def test_boundaries_can_be_strata_of_their_own(tmp_path: Path, values: np.ndarray) -> None:
    points = draw(tmp_path, values, points=400, boundary_px=2)

    near = points["stratum"].str.endswith("near a boundary").to_numpy()
    for row, col, is_near in zip(points["row"], points["col"], near, strict=True):
        around = values[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3]
        others = np.unique(around[around != 255])
        assert not (is_near and len(others) == 1)
        if not is_near:
            cross = [values[r, c] for r, c in ((row, col - 1), (row, col + 1), (row - 1, col), (row + 1, col))
                     if 0 <= r < 400 and 0 <= c < 300]  # fmt: skip
            assert set(cross) - {255} == {values[row, col]}


def test_pixels_are_drawn_by_their_area_on_the_ground(tmp_path: Path) -> None:
    write_map(
        tmp_path / "map.tif", np.zeros((160, 100), np.uint8), crs="EPSG:4326", gsd_m=0.5, names=NAMES[:1],
        origin=(0, 80),
    )  # fmt: skip

    points = draw(tmp_path, np.zeros(0), points=4000, design="random")

    latitude = points.geometry.y.to_numpy()
    cos = np.cos(np.radians(80 - 0.5 * (np.arange(160) + 0.5)))
    expected = (cos * (80 - 0.5 * (np.arange(160) + 0.5))).sum() / cos.sum()
    assert latitude.mean() == pytest.approx(expected, abs=1.5)
    assert points["weight"].iloc[0] * 4000 == pytest.approx(
        2 * np.pi * 6371e3**2 * np.sin(np.radians(80)) * 50 / 360, rel=0.01
    )


def test_a_class_of_few_pixels_is_taken_whole(tmp_path: Path) -> None:
    values = np.ones((200, 200), np.uint8)
    values[3, 4:34] = 0

    points = draw(tmp_path, values, points=120)

    building = points[points["stratum"] == "building"]
    assert sorted(building["col"]) == list(range(4, 34))


def test_a_geopackage_brings_a_form_with_the_classes(tmp_path: Path, values: np.ndarray) -> None:
    draw(tmp_path, values, points=60)

    with sqlite3.connect(tmp_path / "points.gpkg") as database:
        ((style, default),) = database.execute("SELECT styleQML, useAsDefault FROM layer_styles").fetchall()
        (version,) = database.execute("PRAGMA user_version").fetchone()
    assert (default, version) == (1, 10200)
    assert 'type="ValueMap"' in style
    assert all(f'value="{name}"' in style for name in NAMES)


def test_chips_show_the_scene_with_the_point_in_the_middle(tmp_path: Path, values: np.ndarray) -> None:
    path = write_map(tmp_path / "map.tif", values)
    with rasterio.open(path) as dataset:
        profile = {**dataset.profile, "count": 3, "nodata": None}
    scene = np.stack([np.broadcast_to(np.arange(300) % 200, (400, 300)), *np.full((2, 400, 300), 7)])
    with rasterio.open(tmp_path / "scene.tif", "w", **profile) as target:
        target.write(scene.astype(np.uint8))

    draw_sample(path, tmp_path / "p.gpkg", SampleConfig(points=20, chip_px=33, min_per_stratum=2),
                chips=tmp_path / "chips", image=tmp_path / "scene.tif")  # fmt: skip

    points = geopandas.read_file(tmp_path / "p.gpkg", layer="p")
    for number, point in points.iterrows():
        chip = np.asarray(Image.open(tmp_path / "chips" / f"{number + 1:05d}.png"))
        assert chip.shape == (99, 99, 3)
        assert chip[49, 49].tolist() == [point["col"] % 200, 7, 7]


def test_outputs_are_checked_before_work(tmp_path: Path, values: np.ndarray) -> None:
    path = write_map(tmp_path / "map.tif", values)
    (tmp_path / "old.gpkg").write_text("mine")

    with pytest.raises(OutputError, match="exists"):
        draw_sample(path, tmp_path / "old.gpkg")
    with pytest.raises(UsageError, match="names no format"):
        draw_sample(path, tmp_path / "points.doc")
    with pytest.raises(DataError, match="Pass --image"):
        draw_sample(path, tmp_path / "p.gpkg", chips=tmp_path / "chips")
    with pytest.raises(UsageError, match="between 0 and 1"):
        SampleConfig(expected_accuracy=("building=2",))
    assert (tmp_path / "old.gpkg").read_text() == "mine"
