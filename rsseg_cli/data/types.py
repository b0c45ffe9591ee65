"""Labelled scenes and where they come from, as data alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsseg_cli.config import ALPHA, STRETCH, Alpha, Stretch, check_bounds, check_stretch, option
from rsseg_cli.errors import UsageError

if TYPE_CHECKING:  # the command line reads the options of `DataConfig`, without numpy and rasters
    import numpy as np
    from numpy.typing import NDArray

    from rsseg_cli.data.scenes import LabelledScene
    from rsseg_cli.data.torchgeo import TorchSample
    from rsseg_cli.raster import Grid
    from rsseg_cli.weights import ClassSpec


@dataclass(frozen=True, kw_only=True)
class ScoringProtocol:
    """What of a data set counts, as its published results count it; without a name, for one's own data.

    Scores of the classes `out_of_means` (ISPRS: clutter) do not enter the means over classes; their pixels
    count all the same. Labels within `erode_px` of a border between classes are left out.
    """

    name: str = ""
    out_of_means: tuple[str, ...] = ()
    erode_px: int = 0

    def left_out(self, class_names: Sequence[str]) -> tuple[int, ...]:
        """Numbers of the classes that the means leave out, by name without regard to capitals."""
        names = {name.strip().casefold() for name in self.out_of_means}
        return tuple(k for k, name in enumerate(class_names) if name.strip().casefold() in names)


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
    """A scene on its training grid, in memory or in memory-mapped files; a drawn one has no grid.

    `image` is uint8 (bands, height, width), `labels` uint8 (height, width) with 255 where unlabelled.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    gsd_m: float
    grid: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on or to score against."""

    # fmt: off
    dataset: str = option(
        "",
        "Published data in --root: loveda, vaihingen, potsdam, inria, or torchgeo:ClassName for another "
        "segmentation data set of TorchGeo. Nothing is downloaded.",
        metavar="NAME",
    )
    root: Path | None = option(None, "Folder that holds --dataset.", metavar="DIR")
    domains: tuple[str, ...] = option(
        ("urban", "rural"), "For loveda: urban, rural or both.", metavar="A,B"
    )
    bands: tuple[str, ...] = option(
        (),
        "Names of the bands to use, such as nir,red,green. Default: the data set's own; red,green,blue for "
        "potsdam and for your own data.",
        metavar="A,B,C",
    )
    folders: tuple[Path, ...] = option(
        (), "Folder with images and labels, in pairs; repeatable.", "--data", metavar="FOLDER", repeat=True
    )
    images: str = option("images/*", "Images inside --data.", metavar="GLOB")
    masks: str = option(
        "masks/*",
        "Labels inside --data: rasters of class numbers (255 unlabelled) or colours, or polygons (GPKG, "
        "GeoJSON, Shapefile, FlatGeobuf), on any grid and CRS. The files of a pair have the same text in "
        "place of the *; one vector file may serve all images.",
        metavar="GLOB",
    )
    scenes: tuple[Path, ...] = option(
        (),
        "Columns image, labels, split (train, val, test) and, for polygons, classes_field; paths relative to "
        "the list's folder; repeatable.",
        metavar="LIST.csv", repeat=True,
    )
    val: tuple[str, ...] = option(
        (), "Names of images held out to choose the epoch; repeatable.", metavar="GLOB", repeat=True
    )
    test: tuple[str, ...] = option(
        (), "Names of images never trained on; repeatable.", metavar="GLOB", repeat=True
    )
    val_share: float = option(
        0.15,
        "Share of the labelled area of the training images to hold out, whole images at a time, where no "
        "validation part is named: above 0, to 0.5. Of a single image, its last rows.",
        metavar="SHARE", above=0, maximum=0.5,
    )
    classes: str = option(
        "",
        'Names in the order of the labels, or a JSON list of {"name", "colour", "value", "mask_colour"}, '
        "with colour (also of colour masks, unless mask_colour is given) and raw value or values in masks.",
        metavar="A,B,C|FILE.json",
    )
    field: str = option(
        "",
        "Attribute of polygons that names the class, by name or number. Default: class, class_name, label or "
        "class_index; without them all polygons are of --vector-class.",
        "--label-field", metavar="NAME",
    )
    vector_class: str = option(
        "",
        "Class of all polygons. Default: of two classes, the one that is not background or other.",
        metavar="CLASS",
    )
    outside: str = option(
        "",
        "Class of the ground outside all polygons. Default: background or other, if there is such a class, "
        "else unlabelled.",
        metavar="CLASS|unlabelled",
    )
    gsd_m: float | None = option(
        None,
        "Ground resolution to train at, metres a pixel. Default: the data set's, or the first training "
        "image's.",
        "--gsd", metavar="M", above=0, below=1e5, needs="metres a pixel above 0",
    )
    nodata: float | None = option(
        None, "Value of pixels without data in the images, in addition to their own masks.", metavar="VALUE"
    )
    alpha: Alpha = option("auto", ALPHA)
    stretch: Stretch = option(
        "auto",
        f"{STRETCH}; auto takes the 2nd and 98th percentile of each band of an image of more than 8 bits, "
        "batch those of all images together. A model that is trained with LOW,HIGH or batch keeps its range.",
        metavar="LOW,HIGH|batch", example="0,3000",
    )
    seed: int = 0  # of the validation part
    # fmt: on

    def __post_init__(self) -> None:
        if self.dataset and (self.folders or self.scenes):
            raise UsageError("--dataset and --data or --scenes exclude each other; pass one of them")
        if not (self.dataset or self.folders or self.scenes):
            raise UsageError("no data: pass --data FOLDER, --scenes LIST.csv, or --dataset NAME --root DIR")
        check_bounds(self)
        check_stretch(self.stretch)


@dataclass(frozen=True)
class LabelledData:
    """Labelled images in three parts, the bands to use, and the resolution to train at, if known.

    `sets` are classes that a pixel may be of, by name; beside N classes, label N + k is the k-th of them.
    """

    name: str
    sources: tuple[LabelledScene | TorchSample, ...]
    classes: tuple[ClassSpec, ...]
    bands: tuple[str, ...] = ("red", "green", "blue")
    gsd_m: float | None = None
    protocol: ScoringProtocol = field(default_factory=ScoringProtocol)
    sets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def marked(self, **values: Any) -> LabelledData:
        """Set fields of every source."""
        sources: Any = self.sources  # dataclasses, of scenes or of TorchGeo's samples
        return replace(self, sources=tuple(replace(source, **values) for source in sources))

    def split(self, name: str) -> tuple[LabelledScene | TorchSample, ...]:
        return tuple(source for source in self.sources if source.split == name)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.classes)
