"""Labelled scenes and where they come from, as data alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import UsageError
from rsseg_cli.raster.grid import Grid
from rsseg_cli.weights import ClassSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class ScoringProtocol:
    """What of a data set counts, as its published results count it.

    Attributes:
        name: of the data set whose protocol this is; "" for one's own data.
        out_of_means: names of classes whose scores do not enter the means over classes (ISPRS: clutter).
            Their pixels count all the same: in overall accuracy and kappa, and as errors of the classes that
            they are mistaken for.
        erode_px: labels within this distance of a border between classes are left out (ISPRS also
            publishes labels eroded by 3 px).
    """

    name: str = ""
    out_of_means: tuple[str, ...] = ()
    erode_px: int = 0


@dataclass(frozen=True)
class Found:
    """A data set as it lies in its folder, before a validation part is split off."""

    name: str
    sources: Sequence[Any]
    classes: tuple[ClassSpec, ...]
    bands: tuple[str, ...]
    gsd_m: float | None = None
    protocol: ScoringProtocol = field(default_factory=ScoringProtocol)


def clean_names(names: Iterable[str]) -> tuple[str, ...]:
    """Short lower-case names: of "Clutter/background" the first part, unless two become the same."""
    full = [" ".join(str(name).lower().replace("_", " ").split())[:100] or "class" for name in names]
    short = [name.split("/")[0].strip() or name for name in full]
    for listed in (short, full):
        if len(set(listed)) == len(listed):
            return tuple(listed)
    return tuple(f"{name} {number}" for number, name in enumerate(full))


@dataclass(frozen=True)
class LoadedScene:
    """A scene on its training grid, in memory or in memory-mapped files.

    Attributes:
        image: uint8 (bands, height, width).
        labels: uint8 (height, width), 255 unlabelled or without data.
        gsd_m: ground resolution of both, m a pixel.
        grid: where both lie; None of a drawn scene.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    gsd_m: float
    grid: Grid | None = None


class Source(Protocol):
    """A labelled image of a data set."""

    @property
    def name(self) -> str:
        """Unique in its data."""
        ...

    @property
    def stem(self) -> str:
        """The image's file name without its ending."""
        ...

    @property
    def split(self) -> str:
        """train, val or test."""
        ...

    def load(self, spec: ModelSpec, folder: Path | None, *, finest_gsd_m: float | None = None) -> LoadedScene:
        """Read for training; the arrays are memory-mapped files in `folder`."""
        ...

    def picture(self, folder: Path) -> str:
        """What GDAL opens as the image; files that it takes are in `folder`."""
        ...

    def rasters(self, folder: Path) -> tuple[str, Path]:
        """The image for prediction, and its label raster on the image's own grid (uint8, 255 unlabelled)."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on or to score against.

    Attributes:
        dataset, root: loveda, vaihingen, potsdam or torchgeo:ClassName, and its folder.
        domains: of LoveDA.
        bands: names of the bands to use; (): the data set's own, red, green and blue of one's own data.
        folders, images, masks: folders with pairs, and glob patterns inside them.
        scenes: CSV lists.
        val, test: patterns of image names that are held out.
        val_share: labelled area to hold out of the training scenes where no validation part is named.
        classes: names, or a JSON file; "" takes the data set's or the model's.
        field, vector_class, outside: of vector labels, see `LabelFormat`.
        gsd_m: ground resolution to train at, m a pixel; None: the data set's, or the first training scene's.
        seed: of the validation part.
    """

    dataset: str = ""
    root: Path | None = None
    domains: tuple[str, ...] = ("urban", "rural")
    bands: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    images: str = "images/*"
    masks: str = "masks/*"
    scenes: tuple[Path, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    val_share: float = 0.15
    classes: str = ""
    field: str = ""
    vector_class: str = ""
    outside: str = ""
    gsd_m: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset and (self.folders or self.scenes):
            raise UsageError("--dataset and --data or --scenes exclude each other; pass one of them")
        if not (self.dataset or self.folders or self.scenes):
            raise UsageError("no data: pass --data FOLDER, --scenes LIST.csv, or --dataset NAME --root DIR")
        if not 0 < self.val_share <= 0.5:
            raise UsageError(f"--val-share {self.val_share}: needs a share above 0, to 0.5")
        if self.gsd_m is not None and not 0 < self.gsd_m < 1e5:
            raise UsageError(f"--gsd {self.gsd_m}: needs metres a pixel above 0")


@dataclass(frozen=True)
class LabelledData:
    """Labelled images in three parts.

    Attributes:
        sources: all of them, with different names.
        classes: class k is classes[k].
        bands: names of the bands to use.
        gsd_m: ground resolution to train at, m a pixel; None: unknown.
        protocol: what of the scores counts.
    """

    name: str
    sources: tuple[Source, ...]
    classes: tuple[ClassSpec, ...]
    bands: tuple[str, ...] = ("red", "green", "blue")
    gsd_m: float | None = None
    protocol: ScoringProtocol = field(default_factory=ScoringProtocol)

    def split(self, name: str) -> tuple[Source, ...]:
        """The sources of one part: train, val or test."""
        return tuple(source for source in self.sources if source.split == name)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.classes)
