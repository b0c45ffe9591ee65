"""Coarse maps of training scenes on the scenes' grids: made by a model beforehand, or given as rasters.

A model maps the scenes that it was trained on too well for a refiner to learn from. Maps by models that were
trained without the scene ("out of fold") are given as rasters; those of the model itself are made at several
ground resolutions, and `degrade` makes them worse as crops are drawn.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.config import PredictConfig
from rsseg_cli.data import LabelFormat, LabelledData, LabelReader, LoadedScene, datasets
from rsseg_cli.data import scenes as scene_arrays
from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.pipeline import predict
from rsseg_cli.raster import SceneInfo, SceneReader, classes
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, read_spec, registry

logger = logging.getLogger(__name__)
Maps = tuple[NDArray[np.uint8], ...]
Pair = tuple[datasets.Source, LoadedScene]

RASTERS = (".tif", ".tiff", ".png", ".vrt", ".img")
MARGIN_PX = 128  # around the labelled part of a scene that a model maps


class CoarseSource(NamedTuple):
    """One `--coarse`: a model, or rasters if `model` is None."""

    given: str
    model: ModelSpec | None = None
    files: tuple[Path, ...] = ()


def coarse_sources(given: Sequence[str], class_names: Sequence[str]) -> list[CoarseSource]:
    """Check what `--coarse` names."""
    if not given:
        raise UsageError("no coarse maps: pass --coarse MODEL, or --coarse FOLDER with label rasters")
    models, sources = registry.list_models(), []
    for item in given:
        if item not in models and Path(item).suffix != ".safetensors":
            otherwise = f", and no model ({', '.join(models)}, or a file .safetensors)"
            sources.append(_rasters(item, "--coarse", otherwise))
            continue
        spec = read_spec(item)
        if spec.is_refiner:
            raise ModelError(f"--coarse {item}: is a refiner; needs a model that segments")
        _values(dict(enumerate(spec.class_names)), class_names, f"--coarse {item}")
        sources.append(CoarseSource(given=item, model=spec))
    return sources


def _rasters(given: str, option: str, otherwise: str = "") -> CoarseSource:
    pattern = f"{glob.escape(given)}/*" if Path(given).is_dir() else given
    files = sorted(file for file in map(Path, glob.glob(pattern)) if file.suffix.lower() in RASTERS)
    if not files:
        raise DataError(f"{option} {given}: no rasters there ({', '.join(RASTERS)}){otherwise}")
    return CoarseSource(given=given, files=tuple(files))


def _values(names: Mapping[int, str], class_names: Sequence[str], where: str) -> dict[int, int]:
    """Return pixel value of a map -> class number of the data, by the classes' names."""
    numbers = {classes.plain(name): index for index, name in enumerate(class_names)}
    unknown = [name for name in names.values() if classes.plain(name) not in numbers]
    if unknown:
        raise ModelError(
            f"{where}: class {unknown[0]!r:.80} is none of the data's ({', '.join(class_names)}); needs maps "
            "of the same classes"
        )
    return {value: numbers[classes.plain(name)] for value, name in names.items()}


def match_files(scenes: Sequence[tuple[str, str]], sources: Sequence[CoarseSource]) -> dict[str, list[Path]]:
    """Return rasters by scene: {stem}.tif or {stem}_*.tif belongs to the scene with the longest such stem.

    `scenes` are (name, stem of the image); the name goes before the stem.
    """
    stems: dict[str, list[str]] = {}
    for name, stem in scenes:
        for known in dict.fromkeys((name, stem)):
            stems.setdefault(known, []).append(name)
    matched: dict[str, list[Path]] = {name: [] for name, _ in scenes}
    for file in (file for source in sources for file in source.files):
        matching = [stem for stem in stems if file.stem == stem or file.stem.startswith(f"{stem}_")]
        if matching:
            for name in stems[max(matching, key=len)]:
                matched[name].append(file)
    return matched


