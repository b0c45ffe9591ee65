"""Squared outlines: drawn shapes with known answers, and what holds for any map."""

import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter
from shapely import affinity

from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import UsageError
from rsseg_cli.vector import simplify
from rsseg_cli.vector.task import squared_classes
from rsseg_cli.vector.vectorize_raster import to_geodataframe

PIXEL_M = 0.3
UTM = "EPSG:32633"
L_SHAPE = shapely.Polygon([(0, 0), (20, 0), (20, 9), (11, 9), (11, 16), (0, 16)])


def drawn(*shapes, size=(200, 200), crs=UTM, transform=None):
    """A class raster of shapes in metres from the upper left, each of the next class, on class 0."""
    transform = transform or Affine(PIXEL_M, 0, 500000, 0, -PIXEL_M, 5400000)
    items = [(shapely.transform(shape, lambda xy: xy / PIXEL_M), value) for shape, value in shapes]
    labels = (
        rasterize(items, size, transform=Affine.identity(), dtype="uint8")
        if items
        else np.zeros(size, "uint8")
    )
    return labels, crs, transform


def write(path, labels, crs=UTM, transform=None, names=("background", "building", "house", "road")):
    transform = transform or Affine(PIXEL_M, 0, 500000, 0, -PIXEL_M, 5400000)
    height, width = labels.shape
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": "uint8",
        "nodata": 255,
    }
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as dataset:
        dataset.write(labels, 1)
        dataset.update_tags(**{f"CLASS_{value}": name for value, name in enumerate(names)})
    return path


def turned(shape, degrees, at=(30, 30)):
    moved = affinity.rotate(shape, degrees, origin=(0, 0))
    x, y = moved.centroid.coords[0]
    return affinity.translate(moved, at[0] - x, at[1] - y)


def squared(path, **options):
    return to_geodataframe(path, VectorConfig(regularize=True, **options))


def plain(path, **options):
    return to_geodataframe(path, VectorConfig(**options))


def of(frame, value):
    return frame.geometry[frame["class_index"] == value].to_list()


def turns(polygon):
    """Degrees by which the outlines of a polygon turn, without corners on straight walls."""
    found = []
    for ring in (polygon.exterior, *polygon.interiors):
        points = np.array(ring.coords)[:-1]
        steps = np.diff(points, axis=0, append=points[:1])
        angles = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
        turn = np.abs((angles - np.roll(angles, 1) + 180) % 360 - 180)
        found += turn[turn > 1].tolist()
    return np.array(found)


def same_shape(one, other):
    return shapely.equals_exact(np.array(one), np.array(other), 1e-9).all()


@pytest.mark.parametrize("degrees", [0, 8, 27, 45, 61])
def test_a_turned_l_gets_six_right_angles(tmp_path, degrees):
    shape = turned(L_SHAPE, degrees)
    (found,) = of(squared(write(tmp_path / "map.tif", drawn((shape, 1))[0])), 1)
    assert len(turns(found)) == 6
    np.testing.assert_allclose(turns(found), 90, atol=0.2)
    assert found.area == pytest.approx(shape.area, rel=0.01)


def test_a_ragged_l_gets_six_right_angles(tmp_path):
    shape = turned(L_SHAPE, 20)
    labels = drawn((shape, 1))[0]
    generator = np.random.default_rng(3)
    near = shapely.buffer(shape.exterior, 0.4)
    bites = [shapely.Point(xy).buffer(0.35) for xy in generator.uniform(5, 55, (900, 2))]
    bites = [bite for bite in bites if bite.within(near.buffer(0.4))]
    for number, bite in enumerate(bites):
        rasterize([(shapely.transform(bite, lambda xy: xy / PIXEL_M), number % 2)], out=labels)
    path = write(tmp_path / "map.tif", labels)
    options = {"min_area_m2": 4.0, "fill_holes_m2": 4.0}
    (found,) = of(squared(path, **options), 1)
    assert len(turns(of(plain(path, **options), 1)[0])) > 30
    assert len(turns(found)) == 6
    np.testing.assert_allclose(turns(found), 90, atol=0.2)
    assert found.area == pytest.approx(shape.area, rel=0.03)


