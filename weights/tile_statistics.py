"""Statistics of the training data's tiles, as a model file holds them: where their descriptors lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("colour", "texture", "features")
MAX_DESCRIPTORS = 4096  # of a tile and kind
MAX_PROTOTYPES = 128
KEPT_AXES = 16
SHRINKAGE = 0.02
DIGITS = 4  # that are stored
INSIDE = 0.95  # of the tiles held out are like the training data


@dataclass(frozen=True, kw_only=True)
class TileStatistics:
    """Where a kind of descriptors lies; see `inference.domain.descriptors`.

    A descriptor v (D,) becomes matrix (K, D) times (v - mean). Its distance is that to the nearest of the
    `prototypes` (P, K), divided by `limit`. A tile whose distances have a mean above 1 over all kinds is
    unlike the training data.
    """

    mean: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    prototypes: tuple[tuple[float, ...], ...]
    limit: float

    def with_tiles(self, descriptors: NDArray[np.float64]) -> TileStatistics:
        """Return the same with more prototypes, of descriptors (tiles, D)."""
        import numpy as np

        places = (descriptors - np.array(self.mean)) @ np.array(self.matrix).T
        return replace(self, prototypes=(*self.prototypes, *map(_rounded, places)))

    def problem(self) -> str | None:
        """Say what is wrong with the numbers of a file."""
        size, kept = len(self.mean), len(self.matrix)
        if not (1 <= size <= MAX_DESCRIPTORS and 1 <= kept <= size and len(self.prototypes) >= 1):
            return f"{size} descriptors, {kept} rows and {len(self.prototypes)} prototypes"
        if any(len(row) != size for row in self.matrix) or any(len(row) != kept for row in self.prototypes):
            return "rows of different lengths"
        numbers = (*self.mean, self.limit, *itertools.chain(*self.matrix, *self.prototypes))
        return None if all(map(math.isfinite, numbers)) and self.limit > 0 else "numbers that are not finite"


def summarise(
    training: Mapping[str, NDArray[np.float64]], held_out: Mapping[str, NDArray[np.float64]]
) -> dict[str, TileStatistics]:
    """Summarise descriptors (tiles, D) by kind, so that nearly all tiles held out are like the training data.

    Main axes of the scaled descriptors are whitened, shrunk as small ones are noise; prototypes are training
    tiles, each the farthest from those before it.
    """
    import numpy as np

    drawn: dict[str, tuple[NDArray[np.float64], ...]] = {}
    distances: dict[str, NDArray[np.float64]] = {}
    for kind, values in training.items():
        mean, deviation = values.mean(0), values.std(0) + 1e-6
        _, lengths, axes = np.linalg.svd((values - mean) / deviation, full_matrices=False)
        variances = lengths**2 / max(len(values) - 1, 1)
        shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * max(variances.sum() / values.shape[1], 1e-6)
        matrix = axes[:KEPT_AXES] / np.sqrt(shrunk[:KEPT_AXES, None]) / deviation
        prototypes = _spread((values - mean) @ matrix.T)
        drawn[kind] = mean, matrix, prototypes
        apart = ((held_out[kind] - mean) @ matrix.T)[:, None] - prototypes
        distances[kind] = np.linalg.norm(apart, axis=2).min(1)
    limits = {kind: max(float(np.quantile(values, INSIDE)), 1e-3) for kind, values in distances.items()}
    together = np.mean([distances[kind] / limits[kind] for kind in training], 0)
    margin = max(float(np.quantile(together, INSIDE, method="higher")), 0.1)
    return {
        kind: TileStatistics(
            mean=_rounded(mean),
            matrix=tuple(map(_rounded, matrix)),
            prototypes=tuple(map(_rounded, prototypes)),
            limit=_rounded([1.01 * margin * limits[kind]])[0],
        )
        for kind, (mean, matrix, prototypes) in drawn.items()
    }


def _spread(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose points (n, K) that lie far from each other, the first in the middle."""
    import numpy as np

    chosen = [int(np.linalg.norm(points, axis=1).argmin())]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < min(MAX_PROTOTYPES, len(points)):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return points[chosen]


def problem_of(statistics: Mapping[str, TileStatistics]) -> str | None:
    """Say what is wrong with the statistics of a model file, {} or one of each kind."""
    if statistics and set(statistics) != set(KINDS):
        return f"training_tiles of {', '.join(statistics):.200}; needs {', '.join(KINDS)}"
    problems = [(kind, item.problem()) for kind, item in statistics.items()]
    return next((f"training_tiles, {kind}: {problem}" for kind, problem in problems if problem), None)


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
