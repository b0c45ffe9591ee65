"""The preview: what a reader sees of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rsseg_cli.pipeline.preview import OPACITY, draw_preview, round_length_m
from rsseg_cli.raster import classes as values

CLASSES = (("building", (214, 69, 65)), ("land", (222, 203, 164)), ("water", (58, 124, 190)))


def draw(labels, gsd_m=0.3, classes=CLASSES, title="scene.tif"):
    image = np.full((3, *labels.shape), 100, np.uint8)
    return draw_preview(image, labels, classes, gsd_m, title)


@pytest.fixture
def words(monkeypatch):
    """Every text that is drawn."""
    seen = []
    draw_text = ImageDraw.ImageDraw.text

    def record(self, xy, text, *args, **kwargs):
        seen.append(text)
        return draw_text(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return seen


def test_legend_names_classes_with_their_shares_of_what_is_mapped(words):
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 5:10] = 1
    labels[0, :5] = values.NODATA
    draw(labels)
    assert {"scene.tif", "Scene", "Map"} <= set(words)
    assert "building 74.7 %" in words  # 295 of 395
    assert "land 25.3 %" in words
    assert "water 0 %" in words
    assert "no data (1.2 % of the picture)" in words


def test_small_and_almost_full_shares_are_not_rounded_to_none_or_all(words):
    labels = np.zeros((100, 100), np.uint8)
    labels[0, 0] = 1
    draw(labels)
    assert "building 99.9 %" in words
    assert "land < 0.1 %" in words


def test_map_shows_the_class_colour_over_the_scene_and_no_data_grey():
    labels = np.full((500, 500), 2, np.uint8)
    labels[:, 250:] = values.NODATA
    picture = np.asarray(draw(labels))
    over = np.rint((1 - OPACITY) * 100 + OPACITY * np.array(CLASSES[2][1]))
    assert (picture == over).all(-1).sum() == 500 * 250
    assert (picture == 100).all(-1).sum() == 500 * 500  # the scene itself
    assert (picture == np.rint((1 - OPACITY) * 100 + OPACITY * 190)).all(-1).sum() == 500 * 250


@pytest.mark.parametrize(
    ("most", "length"), [(99, 50), (100, 100), (0.7, 0.5), (4999, 2000), (2.0, 2), (1e-3, 1e-3), (9.9, 5)]
)
def test_scale_bar_is_a_round_length(most, length):
    assert round_length_m(most) == pytest.approx(length)


@pytest.mark.parametrize(("gsd_m", "label"), [(0.3, "20 m"), (10.0, "1 km"), (0.01, "1 m")])
def test_scale_bar_says_its_length(words, gsd_m, label):
    picture = draw(np.zeros((400, 400), np.uint8), gsd_m)
    assert label in words
    assert picture.width >= 800


def test_scale_bar_is_as_long_as_it_says():
    labels = np.zeros((600, 600), np.uint8)
    picture = np.asarray(draw(labels, 1.0)).astype(int)
    row = next(
        r for r in range(picture.shape[0] - 90, picture.shape[0]) if (picture[r] < 60).all(-1).sum() > 90
    )
    ink = np.flatnonzero((picture[row, :120] < 60).all(-1))  # the words begin at 126
    assert ink.max() - ink.min() == pytest.approx(100, abs=2)


def test_without_a_ground_resolution_there_is_no_scale_bar(words):
    draw(np.zeros((30, 30), np.uint8), None)
    assert not any(word.endswith(" m") or word.endswith("km") for word in words)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1000), (1000, 1), (100, 1000), (1000, 100), (3000, 2), (1200, 1200), (481, 479)]
)
def test_any_shape_gives_a_picture_with_every_word_inside(shape):
    picture = draw(np.zeros(shape, np.uint8), title="a long name " * 12)
    assert isinstance(picture, Image.Image)
    assert 560 <= picture.width <= 2450
    assert picture.height <= 2700
    pixels = np.asarray(picture)
    assert (pixels[:, -4:] == 255).all()
    assert (pixels[-4:] == 255).all()
    assert (pixels[-40:] < 100).all(-1).any()  # the legend is not empty


def test_many_classes_are_cut_to_the_largest(words):
    labels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    draw(labels, classes=tuple((f"class {k}", (k, k, k)) for k in range(200)))
    assert "176 other classes 88.0 %" in words


def test_a_scene_without_any_data(words):
    draw(np.full((10, 10), values.NODATA, np.uint8))
    assert "building 0 %" in words
    assert "no data (100 % of the picture)" in words
