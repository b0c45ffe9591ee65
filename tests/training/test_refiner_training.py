"""Training refiners at tiny size: crops of one geometry, coarse maps, both stages, resumed runs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch import nn

from rsseg_cli.data import DataConfig, LoadedScene, datasets
from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.models import LiteRefiner, LiteRefinerConfig
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training import refiner_train as refiners
from rsseg_cli.training.coarse_maps import (
    CoarseMaker,
    CoarseSource,
    closer_looks,
    coarse_sources,
    match_files,
)
from rsseg_cli.training.config import ModelInfo, RefinerNetworkSettings, RefiningConfig, TrainConfig
from rsseg_cli.training.recipes import RefinerSettings, resolve_refiner_settings
from rsseg_cli.training.refiner_crops import (
    LabelCrops,
    RefinerCrops,
    RefinerTiles,
    degrade,
    dilate,
    drop_patches,
    random_map,
    smooth_labels,
    warp,
)
from rsseg_cli.training.refiner_start import build_refiner, describe_refiner
from rsseg_cli.training.refiner_train import RefinerModule, StageModule, Tally, merge_in_band
from rsseg_cli.training.trainer import RunOptions
from rsseg_cli.weights import ClassSpec, ModelSpec, load_model, read_spec, save_model

TINY_NETWORK = LiteRefinerConfig(
    classes=2, encoder="test_efficientnet", codec_channels=8, widths=(16, 16, 16), middle=0, window_px=16
)
TINY = {
    "crop_size": 64, "tile_size": 64, "crops_per_epoch": 8, "batch_size": 2, "epochs": 3, "codec_epochs": 2,
    "val_tiles": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def squares(seed=0, side=96):
    """Bright squares on dark ground, and two coarse maps of them."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 2, (6, 6)), np.ones((side // 6, side // 6))).astype(np.uint8)
    labels[0, :2] = 0, 1  # both classes, whatever the seed
    noise = rng.integers(0, 20, (3, side, side))
    scene = LoadedScene(f"squares{seed}", (labels * 150 + 40 + noise).astype(np.uint8), labels, 1.0)
    return scene, (warp(labels, rng, 4), np.roll(labels, 2, 1))


def scenes():
    parts = [squares(seed) for seed in range(3)]
    images, maps = [part[0] for part in parts], [part[1] for part in parts]
    return refiners.RefinerScenes(images[:2], images[2:], [], maps[:2], maps[2:])


def settings(**more) -> RefinerSettings:
    return resolve_refiner_settings({**TINY, "band_m": 3.0, **more})


def spec():
    return ModelSpec(
        name="t", architecture="idgbr-lite", classes=ClassSpec.from_names(["dark", "bright"]), gsd_m=1.0,
        network=vars(TINY_NETWORK),
    )  # fmt: skip


def run(folder, chosen, **options):
    torch.manual_seed(0)
    network = LiteRefiner(TINY_NETWORK)
    results = refiners.fit_refiner(
        network, spec(), scenes(), chosen, RunOptions(run_dir=folder, device="cpu", **options)
    )
    return results, {key: value.clone() for key, value in network.state_dict().items()}


# coarse maps made worse


@pytest.mark.parametrize("classes", [1, 2, 5, 30])
def test_degraded_maps_keep_what_is_unknown_and_invent_no_class(classes):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = random_map(rng, classes, 65)[:, :50]
        labels[10:20, 5:30] = class_values.IGNORE
        before = labels.copy()
        worse = degrade(labels, rng, 6)
        assert worse.shape == labels.shape
        assert worse.dtype == np.uint8
        assert np.array_equal(worse == class_values.IGNORE, labels == class_values.IGNORE)
        assert set(np.unique(worse)) <= set(np.unique(labels))
        assert np.array_equal(labels, before)


def test_degrading_moves_boundaries_by_some_pixels_and_leaves_the_rest():
    labels = np.zeros((128, 128), np.uint8)
    labels[:, 64:] = 1
    changed = np.zeros((128, 128), np.bool_)
    rng = np.random.default_rng(0)
    for _ in range(200):
        worse = warp(labels, rng, 6)
        changed |= worse != labels
    cols = np.flatnonzero(changed.any(0))
    assert 54 <= cols.min() <= 61
    assert 66 <= cols.max() <= 73


