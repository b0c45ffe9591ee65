"""Memory that runs out in any stage of a pass: smaller batches, the same pixels."""

import logging

import numpy as np
import pytest
import torch
from networks import Local
from refiners import LocalRefiner

from rsseg_cli.config import PredictConfig, RefineConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.inference import passes, tiling
from rsseg_cli.inference.engine import Engine, Scaling
from rsseg_cli.inference.refiner import RefinerEngine
from rsseg_cli.inference.windows import Window

torch.set_num_threads(1)
SIDE, TILE, OVERLAP = 150, 64, 16
SCALING = Scaling(factors=(1 / 255,) * 3, offsets=(0.0,) * 3)
LAYERS = {"labels": slice(0, 1), "probabilities": slice(1, 4)}


class Explaining(Local):
    """Has class heatmaps."""

    def explain(self, pixels):
        from types import SimpleNamespace

        logits = self(pixels)
        heatmaps = (logits[:, :, ::4, ::4],)
        return SimpleNamespace(logits=logits, heatmaps=heatmaps, pooled=pixels.mean((2, 3)))


class Memory:
    """A scene with a hole."""

    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)

    def read(self, row, col, height, width):
        valid = np.ones((SIDE, SIDE), bool)
        valid[20:50, 60:130] = False
        part = slice(row, row + height), slice(col, col + width)
        return self.pixels[:, *part], valid[part]

    def fill(self, array, valid):
        return array


def run(engine, layers, *, resampled=False, input_of=passes.pixels_of):
    """Return the rows of a pass (channels, height, width)."""
    side = 220 if resampled else SIDE
    found = np.zeros((max(part.stop for part in layers.values()), side, side), np.uint8)

    def write(row, rows):
        found[:, row : row + rows.shape[1]] = rows

    seen = []

    def observe(items, described):
        for item, means in zip(items, described, strict=True):
            torch.testing.assert_close(means, torch.from_numpy(item.pixels / 255).float().mean((1, 2)))
            seen.append(item.tile.index)

    rows = passes.Pass(layers=layers, write=write, progress=lambda tiles: None, observe=observe)
    resampler = passes.Resampler((SIDE, SIDE), (side, side)) if resampled else None
    plan = tiling.plan(SIDE, SIDE, TILE, OVERLAP)
    with engine:
        assembler = passes.Assembler(engine, plan, rows, resampler=resampler)
        passes.run_pass(engine, assembler, Memory(), rows, input_of=input_of)
    assert not isinstance(engine, RefinerEngine) or not seen
    assert isinstance(engine, RefinerEngine) or sorted(seen) == list(range(9))  # each tile once
    return found


def segmenter(batch_size=8, heatmaps=False):
    config = PredictConfig(device="cpu", batch_size=batch_size)
    return Engine(
        Explaining(3), classes=3, scaling=SCALING, config=config, heatmaps=heatmaps, probabilities=True,
        describe=lambda pixels, pooled: pooled,
    )  # fmt: skip


def refiner(batch_size=8):
    return RefinerEngine(
        LocalRefiner(3), order=(1, 0, 2), scaling=SCALING, config=RefineConfig(), samples=2,
        run=PredictConfig(device="cpu", batch_size=batch_size), uncertainty=True,
    )  # fmt: skip


def window_of(item):
    coarse = (item.pixels[0] // 86).astype(np.uint8)
    return Window(item.pixels, coarse, item.tile.row, item.tile.col)


CASES = {
    "mapped": (segmenter, LAYERS, {}),
    "resampled": (segmenter, LAYERS, {"resampled": True}),
    "heatmaps": (lambda *size: segmenter(*size, heatmaps=True), LAYERS | {"heatmaps": slice(4, 7)}, {}),
    "refined": (refiner, LAYERS | {"uncertainty": slice(4, 5)}, {"input_of": window_of}),
}
STAGES = {  # what runs out of memory, and in which cases it is called
    "forward": (torch.nn.functional, "conv2d", CASES),
    "scores": (torch.Tensor, "softmax", CASES),
    "heatmaps": (torch.nn.functional, "interpolate", ["heatmaps"]),
    "disagreement": (torch.special, "entr", ["refined"]),
    "blending": (torch, "lerp", CASES),
    "joining": (torch, "cat", CASES),
    "classes": (torch.Tensor, "max", CASES),
    "masks": (torch.Tensor, "masked_fill_", CASES),
    "resampling": (torch.Tensor, "index_select", ["resampled"]),
}


def numbers(arguments):
    """Count the numbers of all tensors among arguments."""
    listed = [item for each in arguments for item in (each if isinstance(each, list) else [each])]
    return sum(item.numel() for item in listed if isinstance(item, torch.Tensor))


@pytest.mark.parametrize(
    ("stage", "case"), [(stage, case) for stage, (_, _, cases) in STAGES.items() for case in cases]
)
def test_any_stage_may_run_out_of_memory(stage, case, monkeypatch, caplog):
    make, layers, options = CASES[case]
    expected = run(make(1), layers, **options)
    owner, name, _ = STAGES[stage]
    function, largest = getattr(owner, name), []

    def watched(*arguments, **more):
        largest.append(numbers(arguments))
        return function(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, watched)
        run(make(8), layers, **options)
    limit = max(largest) // 2

    def limited(*arguments, **more):
        if numbers(arguments) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*arguments, **more)

    monkeypatch.setattr(owner, name, limited)
    with caplog.at_level(logging.WARNING, "rsseg_cli"):
        found = run(make(8), layers, **options)
    np.testing.assert_array_equal(found, expected)
    assert "batch size" in caplog.text


def test_one_tile_that_cannot_be_blended_is_reported(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "lerp", fail)
    with pytest.raises(ModelError, match="out of memory on cpu beside the network; pass a smaller --tile-s"):
        run(segmenter(), LAYERS)
