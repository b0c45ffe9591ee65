"""Train a refiner: scenes with coarse maps, two stages, the model file."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from rsseg_cli.data import LabelledData, LoadedScene
from rsseg_cli.errors import UsageError
from rsseg_cli.models import diffusion
from rsseg_cli.training.card import save_with_card, trained_with
from rsseg_cli.training.coarse_maps import CoarseMaker, Maps, closer_looks
from rsseg_cli.training.config import RefiningConfig, TrainConfig
from rsseg_cli.training.crops import crops_per_pass_of
from rsseg_cli.training.recipes import RefinerSettings, resolve_refiner_settings
from rsseg_cli.training.refiner_crops import LabelCrops, RefinerCrops, RefinerTiles
from rsseg_cli.training.refiner_module import CodecModule, RefinerModule
from rsseg_cli.training.refiner_start import build_alignment
from rsseg_cli.training.train_model import TrainResult, crop_config, fit, load_training_scenes, save_settings
from rsseg_cli.training.trainer import RunOptions, environment_rank
from rsseg_cli.weights import ModelSpec

STAGES: tuple[diffusion.Stage, ...] = ("codec", "refiner")


class RefinerScenes(NamedTuple):
    """Scenes of a run, with their coarse maps; without maps where only the codec is trained, and with closer
    looks at the training scenes where these are given."""

    train: list[LoadedScene]
    val: list[LoadedScene]
    drawn: list[LoadedScene]
    train_maps: list[Maps]
    val_maps: list[Maps]
    closer: Sequence[NDArray[np.uint8]] = ()

    def by_split(self) -> dict[str, list[LoadedScene]]:
        """Scenes for `found_table`."""
        return {"train": self.train, "val": self.val, "drawn": self.drawn}


def stages_of(refining: RefiningConfig) -> tuple[diffusion.Stage, ...]:
    """Return the stages of a run, in order."""
    return STAGES if refining.stage == "all" else (refining.stage,)


def kept_maps(run: RunOptions, *, resume: bool) -> Path:
    """Return this process's folder for coarse maps; empty it unless the run is resumed."""
    folder = run.run_dir / f"coarse-{environment_rank()}"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def save_refiner_settings(run_dir: Path, settings: RefinerSettings, *, resume: bool) -> None:
    """As `training.save_settings`."""
    save_settings(
        run_dir,
        settings,
        resume=resume,
        read=lambda path: resolve_refiner_settings(config=path),
        stages=stages_of(settings.refining),
    )


def load_refiner_scenes(
    data: LabelledData,
    spec: ModelSpec,
    settings: RefinerSettings,
    maker: CoarseMaker | None,
    folder: Path,
    closer: Sequence[str] = (),
) -> RefinerScenes:
    """Training and validation scenes as a segmentation network gets them, and their coarse maps.

    Args:
        data: found by `open_data`.
        maker: of the coarse maps; None where only the codec is trained.
        folder: where arrays are kept as files.
        closer: rasters of closer looks at the training scenes, see `coarse_maps.closer_looks`.
    """
    loaded = load_training_scenes(data, spec, settings.training, folder)
    train = list(zip(data.split("train"), loaded.train, strict=True))
    pairs = [*train, *zip(data.split("val"), loaded.val, strict=True)]
    maps: list[Maps] = maker.maps(pairs, data) if maker is not None else [() for _ in pairs]
    looks = closer_looks(closer, train, data, folder) if closer else []
    return RefinerScenes(*loaded, maps[: len(train)], maps[len(train) :], looks)


def check_sizes(network: nn.Module, config: TrainConfig) -> None:
    """Refuse crop and tile sizes that the network cannot take."""
    alignment = cast(diffusion.RefinerNetwork, network).alignment_px
    for option, side in (("--crop-size", config.crop_size), ("--tile-size", config.tile_size)):
        if side % alignment:
            raise UsageError(f"{option} {side}: this refiner needs a multiple of {alignment} px")


