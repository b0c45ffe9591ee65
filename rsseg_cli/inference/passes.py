"""One pass over a scene: tiles through a network into finished rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg_cli.errors import ModelError
from rsseg_cli.inference import stitch, tiling
from rsseg_cli.inference.batches import batches, neighbours, rows_together
from rsseg_cli.inference.engine import Engine, is_out_of_memory, memory_errors, merge_classes
from rsseg_cli.inference.feed import Reader, RowSink, TileFeed
from rsseg_cli.inference.feed import TilePixels as TilePixels
from rsseg_cli.inference.resample import Resampler as Resampler
from rsseg_cli.raster import classes

FULL_SCALE = 254  # probabilities from 0 to 1 are stored as 0 to 254
UNMERGED = "unmerged"  # the layer of the network's own classes, where several make one of the map's
TINY = 1e-30
HALF = 0.499  # least share of a resampled pixel's weight from valid pixels

Progress = Callable[[int, int], None]  # tiles done, tiles in all
Observe = Callable[[Sequence[TilePixels], torch.Tensor], None] | None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass over tile rows of a scene: what its finished rows hold, and where they go.

    Attributes:
        layers: channels of the uint8 rows, by what they hold: UNMERGED if wanted, "labels", then others.
        write: called in a thread of its own with a first row of the map and uint8 (channels, rows, width).
        progress: called with the number of tiles done, those above `first` included.
        first, end: tile rows whose finished rows are wanted; None for the last.
        observe: called with tiles that were run and their descriptions, where the engine makes any.
    """

    layers: Mapping[str, slice]
    write: Callable[[int, NDArray[np.uint8]], None]
    progress: Callable[[int], object]
    first: int = 0
    end: int | None = None
    observe: Observe = None

    @property
    def channels(self) -> int:
        return max(layer.stop for layer in self.layers.values())


def pixels_of(item: TilePixels) -> Any:
    return item.pixels


def run_pass(
    engine: Engine,
    assembler: Assembler,
    reader: Reader,
    rows: Pass,
    *,
    threads: int = 2,
    block_width: int = 1,
    core_only: bool = False,
    input_of: Callable[[TilePixels], Any] = pixels_of,
) -> None:
    """Stream tiles of `reader`, on the plan's grid, through the engine into finished rows.

    `input_of` turns a tile with pixels into the engine's input; for the other options see `feed.TileFeed`.
    """
    span, waiting = assembler.span, list[OutputBlock]()
    done = span.run_first * assembler.columns
    with (
        memory_errors(f"out of memory on {engine.device} beside the network", "a smaller --tile-size"),
        RowSink(assembler.row_cuts, assembler.width, rows.channels, rows.write) as sink,
        TileFeed(
            reader,
            assembler.plan,
            threads=threads,
            block_width=block_width,
            first_row=span.run_first,
            end_row=span.run_end,
            core_only=core_only,
            tiles_ahead=engine.batch_size(assembler.plan.rows.size, assembler.plan.cols.size),
        ) as feed,
    ):
        for batch in batches(feed, engine, assembler.columns):
            inputs = [None if item.pixels is None else input_of(item) for item in batch]
            finished = _run_batch(engine, assembler, batch, inputs, rows.observe)
            done += len(batch)
            del batch, inputs  # not kept while the next batch runs
            for block in waiting:
                sink.put(block.row, block.col, block.values())
            waiting = finished  # fetched while the device works on the next batch
            rows.progress(done)
        for block in waiting:
            sink.put(block.row, block.col, block.values())
        sink.finish()


def _run_batch(
    engine: Engine, assembler: Assembler, batch: Sequence[TilePixels], inputs: Sequence[Any], observe: Observe
) -> list[OutputBlock]:
    """Run tiles and assemble their scores: all at once, or what does not fit into memory in halves."""
    finished: list[OutputBlock] = []
    done = 0  # tiles
    try:
        filled = [each for each in inputs if each is not None]
        scores = engine.run(filled) if filled else None
        described = engine.take_descriptions()
        used = 0
        for items in neighbours(batch):
            tiles = slice(used, used + len(items))
            own = None if scores is None or items[0].pixels is None else scores[tiles]
            finished += assembler.push(items, own)
            done += len(items)
            if own is not None:
                used = tiles.stop
                if described is not None and observe is not None:
                    observe(items, described[tiles])
        return finished
    except (RuntimeError, MemoryError) as err:
        left = sum(each is not None for each in inputs[done:])
        if left < 2 or not is_out_of_memory(err):
            raise
    scores = own = None  # before what is left is run again
    engine.take_descriptions()
    engine.halve(left)
    middle = done + (len(batch) - done) // 2
    for part in (slice(done, middle), slice(middle, None)):
        finished += _run_batch(engine, assembler, batch[part], inputs[part], observe)
    return finished


