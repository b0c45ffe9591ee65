"""Train a refiner in two stages: label embedding and codec, then denoiser and guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from rsseg_cli.data import LabelledData, LoadedScene
from rsseg_cli.errors import UsageError
from rsseg_cli.evaluation import boundary, metrics
from rsseg_cli.models import diffusion
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.coarse_maps import CoarseMaker, Maps, closer_looks
from rsseg_cli.training.config import RunOptions, TrainConfig
from rsseg_cli.training.crops import crops_per_pass_of
from rsseg_cli.training.module import MonitoredMetric, TrainingModule
from rsseg_cli.training.recipes import RefinerSettings
from rsseg_cli.training.refiner_crops import LabelCrops, RefinerCrops, RefinerTiles
from rsseg_cli.training.refiner_start import build_alignment
from rsseg_cli.training.train_model import FitData, TrainResult, fit, load_training_scenes
from rsseg_cli.weights import ModelSpec

BOUNDARY_PX = 3  # of the Boundary IoU that chooses the epoch


class StageModule(TrainingModule):
    """A stage of a refiner's training, with the rest of the network frozen.

    Noise follows from seed, epoch, step and process, so a resumed run sees that of an uninterrupted one.
    """

    stage: diffusion.Stage

    def __init__(self, network: nn.Module, spec: ModelSpec, config: TrainConfig, total_steps: int) -> None:
        parameters = cast(diffusion.RefinerNetwork, network).stage_parameters(self.stage)
        trained = set(map(id, parameters))
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        super().__init__(network, spec, config, total_steps)

    @property
    def refiner(self) -> diffusion.RefinerNetwork:
        return cast(diffusion.RefinerNetwork, self.network)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        entropy = (self.config.seed, self.current_epoch, batch_index, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        return super().training_step(batch, batch_index)


def split_losses(losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return losses["loss"], {name: part for name, part in losses.items() if name != "loss"}


class CodecModule(StageModule):
    """Label embedding and codec, validated by their loss. Scores in the history: codec_loss."""

    monitored = MonitoredMetric("codec_loss", "min")
    stage: diffusion.Stage = "codec"

    def losses(self, batch: tuple[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return split_losses(self.refiner.codec_losses(batch[0].long()))

    def progress_text(self, scores: Mapping[str, Any]) -> str:
        return f"val codec loss {scores['codec_loss']:.4f}"

    def on_validation_epoch_start(self) -> None:
        self.val_losses: list[Tensor] = []

    def validation_step(self, batch: tuple[Tensor, ...], batch_index: int) -> None:
        labels, numbers = batch[-2:]
        if (labels != class_values.IGNORE).any():
            torch.manual_seed(int(numbers[0]))
            self.val_losses.append(self.refiner.codec_losses(labels.long())["loss"].float())

    def on_validation_epoch_end(self) -> None:
        losses = torch.stack([*self.val_losses, torch.zeros((), device=self.device)])
        both = torch.stack([losses.sum(), losses.new_tensor(float(len(self.val_losses)))])
        total, count = self.trainer.strategy.reduce(both, reduce_op="sum").tolist()
        loss = total / max(count, 1.0)
        self.log("val_codec_loss", loss)
        self.end_epoch({"codec_loss": loss})


class RefinerModule(StageModule):
    """Denoiser and guidance, validated by refining tiles within `band_px` of the coarse map's boundaries.

    Scores in the history: boundary_iou (mean over classes at 3 px) and miou of refined tiles,
    coarse_boundary_iou and coarse_miou of their coarse maps. `align` is an additional loss of the first
    `align_steps` steps, see `losses.DinoAlignment`.
    """

    monitored = MonitoredMetric("boundary_iou", "max")
    stage: diffusion.Stage = "refiner"

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        config: TrainConfig,
        total_steps: int,
        band_px: int,
        align: nn.Module | None = None,
        align_steps: int = 200,
    ) -> None:
        super().__init__(network, spec, config, total_steps)
        self.classes, self.band_px, self.align = len(spec.classes), band_px, align
        self.align_steps = align_steps
        self.tallies = {"": Tally(self.classes), "coarse_": Tally(self.classes)}

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        image, coarse, labels, *closer, factors = batch  # a closer look where there is one
        inputs: Any = (self.normalise(image, factors), coarse, labels.long(), *closer)
        if self.align is None:
            return split_losses(self.refiner.refiner_losses(*inputs))
        if self.global_step < self.align_steps:
            return split_losses(cast(Any, self.network).refiner_losses(*inputs, align=self.align))
        loss, parts = split_losses(self.refiner.refiner_losses(*inputs))
        unused = [item.sum() for item in self.align.parameters() if item.requires_grad]
        return loss + 0 * torch.stack(unused).sum(), parts  # several processes wait for every gradient

    @property
    def trained(self) -> nn.Module:
        return self.network if self.align is None else self

    def progress_text(self, scores: Mapping[str, Any]) -> str:
        pairs = (("boundary_iou", f"val Boundary IoU {BOUNDARY_PX} px"), ("miou", "mIoU"))
        return ", ".join(f"{name} {scores[f'coarse_{key}']:.3f} -> {scores[key]:.3f}" for key, name in pairs)

    def forward(self, image: Tensor, coarse: Tensor, noise: Tensor) -> Tensor:
        return self.refiner(image, coarse, noise)

    def on_validation_epoch_start(self) -> None:
        self.tallies = {key: Tally(self.classes) for key in self.tallies}

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], batch_index: int) -> None:
        image, coarse, labels, numbers = batch
        height, width = image.shape[-2:]
        noise = self.noise(numbers, (height, width)).to(image.device)
        logits = self(self.normalise(image), coarse, noise)
        classes = logits.max(1).indices.to(torch.uint8).cpu().numpy()
        truth = labels.cpu().numpy()
        for before, refined, known in zip(coarse.cpu().numpy(), classes, truth, strict=True):
            self.tallies[""].add(merge_in_band(before, refined, self.band_px), known)
            self.tallies["coarse_"].add(before, known)

    def noise(self, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        """Return noise (B, latent_channels, h, w), the same for a tile in every epoch."""
        shape = self.refiner.latent_channels, *(side // self.refiner.latent_stride for side in size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(n))) for n in numbers]
        return torch.stack(drawn)

    def on_validation_epoch_end(self) -> None:
        scores: dict[str, float] = {}
        for key, tally in self.tallies.items():
            total = self.trainer.strategy.reduce(tally.counts().to(self.device), reduce_op="sum")
            scores |= {f"{key}{name}": value for name, value in tally.scores(total.cpu().numpy()).items()}
        for name, value in scores.items():
            self.log(f"val_{name}", value)
        self.end_epoch(scores)


def merge_in_band(coarse: NDArray[np.uint8], refined: NDArray[np.uint8], band_px: int) -> NDArray[np.uint8]:
    """Take refined labels within the band around the coarse map's boundaries, coarse ones elsewhere."""
    return np.where(boundary.near_border(coarse, band_px), refined, coarse)


