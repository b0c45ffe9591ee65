"""Crops: of memory-mapped scenes, over several processes, and how many make a pass."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rsseg_cli.data import LoadedScene
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import TrainConfig
from rsseg_cli.training.crops import CropDataset, EpochSampler, TileDataset, crops_per_pass_of


def scene_of(height: int, width: int, gsd_m: float = 1.0, name: str = "scene") -> LoadedScene:
    labels = np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)
    return LoadedScene(name, np.repeat(labels[None] * 60, 3, 0).astype(np.uint8), labels, gsd_m)


def mapped(scene: LoadedScene, folder) -> LoadedScene:
    """The same scene in files that may only be read."""
    found = []
    for name in ("image", "labels"):
        np.save(folder / f"{name}.npy", getattr(scene, name))
        found.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return LoadedScene(scene.name, *found, scene.gsd_m)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.75, 1.5)])
def test_crops_of_files_are_those_of_memory_and_leave_them_alone(tmp_path, scales):
    scene = scene_of(100, 130)
    config = TrainConfig(crop_size=64, scales=scales)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that may not be written
        of_files = CropDataset([mapped(scene, tmp_path)], config)
        of_memory = CropDataset([scene], config)
        for index in range(12):
            for found, expected in zip(of_files[index], of_memory[index], strict=True):
                assert torch.equal(found, expected)
        assert len(TileDataset([mapped(scene, tmp_path)], 64)[3][0]) == 3
    assert np.array_equal(np.load(tmp_path / "labels.npy"), scene.labels)


@pytest.mark.parametrize(("batch", "world"), [(2, 2), (1, 3), (3, 1)])
def test_processes_see_together_what_one_sees(batch, world):
    """Step by step: the batches of all ranks are the large batch of one."""
    length = 4 * batch * world
    alone = EpochSampler(length, batch * world)
    ranks = [EpochSampler(length, batch, rank, world) for rank in range(world)]
    for epoch in (0, 5):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        expected = list(alone)
        assert expected == list(range(epoch * length, (epoch + 1) * length))
        drawn = [list(rank) for rank in ranks]
        assert all(len(part) == len(rank) for part, rank in zip(drawn, ranks, strict=True))
        for step in range(4):
            together = [index for part in drawn for index in part[step * batch : (step + 1) * batch]]
            assert together == expected[step * batch * world : (step + 1) * batch * world]


def test_crops_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="7 crops"):
        EpochSampler(7, 2)


def test_processes_share_the_tiles_and_an_idle_one_has_no_labels():
    scene = scene_of(100, 150)  # 2 x 3 tiles of 64
    whole = [TileDataset([scene], 64)[index][1] for index in range(6)]
    parts = [TileDataset([scene], 64, rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert torch.equal(parts[1][1][1], whole[5])
    idle = TileDataset([scene], 64, 7, 8)
    assert len(idle) == 1
    assert (idle[0][1] == class_values.IGNORE).all()


def test_crops_in_a_pass():
    """One a LoveDA image; of 2048 x 1024 px as many as fill it; half the pixels at twice the resolution."""
    config = TrainConfig(crop_size=512)
    assert crops_per_pass_of([scene_of(1024, 1024)] * 3, config) == 3
    assert crops_per_pass_of([scene_of(20, 20)], config) == 1
    assert crops_per_pass_of([scene_of(2048, 1024)], config) == 8
    assert crops_per_pass_of([scene_of(2048, 1024, gsd_m=0.5)], config) == 2


def test_turns_and_redraws_can_be_left_out():
    labels = np.zeros((64, 64), np.uint8)
    labels[:8] = 1  # one class fills 7 of 8
    scene = LoadedScene("scene", np.repeat(labels[None], 3, 0), labels, 1.0)
    plain = TrainConfig(crop_size=64, scales=(1, 1), mosaic=0, colour=0, turns=False, redraws=1)
    for index in range(4):
        assert np.array_equal(CropDataset([scene], plain)[index][1], labels)
