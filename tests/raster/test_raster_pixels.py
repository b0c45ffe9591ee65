"""Arithmetic on pixels: filling holes."""

from __future__ import annotations

import numpy as np
import pytest

from rsseg_cli.raster.pixels import axis_weights, fill, resample


def ramp(height: int = 120, width: int = 160, dtype: str = "float32") -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack([cols, rows, (rows + cols) / 2]).astype(dtype)


def with_hole(height: int = 120, width: int = 160) -> np.ndarray:
    valid = np.ones((height, width), bool)
    valid[30:80, 40:110] = False
    return valid


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_a_hole_in_a_ramp_goes_on_with_the_ramp(dtype: str) -> None:
    array, valid = ramp(dtype=dtype), with_hole()
    broken = array.copy()
    broken[:, ~valid] = 0
    filled = fill(broken, valid)
    assert filled.dtype == dtype
    assert (filled[:, valid] == array[:, valid]).all()
    error = np.abs(filled.astype(float) - array)
    assert error.max() < 6  # of 160
    assert error[:, ~valid].mean() < 2
    assert (broken[:, ~valid] == 0).all()


def test_noise_in_the_mask_is_filled_closely() -> None:
    array = ramp()
    valid = np.random.default_rng(0).random((120, 160)) > 0.3
    assert np.abs(fill(array * valid, valid) - array)[:, 2:-2, 2:-2].max() < 2.5


def test_filled_pixels_have_no_steps() -> None:
    valid = np.zeros((64, 64), bool)
    valid[:, :8] = True
    array = np.zeros((1, 64, 64), np.float32)
    array[:, :32, :8] = 100
    filled = fill(array, valid)
    assert np.abs(np.diff(filled[0, :, 30])).max() < 15


@pytest.mark.parametrize("position", [(0, 0), (0, 6), (8, 0), (8, 6), (4, 3)])
@pytest.mark.parametrize("shape", [(9, 7), (1, 7), (9, 1), (1, 1)])
def test_one_valid_pixel_fills_all(shape: tuple[int, int], position: tuple[int, int]) -> None:
    valid = np.zeros(shape, bool)
    valid[min(position[0], shape[0] - 1), min(position[1], shape[1] - 1)] = True
    array = np.where(valid, 77, 0).astype(np.uint8)[None]
    assert (fill(array, valid) == 77).all()


def test_invalid_values_never_enter() -> None:
    array, valid = ramp(), with_hole()
    array[:, ~valid] = np.nan
    assert np.isfinite(fill(array, valid)).all()


def test_all_or_nothing_is_left_as_it_is() -> None:
    array = ramp()
    assert fill(array, np.ones((120, 160), bool)) is array
    assert fill(array, np.zeros((120, 160), bool)) is array


def test_filled_values_stay_between_those_around() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(50, 200, (3, 65, 83)).astype(np.uint8)
    valid = rng.random((65, 83)) > 0.6
    filled = fill(np.where(valid, array, 255).astype(np.uint8), valid)
    assert filled.min() >= 50
    assert filled.max() < 200


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.9, 2.0, 2.1, 7.4])
def test_weights_sum_to_one_and_lie_inside(scale: float) -> None:
    source = round(100 * scale)
    first, length, weights = axis_weights(90, 10, scale, 0.0, source)
    assert first >= 0
    assert first + length <= source
    assert np.asarray(weights.sum(1)).ravel() == pytest.approx(1, abs=1e-6)
    assert weights.data.min() >= 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("limit", ["min", "max"])
def test_limits_of_a_type_stay_in_it(dtype: str, limit: str) -> None:
    value = int(getattr(np.iinfo(dtype), limit))
    array, valid = np.full((1, 40, 40), value, dtype), np.ones((40, 40), bool)
    near = {"rel": 1e-6, "abs": 0}
    (_, _, down), (_, _, across) = (axis_weights(0, count, 40 / count, 0.0, 40) for count in (13, 17))
    means, _ = resample(array, valid, down, across)
    assert means.ravel().tolist() == pytest.approx([value] * 13 * 17, **near)
    valid[10:20, 15:30] = False
    filled = fill(array, valid)
    assert filled.ravel().tolist() == pytest.approx([value] * 40 * 40, **near)
