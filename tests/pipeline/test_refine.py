"""Refining a map: where it may change, and that the tiling cannot be seen."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from refiners import ImageClass, LocalRefiner, NextClass, SignOfNoise, noise, refiner, whole_scores
from scipy import ndimage
from torch import nn

from rsseg_cli import RefineConfig, predict, refine
from rsseg_cli.errors import ModelError, OutputError, SceneError, UsageError
from rsseg_cli.inference import windows
from rsseg_cli.weights import ModelSpec, TrainedModel

torch.set_num_threads(1)
NAMES = ("roof", "road", "tree")
ORIGIN = (500000, 5000000)


def blobs(shape, classes=3, size=5, seed=0):
    """Patches of classes, uint8."""
    noise = np.random.default_rng(seed).normal(size=(classes, *shape))
    return np.stack([ndimage.gaussian_filter(part, size) for part in noise]).argmax(0).astype(np.uint8)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.fixture
def make_labels(make_raster):
    """A class raster as `predict` writes it."""

    def make(labels, name="labels.tif", names=NAMES, nodata=255, gsd=0.5, **more):
        path = make_raster(
            name,
            array=labels[None],
            kind="none",
            gsd=gsd,
            **({} if nodata is None else {"nodata": nodata}),
            **more,
        )
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(**{f"CLASS_{value}": text for value, text in enumerate(names) if text})
        return path

    return make


def near(labels, band_m, gsd=0.5):
    """Pixels that may change, by a distance transform over the whole map."""
    edges = windows.boundary_pixels(labels)
    distance = (
        ndimage.distance_transform_edt(~edges) * gsd + gsd / 2
        if edges.any()
        else np.full(labels.shape, np.inf)
    )
    return ((distance <= band_m + 1e-6) | edges) & (labels != 255)


def test_a_band_by_hand():
    labels = np.zeros((5, 9), np.uint8)
    labels[:, 5:] = 1
    labels[:, 8] = 255
    band = windows.Band(0.75, (0.5, 0.5))  # from the boundary: half a pixel 0.25 m, one more 0.75 m
    padded = np.pad(labels, band.margin, mode="edge")
    assert ["".join("#" if pixel else "." for pixel in row) for row in band.mask(padded)] == ["...####.."] * 5
    corner = np.zeros((7, 7), np.uint8)
    corner[3:, 3:] = 1
    wide = windows.Band(1.25, (0.5, 0.5))
    found = wide.mask(np.pad(corner, wide.margin, mode="edge"))
    assert not found[0, 0]
    assert found[1, 1] == (np.hypot(1, 2) * 0.5 + 0.25 <= 1.25)


@pytest.mark.parametrize("band_m", [0.2, 0.5, 1.7, 6.0])
@pytest.mark.parametrize("gsd_m", [(0.5, 0.5), (0.4, 0.25)])
def test_the_band_is_that_of_a_distance_transform(band_m, gsd_m):
    labels = blobs((60, 80))
    labels[10:25, 30:50] = 255
    band = windows.Band(band_m, gsd_m)
    edges = windows.boundary_pixels(labels)
    distance = ndimage.distance_transform_edt(~edges, sampling=gsd_m[::-1]) + sum(gsd_m) / 4
    expected = ((distance <= band_m + 1e-6) | edges) & (labels != 255)
    np.testing.assert_array_equal(band.mask(np.pad(labels, band.margin, constant_values=255)), expected)


def test_noise_belongs_to_its_place():
    whole = noise((3, 200, 220), 0, 0, seed=7)
    np.testing.assert_array_equal(whole[:, 40:90, 110:160], noise((3, 50, 50), 40, 110, seed=7))
    assert abs(whole.mean()) < 0.01
    assert abs(whole.std() - 1) < 0.01
    others = [
        noise((3, 200, 220), 0, 0, seed=8),
        noise((3, 200, 220), 0, 0, seed=7, sample=1),
    ]
    planes = np.stack([*whole, *others[0], *others[1]]).reshape(9, -1)
    assert abs(np.corrcoef(planes) - np.eye(9)).max() < 0.03


@pytest.mark.parametrize(("tile_size", "overlap"), [(32, 16), (48, None), (64, 24), (512, None)])
@pytest.mark.parametrize("shape", [(150, 170), (33, 200), (9, 7)])
def test_the_tiling_cannot_be_seen(make_raster, make_labels, tmp_path, shape, tile_size, overlap):
    image = np.random.default_rng(1).integers(0, 255, (3, *shape), dtype=np.uint8)
    coarse, network = blobs(shape), LocalRefiner()
    config = RefineConfig(refiner=refiner(network), band_m=2.0, tile_size=tile_size, overlap=overlap, seed=11)
    refine(make_raster(array=image), make_labels(coarse), tmp_path / "r.tif", config=config)
    scores = whole_scores(network, image, coarse, seed=11)
    best, second = scores.topk(2, 0).values
    clear = (best - second > 1e-4).numpy()
    expected = np.where(near(coarse, 2.0), scores.argmax(0).numpy(), coarse)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(read(tmp_path / "r.tif")[clear], expected[clear])


def test_a_part_is_refined_as_in_the_whole(make_raster, make_labels, tmp_path):
    image = np.random.default_rng(1).integers(0, 255, (3, 160, 180), dtype=np.uint8)
    scene, labels = make_raster(array=image), make_labels(blobs((160, 180)))
    config = RefineConfig(refiner=refiner(LocalRefiner()), band_m=2.0, tile_size=64)
    refine(scene, labels, tmp_path / "whole.tif", config=config)
    row, col, height, width = 37, 51, 70, 90
    x, y = ORIGIN[0] + 0.5 * col, ORIGIN[1] - 0.5 * row
    box = (x, y - 0.5 * height, x + 0.5 * width, y)
    refine(scene, labels, tmp_path / "part.tif", config=config, bbox=box)
    with rasterio.open(tmp_path / "part.tif") as dataset:
        assert dataset.bounds == pytest.approx(box)
        part = dataset.read(1)
    np.testing.assert_array_equal(part, read(tmp_path / "whole.tif")[row : row + height, col : col + width])


def test_only_the_band_changes_and_only_from_class_to_class(make_raster, make_labels, tmp_path):
    coarse = blobs((120, 130))
    coarse[40:70, 20:60] = 255
    scene = make_raster(shape=(120, 130), kind="alpha", hole=(60, 50, 30, 40))
    holes = np.zeros(coarse.shape, bool)
    holes[60:90, 50:90] = True
    config = RefineConfig(refiner=refiner(NextClass()), band_m=1.5, tile_size=64)
    result = refine(scene, make_labels(coarse), tmp_path / "r.tif", config=config)
    band = near(coarse, 1.5) & ~holes
    np.testing.assert_array_equal(read(tmp_path / "r.tif"), np.where(band, (coarse + 1) % 3, coarse))
    assert result.refined.band_pixels == result.refined.changed_pixels == band.sum()
    assert result.valid_pixels == (coarse != 255).sum()


def test_windows_without_a_boundary_are_not_run(make_raster, make_labels, tmp_path):
    coarse = np.zeros((64, 256), np.uint8)
    coarse[:, 100:] = 1
    network = NextClass()
    config = RefineConfig(refiner=refiner(network), band_m=1.0, tile_size=64, overlap=0)
    result = refine(make_raster(shape=(64, 256)), make_labels(coarse), tmp_path / "r.tif", config=config)
    assert (network.calls, result.refined.windows_run, result.refined.windows) == (1, 1, 4)
    assert result.as_dict()["refined"]["windows_run_share"] == 0.25
    assert read(tmp_path / "r.tif")[0, 96:104].tolist() == [0, 0, 1, 1, 2, 2, 1, 1]
    edge = np.full((64, 256), 255, np.uint8)
    edge[:, :90] = 1
    labels = make_labels(edge, "edge.tif")
    result = refine(make_raster("2.tif", shape=(64, 256)), labels, tmp_path / "e.tif", config=config)
    assert result.refined.windows_run == 0  # the edge to nodata is no boundary
    np.testing.assert_array_equal(read(tmp_path / "e.tif"), edge)


def test_a_seed_decides(make_raster, make_labels, tmp_path):
    scene, labels = make_raster(shape=(96, 96)), make_labels(blobs((96, 96)))
    maps = []
    for number, seed in enumerate((3, 3, 4)):
        config = RefineConfig(refiner=refiner(LocalRefiner()), seed=seed, band_m=2.0)
        refine(scene, labels, tmp_path / f"{number}.tif", config=config)
        maps.append(read(tmp_path / f"{number}.tif"))
    np.testing.assert_array_equal(maps[0], maps[1])
    assert (maps[0] != maps[2]).any()


def test_an_ensemble_averages_and_tells_its_disagreement(make_raster, make_labels, tmp_path):
    coarse = np.zeros((64, 64), np.uint8)
    coarse[:, 32:] = 1
    coarse[:8] = 255
    model = refiner(SignOfNoise(), NAMES[:2])
    labels = make_labels(coarse, names=NAMES[:2])
    config = RefineConfig(refiner=model, band_m=4.0, ensemble=3, seed=2)
    result = refine(
        make_raster(shape=(64, 64)), labels, tmp_path / "r.tif", config=config, uncertainty=tmp_path / "u.tif"
    )
    drawn = np.stack([noise((1, 16, 16), 0, 0, seed=2, sample=sample)[0] for sample in range(3)])
    second = (drawn < 0).mean(0).repeat(4, 0).repeat(4, 1)
    band = near(coarse, 4.0)
    np.testing.assert_array_equal(read(tmp_path / "r.tif"), np.where(band, second > 0.5, coarse))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(second * np.log(second)) - np.nan_to_num((1 - second) * np.log(1 - second))
    expected = np.where(band, entropy / np.log(2) * 254, 0)
    found = read(tmp_path / "u.tif")
    assert (found[:8] == 255).all()
    assert abs(found[8:] - expected[8:]).max() <= 1
    assert {0, 233} <= set(np.unique(found[8:]))
    assert result.refined.ensemble == 3
    with pytest.raises(UsageError, match="needs --ensemble 2 or more"):
        refine(
            tmp_path / "scene.tif", labels, tmp_path / "n.tif",
            config=RefineConfig(refiner=model, ensemble=1), uncertainty=tmp_path / "v.tif",
        )  # fmt: skip


def test_steps_are_those_asked_for_then_those_of_the_spec(make_raster, make_labels, tmp_path):
    scene, labels = make_raster(shape=(40, 40)), make_labels(blobs((40, 40)))
    network = LocalRefiner()
    refine(scene, labels, tmp_path / "1.tif", config=RefineConfig(refiner=refiner(network), steps=5))
    model = refiner(network, refinement={"steps": 2, "band_m": 1.5})
    result = refine(scene, labels, tmp_path / "2.tif", config=RefineConfig(refiner=model))
    refine(scene, labels, tmp_path / "3.tif", config=RefineConfig(refiner=refiner(network)))
    assert network.steps == [5, 2, None]
    assert result.refined.band_m == 1.5


def test_classes_are_matched_by_name(make_raster, make_labels, tmp_path):
    coarse = blobs((60, 70))
    scene = make_raster(shape=(60, 70))
    config = RefineConfig(refiner=refiner(NextClass()), band_m=1.0)
    refine(scene, make_labels(coarse), tmp_path / "1.tif", config=config)
    turned = np.array([2, 0, 1], np.uint8)  # roof is 2, road 0, tree 1
    labels = make_labels(turned[coarse], "turned.tif", names=("Road", "tree", "roof"))
    result = refine(scene, labels, tmp_path / "2.tif", config=config)
    np.testing.assert_array_equal(read(tmp_path / "2.tif"), turned[read(tmp_path / "1.tif")])
    assert list(result.classes) == ["road", "tree", "roof"]
    with rasterio.open(tmp_path / "2.tif") as dataset:
        assert dataset.tags()["CLASS_0"] == "road"
        assert json.loads(dataset.tags()["RSSEG_SETTINGS"])["band_m"] == 1.0


def test_numbers_that_are_not_0_to_n_are_renumbered(make_raster, make_labels, tmp_path):
    coarse = blobs((60, 70))
    coarse[:5] = 254  # becomes 0 below: unlabelled
    labels = make_labels(
        coarse + np.uint8(1) if False else np.where(coarse == 254, 0, coarse + 1).astype(np.uint8),
        names=("unlabelled", *NAMES),
    )
    config = RefineConfig(refiner=refiner(NextClass()), band_m=1.0)
    result = refine(make_raster(shape=(60, 70)), labels, tmp_path / "r.tif", config=config)
    expected = np.where(coarse == 254, 255, coarse).astype(np.uint8)
    expected = np.where(near(expected, 1.0), (expected + 1) % 3, expected)
    np.testing.assert_array_equal(read(tmp_path / "r.tif"), expected)
    assert "classes are renumbered: 1 becomes 0 (roof)" in result.notes[0]


def test_a_map_without_names_has_the_refiners_classes(make_raster, make_labels, tmp_path):
    coarse = blobs((60, 70)).astype(np.int16)
    labels = make_labels(coarse, names=(), nodata=-9)
    config = RefineConfig(refiner=refiner(NextClass()), band_m=1.0)
    result = refine(make_raster(shape=(60, 70)), labels, tmp_path / "r.tif", config=config)
    assert "names no classes; taken to be 0 roof, 1 road, 2 tree" in result.notes[0]
    expected = np.where(near(coarse.astype(np.uint8), 1.0), (coarse + 1) % 3, coarse)
    np.testing.assert_array_equal(read(tmp_path / "r.tif"), expected)
    coarse[7, 9] = 3
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        SceneError, match=r"value 3 at row 7, column 9 is no class; the classes are 0 to 2, 255"
    ):
        refine(tmp_path / "scene.tif", make_labels(coarse, names=()), tmp_path / "n.tif", config=config)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("roof", "road"), "the map lacks 'tree'"),
        (("roof", "road", "tree", "water"), "the refiner does not know 'water'"),
        (("roof", "road", "lawn"), "the refiner does not know 'lawn'; the map lacks 'tree'"),
        (("roof", "road", "tree", "roof"), "the map has twice 'roof'"),
    ],
)
def test_classes_that_do_not_match_are_named(make_raster, make_labels, tmp_path, names, message):
    labels = make_labels(blobs((30, 30)), names=names)
    with pytest.raises(SceneError, match=message):
        refine(
            make_raster(shape=(30, 30)),
            labels,
            tmp_path / "r.tif",
            config=RefineConfig(refiner=refiner(NextClass())),
        )


@pytest.mark.parametrize(("gsd_m", "tile_size"), [(0.25, 64), (0.25, 512), (1.1, 64), (1.1, 32)])
def test_another_resolution_is_seen_and_brought_back(make_raster, make_labels, tmp_path, gsd_m, tile_size):
    truth = blobs((90, 120), size=9)
    coarse = np.roll(truth, 2, 1)
    image = np.repeat(truth[None], 3, 0)
    network = ImageClass()
    model = refiner(network, gsd_m=gsd_m, gsd_range_m=(gsd_m * 0.8, gsd_m * 1.2))
    config = RefineConfig(refiner=model, band_m=2.5, tile_size=tile_size)
    result = refine(make_raster(array=image), make_labels(coarse), tmp_path / "r.tif", config=config)
    assert f"read at {gsd_m} m" in result.notes[0]
    found = read(tmp_path / "r.tif")
    band = near(coarse, 2.5)
    np.testing.assert_array_equal(found[~band], coarse[~band])
    assert (found == truth)[band].mean() > (0.99 if gsd_m < 0.5 else 0.9)
    assert (coarse == truth)[band].mean() < 0.9


@pytest.mark.parametrize(("gsd_m", "warned"), [(0.25, False), (0.2, True), (1.4, False), (1.6, True)])
def test_scenes_that_a_refiner_does_not_know(make_raster, make_labels, tmp_path, gsd_m, warned):
    """Of 0.5 m: more than 2.3 times coarser than the refiner knows, or 3 times finer."""
    model = refiner(ImageClass(), gsd_m=gsd_m, gsd_range_m=(gsd_m, gsd_m))
    labels = make_labels(blobs((90, 120), size=9))
    result = refine(make_raster(), labels, tmp_path / "r.tif", config=RefineConfig(refiner=model))
    assert any("expect no better boundaries" in note for note in result.notes) == warned


@pytest.mark.parametrize("gsd_m", [0.2, 1.3])
def test_a_resampled_map_does_not_depend_on_the_tiling_either(make_raster, make_labels, tmp_path, gsd_m):
    image = np.random.default_rng(1).integers(0, 255, (3, 100, 120), dtype=np.uint8)
    coarse = blobs((100, 120))
    coarse[20:30, 50:70] = 255
    scene, labels = make_raster(array=image), make_labels(coarse)
    model = refiner(LocalRefiner(), gsd_m=gsd_m, gsd_range_m=(gsd_m, gsd_m))
    row, col, height, width = 21, 33, 50, 60
    x, y = ORIGIN[0] + 0.5 * col, ORIGIN[1] - 0.5 * row
    maps = []
    for tile_size, bbox in ((512, None), (64, None), (96, (x, y - 0.5 * height, x + 0.5 * width, y))):
        config = RefineConfig(refiner=model, band_m=2.0, tile_size=tile_size)
        refine(scene, labels, tmp_path / "r.tif", config=config, bbox=bbox, overwrite=True)
        maps.append(read(tmp_path / "r.tif"))
    assert (maps[0] != coarse).mean() > 0.1
    np.testing.assert_array_equal(maps[0] == 255, coarse == 255)
    assert (maps[1] != maps[0]).mean() < 1e-3  # what is equal to the last bit but one may fall either way
    assert (maps[2] != maps[0][row : row + height, col : col + width]).mean() < 1e-3


def test_a_scene_on_another_grid_is_brought_to_the_maps(make_raster, make_labels, tmp_path):
    truth = blobs((100, 120), size=9)
    fine = np.repeat(np.repeat(truth, 2, 0), 2, 1)
    model = refiner(ImageClass())
    config = RefineConfig(refiner=model, band_m=2.5)
    coarse = np.roll(truth, 2, 1)
    band = near(coarse, 2.5)
    scene = make_raster("fine.tif", array=np.repeat(fine[None], 3, 0), gsd=0.25)
    refine(scene, make_labels(coarse), tmp_path / "fine_r.tif", config=config)
    found = read(tmp_path / "fine_r.tif")
    assert (found == truth)[band].mean() > 0.999  # where three classes meet, their mean is a fourth
    part = Affine(0.5, 0, ORIGIN[0] + 10, 0, -0.5, ORIGIN[1] - 5)  # begins 20 columns and 10 rows later
    scene = make_raster("part.tif", array=np.repeat(truth[None, 10:, 20:], 3, 0), transform=part)
    refine(scene, make_labels(coarse), tmp_path / "part_r.tif", config=config)
    covered = np.zeros(truth.shape, bool)
    covered[10:, 20:] = True
    np.testing.assert_array_equal(read(tmp_path / "part_r.tif"), np.where(band & covered, truth, coarse))


def test_a_scene_in_another_crs_is_warped(make_raster, make_labels, tmp_path):
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    truth = blobs((100, 120), size=9)
    coarse = np.roll(truth, 2, 1)
    source = Affine(0.5, 0, *ORIGIN[:1], 0, -0.5, ORIGIN[1])
    transform, width, height = calculate_default_transform(
        "EPSG:32633", "EPSG:3857", 120, 100, 500000, 5000000 - 50, 500060, 5000000, resolution=0.25
    )
    array = np.full((height, width), 9, np.uint8)
    reproject(
        truth, array, src_transform=source, src_crs="EPSG:32633", dst_transform=transform,
        dst_crs="EPSG:3857", resampling=Resampling.nearest, init_dest_nodata=False,
    )  # fmt: skip
    scene = make_raster("w.tif", array=np.repeat(array[None], 3, 0), crs="EPSG:3857", transform=transform)
    config = RefineConfig(refiner=refiner(ImageClass()), band_m=2.5)
    result = refine(scene, make_labels(coarse), tmp_path / "r.tif", config=config, preview=tmp_path / "p.png")
    band = near(coarse, 2.5)
    inner = np.s_[4:-4, 4:-4]
    assert (read(tmp_path / "r.tif") == truth)[inner][band[inner]].mean() > 0.97
    with rasterio.open(tmp_path / "r.tif") as dataset:
        assert dataset.crs == "EPSG:32633"
        assert dataset.tags()["RSSEG_SCENE"] == str(scene)
    assert result.paths["preview"].is_file()
    far = make_raster("far.tif", crs="EPSG:32634")
    with pytest.raises(SceneError, match="they do not overlap"):
        refine(far, tmp_path / "labels.tif", tmp_path / "n.tif", config=config)


def test_without_crs_sizes_must_agree(make_raster, make_labels, tmp_path):
    coarse = blobs((40, 50))
    config = RefineConfig(refiner=refiner(NextClass()), band_m=1.0)
    scene = make_raster(shape=(40, 50), crs=None)
    result = refine(scene, make_labels(coarse), tmp_path / "r.tif", config=config)
    assert "band around boundaries is taken in pixels" in result.notes[-1]
    with pytest.raises(SceneError, match="so they cannot be aligned"):
        refine(
            make_raster("2.tif", shape=(41, 50), crs=None),
            tmp_path / "labels.tif",
            tmp_path / "n.tif",
            config=config,
        )


def test_without_crs_a_scene_is_taken_to_be_at_the_models_resolution(make_raster, make_labels, tmp_path):
    labels = make_labels(blobs((40, 50)), crs=None)
    scene = make_raster(shape=(40, 50), crs=None)
    model = refiner(LocalRefiner(), gsd_m=0.5, gsd_range_m=(0.4, 0.6), refinement={"model_gsd_m": 1.0})
    result = refine(scene, labels, tmp_path / "1.tif", config=RefineConfig(refiner=model, band_m=2.0))
    assert result.notes[0].endswith("taken to be at the model's ground resolution, 1 m")
    assert "read at 0.5 m: 100 x 80 px in place of 50 x 40" in result.notes[1]
    assert result.refined.band_pixels == near(read(labels), 2.0, gsd=1.0).sum()


def test_what_cannot_be_refined_is_reported_before_anything_is_written(make_raster, make_labels, tmp_path):
    from networks import one_hot

    scene, labels = make_raster(), make_labels(blobs((60, 80)))
    config = RefineConfig(refiner=refiner(NextClass()))
    before = sorted(tmp_path.iterdir())
    cases = [
        (OutputError, "is the input itself", (scene, labels, labels), config),
        (
            ModelError,
            "makes maps and refines none",
            (scene, labels, "n.tif"),
            RefineConfig(refiner=one_hot()),
        ),
        (
            ModelError,
            "does not name a bundled model; pass --refiner",
            (scene, labels, "n.tif"),
            RefineConfig(),
        ),
        (SceneError, "3 bands of uint8; needs one band of class numbers", (scene, scene, "n.tif"), config),
    ]
    for kind, message, (image, coarse, output), settings in cases:
        with pytest.raises(kind, match=message):
            refine(image, coarse, tmp_path / output, config=settings)
    with pytest.raises(ModelError, match="refines maps and makes none"):
        predict(scene, tmp_path / "m.tif", model=refiner(NextClass()))
    assert sorted(tmp_path.iterdir()) == before


class FirstBand(nn.Module):
    """A model of maps: class k where the first band's 8-bit value is k."""

    def forward(self, pixels):
        return -((pixels[:, :1] * 255 - torch.arange(3).view(1, -1, 1, 1)) ** 2) * 8