@dataclass(frozen=True, kw_only=True)
class CoarseMaker:
    """Coarse maps of scenes: memory-mapped arrays in `folder`, and a model's rasters in `kept`."""

    sources: Sequence[CoarseSource]
    class_names: tuple[str, ...]
    folder: Path
    kept: Path
    gsds: tuple[float, ...] = (1.0,)
    device: str = "auto"

    def maps(self, scenes: Sequence[Pair], data: LabelledData) -> list[Maps]:
        """Return each scene's maps on its training grid, models' first; only one of a validation scene."""
        files = match_files([(source.name, source.stem) for source in data.sources], self.sources)
        models = [source for source in self.sources if source.model is not None]
        lacking = [source.name for source, _ in scenes if not files[source.name] and not models]
        if lacking:
            raise DataError(
                f"no coarse map of {datasets.named(lacking)}; needs STEM.tif or STEM_*.tif in --coarse "
                f"{' or '.join(source.given for source in self.sources)}, or a model"
            )
        made: list[list[Path]] = [[] for _ in scenes]
        pictures = [source.picture(self.folder) for source, _ in scenes]
        for model in models:
            loaded = load_model(model.given)
            for (source, scene), picture, paths in zip(scenes, pictures, made, strict=True):
                if source.split == "train" or not paths:
                    gsds = self.gsds if source.split == "train" else self.gsds[:1]
                    paths += [self._predicted(loaded, source, scene, picture, times) for times in gsds]
        maps = []
        for (source, scene), picture, paths in zip(scenes, pictures, made, strict=True):
            chosen = [*paths, *files[source.name]][: None if source.split == "train" else 1]
            maps.append(tuple(self._read(path, scene, picture, n) for n, path in enumerate(chosen)))
        return maps

    def _predicted(
        self, model: TrainedModel, source: datasets.Source, scene: LoadedScene, picture: str, times: float
    ) -> Path:
        """Return a model's map of a scene; make it unless an earlier part of the run did."""
        name = f"{scene_arrays.safe_name(scene.name)}.{scene_arrays.safe_name(model.spec.name)}.{times:g}.tif"
        path = self.kept / name
        if path.exists():
            return path
        self.kept.mkdir(parents=True, exist_ok=True)
        spec, grid = model.spec, scene.grid
        bbox = None
        if grid is not None and grid.crs is not None:
            sides = grid.height + 2 * MARGIN_PX, grid.width + 2 * MARGIN_PX
            bbox = grid.window(-MARGIN_PX, -MARGIN_PX, *sides).bounds
        gsd_m = spec.gsd_m * times if spec.gsd_m and times != 1 and bbox else None
        config = PredictConfig(device=self.device, bbox=bbox, gsd_m=gsd_m, **datasets.reading(source))
        predict(picture, path, model=model, config=config)
        return path

    def _read(self, path: Path, scene: LoadedScene, picture: str, number: int) -> NDArray[np.uint8]:
        """Read a map on the scene's training grid: most frequent class where pixels shrink, else nearest."""
        if scene.grid is None:
            raise ValueError(f"{scene.name}: a coarse map needs a grid")
        names = classes.read_names(path)
        values = _values(names, self.class_names, str(path)) | {classes.IGNORE: classes.IGNORE}
        format = LabelFormat(class_names=self.class_names, values=values if names else None)
        name = f"{scene_arrays.safe_name(scene.name)}.coarse{number}"
        array = scene_arrays.array_in(self.folder, name, scene.labels.shape)
        with LabelReader(path, scene.grid, format, image_grid=SceneInfo.of(picture).grid) as reader:
            scene_arrays.fill(array, reader.read)
        if not np.count_nonzero((array != classes.IGNORE) & (scene.labels != classes.IGNORE)):
            raise DataError(
                f"{path}: has no class where {scene.name} is labelled; is it a map of that scene?"
            )
        return array


def closer_looks(
    given: Sequence[str], scenes: Sequence[Pair], data: LabelledData, folder: Path
) -> list[NDArray[np.uint8]]:
    """Read class probabilities (N, height, width) on the scenes' training grids: 0 to 254, 255 unknown.

    `given` are folders or patterns of what `rsseg predict --probabilities` writes; `folder` gets the arrays.
    """
    sources = [_rasters(item, "--closer-maps") for item in given]
    files = match_files([(source.name, source.stem) for source in data.sources], sources)
    looks = []
    for source, scene in scenes:
        paths = files[source.name]
        if len(paths) != 1:
            raise DataError(
                f"{source.name}: {len(paths)} rasters in --closer-maps {' '.join(given)}; needs one, "
                "STEM.tif or STEM_*.tif"
            )
        looks.append(_look(paths[0], scene, len(data.classes), folder))
    return looks


def _look(path: Path, scene: LoadedScene, count: int, folder: Path) -> NDArray[np.uint8]:
    if scene.grid is None:
        raise ValueError(f"{scene.name}: a closer look needs a grid")
    info = SceneInfo.of(path)
    if info.count != count or set(info.dtypes) != {"uint8"}:
        raise DataError(
            f"{path}: {info.count} bands of {', '.join(sorted(set(info.dtypes)))}; needs {count} of uint8, "
            "a class each, as rsseg predict --probabilities writes them"
        )
    name = f"{scene_arrays.safe_name(scene.name)}.closer"
    array = scene_arrays.array_in(folder, name, (count, *scene.labels.shape))
    with SceneReader(info, tuple(range(1, count + 1)), scene.grid) as reader:

        def read(*window: int) -> NDArray[np.uint8]:
            values, valid = reader.read(*window)
            return np.where(valid, values, np.uint8(classes.IGNORE))

        scene_arrays.fill(array, read)
    return array
