"""Training runs from settings to a model file and its card: data, network, stages."""

from __future__ import annotations

import copy
import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig, LabelledData, LoadedScene, datasets
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.evaluation import evaluate
from rsseg_cli.system import keep_memory
from rsseg_cli.training.calibration import calibrate
from rsseg_cli.training.cards import model_card
from rsseg_cli.training.coarse_maps import CoarseMaker, coarse_sources
from rsseg_cli.training.config import ModelInfo, RunOptions
from rsseg_cli.training.module import protocol_scores
from rsseg_cli.training.recipes import RefinerSettings, RunSettings, Settings
from rsseg_cli.training.refiner_start import build_refiner, describe_refiner
from rsseg_cli.training.refiner_train import (
    check_sizes,
    fit_refiner,
    load_refiner_scenes,
    validation_scores,
    validation_text,
)
from rsseg_cli.training.start import build_network, describe_model
from rsseg_cli.training.train_model import (
    TrainingScenes,
    TrainResult,
    check_run,
    fit_segmenter,
    load_training_scenes,
    save_settings,
    scene_folder,
)
from rsseg_cli.training.trainer import environment_rank
from rsseg_cli.weights import ModelSpec, TrainedModel, read_spec, registry, save_model

logger = logging.getLogger(__name__)


class TrainedFile(NamedTuple):
    """A saved run: the spec with its scores, and the (last) stage's result, also in words."""

    spec: ModelSpec
    result: TrainResult
    scores: str

    def __str__(self) -> str:
        return f"{self.scores} at epoch {self.result.epoch} of {len(self.result.history)}"


def train(
    output: Path,
    data: DataConfig,
    settings: Settings,
    run: RunOptions,
    info: ModelInfo,
    *,
    show: Callable[[str], object] = lambda _: None,
    command: str = "",
    overwrite: bool = False,
) -> TrainedFile | None:
    """Train BiCoR-Seg and write model file and card; None in all processes of a run but the first."""
    registry.check_target(output, overwrite)
    labelled = _open(data, settings.network.init)
    labelled, spec = datasets.with_fixed_stretch(labelled, describe_model(settings, labelled, info))
    _start(run, settings, overwrite=overwrite)
    network, spec = build_network(spec, settings.network, settings.training.seed)
    with scene_folder(run.run_dir) as folder:
        scenes = load_training_scenes(labelled, spec, settings.training, folder)
        tests = [source.load(spec, folder) for source in labelled.split("test")]
        table = _describe_data(scenes, tests, (*spec.class_names, *labelled.sets), settings, run, show)
        result = fit_segmenter(
            network, spec, scenes, settings.training, run, labelled.protocol, labelled.sets
        )
    if not result.is_main:
        return None
    round_to_stored(network)
    spec = _calibrated(TrainedModel(network, spec), labelled, run)
    val = {key: getattr(result, key) for key in ("epoch", "seconds", "processor_seconds", "steps")}
    scores: dict[str, Any] = {**spec.scores, "val": {"val_miou": result.score, **val}}
    config = PredictConfig(device=run.device)
    if tests:
        model = TrainedModel(copy.deepcopy(network), spec)
        tested = evaluate(model, labelled, "test", config=config, pictures=False).result
        scores["test"] = protocol_scores(tested.confusion, spec.class_names, labelled.protocol)
        scores["test"]["confusion"] = tested.confusion.tolist()
        intervals = tested.scores["intervals"]
        if intervals["miou"][0] is not None:  # of enough blocks
            scores["test"]["intervals"] = {key: intervals[key] for key in ("miou", "iou", "blocks")}
    saved = save_trained(
        network, spec, settings, result, scores, output, table=table, command=command, overwrite=overwrite
    )
    return TrainedFile(saved, result, f"validation mIoU {result.score:.3f}")


def _calibrated(model: TrainedModel, data: LabelledData, run: RunOptions) -> ModelSpec:
    """Return the model's description with what `calibrate` gives, or as it is where that fails."""
    config = PredictConfig(device=run.device, runtime="torch")
    spec = dataclasses.replace(model.spec, scores={})
    try:
        return calibrate(TrainedModel(copy.deepcopy(model.network), spec), data, config=config)
    except DataError as err:
        logger.warning("confidences are not calibrated: %s", err)
        return spec


