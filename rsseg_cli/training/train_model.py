"""Train a segmentation network: from loaded scenes to its best weights."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rsseg_cli.data import LabelledData, LoadedScene, datasets
from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.system import cores
from rsseg_cli.training.config import RunOptions, TrainConfig
from rsseg_cli.training.crops import (
    CropDataset,
    EpochSampler,
    TileDataset,
    crops_per_pass_of,
    draw_training_scenes,
)
from rsseg_cli.training.module import MonitoredMetric, SegmentationModule, TrainingModule
from rsseg_cli.training.recipes import RunSettings, read_config
from rsseg_cli.training.trainer import (
    build_trainer,
    checkpoint,
    device_name,
    environment_rank,
    interrupts_raised,
    quiet_libraries,
    readable_memory_errors,
)
from rsseg_cli.weights import ModelSpec

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.toml"
MAX_WORKERS = 8  # that prepare crops for a GPU


class TrainingScenes(NamedTuple):
    """Scenes of a run: `train` at the finest random scale, `val` at the model's resolution, drawn ones."""

    train: list[LoadedScene]
    val: list[LoadedScene]
    drawn: list[LoadedScene]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Outcome of a run: score and number (from 1) of its best epoch, and what all epochs took.

    `seconds` counts the epochs before a resume too; `crops_per_epoch` is the number that "auto" became.
    """

    score: float
    epoch: int
    history: tuple[dict[str, Any], ...]
    seconds: float
    processor_seconds: float
    steps: int
    crops_per_epoch: int
    precision: str
    device: str
    is_main: bool = True


def load_training_scenes(
    data: LabelledData, spec: ModelSpec, config: TrainConfig, folder: Path | None = None
) -> TrainingScenes:
    finest = spec.gsd_m / config.scales[1] if spec.gsd_m else None
    sources, vals = data.split("train"), data.split("val")
    if not sources or not vals:
        raise DataError(
            f"{data.name}: {len(sources)} training and {len(vals)} validation scenes; needs one of each: "
            "pass --val PATTERN"
        )
    train = [source.load(spec, folder, finest_gsd_m=finest) for source in sources]
    val = [source.load(spec, folder) for source in vals]
    counts = np.sum([datasets.class_counts(scene) for scene in (*train, *val)], 0)
    datasets.check_coding(counts, spec.class_names, (*sources, *vals))
    drawn: list[LoadedScene] = []
    if config.drawn_share:
        drawn = draw_training_scenes(spec, count=config.drawn_scenes, gsd_m=finest or 0.3)
    return TrainingScenes(train, val, drawn)


@contextlib.contextmanager
def scene_folder(run_dir: Path) -> Iterator[Path]:
    """Make a folder for this process's prepared scenes; remove it at the end."""
    rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else environment_rank()
    folder = run_dir / f"scenes-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Tiles = Callable[[int, int], Dataset[Any]]