class Span(NamedTuple):
    """Tile rows whose finished rows are handed on, and those to run for the pixels of a whole pass."""

    first: int
    end: int
    run_first: int
    run_end: int


def span_of(
    plan: tiling.Plan, engine: Engine, *, resampled: bool, first: int = 0, end: int | None = None
) -> Span:
    """Return what must be run for the finished rows of the tile rows from `first` to before `end`.

    Pixels from cuts[first] on need the tile row before `first`, whose ramp reaches below that cut. Resampled
    ones need the source's row above as well, which may lie on the ramp of the tile row before that.
    """
    rows = plan.rows
    end = len(rows) if end is None else end
    if not 0 <= first < end <= len(rows):
        raise ValueError(f"tile rows {first} to {end}: needs some of 0 to {len(rows)}")
    top = rows.cuts[first] - (resampled and first > 0)
    needed = next(index for index in range(first + 1) if rows.extent(index)[1] > top)
    beside = stitch.buffer_bytes(plan, engine.channels)
    batch = engine.batch_size(rows.size, plan.cols.size, beside_bytes=beside)
    together = rows_together(batch, len(plan.cols))
    run_end = min(-(-end // together) * together, len(rows))
    return Span(first, end, needed // together * together, run_end)


def row_cuts(
    plan: tiling.Plan, resampler: Resampler | None = None, top: int = 0, height: int | None = None
) -> tuple[int, ...]:
    """Return the rows of the map that tile row i finishes, cuts[i] to cuts[i + 1]; `top` is its first row."""
    if resampler is not None:
        return resampler.rows.cuts(plan.rows.cuts)
    height = plan.height if height is None else height
    return tuple(min(max(cut - top, 0), height) for cut in plan.rows.cuts)


class OutputBlock(NamedTuple):
    """A rectangle of the map; `fetch` copies its uint8 values (channels, h, w) from the device."""

    row: int
    col: int
    fetch: Callable[[], NDArray[np.uint8]]

    def values(self) -> NDArray[np.uint8]:
        values = self.fetch()
        invalid = values[0] == classes.INVALID
        if invalid.any():
            row, col = np.argwhere(invalid)[0]
            raise ModelError(
                f"the network gave NaN at row {self.row + row}, column {self.col + col} of the map; "
                "needs finite logits. Lower precision may overflow: try --dtype float32"
            )
        return values


class Assembler:
    """Turn scores of tiles into finished rectangles of the map: blended, resampled to its grid, classified.

    Channels of scores behind the classes go to "heatmaps" or "uncertainty".

    Args:
        resampler: from the plan's grid to the map's, where they differ.
        window: (row, col, height, width) of the plan that is the map, if not resampled; all of it by default.
        masked: if resampled, pixels that are not valid have no weight; else their scores count as they are.
        merge: positions of the engine's classes that make each class of the map; () for the same ones.
        temperature: of the probabilities that leave; classes are the same at any.
    """

    def __init__(
        self,
        engine: Engine,
        plan: tiling.Plan,
        rows: Pass,
        *,
        resampler: Resampler | None = None,
        window: tuple[int, int, int, int] | None = None,
        masked: bool = False,
        merge: Sequence[Sequence[int]] = (),
        temperature: float = 1.0,
    ) -> None:
        self.plan, self._merge = plan, merge
        self.span = span_of(plan, engine, resampled=resampler is not None, first=rows.first, end=rows.end)
        self.columns = len(plan.cols)
        self._engine, self._layers, self._channels = engine, rows.layers, rows.channels
        self._resampler, self._masked, self._temperature = resampler, masked, temperature
        ramps = [
            torch.from_numpy(tiling.ramp_weights(axis.ramp)).to(engine.device)
            for axis in (plan.rows, plan.cols)
        ]
        self._stitcher = stitch.Stitcher(
            plan,
            (ramps[0], ramps[1]),
            torch.softmax if engine.gives_logits else None,
            first_row=self.span.run_first,
        )
        self._window = window or (0, 0, plan.height, plan.width)
        self.width = len(resampler.cols) if resampler is not None else self._window[3]
        cuts = row_cuts(plan, resampler, self._window[0], self._window[2])
        self.row_cuts: Sequence[int] = cuts[self.span.first : self.span.end + 1]

    @torch.inference_mode()
    def push(self, items: Sequence[TilePixels], scores: torch.Tensor | None) -> list[OutputBlock]:
        """Return what neighbours in a tile row finish, or one tile that was not run; `scores` are None then.

        Where memory runs out nothing has changed, and the same tiles may be pushed with new scores.

        Args:
            scores: float (tiles, channels, h, w), which are overwritten.
        """
        row_index = items[0].tile.row_index
        if row_index >= self.span.end:
            return []
        finished = list(self._finish(items, scores))
        self._stitcher.commit()
        if self._resampler is not None:
            self._resampler.commit()
        return finished if row_index >= self.span.first else []  # those above the span build the overlap

    def _finish(self, items: Sequence[TilePixels], scores: torch.Tensor | None) -> Iterator[OutputBlock]:
        if scores is None:
            block = self._stitcher.skip(items[0].tile)
        else:
            block = self._stitcher.push([item.tile for item in items], scores)
        valid = self._valid(items, block)
        if self._resampler is None:
            yield from self._in_map(block, valid)
            return
        values = block.values
        if values is None:
            shape = (self._engine.channels, block.height, block.width)
            values = torch.zeros(shape, device=self._engine.device)
        elif self._masked and not valid.all():
            values = values * self._engine.transfers.stack([valid])
        for row, col, strip in self._resampler.push(block.row, block.col, values):
            yield OutputBlock(row, col, self._engine.transfers.fetch(self._classify(strip)))

    def _valid(self, items: Sequence[TilePixels], block: stitch.Block) -> NDArray[np.bool_]:
        """Return which pixels of a block are data."""
        first_row, cuts = block.row - items[0].tile.row, self.plan.cols.cuts
        parts = [
            item.valid[
                first_row : first_row + block.height,
                cuts[item.tile.col_index] - item.tile.col : cuts[item.tile.col_index + 1] - item.tile.col,
            ]
            for item in items
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def _in_map(self, block: stitch.Block, valid: NDArray[np.bool_]) -> Iterator[OutputBlock]:
        top, left, height, width = self._window
        rows = slice(max(top - block.row, 0), min(top + height - block.row, block.height))
        cols = slice(max(left - block.col, 0), min(left + width - block.col, block.width))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            return
        valid = valid[rows, cols]
        row, col = block.row + rows.start - top, block.col + cols.start - left
        if block.values is None:
            empty = np.full((self._channels, *valid.shape), classes.NODATA, np.uint8)
            yield OutputBlock(row, col, lambda: empty)
            return
        values = self._classify(block.values[:, rows, cols])
        if not valid.all():
            values.masked_fill_(self._engine.transfers.stack([~valid]), classes.NODATA)
        yield OutputBlock(row, col, self._engine.transfers.fetch(values))

    def _classify(self, values: torch.Tensor) -> torch.Tensor:
        """uint8 (layers, h, w) of scores (channels, h, w)."""
        empty: torch.Tensor | None = None
        if self._resampler is not None and self._masked:
            share = values[: self._engine.classes].sum(0)  # of the weight, from valid pixels
            empty = share < HALF
            values = values / share.clamp_min(HALF)
        scores = values[: self._engine.classes]
        parts = []
        if UNMERGED in self._layers:
            parts.append(self._labels(scores, empty)[0])
        sure = scores
        if self._temperature != 1 and not self._layers.keys().isdisjoint(("confidence", "probabilities")):
            sure = tempered(scores, self._temperature)
        if self._merge:
            scores, sure = (merge_classes(item, self._merge) for item in (scores, sure))
        labels, best = self._labels(scores, empty)
        parts.append(labels)
        if self._temperature != 1:
            best = sure.gather(0, labels.long().clamp_(max=len(sure) - 1))
        if "confidence" in self._layers:
            parts.append(_to_bytes(best))
        if "probabilities" in self._layers:
            parts.append(_to_bytes(sure))
        if "heatmaps" in self._layers or "uncertainty" in self._layers:
            others = values[self._engine.classes :]
            if self._merge and "heatmaps" in self._layers:
                others = torch.stack(
                    [torch.stack([others[index] for index in group]).amax(0) for group in self._merge]
                )
            parts.append(_to_bytes(others))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _labels(self, scores: torch.Tensor, empty: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class of the best score, uint8 (1, h, w), and that score; no data where `empty`."""
        best = scores.max(0)  # on the CPU its indices are 40 times faster than argmax
        labels = best.indices.to(torch.uint8).masked_fill_(best.values.isnan(), classes.INVALID)
        if self._resampler is not None:  # beside tiles that were not run
            labels.masked_fill_(best.values <= 0 if empty is None else empty, classes.NODATA)
        return labels[None], best.values[None]


def tempered(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return softmax(logits / temperature) of softmax(logits), (classes, ...), with the same sum.

    Of probabilities that are a mean over tiles or views too: their order, and so the class, stays.
    """
    powers = probabilities.clamp_min(0).pow(1 / temperature)
    return powers.mul_(probabilities.sum(0) / powers.sum(0).clamp_min(TINY))


def _to_bytes(values: torch.Tensor) -> torch.Tensor:
    """[0, 1] to 0-254, rounded."""
    return (values * FULL_SCALE).add_(0.5).clamp_(0, FULL_SCALE).to(torch.uint8)
