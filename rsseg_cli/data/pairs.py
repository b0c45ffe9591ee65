"""Labelled scenes in folders of pairs and in lists, and which of them choose the epoch."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from rsseg_cli.data.label_format import IGNORE, LabelFormat
from rsseg_cli.data.label_vector import VECTOR_SUFFIXES, is_vector
from rsseg_cli.data.labels import LabelReader
from rsseg_cli.data.scenes import LabelledScene, safe_name
from rsseg_cli.errors import DataError
from rsseg_cli.raster import SceneInfo, gdal

IMAGE_SUFFIXES = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".vrt", ".jp2", ".bmp", ".img"}
LOOK_PX = 512  # longest side at which labels are looked at to split by labelled area
OVERSHOOT = 1.25  # of the validation share, before a scene is passed over for a smaller one
MAX_LIST_BYTES = 64 << 20
MAX_NAMED = 5  # files that a message names
logger = logging.getLogger(__name__)


def find_scenes(
    folder: Path,
    *,
    images: str = "images/*",
    masks: str = "masks/*",
    val: Sequence[str] = (),
    test: Sequence[str] = (),
    format: LabelFormat | None = None,
) -> list[LabelledScene]:
    """Pair images and labels by what the `*` of the patterns matched, else by their stem; or all images with
    the one vector file that `masks` matches.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; needs one with {images} and {masks}")
    pictures = _matching(folder, images, IMAGE_SUFFIXES)
    labels = _matching(folder, masks, IMAGE_SUFFIXES | VECTOR_SUFFIXES)
    if not pictures or not labels:
        missing = " and ".join(name for name, some in ((images, pictures), (masks, labels)) if not some)
        raise DataError(f"{folder}: nothing matches {missing}; pass --images and --masks, globs inside it")
    literal = not set("*?[") & set(images + masks) and len(pictures) == len(labels)
    if literal or (len(labels) == 1 and is_vector(labels[0])):
        pairs = [(image, labels[0]) for image in pictures]  # two files by name, or one of polygons for all
    else:
        pairs = _pairs(folder, (images, pictures), (masks, labels))
    return [
        LabelledScene(image, mask, _split_of(image.stem, val, test), format=format) for image, mask in pairs
    ]


def read_scene_list(path: Path, format: LabelFormat | None = None) -> list[LabelledScene]:
    """Read a CSV with the columns image, labels, and maybe split (train, val, test; train where empty) and
    classes_field (the vector attribute that names the class); paths relative to the file.

    Columns are separated by commas, semicolons or tabs, whichever the first line has most; texts may be in
    single or double quotes.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes; a list has at most {MAX_LIST_BYTES}")
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        head = next((line for line in lines if line.strip()), "")
        rows = csv.reader(lines, delimiter=max(",;\t", key=head.count), skipinitialspace=True)
        cells = [(rows.line_num, [_unquoted(cell) for cell in row]) for row in rows if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: cannot be read as a CSV ({err})") from err
    columns = [column.lower() for column in cells[0][1]] if cells else []
    scenes = [
        _listed(path, f"{path}, line {number}", dict(zip(columns, row, strict=False)), format)
        for number, row in cells[1:]
    ]
    if not scenes:
        raise DataError(f"{path}: no scenes listed")
    return scenes


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "'\"" else cell


def _listed(path: Path, where: str, row: Mapping[str, str], format: LabelFormat | None) -> LabelledScene:
    if not row.get("image") or not row.get("labels"):
        raise DataError(f"{where}: needs the columns image, labels and split")
    split, field = row.get("split") or "train", row.get("classes_field", "")
    if split not in ("train", "val", "test"):
        raise DataError(f"{where}: split {split!r}; needs train, val or test")
    image, labels = (path.parent / row[key] for key in ("image", "labels"))
    for file in (image, labels):
        if not file.is_file():
            raise DataError(f"{where}: {file} does not exist")
    if field and format is not None:
        format = replace(format, field=field)
    return LabelledScene(image, labels, split, format=format)


def _matching(folder: Path, pattern: str, suffixes: set[str]) -> list[Path]:
    try:
        return sorted(
            path for path in folder.glob(pattern) if path.suffix.lower() in suffixes and path.is_file()
        )
    except (ValueError, NotImplementedError) as err:
        raise DataError(f"{folder}: {pattern!r} is no pattern inside a folder ({err})") from err


def _pairs(
    folder: Path, images: tuple[str, list[Path]], masks: tuple[str, list[Path]]
) -> list[tuple[Path, Path]]:
    """Images with their masks, in the images' order."""
    keyed = [[_keys(folder, *side) for side in (images, masks)]]
    keyed.append([[path.stem for path in side[1]] for side in (images, masks)])
    for keys in keyed:
        if all(len(set(side)) == len(side) for side in keys) and set(keys[0]) == set(keys[1]):
            by_key = dict(zip(keys[1], masks[1], strict=True))
            return [(image, by_key[key]) for key, image in zip(keys[0], images[1], strict=True)]
    for side, (_, paths) in zip(keyed[0], (images, masks), strict=True):
        first: dict[str, Path] = {}
        for key, path in zip(side, paths, strict=True):
            if key in first:
                raise DataError(f"{path} and {first[key]} have the same name")
            first[key] = path
    # the way that leaves fewest files alone is the one that was meant
    keys = min(keyed, key=lambda keys: len(set(keys[0]) ^ set(keys[1])))
    alone = [sorted(set(keys[0]) - set(keys[1])), sorted(set(keys[1]) - set(keys[0]))]
    problems = [
        f"{len(names)} of {pattern} have no partner: {named(names)}"
        for names, (pattern, _) in zip(alone, (images, masks), strict=True)
        if names
    ]
    raise DataError(f"{folder}: {'; '.join(problems)}{_advice(images, masks)}")


