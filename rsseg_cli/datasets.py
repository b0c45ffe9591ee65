"""Labelled data of every kind: found, checked, split by scene, told in a table.

Benchmark data sets are in `benchmark_data`, reading in `scene_load`, pairing of files in `scene_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import numpy as np

from rsseg_cli.class_table import ClassTable, read_classes
from rsseg_cli.crops import LoadedScene
from rsseg_cli.data_split import labelled_areas, unique_names, with_validation
from rsseg_cli.data_table import found_table
from rsseg_cli.errors import DataError, SceneError, UsageError
from rsseg_cli.label_format import LabelFormat
from rsseg_cli.label_vector import check_vector, is_vector
from rsseg_cli.metrics import ScoringProtocol
from rsseg_cli.raster import inspect
from rsseg_cli.scene_files import find_scenes, named, read_scene_list
from rsseg_cli.scene_load import LabelledScene
from rsseg_cli.weights.spec import ClassSpec, ModelSpec

__all__ = [
    "DataConfig",
    "LabelledData",
    "LabelledScene",
    "Source",
    "find_scenes",
    "found_table",
    "ground_resolution",
    "load_scene",
    "open_data",
    "read_scene_list",
]


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


def open_data(config: DataConfig, *, default_classes: tuple[ClassSpec, ...] = ()) -> LabelledData:
    """Find labelled data, pair images with labels, check polygons' classes, and split by scene.

    Args:
        config: what to look for.
        default_classes: where `config` names none, for instance of the model to start from.

    Raises:
        DataError: images or labels are missing, which are named, or classes are unknown.
        UsageError: no classes, or options that fit nothing.
    """
    if config.dataset:
        from rsseg_cli.benchmark_data import open_benchmark

        return open_benchmark(config)
    if not config.classes and not default_classes:
        raise UsageError("no classes: pass --classes a,b,c or a JSON file")
    table = read_classes(config.classes) if config.classes else ClassTable(default_classes)
    format = label_format(config, table)
    found = [scene for path in config.scenes for scene in read_scene_list(path, format)]
    for folder in config.folders:
        found += find_scenes(
            folder, images=config.images, masks=config.masks, val=config.val, test=config.test, format=format
        )
    _check_patterns(config, found)
    for scene in {(scene.labels, scene.label_format(()).field): scene for scene in found}.values():
        if is_vector(scene.labels):
            check_vector(scene.labels, scene.label_format(()))
    scenes = with_validation(unique_names(found), labelled_areas, share=config.val_share, seed=config.seed)
    name = next(path.stem for path in (*config.folders, *config.scenes))
    gsd_m = config.gsd_m or _first_gsd_m(scenes)
    return LabelledData(name, tuple(scenes), table.classes, config.bands or LabelledData.bands, gsd_m)


def label_format(config: DataConfig, table: ClassTable) -> LabelFormat:
    """What labels mean, by the classes and the options for vector labels."""
    return LabelFormat(
        class_names=tuple(item.name for item in table.classes),
        colours=table.colours,
        values=table.values,
        field=config.field,
        vector_class=config.vector_class,
        outside=config.outside,
    )


def _check_patterns(config: DataConfig, scenes: Sequence[LabelledScene]) -> None:
    """Refuse a pattern of --val or --test that holds nothing out."""
    for option, patterns in (("--val", config.val), ("--test", config.test)):
        for pattern in patterns if config.folders else ():
            if not any(fnmatch(scene.image.stem, pattern) for scene in scenes):
                names = named(sorted(scene.image.stem for scene in scenes))
                raise DataError(f"{option} {pattern}: matches none of the {len(scenes)} images ({names})")


def ground_resolution(scenes: Sequence[LabelledScene]) -> float:
    """Metres a pixel on the ground of the first training scene.

    Raises:
        DataError: it carries no CRS.
    """
    first = next((scene for scene in scenes if scene.split == "train"), None)
    if first is None:
        raise DataError("no training scene among those found")
    ground = inspect(first.image).grid.gsd_m
    if ground is None:
        raise DataError(f"{first.image}: has no CRS, so its ground resolution is unknown; pass --gsd")
    return float(np.sqrt(ground[0] * ground[1]))


def _first_gsd_m(scenes: Sequence[LabelledScene]) -> float | None:
    try:
        return ground_resolution(scenes)
    except (DataError, SceneError):
        return None


def load_scene(scene: LabelledScene, spec: ModelSpec, *, finest_gsd_m: float | None = None) -> LoadedScene:
    """Read a scene into memory; see `LabelledScene.load`."""
    return scene.load(spec, None, finest_gsd_m=finest_gsd_m)
