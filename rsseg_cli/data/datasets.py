"""Labelled data of every kind: opened, checked, split by scene, counted in a table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.config import stretch_pairs
from rsseg_cli.data.label_format import IGNORE, ClassTable, LabelFormat, read_classes
from rsseg_cli.data.label_vector import check_vector, is_vector, read_shapes, vector_crs
from rsseg_cli.data.labels import LabelReader
from rsseg_cli.data.pairs import (
    find_scenes,
    labelled_areas,
    named,
    read_scene_list,
    unique_names,
    with_validation,
)
from rsseg_cli.data.scenes import LabelledScene
from rsseg_cli.data.torchgeo import TorchSample
from rsseg_cli.data.types import DataConfig, LabelledData, LoadedScene, ScoringProtocol
from rsseg_cli.errors import DataError, SceneError, UsageError
from rsseg_cli.raster import SceneInfo
from rsseg_cli.weights import ClassSpec, ModelSpec

__all__ = [
    "ClassTable",
    "LabelledScene",
    "ScoringProtocol",
    "Source",
    "check_coding",
    "class_counts",
    "data_table",
    "is_vector",
    "named",
    "open_data",
    "read_classes",
    "read_scene_list",
    "read_shapes",
    "reading",
    "single_labels",
    "vector_crs",
    "with_fixed_stretch",
]
Source = LabelledScene | TorchSample
PARTS = {"train": "training", "val": "validation", "test": "test"}
MAX_STRETCHED = 256  # images that decide a common stretch
COUNT_PX = 1 << 24  # labels counted at a time
RARE_SHARE = 0.001


def data_table(loaded: Mapping[str, Sequence[LoadedScene]], names: Sequence[str]) -> str:
    """A table of scenes, megapixels, labelled share, and labelled pixels of each class, a column a part.

    Beneath it, warnings: of classes that a part lacks, and of classes that hardly occur in training.
    """
    shown = {part: scenes for part, scenes in loaded.items() if scenes}
    counts = {part: np.sum([class_counts(scene) for scene in scenes], 0) for part, scenes in shown.items()}
    labelled = {part: counts[part][:IGNORE].sum() for part in shown}
    pixels = {part: sum(scene.labels.size for scene in scenes) for part, scenes in shown.items()}
    rows = [
        ["", *(PARTS.get(part, part) for part in shown)],
        ["scenes", *(f"{len(scenes):,}" for scenes in shown.values())],
        ["megapixels", *(f"{pixels[part] / 1e6:,.2f}" for part in shown)],
        ["labelled", *(f"{labelled[part] / max(pixels[part], 1):.1%}" for part in shown)],
    ]
    for index, name in enumerate(names):
        numbers = {part: counts[part][index] for part in shown}
        rows.append([name, *(f"{n:,} ({n / max(labelled[part], 1):.1%})" for part, n in numbers.items())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), *_warnings(counts, names)])


def class_counts(scene: LoadedScene) -> NDArray[np.int64]:
    """Pixels of each label value, 0 to 255."""
    labels, counts = scene.labels, np.zeros(256, np.int64)
    step = max(1, COUNT_PX // max(labels.shape[1], 1))
    for row in range(0, labels.shape[0], step):
        counts += np.bincount(labels[row : row + step].ravel(), minlength=256)
    return counts


def _warnings(counts: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> list[str]:
    warnings = []
    for part, labelled in counts.items():
        absent = [name for index, name in enumerate(names) if not labelled[index]]
        if absent:
            effects = {"train": "nothing to learn from", "val": "no say in the choice of the epoch"}
            lack = f"no labels in the {PARTS.get(part, part)} part, {effects.get(part, 'no score')}"
            warnings.append(f"warning: {', '.join(absent)}: {lack}")
    if "train" in counts:
        total = counts["train"][:IGNORE].sum()
        rare = [n for k, n in enumerate(names) if 0 < counts["train"][k] < RARE_SHARE * total]
        if rare:
            warnings.append(f"warning: under 0.1 % of the training labels: {', '.join(rare)}")
    return warnings


def open_data(
    config: DataConfig, *, default_classes: tuple[ClassSpec, ...] = (), hold_out: bool = True
) -> LabelledData:
    """Find labelled data, pair images with labels, check polygons' classes, and split by scene.

    `default_classes` are those where `config` names none, for instance of the model to start from. Without
    `hold_out` there may be no validation part.
    """
    if config.dataset:
        from rsseg_cli.data.benchmarks import open_benchmark

        data = open_benchmark(config)
    else:
        data = _open_own(config, default_classes)
    if hold_out:
        areas = labelled_areas if not config.dataset else lambda scenes: [1.0] * len(scenes)
        sources = with_validation(data.sources, areas, share=config.val_share, seed=config.seed)
        data = replace(data, sources=tuple(sources))
    data = replace(data, gsd_m=config.gsd_m or data.gsd_m or ground_resolution(data.sources))
    return data.marked(nodata=config.nodata, alpha=config.alpha, stretch=config.stretch)


def with_fixed_stretch(data: LabelledData, spec: ModelSpec) -> tuple[LabelledData, ModelSpec]:
    """Replace the stretch "batch" by the range of all images together; the model keeps a given range."""
    stretch = data.sources[0].stretch if data.sources else "auto"
    if stretch == "batch":
        step = max(1, len(data.sources) // MAX_STRETCHED)
        first = data.sources[0]
        with tempfile.TemporaryDirectory() as folder:
            paths = [source.picture(Path(folder)) for source in data.sources[::step]]
            ranges = SceneInfo.common_ranges(paths, spec.bands, None, first.nodata, first.alpha)
        stretch = tuple(value for pair in ranges for value in pair) or "auto"
        data = data.marked(stretch=stretch)
    ranges = stretch_pairs(stretch, len(spec.bands))
    return data, replace(spec, stretch=tuple(ranges)) if ranges else spec


def _open_own(config: DataConfig, default_classes: tuple[ClassSpec, ...]) -> LabelledData:
    if not config.classes and not default_classes:
        raise UsageError("no classes: pass --classes a,b,c or a JSON file")
    table = read_classes(config.classes) if config.classes else ClassTable(default_classes)
    format = LabelFormat(
        class_names=tuple(item.name for item in table.classes), colours=table.colours, values=table.values,
        field=config.field, vector_class=config.vector_class, outside=config.outside, sets=table.sets,
    )  # fmt: skip
    listed = [scene for path in config.scenes for scene in read_scene_list(path, format)]
    for folder in config.folders:
        listed += find_scenes(
            folder, images=config.images, masks=config.masks, val=config.val, test=config.test, format=format
        )
    _check_patterns(config, listed)
    for scene in {(scene.labels, scene.label_format(()).field): scene for scene in listed}.values():
        if is_vector(scene.labels):
            check_vector(scene.labels, scene.label_format(()))
    _check_places(listed)
    name = next(path.stem for path in (*config.folders, *config.scenes))
    bands = config.bands or LabelledData.bands
    return LabelledData(name, tuple(unique_names(listed)), table.classes, bands, sets=table.sets)


def check_coding(counts: NDArray[np.integer], names: tuple[str, ...], sources: Iterable[Source]) -> None:
    """Refuse label rasters that hold the first class alone where 255 may be the others: masks of 0 and 255.

    `counts` are the pixels by class that were read of these sources.
    """
    if len(names) < 2 or not counts[0] or counts[1 : len(names)].any():
        return
    raw, plain, first = np.zeros(256, np.int64), 0, ""
    for source in sources:
        stored = source.raw_counts(names)
        if stored is None:
            return
        first = stored.where if stored.of_255 and not plain else first
        raw, plain = raw + stored.classes, plain + stored.of_255
    if plain and not raw[1 : len(names)].any():
        items = [{"name": name, "value": value} for name, value in zip(names, (0, 255), strict=False)]
        raise DataError(
            f"{first}: holds no {' and no '.join(names[1:])}, but {plain / raw.sum():.1%} are 255, which is "
            f"unlabelled. If 255 is a class, pass --classes FILE.json with {json.dumps(items)}; if not, add "
            '{"name": "unlabelled", "value": 255} to such a list'
        )


def reading(source: Source) -> dict[str, Any]:
    """How the source's image is to be read, as fields of `PredictConfig`, where that is given."""
    marks = {"nodata": source.nodata, "alpha": source.alpha, "stretch": source.stretch}
    return {name: value for name, value in marks.items() if value not in (None, "auto")}


