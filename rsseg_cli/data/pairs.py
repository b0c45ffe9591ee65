"""Labelled scenes in folders of pairs and in lists."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from rsseg_cli.data.label_format import LabelFormat
from rsseg_cli.data.label_vector import VECTOR_SUFFIXES, is_vector
from rsseg_cli.data.scenes import LabelledScene
from rsseg_cli.errors import DataError

IMAGE_SUFFIXES = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".vrt", ".jp2", ".bmp", ".img"}
MAX_NAMED = 5  # files that a message names


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
    found = _matching(folder, images, IMAGE_SUFFIXES)
    labels = _matching(folder, masks, IMAGE_SUFFIXES | VECTOR_SUFFIXES)
    if not found or not labels:
        missing = " and ".join(name for name, some in ((images, found), (masks, labels)) if not some)
        raise DataError(f"{folder}: nothing matches {missing}; pass --images and --masks, globs inside it")
    literal = not set("*?[") & set(images + masks) and len(found) == len(labels)
    if literal or (len(labels) == 1 and is_vector(labels[0])):
        pairs = [(image, labels[0]) for image in found]  # two files by name, or one of polygons for all
    else:
        pairs = _pairs(folder, (images, found), (masks, labels))
    return [
        LabelledScene(image, mask, _split_of(image.stem, val, test), format=format) for image, mask in pairs
    ]


def read_scene_list(path: Path, format: LabelFormat | None = None) -> list[LabelledScene]:
    """Read a CSV with the columns image, labels, and maybe split (train, val, test; train where empty) and
    classes_field (the vector attribute that names the class); paths relative to the file.
    """
    scenes = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            for number, row in enumerate(csv.DictReader(lines, skipinitialspace=True), start=2):
                scenes.append(_listed(path, f"{path}, line {number}", row, format))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: cannot be read as a CSV ({err})") from err
    if not scenes:
        raise DataError(f"{path}: no scenes listed")
    return scenes


def _listed(
    path: Path, where: str, row: Mapping[str, str | None], format: LabelFormat | None
) -> LabelledScene:
    if not row.get("image") or not row.get("labels"):
        raise DataError(f"{where}: needs the columns image, labels and split")
    split, field = (row.get("split") or "train").strip(), (row.get("classes_field") or "").strip()
    if split not in ("train", "val", "test"):
        raise DataError(f"{where}: split {split!r}; needs train, val or test")
    image, labels = (path.parent / str(row[key]).strip() for key in ("image", "labels"))
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
    first, last = min(texts), max(texts)
    differs = (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    return first[: next(differs, min(len(first), len(last)))]


def named(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (" ..." if len(names) > MAX_NAMED else "")


def _split_of(stem: str, val: Sequence[str], test: Sequence[str]) -> str:
    if any(fnmatch(stem, pattern) for pattern in test):
        return "test"
    return "val" if any(fnmatch(stem, pattern) for pattern in val) else "train"
