"""`rsseg train idgbr` from the command line: whole runs on drawn sheets, messages, help."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.cli.train import train_idgbr
from rsseg_cli.training import resolve_refiner_settings
from rsseg_cli.weights import load_model

SMALL = (
    "--classes dark,bright --val v* --encoder test_efficientnet --encoder-weights none --widths 16,16,16 "
    "--codec-channels 8 --window-px 16 --crop-size 64 --tile-size 64 --batch-size 2 --crops-per-epoch 8 "
    "--epochs 1 --codec-epochs 1 --band-m 0.5 --device cpu"
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def sheets(tmp_path):
    """Two sheets of bright squares on dark ground, one of them for validation, and coarse maps of both."""
    for folder in ("images", "masks", "maps"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for place, name in enumerate(("t1", "v1")):
        labels = np.kron(rng.integers(0, 2, (6, 6)), np.ones((16, 16))).astype(np.uint8)
        labels[0, :2] = 0, 1
        write(tmp_path / "images" / f"{name}.tif", np.repeat(labels[None] * 150 + 40, 3, 0), place)
        write(tmp_path / "masks" / f"{name}.tif", labels[None], place)
        write(tmp_path / "maps" / f"{name}.tif", np.roll(labels, 2, axis=1)[None], place)
    return tmp_path


def write(path: Path, array, place):
    count, height, width = array.shape
    transform = from_origin(500000 + 1000 * place, 5000000, 0.1, 0.1)
    profile = {"count": count, "height": height, "width": width, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **profile) as written:
        written.write(array.astype(np.uint8))


def rsseg(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, f"{result.output} {result.exception!r}"
    return result


def train(sheets, *more, code=0):
    return rsseg("train", "idgbr", "--data", sheets, *SMALL.split(), *more, code=code)


def test_from_maps_to_a_refiner(sheets):
    output, run = sheets / "r.safetensors", sheets / "run"
    done = train(sheets, "--coarse", sheets / "maps", "--behind", "roofs", "--run-dir", run, "-o", output)
    assert re.search(r"^epoch 1/1  loss \d\.\d+  val codec loss \d\.\d+  ETA 0:00$", done.stderr, re.M)
    scores = r"Boundary IoU 3 px 0\.\d+ -> 0\.\d+, mIoU 0\.\d+ -> 0\.\d+"
    assert re.search(rf"^epoch 1/1  loss \d\.\d+  val {scores}  ETA 0:00$", done.stderr, re.M)
    assert re.search(r"validation Boundary IoU at 3 px .* at epoch 1 of 1", done.stdout)
    model = load_model(output)
    spec = model.spec
    assert (spec.architecture, spec.class_names, spec.bands) == (
        "idgbr-lite", ("dark", "bright"), ("red", "green", "blue"),
    )  # fmt: skip
    assert spec.gsd_m == pytest.approx(0.1, rel=0.01)
    assert spec.gsd_range_m[0] < spec.gsd_m < spec.gsd_range_m[1]
    assert spec.refinement == {"steps": 4, "band_m": 0.5, "model": "roofs"}
    val = spec.scores["val"]
    assert {"boundary_iou", "coarse_boundary_iou", "miou", "coarse_miou", "codec_loss", "steps"} <= set(val)
    assert val["steps"] == 8
    noise = torch.zeros(1, model.network.latent_channels, 16, 16)
    logits = model.network(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8), noise)
    assert logits.shape == (1, 2, 64, 64)
    assert not list(run.glob("scenes*"))
    saved = resolve_refiner_settings(config=run / "settings.toml")
    assert (saved.network.widths, saved.refining.band_m) == ((16, 16, 16), 0.5)
    card = output.with_suffix(".md").read_text()
    command = f"rsseg train idgbr --output {output} --coarse {sheets / 'maps'} --behind roofs"
    for words in (
        "An IDGBR refiner.",
        "rsseg refine",
        "for maps of roofs",
        "Best Boundary IoU at 3 px",
        command,
    ):
        assert words in card

    error = train(
        sheets, "--coarse", sheets / "maps", "--run-dir", run, "-o", sheets / "x.safetensors", code=2
    )
    assert "holds a run already; pass --resume" in error.stderr
    again = sheets / "again.safetensors"
    rsseg(
        "train", "idgbr", "--data", sheets, "--val", "v*", "--classes", "dark,bright", "--config",
        run / "settings.toml", "--coarse", sheets / "maps", "--device", "cpu", "--quiet", "--run-dir",
        sheets / "again", "-o", again,
    )  # fmt: skip
    expected = model.network.state_dict()
    for key, value in load_model(again).network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_stage_by_stage_and_fine_tuning(sheets):
    """The first stage needs no coarse maps; the second starts from its file and leaves its encoding alone."""
    first, second = sheets / "codec.safetensors", sheets / "r.safetensors"
    done = train(sheets, "--stage", "codec", "--run-dir", sheets / "a", "-o", first)
    assert "validation codec loss" in done.stdout
    assert not (sheets / "a" / "refiner").exists()
    rsseg(
        "train", "idgbr", "--data", sheets, "--val", "v*", "--init", first, "--stage", "refiner", "--coarse",
        sheets / "maps" / "*.tif", "--crop-size", 64, "--tile-size", 64, "--batch-size", 2, "--quiet",
        "--crops-per-epoch", 4, "--epochs", 1, "--device", "cpu", "--run-dir", sheets / "b", "-o", second,
    )  # fmt: skip
    before, after = (load_model(path).network.state_dict() for path in (first, second))
    kept = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert {"codec.table", "codec.fold.weight"} <= kept
    assert any(key.startswith("denoiser.") for key in after.keys() - kept)
    error = train(sheets, "--init", first, "--coarse", "buildings", "-o", sheets / "x.safetensors", code=2)
    assert re.search(r"--\S+ with --init: the sizes are those of", error.stderr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no coarse maps: pass --coarse MODEL"),
        ("--coarse nowhere", "--coarse nowhere: no rasters there"),
        ("--coarse {0}/maps/t1.tif", "no coarse map of v1"),
        (
            "--coarse {0}/maps --widths 16,x",
            "--widths 16,x: needs whole numbers with commas between, as 32,64,128",
        ),
        ("--coarse {0}/maps --widths 17,16,16", "three multiples of 16"),
        ("--coarse {0}/maps --crop-size 96", "--crop-size 96"),
        ("--coarse {0}/maps --degrade 2", "--degrade 2"),
        ("--coarse {0}/maps --sd {0}", "--sd"),
        ("--coarse {0}/maps --closer-maps {0}/maps", "needs --closer MODEL"),
        ("--coarse {0}/maps --closer landcover", "--closer landcover: bicor-seg of"),
        ("--coarse {0}/maps --stage refiner", "--stage refiner: needs a trained codec"),
    ],
)
def test_errors_come_before_training(words, message, sheets):
    output = sheets / "r.safetensors"
    given, run = words.format(sheets).split(), f"--run-dir {sheets / 'run'}"
    result = CliRunner().invoke(
        app,
        ["train", "idgbr", "--data", str(sheets), *SMALL.split(), *given, *run.split(), "-o", str(output)],
    )
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not output.exists()
    assert not list((sheets / "run").glob("*/last.ckpt"))


def test_every_setting_is_an_option():
    options = set(inspect.signature(train_idgbr).parameters) | {"learning_rate", "codec_rate"}
    settings = resolve_refiner_settings().values()
    assert {key for section in settings.values() for key in section} <= options


def test_help_fits_a_terminal():
    text = CliRunner().invoke(app, ["train", "idgbr", "--help"], env={"COLUMNS": "80"}).output
    assert max(map(len, text.splitlines())) <= 80
    assert "Example: rsseg train idgbr" in text