def _keys(folder: Path, pattern: str, paths: Sequence[Path]) -> list[str]:
    """What the pattern's wildcards matched in each path, without the file's suffix."""
    stem = re.sub(r"(?<=[^/])\.[A-Za-z0-9*?\[\]]+$", "", pattern)
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", stem)
    groups = {"**/": "((?:.*/)?)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    wild = [groups.get(part) or (f"({part})" if part.startswith("[") else re.escape(part)) for part in parts]
    matcher = re.compile("".join(wild))
    keys = []
    for path in paths:
        match = matcher.fullmatch(path.relative_to(folder).with_suffix("").as_posix())
        keys.append("/".join(match.groups()) if match and match.groups() else path.stem)
    return keys


def _advice(images: tuple[str, list[Path]], masks: tuple[str, list[Path]]) -> str:
    """The patterns that would pair files whose names differ by a fixed beginning and end, if any would."""
    shown, cores = [], []
    for option, (pattern, paths) in zip(("--images", "--masks"), (images, masks), strict=True):
        stems = [path.stem for path in paths]
        start = re.sub(r"\d+$", "", _common_start(stems))
        end = re.sub(r"^\d+", "", _common_start([stem[::-1] for stem in stems])[::-1])
        cores.append({stem[len(start) : len(stem) - len(end)] for stem in stems})
        parent = pattern.rpartition("/")[0]
        shown.append(f"{option} '{parent}{'/' if parent else ''}{start}*{end}{paths[0].suffix}'")
    return f". Pass {' '.join(shown)}" if cores[0] == cores[1] and "" not in cores[0] else ""


def _common_start(texts: Sequence[str]) -> str:
    pairs = enumerate(zip(min(texts), max(texts), strict=False))
    return texts[0][: next((place for place, (one, other) in pairs if one != other), min(map(len, texts)))]


def named(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (" ..." if len(names) > MAX_NAMED else "")


def _split_of(stem: str, val: Sequence[str], test: Sequence[str]) -> str:
    if any(fnmatch(stem, pattern) for pattern in test):
        return "test"
    return "val" if any(fnmatch(stem, pattern) for pattern in val) else "train"


def unique_names(scenes: Sequence[LabelledScene]) -> list[LabelledScene]:
    """Scenes of one name get their folders' names before theirs, their part, or numbers after it.

    Names differ also as parts of file names.
    """
    parts: dict[tuple[Path, Path, str], str] = {}
    for scene in scenes:
        field = scene.format.field if scene.format else ""
        part = parts.setdefault((scene.image.absolute(), scene.labels.absolute(), field), scene.split)
        if part != scene.split:
            text = "%s: is listed for %s and for %s; scores will be too good"
            logger.warning(text, scene.image, part, scene.split)
    for scheme in (lambda s: s.name, lambda s: f"{s.image.parent.name}-{s.name}",
                   lambda s: f"{s.image.parent.parent.name}-{s.image.parent.name}-{s.name}",
                   lambda s: f"{s.split}-{s.name}"):  # fmt: skip
        names = [scheme(scene) for scene in scenes]
        if len(set(map(safe_name, names))) == len(names):
            return [replace(scene, name=name) for scene, name in zip(scenes, names, strict=True)]
    width = len(str(len(scenes)))
    return [replace(scene, name=f"{scene.name}-{k:0{width}}") for k, scene in enumerate(scenes, 1)]


def with_validation(
    scenes: Sequence[Any], areas: Callable[[Sequence[Any]], list[float]], *, share: float, seed: int
) -> list[Any]:
    """Where no scene is for validation, hold out about `share` of the training scenes' labelled area.

    Scenes are taken in an order that the seed alone decides; of a single one, its last rows. Which ones is
    said in the log.
    """
    train = sorted((scene for scene in scenes if scene.split == "train"), key=lambda scene: scene.name)
    if any(scene.split == "val" for scene in scenes) or not train:
        return list(scenes)
    if len(train) == 1:
        if not isinstance(train[0], LabelledScene):
            raise DataError(f"{train[0].name}: is the only training image; needs two, one for validation")
        parts = _two_parts(train[0], share)
        return [part for scene in scenes for part in (parts if scene is train[0] else [scene])]
    sizes, held, taken = areas(train), [], 0.0
    wanted = share * sum(sizes)
    for index in np.random.default_rng(seed).permutation(len(train)):
        if taken < wanted and taken + sizes[index] <= OVERSHOOT * wanted:
            held.append(train[index])
            taken += sizes[index]
    if not held:
        held.append(train[min(range(len(train)), key=sizes.__getitem__)])
    logger.warning(
        "no validation part is named: %d of %d training scenes are held out to choose the epoch: %s",
        len(held), len(train), named(sorted(scene.name for scene in held)),
    )  # fmt: skip
    ids = set(map(id, held))  # names may be those of test scenes too
    return [replace(scene, split="val") if id(scene) in ids else scene for scene in scenes]


def labelled_areas(scenes: Sequence[LabelledScene]) -> list[float]:
    """Labelled area of each, m2 on the ground if all have a CRS, else px."""
    grids = [SceneInfo.of(scene.image).grid for scene in scenes]
    metres = [grid.gsd_m or (0.0, 0.0) for grid in grids]
    if not all(along for along, _ in metres):
        metres = [(1.0, 1.0)] * len(grids)
    pixels = [
        grid.width * grid.height * along * down for grid, (along, down) in zip(grids, metres, strict=True)
    ]
    return [size * _labelled_share(scene) for size, scene in zip(pixels, scenes, strict=True)]


def _labelled_share(scene: LabelledScene) -> float:
    """Share of a raster's pixels that are not 255 or nodata, on a sample of rows and columns; polygons: 1."""
    if is_vector(scene.labels):
        return 1.0
    with gdal.errors(DataError, str(scene.labels)), gdal.open_raster(scene.labels) as dataset:
        shrink = max(1.0, max(dataset.shape) / LOOK_PX)
        size = max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink))
        labels = dataset.read(1, out_shape=size)
        known = dataset.read_masks(1, out_shape=size) > 0
    return max(float(np.mean(known & (labels != IGNORE) & (labels == labels))), 1e-6)


def _two_parts(scene: LabelledScene, share: float) -> list[LabelledScene]:
    """A scene cut by a row, so that `share` of its labels lie below: training and validation part."""
    grid = SceneInfo.of(scene.image).grid
    shrink = max(1.0, max(grid.width, grid.height) / LOOK_PX)
    coarse = grid.scaled(width=max(1, int(grid.width / shrink)), height=max(1, int(grid.height / shrink)))
    with LabelReader(scene.labels, coarse, scene.label_format(()), image_grid=grid) as reader:
        counts = (reader.read(0, 0, coarse.height, coarse.width) != IGNORE).sum(1).cumsum()
    row = int(np.searchsorted(counts, (1 - share) * counts[-1])) + 1
    cut = round(row * grid.height / coarse.height)
    if not counts[-1] or not 0 < cut < grid.height or counts[min(row, coarse.height) - 1] == counts[-1]:
        raise DataError(
            f"{scene.image}: is the only training scene and cannot be cut in two; name another by --val"
        )
    logger.warning(
        "%s is the only training scene: its rows from %d on (%.0f %% of its labels) are held out to choose "
        "the epoch; name another scene for validation if there is one", scene.image, cut, 100 * share,
    )  # fmt: skip
    return [
        replace(scene, name=f"{scene.name}-above", rows=(0, cut)),
        replace(scene, name=f"{scene.name}-below", rows=(cut, grid.height), split="val"),
    ]
