"""Settings of training runs, with defaults and bounds. Does not import torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from rsseg_cli.config import MAX_COUNT, check_bounds, option
from rsseg_cli.errors import UsageError

Precision = Literal["auto", "32", "bf16", "16"]
COUNT = {"metavar": "N", "minimum": 1, "maximum": MAX_COUNT}
COUNT_OR_NONE = {"metavar": "N", "minimum": 0, "maximum": MAX_COUNT}
SHARE = {"metavar": "SHARE", "minimum": 0, "maximum": 1}
WEIGHT = {"metavar": "X", "minimum": 0, "maximum": 1000}
RATE = {"metavar": "RATE", "minimum": 1e-12, "maximum": 10}


def _bands(help: str) -> Any:
    """Declare a number for each band of the scaled input."""
    return option((), help, metavar="X,Y,Z", example="0.5,0.5,0.5")


# fmt: off
@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network and what it starts from. `channels` is a multiple of 16."""

    arch: str = option(
        "lite", "Size: lite, lite2 with a larger encoder, published, or a timm encoder.",
        metavar="lite|lite2|paper|ENCODER",
    )
    neck: str = option(
        "", "How to join scales. Default: conv for lite, lite2, else published.", metavar="published|conv",
        choices=("published", "conv"),
    )
    layers: int = option(2, "HBIS layers.", metavar="N", minimum=1, maximum=32)
    topk_ratio: float = option(
        1.0, "Share of a class's pixels that update its embedding, above 0, to 1.", metavar="SHARE",
        minimum=1e-6, maximum=1,
    )
    channels: int = option(
        0, "Width of features and embeddings, a multiple of 16. Default: 128 for lite, lite2, else 256.",
        metavar="N", minimum=0, maximum=4096, needs="16 to 4096",
    )
    init: str = option(
        "",
        "Fine-tune a model: take its sizes, bands and resolution; classes of the same name keep their "
        "weights.",
        metavar="NAME|PATH",
    )
    encoder_weights: str = option(
        "imagenet", "Initial weights of the encoder.",
        metavar="imagenet|none|FILE",
    )
    mean: tuple[float, ...] = _bands("Mean of each band, scaled to 0-1. Default: ImageNet's.")
    std: tuple[float, ...] = _bands("Standard deviation of each band. Default: ImageNet's.")

    def __post_init__(self) -> None:
        check_bounds(self)
        if 0 < self.channels < 16:
            raise UsageError(f"--channels {self.channels}: needs 16 to 4096")
        if not self.arch or len(self.arch) > 100:
            raise UsageError(f"--arch {self.arch!r:.100}: needs lite, lite2, paper or an encoder of timm")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run; saved with the weights."""

    epochs: int = option(30, "Passes over the crops, each followed by a validation.", **COUNT)
    crops_per_epoch: int | Literal["auto"] = option(
        800, "Random crops per epoch; auto: as many as fill the training scenes.", metavar="N|auto",
        minimum=1, maximum=MAX_COUNT,
    )
    batch_size: int = option(4, "Crops per device and step.", **COUNT)
    accumulate: int = option(1, "Batches whose gradients make one step.", **COUNT)
    precision: Precision = option("auto", "Arithmetic; auto is bf16 on CUDA devices that have it, else 32.")
    learning_rate: float = option(1e-3, "Highest learning rate of the head.", "--lr", **RATE)
    end_rate: float = option(
        0.0, "Final rate of the cosine schedule. Default: a hundredth of --lr.", metavar="RATE", minimum=0,
        maximum=1000,
    )
    encoder_rate: float = option(
        0.3, "The encoder's rate, as a multiple of the head's.", metavar="X", minimum=0, maximum=1
    )
    schedule: Literal["step", "epoch"] = option("step", "When to change the rate: after each step or epoch.")
    warmup: float = option(0.05, "Share of the run with a rising rate.", **SHARE)
    weight_decay: float = option(0.01, "AdamW's weight decay.", metavar="X", minimum=0, maximum=10)
    decay_vectors: bool = option(
        False, "Decay norms and biases too, not only kernels.", "--decay-vectors/--no-decay-vectors"
    )
    lookahead: int = option(
        0, "Steps between Lookahead's averages; 0 for plain AdamW.", **COUNT_OR_NONE | {"metavar": "K"}
    )
    lookahead_alpha: float = option(0.5, "Lookahead's step, 0 to 1.", **SHARE)
    clip: float = option(1.0, "Maximum norm of a gradient; 0 does not clip.", **WEIGHT)
    ema: float = option(
        0.99, "Decay of the averaged weights; 0 turns averaging off.", metavar="X", minimum=0, below=1
    )
    patience: int = option(
        0, "Stop after N epochs without a better validation score; 0 never does.", **COUNT_OR_NONE
    )
    crop_size: int = option(
        256, "Side of a crop, px: a multiple of 64.", unit="px", minimum=64, maximum=8192, step=64
    )
    scales: tuple[float, float] = option((0.75, 1.5), "Range of random scales.", metavar="MIN MAX")
    mosaic: float = option(0.25, "Share of crops assembled from four, 0 to 1.", **SHARE)
    turns: bool = option(True, "Random flips and quarter turns.", "--turns/--no-turns")
    redraw_above: float = option(
        0.75, "Draw a crop again while one class fills more than this share of it.", **SHARE
    )
    redraws: int = option(11, "Maximum number of draws per crop.", **COUNT)
    colour: float = option(1.0, "Strength of colour augmentation; 0 turns it off.", **WEIGHT)
    drawn_share: float = option(
        0.0, "Share of crops from drawn scenes, below 1; classes match by name.", metavar="SHARE", minimum=0,
        below=1,
    )
    drawn_scenes: int = option(16, "Scenes to draw for --drawn-share.", **COUNT_OR_NONE)
    smoothing: float = option(0.05, "Label smoothing, 0 to 1.", metavar="X", minimum=0, maximum=1)
    auxiliary: float = option(0.4, "Weight of the auxiliary head's loss.", **WEIGHT)
    heatmaps: float = option(0.1, "Weight of each layer's heatmap loss.", **WEIGHT)
    fisher: float = option(0.1, "Weight of each layer's Fisher loss.", **WEIGHT)
    fisher_last: float = option(0.0, "Weight of an additional Fisher loss on the last layer.", **WEIGHT)
    embeddings: float = option(0.1, "Weight of the mean square of class embeddings.", **WEIGHT)
    tile_size: int = option(
        512, "Side of validation tiles, px: a multiple of 32.", unit="px", minimum=64, maximum=8192, step=32
    )
    workers: int | Literal["auto"] = option(
        "auto", "Processes that prepare crops; 0: the training process itself; auto: 0, with a GPU up to 8.",
        metavar="N|auto", minimum=0, maximum=256,
    )
    seed: int = option(0, "Seed of all random numbers.", **COUNT_OR_NONE)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 0.05 <= self.scales[0] <= self.scales[1] <= 8:
            raise UsageError(f"--scales {self.scales}: needs 0.05 <= smallest <= largest <= 8")
        step = self.batch_size * self.accumulate
        if self.crops_per_epoch != "auto" and self.crops_per_epoch < step:
            raise UsageError(
                f"--crops-per-epoch {self.crops_per_epoch}: needs at least a step's {step} crops "
                "(--batch-size times --accumulate)"
            )


CLOSER_USE = ("closer_scales", "closer_share")  # how a refiner uses the model that looks closer


def _lite(default: Any, help: str, **known: Any) -> Any:
    """Declare a size of the lite network; 0 for the arch's own."""
    return option(default, f"{help}. Default: the arch's.", **known)


