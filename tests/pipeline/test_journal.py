"""The journal: written whole, read with distrust."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsseg_cli.pipeline.earlier import differences
from rsseg_cli.pipeline.journal import Checkpoint, Journal, Publication, parse_journal, read_journal

JOURNAL = Journal(
    fingerprint={"size": [1, 2]},
    passes={
        "map": Checkpoint(
            rows=384,
            files={"labels.0.tif": 1200},
            pixels=list(range(256)),
            areas_m2=[value / 3 for value in range(256)],
            counts={"windows_run": 3},
        )
    },
    batches={"map": 8},
    finished=["labels"],
    publication=Publication(
        renames=[("/a/.b/c.tif", "/a/c.tif")], leftovers=["/a/c.tif.ovr"], result={"seconds": 1.5}
    ),
)
KEYS = ["version", "passes", "map", "rows", "files", "finished", "publication", "fingerprint", "batches"]


def as_json():
    return json.loads(json.dumps(msgspec.to_builtins(JOURNAL)))


def test_what_is_saved_is_read(tmp_path):
    JOURNAL.save(tmp_path / "journal.json")
    assert read_journal(tmp_path / "journal.json") == JOURNAL
    assert [path.name for path in tmp_path.iterdir()] == ["journal.json"]
    assert JOURNAL.files == {"labels.0.tif": 1200}
    assert read_journal(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 2, r"2 - at `\$.version`"),
        (["passes"], [], "Expected `object`, got `array`"),
        (["passes", "map", "rows"], 0, "Expected `int` >= 1"),
        (["passes", "map", "rows"], True, "Expected `int`, got `bool`"),
        (["passes", "map", "pixels"], [1, 2], "needs 256"),
        (["passes", "map", "areas_m2", 3], "x", "Expected `float`, got `str`"),
        (["passes", "map", "areas_m2", 3], float("nan"), "Expected `float` >= 0"),
        (["passes", "map", "files"], {"../../x": 1}, "`key` in .*files"),
        (["passes", "map", "files"], {"..": 1}, "`key` in .*files"),
        (["finished"], [3], "Expected `str`, got `int`"),
        (["publication", "renames"], [["a"]], "length 2"),
        (["batches"], {"map": 0}, "Expected `int` >= 1"),
    ],
)
def test_a_wrong_value_is_named(path, value, message):
    root = as_json()
    parse_journal(json.dumps(root).encode())
    part = root
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        parse_journal(json.dumps(root).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_other_bytes_are_no_journal(data):
    with pytest.raises(ValueError):
        parse_journal(data)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.sampled_from(KEYS), part),
    )
)
def test_any_json_is_read_or_refused(found):
    with contextlib.suppress(ValueError):
        parse_journal(json.dumps(found).encode())


def test_differences_are_in_words():
    before = {"rsseg": "1", "settings": {"tile_size": 64, "overlap": 16}, "files": {"/a.tif": [1, 2]}}
    now = {"rsseg": "1", "settings": {"tile_size": 96, "overlap": 16}, "files": {"/a.tif": [1, 3]}}
    assert differences(before, before) == ""
    assert differences(before, now) == (
        "settings tile_size was 64, is 96; files /a.tif was [1, 2], is [1, 3]"
    )
