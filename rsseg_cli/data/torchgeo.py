"""Any segmentation data set of TorchGeo by its class name: samples with an image and a mask."""

from __future__ import annotations

import inspect
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.config import Alpha, Stretch
from rsseg_cli.data.label_format import IGNORE, LabelFormat, read_classes
from rsseg_cli.data.label_raster import RawCounts
from rsseg_cli.data.scenes import LabelledScene
from rsseg_cli.data.types import LabelledData, LoadedScene, clean_names
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.raster import gdal
from rsseg_cli.weights import ClassSpec, ModelSpec

if TYPE_CHECKING:
    from rsseg_cli.data.types import DataConfig

logger = logging.getLogger(__name__)
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
LOOKED_AT = 4  # samples that decide what pixel values mean
BANDS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")}


@dataclass(frozen=True)
class TorchSample:
    """A sample of a TorchGeo data set, with the methods of the `LabelledScene` that it is written as.

    `scale` is 255 where pixel values are from 0 to 1, else 1.
    """

    dataset: Any
    index: int
    split: str
    name: str
    format: LabelFormat
    bands: tuple[str, ...]
    scale: float
    dtype: str
    nodata: float | None = None
    alpha: Alpha = "auto"
    stretch: Stretch = "auto"

    @property
    def stem(self) -> str:
        return self.name

    def load(self, spec: ModelSpec, folder: Path | None, *, finest_gsd_m: float | None = None) -> LoadedScene:
        with tempfile.TemporaryDirectory() as kept:
            return self._write(Path(kept)).load(spec, folder, finest_gsd_m=finest_gsd_m)

    def picture(self, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return self._write(folder).picture(folder)

    def rasters(self, folder: Path) -> tuple[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        scene = self._write(folder)
        rasters = scene.rasters(folder)
        scene.labels.unlink()
        return rasters

    def raw_counts(self, class_names: tuple[str, ...]) -> RawCounts | None:
        with tempfile.TemporaryDirectory() as kept:
            counts = self._write(Path(kept)).raw_counts(class_names)
        return counts and counts._replace(where=self._where)

    @property
    def _where(self) -> str:
        return f"{type(self.dataset).__name__} {self.name}"

    def _write(self, folder: Path) -> LabelledScene:
        where = self._where
        image, mask = arrays_of(self.dataset[self.index], where)
        values = image.astype(np.float64) * self.scale
        if self.dtype != "float32":
            limit = np.iinfo(self.dtype).max
            if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= limit):
                raise DataError(
                    f"{where}: pixel values {image.min()} to {image.max()}; other samples have less"
                )
            values = values.round()
        self._check_mask(mask, where)
        scene = LabelledScene(
            folder / f"{self.name}.tif",
            folder / f"{self.name}.mask.tif",
            self.split,
            format=self.format,
            nodata=self.nodata,
            alpha=self.alpha,
            stretch=self.stretch,
        )
        _write_tiff(scene.image, values.astype(self.dtype), self.bands)
        _write_tiff(scene.labels, mask[None].astype(np.int32), ("label",))
        return scene

    def _check_mask(self, mask: NDArray[np.integer], where: str) -> None:
        if self.format.values is None:
            values, labels = np.unique(mask), len(self.format.class_names) + len(self.format.sets)
            wrong = values[(values < 0) | (values >= labels) & (values != IGNORE)]
            if wrong.size:
                raise DataError(
                    f"{where}: label value {wrong[0]} is no class; the classes are 0 to "
                    f"{len(self.format.class_names) - 1} ({', '.join(self.format.class_names)}). "
                    "Pass --classes"
                )


def open_torchgeo(name: str, config: DataConfig) -> LabelledData:
    """A TorchGeo data set with its own splits."""
    kind = data_class(name)
    parts = _parts(kind, name, config)
    for part, dataset in list(parts.items()):
        if part != "train" and "mask" not in dataset[0]:
            logger.warning("%s: its %s part has no masks and is left out", name, part)
            del parts[part]
    if not parts:
        raise DataError(f"--root {config.root}: no part of {name} has images with masks")
    dataset = next(iter(parts.values()))
    classes, format = _classes_of(dataset, name, config)
    scale, dtype, channels = _pixel_values(dataset, name)
    stored, bands = _band_names(dataset, channels, name, config)
    width = len(str(max(map(len, parts.values()))))
    sources = [
        TorchSample(dataset, index, part, f"{part}-{index:0{width}}", format, stored, scale, dtype)
        for part, dataset in parts.items()
        for index in range(len(dataset))
    ]
    return LabelledData(name, tuple(sources), classes, bands, sets=format.sets)


def data_class(name: str) -> Any:
    """A class of torchgeo.datasets, and nothing else."""
    import torchgeo.datasets
    from torchgeo.datasets import NonGeoDataset

    known = {item.lower(): item for item in torchgeo.datasets.__all__}
    kind = (
        getattr(torchgeo.datasets, known.get(name.lower(), ""), None) if re.fullmatch(r"\w+", name) else None
    )
    if not (inspect.isclass(kind) and issubclass(kind, NonGeoDataset)) or inspect.isabstract(kind):
        raise UsageError(
            f"--dataset torchgeo:{name}: is none of the NonGeoDataset classes in torchgeo.datasets"
        )
    return kind


def _parts(kind: Any, name: str, config: DataConfig) -> dict[str, Any]:
    """The data set's splits under our names; those that it does not have or that are empty are left out."""
    parameters = inspect.signature(kind.__init__).parameters
    needed = [key for key, value in list(parameters.items())[1:] if value.default is value.empty
              and value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY)]  # fmt: skip
    if "root" not in parameters or set(needed) - {"root"}:
        raise UsageError(
            f"--dataset torchgeo:{name}: needs more than a folder ({', '.join(needed) or 'no root'})"
        )
    options = {"root": str(config.root)} | {
        key: False for key in ("download", "checksum") if key in parameters
    }
    if "split" not in parameters:
        return {"train": _construct(kind, name, options)}
    own = getattr(kind, "splits", None)
    own = list(own) if isinstance(own, (tuple, list, dict, set, frozenset)) else []
    parts = {}
    for ours, theirs in SPLIT_NAMES.items():
        candidates = [split for split in theirs if not own or split in own]
        for split in candidates:
            try:
                dataset = _construct(kind, name, options | {"split": split})
            except DataError:
                if ours == "train" and split == candidates[-1]:
                    raise
                continue
            if len(dataset):
                parts[ours] = dataset
                break
    return parts


