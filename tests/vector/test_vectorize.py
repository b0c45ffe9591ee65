"""From class raster to polygons: exact, a coverage, and the same for any block and any number of jobs."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import CRS, Geod, Transformer
from rasterio.features import rasterize
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import OutputError
from rsseg_cli.raster import Grid
from rsseg_cli.vector.block import run_block
from rsseg_cli.vector.geometry import PixelGeometry
from rsseg_cli.vector.graph import find_objects
from rsseg_cli.vector.join import Joiner
from rsseg_cli.vector.plan import BlockPlan, SimplifyOptions, simplify_options
from rsseg_cli.vector.regions import FINE, RegionPlan, find_block_regions
from rsseg_cli.vector.simplify import StoredBoundaries, simplify_part
from rsseg_cli.vector.small_regions import SmallRegionResolver
from rsseg_cli.vector.storage import Limits, in_file
from rsseg_cli.vector.stream import WorkerPool
from rsseg_cli.vector.task import make_task
from rsseg_cli.vector.vectorize_raster import to_geodataframe, vectorize

NODATA = 255
UTM = "EPSG:32633"


class InMemory:
    """A class raster that is an array."""

    def __init__(self, labels):
        self.labels, self.nodata = labels, NODATA
        self.height, self.width = labels.shape

    def read(self, row, count, col=0, columns=None):
        columns = self.width - col if columns is None else columns
        around = np.pad(self.labels, 1, constant_values=NODATA)  # no read reaches further
        return around[row + 1 : row + 1 + count, col + 1 : col + 1 + columns].copy()


def polygons(labels, block_rows=1000, options=None, **settings):
    """Polygons and their tables, block by block as the program does it."""
    height, side, cell = len(labels), settings.pop("side", 1024), settings.pop("cell", 256)
    plan = plan_of(InMemory(labels), options, **settings)
    with TemporaryDirectory() as folder:
        if plan.options.tolerance_m2:
            plan = replace(plan, boundaries=simplified(plan, folder, side, cell))
        joiner = Joiner(plan, Path(folder))
        parts = []
        for first in range(0, height, block_rows):
            parts += joiner.add(run_block(plan, first, min(first + block_rows, height)))
        return parts


def plan_of(source, options=None, transform=None, confidence=None, crs=None, **limits):
    transform = transform or Affine.identity()
    grid = Grid(crs=crs, transform=transform, width=source.width, height=source.height)
    return BlockPlan(
        source=source,
        confidence=None if confidence is None else InMemory(confidence),
        transform=transform,
        ground=PixelGeometry.of(grid),
        options=options or SimplifyOptions(),
        limits=Limits(**limits),
    )


def simplified(plan, folder, side, cell):
    height, width = plan.source.height, plan.source.width
    stored = StoredBoundaries(folder=str(folder), height=height, width=width, side=side, cell=cell)
    for corner in stored.parts:
        simplify_part((plan, stored), *corner)
    return stored


def wkb_of(parts):
    return [wkb for part in parts for wkb in part.wkb]


def classes_of(parts):
    return [int(value) for part in parts for value in part.table.classes]


def drawn_back(parts, shape):
    pairs = list(zip(shapely.from_wkb(wkb_of(parts)), classes_of(parts), strict=True))
    if not pairs:
        return np.full(shape, NODATA, np.uint8)
    return rasterize(pairs, shape, fill=NODATA, dtype="uint8")


def small_rasters():
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, NODATA])))


def blobs(seed, height=60, width=70, classes=3, sigma=1.5):
    """Regions with ragged borders, and holes without data."""
    generator = np.random.default_rng(seed)
    fields = [gaussian_filter(generator.standard_normal((height, width)), sigma) for _ in range(classes)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    labels[gaussian_filter(generator.random((height, width)), 2) > 0.58] = NODATA
    return labels


@settings(max_examples=60, deadline=None)
@given(small_rasters(), st.integers(1, 7))
def test_polygons_drawn_back_give_the_raster_for_any_block(labels, rows):
    whole, parts = polygons(labels), polygons(labels, rows)
    assert wkb_of(parts) == wkb_of(whole)
    assert classes_of(parts) == classes_of(whole)
    shapes = shapely.from_wkb(wkb_of(parts))
    assert shapely.is_valid(shapes).all()
    assert not len(shapes) or shapely.coverage_is_valid(shapes)
    assert shapely.area(shapes).sum() == np.count_nonzero(labels != NODATA)
    assert np.array_equal(drawn_back(parts, labels.shape), labels)


def test_a_raster_counted_by_hand():
    labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, NODATA]], np.uint8)
    (part,) = polygons(labels)
    found = shapely.from_wkb(part.wkb)
    # in the order of their last pixels: the hole's in the second row, the ring's in the third
    assert list(part.table.classes) == [0, 1]
    assert found[0].equals(shapely.box(1, 1, 2, 2))
    assert found[1].equals(shapely.box(0, 0, 3, 3) - shapely.box(1, 1, 2, 2) - shapely.box(2, 2, 3, 3))
    assert len(found[1].interiors) == 1
    assert list(part.vertices) == [4, 10]


def test_no_corner_stands_in_a_straight_line_but_where_regions_meet():
    labels = np.zeros((6, 8), np.uint8)
    labels[:3, 4:] = 1
    labels[3:, 4:] = 2
    counts = [int(count) for part in polygons(labels, 2) for count in part.vertices]
    assert counts == [4, 5, 4] or sorted(counts) == [4, 4, 5]


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_pixels_that_touch_at_a_corner_are_two_polygons(rows):
    labels = np.array([[1, 0], [0, 1]], np.uint8)
    parts = polygons(labels, rows)
    assert len(wkb_of(parts)) == 4
    assert {shape.area for shape in shapely.from_wkb(wkb_of(parts))} == {1.0}


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 100])
def test_a_ring_that_meets_itself_at_a_corner_has_a_hole_there(rows):
    # the ones are one object whose two ends meet at a corner; what they enclose is a hole
    labels = np.array(
        [[1, 1, 1, 1, 0], [1, 0, 0, 1, 0], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], np.uint8
    )
    parts = polygons(labels, rows)
    found = [
        shape
        for shape, value in zip(shapely.from_wkb(wkb_of(parts)), classes_of(parts), strict=True)
        if value == 1
    ]
    assert len(found) == 1
    assert found[0].is_valid
    assert len(found[0].interiors) == 1
    assert np.array_equal(drawn_back(parts, labels.shape), labels)


def spiral(size):
    """One line of ones wound in zeros, so that it crosses each row many times."""
    labels = np.zeros((size, size), np.uint8)
    row, col, step = 0, 0, (0, 1)
    labels[0, 0] = 1
    for _ in range(size * size):
        ahead, beyond = (row + step[0], col + step[1]), (row + 2 * step[0], col + 2 * step[1])
        inside = 0 <= ahead[0] < size and 0 <= ahead[1] < size
        if not inside or (0 <= beyond[0] < size and 0 <= beyond[1] < size and labels[beyond]):
            step = (step[1], -step[0])
            ahead = (row + step[0], col + step[1])
            beyond = (row + 2 * step[0], col + 2 * step[1])
            if labels[beyond]:
                break
        row, col = ahead
        labels[row, col] = 1
    return labels


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 100])
def test_a_spiral_through_all_blocks_is_one_polygon(rows):
    labels = spiral(31)
    parts = polygons(labels, rows)
    assert classes_of(parts).count(1) == 1
    assert wkb_of(parts) == wkb_of(polygons(labels))
    assert np.array_equal(drawn_back(parts, labels.shape), labels)


@settings(max_examples=60, deadline=None)
@given(small_rasters(), st.integers(1, 3))
def test_pieces_put_together_on_the_way_give_the_same_polygons(labels, rows):
    found = wkb_of(polygons(labels, rows, fragments=0, blocks=0))
    assert found == wkb_of(polygons(labels))


@pytest.mark.parametrize("rows", [2, 9, 41])
def test_what_waits_in_files_gives_the_same_polygons(rows):
    labels = blobs(6, 80, 90, classes=2)
    expected = wkb_of(polygons(labels, rows))
    found = wkb_of(polygons(labels, rows, held_points=20, blob_bytes=500, points=16))
    assert any(in_file(blob) for blob in found if not isinstance(blob, bytes))
    assert [bytes(blob) for blob in found] == expected


def test_islands_inside_islands():
    labels = np.zeros((11, 11), np.uint8)
    for depth, value in enumerate((1, 2, 1, 0), 1):
        labels[depth:-depth, depth:-depth] = value
    parts = polygons(labels, 2)
    assert len(wkb_of(parts)) == 5
    assert [len(shape.interiors) for shape in shapely.from_wkb(wkb_of(parts))].count(1) == 4
    assert shapely.coverage_is_valid(shapely.from_wkb(wkb_of(parts)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_rasters_one_pixel_wide(shape):
    labels = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape) % 3
    parts = polygons(labels, 1)
    assert len(wkb_of(parts)) == math.prod(shape)
    assert np.array_equal(drawn_back(parts, shape), labels)


def test_nothing_without_data():
    assert polygons(np.full((5, 6), NODATA, np.uint8), 2) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("tolerance", "radius"), [(1.0, 0.0), (2.5, 0.0), (1.5, 2.0), (4.0, 6.0)])
def test_a_simpler_coverage_is_one_for_any_block_and_part(seed, tolerance, radius):
    labels = blobs(seed)
    options = SimplifyOptions(tolerance_m2=tolerance**2, radius_px=radius)
    whole = polygons(labels, options=options, cell=16)
    found, exact = shapely.from_wkb(wkb_of(whole)), shapely.from_wkb(wkb_of(polygons(labels)))
    assert shapely.is_valid(found).all()
    assert shapely.coverage_is_valid(found)
    assert len(found) == len(exact)
    if not radius:
        assert shapely.get_num_coordinates(found).sum() < 0.75 * shapely.get_num_coordinates(exact).sum()
    for rows, side in ((1, 1024), (7, 32), (33, 16)):
        assert wkb_of(polygons(labels, rows, options, side=side, cell=16)) == wkb_of(whole)


def test_simplifying_keeps_the_area_of_the_data():
    labels = blobs(5, 600, 600, sigma=5)
    before = shapely.area(shapely.from_wkb(wkb_of(polygons(labels)))).sum()
    for radius in (0.0, 3.0):
        options = SimplifyOptions(tolerance_m2=4.0, radius_px=radius)
        after = shapely.area(shapely.from_wkb(wkb_of(polygons(labels, 250, options)))).sum()
        assert after == pytest.approx(before, rel=1e-6)


def test_a_stair_becomes_a_straight_line_and_the_frame_stays():
    labels = np.tri(40, 40, dtype=np.uint8)
    found = shapely.from_wkb(wkb_of(polygons(labels, 9, SimplifyOptions(tolerance_m2=1.0))))
    assert sorted(shapely.get_num_coordinates(found)) <= [6, 7]
    assert shapely.union_all(found).equals(shapely.box(0, 0, 40, 40))


def test_simplifying_moves_no_island_across_a_border():
    labels = np.zeros((9, 30), np.uint8)
    labels[4:, :] = 1
    labels[3, 10:20] = 1  # a low step that would go
    labels[2, 15] = 2  # but for an island that stands on it
    found = polygons(labels, options=SimplifyOptions(tolerance_m2=30.0))
    shapes = shapely.from_wkb(wkb_of(found))
    assert sorted(classes_of(found)) == [0, 1, 2]
    assert shapely.coverage_is_valid(shapes)


def test_confidence_is_counted_over_the_object(tmp_path):
    labels = np.array([[1, 1, 0], [1, NODATA, 0], [1, 1, 0]], np.uint8)
    confidence = np.array([[100, 200, 9], [50, 255, 9], [0, 255, 9]], np.uint8)
    for rows in (1, 2, 3):
        tables = [part.table for part in polygons(labels, rows, confidence=confidence)]
        found = {
            int(value): (int(count), int(total), int(low))
            for table in tables
            for value, count, total, low in zip(
                table.classes,
                table.confidence_counts,
                table.confidence_sums,
                table.confidence_mins,
                strict=True,
            )
        }
        assert found == {1: (4, 350, 0), 0: (3, 27, 9)}


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, Affine(10, 0, 500000, 0, -10, 5000000)),
        (UTM, Affine(10, 0, 500000, 0, 10, 5000000)),  # south-up
        (UTM, Affine(6, 8, 500000, 8, -6, 5000000)),  # rotated
        ("EPSG:3857", Affine(10, 0, 1e6, 0, -10, 8e6)),
        ("EPSG:4326", Affine(1e-4, 0, 15, 0, -1e-4, 60)),
        ("EPSG:3413", Affine(500, 0, 5e5, 0, -500, -1e6)),
    ],
)
@pytest.mark.parametrize("at_once", [1 << 18, 7])
def test_areas_and_perimeters_are_those_on_the_ellipsoid(crs, transform, at_once):
    labels = blobs(1, 40, 50)
    parts = polygons(labels, 13, transform=transform, crs=rasterio.CRS.from_string(crs), points=at_once)
    assert wkb_of(parts) == wkb_of(polygons(labels, transform=transform))
    shapes = shapely.from_wkb(wkb_of(parts))
    to_degrees = Transformer.from_crs(crs, CRS(crs).geodetic_crs, always_xy=True)
    geod = Geod(ellps="WGS84")
    areas = np.concatenate([part.areas_m2 for part in parts])
    perimeters = np.concatenate([part.perimeters_m for part in parts])
    for shape, area, perimeter in zip(shapes, areas, perimeters, strict=True):
        dense = shapely.segmentize(shape, max(abs(transform.a), abs(transform.b)))
        degrees = shapely.transform(dense, to_degrees.transform, interleaved=False)
        true_area, _ = geod.geometry_area_perimeter(shapely.orient_polygons(degrees))
        true_perimeter = geod.geometry_length(degrees.boundary)
        assert area == pytest.approx(abs(true_area), rel=1e-5)
        assert perimeter == pytest.approx(true_perimeter, rel=1e-4)


def test_tolerances_are_metres_on_the_ground():
    grid = Grid(
        crs=rasterio.CRS.from_epsg(3857), transform=Affine(1, 0, 0, 0, -1, 8399737), width=4, height=4
    )
    # at 60 degrees a metre of Web Mercator is half a metre
    options = simplify_options(0.5, False, PixelGeometry.of(grid))
    ground = PixelGeometry.of(grid)
    assert float(ground.pixel_area_m2(np.array(2.0), np.array(2.0))) == pytest.approx(0.25, rel=0.01)
    assert options.tolerance_m2 == 0.25


@pytest.fixture
def label_file(make_raster):
    """label_file(labels, ...) -> path; 255 has no data, a pixel is 0.5 x 0.5 m."""

    def make(labels, name="labels.tif", **options):
        path = make_raster(name, array=labels[None], **options)
        with rasterio.open(path, "r+") as dataset:
            dataset.nodata = NODATA
            dataset.update_tags(CLASS_0="water", CLASS_1="road", CLASS_2="roof", RSSEG_SCENE="scene.tif")
            dataset.write_colormap(1, {0: (0, 0, 200), 1: (90, 90, 90), 2: (200, 0, 0)})
        return path

    return make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"simplify_m": 1.0},
        {"smooth": True},
        {"min_area_m2": 2.0},
        {"min_area_m2": 3.0, "fill_holes_m2": 9.0},
    ],
)
def test_jobs_and_blocks_change_nothing(options, label_file):
    path = label_file(blobs(3, 80, 60, sigma=1))
    reference = to_geodataframe(path, VectorConfig(jobs=1, **options))
    for jobs, rows in ((1, 7), (2, 20), (2, 13)):
        found = to_geodataframe(path, VectorConfig(jobs=jobs, block_rows=rows, **options))
        assert list(found.geometry.to_wkb()) == list(reference.geometry.to_wkb())
        assert found.drop(columns="geometry").equals(reference.drop(columns="geometry"))
    assert shapely.coverage_is_valid(reference.geometry.values)


def neighbours(frame, position):
    """Polygons that share an edge with one."""
    shape = frame.geometry.iloc[position]
    return [
        other
        for other in range(len(frame))
        if other != position and shape.boundary.intersection(frame.geometry.iloc[other].boundary).length > 0
    ]


@pytest.mark.parametrize("seed", range(3))
def test_no_small_object_stays_that_has_a_neighbour(seed, label_file):
    labels = blobs(seed, 30, 30, sigma=0.7)
    path = label_file(labels)
    found = to_geodataframe(path, VectorConfig(min_area_m2=2.0, block_rows=11))
    assert found.area.sum() == pytest.approx(0.25 * np.count_nonzero(labels != NODATA))
    for position in np.flatnonzero(found.area < 2.0 - 1e-9):
        assert not neighbours(found, position)
    for position, other in itertools.combinations(range(len(found)), 2):
        if other in neighbours(found, position):
            assert found.class_index[position] != found.class_index[other]


def test_a_small_object_goes_to_the_neighbour_with_the_longest_shared_edge(label_file):
    labels = np.zeros((6, 6), np.uint8)
    labels[:, 3:] = 1
    labels[2:4, 3] = 2  # two pixels: edges of 2 to the left, 4 to the right, above and below
    found = to_geodataframe(label_file(labels), VectorConfig(min_area_m2=1.0))
    assert dict(zip(found.class_name, found.area / 0.25, strict=True)) == {"water": 18.0, "road": 18.0}


def test_small_objects_are_judged_whole_across_blocks(label_file):
    labels = np.zeros((12, 5), np.uint8)
    labels[1:11, 2] = 1  # ten pixels, 2.5 m2, in blocks of two rows
    path = label_file(labels)
    assert len(to_geodataframe(path, VectorConfig(min_area_m2=2.4, block_rows=2))) == 2
    assert len(to_geodataframe(path, VectorConfig(min_area_m2=2.6, block_rows=2))) == 1


def test_holes_are_filled_by_what_is_around_them(label_file):
    labels = np.zeros((12, 12), np.uint8)
    labels[2:5, 2:5] = 1  # a hole of nine pixels with one inside
    labels[3, 3] = 2
    labels[8, 8] = NODATA
    labels[8, 9] = 1  # a hole of two, one without data
    labels[0, 6] = 1  # at the edge: no hole
    path = label_file(labels)
    some = to_geodataframe(path, VectorConfig(fill_holes_m2=0.6, block_rows=3))
    assert sorted(some.class_name) == ["road", "road", "water"]  # the hole of nine, and the edge
    every = to_geodataframe(path, VectorConfig(fill_holes_m2=3.0, block_rows=5))
    assert sorted(every.class_name) == ["road", "water"]
    assert every.area.sum() == pytest.approx(144 * 0.25)


def filled(labels, pixels):
    """Labels whose holes of fewer pixels are filled, found object by object."""
    shape, holes = labels.shape, []
    for value in set(np.unique(labels)) - {NODATA}:
        parts, count = ndimage.label(labels == value)
        for number in range(1, count + 1):
            rest, pieces = ndimage.label(parts != number)
            edge = {*rest[0], *rest[-1], *rest[:, 0], *rest[:, -1]}
            for piece in set(range(1, pieces + 1)) - edge:
                if np.count_nonzero(rest == piece) < pixels:
                    holes.append((rest == piece, value))
    result, done = labels.copy(), np.zeros(shape, bool)
    for hole, value in sorted(holes, key=lambda item: -np.count_nonzero(item[0])):
        if not (hole & done).any():
            result[hole] = value
            done |= hole
    return result


@pytest.mark.parametrize("options", [{"min_area_m2": 1.6}, {"min_area_m2": 1.1, "fill_holes_m2": 2.6}])
def test_small_objects_go_the_same_way_for_any_block(options, label_file):
    """Islands that a block sees whole are given away in it, the others with the rest of the raster."""
    for seed in range(4):
        path = label_file(blobs(seed, 40, 40, sigma=0.8))
        first, *others = (
            to_geodataframe(path, VectorConfig(jobs=1, block_rows=rows, **options)) for rows in (1, 2, 9, 40)
        )
        for other in others:
            assert list(other.geometry.to_wkb()) == list(first.geometry.to_wkb())


@settings(max_examples=150, deadline=None)
@example(seed=12, side=12, pixels=2, classes=2)  # the last object is an island
@given(
    seed=st.integers(0, 10**6),
    side=st.integers(3, 13),
    pixels=st.integers(2, 30),
    classes=st.sampled_from([2, 3, 4]),
)
def test_holes_of_several_objects_are_found_exactly(seed, side, pixels, classes):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, (side, side)).astype(np.uint8)
    labels[labels == 3] = NODATA
    frame = generator.integers(0, 3)
    if frame:  # so that there are large holes too
        labels[[frame, -1 - frame], frame:-frame] = labels[frame:-frame, [frame, -1 - frame]] = 0
    rows = int(generator.integers(1, side + 1))
    region_plan = RegionPlan(block=plan_of(InMemory(labels)), min_area=pixels * FINE, holes=True, mean_m2=1.0)
    found = given_away(labels, region_plan, rows)
    assert np.array_equal(found, filled(labels, pixels))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    side=st.integers(3, 14),
    rows=st.integers(1, 13),
    pixels=st.integers(2, 30),
    classes=st.sampled_from([2, 3, 4]),
    coarse=st.booleans(),
)
def test_small_objects_go_the_same_way_however_the_raster_comes(seed, side, rows, pixels, classes, coarse):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, (side, side)).astype(np.uint8)
    if coarse:  # larger objects, of which some go round others
        labels = np.kron(labels[::2, ::3], np.ones((2, 3), np.uint8))[:side, :side].copy()
    labels[labels == 3] = NODATA
    region_plan = RegionPlan(
        block=plan_of(InMemory(labels)), min_area=pixels * FINE, holes=False, mean_m2=1.0
    )
    whole = given_away(labels, region_plan, len(labels))
    assert np.array_equal(given_away(labels, region_plan, rows), whole)
    islands, _ = ndimage.label(labels != NODATA)  # of which the small ones go
    sizes = np.bincount(islands.ravel())
    sizes[0] = 0
    assert np.array_equal(whole == NODATA, sizes[islands] < pixels)
    for value in set(np.unique(whole)) - {NODATA}:
        objects, _ = ndimage.label(whole == value)
        assert np.bincount(objects.ravel())[1:].min() >= pixels


def test_what_is_decided_is_forgotten(tmp_path):
    """Memory of a tall raster is that of a short one."""
    generator = np.random.default_rng(0)
    high = []
    for height in (200, 2000):
        labels = np.zeros((height, 60), np.uint8)
        labels[generator.random(labels.shape) < 0.1] = 1
        labels[generator.random(labels.shape) < 0.1] = 2
        region_plan = RegionPlan(block=plan_of(InMemory(labels)), min_area=5 * FINE, holes=False, mean_m2=1.0)
        resolver = SmallRegionResolver(region_plan, (1.0, 1.0), tmp_path)
        held = []
        for first in range(0, height, 20):
            resolver.add(find_block_regions(region_plan, first, first + 20))
            held.append(resolver.held)
        assert held[-1] == 0
        high.append(max(held))
    assert high[1] < 1.5 * high[0]


def given_away(labels, region_plan, rows):
    """Labels after what the resolver of blocks of some rows tells."""
    blocks = [(first, min(first + rows, len(labels))) for first in range(0, len(labels), rows)]
    found = labels.copy()
    with TemporaryDirectory() as folder:
        resolver = SmallRegionResolver(region_plan, (1.0, 1.0), Path(folder))
        for ends in blocks:
            resolver.add(find_block_regions(region_plan, *ends))
        resolver.finish()
        for number, ends in enumerate(blocks):
            changed, values = resolver.changes(number)
            for one, value in zip(changed, values, strict=True):
                found[slice(*ends)][objects_of(labels, *ends) == one] = value
    return found


def objects_of(labels, first, end):
    """Number of each pixel's object in a block with the row above it."""
    above = max(first - 1, 0)
    objects = find_objects(np.ascontiguousarray(labels[above:end]))
    return objects.of_run[objects.run_of[first - above :]]


