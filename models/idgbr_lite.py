"""IDGBR at a size for the CPU: a diffusion model that moves a rough label map's boundaries onto the image's.

The parts are those of IDGBR (arXiv 2507.01573): a label embedding and codec, a denoising network with an
encoder of its own, conditions from image and rough map that are encoded once, and guidance blocks that add
what they find to the denoising network's skips. What differs, each for a reason:

- The codec is small and 4x down; latents have unit length a pixel, so no scale is needed.
- Diffusion runs from the rough map to the true one instead of from pure noise (ResShift, arXiv 2307.12348):
  x_t = (1 - eta) x_0 + eta y + noise sqrt(eta) epsilon, so that few steps suffice and classes are kept.
- The network predicts x_0, and the loss sees the decoded labels.
- Nothing looks at the whole tile: norms are a pixel's own, attention stays in windows that lie at multiples
  of `window_px`. Tiles that overlap far enough therefore agree; deep features see further than `halo_px`, and
  what they see there changes few pixels.

    paper                here
    z, z_rough           clean, rough       (B, K, h, w), h = H / 4
    CG Net               GuidanceBlock, one for each skip and the middle
    conditions           Conditions: image and rough features of each level, joined
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import timm
import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

from .diffusion import Stage, TimeSampling
from .idgbr_guidance import REACH, spread_codes

UNKNOWN = 255
STRIDE = 4
CODE_CHANNELS = 3
OUTSIDE_WEIGHT = 0.1  # of pixels away from boundaries in the loss
LATENT_WEIGHT = 0.25
START_SHARE = 0.5  # of the times in training that are the sampler's first
CODEC_NOISE = 0.25  # added to latents, so that close latents mean close maps


@dataclass(frozen=True, kw_only=True)
class LiteRefinerConfig:
    """Sizes of the network.

    Attributes:
        classes: N.
        in_channels: bands of the image.
        encoder: any timm `features_only` encoder whose first scales have strides 2, 4, 8 and 16.
        latent_channels: K of the label codec; 0 takes 16 for two classes and 48 for more, which lose nothing.
        codec_channels: width of the decoder.
        widths: channels at strides 4, 8 and 16.
        middle: blocks at stride 16.
        window_px: side of the attention windows in image px; a multiple of 16.
        noise: strength of the noise at the start, in units of the latents.
        steps: of the sampler.
        time_sampling: of training; "cubic" favours the start.
        band_px: distance from boundaries within which the loss counts in full.
    """

    classes: int
    in_channels: int = 3
    encoder: str = "tf_efficientnet_lite0"
    latent_channels: int = 0
    codec_channels: int = 64
    widths: tuple[int, ...] = (32, 64, 128)
    middle: int = 2
    window_px: int = 64
    noise: float = 0.5
    steps: int = 1
    time_sampling: TimeSampling = "cubic"
    band_px: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.latent_channels == 0:
            object.__setattr__(
                self, "latent_channels", STRIDE**2 * (1 if self.classes <= 2 else CODE_CHANNELS)
            )
        if not 1 <= self.classes <= 254:
            raise ValueError(f"classes {self.classes}: needs 1 to 254")
        if not 1 <= self.in_channels <= 1024:
            raise ValueError(f"in_channels {self.in_channels}: needs 1 to 1024")
        if len(self.widths) != 3 or not all(16 <= width <= 1024 and width % 16 == 0 for width in self.widths):
            raise ValueError(f"widths {self.widths}: needs three multiples of 16 up to 1024")
        if not 1 <= self.latent_channels <= 64 or not 8 <= self.codec_channels <= 1024:
            raise ValueError("latent_channels needs 1 to 64, codec_channels 8 to 1024")
        if not 0 <= self.middle <= 16:
            raise ValueError(f"middle {self.middle}: needs 0 to 16")
        if not 16 <= self.window_px <= 256 or self.window_px % 16:
            raise ValueError(f"window_px {self.window_px}: needs a multiple of 16 up to 256")
        if not 0 < self.noise <= 10:
            raise ValueError(f"noise {self.noise}: needs a number above 0, up to 10")
        if not 1 <= self.steps <= 100:
            raise ValueError(f"steps {self.steps}: needs 1 to 100")
        if self.time_sampling not in ("uniform", "cubic"):
            raise ValueError(f"time_sampling {self.time_sampling!r}: needs uniform or cubic")
        if not 1 <= self.band_px <= 256:
            raise ValueError(f"band_px {self.band_px}: needs 1 to 256")

    def build(self) -> LiteRefiner:
        """The network with random weights."""
        return LiteRefiner(self)


class LiteRefiner(nn.Module):
    """The whole network; see `diffusion.RefinerNetwork`.

    Args:
        config: sizes.
        pretrained: load timm's ImageNet weights into the image encoder (needs timm's hub or cache).
    """

    latent_stride = STRIDE
    halo_px = 64

    def __init__(self, config: LiteRefinerConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.alignment_px = max(config.window_px, 16)
        self.default_steps = config.steps
        self.codec = LabelCodec(config)
        self.conditions = Conditions(config, pretrained=pretrained)
        self.denoiser = Denoiser(config)

    def forward(
        self, image: Tensor, coarse: Tensor, noise: Tensor, *, steps: int | None = None, guidance: float = 1.0
    ) -> Tensor:
        """Class logits (B, N, H, W) of the refined map.

        Args:
            image: (B, in_channels, H, W), normalised; H and W multiples of `alignment_px`.
            coarse: (B, H, W), 255 where no class is known.
            noise: standard normal (B, latent_channels, H / 4, W / 4).
            steps: None for the configuration's.
            guidance: must be 1: this network is trained with its conditions alone.
        """
        if guidance != 1.0:
            raise ValueError(f"guidance {guidance}: this refiner has none, needs 1")
        steps = steps or self.default_steps
        rough = self.codec.encode(coarse)
        conditions = self.conditions(image, rough)
        mixed = rough + self.config.noise * noise
        clean = rough
        for index in range(steps):
            eta, after = 1 - index / steps, 1 - (index + 1) / steps
            clean = self.denoiser(mixed, rough, conditions, mixed.new_full((len(mixed),), eta))
            if after > 0:
                spread = (mixed - (1 - eta) * clean - eta * rough) * math.sqrt(after / eta)
                mixed = (1 - after) * clean + after * rough + spread
        return self.codec.decode(clean)

    def codec_losses(self, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of maps (B, H, W) that went through the codec, noise added; boundaries count more."""
        return {"loss": self._reconstruction(self.codec.encode(labels), labels)}

    def refiner_losses(self, image: Tensor, coarse: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of one denoising step at a random time: labels as decoded, and latents.

        Unlabelled pixels take the rough map's class on their way into the codec and count in no loss. The
        decoder learns on, as latents that are found lie between those of label maps; what it makes of true
        latents stays part of the loss.
        """
        known = torch.where(labels == UNKNOWN, coarse.to(labels.dtype), labels)
        with torch.no_grad():
            rough, clean = self.codec.encode(coarse), self.codec.encode(known)
        time = self._times(len(image), image.device)
        eta = time.view(-1, 1, 1, 1)
        mixed = (1 - eta) * clean + eta * rough + self.config.noise * eta.sqrt() * torch.randn_like(clean)
        found = self.denoiser(mixed, rough, self.conditions(image, rough), time)
        near = torch.maximum(
            _near_boundaries(coarse, self.config.band_px), _near_boundaries(labels, self.config.band_px)
        )
        entropy = _weighted_cross_entropy(self.codec.decode(found), labels, near)
        latent = (found - clean).square().mean()
        few = max(1, len(labels) // 4)  # the codec needs reminding, no more
        codec = self._reconstruction(clean[:few], labels[:few])
        loss = entropy + LATENT_WEIGHT * latent + codec
        return {"loss": loss, "cross_entropy": entropy, "latent": latent, "codec": codec}

    def stage_parameters(self, stage: Stage) -> Iterable[nn.Parameter]:
        """The codec's parameters; or all others and those of the decoder."""
        if stage == "codec":
            return list(self.codec.parameters())
        parts = [*self.conditions.parameters(), *self.denoiser.parameters(), *self.codec.decoder_parameters()]
        frozen = {id(parameter) for parameter in self.conditions.encoder.parameters()}
        return [item for item in parts if id(item) not in frozen]

    def _reconstruction(self, latent: Tensor, labels: Tensor) -> Tensor:
        noisy = latent + CODEC_NOISE * torch.randn_like(latent)
        return _weighted_cross_entropy(self.codec.decode(noisy), labels, _near_boundaries(labels, STRIDE))

    def _times(self, count: int, device: torch.device) -> Tensor:
        """Times (count,) in (0, 1]; about half are 1, the rough map, where sampling starts: one step sees no
        other."""
        share = torch.rand(count, device=device)
        times = 1 - share**3 if self.config.time_sampling == "cubic" else 1 - share
        return torch.where(torch.rand(count, device=device) < START_SHARE, torch.ones_like(times), times)


class LabelCodec(nn.Module):
    """Label maps to latents a quarter as high and wide, and back to class logits.

    Both ways begin as one linear map that loses nothing: the codes of 4 x 4 px, side by side. Latents between
    those of two maps then mean what lies between these maps. The decoder adds what it learns to that.
    """

    def __init__(self, config: LiteRefinerConfig) -> None:
        super().__init__()
        channels, width = config.latent_channels, config.codec_channels
        codes = 2 * torch.atanh(REACH * spread_codes(config.classes))
        self.table = nn.Parameter(codes)
        self.fold = nn.Conv2d(CODE_CHANNELS * STRIDE**2, channels, 1, bias=False)
        self.unfold = nn.Conv2d(channels, CODE_CHANNELS * STRIDE**2, 1, bias=False)
        self.nearest = nn.Conv2d(CODE_CHANNELS, config.classes, 1)
        self.correct = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 8 * STRIDE**2, 1),
            nn.PixelShuffle(STRIDE),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, config.classes, 1),
        )
        with torch.no_grad():
            basis = fold_basis(codes, channels)
            self.fold.weight.copy_(basis[:, :, None, None])
            self.unfold.weight.copy_(basis.T[:, :, None, None])
            picture = _colours(codes)
            self.nearest.weight.copy_(4 * picture[:, :, None, None])
            cast(Tensor, self.nearest.bias).copy_(-2 * picture.square().sum(1))
            cast(Tensor, self.correct[-1].weight).mul_(0.1)

    def decoder_parameters(self) -> list[nn.Parameter]:
        return [item for part in (self.unfold, self.nearest, self.correct) for item in part.parameters()]

    def encode(self, labels: Tensor) -> Tensor:
        """Labels (B, H, W) to latents (B, K, H / 4, W / 4) of length sqrt(K) a pixel; 255 has the code 0."""
        codes = torch.cat([_colours(self.table), self.table.new_zeros(1, CODE_CHANNELS)])
        index = torch.where(labels == UNKNOWN, len(self.table), labels.long())
        picture = F.embedding(index, codes).permute(0, 3, 1, 2)
        return unit_length(self.fold(F.pixel_unshuffle(picture, STRIDE)))

    def decode(self, latent: Tensor) -> Tensor:
        """Class logits (B, N, H, W)."""
        picture = F.pixel_shuffle(self.unfold(latent), STRIDE)
        return self.nearest(picture) + self.correct(latent)