def test_each_kind_of_degradation():
    labels = np.zeros((9, 9), np.uint8)
    labels[4, 4] = 3
    grown = dilate(labels, 3, 2)
    assert (grown[2:7, 2:7] == 3).all()
    assert (grown == 3).sum() == 25
    stairs = np.tile(np.arange(8, dtype=np.uint8) // 4, (8, 1))
    assert np.array_equal(smooth_labels(stairs, 4, smooth=False), stairs)
    assert set(np.unique(smooth_labels(stairs, 4, smooth=True))) == {0, 1}
    blotted = drop_patches(np.zeros((64, 64), np.uint8), np.array([7]), np.random.default_rng(0))
    assert 13 <= (blotted == 7).sum() <= 3 * 113  # discs of radius 2 hold 13 px, of radius 6 113


def test_drawn_maps_hold_classes_only():
    maps = [random_map(np.random.default_rng(seed), 6, 64) for seed in range(20)]
    assert all(item.max() < 6 and item.shape == (64, 64) for item in maps)
    assert len(np.unique(np.stack(maps))) == 6


# crops


def test_image_rough_map_and_labels_of_a_crop_have_one_geometry():
    """Where the coarse map is the labels and nothing is degraded, crops of both are equal; the image shows
    them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (80, 100)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    scene = LoadedScene("s", np.repeat(labels[None] * 200, 3, 0), labels, 1.0)
    other = (labels ^ 1).astype(np.uint8)
    plain = RefiningConfig(degrade=0.0, from_labels=0.0)
    config = TrainConfig(crop_size=64, mosaic=0.0, colour=0.0, scales=(1.0, 1.0))
    crops = RefinerCrops([scene], [(other,)], config, plain)
    for index in range(10):
        image, coarse, actual, _ = crops[index]
        assert torch.equal(coarse, actual ^ 1)
        assert torch.equal((image[0] > 127).byte(), actual)
    scaled = RefinerCrops([scene], [(other,)], TrainConfig(crop_size=64, mosaic=0.0), plain)
    assert all(torch.equal(part[1], part[2] ^ 1) for part in (scaled[index] for index in range(10)))


def test_a_crop_takes_one_version_and_too_good_maps_are_degraded():
    scene, _ = squares()
    flat = [np.full_like(scene.labels, value) for value in (0, 1)]
    config = TrainConfig(crop_size=64, mosaic=0.0)
    plain = RefiningConfig(degrade=0.0, from_labels=0.0)
    crops = RefinerCrops([scene], [tuple(flat)], config, plain)
    actual = {int(value) for index in range(20) for value in crops[index][1].unique()}
    assert actual == {0, 1}
    perfect = RefinerCrops([scene], [(scene.labels,)], config, plain)
    assert not all(torch.equal(part[1], part[2]) for part in (perfect[index] for index in range(8)))
    with pytest.raises(ValueError, match="every scene"):
        RefinerCrops([scene], [()], config, plain)


def test_a_closer_look_has_the_crops_geometry_and_drawn_scenes_have_none():
    scene, _ = squares()
    looked = np.stack([(scene.labels == 0) * 254, (scene.labels == 1) * 254]).astype(np.uint8)
    config = TrainConfig(crop_size=64, mosaic=0.0, drawn_share=0.5)
    drawn, plain = squares(1)[0], RefiningConfig(degrade=0.0)
    crops = RefinerCrops([scene], [(scene.labels,)], config, plain, [drawn], [looked])
    kinds = set()
    for index in range(12):
        _, _, labels, closer, _ = crops[index]
        known = bool((closer != class_values.IGNORE).all())
        assert known or (closer == class_values.IGNORE).all()
        assert not known or torch.equal(closer[1] == 254, labels == 1)
        kinds.add(known)
    assert kinds == {True, False}


def test_unlabelled_pixels_take_the_models_class_where_labels_are_the_rough_map():
    scene, _ = squares()
    labels = scene.labels.copy()
    labels[:48] = class_values.IGNORE
    blank = LoadedScene("s", scene.image, labels, 1.0)
    config = TrainConfig(crop_size=64, mosaic=0.0, redraw_above=1.0)
    crops = RefinerCrops([blank], [(scene.labels,)], config, RefiningConfig(from_labels=1.0))
    assert all((crops[index][1] != class_values.IGNORE).all() for index in range(10))
    assert any((crops[index][2] == class_values.IGNORE).any() for index in range(10))


def test_label_maps_of_the_first_stage():
    scene, _ = squares()
    config = TrainConfig(crop_size=64, mosaic=0.0)
    drawn = LabelCrops([scene], config, RefiningConfig(random_maps=1.0), classes=6)
    assert max(int(drawn[index][0].max()) for index in range(10)) > 1
    real = LabelCrops([scene], config, RefiningConfig(random_maps=0.0), classes=6)
    assert max(int(real[index][0].max()) for index in range(10)) == 1
    assert real[3][0].dtype == torch.uint8


def test_validation_tiles_lie_evenly_over_what_is_labelled():
    labels = np.zeros((64, 64 * 9), np.uint8)
    labels[:, 64:128] = class_values.IGNORE
    scene = LoadedScene("s", np.zeros((3, *labels.shape), np.uint8), labels, 1.0)
    tiles = RefinerTiles([scene], [labels], 64, 3)
    assert [window[1].start // 64 for _, window, _ in tiles.tiles] == [0, 5, 8]
    assert len(RefinerTiles([scene], [labels], 64, 99)) == 8
    ranks = [RefinerTiles([scene], [labels], 64, 3, rank, 2) for rank in range(2)]
    assert sorted(item[3] for rank in ranks for item in (rank[i] for i in range(len(rank)))) == [0, 4, 7]
    idle = RefinerTiles([scene], [labels], 64, 1, 1, 2)
    assert (idle[0][2] == class_values.IGNORE).all()


# coarse maps of scenes


@pytest.fixture
def sheets(tmp_path):
    """Scenes a, a_1 and b (validation) with labels, and a folder for maps."""
    for folder in ("images", "masks", "maps"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(("a", "a_1", "b")):
        labels = squares(number, 48)[0].labels
        write(tmp_path / "images" / f"{name}.tif", np.repeat(labels[None] * 150 + 40, 3, 0), number)
        write(tmp_path / "masks" / f"{name}.tif", labels[None], number)
    return tmp_path


def write(path: Path, array, where=0, gsd=1.0, **tags):
    """A raster at a place of its own."""
    count, height, width = array.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    transform = from_origin(500000 + 1000 * where, 5000000, gsd, gsd)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as written:
        written.write(array.astype(np.uint8))
        written.update_tags(**tags)


def coarse(sheets, given, gsds=(1.0,)):
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    sources = coarse_sources([str(item) for item in given], data.class_names)
    kept, arrays = sheets / "kept", sheets / "arrays"
    maker = CoarseMaker(
        sources=sources, class_names=data.class_names, folder=arrays, kept=kept, gsds=gsds, device="cpu"
    )
    actual = refiners.load_refiner_scenes(data, spec(), settings(scales=(1.0, 1.0)), maker, arrays)
    named = dict(zip([item.name for item in actual.train], actual.train_maps, strict=True))
    return actual, {**named, "b": actual.val_maps[0]}


def test_versions_are_found_by_stem(sheets):
    """a_1.tif is the map of scene a_1, not a version of a; validation takes the first version."""
    for name, where, value in (("a", 0, 0), ("a_x", 0, 1), ("a_1", 1, 1), ("b", 2, 0), ("b_2", 2, 1)):
        write(sheets / "maps" / f"{name}.tif", np.full((1, 48, 48), value), where)
    _, maps = coarse(sheets, [sheets / "maps"])
    values = {name: [int(item[0, 0]) for item in versions] for name, versions in maps.items()}
    assert values == {"a": [0, 1], "a_1": [1], "b": [0]}
    assert isinstance(maps["a"][0], np.memmap)
    assert match_files([("part-a", "a")], [CoarseSource(given="", files=(Path("a_2.tif"),))]) == {
        "part-a": [Path("a_2.tif")]
    }


def test_maps_come_to_the_training_grid(sheets):
    """A map at twice the pixel size, and one whose classes stand in another order."""
    half = np.kron(np.eye(2), np.ones((12, 12)))[None]
    for name, where in (("a", 0), ("b", 2)):
        write(sheets / "maps" / f"{name}.tif", half, where, gsd=2.0)
    write(sheets / "maps" / "a_1.tif", np.zeros((1, 48, 48)), 1, CLASS_0="bright", CLASS_1="Dark")
    _, maps = coarse(sheets, [sheets / "maps"])
    assert np.array_equal(maps["a"][0], half[0].repeat(2, 0).repeat(2, 1).astype(np.uint8))
    assert (maps["a_1"][0] == 1).all()


def test_what_is_wrong_with_rough_maps_is_reported(sheets):
    with pytest.raises(UsageError, match="--coarse MODEL"):
        coarse_sources([], ["dark", "bright"])
    with pytest.raises(DataError, match=r"maps: no rasters there.*buildings"):
        coarse(sheets, [sheets / "maps"])
    with pytest.raises(ModelError, match="class 'background' is none of the data's"):
        coarse_sources(["buildings"], ["dark", "bright"])
    write(sheets / "maps" / "a.tif", np.zeros((1, 48, 48)), 0)
    with pytest.raises(DataError, match=r"no coarse map of a_1, b; needs STEM\.tif"):
        coarse(sheets, [sheets / "maps"])
    write(sheets / "maps" / "b.tif", np.zeros((1, 48, 48)), 2)
    write(sheets / "maps" / "a_1.tif", np.zeros((1, 48, 48)), 5)
    with pytest.raises(DataError, match=r"a_1\.tif: has no class where a_1 is labelled"):
        coarse(sheets, [sheets / "maps"])
    write(sheets / "maps" / "a_1.tif", np.full((1, 48, 48), 7), 1)
    with pytest.raises(DataError, match=r"a_1\.tif: label value 7 is no class"):
        coarse(sheets, [sheets / "maps"])


def test_a_model_maps_the_scenes_beforehand(sheets):
    """Once a resolution and training scene; a resumed run finds them again."""
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    torch.manual_seed(0)
    config = BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16)
    own = ModelSpec(
        name="own", architecture="bicor-seg",
        classes=ClassSpec.from_names(["bright", "dark"]), gsd_m=1.0,
        network=vars(config),
    )  # fmt: skip
    save_model(sheets / "own.safetensors", BicorSeg(config), own)
    actual, maps = coarse(sheets, [sheets / "own.safetensors"], gsds=(1.0, 2.0))
    assert {name: len(versions) for name, versions in maps.items()} == {"a": 2, "a_1": 2, "b": 1}
    assert all(item.shape == (48, 48) and item.max() < 2 for item in maps["a"])
    made = {path: path.stat().st_mtime_ns for path in (sheets / "kept").glob("*.tif")}
    assert len(made) == 5
    coarse(sheets, [sheets / "own.safetensors"], gsds=(1.0, 2.0))
    assert {path: path.stat().st_mtime_ns for path in (sheets / "kept").glob("*.tif")} == made
    assert [item.name for item in actual.val] == ["b"]
    save_model(
        sheets / "refiner.safetensors", LiteRefiner(TINY_NETWORK),
        ModelSpec(name="r", architecture="idgbr-lite", classes=own.classes, network=vars(TINY_NETWORK)),
    )  # fmt: skip
    with pytest.raises(ModelError, match="is a refiner"):
        coarse_sources([str(sheets / "refiner.safetensors")], ["dark", "bright"])


# both stages


def test_each_stage_trains_its_own_part(tmp_path):
    chosen = settings(epochs=1, codec_epochs=1, ema=0.9)
    torch.manual_seed(0)
    fresh = LiteRefiner(TINY_NETWORK).state_dict()
    results, after = run(tmp_path / "both", chosen)
    assert list(results) == ["codec", "refiner"]
    assert (results["codec"].steps, results["refiner"].steps) == (4, 4)
    _, codec = run(tmp_path / "first", settings(epochs=1, codec_epochs=1, ema=0.9, stage="codec"))
    codec_keys = {key for key in codec if key.startswith("codec.")}
    assert {key for key, value in codec.items() if not torch.equal(value, fresh[key])} == codec_keys
    changed = {key for key, value in after.items() if not torch.equal(value, codec[key])}
    assert {"denoiser.enter.weight", "conditions.image_in.weight"} <= changed
    decoder = {key for key in codec_keys if key not in ("codec.table", "codec.fold.weight")}
    assert decoder <= changed
    kept = ("conditions.encoder.", *(codec_keys - decoder))
    assert not any(key.startswith(kept) for key in changed)
    scores = results["refiner"].history[-1]
    assert 0 < scores["coarse_boundary_iou"] < 1
    assert results["refiner"].score == pytest.approx(scores["boundary_iou"], abs=1e-6)
    rows = list(csv.DictReader((tmp_path / "both" / "refiner" / "metrics.csv").open()))
    wanted = {"val_boundary_iou", "val_coarse_boundary_iou", "val_miou", "val_coarse_miou", "loss_epoch"}
    assert wanted <= set(rows[0])


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("stage", "stop", "more"),
    [("refiner", (2, 0), {}), ("refiner", (1, 3), {"ema": 0.9}), ("codec", (1, 2), {"accumulate": 2})],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(stage, stop, more, tmp_path, monkeypatch):
    """The same weights and scores to the bit, in whichever stage it was stopped."""
    chosen = settings(**more)
    whole, expected = run(tmp_path / "whole", chosen)
    step = StageModule.training_step

    def stopping(self, batch, index):
        if (self.stage, self.current_epoch, index) == (stage, *stop):
            raise Stop
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", stopping)
        with pytest.raises(Stop):
            run(tmp_path / "parts", chosen)
    torch.rand(17)  # another state of the generator than the uninterrupted run had
    parts, actual = run(tmp_path / "parts", chosen, resume=True)
    for key, value in actual.items():
        assert torch.equal(value, expected[key]), key
    for name in ("codec", "refiner"):
        for item, other in zip(parts[name].history, whole[name].history, strict=True):
            assert {**item, "seconds": 0} == {**other, "seconds": 0}


class Aligned(LiteRefiner):
    """A network that takes an alignment, as the paper's does."""

    def refiner_losses(self, image, coarse, labels, align=None):
        losses = super().refiner_losses(image, coarse, labels)
        if align is not None:
            losses["alignment"] = align(image, image)
            losses["loss"] = losses["loss"] + losses["alignment"]
        return losses


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection, self.calls = nn.Conv2d(3, 3, 1), 0

    def forward(self, image, features):
        self.calls += 1
        return (self.projection(features) - image).square().mean()


def test_the_image_encoder_stays_what_it_was(tmp_path):
    torch.manual_seed(0)
    before = LiteRefiner(TINY_NETWORK).state_dict()
    _, after = run(tmp_path, settings(stage="refiner", init="x", epochs=1))
    frozen = [name for name in before if name.startswith("conditions.encoder.")]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["denoiser.leave.weight"], after["denoiser.leave.weight"])


