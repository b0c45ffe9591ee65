"""The report: one page that needs nothing beside it, and shows what is there."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio.transform import Affine
from shapely import box

from rsseg_cli.data import LabelFormat
from rsseg_cli.errors import OutputError
from rsseg_cli.evaluation.comparison import compare
from rsseg_cli.evaluation.report import check_report_folder, write_report
from rsseg_cli.evaluation.scoring import ScoreConfig, ScoreResult
from rsseg_cli.evaluation.tiles import TileScore
from rsseg_cli.evaluation.worst_tiles import read_worst_tile, worst_tiles
from rsseg_cli.raster import Area
from rsseg_cli.weights import ClassSpec

CLASSES = (ClassSpec("roof", (214, 69, 65)), ClassSpec("<script>alert(1)</script>", (76, 145, 65)))
NAMES = tuple(item.name for item in CLASSES)
VOID = {"meta", "img", "br", "link", "input", "hr"}


def tile_score(scene, predicted, truth, image, row, col, height, width, confusion, area=None):
    return TileScore(
        scene=scene, predicted=predicted, truth=truth, image=image, row=row, col=col, height=height,
        width=width, confusion=confusion, area=area, truth_format=LabelFormat(class_names=NAMES),
        class_table=np.minimum(np.arange(256), 2).astype(np.uint8),
    )  # fmt: skip


def score_result(scores, confusion, tiles, classes=CLASSES):
    config = ScoreConfig(classes=classes)
    return ScoreResult(config=config, scores=scores, confusion=confusion, tiles=tiles)


def count(truth, actual):
    known = truth != 255
    pairs = truth[known].astype(int) * 3 + np.minimum(actual[known], 2)
    return np.bincount(pairs, minlength=6).reshape(2, 3)


def scores(confusion):
    rows = [
        {"name": name, "iou": 0.5, "f1": 0.6, "precision": None, "recall": 0.8, "pixels": int(pixels)}
        for name, pixels in zip(NAMES, confusion.sum(1), strict=True)
    ]
    curve = {"mean": [0.2, 0.4, 0.6], "classes": {NAMES[0]: [0.2, 0.4, 0.6], NAMES[1]: [None, None, None]}}
    boundary = {"wfm": 0.61, "widths_px": [1, 3, 10], "widths_m": [0.5, 1.5, 5.0]}
    means = {"miou": 0.512, "mean_f1": 0.634, "overall_accuracy": 0.876, "kappa": float("nan")}
    return {
        **means,
        "classes": rows,
        "boundary": {**boundary, "boundary_iou": curve, "trimap_accuracy": curve},
    }


@pytest.fixture
def scored(make_raster):
    """Two tiles of a scene of 128 x 256 px; the right one is worse, and a corner of its truth unlabelled."""
    generator = np.random.default_rng(0)
    smooth = np.kron(generator.integers(0, 255, (3, 8, 16)), np.ones((1, 16, 16))).astype(np.uint8)
    truth = np.kron(generator.integers(0, 2, (8, 16)), np.ones((16, 16))).astype(np.uint8)
    actual = truth.copy()
    actual[:10, :20] ^= 1
    actual[:40, 140:] ^= 1
    truth[100:, 200:] = 255
    actual[120:, :] = 255
    paths = {
        "image": make_raster("scene.tif", array=smooth),
        "truth": make_raster("truth.tif", array=truth[None], nodata=255),
        "predicted": make_raster("map.tif", array=actual[None], nodata=255),
    }
    tiles = [
        tile_score(
            scene="north",
            row=0,
            col=col,
            height=128,
            width=128,
            confusion=count(truth[:, col : col + 128], actual[:, col : col + 128]),
            **paths,
        )
        for col in (0, 128)
    ]
    confusion = sum(tile.confusion for tile in tiles)
    return score_result(scores(confusion), confusion, tiles), smooth, truth, actual


class Page(HTMLParser):
    """Checks that tags close in order, and gathers what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.pictures, self.texts, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def picture(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_page_that_closes_its_tags_and_needs_nothing_else(scored, tmp_path):
    result, *_ = scored
    path = write_report(
        tmp_path / "report",
        result,
        title="North & south",
        model="<b>m</b>",
        settings={"tile size": 512, "<i>": "</table>"},
    )
    assert path == tmp_path / "report" / "index.html"
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert "http" not in source
    assert not {"script", "link", "iframe", "b" * 2} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text  # as words, not as a tag
    assert "&lt;script&gt;" in source
    for words in (
        "North & south",
        "0.512",
        "0.634",
        "0.876",
        "<b>m</b>",
        "</table>",
        "Boundary IoU, 3 px",
    ):
        assert words in page.text
    assert sorted(item.name for item in path.parent.iterdir()) == ["index.html", "scores.json"]


def test_pictures_show_image_truth_and_map_of_the_worst_tile_first(scored, tmp_path):
    result, image, truth, actual = scored
    page = Page(write_report(tmp_path / "r", result, title="t").read_text(encoding="utf-8"))
    assert len(page.pictures) == 6
    photo, labels, mapped = (picture(uri) for uri in page.pictures[:3])
    assert photo.format == "JPEG"
    assert {labels.format, mapped.format} == {"PNG"}
    shown = np.asarray(photo.convert("RGB")).transpose(2, 0, 1).astype(int)
    assert np.abs(shown - image[:, :, 128:]).mean() < 6
    colours = np.array([*[item.colour for item in CLASSES], *[(190, 190, 190)] * 254])
    drawn, classed = np.asarray(mapped.convert("RGB")), actual[:, 128:] != 255
    assert (drawn[classed] == colours[actual[:, 128:][classed]]).all()
    known = truth[:, 128:] != 255
    drawn = np.asarray(labels.convert("RGB"))
    assert (drawn[known] == colours[truth[:, 128:][known]]).all()
    greys = np.unique(drawn[~known], axis=0)
    assert greys.tolist() == [[151] * 3, [190] * 3]  # hatched
    assert "unlabelled in the truth, no class in the map" in page.text


def test_places_tell_where_they_lie_and_what_is_confused(scored, tmp_path):
    result, _, truth, actual = scored
    path = write_report(tmp_path / "r", result, title="t")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "1. north rows 0–127, columns 128–255 EPSG:32633: 500096.0, 4999968.0" in text
    assert "45.15" in text  # latitude of the centre, degrees
    assert "bar 20 m" in text
    part = (slice(None), slice(128, 256))
    known = truth[part] != 255
    share = (truth[part] == actual[part])[known].mean()
    assert f"{share:.1%} of {known.sum():,} labelled px right" in text
    numbers = json.loads((path.parent / "scores.json").read_text(encoding="utf-8"))
    worst = numbers["worst_places"][0]
    assert (worst["scene"], worst["row"], worst["col"], worst["crs"]) == ("north", 0, 128, "EPSG:32633")
    assert worst["wrong_pixels"] == (truth[part] != actual[part])[known].sum()
    assert sum(item["pixels"] for item in worst["confusions"]) <= worst["wrong_pixels"]
    assert worst["lonlat"] == pytest.approx((15.0012, 45.1530), abs=1e-3)


def test_scores_stand_beside_the_page_as_strict_json(scored, tmp_path):
    result, *_ = scored
    write_report(tmp_path / "r", result, title="t", model="tiny", settings={"split": "test"})
    numbers = json.loads(
        (tmp_path / "r" / "scores.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    assert numbers["scores"]["miou"] == 0.512
    assert numbers["scores"]["kappa"] is None  # NaN
    assert numbers["confusion"]["rows_truth_columns_map"] == result.confusion.tolist()
    assert numbers["settings"] == {"model": "tiny", "split": "test"}


def test_curves_are_drawn_to_scale(scored, tmp_path):
    result, *_ = scored
    source = write_report(tmp_path / "r", result, title="t").read_text(encoding="utf-8")
    lines = re.findall(r'<polyline class="curve[^"]*" points="([^"]+)"', source)
    assert len(lines) == 4  # a class without values has no line; class and mean, two charts
    points = [[float(part) for part in point.split(",")] for point in lines[0].split()]
    steps = np.diff([y for _, y in points])
    assert steps[0] == pytest.approx(steps[1])  # 0.2, 0.4, 0.6
    assert steps[0] < 0  # upwards
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_a_comparison_is_reported_and_drawn(scored, tmp_path):
    result, *_ = scored
    comparison = compare(result.tiles, result.tiles, NAMES, names=("tiny", "<old>"))
    source = write_report(tmp_path / "r", result, title="t", comparison=comparison).read_text(
        encoding="utf-8"
    )
    page = Page(source)
    assert "Against <old>" in page.text
    assert "2 tiles are few (under 20)" in page.text
    assert "not clear" in page.text
    numbers = json.loads((tmp_path / "r" / "scores.json").read_text(encoding="utf-8"))
    assert numbers["against"]["overall"][0]["difference"] == 0


def test_many_classes_stand_close(tmp_path):
    names = tuple(f"class {number}" for number in range(9))
    confusion = np.eye(9, 10, dtype=np.int64) * 1000
    confusion[0, 9] = 500
    curve = {"mean": [0.5], "classes": {name: [0.5] for name in names}}
    rows = [{"name": name, "iou": 1.0, "f1": 1.0, "precision": 1.0, "recall": 1.0} for name in names]
    boundary = {"wfm": None, "widths_px": [3], "boundary_iou": curve, "trimap_accuracy": curve}
    actual = {"miou": 1.0, "mean_f1": 1.0, "overall_accuracy": 1.0, "kappa": 1.0, "classes": rows}
    classes = ClassSpec.from_names(names)
    result = score_result({**actual, "boundary": boundary}, confusion, [], classes)
    path = write_report(tmp_path / "r", result, title="t", tiles=())
    source = path.read_text(encoding="utf-8")
    assert 'class="matrix dense"' in source
    assert "class 0 mapped as none of these: 500 of 1,500 px" in source
    Page(source)


def test_a_report_is_not_replaced_unless_asked(scored, tmp_path):
    result, *_ = scored
    write_report(tmp_path / "r", result, title="first")
    with pytest.raises(OutputError, match="exists already; pass --overwrite"):
        write_report(tmp_path / "r", result, title="second")
    write_report(tmp_path / "r", result, title="second", overwrite=True)
    assert "second" in (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file; a report needs a folder"):
        check_report_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="does not exist"):
        check_report_folder(tmp_path / "none" / "r")


def test_worst_tiles_are_spread_over_scenes_and_need_labels():
    def tile(scene, row, wrong, right=100):
        matrix = np.array([[right, wrong, 0], [0, 0, 0]])
        return tile_score(scene, Path(), Path(), None, row, 0, 20, 20, matrix)

    tiles = [tile("a", row, 50 + row) for row in range(5)] + [
        tile("b", 0, 10),
        tile("c", 0, 5),
        tile("c", 1, 0),
    ]
    tiles.append(tile("d", 0, 19, 0))  # 19 of 400 px are labelled
    chosen = [(tile.scene, tile.row) for tile in worst_tiles(tiles, 6)]
    assert chosen == [("a", 4), ("a", 3), ("b", 0), ("c", 0)]
    assert len(worst_tiles(tiles[:5], 1)) == 5
    assert [tile.row for tile in worst_tiles(tiles, 1, limit=2)] == [4, 3]
    # scene by scene gives the same as all at once
    kept = []
    for scene in "abcd":
        kept = worst_tiles([*kept, *(tile for tile in tiles if tile.scene == scene)], 6)
    assert [(tile.scene, tile.row) for tile in kept] == chosen


def test_of_a_large_tile_the_worst_part_is_shown(make_raster):
    truth = np.zeros((1, 1200, 1500), np.uint8)
    actual = truth.copy()
    actual[0, 700:760, 900:1000] = 1
    actual[0, 10, :] = 1
    image = make_raster("i.tif", shape=(1200, 1500), crs=None)
    paths = [make_raster(f"{k}.tif", array=array, crs=None) for k, array in enumerate((actual, truth))]
    worst = read_worst_tile(tile_score("a", *paths, image, 0, 0, 1200, 1500, count(truth[0], actual[0])))
    assert (worst.height, worst.width) == (512, 512)
    assert 760 - 512 <= worst.row <= 700
    assert 1000 - 512 <= worst.col <= 900
    assert worst.image.shape == (384, 384, 3)
    assert worst.mapped.shape == worst.truth.shape == (384, 384)
    assert worst.mapped.mean() == pytest.approx(6000 / 512**2, rel=0.05)
    assert (worst.crs, worst.centre, worst.lonlat, worst.width_m) == ("", None, None, None)


def test_ground_outside_the_scored_area_is_shown_as_unlabelled(make_raster):
    truth = np.zeros((1, 60, 80), np.uint8)
    paths = [make_raster(f"{k}.tif", array=truth + 1 - k) for k in range(2)]
    left = Area([box(500000, 4999970, 500010, 5000000)])  # the first 20 columns
    worst = read_worst_tile(
        tile_score("a", *paths, None, 0, 0, 60, 80, np.array([[0, 1200, 0], [0, 0, 0]]), left)
    )
    assert (worst.truth[:, :20] == 0).all()
    assert (worst.truth[:, 20:] == 255).all()


@pytest.mark.parametrize("kind", ["one band", "uint16", "five bands", "other grid", "no image"])
def test_images_of_any_kind_are_shown_or_left_out(make_raster, tmp_path, kind):
    labels = np.zeros((1, 60, 80), np.uint8)
    truth, actual = make_raster("t.tif", array=labels), make_raster("m.tif", array=labels + 1)
    moved = Affine(0.5, 0, 0, 0, -0.5, 0)
    image = {
        "one band": lambda: make_raster("i.tif", bands=1),
        "uint16": lambda: make_raster("i.tif", dtype="uint16", kind="value"),
        "five bands": lambda: make_raster("i.tif", bands=5),
        "other grid": lambda: make_raster("i.tif", transform=moved),
        "no image": lambda: None,
    }[kind]()
    tile = tile_score("a", actual, truth, image, 0, 0, 60, 80, count(labels[0], labels[0] + 1))
    worst = read_worst_tile(tile)
    if kind in ("other grid", "no image"):
        assert worst.image is None
    else:
        assert worst.image.shape == (60, 80, 3)
        assert worst.image.max() > 200 > 60 > worst.image.min()
    result = score_result(scores(tile.confusion), tile.confusion, [tile])
    page = Page(write_report(tmp_path / "r", result, title="t").read_text(encoding="utf-8"))
    assert ("no image on the grid of the map" in page.text) == (worst.image is None)


def test_a_perfect_map_has_no_worst_place(make_raster, tmp_path):
    tile = tile_score("a", Path("gone"), Path("gone"), None, 0, 0, 10, 10, np.array([[100, 0, 0], [0, 0, 0]]))
    result = score_result(scores(tile.confusion), tile.confusion, [tile])
    page = Page(write_report(tmp_path / "r", result, title="t").read_text(encoding="utf-8"))
    assert "every labelled pixel is right" in page.text
    assert not page.pictures
