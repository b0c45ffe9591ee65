"""What a prediction tells of itself: paths, times, and the area of each class on the ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass
from rsseg_cli.raster import classes

AREA_TOLERANCE = 1e-5
COUNTED_PX = 2**18  # at once: counting takes eight bytes a pixel


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """Extent of a class in the map.

    Attributes:
        pixels: number of pixels.
        share: of the pixels with data, 0 to 1.
        area_m2: on the ground, m2, right by latitude for Mercator and degrees; None without a CRS.
    """

    pixels: int
    share: float
    area_m2: float | None


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What the refining of a map came to.

    Attributes:
        refiner: its name.
        steps: of the sampler.
        band_m: half the width of the band around boundaries that may change, m.
        ensemble: samples averaged.
        seed: of the noise.
        windows: that the map has.
        windows_run: of these, with a boundary.
        band_pixels: of the map, that may change.
        changed_pixels: of these, with another class now.
    """

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
        """In types that JSON has, with the share of windows run."""
        return {**asdict(self), "windows_run_share": self.windows_run / max(1, self.windows)}


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """A finished prediction or refinement.

    Attributes:
        paths: of what was written, by kind: "labels", "confidence", "probabilities", "heatmaps", "preview",
            "vector", "uncertainty".
        seconds: wall time, s.
        pixels: of the map.
        valid_pixels: of these, with data.
        classes: extent by class name, in the model's order.
        notes: what differs from what one might expect, one sentence each; logged as warnings too.
        refined: what refining came to; None where it was not asked for.
    """

    paths: dict[str, Path]
    seconds: float
    pixels: int
    valid_pixels: int
    classes: dict[str, ClassArea]
    notes: tuple[str, ...] = ()
    refined: Refined | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result in types that JSON has."""
        more = {} if self.refined is None else {"refined": self.refined.as_dict()}
        return {
            "paths": {kind: str(path) for kind, path in self.paths.items()},
            "seconds": round(self.seconds, 3),
            "pixels": self.pixels,
            "valid_pixels": self.valid_pixels,
            "classes": {
                name: {"pixels": item.pixels, "share": item.share, "area_m2": item.area_m2}
                for name, item in self.classes.items()
            },
            "notes": list(self.notes),
            **more,
        }


def result_from_dict(found: Mapping[str, Any]) -> PredictResult:
    """The result that `PredictResult.as_dict` gave.

    Raises:
        ValueError: it gave another one.
    """
    try:
        refined = dict(found["refined"]) if "refined" in found else None
        if refined is not None:
            refined.pop("windows_run_share")
        return PredictResult(
            paths={str(kind): Path(path) for kind, path in found["paths"].items()},
            seconds=float(found["seconds"]),
            pixels=int(found["pixels"]),
            valid_pixels=int(found["valid_pixels"]),
            classes={str(name): ClassArea(**item) for name, item in found["classes"].items()},
            notes=tuple(map(str, found["notes"])),
            refined=None if refined is None else Refined(**refined),
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"is no result ({err})") from err


class AreaCounter:
    """Counts classes row by row.

    Args:
        classes: names in the model's order.
        row_areas_m2: area of a pixel in each row of the map, m2; None where it is not known.
    """

    def __init__(self, classes: tuple[str, ...], row_areas_m2: NDArray[np.float64] | None) -> None:
        self._classes = classes
        self._row_areas_m2 = row_areas_m2
        self._rows_at_once = _rows_of_one_area(row_areas_m2)
        self._pixels = np.zeros(256, np.int64)
        self._areas_m2 = np.zeros(256)

    def add(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Count rows (rows, width) of the map, the first of which is `row`."""
        step = min(self._rows_at_once, max(1, COUNTED_PX // labels.shape[1]))
        for first in range(0, len(labels), step):
            counts = np.bincount(labels[first : first + step].ravel(), minlength=256)
            self._pixels += counts
            if self._row_areas_m2 is not None:
                self._areas_m2 += counts * self._row_areas_m2[row + first : row + first + step].mean()

    @property
    def counts(self) -> tuple[list[int], list[float]]:
        """Pixels and m2 of each value so far, exactly."""
        return self._pixels.tolist(), self._areas_m2.tolist()

    def go_on(self, pixels: Sequence[int], areas_m2: Sequence[float]) -> None:
        """Begin with another counter's `counts`."""
        self._pixels[:], self._areas_m2[:] = pixels, areas_m2

    @property
    def valid_pixels(self) -> int:
        return int(self._pixels[: classes.NODATA].sum())

    def classes(self) -> dict[str, ClassArea]:
        total = max(1, self.valid_pixels)
        return {
            name: ClassArea(
                pixels=int(self._pixels[index]),
                share=float(self._pixels[index] / total),
                area_m2=None if self._row_areas_m2 is None else float(self._areas_m2[index]),
            )
            for index, name in enumerate(self._classes)
        }


def _rows_of_one_area(row_areas_m2: NDArray[np.float64] | None) -> int:
    """Rows over which the area of a pixel changes by less than AREA_TOLERANCE of itself."""
    if row_areas_m2 is None or len(row_areas_m2) < 2:
        return 2**30
    change = float(np.abs(np.diff(row_areas_m2)).max() / row_areas_m2.min())
    return 2**30 if change == 0 else max(1, int(min(AREA_TOLERANCE / change, 2**30)))
