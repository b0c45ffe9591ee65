"""Copies to a device and back, and noise that belongs to its place."""

from collections import Counter

import numpy as np
import pytest
import torch
from networks import Local
from torch.utils._python_dispatch import TorchDispatchMode

from rsseg_cli.config import PredictConfig
from rsseg_cli.inference import passes, tiling
from rsseg_cli.inference.device import Graphs, Transfers
from rsseg_cli.inference.engine import Engine, Scaling
from rsseg_cli.inference.feed import TilePixels
from rsseg_cli.inference.noise import normal_noise

torch.set_num_threads(1)
CPU = torch.device("cpu")
VIEWS = {"alias", "expand", "select", "slice", "unbind", "unflatten", "unsqueeze"}  # no launch


class Launches(TorchDispatchMode):
    """Counts what a GPU would run, by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        self.names[name] += name not in VIEWS
        return function(*arguments, **options or {})


@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_batch_is_finished_by_few_launches_however_many_its_tiles(count):
    scaling = Scaling(factors=(1.0,) * 3, offsets=(0.0,) * 3)
    config = PredictConfig(device="cpu", runtime="torch", batch_size=count)
    plan, valid = tiling.plan(32 * 3, 32 * 20, 32, 8), np.ones((32, 32), bool)
    rows = passes.Pass(layers={"labels": slice(0, 1)}, write=print, progress=print)
    with Engine(Local(), classes=5, scaling=scaling, config=config) as engine:
        assembler = passes.Assembler(engine, plan, rows)
        for row, first in ((row, col) for row in range(2) for col in range(0, len(plan.cols), count)):
            cols = range(first, min(first + count, len(plan.cols)))
            items = [TilePixels(plan.tile(row, col), np.zeros((3, 32, 32)), valid) for col in cols]
            scores = torch.rand(len(items), 5, 32, 32)
            with Launches() as launches:
                assembler.push(items, scores)
            assert launches.names.total() <= 24, launches.names


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
def test_arrays_keep_their_type_on_the_way(dtype):
    low, high = (-3e38, 3e38) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    arrays = [np.array([[low, 0, high]], dtype), np.array([[1, 2, 3]], dtype)]
    values = Transfers(CPU).stack(arrays)
    assert values.shape == (2, 1, 3)
    assert values.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(values.float().numpy(), np.stack(arrays).astype(np.float32))


def test_wide_values_go_as_float32_and_may_become_infinite():
    values = Transfers(CPU).stack([np.array([1e300, 2.5]), np.array([-1e300, 0.1])])
    assert values.tolist() == [[np.inf, 2.5], [-np.inf, pytest.approx(0.1)]]


def test_what_is_fetched_is_what_was_computed():
    values = torch.arange(6, dtype=torch.uint8).view(2, 3)
    np.testing.assert_array_equal(Transfers(CPU).fetch(values)(), [[0, 1, 2], [3, 4, 5]])


def test_without_graphs_a_function_is_called_each_time():
    graphs, calls = Graphs(is_recorded=True), []

    def double(values):
        calls.append(len(values))
        return values * 2

    for _ in range(4):
        assert graphs.call(double, torch.ones(3)).tolist() == [2, 2, 2]
    assert calls == [3] * 4


def mixed(values):
    """SplitMix64 of unsigned integers, as published."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def test_noise_is_box_muller_of_splitmix():
    row, col, seed, sample = 2**31 - 3, 70_000, 5, 2
    values = normal_noise((3, 2, 4), torch.tensor([row]), torch.tensor([col]), seed=seed, sample=sample)
    rows, cols = np.meshgrid(np.arange(row, row + 2), np.arange(col, col + 4), indexing="ij")
    pixels = mixed((rows.astype(np.uint64) << np.uint64(32)) | cols.astype(np.uint64))
    for pair in range(2):
        key = mixed(mixed(np.full(1, seed, np.uint64)) ^ np.uint64(sample << 32 | pair))
        bits = mixed(pixels ^ key)
        high, low = (bits >> np.uint64(32)).astype(float), (bits & np.uint64(2**32 - 1)).astype(float)
        radius, angle = np.sqrt(-2 * np.log((high + 0.5) / 2**32)), 2 * np.pi * (low + 0.5) / 2**32
        for channel, wave in zip(range(2 * pair, 3), (np.cos, np.sin), strict=False):
            np.testing.assert_allclose(
                values[0, channel], (radius * wave(angle)).astype(np.float32), rtol=1e-6
            )


def test_noise_of_many_windows_is_that_of_each():
    rows, cols = torch.tensor([0, 5, 900_000]), torch.tensor([7, 5, 0])
    together = normal_noise((5, 8, 6), rows, cols, seed=1)
    for index in range(3):
        alone = normal_noise((5, 8, 6), rows[index : index + 1], cols[index : index + 1], seed=1)
        assert torch.equal(together[index], alone[0])
    assert torch.equal(together[1, :, 1:], normal_noise((5, 7, 6), rows[1:2] + 1, cols[1:2], seed=1)[0])
