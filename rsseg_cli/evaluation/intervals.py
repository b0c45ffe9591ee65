"""Intervals of scores by a spatial bootstrap: blocks of the maps are drawn again, not pixels, which depend on
their neighbours.

Source: Lahiri, Resampling Methods for Dependent Data, 2003, chapter 12; percentile intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.evaluation.boundary import band_iou
from rsseg_cli.evaluation.metrics import class_scores, mean_of

if TYPE_CHECKING:
    from rsseg_cli.evaluation.tiles import TileScore

MIN_KNOWN = 5  # blocks from which intervals are given
FEW_BLOCKS = 20  # below, an interval says little
MIN_BLOCKS = 40  # tiles are joined to larger blocks while so many remain
LEVEL = 0.95  # share of resamples inside an interval
CHUNK_VALUES = 2**22  # of resampled matrices held at once: 32 MiB


def score_intervals(
    tiles: Sequence[TileScore],
    class_names: Sequence[str],
    out_of_means: Sequence[int] = (),
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Intervals [low, high] of mIoU, mean F1, overall accuracy, IoU by class and Boundary IoU by width.

    NaN of under 5 blocks, and of a class in none. Of `few` blocks (under 20) they are rough, and too narrow.
    """
    side, blocks = _blocks(tiles)
    confusion = np.stack([sum(tile.confusion for tile in block) for block in blocks]).astype(np.float64)
    bands = _bands(blocks, len(class_names))
    count = len(blocks)
    counted = np.setdiff1d(np.arange(len(class_names)), out_of_means)
    rows = []
    for drawn in resamples_of(
        count, resamples, seed, CHUNK_VALUES // max(count, confusion[0].size, bands[0].size)
    ):
        scores = class_scores(np.tensordot(drawn, confusion, 1), out_of_means)
        boundary = band_iou(np.moveaxis(np.tensordot(drawn, bands, 1), 1, 0))  # (draws, N, W)
        means = [scores[name][:, None] for name in ("miou", "mean_f1", "overall_accuracy")]
        of_bands = [mean_of(np.moveaxis(boundary[:, counted], 1, -1)), boundary.reshape(len(drawn), -1)]
        rows.append(np.concatenate([*means, scores["iou"], *of_bands], 1))
    ends = np.stack(interval_of(np.concatenate(rows).T), 1)
    ends = np.full_like(ends, np.nan) if count < MIN_KNOWN else ends
    names, widths = len(class_names), bands.shape[-1]
    by_class, mean_bands = ends[3 : 3 + names], ends[3 + names : 3 + names + widths]
    class_bands = ends[3 + names + widths :].reshape(names, widths, 2)
    return {
        "level": LEVEL,
        "resamples": resamples,
        "blocks": count,
        "block_px": side,
        "few": count < FEW_BLOCKS,
        **{name: ends[k].tolist() for k, name in enumerate(("miou", "mean_f1", "overall_accuracy"))},
        "iou": dict(zip(class_names, by_class.tolist(), strict=True)),
        "boundary_iou": {
            "mean": mean_bands.tolist(),
            "classes": dict(zip(class_names, class_bands.tolist(), strict=True)),
        },
    }


def _blocks(tiles: Sequence[TileScore]) -> tuple[int, list[list[TileScore]]]:
    """Tiles joined to blocks as large as leaves MIN_BLOCKS of them, within scenes; their side, px."""
    side = max(max(tile.height, tile.width) for tile in tiles)
    reach = max(max(tile.row, tile.col) for tile in tiles)
    chosen = {(tile.scene, tile.row, tile.col): [tile] for tile in tiles}
    chosen_side = side
    while side <= reach:
        side *= 2
        larger: dict[tuple[str, int, int], list[TileScore]] = {}
        for tile in tiles:
            larger.setdefault((tile.scene, tile.row // side, tile.col // side), []).append(tile)
        if len(larger) < MIN_BLOCKS:
            break
        chosen, chosen_side = larger, side
    return chosen_side, list(chosen.values())


def _bands(blocks: Sequence[Sequence[TileScore]], classes: int) -> NDArray[np.float64]:
    """(blocks, 3, N, W): boundary bands of the labels, of the map, of both."""
    known = [tile.bands for block in blocks for tile in block if tile.bands is not None]
    none = np.zeros((3, classes, known[0].shape[-1] if known else 0))
    summed = [sum((t.bands[:3] for t in block if t.bands is not None), none) for block in blocks]
    return np.stack(summed).astype(np.float64)


def resamples_of(items: int, resamples: int, seed: int, at_once: int) -> Iterator[NDArray[np.float64]]:
    """How often each item is drawn in bootstrap resamples, (up to `at_once`, items) at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, max(1, at_once)):
        size = min(max(1, at_once), resamples - start)
        yield generator.multinomial(items, np.full(items, 1 / items), size).astype(np.float64)


def interval_of(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end of each row's interval; NaN of a row without a number."""
    tail = (1 - LEVEL) / 2
    ends = np.full((2, len(values)), np.nan)
    for row, drawn in enumerate(values):
        known = drawn[np.isfinite(drawn)]  # a rare class may be in none of the drawn tiles
        if known.size:
            ends[:, row] = np.quantile(known, (tail, 1 - tail))
    return ends[0], ends[1]
