"""Label embedding and conditional guidance network of IDGBR.

Source: arXiv 2507.01573 and its released program (Apache-2.0).

    paper                        here
    label embedding              LabelEmbedding: class index -> colour -> logits
    CG Net                       GuidanceNetwork, one GuidanceBlock for each skip and for the mid block
    noisy skip, conditions       features of the noisy label latent; those of image and coarse map, joined

The released blocks start with every parameter at zero, where the attention never gets a gradient; here only
the merging convolution and the last projection do. Its label colours lie 0.6 apart for two classes; here they
begin at the corners of a cube.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .losses import IGNORE

REACH = 0.9  # of the colours at the start: a sigmoid that still has a slope
HIDDEN = 128  # channels of the decoding convolutions
GRID = 13  # points an axis among which colours of more than eight classes are chosen


class LabelEmbedding(nn.Module):
    """Label maps as pictures of three channels, and pictures as class logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # 2 sigmoid(x) - 1 = tanh(x / 2)
        self.table = nn.Parameter(2 * torch.atanh(REACH * spread_codes(classes)))
        self.classifier = nn.Sequential(nn.Conv2d(3, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, classes, 1))

    def codes(self) -> Tensor:
        """The classes' colours (N, 3), in (-1, 1)."""
        return 2 * self.table.sigmoid() - 1

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B, H, W), 255 where unknown -> picture (B, 3, H, W), zero there."""
        codes = self.codes()
        codes = torch.cat([codes, codes.new_zeros(1, 3)])
        index = labels.long().masked_fill(labels == IGNORE, len(self.table))
        return F.embedding(index, codes).permute(0, 3, 1, 2)

    def classify(self, picture: Tensor) -> Tensor:
        """Picture (B, 3, H, W) -> logits (B, N, H, W)."""
        return self.classifier(picture)


def spread_codes(count: int) -> Tensor:
    """Return points (count, 3) far apart in the cube from -1 to 1: two opposite corners, a tetrahedron, all.

    After the eighth, each further point is the one of a grid that is farthest from all before it.
    """
    even = [(-1, -1, -1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)]
    odd = [(-x, -y, -z) for x, y, z in even]
    corners = [even[0], odd[0]] if count <= 2 else even + odd
    points = torch.tensor(corners[:count], dtype=torch.float32, device="cpu")
    axis = torch.linspace(-1, 1, GRID, device="cpu").tolist()
    grid = torch.tensor(list(itertools.product(axis, repeat=3)), device="cpu")
    while len(points) < count:
        farthest = torch.cdist(grid, points).amin(1).argmax()
        points = torch.cat([points, grid[farthest : farthest + 1]])
    return points


class GuidanceBlock(nn.Module):
    """What the conditions add to one skip, of C `channels`, of the denoising network.

    Attention has `width` channels. Positions are stored for `grid` x `grid` px and resized for other sizes.
    """

    def __init__(self, channels: int, width: int, heads: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.merge = nn.Conv2d(3 * channels, channels, 1)
        self.query = nn.Conv2d(channels, width, 1, bias=False)
        self.condition = nn.Conv2d(2 * channels, width, 1, bias=False)
        self.positions = nn.Parameter(torch.randn(grid * grid, width) * width**-0.5)
        self.query_norm, self.condition_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_query_norm = nn.LayerNorm(width)
        self.attention_key_norm = nn.LayerNorm(width)
        self.attention_value_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.output_norm = nn.LayerNorm(width)
        self.projection = nn.Conv2d(width, channels, 1, bias=False)
        for layer in (self.merge, self.projection):  # the block begins by adding nothing
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(cast(Tensor, self.merge.bias))

    def forward(self, noisy: Tensor, conditions: Tensor) -> Tensor:
        """(B, C, h, w), (B, 2C, h, w) -> what is added to the skip, (B, C, h, w)."""
        merged = self.merge(torch.cat([noisy, conditions], 1))
        positions = self._positions(noisy.shape[-2:])
        query = self.query_norm(_tokens(self.query(merged)) + positions)  # (B, hw, width)
        value = self.condition_norm(_tokens(self.condition(conditions)) + positions)
        attended, _ = self.attention(
            self.attention_query_norm(query),
            self.attention_key_norm(value),
            self.attention_value_norm(value),
            need_weights=False,
        )
        value = value + attended
        hidden = self.expand(self.mlp_norm(value))
        value = value + self.contract(hidden * torch.sigmoid(1.702 * hidden))  # QuickGELU
        value = self.output_norm(value).transpose(1, 2).unflatten(2, noisy.shape[-2:])
        return self.projection(value) + merged

    def _positions(self, size: Sequence[int]) -> Tensor:
        if tuple(size) == (self.grid, self.grid):
            return self.positions
        image = self.positions.T.unflatten(1, (self.grid, self.grid)).unsqueeze(0)
        resized = F.interpolate(image, size=tuple(size), mode="bicubic", align_corners=False)
        return resized[0].flatten(1).T


class GuidanceNetwork(nn.Module):
    """One block for each skip and one for the mid block; `shapes` are their (channels, grid)."""

    def __init__(self, shapes: Sequence[tuple[int, int]], width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GuidanceBlock(channels, width, heads, grid) for channels, grid in shapes)

    def forward(self, noisy: Sequence[Tensor], conditions: Sequence[Tensor]) -> list[Tensor]:
        """Features of the noisy latent and of the conditions, one a block -> what is added to the former."""
        return [block(own, given) for block, own, given in zip(self.blocks, noisy, conditions, strict=True)]


def _tokens(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, hw, C)."""
    return features.flatten(2).transpose(1, 2)
