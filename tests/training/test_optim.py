"""Optimiser and learning rate."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from rsseg_cli.training.config import TrainConfig
from rsseg_cli.training.module import (
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    move_towards,
    parameter_groups,
)
from rsseg_cli.training.recipes import resolve_settings


def test_learning_rate_rises_then_falls():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9:11] == [1.0, 1.0]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[99] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("dataset", ["loveda", "vaihingen", "potsdam"])
def test_published_course_is_torchs_cosine_by_epoch(dataset):
    config = resolve_settings(recipe="paper", dataset=dataset).training
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.learning_rate)
    described = build_schedule(optimizer, config, 10**6)
    other = torch.optim.SGD([parameter], lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=config.epochs, eta_min=1e-6)
    assert described["interval"] == "epoch"
    for _ in range(config.epochs + 1):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-9)
        for step in (optimizer, other, described["scheduler"], cosine):
            step.step()
    assert other.param_groups[0]["lr"] > 0


def test_groups_hold_every_parameter_once():
    network = nn.Module()
    network.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    network.head = nn.Conv2d(8, 2, 1)
    groups = parameter_groups(network, TrainConfig(learning_rate=1.0, encoder_rate=0.1))
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, network.parameters()))
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {
        (0.1, 0.0),
        (0.1, 0.01),
        (1.0, 0.0),
        (1.0, 0.01),
    }
    published = parameter_groups(network, TrainConfig(decay_vectors=True, encoder_rate=1.0))
    assert {(group["lr"], group["weight_decay"]) for group in published} == {(1e-3, 0.01)}


def network_and_optimizer(config):
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    return network, build_optimizer(network, config)


def step(network, optimizer, seed):
    optimizer.zero_grad()
    network(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()


def test_lookahead_goes_half_the_way_every_k_steps():
    """As arXiv 1907.08610: slow += 0.5 (fast - slow), fast = slow; in between plain AdamW."""
    config = TrainConfig(lookahead=3, lookahead_alpha=0.5, learning_rate=0.1, ema=0)
    network, optimizer = network_and_optimizer(config)
    plain, adam = network_and_optimizer(dataclasses.replace(config, lookahead=0))
    for seed in range(3):
        step(network, optimizer, seed)
        step(plain, adam, seed)
    assert torch.equal(network.weight, plain.weight)  # the slow weights start here
    slow = network.weight.detach().clone()
    for seed in range(3, 6):
        step(network, optimizer, seed)
        step(plain, adam, seed)
    assert torch.allclose(network.weight, slow + 0.5 * (plain.weight - slow), atol=1e-6)


@pytest.mark.parametrize("stopped_after", [1, 3, 4, 5])
def test_lookahead_goes_on_from_its_state(stopped_after):
    config = TrainConfig(lookahead=3, learning_rate=0.1)
    network, optimizer = network_and_optimizer(config)
    for seed in range(stopped_after):
        step(network, optimizer, seed)
    weights, state = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    other, resumed = network_and_optimizer(config)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for seed in range(stopped_after, 10):
        step(network, optimizer, seed)
        step(other, resumed, seed)
    assert torch.equal(network.weight, other.weight)


def test_an_average_moves_by_a_share_and_leaves_what_is_equal():
    average, network = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    nn.init.normal_(network.bias)
    network.running_mean += 2
    network.num_batches_tracked += 7
    network.weight.data[:] = average.weight.data[:] = 0.1
    before = copy.deepcopy(average)
    move_towards(average, network, 0.25)
    torch.testing.assert_close(average.bias, 0.25 * network.bias)
    torch.testing.assert_close(average.running_mean, torch.full((4,), 0.5))
    assert torch.equal(average.weight, before.weight)
    assert average.num_batches_tracked == 7
    move_towards(average, network, 1.0)
    assert torch.equal(average.bias, network.bias)
