"""Batches of windows in, class scores out: samples of a refiner network, averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.inference.engine import Engine, Scaling, merge_classes
from rsseg_cli.inference.noise import normal_noise
from rsseg_cli.inference.windows import Window
from rsseg_cli.raster import classes
from rsseg_cli.weights import TrainedModel, registry

REFINER_ATTRIBUTES = ("latent_stride", "latent_channels", "alignment_px", "halo_px", "default_steps")


class RefinerEngine(Engine):
    """Run a `models.diffusion.RefinerNetwork` over windows.

    Probabilities of `samples` draws of noise are averaged; `order` is the network's class of each class of
    the map; `uncertainty` adds the samples' disagreement as a last channel, on the classes that `merge`
    makes of these, if any; `probabilities` replaces logits where one sample is drawn.
    """

    noise = staticmethod(normal_noise)

    def __init__(
        self,
        network: nn.Module | TrainedModel,
        *,
        order: Sequence[int],
        scaling: Scaling,
        config: RefineConfig,
        samples: int,
        run: PredictConfig,
        probabilities: bool = False,
        uncertainty: bool = False,
        merge: Sequence[Sequence[int]] = (),
    ) -> None:
        shape = self.shape(network)
        super().__init__(
            network,
            classes=len(order),
            scaling=scaling,
            config=run,
            probabilities=probabilities or uncertainty or samples > 1,
            steps=config.steps or shape.default_steps,
        )
        self._latents = shape.latent_channels, shape.latent_stride
        self.uncertainty, self._samples, self._config = uncertainty, samples, config
        self._order = (
            None if list(order) == list(range(len(order))) else torch.tensor(order, device=self.device)
        )
        self._merge = merge
        numbers = torch.full((256,), classes.NODATA)
        numbers[: len(order)] = torch.tensor(order)
        self._numbers = numbers.to(self.device)  # the network's number of each class of the map
        # float64, which MPS lacks
        self._noise_device = torch.device("cpu") if self.device.type == "mps" else self.device

    @staticmethod
    def shape(network: nn.Module | TrainedModel) -> Any:
        """Return what has the attributes of a `RefinerNetwork`: a network, or the settings of one in a file.

        Refuses what lacks one, or whose grid does not fit itself.
        """
        found: Any = network
        if isinstance(network, registry.StoredModel) and network.spec.architecture == "idgbr-lite":
            found = network.settings
        elif isinstance(network, TrainedModel):
            found = network.network
        name = type(found).__name__
        missing = [item for item in REFINER_ATTRIBUTES if not isinstance(getattr(found, item, None), int)]
        if missing:
            raise ModelError(f"{name} is not a refiner: it lacks {', '.join(missing)}")
        alignment, stride = found.alignment_px, found.latent_stride
        if stride < 1 or alignment < 1 or alignment % stride:
            raise ModelError(
                f"{name}: windows at multiples of {alignment} px do not fit latents of {stride} px"
            )
        return found

    @property
    def channels(self) -> int:
        """Channels of a result: classes, then the samples' disagreement if enabled."""
        return self.classes + self.uncertainty

    def _inputs(self, tiles: Sequence[Window]) -> tuple[torch.Tensor, ...]:
        image, coarse = (
            self.transfers.stack(parts)
            for parts in ([window.image for window in tiles], [window.coarse for window in tiles])
        )
        stride = self._latents[1]
        origins = [np.array([window.row // stride, window.col // stride], np.int32) for window in tiles]
        return image, coarse, self.transfers.stack(origins)

    def _compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the scores (B, channels, H, W) of images, maps (B, H, W) and origins (B, 2) of latents."""
        image, coarse = self._scaled(inputs[0]), self._numbers[inputs[1].int()]
        noise = partial(self._noise, inputs[2], image.shape[-2:])
        scores = self._sample(image, coarse, noise(0))
        entropy = self._entropy(scores) if self.uncertainty else None
        for number in range(1, self._samples):
            sample = self._sample(image, coarse, noise(number))
            scores += sample
            if entropy is not None:
                entropy += self._entropy(sample)
        if self._samples > 1:
            scores /= self._samples
        if entropy is None:
            return scores, None
        max_entropy = math.log(max(2, min(self._samples, len(self._merge) or self.classes)))
        disagreement = (self._entropy(scores) - entropy / self._samples).div_(max_entropy).clamp_(0, 1)
        return torch.cat([scores, disagreement], 1), None

    def _entropy(self, scores: torch.Tensor) -> torch.Tensor:
        return entropy_of(merge_classes(scores, self._merge, 1) if self._merge else scores)

    def _sample(self, image: torch.Tensor, coarse: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return scores (B, classes, h, w) in the order of the map's classes."""
        if self._compiled is not None:
            (logits,) = self._compiled(image, coarse, noise)
        else:
            with self._autocast():
                logits = self._network(image, coarse, noise, steps=self._config.steps)  # type: ignore[misc]
        self._check(logits, image)
        scores = logits.float() if self.gives_logits else logits.float().softmax(1)
        if self._order is not None:
            return scores.index_select(1, self._order)
        return scores.clone() if scores is logits else scores

    def _noise(self, origins: torch.Tensor, size: Sequence[int], sample: int) -> torch.Tensor:
        channels, stride = self._latents
        shape = channels, size[0] // stride, size[1] // stride
        rows, cols = origins.to(self._noise_device).long().unbind(1)
        noise = normal_noise(shape, rows, cols, seed=self._config.seed, sample=sample)
        return noise.to(self.device, self._input_dtype)

    def _blank(self, height: int, width: int) -> Any:
        image = super()._blank(height, width)
        return Window(image, np.zeros((height, width), np.uint8), 0, 0)


def entropy_of(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of (B, classes, h, w) in nats: (B, 1, h, w)."""
    return torch.special.entr(probabilities).sum(1, keepdim=True)
