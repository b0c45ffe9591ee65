"""Score maps against labels, block by block: memory does not grow with the scene."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow

from rsseg_cli.data import LabelFormat, LabelReader, datasets
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.evaluation.boundary import BoundaryCounts, check_widths, halo_px, near_border
from rsseg_cli.evaluation.intervals import score_intervals
from rsseg_cli.evaluation.metrics import Reliability, mean_of, scores_of, without_nan
from rsseg_cli.evaluation.tiles import (
    MAX_TILES,
    MapAndTruth,
    SceneTiles,
    ScoredMap,
    TileBook,
    TileScore,
    Window,
)
from rsseg_cli.raster import Area, classes, gdal
from rsseg_cli.weights import ClassSpec, ModelSpec

MAX_ERODE_PX = 64
SAME_GSD = 0.01  # ground resolutions closer than this share their widths in metres
Progress = Callable[[int, int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is scored, and how.

    Boundaries are scored on the labels as they are: where those near borders are left out, there is nothing
    to score. `aliases` are plain names of further classes of maps, and the number that they count as.
    `tile_size` is the side of the tiles scored one by one, px; doubles where these are too many.
    """

    classes: tuple[ClassSpec, ...]
    aliases: Mapping[str, int] = field(default_factory=dict)
    protocol: datasets.ScoringProtocol = field(default_factory=datasets.ScoringProtocol)
    boundary_widths_px: tuple[int, ...] = (1, 3, 5, 10)
    tile_size: int = 512

    def __post_init__(self) -> None:
        names = [classes.plain(name) for name in self.names]
        if not 1 <= len(names) <= ModelSpec.MAX_CLASSES or len(set(names)) < len(names):
            raise UsageError(
                f"classes {', '.join(self.names)}: needs 1 to {ModelSpec.MAX_CLASSES}, each once"
            )
        object.__setattr__(self, "boundary_widths_px", check_widths(self.boundary_widths_px))
        unknown = [name for name in self.protocol.out_of_means if classes.plain(name) not in names]
        if unknown or len(self.protocol.out_of_means) >= len(names):
            raise UsageError(
                f"{', '.join(unknown or self.protocol.out_of_means)} cannot be left out of the means of "
                f"{', '.join(self.names)}"
            )
        if not 0 <= self.protocol.erode_px <= MAX_ERODE_PX:
            raise UsageError(f"--erode {self.protocol.erode_px}: needs 0 to {MAX_ERODE_PX} px")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.classes)

    @property
    def out_of_means(self) -> tuple[int, ...]:
        """Numbers of the classes that the means leave out."""
        return self.protocol.left_out(self.names)


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """Scores of one or more maps.

    Attributes:
        scores: as `rsseg score --help` lists them, in types that JSON has; None where a score is not defined.
            `widths_m` are None without a ground resolution, or with several. WFm is the mean over maps; all
            else is from counts over all maps together.
        confusion: int64 (N, N + 1), true classes by mapped ones; the last column is none of the classes.
        tiles: in the order of the maps, row-major.
    """

    config: ScoreConfig
    scores: dict[str, Any]
    confusion: NDArray[np.int64]
    tiles: list[TileScore]


