"""Noise schedules and sampling steps, against diffusers and by hand."""

from __future__ import annotations

import pytest
import torch

from rsseg_cli.models.diffusion import NoiseSchedule, sample_times, sampler_times


def test_scaled_linear_is_that_of_stable_diffusion() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule = NoiseSchedule.scaled_linear()
    assert len(schedule) == 1000
    torch.testing.assert_close(schedule.signal_share.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_zero_end_is_pure_noise_and_keeps_the_first_step() -> None:
    plain, zero = NoiseSchedule.scaled_linear(), NoiseSchedule.scaled_linear(zero_end=True)
    assert zero.signal_share[-1] == 0
    torch.testing.assert_close(zero.signal_share[0], plain.signal_share[0])
    clean, noise = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    torch.testing.assert_close(zero.add_noise(clean, noise, torch.tensor([999])), noise)


def test_a_step_is_that_of_diffusers_ddim() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="sample",
    )  # fmt: skip
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.scaled_linear()
    noisy, clean = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    time = int(scheduler.timesteps[3])
    expected = scheduler.step(clean, time, noisy).prev_sample
    times = torch.full((2,), time), torch.full((2,), time - 100)
    torch.testing.assert_close(schedule.step(noisy, clean, *times), expected, rtol=1e-4, atol=1e-5)


def test_clean_and_noise_are_found_again() -> None:
    schedule = NoiseSchedule.scaled_linear()
    clean, noise, time = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([10, 500, 900])
    noisy = schedule.add_noise(clean, noise, time)
    torch.testing.assert_close(schedule.clean_of(noisy, noise, time), clean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(schedule.noise_of(noisy, clean, time), noise, rtol=1e-3, atol=1e-3)


def test_schedules_that_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="fall"):
        NoiseSchedule(torch.tensor([0.5, 0.9]))


def test_sampler_times_are_even_and_end_above_zero() -> None:
    assert sampler_times(1, 999) == [999]
    assert sampler_times(4, 1000) == [1000, 750, 500, 250]
    with pytest.raises(ValueError, match="needs 1 to 10"):
        sampler_times(11, 10)


def test_cubic_times_favour_noise() -> None:
    torch.manual_seed(0)
    uniform = sample_times(20_000, 999, "uniform", torch.device("cpu"))
    cubic = sample_times(20_000, 999, "cubic", torch.device("cpu"))
    for times in (uniform, cubic):
        assert times.min() >= 0
        assert times.max() <= 999
    assert uniform.double().mean() == pytest.approx(500, abs=10)
    assert cubic.double().mean() == pytest.approx(750, abs=10)  # 1 - 1/4 of the range


def test_a_schedule_fits_devices_without_float64() -> None:
    """MPS has none."""
    schedule = NoiseSchedule.scaled_linear(10)
    assert {buffer.dtype for buffer in schedule.buffers()} == {torch.float32}
