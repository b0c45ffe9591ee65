"""Tiles read ahead of the network, and finished rows written behind it, in threads.

Both hold a bounded number of arrays. An error in a thread is raised where the next tile is requested or the
next block handed over; leaving either context ends its threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rsseg_cli.inference.tiling import Plan, Tile

CHUNK_WIDTH_PX = 1024  # columns a read asks for, rounded to whole blocks of the file
# Tiles are handed over in groups: on busy processors each hand-over may have to wait.
GROUP_PIXEL_TILES = 2
GROUP_TILES = 32
PENDING_BANDS = 1  # of rows, that wait to be written


class Reader(Protocol):
    """Reads windows, from several threads at once."""

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (bands, height, width) and which of them are data (height, width)."""

    def fill(self, array: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Fill pixels without data from their surroundings."""


class TilePixels(NamedTuple):
    """A tile, its pixels (bands, h, w) with holes filled, or None if it has no data, and its mask (h, w)."""

    tile: Tile
    pixels: NDArray[Any] | None
    valid: NDArray[np.bool_]


def first_read(plan: Plan, first_row: int) -> tuple[int, int]:
    """Return the tile row and the row where reading must begin for the tile row `first_row`.

    Rows are read in the same windows wherever a run begins, as resampled pixels may depend on these.
    """
    rows = plan.rows
    wanted = rows.starts[first_row]
    begin = next(index for index, start in enumerate(rows.starts) if start + rows.size > wanted)
    return begin, rows.starts[begin - 1] + rows.size if begin else 0


class TileFeed(AbstractContextManager["TileFeed"]):
    """The tiles of a plan in order, each pixel of the scene read once.

    A tile row is read in chunks of columns, whole blocks of `block_width`, and only the rows that the tile
    row before it did not have; shared rows are kept: bands x overlap x width values. `core_only` skips tiles
    without valid pixels where they have a weight, else those without any. `tiles_ahead` are made before
    they are asked for.
    """

    def __init__(
        self,
        reader: Reader,
        plan: Plan,
        *,
        threads: int = 2,
        block_width: int = 1,
        first_row: int = 0,
        end_row: int | None = None,
        core_only: bool = False,
        tiles_ahead: int = 1,
    ) -> None:
        self._reader = reader
        self._plan = plan
        self._core_only = core_only
        self._first_row = first_row
        self._end_row = len(plan.rows) if end_row is None else end_row
        self._chunk_width = -(-CHUNK_WIDTH_PX // block_width) * block_width
        self._chunks_ahead = threads + 1
        self._groups_ahead = -(-tiles_ahead // GROUP_PIXEL_TILES)
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="rsseg-read")
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="rsseg-assemble")

    def __exit__(self, *error: object) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._assembler.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[TilePixels]:
        tiles = self._assemble()
        ahead = deque(self._assembler.submit(_take_group, tiles) for _ in range(self._groups_ahead))
        while True:
            group = ahead.popleft().result()
            if not group:
                return
            ahead.append(self._assembler.submit(_take_group, tiles))
            yield from group

    def _assemble(self) -> Iterator[TilePixels]:
        pieces = self._pieces()
        for row_index in range(self._first_row, self._end_row):
            held: deque[_Piece] = deque()
            for col_index in range(len(self._plan.cols)):
                tile = self._plan.tile(row_index, col_index)
                while held and held[0].end <= tile.col:
                    held.popleft()
                while not held or held[-1].end < tile.col + tile.width:
                    held.append(next(pieces))
                yield self._cut(tile, held)

    def _cut(self, tile: Tile, held: Sequence[_Piece]) -> TilePixels:
        valid = _join([piece.columns(piece.valid, tile) for piece in held])
        if not (valid[self._core(tile)] if self._core_only else valid).any():
            return TilePixels(tile, None, valid)
        pixels = _join([piece.columns(piece.pixels, tile) for piece in held])
        return TilePixels(tile, pixels if valid.all() else self._reader.fill(pixels, valid), valid)

    def _core(self, tile: Tile) -> tuple[slice, slice]:
        top, bottom = self._plan.rows.extent(tile.row_index)
        left, right = self._plan.cols.extent(tile.col_index)
        return slice(top - tile.row, bottom - tile.row), slice(left - tile.col, right - tile.col)

    def _pieces(self) -> Iterator[_Piece]:
        """Yield columns of tile rows at full tile height: rows kept from before, then rows read."""
        rows = self._plan.rows
        kept: list[NDArray[Any]] = []  # pixels and mask, (..., rows shared with the next tile row, width)
        for row_index, first, end, future in self._read_ahead():
            read = future.result()
            if not kept:
                shared = max((top + rows.size - below for top, below in pairwise(rows.starts)), default=0)
                kept = [np.empty((*part.shape[:-2], shared, self._plan.width), part.dtype) for part in read]
            have = rows.size - read[0].shape[-2]
            joined = [
                np.concatenate([old[..., :have, first:end], new], axis=-2) if have else new
                for old, new in zip(kept, read, strict=True)
            ]
            if row_index + 1 < self._end_row:
                shared = rows.starts[row_index] + rows.size - rows.starts[row_index + 1]
                for old, part in zip(kept, joined, strict=True):
                    old[..., :shared, first:end] = part[..., rows.size - shared :, :]
            if row_index >= self._first_row:
                yield _Piece(first, end, *joined)

    def _read_ahead(self) -> Iterator[tuple[int, int, int, Future[tuple[NDArray[Any], NDArray[np.bool_]]]]]:
        ahead: deque[tuple[int, int, int, Future[tuple[NDArray[Any], NDArray[np.bool_]]]]] = deque()
        for row_index, row, height in self._new_rows():
            for first in range(0, self._plan.width, self._chunk_width):
                end = min(first + self._chunk_width, self._plan.width)
                future = self._readers.submit(self._reader.read, row, first, height, end - first)
                ahead.append((row_index, first, end, future))
                if len(ahead) > self._chunks_ahead:
                    yield ahead.popleft()
        yield from ahead

    def _new_rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield each tile row with the first row and number of rows that no earlier one had."""
        rows = self._plan.rows
        begin, done = first_read(self._plan, self._first_row)
        for row_index in range(begin, self._end_row):
            end = rows.starts[row_index] + rows.size
            yield row_index, done, end - done
            done = end


class _Piece(NamedTuple):
    first: int
    end: int
    pixels: NDArray[Any]
    valid: NDArray[np.bool_]

    def columns(self, part: NDArray[Any], tile: Tile) -> NDArray[Any]:
        return part[..., max(tile.col - self.first, 0) : tile.col + tile.width - self.first]


def _take_group(tiles: Iterator[TilePixels]) -> list[TilePixels]:
    """Take the next tiles: a few with pixels, or more without."""
    group: list[TilePixels] = []
    for item in tiles:
        group.append(item)
        if sum(each.pixels is not None for each in group) == GROUP_PIXEL_TILES or len(group) == GROUP_TILES:
            break
    return group


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


class RowSink(AbstractContextManager["RowSink"]):
    """Blocks of rows in, whole rows out, handed to `write` in a thread of its own.

    `cuts` are the first rows of the bands that are written together, and the end; `write` is called in order,
    with a first row and uint8 (channels, rows, width).
    """

    def __init__(
        self, cuts: Sequence[int], width: int, channels: int, write: Callable[[int, NDArray[np.uint8]], None]
    ) -> None:
        self._bands = deque((first, end) for first, end in pairwise(cuts) if end > first)
        self._width = width
        self._channels = channels
        self._write = write
        self._band: NDArray[np.uint8] | None = None
        self._missing_px = 0
        self._pending: deque[Future[None]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rsseg-write")

    def __exit__(self, kind: object, *error: object) -> None:
        self._writer.shutdown(wait=True, cancel_futures=kind is not None)

    def put(self, row: int, col: int, values: NDArray[np.uint8]) -> None:
        """Add a block of the current band; wait if writing falls behind."""
        if not self._bands:
            raise ValueError(f"a block at row {row} came after the last row")
        first, end = self._bands[0]
        if self._band is None:
            self._band = np.empty((self._channels, end - first, self._width), np.uint8)
            self._missing_px = (end - first) * self._width
        _, height, width = values.shape
        if row < first or row + height > end or col + width > self._width:
            raise ValueError(
                f"a block at ({row}, {col}) of {height} x {width} px lies outside rows {first} to {end}"
            )
        self._band[:, row - first : row - first + height, col : col + width] = values
        self._missing_px -= height * width
        if self._missing_px == 0:
            self._bands.popleft()
            self._pending.append(self._writer.submit(self._write, first, self._band))
            self._band = None
            while len(self._pending) > PENDING_BANDS:
                self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until all rows are written; ValueError where blocks are missing."""
        if self._bands:
            raise ValueError(f"rows from {self._bands[0][0]} on are missing")
        while self._pending:
            self._pending.popleft().result()
