"""Labelled scenes, found in folders or lists, and read for training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.crops import LoadedScene
from rsseg_cli.errors import DataError
from rsseg_cli.labels import IGNORE, LabelFormat, LabelReader
from rsseg_cli.raster import SceneReader, inspect, select_bands
from rsseg_cli.weights.spec import ModelSpec

IMAGE_SUFFIXES = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".vrt", ".jp2"}
Split = str  # "train", "val" or "test"


@dataclass(frozen=True)
class LabelledScene:
    """An image and its label raster; `split` is train, val or test."""

    image: Path
    labels: Path
    split: Split


def find_scenes(
    folder: Path,
    *,
    images: str = "images/*",
    masks: str = "masks/*",
    val: Sequence[str] = (),
    test: Sequence[str] = (),
) -> list[LabelledScene]:
    """Pair images and masks of the same stem.

    Args:
        folder: holds both.
        images, masks: glob patterns inside it.
        val, test: patterns of stems that are held out.

    Raises:
        DataError: no pair, or images and masks without a partner, which are named.
    """
    image_by_stem = _by_stem(folder, images)
    mask_by_stem = _by_stem(folder, masks)
    alone = sorted(image_by_stem.keys() ^ mask_by_stem.keys())
    if alone:
        shown = ", ".join(alone[:5]) + (" ..." if len(alone) > 5 else "")
        raise DataError(f"{folder}: {len(alone)} files of {images} and {masks} have no partner: {shown}")
    if not image_by_stem:
        raise DataError(f"{folder}: no pairs found in {images} and {masks}; pass --images and --masks")
    return [
        LabelledScene(path, mask_by_stem[stem], _split_of(stem, val, test))
        for stem, path in sorted(image_by_stem.items())
    ]


def read_scene_list(path: Path) -> list[LabelledScene]:
    """Read a CSV with the columns image, labels, split (train, val or test); paths relative to the file.

    Raises:
        DataError: a column is missing, a split unknown, a file absent; the line is named.
    """
    scenes = []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for number, row in enumerate(csv.DictReader(lines), start=2):
                if not row.get("image") or not row.get("labels"):
                    raise DataError(f"{path}, line {number}: needs the columns image, labels and split")
                split = (row.get("split") or "train").strip()
                if split not in ("train", "val", "test"):
                    raise DataError(f"{path}, line {number}: split {split!r}; needs train, val or test")
                scene = LabelledScene(path.parent / row["image"], path.parent / row["labels"], split)
                for file in (scene.image, scene.labels):
                    if not file.is_file():
                        raise DataError(f"{path}, line {number}: {file} does not exist")
                scenes.append(scene)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: cannot be read as a CSV ({err})") from err
    if not scenes:
        raise DataError(f"{path}: no scenes listed")
    return scenes


def _by_stem(folder: Path, pattern: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in found:
            raise DataError(f"{path} and {found[path.stem]} have the same name")
        found[path.stem] = path
    return found


def _split_of(stem: str, val: Sequence[str], test: Sequence[str]) -> Split:
    if any(fnmatch(stem, pattern) for pattern in test):
        return "test"
    return "val" if any(fnmatch(stem, pattern) for pattern in val) else "train"


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


def load_scene(scene: LabelledScene, spec: ModelSpec, *, finest_gsd_m: float | None = None) -> LoadedScene:
    """Read an image and its labels at the finer of `finest_gsd_m` and the model's resolution, never finer
    than the scene.

    Images without CRS are taken to be at the model's resolution.

    Raises:
        DataError: labels of another size without georeferencing, or values that are no class.
        SceneError: the image cannot be read or lacks bands.
    """
    info = inspect(str(scene.image))
    bands = select_bands(info, spec.bands, None)
    ground = info.grid.gsd_m
    native = spec.gsd_m if ground is None or spec.gsd_m is None else float(np.sqrt(ground[0] * ground[1]))
    target = native if native is None else max(native, finest_gsd_m or spec.gsd_m or native)
    grid = info.grid
    if target is not None and native is not None and abs(target / native - 1) > 0.02:
        across = max(1, round(grid.width * (ground or (native, native))[0] / target))
        down = max(1, round(grid.height * (ground or (native, native))[1] / target))
        grid = grid.scaled(width=across, height=down)
    with LabelReader(
        scene.labels, grid, LabelFormat(class_names=spec.class_names), image_grid=info.grid
    ) as truth:
        labels = truth.read(0, 0, grid.height, grid.width)
    rows, cols = _labelled_part(labels)
    labels = labels[rows, cols]
    with SceneReader(info, bands, grid, None) as reader:
        image, valid = reader.read(rows.start, cols.start, *labels.shape)
        image = reader.fill(image, valid)
    labels = np.where(valid, labels, np.uint8(IGNORE))
    return LoadedScene(scene.image.stem, _to_uint8(image, valid), labels, target or 1.0)


def _labelled_part(labels: NDArray[np.uint8]) -> tuple[slice, slice]:
    """The smallest box that holds every label; a scene may be labelled in a corner only."""
    rows = np.flatnonzero((labels != IGNORE).any(1))
    cols = np.flatnonzero((labels != IGNORE).any(0))
    if not rows.size:
        return slice(0, labels.shape[0]), slice(0, labels.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _to_uint8(image: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """8-bit images as they are; others between their 2nd and 98th percentile, band by band."""
    if image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    stretched = np.zeros(image.shape, np.uint8)
    for band, values in enumerate(image.astype(np.float32)):
        if valid.any():
            low, high = np.percentile(values[valid], (2, 98))
            stretched[band] = np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255).round()
    return stretched
