"""Whether a scene is like the data that its model was trained on: distances of its tiles, by tile row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from rsseg_cli.inference import passes

KINDS = ("colour", "texture", "features")
COUNTED = ("tiles", *KINDS)
STEPS = 1000  # in which distances are added up, so that parts of a scene give the same sum
FARTHEST = 10.0
LEAST_DATA = 0.5  # of a tile's pixels, without which it is not counted


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """How far a scene's tiles lie from the training data, in the mean: in all, and by kind.

    A scene of `distance` above 1 is unlike the training data; of the tiles that the limit was chosen on, one
    in twenty lies beyond it.
    """

    tiles: int
    distance: float
    colour: float
    texture: float
    features: float

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Unlike | None:
        """Return the means of such counts; None where no tile was looked at."""
        tiles = counts.get("tiles", 0)
        if not tiles:
            return None
        means = {kind: counts.get(kind, 0) / STEPS / tiles for kind in KINDS}
        return cls(tiles=tiles, distance=sum(means.values()) / len(means), **means)

    def warning(self, scene: str, model: str) -> str | None:
        """Return what to tell the user, if the scene is unlike the training data."""
        if self.distance <= 1:
            return None
        by_kind = sorted(((getattr(self, kind), kind) for kind in KINDS), reverse=True)
        most = ", ".join(f"{kind} {distance:.1f}" for distance, kind in by_kind)
        return (
            f"{scene}: looks unlike what model {model!r} was trained on: {self.distance:.2f} ({most}), where "
            "familiar scenes stay below 1; expect a poorer map, and look at it. `rsseg adapt` trains the "
            "model on a few of your polygons"
        )


class UnlikeCounter:
    """Counts the tiles that a pass ran, as it runs them; copies from the device are waited for on demand."""

    def __init__(self, to_host: Callable[[Tensor], Callable[[], NDArray[np.float32]]]) -> None:
        self._to_host = to_host
        self._waiting: deque[tuple[list[int], list[bool], Callable[[], NDArray[np.float32]]]] = deque()
        self._rows: dict[int, NDArray[np.int64]] = {}

    def add(self, items: Sequence[passes.TilePixels], distances: Tensor) -> None:
        """Take distances (tiles, kinds); see `inference.domain.TileDistances`."""
        rows = [item.tile.row_index for item in items]
        used = [bool(item.valid.mean() >= LEAST_DATA) for item in items]
        self._waiting.append((rows, used, self._to_host(distances)))

    def counts(self, first: int, end: int) -> dict[str, int]:
        """Return the counts over the tile rows from `first` to before `end`."""
        while self._waiting:
            rows, used, fetch = self._waiting.popleft()
            steps = np.rint(STEPS * np.minimum(fetch(), FARTHEST)).astype(np.int64)
            for row, is_used, distances in zip(rows, used, steps, strict=True):
                if is_used:
                    counted = self._rows.setdefault(row, np.zeros(len(COUNTED), np.int64))
                    counted += [1, *distances]
        chosen = [counted for row, counted in self._rows.items() if first <= row < end]
        total = np.array(chosen, np.int64).reshape(-1, len(COUNTED)).sum(axis=0)
        return {name: int(count) for name, count in zip(COUNTED, total, strict=True)}