def _construct(kind: Any, name: str, options: dict[str, Any]) -> Any:
    """The data set, or a DataError with what it says itself."""
    from torchgeo.datasets.errors import DependencyNotFoundError

    known = (AssertionError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
    try:
        return kind(**options)
    except (*known, DependencyNotFoundError) as err:
        said = " ".join(str(err).split())[:300] or type(err).__name__
        raise DataError(
            f"--root {options['root']}: torchgeo cannot open {name} there ({said}); nothing is downloaded"
        ) from err


def arrays_of(sample: Any, where: str) -> tuple[NDArray[np.generic], NDArray[np.integer]]:
    """Image (bands, rows, cols) and mask (rows, cols) of a sample."""
    items = sample if isinstance(sample, dict) else {}
    shapes = {key: tuple(getattr(value, "shape", ())) for key, value in items.items()}
    shown = (
        ", ".join(f"{key} {shape or type(items[key]).__name__}" for key, shape in shapes.items()) or "nothing"
    )
    image, mask = shapes.get("image", ()), shapes.get("mask", ())
    mask = mask[1:] if len(mask) == 3 and mask[0] == 1 else mask
    if len(image) != 3 or len(mask) != 2 or image[1:] != mask:
        raise DataError(f"{where}: found {shown}; needs image (bands, rows, cols) and mask (rows, cols)")
    labels = np.asarray(items["mask"]).reshape(mask)
    if labels.dtype.kind == "f" and np.isin(np.unique(labels), np.arange(1 << 16)).all():
        labels = labels.astype(np.int32)
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where}: mask of {labels.dtype}; needs whole numbers")
    return np.asarray(items["image"]), labels