def single_labels(data: LabelledData) -> LabelFormat:
    """What the labels of the data's rasters mean to scores: sets of classes are unlabelled."""
    known = len(data.classes)
    values = {label: label for label in range(known)} | {known + k: IGNORE for k in range(len(data.sets))}
    return LabelFormat(class_names=data.class_names, values=values if data.sets else None)


def _check_places(scenes: Sequence[LabelledScene]) -> None:
    """Refuse polygons of which none lies on or around any image."""
    problems: dict[Path, str] = {}
    for scene in scenes:
        if is_vector(scene.labels) and problems.get(scene.labels, "?"):
            grid = SceneInfo.of(scene.image).grid
            with LabelReader(scene.labels, grid, scene.label_format(())) as reader:
                problems[scene.labels] = reader.elsewhere()
    for problem in filter(None, problems.values()):
        raise DataError(problem)


def _check_patterns(config: DataConfig, scenes: Sequence[LabelledScene]) -> None:
    """Refuse a pattern of --val or --test that holds nothing out."""
    for option, patterns in (("--val", config.val), ("--test", config.test)):
        for pattern in patterns if config.folders else ():
            if not any(fnmatch(scene.image.stem, pattern) for scene in scenes):
                names = named(sorted(scene.image.stem for scene in scenes))
                raise DataError(f"{option} {pattern}: matches none of the {len(scenes)} images ({names})")


def ground_resolution(scenes: Sequence[Source]) -> float | None:
    """Metres a pixel on the ground of the first training scene, if it can be known."""
    first = next((scene for scene in scenes if scene.split == "train"), None)
    try:
        return SceneInfo.of(first.image).grid.side_m if isinstance(first, LabelledScene) else None
    except SceneError:
        return None
