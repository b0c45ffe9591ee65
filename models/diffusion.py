"""Diffusion: noise schedules, one step of DDIM, time sampling, and what a refiner network is.

Sources: DDIM, arXiv 2010.02502; schedules that end at zero signal, arXiv 2305.08891; IDGBR's cubic time
sampling, arXiv 2507.01573.

    paper                here
    alpha_bar_t          signal_share[t]: share of the variance at step t that is signal
    x_0, x_t, epsilon    clean, noisy, noise
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

TimeSampling = Literal["uniform", "cubic"]
Stage = Literal["codec", "refiner"]


class RefinerNetwork(Protocol):
    """What refining and training ask of a network.

    Windows' height, width and origin are multiples of `alignment_px`; pixels up to `halo_px` away may change
    a pixel's result; a latent pixel is `latent_stride` image pixels.
    """

    latent_stride: int
    latent_channels: int
    alignment_px: int
    halo_px: int
    default_steps: int

    def __call__(self, image: Tensor, coarse: Tensor, noise: Tensor, *, steps: int | None = None) -> Tensor:
        """Return class logits (B, N, H, W) of a normalised image (B, bands, H, W).

        `coarse` are whole numbers (B, H, W), 255 where unknown; `noise` is standard normal (B,
        latent_channels, H / latent_stride, W / latent_stride); `steps` are of the sampler, by default
        `default_steps`.
        """

    def codec_losses(self, labels: Tensor) -> dict[str, Tensor]:
        """Return losses of label maps (B, H, W), 255 ignored, through the codec: "loss" and its parts."""

    def refiner_losses(self, image: Tensor, coarse: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return losses of a random denoising step: "loss" and its parts."""

    def stage_parameters(self, stage: Stage) -> Iterable[nn.Parameter]:
        """Return what a stage of training trains."""


class NoiseSchedule(nn.Module):
    """Share of signal at each time step, falling: alpha_bar, float64 (T,), in [0, 1]."""

    signal: Tensor
    spread: Tensor

    def __init__(self, signal_share: Tensor) -> None:
        super().__init__()
        if signal_share.ndim != 1 or len(signal_share) < 2 or not (signal_share.diff() <= 0).all():
            raise ValueError("a schedule needs two or more shares that fall")
        share = signal_share.double()  # the roots are stored: MPS has no float64
        self.register_buffer("signal", share.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1 - share).sqrt().float(), persistent=False)

    @property
    def signal_share(self) -> Tensor:
        """alpha_bar, float32 (T,)."""
        return self.signal.square()

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012, *, zero_end: bool = False
    ) -> NoiseSchedule:
        """Make Stable Diffusion's, whose root of beta rises evenly; `zero_end` ends in pure noise."""
        root = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64)
        amplitude = torch.cumprod(1 - root**2, 0).sqrt()
        if zero_end:
            amplitude = (amplitude - amplitude[-1]) * amplitude[0] / (amplitude[0] - amplitude[-1])
        return cls(amplitude**2)

    def __len__(self) -> int:
        return len(self.signal)

    def amplitudes(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of signal and noise, float32 (B, 1, 1, 1), at whole time steps (B,)."""
        return self.signal[time].view(-1, 1, 1, 1), self.spread[time].view(-1, 1, 1, 1)

    def add_noise(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x_t of x_0 (B, C, h, w)."""
        signal, spread = self.amplitudes(time)
        return signal * clean + spread * noise

    def clean_of(self, noisy: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x_0 that gives x_t with this noise; the signal must not be zero."""
        signal, spread = self.amplitudes(time)
        return (noisy - spread * noise) / signal

    def noise_of(self, noisy: Tensor, clean: Tensor, time: Tensor) -> Tensor:
        """Noise that gives x_t with this x_0; time step 0 has too little of it to tell."""
        signal, spread = self.amplitudes(time)
        return (noisy - signal * clean) / spread

    def step(self, noisy: Tensor, clean: Tensor, time: Tensor, next_time: Tensor) -> Tensor:
        """DDIM without new noise: from x_t and the x_0 predicted at t to x at an earlier step."""
        return self.add_noise(clean, self.noise_of(noisy, clean, time), next_time)


def sampler_times(count: int, start: int) -> list[int]:
    """Return time steps of a sampler, evenly from `start` down, all above 0; x_0 follows the last one."""
    if not 1 <= count <= start:
        raise ValueError(f"{count} sampling steps from time step {start}: needs 1 to {start}")
    return [round(start - start * index / count) for index in range(count)]


def sample_times(count: int, last: int, sampling: TimeSampling, device: torch.device) -> Tensor:
    """Random whole time steps (count,) from 0 to `last`; "cubic" favours noisy ones: (1 - u^3) last."""
    share = torch.rand(count, device=device)
    if sampling == "cubic":
        share = 1 - share**3
    return (share * (last + 1)).long().clamp(max=last)