def test_alignment_is_trained_in_the_first_steps(tmp_path, monkeypatch):
    align = Projection()
    monkeypatch.setattr(refiners, "build_alignment", lambda network, weights: align)
    before = align.projection.weight.clone()
    refiners.fit_refiner(
        Aligned(TINY_NETWORK), spec(), scenes(), settings(codec_epochs=1, epochs=2, ema=0.0, align_steps=3),
        RunOptions(run_dir=tmp_path, device="cpu"),
    )  # fmt: skip
    assert align.calls == 3
    assert not torch.equal(align.projection.weight, before)
    with pytest.raises(UsageError, match="--align"):
        resolve_refiner_settings({"align": str(tmp_path)})


def test_only_the_band_changes_and_unknown_stays():
    coarse = np.zeros((1, 12), np.uint8)
    coarse[:, 6:] = 1
    coarse[:, 11] = class_values.IGNORE
    merged = merge_in_band(coarse, np.full_like(coarse, 2), 2)
    assert merged.tolist() == [[0, 0, 0, 0, 2, 2, 2, 2, 1, 1, 1, class_values.IGNORE]]


def test_scores_of_a_validation():
    """16 x 16 px in two halves; the map's boundary lies 2 px beside: 14 of 16 columns are right."""
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 8:] = 1
    mapped = np.roll(labels, 2, 1)
    mapped[:, :2] = 0
    tally = Tally(2)
    tally.add(mapped, labels)
    scores = tally.scores(tally.counts().numpy())
    assert scores["miou"] == pytest.approx((8 / 10 + 6 / 8) / 2)
    # class 0: columns 5-7 in the labels, 7-9 in the map: 1 of 5 in both; class 1: 8-10 and 10-12, 1 of 5
    assert scores["boundary_iou"] == pytest.approx(1 / 5)
    twice = tally.scores(2 * tally.counts().numpy())
    assert twice == pytest.approx(scores)
    assert Tally(2).scores(Tally(2).counts().numpy()) == {"boundary_iou": 0.0, "miou": 0.0}


