"""Scenes found, aligned and cropped: what the network is shown is what lies in the files."""

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from rsseg_cli.crops import (
    CropConfig,
    CropDataset,
    EpochSampler,
    LoadedScene,
    TileDataset,
    draw_training_scenes,
    jitter_colours,
)
from rsseg_cli.datasets import (
    LabelledScene,
    find_scenes,
    ground_resolution,
    load_scene,
    read_scene_list,
)
from rsseg_cli.errors import DataError
from rsseg_cli.labels import IGNORE
from rsseg_cli.weights import ModelSpec
from rsseg_cli.weights.spec import class_specs


def spec_at(gsd_m: float, *names: str) -> ModelSpec:
    return ModelSpec(
        name="test", architecture="external", classes=class_specs(names or ("other", "building")), gsd_m=gsd_m
    )


def write_raster(path, array, *, gsd=0.5, origin=(500000, 5000000), crs="EPSG:32632", nodata=None):
    array = array if array.ndim == 3 else array[None]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=array.shape[2],
        height=array.shape[1],
        count=array.shape[0],
        dtype=array.dtype,
        crs=crs,
        transform=from_origin(*origin, gsd, gsd),
        nodata=nodata,
    ) as dataset:
        dataset.write(array)
    return path


def random_image(height, width, bands=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (bands, height, width), dtype=np.uint8)


def loaded(labels: np.ndarray, gsd_m: float = 1.0) -> LoadedScene:
    """A scene whose image is its label times 60, so that crops can be checked against each other."""
    return LoadedScene("scene", np.repeat((labels * 60)[None], 3, 0).astype(np.uint8), labels, gsd_m)


class TestFinding:
    def test_pairs_by_name_with_splits(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        for name in ("a1", "a2", "b1"):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.jpg")
            Image.new("L", (8, 8)).save(tmp_path / "masks" / f"{name}.png")
        found = find_scenes(tmp_path, val=["a2"], test=["b*"])
        assert [(scene.image.name, scene.labels.name, scene.split) for scene in found] == [
            ("a1.jpg", "a1.png", "train"),
            ("a2.jpg", "a2.png", "val"),
            ("b1.jpg", "b1.png", "test"),
        ]
        (tmp_path / "masks" / "a1.png").unlink()
        with pytest.raises(DataError, match="no partner: a1"):
            find_scenes(tmp_path)

    def test_list_names_the_line_that_is_wrong(self, tmp_path):
        image = write_raster(tmp_path / "a.tif", random_image(8, 8))
        listed = tmp_path / "scenes.csv"
        listed.write_text("image,labels,split\na.tif,a.tif,val\n")
        assert read_scene_list(listed) == [LabelledScene(image, image, "val")]
        listed.write_text("image,labels,split\na.tif,a.tif,train\na.tif,gone.tif,train\n")
        with pytest.raises(DataError, match=r"line 3: .*gone.tif does not exist"):
            read_scene_list(listed)
        listed.write_text("image,labels,split\na.tif,a.tif,training\n")
        with pytest.raises(DataError, match="line 2: split 'training'"):
            read_scene_list(listed)


class TestLoading:
    def test_ground_resolution_of_the_first_training_scene(self, tmp_path):
        held = LabelledScene(tmp_path / "none.tif", tmp_path / "none.tif", "val")
        first = LabelledScene(
            write_raster(tmp_path / "image.tif", random_image(8, 8), gsd=0.25), held.labels, "train"
        )
        assert ground_resolution([held, first]) == pytest.approx(0.25, rel=1e-3)
        Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
        with pytest.raises(DataError, match="pass --gsd"):
            ground_resolution([LabelledScene(tmp_path / "image.png", held.labels, "train")])

    def test_at_the_scenes_own_resolution_nothing_changes(self, tmp_path):
        image, labels = random_image(40, 60), random_image(40, 60, 1)[0] % 2
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        got = load_scene(scene, spec_at(0.5))
        np.testing.assert_array_equal(got.image, image)
        np.testing.assert_array_equal(got.labels, labels)
        assert got.gsd_m == pytest.approx(0.5, rel=1e-3)

    def test_coarser_training_takes_the_most_frequent_label(self, tmp_path):
        labels = np.zeros((40, 40), np.uint8)
        labels[:, 21:] = 1  # a column short of half: its 2 x 2 pixels are half 0, half 1 nowhere
        labels[:2, :2] = [[1, 1], [1, 0]]
        image = np.repeat(labels[None] * 100, 3, 0)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        got = load_scene(scene, spec_at(1.0))
        assert got.labels.shape == (20, 20)
        assert got.labels[0, 0] == 1
        assert (got.labels[:, :10][1:] == 0).all()
        assert (got.labels[:, 11:] == 1).all()

    def test_finer_than_the_model_only_as_far_as_the_scene_goes(self, tmp_path):
        image, labels = random_image(40, 60), np.zeros((40, 60), np.uint8)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        assert load_scene(scene, spec_at(2.0), finest_gsd_m=1.0).labels.shape == (20, 30)
        assert load_scene(scene, spec_at(1.0), finest_gsd_m=0.1).labels.shape == (40, 60)

    def test_labels_on_another_grid_are_aligned(self, tmp_path):
        """Labels of a smaller area, at twice the pixel size, land where the ground says."""
        image = random_image(40, 40)
        labels = np.ones((10, 10), np.uint8)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", image),
            write_raster(tmp_path / "labels.tif", labels, gsd=1.0, origin=(500005, 4999995), nodata=255),
            "train",
        )
        got = load_scene(scene, spec_at(0.5))
        assert got.labels.shape == (20, 20)  # the labelled part alone is kept
        np.testing.assert_array_equal(got.image, image[:, 10:30, 10:30])

    def test_an_unknown_label_stops_with_file_and_value(self, tmp_path):
        labels = np.full((20, 20), 7, np.uint8)
        scene = LabelledScene(
            write_raster(tmp_path / "image.tif", random_image(20, 20)),
            write_raster(tmp_path / "labels.tif", labels),
            "train",
        )
        with pytest.raises(DataError, match=r"labels.tif: label value 7 is no class"):
            load_scene(scene, spec_at(0.5))

    def test_other_size_without_crs_is_refused(self, tmp_path):
        Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
        Image.new("L", (20, 20)).save(tmp_path / "mask.png")
        with pytest.raises(DataError, match="20 x 20 px without CRS"):
            load_scene(LabelledScene(tmp_path / "image.png", tmp_path / "mask.png", "train"), spec_at(1.0))


