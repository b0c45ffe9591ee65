"""Scores of maps against truth on any grid: small rasters by hand, and any cut into blocks and tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.warp import transform as transform_points
from rasters import MakeRaster
from scipy import ndimage

from rsseg_cli.data import LabelFormat, datasets
from rsseg_cli.errors import DataError, SceneError, UsageError
from rsseg_cli.evaluation.metrics import count_confusion
from rsseg_cli.evaluation.scoring import ScoreConfig, Scorer, ScoreResult
from rsseg_cli.raster import Area, Grid, RasterWriter, SceneInfo, classes, vrt
from rsseg_cli.weights import ClassSpec

NAMES = ("land", "building", "water")
UTM = rasterio.crs.CRS.from_epsg(32633)


def config(*names: str, **options: Any) -> ScoreConfig:
    return ScoreConfig(classes=ClassSpec.from_names(names or NAMES), **options)


def write_map(
    path: Path, array: Any, names: tuple[str, ...] = NAMES, *, crs: Any = UTM, transform: Affine | None = None
) -> Path:
    """A class raster as `predict` writes it."""
    rows = np.asarray(array, np.uint8)
    transform = transform or Affine(0.5, 0, 500000, 0, -0.5, 5000000)
    grid = Grid(crs=crs, transform=transform, width=rows.shape[1], height=rows.shape[0])
    colours = {index: (index, 10, 20) for index in range(len(names))}
    meta = vrt.RasterMeta(colours=colours, category_names=names)
    with RasterWriter(path, grid, meta, overwrite=True) as writer:
        writer.write(0, rows[None])
        writer.finish()
        writer.publish()
    return path


def score(
    predicted: Path,
    truth: Path,
    chosen: ScoreConfig | None = None,
    *,
    block_size: int = 1024,
    max_tiles: int = 4096,
    **options: Any,
) -> ScoreResult:
    scorer = Scorer(chosen or config(), block_size=block_size, max_tiles=max_tiles)
    scorer.add("scene", predicted, truth, **options)
    return scorer.result()


# truth 0 0 0 1 1 -        land: 5 hits, 6 true, 5 mapped: IoU 5/6
#       0 0 0 1 1 -        building: 3 hits, 4 true, 4 mapped: IoU 3/5
# map   0 0 0 1 1 1        water: in neither; one pixel of building is no data
#       0 0 1 1 - 0
TRUTH = np.array([[0, 0, 0, 1, 1, 255], [0, 0, 0, 1, 1, 255]], np.uint8)
MAPPED = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 255, 0]], np.uint8)


@pytest.fixture
def pair(tmp_path: Path, make_raster: MakeRaster) -> tuple[Path, Path]:
    return write_map(tmp_path / "map.tif", MAPPED), make_raster("truth.tif", array=TRUTH[None])


def test_scores_by_hand(pair: tuple[Path, Path]) -> None:
    result = score(*pair)
    assert result.confusion.tolist() == [[5, 1, 0, 0], [0, 3, 0, 1], [0, 0, 0, 0]]
    scores = result.scores
    assert scores["classes"] == [
        {"name": "land", "iou": pytest.approx(5 / 6), "f1": pytest.approx(10 / 11), "precision": 1.0,
         "recall": pytest.approx(5 / 6), "pixels": 6},
        {"name": "building", "iou": pytest.approx(3 / 5), "f1": pytest.approx(6 / 8),
         "precision": pytest.approx(3 / 4), "recall": pytest.approx(3 / 4), "pixels": 4},
        {"name": "water", "iou": None, "f1": None, "precision": None, "recall": None, "pixels": 0},
    ]  # fmt: skip
    assert scores["miou"] == pytest.approx((5 / 6 + 3 / 5) / 2)
    assert scores["overall_accuracy"] == pytest.approx(8 / 10)
    assert (scores["pixels"], scores["pixels_outside_classes"]) == (10, 1)
    assert scores["unlabelled_share"] == pytest.approx(2 / 12)


def test_layout_of_the_scores(pair: tuple[Path, Path]) -> None:
    scores = score(*pair, config(boundary_widths_px=(3, 1))).scores
    assert set(scores) == {
        "miou", "mean_f1", "overall_accuracy", "kappa", "classes", "boundary", "pixels",
        "pixels_outside_classes", "unlabelled_share", "intervals",
    }  # fmt: skip
    boundary = scores["boundary"]
    assert set(boundary) == {"wfm", "widths_px", "widths_m", "boundary_iou", "trimap_accuracy"}
    assert boundary["widths_px"] == [1, 3]
    assert boundary["widths_m"] == pytest.approx([0.5, 1.5], rel=1e-3)
    # within 1 px of the truth's border: columns 2 and 3, three of four right
    assert boundary["trimap_accuracy"]["overall"] == pytest.approx([3 / 4, 8 / 10])
    assert boundary["trimap_accuracy"]["classes"]["land"] == pytest.approx([1 / 2, 5 / 6])
    assert boundary["trimap_accuracy"]["classes"]["water"] == [None, None]
    assert boundary["trimap_accuracy"]["mean"] == pytest.approx([(1 / 2 + 1) / 2, (5 / 6 + 3 / 4) / 2])
    # land within 1 px: truth 2 px; map (0, 2), (0, 1), (1, 1); both (0, 2)
    assert boundary["boundary_iou"]["classes"]["land"][0] == pytest.approx(1 / 4)
    assert set(boundary["boundary_iou"]) == {"mean", "classes"}


def test_tiles_tell_where(pair: tuple[Path, Path]) -> None:
    result = score(*pair, config(tile_size=4), image="scene.jpg")
    assert [(tile.row, tile.col, tile.height, tile.width) for tile in result.tiles] == [
        (0, 0, 2, 4),
        (0, 4, 2, 2),
    ]
    assert result.tiles[1].confusion.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert (result.tiles[0].scene, result.tiles[0].image) == ("scene", "scene.jpg")
    assert (sum(tile.confusion for tile in result.tiles) == result.confusion).all()


# Names and values


def test_classes_come_together_by_name(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """A map with other numbers and another class: what it maps as a road is none of the classes."""
    numbers = np.array([3, 0, 2, 255], np.uint8)  # of land, building, water, no data
    other = numbers[np.where(MAPPED == 255, 3, MAPPED)]
    other[0, 0] = 1
    path = write_map(tmp_path / "other.tif", other, (" Building", "road", "WATER", "land"))
    result = score(path, pair[1])
    assert result.confusion.tolist() == [[4, 1, 0, 1], [0, 3, 0, 1], [0, 0, 0, 0]]
    assert result.tiles[0].class_table[:5].tolist() == [1, 3, 2, 0, 3]


def test_a_strange_class_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes.ClassRaster.matching(write_map(tmp_path / "map.tif", MAPPED, ("land", "building", "sea")), NAMES)
    assert "sea is none of land, building, water; pixels mapped so count as wrong" in caplog.text
    with pytest.raises(DataError, match="its classes are sky, sea; none of them is one of land"):
        classes.ClassRaster.matching(write_map(tmp_path / "map.tif", MAPPED, ("sky", "sea")), NAMES)


def test_map_without_names_has_class_numbers(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    expected = score(*pair).scores
    for dtype in ("uint8", "uint16", "int32"):
        plain = make_raster("plain.tif", array=MAPPED[None].astype(dtype), nodata=255)
        assert score(plain, pair[1]).scores == expected
    array = MAPPED[None].astype("int32")
    array[0, 0, :2] = -256, 65_536  # two pixels of land are no class, though their last byte is 0
    strange = make_raster("strange.tif", array=array)
    assert score(strange, pair[1]).confusion.tolist() == [[3, 1, 0, 2], [0, 3, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (1, "float32")])
def test_a_picture_is_no_map(
    pair: tuple[Path, Path], make_raster: MakeRaster, bands: int, dtype: str
) -> None:
    with pytest.raises(SceneError, match="needs one band of class numbers"):
        score(make_raster("scene.tif", bands=bands, dtype=dtype, shape=(2, 6)), pair[1])


def test_a_truth_value_that_is_no_class_is_named(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    with pytest.raises(DataError, match=r"bad.tif: label value 7 is no class"):
        score(pair[0], make_raster("bad.tif", array=np.full((1, 2, 6), 7, np.uint8)))


def test_names_and_colours_that_a_map_carries(tmp_path: Path, make_raster: MakeRaster) -> None:
    path = write_map(tmp_path / "map.tif", MAPPED)
    assert classes.read_names(path) == dict(enumerate(NAMES))
    assert classes.read_colours(path)[1] == (1, 10, 20)
    plain = make_raster("plain.tif", array=MAPPED[None])
    assert classes.read_names(plain) == classes.read_colours(plain) == {}
    Path(f"{plain}.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><CategoryNames><Category>sea</Category><Category/>"
        "<Category>isle</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    assert classes.read_names(plain) == {0: "sea", 2: "isle"}


# Grids


def patches(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of three classes with unlabelled holes, and a map that is wrong in places."""
    rng = np.random.default_rng(seed)
    planes = ndimage.gaussian_filter(rng.normal(size=(3, height, width)), (0, 3, 3))
    truth = planes.argmax(0).astype(np.uint8)
    mapped = np.where(rng.random(truth.shape) < 0.9, truth, rng.integers(0, 3, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.05] = 255
    mapped[rng.random(mapped.shape) < 0.01] = 255
    return mapped, truth


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    block=st.integers(20, 160),
    tile=st.integers(7, 200),
    erode=st.integers(0, 3),
)
def test_blocks_and_tiles_change_nothing(
    tmp_path: Path, make_raster: MakeRaster, height: int, width: int, block: int, tile: int, erode: int
) -> None:
    mapped, truth = patches(height, width)
    truth[0, 0] = 0
    files = write_map(tmp_path / "map.tif", mapped), make_raster("truth.tif", array=truth[None])
    protocol = datasets.ScoringProtocol(erode_px=0 if height * width < 400 else erode)
    whole = score(*files, config(protocol=protocol))
    cut = score(*files, config(protocol=protocol, tile_size=tile), block_size=block)
    assert (whole.confusion == cut.confusion).all()
    assert (sum(actual.confusion for actual in cut.tiles) == cut.confusion).all()
    if not protocol.erode_px:
        assert (whole.confusion == count_confusion(mapped, truth, 3)).all()
    assert cut.scores["boundary"].pop("wfm") == pytest.approx(
        whole.scores["boundary"].pop("wfm"), nan_ok=True
    )
    assert cut.scores | {"intervals": None} == whole.scores | {"intervals": None}