def test_noise_of_a_tile_is_the_same_every_epoch():
    module = RefinerModule(LiteRefiner(TINY_NETWORK), spec(), settings().training, 1, 3)
    first = module.noise(torch.tensor([4, 7]), (64, 64))
    torch.manual_seed(5)
    assert torch.equal(module.noise(torch.tensor([7, 4]), (64, 64)).flip(0), first)
    assert first.shape == (2, TINY_NETWORK.latent_channels, 16, 16)


def test_sides_that_the_network_cannot_take():
    network = LiteRefiner(LiteRefinerConfig(classes=2, encoder="test_efficientnet", window_px=128))
    with pytest.raises(UsageError, match="--crop-size 64: this refiner needs a multiple of 128 px"):
        refiners.check_sizes(network, settings().training)


# settings and start


def test_settings_come_back_from_their_file(tmp_path):
    chosen = settings(widths=(16, 32, 48), learning_rate=1e-5, stage="codec", time_sampling="uniform")
    path = tmp_path / "settings.toml"
    path.write_text(chosen.to_toml(), encoding="utf-8")
    assert resolve_refiner_settings(config=path) == chosen
    path.write_text("[losses]\nfisher = 1.0\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"\[losses\] is unknown"):
        resolve_refiner_settings(config=path)
    path.write_text("mosaic = 0.5\n", encoding="utf-8")
    with pytest.raises(UsageError, match="unknown setting 'mosaic'"):
        resolve_refiner_settings(config=path)
    for key, value in (("degrade", 1.5), ("band_m", 0.0), ("stage", "both"), ("coarse_gsds", (0.0,))):
        with pytest.raises(UsageError, match=key.replace("_", "[-_]")):
            resolve_refiner_settings({key: value})


def test_a_refiner_of_other_classes_is_no_start(tmp_path, sheets):
    path = tmp_path / "start.safetensors"
    save_model(path, LiteRefiner(TINY_NETWORK), spec())
    chosen = resolve_refiner_settings({"init": str(path)})
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    described = describe_refiner(chosen, data, ModelInfo(name="tuned", gsd_m=0.5))
    assert (described.network, described.gsd_m) == (load_model(path).spec.network, 0.5)
    network, _ = build_refiner(described, chosen.network, 0)
    stored = load_model(path).network.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())
    other = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="ground,roof"))
    with pytest.raises(ModelError, match="classes dark, bright, the data has ground, roof"):
        describe_refiner(chosen, other, ModelInfo(name="tuned"))
    with pytest.raises(ModelError, match="needs a refiner"):
        describe_refiner(resolve_refiner_settings({"init": "buildings"}), data, ModelInfo(name="x"))


