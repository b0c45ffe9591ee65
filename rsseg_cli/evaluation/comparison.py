"""Two models on the same tiles: differences of their scores, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import DataError
from rsseg_cli.evaluation.metrics import without_nan

if TYPE_CHECKING:
    from rsseg_cli.evaluation.tiles import TileScore

FEW_TILES = 20  # below, an interval says little
CHUNK_VALUES = 2**22  # of resampled matrices held at once: 32 MiB


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How differences get their intervals.

    Attributes:
        resamples: of the tiles, with replacement, the same for both models.
        level: share of resamples inside the interval.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of two models; NaN where a class occurs in neither truth nor map.

    Attributes:
        interval: of `difference`, lower and upper end.
    """

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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of two models on the same tiles.

    Attributes:
        overall: mIoU, mean F1 and overall accuracy.
    """

    first: str
    second: str
    tiles: int
    overall: tuple[Difference, ...]
    iou: tuple[Difference, ...]
    f1: tuple[Difference, ...]
    config: CompareConfig

    def rows(self) -> tuple[Difference, ...]:
        """Overall scores, then the IoU of each class."""
        return (*self.overall, *self.iou)

    @property
    def few_tiles(self) -> bool:
        return self.tiles < FEW_TILES

    @property
    def explanation(self) -> str:
        text = (
            f"{self.first} minus {self.second}; above 0 {self.first} is better. {self.config.level:.0%} "
            f"intervals by resampling {self.tiles} tiles {self.config.resamples} times, in pairs: pixels of "
            "a tile are not independent. Where zero lies inside, no difference is shown. Rows of classes are "
            "IoU."
        )
        if self.few_tiles:
            text += (
                f" {self.tiles} tiles are few (under {FEW_TILES}): the intervals are rough, and too narrow."
            )
        return text

    def as_dict(self) -> dict[str, Any]:
        """The comparison in types that JSON has."""
        groups = {"overall": self.overall, "iou": self.iou, "f1": self.f1}
        return {
            "first": self.first,
            "second": self.second,
            "tiles": self.tiles,
            "resamples": self.config.resamples,
            "level": self.config.level,
            **{key: [_as_dict(item) for item in items] for key, items in groups.items()},
        }


def _as_dict(item: Difference) -> dict[str, Any]:
    values = {
        "name": item.name,
        "first": item.first,
        "second": item.second,
        "difference": item.difference,
        "low": item.interval[0],
        "high": item.interval[1],
        "holds_zero": item.holds_zero,
    }
    return dict(without_nan(values))


def compare(
    first: Sequence[TileScore],
    second: Sequence[TileScore],
    class_names: Sequence[str],
    *,
    names: tuple[str, str] = ("first", "second"),
    out_of_means: Sequence[str] = (),
    config: CompareConfig | None = None,
) -> Comparison:
    """Compare two models on the tiles of the same scenes.

    Args:
        first, second: tiles of both, in any order, with the classes in the same order.
        out_of_means: classes that do not enter mIoU and mean F1.
    """
    config = config or CompareConfig()
    pair = _paired(first, second, names)
    counted = np.array([name not in out_of_means for name in class_names])
    whole = [_scores(matrices.sum(0), counted) for matrices in pair]
    low, high = _interval(pair, counted, config)
    differences = tuple(
        Difference(name=name, first=float(a), second=float(b), interval=(float(lower), float(upper)))
        for name, a, b, lower, upper in zip(
            ("mIoU", "mean F1", "overall accuracy", *class_names, *class_names),
            *whole,
            low,
            high,
            strict=True,
        )
    )
    split = 3 + len(class_names)
    return Comparison(
        first=names[0],
        second=names[1],
        tiles=len(pair[0]),
        overall=differences[:3],
        iou=differences[3:split],
        f1=differences[split:],
        config=config,
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


def _scores(matrices: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(3 + 2 N, ...) of matrices (..., N, N + 1): mIoU, mean F1, overall accuracy, IoU and F1 by class."""
    hit = np.diagonal(matrices, axis1=-2, axis2=-1)
    truth, found = matrices.sum(-1), matrices[..., : matrices.shape[-2]].sum(-2)
    with np.errstate(invalid="ignore"):
        iou, f1 = hit / (truth + found - hit), 2 * hit / (truth + found)
        accuracy = hit.sum(-1) / truth.sum(-1)
    means = [_mean(values[..., counted]) for values in (iou, f1)]
    return np.concatenate([[*means, accuracy], np.moveaxis(iou, -1, 0), np.moveaxis(f1, -1, 0)])


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis, without NaN; NaN of nothing."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(-1) / known.sum(-1)


def _interval(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], counted: NDArray[np.bool_], config: CompareConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end of each score's difference, (3 + 2 N) each."""
    generator = np.random.default_rng(config.seed)
    tiles, *shape = pair[0].shape
    step = max(1, CHUNK_VALUES // max(tiles, math.prod(shape)))
    found = []
    for start in range(0, config.resamples, step):
        size = min(step, config.resamples - start)
        drawn = generator.multinomial(tiles, np.full(tiles, 1 / tiles), size).astype(np.float64)
        sums = [(drawn @ matrices.reshape(tiles, -1)).reshape(size, *shape) for matrices in pair]
        found.append(_scores(sums[0], counted) - _scores(sums[1], counted))
    differences = np.concatenate(found, axis=1)
    tail = (1 - config.level) / 2
    ends = np.full((2, len(differences)), np.nan)
    for row, values in enumerate(differences):
        known = values[np.isfinite(values)]  # a rare class may be in none of the drawn tiles
        if known.size:
            ends[:, row] = np.quantile(known, (tail, 1 - tail))
    return ends[0], ends[1]
