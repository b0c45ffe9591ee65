"""`rsseg eval`: what a user types and reads."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from fake_datasets import make_vaihingen
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, save_model

torch.set_num_threads(1)
NAMES = ("roof", "road", "tree")
SMALL = ("--tile-size", "64", "--overlap", "16", "--device", "cpu")


def save(folder, name, seed, classes=NAMES):
    torch.manual_seed(seed)
    config = BicorSegConfig(classes=len(classes), encoder="tf_efficientnet_lite0", channels=16)
    external = ModelSpec.for_network(classes=list(classes))
    spec = ModelSpec(name=name, architecture="bicor-seg", classes=external.classes, network=asdict(config))
    return save_model(folder / f"{name}.safetensors", BicorSeg(config), spec)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return save(folder, "tiny", 0), save(folder, "other", 1)


@pytest.fixture
def sheets(make_raster, tmp_path):
    """A folder of four sheets; a test part of two."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index, name in enumerate(("east", "north_1", "north_2", "west")):
        make_raster(f"images/{name}.tif", shape=(70, 90), seed=index)
        labels = np.random.default_rng(index).integers(0, 3, (1, 70, 90)).astype(np.uint8)
        labels[0, :10] = 255
        make_raster(f"masks/{name}.tif", array=labels)
    return tmp_path


def run(*arguments, command="eval"):
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def evaluate(model, sheets, *more):
    return run("--model", model, "--data", sheets, "--test", "north_*", *SMALL, *more)


def test_a_table_on_stdout_and_a_line_a_scene_on_stderr(models, sheets):
    done = evaluate(models[0], sheets)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["class", "IoU", "F1", "precision", "recall", "pixels"]
    assert [line.split()[0] for line in lines[1:5]] == [*NAMES, "mean"]
    assert "overall accuracy" in done.stdout
    assert "Boundary IoU" in done.stdout
    assert lines[-1] == "0.01 Mpx scored, 14.3% unlabelled"
    reported = [line for line in done.stderr.splitlines() if " of 2: " in line]
    assert re.fullmatch(r"rsseg: tiny, 1 of 2: north_1, 0.0 Mpx in \d+\.\d s", reported[0])
    assert "validation" not in done.stderr
    assert evaluate(models[0], sheets, "--quiet").stderr == ""


def test_the_same_scores_as_predict_and_score(models, sheets):
    done = run(
        "--model", models[0], "--data", sheets, "--test", "east", *SMALL, "--tta", "flip", "--json", "-q"
    )
    assert done.exit_code == 0, done.stderr
    scene, target = sheets / "images" / "east.tif", sheets / "map.tif"
    made = run(scene, "-o", target, "--model", models[0], *SMALL, "--tta", "flip", command="predict")
    assert made.exit_code == 0, made.stderr
    scored = run(target, sheets / "masks" / "east.tif", "--json", command="score")
    assert scored.exit_code == 0, scored.stderr
    assert json.loads(done.stdout).items() >= json.loads(scored.stdout).items()  # and its calibration


def test_json_holds_what_is_promised(models, sheets):
    done = evaluate(models[0], sheets, "--json", "--boundary-widths", "2,4")
    reported = json.loads(done.stdout, parse_constant=pytest.fail)
    assert {"miou", "mean_f1", "overall_accuracy", "kappa", "classes", "boundary"} <= reported.keys()
    assert reported["boundary"]["widths_px"] == [2, 4]
    assert reported["boundary"]["widths_m"] == pytest.approx([1, 2], rel=1e-3)
    assert "against" not in reported


def test_against_a_second_model(models, sheets):
    done = evaluate(models[0], sheets, "--against", models[1])
    assert done.exit_code == 0, done.stderr
    assert "warning: 2 tiles hold labels; under 20 the intervals are rough" in done.stderr
    assert re.search(r"tiny +other +difference +95% interval", done.stdout)
    assert re.search(r"IoU roof +0\.\d{3} +0\.\d{3} +[+-]0\.\d{3} +[+-]0\.\d{3} to [+-]0\.\d{3}", done.stdout)
    assert "rsseg: other, 2 of 2: north_2" in done.stderr
    reported = json.loads(evaluate(models[0], sheets, "--against", models[1], "--json").stdout)
    alone = json.loads(evaluate(models[1], sheets, "--json").stdout)
    assert reported["against"]["overall"][0]["second"] == pytest.approx(alone["miou"])
    assert reported["against"]["overall"][0]["first"] == pytest.approx(reported["miou"])