def fit_refiner(
    network: nn.Module, spec: ModelSpec, scenes: RefinerScenes, settings: RefinerSettings, run: RunOptions
) -> dict[diffusion.Stage, TrainResult]:
    """Train the stages of a run in place; the network ends with the best weights on validation.

    A resumed run continues in its stage: each stage has a folder in `run.run_dir`.

    Args:
        network: a `diffusion.RefinerNetwork`.
        scenes: see `load_refiner_scenes`.
        run: where and on what.
    """
    check_sizes(network, settings.training)
    results: dict[diffusion.Stage, TrainResult] = {}
    for stage in stages_of(settings.refining):
        folder = run.run_dir / stage
        resume = run.resume and (folder / "last.ckpt").exists()
        stage_run = dataclasses.replace(run, run_dir=folder, resume=resume)
        train_stage = _train_codec if stage == "codec" else _train_denoiser
        results[stage] = train_stage(network, spec, scenes, settings, stage_run)
    return results


def _train_codec(
    network: nn.Module, spec: ModelSpec, scenes: RefinerScenes, settings: RefinerSettings, run: RunOptions
) -> TrainResult:
    refining = settings.refining
    config = dataclasses.replace(
        settings.training, epochs=refining.codec_epochs, learning_rate=refining.codec_rate, end_rate=0.0
    )
    crops = LabelCrops(
        scenes.train,
        crop_config(spec, config),
        scenes.drawn,
        refining=refining,
        classes=len(spec.classes),
    )
    labels = [scene.labels for scene in scenes.val]  # in place of coarse maps, which the codec does not see
    return fit(
        CodecModule.monitored,
        lambda steps: CodecModule(network, spec, config, steps),
        crops,
        lambda rank, world: _tiles(scenes.val, labels, settings, rank, world),
        config,
        run,
        crops_per_pass=crops_per_pass_of(scenes.train, crops.crops.config),
    )


def _train_denoiser(
    network: nn.Module, spec: ModelSpec, scenes: RefinerScenes, settings: RefinerSettings, run: RunOptions
) -> TrainResult:
    config, refining = settings.training, settings.refining
    how = crop_config(spec, config)
    crops = RefinerCrops(scenes.train, scenes.train_maps, how, refining, scenes.drawn, scenes.closer)
    maps = [versions[0] for versions in scenes.val_maps]
    align = build_alignment(network, settings.network.align)
    band_px = max(1, round(refining.band_m / (spec.gsd_m or 1.0)))
    return fit(
        RefinerModule.monitored,
        lambda steps: RefinerModule(network, spec, config, steps, band_px, align),
        crops,
        lambda rank, world: _tiles(scenes.val, maps, settings, rank, world),
        config,
        run,
        crops_per_pass=crops_per_pass_of(scenes.train, crops.config),
    )


def _tiles(
    scenes: Sequence[LoadedScene], maps: Sequence[Any], settings: RefinerSettings, rank: int, world: int
) -> Dataset[Any]:
    return RefinerTiles(scenes, maps, settings.training.tile_size, settings.refining.val_tiles, rank, world)


def finish_refiner(
    network: nn.Module,
    spec: ModelSpec,
    settings: RefinerSettings,
    results: dict[diffusion.Stage, TrainResult],
    output: Path,
    *,
    found: str = "",
    command: str = "",
    overwrite: bool = False,
) -> ModelSpec:
    """Write the model file and its card `<output>.md` beside it.

    Args:
        results: of `fit_refiner`.

    Returns:
        the spec that was saved: with the run's settings and scores.
    """
    last = results[stages_of(settings.refining)[-1]]
    val: dict[str, Any] = {"epoch": last.epoch}
    val |= {"seconds": sum(item.seconds for item in results.values())}
    val |= {"steps": sum(item.steps for item in results.values())}
    for result in results.values():
        best = next((item for item in result.history if item["epoch"] == result.epoch), {})
        val |= {key: value for key, value in best.items() if key.endswith(("iou", "codec_loss"))}
    saved = dataclasses.replace(spec, training=trained_with(settings, last), scores={"val": val})
    save_with_card(saved, network, last, output, found=found, command=command, overwrite=overwrite)
    return saved


def validation_text(spec: ModelSpec) -> str:
    """What the saved refiner's validation came to, in words."""
    val = spec.scores["val"]
    if "boundary_iou" not in val:
        return f"validation codec loss {val['codec_loss']:.4f}"
    return (
        f"validation Boundary IoU at 3 px {val['coarse_boundary_iou']:.3f} -> {val['boundary_iou']:.3f}, "
        f"mIoU {val['coarse_miou']:.3f} -> {val['miou']:.3f}"
    )
