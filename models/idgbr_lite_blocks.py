"""Parts of IDGBR lite: the label codec, and blocks with norms of a pixel's own and attention in windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .idgbr_guidance import REACH, spread_codes
from .losses import IGNORE

STRIDE = 4
CODE_CHANNELS = 3


class LabelCodec(nn.Module):
    """Label maps to latents a quarter as high and wide, and back to class logits.

    Both ways begin as one linear map that loses nothing: the codes of 4 x 4 px, side by side. Latents between
    those of two maps then mean what lies between these maps. The decoder learns a correction.
    """

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        codes = 2 * torch.atanh(REACH * spread_codes(classes))
        self.table = nn.Parameter(codes)
        self.fold = nn.Conv2d(CODE_CHANNELS * STRIDE**2, channels, 1, bias=False)
        self.unfold = nn.Conv2d(channels, CODE_CHANNELS * STRIDE**2, 1, bias=False)
        self.nearest = nn.Conv2d(CODE_CHANNELS, classes, 1)
        self.correct = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 8 * STRIDE**2, 1),
            nn.PixelShuffle(STRIDE),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, classes, 1),
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
        index = torch.where(labels == IGNORE, len(self.table), labels.long())
        picture = F.embedding(index, codes).permute(0, 3, 1, 2)
        return unit_length(self.fold(F.pixel_unshuffle(picture, STRIDE)))

    def blend(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, N, H, W) to latents (B, K, H / 4, W / 4), shorter where no class is certain."""
        codes = _colours(self.table)
        length = codes.norm(dim=1).mean() * STRIDE / math.sqrt(self.fold.out_channels)
        picture = torch.einsum("bnhw,nk->bkhw", probabilities, codes / length)
        return self.fold(F.pixel_unshuffle(picture, STRIDE))

    def decode(self, latent: Tensor) -> Tensor:
        """Class logits (B, N, H, W)."""
        picture = F.pixel_shuffle(self.unfold(latent), STRIDE)
        return self.nearest(picture) + self.correct(latent)


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


class GuidanceBlock(nn.Module):
    """What image and coarse map say of a skip: a residual (B, C, h, w).

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
        queries, keys = self._split(queries + position), self._split(self.keys(values) + position)
        # (B windows, heads, side^2, channels / heads)
        attended = F.scaled_dot_product_attention(queries, keys, self._split(values))
        attended = attended.transpose(1, 2).reshape(
            batch, height // side, width // side, side, side, channels
        )
        return attended.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)

    def _split(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        side, heads = self.window, self.heads
        parts = features.reshape(batch, heads, channels // heads, height // side, side, width // side, side)
        return parts.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, heads, side**2, channels // heads)


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


class Denoiser(nn.Module):
    """Latents at a time, and conditions, to clean latents.

    `widths` are channels at strides 4, 8 and 16, `middle` the number of blocks at stride 16, `window_px` is
    the side of the attention windows, px of the image.
    """

    def __init__(self, latent_channels: int, widths: Sequence[int], middle: int, window_px: int) -> None:
        super().__init__()
        time = 64
        self.embed_time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(Block(width, time) for width in widths)
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 2, stride=2) for before, after in pairwise(widths)
        )
        self.middle = nn.ModuleList(Block(widths[-1], time) for _ in range(middle))
        self.guides = nn.ModuleList(
            GuidanceBlock(width, window_px // (STRIDE << level) if level else 0)
            for level, width in enumerate(widths)
        )
        self.ups = nn.ModuleList(nn.Conv2d(after, 4 * before, 1) for before, after in pairwise(widths))
        self.up_blocks = nn.ModuleList(Block(width, time) for width in widths[:-1])
        self.leave_norm = PixelNorm(widths[0])
        self.leave = nn.Conv2d(widths[0], latent_channels, 3, padding=1)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)

    def forward(self, mixed: Tensor, start: Tensor, conditions: Sequence[Tensor], time: Tensor) -> Tensor:
        """Return clean latents (B, K, h, w), a change of those to start from; `time` (B,) in (0, 1]."""
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
        return unit_length(start + self.leave(F.relu(self.leave_norm(features))))


def _wave(time: Tensor) -> Tensor:
    """Sines and cosines (B, 32) of times in (0, 1]."""
    rates = torch.exp(torch.linspace(0, math.log(100), 16, device=time.device))
    angles = time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
