"""The whole path: exact on every kind of scene, whole or not at all."""

import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from networks import CLASSES, Local, OneHot, one_hot, read, trained
from pyproj import Geod
from torch import nn

from rsseg_cli import PredictConfig, predict
from rsseg_cli.errors import ModelError, OutputError, SceneError, UsageError
from rsseg_cli.raster import RasterWriter
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel

torch.set_num_threads(1)
REACH_PX = 3


class Share(nn.Module):
    """Two classes: the first band's value, from 0 to 1, is the probability of the second."""

    def forward(self, pixels):
        second = pixels[:, :1].clamp(1e-4, 1 - 1e-4)
        return torch.cat([(1 - second).log(), second.log()], 1)


def values(shape, seed=0, top=CLASSES):
    return np.random.default_rng(seed).integers(0, top, (3, *shape), dtype=np.uint8)


NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
ROTATED = Affine.translation(500000, 5000000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
DEGREES = Affine(1e-5, 0, 9.0, 0, -1e-5, 47.0)


@pytest.mark.parametrize("overlap", [0, 12, 32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 150), (150, 1), (40, 50), (64, 64), (65, 64), (150, 170)])
def test_an_identity_network_gives_the_scene_back(make_raster, tmp_path, shape, overlap):
    array = values(shape)
    scene, output = make_raster(array=array), tmp_path / "map.tif"
    result = predict(scene, output, model=one_hot(), tile_size=64, overlap=overlap)
    np.testing.assert_array_equal(read(output)[0], array[0])
    assert result.pixels == result.valid_pixels == shape[0] * shape[1]
    counts = np.bincount(array[0].ravel(), minlength=CLASSES)
    assert [item.pixels for item in result.classes.values()] == counts.tolist()
    assert sum(item.share for item in result.classes.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (NORTH_UP, "EPSG:32633"),
        (ROTATED, "EPSG:32633"),
        (DEGREES, "EPSG:4326"),
        (Affine(0.5, 0, 500000, 0, 0.5, 5000000), "EPSG:3857"),
        (None, None),
    ],
    ids=["north up", "rotated", "degrees", "south up", "no CRS"],
)
def test_the_map_lies_where_the_scene_lies(make_raster, tmp_path, transform, crs):
    array = values((70, 90))
    scene, output = make_raster(array=array, transform=transform, crs=crs), tmp_path / "map.tif"
    result = predict(scene, output, model=one_hot(), tile_size=64, overlap=16)
    with rasterio.open(scene) as before, rasterio.open(output) as after:
        assert after.transform.almost_equals(before.transform, 1e-12)
        assert after.crs == before.crs
        assert after.shape == before.shape
        assert after.nodata == 255
        np.testing.assert_array_equal(after.read(1), array[0])
    assert all((item.area_m2 is None) == (crs is None) for item in result.classes.values())


@pytest.mark.parametrize("tta", ["none", "flip", "d4"])
def test_probabilities_and_confidence(make_raster, tmp_path, tta):
    array = values((70, 90))
    paths = {kind: tmp_path / f"{kind}.tif" for kind in ("confidence", "probabilities")}
    predict(
        make_raster(array=array),
        tmp_path / "map.tif",
        model=one_hot(),
        tile_size=64,
        overlap=16,
        tta=tta,
        **paths,
    )
    found = read(paths["probabilities"])
    assert found.shape == (CLASSES, 70, 90)
    np.testing.assert_array_equal(found.argmax(0), array[0])
    np.testing.assert_array_equal(found.max(0), read(paths["confidence"])[0])
    assert abs(found.astype(int).sum(0) - 254).max() <= CLASSES // 2
    with rasterio.open(paths["probabilities"]) as dataset:
        assert dataset.descriptions[3] == "class 3"
        assert dataset.nodata == 255


def test_tiles_agree_with_the_whole_scene_in_one_pass(make_raster, tmp_path):
    """No seam, no frame: with an overlap that covers the network's reach twice, tiling cannot be seen."""
    array = values((160, 224), top=255)
    network = Local()
    predict(
        make_raster(array=array), tmp_path / "map.tif", model=trained(network, 5), tile_size=64, overlap=16
    )
    with torch.inference_mode():
        whole = network(torch.from_numpy(array)[None] / 255)[0]
    best, second = whole.topk(2, 0).values
    clear = (best - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0][clear], whole.argmax(0).numpy()[clear])


