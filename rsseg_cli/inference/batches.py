"""Which tiles run together, so that a result does not depend on where a run begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rsseg_cli.inference.feed import TileFeed, TilePixels

if TYPE_CHECKING:
    from rsseg_cli.inference.engine import Engine

MAX_EMPTY_TILES = 64  # in a batch of few tiles
EMPTY_TILES_A_TILE = 8  # in a batch of many
BATCHES_TOGETHER = 4  # at least, before a batch is cut short at the end of a tile row


def neighbours(batch: Sequence[TilePixels]) -> Iterator[Sequence[TilePixels]]:
    """Yield runs of tiles with pixels in one tile row, and each tile without apart."""
    first = 0
    for index, item in enumerate(batch, 1):
        after = batch[index] if index < len(batch) else None
        if item.pixels is None or after is None or after.pixels is None or after.tile.col_index == 0:
            yield batch[first:index]
            first = index


def batches(feed: TileFeed, engine: Engine, columns: int) -> Iterator[list[TilePixels]]:
    """Group tiles in order: with as many to run as the device takes at once, and those without between."""
    batch: list[TilePixels] = []
    filled = 0
    for item in feed:
        size = engine.batch_size(item.tile.height, item.tile.width)
        rows = rows_together(size, columns)
        size = math.ceil(rows * columns / math.ceil(rows * columns / size))  # of one shape, most of them
        if batch and item.tile.col_index == 0 and item.tile.row_index % rows == 0:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += item.pixels is not None
        if filled >= size or len(batch) >= max(MAX_EMPTY_TILES, EMPTY_TILES_A_TILE * size):
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def rows_together(batch_size: int, columns: int) -> int:
    """Return of which number tile rows are multiples that begin a new batch.

    On some devices a result depends on the rest of its batch, so a tile must be in the same batch wherever a
    run begins. The number is a power of two, so that it divides that of any larger batch: out of memory, a
    pass goes on with smaller batches, and another may continue it with these.
    """
    if batch_size == 1:
        return 1
    return 1 << (-(-BATCHES_TOGETHER * batch_size // columns) - 1).bit_length()
