"""Training runs from settings to a model file: data, network, stages, card."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rsseg_cli.config import PredictConfig
from rsseg_cli.data import DataConfig, LabelledData, datasets
from rsseg_cli.errors import UsageError
from rsseg_cli.evaluation import evaluate
from rsseg_cli.system import keep_memory
from rsseg_cli.training import refiner_train, train_model
from rsseg_cli.training.card import finish, round_to_stored
from rsseg_cli.training.coarse_maps import CoarseMaker, coarse_sources
from rsseg_cli.training.config import ModelInfo, RunOptions
from rsseg_cli.training.recipes import RefinerSettings, Settings
from rsseg_cli.training.refiner_start import build_refiner, describe_refiner
from rsseg_cli.training.start import build_network, describe_model
from rsseg_cli.training.trainer import environment_rank
from rsseg_cli.weights import ModelSpec, TrainedModel, read_spec, registry


class TrainedFile(NamedTuple):
    """What a run saved: the spec with its scores, and in words how the (last) stage went."""

    spec: ModelSpec
    result: train_model.TrainResult
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
    """Train BiCoR-Seg and write the model file, with its card beside it.

    Returns:
        None in all processes of a run but the first.
    """
    registry.check_target(output, overwrite)
    labelled = _open(data, settings.network.init)
    spec = describe_model(
        settings,
        name=info.name,
        data=labelled,
        gsd_m=info.gsd_m,
        gsd_range_m=info.gsd_range_m,
        texts=info.texts,
    )
    is_main = environment_rank() == 0
    if is_main:
        train_model.check_run(run.run_dir, resume=run.resume, overwrite=overwrite)
    keep_memory()
    network, spec = build_network(
        spec,
        init=settings.network.init,
        encoder_weights=settings.network.encoder_weights,
        seed=settings.training.seed,
    )
    with train_model.scene_folder(run.run_dir) as folder:
        scenes = train_model.load_training_scenes(labelled, spec, settings.training, folder)
        tests = [source.load(spec, folder) for source in labelled.split("test")]
        table = datasets.found_table({**scenes._asdict(), "test": tests}, spec.class_names)
        if is_main:
            show(table)
            train_model.save_settings(run.run_dir, settings, resume=run.resume)
        result = train_model.fit_segmenter(network, spec, scenes, settings.training, run, labelled.protocol)
    if not result.is_main:
        return None
    round_to_stored(network)
    confusion = None
    if labelled.split("test"):
        model = TrainedModel(copy.deepcopy(network), spec)
        config = PredictConfig(device=run.device)
        confusion = evaluate(model, labelled, "test", config=config, pictures=False).result.confusion
    saved = finish(
        network,
        spec,
        settings,
        result,
        confusion,
        output,
        protocol=labelled.protocol,
        found=table,
        command=command,
        overwrite=overwrite,
    )
    return TrainedFile(saved, result, f"validation mIoU {result.score:.3f}")


def train_refiner(
    output: Path,
    data: DataConfig,
    settings: RefinerSettings,
    run: RunOptions,
    info: ModelInfo,
    *,
    coarse: Sequence[str] = (),
    closer_maps: Sequence[str] = (),
    behind: str = "",
    show: Callable[[str], object] = lambda _: None,
    command: str = "",
    overwrite: bool = False,
) -> TrainedFile | None:
    """Train an IDGBR refiner, codec first, and write the model file with its card.

    Args:
        coarse: models, folders or patterns of coarse maps, see `coarse_maps.coarse_sources`.
        closer_maps: rasters of closer looks at the training scenes, see `coarse_maps.closer_looks`.
        behind: the model whose maps the refiner repairs; "" for the first model of `coarse`.
        show, command: as in `train`.
    """
    registry.check_target(output, overwrite)
    stages = refiner_train.stages_of(settings.refining)
    labelled = _open(data, settings.network.init)
    sources = coarse_sources(coarse, labelled.class_names) if "refiner" in stages else []
    spec = describe_refiner(
        settings,
        name=info.name,
        data=labelled,
        behind=behind or next((source.model.name for source in sources if source.model), ""),
        gsd_m=info.gsd_m,
        gsd_range_m=info.gsd_range_m,
        texts=info.texts,
    )
    if closer_maps and not spec.network.get("closer"):
        raise UsageError("--closer-maps: needs --closer MODEL, or --init with such a refiner")
    is_main = environment_rank() == 0
    if is_main:
        train_model.check_run(run.run_dir, resume=run.resume, overwrite=overwrite, stages=stages)
    keep_memory()
    network, spec = build_refiner(spec, settings.network, settings.training.seed)
    refiner_train.check_sizes(network, settings.training)
    with train_model.scene_folder(run.run_dir) as folder:
        maker = CoarseMaker(
            sources=sources,
            class_names=labelled.class_names,
            folder=folder,
            kept=refiner_train.kept_maps(run, resume=run.resume),
            gsds=settings.refining.coarse_gsds,
            device=run.device,
        )
        scenes = refiner_train.load_refiner_scenes(
            labelled, spec, settings, maker if sources else None, folder, closer_maps
        )
        table = datasets.found_table(scenes.by_split(), spec.class_names)
        if is_main:
            show(table)
            refiner_train.save_refiner_settings(run.run_dir, settings, resume=run.resume)
        results = refiner_train.fit_refiner(network, spec, scenes, settings, run)
    last = results[stages[-1]]
    if not last.is_main:
        return None
    round_to_stored(network)
    saved = refiner_train.finish_refiner(
        network, spec, settings, results, output, found=table, command=command, overwrite=overwrite
    )
    return TrainedFile(saved, last, refiner_train.validation_text(saved))


def _open(data: DataConfig, init: str) -> LabelledData:
    """Open the data; a model to start from gives its bands and classes where the settings name none."""
    start = read_spec(init) if init else None
    if start and not data.dataset and not data.bands:
        data = dataclasses.replace(data, bands=start.bands)
    return datasets.open_data(data, default_classes=start.classes if start else ())