@pytest.mark.parametrize("deeper", [0, 1.8])
def test_row_houses_share_their_wall(tmp_path, deeper):
    row = shapely.GeometryCollection([shapely.box(0, 0, 9, 12), shapely.box(9, 0, 18, 12 + deeper)])
    houses = shapely.get_parts(turned(row, 33))
    path = write(tmp_path / "map.tif", drawn((houses[0], 1), (houses[1], 2))[0])
    frame = squared(path)
    one, other = of(frame, 1)[0], of(frame, 2)[0]
    shared = shapely.line_merge(shapely.intersection(one.exterior, other.exterior))
    assert shared.length == pytest.approx(12, rel=0.03)
    assert len(shared.coords) == 2
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())
    for house, drawn_house in zip((one, other), houses, strict=True):
        np.testing.assert_allclose(turns(house), 90, atol=0.5)
        assert len(turns(house)) == 4
        assert house.area == pytest.approx(drawn_house.area, rel=0.02)


def test_a_courtyard_is_squared_in_the_same_direction(tmp_path):
    shape = turned(shapely.box(0, 0, 30, 24) - shapely.box(9, 8, 21, 16), 14)
    (found,) = of(squared(write(tmp_path / "map.tif", drawn((shape, 1))[0])), 1)
    assert len(found.interiors) == 1
    assert len(turns(found)) == 8
    np.testing.assert_allclose(turns(found), 90, atol=0.2)
    assert found.area == pytest.approx(shape.area, rel=0.01)


def test_round_and_tiny_ones_stay(tmp_path):
    tank, hut = shapely.Point(15, 15).buffer(8), turned(shapely.box(0, 0, 1.8, 1.5), 20, (45, 45))
    path = write(tmp_path / "map.tif", drawn((tank, 1), (hut, 1))[0])
    assert same_shape(squared(path).geometry, plain(path).geometry)


def test_walls_in_other_directions_stay_straight(tmp_path):
    corners = [(-6, 0), (30, 0), (30, 10), (24, 18), (16, 18), (16, 24), (0, 24), (0, 12), (-6, 12)]
    shape = turned(shapely.Polygon(corners), 25)
    (found,) = of(squared(write(tmp_path / "map.tif", drawn((shape, 1))[0])), 1)
    assert len(turns(found)) == 9
    assert np.count_nonzero(np.abs(turns(found) - 90) < 0.2) == 7
    assert found.area == pytest.approx(shape.area, rel=0.01)


def test_neighbours_of_other_classes_follow(tmp_path):
    building = turned(L_SHAPE, 20)
    road = shapely.box(0, 28, 60, 34)
    labels = drawn((road, 3), (building, 1))[0]
    frame = squared(write(tmp_path / "map.tif", labels))
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())
    (found,) = of(frame, 1)
    np.testing.assert_allclose(turns(found), 90, atol=0.5)
    assert frame["area_m2"].sum() == pytest.approx(labels.size * PIXEL_M**2, rel=1e-3)  # UTM's scale
    assert frame.geometry.area.to_numpy() == pytest.approx(frame["area_m2"].to_numpy(), rel=1e-2)


def test_angles_are_right_on_the_ground(tmp_path):
    """A degree of longitude is half as long as one of latitude at 60 degrees north."""
    shape = turned(shapely.box(0, 0, 22, 12), 30)
    labels = rasterize([(shapely.transform(shape, lambda xy: xy / [0.3, 0.3]), 1)], (200, 200), dtype="uint8")
    side = PIXEL_M / 111_412
    transform = Affine(2 * side, 0, 15, 0, -side, 60)
    path = write(tmp_path / "map.tif", labels, "EPSG:4326", transform)
    (found,) = of(squared(path), 1)
    on_ground = of(squared(path, dst_crs=UTM), 1)[0]
    assert len(turns(on_ground)) == 4
    np.testing.assert_allclose(turns(on_ground), 90, atol=0.5)
    assert np.abs(turns(found) - 90).min() > 5


@pytest.mark.parametrize("few_bytes", [0, simplify.FEW_BYTES])
def test_a_building_across_parts_of_the_raster(tmp_path, monkeypatch, few_bytes):
    monkeypatch.setattr(simplify, "FEW_BYTES", few_bytes)  # at 0 no parts are joined
    shapes = [(turned(L_SHAPE, 20, (30, y)), 1) for y in (25, 614.4)]  # the second across row 2048
    path = write(tmp_path / "map.tif", drawn(*shapes, size=(2140, 200))[0])
    found = of(squared(path), 1)
    assert [len(turns(polygon)) for polygon in found] == [6, 6]


