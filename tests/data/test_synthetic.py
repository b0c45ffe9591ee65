"""Drawn scenes: the same every time, labels that are exact, files that others can read."""

from __future__ import annotations

import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import rasterio
from scipy import ndimage
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.data.synthetic.plan import SUBJECT_M
from rsseg_cli.data.synthetic.render import Renderer
from rsseg_cli.data.synthetic.scene import CLASSES, draw_scene, write_scene
from rsseg_cli.data.synthetic.style import PLACES, STYLES, make_style
from rsseg_cli.errors import OutputError, UsageError

BUILDING, LAND, ROAD, VEGETATION, WATER = range(5)
NODATA = 255


@pytest.fixture(scope="module")
def demo():
    return draw_scene(1024, 0, 0.6)  # the ground of the demonstration scene, at half its resolution


def test_the_demonstration_shows_all_classes(demo):
    image, labels = demo
    assert image.shape == (3, 1024, 1024)
    assert image.dtype == labels.dtype == np.uint8
    shares = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert len(shares) == len(CLASSES)
    assert (shares > 0.07).all(), shares


def test_materials_have_their_colours(demo):
    image, labels = demo
    red, green, blue = (np.array([np.median(band[labels == k]) for k in range(5)]) for band in image)
    assert green[VEGETATION] > red[VEGETATION] > blue[VEGETATION]
    assert blue[WATER] > red[WATER]
    assert red[LAND] > green[LAND] > blue[LAND]
    assert np.ptp([red[ROAD], green[ROAD], blue[ROAD]]) < 12
    assert 60 < image.mean() < 150
    assert (image == 255).mean() < 0.01


@pytest.mark.parametrize("seed", [0, 3])
def test_the_same_arguments_give_the_same_pixels(seed):
    first, second = draw_scene(96, seed, 0.4), draw_scene(96, seed, 0.4)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_seeds_differ_in_place_light_and_colour():
    styles = [make_style(seed) for seed in range(1, 60)]
    assert {style.name for style in styles} == set(PLACES)
    assert (
        len({style.sun_azimuth for style in styles}) == len({style.soil for style in styles}) == len(styles)
    )
    images = [draw_scene(64, seed, 1.0)[0] for seed in (1, 2)]
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5


@pytest.mark.parametrize("seed", [0, 2])
def test_roofs_end_in_the_image_where_they_end_in_the_labels(seed):
    image, labels = draw_scene(1024, seed, 0.3)
    contrast = np.abs(np.diff(image.astype(np.float32), axis=2)).mean(0)  # between column c and c + 1
    edges = (labels == BUILDING)[:, 1:] != (labels == BUILDING)[:, :-1]
    edges[:, :8] = edges[:, -8:] = False
    assert edges.sum() > 1000
    rows, cols = np.nonzero(edges)
    profile = {shift: contrast[rows, cols + shift].mean() for shift in range(-4, 5)}
    assert max(profile, key=profile.get) == 0, profile
    assert profile[0] > 2 * max(profile[-3], profile[3]), profile


def test_a_larger_scene_shows_more_of_the_same_place():
    small, large = draw_scene(128, 5, 0.5), draw_scene(256, 5, 0.5)
    assert (small[1] == large[1][:128, :128]).mean() > 0.998
    assert np.abs(small[0].astype(int) - large[0][:, :128, :128]).mean() < 4  # the sensor's noise differs


def test_another_resolution_shows_the_same_ground():
    fine, coarse = draw_scene(512, 2, 0.3)[1], draw_scene(256, 2, 0.6)[1]
    assert (fine[1::2, 1::2] == coarse).mean() > 0.93


def test_blocks_join_without_a_seam():
    whole, renderer = draw_scene(200, 0, 0.6), Renderer(0, 0.6)
    blocks = [[renderer.draw(col, row, 100, 100) for col in (0, 100)] for row in (0, 100)]
    image, labels = (np.block([[block[k] for block in line] for line in blocks]) for k in (0, 1))
    assert (labels == whole[1]).mean() > 0.998
    assert np.abs(image.astype(int) - whole[0])[:, 95:105].mean() < 4
    assert np.abs(image.astype(int) - whole[0])[:, :, 95:105].mean() < 4


@pytest.mark.parametrize("gsd_m", [0.1, 1.5])
@pytest.mark.parametrize("seed", [4, 7, 8])
def test_every_resolution_draws(seed, gsd_m):
    image, labels = draw_scene(65, seed, gsd_m)
    assert image.shape == (3, 65, 65)
    assert labels.max() < len(CLASSES)


@pytest.mark.parametrize(
    ("size", "seed", "gsd_m", "message"),
    [
        (63, 0, 0.3, "64 to 20000 px"),
        (20_001, 0, 0.3, "size 20001 px"),
        (64, -1, 0.3, "seed -1"),
        (64, 0, 0.05, "needs 0.1 to 1.5 m"),
        (64, 0, float("nan"), "needs 0.1 to 1.5 m"),
    ],
)
def test_arguments_outside_their_range_are_refused(size, seed, gsd_m, message):
    with pytest.raises(UsageError, match=message):
        draw_scene(size, seed, gsd_m)


