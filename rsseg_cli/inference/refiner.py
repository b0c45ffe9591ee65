"""Batches of windows in, class scores out: samples of a refiner network, averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.inference.engine import Engine, Scaling, merge_classes
from rsseg_cli.inference.windows import Window
from rsseg_cli.raster import classes

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)


def normal_noise(
    shape: tuple[int, int, int], row: int, col: int, *, seed: int, sample: int = 0
) -> NDArray[np.float32]:
    """Return standard normal numbers of a window (channels, height, width).

    They depend on the pixel, counted from the scene's origin, on seed and sample, not on the window.
    """
    channels, height, width = shape
    rows = np.arange(row, row + height, dtype=np.uint64)[:, None] << _HALF
    pixels = rows | np.arange(col, col + width, dtype=np.uint64)
    noise = np.empty(shape, np.float32)
    hashed = _mix(pixels)
    for pair in range((channels + 1) // 2):
        key = _mix(_mix(np.full(1, seed, np.uint64)) ^ np.uint64(sample << 32 | pair))
        bits = _mix(hashed ^ key)
        radius = np.sqrt(-2 * np.log(_open_unit(bits >> _HALF)))
        angle = 2 * np.pi * _open_unit(bits & np.uint64(0xFFFFFFFF))
        for channel, wave in zip(range(2 * pair, channels), (np.cos, np.sin), strict=False):
            noise[channel] = radius * wave(angle)
    return noise


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output for these states; overflow wraps, as it must."""
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[1]
    return values ^ (values >> np.uint64(31))


def _open_unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """32 random bits to (0, 1)."""
    return (bits.astype(np.float64) + 0.5) / 2.0**32


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
        network: nn.Module,
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
        self.check(network)
        super().__init__(
            network,
            classes=len(order),
            scaling=scaling,
            config=run,
            probabilities=probabilities or uncertainty or samples > 1,
            steps=config.steps or int(network.default_steps),  # type: ignore[arg-type]
        )
        self._latents = int(network.latent_channels), int(network.latent_stride)  # type: ignore[arg-type]
        self.uncertainty, self._samples, self._config = uncertainty, samples, config
        self._order = (
            None if list(order) == list(range(len(order))) else torch.tensor(order, device=self.device)
        )
        self._merge = merge
        self._numbers = np.full(
            256, classes.NODATA, np.int64
        )  # the network's number of each class of the map
        self._numbers[: len(order)] = order

    @staticmethod
    def check(network: nn.Module) -> None:
        """Refuse what does not follow `RefinerNetwork`, or whose grid does not fit itself."""
        missing = [name for name in REFINER_ATTRIBUTES if not isinstance(getattr(network, name, None), int)]
        if missing:
            raise ModelError(f"{type(network).__name__} is not a refiner: it lacks {', '.join(missing)}")
        alignment, stride = int(network.alignment_px), int(network.latent_stride)  # type: ignore[arg-type]
        if stride < 1 or alignment < 1 or alignment % stride:
            raise ModelError(
                f"{type(network).__name__}: windows at multiples of {alignment} px do not fit latents of "
                f"{stride} px"
            )

    @property
    def channels(self) -> int:
        """Channels of a result: classes, then the samples' disagreement if enabled."""
        return self.classes + self.uncertainty

    def _run(self, tiles: Sequence[Window]) -> torch.Tensor:
        image = self._scaled(np.stack([window.image for window in tiles]))
        coarse = torch.from_numpy(self._numbers[np.stack([window.coarse for window in tiles])]).to(
            self.device
        )
        scores = self._sample(image, coarse, self._noise(tiles, 0))
        entropy = self._entropy(scores) if self.uncertainty else None
        for number in range(1, self._samples):
            sample = self._sample(image, coarse, self._noise(tiles, number))
            scores += sample
            if entropy is not None:
                entropy += self._entropy(sample)
        if self._samples > 1:
            scores /= self._samples
        if entropy is None:
            return scores
        max_entropy = math.log(max(2, min(self._samples, len(self._merge) or self.classes)))
        disagreement = (self._entropy(scores) - entropy / self._samples).div_(max_entropy).clamp_(0, 1)
        return torch.cat([scores, disagreement], 1)

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

    def _noise(self, tiles: Sequence[Window], sample: int) -> torch.Tensor:
        """Return noise by the windows' origins: float (B, latent_channels, h, w)."""
        channels, stride = self._latents
        noise = [
            normal_noise(
                (channels, window.shape[1] // stride, window.shape[2] // stride),
                window.row // stride,
                window.col // stride,
                seed=self._config.seed,
                sample=sample,
            )
            for window in tiles
        ]
        return torch.from_numpy(np.stack(noise)).to(self.device, self._input_dtype)

    def _blank(self, height: int, width: int) -> Any:
        image = super()._blank(height, width)
        return Window(image, np.zeros((height, width), np.uint8), 0, 0)


def entropy_of(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy of (B, classes, h, w) in nats: (B, 1, h, w)."""
    return torch.special.entr(probabilities).sum(1, keepdim=True)