def test_a_hole_of_many_objects_inside_a_small_object(label_file):
    labels = np.zeros((14, 14), np.uint8)
    labels[2:12, 2:12] = 1  # a ring around ...
    labels[3:11, 3:11] = [
        [(row + col) % 2 * 2 for col in range(8)] for row in range(8)
    ]  # ... 64 of one pixel
    labels[0, 5] = labels[1, 5] = 1  # and the ring reaches the edge
    found = to_geodataframe(label_file(labels), VectorConfig(fill_holes_m2=16.1, block_rows=3))
    assert sorted(found.class_name) == ["road", "water"]
    assert len(to_geodataframe(label_file(labels), VectorConfig(fill_holes_m2=15.9))) > 50


def test_classes_by_name_and_the_others_left_out(label_file, tmp_path):
    path = label_file(blobs(0))
    found = to_geodataframe(path, VectorConfig(classes=("Roof", "0"), block_rows=9))
    assert set(found.class_name) == {"roof", "water"}
    everything = to_geodataframe(path)
    assert len(found) == np.count_nonzero(everything.class_index != 1)


def test_the_result_tells_classes_and_stages(label_file, tmp_path):
    labels = blobs(2)
    result = vectorize(label_file(labels), tmp_path / "p.gpkg", VectorConfig(block_rows=16))
    told = json.loads(json.dumps(result.as_dict()))
    assert told["features"] == sum(item["polygons"] for item in told["classes"].values())
    area = sum(item["area_m2"] for item in told["classes"].values())
    assert area == pytest.approx(0.25 * np.count_nonzero(labels != NODATA), rel=1e-3)
    assert {"read", "objects", "boundaries", "rings", "polygons", "join", "write"} <= set(told["stages"])


