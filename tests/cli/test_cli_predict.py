"""`rsseg predict`: what a user types and reads."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.cli.predict import default_output
from rsseg_cli.cli.tables import area_texts
from rsseg_cli.config import PredictConfig
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--tile-size", "64", "--overlap", "16")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    external = ModelSpec.for_network(classes=["roof", "road", "tree"])
    spec = ModelSpec(name="tiny", architecture="bicor-seg", classes=external.classes, network=asdict(config))
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors", BicorSeg(config), spec)


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_a_map_is_written_beside_the_scene_and_reported(make_raster, model_file, tmp_path):
    scene = make_raster(shape=(70, 90))
    done = run(scene, "--model", model_file, *SMALL)
    assert done.exit_code == 0, done.stderr
    target = tmp_path / "scene_tiny.tif"
    lines = done.stdout.splitlines()
    assert lines[0] == str(target)
    assert re.fullmatch(r"  roof +\d+\.\d\d% +\d+(\.\d\d)? m2", lines[1])
    assert "6300 px, 0.0% without data, in " in lines[-1]
    assert done.stderr == ""  # no terminal, no bar
    with rasterio.open(target) as dataset:
        assert dataset.shape == (70, 90)
        assert dataset.colormap(1)[0] != dataset.colormap(1)[1]


def test_all_outputs_as_json(make_raster, model_file, tmp_path):
    outputs = {
        "labels": "m.tif",
        "confidence": "c.tif",
        "probabilities": "p.tif",
        "heatmaps": "h.tif",
        "preview": "v.png",
    }
    options = [
        part for kind, name in outputs.items() if kind != "labels" for part in (f"--{kind}", tmp_path / name)
    ]
    scene = make_raster(shape=(70, 90), kind="alpha")
    done = run(scene, "-o", tmp_path / "m.tif", "--model", model_file, *SMALL, *options, "--json")
    assert done.exit_code == 0, done.stderr
    reported = json.loads(done.stdout)
    assert reported["paths"] == {kind: str(tmp_path / name) for kind, name in outputs.items()}
    assert reported["valid_pixels"] == 70 * 90 - 15 * 25
    assert [*reported["classes"]] == ["roof", "road", "tree"]
    assert all(Path(path).is_file() for path in reported["paths"].values())


def test_bands_box_and_creation_options(make_raster, model_file, tmp_path):
    scene = make_raster(bands=5, shape=(70, 90))
    box = ("--bbox", "500010", "4999970", "500040", "4999990")
    more = ("-b", "5,1,2", "--co", "compress=ZSTD", "--co", "LEVEL=3", "--nodata", "-1")
    done = run(scene, "-o", tmp_path / "m.tif", "--model", model_file, *SMALL, *box, *more)
    assert done.exit_code == 0, done.stderr
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.bounds == (500010, 4999970, 500040, 4999990)
        assert dataset.compression.name == "zstd"
        assert json.loads(dataset.tags()["RSSEG_SETTINGS"])["bands"] == [5, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--overlap", "300"], 2, "rsseg: error: --overlap 300: needs 0 to half the tile, 256 px"),
        (["--bidx", "1,two"], 2, "--bidx 1,two: needs whole numbers with commas between, as 4,3,2"),
        (["--co", "ZSTD"], 2, "needs KEY=VALUE"),
        (["--batch-size", "many"], 2, "--batch-size many: needs a whole number or auto"),
        (["--tta", "turn"], 2, "--tta"),
        (["--bbox", "0", "0", "1", "1"], 2, "lies outside the scene"),
        (["--device", "cuda:77"], 2, "rsseg: error: --device cuda:77"),
        (["--bidx", "1,2"], 2, "the model needs 3 (red, green, blue)"),
        (["-o", "{folder}/none/m.tif"], 1, "its folder does not exist"),
        (["--model", "atlantis"], 1, "rsseg: error: model 'atlantis': neither a file nor a bundled model"),
    ],
)
def test_errors_say_what_is_needed(make_raster, model_file, tmp_path, arguments, code, message):
    scene = make_raster()
    before = sorted(tmp_path.iterdir())
    given = [argument.format(folder=tmp_path) for argument in arguments]
    done = run(scene, *([] if "--model" in given else ["--model", model_file]), *given)
    assert done.exit_code == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_one_scene_in_a_folder_is_a_batch_and_a_file_name_is_not(make_raster, model_file, tmp_path):
    scene = make_raster(shape=(70, 90))
    one = run(scene, "-o", tmp_path / "map.tif", "--model", model_file, *SMALL, "--resume")
    assert one.exit_code == 0, one.stderr
    assert not list(tmp_path.rglob("manifest.jsonl"))
    many = run(scene, "-o", tmp_path / "maps", "--model", model_file, *SMALL)
    assert many.exit_code == 0, many.stderr
    assert (tmp_path / "maps" / "manifest.jsonl").is_file()
    with (
        rasterio.open(tmp_path / "map.tif") as own,
        rasterio.open(tmp_path / "maps" / "scene_tiny.tif") as other,
    ):
        assert np.array_equal(own.read(), other.read())


def test_a_missing_scene_is_an_error(model_file, tmp_path):
    done = run(tmp_path / "none.tif", "--model", model_file)
    assert done.exit_code == 1
    assert "none.tif" in done.stderr


def test_notes_go_to_stderr_unless_quiet(make_raster, model_file):
    scene = make_raster()
    loud = run(scene, "--model", model_file, "--gsd", "1", *SMALL, "--json")
    assert "rsseg: warning: " in loud.stderr
    assert "read at the asked 1 m" in loud.stderr
    assert json.loads(loud.stdout)["notes"]
    quiet = run(scene, "--model", model_file, "--gsd", "1", *SMALL, "--overwrite", "--quiet")
    assert quiet.exit_code == 0
    assert quiet.stderr == ""
    assert quiet.stdout


def test_names_of_outputs_that_were_not_given():
    assert default_output("/data/north.sheet.tif", "landcover") == Path("/data/north.sheet_landcover.tif")
    assert default_output("sheet.vrt", "buildings") == Path("sheet_buildings.tif")
    assert default_output("s3://bucket/a/sheet.tif", "landcover") == Path("sheet_landcover.tif")
    assert default_output("/vsicurl/https://x.org/a.tif?key=1/2", "landcover") == Path("a_landcover.tif")


def test_help_tells_units_defaults_and_an_example():
    shown = " ".join(run("--help").stdout.split())
    assert "Example: rsseg predict scene.tif" in shown
    for words in ("px: a multiple of 32", "metres a pixel", f"[default: {PredictConfig().tile_size}]"):
        assert words in shown


def test_an_interrupt_leaves_nothing_and_exits_with_130(make_raster, model_file, heed_interrupts, tmp_path):
    array = np.zeros((3, 6000, 3000), np.uint8)
    scene = make_raster(array=array, compress="deflate")
    command = [sys.executable, "-m", "rsseg_cli", "predict", str(scene), "--model", str(model_file), *SMALL]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".scene_tiny.tif.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip().endswith("rsseg: interrupted")
    assert stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize(
    ("areas_m2", "texts"),
    [
        ([0.0, 65.16, 9_000.0], ["0.00 m2", "65.16 m2", "9000.00 m2"]),
        ([65.16, 22_500.0], ["0.01 ha", "2.25 ha"]),
        ([2_000.0, 12.5e6, 900_000.0, 0.0], ["<0.01 km2", "12.50 km2", "0.90 km2", "0.00 km2"]),
        ([], []),
    ],
)
def test_areas_have_one_unit(areas_m2: list[float], texts: list[str]) -> None:
    assert area_texts(areas_m2) == texts