def test_files_are_georeferenced_tiled_and_say_what_they_hold(tmp_path):
    scene, truth = tmp_path / "scene.tif", tmp_path / "labels.tif"
    write_scene(scene, size=600, seed=1, gsd_m=0.5, labels_path=truth)
    image, labels = draw_scene(600, 1, 0.5)
    with rasterio.open(scene) as a, rasterio.open(truth) as b:
        assert np.array_equal(a.read(), image)
        assert np.array_equal(b.read(1), labels)
        assert a.crs == b.crs == rasterio.CRS.from_epsg(32632)
        assert a.transform == b.transform
        assert a.res == (0.5, 0.5)
        assert 166_000 < a.bounds.left < a.bounds.right < 834_000
        assert a.profile["tiled"]
        assert b.profile["tiled"]
        assert a.overviews(1) == b.overviews(1) == [2]
        assert a.nodata is None
        assert b.nodata == NODATA
        assert a.descriptions == tuple(kind.name for kind in a.colorinterp) == ("red", "green", "blue")
        assert [b.colormap(1)[k][:3] for k in range(5)] == [colour for _, colour in CLASSES]
        assert set(np.unique(b.read(1, out_shape=(300, 300)))) <= set(range(5))
    beside = ["labels.qml", "labels.tif", "labels.tif.aux.xml", "scene.tif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == beside


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="gdalinfo is not installed")
def test_gdalinfo_reads_the_labels(tmp_path):
    truth = tmp_path / "labels.tif"
    write_scene(tmp_path / "scene.tif", size=64, labels_path=truth)
    told = subprocess.run(
        ["gdalinfo", "-json", str(truth)], capture_output=True, text=True, check=True
    ).stdout
    info = json.loads(told)
    assert info["size"] == [64, 64]
    assert "UTM zone 32N" in info["coordinateSystem"]["wkt"]
    (band,) = info["bands"]
    assert band["noDataValue"] == NODATA
    assert band["colorInterpretation"] == "Palette"
    plain = subprocess.run(["gdalinfo", str(truth)], capture_output=True, text=True, check=True).stdout
    assert all(f"{k}: {name}" in plain for k, (name, _) in enumerate(CLASSES))


def test_nothing_is_overwritten_unasked(tmp_path):
    scene, truth = tmp_path / "scene.tif", tmp_path / "labels.tif"
    truth.write_text("mine")
    with pytest.raises(OutputError, match=r"labels\.tif: exists. Pass --overwrite"):
        write_scene(scene, size=64, labels_path=truth)
    assert truth.read_text() == "mine"
    assert not scene.exists()
    write_scene(scene, size=64, labels_path=truth, overwrite=True)
    with rasterio.open(truth) as raster:
        assert raster.shape == (64, 64)


def test_a_failure_leaves_nothing_behind(small_disk):
    folder = small_disk(300_000)
    with pytest.raises(OutputError, match="Is the disk full"):
        write_scene(folder / "scene.tif", size=1024, labels_path=folder / "labels.tif")
    assert list(folder.iterdir()) == []


def test_same_name_and_missing_folder_are_refused(tmp_path):
    with pytest.raises(OutputError, match="same file"):
        write_scene(tmp_path / "a.tif", size=64, labels_path=tmp_path / "a.tif")
    with pytest.raises(OutputError, match="does not exist"):
        write_scene(tmp_path / "none" / "a.tif", size=64)


def test_command_writes_both_files_and_names_them(tmp_path):
    scene, truth = tmp_path / "s.tif", tmp_path / "l.tif"
    options = [
        "demo-scene",
        str(scene),
        "--size",
        "64",
        "--seed",
        "2",
        "--gsd",
        "0.5",
        "--labels",
        str(truth),
    ]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(scene), str(truth)]
    with rasterio.open(scene) as raster:
        assert raster.res == (0.5, 0.5)
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 1
    assert "exists. Pass --overwrite" in again.stderr
    assert CliRunner().invoke(app, [*options, "--overwrite"]).exit_code == 0


def test_command_says_its_bounds(tmp_path):
    result = CliRunner().invoke(app, ["demo-scene", str(tmp_path / "s.tif"), "--size", "30000"])
    assert result.exit_code == 2
    assert "size 30000 px" in result.stderr
    shown = CliRunner().invoke(app, ["demo-scene", "--help"], terminal_width=200).output
    assert "Example: rsseg demo-scene" in shown
    assert "64 to 20000" in shown


# Styles on demand


def shares_of(style: str, seed: int = 1, gsd_m: float = 0.5) -> np.ndarray:
    _, labels = draw_scene(384, seed, gsd_m, style)
    return np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size


def test_any_style_draws_all_of_them_in_wider_light():
    styles = [make_style(seed, "any") for seed in range(300)]
    assert {style.name for style in styles} == set(STYLES)
    assert min(style.sun_elevation for style in styles) < np.radians(20)
    assert max(style.haze for style in styles) > 0.2
    assert max(style.lean for style in styles) > 0.3
    assert all(style.lean == 0 for style in map(make_style, range(1, 40)))


