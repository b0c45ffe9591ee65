"""Where a label helps most: squares of a map that is unsure there, unlike one another and far apart."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.accuracy.config import SuggestConfig
from rsseg_cli.accuracy.points import check_vector_target, write_vector
from rsseg_cli.accuracy.strata import ClassMap, Progress
from rsseg_cli.errors import DataError
from rsseg_cli.raster import SceneInfo, SceneReader, classes

FULL_SCALE = 254.0
SIDE_PX, SIDE_M = 12, 5.0  # of a square by default, the larger one
MAX_SQUARES = 250_000
ROWS = 512
CANDIDATES = 0.15  # of all squares, the least sure ones
PLAIN = 0.75  # share of a square that one class should hold, so that one label fits it
MIXED = 2.0  # variance of a square's colours, of that of its plainest part, from which the part is suggested
LEAST_PX = 4
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Square:
    """A square to label; `row` and `col` of its upper left pixel."""

    row: int
    col: int
    size: int
    predicted: str
    confidence: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class SuggestResult:
    """Squares in the order in which to label them."""

    path: Path
    squares: list[Square]
    side_m: float | None

    def as_dict(self) -> dict[str, Any]:
        squares = [{"rank": rank, **dataclasses.asdict(item)} for rank, item in enumerate(self.squares, 1)]
        return {"path": str(self.path), "side_m": self.side_m, "squares": squares}


def suggest(
    scene: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    confidence: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: SuggestConfig | None = None,
    *,
    progress: Progress | None = None,
) -> SuggestResult:
    """Write squares to label next, with an empty field for their class.

    Chosen one after another: the least sure square, weighed by how unlike it is in colour, texture and mapped
    class to those chosen before, and how far from them. Where its colours are mixed, a quarter of it.

    Args:
        confidence: of the map, 0 to 254 for 0 to 1, on its grid.

    Raises:
        SceneError, DataError, OutputError: nothing was written.
    """
    config, path = config or SuggestConfig(), Path(output)
    inputs = [os.fspath(item) for item in (scene, labels, confidence)]
    check_vector_target(path, config.overwrite, inputs)
    with ClassMap(os.fspath(labels)) as source:
        side = _side_px(source, config)
        info, sure_info = SceneInfo.of(os.fspath(scene)).in_colour(), SceneInfo.of(os.fspath(confidence))
        table = _measure(source, info, sure_info, side, progress)
        chosen = _choose(table, config.number)
        with SceneReader(info, info.colour_bands[:4]) as reader, SceneReader(sure_info, (1,)) as sure_reader:
            squares = [_square(source, reader, sure_reader, table, index, side) for index in chosen]
        _write(path, source, squares)
    own = source.grid.side_m
    return SuggestResult(path=path, squares=squares, side_m=None if own is None else side * own)


def _side_px(source: ClassMap, config: SuggestConfig) -> int:
    own, side = source.grid.side_m, SIDE_PX
    if own is not None:
        wanted = config.size_m or max(SIDE_PX * own, SIDE_M)
        side = max(LEAST_PX, round(wanted / own))
    while (source.grid.height // side) * (source.grid.width // side) > MAX_SQUARES:
        side *= 2
    if min(source.grid.height, source.grid.width) < side:
        raise DataError(f"{source.path}: is smaller than a square of {side} px; pass a smaller --size")
    return side


@dataclass(kw_only=True)
class _Table:
    """Squares with data throughout: where they lie, mapped class and its share, confidence, colours."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    predicted: NDArray[np.int64]
    share: Floats
    confidence: Floats
    colours: Floats  # (squares, 2 x bands): mean and deviation of each band


