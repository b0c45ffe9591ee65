"""`--stretch batch`: one range a band, taken over the pixels of all scenes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from batch_runs import pixels, records_of
from typer.testing import CliRunner

from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, save_model

SMALL = ("--tile-size", "64", "--overlap", "16", "--device", "cpu")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model that stretches what has more than 8 bits."""
    torch.manual_seed(0)
    config = BicorSegConfig(classes=3, encoder="tf_efficientnet_lite0", channels=16)
    external = ModelSpec.for_network(classes=["roof", "road", "tree"])
    spec = ModelSpec(
        name="tiny", architecture="bicor-seg", classes=external.classes, network=asdict(config),
        scaling="stretch",
    )  # fmt: skip
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors", BicorSeg(config), spec)


@pytest.fixture
def run(model_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        done = CliRunner().invoke(app, ["predict", *map(str, arguments), "--model", str(model_file), *SMALL])
        assert done.exit_code == 0, done.output
        return done

    return call


@pytest.fixture
def arrays(make_raster):
    """Scenes of one place in three lights, the first with a hole whose value is no pixel's."""
    rng = np.random.default_rng(0)
    made = {
        name: rng.integers(low, high, (3, 60, 80)).astype(np.uint16)
        for name, low, high in (("a.tif", 100, 900), ("b.tif", 500, 4000), ("c.tif", 2000, 9000))
    }
    make_raster("a.tif", array=made["a.tif"], kind="value", nodata=0, hole=(0, 0, 30, 80))
    made["a.tif"] = made["a.tif"][:, 30:]
    for name in ("b.tif", "c.tif"):
        make_raster(name, array=made[name])
    return made


def expected(*arrays):
    values = np.concatenate([array.reshape(3, -1) for array in arrays], 1)
    return np.percentile(values, (2, 98), axis=1).T.ravel()


def stretch_in(manifest):
    return {
        Path(name).name: record["settings"]["predict"]["stretch"]
        for name, record in records_of(manifest).items()
    }


def test_the_range_is_that_of_all_pixels_together(run, arrays):
    run("a.tif", "b.tif", "c.tif", "-o", "maps", "--stretch", "batch")
    found = stretch_in("maps/manifest.jsonl")
    assert set(found) == {"a.tif", "b.tif", "c.tif"}
    for stretch in found.values():
        np.testing.assert_allclose(stretch, expected(*arrays.values()))
    given = ",".join(map(repr, found["a.tif"]))
    for name in "abc":
        run(f"{name}.tif", "-o", f"{name}_alone.tif", "--stretch", given)
        np.testing.assert_array_equal(pixels(f"{name}_alone.tif"), pixels(f"maps/{name}_tiny.tif"))
    notes = [record["notes"] for record in records_of("maps/manifest.jsonl").values()]
    assert len({note.partition("band by band")[2] for (note, *_) in notes}) == 1


def test_a_scene_more_changes_the_range_of_all(run, arrays):
    run("a.tif", "b.tif", "-o", "maps", "--stretch", "batch")
    before = pixels("maps/a_tiny.tif")
    again = run("a.tif", "b.tif", "-o", "maps", "--stretch", "batch", "--resume", "--json")
    assert [item["reason"] for item in json.loads(again.stdout)["results"]] == ["done before"] * 2
    more = run("a.tif", "b.tif", "c.tif", "-o", "maps", "--stretch", "batch", "--resume", "--json")
    assert [item["status"] for item in json.loads(more.stdout)["results"]] == ["done"] * 3
    np.testing.assert_allclose(stretch_in("maps/manifest.jsonl")["a.tif"], expected(*arrays.values()))
    assert (pixels("maps/a_tiny.tif") != before).any()


def test_a_scene_that_cannot_be_read_has_no_part_in_the_range(run, arrays, model_file):
    Path("broken.tif").write_bytes(b"no raster")
    done = CliRunner().invoke(
        app,
        ["predict", "a.tif", "broken.tif", "b.tif", "-o", "maps", "--stretch", "batch", "--model",
         str(model_file), *SMALL],
    )  # fmt: skip
    assert done.exit_code == 3
    wanted = expected(arrays["a.tif"], arrays["b.tif"])
    np.testing.assert_allclose(stretch_in("maps/manifest.jsonl")["b.tif"], wanted)


def test_sheets_of_a_mosaic_share_the_range(run, make_raster):
    rng = np.random.default_rng(1)
    sheets = [rng.integers(low, low + 900, (3, 40, 40)).astype(np.uint16) for low in (100, 3000)]
    for index, array in enumerate(sheets):
        transform = Affine(0.5, 0, 500000 + 20 * index, 0, -0.5, 5000000)
        make_raster(f"s{index}.tif", array=array, transform=transform)
    run("s0.tif", "s1.tif", "-o", "maps", "--mosaic", "--stretch", "batch")
    (stretch,) = stretch_in("maps/manifest.jsonl").values()
    np.testing.assert_allclose(stretch, expected(*sheets))