@pytest.mark.parametrize(
    ("style", "label", "share"),
    [
        ("vineyards", VEGETATION, 0.2),
        ("greenhouses", BUILDING, 0.3),
        ("oldtown", BUILDING, 0.4),
        ("conifers", VEGETATION, 0.6),
        ("wetland", WATER, 0.2),
        ("lakeshore", WATER, 0.2),
        ("scrub", LAND, 0.6),
        ("snow", LAND, 0.15),
    ],
)
def test_styles_have_their_cover(style, label, share):
    assert np.median([shares_of(style, seed)[label] for seed in (1, 2, 3)]) > share


@pytest.mark.parametrize("style", STYLES)
def test_every_scene_shows_the_subject_of_its_style(style):
    for seed in range(10):
        plan = Renderer(seed, 1.0, style).plan
        if style in ("coast", "lakeshore"):
            x, y = np.mgrid[:150:10, :150:10].astype(float)
            assert 0.2 < (plan.shore_m(*plan.to_uv(x, y)) < 0).mean() < 0.8
            continue
        u, v = map(float, plan.to_uv(np.float64(SUBJECT_M), np.float64(SUBJECT_M)))
        i, j = (math.floor(at / size) for at, size in zip((u, v), plan.style.cell_m, strict=True))
        cells = [(i + down, j + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        (i, j) = next(cell for cell in cells if cell in plan.style.fixed_zones)
        assert plan.style.zone_of(i, j, False, plan.rng(0)) == plan.style.zones[0][0]
        assert not plan.is_river(i)
        for axis, at, index in ((0, u, i), (1, v, j)):
            assert plan.line(axis, index) + 45 < at < plan.line(axis, index + 1) - 45


def test_snow_covers_grass_and_is_land():
    image, labels = draw_scene(384, 2, 0.5, "snow")
    grey = image.mean(0)
    assert grey[labels == LAND].mean() > grey[labels == VEGETATION].mean() + 40


def test_a_lake_is_paler_where_it_is_shallow():
    image, labels = draw_scene(512, 3, 0.9, "lakeshore")
    grey, shore_px = image.mean(0), ndimage.distance_transform_edt(labels == WATER)
    near, far = (shore_px > 0) & (shore_px < 40), shore_px > 0.8 * shore_px.max()
    assert grey[near].mean() > grey[far].mean() + 10


def rows_scene(gsd_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a vineyard's parcel: what is neither road nor building."""
    image, labels = draw_scene(256, 5, gsd_m, "vineyards")
    inside = (labels == LAND) | (labels == VEGETATION)
    return image.mean(0)[inside], labels[inside]


def test_rows_of_vines_are_vegetation_and_the_soil_between_them_land():
    grey, labels = rows_scene(0.25)
    assert 0.2 < (labels == VEGETATION).mean() < 0.7
    assert grey[labels == LAND].mean() > grey[labels == VEGETATION].mean() + 5


def test_rows_too_close_to_see_are_vegetation():
    assert (rows_scene(1.2)[1] == VEGETATION).mean() > (rows_scene(0.25)[1] == VEGETATION).mean() + 0.1


def test_an_oblique_view_moves_roofs_and_shows_walls():
    seed = next(s for s in range(50) if make_style(s, "flatroofs").lean > 0.2)
    leaning = Renderer(seed, 0.5, "flatroofs")
    upright = Renderer(seed, 0.5, "flatroofs")
    upright.style.lean = 0.0
    seen, plan = leaning.draw(0, 0, 300, 300)[1], upright.draw(0, 0, 300, 300)[1]
    assert (seen == BUILDING).sum() > (plan == BUILDING).sum() * 1.02
    assert 0.02 < (seen != plan).mean() < 0.3


@pytest.mark.parametrize("style", ["vineyards", "flatroofs", "oldtown"])
def test_blocks_of_a_leaning_scene_join_without_a_seam(style):
    seed = next(s for s in range(50) if make_style(s, style).lean > 0.1)
    renderer = Renderer(seed, 0.6, style)
    _, whole = renderer.draw(0, 0, 200, 200)
    halves = [renderer.draw(col, 0, 100, 200)[1] for col in (0, 100)]
    assert (np.concatenate(halves, axis=1) == whole).mean() > 0.995


def test_unknown_style_is_refused():
    with pytest.raises(UsageError, match=r"style 'moon': needs one of classic, any, suburb"):
        draw_scene(64, 0, 0.3, "moon")


def test_command_draws_a_style_and_lists_them(tmp_path):
    scene = tmp_path / "s.tif"
    result = CliRunner().invoke(app, ["demo-scene", str(scene), "--size", "64", "--style", "snow"])
    assert result.exit_code == 0, result.output
    with rasterio.open(scene) as raster:
        assert np.array_equal(raster.read(), draw_scene(64, 0, 0.3, "snow")[0])
        assert raster.tags()["RSSEG_DRAWN"].endswith("style snow")
    shown = CliRunner().invoke(app, ["demo-scene", "--help"], terminal_width=250).output
    assert all(style in shown for style in STYLES)
