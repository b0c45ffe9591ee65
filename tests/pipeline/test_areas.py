"""Areas of classes on the ground, where pixels are no rectangles there and differ along rows."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from networks import one_hot
from pyproj import CRS, Geod, Transformer

from rsseg_cli import predict

HEIGHT, WIDTH = 60, 80
MODIS = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
GRIDS = {
    "sinusoidal": (MODIS, Affine(463.3127, 0, 15_000_000, 0, -463.3127, 6_000_000)),
    "sinusoidal, coarse": (MODIS, Affine(20_000, 0, 8_000_000, 0, -20_000, 5_000_000)),
    "polar, wide": ("EPSG:3413", Affine(20_000, 0, -2_000_000, 0, -20_000, -400_000)),
    "UTM, a zone wide": ("EPSG:32633", Affine(9_000, 0, 140_000, 0, -9_000, 5_500_000)),
    "degrees": ("EPSG:4326", Affine(0.05, 0, 9, 0, -0.05, 62)),
    "Mercator": ("EPSG:3857", Affine(5_000, 0, 1_000_000, 0, -5_000, 9_000_000)),
    "Robinson, far out": ("ESRI:54030", Affine(10_000, 0, 12_000_000, 0, -10_000, 6_000_000)),
    "sheared pixels": ("EPSG:32633", Affine(30, 12, 500_000, 8, -30, 5_500_000)),
}


def area_m2(crs, transform, columns):
    """Area of some columns by their outline, m2."""
    crs = CRS.from_user_input(crs)
    first, end = columns
    top, down = np.linspace(first, end, 2000), np.linspace(0, HEIGHT, 2000)
    cols = np.concatenate([top, np.full(2000, end), top[::-1], np.full(2000, first)])
    rows = np.concatenate([np.zeros(2000), down, np.full(2000, HEIGHT), down[::-1]])
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(*(transform * (cols, rows)))
    geod: Geod = crs.get_geod()
    return abs(geod.polygon_area_perimeter(lon, lat)[0])


@pytest.mark.parametrize("kind", GRIDS)
def test_areas_are_those_on_the_ground(make_raster, tmp_path, kind):
    crs, transform = GRIDS[kind]
    array = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    array[:, :, WIDTH // 4 :] = 1
    scene = make_raster(array=array, crs=crs, transform=transform)
    result = predict(scene, tmp_path / "map.tif", model=one_hot(), tile_size=64, overlap=0)
    areas = [item.area_m2 for item in result.classes.values()][:2]
    expected = [area_m2(crs, transform, columns) for columns in ((0, WIDTH // 4), (WIDTH // 4, WIDTH))]
    np.testing.assert_allclose(areas, expected, rtol=2e-3)


def test_an_equal_area_grid_has_pixels_of_one_area(make_raster, tmp_path):
    scene = make_raster(
        array=np.zeros((3, HEIGHT, WIDTH), np.uint8), crs=MODIS, transform=GRIDS["sinusoidal"][1]
    )
    result = predict(scene, tmp_path / "map.tif", model=one_hot(), tile_size=64, overlap=0)
    assert result.classes["class 0"].area_m2 == pytest.approx(HEIGHT * WIDTH * 463.3127**2, rel=1e-5)