class Conditions(nn.Module):
    """Features of image and rough map at strides 4, 8 and 16, joined: (B, 2 C, h, w) a level.

    The image encoder is frozen, as IDGBR's is.
    """

    def __init__(self, config: LiteRefinerConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            config.encoder,
            features_only=True,
            out_indices=(0, 1, 2, 3),
            in_chans=config.in_channels,
            pretrained=pretrained,
        )
        info = cast(FeatureInfo, self.encoder.feature_info)
        last = info.module_name()[-1]
        if last.startswith("blocks."):  # timm keeps the stages of EfficientNets that nothing reads
            self.encoder.blocks = cast(nn.Sequential, self.encoder.blocks)[: int(last.split(".")[1]) + 1]
        self.encoder.requires_grad_(False)
        if info.reduction() != [2, 4, 8, 16]:
            raise ValueError(f"encoder {config.encoder!r}: strides {info.reduction()}; needs 2, 4, 8 and 16")
        half, quarter, *deeper = info.channels()
        widths = config.widths
        self.image_in = nn.Conv2d(16 * config.in_channels + 4 * half + quarter, widths[0], 1)
        self.deeper_in = nn.ModuleList(
            nn.Conv2d(found, width, 1) for found, width in zip(deeper, widths[1:], strict=True)
        )
        self.image = Pyramid(widths)
        self.rough_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.rough = Pyramid(widths)

    def forward(self, image: Tensor, rough: Tensor) -> list[Tensor]:
        with torch.no_grad():
            half, quarter, *deeper = self.encoder(image)
        detail = torch.cat([F.pixel_unshuffle(image, 4), F.pixel_unshuffle(half, 2), quarter], 1)
        deeper = [enter(found) for enter, found in zip(self.deeper_in, deeper, strict=True)]
        seen = self.image(self.image_in(detail), deeper)
        drawn = self.rough(self.rough_in(rough))
        return [torch.cat(pair, 1) for pair in zip(seen, drawn, strict=True)]

    def train(self, mode: bool = True) -> Conditions:
        """The encoder's batch statistics stay what they are: a pixel must not depend on its batch."""
        super().train(mode)
        self.encoder.eval()
        return self


