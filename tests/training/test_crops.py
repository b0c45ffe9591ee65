"""Crops: of memory-mapped scenes, over several processes, and how many make a pass."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rsseg_cli.data import LoadedScene
from rsseg_cli.errors import DataError
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import TrainConfig
from rsseg_cli.training.crops import (
    CropDataset,
    EpochSampler,
    TileDataset,
    crops_per_pass_of,
    draw_factors,
    draw_training_scenes,
    vary_colours,
    worsen,
)
from rsseg_cli.weights import ClassSpec, ModelSpec


def scene_of(height: int, width: int, gsd_m: float = 1.0, name: str = "scene") -> LoadedScene:
    labels = np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)
    return LoadedScene(name, np.repeat(labels[None] * 60, 3, 0).astype(np.uint8), labels, gsd_m)


def loaded(labels: np.ndarray, gsd_m: float = 1.0) -> LoadedScene:
    """A scene whose image is its label times 60, so that crops can be checked against each other."""
    return LoadedScene("scene", np.repeat((labels * 60)[None], 3, 0).astype(np.uint8), labels, gsd_m)


def spec_of(*names: str) -> ModelSpec:
    return ModelSpec(name="test", architecture="external", classes=ClassSpec.from_names(names), gsd_m=0.3)


def mapped(scene: LoadedScene, folder) -> LoadedScene:
    """The same scene in files that may only be read."""
    actual = []
    for name in ("image", "labels"):
        np.save(folder / f"{name}.npy", getattr(scene, name))
        actual.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return LoadedScene(scene.name, *actual, scene.gsd_m)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.75, 1.5)])
def test_crops_of_files_are_those_of_memory_and_leave_them_alone(tmp_path, scales):
    scene = scene_of(100, 130)
    config = TrainConfig(crop_size=64, scales=scales)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that may not be written
        of_files = CropDataset([mapped(scene, tmp_path)], config)
        of_memory = CropDataset([scene], config)
        for index in range(12):
            for actual, expected in zip(of_files[index], of_memory[index], strict=True):
                assert torch.equal(actual, expected)
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


class TestCrops:
    def labels(self):
        return np.random.default_rng(1).integers(0, 3, (300, 260), dtype=np.uint8)

    def test_a_crop_follows_from_seed_and_index(self):
        first = CropDataset([loaded(self.labels())], TrainConfig(crop_size=64, seed=3))
        second = CropDataset([loaded(self.labels())], TrainConfig(crop_size=64, seed=3))
        assert all(torch.equal(a, b) for a, b in zip(first[17], second[17], strict=True))
        assert not torch.equal(first[17][0], first[18][0])

    @pytest.mark.parametrize("mosaic", [0.0, 1.0])
    def test_image_and_labels_stay_together(self, mosaic):
        crops = CropDataset(
            [loaded(self.labels())], TrainConfig(crop_size=64, scales=(1, 1), mosaic=mosaic, colour=0)
        )
        for index in range(20):
            image, labels, _ = crops[index]
            assert image.shape == (3, 64, 64)
            assert torch.equal(image[0], labels * 60)

    def test_scale_follows_the_ground(self):
        """Stripes 16 m wide: at 1 m a pixel they are 16 px wide, from a scene at 0.5 m as from one at 1 m."""
        for gsd_m in (0.5, 1.0):
            cols = np.arange(int(400 / gsd_m))
            labels = np.tile(((cols * gsd_m) // 16 % 2).astype(np.uint8), (int(400 / gsd_m), 1))
            crops = CropDataset(
                [loaded(labels, gsd_m)], TrainConfig(crop_size=128, scales=(1, 1), mosaic=0, colour=0)
            )
            _, crop, _ = crops[0]
            changes = max((crop[0, 1:] != crop[0, :-1]).sum(), (crop[1:, 0] != crop[:-1, 0]).sum())
            assert changes in (7, 8)

    def test_a_scene_smaller_than_a_crop_is_filled_up_with_ignore(self):
        image, labels, _ = CropDataset(
            [loaded(self.labels()[:40, :50])], TrainConfig(crop_size=64, scales=(1, 1), mosaic=0)
        )[0]
        assert image.shape == (3, 64, 64)
        assert (labels == class_values.IGNORE).sum() == 64 * 64 - 40 * 50

    def test_crops_of_one_class_are_redrawn(self):
        labels = np.zeros((512, 512), np.uint8)
        labels[:, 400:] = 1
        crops = CropDataset([loaded(labels)], TrainConfig(crop_size=64, scales=(1, 1), mosaic=0))
        mixed = sum(len(crops[index][1].unique()) == 2 for index in range(40))
        assert mixed > 25  # 12 % of all positions are mixed

    def test_drawn_share(self):
        real, drawn = loaded(np.zeros((200, 200), np.uint8)), loaded(np.ones((200, 200), np.uint8))
        crops = CropDataset([real], TrainConfig(crop_size=64, drawn_share=0.3, mosaic=0), [drawn])
        share = np.mean([bool(crops[index][1].max() == 1) for index in range(300)])
        assert share == pytest.approx(0.3, abs=0.08)

    def test_colours_stay_in_range_and_zero_strength_changes_nothing(self):
        images, rng = torch.rand(20, 3, 32, 32), np.random.default_rng(0)
        factors = torch.stack([draw_factors(rng, 3, 1.0) for _ in images])
        changed = vary_colours(images, factors)
        assert changed.shape == images.shape
        assert 0 <= changed.min() <= changed.max() <= 1
        assert ((changed - images).abs().mean((1, 2, 3)) > 0.005).all()
        none = torch.stack([draw_factors(rng, 3, 0.0) for _ in images])
        torch.testing.assert_close(vary_colours(images, none), images, atol=1e-6, rtol=0)

    def test_the_colours_of_an_image_do_not_depend_on_its_batch(self):
        images, rng = torch.rand(8, 3, 32, 32), np.random.default_rng(0)
        factors = torch.stack([draw_factors(rng, 3, 1.0) for _ in images])
        together = vary_colours(images, factors)
        alone = [vary_colours(image[None], own[None])[0] for image, own in zip(images, factors, strict=True)]
        torch.testing.assert_close(torch.stack(alone), together, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("kind", ["bytes", "shares"])
    def test_some_images_are_blurred_and_some_get_noise(self, kind):
        image = torch.full((3, 32, 32), 128, dtype=torch.uint8)
        image[:, ::2] = 140
        image = image if kind == "bytes" else image / 255
        worse = [worsen(image, np.random.default_rng(seed), 1.0) for seed in range(60)]
        spread = torch.stack([item.float().std() / image.float().std() for item in worse])
        assert all(item.dtype == image.dtype for item in worse)
        assert 6 <= (spread < 0.9).sum() <= 25  # 25 %
        assert 6 <= (spread > 1.01).sum() <= 25  # 30 %
        assert all(torch.equal(worsen(image, np.random.default_rng(seed), 0.0), image) for seed in range(9))

    def test_epochs_do_not_repeat_crops(self):
        sampler = EpochSampler(5)
        sampler.set_epoch(2)
        assert list(sampler) == [10, 11, 12, 13, 14]


def test_validation_tiles_cover_every_label_once():
    labels = np.random.default_rng(0).integers(0, 3, (70, 130), dtype=np.uint8)
    tiles = TileDataset([loaded(labels)], 64)
    counted = sum(
        np.bincount(tiles[index][1].numpy().ravel(), minlength=256)[:3] for index in range(len(tiles))
    )
    np.testing.assert_array_equal(counted, np.bincount(labels.ravel(), minlength=3)[:3])


def test_drawn_scenes_take_the_models_classes_by_name():
    (scene,) = draw_training_scenes(spec_of("background", "building"), count=1, gsd_m=0.5, size=256)
    assert set(np.unique(scene.labels)) <= {0, 1}
    with pytest.raises(DataError, match="leave --drawn-share at 0"):
        draw_training_scenes(spec_of("ship", "plane"), count=1, gsd_m=0.5)