def test_parts_of_a_scene_agree_with_the_whole_away_from_the_cut(make_raster, tmp_path):
    scene = make_raster(array=values((150, 140), top=255), transform=NORTH_UP)
    config = PredictConfig(tile_size=64, overlap=16)
    model = trained(Local(), 5)
    predict(scene, tmp_path / "whole.tif", model=model, config=config)
    whole = read(tmp_path / "whole.tif")[0]
    cut = 67
    y_cut, bottom, right = 5000000 - 0.5 * cut, 5000000 - 0.5 * 150, 500000 + 0.5 * 140
    boxes = {"top": (500000, y_cut, right, 5000000), "bottom": (500000, bottom, right, y_cut)}
    parts = {}
    for name, bbox in boxes.items():
        predict(scene, tmp_path / f"{name}.tif", model=model, config=config, bbox=bbox)
        with rasterio.open(tmp_path / f"{name}.tif") as dataset:
            parts[name] = dataset.read(1)
            assert dataset.bounds == pytest.approx(bbox)
    np.testing.assert_array_equal(parts["top"][: cut - REACH_PX], whole[: cut - REACH_PX])
    np.testing.assert_array_equal(parts["bottom"][REACH_PX:], whole[cut + REACH_PX :])
    assert len(parts["top"]) + len(parts["bottom"]) == 150


@pytest.mark.parametrize("kind", ["value", "alpha", "mask", "msk"])
def test_pixels_out_of_reach_of_a_hole_are_as_if_it_were_not_there(make_raster, tmp_path, kind):
    array = values((130, 150), top=250) + 1
    hole = (50, 60, 20, 31)
    model = trained(Local(), 5)
    config = PredictConfig(tile_size=64, overlap=16)
    predict(make_raster(array=array), tmp_path / "whole.tif", model=model, config=config)
    result = predict(
        make_raster("hole.tif", array=array, kind=kind, hole=hole),
        tmp_path / "map.tif",
        model=model,
        config=config,
    )
    whole, found = read(tmp_path / "whole.tif")[0], read(tmp_path / "map.tif")[0]
    inside = np.zeros(found.shape, bool)
    inside[50:70, 60:91] = True
    np.testing.assert_array_equal(found == 255, inside)
    assert result.valid_pixels == (~inside).sum()
    reached = np.zeros(found.shape, bool)
    reached[50 - REACH_PX : 70 + REACH_PX, 60 - REACH_PX : 91 + REACH_PX] = True
    np.testing.assert_array_equal(found[~reached], whole[~reached])


def test_pixels_beside_a_hole_see_their_surroundings_in_it(make_raster, tmp_path):
    """On an even field nothing changes up to the hole's edge; zeros in the hole would."""
    array = np.full((3, 96, 96), 120, np.uint8)
    array += np.arange(3, dtype=np.uint8)[:, None, None] * 20
    config, model = PredictConfig(tile_size=64, overlap=16), trained(Local(), 5)
    predict(make_raster(array=array), tmp_path / "whole.tif", model=model, config=config)
    predict(
        make_raster("hole.tif", array=array, kind="value", nodata=0),
        tmp_path / "map.tif",
        model=model,
        config=config,
    )
    found = read(tmp_path / "map.tif")[0]
    np.testing.assert_array_equal(found[found != 255], read(tmp_path / "whole.tif")[0][found != 255])
    assert (found == 255).sum() == 15 * 25


def test_tiles_without_data_are_never_run(make_raster, tmp_path):
    array = values((256, 256))
    scene = make_raster(array=array, kind="alpha", hole=(0, 0, 256, 200))
    model = one_hot()
    result = predict(scene, tmp_path / "map.tif", model=model, tile_size=64, overlap=0)
    assert model.network.calls == 4
    assert result.valid_pixels == 256 * 56
    found = read(tmp_path / "map.tif")[0]
    assert (found[:, :200] == 255).all()
    np.testing.assert_array_equal(found[:, 200:], array[0, :, 200:])


def test_a_scene_without_any_data_gives_an_empty_map(make_raster, tmp_path):
    model = one_hot()
    result = predict(
        make_raster(kind="all", dtype="uint16"), tmp_path / "map.tif", model=model, preview=tmp_path / "p.png"
    )
    assert (read(tmp_path / "map.tif") == 255).all()
    assert result.valid_pixels == 0
    assert model.network.calls == 0
    assert {item.share for item in result.classes.values()} == {0.0}


