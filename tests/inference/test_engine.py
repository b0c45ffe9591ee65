"""Engine: scaling, padding, augmentation and memory, with networks whose answers are known."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Local, OneHot, read, trained
from refiners import NextClass, refiner
from scipy.ndimage import zoom
from torch import nn

from rsseg_cli import predict
from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.inference.engine import VIEWS, Engine, Scaling, apply_view, pad_to_stride, unapply_view
from rsseg_cli.inference.stitch import Stitcher

torch.set_num_threads(1)
PLAIN = Scaling(factors=(1.0,) * 3, offsets=(0.0,) * 3)


class Same(nn.Module):
    """Gives its pixels as logits, and remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, pixels):
        self.seen.append(tuple(pixels.shape))
        return pixels.clone()


WORDS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CUDA itself": RuntimeError("CUDA error: out of memory"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8.84 GB, max allowed: 9.07 GB)."),
    "Linux": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "numpy": MemoryError("Unable to allocate 8.00 EiB for an array"),
}  # fmt: skip


class Hungry(Same):
    """Runs out of memory with more than `limit` tiles."""

    def __init__(self, limit, error=WORDS["CUDA"]):
        super().__init__()
        self.limit, self.error = limit, error

    def forward(self, pixels):
        if len(pixels) > self.limit:
            raise self.error
        return super().forward(pixels)


def make_engine(network, scaling=PLAIN, **options):
    more = {key: options.pop(key) for key in ("heatmaps", "probabilities") if key in options}
    return Engine(network, classes=3, scaling=scaling, config=PredictConfig(device="cpu", **options), **more)


def tiles(count, height=32, width=32, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (3, height, width)).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_pixels_are_scaled_band_by_band(dtype):
    scaling = Scaling(factors=(1.0, 0.5, 2.0), offsets=(0.0, 1.0, -1.0))
    (tile,) = tiles(1, dtype=dtype)
    scores = make_engine(Same(), scaling).run([tile])
    expected = (
        tile.astype(np.float32) * np.float32([1, 0.5, 2])[:, None, None]
        + np.float32([0, 1, -1])[:, None, None]
    )
    np.testing.assert_array_equal(scores[0].numpy(), expected)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (33, 7), (32, 32), (100, 64)])
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_any_size_is_padded_to_the_stride_and_cropped(height, width, tta):
    network = Same()
    (tile,) = tiles(1, height, width)
    scores = make_engine(network, tta=tta, probabilities=True).run([tile])
    assert scores.shape == (1, 3, height, width)
    assert all(side % 32 == 0 for shape in network.seen for side in shape[2:])
    expected = torch.from_numpy(tile).float().softmax(0)
    torch.testing.assert_close(scores[0], expected)


def test_padding_continues_the_tile_by_reflection():
    padded = pad_to_stride(np.arange(30, dtype=np.uint8).reshape(1, 1, 30))
    assert padded.shape == (1, 32, 32)
    assert padded[0, 0, 28:].tolist() == [28, 29, 28, 27]
    assert (padded == padded[:, :1]).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9))
def test_views_are_all_different_and_have_exact_inverses(height, width):
    pixels = torch.arange(height * width).reshape(1, 1, height, width)
    for view in VIEWS["d4"]:
        assert torch.equal(unapply_view(apply_view(pixels, view), view), pixels)
    square = torch.arange(9).reshape(1, 1, 3, 3)
    assert len({tuple(apply_view(square, view).flatten().tolist()) for view in VIEWS["d4"]}) == 8
    assert len({tuple(apply_view(square, view).flatten().tolist()) for view in VIEWS["flip"]}) == 4