@pytest.mark.parametrize("degrees", [False, True])
def test_truth_in_another_crs(tmp_path: Path, make_raster: MakeRaster, degrees: bool) -> None:
    """Truth in Mercator or degrees, three times as fine: land west of a line in UTM, buildings east of it.

    A map that draws the line by its own coordinates differs in pixels along the line alone.
    """
    height = width = 200
    line_x = 500050.0
    xs = 500000 + 0.5 * (np.arange(width) + 0.5)
    mapped = np.tile((xs > line_x).astype(np.uint8), (height, 1))
    crs = rasterio.crs.CRS.from_epsg(4326 if degrees else 3857)
    corners = transform_points(
        UTM, crs, [500000, 500100, 500000, 500100], [5000000, 5000000, 4999900, 4999900]
    )
    left, right, bottom, top = min(corners[0]), max(corners[0]), min(corners[1]), max(corners[1])
    size = 700
    step = (right - left) / size, (top - bottom) / size
    grid_x, grid_y = np.meshgrid(
        left + step[0] * (np.arange(size) + 0.5), top - step[1] * (np.arange(size) + 0.5)
    )
    utm_x, _ = transform_points(crs, UTM, grid_x.ravel(), grid_y.ravel())
    fine = (np.array(utm_x).reshape(size, size) > line_x).astype(np.uint8)
    truth = make_raster(
        "truth.tif", array=fine[None], crs=crs, transform=Affine(step[0], 0, left, 0, -step[1], top)
    )
    result = score(write_map(tmp_path / "map.tif", mapped), truth, config("land", "building"))
    wrong = result.confusion.sum() - np.trace(result.confusion)
    assert result.scores["pixels"] > 0.99 * height * width
    assert wrong <= height  # not more than a pixel a row
    assert result.scores["classes"][0]["iou"] > 0.99