def ramp_scene(height, width):
    ramp = np.linspace(0.2, 0.8, width, dtype=np.float32)
    return np.broadcast_to(ramp, (3, height, width)).copy()


@pytest.mark.parametrize("gsd_m", [0.05, 0.2, 0.5, 0.73, 1.0, 1.9])
@pytest.mark.parametrize("turned", [False, True])
def test_resampling_shifts_nothing(make_raster, tmp_path, gsd_m, turned):
    """A slope through another resolution and back is the same slope, except within a coarse pixel of the
    edge.
    """
    array = ramp_scene(64, 96)
    array = array.transpose(0, 2, 1).copy() if turned else array
    scene = make_raster(array=array, transform=NORTH_UP)
    target = tmp_path / "p.tif"
    predict(
        scene,
        tmp_path / "map.tif",
        model=trained(Share(), 2),
        gsd_m=gsd_m,
        probabilities=target,
        tile_size=64,
        overlap=16,
    )
    found = read(target)[1].astype(float) / 254
    edge = int(np.ceil(gsd_m / 0.5)) + 1
    inner = np.s_[:, edge:-edge] if not turned else np.s_[edge:-edge, :]
    assert abs(found - array[0])[inner].max() < 0.005


def test_a_scene_of_another_resolution_is_read_at_the_models(make_raster, tmp_path, caplog):
    array = np.repeat(np.repeat(values((7, 10)), 12, 1), 12, 2)  # squares of 12 px
    scene = make_raster(array=array, gsd=0.25)
    model = trained(OneHot(), CLASSES, gsd_m=0.5, gsd_range_m=(0.4, 0.6))
    seen = []
    model.network.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    result = predict(scene, tmp_path / "map.tif", model=model)
    assert seen == [(1, 3, 64, 64)]  # 42 x 60 px, padded to multiples of 32
    assert "read at 0.5 m: 60 x 42 px in place of 120 x 84" in result.notes[0]
    assert result.notes[0] in caplog.text
    found = read(tmp_path / "map.tif")[0]
    assert found.shape == (84, 120)
    centres = np.s_[5::12, 5::12]
    np.testing.assert_array_equal(found[centres], array[0][centres])
    inside = predict(make_raster("fits.tif", array=array, gsd=0.55), tmp_path / "fits_map.tif", model=model)
    assert inside.notes == ()
    coarse = predict(make_raster("coarse.tif", array=array, gsd=10), tmp_path / "coarse_map.tif", model=model)
    assert "read at 4 m: 300 x 210 px in place of 120 x 84" in coarse.notes[1]  # enlarged 2.5 times at most
    asked = predict(scene, tmp_path / "asked.tif", model=model, gsd_m=0.5)
    assert "0.25 x 0.25 m; read at the asked 0.5 m: 60 x 42 px" in asked.notes[0]


@pytest.mark.parametrize(
    ("gsd_m", "read_m", "size"),
    [
        (0.398, None, (40, 40)),
        (0.45, None, (40, 40)),
        (0.503, None, (40, 40)),
        (0.6, 0.5, (48, 48)),
        (1.0, 0.667, (60, 60)),
        (2.0, 0.8, (100, 100)),
    ],
)
def test_coarse_scenes_are_enlarged_as_the_model_says(make_raster, tmp_path, caplog, gsd_m, read_m, size):
    """Within its range, a hundredth wider, up to its own resolution, 1.5 times at most; beyond it 2.5
    times at most."""
    scene = make_raster(array=values((40, 40)), gsd=gsd_m)
    model = trained(OneHot(), CLASSES, gsd_m=0.5, gsd_range_m=(0.4, 1.5), enlargement=1.5)
    with caplog.at_level("INFO", logger="rsseg_cli.pipeline.job"):
        result = predict(scene, tmp_path / "map.tif", model=model)
    assert read(tmp_path / "map.tif").shape[1:] == (40, 40)
    assert bool(result.notes) == (gsd_m > 1.5)
    if read_m is None:
        assert "ground resolution" not in caplog.text
        return
    why = " is outside 0.4 to 1.5 m; read at" if gsd_m > 1.5 else "; the model maps it better at"
    assert f"{gsd_m:g} x {gsd_m:g} m{why} {read_m:g} m: {size[0]} x {size[1]} px" in caplog.text


