"""Streaming blend: equal to the sum of weighted tiles, each pixel once, in constant memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tilings import tiles_of, weights_of

from rsseg_cli.errors import TilingError
from rsseg_cli.inference.stitch import Stitcher
from rsseg_cli.inference.tiling import plan, ramp_weights

torch.set_num_threads(1)
CHANNELS = 3


def make_stitcher(layout, **options):
    ramps = (
        torch.from_numpy(ramp_weights(layout.rows.ramp)),
        torch.from_numpy(ramp_weights(layout.cols.ramp)),
    )
    return Stitcher(layout, ramps, **options)


def push(stitcher, tile, values):
    block = stitcher.push([tile], values[None])
    stitcher.commit()
    return block


def paste(canvas, block):
    view = canvas[:, block.row : block.row + block.height, block.col : block.col + block.width]
    assert np.isnan(view).all(), "a pixel came twice"
    view[:] = block.values.numpy()


@st.composite
def layouts(draw):
    tile_size = draw(st.integers(1, 24))
    overlap = draw(st.integers(0, tile_size // 2))
    return plan(draw(st.integers(1, 70)), draw(st.integers(1, 70)), tile_size, overlap)


@settings(deadline=None, max_examples=60)
@given(layouts(), st.integers(0, 2**32 - 1))
def test_the_blend_is_the_weighted_sum_of_all_tiles(layout, seed):
    rng = np.random.default_rng(seed)
    expected = np.zeros((CHANNELS, layout.height, layout.width))
    canvas = np.full(expected.shape, np.nan, np.float32)
    stitcher = make_stitcher(layout)
    for tile in tiles_of(layout):
        values = rng.random((CHANNELS, tile.height, tile.width), np.float32)
        weights = weights_of(layout.rows, tile.row_index)[:, None] * weights_of(layout.cols, tile.col_index)
        expected[:, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] += weights * values
        paste(canvas, push(stitcher, tile, torch.from_numpy(values)))
    np.testing.assert_allclose(canvas, expected, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(layouts(), st.integers(0, 2**32 - 1))
def test_tiles_that_agree_come_back_bit_by_bit(layout, seed):
    scene = (
        np.random.default_rng(seed)
        .standard_normal((CHANNELS, layout.height, layout.width))
        .astype(np.float32)
    )
    canvas = np.full(scene.shape, np.nan, np.float32)
    stitcher = make_stitcher(layout)
    for tile in tiles_of(layout):
        values = scene[:, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width].copy()
        paste(canvas, push(stitcher, tile, torch.from_numpy(values)))
    np.testing.assert_array_equal(canvas, scene)


@settings(deadline=None, max_examples=40)
@given(layouts(), st.integers(0, 2**32 - 1))
def test_logits_become_probabilities_on_ramps_alone_and_keep_the_order_elsewhere(layout, seed):
    rng = np.random.default_rng(seed)
    plain, converting = (
        make_stitcher(layout),
        make_stitcher(layout, to_blend_space=torch.softmax),
    )
    for tile in tiles_of(layout):
        logits = torch.from_numpy(
            rng.standard_normal((CHANNELS, tile.height, tile.width)).astype(np.float32) * 4
        )
        expected = push(plain, tile, logits.softmax(0)).values
        result = push(converting, tile, logits).values
        best, runner_up = expected.topk(2, 0).values
        clear = (best - runner_up) > 1e-5
        assert torch.equal(result.max(0).indices[clear], expected.max(0).indices[clear])


@settings(deadline=None, max_examples=40)
@given(layouts(), st.data())
def test_going_on_one_tile_row_earlier_gives_the_same_rows(layout, data):
    scores = {
        tile.index: torch.randn(
            CHANNELS, tile.height, tile.width, generator=torch.Generator().manual_seed(tile.index)
        )
        for tile in tiles_of(layout)
    }
    whole = make_stitcher(layout)
    expected = {tile.index: push(whole, tile, scores[tile.index].clone()) for tile in tiles_of(layout)}
    row = data.draw(st.integers(1, len(layout.rows)))  # the first tile row whose rows are missing
    resumed = make_stitcher(layout, first_row=row - 1)
    for tile in tiles_of(layout, row - 1):
        block = push(resumed, tile, scores[tile.index].clone())
        if tile.row_index >= row:
            assert block[:4] == expected[tile.index][:4]
            assert torch.equal(block.values, expected[tile.index].values)


def test_a_skipped_tile_leaves_its_neighbours_as_they_are():
    layout = plan(40, 40, 16, 8)
    stitcher = make_stitcher(layout)
    for tile in tiles_of(layout):
        if tile.index == 5:
            block = stitcher.skip(tile)
            stitcher.commit()
            assert block.values is None
            assert (block.row, block.height) == (
                layout.rows.cuts[1],
                layout.rows.cuts[2] - layout.rows.cuts[1],
            )
            continue
        block = push(stitcher, tile, torch.ones(1, tile.height, tile.width))
        assert torch.equal(block.values.max(0).values, block.values[0])
        outside = block.values[:, layout.rows.ramp :] if tile.row_index == 2 else block.values
        assert torch.equal(outside, torch.ones_like(outside))


@settings(deadline=None, max_examples=60)
@given(layouts(), st.data())
def test_neighbours_pushed_together_give_what_each_gives_alone(layout, data):
    make_scores = torch.Generator().manual_seed(len(layout))
    scores = torch.randn(len(layout), CHANNELS, layout.rows.size, layout.cols.size, generator=make_scores) * 4
    expected, canvas = (np.full((CHANNELS, layout.height, layout.width), np.nan, np.float32) for _ in "12")
    alone, together = (make_stitcher(layout, to_blend_space=torch.softmax) for _ in "12")
    for tile in tiles_of(layout):
        paste(expected, push(alone, tile, scores[tile.index].clone()))
    tiles = tiles_of(layout)
    while tiles:
        in_row = len(layout.cols) - tiles[0].col_index
        count = data.draw(st.integers(1, in_row))
        for again in range(2):  # the first time given up, as where memory runs out
            block = together.push(tiles[:count], scores[tiles[0].index :][:count].clone())
            assert again or block.width > 0
        together.commit()
        paste(canvas, block)
        tiles = tiles[count:]
    np.testing.assert_allclose(canvas, expected, atol=1e-6)


def test_memory_kept_does_not_depend_on_the_height():
    def kept(height):
        layout = plan(height, 64, 16, 8)
        stitcher = make_stitcher(layout)
        for tile in tiles_of(layout):
            push(stitcher, tile, torch.zeros(CHANNELS, 16, 16))
        return sum(value.numel() for value in vars(stitcher).values() if isinstance(value, torch.Tensor))

    assert kept(64) == kept(640)


def test_tiles_out_of_order_or_of_another_size_are_refused():
    layout = plan(40, 40, 16, 8)
    tiles = tiles_of(layout)
    with pytest.raises(TilingError, match="got tile 1, expected tile 0"):
        push(make_stitcher(layout), tiles[1], torch.zeros(1, 16, 16))
    with pytest.raises(TilingError, match=r"\(16, 15\) px for 16 x 16"):
        push(make_stitcher(layout), tiles[0], torch.zeros(1, 16, 15))