class Tally:
    """Counts of mapped tiles that add up over tiles and processes."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        self.boundary = boundary.BoundaryCounts(classes=classes, widths=(BOUNDARY_PX,))

    def add(self, mapped: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Count a tile (rows, cols); 255 in `labels` counts nowhere, in `mapped` as wrong."""
        classes = len(self.confusion)
        self.confusion += metrics.count_confusion(mapped, labels, classes)
        whole = slice(0, labels.shape[0]), slice(0, labels.shape[1])
        self.boundary.add_bands(np.minimum(mapped, classes).astype(np.uint8), labels, whole)

    def counts(self) -> Tensor:
        """Return all counts, int64 (N, N + 4)."""
        return torch.from_numpy(np.concatenate([self.confusion, *self.boundary.bands[:3]], 1))

    def scores(self, counts: NDArray[np.int64]) -> dict[str, float]:
        """Score the sum of any number of tallies' `counts`; 0 where there is nothing to score."""
        classes = len(counts)
        total = Tally(classes)
        total.confusion, rest = counts[:, : classes + 1], counts[:, classes + 1 :]
        total.boundary.bands[:3] = np.split(rest, 3, 1)
        boundary_iou = metrics.mean_of(total.boundary.boundary_iou()[:, 0])
        scores = {"boundary_iou": boundary_iou, "miou": metrics.scores_of(total.confusion)["miou"]}
        return {key: float(np.nan_to_num(score)) for key, score in scores.items()}


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
    """Load scenes as for a segmentation network, with coarse maps unless only the codec is trained."""
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
    """Train the stages of a run in place to the best weights; each has a folder in `run.run_dir`."""
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
        band_px, monitored = max(1, round(refining.band_m / gsd_m)), RefinerModule.monitored
        aligned: dict[str, Any] = {"align": align, "align_steps": refining.align_steps}
        build = partial(RefinerModule, network, spec, config, band_px=band_px, **aligned)
    tiles = partial(RefinerTiles, scenes.val, maps, config.tile_size, refining.val_tiles)
    crops_per_pass = crops_per_pass_of(scenes.train, config, gsd_m)
    return fit(monitored, build, FitData(crops, tiles, config), run, crops_per_pass)


def validation_scores(results: Mapping[str, TrainResult]) -> dict[str, Any]:
    """Merge the best scores of all stages, with their time and steps."""
    val: dict[str, Any] = {"epoch": [*results.values()][-1].epoch}
    val |= {key: sum(getattr(item, key) for item in results.values()) for key in ("seconds", "steps")}
    for result in results.values():
        best = next((item for item in result.history if item["epoch"] == result.epoch), {})
        val |= {key: value for key, value in best.items() if key.endswith(("iou", "codec_loss"))}
    return val


def validation_text(val: Mapping[str, Any]) -> str:
    if "boundary_iou" not in val:
        return f"validation codec loss {val['codec_loss']:.4f}"
    return (
        f"validation Boundary IoU at 3 px {val['coarse_boundary_iou']:.3f} -> {val['boundary_iou']:.3f}, "
        f"mIoU {val['coarse_miou']:.3f} -> {val['miou']:.3f}"
    )
