"""IDGBR at a size for the CPU: a diffusion model that moves a coarse label map's boundaries onto the image's.

The parts are those of IDGBR (arXiv 2507.01573): a label embedding and codec, a denoising network with an
encoder of its own, conditions from image and coarse map that are encoded once, and guidance blocks that add
their residuals to the denoising network's skips. What differs, each for a reason:

- The codec is small and 4x down; latents have unit length a pixel, so no scale is needed.
- Diffusion runs from the coarse map to the true one instead of from pure noise (ResShift, arXiv 2307.12348):
  x_t = (1 - eta) x_0 + eta y + noise sqrt(eta) epsilon, so that few steps suffice and classes are kept.
- The network predicts x_0, and the loss sees the decoded labels.
- Nothing looks at the whole tile: norms are a pixel's own, attention stays in windows that lie at multiples
  of `window_px`. Tiles that overlap far enough therefore agree; deep features see further than `halo_px`, and
  what they see there changes few pixels.
- A refiner may hold the segmentation model whose maps it repairs (`closer`), which segments the image again
  at the refiner's finer resolution, on the same encoder's features. Its probabilities are a further
  condition, the map that the network changes, and may have a share in the result. Its class embeddings gather
  over the whole tile, so that tiles then agree nearly, not exactly.

    paper                here
    z, z_rough           clean, coarse      (B, K, h, w), h = H / 4
    CG Net               GuidanceBlock, one for each skip and the middle
    conditions           Conditions: image and coarse features of each level, joined

Attributes `rough` and `rough_in` are names in stored weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bicor_seg import BicorDecoder, BicorSegConfig, Neck, check_whole_numbers
from .diffusion import Stage, TimeSampling
from .idgbr_lite_blocks import CODE_CHANNELS, STRIDE, Denoiser, LabelCodec, Pyramid
from .losses import IGNORE

if TYPE_CHECKING:
    from timm.models import FeatureInfo

MIN_PROBABILITY = 1e-6
PROBABILITY_SCALE = 254  # a probability of 1 in uint8
OUTSIDE_WEIGHT = 0.1  # of pixels away from boundaries in the loss
LATENT_WEIGHT = 0.25
START_SHARE = 0.5  # of the times in training that are the sampler's first; fewer made it worse
CODEC_NOISE = 0.25  # added to latents, so that close latents mean close maps


@dataclass(frozen=True, kw_only=True)
class LiteRefinerConfig:
    """Sizes of the network, and what `diffusion.RefinerNetwork` says of it.

    Attributes:
        encoder: any timm `features_only` encoder whose first scales have strides 2, 4, 8 and 16.
        latent_channels: K of the label codec; 0 takes 16 for two classes and 48 for more, which lose nothing.
        widths: channels at strides 4, 8 and 16.
        window_px: side of the attention windows in image px; a multiple of 16.
        noise: strength of the noise at the start, in units of the latents.
        time_sampling: in training; "cubic" favours the start.
        band_px: distance from boundaries within which the loss counts in full.
        closer: sizes of a BiCoR-Seg network on the refiner's encoder that segments the image too.
        closer_scales: scales of the image for it, 1 or below; its probabilities are averaged.
        closer_share: its share in the result's probabilities, 0 to below 1.
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
    steps: int = 4
    time_sampling: TimeSampling = "cubic"
    band_px: int = 16
    closer: dict[str, Any] | None = None
    closer_scales: tuple[float, ...] = (1.0,)
    closer_share: float = 0.0
    latent_stride: ClassVar[int] = STRIDE
    halo_px: ClassVar[int] = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "closer_scales", tuple(self.closer_scales))
        if self.latent_channels == 0:
            codes = 1 if self.classes <= 2 else CODE_CHANNELS
            object.__setattr__(self, "latent_channels", STRIDE**2 * codes)
        check_whole_numbers(
            self,
            classes=254,
            in_channels=1024,
            latent_channels=64,
            codec_channels=1024,
            steps=100,
            band_px=256,
        )
        if len(self.widths) != 3 or not all(16 <= width <= 1024 and width % 16 == 0 for width in self.widths):
            raise ValueError(f"widths {self.widths}: needs three multiples of 16 up to 1024")
        if self.codec_channels < 8:
            raise ValueError(f"codec_channels {self.codec_channels}: needs 8 to 1024")
        if not 0 <= self.middle <= 16:
            raise ValueError(f"middle {self.middle}: needs 0 to 16")
        if not 16 <= self.window_px <= 256 or self.window_px % 16:
            raise ValueError(f"window_px {self.window_px}: needs a multiple of 16 up to 256")
        if not 0 < self.noise <= 10:
            raise ValueError(f"noise {self.noise}: needs a number above 0, up to 10")
        if self.time_sampling not in ("uniform", "cubic"):
            raise ValueError(f"time_sampling {self.time_sampling!r}: needs uniform or cubic")
        if not 1 <= len(self.closer_scales) <= 8 or not all(0.1 <= part <= 1 for part in self.closer_scales):
            raise ValueError(f"closer_scales {self.closer_scales}: needs up to eight numbers from 0.1 to 1")
        if not 0 <= self.closer_share < 1 or (self.closer_share and self.closer is None):
            raise ValueError(f"closer_share {self.closer_share}: needs 0 to below 1, and 0 without closer")
        if self.closer is not None:
            self.closer_config()

    def closer_config(self) -> BicorSegConfig:
        """Return the sizes of `closer`; ValueError where one does not work."""
        shared: dict[str, Any] = {
            "classes": self.classes,
            "in_channels": self.in_channels,
            "encoder": self.encoder,
        }
        try:
            return BicorSegConfig(**shared, **(self.closer or {}))
        except TypeError as err:
            raise ValueError(f"closer {self.closer!s:.100}: {err}") from err

    @property
    def alignment_px(self) -> int:
        return self.window_px

    @property
    def default_steps(self) -> int:
        return self.steps

    def build(self) -> LiteRefiner:
        return LiteRefiner(self)


