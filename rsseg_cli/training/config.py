"""Settings of a training run: what they are, their defaults and bounds. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsseg_cli.errors import UsageError

Precision = Literal["auto", "32", "bf16", "16"]
LARGEST_COUNT = 10**9


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network and what it starts from.

    Attributes:
        arch: lite (EfficientNet-Lite0, 128 channels), paper (ConvNeXt-Base, 256 channels) or any timm encoder
            with strides 4 to 32.
        neck: how scales are joined, "published" or "conv"; "" takes conv for lite, else published.
        layers: HBIS layers, L.
        topk_ratio: share of a class's pixels that update its embedding, r; 1 takes all.
        channels: width of features and class embeddings, a multiple of 16; 0 takes the arch's.
        init: name or path of the model to start from, with its sizes; "" starts from `encoder_weights`.
        encoder_weights: "imagenet", "none" or a file.
        mean, std: of the input after scaling to [0, 1], one a band; empty takes ImageNet's.
    """

    arch: str = "lite"
    neck: str = ""
    layers: int = 2
    topk_ratio: float = 1.0
    channels: int = 0
    init: str = ""
    encoder_weights: str = "imagenet"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _within("--layers", self.layers, 1, 32)
        _within("--topk-ratio", self.topk_ratio, 1e-6, 1)
        if self.channels:
            _within("--channels", self.channels, 16, 4096)
        if self.neck not in ("", "published", "conv"):
            raise UsageError(f"--neck {self.neck}: needs published or conv")
        if not self.arch or len(self.arch) > 100:
            raise UsageError(f"--arch {self.arch!r:.100}: needs lite, paper or the name of a timm encoder")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run; saved with the weights.

    Attributes:
        epochs: passes over `crops_per_epoch` random crops, a validation after each.
        crops_per_epoch: number of crops, or "auto": one pass over the scenes, see `crops_in_a_pass`.
        batch_size: crops a device takes at once.
        accumulate: batches whose gradients are added up for one step.
        precision: "32"; "bf16" and "16" mix in halves; "auto" is bf16 on CUDA that has it, else 32.
        learning_rate: highest rate of the head; the encoder's is `encoder_rate` times that.
        end_rate: rate of the head that the cosine ends at; 0 is a hundredth of `learning_rate`.
        schedule: the rate changes after each "step" or each "epoch".
        warmup: share of all steps (or epochs) with a rising rate.
        weight_decay: of AdamW, on matrices and kernels; with `decay_vectors` on norms and biases too.
        lookahead: steps between Lookahead's averages (k), 0 is AdamW alone.
        lookahead_alpha: share of the way that Lookahead's slow weights go towards the fast ones.
        clip: largest norm of a step's gradient; 0 does not clip.
        ema: decay of the averaged weights, which are validated and saved; 0 turns it off.
        patience: epochs without a better validation mIoU before training stops; 0 never stops.
        crop_size: px, a multiple of 64.
        scales: smallest and largest random scale; 2 shows things twice as large.
        mosaic: share of crops put together from four.
        turns: flip and turn crops by quarters.
        redraw_above: crops are drawn again while one class fills more than this share; 1 never.
        redraws: most draws of a crop.
        colour: strength of random brightness, contrast, saturation, blur and noise; 0 leaves colours alone.
        drawn_share, drawn_scenes: share of crops from drawn scenes, and how many are drawn.
        smoothing, auxiliary, heatmaps, fisher, fisher_last: label smoothing and weights of the losses; the
            last is that of the Fisher loss on the last embeddings (published: 1 for LoveDA).
        tile_size: px, side of validation tiles.
        workers: processes that prepare crops; 0 prepares them in the training process.
        seed: of everything random.
    """

    epochs: int = 30
    crops_per_epoch: int | Literal["auto"] = 800
    batch_size: int = 4
    accumulate: int = 1
    precision: Precision = "auto"
    learning_rate: float = 1e-3
    end_rate: float = 0.0
    encoder_rate: float = 0.3
    schedule: Literal["step", "epoch"] = "step"
    warmup: float = 0.05
    weight_decay: float = 0.01
    decay_vectors: bool = False
    lookahead: int = 0
    lookahead_alpha: float = 0.5
    clip: float = 1.0
    ema: float = 0.99
    patience: int = 0
    crop_size: int = 256
    scales: tuple[float, float] = (0.75, 1.5)
    mosaic: float = 0.25
    turns: bool = True
    redraw_above: float = 0.75
    redraws: int = 11
    colour: float = 1.0
    drawn_share: float = 0.0
    drawn_scenes: int = 16
    smoothing: float = 0.05
    auxiliary: float = 0.4
    heatmaps: float = 0.1
    fisher: float = 0.1
    fisher_last: float = 0.0
    tile_size: int = 512
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("--crop-size", self.crop_size, 64, 8192)
        _within("--tile-size", self.tile_size, 64, 8192)
        if self.crop_size % 64 or self.tile_size % 32:
            raise UsageError(
                f"--crop-size {self.crop_size}, --tile-size {self.tile_size}: need multiples of 64 and 32 px"
            )
        for name in ("epochs", "batch_size", "accumulate", "redraws"):
            _within(_option(name), getattr(self, name), 1, LARGEST_COUNT)
        for name in ("lookahead", "patience", "drawn_scenes", "seed"):
            _within(_option(name), getattr(self, name), 0, LARGEST_COUNT)
        _within("--workers", self.workers, 0, 256)
        for name in ("mosaic", "warmup", "lookahead_alpha", "redraw_above", "encoder_rate", "smoothing"):
            _within(_option(name), getattr(self, name), 0, 1)
        for name in ("end_rate", "clip", "colour", "auxiliary", "heatmaps", "fisher", "fisher_last"):
            _within(_option(name), getattr(self, name), 0, 1000)
        _within("--lr", self.learning_rate, 1e-12, 10)
        _within("--weight-decay", self.weight_decay, 0, 10)
        for name in ("ema", "drawn_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{_option(name)} {getattr(self, name)}: needs 0 up to, but not including, 1"
                )
        if not 0.05 <= self.scales[0] <= self.scales[1] <= 8:
            raise UsageError(f"--scales {self.scales}: needs 0.05 <= smallest <= largest <= 8")
        if self.precision not in ("auto", "32", "bf16", "16") or self.schedule not in ("step", "epoch"):
            raise UsageError("--precision needs auto, 32, bf16 or 16; --schedule step or epoch")
        self._check_crops()

    def _check_crops(self) -> None:
        if self.crops_per_epoch == "auto":
            return
        _within("--crops-per-epoch", self.crops_per_epoch, 1, LARGEST_COUNT)
        if self.crops_per_epoch < self.batch_size * self.accumulate:
            raise UsageError(
                f"--crops-per-epoch {self.crops_per_epoch}: needs at least a step's "
                f"{self.batch_size * self.accumulate} crops (--batch-size times --accumulate)"
            )


@dataclass(frozen=True, kw_only=True)
class RefinerNetworkSettings:
    """A refiner's network and what it starts from; sizes of 0 or "" are the arch's own.

    Attributes:
        arch: lite, or paper (Stable Diffusion 1.5's size).
        init: name or path of the refiner to start from, with its sizes.
        closer: name or file of the BiCoR-Seg model with the same encoder that lite carries along, to look at
            the image at the refiner's resolution; also for a refiner to start from that has none.
        sd: folder of Stable Diffusion 1.5 in diffusers' layout, which paper starts from.
        encoder, encoder_weights: lite's frozen image encoder, of timm, and its weights: "imagenet", "none", a
            file, or the name or file of a segmentation model with the same encoder.
        widths: of lite, channels at strides 4, 8 and 16.
        middle, window_px, latent_channels, codec_channels, noise, band_px: of lite, see `LiteRefinerConfig`.
        align: safetensors of timm's vit_small_patch14_dinov2, to whose tokens paper's features are aligned in
            the first steps.
        steps: of the sampler.
        time_sampling: of training, "cubic" or "uniform"; "" the arch's.
        mean, std: of the input after scaling to [0, 1], one a band; empty takes the arch's.
    """

    arch: Literal["lite", "paper"] = "lite"
    init: str = ""
    closer: str = ""
    sd: str = ""
    align: str = ""
    encoder: str = ""
    encoder_weights: str = "imagenet"
    widths: tuple[int, ...] = ()
    middle: int = 0
    window_px: int = 0
    latent_channels: int = 0
    codec_channels: int = 0
    noise: float = 0.0
    band_px: int = 0
    steps: int = 0
    time_sampling: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.time_sampling not in ("", "cubic", "uniform"):
            raise UsageError(f"--time-sampling {self.time_sampling!r:.40}: needs cubic or uniform")
        for option, path in (("--sd", self.sd), ("--align", self.align)):
            if path and self.arch != "paper" and not self.init:
                raise UsageError(f"{option} {path}: is for --arch paper, this is {self.arch}")
            if path and not Path(path).exists():
                raise UsageError(f"{option} {path}: does not exist")
        _within("--steps", self.steps, 0, 1000)


@dataclass(frozen=True, kw_only=True)
class RefiningConfig:
    """Settings of a refiner's training beside those of `TrainConfig`, which are its second stage's.

    Attributes:
        stage: "codec" trains label embedding and codec, "refiner" denoiser and guidance, "all" one after the
            other.
        codec_epochs, codec_rate: epochs and highest learning rate of the first stage.
        random_maps: share of the first stage's label maps that are drawn at random.
        degrade: share of crops whose rough map is made worse.
        from_labels: share of crops whose rough map is the labels, made worse.
        degrade_px: farthest that a boundary is moved.
        coarse_gsds: ground resolutions at which a model maps training scenes, times its own; a version each.
        band_m: distance from the rough map's boundaries within which labels may change, m.
        val_tiles: most validation tiles.
    """

    stage: Literal["all", "codec", "refiner"] = "all"
    codec_epochs: int = 5
    codec_rate: float = 2e-3
    random_maps: float = 0.25
    degrade: float = 0.5
    from_labels: float = 0.15
    degrade_px: int = 6
    coarse_gsds: tuple[float, ...] = (1.0, 1.4)
    band_m: float = 1.5
    val_tiles: int = 64

    def __post_init__(self) -> None:
        _within("--codec-epochs", self.codec_epochs, 1, LARGEST_COUNT)
        _within("--codec-lr", self.codec_rate, 1e-12, 10)
        for name in ("random_maps", "degrade", "from_labels"):
            _within(_option(name), getattr(self, name), 0, 1)
        _within("--degrade-px", self.degrade_px, 1, 64)
        if not self.coarse_gsds or not all(0.1 <= times <= 10 for times in self.coarse_gsds):
            raise UsageError(f"--coarse-gsds {self.coarse_gsds}: needs numbers from 0.1 to 10")
        _within("--band-m", self.band_m, 1e-3, 1e4)
        _within("--val-tiles", self.val_tiles, 1, LARGEST_COUNT)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # not a number is not within either
        raise UsageError(f"{option} {value!r:.40}: needs {low:g} to {high:g}")


# of refiners: crops are whole, as a mosaic's seams would be boundaries without cause
REFINER_TRAINING = TrainConfig(batch_size=8, mosaic=0.0, redraw_above=0.95)


Show = Literal["bar", "lines", "none"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run computes; on one device none of it changes the result.

    Attributes:
        run_dir: checkpoints (`last.ckpt`, `best.ckpt`), `settings.toml`, `metrics.csv`, TensorBoard's events.
        device: auto, cpu, cuda, cuda:1, mps.
        devices: a number, numbers ("0,2") or "auto" for all; each takes `batch_size` crops a step.
        num_nodes: machines that take part.
        strategy: Lightning's, as "ddp".
        resume: continue from `last.ckpt`.
        show: progress on stderr.
    """

    run_dir: Path
    device: str = "auto"
    devices: str = "1"
    num_nodes: int = 1
    strategy: str = "auto"
    resume: bool = False
    show: Show = "none"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model file says besides what training decides.

    Attributes:
        gsd_m: ground resolution, m a pixel; None: the starting model's, else the data's.
        gsd_range_m: run without resampling; None: `gsd_m` over the random scales.
        description, license, data: free text.
    """

    name: str
    gsd_m: float | None = None
    gsd_range_m: tuple[float, float] | None = None
    description: str = ""
    license: str = ""
    data: str = ""

    @property
    def texts(self) -> dict[str, str]:
        return {"description": self.description, "license": self.license, "data": self.data}