@pytest.mark.parametrize("width", [1000, 10_000, 100_000, 500_000])
def test_what_a_worker_holds_does_not_grow_with_the_width(width, tmp_path):
    path = tmp_path / "wide.tif"
    profile = {"driver": "GTiff", "width": width, "height": 3000, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", sparse_ok=True, crs=UTM, transform=Affine.scale(2, -2), **profile):
        pass
    blocks = make_task(path, None, VectorConfig()).blocks
    assert blocks[0][0] == 0
    assert blocks[-1][1] == 3000
    assert all(before[1] == after[0] for before, after in itertools.pairwise(blocks))
    # with the row above, which is read too
    assert max(end - first + 1 for first, end in blocks) * width < 2 << 20


@pytest.mark.parametrize("side", [16, 64])
def test_a_part_reads_no_more_than_a_cell_around(side, tmp_path):
    sizes = []

    class Counted(InMemory):
        def read(self, *window):
            found = super().read(*window)
            sizes.append(found.shape)
            return found

    labels = blobs(1, 150, 200)
    plan = plan_of(Counted(labels), options=SimplifyOptions(tolerance_m2=4.0))
    simplified(plan, tmp_path, side, 16)
    assert len(sizes) == math.ceil(151 / side) * math.ceil(201 / side)
    assert max(rows for rows, _ in sizes) <= side + 2 * 16 + 2
    assert max(cols for _, cols in sizes) <= side + 2 * 16 + 2


@pytest.mark.slow
def test_many_rasters_with_many_corners():
    for seed in range(40):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 2 + seed % 2, (40, 40)).astype(np.uint8)
        whole = wkb_of(polygons(labels))
        assert shapely.coverage_is_valid(shapely.from_wkb(whole))
        for rows in (1, 2, 5, 13):
            assert wkb_of(polygons(labels, rows)) == whole