@pytest.mark.parametrize("gsd_m", [0.2, 1.2])
def test_holes_keep_their_shape_through_resampling(make_raster, tmp_path, gsd_m):
    scene = make_raster(shape=(90, 100), kind="value", hole=(31, 33, 22, 17))
    predict(scene, tmp_path / "map.tif", model=trained(Local(), 5), gsd_m=gsd_m, tile_size=64, overlap=16)
    empty = read(tmp_path / "map.tif")[0] == 255
    assert empty[31:53, 33:50].all()
    assert empty.sum() == 22 * 17


def test_a_scene_without_crs_is_taken_to_be_at_the_models_resolution(make_raster, tmp_path):
    array = values((40, 40))
    model = trained(OneHot(), CLASSES, gsd_m=0.3, gsd_range_m=(0.2, 0.4))
    result = predict(make_raster(array=array, crs=None), tmp_path / "map.tif", model=model)
    assert "has no CRS; taken to be at the model's ground resolution, 0.3 m" in result.notes[0]
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], array[0])
    with pytest.raises(SceneError, match="has no CRS, so --gsd 2 cannot be met"):
        predict(tmp_path / "scene.tif", tmp_path / "other.tif", model=one_hot(), gsd_m=2.0)


@pytest.mark.parametrize(
    ("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("int16", 32767), ("float32", 1)]
)
def test_unit_scaling_divides_by_the_largest_value(make_raster, tmp_path, dtype, top):
    array = (ramp_scene(40, 60) * top).astype(dtype)
    predict(
        make_raster(array=array),
        tmp_path / "m.tif",
        model=trained(Share(), 2),
        probabilities=tmp_path / "p.tif",
    )
    expected = array[0].astype(float) / top * 254
    assert abs(read(tmp_path / "p.tif")[1] - expected).max() <= 0.51


def test_stretch_scaling_takes_percentiles_of_valid_pixels(make_raster, tmp_path):
    rng = np.random.default_rng(0)
    array = rng.uniform(1000, 3000, (3, 80, 90)).astype(np.uint16)
    scene = make_raster(array=array, kind="value", nodata=0)
    model = trained(Share(), 2, scaling="stretch")
    result = predict(scene, tmp_path / "m.tif", model=model, probabilities=tmp_path / "p.tif")
    assert "uint16 values are stretched to 0 to 1" in result.notes[-1]
    found = read(tmp_path / "p.tif")[1]
    valid = found != 255
    assert valid.sum() == 80 * 90 - 15 * 25
    expected = ((array[0] - 1040.0) / 1920).clip(0, 1) * 254
    assert abs(found - expected)[valid].max() < 4
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert "factors" in dataset.tags()["RSSEG_SETTINGS"]
    plain = predict(make_raster("eight.tif"), tmp_path / "eight_m.tif", model=model)
    assert plain.notes == ()


def test_an_area_of_interest_leaves_the_rest_out(make_raster, tmp_path):
    import geopandas
    from shapely.geometry import box

    array = values((128, 128))
    scene = make_raster(array=array, transform=NORTH_UP)
    aoi = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[box(500010, 4999980, 500030, 4999995)], crs="EPSG:32633").to_file(aoi)
    result = predict(scene, tmp_path / "map.tif", model=one_hot(), aoi=aoi, tile_size=64, overlap=16)
    found = read(tmp_path / "map.tif")[0]
    expected = np.full_like(found, 255)
    expected[10:40, 20:60] = array[0, 10:40, 20:60]
    np.testing.assert_array_equal(found, expected)
    assert result.valid_pixels == 30 * 40


@pytest.mark.parametrize(
    ("crs", "transform"),
    [("EPSG:4326", Affine(0.01, 0, 10, 0, -0.05, 60)), ("EPSG:3857", Affine(900, 0, 1e6, 0, -4000, 9e6))],
)
def test_areas_are_those_on_the_ground(make_raster, tmp_path, crs, transform):
    shape = (300, 40)
    halves = np.zeros((3, *shape), np.uint8)
    halves[:, 150:] = 1
    result = predict(
        make_raster(array=halves, crs=crs, transform=transform),
        tmp_path / "m.tif",
        model=one_hot(),
        tile_size=64,
        overlap=16,
    )
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    for index, (top, bottom) in enumerate(((0, 150), (150, 300))):
        rows = [
            *[(0, row) for row in range(top, bottom + 1)],
            *[(40, row) for row in range(bottom, top - 1, -1)],
        ]
        lon, lat = to_degrees.transform(*zip(*[transform * point for point in rows], strict=True))
        expected = abs(Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0])
        assert result.classes[f"class {index}"].area_m2 == pytest.approx(expected, rel=2e-4)


