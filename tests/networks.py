"""Small networks whose maps are known, and tiny ones of the real kinds."""

from __future__ import annotations

from typing import Any

import rasterio
import torch
from torch import nn

from rsseg_cli.models import Idgbr, IdgbrConfig
from rsseg_cli.weights import ModelSpec, TrainedModel

CLASSES = 40


class OneHot(nn.Module):
    """Class k where the first band's 8-bit value is k."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, pixels):
        self.calls += len(pixels)
        return -((pixels[:, :1] * 255 - torch.arange(CLASSES).view(1, -1, 1, 1)) ** 2) * 8


class Local(nn.Module):
    """Random convolutions that reach REACH_PX pixels far."""

    def __init__(self, classes=5):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, classes, 3, padding=1),
            )
        for parameter in self.parameters():
            parameter.data *= 3

    def forward(self, pixels):
        return self.layers(pixels)


def trained(network, classes, bands=("red", "green", "blue"), **changes):
    spec = ModelSpec.for_network(classes=[f"class {index}" for index in range(classes)], bands=bands)
    for name, value in changes.items():
        object.__setattr__(spec, name, value)
    return TrainedModel(network, spec)


def one_hot():
    return trained(OneHot(), CLASSES)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


TINY: dict[str, Any] = {
    "classes": 3, "channels": (8, 16, 16), "layers": 1, "heads": 2, "groups": 4,
    "text_tokens": 3, "text_channels": 12, "codec_channels": (8, 8, 8), "codec_layers": 1, "codec_groups": 4,
    "latent_scale": 0.5, "guidance_width": 16, "guidance_heads": 2, "grid": 8,
}  # fmt: skip


def tiny(*, moved: bool = True, **sizes: Any) -> Idgbr:
    """A tiny network; `moved` as after training, no parameter at zero."""
    torch.manual_seed(0)
    network = Idgbr(IdgbrConfig(**{**TINY, **sizes}))
    network.prompt.normal_()
    if moved:
        with torch.no_grad():
            for parameter in network.guidance.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()
