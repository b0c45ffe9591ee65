"""IDGBR: a diffusion model that redraws the boundaries of a coarse label map, guided by the image.

Source: arXiv 2507.01573 and its released program (Apache-2.0), on Stable Diffusion 1.5's networks through
diffusers; released checkpoints are read by `rsseg models import`.

    paper                        here
    denoising U-Net              denoiser: its encoder sees the noisy label latent
    frozen encoder               condition_encoder, at time step 1, on the latents of image and coarse map
    CG Net                       guidance
    label embedding              label_embedding
    latent codec                 codec, the posterior's mode

Unlike the released program: conditions are encoded once a tile, the denoiser's encoder runs once a step, also
where guidance needs two predictions; the branch without conditions is trained by leaving them out of a share
of the samples; x0 can be predicted in place of noise, on a schedule that ends without signal; the sampler may
start from the coarse map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from .bicor_seg import check_whole_numbers
from .diffusion import NoiseSchedule, Stage, TimeSampling, sample_times, sampler_times
from .idgbr_guidance import GuidanceNetwork, LabelEmbedding
from .losses import IGNORE, cross_entropy, dice

TIME_STEPS = 1000
CONDITION_TIME = 1  # at which the frozen encoder runs
CODEC_NOISE = 0.15  # added to decoded pictures while the label embedding is trained
ALIGNMENT_WEIGHT = 0.5
Alignment = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class IdgbrConfig:
    """Sizes of the network, and how it samples.

    Attributes:
        channels, layers, heads, groups: of the U-Net; all levels but the last attend to the text.
        text_tokens, text_channels: size of the prompt's embedding.
        codec_channels, codec_layers, codec_groups: of the codec; it halves once less than it has levels.
        latent_scale: factor of the codec's latents.
        grid: side of the latents that positions are stored for.
        prediction: the denoiser's output, the noise or the clean latent x0.
        start_time: time step up to which the coarse map is noised for the sampler's start; None starts from
            pure noise.
        guidance_dropout: share of training samples without conditions.
    """

    classes: int
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: int = 8
    groups: int = 32
    text_tokens: int = 77
    text_channels: int = 768
    codec_channels: tuple[int, ...] = (128, 256, 512, 512)
    codec_layers: int = 2
    codec_groups: int = 32
    latent_channels: int = 4
    latent_scale: float = 0.18215
    guidance_width: int = 512
    guidance_heads: int = 8
    grid: int = 64
    prediction: Literal["noise", "clean"] = "noise"
    start_time: int | None = None
    steps: int = 3
    time_sampling: TimeSampling = "uniform"
    guidance_dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("channels", "codec_channels"):  # lists where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_whole_numbers(
            self, classes=254, layers=8, heads=64, groups=64, text_tokens=1024, text_channels=4096,
            codec_layers=8, codec_groups=64, latent_channels=64, guidance_width=4096, guidance_heads=64,
            grid=256, steps=self.last_time,
        )  # fmt: skip
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    def _problem(self) -> str | None:
        for name, groups in (("channels", self.groups), ("codec_channels", self.codec_groups)):
            widths = getattr(self, name)
            whole = all(type(width) is int and 1 <= width <= 4096 and width % groups == 0 for width in widths)
            if not 2 <= len(widths) <= 6 or not whole:
                return f"{name} {widths!r:.80}: needs 2 to 6 multiples of {groups}, up to 4096"
        if any(width % self.heads for width in self.channels) or self.guidance_width % self.guidance_heads:
            return "channels and guidance_width must be multiples of their heads"
        if self.grid % 2 ** (len(self.channels) - 1):
            return f"grid {self.grid}: needs a multiple of {2 ** (len(self.channels) - 1)}"
        if self.prediction not in ("noise", "clean"):
            return f"prediction {self.prediction!r:.40}: needs noise or clean"
        if self.start_time is not None and not 1 <= self.start_time < TIME_STEPS:
            return f"start_time {self.start_time!r:.40}: needs a whole number from 1 to {TIME_STEPS - 1}"
        if self.time_sampling not in ("uniform", "cubic"):
            return f"time_sampling {self.time_sampling!r:.40}: needs uniform or cubic"
        if not 0 <= self.guidance_dropout < 1 or not 0 < self.latent_scale < 100:
            return "guidance_dropout needs 0 <= share < 1, latent_scale a number above 0"
        return None

    @classmethod
    def paper(cls, classes: int) -> IdgbrConfig:
        """The published size: 859.5 M parameters in the denoiser."""
        return cls(classes=classes)

    def build(self) -> Idgbr:
        return Idgbr(self)

    in_channels = 3  # bands of the image: the codec takes three

    @property
    def last_time(self) -> int:
        """The noisiest time step that is sampled or trained."""
        return TIME_STEPS - 1 if self.start_time is None else self.start_time

    @property
    def skip_shapes(self) -> tuple[tuple[int, int], ...]:
        """Channels and grid of each skip of the U-Net, the mid block's last."""
        grid, shapes = self.grid, [(self.channels[0], self.grid)]
        for level, width in enumerate(self.channels):
            shapes += [(width, grid)] * self.layers
            if level < len(self.channels) - 1:
                grid //= 2
                shapes.append((width, grid))
        return (*shapes, (self.channels[-1], grid))


