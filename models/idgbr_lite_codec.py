"""The label codec of IDGBR lite: maps to latents a quarter as high and wide, and back."""

from __future__ import annotations

import math
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
