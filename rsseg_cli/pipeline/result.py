"""The result of a run: paths, times, and the area of each class on the ground."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.pipeline.stac import Mapped as Mapped
from rsseg_cli.pipeline.stac import item_of as item_of
from rsseg_cli.pipeline.unlike import Unlike as Unlike
from rsseg_cli.raster import Grid, classes
from rsseg_cli.weights import ClassSpec, ModelSpec

AREA_TOLERANCE = 1e-5
UNSURE = ClassSpec("unsure", (250, 240, 150))
MAX_KNOWN = 253  # classes of a model beside which there is room for that one
COUNTED_PX = 2**18  # at once: counting takes eight bytes a pixel


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """Extent of a class: share of the pixels with data, area on the ground or None without a CRS."""

    pixels: int
    share: float
    area_m2: float | None


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What refining did to a map; `band_m` is half the width of the band that may change."""

    refiner: str
    steps: int
    band_m: float
    ensemble: int
    seed: int
    windows: int
    windows_run: int
    band_pixels: int
    changed_pixels: int

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "windows_run_share": self.windows_run / max(1, self.windows)}


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """A finished prediction or refinement.

    Attributes:
        paths: by kind: labels, confidence, probabilities, heatmaps, preview, html, stac,
            vector, uncertainty.
        classes: by name, in the model's order.
        notes: what differs from what one might expect, one sentence each; logged as warnings too.
        computed: device, runtime and dtype of each model, by its name.
        unlike: how much of the scene is unlike the training data; None where the model does not say.
    """

    paths: dict[str, Path]
    seconds: float
    pixels: int
    valid_pixels: int
    classes: dict[str, ClassArea]
    notes: tuple[str, ...] = ()
    refined: Refined | None = None
    computed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unlike: Unlike | None = None

    def as_dict(self) -> dict[str, Any]:
        more: dict[str, Any] = {} if self.refined is None else {"refined": self.refined.as_dict()}
        if self.unlike is not None:
            more["unlike"] = asdict(self.unlike)
        if self.computed:
            more["computed"] = {name: dict(how) for name, how in self.computed.items()}
        return {
            "paths": {kind: str(path) for kind, path in self.paths.items()},
            "seconds": round(self.seconds, 3),
            "pixels": self.pixels,
            "valid_pixels": self.valid_pixels,
            "classes": {name: asdict(item) for name, item in self.classes.items()},
            "notes": list(self.notes),
            **more,
        }


def result_from_dict(values: Mapping[str, Any]) -> PredictResult:
    """Return the result that `PredictResult.as_dict` gave; a ValueError if it gave another one."""
    return msgspec.convert(dict(values), PredictResult, dec_hook=lambda kind, value: kind(value))


def with_unsure(spec: ModelSpec, config: PredictConfig) -> ModelSpec:
    """Return a model's description with the class of unsure pixels, if they get one."""
    if not config.min_confidence or config.unsure != "class":
        return spec
    if classes.plain(UNSURE.name) in map(classes.plain, spec.class_names) or len(spec.classes) >= MAX_KNOWN:
        raise ModelError(
            f"model {spec.name!r}: has a class {UNSURE.name!r} itself, or {MAX_KNOWN} classes or more; take "
            "--unsure nodata"
        )
    return replace(spec, classes=(*spec.classes, UNSURE))


class AreaCounter:
    """Counts the classes of a map row by row."""

    def __init__(self, names: Sequence[str], grid: Grid) -> None:
        self._names, self._grid = names, grid
        self._known = grid.areas_m2()
        self._rows_at_once = 2**30 if self._known is None else _rows_of_one_area(*self._known[::2])
        self._pixels = np.zeros(256, np.int64)
        self._areas_m2 = np.zeros(256)

    def add(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Count rows (rows, width) of the map, the first of which is `row`."""
        width = labels.shape[1]
        step = min(self._rows_at_once, max(1, COUNTED_PX // width))
        edges = [0, width] if self._known is None else [*self._known[1].tolist(), width]
        for first in range(0, len(labels), step):
            part = labels[first : first + step]
            rows = np.arange(row + first, row + first + len(part))
            for block, (left, right) in enumerate(itertools.pairwise(edges)):
                counts = np.bincount(part[:, left:right].ravel(), minlength=256)
                self._pixels += counts
                if self._known is not None:
                    nodes, _, areas = self._known
                    self._areas_m2 += counts * np.interp(rows, nodes, areas[:, block]).mean()

    @property
    def counts(self) -> tuple[list[int], list[float]]:
        """Pixels and m2 of each value so far, exactly."""
        return self._pixels.tolist(), self._areas_m2.tolist()

    def restore(self, pixels: Sequence[int], areas_m2: Sequence[float]) -> None:
        self._pixels[:], self._areas_m2[:] = pixels, areas_m2

    def result(
        self,
        paths: Mapping[str, Path],
        start: float,
        notes: Sequence[str] = (),
        refined: Refined | None = None,
        unlike: Unlike | None = None,
    ) -> PredictResult:
        """Return the result of a run that began at `time.monotonic()` = `start`."""
        valid = int(self._pixels[: classes.NODATA].sum())
        areas = {
            name: ClassArea(
                pixels=int(self._pixels[index]),
                share=float(self._pixels[index] / max(1, valid)),
                area_m2=None if self._known is None else float(self._areas_m2[index]),
            )
            for index, name in enumerate(self._names)
        }
        return PredictResult(
            paths=dict(paths),
            seconds=time.monotonic() - start,
            pixels=self._grid.width * self._grid.height,
            valid_pixels=valid,
            classes=areas,
            notes=tuple(notes),
            refined=refined,
            unlike=unlike,
        )


def _rows_of_one_area(rows: NDArray[np.float64], areas_m2: NDArray[np.float64]) -> int:
    """Return the rows over which the area of a pixel changes by less than AREA_TOLERANCE of itself."""
    if len(rows) < 2:
        return 2**30
    change = float((np.abs(np.diff(areas_m2, axis=0)) / np.diff(rows)[:, None]).max() / areas_m2.min())
    return 2**30 if change == 0 else max(1, int(min(AREA_TOLERANCE / change, 2**30)))
