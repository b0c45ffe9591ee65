"""The comparisons with stored expectations notice what they are for, and bear what they are to bear."""

import geopandas
import numpy as np
import pytest
import shapely
from golden_files import EXPECTED, Golden, read_labels
from program import polygon_facts

CLASSES = EXPECTED / "maps" / "plain.png"


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Expectations in a folder of the test's own."""
    monkeypatch.setattr("golden_files.EXPECTED", tmp_path)
    return Golden(update=True), Golden(update=False)


def test_a_map_that_is_shifted_or_has_classes_swapped(stored):
    write, check = stored
    labels = read_labels(CLASSES)
    write.check_labels("map", labels)
    check.check_labels("map", labels)
    few = labels.copy()
    few[::50, ::50] = (few[::50, ::50] + 1) % 5  # 0.04 %
    check.check_labels("map", few)
    for other in (
        np.roll(labels, 1, 0),
        np.roll(labels, 1, 1),
        np.array([1, 0, 2, 3, 4])[labels],
        labels[1:],
    ):
        with pytest.raises(AssertionError):
            check.check_labels("map", other)


def test_a_confidence_that_is_shifted_or_scaled(stored):
    write, check = stored
    rows, cols = np.mgrid[:400, :400]
    sure = (150 + 60 * np.sin(rows / 9) + 40 * np.cos(cols / 7)).astype(np.uint8)[None]
    write.check_samples("sure", sure)
    check.check_samples("sure", sure + 1)
    without = sure.copy()
    without[:, :20, :20] = 255
    for other in (np.roll(sure, 1, 1), (sure * 0.95).astype(np.uint8), without):
        with pytest.raises(AssertionError):
            check.check_samples("sure", other)


def test_polygons_that_differ_by_a_centimetre_or_a_class(stored):
    write, check = stored
    boxes = shapely.box([0, 10], [0, 0], [10, 20], [10, 10])
    table = geopandas.GeoDataFrame({"class_name": ["land", "road"]}, geometry=boxes, crs=32632)
    write.check_json("polygons", polygon_facts(table))
    check.check_json("polygons", polygon_facts(table[::-1]))
    moved = table.set_geometry(table.geometry.translate(0.01, 0))
    swapped = table.assign(class_name=["road", "land"])
    for other in (moved, swapped, table[:1], table.to_crs(32633)):
        with pytest.raises(AssertionError):
            check.check_json("polygons", polygon_facts(other))


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ({"pixels": 100_000, "share": 0.25}, {"pixels": 100_040, "share": 0.2501}, True),
        ({"pixels": 100_000}, {"pixels": 102_000}, False),
        ({"sheets": 4}, {"sheets": 5}, False),
        ({"share": 0.25}, {"share": 0.27}, False),
        ({"share": 0.25}, {"share": 0.25, "more": 1}, False),
        ({"share": 0.25}, {"share": None}, False),
        (["a", "b"], ["b", "a"], False),
    ],
)
def test_values(stored, before, after, is_same):
    write, check = stored
    write.check_json("values", before)
    assert_differs(lambda: check.check_json("values", after), is_same)


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("land 12.34%, 1.5 m", "land 12.35%, 1.6 m", True),
        ("land 12.34%", "land 13.34%", False),
        ("land 12.34%", "Land 12.34%", False),
        ("4 scenes", "5 scenes", False),
        ("version 1.2.3", "version 1.2.4", False),
    ],
)
def test_texts(stored, before, after, is_same):
    write, check = stored
    write.check_text("text", before)
    assert_differs(lambda: check.check_text("text", after), is_same)


def assert_differs(check, is_same):
    if is_same:
        check()
        return
    with pytest.raises(AssertionError):
        check()