def _classes_of(dataset: Any, name: str, config: DataConfig) -> tuple[tuple[ClassSpec, ...], LabelFormat]:
    if config.classes:
        table = read_classes(config.classes)
        names = tuple(item.name for item in table.classes)
        return table.classes, LabelFormat(class_names=names, values=table.values, sets=table.sets)
    for key in ("classes", "all_classes"):
        listed = getattr(dataset, key, None)
        if isinstance(listed, (list, tuple)) and listed and all(isinstance(item, str) for item in listed):
            names = clean_names(listed)
            colours = _colours_of(dataset, len(names))
            specs = [ClassSpec(n, c) for n, c in zip(names, colours, strict=True)] if colours else names
            return ClassSpec.from_names(specs), LabelFormat(class_names=names)
    raise UsageError(f"--dataset torchgeo:{name}: does not name its classes; pass --classes")


def _colours_of(dataset: Any, count: int) -> list[tuple[int, int, int]]:
    """Colours of the classes, from a colour map of theirs; none where it has fewer."""
    for key in ("colormap", "cmap"):
        listed = getattr(dataset, key, None)
        try:
            colours = np.asarray(getattr(listed, "colors", listed), np.float64)
        except (TypeError, ValueError):
            continue
        if colours.ndim == 2 and len(colours) >= count and colours.shape[1] >= 3:
            colours = colours[:count, :3] * (255 if colours.max() <= 1 else 1)
            return [(int(red), int(green), int(blue)) for red, green, blue in colours.round().clip(0, 255)]
    return []


def _pixel_values(dataset: Any, name: str) -> tuple[float, str, int]:
    """(scale, dtype, bands) of the files that samples become, from a few of them.

    TorchGeo gives floats: whole numbers to 255 were bytes, to 65535 16 bits; up to 1 they were scaled.
    """
    places = np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(int)
    images = [arrays_of(dataset[int(index)], f"{name} {index}")[0] for index in places]
    values = np.concatenate([image.astype(np.float64).ravel() for image in images])
    whole = bool(np.isfinite(values).all() and values.min() >= 0 and (values == values.round()).all())
    if whole and 1 < values.max() <= 255:
        return 1.0, "uint8", len(images[0])
    if whole and values.max() <= 65535 and values.max() > 1:
        return 1.0, "uint16", len(images[0])
    if values.min() >= 0 and values.max() <= 1:
        return 255.0, "uint8", len(images[0])
    return 1.0, "float32", len(images[0])


def _band_names(
    dataset: Any, channels: int, name: str, config: DataConfig
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the bands in the order of the samples', and those to use."""
    own = getattr(dataset, "all_bands", ())
    own = tuple(map(str, own)) if isinstance(own, (list, tuple)) and len(own) == channels else ()
    own = own or BANDS.get(channels) or tuple(f"band{k + 1}" for k in range(channels))
    asked = config.bands or own
    if len(set(asked)) < len(asked) or not (len(asked) == channels or set(asked) <= set(own)):
        raise UsageError(
            f"--bands {','.join(asked)}: {name} has {channels} bands ({', '.join(own)}); needs some of "
            "them, or a name for each"
        )
    return (asked if len(asked) == channels and not set(asked) <= set(own) else own), asked


def _write_tiff(path: Path, array: NDArray[np.generic], bands: tuple[str, ...]) -> None:
    profile = {"driver": "GTiff", "count": len(array), "height": array.shape[1], "width": array.shape[2],
               "dtype": array.dtype.name, "photometric": "minisblack"}  # fmt: skip
    if len(array) > 1:
        profile["alpha"] = "no"
    with gdal.errors(DataError, str(path)), gdal.open_raster(path, "w", **profile) as dataset:
        dataset.write(array)
        for number, band in enumerate(bands, 1):
            dataset.set_band_description(number, band)
