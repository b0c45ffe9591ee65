"""BiCoR-Seg: class heatmaps let features and class embeddings refine each other in both directions.

Source: "BiCoR-Seg: Bidirectional Co-Refinement Framework for High-Resolution Remote Sensing Image
Segmentation", arXiv 2512.20255. Encoders come from timm (Apache-2.0); released checkpoints are read by
`rsseg models import`.

    paper                     here
    F0, F                     features       (B, C, h, w), h = H / 4
    CE0, CE                   class_embeddings (B, N, C)
    S                         heatmap logits (B, N, h, w)
    HBIS layer                HeatmapBridge
    F2CE, CE2F                HeatmapBridge.update_embeddings, .modulate_features
    gamma, beta               scale, shift

What the published network does not have is off by default: `neck`, `smooth`, `correction`, `zoom`, `partner`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.models import looks
from rsseg_cli.models.correction import Correction

if TYPE_CHECKING:
    from timm.models import FeatureInfo

STRIDE = 32  # height and width of an input must be multiples of it


@dataclass(frozen=True, kw_only=True)
class BicorSegConfig:
    """Sizes of the network.

    Attributes:
        encoder: any timm `features_only` encoder with strides 4 to 32.
        channels: C, width of features and class embeddings; a multiple of 16.
        topk_ratio: share of a class's pixels that update its embedding; 1 takes all.
        neck: "published" joins the scales by linear maps; "conv" adds norms and a 3 x 3 convolution a scale.
        smooth: average logits over 3 x 3 px, weights 1, 2, 1: pixel shuffle leaves a pattern a pixel wide.
        correction: width of the head with which an adaptation corrects the logits; 0 for none.
        local: the correction acts on tiles that are more like the places of the adaptation than like the
            training data.
        zoom: look a second time at so many times the size, and average the probabilities; 1 for once.
        partner, partner_classes: another network's settings, which looks at that size too; see `looks.mixed`.
    """

    classes: int
    encoder: str = "convnext_base"
    channels: int = 256
    layers: int = 2
    topk_ratio: float = 1.0
    in_channels: int = 3
    neck: Literal["published", "conv"] = "published"
    smooth: bool = False
    correction: int = 0
    local: bool = False
    zoom: float = 1.0
    partner: dict[str, Any] | None = None
    partner_classes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_whole_numbers(self, classes=254, channels=4096, layers=32, in_channels=1024)
        if self.channels % 16:
            raise ValueError(f"channels {self.channels}: needs a multiple of 16 up to 4096")
        if not 0 < self.topk_ratio <= 1:
            raise ValueError(f"topk_ratio {self.topk_ratio}: needs 0 < ratio <= 1")
        if self.neck not in ("published", "conv"):
            raise ValueError(f"neck {self.neck!r}: needs published or conv")
        if self.correction:
            check_whole_numbers(self, correction=1024)
        for name in ("smooth", "local"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} {getattr(self, name)!r:.40}: needs true or false")
        if type(self.zoom) not in (int, float) or not 1 <= self.zoom <= 4:
            raise ValueError(f"zoom {self.zoom!r:.40}: needs 1 to 4")
        if self.partner is not None:
            if not isinstance(self.partner, dict):
                raise ValueError(f"partner {self.partner!r:.40}: needs settings of a network")
            partner = BicorSegConfig(**self.partner)
            if partner.partner is not None or partner.zoom != 1 or partner.in_channels != self.in_channels:
                raise ValueError("partner: needs the network's bands, and no partner or zoom of its own")
            looks.check_classes(self.partner_classes, partner.classes, self.classes)

    @classmethod
    def paper(cls, classes: int, layers: int = 2, topk_ratio: float = 1.0) -> BicorSegConfig:
        """The published size: ConvNeXt-Base, 256 channels; 89.5 M parameters with two layers."""
        return cls(classes=classes, layers=layers, topk_ratio=topk_ratio)

    @classmethod
    def lite(cls, classes: int, *, published: bool = False) -> BicorSegConfig:
        """A size for the CPU: EfficientNet-Lite0, 128 channels; `published` leaves out its options."""
        sizes = cls(classes=classes, encoder="tf_efficientnet_lite0", channels=128)
        return sizes if published else replace(sizes, neck="conv", smooth=True)

    @property
    def looks_again(self) -> bool:
        return self.zoom != 1 or self.partner is not None

    def build(self) -> BicorSeg:
        return BicorSeg(self)


def check_whole_numbers(config: object, **limits: int) -> None:
    """Raise ValueError where a field is no whole number from 1 to its limit."""
    for name, limit in limits.items():
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"{name} {value!r:.40}: needs 1 to {limit}")


class BicorExplanation(NamedTuple):
    """Logits (B, N, H, W); of each layer heatmap logits (B, N, h, w) and class embeddings (B, N, C); means
    (B, D) of the encoder's deepest features."""

    logits: Tensor
    heatmaps: tuple[Tensor, ...]
    class_embeddings: tuple[Tensor, ...]
    pooled: Tensor


