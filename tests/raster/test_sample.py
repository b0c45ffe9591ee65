"""Ranges to stretch: fill values without a mark, nodata in one band, ranges shared by scenes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasters import MakeRaster

from rsseg_cli.raster import SceneInfo
from rsseg_cli.raster.sample import Sample, stretch_ranges

BANDS = (1, 2, 3)


def scene_array(dtype: str, height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth picture with values from 500 to 3500, or 0.05 to 0.35 in floats."""
    rows, cols = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 30, (3, height, width))
    values = 500 + 3000 * (rows + cols) / (height + width) + noise
    return (values / 1e4 if dtype.startswith("float") else values).astype(dtype)


def tagged(value: float) -> dict[str, Any]:
    """The file names a nodata value; its pixels stay what they are."""
    return {"kind": "value", "nodata": value, "hole": (0, 0, 0, 0)}


@pytest.mark.parametrize("size", [(240, 320), (1300, 1700)], ids=["small", "resampled"])
@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("int16", -9999), ("int16", -32768), ("int16", 0), ("uint16", 0), ("uint16", 65535), ("float32", -9999),
     ("float32", 0), ("float32", np.finfo("float32").min), ("float32", 1e30), ("int16", -2000),
     ("int32", -2147483648), ("float64", -99999)],
)  # fmt: skip
def test_fill_values_without_a_mark_stay_out(
    make_raster: MakeRaster, dtype: str, fill: float, size: tuple[int, int]
) -> None:
    array = scene_array(dtype, *size)
    whole = np.percentile(array[:, :, size[1] // 3 :], (2, 98), axis=(1, 2)).T
    array[:, :, : size[1] // 3] = fill
    info = SceneInfo.of(make_raster(array=array))
    ranges = stretch_ranges(info, BANDS)
    np.testing.assert_allclose(ranges, whole, rtol=0.02)
    (note,) = info.notes
    assert re.search(r"3[1-3]\.\d% of the pixels are", note)
    assert f"pass --nodata {fill:.6g} if they are holes; left out of the stretch" in note
    marked = SceneInfo.of(make_raster("marked.tif", array=array, **tagged(fill)))
    assert stretch_ranges(marked, BANDS) == ranges
    assert marked.notes == []


def test_two_fill_values(make_raster: MakeRaster) -> None:
    array = scene_array("float32")
    expected = np.percentile(array[:, 40:, 60:], (2, 98), axis=(1, 2)).T
    array[:, :40] = -9999
    array[:, :, :60] = 0
    info = SceneInfo.of(make_raster(array=array))
    np.testing.assert_allclose(stretch_ranges(info, BANDS), expected, rtol=0.02)
    assert len(info.notes) == 2


def test_zero_beside_negative_values_is_a_fill_value(make_raster: MakeRaster) -> None:
    array = scene_array("float32") - np.float32(0.1)
    expected = np.percentile(array[:, :, 100:], (2, 98), axis=(1, 2)).T
    array[:, :, :100] = 0
    np.testing.assert_allclose(
        stretch_ranges(SceneInfo.of(make_raster(array=array)), BANDS), expected, rtol=0.02
    )


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_pictures_without_holes_are_taken_whole(make_raster: MakeRaster, dtype: str) -> None:
    array = scene_array(dtype)
    array[0, :5] = array[0].min()
    info = SceneInfo.of(make_raster(array=array))
    expected = np.percentile(array, (2, 98), axis=(1, 2)).T
    np.testing.assert_allclose(stretch_ranges(info, BANDS), expected, rtol=1e-6)
    assert info.notes == []


MARKS: dict[str, Callable[[np.ndarray], dict[str, Any]]] = {
    "value": lambda _: tagged(-9999),
    "nan": lambda array: {"array": np.where(array == -9999, np.nan, array).astype(np.float32)},
    "unmarked": lambda _: {},
}


@pytest.mark.parametrize("size", [(240, 320), (1300, 1700)], ids=["small", "resampled"])
@pytest.mark.parametrize("mark", MARKS)
def test_nodata_of_one_band_stays_out_of_its_statistics_alone(
    make_raster: MakeRaster, mark: str, size: tuple[int, int]
) -> None:
    array = scene_array("float32" if mark == "nan" else "int16", *size)
    array = array * 1e4 if mark == "nan" else array
    expected = np.percentile(array, (2, 98), axis=(1, 2)).T
    hole = slice(0, size[1] // 3)
    expected[1] = np.percentile(array[1, :, size[1] // 3 :], (2, 98))
    array[1, :, hole] = -9999
    info = SceneInfo.of(make_raster(**({"array": array} | MARKS[mark](array))))
    np.testing.assert_allclose(stretch_ranges(info, BANDS), expected, rtol=0.02)


def test_one_range_for_many_scenes(make_raster: MakeRaster) -> None:
    array = scene_array("uint16")
    sheets = [array[:, :, :160], array[:, :, 160:]]
    paths = [str(make_raster(f"{number}.tif", array=sheet)) for number, sheet in enumerate(sheets)]
    empty = np.zeros((3, 240, 160), np.uint16)
    empty[:, :10] = 2000
    paths.append(str(make_raster("hole.tif", array=empty)))
    ranges = SceneInfo.common_ranges([*paths[:2], "missing.tif"], ("red", "green", "blue"))
    np.testing.assert_allclose(ranges, np.percentile(array, (2, 98), axis=(1, 2)).T, rtol=0.01)
    own = stretch_ranges(SceneInfo.of(paths[0]), BANDS)
    assert abs(own[0][1] - ranges[0][1]) > 500
    with_hole = SceneInfo.common_ranges(paths, ("red", "green", "blue"))
    np.testing.assert_allclose(with_hole, ranges, rtol=0.05)
    assert SceneInfo.common_ranges([str(make_raster("b.tif"))], ("red", "green", "blue")) == []


def test_masks_of_each_band(make_raster: MakeRaster, tmp_path: Path) -> None:
    array = np.ones((3, 20, 20), np.int16)
    array[0, :5] = 0
    array[:, 10:12] = 0
    sample = Sample.read(SceneInfo.of(make_raster(array=array, **tagged(0))), BANDS)
    assert (~sample.valid).sum(1).tolist() == [140, 40, 40]


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("fill", [None, -9999])
def test_bytes_in_a_larger_type_keep_their_range(
    make_raster: MakeRaster, dtype: str, fill: int | None
) -> None:
    if fill and dtype.startswith("u"):
        pytest.skip("the type has no negative numbers")
    array = (scene_array("int16") // 16).astype(dtype)
    if fill:
        array[:, :40] = fill
    assert stretch_ranges(SceneInfo.of(make_raster(array=array, kind="none")), BANDS) == [(0, 255)] * 3
    dark = SceneInfo.of(make_raster("dark.tif", array=(array // 2).clip(0), kind="none"))
    assert all(high < 125 for _, high in stretch_ranges(dark, BANDS))