def train_refiner(
    output: Path,
    data: DataConfig,
    settings: RefinerSettings,
    run: RunOptions,
    info: ModelInfo,
    *,
    coarse: Sequence[str] = (),
    closer_maps: Sequence[str] = (),
    base_model: str = "",
    show: Callable[[str], object] = lambda _: None,
    command: str = "",
    overwrite: bool = False,
) -> TrainedFile | None:
    """Train an IDGBR refiner, as `train`, on the maps of `base_model`, by default the first of `coarse`."""
    registry.check_target(output, overwrite)
    labelled = _open(data, settings.network.init)
    if labelled.sets:
        raise UsageError(f"--classes: a refiner learns from no sets of classes ({', '.join(labelled.sets)})")
    sources = coarse_sources(coarse, labelled.class_names) if "refiner" in settings.stages else []
    base_model = base_model or next((source.model.name for source in sources if source.model), "")
    spec = describe_refiner(settings, labelled, info, base_model)
    labelled, spec = datasets.with_fixed_stretch(labelled, spec)
    if closer_maps and not spec.network.get("closer"):
        raise UsageError("--closer-maps: needs --closer MODEL, or --init with such a refiner")
    _start(run, settings, overwrite=overwrite)
    network, spec = build_refiner(spec, settings.network, settings.training.seed)
    check_sizes(network, settings.training)
    kept = run.run_dir / f"coarse-{environment_rank()}"
    if not run.resume:
        shutil.rmtree(kept, ignore_errors=True)
    with scene_folder(run.run_dir) as folder:
        maker = CoarseMaker(
            sources=sources, class_names=labelled.class_names, folder=folder, kept=kept,
            gsds=settings.refining.coarse_gsds, device=run.device,
        )  # fmt: skip
        scenes = load_refiner_scenes(
            labelled, spec, settings, maker if sources else None, folder, closer_maps
        )
        loaded = TrainingScenes(scenes.train, scenes.val, scenes.drawn)
        table = _describe_data(loaded, [], spec.class_names, settings, run, show)
        results = fit_refiner(network, spec, scenes, settings, run)
    last = results[settings.stages[-1]]
    if not last.is_main:
        return None
    round_to_stored(network)
    val = validation_scores(results)
    saved = save_trained(
        network, spec, settings, last, {"val": val}, output, table=table, command=command, overwrite=overwrite
    )
    return TrainedFile(saved, last, validation_text(val))


def _open(data: DataConfig, init: str) -> LabelledData:
    """Open the data; a model to start from gives its bands and classes where the settings name none."""
    start = read_spec(init) if init else None
    if start and not data.dataset and not data.bands:
        data = dataclasses.replace(data, bands=start.bands)
    return datasets.open_data(data, default_classes=start.classes if start else ())


def _start(run: RunOptions, settings: RunSettings, *, overwrite: bool) -> None:
    if environment_rank() == 0:
        check_run(run.run_dir, resume=run.resume, overwrite=overwrite, stages=settings.stages)
    keep_memory()


def _describe_data(
    scenes: TrainingScenes,
    tests: Sequence[LoadedScene],
    names: Sequence[str],
    settings: RunSettings,
    run: RunOptions,
    show: Callable[[str], object],
) -> str:
    """Return the table of the data by label; the first process shows it and saves the settings."""
    table = datasets.data_table({**scenes._asdict(), "test": tests}, names)
    if environment_rank() == 0:
        show(table)
        save_settings(run.run_dir, settings, resume=run.resume)
    return table


def round_to_stored(network: nn.Module) -> None:
    """Round weights to half precision, as a model file stores them."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(tensor.half())


def save_trained(
    network: nn.Module,
    spec: ModelSpec,
    settings: RunSettings,
    result: TrainResult,
    scores: Mapping[str, Any],
    output: Path,
    *,
    table: str = "",
    command: str = "",
    overwrite: bool = False,
) -> ModelSpec:
    """Write the model file and its card, `<output>.md`; return the spec with settings and `scores`."""
    values = {key: value for part in settings.values().values() for key, value in part.items()}
    values |= {"crops_per_epoch": result.crops_per_epoch, "computed_in": result.precision}
    values |= {"computed_on": result.device}
    if isinstance(settings, Settings):
        values["recipe"] = settings.recipe
    saved = dataclasses.replace(spec, training=values, scores=dict(scores))
    save_model(output, network, saved, overwrite=overwrite)
    card = model_card(saved, history=result.history, table=table, command=command)
    output.with_suffix(".md").write_text(card, encoding="utf-8")
    return saved
