"""Alignment of a refiner's features to patch tokens of a DINOv2 encoder, in the first steps of training.

Source: arXiv 2507.01573; DINOv2's weights (Apache-2.0) come from a local file as timm names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of DINOv2's pixels
TOKENS = 2  # patch tokens along each side of a feature pixel


class DinoAlignment(nn.Module):
    """A frozen encoder and a trained projection; called by `Idgbr.refiner_losses(..., align=...)`.

    Args:
        weights: safetensors of `encoder`.
        channels: of the features, `config.channels[-1]` of the refiner.
        encoder: a plain vision transformer of timm.

    Raises:
        ValueError: a file that is not the encoder's.
    """

    def __init__(self, weights: Path, channels: int, encoder: str = "vit_small_patch14_dinov2") -> None:
        super().__init__()
        self.encoder: Any = timm.create_model(encoder, num_classes=0, dynamic_img_size=True)
        self.encoder.requires_grad_(False)
        try:
            self.encoder.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError) as err:
            raise ValueError(f"{weights}: no weights of timm's {encoder} ({err})") from err
        self.projection = nn.Conv2d(channels, cast(Any, self.encoder).num_features, 1)
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(shape), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """1 - cosine of projected features (B, C, h, w) and tokens of the image (B, 3, H, W) in [-1, 1]."""
        return 1 - F.cosine_similarity(self.projection(features), self._tokens(image, features), dim=1).mean()

    @torch.no_grad()
    def _tokens(self, image: Tensor, features: Tensor) -> Tensor:
        """Mean token of each feature pixel, (B, D, h, w)."""
        rows, cols = (TOKENS * side for side in features.shape[-2:])
        patch = self.encoder.patch_embed.patch_size[0]
        pixels = F.interpolate(
            image, size=(rows * patch, cols * patch), mode="bilinear", align_corners=False, antialias=True
        )
        pixels = (pixels * 0.5 + 0.5 - self.mean) / self.std
        self.encoder.eval()
        tokens = self.encoder.forward_features(pixels)[:, self.encoder.num_prefix_tokens :]
        return F.avg_pool2d(tokens.transpose(1, 2).unflatten(2, (rows, cols)), TOKENS)
