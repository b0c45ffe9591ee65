"""Two models on the same tiles: differences of their scores, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import DataError
from rsseg_cli.evaluation.intervals import (
    CHUNK_VALUES,
    FEW_BLOCKS,
    LEVEL,
    interval_of,
    resamples_of,
)
from rsseg_cli.evaluation.metrics import class_scores, without_nan

if TYPE_CHECKING:
    from rsseg_cli.evaluation.tiles import TileScore


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of two models and the interval of their difference; NaN where a class occurs nowhere."""

    name: str
    first: float
    second: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """First minus second: above 0 the first is better."""
        return self.first - self.second

    @property
    def holds_zero(self) -> bool:
        """Whether the models may be equally good; of an unknown interval too."""
        return not (self.interval[0] > 0 or self.interval[1] < 0)

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        known = {key: getattr(self, key) for key in ("name", "first", "second", "difference")}
        return dict(without_nan({**known, "low": low, "high": high, "holds_zero": self.holds_zero}))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of two models on the same tiles; `overall` are mIoU, mean F1 and overall accuracy."""

    first: str
    second: str
    tiles: int
    overall: tuple[Difference, ...]
    iou: tuple[Difference, ...]
    f1: tuple[Difference, ...]
    resamples: int
    level: float = LEVEL

    def rows(self) -> tuple[Difference, ...]:
        return (*self.overall, *self.iou)

    @property
    def few_tiles(self) -> bool:
        return self.tiles < FEW_BLOCKS

    @property
    def explanation(self) -> str:
        text = (
            f"{self.first} minus {self.second}; above 0 {self.first} is better. {self.level:.0%} "
            f"intervals by resampling {self.tiles} tiles {self.resamples} times, in pairs: pixels of "
            "a tile are not independent. Where zero lies inside, no difference is shown. Rows of classes are "
            "IoU."
        )
        if self.few_tiles:
            text += (
                f" {self.tiles} tiles are few (under {FEW_BLOCKS}): the intervals are rough, and too narrow."
            )
        return text

    def as_dict(self) -> dict[str, Any]:
        """The comparison in types that JSON has."""
        return {
            **{key: getattr(self, key) for key in ("first", "second", "tiles", "resamples", "level")},
            **{key: [item.as_dict() for item in getattr(self, key)] for key in ("overall", "iou", "f1")},
        }


def compare(
    first: Sequence[TileScore],
    second: Sequence[TileScore],
    class_names: Sequence[str],
    *,
    names: tuple[str, str] = ("first", "second"),
    out_of_means: Sequence[int] = (),
    resamples: int = 2000,
    seed: int = 0,
    chunk_values: int = CHUNK_VALUES,
) -> Comparison:
    """Compare two models on tiles of the same scenes and classes, resampled in pairs.

    `out_of_means` are numbers of classes that do not enter mIoU and mean F1.
    """
    pair = _paired(first, second, names)
    whole = [_scores(matrices.sum(0), out_of_means) for matrices in pair]
    tiles, *shape = pair[0].shape
    differences = []
    for drawn in resamples_of(tiles, resamples, seed, chunk_values // max(tiles, math.prod(shape))):
        sums = [(drawn @ matrices.reshape(tiles, -1)).reshape(-1, *shape) for matrices in pair]
        differences.append(_scores(sums[0], out_of_means) - _scores(sums[1], out_of_means))
    low, high = interval_of(np.concatenate(differences, axis=1))
    titles = ("mIoU", "mean F1", "overall accuracy", *class_names, *class_names)
    numbers = (values.tolist() for values in (*whole, low, high))
    rows = tuple(
        Difference(name=name, first=a, second=b, interval=(lower, upper))
        for name, a, b, lower, upper in zip(titles, *numbers, strict=True)
    )
    split = 3 + len(class_names)
    return Comparison(
        first=names[0],
        second=names[1],
        tiles=len(pair[0]),
        overall=rows[:3],
        iou=rows[3:split],
        f1=rows[split:],
        resamples=resamples,
    )


def _paired(
    first: Sequence[TileScore], second: Sequence[TileScore], names: tuple[str, str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(tiles, N, N + 1) of each model, tile by tile, those with labels."""
    tables = [
        {(tile.scene, tile.row, tile.col): tile.confusion for tile in tiles} for tiles in (first, second)
    ]
    if tables[0].keys() != tables[1].keys():
        alone = sorted(tables[0].keys() ^ tables[1].keys())
        raise DataError(f"{names[0]} and {names[1]}: {len(alone)} tiles are not in both, first {alone[0]}")
    keys = [key for key in sorted(tables[0]) if tables[0][key].sum() or tables[1][key].sum()]
    if not keys:
        raise DataError(f"{names[0]} and {names[1]}: no tile holds labels; nothing can be compared")
    one, two = (np.stack([table[key] for key in keys]).astype(np.float64) for table in tables)
    return one, two


def _scores(matrices: NDArray[np.float64], left_out: Sequence[int]) -> NDArray[np.float64]:
    """(3 + 2 N, ...) of matrices (..., N, N + 1): mIoU, mean F1, overall accuracy, IoU and F1 by class."""
    scores = class_scores(matrices, left_out)
    means = [scores[name] for name in ("miou", "mean_f1", "overall_accuracy")]
    return np.concatenate([means, *(np.moveaxis(scores[name], -1, 0) for name in ("iou", "f1"))])
