"""Polygons in the pixels of a picture, in few bytes."""

import base64
import zlib

import numpy as np

from rsseg_cli.vector.sketch import Drawn


def test_polygons_that_do_not_fit_are_left_out():
    rng = np.random.default_rng(0)
    count = 200 * 300
    drawn = Drawn(
        numbers=rng.permutation(count).reshape(200, 300).astype(np.int32) + 1,
        classes=rng.integers(0, 9, count).astype(np.uint16),
        areas_m2=rng.random(count).astype(np.float32),
        confidences=rng.random(count).astype(np.float32),
        count=count + 5,
    )
    whole, part = drawn.packed(1 << 30), drawn.packed(100_000)
    assert whole["count"] == count
    assert whole["left_out"] == 5
    assert len(whole["data"]) > 100_000 >= len(part["data"]) > 10_000
    raw = zlib.decompress(base64.b64decode(part["data"]))
    size = part["width"] * part["height"]
    numbers = np.frombuffer(raw, "<i4", size).reshape(part["height"], part["width"]).cumsum(0)
    kept = drawn.numbers[:: 200 // part["height"], :: 300 // part["width"]] - 1
    areas = np.frombuffer(raw, "<f4", part["count"], 4 * size)
    assert part["count"] == size == count + 5 - part["left_out"]
    np.testing.assert_array_equal(areas[numbers - 1], drawn.areas_m2[kept])