@dataclass(frozen=True, kw_only=True)
class RefinerNetworkSettings:
    """A refiner's network and what it starts from; sizes of 0 or "" are the arch's own."""

    arch: Literal["lite", "paper"] = option("lite", "Size: for two cores, or Stable Diffusion 1.5's.")
    init: str = option(
        "", "Fine-tune a refiner: take its sizes, classes and resolution.", metavar="NAME|PATH"
    )
    closer: str = option(
        "",
        "BiCoR-Seg model, name or file, that lite includes to look at the image once more at its own "
        "resolution; encoder and its weights are that model's. Default: none.",
        metavar="MODEL",
    )
    closer_scales: tuple[float, ...] = option(
        (), "With --closer: scales of the image for it, up to 1, averaged. Default: 1, or those of --init.",
        metavar="A,B", example="1,0.5",
    )
    closer_share: float | None = option(
        None, "With --closer: its share in the result's probabilities. Default: 0, or that of --init.",
        metavar="SHARE", minimum=0, below=1,
    )
    sd: str = option("", "Stable Diffusion 1.5 in diffusers' layout, to start paper from.", metavar="DIR")
    align: str = option(
        "",
        "DINOv2 (timm's vit_small_patch14_dinov2, safetensors) with which paper's features are aligned in "
        "the first steps.",
        metavar="FILE",
    )
    encoder: str = option(
        "", "Frozen image encoder of lite, from timm. Default: EfficientNet-Lite0.", metavar="NAME"
    )
    encoder_weights: str = option(
        "imagenet",
        "Weights of lite's encoder; MODEL takes those of a segmentation model.",
        metavar="imagenet|none|MODEL|FILE",
    )
    widths: tuple[int, ...] = _lite(
        (), "Channels of lite at strides 4, 8 and 16", metavar="A,B,C", example="32,64,128"
    )
    middle: int = _lite(0, "Blocks of lite at stride 16", metavar="N")
    window_px: int = _lite(0, "Side of lite's attention windows, px: a multiple of 16", unit="px")
    latent_channels: int = _lite(0, "Channels of lite's label embedding", metavar="N")
    codec_channels: int = _lite(0, "Channels of lite's codec", metavar="N")
    noise: float = _lite(0.0, "Noise of lite at the sampler's start", metavar="X")
    band_px: int = _lite(0, "Distance from boundaries within which lite's loss counts in full, px", unit="px")
    steps: int = _lite(0, "Steps of the sampler", metavar="N", minimum=0, maximum=1000)
    time_sampling: str = _lite(
        "", "Noise levels in training; cubic favours noisy steps", choices=("cubic", "uniform")
    )
    mean: tuple[float, ...] = _bands("Mean of each band, scaled to 0-1. Default: the arch's.")
    std: tuple[float, ...] = _bands("Standard deviation of each band. Default: the arch's.")

    def __post_init__(self) -> None:
        check_bounds(self)
        for flag, path in (("--sd", self.sd), ("--align", self.align)):
            if path and self.arch != "paper" and not self.init:
                raise UsageError(f"{flag} {path}: is for --arch paper, this is {self.arch}")
            if path and not Path(path).exists():
                raise UsageError(f"{flag} {path}: does not exist")


