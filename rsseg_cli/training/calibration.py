"""What a model file says of its own certainty: a temperature, and where its training data lie."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli import files
from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig, LabelFormat, LabelledData, LabelReader, datasets
from rsseg_cli.errors import DataError, ModelError
from rsseg_cli.evaluation import metrics
from rsseg_cli.inference import Engine, domain
from rsseg_cli.pipeline import passes
from rsseg_cli.raster import classes
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, registry

TILES = 400  # of a part of the data, spread evenly over its scenes
TILES_OF_SCENE = 64
PIXEL_SHARE = 1 / 64  # of the labelled pixels, for the temperature: neighbours are alike
TEMPERATURES = tuple(2.0 ** (np.arange(-40, 81) / 20))  # 0.25 to 16 in steps of 3.5 %
LEAST_DATA = 0.5  # of a tile's pixels
HEADING = "## Confidence"
Progress = Callable[[str], object]


class Tile(NamedTuple):
    """A tile's logits (N, h, w) on the CPU, its descriptors by kind, (D,) each, and its labels (h, w)."""

    logits: Tensor
    described: dict[str, Tensor]
    labels: NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image, and its labels where they are wanted, with the model's number of each of their classes."""

    image: str
    labels: Path | None = None
    format: LabelFormat | None = None
    config: PredictConfig


class TemperatureFit:
    """Negative log-likelihood and reliability at each of `TEMPERATURES`, of pixels as they come."""

    def __init__(self) -> None:
        self.pixels = 0
        self._loss = np.zeros(len(TEMPERATURES))
        self._reliability = [metrics.Reliability() for _ in TEMPERATURES]

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits (pixels, N) and class numbers (pixels,)."""
        self.pixels += len(labels)
        right = (logits.max(1).indices == labels).numpy()
        known = np.ones(len(labels), np.bool_)
        for index, temperature in enumerate(TEMPERATURES):
            logs = (logits / temperature).log_softmax(1)
            self._loss[index] -= float(logs.gather(1, labels[:, None]).sum())
            confidence = (logs.amax(1).exp() * metrics.FULL_SCALE).round().to(torch.uint8).numpy()
            self._reliability[index].add(confidence, right, known)

    def result(self) -> dict[str, float]:
        """Return the temperature of the least loss, the loss and calibration error at it and at 1."""
        best, plain = int(self._loss.argmin()), TEMPERATURES.index(1.0)
        errors = [(self._reliability[index].summary() or {})["ece"] for index in (plain, best)]
        return {
            "temperature": round(float(TEMPERATURES[best]), 4),
            "ece_before": errors[0],
            "ece_after": errors[1],
            "log_loss_before": self._loss[plain] / self.pixels,
            "log_loss_after": self._loss[best] / self.pixels,
            "pixels": self.pixels,
        }


def calibrate(
    model: TrainedModel,
    data: LabelledData,
    split: str = "val",
    *,
    training: Sequence[str] = (),
    config: PredictConfig | None = None,
    progress: Progress = lambda _: None,
) -> ModelSpec:
    """Return the model's description with a temperature and statistics of its training data.

    The temperature is that of the least negative log-likelihood on labelled pixels of the part `split`
    ("all" for every scene). The statistics are of tiles of the scenes `training`, by default of the part
    "train"; their limits are such that nearly all tiles of `split` lie within.

    Raises:
        DataError: a part has no scenes or no labels, or classes that the model does not know.
    """
    config = config or PredictConfig()
    fit, held_out = TemperatureFit(), list[dict[str, Tensor]]()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="rsseg-calibrate-") as folder:
        labelled = data.sources if split == "all" else data.split(split)
        table = _class_numbers(model.spec, data)
        for tile in _tiles(model, _scenes(labelled, data, Path(folder), config), len(labelled), progress):
            held_out.append(tile.described)
            labels = table[tile.labels]
            rows, cols = np.nonzero(labels != classes.IGNORE)
            chosen = np.flatnonzero(rng.random(len(rows)) < PIXEL_SHARE)
            if len(chosen):
                place = torch.from_numpy(rows[chosen]), torch.from_numpy(cols[chosen])
                known = torch.from_numpy(labels[rows[chosen], cols[chosen]].astype(np.int64))
                fit.add(tile.logits[:, *place].T, known)
        if not fit.pixels:
            raise DataError(f"{data.name or 'data'}: no labelled pixel in the part {split!r}")
        if training:
            scenes = [Scene(image=path, config=config) for path in training]
            tiles = _tiles(model, iter(scenes), len(scenes), progress)
        else:
            sources = data.split("train")
            tiles = _tiles(model, _scenes(sources, data, Path(folder), config), len(sources), progress)
        seen = [tile.described for tile in tiles]
    result: dict[str, Any] = fit.result() | {"data": data.name, "part": split}
    spec = replace(model.spec, temperature=result["temperature"])
    if seen:
        validation = _joined(held_out)
        spec = spec.with_training_tiles(_joined(seen), validation)
        alarms = domain.TileDistances(spec, torch.device("cpu")).of(validation).mean(1) > 1
        result |= {"training_tiles": len(seen), "false_alarms": float(alarms.float().mean())}
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}
    return replace(spec, scores=spec.scores | {"calibration": rounded})


def _class_numbers(spec: ModelSpec, data: LabelledData) -> NDArray[np.uint8]:
    """The model's class of each label value, uint8 (256,)."""
    known = {classes.plain(name): index for index, name in enumerate(spec.class_names)}
    unknown = [name for name in data.class_names if classes.plain(name) not in known]
    if unknown:
        raise DataError(f"{data.name or 'data'}: model {spec.name!r} has no class {', '.join(unknown)}")
    table = np.full(256, classes.IGNORE, np.uint8)
    table[: len(data.class_names)] = [known[classes.plain(name)] for name in data.class_names]
    return table