class TestCrops:
    def labels(self):
        return np.random.default_rng(1).integers(0, 3, (300, 260), dtype=np.uint8)

    def test_a_crop_follows_from_seed_and_index(self):
        first = CropDataset([loaded(self.labels())], CropConfig(crop_size=64, seed=3))
        second = CropDataset([loaded(self.labels())], CropConfig(crop_size=64, seed=3))
        assert all(torch.equal(a, b) for a, b in zip(first[17], second[17], strict=True))
        assert not torch.equal(first[17][0], first[18][0])

    @pytest.mark.parametrize("mosaic", [0.0, 1.0])
    def test_image_and_labels_stay_together(self, mosaic):
        crops = CropDataset(
            [loaded(self.labels())], CropConfig(crop_size=64, scales=(1, 1), mosaic=mosaic, colour=0)
        )
        for index in range(20):
            image, labels = crops[index]
            assert image.shape == (3, 64, 64)
            torch.testing.assert_close(image[0], labels.float() * 60 / 255)

    def test_scale_follows_the_ground(self):
        """Stripes 16 m wide: at 1 m a pixel they are 16 px wide, from a scene at 0.5 m as from one at 1 m."""
        for gsd_m in (0.5, 1.0):
            cols = np.arange(int(400 / gsd_m))
            labels = np.tile(((cols * gsd_m) // 16 % 2).astype(np.uint8), (int(400 / gsd_m), 1))
            crops = CropDataset(
                [loaded(labels, gsd_m)], CropConfig(crop_size=128, scales=(1, 1), mosaic=0, colour=0)
            )
            _, crop = crops[0]
            changes = max((crop[0, 1:] != crop[0, :-1]).sum(), (crop[1:, 0] != crop[:-1, 0]).sum())
            assert changes in (7, 8)

    def test_a_scene_smaller_than_a_crop_is_filled_up_with_ignore(self):
        image, labels = CropDataset(
            [loaded(self.labels()[:40, :50])], CropConfig(crop_size=64, scales=(1, 1), mosaic=0)
        )[0]
        assert image.shape == (3, 64, 64)
        assert (labels == IGNORE).sum() == 64 * 64 - 40 * 50

    def test_crops_of_one_class_are_redrawn(self):
        labels = np.zeros((512, 512), np.uint8)
        labels[:, 400:] = 1
        crops = CropDataset([loaded(labels)], CropConfig(crop_size=64, scales=(1, 1), mosaic=0))
        mixed = sum(len(crops[index][1].unique()) == 2 for index in range(40))
        assert mixed > 25  # 12 % of all positions are mixed

    def test_drawn_share(self):
        real, drawn = loaded(np.zeros((200, 200), np.uint8)), loaded(np.ones((200, 200), np.uint8))
        crops = CropDataset([real], CropConfig(crop_size=64, drawn_share=0.3, mosaic=0), [drawn])
        share = np.mean([bool(crops[index][1].max() == 1) for index in range(300)])
        assert share == pytest.approx(0.3, abs=0.08)

    def test_colours_stay_in_range_and_zero_strength_changes_nothing(self):
        image = torch.rand(3, 32, 32)
        for seed in range(20):
            changed = jitter_colours(image, np.random.default_rng(seed), 1.0)
            assert changed.shape == image.shape
            assert 0 <= changed.min() <= changed.max() <= 1
        torch.testing.assert_close(jitter_colours(image, np.random.default_rng(0), 0.0), image)

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
    (scene,) = draw_training_scenes(spec_at(0.3, "background", "building"), count=1, gsd_m=0.5, size=256)
    assert set(np.unique(scene.labels)) <= {0, 1}
    with pytest.raises(DataError, match="leave --drawn-share at 0"):
        draw_training_scenes(spec_at(0.3, "ship", "plane"), count=1, gsd_m=0.5)
