"""Which of many ragged shapes are squared: those with right angles, not round or oblique ones."""

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from scipy.ndimage import gaussian_filter
from shapely import affinity

from rsseg_cli.config import VectorConfig
from rsseg_cli.vector.vectorize_raster import to_geodataframe

PIXEL_M = 0.3
RADII = (6, 8, 10, 14, 22, 40)  # of a circle as large as the shape, px
SEEDS = 7
SQUARE = shapely.box(0, 0, 1, 1)
SHAPES = {
    "circle": [shapely.Point(0, 0).buffer(1)],
    "ellipse": [affinity.scale(shapely.Point(0, 0).buffer(1), 1.4, 1)],
    "hexagon": [shapely.Polygon([(2, 0), (1, 1.732), (-1, 1.732), (-2, 0), (-1, -1.732), (1, -1.732)])],
    "octagon": [shapely.Point(0, 0).buffer(1, 2)],
    "triangle": [shapely.Polygon([(0, 0), (10, 0), (4, 8)])],
    "trapezoid": [shapely.Polygon([(0, 0), (20, 0), (14, 10), (5, 10)])],
    "square": [SQUARE],
    "rectangle": [shapely.box(0, 0, 1.6, 1)],
    "L": [shapely.Polygon([(0, 0), (20, 0), (20, 9), (11, 9), (11, 16), (0, 16)])],
    "row": [affinity.translate(affinity.scale(SQUARE, 1, 1.5, origin=(0, 0)), k) for k in range(3)],
}


def ragged(path, kind, noise_px):
    """Write a map of shapes of all sizes, at any angle and offset, whose borders are displaced at random."""
    cells = [cell(kind, radius, noise_px, seed) for radius in RADII for seed in range(SEEDS)]
    side = len(cells[-1])
    rows = [[]]
    for labels in cells:
        if sum(len(other) for other in rows[-1]) + len(labels) > SEEDS * side:
            rows.append([])
        rows[-1].append(labels)
    sheet = np.zeros((sum(len(row[-1]) for row in rows), SEEDS * side), "uint8")
    y = 0
    for row in rows:
        x = 0
        for labels in row:
            sheet[y : y + len(labels), x : x + len(labels)] = labels
            x += len(labels)
        y += len(row[-1])
    transform = rasterio.Affine(PIXEL_M, 0, 500000, 0, -PIXEL_M, 5400000)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": len(sheet), "width": sheet.shape[1]}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as dataset:
        dataset.write(sheet, 1)
        dataset.update_tags(CLASS_0="grass", CLASS_1="building", CLASS_2="house")
    return path


def cell(kind, radius_px, noise_px, seed):
    """Labels of one shape."""
    generator = np.random.default_rng([radius_px, seed])
    whole = shapely.unary_union(SHAPES[kind])
    size = radius_px * np.sqrt(np.pi * len(SHAPES[kind]) / whole.area)
    side = int(2 * size * shapely.minimum_bounding_radius(whole)) + 16
    angle, offset = generator.uniform(0, 90), side / 2 + generator.uniform(-0.5, 0.5, 2)
    placed = []
    for number, shape in enumerate(SHAPES[kind]):
        moved = affinity.translate(shape, -whole.centroid.x, -whole.centroid.y)
        moved = affinity.rotate(affinity.scale(moved, size, size, origin=(0, 0)), angle, origin=(0, 0))
        placed.append((affinity.translate(moved, *offset), 1 + number % 2))
    labels = rasterize(placed, (side, side), dtype="uint8")
    noise = [gaussian_filter(generator.standard_normal(labels.shape), 2.0) for _ in range(2)]
    at = np.indices(labels.shape) + [np.rint(noise_px * part / part.std()).astype(int) for part in noise]
    return labels[tuple(at.clip(0, side - 1))]


def squared_share(path):
    """Share of the buildings whose outlines are squared."""
    options = {"simplify_m": 0.3, "min_area_m2": 2.0, "fill_holes_m2": 2.0}
    before, after = (
        to_geodataframe(path, VectorConfig(regularize=regularize, **options)) for regularize in (False, True)
    )
    is_building = before["class_index"].isin([1, 2]).to_numpy()
    assert np.count_nonzero(is_building) >= len(RADII) * SEEDS
    return 1 - shapely.equals_exact(before.geometry, after.geometry, 1e-6)[is_building].mean()


@pytest.mark.parametrize("kind", ["circle", "ellipse", "hexagon", "octagon", "triangle", "trapezoid"])
def test_round_and_oblique_shapes_stay(tmp_path, kind):
    assert squared_share(ragged(tmp_path / "map.tif", kind, 0.8)) <= 0.05


@pytest.mark.parametrize(
    ("kind", "noise_px", "least"),
    [("square", 0.8, 0.7), ("rectangle", 0.8, 0.7), ("L", 0.8, 0.7), ("row", 0.5, 0.6)],
)
def test_shapes_with_right_angles_are_squared(tmp_path, kind, noise_px, least):
    assert squared_share(ragged(tmp_path / "map.tif", kind, noise_px)) >= least
