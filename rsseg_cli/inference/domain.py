"""How far tiles lie from those that a model was trained on, in colour, texture and the encoder's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rsseg_cli.inference.runtime import choose_device
from rsseg_cli.weights import ModelSpec

KINDS = ("colour", "texture", "features")
COLOUR_STEP, TEXTURE_STEP = 8, 16  # of pixels, and of rows and columns, that are looked at
LAGS_PX = (1, 2, 4, 8, 16)
SMALL = 1e-3  # of a band's deviation over the training data


def descriptors(pixels: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    """Describe tiles (B, bands, H, W), as the network sees them, and the means of their features (B, D).

    Returns:
        (B, ...) by kind: "colour", means of the bands, and logarithms of the deviations of brightness and of
        each band's difference from it; "texture", logarithms of the mean difference in brightness of pixels
        1 to 16 px apart; "features", as given.
    """
    dots = pixels[:, :, ::COLOUR_STEP, ::COLOUR_STEP].float().flatten(2)
    grey = dots.mean(1, keepdim=True)
    spread = torch.cat([grey, dots - grey], 1).std(2)
    rows = pixels[:, :, ::TEXTURE_STEP].float().mean(1)
    cols = pixels[:, :, :, ::TEXTURE_STEP].float().mean(1).transpose(1, 2)
    lines = rows.contiguous(), cols.contiguous()
    return {
        "colour": torch.cat([dots.mean(2), (spread + SMALL).log()], 1),
        "texture": torch.stack([(_difference(lines, lag) + SMALL).log() for lag in LAGS_PX], 1),
        "features": pooled.float(),
    }


def _difference(lines: Sequence[Tensor], lag: int) -> Tensor:
    """Mean difference of pixels `lag` px apart, over lines (B, lines, px) along rows and along columns."""
    along = [(item[:, :, lag:] - item[:, :, :-lag]).abs_().mean((1, 2)) for item in lines]
    return (along[0] + along[1]) / 2


class TileDistances:
    """Distances of tiles from the training data, (B, KINDS); a mean above 1 is unlike it."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        def tensor(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._kinds = {
            kind: (tensor(item.mean), tensor(item.matrix).T, tensor(item.prototypes), item.limit)
            for kind, item in ((kind, spec.training_tiles[kind]) for kind in KINDS)
        }

    def __call__(self, pixels: Tensor, pooled: Tensor) -> Tensor:
        return self.of(descriptors(pixels, pooled))

    def of(self, described: Mapping[str, Tensor]) -> Tensor:
        """Return the distances of tiles of such descriptors, (B, ...) by kind."""
        distances = [
            torch.cdist((described[kind] - mean) @ matrix, prototypes).amin(1) / limit
            for kind, (mean, matrix, prototypes, limit) in self._kinds.items()
        ]
        return torch.stack(distances, 1)


def tile_distances(spec: ModelSpec, device: str) -> TileDistances | None:
    """Return what measures tiles against a model's training data, where the model file describes them."""
    return TileDistances(spec, choose_device(device)) if spec.training_tiles else None