class Pyramid(nn.Module):
    """A block at each of strides 4, 8 and 16; what is known at strides 8 and 16 is added on the way."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for width in widths)
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 2, stride=2) for before, after in pairwise(widths)
        )

    def forward(self, features: Tensor, deeper: Sequence[Tensor] = ()) -> list[Tensor]:
        levels = [self.blocks[0](features)]
        for index, down in enumerate(self.downs):
            features = down(levels[-1])
            if deeper:
                features = features + deeper[index]
            levels.append(self.blocks[index + 1](features))
        return levels


class Denoiser(nn.Module):
    """Latents at a time, and conditions, to clean latents."""

    def __init__(self, config: LiteRefinerConfig) -> None:
        super().__init__()
        widths, time = config.widths, 64
        self.embed_time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(Block(width, time) for width in widths)
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 2, stride=2) for before, after in pairwise(widths)
        )
        self.middle = nn.ModuleList(Block(widths[-1], time) for _ in range(config.middle))
        self.guides = nn.ModuleList(
            GuidanceBlock(width, config.window_px // (STRIDE << level) if level else 0)
            for level, width in enumerate(widths)
        )
        self.ups = nn.ModuleList(nn.Conv2d(after, 4 * before, 1) for before, after in pairwise(widths))
        self.up_blocks = nn.ModuleList(Block(width, time) for width in widths[:-1])
        self.leave_norm = PixelNorm(widths[0])
        self.leave = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)

    def forward(self, mixed: Tensor, rough: Tensor, conditions: Sequence[Tensor], time: Tensor) -> Tensor:
        """Clean latents (B, K, h, w), found as a change of the rough ones; `time` (B,) in (0, 1]."""
        when = self.embed_time(_wave(time))
        features = self.enter(mixed)
        skips = []
        for level, block in enumerate(self.down_blocks):
            features = block(features if level == 0 else self.downs[level - 1](features), when)
            skips.append(features + self.guides[level](features, conditions[level]))
        features = skips[-1]
        for block in self.middle:
            features = block(features, when)
        for level in reversed(range(len(self.ups))):
            features = F.pixel_shuffle(self.ups[level](features), 2) + skips[level]
            features = self.up_blocks[level](features, when)
        return unit_length(rough + self.leave(F.relu(self.leave_norm(features))))


class GuidanceBlock(nn.Module):
    """What image and rough map say of a skip: a residual (B, C, h, w).

    IDGBR's block: r = conv [x; c]; queries from r, keys and values from c; v = values + attention; v = v +
    MLP v; result r + projection of v. Attention stays in windows of `window` x `window` px of the level; with
    window 0 a 3 x 3 convolution of the conditions takes its place (at stride 4, where attention would cost
    most).
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.join = nn.Conv2d(3 * channels, channels, 1)
        self.values = nn.Conv2d(2 * channels, channels, 1 if window else 3, padding=0 if window else 1)
        self.norm_values = PixelNorm(channels)
        if window:
            self.heads = max(1, channels // 32)
            self.queries = nn.Conv2d(channels, channels, 1)
            self.norm_queries = PixelNorm(channels)
            self.position = nn.Parameter(torch.randn(channels, window, window) * 0.02)
            self.keys = nn.Conv2d(channels, channels, 1)
        self.norm_mlp = PixelNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.shrink = nn.Conv2d(2 * channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)
        with torch.no_grad():  # small, not zero: a zero here would keep gradients from all above it
            self.project.weight.mul_(0.1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        joined = self.join(torch.cat([features, condition], 1))
        values = self.norm_values(self.values(condition))
        if self.window:
            values = values + self._attend(self.norm_queries(self.queries(joined)), values)
        values = values + self.shrink(F.relu(self.expand(self.norm_mlp(values))))
        return joined + self.project(values)

    def _attend(self, queries: Tensor, values: Tensor) -> Tensor:
        batch, channels, height, width = values.shape
        side = self.window
        position = self.position.repeat(1, height // side, width // side)
        asked, keys = self._split(queries + position), self._split(self.keys(values) + position)
        # (B windows, heads, side^2, channels / heads)
        found = F.scaled_dot_product_attention(asked, keys, self._split(values))
        found = found.transpose(1, 2).reshape(batch, height // side, width // side, side, side, channels)
        return found.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)

    def _split(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        side, heads = self.window, self.heads
        parts = features.reshape(batch, heads, channels // heads, height // side, side, width // side, side)
        return parts.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, heads, side**2, channels // heads)


class Block(nn.Module):
    """Residual: norm, 3 x 3 convolution to twice the channels, time's scale and shift, 1 x 1 back."""

    def __init__(self, channels: int, time: int = 0) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.shrink = nn.Conv2d(2 * channels, channels, 1)
        self.time = nn.Linear(time, 2 * channels) if time else None

    def forward(self, features: Tensor, when: Tensor | None = None) -> Tensor:
        inner = self.expand(self.norm(features))
        if self.time is not None and when is not None:
            inner = inner + self.time(when)[:, :, None, None]
        return features + self.shrink(F.relu(inner))


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of (B, C, h, w)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def unit_length(latent: Tensor) -> Tensor:
    """Latents (B, K, h, w) scaled to length sqrt(K) at each pixel."""
    return latent * (latent.square().mean(1, keepdim=True) + 1e-6).rsqrt()


def fold_basis(codes: Tensor, channels: int) -> Tensor:
    """Orthonormal rows (K, 48) onto which the codes of 4 x 4 px are projected; nothing is lost where K is 16
    times the number of dimensions that the codes (N, 3) span."""
    directions = torch.linalg.svd(_colours(codes), full_matrices=True).Vh  # those that hold most first
    rows = torch.zeros(CODE_CHANNELS, STRIDE**2, CODE_CHANNELS, STRIDE**2)
    for position in range(STRIDE**2):
        rows[:, position, :, position] = directions
    rows = rows.flatten(0, 1).flatten(1)  # pixel_unshuffle puts positions behind channels
    if channels <= len(rows):
        return rows[:channels]
    return torch.cat([rows, torch.randn(channels - len(rows), rows.shape[1]) * 0.1])


def _colours(table: Tensor) -> Tensor:
    return 2 * table.sigmoid() - 1


def _wave(time: Tensor) -> Tensor:
    """Sines and cosines (B, 32) of times in (0, 1]."""
    rates = torch.exp(torch.linspace(0, math.log(100), 16, device=time.device))
    angles = time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def _near_boundaries(labels: Tensor, distance_px: int) -> Tensor:
    """1 within about `distance_px` of a change of class, OUTSIDE_WEIGHT elsewhere: float (B, H, W)."""
    values = labels.float()[:, None]
    cells = STRIDE
    changed = F.max_pool2d(values, cells + 1, cells, padding=cells // 2) != -F.max_pool2d(
        -values, cells + 1, cells, padding=cells // 2
    )
    reach = 2 * round(distance_px / cells) + 1
    near = F.max_pool2d(changed.float(), (reach, 1), 1, padding=(reach // 2, 0))
    near = F.max_pool2d(near, (1, reach), 1, padding=(0, reach // 2))
    near = F.interpolate(near, size=labels.shape[-2:], mode="nearest")[:, 0]
    return near.clamp(min=OUTSIDE_WEIGHT)


def _weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over labelled pixels, weighted; 0 without any."""
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=UNKNOWN, reduction="none")
    weights = weights * (labels != UNKNOWN)
    return (losses * weights).sum() / weights.sum().clamp(min=1)