def _measure(
    source: ClassMap, scene_info: SceneInfo, sure_info: SceneInfo, side: int, progress: Progress | None
) -> _Table:
    grid = source.grid
    for info, what in ((sure_info, "the confidence"), (scene_info, "the scene")):
        if (info.grid.height, info.grid.width) != (grid.height, grid.width):
            raise DataError(f"{info.name}: {what} is not on the grid of {source.path}")
    bands = scene_info.colour_bands[:4]
    down, across = grid.height // side, grid.width // side
    step = max(1, ROWS // side)
    parts: dict[str, list[NDArray[Any]]] = {field.name: [] for field in dataclasses.fields(_Table)}
    with SceneReader(sure_info, (1,)) as sure_reader, SceneReader(scene_info, bands) as reader:
        for first in range(0, down, step):
            count = min(step, down - first)
            window = first * side, 0, count * side, across * side
            mapped = _squares(source.read(*window)[None], side)[0]
            sure = _squares(sure_reader.read(*window)[0], side)[0].astype(np.float64).mean(-1) / FULL_SCALE
            pixels = _squares(reader.read(*window)[0], side).astype(np.float64)
            whole = (mapped != classes.NODATA).all(-1)
            counts = np.stack([(mapped == value).sum(-1) for value in np.unique(mapped)], -1)
            best = counts.argmax(-1)
            rows, cols = np.nonzero(whole)
            parts["rows"].append((rows + first) * side)
            parts["cols"].append(cols * side)
            parts["predicted"].append(np.unique(mapped)[best][whole].astype(np.int64))
            parts["share"].append(counts.max(-1)[whole] / side**2)
            parts["confidence"].append(sure[whole])
            parts["colours"].append(np.concatenate([pixels.mean(-1)[:, whole], pixels.std(-1)[:, whole]]).T)
            if progress is not None:
                progress(first + count, down)
    table = _Table(**{name: np.concatenate(values) for name, values in parts.items()})
    if not len(table.rows):
        raise DataError(f"{source.path}: no square of {side} px has data throughout")
    return table


def _squares(array: NDArray[Any], side: int) -> NDArray[Any]:
    """(bands, h, w) to (bands, h / side, w / side, side * side)."""
    bands, height, width = array.shape
    parts = array.reshape(bands, height // side, side, width // side, side).swapaxes(2, 3)
    return parts.reshape(bands, height // side, width // side, side * side)


def _choose(table: _Table, number: int) -> list[int]:
    """Return indices of squares, the best first."""
    doubt = (1 - table.confidence) * np.minimum(1, table.share / PLAIN)
    kept = np.argsort(-doubt, kind="stable")[: max(20 * number, int(CANDIDATES * len(doubt)))]
    looks = table.colours[kept]
    looks = (looks - looks.mean(0)) / (looks.std(0) + 1e-9)
    places = np.stack([table.rows[kept], table.cols[kept]], 1).astype(np.float64)
    reach = np.sqrt(np.ptp(table.rows) * np.ptp(table.cols) / max(number, 1)) + 1e-9
    unlike, far = np.full(len(kept), np.inf), np.full(len(kept), np.inf)
    used = np.zeros(int(table.predicted.max()) + 1)
    free = np.ones(len(kept), np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(number, len(kept)):
        novelty = np.minimum(1, unlike / np.sqrt(looks.shape[1])) * np.minimum(1, far / reach)
        classes_ = 1 / (1 + used[table.predicted[kept]]) ** 0.5
        value = np.where(free, doubt[kept] * (0.05 + novelty) * classes_, -1)
        best = int(value.argmax())
        chosen.append(int(kept[best]))
        free[best] = False
        used[table.predicted[kept[best]]] += 1
        unlike = np.minimum(unlike, np.linalg.norm(looks - looks[best], axis=1))
        far = np.minimum(far, np.linalg.norm(places - places[best], axis=1))
    return chosen


def _square(
    source: ClassMap, reader: SceneReader, sure_reader: SceneReader, table: _Table, index: int, side: int
) -> Square:
    row, col, size = int(table.rows[index]), int(table.cols[index]), side
    down, across, part = _plainest(reader.read(row, col, side, side)[0].astype(np.float64), side)
    row, col, size = row + down, col + across, part
    values, counts = np.unique(source.read(row, col, size, size), return_counts=True)
    name, share = source.name(int(values[counts.argmax()])), counts.max() / size**2
    sure = float(sure_reader.read(row, col, size, size)[0].mean()) / FULL_SCALE
    mixed = "" if share > PLAIN else f", with other classes ({1 - share:.0%})"
    return Square(
        row=row,
        col=col,
        size=size,
        predicted=name,
        confidence=round(sure, 3),
        reason=f"mapped as {name}{mixed}, confidence {sure:.2f}",
    )


def _plainest(pixels: Floats, side: int) -> tuple[int, int, int]:
    """Row, column and size of what to suggest of a square (bands, side, side): all, or a half of its side."""
    half = side // 2
    pixels = pixels - pixels.mean((1, 2), keepdims=True)

    def means(planes: Floats) -> Floats:
        sums = np.pad(planes.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
        inside = (
            sums[:, half:, half:] - sums[:, :-half, half:] - sums[:, half:, :-half] + sums[:, :-half, :-half]
        )
        return inside / half**2

    spread = (means(pixels**2) - means(pixels) ** 2).sum(0)
    if half < LEAST_PX or (pixels**2).mean((1, 2)).sum() <= MIXED * spread.min() + 1e-6:
        return 0, 0, side
    row, col = np.unravel_index(spread.argmin(), spread.shape)
    return int(row), int(col), half


def _write(path: Path, source: ClassMap, squares: Sequence[Square]) -> None:
    from shapely import Polygon

    def outline(item: Square) -> Polygon:
        cols = np.array([0, 1, 1, 0]) * float(item.size) + item.col
        rows = np.array([0, 0, 1, 1]) * float(item.size) + item.row
        return Polygon(np.stack(source.grid.xy(cols, rows), 1))

    columns = {
        "rank": np.arange(1, len(squares) + 1),
        "class": np.full(len(squares), "", object),
        "predicted": [item.predicted for item in squares],
        "confidence": [item.confidence for item in squares],
        "reason": [item.reason for item in squares],
    }
    write_vector(path, source, columns, [outline(item) for item in squares], "fill")
