"""`rsseg refine`, `rsseg predict --refine` and `rsseg eval --refine`: what a user types and reads."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import rasterio
import torch
from shared_scenes import save_models
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
NAMES = ("roof", "road", "tree")
SMALL = ("--tile-size", "64", "--overlap", "16")


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """A model, and the refiner that it names beside it."""
    return save_models(tmp_path_factory.mktemp("models"))


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_map_is_refined_in_a_second_command_or_in_the_first(make_raster, model_files, tmp_path):
    scene = make_raster(shape=(100, 130))
    model, refiner = model_files
    done = run("predict", scene, "-o", tmp_path / "map.tif", "--model", model, *SMALL)
    assert done.exit_code == 0, done.stderr
    done = run(
        "refine", scene, tmp_path / "map.tif", "-o", tmp_path / "r.tif", "--refiner", refiner,
        "--tile-size", 64, "--json", "--uncertainty", tmp_path / "u.tif", "--preview", tmp_path / "p.png",
        "--seed", 5, "--ensemble", 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    reported = json.loads(done.stdout)
    assert reported["paths"].keys() == {"labels", "uncertainty", "preview"}
    assert reported["refined"]["refiner"] == "tiny-refiner"
    assert (reported["refined"]["band_m"], reported["refined"]["seed"], reported["refined"]["ensemble"]) == (
        2.0,
        5,
        2,
    )
    assert 0 < reported["refined"]["windows_run"] <= reported["refined"]["windows"]
    assert (
        reported["refined"]["changed_pixels"]
        == (read(tmp_path / "map.tif") != read(tmp_path / "r.tif")).sum()
        > 0
    )
    files = {path.name for path in tmp_path.iterdir()}
    both = run(
        "predict", scene, "-o", tmp_path / "both.tif", "--model", model, *SMALL, "--refine", "--seed", 5,
        "--ensemble", 2, "--uncertainty", tmp_path / "both_u.tif",
    )  # fmt: skip
    assert both.exit_code == 0, both.stderr
    assert "refined by tiny-refiner: " in both.stdout.splitlines()[-1]
    np.testing.assert_array_equal(read(tmp_path / "both.tif"), read(tmp_path / "r.tif"))
    np.testing.assert_array_equal(read(tmp_path / "both_u.tif"), read(tmp_path / "u.tif"))
    new = {"both.qml", "both.tif", "both.tif.aux.xml", "both_u.qml", "both_u.tif"}
    assert {path.name for path in tmp_path.iterdir()} == files | new  # the coarse map is gone
    with rasterio.open(tmp_path / "both.tif") as dataset:
        assert dataset.tags()["RSSEG_REFINER"] == "tiny-refiner"
        assert json.loads(dataset.tags()["RSSEG_REFINE_SETTINGS"])["seed"] == 5
        assert dataset.tags()["CLASS_2"] == "tree"


def test_all_outputs_are_of_the_refined_map(make_raster, model_files, tmp_path):
    import geopandas

    scene = make_raster(shape=(100, 130), kind="alpha")
    names = {
        "confidence": "c.tif",
        "probabilities": "p.tif",
        "heatmaps": "h.tif",
        "preview": "v.png",
        "vector": "v.gpkg",
    }
    options = [part for kind, name in names.items() for part in (f"--{kind}", tmp_path / name)]
    done = run(
        "predict",
        scene,
        "-o",
        tmp_path / "m.tif",
        "--model",
        model_files[0],
        *SMALL,
        *options,
        "--refine",
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    reported = json.loads(done.stdout)
    labels, shares = read(tmp_path / "m.tif")[0], read(tmp_path / "p.tif")
    valid = labels != 255
    assert (~valid).sum() == 15 * 25
    np.testing.assert_array_equal((shares == 255).all(0), ~valid)
    np.testing.assert_array_equal(read(tmp_path / "c.tif")[0], shares.max(0))
    chosen = np.take_along_axis(shares, np.where(valid, labels, 0)[None], 0)[0]
    np.testing.assert_array_equal(chosen[valid], shares.max(0)[valid])
    assert [item["pixels"] for item in reported["classes"].values()] == np.bincount(
        labels[valid], minlength=3
    ).tolist()
    polygons = geopandas.read_file(tmp_path / "v.gpkg")
    assert polygons.area.sum() == pytest.approx(valid.sum() * 0.25, rel=1e-3)
    plain = run(
        "predict",
        scene,
        "-o",
        tmp_path / "n.tif",
        "--model",
        model_files[0],
        *SMALL,
        "--heatmaps",
        tmp_path / "i.tif",
    )
    assert plain.exit_code == 0, plain.stderr
    np.testing.assert_array_equal(read(tmp_path / "h.tif"), read(tmp_path / "i.tif"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ensemble", "0"], 2, "--ensemble 0: needs 1 to 256"),
        (["--band-m", "-1"], 2, "rsseg: error: --band-m -1.0: needs metres above 0"),
        (["--steps", "0"], 2, "--steps 0: needs 1 to 1000"),
        (["--overlap", "300"], 2, "--overlap 300: needs 0 to half the tile, 256 px"),
        (["--bbox", "0", "0", "1", "1"], 2, "lies outside the scene"),
        (["--refiner", "atlantis"], 1, "model 'atlantis': neither a file nor"),
        (["--refiner", "{model}"], 1, "model 'tiny' makes maps and refines none"),
        (["-o", "{folder}/none/m.tif"], 1, "its folder does not exist"),
        (["--ensemble", "1", "--uncertainty", "{folder}/u.tif"], 2, "needs --ensemble 2 or more"),
    ],
)
def test_errors_say_what_is_needed(make_raster, model_files, tmp_path, arguments, code, message):
    scene, labels = make_raster(), make_raster("labels.tif", array=np.zeros((1, 60, 80), np.uint8))
    before = sorted(tmp_path.iterdir())
    given = [argument.format(folder=tmp_path, model=model_files[0]) for argument in arguments]
    own = ([] if "--refiner" in given else ["--refiner", model_files[1]]) + (
        [] if "-o" in given else ["-o", tmp_path / "r.tif"]
    )
    done = run("refine", scene, labels, *own, *given)
    assert done.exit_code == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_refining_need_it(make_raster, model_files, tmp_path):
    done = run("predict", make_raster(), "--model", model_files[0], "--steps", 3)
    assert done.exit_code == 2
    assert "options about refining need --refine" in " ".join(done.stderr.split())
    plain = save_model(
        tmp_path / "alone.safetensors",
        BicorSeg(config := BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)),
        ModelSpec(
            name="alone",
            architecture="bicor-seg",
            classes=ModelSpec.for_network(classes=NAMES).classes,
            network=asdict(config),
        ),
    )
    before = sorted(tmp_path.iterdir())
    done = run("predict", tmp_path / "scene.tif", "--model", plain, "--refine")
    assert done.exit_code == 1
    assert "model 'alone' has no refiner of its own; pass --refiner NAME or PATH" in " ".join(
        done.stderr.split()
    )
    assert sorted(tmp_path.iterdir()) == before


def test_refined_maps_are_scored_against_those_before(make_raster, model_files, tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index, name in enumerate(("north", "south")):
        make_raster(f"images/{name}.tif", shape=(70, 90), seed=index)
        labels = np.random.default_rng(index).integers(0, 3, (1, 70, 90)).astype(np.uint8)
        make_raster(f"masks/{name}.tif", array=labels)
    given = ("eval", "--model", model_files[0], "--data", tmp_path, *SMALL, "--device", "cpu")
    done = run(*given, "--refine", "--json")
    assert done.exit_code == 0, done.stderr
    reported, plain = json.loads(done.stdout), json.loads(run(*given, "--json", "--quiet").stdout)
    assert (reported["against"]["first"], reported["against"]["second"]) == ("tiny, refined", "tiny")
    assert reported["pixels"] == plain["pixels"]
    assert reported["miou"] != plain["miou"]
    assert "tiny, refined, 1 of 2: " in done.stderr
    assert "tiny, 2 of 2: " in done.stderr
    assert run(*given, "--steps", 2).exit_code == 2
