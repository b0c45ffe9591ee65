"""How far tiles lie from those that a model was trained on, in colour, texture and the encoder's features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rsseg_cli.inference.runtime import choose_device
from rsseg_cli.weights import ModelSpec

KINDS = ("colour", "texture", "features")
LAGS_PX = (1, 2, 4, 8, 16)
SMALL = 1e-3  # of a band's deviation over the training data


def descriptors(pixels: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    """Describe tiles (B, bands, H, W), as the network sees them, and the means of their features (B, D).

    Returns:
        (B, ...) by kind: "colour", means of the bands, and logarithms of the deviations of brightness and of
        each band's difference from it; "texture", logarithms of the mean difference in brightness of pixels
        1 to 16 px apart; "features", as given.
    """
    pixels = pixels.float()
    grey = pixels.mean(1)
    tint = (pixels - grey[:, None]).flatten(2)
    spread = torch.cat([grey.flatten(1).std(1, keepdim=True), tint.std(2)], 1)
    return {
        "colour": torch.cat([pixels.mean((2, 3)), (spread + SMALL).log()], 1),
        "texture": torch.stack([(_difference(grey, lag) + SMALL).log() for lag in LAGS_PX], 1),
        "features": pooled.float(),
    }


def _difference(grey: Tensor, lag: int) -> Tensor:
    """Mean difference of (B, H, W) along rows and columns, every other one: (B,)."""
    rows, cols = grey[:, ::2], grey[:, :, ::2]
    across = (rows[:, :, lag:] - rows[:, :, :-lag]).abs().mean((1, 2))
    down = (cols[:, lag:] - cols[:, :-lag]).abs().mean((1, 2))
    return (across + down) / 2


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