class LiteRefiner(nn.Module):
    """The whole network; see `diffusion.RefinerNetwork`. `pretrained` loads timm's ImageNet encoder."""

    latent_stride = LiteRefinerConfig.latent_stride
    halo_px = LiteRefinerConfig.halo_px

    def __init__(self, config: LiteRefinerConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.alignment_px = config.alignment_px
        self.default_steps = config.default_steps
        self.codec = LabelCodec(config.classes, config.latent_channels, config.codec_channels)
        self.conditions = Conditions(config, pretrained=pretrained)
        self.denoiser = Denoiser(config.latent_channels, config.widths, config.middle, config.window_px)
        self.closer = None if config.closer is None else CloserLook(config.closer_config(), self.conditions)

    def forward(self, image: Tensor, coarse: Tensor, noise: Tensor, *, steps: int | None = None) -> Tensor:
        """Return class logits (B, N, H, W); `coarse` is (B, H, W), 255 where unknown."""
        steps = steps or self.default_steps
        coarse_latent = self.codec.encode(coarse)
        scales = self.conditions.see(image)
        probabilities = None if self.closer is None else self._look(image, scales)
        start = coarse_latent if probabilities is None else self.codec.blend(probabilities)
        conditions = self.conditions(image, scales, self._maps(coarse_latent, start))
        noisy = coarse_latent + self.config.noise * noise
        clean = coarse_latent
        for index in range(steps):
            eta, after = 1 - index / steps, 1 - (index + 1) / steps
            clean = self.denoiser(noisy, start, conditions, noisy.new_full((len(noisy),), eta))
            if after > 0:
                spread = (noisy - (1 - eta) * clean - eta * coarse_latent) * math.sqrt(after / eta)
                noisy = (1 - after) * clean + after * coarse_latent + spread
        logits = self.codec.decode(clean)
        share = self.config.closer_share
        if probabilities is None or not share:
            return logits
        return ((1 - share) * logits.softmax(1) + share * probabilities).clamp(min=MIN_PROBABILITY).log()

    def _maps(self, coarse: Tensor, start: Tensor) -> Tensor:
        """Latents of the maps that are conditions: the coarse map, and the closer look's."""
        return coarse if self.closer is None else torch.cat([coarse, start], 1)

    def _look(self, image: Tensor, scales: list[Tensor], known: Tensor | None = None) -> Tensor:
        """Return the class probabilities (B, N, H, W) of `closer`.

        `scales` are the image's features; uint8 probabilities in `known`, 0 to 254, replace those of `closer`
        where they are not 255.
        """
        if known is not None and not (known == IGNORE).any():
            return known.to(image.dtype) / PROBABILITY_SCALE
        closer, views = cast(CloserLook, self.closer), []
        for size in self.config.closer_scales:
            view = closer(scales if size == 1 else self.conditions.see(_smaller(image, size)))
            views.append(_resized(view, image))
        own = torch.stack(views).mean(0)
        return own if known is None else torch.where(known == IGNORE, own, known / PROBABILITY_SCALE)

    def codec_losses(self, labels: Tensor) -> dict[str, Tensor]:
        """See `RefinerNetwork`; latents get noise, and boundaries count more."""
        return {"loss": self._reconstruction(self.codec.encode(labels), labels)}

    def refiner_losses(
        self, image: Tensor, coarse: Tensor, labels: Tensor, closer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of one denoising step at a random time: decoded labels, and latents.

        Unlabelled pixels take the coarse map's class on their way into the codec and count in no loss. The
        decoder keeps learning, as predicted latents lie between those of label maps. `closer` are uint8
        probabilities (B, N, H, W), 0 to 254, in place of those of `self.closer`, which are too good on the
        scenes that it was trained on; 255 takes its own.
        """
        known = torch.where(labels == IGNORE, coarse.to(labels.dtype), labels)
        with torch.no_grad():
            coarse_latent, clean = self.codec.encode(coarse), self.codec.encode(known)
        time = self._times(len(image), image.device)
        eta = time.view(-1, 1, 1, 1)
        noise = self.config.noise * eta.sqrt() * torch.randn_like(clean)
        noisy = (1 - eta) * clean + eta * coarse_latent + noise
        scales = self.conditions.see(image)
        start = coarse_latent
        if self.closer is not None:
            start = self.codec.blend(self._look(image, scales, closer))
        conditions = self.conditions(image, scales, self._maps(coarse_latent, start))
        denoised = self.denoiser(noisy, start, conditions, time)
        near = torch.maximum(
            _near_boundaries(coarse, self.config.band_px), _near_boundaries(labels, self.config.band_px)
        )
        entropy = _weighted_cross_entropy(self.codec.decode(denoised), labels, near)
        latent = (denoised - clean).square().mean()
        few = max(1, len(labels) // 4)  # the codec needs reminding, no more
        codec = self._reconstruction(clean[:few], labels[:few])
        loss = entropy + LATENT_WEIGHT * latent + codec
        return {"loss": loss, "cross_entropy": entropy, "latent": latent, "codec": codec}

    def stage_parameters(self, stage: Stage) -> Iterable[nn.Parameter]:
        """Return the codec's parameters, or all others and the decoder's."""
        if stage == "codec":
            return list(self.codec.parameters())
        parts = [*self.conditions.parameters(), *self.denoiser.parameters(), *self.codec.decoder_parameters()]
        frozen = {id(parameter) for parameter in self.conditions.encoder.parameters()}
        return [item for item in parts if id(item) not in frozen]

    def _reconstruction(self, latent: Tensor, labels: Tensor) -> Tensor:
        noisy = latent + CODEC_NOISE * torch.randn_like(latent)
        return _weighted_cross_entropy(self.codec.decode(noisy), labels, _near_boundaries(labels, STRIDE))

    def _times(self, count: int, device: torch.device) -> Tensor:
        """Times (count,) in (0, 1]; about half are 1, the coarse map, where sampling starts."""
        share = torch.rand(count, device=device)
        times = 1 - share**3 if self.config.time_sampling == "cubic" else 1 - share
        return torch.where(torch.rand(count, device=device) < START_SHARE, torch.ones_like(times), times)


class Conditions(nn.Module):
    """Features of image and maps at strides 4, 8 and 16, joined: (B, 2 C, h, w) a level.

    The image encoder is frozen, as IDGBR's is.
    """

    def __init__(self, config: LiteRefinerConfig, *, pretrained: bool = False) -> None:
        import timm

        super().__init__()
        strides = [2, 4, 8, 16] if config.closer is None else [2, 4, 8, 16, 32]
        self.encoder = timm.create_model(
            config.encoder,
            features_only=True,
            out_indices=tuple(range(len(strides))),
            in_chans=config.in_channels,
            pretrained=pretrained,
        )
        info = cast("FeatureInfo", self.encoder.feature_info)
        last = info.module_name()[-1]
        if last.startswith("blocks."):  # timm keeps the stages of EfficientNets that nothing reads
            self.encoder.blocks = cast(nn.Sequential, self.encoder.blocks)[: int(last.split(".")[1]) + 1]
        self.encoder.requires_grad_(False)
        if info.reduction() != strides:
            raise ValueError(f"encoder {config.encoder!r}: strides {info.reduction()}; needs {strides}")
        self.channels = info.channels()
        half, quarter, *deeper = self.channels[:4]
        widths = config.widths
        self.image_in = nn.Conv2d(16 * config.in_channels + 4 * half + quarter, widths[0], 1)
        self.deeper_in = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels, width in zip(deeper, widths[1:], strict=True)
        )
        self.image = Pyramid(widths)
        maps = 1 if config.closer is None else 2
        self.rough_in = nn.Conv2d(maps * config.latent_channels, widths[0], 3, padding=1)
        self.rough = Pyramid(widths)
        self.train()  # modules start in training mode, and Lightning does not call this again

    def see(self, image: Tensor) -> list[Tensor]:
        """Features of the image at strides 2, 4, 8, 16 (and 32 where there is a closer look)."""
        with torch.no_grad():
            return self.encoder(image)

    def forward(self, image: Tensor, scales: Sequence[Tensor], maps: Tensor) -> list[Tensor]:
        """Join features of an image, `scales` by `see`, and latents of maps."""
        half, quarter, *deeper = scales[:4]
        detail = torch.cat([F.pixel_unshuffle(image, 4), F.pixel_unshuffle(half, 2), quarter], 1)
        deeper = [layer(scale) for layer, scale in zip(self.deeper_in, deeper, strict=True)]
        image_features = self.image(self.image_in(detail), deeper)
        map_features = self.rough(self.rough_in(maps))
        return [torch.cat(pair, 1) for pair in zip(image_features, map_features, strict=True)]

    def train(self, mode: bool = True) -> Conditions:
        """The encoder's batch statistics stay what they are: a pixel must not depend on its batch."""
        super().train(mode)
        self.encoder.eval()
        return self


class CloserLook(nn.Module):
    """A segmentation model's neck and decoder on the refiner's encoder, which is that model's; frozen."""

    def __init__(self, config: BicorSegConfig, conditions: Conditions) -> None:
        super().__init__()
        self.neck = Neck(conditions.channels[1:], config.channels, config.neck)
        self.decoder = BicorDecoder(config)
        self.requires_grad_(False)
        self.train()

    @torch.no_grad()
    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Class probabilities (B, N, H, W), of features at strides 2 to 32."""
        features, _, embeddings = self.decoder.co_refine(self.neck(list(scales[1:])))
        return self.decoder.classify(features, embeddings[-1]).softmax(1)

    def train(self, mode: bool = True) -> CloserLook:
        """Batch statistics stay what they are."""
        return super().train(False)


def _smaller(image: Tensor, size: float) -> Tensor:
    """The image at about a size, its sides multiples of 32, the encoder's last stride."""
    height, width = (max(32, round(int(side) * size / 32) * 32) for side in image.shape[-2:])
    down = _axis_weights(int(image.shape[-2]), height).to(image)
    across = _axis_weights(int(image.shape[-1]), width).to(image)
    return down @ image @ across.T


def _axis_weights(length: int, shorter: int) -> Tensor:
    """Weights (shorter, length) of antialiased bilinear resizing along an axis.

    The same as `F.interpolate(..., mode="bilinear", antialias=True)`, which ONNX cannot express.
    """
    step = length / shorter
    centres = (torch.arange(shorter, dtype=torch.float64) + 0.5) * step
    distances = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]).abs()
    weights = (1 - distances / max(step, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _resized(view: Tensor, image: Tensor) -> Tensor:
    if view.shape[-2:] == image.shape[-2:]:
        return view
    return F.interpolate(view, image.shape[-2:], mode="bilinear")


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
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="none")
    weights = weights * (labels != IGNORE)
    return (losses * weights).sum() / weights.sum().clamp(min=1)