def village(generator, size=200):
    """Turned rectangles and their neighbours, with ragged borders."""
    shapes = []
    for _ in range(12):
        width, height = generator.uniform(4, 15, 2)
        box = shapely.box(0, 0, width, height)
        shapes.append(
            (
                turned(box, generator.uniform(0, 90), generator.uniform(3, 57, 2)),
                int(generator.integers(1, 4)),
            )
        )
    labels = drawn(*shapes, size=(size, size))[0]
    noise = [gaussian_filter(generator.standard_normal(labels.shape), 2.0) for _ in range(2)]
    rows, cols = np.indices(labels.shape) + [np.rint(0.7 * part / part.std()).astype(int) for part in noise]
    return labels[rows.clip(0, size - 1), cols.clip(0, size - 1)]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), holes=st.booleans(), simplify=st.sampled_from([0.0, 0.5]))
def test_any_map_stays_a_coverage_of_alike_buildings(tmp_path_factory, seed, holes, simplify):
    generator = np.random.default_rng(seed)
    labels = village(generator)
    if holes:
        labels[70:90, 40:140] = 255
        labels[generator.random(labels.shape) < 0.002] = 255
    path = write(tmp_path_factory.mktemp("any") / "map.tif", labels)
    before, after = plain(path, simplify_m=simplify), squared(path, simplify_m=simplify)
    first, second = before.geometry.to_numpy(), after.geometry.to_numpy()
    assert shapely.is_valid(second).all()
    assert shapely.coverage_is_valid(second)
    assert shapely.area(second).sum() == pytest.approx(shapely.area(first).sum())
    ious = shapely.area(shapely.intersection(first, second)) / shapely.area(shapely.union(first, second))
    is_building = before["class_index"].isin([1, 2]).to_numpy()
    assert (ious[is_building] >= 0.85 - 1e-9).all()


def test_blocks_jobs_and_formats_make_no_difference(tmp_path):
    path = write(tmp_path / "map.tif", village(np.random.default_rng(5)))
    whole = squared(path, simplify_m=0.4, min_area_m2=2.0)
    assert not same_shape(whole.geometry, plain(path, simplify_m=0.4, min_area_m2=2.0).geometry)
    for rows, jobs in ((7, 1), (64, 2)):
        other = squared(path, simplify_m=0.4, min_area_m2=2.0, block_rows=rows, jobs=jobs)
        assert whole.to_wkb().equals(other.to_wkb())


def test_no_wall_moves_farther_than_asked(tmp_path):
    path = write(tmp_path / "map.tif", village(np.random.default_rng(8)))
    before = plain(path)
    for shift in (0.3, 0.9, 1.8):
        after = squared(path, max_shift_m=shift)
        moved = shapely.hausdorff_distance(before.geometry.to_numpy(), after.geometry.to_numpy(), 0.05)
        assert moved.max() <= 1.5 * shift + PIXEL_M / 100  # corners lie farther out than walls


def test_the_command_squares_what_is_called_building(tmp_path):
    path = write(tmp_path / "map.tif", drawn((turned(L_SHAPE, 20), 1))[0])
    command = [sys.executable, "-m", "rsseg_cli", "vectorize", str(path), "-q", "--json", "--regularize"]
    for name in ("map.gpkg", "map.fgb", "map.geojson", "map.shp", "map.parquet"):
        made = subprocess.run(
            [*command, "-o", str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        assert json.loads(made.stdout)["stages"]["square"] > 0


def test_which_classes_are_buildings():
    config = VectorConfig(regularize=True)
    names = {0: "non-building", 1: "Building", 2: "roof (flat)", 3: "housing estate", 4: "roads"}
    assert squared_classes(config, names, "map.tif") == {1, 2}
    assert squared_classes(VectorConfig(), names, "map.tif") == frozenset()
    chosen = VectorConfig(regularize=True, regularize_classes=("roads", "0"))
    assert squared_classes(chosen, names, "map.tif") == {0, 4}
    with pytest.raises(
        UsageError, match=r"map\.tif has no class called building, house or roof; it has water"
    ):
        squared_classes(config, {0: "water"}, "map.tif")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_shift_m": 1.0}, "--max-shift: belongs to --regularize"),
        ({"regularize_classes": ("a",)}, "--regularize-classes: belongs to --regularize"),
        ({"regularize": True, "smooth": True}, "--smooth: rounds the corners"),
    ],
)
def test_settings_that_do_not_go_together(options, message):
    with pytest.raises(UsageError, match=message):
        squared_classes(VectorConfig(**options), {1: "building"}, "map.tif")


def test_a_shift_of_many_pixels_is_refused(tmp_path):
    path = write(tmp_path / "map.tif", drawn((turned(L_SHAPE, 20), 1))[0])
    with pytest.raises(UsageError, match=r"--max-shift: .*100 px; needs at most 64 px"):
        squared(path, max_shift_m=30.0)
