"""Parts of a scene: boxes and polygons."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from rasters import MakeRaster
from shapely import LineString, Point, Polygon, box

from rsseg_cli.errors import UsageError
from rsseg_cli.raster import Area, Grid, SceneInfo, SceneReader, gdal

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
ROTATED = Affine.translation(500000, 5000000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
TRIANGLE = Polygon([(500003, 4999998), (500030, 4999990), (500008, 4999972)])


def grid_of(transform: Affine = NORTH_UP, crs: CRS | None = UTM) -> Grid:
    return Grid(crs=crs, transform=transform, height=60, width=80)


def write_shapes(path: Path, *shapes: object, crs: object = UTM, layer: str | None = None) -> Path:
    frame = geopandas.GeoDataFrame({"n": range(len(shapes))}, geometry=list(shapes), crs=crs)
    frame.to_file(path, layer=layer)
    return path


@pytest.mark.parametrize(
    ("bbox", "window"),
    [
        ((500000, 4999970, 500040, 5000000), (0, 0, 60, 80)),
        ((500010, 4999990, 500015, 4999995), (10, 20, 10, 10)),  # on pixel edges: does not grow
        ((500010.00001, 4999990.00001, 500014.99999, 4999994.99999), (10, 20, 10, 10)),
        ((500009.9, 4999989.9, 500015.1, 4999995.1), (9, 19, 12, 12)),  # snapped outwards
        ((500010.1, 4999994.1, 500010.2, 4999994.2), (11, 20, 1, 1)),
        ((499000, 4999000, 600000, 6000000), (0, 0, 60, 80)),
    ],
)
def test_a_box_becomes_whole_pixels(bbox: tuple, window: tuple) -> None:
    assert grid_of().window_of_bbox(bbox) == window
    south_up = grid_of(Affine(0.5, 0, 500000, 0, 0.5, 4999970))
    row, col, height, width = window
    assert south_up.window_of_bbox(bbox) == (60 - row - height, col, height, width)


def test_a_box_on_a_rotated_grid_is_bounded() -> None:
    grid = grid_of(ROTATED)
    x, y = ROTATED * (40, 30)
    row, col, height, width = grid.window_of_bbox((x - 2, y - 2, x + 2, y + 2))
    assert row <= 30 - 4 < 30 + 4 <= row + height
    assert col <= 40 - 4 < 40 + 4 <= col + width
    assert (height, width) == (12, 12)  # 8 px turned by 30 degrees: 10.9 px


@pytest.mark.parametrize(
    "bbox", [(0, 0, 1, 1), (500040, 4999970, 500050, 5000000), (500000, 0, 500040, 4999970)]
)
def test_a_box_outside_is_refused(bbox: tuple) -> None:
    with pytest.raises(UsageError, match="500000, 4999970, 500040, 5000000"):
        grid_of().window_of_bbox(bbox)


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, Affine(0.5, 0, 500000, 0, 0.5, 4999970)])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
def test_windows_of_the_mask_are_parts_of_the_whole(tmp_path: Path, transform: Affine, suffix: str) -> None:
    crs = "EPSG:4326" if suffix == ".geojson" else UTM
    shapes = geopandas.GeoSeries([TRIANGLE, box(500020, 4999990, 500026, 5000010)], crs=UTM).to_crs(crs)
    path = write_shapes(tmp_path / f"area{suffix}", *shapes, crs=crs)
    grid = grid_of(transform)
    area = Area.read(path, grid)
    whole = area.mask(grid)
    expected = geometry_mask(list(shapes.to_crs(UTM)), (60, 80), transform, invert=True)
    assert 0 < whole.sum() < whole.size
    assert (whole != expected).sum() <= (4 if suffix == ".geojson" else 0)
    pieces = np.vstack(
        [
            np.hstack([area.mask(grid.window(row, col, 20, 16)) for col in range(0, 80, 16)])
            for row in range(0, 60, 20)
        ]
    )
    assert (pieces == whole).all()
    row, col, height, width = area.window(grid)
    whole[row : row + height, col : col + width] = False
    assert not whole.any()


def test_the_reader_masks_what_is_outside(make_raster: MakeRaster, tmp_path: Path) -> None:
    info = SceneInfo.of(make_raster(kind="value", hole=(10, 20, 15, 25)))
    area = Area.read(write_shapes(tmp_path / "area.gpkg", TRIANGLE), info.grid)
    with SceneReader(info, (1, 2, 3)) as plain, SceneReader(info, (1, 2, 3), region_mask=area) as masked:
        valid = plain.read(0, 0, 60, 80)[1]
        assert (masked.read(0, 0, 60, 80)[1] == (valid & area.mask(info.grid))).all()


@pytest.mark.parametrize(
    ("shapes", "crs", "message"),
    [
        ([Point(500003, 4999998)], UTM, "holds Point; needs polygons"),
        ([LineString([(0, 0), (1, 1)])], UTM, "holds LineString; needs polygons"),
        ([box(0, 0, 1, 1)], UTM, "lies outside the scene"),
        ([], UTM, "holds nothing; needs polygons"),
    ],
)
def test_areas_without_use_are_refused(tmp_path: Path, shapes: list, crs: CRS, message: str) -> None:
    path = write_shapes(tmp_path / "area.geojson", *shapes, crs=crs)
    with pytest.raises(UsageError, match=message):
        Area.read(path, grid_of())


def test_what_is_no_vector_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a vector file"):
        Area.read(tmp_path / "none.gpkg", grid_of())
    (tmp_path / "names.csv").write_text("name\na\n")
    with pytest.raises(UsageError, match="no layer with geometries"):
        Area.read(tmp_path / "names.csv", grid_of())


def test_the_first_layer_with_geometries_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas
    import pyogrio

    path = write_shapes(tmp_path / "area.gpkg", TRIANGLE)
    pyogrio.write_dataframe(pandas.DataFrame({"a": [1]}), path, layer="a_table", append=True)
    assert gdal.first_layer(path) == "area"
    assert not caplog.records  # a table is no choice
    write_shapes(path, TRIANGLE, layer="more")
    assert gdal.first_layer(path) == "area"
    assert "layer area is read, of area, more" in caplog.text
    assert "layer area is read, of area, more" in Area.read(path, grid_of()).notes[0]


def test_coordinate_systems_are_reconciled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    without = write_shapes(tmp_path / "without.shp", TRIANGLE, crs=None)
    assert Area.read(without, grid_of()).mask(grid_of()).any()
    assert "has no CRS; taken to be in the scene's" in caplog.text
    assert Area.read(without, grid_of(crs=None)).mask(grid_of(crs=None)).any()
    with pytest.raises(UsageError, match="the scene has none"):
        Area.read(write_shapes(tmp_path / "with.shp", TRIANGLE), grid_of(crs=None))


def test_invalid_polygons_are_mended(tmp_path: Path) -> None:
    bow_tie = Polygon([(500000, 5000000), (500010, 4999990), (500010, 5000000), (500000, 4999990)])
    mask = Area.read(write_shapes(tmp_path / "area.gpkg", bow_tie), grid_of()).mask(grid_of())
    assert mask[:20, :20].sum() == pytest.approx(200, abs=25)
