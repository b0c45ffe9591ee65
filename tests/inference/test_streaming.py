"""Reading ahead and writing behind: everything once, in order, bounded, and errors that surface."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tilings import tiles_of

from rsseg_cli.inference import feed as streaming
from rsseg_cli.inference.feed import RowSink, TileFeed
from rsseg_cli.inference.tiling import plan


class ArrayReader:
    """Reads from an array and counts how often each pixel is read."""

    def __init__(self, pixels, valid=None):
        self.pixels = pixels
        self.valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
        self.reads = np.zeros(pixels.shape[1:], int)
        self.calls = 0
        self.lock = threading.Lock()

    def read(self, row, col, height, width):
        window = np.s_[row : row + height, col : col + width]
        with self.lock:
            self.calls += 1
            self.reads[window] += 1
        return self.pixels[:, *window].copy(), self.valid[window].copy()

    def fill(self, array, valid):
        return np.where(valid, array, array[:, valid].max())


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_tiles_come_in_order_with_their_pixels_and_each_pixel_is_read_once(data):
    tile_size = data.draw(st.integers(1, 20))
    overlap = data.draw(st.integers(0, tile_size // 2))
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    layout = plan(height, width, tile_size, overlap)
    reader = ArrayReader(np.arange(2 * height * width).reshape(2, height, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CHUNK_WIDTH_PX", data.draw(st.integers(1, 30)))
        feed = TileFeed(reader, layout, threads=2, block_width=data.draw(st.sampled_from([1, 7, 16])))
        with feed:
            items = list(feed)
    assert [item.tile for item in items] == tiles_of(layout)
    for tile, pixels, valid in items:
        expected = reader.pixels[:, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
        np.testing.assert_array_equal(pixels, expected)
        assert valid.all()
        assert valid.shape == (tile.height, tile.width)
    assert (reader.reads == 1).all()


def test_a_feed_may_start_at_a_tile_row():
    layout = plan(50, 20, 16, 4)
    reader = ArrayReader(np.arange(1000).reshape(1, 50, 20))
    with TileFeed(reader, layout, first_row=2) as feed:
        items = list(feed)
    assert [item.tile for item in items] == tiles_of(layout, 2)
    np.testing.assert_array_equal(items[0].pixels, reader.pixels[:, layout.rows.starts[2] :, :16][:, :16])


def test_tiles_without_data_have_no_pixels_and_holes_are_filled():
    valid = np.ones((32, 32), bool)
    valid[:16, :16] = False
    valid[20, 20] = False
    reader = ArrayReader(np.full((1, 32, 32), 7), valid)
    reader.pixels[:, ~valid] = -1
    with TileFeed(reader, plan(32, 32, 16, 0)) as feed:
        items = [item.pixels for item in feed]
    assert items[0] is None
    assert all((pixels == 7).all() for pixels in items[1:])


def test_a_slow_consumer_is_not_outrun():
    layout = plan(16, 16 * 200, 16, 0)
    reader = ArrayReader(np.zeros((1, 16, 16 * 200), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CHUNK_WIDTH_PX", 16)
        with TileFeed(reader, layout, threads=2) as feed:
            tiles = iter(feed)
            next(tiles)
            time.sleep(0.2)
            assert reader.calls < 20


def test_an_error_in_a_reading_thread_surfaces_and_nothing_hangs():
    class Failing(ArrayReader):
        def read(self, row, col, height, width):
            if row > 20:
                raise OSError("disk gone")
            return super().read(row, col, height, width)

    before = threading.active_count()
    reader = Failing(np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(OSError, match="disk gone"), TileFeed(reader, plan(64, 64, 16, 4)) as feed:
        list(feed)
    assert threading.active_count() == before


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    with TileFeed(ArrayReader(np.zeros((1, 640, 640), np.uint8)), plan(640, 640, 16, 4)) as feed:
        next(iter(feed))
    assert threading.active_count() == before


def test_rows_are_written_whole_and_in_order():
    written = SimpleNamespace(rows=[], arrays=[])

    def write(row, array):
        written.rows.append((row, array.shape))
        written.arrays.append(array)

    scene = np.random.default_rng(0).integers(0, 255, (2, 9, 10), dtype=np.uint8)
    with RowSink((0, 4, 4, 9), 10, 2, write) as sink:
        for row, end in ((0, 4), (4, 6), (6, 9)):
            for col in (0, 5):
                sink.put(row, col, scene[:, row:end, col : col + 5])
        sink.finish()
    assert written.rows == [(0, (2, 4, 10)), (4, (2, 5, 10))]
    np.testing.assert_array_equal(np.concatenate(written.arrays, 1), scene)


def test_an_error_while_writing_surfaces():
    def write(row, array):
        raise OSError("disk full")

    def write_all():
        with RowSink(range(101), 4, 1, write) as sink:
            for row in range(100):
                sink.put(row, 0, np.zeros((1, 1, 4), np.uint8))
            sink.finish()

    before = threading.active_count()
    with pytest.raises(OSError, match="disk full"):
        write_all()
    assert threading.active_count() == before


def test_missing_or_misplaced_blocks_are_a_slip():
    with RowSink((0, 4), 4, 1, lambda row, array: None) as sink:
        with pytest.raises(ValueError, match="outside rows 0 to 4"):
            sink.put(2, 0, np.zeros((1, 3, 4), np.uint8))
        with pytest.raises(ValueError, match="rows from 0 on are missing"):
            sink.finish()