def _scenes(
    sources: Sequence[datasets.Source], data: LabelledData, folder: Path, config: PredictConfig
) -> Iterator[Scene]:
    format = datasets.single_labels(data)
    for source in sources:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            image, labels = source.rasters(Path(own))
            read = replace(config, **datasets.reading(source))
            yield Scene(image=image, labels=labels, format=format, config=read)


def _tiles(model: TrainedModel, scenes: Iterator[Scene], count: int, progress: Progress) -> Iterator[Tile]:
    """Run tiles of each scene, spread evenly over it."""
    each = max(1, min(TILES_OF_SCENE, TILES // max(count, 1)))
    for number, scene in enumerate(scenes, 1):
        yield from _tiles_of(model, scene, each)
        progress(f"{number} of {count}: {scene.image}")


def _tiles_of(model: TrainedModel, scene: Scene, count: int) -> Iterator[Tile]:
    job = passes.prepare(scene.image, {"labels": Path("unused.tif")}, model, scene.config)
    plan, grid = passes.plan_tiles(job), job.network_grid
    kept = list[dict[str, Tensor]]()

    def describe(pixels: Tensor, pooled: Tensor) -> Tensor:
        kept.append({kind: values[0].cpu() for kind, values in domain.descriptors(pixels, pooled).items()})
        return pooled

    engine = Engine(
        model, classes=len(model.spec.classes), scaling=job.scaling, config=job.config, describe=describe
    )
    labels = None
    if scene.labels is not None and scene.format is not None:
        labels = LabelReader(scene.labels, grid, scene.format, image_grid=job.grid)
    chosen = np.unique(np.linspace(0, len(plan) - 1, min(count, len(plan))).round().astype(int)).tolist()
    with engine, job.reader(grid) as reader:
        for index in chosen:
            tile = plan.tile(*divmod(index, len(plan.cols)))
            window = tile.row, tile.col, tile.height, tile.width
            pixels, valid = reader.read(*window)
            if valid.mean() < LEAST_DATA:
                continue
            logits = engine.run([reader.fill(pixels, valid)])[0].cpu()
            engine.take_descriptions()
            known = None
            if labels is not None:
                known = np.where(valid, labels.read(*window), np.uint8(classes.IGNORE))
            yield Tile(logits, kept.pop(), known)
    if labels is not None:
        labels.close()


def _joined(described: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {kind: torch.stack([item[kind] for item in described]) for kind in described[0]}


def calibrate_file(
    model: str,
    output: Path,
    data: DataConfig,
    split: str = "val",
    *,
    training: Sequence[str] = (),
    config: PredictConfig | None = None,
    progress: Progress = lambda _: None,
    overwrite: bool = False,
) -> ModelSpec:
    """Write a copy of a model file and of its card with what `calibrate` gives; return its description."""
    registry.check_target(output, overwrite)
    loaded = load_model(model)
    if loaded.spec.architecture != "bicor-seg":
        raise ModelError(f"model {loaded.spec.name!r}: only a BiCoR-Seg model can be calibrated")
    chosen = replace(data, bands=data.bands or loaded.spec.bands) if data.dataset else data
    labelled = datasets.open_data(chosen, default_classes=loaded.spec.classes)
    spec = calibrate(loaded, labelled, split, training=training, config=config, progress=progress)
    registry.rewrite_spec(model, output, spec, overwrite=overwrite)
    card = registry.model_file(model).with_suffix(".md")
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {spec.name}\n"
    with files.write_atomic(output.with_suffix(".md")) as temporary:
        temporary.write_text(with_section(text, calibration_section(spec)), encoding="utf-8")
    return spec


def calibration_section(spec: ModelSpec) -> str:
    """Return the card's section on confidences, Markdown; "" where nothing was measured."""
    known = spec.scores.get("calibration")
    if not known:
        return ""
    part = "all scenes" if known["part"] == "all" else f"the part {known['part']}"
    lines = [
        HEADING,
        "",
        f"Temperature {known['temperature']:.3g}, chosen on {known['pixels']:,} labelled pixels of "
        f"{known['data']} ({part}).",
        f"Expected calibration error there, 15 bins: {known['ece_before']:.3f} without it, "
        f"{known['ece_after']:.3f} with it; log loss {known['log_loss_before']:.3f} and "
        f"{known['log_loss_after']:.3f}.",
    ]
    if spec.training_tiles:
        lines.append(
            f"`predict` warns of a scene that is unlike the training data ({known['training_tiles']:,} tiles "
            f"of it) in colour, texture and features; of the tiles above {known['false_alarms']:.1%} are."
        )
    return "\n".join(lines) + "\n"


def with_section(card: str, section: str) -> str:
    """Put the section into a card, in place of the one it has, before "Commands" or at the end."""
    kept = re.sub(rf"^{HEADING}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    before, heading, after = kept.partition("\n## Commands")
    return f"{before.rstrip()}\n\n{section}{heading}{after}"
