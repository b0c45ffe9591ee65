"""Intervals by blocks: known answers, coverage on drawn maps, and what commands and reports say of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rasters import MakeRaster
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.evaluation.boundary import BoundaryCounts, band_iou
from rsseg_cli.evaluation.intervals import resamples_of, score_intervals
from rsseg_cli.evaluation.metrics import count_confusion, scores_of
from rsseg_cli.evaluation.scoring import ScoreConfig, Scorer
from rsseg_cli.weights import ClassSpec

NAMES = ("roof", "ground")
WIDTHS = (1, 3)


@dataclass
class Tile:
    row: int
    col: int
    confusion: np.ndarray
    bands: np.ndarray | None = None
    scene: str = "a"
    height: int = 16
    width: int = 16


def tiles_of(truth: np.ndarray, mapped: np.ndarray, size: int = 16) -> list[Tile]:
    """Counts of each tile of a map of two classes."""
    height, width = truth.shape
    parts = [
        (slice(row, row + size), slice(col, col + size))
        for row in range(0, height, size)
        for col in range(0, width, size)
    ]
    bands = BoundaryCounts(classes=2, widths=WIDTHS).add_bands(mapped, truth, np.s_[:, :], parts)
    return [
        Tile(part[0].start, part[1].start, count_confusion(mapped[part], truth[part], 2), more)
        for part, more in zip(parts, bands, strict=True)
    ]


def test_equal_blocks_have_no_spread() -> None:
    tiles = [Tile(16 * k, 0, np.array([[3, 1, 0], [0, 4, 0]]), np.full((4, 2, 2), 5)) for k in range(30)]
    found = score_intervals(tiles, NAMES)
    assert found["miou"] == pytest.approx([(3 / 4 + 4 / 5) / 2] * 2)
    assert found["iou"] == {"roof": pytest.approx([3 / 4] * 2), "ground": pytest.approx([4 / 5] * 2)}
    assert found["boundary_iou"]["mean"] == [[1, 1], [1, 1]]  # 5 / (5 + 5 - 5)
    assert (found["blocks"], found["few"], found["level"]) == (30, False, 0.95)


def test_two_kinds_of_blocks_by_hand() -> None:
    """Of 100 blocks half are right and half wrong: binomial, 50 +- 1.96 * 5 of 100 are right."""
    right, wrong = np.array([[10, 0, 0], [0, 0, 0]]), np.array([[0, 10, 0], [0, 0, 0]])
    tiles = [Tile(0, 16 * k, (right, wrong)[k % 2], scene=str(k)) for k in range(100)]
    found = score_intervals(tiles, NAMES, resamples=4000)
    assert found["overall_accuracy"] == pytest.approx([0.402, 0.598], abs=0.015)
    assert found["boundary_iou"]["mean"] == []


def test_under_five_blocks_or_none_of_a_class_give_no_interval() -> None:
    tiles = [Tile(16 * k, 0, np.array([[3, 1, 0], [0, k, 0]]), np.ones((4, 2, 2), int)) for k in range(5)]
    assert all(map(math.isnan, score_intervals(tiles[:4], NAMES)["miou"]))
    assert all(map(math.isfinite, score_intervals(tiles, NAMES)["miou"]))
    absent = score_intervals(
        [Tile(16 * k, 0, np.diag([3, 4, 0])[:, [0, 1, 2, 2]]) for k in range(5)], (*NAMES, "sea")
    )
    assert all(map(math.isnan, absent["iou"]["sea"]))
    assert absent["miou"] == [1, 1]
    assert absent["few"]


def test_tiles_are_joined_while_forty_blocks_remain() -> None:
    matrix = np.array([[3, 1, 0], [0, 4, 0]])
    for side, scenes, blocks, block_px in (
        (6, 1, 36, 16),
        (2, 40, 40, 32),
        (2, 39, 156, 16),
        (16, 1, 64, 32),
        (4, 40, 40, 64),
        (4, 39, 156, 32),
    ):
        tiles = [
            Tile(16 * row, 16 * col, matrix, scene=str(scene))
            for scene in range(scenes)
            for row in range(side)
            for col in range(side)
        ]
        found = score_intervals(tiles, NAMES, resamples=10)
        assert (found["blocks"], found["block_px"]) == (blocks, block_px)


def test_twenty_blocks_are_no_longer_few() -> None:
    tiles = [Tile(16 * k, 0, np.array([[3, 1, 0], [0, 4, 0]])) for k in range(20)]
    assert not score_intervals(tiles, NAMES, resamples=10)["few"]
    assert score_intervals(tiles[:19], NAMES, resamples=10)["few"]


def test_resamples_are_the_same_however_many_are_drawn_at_once() -> None:
    parts = list(resamples_of(3, 10, 0, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    (whole,) = resamples_of(3, 10, 0, 100)
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 3).all()


def field(rng: np.random.Generator, side: int, sigma: float) -> np.ndarray:
    smooth = gaussian_filter(rng.standard_normal((side, side)), sigma, mode="wrap")
    return smooth / smooth.std()


def draw(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of two classes, and a map whose errors hang together over some 10 px."""
    truth = (field(rng, side, 4) > 0.3).astype(np.uint8)
    wrong = field(rng, side, 3) + 0.7 * field(rng, side, 1) > 1.2
    return truth, np.where(wrong, 1 - truth, truth).astype(np.uint8)


