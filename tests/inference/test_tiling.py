"""Plans: tiles inside the scene, weights that sum to one, ramps that never meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tilings import tiles_of, weights_of

from rsseg_cli.errors import TilingError
from rsseg_cli.inference.tiling import plan


@st.composite
def plans(draw):
    tile_size = draw(st.integers(1, 40))
    overlap = draw(st.integers(0, tile_size // 2))
    height, width = draw(st.integers(1, 200)), draw(st.integers(1, 60))
    return plan(height, width, tile_size, overlap), tile_size, overlap


@given(plans())
def test_tiles_of_one_size_cover_the_scene_and_lie_inside_it(case):
    layout, tile_size, overlap = case
    for axis in (layout.rows, layout.cols):
        assert axis.size == min(tile_size, axis.length)
        assert axis.starts[0] == 0
        assert axis.starts[-1] + axis.size == axis.length
        for before, after in zip(axis.starts, axis.starts[1:], strict=False):
            assert before < after
            assert before + axis.size - after >= overlap


@given(plans())
def test_weights_sum_to_one_exactly_and_two_tiles_at_most_share_a_pixel(case):
    layout, _, _ = case
    for axis in (layout.rows, layout.cols):
        total = np.zeros(axis.length, np.float32)
        sharing = np.zeros(axis.length, int)
        for index, start in enumerate(axis.starts):
            weights = weights_of(axis, index)
            total[start : start + axis.size] += weights
            sharing[start : start + axis.size] += weights > 0
        assert (total == 1).all()
        assert sharing.max() <= 2
        assert weights_of(axis, 0)[0] == 1
        assert weights_of(axis, len(axis) - 1)[-1] == 1


@given(plans())
def test_tiles_come_in_row_major_order(case):
    layout, _, _ = case
    tiles = tiles_of(layout)
    assert [tile.index for tile in tiles] == list(range(len(layout)))
    assert [(tile.row, tile.col) for tile in tiles] == sorted((tile.row, tile.col) for tile in tiles)
    last = len(layout.rows) - 1
    assert [tile.row_index for tile in tiles_of(layout, last)] == [last] * len(layout.cols)


def test_no_more_tiles_than_needed():
    assert [len(plan(512, width, 512, 128)) for width in (1, 512, 513, 896, 897)] == [1, 1, 2, 2, 3]


def test_the_ramp_lies_in_the_middle_of_the_overlap():
    axis = plan(512, 896, 512, 128).cols
    assert axis.starts == (0, 384)
    assert axis.ramp == 64
    assert axis.cuts == (0, 416, 896)


def test_a_plan_of_a_huge_scene_costs_nothing():
    layout = plan(3_000_000, 3_000_000, 512, 128)
    assert len(layout) == 7813**2
    assert layout.tile(0, 0).index == 0


@pytest.mark.parametrize("arguments", [(0, 5, 4, 0), (5, 0, 4, 0), (5, 5, 4, 3), (5, 5, 4, -1), (5, 5, 0, 0)])
def test_impossible_plans_are_refused(arguments):
    with pytest.raises(TilingError, match="px"):
        plan(*arguments)


def test_tiles_start_at_multiples_of_a_step():
    """By hand: 3 tiles of 64 px over 144 px, 24 px shared, blended on 8 of them."""
    axis = plan(144, 64, 64, 16, ramp=8, step=8).rows
    assert axis.starts == (0, 40, 80)
    assert axis.cuts == (0, 48, 88, 144)
    assert axis.ramp == 8
    with pytest.raises(TilingError, match="not all are multiples of 8"):
        plan(140, 64, 64, 16, step=8)
