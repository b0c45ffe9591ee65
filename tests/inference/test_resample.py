"""Streaming bilinear resampling equals torch's own on the whole image, whatever the partition."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from rsseg_cli.inference.resample import AxisMap, Resampler
from rsseg_cli.inference.tiling import plan

torch.set_num_threads(1)


def resample_in_blocks(scene, target, layout, **options):
    canvas = torch.full((scene.shape[0], *target), torch.nan)
    resampler = Resampler(scene.shape[1:], target, **options)
    rows, cols = layout.rows.cuts, layout.cols.cuts
    for top, bottom in pairwise(rows):
        for left, right in pairwise(cols):
            for row, col, values in resampler.push(top, left, scene[:, top:bottom, left:right]):
                view = canvas[:, row : row + values.shape[1], col : col + values.shape[2]]
                assert view.isnan().all(), "a pixel came twice"
                view[:] = values
            resampler.commit()
    return canvas


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 120), st.integers(1, 120), st.integers(2, 20))
def test_blocks_give_what_the_whole_gives(height, width, target_height, target_width, tile_size):
    scene = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    target = (target_height, target_width)
    result = resample_in_blocks(scene, target, plan(height, width, tile_size, tile_size // 2))
    expected = interpolate(scene[None], target, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_strips_are_bounded_and_give_the_same():
    scene = torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(0))
    layout = plan(20, 20, 20, 0)
    expected = resample_in_blocks(scene, (200, 200), layout)
    resampler = Resampler((20, 20), (200, 200), strip_values=2000)
    assert max(values.numel() for *_, values in resampler.push(0, 0, scene)) <= 2000
    strips = resample_in_blocks(scene, (200, 200), layout, strip_values=2000)
    torch.testing.assert_close(strips, expected)


def test_a_slope_comes_back_without_half_a_pixel_of_shift():
    centres = torch.arange(32) + 0.5
    slope = centres.expand(1, 32, 32)
    finer = resample_in_blocks(slope, (96, 96), plan(32, 32, 8, 2))[0, 40]
    expected = ((torch.arange(96) + 0.5) / 3).clamp(0.5, 31.5)
    torch.testing.assert_close(finer, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("source", "target"), [(7, 70), (70, 7), (5, 5), (1, 9), (9, 1)])
def test_cuts_cover_the_target(source, target):
    axis = AxisMap(source, target)
    cuts = axis.cuts(range(source + 1))
    assert cuts[0] == 0
    assert cuts[-1] == target
    assert list(cuts) == sorted(cuts)
    assert np.all(axis.upper - axis.lower <= 1)