class BicorTrainingOutput(NamedTuple):
    """An explanation and the auxiliary head's logits (B, N, H, W)."""

    logits: Tensor
    heatmaps: tuple[Tensor, ...]
    class_embeddings: tuple[Tensor, ...]
    auxiliary_logits: Tensor


class BicorSeg(nn.Module):
    """The whole network. `pretrained` loads timm's ImageNet weights into the encoder."""

    def __init__(self, config: BicorSegConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, config.in_channels, pretrained=pretrained)
        widths = cast("FeatureInfo", self.encoder.feature_info).channels()
        self.neck = Neck(widths, config.channels, config.neck)
        self.decoder = BicorDecoder(config)
        self.correction = (
            Correction(widths, config.classes, config.correction, local=config.local)
            if config.correction
            else None
        )
        self.partner = BicorSeg(BicorSegConfig(**config.partner)) if config.partner else None

    def forward(self, image: Tensor) -> Tensor:
        """Return class logits (B, N, H, W) of a normalised image (B, bands, H, W), sides multiples of 32."""
        return self.explain(image).logits

    def explain(self, image: Tensor) -> BicorExplanation:
        """Logits with every layer's heatmap logits and class embeddings, in one pass."""
        return self.decode(self._scales(image), self.look_again(image))

    def decode(self, scales: list[Tensor], again: looks.Looks | None = None) -> BicorExplanation:
        """As `explain`, on the encoder's features: several decoders can share one encoder's pass."""
        return BicorExplanation(*self._decode(self.neck(scales), scales, again), pooled_features(scales))

    def look_again(self, image: Tensor) -> looks.Looks | None:
        """Further looks at an image (B, bands, H, W), at `zoom` times its size; None where there are none."""
        zoom, size = self.config.zoom, image.shape[-2:]
        if not self.config.looks_again:
            return None
        image = image if zoom == 1 else looks.resized(image, zoom, STRIDE)
        own = None if zoom == 1 else looks.look(self._first_look, image, size)
        partner = None if self.partner is None else looks.look(self.partner, image, size)
        return looks.Looks(own, partner)

    def _first_look(self, image: Tensor) -> Tensor:
        features, _, embeddings = self.decoder.co_refine(self.neck(self.encoder(image)))
        return self.decoder.classify(features, embeddings[-1])

    def forward_training(self, image: Tensor) -> BicorTrainingOutput:
        """As `explain`, with the auxiliary head on the features before co-refinement."""
        scales = self._scales(image)
        features = self.neck(scales)
        return BicorTrainingOutput(*self._decode(features, scales), self.decoder.classify_auxiliary(features))

    def _decode(
        self, features: Tensor, scales: list[Tensor], again: looks.Looks | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        features, heatmaps, embeddings = self.decoder.co_refine(features)
        logits = self.decoder.classify(features, embeddings[-1])
        if again is not None:
            logits = looks.mixed(logits, again, self.config.partner_classes)
        if self.correction is not None:
            inputs = self.correction.inputs(scales, logits)
            logits = self.correction(inputs, logits, self.correction.share(pooled_features(scales)))
        return logits, heatmaps, embeddings

    def _scales(self, image: Tensor) -> list[Tensor]:
        if image.shape[-2] % STRIDE or image.shape[-1] % STRIDE:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} px: height and width must be multiples of {STRIDE}"
            )
        return self.encoder(image)


