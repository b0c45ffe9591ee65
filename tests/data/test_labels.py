"""Labels of every kind on a grid: small enough to count, and the same for any windowing."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from shapely.geometry import LineString, Polygon, box

from rsseg_cli.data.label_format import IGNORE, LabelFormat
from rsseg_cli.data.label_vector import read_shapes
from rsseg_cli.data.labels import LabelReader
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.raster import Grid

UTM = CRS.from_epsg(32632)
NAMES = ("background", "building", "road")
PLAIN = LabelFormat(class_names=NAMES)
COLOURED = LabelFormat(
    class_names=NAMES, colours={(0, 0, 0): 0, (255, 0, 0): 1, (9, 9, 9): 2, (255, 255, 255): IGNORE}
)


def grid_of(height, width, gsd=1.0, origin=(500000.0, 5000000.0), crs=UTM):
    transform = Affine(gsd, 0, origin[0], 0, -gsd, origin[1])
    return Grid(crs=crs, transform=transform, width=width, height=height)


def write(path, array, grid=None, **profile):
    array = array if array.ndim == 3 else array[None]
    where = {} if grid is None else {"crs": grid.crs, "transform": grid.transform}
    with rasterio.open(
        path, "w", driver="GTiff", height=array.shape[1], width=array.shape[2], count=len(array),
        dtype=array.dtype, **where, **profile,
    ) as dataset:  # fmt: skip
        dataset.write(array)
    return path


def read(path, grid, format=PLAIN, **options):
    with LabelReader(path, grid, format, **options) as reader:
        return reader.read(0, 0, grid.height, grid.width)


def polygons(path, shapes, crs=UTM, **columns):
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


class TestNumbers:
    def test_as_they_are(self, tmp_path):
        values = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
        grid = grid_of(2, 3)
        np.testing.assert_array_equal(read(write(tmp_path / "a.tif", values, grid), grid), values)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
    def test_raw_values(self, tmp_path, dtype):
        format = LabelFormat(class_names=NAMES, values={0: IGNORE, 1: 0, 20: 1, 21: 1, 30: 2})
        values = np.array([[0, 1, 20], [21, 30, 1]], dtype)
        grid = grid_of(2, 3)
        actual = read(write(tmp_path / "a.tif", values, grid), grid, format)
        assert actual.tolist() == [[255, 0, 1], [1, 2, 0]]

    @pytest.mark.parametrize(("dtype", "value"), [("uint8", 7), ("uint16", 7000), ("int16", -1)])
    def test_an_unknown_value_stops_with_file_value_and_number(self, tmp_path, dtype, value):
        values = np.array([[0, value, value], [1, 1, 1]], dtype)
        grid = grid_of(2, 3)
        with pytest.raises(
            DataError, match=rf"a.tif: label value {value} is no class \(2 px in rows 0 to 1\)"
        ):
            read(write(tmp_path / "a.tif", values, grid), grid)

    def test_one_bit(self, tmp_path):
        values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
        grid = grid_of(2, 3)
        np.testing.assert_array_equal(read(write(tmp_path / "a.tif", values, grid, nbits=1), grid), values)
        Image.fromarray(values.astype(bool)).save(tmp_path / "a.png")
        format = LabelFormat(class_names=NAMES, values={0: 0, 1: 1, 255: 1})
        np.testing.assert_array_equal(read(tmp_path / "a.png", grid, format), values)

    def test_nodata_is_unlabelled_unless_its_value_is_named(self, tmp_path, caplog):
        values = np.array([[0, 1], [2, 0]], np.uint8)
        grid = grid_of(2, 2)
        path = write(tmp_path / "a.tif", values, grid, nodata=0)
        assert read(path, grid).tolist() == [[255, 1], [2, 255]]
        assert "labels whose nodata value 0 is also the number of class 'background'" in caplog.text
        named = LabelFormat(class_names=NAMES, values={0: 0, 1: 1, 2: 2})
        assert read(path, grid, named).tolist() == [[0, 1], [2, 0]]

    def test_mask_band_and_alpha(self, tmp_path):
        values = np.array([[0, 1], [2, 9]], np.uint8)
        grid = grid_of(2, 2)
        valid = np.array([[True, True], [True, False]])
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            path = write(tmp_path / "a.tif", values, grid)
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(valid)
        assert read(path, grid).tolist() == [[0, 1], [2, 255]]
        Image.fromarray(np.dstack((values, valid * np.uint8(255))), "LA").save(tmp_path / "b.png")
        assert read(tmp_path / "b.png", grid).tolist() == [[0, 1], [2, 255]]

    def test_two_bands_are_refused(self, tmp_path):
        grid = grid_of(2, 2)
        with pytest.raises(DataError, match="needs one band of whole numbers"):
            read(write(tmp_path / "a.tif", np.zeros((2, 2, 2), np.uint8), grid), grid)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("nodata", [None, np.nan, -9999.0])
    def test_whole_numbers_as_floats(self, tmp_path, dtype, nodata):
        grid = grid_of(2, 3)
        none = np.nan if nodata is None else nodata
        values = np.array([[0, 1, 2], [255, none, np.nan]], dtype)
        path = write(tmp_path / "a.tif", values, grid, nodata=nodata)
        assert read(path, grid).tolist() == [[0, 1, 2], [255, 255, 255]]
        raw = LabelFormat(class_names=NAMES, values={0: 2, 1: 1, 2: 0})
        assert read(path, grid, raw).tolist() == [[2, 1, 0], [255, 255, 255]]
        twice = grid_of(1, 1, gsd=2.0)  # pixels that shrink take the most frequent one
        assert read(path, twice).tolist() == [[255]]

    @pytest.mark.parametrize("value", [0.5, 3.0, np.inf, -1.0])
    def test_a_float_that_is_no_class_is_named(self, tmp_path, value):
        grid = grid_of(2, 2)
        path = write(tmp_path / "a.tif", np.array([[0, 1], [value, 1]], np.float32), grid)
        with pytest.raises(DataError, match=rf"label value {value:g} is no class \(1 px"):
            read(path, grid)


class TestColours:
    PIXELS = np.array(
        [[[255, 0, 0], [0, 0, 0], [9, 9, 9]], [[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8
    )
    CLASSES = ((1, 0, 2), (255, 0, 1))

    @pytest.mark.parametrize("bands", [3, 4])
    def test_bands_of_red_green_blue(self, tmp_path, bands):
        grid = grid_of(2, 3)
        array = self.PIXELS.transpose(2, 0, 1)
        if bands == 4:
            array = np.concatenate((array, np.array([[[255, 255, 0], [255, 255, 255]]], np.uint8)))
        path = write(
            tmp_path / "a.tif", array, grid, photometric="rgb", **({"alpha": "yes"} if bands == 4 else {})
        )
        wanted = np.array(self.CLASSES)
        wanted[0, 2] = 255 if bands == 4 else 2
        np.testing.assert_array_equal(read(path, grid, COLOURED), wanted)

    def test_a_palette_is_read_through_its_colours(self, tmp_path):
        """Number 3 of the palette is red, so it is class 1; with values given it is read as a number."""
        image = Image.fromarray(np.array([[3, 0], [5, 3]], np.uint8), "P")
        palette = [0, 0, 0] * 256
        palette[9:12], palette[15:18] = [255, 0, 0], [9, 9, 9]
        image.putpalette(palette)
        image.save(tmp_path / "a.png")
        grid = grid_of(2, 2)
        assert read(tmp_path / "a.png", grid, COLOURED).tolist() == [[1, 0], [2, 1]]
        by_number = LabelFormat(class_names=NAMES, colours=COLOURED.colours, values={3: 2, 0: 0, 5: 1})
        assert read(tmp_path / "a.png", grid, by_number).tolist() == [[2, 0], [1, 2]]
        with pytest.raises(DataError, match="label value 3 is no class"):
            read(tmp_path / "a.png", grid)

    def test_an_unknown_colour_is_named_with_its_pixels(self, tmp_path):
        array = self.PIXELS.copy()
        array[0, :2] = (1, 2, 3)
        path = write(tmp_path / "a.tif", array.transpose(2, 0, 1), grid_of(2, 3))
        with pytest.raises(DataError, match=r"a.tif: colour \(1, 2, 3\) is no class \(2 px in rows 0 to 1\)"):
            read(path, grid_of(2, 3), COLOURED)
        lenient = LabelFormat(class_names=NAMES, colours=COLOURED.colours, unknown="unlabelled")
        with LabelReader(path, grid_of(2, 3), lenient) as reader:
            assert reader.read(0, 0, 2, 3).tolist() == [[255, 255, 2], [255, 0, 1]]
            assert reader.unknown_px == 2

    def test_an_unknown_palette_colour_is_named(self, tmp_path):
        image = Image.fromarray(np.array([[1, 0], [0, 0]], np.uint8), "P")
        image.putpalette([0, 0, 0, 7, 8, 9])
        image.save(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"colour \(7, 8, 9\) is no class \(1 px"):
            read(tmp_path / "a.png", grid_of(2, 2), COLOURED)

    def test_without_a_colour_table(self, tmp_path):
        path = write(tmp_path / "a.tif", self.PIXELS.transpose(2, 0, 1), grid_of(2, 3))
        with pytest.raises(DataError, match="is a colour mask; which colour is which class is not known"):
            read(path, grid_of(2, 3))


class TestPlace:
    def test_most_frequent_where_pixels_shrink(self, tmp_path):
        values = np.zeros((4, 6), np.uint8)
        values[0:2, 0:2] = [[1, 1], [1, 0]]
        values[2:4, 4:6] = [[2, 255], [2, 2]]
        values[2:4, 0:2] = [[255, 255], [255, 1]]  # mostly unlabelled stays unlabelled
        path = write(tmp_path / "a.tif", values, grid_of(4, 6, 0.5))
        assert read(path, grid_of(2, 3, 1.0)).tolist() == [[1, 0, 0], [255, 0, 2]]

    @pytest.mark.parametrize("scale", [1.25, 2.0, 2.7, 8.0])
    def test_most_frequent_is_the_largest_area(self, tmp_path, scale):
        """Against areas summed pixel by pixel, for pixels that do not coincide; ties may go either way."""
        values = np.kron(
            np.random.default_rng(3).integers(0, 3, (20, 20), dtype=np.uint8), np.ones((4, 4), np.uint8)
        )
        path = write(tmp_path / "a.tif", values, grid_of(80, 80, 0.5, (500000.2, 4999999.9)))
        size = int(38 / scale)
        actual = read(path, grid_of(size, size, 0.5 * scale, (500001, 4999999)))
        for row, col in np.random.default_rng(4).integers(0, size, (20, 2)):
            areas = np.zeros(3)
            top, left = 1.8 + row * scale, 1.6 + col * scale
            for y in range(int(top), min(80, int(top + scale) + 1)):
                for x in range(int(left), min(80, int(left + scale) + 1)):
                    high = min(y + 1, top + scale) - max(y, top)
                    areas[values[y, x]] += max(0, high) * max(0, min(x + 1, left + scale) - max(x, left))
            assert areas[actual[row, col]] >= areas.max() - 1e-3

    def test_nearest_where_they_grow_and_unlabelled_outside(self, tmp_path):
        values = np.array([[0, 1], [2, 0]], np.uint8)
        path = write(tmp_path / "a.tif", values, grid_of(2, 2, 2.0, (500001, 4999999)))
        wanted = np.full((6, 6), 255)
        wanted[1:5, 1:5] = np.kron(values, np.ones((2, 2)))
        np.testing.assert_array_equal(read(path, grid_of(6, 6)), wanted)

    def test_aligned_with_an_offset(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 3, (5, 7), dtype=np.uint8)
        path = write(tmp_path / "a.tif", values, grid_of(5, 7, 1.0, (499998, 5000003)))
        actual = read(path, grid_of(4, 9))
        np.testing.assert_array_equal(actual[:2, :5], values[3:, 2:])
        assert (actual[2:] == 255).all()
        assert (actual[:, 5:] == 255).all()

    @pytest.mark.parametrize("georeferenced", [True, False])
    def test_without_crs_on_the_images_pixels(self, tmp_path, georeferenced):
        values = np.kron(np.array([[0, 1], [2, 0]], np.uint8), np.ones((4, 4), np.uint8))
        image_grid = grid_of(8, 8) if georeferenced else Grid(
            crs=None, transform=Affine.identity(), width=8, height=8
        )  # fmt: skip
        Image.fromarray(values).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read(tmp_path / "a.png", image_grid), values)
        smaller = image_grid.scaled(width=4, height=2)
        actual = read(tmp_path / "a.png", smaller, image_grid=image_grid)
        assert actual.tolist() == [[0, 0, 1, 1], [2, 2, 0, 0]]
        with pytest.raises(DataError, match="8 x 8 px without CRS, its image has 8 x 9 px"):
            read(tmp_path / "a.png", Grid(crs=None, transform=Affine.identity(), width=8, height=9))

    def test_another_crs(self, tmp_path):
        """A square of road drawn in web Mercator lies where the projections say, within half a pixel."""
        from rasterio.warp import transform

        xs, ys = transform(UTM, "EPSG:3857", [500030.0], [4999970.0])
        values = np.zeros((200, 200), np.uint8)
        values[80:120, 80:120] = 2
        other = grid_of(200, 200, 0.5, (xs[0] - 50, ys[0] + 50), CRS.from_epsg(3857))
        path = write(tmp_path / "a.tif", values, other)
        grid = grid_of(60, 60)
        actual = read(path, grid)
        rows, cols = np.nonzero(actual == 2)
        assert rows.mean() == pytest.approx(29.5, abs=0.5)
        assert cols.mean() == pytest.approx(29.5, abs=0.5)
        side = 20 * np.cos(np.deg2rad(45.15))
        assert np.sqrt((actual == 2).sum()) == pytest.approx(side, abs=1.0)

    @settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_the_same_pixels_for_any_windowing(self, tmp_path, data):
        kind = data.draw(st.sampled_from(["direct", "shrinks", "rotated", "crs", "colours", "polygons"]))
        values = np.random.default_rng(1).integers(0, 3, (640, 600), dtype=np.uint8)
        grid, format = grid_of(560, 530, 0.5), PLAIN
        path = tmp_path / f"{kind}.tif"
        if kind == "polygons":
            path = path.with_suffix(".gpkg")
        if not path.exists():
            source = {"direct": 0.5, "shrinks": 0.2, "colours": 0.3}.get(kind, 0.4)
            where = grid_of(640, 600, source)
            if kind == "rotated":
                where = Grid(crs=UTM, transform=where.transform * Affine.rotation(10), width=600, height=640)
            if kind == "crs":
                where = grid_of(640, 600, 1e-5, (8.998, 45.152), CRS.from_epsg(4326))
            if kind == "polygons":
                rng = np.random.default_rng(2)
                starts = rng.uniform(0, 250, (300, 2))
                shapes = [box(500000 + x, 4999750 + y, 500010.3 + x, 4999757.7 + y) for x, y in starts]
                polygons(path, shapes, **{"class": list(np.array(NAMES)[rng.integers(0, 3, 300)])})
            elif kind == "colours":
                write(path, np.array(list(COLOURED.colours)[:3], np.uint8)[values].transpose(2, 0, 1), where)
            else:
                write(path, values, where)
        if kind == "colours":
            format = COLOURED
        whole = read(path, grid, format)
        assert len(np.unique(whole)) >= 3
        with LabelReader(path, grid, format) as reader:
            for _ in range(3):
                row, col = data.draw(st.integers(0, 559)), data.draw(st.integers(0, 529))
                height, width = data.draw(st.integers(1, 560 - row)), data.draw(st.integers(1, 530 - col))
                actual = reader.read(row, col, height, width)
                np.testing.assert_array_equal(actual, whole[row : row + height, col : col + width])

    def test_a_window_outside_is_a_slip(self, tmp_path):
        path = write(tmp_path / "a.tif", np.zeros((4, 4), np.uint8), grid_of(4, 4))
        with LabelReader(path, grid_of(4, 4), PLAIN) as reader, pytest.raises(ValueError, match="outside"):
            reader.read(0, 0, 5, 4)


class TestPolygons:
    GRID = grid_of(4, 6)
    LEFT, RIGHT = box(500000, 4999996, 500003, 5000000), box(500002, 4999996, 500006, 5000000)

    @pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
    @pytest.mark.parametrize(
        ("field", "values"), [("class", ["building", "Road"]), ("label", [1, 2]), ("class_index", ["1", "2"])]
    )
    def test_later_ones_paint_over_earlier_ones(self, tmp_path, suffix, field, values):
        crs = "EPSG:4326" if suffix == ".geojson" else UTM
        path = tmp_path / f"a{suffix}"
        frame = geopandas.GeoDataFrame({field: values}, geometry=[self.LEFT, self.RIGHT], crs=UTM).to_crs(crs)
        frame.to_file(path, **({"SPATIAL_INDEX": "NO"} if suffix == ".fgb" else {}))
        assert read(path, self.GRID).tolist() == [[1, 1, 2, 2, 2, 2]] * 4

    def test_file_order_holds_among_many(self, tmp_path):
        shapes = [box(500000, 4999996, 500006, 5000000)] * 501
        path = polygons(tmp_path / "a.gpkg", shapes, label=[1, 0] * 250 + [2])
        assert (read(path, self.GRID) == 2).all()

    def test_outside_is_background_or_as_reported(self, tmp_path):
        path = polygons(tmp_path / "a.gpkg", [self.LEFT], label=[1])
        assert read(path, self.GRID).tolist() == [[1, 1, 1, 0, 0, 0]] * 4
        for outside, value in (("road", 2), ("unlabelled", 255)):
            format = LabelFormat(class_names=NAMES, outside=outside)
            assert read(path, self.GRID, format).tolist() == [[1, 1, 1] + [value] * 3] * 4
        format = LabelFormat(class_names=("roof", "building"))
        assert (read(path, self.GRID, format)[:, 3:] == 255).all()

    def test_class_of_polygons_without_attribute(self, tmp_path):
        path = polygons(tmp_path / "a.gpkg", [self.LEFT], name=["x"])
        two = LabelFormat(class_names=("other", "building"))
        assert (read(path, self.GRID, two)[:, :3] == 1).all()
        seen = LabelFormat(class_names=NAMES, vector_class="road")
        assert (read(path, self.GRID, seen)[:, :3] == 2).all()
        with pytest.raises(
            DataError, match=r"a.gpkg: polygons carry no class .* --label-field or --vector-class"
        ):
            read(path, self.GRID)
        with pytest.raises(UsageError, match="--vector-class roof: is no class"):
            LabelFormat(class_names=NAMES, vector_class="roof")

    def test_a_named_field_and_raw_values(self, tmp_path):
        path = polygons(tmp_path / "a.gpkg", [self.LEFT, self.RIGHT], code=[40, 50], label=[9, 9])
        format = LabelFormat(class_names=NAMES, field="code", values={40: 1, 50: IGNORE})
        assert read(path, self.GRID, format).tolist() == [[1, 1, 255, 255, 255, 255]] * 4
        with pytest.raises(DataError, match="no attribute 'kind'; it has code, label"):
            read(path, self.GRID, LabelFormat(class_names=NAMES, field="kind"))

    @pytest.mark.parametrize("value", ["ship", "3", None])
    def test_an_unknown_class_stops_with_file_feature_and_value(self, tmp_path, value):
        path = polygons(tmp_path / "a.gpkg", [self.LEFT, self.RIGHT], **{"class": ["road", value]})
        shown = "nothing" if value is None else repr(value)
        with pytest.raises(DataError, match=f"a.gpkg: feature 2 has class {shown}, which is no class"):
            read(path, self.GRID)

    def test_invalid_polygons_are_repaired(self, tmp_path):
        bow = Polygon([(500000, 5000000), (500006, 4999996), (500006, 5000000), (500000, 4999996)])
        actual = read(polygons(tmp_path / "a.gpkg", [bow], label=[1]), self.GRID)
        far, near = [1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 1, 1]
        assert actual.tolist() == [far, near, near, far]

    def test_lines_are_reported(self, tmp_path, caplog):
        line = LineString([(500000, 5000000), (500004, 4999996)])
        path = polygons(tmp_path / "a.gpkg", [line], label=[1])
        with pytest.raises(DataError, match="holds LineString; needs polygons"):
            read(path, self.GRID)
        path = polygons(tmp_path / "b.gpkg", [line, self.LEFT], label=[2, 1])
        assert set(np.unique(read(path, self.GRID))) == {0, 1}
        assert "1 features of LineString are left out" in caplog.text

    def test_far_away_and_broken_files(self, tmp_path):
        far = polygons(tmp_path / "far.gpkg", [box(600000, 0, 600001, 1)], label=[1])
        assert (read(far, self.GRID) == 0).all()
        (tmp_path / "bad.gpkg").write_bytes(b"no geopackage")
        with pytest.raises(DataError, match=r"bad.gpkg: cannot be read as a vector file"):
            read(tmp_path / "bad.gpkg", self.GRID)
        bare = Grid(crs=None, transform=Affine.identity(), width=6, height=4)
        with pytest.raises(DataError, match="has a CRS, its image has none"):
            read(far, bare)


def test_alpha_interpretation_survives(tmp_path):
    """The four-band case above relies on an alpha band; GDAL says so."""
    path = write(
        tmp_path / "a.tif", np.zeros((4, 2, 2), np.uint8), grid_of(2, 2), photometric="rgb", alpha="yes"
    )
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha


def test_a_nodata_value_that_is_a_class_names_the_file(tmp_path, monkeypatch, caplog):
    """Not the folder, which is "." for a file in the current one."""
    monkeypatch.chdir(tmp_path)
    grid = grid_of(2, 2)
    for name in ("x.tif", "y.tif"):
        path = write(Path(name), np.array([[0, 1], [2, 0]], np.uint8), grid, nodata=0)
        read(path, grid, LabelFormat(class_names=("here", "building", "road")))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("x.tif (and others of its folder): labels whose nodata value 0")


def test_shapes_in_metres_without_a_crs_are_refused(tmp_path):
    """GeoJSON means degrees then; 500,000 degrees are nowhere."""
    grid = grid_of(50, 50)
    polygons(tmp_path / "a.gpkg", [box(500002, 4999990, 500008, 4999996)])
    assert len(read_shapes(tmp_path / "a.gpkg", grid)) == 1
    polygons(tmp_path / "a.geojson", [box(500002, 4999990, 500008, 4999996)], crs=None)
    with pytest.raises(DataError, match=r"1 of 1 shapes lie outside the CRS of the scene.*EPSG:4326"):
        read_shapes(tmp_path / "a.geojson", grid)