@pytest.mark.parametrize(("tta", "views"), [("none", 1), ("flip", 4), ("d4", 8)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96)])
def test_augmentation_changes_nothing_for_a_network_that_follows_it(tta, views, height, width):
    blur = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
    nn.init.normal_(blur.weight, generator=torch.Generator().manual_seed(0))
    kernel = blur.weight.data  # made to look the same from all eight sides
    kernel = sum(torch.rot90(side, turn, (2, 3)) for turn in range(4) for side in (kernel, kernel.flip(3)))
    blur.weight.data = kernel / 3000
    plain = make_engine(blur, probabilities=True).run(tiles(2, height, width))
    runs = []
    blur.register_forward_hook(lambda *_: runs.append(1))
    augmented = make_engine(blur, tta=tta, probabilities=True).run(tiles(2, height, width))
    torch.testing.assert_close(augmented, plain, atol=1e-5, rtol=0)
    assert len(runs) == views


def test_augmentation_averages_probabilities():
    class Left(nn.Module):  # sure of class 0 in the left half, of class 1 in the right half
        def forward(self, pixels):
            logits = torch.zeros_like(pixels)
            logits[:, 0, :, : pixels.shape[3] // 2] = 50
            logits[:, 1, :, pixels.shape[3] // 2 :] = 50
            return logits

    scores = make_engine(Left(), tta="flip").run(tiles(1))
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.0]))


def test_two_scales_are_the_mean_of_a_tile_and_of_the_tile_at_twice_the_size():
    class Wide(nn.Module):  # each pixel's class follows from the pixels around it
        def forward(self, pixels):
            return 5 * nn.functional.avg_pool2d(pixels, 5, 1, 2)

    batch = tiles(2, 64, 96)
    plain, larger = make_engine(Wide(), probabilities=True), []
    for tile in batch:
        twice = zoom(tile.astype(np.float32), (1, 2, 2), order=1, mode="nearest", grid_mode=True)
        scores = plain.run([twice])[0]
        larger.append(scores.reshape(3, 64, 2, 96, 2).mean((2, 4)))
    expected = (plain.run(batch) + torch.stack(larger)) / 2
    scores = make_engine(Wide(), tta="scales").run(batch)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert (scores - plain.run(batch)).abs().max() > 0.01


def test_logits_unless_probabilities_are_needed():
    assert make_engine(Same()).gives_logits
    assert not make_engine(Same(), probabilities=True).gives_logits
    assert not make_engine(Same(), tta="flip").gives_logits
    assert not make_engine(Same(), tta="scales").gives_logits


@pytest.mark.parametrize("error", WORDS.values(), ids=WORDS)
def test_out_of_memory_halves_the_batch_and_goes_on(caplog, error):
    network = Hungry(2, error)
    engine = make_engine(network, batch_size=8)
    batch = tiles(8)
    with caplog.at_level(logging.WARNING, "rsseg_cli"):
        scores = engine.run(batch)
    np.testing.assert_array_equal(scores.numpy(), np.stack(batch).astype(np.float32))
    assert [shape[0] for shape in network.seen] == [2, 2, 2, 2]
    assert engine.batch_size(32, 32) == 2
    assert "batch size 8 lowered to 4" in caplog.text


@pytest.mark.parametrize("error", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize(
    ("height", "width", "advice"),
    [(96, 96, "--tile-size 32 or "), (1, 512, "--tile-size 256 or "), (32, 32, "")],
)
def test_one_tile_that_does_not_fit_says_which_size_to_try(error, height, width, advice):
    with pytest.raises(ModelError) as caught:
        make_engine(Hungry(0, error)).run(tiles(1, height, width))
    assert f"one tile of {height} x {width} px; pass {advice}another --device" in str(caught.value)


def test_real_allocations_that_fail_are_known():
    class Greedy(nn.Module):  # 2^60 bytes, which no machine has
        def forward(self, pixels):
            return torch.empty(2**58)

    class GreedyArrays(nn.Module):
        def forward(self, pixels):
            return torch.from_numpy(np.empty(2**58, np.float32))

    for network in (Greedy(), GreedyArrays()):
        with pytest.raises(ModelError, match="out of memory on cpu with one tile"):
            make_engine(network).run(tiles(1))


def test_a_closed_engine_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3).eval(), nn.ReLU()).train()
    network[1].eval()
    before = {name: (value.clone(), value.stride()) for name, value in network.state_dict().items()}
    with make_engine(network) as engine:
        assert not network.training
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
        engine.run(tiles(1))
    assert [part.training for part in network.modules()] == [True, True, False, True]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name][0], rtol=0, atol=0)
        assert value.stride() == before[name][1]