class FitData(L.LightningDataModule):
    """Loaders of this process, made once Lightning knows its rank; `tiles` of a rank of so many."""

    def __init__(self, crops: Dataset[Any], tiles: Tiles, config: TrainConfig) -> None:
        super().__init__()
        self.crops, self.tiles, self.config, self.length = crops, tiles, config, 0

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> DataLoader[Any]:
        config = self.config
        sampler = EpochSampler(self.length, config.batch_size, *self._rank())
        return self._loader(self.crops, config.batch_size, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.tiles(*self._rank()), 2)

    def _loader(self, items: Dataset[Any], batch_size: int, **more: Any) -> DataLoader[Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        many = min(MAX_WORKERS, cores() // self._rank()[1]) if on_gpu else 0
        workers = many if self.config.workers == "auto" else int(self.config.workers)
        return DataLoader(
            items, batch_size, num_workers=workers, persistent_workers=workers > 0, pin_memory=on_gpu, **more
        )


def fit_segmenter(
    network: nn.Module,
    spec: ModelSpec,
    scenes: TrainingScenes,
    config: TrainConfig,
    run: RunOptions,
    protocol: datasets.ScoringProtocol | None = None,
    sets: Mapping[str, tuple[int, ...]] | None = None,
) -> TrainResult:
    """Train `network`, (B, C, H, W) -> (B, N, H, W), in place to its best weights on validation.

    `sets` are those of `LabelledData`.
    """
    gsd_m = spec.gsd_m or 1.0
    crops = CropDataset(scenes.train, config, scenes.drawn, gsd_m=gsd_m)
    data = FitData(crops, partial(TileDataset, scenes.val, config.tile_size), config)
    build = partial(SegmentationModule, network, spec, config, protocol=protocol, sets=sets)
    crops_per_pass = crops_per_pass_of(scenes.train, config, gsd_m)
    return fit(SegmentationModule.monitored, build, data, run, crops_per_pass)


def fit(
    monitored: MonitoredMetric,
    build: Callable[[int], TrainingModule],
    data: FitData,
    run: RunOptions,
    crops_per_pass: int,
) -> TrainResult:
    """Train a module's network in place to the weights of its best epoch.

    `build` makes the module for a number of optimiser steps; `crops_per_pass` are the crops an epoch where
    the settings say "auto".
    """
    config = data.config
    L.seed_everything(config.seed, verbose=False, workers=True)
    best = ModelCheckpoint(
        run.run_dir, "best", monitor=f"val_{monitored.key}", mode=monitored.mode, enable_version_counter=False
    )
    started = time.process_time()
    with quiet_libraries():
        trainer = build_trainer(config, run, best)
        wanted, steps = _length(config, crops_per_pass, trainer.world_size)
        module = build(steps * config.epochs)
        data.length = steps * config.batch_size * config.accumulate * trainer.world_size
        with readable_memory_errors(config), interrupts_raised(trainer, run):
            trainer.fit(
                module,
                datamodule=data,
                ckpt_path=str(checkpoint(run.run_dir)) if run.resume else None,
                weights_only=True,
            )
    is_main, path = trainer.is_global_zero, Path(best.best_model_path)
    return TrainResult(
        score=float(best.best_model_score if best.best_model_score is not None else 0.0),
        epoch=_load_best(module, path) if is_main or path.is_file() else 0,
        history=tuple(module.history),
        seconds=round(sum(item["seconds"] for item in module.history), 1),
        processor_seconds=round(time.process_time() - started, 1),
        steps=trainer.global_step,
        crops_per_epoch=wanted,
        precision=trainer.precision,
        device=device_name(trainer),
        is_main=is_main,
    )


def _length(config: TrainConfig, crops_per_pass: int, world: int) -> tuple[int, int]:
    """Return the crops an epoch as wanted, and the optimiser's steps that they give."""
    a_step = config.batch_size * config.accumulate * world
    wanted = max(a_step, crops_per_pass) if config.crops_per_epoch == "auto" else config.crops_per_epoch
    if wanted < a_step:
        raise UsageError(
            f"--crops-per-epoch {wanted}: needs at least a step's {a_step} crops (--batch-size "
            f"{config.batch_size}, --accumulate {config.accumulate}, {world} devices)"
        )
    return wanted, wanted // a_step


def _load_best(module: TrainingModule, path: Path) -> int:
    """Load the best weights, on the CPU; return their epoch, from 1."""
    if not path.is_file():
        raise ModelError(f"{path}: no epoch was finished, nothing to save")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    module.cpu().load_state_dict(saved["state_dict"])
    module.network.eval()
    return int(saved["epoch"]) + 1


def check_run(run_dir: Path, *, resume: bool, overwrite: bool, stages: Sequence[str] = ("",)) -> None:
    begun = any((run_dir / stage / "last.ckpt").exists() for stage in stages)
    if resume and not begun:
        checkpoint(run_dir / stages[0])
    elif begun and not resume and not overwrite:
        raise UsageError(
            f"{run_dir} holds a run already; pass --resume to continue it, --overwrite to start over, or "
            "another --run-dir"
        )


def save_settings(run_dir: Path, settings: RunSettings, *, resume: bool) -> None:
    """Write `settings.toml`. On resume, log changed settings; on a new run, delete leftovers."""
    path = run_dir / SETTINGS_FILE
    if resume and path.exists():
        before = read_config(path, type(settings))
        for key, value in [item for values in settings.values().values() for item in values.items()]:
            old = before.get(key, value)
            if old != value and not (key == "crops_per_epoch" and value == "auto"):
                logger.warning(
                    "--resume: %s was %s and is now %s; the result belongs to neither", key, old, value
                )
    for folder in [] if resume else [run_dir / stage for stage in settings.stages]:
        for file in (folder / "last.ckpt", folder / "best.ckpt", *folder.glob("metrics*.csv")):
            file.unlink(missing_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(settings.to_toml(), encoding="utf-8")
