"""What an adaptation adds to the logits of BiCoR-Seg."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILES, AXES = 128, 16  # by which a local correction knows its places


class Correction(nn.Module):
    """Adds to the logits what a small network makes of the two finest scales and of the logits.

    `mean` and `std` are those of its inputs, (c_0 + c_1 + N,). It starts as nothing. A local one knows tiles
    of its places and of the training data, `own` and `others` (TILES, AXES), by `axes` (AXES, D) of their
    features.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor
    own: Tensor
    others: Tensor

    def __init__(self, widths: list[int], classes: int, hidden: int, *, local: bool) -> None:
        super().__init__()
        width = widths[0] + widths[1] + classes
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.local = local
        if self.local:
            self.register_buffer("axes", torch.zeros(AXES, widths[-1]))
            self.register_buffer("own", torch.zeros(TILES, AXES))
            self.register_buffer("others", torch.ones(TILES, AXES))
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, classes)
        self.linear = nn.Linear(width, classes, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))  # of the logits: a network may be too sure of itself
        for parameter in (*self.output.parameters(), *self.linear.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor, logits: Tensor, share: Tensor) -> Tensor:
        """Correct logits (B, N, H, W) by `inputs`, each tile to its share (B,)."""
        change = (self.change(inputs) * share.view(-1, 1, 1, 1)).permute(0, 3, 1, 2)
        return logits + F.interpolate(change, size=logits.shape[-2:], mode="bilinear", align_corners=False)

    @staticmethod
    def inputs(scales: list[Tensor], logits: Tensor) -> Tensor:
        """Join the two finest scales and the logits at stride 4: (B, h, w, c_0 + c_1 + N)."""
        coarser = F.interpolate(scales[1], size=scales[0].shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([scales[0], coarser, F.avg_pool2d(logits, 4)], 1).permute(0, 2, 3, 1)

    def change(self, inputs: Tensor) -> Tensor:
        """Inputs (..., c_0 + c_1 + N) -> what is added to the logits (..., N)."""
        logits = inputs[..., -self.output.out_features :]
        inputs = (inputs - self.mean) / self.std
        return self.output(F.gelu(self.hidden(inputs))) + self.linear(inputs) + self.scale * logits

    def share(self, pooled: Tensor) -> Tensor:
        """How much of the change tiles of such features (B, D) get, 0 to 1 (B,).

        With distances o and t to the nearest tile of its places and of the training data, t^6 / (t^6 + o^6).
        """
        if not self.local:
            return torch.ones_like(pooled[:, 0])
        at = (pooled @ self.axes.T).unsqueeze(1)
        own, others = ((at - tiles).square().sum(2).amin(1) for tiles in (self.own, self.others))
        return 1 / (1 + (own / (others + 1e-6)) ** 3)
