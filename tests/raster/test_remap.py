"""Files of new classes: what they make of a model's classes, and how they are refused."""

import json

import pytest

from rsseg_cli.errors import UsageError
from rsseg_cli.raster import classes

NAMES = ("building", "forest", "road", "crop")


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "classes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_classes_are_merged_renamed_and_recoloured(write):
    path = write(
        [
            {"name": "vegetation", "from": ["Forest ", "crop"], "colour": "#4c9141"},
            {"name": "house", "from": "building"},
            {"name": "road", "colour": [1, 2, 3]},
        ]
    )
    new = classes.remapped(path, NAMES, "model 'm'")
    assert new.names == ("vegetation", "house", "road")
    assert new.groups == ((1, 3), (0,), (2,))
    assert new.colours == ((76, 145, 65), None, (1, 2, 3))
    assert new.aliases == {"forest": 0, "crop": 0, "building": 1, "road": 2}


def test_classes_that_are_not_named_follow_as_they_are(write):
    new = classes.remapped(write([{"name": "vegetation", "from": ["forest", "crop"]}]), NAMES, "m")
    assert new.names == ("vegetation", "building", "road")
    assert new.groups == ((1, 3), (0,), (2,))


def test_names_may_be_exchanged(write):
    swap = [{"name": "crop", "from": "forest"}, {"name": "forest", "from": "crop"}]
    new = classes.remapped(write(swap), NAMES, "m")
    assert new.names == ("crop", "forest", "building", "road")
    assert new.groups == ((1,), (3,), (0,), (2,))


def test_a_map_that_was_remapped_before_stays(write):
    path = write([{"name": "vegetation", "from": ["forest", "crop"]}])
    new = classes.remapped(path, ("vegetation", "building", "road"), "map.tif")
    assert new.groups == ((0,), (1,), (2,))
    assert new.aliases == {"forest": 0, "crop": 0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            [{"name": "a", "from": ["wood"]}],
            "'a' is made from 'wood', which is no class of model 'm'; it has",
        ),
        ([{"name": "a", "from": ["forest", "wood"]}], "'wood', which is no class"),
        ([{"name": "a", "from": ["forest", "FOREST"]}], "class 'forest' becomes 'a' and 'a'"),
        ([{"name": "a", "from": "crop"}, {"name": "b", "from": "crop"}], "'crop' becomes 'a' and 'b'"),
        ([{"name": "a", "from": "crop"}, {"name": "A ", "from": "road"}], "printable characters in class 2"),
        ([{"name": "a", "from": "crop"}, {"name": "A", "from": "road"}], "two classes are named 'A'"),
        ([{"name": "road", "from": "crop"}], "'road' has the name of a class that stays"),
        ([{"name": "crop", "colour": [1, 2, 256]}], "<= 255 in class 1, colour"),
        ([{"name": "crop", "colour": [1, 2]}], "in class 1, colour"),
        ([{"name": "crop", "colour": "green"}], "in class 1, colour"),
        ([{"name": "a", "from": []}], "in class 1, from"),
        ([{"name": "a", "form": ["crop"]}], "unknown field `form`"),
        ([{"name": "a\u202eb", "from": "crop"}], "printable characters in class 1, name"),
        ([{"name": "x" * 101, "from": "crop"}], "<= 100 in class 1, name"),
        ([], "0 classes; needs 1 to 254"),
        ({"name": "a"}, "needs a JSON list"),
        ("[" * 100_000, "needs a JSON list"),
        (json.dumps([{"name": "crop"}]) + " " * 1_000_000, "is larger than 1000000 bytes"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(write, content, words):
    with pytest.raises(UsageError) as caught:
        classes.remapped(write(content), NAMES, "model 'm'")
    assert "classes.json: " in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_file_is_an_error_of_usage(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        classes.remapped(tmp_path / "none.json", NAMES, "m")