class Scorer:
    """Adds up the scores of maps.

    Args:
        progress: called with blocks done and blocks in all of the map at hand.
        max_tiles: tiles kept of all maps together.
        block_size: side of what is read at once, px; changes no score.
    """

    def __init__(
        self,
        config: ScoreConfig,
        progress: Progress | None = None,
        *,
        max_tiles: int = MAX_TILES,
        block_size: int = 1024,
    ) -> None:
        self.config, self._progress, self._block_size = config, progress, block_size
        count = len(config.classes)
        self._confusion = np.zeros((count, count + 1), np.int64)
        self._boundary = BoundaryCounts(classes=count, widths=config.boundary_widths_px)
        self._tiles = TileBook(config.tile_size, count, len(config.boundary_widths_px), max_tiles)
        self._reliability = Reliability()
        self._wfm: list[float] = []
        self._gsd_m: list[float | None] = []
        self._pixels = 0

    def add(
        self,
        name: str,
        predicted: str | Path,
        truth: str | Path,
        *,
        truth_format: LabelFormat | None = None,
        image: str | Path | None = None,
        confidence: str | Path | None = None,
        window: Window | None = None,
        area: Area | None = None,
    ) -> list[TileScore]:
        """Score a map on its own grid, and return its tiles.

        Args:
            truth_format: what the labels mean; class numbers by default.
            confidence: raster of the map's confidences on its grid, as `predict` writes it.
            window: (row, col, height, width) of the map, px; what lies outside is not looked at.
            area: in the map's CRS; pixels outside are not looked at.
        """
        format = truth_format or LabelFormat(class_names=self.config.names)
        if format.class_names != self.config.names:
            raise ValueError(f"labels of {format.class_names}, scores of {self.config.names}")
        counts = BoundaryCounts(classes=len(self.config.classes), widths=self.config.boundary_widths_px)
        with ExitStack() as stack:
            mapped = stack.enter_context(
                classes.ClassRaster.matching(predicted, self.config.names, self.config.aliases)
            )
            labels = stack.enter_context(LabelReader(truth, mapped.grid, format))
            _check_place(labels, predicted)
            pair = MapAndTruth(mapped, labels, window, area)
            scored = ScoredMap(
                scene=name, image=image, predicted=predicted, truth=truth, truth_format=format,
                class_table=mapped.table, area=area,
            )  # fmt: skip
            tiles = SceneTiles(scored=scored, window=pair.window, size=self.config.tile_size)
            self._tiles.open(tiles)
            opened = stack.enter_context(gdal.open_raster(confidence)) if confidence is not None else None
            self._add_blocks(pair, tiles, counts, opened)
        self._boundary.merge(counts)
        self._wfm.append(_wfm(counts, tiles))
        self._gsd_m.append(mapped.grid.side_m)
        return list(tiles.scores())

    def _add_blocks(
        self, pair: MapAndTruth, tiles: SceneTiles, counts: BoundaryCounts, confidence: Any
    ) -> None:
        erode = self.config.protocol.erode_px
        halo = max(halo_px(counts.widths), erode)
        blocks = list(pair.blocks(self._block_size))
        for done, block in enumerate(blocks, 1):
            _, _, height, width = block
            labels, pixels = pair.labels(block, halo)
            self._pixels += pixels
            core = slice(halo, halo + height), slice(halo, halo + width)
            if (labels[core] != classes.IGNORE).any():
                mapped = pair.mapped(block, halo)
                parts = [part for _, part in tiles.parts(block)]
                bands = counts.add(mapped, labels, core, parts)
                kept = labels[core]
                if erode:
                    kept = np.where(near_border(labels, erode)[core], np.uint8(classes.IGNORE), kept)
                self._confusion += tiles.add(block, mapped[core], kept, bands)
                if confidence is not None:
                    row, col = pair.window[0] + block[0], pair.window[1] + block[1]
                    values = confidence.read(1, window=RasterWindow(col, row, width, height))
                    self._reliability.add(values, mapped[core] == kept, kept != classes.IGNORE)
            if self._progress is not None:
                self._progress(done, len(blocks))

    def result(self) -> ScoreResult:
        """Scores of all maps added so far."""
        if not self._confusion.any():
            raise DataError(
                "no pixel of the map has a label: truth and map do not overlap, or all of it is unlabelled. "
                "Check their CRS and extent (gdalinfo, ogrinfo)"
            )
        tiles = self._tiles.scores()
        config = self.config
        scores = self._scores() | {"intervals": score_intervals(tiles, config.names, config.out_of_means)}
        confusion = self._confusion.copy()
        return ScoreResult(config=config, scores=without_nan(scores), confusion=confusion, tiles=tiles)

    def _scores(self) -> dict[str, Any]:
        matrix, config = self._confusion, self.config
        scores: dict[str, Any] = scores_of(matrix, config.out_of_means)
        by_class = {key: scores.pop(key) for key in ("iou", "f1", "precision", "recall")}
        by_class |= {"pixels": matrix.sum(1).tolist()}
        scores["classes"] = [
            {"name": name, **{key: values[index] for key, values in by_class.items()}}
            for index, name in enumerate(config.names)
        ]
        known = [wfm for wfm in self._wfm if not math.isnan(wfm)]
        scores["boundary"] = {
            "wfm": sum(known) / len(known) if known else math.nan,
            "widths_px": list(config.boundary_widths_px),
            "widths_m": self._widths_m(),
            "boundary_iou": self._by_width(self._boundary.boundary_iou()),
            "trimap_accuracy": {
                "overall": self._boundary.overall_trimap_accuracy().tolist(),
                **self._by_width(self._boundary.trimap_accuracy()),
            },
        }
        calibration = self._reliability.summary()
        if calibration is not None:
            scores["calibration"] = calibration
        pixels = int(matrix.sum())
        outside, unlabelled = int(matrix[:, -1].sum()), 1 - pixels / self._pixels
        return scores | {
            "pixels": pixels, "pixels_outside_classes": outside, "unlabelled_share": unlabelled
        }  # fmt: skip

    def _by_width(self, values: NDArray[np.float64]) -> dict[str, Any]:
        counted = np.setdiff1d(np.arange(len(values)), self.config.out_of_means)
        classes = {name: row.tolist() for name, row in zip(self.config.names, values, strict=True)}
        return {"mean": mean_of(values[counted].T).tolist(), "classes": classes}

    def _widths_m(self) -> list[float] | None:
        known = [gsd_m for gsd_m in self._gsd_m if gsd_m is not None]
        if len(known) < len(self._gsd_m) or max(known) > (1 + SAME_GSD) * min(known):
            return None
        return [width * sum(known) / len(known) for width in self.config.boundary_widths_px]


def _check_place(labels: LabelReader, predicted: str | Path) -> None:
    if not labels.touches:
        if problem := labels.elsewhere():
            raise DataError(f"{problem} (map {predicted})")
        logger.warning("%s: no polygon lies on %s; all of its ground is outside", labels.path, predicted)


def _wfm(counts: BoundaryCounts, tiles: SceneTiles) -> float:
    """NaN too where the labels hold several classes and no edge: their borders are all unlabelled."""
    held = sum(tiles.matrices.values(), np.zeros(1)).sum(-1) > 0
    return math.nan if counts.edge_pixels == 0 and held.sum() > 1 else counts.wfm()