def first_band(**changes):
    spec = ModelSpec.for_network(classes=NAMES[::-1], name="first-band")
    return TrainedModel(FirstBand(), replace(spec, **changes))


@pytest.mark.parametrize(("gsd_m", "tiles"), [(None, 6), (1.0, 1)])
def test_one_call_is_as_good_as_two(make_raster, tmp_path, gsd_m, tiles):
    """Mapping and refining at once, of a part of a scene, at the scene's resolution and a coarser one."""
    image = np.repeat(blobs((140, 150))[None], 3, 0)
    scene = make_raster(array=image, kind="value", nodata=9, hole=(30, 40, 20, 25))
    model = first_band(**({} if gsd_m is None else {"gsd_m": gsd_m, "gsd_range_m": (gsd_m, gsd_m)}))
    config = RefineConfig(refiner=refiner(LocalRefiner()), band_m=1.5, seed=9, tile_size=64)
    box = (ORIGIN[0] + 10.5, ORIGIN[1] - 60, ORIGIN[0] + 70, ORIGIN[1] - 6.5)
    more = {"bbox": box, "tile_size": 64, "overlap": 16}
    calls = []
    result = predict(
        scene, tmp_path / "both.tif", model=model, refine=config, confidence=tmp_path / "c.tif", **more,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    predict(scene, tmp_path / "map.tif", model=model, confidence=tmp_path / "before.tif", **more)
    refined = refine(scene, tmp_path / "map.tif", tmp_path / "r.tif", config=config)
    np.testing.assert_array_equal(read(tmp_path / "both.tif"), read(tmp_path / "r.tif"))
    assert result.refined == refined.refined
    assert result.classes == refined.classes
    changed = read(tmp_path / "c.tif") != read(tmp_path / "before.tif")
    assert 0 < changed.mean() < 1
    assert not changed[~near(read(tmp_path / "map.tif"), 1.5)].any()
    assert calls[-1][0] == calls[-1][1] == result.refined.windows + tiles
    assert sorted(done for done, _ in calls) == [done for done, _ in calls]
    sure, limits = read(tmp_path / "c.tif"), {"min_confidence": 253.5 / 254, "unsure": "class"}
    predict(scene, tmp_path / "sure.tif", model=model, refine=config, **limits, **more)
    known = read(tmp_path / "both.tif")
    unsure = np.where((sure < 254) & (known != 255), len(model.spec.classes), known)
    np.testing.assert_array_equal(read(tmp_path / "sure.tif"), unsure)
    assert 0 < (unsure != known).mean() < 1


@pytest.mark.parametrize("both", [False, True])
def test_what_stops_a_run_leaves_nothing_behind(make_raster, make_labels, tmp_path, both):
    scene = make_raster(array=np.repeat(blobs((200, 200))[None], 3, 0))
    labels = make_labels(blobs((200, 200)))
    before = sorted(tmp_path.iterdir())

    def stop(done, total):
        if done >= total - 3:
            raise KeyboardInterrupt

    config = RefineConfig(refiner=refiner(NextClass()), band_m=1.0, tile_size=64)
    both_in_one = partial(predict, scene, tmp_path / "m.tif", model=first_band(), refine=config)
    second_alone = partial(refine, scene, labels, tmp_path / "m.tif", config=config)
    with pytest.raises(KeyboardInterrupt):
        (both_in_one if both else second_alone)(progress=stop)
    assert sorted(tmp_path.iterdir()) == before


def test_windows_that_share_too_little_are_reported(make_raster, make_labels, tmp_path):
    scene, labels = make_raster(shape=(96, 96)), make_labels(blobs((96, 96)))
    config = RefineConfig(refiner=refiner(LocalRefiner()), band_m=1.0, tile_size=32, overlap=0)
    result = refine(scene, labels, tmp_path / "r.tif", config=config)
    assert "windows of 32 px share 0 px, and refiner 'tiny-refiner' looks 3 px around" in result.notes[-1]