class Idgbr(nn.Module):
    """The whole refiner; a `RefinerNetwork`."""

    halo_px = 128  # attention reaches over the whole tile; beyond this its share is small

    def __init__(self, config: IdgbrConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_stride = 2 ** (len(config.codec_channels) - 1)
        self.latent_channels = config.latent_channels
        self.alignment_px = self.latent_stride * 2 ** (len(config.channels) - 1)
        self.default_steps = config.steps
        with torch.device("cpu"):  # real numbers also where weights are laid out without memory
            self.schedule = NoiseSchedule.scaled_linear(TIME_STEPS, zero_end=config.prediction == "clean")
        self.codec = build_codec(config).requires_grad_(False)
        self.condition_encoder = build_unet(config, encoder_only=True).requires_grad_(False)
        self.denoiser = build_unet(config)
        self.start_conditions()
        self.register_buffer("prompt", torch.zeros(1, config.text_tokens, config.text_channels))

    def start_conditions(self) -> None:
        """Give guidance network and label embedding new random weights."""
        config = self.config
        self.label_embedding = LabelEmbedding(config.classes)
        self.guidance = GuidanceNetwork(config.skip_shapes, config.guidance_width, config.guidance_heads)

    prompt: Tensor  # embedding of the empty prompt, (1, tokens, channels)

    def forward(
        self, image: Tensor, coarse: Tensor, noise: Tensor, *, steps: int | None = None, guidance: float = 1.0
    ) -> Tensor:
        """Return class logits, float32 (B, N, H, W), of an image (B, 3, H, W) in [-1, 1].

        `guidance` extrapolates from the prediction without conditions to that with them; 1 takes the latter.
        """
        self._check_size(image)
        coarse_latent = self.encode(self.label_embedding(coarse))
        conditions = self.encode_conditions(self.encode(image), coarse_latent)
        last = self.config.last_time
        times = sampler_times(self.config.steps if steps is None else steps, last)
        noisy = noise.float()
        if self.config.start_time is not None:
            noisy = self.schedule.add_noise(coarse_latent, noisy, self._time(last, noise))
        clean = noisy
        for index, step in enumerate(times):
            time = self._time(step, noise)
            clean = self._clean(noisy, self.predict(noisy, time, conditions, guidance), time)
            if index + 1 < len(times):
                noisy = self.schedule.step(noisy, clean, time, self._time(times[index + 1], noise))
        return self.decode(clean)

    def encode(self, picture: Tensor) -> Tensor:
        """Picture (B, 3, H, W) in [-1, 1] -> latent, float32 (B, latent_channels, h, w)."""
        posterior = self.codec.encode(picture.to(self.prompt.dtype)).latent_dist
        return posterior.mode().float() * self.config.latent_scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> class logits, float32 (B, N, H, W)."""
        return self.label_embedding.classify(self._picture(latent)).float()

    def encode_conditions(self, image_latent: Tensor, coarse_latent: Tensor) -> list[Tensor]:
        """Features of both, concatenated, one tensor (B, 2C, h, w) a skip and one for the mid block."""
        both = torch.cat([image_latent, coarse_latent]).to(self.prompt.dtype)
        time = torch.full((len(both),), CONDITION_TIME, device=both.device)
        _, features = self.condition_encoder.encode(both, time, self._text(len(both)))
        return [torch.cat(feature.chunk(2), 1) for feature in features]

    def predict(self, noisy: Tensor, time: Tensor, conditions: list[Tensor], guidance: float = 1.0) -> Tensor:
        """The denoiser's prediction, noise or x0 as configured, float32 (B, latent_channels, h, w)."""
        text = self._text(len(noisy))
        embedding, features = self.denoiser.encode(noisy.to(text.dtype), time, text)
        guided = _sum(features, self.guidance(features, conditions))
        if guidance == 1:
            return self.denoiser.decode(embedding, guided, text).float()
        # both branches share the encoder: without conditions its features go on as they are
        both = [torch.cat(pair) for pair in zip(features, guided, strict=True)]
        predicted = self.denoiser.decode(embedding.repeat(2, 1), both, text.repeat(2, 1, 1)).float()
        free, bound = predicted.chunk(2)
        return free + guidance * (bound - free)

    def codec_losses(self, labels: Tensor) -> dict[str, Tensor]:
        """See `RefinerNetwork`; decoded pictures get noise, as the denoiser's will not be exact."""
        self._check_size(labels)
        picture = self._picture(self.encode(self.label_embedding(labels)))
        logits = self.label_embedding.classify(picture + CODEC_NOISE * torch.randn_like(picture)).float()
        parts = {"cross_entropy": cross_entropy(logits, labels, smoothing=0.0), "dice": dice(logits, labels)}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def refiner_losses(
        self, image: Tensor, coarse: Tensor, labels: Tensor, align: Alignment | None = None
    ) -> dict[str, Tensor]:
        """Return the mean squared error of one prediction at a random time step.

        Where labels are ignored the coarse map replaces them on the way into the codec; latent pixels with
        any such label do not count. `align` is a loss of (image, mid features (B, C, h, w)), see
        `losses.DinoAlignment`.
        """
        self._check_size(image)
        known = torch.where(labels == IGNORE, coarse.to(labels.dtype), labels)
        with torch.no_grad():
            clean, coarse_latent = (self.encode(self.label_embedding(item)) for item in (known, coarse))
            conditions = self.encode_conditions(self.encode(image), coarse_latent)
        config = self.config
        time = sample_times(len(image), config.last_time, config.time_sampling, image.device)
        noise = torch.randn_like(clean)
        noisy, text = self.schedule.add_noise(clean, noise, time), self._text(len(image))
        embedding, features = self.denoiser.encode(noisy.to(text.dtype), time, text)
        kept = torch.rand(len(image), 1, 1, 1, device=image.device) >= config.guidance_dropout
        guided = _sum(features, [kept.to(text.dtype) * item for item in self.guidance(features, conditions)])
        predicted = self.denoiser.decode(embedding, guided, text).float()
        error = (predicted - (noise if config.prediction == "noise" else clean)).square().mean(1)
        counts = 1 - F.max_pool2d((labels == IGNORE).float(), self.latent_stride)
        losses = {"denoising": (error * counts).sum() / counts.sum().clamp(min=1)}
        if align is not None:
            losses["alignment"] = ALIGNMENT_WEIGHT * align(image, guided[-1])
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def stage_parameters(self, stage: Stage) -> Iterator[nn.Parameter]:
        """Yield the label embedding's, or those of denoiser and guidance network."""
        parts = [self.label_embedding] if stage == "codec" else [self.denoiser, self.guidance]
        for part in parts:
            yield from part.parameters()

    def _picture(self, latent: Tensor) -> Tensor:
        return self.codec.decode((latent / self.config.latent_scale).to(self.prompt.dtype)).sample

    def _clean(self, noisy: Tensor, predicted: Tensor, time: Tensor) -> Tensor:
        return (
            predicted if self.config.prediction == "clean" else self.schedule.clean_of(noisy, predicted, time)
        )

    def _text(self, count: int) -> Tensor:
        return self.prompt.expand(count, -1, -1)

    def _time(self, step: int, like: Tensor) -> Tensor:
        return torch.full((len(like),), step, device=like.device)

    def _check_size(self, image: Tensor) -> None:
        if image.shape[-2] % self.alignment_px or image.shape[-1] % self.alignment_px:
            raise ValueError(
                f"{tuple(image.shape[-2:])} px: height and width must be multiples of {self.alignment_px}"
            )


class SplitUNet(UNet2DConditionModel):
    """diffusers' conditional U-Net in two halves. Features: the skips, and the mid block's output last."""

    def encode(self, sample: Tensor, time: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latent (B, C, h, w), time steps (B,), text (B, tokens, channels) -> time embedding, features."""
        embedding = self.time_embedding(self.get_time_embed(sample, time))
        hidden = self.conv_in(sample)
        features = [hidden]
        for block in self.down_blocks:
            hidden, skips = block(hidden, embedding, **_attends(block, text))
            features += skips
        return embedding, [*features, self.mid_block(hidden, embedding, encoder_hidden_states=text)]

    def decode(self, embedding: Tensor, features: Sequence[Tensor], text: Tensor) -> Tensor:
        """Time embedding and features -> (B, C, h, w)."""
        *skips, hidden = features
        for block in self.up_blocks:
            count = len(cast(nn.ModuleList, block.resnets))
            hidden = block(hidden, tuple(skips[-count:]), embedding, **_attends(block, text))
            del skips[-count:]
        return self.conv_out(self.conv_act(self.conv_norm_out(hidden)))


def _attends(block: nn.Module, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def build_unet(config: IdgbrConfig, *, encoder_only: bool = False) -> SplitUNet:
    """A U-Net as Stable Diffusion 1.5's, or its encoder and mid block alone."""
    attending = len(config.channels) - 1
    unet = SplitUNet(
        sample_size=config.grid,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        norm_num_groups=config.groups,
        cross_attention_dim=config.text_channels,
        attention_head_dim=config.heads,  # a misnomer of diffusers: the number of heads
    )
    if encoder_only:
        del unet.up_blocks, unet.conv_norm_out, unet.conv_out
    return unet


def build_codec(config: IdgbrConfig) -> AutoencoderKL:
    levels = len(config.codec_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.codec_channels,
        layers_per_block=config.codec_layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.codec_groups,
        sample_size=512,
        scaling_factor=config.latent_scale,
    )


def _sum(features: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    return [feature + residual for feature, residual in zip(features, residuals, strict=True)]