def test_memory_that_runs_out_beside_the_network_is_one_line(make_raster, tmp_path, monkeypatch):
    def fail(*_):
        raise WORDS["CUDA"]

    monkeypatch.setattr(Stitcher, "push", fail)
    with pytest.raises(ModelError, match="out of memory on cpu beside the network; pass a smaller"):
        predict(make_raster(shape=(64, 64)), tmp_path / "map.tif", model=trained(Local(), 5), device="cpu")


def test_a_network_that_does_not_fit_is_reported():
    class Heavy(nn.Conv2d):
        def to(self, *args, **more):
            raise WORDS["CUDA"]

    with pytest.raises(ModelError, match="out of memory on cpu with the network alone"):
        make_engine(Heavy(3, 3, 1))


def test_maps_and_refinements_go_on_with_smaller_batches(make_raster, tmp_path, caplog):
    class Map(OneHot):
        def forward(self, pixels):
            if len(pixels) > limit:
                raise WORDS["Linux"]
            return super().forward(pixels)[:, :3]

    class Refiner(NextClass):
        def forward(self, image, *more, **options):
            if len(image) > limit:
                raise WORDS["CUDA"]
            return super().forward(image, *more, **options)

    scene = make_raster(array=np.random.default_rng(0).integers(0, 3, (3, 70, 200), dtype=np.uint8))
    maps = []
    for limit in (8, 1):
        target = tmp_path / f"{limit}.tif"
        model, config = (
            trained(Map(), 3),
            RefineConfig(refiner=refiner(Refiner(), ["class 0", "class 1", "class 2"])),
        )
        predict(scene, target, model=model, refine=config, tile_size=64, overlap=16, batch_size=4)
        maps.append(read(target))
    np.testing.assert_array_equal(*maps)
    assert caplog.text.count("batch size 2 lowered to 1") == 2  # of the model, of the refiner


def test_other_runtime_errors_are_not_hidden():
    class Broken(nn.Module):
        def forward(self, pixels):
            raise RuntimeError("mat1 and mat2")

    with pytest.raises(RuntimeError, match="mat1"):
        make_engine(Broken()).run(tiles(1))


@pytest.mark.parametrize(
    "network", [nn.Conv2d(3, 2, 1), nn.MaxPool2d(2), nn.Flatten()], ids=["classes", "size", "dimensions"]
)
def test_a_network_of_the_wrong_shape_is_reported_what_is_needed(network):
    with pytest.raises(ModelError, match=r"needs \(1, 3, 32, 32\): \(batch, 3 classes, height, width\)"):
        make_engine(network).run(tiles(1))


def test_heatmaps_follow_the_classes():
    from types import SimpleNamespace

    class Explaining(Same):
        def explain(self, pixels):
            heatmap = torch.zeros(len(pixels), 3, 8, 8)
            heatmap[:, 1] = 100
            return SimpleNamespace(logits=pixels, heatmaps=(None, heatmap))

    engine = make_engine(Explaining(), heatmaps=True)
    scores = engine.run(tiles(2))
    assert engine.channels == 6
    assert scores.shape == (2, 6, 32, 32)
    torch.testing.assert_close(scores[:, :3].sum(1), torch.ones(2, 32, 32))
    assert scores[:, 3:].amax((0, 2, 3)).tolist() == [0.5, 1.0, 0.5]
    with pytest.raises(ModelError, match="has no class heatmaps"):
        make_engine(Same(), heatmaps=True)


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_devices_that_are_not_there_are_refused(device):
    with pytest.raises(UsageError, match="--device"):
        Engine(Same(), classes=3, scaling=PLAIN, config=PredictConfig(device=device))


def test_low_precision_runs_by_autocast_and_leaves_the_weights():
    network = nn.Conv2d(3, 3, 1)
    scores = make_engine(network, dtype="bfloat16").run(tiles(1))
    assert scores.dtype == torch.float32
    assert network.weight.dtype == torch.float32