SCRIPT = """
import sys
{preamble}
from rsseg_cli import VectorConfig, vectorize

assert not any(name == "seen" for name in globals())
seen = open("runs.txt", "a").write("run ")
result = vectorize("labels.tif", sys.argv[1], VectorConfig(jobs=2, block_rows=20, min_area_m2=1.0))
print(result.features)
"""


@pytest.mark.parametrize(
    "preamble", ["", "import torch", "import threading; threading.Thread(target=input).start()"]
)
def test_a_plain_script_needs_no_main_guard(preamble, label_file, tmp_path):
    path = label_file(blobs(3, 80, 60, sigma=1))
    (tmp_path / "script.py").write_text(SCRIPT.format(preamble=preamble))
    command = [sys.executable, "script.py", "polygons.gpkg"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input="\n", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    expected = to_geodataframe(path, VectorConfig(jobs=1, min_area_m2=1.0))
    assert int(done.stdout) == len(expected)
    assert (tmp_path / "runs.txt").read_text() == "run "


def die(shared, code):
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def fail(shared, value):
    raise ValueError(f"value {value}")


@pytest.mark.parametrize(
    ("code", "message"),
    [(-9, r"killed \(SIGKILL\), as when memory"), (-15, "ended by SIGTERM"), (3, "exit code 3")],
)
def test_the_end_of_a_worker_is_named(code, message):
    with WorkerPool(2) as pool, pytest.raises(OutputError, match=message):
        list(pool.ordered_map(die, None, [(code,), (code,)]))


def test_an_error_in_a_worker_is_raised_here():
    with WorkerPool(2) as pool:
        with pytest.raises(ValueError, match="value 1") as caught:
            list(pool.ordered_map(fail, None, [(1,), (2,)]))
        assert "in fail" in caught.value.__notes__[0]
        assert list(pool.ordered_map(divmod, 7, [(2,), (3,), (4,)])) == [(3, 1), (2, 1), (1, 3)]