def build_encoder(name: str, in_channels: int, *, pretrained: bool = False) -> nn.Module:
    """Build a timm encoder with features at strides 4, 8, 16, 32; ValueError where it has none."""
    import timm  # here alone: it takes seconds, and settings are read without it

    strides = [4, 8, 16, 32]
    try:
        probe = timm.create_model(name, features_only=True, in_chans=in_channels)
    except (RuntimeError, AssertionError, TypeError, AttributeError) as err:
        raise ValueError(f"encoder {name!r}: timm cannot build it with features_only ({err})") from err
    reductions = cast("FeatureInfo", probe.feature_info).reduction()
    if not set(strides) <= set(reductions):
        raise ValueError(f"encoder {name!r}: strides {reductions}, needs {strides}")
    indices = tuple(reductions.index(stride) for stride in strides)
    return timm.create_model(
        name, features_only=True, out_indices=indices, in_chans=in_channels, pretrained=pretrained
    )


class Neck(nn.Module):
    """Joins the encoder's scales, (B, c_i, h / 2^i, w / 2^i) each, into one map (B, C, h, w)."""

    def __init__(self, widths: list[int], channels: int, kind: str) -> None:
        super().__init__()
        self.proj = nn.ModuleList(_projection(width, channels, kind) for width in widths)
        self.fuse = nn.Conv2d(len(widths) * channels, channels, 1, bias=False)
        self.norm = (
            nn.Sequential(
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
            )
            if kind == "conv"
            else nn.Identity()
        )

    def forward(self, scales: list[Tensor]) -> Tensor:
        size = scales[0].shape[-2:]
        columns = self.fuse.weight.chunk(len(scales), 1)
        joined = None
        for index, (proj, scale) in enumerate(zip(self.proj, scales, strict=True)):
            # The 1 x 1 convolution is linear, so each scale goes through its columns before it is resized:
            # the same sum as on the concatenation (deepest first), without holding 4C channels at stride 4.
            part = F.conv2d(proj(scale), columns[-1 - index])
            if part.shape[-2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            joined = part if joined is None else joined + part
        return self.norm(joined)


def _projection(width: int, channels: int, kind: str) -> nn.Module:
    if kind == "published":
        return nn.Conv2d(width, channels, 1)
    return nn.Sequential(
        nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


class BicorDecoder(nn.Module):
    """Class table, HBIS layers and heads: everything after the neck."""

    def __init__(self, config: BicorSegConfig) -> None:
        super().__init__()
        self.class_table = nn.Parameter(torch.empty(config.classes, config.channels))
        nn.init.trunc_normal_(self.class_table, std=0.02)
        self.layers = nn.ModuleList(
            HeatmapBridge(config.channels, config.topk_ratio) for _ in range(config.layers)
        )
        self.upsampler = PixelShuffleUpsampler(config.channels)
        self.smooth = config.smooth
        self.classifier = nn.Linear(config.channels, config.channels // 16, bias=False)
        self.auxiliary_classifier = nn.Linear(config.channels, config.channels // 16, bias=False)

    def co_refine(self, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run the HBIS layers: refined features, and of every layer heatmap logits and class embeddings."""
        embeddings = self.class_table.expand(features.shape[0], -1, -1)
        all_heatmaps, all_embeddings = [], []
        for layer in self.layers:
            features, embeddings, heatmaps = layer(features, embeddings)
            all_heatmaps.append(heatmaps)
            all_embeddings.append(embeddings)
        return features, tuple(all_heatmaps), tuple(all_embeddings)

    def classify(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Dot product of every pixel with every class: (B, C, h, w), (B, N, C) -> (B, N, 4h, 4w)."""
        logits = class_dot_product(self.classifier(embeddings), self.upsampler(features))
        return smoothed(logits) if self.smooth else logits

    def classify_auxiliary(self, features: Tensor) -> Tensor:
        """The same on features before co-refinement; the class table gets no gradient from here."""
        embeddings = self.class_table.detach().expand(features.shape[0], -1, -1)
        return class_dot_product(self.auxiliary_classifier(embeddings), self.upsampler(features))


def pooled_features(scales: list[Tensor]) -> Tensor:
    """Means (B, D) of the deepest features."""
    return scales[-1].mean((2, 3))


class HeatmapBridge(nn.Module):
    """One HBIS layer (heatmap-driven bidirectional information synergy)."""

    def __init__(self, channels: int, topk_ratio: float) -> None:
        super().__init__()
        self.topk_ratio = topk_ratio
        self.embedding_norm = nn.LayerNorm(channels)
        self.feature_norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.gate = _mlp(2 * channels, channels)
        self.candidate = _mlp(channels, channels)
        self.scale = nn.Linear(channels, channels)
        self.shift = nn.Linear(channels, channels)

    def forward(self, features: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, h, w), (B, N, C) -> the same two, refined, and the heatmap logits (B, N, h, w)."""
        normed_embeddings = self.embedding_norm(embeddings)
        normed_features = channel_norm(self.feature_norm, features)
        heatmaps = class_dot_product(self.query(normed_embeddings), normed_features)
        heatmaps = heatmaps / math.sqrt(features.shape[1])
        embeddings = self.update_embeddings(embeddings, normed_embeddings, normed_features, heatmaps)
        return self.modulate_features(features, embeddings, heatmaps), embeddings, heatmaps

    def update_embeddings(
        self, embeddings: Tensor, normed_embeddings: Tensor, normed_features: Tensor, heatmaps: Tensor
    ) -> Tensor:
        """F2CE: each class gathers the pixels its heatmap points at; a gate decides how much it takes."""
        weights = pixel_weights(heatmaps.detach().sigmoid(), self.topk_ratio)  # (B, N, hw)
        # The value convolution is linear, so it can act on N gathered vectors instead of on h x w pixels.
        gathered = weights @ normed_features.flatten(2).transpose(1, 2)  # (B, N, C)
        gathered = F.linear(gathered, self.value.weight.flatten(1))
        gate = self.gate(torch.cat([normed_embeddings, gathered], dim=-1)).sigmoid()
        return gate * self.candidate(gathered) + (1 - gate) * embeddings

    def modulate_features(self, features: Tensor, embeddings: Tensor, heatmaps: Tensor) -> Tensor:
        """CE2F: every pixel is scaled and shifted by its classes, in proportion to their heatmaps.

        sum_n heat_n (gamma_n F + beta_n) = (sum_n heat_n gamma_n) F + sum_n heat_n beta_n: two products of
        (C, N) and (N, hw) instead of a tensor (B, N, C, h, w).
        """
        heat = heatmaps.softmax(dim=1).flatten(2)  # (B, N, hw)
        scale = 1 + torch.tanh(self.scale(embeddings))  # (B, N, C)
        shift = self.shift(embeddings)
        mixed_scale = (scale.transpose(1, 2) @ heat).view_as(features)
        mixed_shift = (shift.transpose(1, 2) @ heat).view_as(features)
        return 0.5 * features + 0.5 * torch.addcmul(mixed_shift, mixed_scale, features)


def _mlp(width: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, channels), nn.GELU(), nn.Linear(channels, channels))


class PixelShuffleUpsampler(nn.Module):
    """(B, C, h, w) -> (B, C / 16, 4h, 4w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels // 4)

    def forward(self, features: Tensor) -> Tensor:
        half = F.gelu(channel_norm(self.norm, F.pixel_shuffle(features, 2)))
        return F.gelu(F.pixel_shuffle(half, 2))


def channel_norm(norm: nn.LayerNorm, features: Tensor) -> Tensor:
    """LayerNorm over the channels of (B, C, h, w)."""
    return norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def class_dot_product(embeddings: Tensor, features: Tensor) -> Tensor:
    """(B, N, C) and (B, C, h, w) -> (B, N, h, w)."""
    return (embeddings @ features.flatten(2)).view(-1, embeddings.shape[1], *features.shape[2:])


def smoothed(logits: Tensor) -> Tensor:
    """Mean over 3 x 3 px with weights 1, 2, 1 along each side; at the edges over the pixels that exist."""
    wider = F.avg_pool2d(logits, 2, stride=1, padding=1, count_include_pad=False)
    return F.avg_pool2d(wider, 2, stride=1)


def pixel_weights(heat: Tensor, topk_ratio: float) -> Tensor:
    """The k strongest pixels of each class, normalised to sum 1: (B, N, h, w) -> (B, N, h * w).

    k = max(64, topk_ratio * h * w), at most h * w. Where their sum is no more than 1e-6 all pixels count.
    """
    heat = kept = heat.flatten(2)
    if topk_ratio < 1:
        pixels = int(heat.shape[-1])  # a Python number also where the network is traced
        k = min(max(64, round(topk_ratio * pixels)), pixels)
        if k < pixels:
            strongest = heat.topk(k, dim=-1)
            kept = torch.zeros_like(heat).scatter_(-1, strongest.indices, strongest.values)
    kept = torch.where(kept.sum(-1, keepdim=True) <= 1e-6, heat, kept)
    return kept / (kept.sum(-1, keepdim=True) + 1e-6)