def test_heatmaps_come_from_the_same_pass(make_raster, tmp_path):
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    torch.manual_seed(0)
    network = BicorSeg(BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)).eval()
    array = values((64, 64), top=255)
    model = trained(network, 3)
    target = tmp_path / "h.tif"
    predict(
        make_raster(array=array),
        tmp_path / "map.tif",
        model=model,
        heatmaps=target,
        tile_size=64,
        overlap=16,
        dtype="float32",
    )
    with torch.inference_mode():
        explanation = network.explain(torch.from_numpy(array)[None] / 255)
    expected = nn.functional.interpolate(explanation.heatmaps[-1].sigmoid(), (64, 64), mode="bilinear")[0]
    assert abs(read(target) - expected.numpy() * 254).max() < 0.6
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], explanation.logits[0].argmax(0).numpy())
    with pytest.raises(ModelError, match="no class heatmaps"):
        predict(tmp_path / "scene.tif", tmp_path / "n.tif", model=one_hot(), heatmaps=tmp_path / "o.tif")


def test_bands_are_chosen_and_counted(make_raster, tmp_path):
    array = np.concatenate([values((40, 40), seed=1), values((40, 40), seed=2)])
    scene = make_raster(array=array)
    predict(scene, tmp_path / "map.tif", model=one_hot(), bands=(5, 1, 2))
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], array[4])
    with pytest.raises(UsageError, match="has bands 1 to 6"):
        predict(scene, tmp_path / "n.tif", model=one_hot(), bands=(7, 1, 2))


def test_a_preview_shows_scene_and_map(make_raster, tmp_path):
    from PIL import Image

    spec = ModelSpec.for_network(
        classes=[ClassSpec("red field", (255, 0, 0)), ClassSpec("blue field", (0, 0, 255))]
    )
    result = predict(
        make_raster(array=np.zeros((3, 100, 140), np.uint8)),
        tmp_path / "m.tif",
        model=TrainedModel(Share(), spec),
        preview=tmp_path / "p.png",
    )
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert pixels.shape[0] >= 100
    assert result.paths["preview"] == tmp_path / "p.png"


def test_settings_by_keyword_are_those_of_the_config(make_raster, tmp_path):
    with pytest.raises(TypeError, match="tilesize"):
        predict(make_raster(), tmp_path / "m.tif", model=one_hot(), tilesize=64)
    with pytest.raises(UsageError, match="--tile-size 65"):
        predict(make_raster(), tmp_path / "m.tif", model=one_hot(), tile_size=65)