@dataclass(frozen=True, kw_only=True)
class RefiningConfig:
    """Settings of a refiner's training besides those of `TrainConfig`, which are its second stage's."""

    stage: Literal["all", "codec", "refiner"] = option(
        "all",
        "Train label embedding and codec, or denoiser and guidance (with --init), or one after the other.",
    )
    codec_epochs: int = option(5, "Epochs of the first stage.", **COUNT)
    codec_rate: float = option(2e-3, "Highest learning rate of the first stage.", "--codec-lr", **RATE)
    random_maps: float = option(0.25, "Share of drawn label maps in the first stage.", **SHARE)
    degrade: float = option(
        0.5, "Share of crops whose coarse map is degraded: moved, warped, smoothed.", **SHARE
    )
    from_labels: float = option(0.15, "Share of crops whose coarse map is the degraded labels.", **SHARE)
    degrade_px: int = option(6, "Maximum shift of a degraded boundary, px.", unit="px", minimum=1, maximum=64)
    coarse_gsds: tuple[float, ...] = option(
        (1.0, 1.4),
        "Resolutions at which a --coarse model maps training scenes, as multiples of its own; one version "
        "each.",
        metavar="X,Y", example="1,1.4",
    )
    band_m: float = option(
        1.5, "Distance from boundaries within which labels may change, metres.", unit="m", minimum=1e-3,
        maximum=1e4,
    )
    val_tiles: int = option(64, "Maximum number of validation tiles.", **COUNT)
    align_steps: int = option(200, "First steps, in which --align takes part.", **COUNT_OR_NONE)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.coarse_gsds or not all(0.1 <= times <= 10 for times in self.coarse_gsds):
            raise UsageError(f"--coarse-gsds {self.coarse_gsds}: needs numbers from 0.1 to 10")


