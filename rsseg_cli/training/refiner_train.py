"""Train a refiner in two stages: scenes with coarse maps, codec, denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from rsseg_cli.data import LabelledData, LoadedScene
from rsseg_cli.errors import UsageError
from rsseg_cli.models import diffusion
from rsseg_cli.training.coarse_maps import CoarseMaker, Maps, closer_looks
from rsseg_cli.training.config import RunOptions, TrainConfig
from rsseg_cli.training.crops import crops_per_pass_of
from rsseg_cli.training.recipes import RefinerSettings
from rsseg_cli.training.refiner_crops import LabelCrops, RefinerCrops, RefinerTiles
from rsseg_cli.training.refiner_module import CodecModule, RefinerModule, StageModule
from rsseg_cli.training.refiner_start import build_alignment
from rsseg_cli.training.train_model import TrainResult, fit, load_training_scenes
from rsseg_cli.weights import ModelSpec


class RefinerScenes(NamedTuple):
    """`TrainingScenes` with their coarse maps, () where only the codec is trained, and with closer looks at
    the training scenes, if given."""

    train: list[LoadedScene]
    val: list[LoadedScene]
    drawn: list[LoadedScene]
    train_maps: list[Maps]
    val_maps: list[Maps]
    closer: Sequence[NDArray[np.uint8]] = ()


def load_refiner_scenes(
    data: LabelledData,
    spec: ModelSpec,
    settings: RefinerSettings,
    maker: CoarseMaker | None,
    folder: Path,
    closer: Sequence[str] = (),
) -> RefinerScenes:
    """Load scenes as for a segmentation network, with their coarse maps.

    Args:
        maker: of the coarse maps; None where only the codec is trained.
        folder: for arrays as files.
        closer: see `coarse_maps.closer_looks`.
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
) -> dict[str, TrainResult]:
    """Train the stages of a run in place, the network to its best weights on validation.

    A resumed run continues in its stage: each has a folder in `run.run_dir`.
    """
    check_sizes(network, settings.training)
    results = {}
    for stage in settings.stages:
        folder = run.run_dir / stage
        resume = run.resume and (folder / "last.ckpt").exists()
        stage_run = dataclasses.replace(run, run_dir=folder, resume=resume)
        results[stage] = _train_stage(stage, network, spec, scenes, settings, stage_run)
    return results


def _train_stage(
    stage: str,
    network: nn.Module,
    spec: ModelSpec,
    scenes: RefinerScenes,
    settings: RefinerSettings,
    run: RunOptions,
) -> TrainResult:
    config, refining, gsd_m = settings.training, settings.refining, spec.gsd_m or 1.0
    crops: Dataset[Any]
    build: Callable[[int], StageModule]
    if stage == "codec":
        config = dataclasses.replace(
            config, epochs=refining.codec_epochs, learning_rate=refining.codec_rate, end_rate=0.0
        )
        crops = LabelCrops(
            scenes.train, config, refining, scenes.drawn, classes=len(spec.classes), gsd_m=gsd_m
        )
        maps = [scene.labels for scene in scenes.val]  # instead of coarse maps, which the codec does not see
        monitored, build = CodecModule.monitored, partial(CodecModule, network, spec, config)
    else:
        crops = RefinerCrops(
            scenes.train, scenes.train_maps, config, refining, scenes.drawn, scenes.closer, gsd_m=gsd_m
        )
        maps = [versions[0] for versions in scenes.val_maps]
        align = build_alignment(network, settings.network.align)
        band_px = max(1, round(refining.band_m / gsd_m))
        monitored = RefinerModule.monitored
        build = partial(RefinerModule, network, spec, config, band_px=band_px, align=align)
    return fit(
        monitored,
        build,
        crops,
        lambda rank, world: RefinerTiles(scenes.val, maps, config.tile_size, refining.val_tiles, rank, world),
        config,
        run,
        crops_per_pass=crops_per_pass_of(scenes.train, config, gsd_m),
    )


def validation_scores(results: Mapping[str, TrainResult]) -> dict[str, Any]:
    """Merge the best scores of all stages, with their time and steps."""
    val: dict[str, Any] = {"epoch": [*results.values()][-1].epoch}
    val |= {key: sum(getattr(item, key) for item in results.values()) for key in ("seconds", "steps")}
    for result in results.values():
        best = next((item for item in result.history if item["epoch"] == result.epoch), {})
        val |= {key: value for key, value in best.items() if key.endswith(("iou", "codec_loss"))}
    return val


def validation_text(val: Mapping[str, Any]) -> str:
    """Return the validation scores in words."""
    if "boundary_iou" not in val:
        return f"validation codec loss {val['codec_loss']:.4f}"
    return (
        f"validation Boundary IoU at 3 px {val['coarse_boundary_iou']:.3f} -> {val['boundary_iou']:.3f}, "
        f"mIoU {val['coarse_miou']:.3f} -> {val['miou']:.3f}"
    )