def test_progress_counts_tiles(make_raster, tmp_path):
    calls = []
    predict(
        make_raster(shape=(150, 150)),
        tmp_path / "m.tif",
        model=one_hot(),
        tile_size=64,
        overlap=0,
        batch_size=4,
        progress=lambda done, tiles: calls.append((done, tiles)),
    )
    assert calls == [(4, 9), (8, 9), (9, 9)]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"output": "scene.tif"}, "is the input itself"),
        ({"output": "there.tif"}, "exists. Pass --overwrite"),
        ({"output": "nowhere/map.tif"}, "folder does not exist"),
        ({"output": "map.png"}, "the labels is written as TIF"),
        ({"output": "map.tif", "confidence": "map.tif"}, "is both the labels and the confidence"),
        (
            {"output": "map.tif", "probabilities": "../{name}/map.tif"},
            "is both the labels and the probabilities",
        ),
        ({"output": "map.tif", "preview": "map.jpg"}, "the preview is written as PNG"),
        ({"output": "map.tif", "preview": "there.png"}, "exists. Pass --overwrite"),
    ],
)
def test_outputs_are_checked_before_anything_else(make_raster, tmp_path, outputs, message):
    scene = make_raster()
    (tmp_path / "there.tif").touch()
    (tmp_path / "there.png").touch()
    before = files(tmp_path)
    paths = {kind: tmp_path / name.format(name=tmp_path.name) for kind, name in outputs.items()}
    with pytest.raises(OutputError, match=message):
        predict(scene, paths.pop("output"), model=one_hot(), **paths)
    assert files(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_stops_a_run_leaves_nothing_behind(make_raster, tmp_path, error):
    scene = make_raster(shape=(400, 400))
    before, threads = files(tmp_path), threading.active_count()

    def stop(done, tiles):
        if done == 20:
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        predict(
            scene,
            tmp_path / "m.tif",
            model=one_hot(),
            tile_size=64,
            overlap=16,
            progress=stop,
            confidence=tmp_path / "c.tif",
            preview=tmp_path / "p.png",
        )
    assert files(tmp_path) == before
    assert threading.active_count() == threads


def test_a_damaged_scene_is_one_clear_error(make_raster, tmp_path):
    scene = make_raster(shape=(600, 600), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    scene.write_bytes(scene.read_bytes()[:-200_000])
    before, threads = files(tmp_path), threading.active_count()
    with pytest.raises(SceneError, match="cannot be read"):
        predict(scene, tmp_path / "m.tif", model=one_hot(), tile_size=64, overlap=16)
    assert files(tmp_path) == before
    assert threading.active_count() == threads


def test_outputs_appear_together_or_not_at_all(make_raster, tmp_path):
    scene = make_raster()
    before = files(tmp_path)

    def obstruct(done, tiles):
        (tmp_path / "m.tif").mkdir(exist_ok=True)  # in the way of the map, which comes last

    with pytest.raises(OutputError, match=r"m\.tif"):
        predict(
            scene,
            tmp_path / "m.tif",
            model=one_hot(),
            progress=obstruct,
            confidence=tmp_path / "c.tif",
            preview=tmp_path / "p.png",
        )
    (tmp_path / "m.tif").rmdir()
    assert files(tmp_path) == before


@pytest.mark.parametrize("failing", ["labels", "confidence"])
def test_a_failed_output_leaves_all_old_ones(make_raster, tmp_path, monkeypatch, failing):
    scene = make_raster()
    outputs = {"labels": tmp_path / "m.tif", "confidence": tmp_path / "c.tif"}
    for path in outputs.values():
        path.write_text(f"old {path.name}")
        Path(f"{path}.aux.xml").write_text("old names")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    finish = RasterWriter.finish

    def fail(writer, *more):
        finish(writer, *more)
        if writer.path == outputs[failing]:
            raise OutputError("disk full")

    monkeypatch.setattr(RasterWriter, "finish", fail)
    with pytest.raises(OutputError, match="disk full"):
        predict(scene, outputs["labels"], model=one_hot(), confidence=outputs["confidence"], overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_vrt_is_made_of_is_never_replaced(make_raster, tmp_path, nested):
    import rasterio.shutil

    scene, mosaic = make_raster(), tmp_path / "mosaic.vrt"
    rasterio.shutil.copy(str(scene), str(mosaic), driver="VRT")
    if nested:
        rasterio.shutil.copy(str(mosaic), str(tmp_path / "outer.vrt"), driver="VRT")
        mosaic = tmp_path / "outer.vrt"
    before = scene.read_bytes()
    with pytest.raises(OutputError, match="is the input itself, or a part of it"):
        predict(mosaic, scene, model=one_hot(), overwrite=True)
    assert scene.read_bytes() == before


def test_overwrite_replaces(make_raster, tmp_path):
    array = values((40, 40))
    scene, output = make_raster(array=array), tmp_path / "m.tif"
    output.write_text("old")
    predict(scene, output, model=one_hot(), overwrite=True)
    np.testing.assert_array_equal(read(output)[0], array[0])


def test_an_unknown_model_is_reported_before_the_scene_is_read(tmp_path):
    with pytest.raises(ModelError, match="no-such-model"):
        predict(tmp_path / "none.tif", tmp_path / "m.tif", model="no-such-model")


def test_a_result_goes_into_json(make_raster, tmp_path):
    import json

    result = predict(make_raster(array=values((40, 40))), tmp_path / "m.tif", model=one_hot())
    reported = json.loads(json.dumps(result.as_dict()))
    assert reported["paths"] == {"labels": str(tmp_path / "m.tif")}
    assert reported["classes"]["class 0"].keys() == {"pixels", "share", "area_m2"}
    assert reported["pixels"] == 1600
    assert reported["seconds"] > 0