# For refiners. Crops are whole: a mosaic's seams would be boundaries without a cause.
REFINER_TRAINING = TrainConfig(batch_size=8, mosaic=0.0, redraw_above=0.95)


Show = Literal["bar", "lines", "none"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run computes; on one device none of it changes the result.

    `run_dir` keeps checkpoints (`last.ckpt`, `best.ckpt`), `settings.toml`, `metrics.csv` and TensorBoard's
    events; `show` is the progress on stderr.
    """

    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")
    devices: str = option(
        "1", "How many, which, or all; each takes --batch-size crops per step.", metavar="N|0,1|auto"
    )
    num_nodes: int = option(1, "Machines that take part.", metavar="N", minimum=1)
    strategy: str = option("auto", "Lightning's strategy, such as ddp; auto suits most.", metavar="NAME")
    run_dir: Path = option(
        MISSING, "Checkpoints, logs and settings.toml. Default: runs/NAME.", metavar="FOLDER"
    )
    resume: bool = option(False, "Resume from the run's last finished epoch, to the same result.")
    show: Show = "none"

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Metadata of a model file that training does not decide.

    `gsd_m` of None is that of the starting model, else of the data, metres a pixel.
    """

    gsd_m: float | None = None
    gsd_range_m: tuple[float, float] | None = option(
        None, "Resolutions run without resampling, metres a pixel. Default: --gsd over --scales.",
        "--gsd-range", metavar="MIN MAX",
    )
    name: str = option(MISSING, "The model's name. Default: the output's.", metavar="NAME")
    description: str = option("", "One line for the model card.", metavar="TEXT")
    license: str = option("", "Licence of the weights, for the card.", metavar="TEXT")
    data: str = option("", "Source and licence of the data, for the card.", "--data-note", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a model is adapted to a place."""

    # fmt: off
    model: str = option(
        "landcover", "Model to adapt: a bundled one, or a .safetensors file.", metavar="NAME|PATH"
    )
    label_field: str = option(
        "", "Attribute with the class, by name or number. Default: class, class_name, label or "
        "class_index.", metavar="FIELD",
    )
    new_classes: tuple[str, ...] = option(
        (), "Classes of the labels that the model does not know.", metavar="A,B"
    )
    minutes: float = option(10.0, "Time to train, at most.", above=0, below=10_000, unit="minutes")
    steps: int = option(1000, "Steps to train, at most.", metavar="N", minimum=1, maximum=MAX_COUNT)
    learning_rate: float = option(
        1e-2, "Learning rate at the start.", "--lr", metavar="RATE", above=0, below=1
    )
    replay: bool = option(
        True, "Also train on drawn scenes, so that the model keeps what it knows.", "--replay/--no-replay"
    )
    seed: int = option(0, "Seed of pixels and of the labels held out.", metavar="S", minimum=0, below=2**63)
    resume: bool = option(False, "Continue a stopped run.")
    overwrite: bool = option(False, "Replace existing outputs.")
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