def test_the_encoder_starts_as_a_segmentation_models(tmp_path):
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    path = tmp_path / "own.safetensors"
    config = BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16)
    own = ModelSpec(
        name="own",
        architecture="bicor-seg",
        classes=ClassSpec.from_names(["dark", "bright"]),
        network=vars(config),
    )
    save_model(path, BicorSeg(config), own, dtype="float32")
    chosen = settings(encoder="test_efficientnet", encoder_weights=str(path)).network
    network, _ = build_refiner(spec(), chosen, 0)
    stored = load_model(path).network.encoder.state_dict()
    encoder = network.conditions.encoder
    assert all(torch.equal(value, stored[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(ModelError, match=r"own\.safetensors: its encoder lacks"):
        build_refiner(
            ModelSpec(
                name="t", architecture="idgbr-lite", classes=own.classes,
                network={**vars(TINY_NETWORK), "encoder": "tf_efficientnet_lite0"},
            ),
            chosen, 0,
        )  # fmt: skip


def test_a_refiner_takes_a_model_along(tmp_path, sheets, caplog):
    """Begun anew, or from a refiner without one; it sees what the model does."""
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    path, plain = tmp_path / "own.safetensors", tmp_path / "start.safetensors"
    config = BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16, smooth=True)
    own = ModelSpec(
        name="own", architecture="bicor-seg",
        classes=ClassSpec.from_names(["dark", "bright"]), network=vars(config),
        mean=(0.1, 0.2, 0.3),
    )  # fmt: skip
    save_model(path, BicorSeg(config), own, dtype="float32")
    save_model(plain, LiteRefiner(TINY_NETWORK), spec(), dtype="float32")
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    model = load_model(path).network
    stored, image = model.state_dict(), torch.rand(1, 3, 64, 64)
    for given in ({"init": str(plain)}, {"encoder": "test_efficientnet", "widths": (16, 16, 16)}):
        chosen = resolve_refiner_settings({"closer": str(path), **given})
        described = describe_refiner(chosen, data, ModelInfo(name="both", gsd_m=1.0))
        assert described.mean == (0.1, 0.2, 0.3)
        network, _ = build_refiner(described, chosen.network, 0)
        assert torch.equal(network.closer.decoder.class_table, stored["decoder.class_table"])
        assert torch.equal(network.conditions.encoder.conv_stem.weight, stored["encoder.conv_stem.weight"])
        seen = network.closer(network.conditions.see(image))
        torch.testing.assert_close(seen, model(image).softmax(1))
    other = load_model(plain).network
    chosen = resolve_refiner_settings({"closer": str(path), "init": str(plain)})
    network, _ = build_refiner(describe_refiner(chosen, data, ModelInfo(name="both")), chosen.network, 0)
    assert torch.equal(network.conditions.rough_in.weight[:, :16], other.conditions.rough_in.weight)
    assert not network.conditions.rough_in.weight[:, 16:].any()
    save_model(
        path,
        BicorSeg(replace(config, zoom=1.5)),
        replace(own, network=vars(replace(config, zoom=1.5))),
        overwrite=True,
    )
    with caplog.at_level("WARNING"):
        describe_refiner(
            resolve_refiner_settings({"closer": str(path), "init": str(plain)}), data, ModelInfo(name="z")
        )
    assert "its first look alone" in caplog.text
    with pytest.raises(ModelError, match=r"--closer buildings: .* needs a BiCoR-Seg model of dark, bright"):
        describe_refiner(resolve_refiner_settings({"closer": "buildings"}), data, ModelInfo(name="x"))


def test_how_a_closer_look_is_used(tmp_path, sheets):
    """Chosen with --closer, or with --init of a refiner that has one; stored sizes else stay."""
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    path, looking = tmp_path / "own.safetensors", tmp_path / "looking.safetensors"
    config = BicorSegConfig(classes=2, encoder="test_efficientnet", channels=16)
    names = ClassSpec.from_names(["dark", "bright"])
    own = ModelSpec(name="own", architecture="bicor-seg", classes=names, network=vars(config))
    save_model(path, BicorSeg(config), own)
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    sizes = {"encoder": "test_efficientnet", "widths": (16, 16, 16), "closer": str(path)}
    chosen = resolve_refiner_settings({**sizes, "closer_scales": (1.0, 0.5), "closer_share": 0.5})
    described = describe_refiner(chosen, data, ModelInfo(name="x", gsd_m=1.0))
    network, stored = build_refiner(described, chosen.network, 0)
    assert (network.config.closer_scales, network.config.closer_share) == ((1.0, 0.5), 0.5)
    save_model(looking, network, stored)
    chosen = resolve_refiner_settings({"init": str(looking), "closer_share": 0.25})
    described = describe_refiner(chosen, data, ModelInfo(name="y"))
    network, _ = build_refiner(described, chosen.network, 0)
    assert (network.config.closer_scales, network.config.closer_share) == ((1.0, 0.5), 0.25)
    for given, problem in (
        ({"encoder": "test_efficientnet", "closer_share": 0.5}, r"--closer-share: needs --closer MODEL"),
        ({**sizes, "closer_scales": (2.0,)}, r"--closer-scales .*needs up to eight numbers from 0.1 to 1"),
    ):
        with pytest.raises(UsageError, match=problem):
            describe_refiner(resolve_refiner_settings(given), data, ModelInfo(name="z", gsd_m=1.0))


def test_closer_looks_come_to_the_training_grid(sheets):
    looks, folder = sheets / "looks", sheets / "arrays"
    looks.mkdir()
    write(looks / "a.tif", np.stack([np.full((24, 24), 254), np.zeros((24, 24))]), 0, gsd=2.0)
    write(looks / "a_1.tif", np.full((2, 48, 48), 127), 1)
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    chosen = settings(scales=(1.0, 1.0))
    actual = refiners.load_refiner_scenes(data, spec(), chosen, None, folder, [str(looks)])
    values = dict(zip([item.name for item in actual.train], actual.closer, strict=True))
    assert (values["a"][0] == 254).all()
    assert not values["a"][1].any()
    assert values["a_1"].shape == (2, 48, 48)
    assert (values["a_1"] == 127).all()
    scenes = list(zip(data.split("train"), actual.train, strict=True))
    write(looks / "a_1_again.tif", np.full((2, 48, 48), 127), 1)
    with pytest.raises(DataError, match=r"a_1: 2 rasters in --closer-maps .*; needs one"):
        closer_looks([str(looks)], scenes, data, folder)
    (looks / "a_1_again.tif").unlink()
    write(looks / "a_1.tif", np.zeros((1, 48, 48)), 1)
    with pytest.raises(DataError, match=r"a_1\.tif: 1 bands of uint8; needs 2 of uint8"):
        closer_looks([str(looks)], scenes, data, folder)


def test_sizes_of_the_paper_are_its_own(sheets):
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    with pytest.raises(UsageError, match="--widths: is a size of --arch lite"):
        describe_refiner(settings(arch="paper", widths=(16, 16, 16)), data, ModelInfo(name="x"))
    with pytest.raises(UsageError, match="--sd"):
        RefinerNetworkSettings(arch="lite", sd="folder")
    described = describe_refiner(settings(arch="paper", steps=3), data, ModelInfo(name="x"), "roofs")
    assert described.architecture == "idgbr"
    assert described.mean == described.std == (0.5, 0.5, 0.5)
    assert described.refinement == {"steps": 3, "band_m": 3.0, "model": "roofs"}


def test_a_refiner_knows_the_resolution_of_its_model(sheets):
    data = datasets.open_data(DataConfig(folders=(sheets,), val=("b",), classes="dark,bright"))
    described = describe_refiner(settings(), data, ModelInfo(name="x", gsd_m=0.5), "landcover")
    assert described.refinement["model_gsd_m"] == described.assumed_gsd_m == read_spec("landcover").gsd_m
    assert described.gsd_m == 0.5
    unknown = describe_refiner(settings(), data, ModelInfo(name="x", gsd_m=0.5), "roofs")
    assert "model_gsd_m" not in unknown.refinement
    assert unknown.assumed_gsd_m == 0.5