def test_a_report_is_written_once(models, sheets):
    target = sheets / "report"
    done = evaluate(models[0], sheets, "--report", target, "--against", models[1])
    assert done.exit_code == 0, done.stderr
    assert f"rsseg: report: {target / 'index.html'}" in done.stderr
    source = (target / "index.html").read_text(encoding="utf-8")
    assert source.count("data:image/jpeg") == source.count("data:image/png") / 2 > 0
    for words in ("tiny on ", "test part", "Against other", "64 px, 16 px shared"):
        assert words in source
    numbers = json.loads((target / "scores.json").read_text(encoding="utf-8"))
    assert {place["scene"] for place in numbers["worst_places"]} == {"north_1", "north_2"}
    again = evaluate(models[0], sheets, "--report", target)
    assert again.exit_code == 1
    assert "exists already; pass --overwrite" in again.stderr
    assert "1 of 2" not in again.stderr  # nothing was run
    assert evaluate(models[0], sheets, "--report", target, "--overwrite").exit_code == 0


def test_all_scenes_or_one_part(models, sheets):
    done = run("--model", models[0], "--data", sheets, "--split", "all", *SMALL)
    assert done.exit_code == 0, done.stderr
    assert "4 of 4: west" in done.stderr
    assert "validation" not in done.stderr
    part = run("--model", models[0], "--data", sheets, "--split", "val", "--val", "east", *SMALL)
    assert "1 of 1: east" in part.stderr


def test_published_data_sets_by_their_protocol(tmp_path):
    truth = make_vaihingen(tmp_path / "data")
    names = ("impervious surfaces", "building", "low vegetation", "tree", "car", "clutter")
    network = BicorSegConfig(classes=6, encoder="tf_efficientnet_lite0", channels=16)
    bands, classes = ("nir", "red", "green"), ModelSpec.for_network(classes=list(names)).classes
    spec = ModelSpec(
        name="irrg", architecture="bicor-seg", classes=classes, bands=bands, network=asdict(network)
    )
    model = save_model(tmp_path / "irrg.safetensors", BicorSeg(network), spec)
    command = ("--model", model, "--dataset", "vaihingen", "--root", tmp_path / "data", *SMALL, "--json")
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    reported = json.loads(done.stdout)
    assert " of 2: " in done.stderr  # the two test images
    assert "held out" not in done.stderr
    assert sorted(item["name"] for item in reported["classes"]) == sorted(names)
    counted = [
        item["iou"] for item in reported["classes"] if item["name"] != "clutter" and item["iou"] is not None
    ]
    assert reported["miou"] == pytest.approx(np.mean(counted))
    eroded = json.loads(run(*command, "--erode", "3").stdout)
    assert eroded["pixels"] < reported["pixels"] <= sum(labels.size for labels in truth.values())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "{sheets}", "--split", "test"], 1, "no scene in the part 'test'"),
        (["--data", "{sheets}", "--split", "all", "--classes", "roof,road,sea"], 1, "does not have: sea"),
        (["--data", "{sheets}", "--split", "all", "--boundary-widths", "1,two"], 2, "needs whole numbers"),
        (["--data", "{sheets}", "--split", "all", "--boundary-widths", "0"], 2, "--boundary-widths"),
        (["--data", "{sheets}", "--split", "all", "--erode", "-1"], 2, "--erode"),
        (["--data", "{sheets}", "--split", "all", "--against", "atlantis"], 1, "model 'atlantis'"),
        (["--data", "{sheets}", "--split", "all", "--report", "{sheets}/a/b"], 1, "does not exist"),
        (["--data", "{sheets}/none", "--split", "all"], 1, "none"),
        (["--data", "{sheets}", "--split", "all", "--tile-size", "50"], 2, "needs a multiple of 32"),
        ([], 2, "no data: pass --data"),
        (["--dataset", "loveda"], 2, "--root"),
    ],
)
def test_errors_say_what_is_needed(models, sheets, arguments, code, message):
    done = run("--model", models[0], *(argument.format(sheets=sheets) for argument in arguments))
    assert done.exit_code == code, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_help_tells_units_defaults_and_an_example():
    shown = " ".join(run("--help").stdout.split())
    for words in (
        "Example: rsseg eval --model landcover",
        "px of the scenes",
        "Default: test; all for a folder",
        "--against",
    ):
        assert words in shown


def test_a_folder_without_parts_is_scored_whole(models, sheets):
    everything = run("--model", models[0], "--data", sheets, "--split", "all", *SMALL, "--json", "-q")
    done = run("--model", models[0], "--data", sheets, *SMALL, "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(everything.stdout)
