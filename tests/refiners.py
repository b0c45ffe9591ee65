"""Refiners for tests: small networks whose result can be computed over a whole scene at once."""

import numpy as np
import torch
from torch import nn

from rsseg_cli.inference import RefinerEngine
from rsseg_cli.weights import ModelSpec, TrainedModel

UNKNOWN = 255


def noise(shape, row, col, *, seed, sample=0):
    """The refiner's noise of a window (channels, height, width) at a pixel."""
    at = torch.tensor([row]), torch.tensor([col])
    return RefinerEngine.noise(shape, *at, seed=seed, sample=sample)[0].numpy()


class LocalRefiner(nn.Module):
    """Random convolutions over image, coarse classes and noise that reach `halo_px` far."""

    latent_stride = 4
    latent_channels = 2
    alignment_px = 8
    halo_px = 3
    default_steps = 1

    def __init__(self, classes=3, noise=1.0):
        super().__init__()
        self.classes, self.noise, self.calls, self.steps = classes, noise, 0, []
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.layers = nn.Sequential(
                nn.Conv2d(3 + classes + 2, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, classes, 3, padding=1),
            )
        for parameter in self.parameters():
            parameter.data *= 3

    def forward(self, image, coarse, noise, *, steps=None):
        self.calls += len(image)
        self.steps.append(steps)
        known = torch.stack([coarse == index for index in range(self.classes)], 1).to(image.dtype)
        fine = noise.repeat_interleave(4, 2).repeat_interleave(4, 3) * self.noise
        return self.layers(torch.cat([image, known, fine], 1))


class NextClass(nn.Module):
    """The class after the coarse one, with probability 0.8; sees no image."""

    latent_stride, latent_channels, alignment_px, halo_px, default_steps = 4, 1, 8, 0, 1

    def __init__(self, classes=3):
        super().__init__()
        self.classes, self.calls, self.shapes = classes, 0, []

    def forward(self, image, coarse, noise, *, steps=None):
        self.calls += len(image)
        self.shapes.append(tuple(image.shape))
        after = (coarse.long().clamp(max=self.classes - 1) + 1) % self.classes
        found = nn.functional.one_hot(after, self.classes)
        rest = 0.2 / (self.classes - 1)
        return (found * (0.8 - rest) + rest).log().permute(0, 3, 1, 2)


class ImageClass(NextClass):
    """Class k where the first band's 8-bit value is k."""

    def forward(self, image, coarse, noise, *, steps=None):
        self.calls += len(image)
        self.shapes.append(tuple(image.shape))
        return -((image[:, :1] * 255 - torch.arange(self.classes).view(1, -1, 1, 1)) ** 2) * 8


class SignOfNoise(NextClass):
    """Two classes: which one a latent pixel's noise decides, alike for its 4 x 4 px."""

    def __init__(self):
        super().__init__(2)

    def forward(self, image, coarse, noise, *, steps=None):
        self.calls += len(image)
        sign = noise.sign().repeat_interleave(4, 2).repeat_interleave(4, 3)
        return torch.cat([sign, -sign], 1) * 30


def refiner(network, names=("roof", "road", "tree"), **changes):
    """The network with a spec: pixels scaled to [0, 1], no resampling."""
    plain = ModelSpec.for_network(classes=names, name="tiny-refiner")
    values = {name: getattr(plain, name) for name in ("classes", "bands", "scaling", "mean", "std")}
    return TrainedModel(
        network, ModelSpec(**values | {"name": "tiny-refiner", "architecture": "idgbr-lite"} | changes)
    )


def whole_scores(network, image, coarse, seed=0, sample=0):
    """Logits (classes, h, w) of a whole scene uint8 (3, h, w), continued by reflection, in one pass."""
    _, height, width = image.shape
    below, right = -height % network.alignment_px, -width % network.alignment_px
    pad = ((0, below), (0, right))
    image, coarse = np.pad(image, ((0, 0), *pad), mode="reflect"), np.pad(coarse, pad, mode="reflect")
    stride = network.latent_stride
    shape = (network.latent_channels, image.shape[1] // stride, image.shape[2] // stride)
    drawn = torch.from_numpy(noise(shape, 0, 0, seed=seed, sample=sample))
    with torch.inference_mode():
        logits = network(torch.from_numpy(image)[None] / 255, torch.from_numpy(coarse)[None], drawn[None])
    return logits[0, :, :height, :width]