def test_map_south_up(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    south_up = Affine(0.5, 0, 500000, 0, 0.5, 4999999)  # two rows, the first one in the south
    flipped = write_map(tmp_path / "flipped.tif", MAPPED[::-1], transform=south_up)
    assert score(flipped, pair[1]).scores == score(*pair).scores


def test_truth_that_covers_a_part(tmp_path: Path, pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    """Truth starts two columns further east and ends beyond the map."""
    transform = Affine(0.5, 0, 500001, 0, -0.5, 5000000)
    array = np.pad(TRUTH[:, 2:], ((0, 3), (0, 5)))[None]
    result = score(pair[0], make_raster("part.tif", array=array, transform=transform))
    assert result.confusion.tolist() == [[1, 1, 0, 0], [0, 3, 0, 1], [0, 0, 0, 0]]


def test_truth_elsewhere_has_no_pixel_in_common(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    transform = Affine(0.5, 0, 600000, 0, -0.5, 5000000)
    far = make_raster("far.tif", array=TRUTH[None], transform=transform)
    with pytest.raises(DataError, match=r"far.tif: lies elsewhere: it has x 600000 to 600003"):
        score(pair[0], far)


def test_no_crs_on_both_sides(tmp_path: Path, pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    plain = write_map(tmp_path / "plain.tif", MAPPED, crs=None, transform=Affine.identity())
    result = score(plain, make_raster("plain_truth.tif", array=TRUTH[None], crs=None))
    assert (result.confusion == score(*pair).confusion).all()
    assert result.scores["boundary"]["widths_m"] is None


def write_boxes(path: Path, boxes: list[tuple[float, ...]], crs: Any = 32633, **columns: Any) -> Path:
    import geopandas
    from shapely import box

    frame = geopandas.GeoDataFrame(columns, geometry=[box(*edges) for edges in boxes], crs=crs)
    frame.to_file(path)
    return path


# columns 3 and 4 of both rows are a building
BUILDING = (500001.5, 4999999.0, 500002.5, 5000000.0)


@pytest.mark.parametrize("name", ["boxes.gpkg", "boxes.geojson"])
def test_polygons_as_truth(tmp_path: Path, pair: tuple[Path, Path], name: str) -> None:
    """Outside the polygons lies land by `outside`: the last column too, mapped as building and land."""
    truth = write_boxes(tmp_path / name, [BUILDING])
    format = LabelFormat(class_names=NAMES, vector_class="building", outside="land")
    assert score(pair[0], truth, truth_format=format).confusion.tolist() == [
        [6, 2, 0, 0], [0, 3, 0, 1], [0, 0, 0, 0],
    ]  # fmt: skip
    alone = LabelFormat(class_names=NAMES, vector_class="building")
    assert score(pair[0], truth, truth_format=alone).confusion.tolist() == [[0] * 4, [0, 3, 0, 1], [0] * 4]


def test_window_and_area(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Columns 2 to 4: beyond them there is neither truth nor a border; then the polygon within."""
    result = score(*pair, window=(0, 2, 2, 3))
    assert result.confusion.tolist() == [[1, 1, 0, 0], [0, 3, 0, 1], [0, 0, 0, 0]]
    assert result.scores["unlabelled_share"] == 0
    assert [(tile.row, tile.col, tile.width) for tile in result.tiles] == [(0, 2, 3)]
    area = Area.read(write_boxes(tmp_path / "area.gpkg", [BUILDING]), SceneInfo.of(pair[0]).grid)
    inside = score(*pair, area=area)
    assert inside.confusion.tolist() == [[0] * 4, [0, 3, 0, 1], [0] * 4]
    assert inside.scores["unlabelled_share"] == 0
    assert inside.scores["boundary"]["boundary_iou"]["classes"]["building"][0] == 0  # against no data alone


# Protocol


def test_eroded_labels_count_for_boundaries_alone(tmp_path: Path, make_raster: MakeRaster) -> None:
    """A border between columns 9 and 10; within 3 px of it all pixels are wrong."""
    truth = np.zeros((8, 20), np.uint8)
    truth[:, 10:] = 1
    mapped = truth.copy()
    mapped[:, 7:13] = 1 - mapped[:, 7:13]
    files = write_map(tmp_path / "map.tif", mapped), make_raster("truth.tif", array=truth[None])
    plain, eroded = (score(*files, config(protocol=datasets.ScoringProtocol(erode_px=px))) for px in (0, 3))
    assert plain.scores["overall_accuracy"] == pytest.approx(14 / 20)
    assert eroded.scores["overall_accuracy"] == 1
    assert eroded.scores["pixels"] == 8 * 14
    assert eroded.scores["boundary"] == plain.scores["boundary"]
    assert eroded.scores["boundary"]["trimap_accuracy"]["overall"][:2] == [0, 0]


def test_labels_without_their_borders_have_no_wfm(tmp_path: Path, make_raster: MakeRaster) -> None:
    """As ISPRS publishes them: where edges of the truth are unknown, those of a map are not wrong."""
    truth = np.zeros((20, 40), np.uint8)
    truth[:, 17:23], truth[:, 23:] = 255, 1
    mapped = np.zeros((20, 40), np.uint8)
    mapped[:, 10:] = 1
    files = write_map(tmp_path / "map.tif", mapped), make_raster("truth.tif", array=truth[None])
    assert score(*files).scores["boundary"]["wfm"] is None
    alone = make_raster("alone.tif", array=np.zeros((1, 20, 40), np.uint8))
    assert score(files[0], alone).scores["boundary"]["wfm"] == 0


def test_clutter_out_of_means(pair: tuple[Path, Path]) -> None:
    protocol = datasets.ScoringProtocol(out_of_means=("Building",))
    scores, plain = score(*pair, config(protocol=protocol)).scores, score(*pair).scores
    assert scores["miou"] == pytest.approx(5 / 6)
    assert scores["classes"] == plain["classes"]
    assert scores["overall_accuracy"] == plain["overall_accuracy"]
    for kind in ("boundary_iou", "trimap_accuracy"):
        actual = scores["boundary"][kind]
        assert actual["mean"] == actual["classes"]["land"]


def test_several_maps(tmp_path: Path, pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    """Counts over all maps together; WFm is their mean, of those that have edges; no widths in metres for two
    resolutions."""
    mapped, truth = patches(90, 100)
    second = (
        write_map(tmp_path / "second.tif", mapped, transform=Affine(2, 0, 500000, 0, -2, 5000000)),
        make_raster("second_truth.tif", array=truth[None], gsd=2),
    )
    blank = np.zeros((1, 40, 40), np.uint8)
    third = write_map(tmp_path / "third.tif", blank[0]), make_raster("third_truth.tif", array=blank)
    scorer = Scorer(config())
    singles = []
    for number, files in enumerate((pair, second, third)):
        tiles = scorer.add(str(number), *files)
        singles.append(score(*files))
        assert (sum(tile.confusion for tile in tiles) == singles[-1].confusion).all()
    result = scorer.result()
    assert (result.confusion == sum(single.confusion for single in singles)).all()
    wfm = [single.scores["boundary"]["wfm"] for single in singles]
    assert wfm[2] is None
    known = [value for value in wfm if value is not None]
    assert result.scores["boundary"]["wfm"] == pytest.approx(sum(known) / len(known))
    assert result.scores["boundary"]["widths_m"] is None
    assert [tile.scene for tile in result.tiles] == ["0", "1", "2"]


def test_number_of_tiles_is_bounded(tmp_path: Path, make_raster: MakeRaster) -> None:
    """At most 16: 13 x 13 tiles of 8 px become 4 x 4 of 32 px; with a second map, 2 x 2 of 64 px each."""
    mapped, truth = patches(100, 100)
    files = write_map(tmp_path / "map.tif", mapped), make_raster("truth.tif", array=truth[None])
    assert len(score(*files, config(tile_size=8), max_tiles=16).tiles) == 16
    scorer = Scorer(config(tile_size=8), max_tiles=16)
    for name in "ab":
        scorer.add(name, *files)
    result = scorer.result()
    assert [(tile.scene, tile.row, tile.col, tile.height) for tile in result.tiles] == [
        ("a", 0, 0, 64), ("a", 0, 64, 64), ("a", 64, 0, 36), ("a", 64, 64, 36),
        ("b", 0, 0, 64), ("b", 0, 64, 64), ("b", 64, 0, 36), ("b", 64, 64, 36),
    ]  # fmt: skip
    assert (sum(tile.confusion for tile in result.tiles) == result.confusion).all()
    for tile in result.tiles:
        window = np.s_[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
        assert (tile.confusion == count_confusion(mapped[window], truth[window], 3)).all()


def test_progress_counts_blocks(pair: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    scorer = Scorer(config(), lambda done, total: seen.append((done, total)), block_size=4)
    scorer.add("scene", *pair)
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {"boundary_widths_px": (0, 3)},
        {"boundary_widths_px": ()},
        {"protocol": datasets.ScoringProtocol(out_of_means=("sky",))},
        {"protocol": datasets.ScoringProtocol(out_of_means=NAMES)},
        {"protocol": datasets.ScoringProtocol(erode_px=-1)},
        {"classes": ClassSpec.from_names(("a", "A"))},
        {"classes": ()},
    ],
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ScoreConfig(**{"classes": ClassSpec.from_names(NAMES), **options})