def test_intervals_hold_the_true_scores_as_often_as_they_say() -> None:
    """95 % of the intervals of 100 small maps hold the score of a map 80 times as large."""
    rng = np.random.default_rng(3)
    large = [tile for _ in range(4) for tile in tiles_of(*draw(rng, 1024))]
    scores = scores_of(sum(tile.confusion for tile in large))
    boundary = band_iou(sum(tile.bands for tile in large))[:, 1].mean()
    truth = {"miou": scores["miou"], "iou": scores["iou"][1], "boundary_iou": boundary}
    held, naive, rounds = dict.fromkeys(truth, 0), 0, 100
    for _ in range(rounds):
        mapped = tiles_of(*draw(rng, 224))
        found = score_intervals(mapped, NAMES, resamples=300)
        ends = {
            "miou": found["miou"],
            "iou": found["iou"]["ground"],
            "boundary_iou": found["boundary_iou"]["mean"][1],
        }
        for key, (low, high) in ends.items():
            held[key] += low <= truth[key] <= high
        total = sum(tile.confusion for tile in mapped)
        share, size = np.trace(total) / total.sum(), total.sum()
        naive += abs(share - scores["overall_accuracy"]) <= 1.96 * math.sqrt(share * (1 - share) / size)
    assert all(0.88 <= count / rounds <= 1 for count in held.values()), held
    assert naive / rounds < 0.6  # pixels taken for independent: what the blocks are for


def patches(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 2, (height // 8, width // 8)), np.ones((8, 8))).astype(np.uint8)
    return truth, np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth).astype(np.uint8)


def test_blocks_of_a_map_are_its_tiles_whatever_is_read_at_once(make_raster: MakeRaster) -> None:
    truth, mapped = patches(96, 128)
    files = make_raster("map.tif", array=mapped[None]), make_raster("truth.tif", array=truth[None])
    results = []
    for block_size in (1024, 40):
        scorer = Scorer(
            ScoreConfig(classes=ClassSpec.from_names(NAMES), tile_size=16, boundary_widths_px=WIDTHS),
            block_size=block_size,
        )
        scorer.add("a", *files)
        results.append(scorer.result())
    assert results[0].scores["intervals"] == results[1].scores["intervals"]
    assert results[0].scores["intervals"]["blocks"] == 48
    expected = score_intervals(tiles_of(truth, mapped), NAMES)
    assert results[0].scores["intervals"]["miou"] == pytest.approx(expected["miou"])
    assert results[0].scores["intervals"]["boundary_iou"] == expected["boundary_iou"]
    low, high = results[0].scores["intervals"]["miou"]
    assert low < results[0].scores["miou"] < high


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["score", *map(str, arguments), "--classes", ",".join(NAMES)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_text_json_and_report(make_raster: MakeRaster, tmp_path: Path) -> None:
    truth, mapped = patches(528, 1040)
    files = make_raster("map.tif", array=mapped[None]), make_raster("truth.tif", array=truth[None])
    scores = json.loads(run(*files, "--json", "--report", tmp_path / "report"))
    intervals = scores["intervals"]
    assert (intervals["blocks"], intervals["block_px"], intervals["few"]) == (6, 512, True)
    text = run(*files)
    low, high = intervals["miou"]
    assert re.search(rf"mean +{scores['miou']:.3f} +{low:.3f} to {high:.3f}", text)
    assert "95% intervals by drawing 6 blocks of up to 512 px again, 1000 times; these are few" in text
    ends = intervals["boundary_iou"]["mean"]
    assert re.search(r"interval from +" + " +".join(f"{end[0]:.3f}" for end in ends), text)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert f"{low:.3f} to {high:.3f}" in page
    assert "A pixel of the map is 0.5 m wide here, so that 1 px are 0.5 m, 3 px are 1.5 m" in page
    assert "These are few blocks" in page
    stored = json.loads((tmp_path / "report" / "scores.json").read_text(encoding="utf-8"))
    assert stored["scores"]["intervals"] == intervals


def test_a_map_of_one_tile_says_nothing_of_intervals(make_raster: MakeRaster, tmp_path: Path) -> None:
    truth, mapped = patches(96, 128)
    files = make_raster("map.tif", array=mapped[None]), make_raster("truth.tif", array=truth[None])
    scores = json.loads(run(*files, "--json", "--report", tmp_path / "report"))
    assert scores["intervals"]["miou"] == [None, None]
    assert "interval" not in run(*files)
    assert "interval" not in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
