"""Points to check on a map, drawn by a stated design."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.accuracy.chips import check_chips, write_chips
from rsseg_cli.accuracy.config import SampleConfig
from rsseg_cli.accuracy.points import check_vector_target, write_points
from rsseg_cli.accuracy.strata import ClassMap, Progress, Strata, allocate, sample_size
from rsseg_cli.errors import DataError
from rsseg_cli.raster import classes

PER_SIDE = 3  # points along the side of a cluster
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """A sample that was drawn.

    Attributes:
        strata: name of each stratum, its number of points and its share of the map's area.
        standard_error: of the overall accuracy that is expected; None for clusters, where it is not known.
    """

    path: Path
    points: int
    strata: dict[str, tuple[int, float]]
    standard_error: float | None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        strata = [
            {"name": name, "points": points, "share": share} for name, (points, share) in self.strata.items()
        ]
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "strata": strata,
            "notes": list(self.notes),
        }


def draw_sample(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: SampleConfig | None = None,
    *,
    chips: str | os.PathLike[str] | None = None,
    image: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SampleResult:
    """Draw points from a map and write them with an empty field for the true class.

    Points stand at pixel centres, in random order, so that the first ones are a sample too. A pixel is drawn
    with a probability proportional to its area on the ground. `chips` is a folder for pictures of the points
    in `image`, by default the scene that the map names.

    Raises:
        UsageError, SceneError, DataError, OutputError: nothing was written.
    """
    config, path = config or SampleConfig(), Path(output)
    check_vector_target(path, config.overwrite, [os.fspath(labels)])
    with ClassMap(os.fspath(labels)) as source:
        scene = None
        if chips is not None:
            scene = check_chips(Path(chips), source, None if image is None else os.fspath(image))
        strata = Strata(
            source, by_class=config.design == "stratified", boundary_px=config.boundary_px, progress=progress
        )
        rng = np.random.default_rng(config.seed)
        numbers = _numbers(config, strata)
        drawn = _draw(config, source, strata, numbers, rng)
        order = rng.permutation(len(drawn))
        table = drawn[order]
        write_points(path, source, strata, table)
        if scene is not None and chips is not None:
            write_chips(Path(chips), scene, source, table[:, :2], config.chip_px)
    counts = np.bincount(table[:, 2], minlength=len(strata))
    shares = strata.areas / strata.areas.sum()
    return SampleResult(
        path=path,
        points=len(table),
        strata={
            stratum.name: (int(count), float(share))
            for stratum, count, share in zip(strata, counts, shares, strict=True)
        },
        standard_error=_expected_error(config, strata, counts),
    )


def _accuracies(config: SampleConfig, strata: Strata) -> NDArray[np.float64]:
    general, named = config.expected()
    names = [classes.plain(strata.class_name(stratum)) for stratum in strata]
    unknown = set(named) - set(names)
    if unknown and config.design == "stratified":
        raise DataError(
            f"--expected-accuracy: {', '.join(sorted(unknown))} is no class of the map; it has "
            f"{', '.join(dict.fromkeys(names))}"
        )
    return np.array([named.get(name, general) for name in names])


def _numbers(config: SampleConfig, strata: Strata) -> Ints:
    """Return the number of points in each stratum."""
    accuracies = _accuracies(config, strata)
    total = config.points or sample_size(strata.areas, accuracies, config.standard_error)
    shares = {
        "proportional": strata.areas,
        "equal": np.ones(len(strata)),
        "neyman": strata.areas * np.sqrt(accuracies * (1 - accuracies)),
    }[config.allocation]
    return allocate(total, shares, strata.counts.sum(0, dtype=np.int64), config.min_per_stratum)


def _expected_error(config: SampleConfig, strata: Strata, counts: Ints) -> float | None:
    if config.design == "cluster":
        return None
    accuracies, shares = _accuracies(config, strata), strata.areas / strata.areas.sum()
    return float(np.sqrt(np.sum(shares**2 * accuracies * (1 - accuracies) / np.maximum(counts, 1))))


def _draw(
    config: SampleConfig, source: ClassMap, strata: Strata, numbers: Ints, rng: np.random.Generator
) -> Ints:
    """Return int64 (points, 4): row, column, stratum and cluster, -1 for none."""
    if config.design in ("stratified", "random"):
        parts = [
            _of_stratum(source, strata, stratum, int(number), rng) for stratum, number in enumerate(numbers)
        ]
        return np.concatenate(parts)
    total, pixels = int(numbers.sum()), int(strata.counts.sum())
    if config.design == "systematic":
        lattice = _lattice(source, math.sqrt(pixels / total), rng)
        points = [(row, col, 0, -1) for row, cols in lattice for col in cols]
    else:
        points = _clusters(config, source, total, rng)
    if not points:
        raise DataError(f"{source.path}: no point lies on a class; pass more --points")
    return np.array(points, np.int64)


def _of_stratum(
    source: ClassMap, strata: Strata, stratum: int, number: int, rng: np.random.Generator
) -> Ints:
    """Draw different pixels of a stratum, each with a probability proportional to its area."""
    counts = strata.counts[:, stratum].astype(np.int64)
    if 2 * number >= counts.sum():  # most of it: choose among all its pixels
        rows = np.repeat(np.arange(len(counts)), counts)
        position = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        areas = source.row_areas[rows]
        chosen = rng.choice(len(rows), number, replace=False, p=areas / areas.sum())
        pairs = np.stack([rows[chosen], position[chosen]], 1)
    else:
        ends = np.cumsum(counts * source.row_areas)
        pairs = np.zeros((0, 2), np.int64)
        while len(pairs) < number:
            rows = np.searchsorted(ends, rng.random(number - len(pairs)) * ends[-1], "right")
            rows = np.minimum(rows, len(counts) - 1)
            more = np.stack([rows, (rng.random(len(rows)) * counts[rows]).astype(np.int64)], 1)
            both = np.concatenate([pairs, more[counts[rows] > 0]])
            _, first = np.unique(both, axis=0, return_index=True)
            pairs = both[np.sort(first)]
    points = np.full((number, 4), -1, np.int64)
    points[:, 0], points[:, 2] = pairs[:, 0], stratum
    for row in np.unique(pairs[:, 0]):
        here = pairs[:, 0] == row
        points[here, 1] = strata.columns(int(row), stratum)[pairs[here, 1]]
    return points


def _lattice(
    source: ClassMap, step: float, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield rows of a square lattice with a random start, and the columns of its points on a class.

    Where pixels differ in size, points of small ones are dropped at random.
    """
    height, width = source.grid.height, source.grid.width
    step = max(1.0, step)
    rows, cols = (
        np.floor(np.arange(rng.random() * min(step, size), size, step)).astype(np.int64)
        for size in (height, width)
    )
    largest = source.row_areas.max()
    for row in rows.tolist():
        kept = cols[source.read(row, 0, 1, width)[0, cols] != classes.NODATA]
        yield row, kept[rng.random(len(kept)) <= source.row_areas[row] / largest]


def _clusters(
    config: SampleConfig, source: ClassMap, total: int, rng: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """Draw squares of the map, in random order, until they hold enough lattice points."""
    side = config.cluster_px
    down, across = (math.ceil(size / side) for size in (source.grid.height, source.grid.width))
    rows, cols = (
        np.floor((rng.random() + np.arange(PER_SIDE)) * side / PER_SIDE).astype(np.int64) for _ in range(2)
    )
    points: list[tuple[int, int, int, int]] = []
    for number, block in enumerate(rng.permutation(down * across).tolist()):
        top, left = block // across * side, block % across * side
        for row in (top + rows).tolist():
            kept = left + cols[source.read(row, left, 1, side)[0, cols] != classes.NODATA]
            points += [(row, col, 0, number) for col in kept.tolist()]
        if len(points) >= total and number > 0:
            break
    return points
