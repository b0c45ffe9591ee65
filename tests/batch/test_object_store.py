"""Outputs in an object store: whole, all of them, under the names that were asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from batch_runs import SMALL, model_file, pixels, records_of  # noqa: F401
from typer.testing import CliRunner

from rsseg_cli.cli import app

torch.set_num_threads(1)
SERVER = Path(__file__).resolve().parents[1] / "s3_server.py"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of an object store whose bucket is `bucket`; uploads are prepared in a folder beside it."""
    folder = tmp_path / "store"
    (folder / "bucket").mkdir(parents=True)
    with subprocess.Popen([sys.executable, SERVER, folder], stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip()
        for name, value in {
            "AWS_S3_ENDPOINT": f"127.0.0.1:{port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "GDAL_HTTP_MAX_RETRY": "0", "VSIS3_CHUNK_SIZE": "5",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield folder
        server.kill()


@pytest.fixture
def run(model_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments, code=0):
        given = ["predict", *map(str, arguments), "--model", str(model_file), *SMALL]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == code, result.output
        return result

    return call


def names(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def uploads(tmp_path):
    return names(tmp_path / "cache" / "rsseg" / "uploads")


def test_all_outputs_and_what_lies_beside_them_are_uploaded(make_raster, tmp_path, store, run):
    scene = make_raster(shape=(90, 100))
    run(scene, "-o", "local.tif", "--confidence", "local-sure.tif")
    result = run(
        scene, "-o", "s3://bucket/a/map.tif", "--vector", "s3://bucket/b/map.shp", "--html", "s3://bucket/a/map.html",
        "--confidence", "sure.tif", "--stac", "s3://bucket/items", "--json",
    )  # fmt: skip
    paths = json.loads(result.stdout)["paths"]
    assert paths["labels"] == "s3://bucket/a/map.tif"
    assert paths["vector"] == "s3://bucket/b/map.shp"
    assert Path(paths["confidence"]).name == "sure.tif"
    assert names(store / "bucket") == [
        "a/map.html", "a/map.qml", "a/map.tif", "a/map.tif.aux.xml",
        *(f"b/map.{ending}" for ending in ("cpg", "dbf", "prj", "shp", "shx")), "items/map.json",
    ]  # fmt: skip
    np.testing.assert_array_equal(pixels(store / "bucket/a/map.tif"), pixels(tmp_path / "local.tif"))
    np.testing.assert_array_equal(pixels(tmp_path / "sure.tif"), pixels(tmp_path / "local-sure.tif"))
    with rasterio.open("s3://bucket/a/map.tif") as dataset:
        assert dataset.shape == (90, 100)
    item = json.loads((store / "bucket/items/map.json").read_text())
    hrefs = {kind: asset["href"] for kind, asset in item["assets"].items()}
    assert hrefs["labels"] == "s3://bucket/a/map.tif"
    assert hrefs["confidence"] == str(tmp_path / "sure.tif")
    assert item["links"][0]["href"] == str(scene)
    assert uploads(tmp_path) == []


def test_a_large_file_goes_in_parts(make_raster, tmp_path, store, run):
    scene = make_raster(shape=(2600, 2600))
    out = "s3://bucket/map.tif"
    run(scene, "-o", out, "--co", "COMPRESS=NONE", "--tile-size", "512", "--overlap", "0")
    assert (store / "bucket/map.tif").stat().st_size > 6_000_000
    with rasterio.open(store / "bucket/map.tif") as dataset:
        assert dataset.read(1).shape == (2600, 2600)


def test_what_is_there_is_replaced_only_when_asked(make_raster, tmp_path, store, run):
    scene = make_raster(shape=(70, 80))
    (store / "bucket/map.tif").write_bytes(b"before")
    result = run(scene, "-o", "s3://bucket/map.tif", code=1)
    assert "s3://bucket/map.tif: exists. Pass --overwrite" in result.output
    assert "exists. Pass --overwrite" in run(scene, "-o", "s3://bucket/map.tif", "--resume", code=1).output
    assert (store / "bucket/map.tif").read_bytes() == b"before"
    run(scene, "-o", "s3://bucket/map.tif", "--overwrite")
    assert pixels(store / "bucket/map.tif").shape == (1, 70, 80)


def test_an_upload_that_fails_is_resumed_without_the_network(make_raster, tmp_path, store, run):
    scene = make_raster(shape=(70, 80))
    (store / "denied").touch()
    command = (scene, "-o", "s3://bucket/denied.tif", "--preview", "s3://bucket/seen.png")
    result = run(*command, code=1)
    assert "s3://bucket/denied" in result.output
    assert "cannot be written" in result.output
    assert "run the same command with --resume" in result.output
    assert "denied.tif" not in names(store / "bucket")
    assert any(name.endswith("denied.tif") for name in uploads(tmp_path))
    (store / "denied").unlink()
    result = run(*command, "--resume")
    assert "is complete, by an earlier run" in result.output
    assert {"denied.tif", "seen.png"} <= set(names(store / "bucket"))
    assert uploads(tmp_path) == []


def test_a_batch_names_addresses_and_skips_what_is_there(make_raster, tmp_path, store, run):
    scenes = [make_raster(f"{name}.tif", shape=(70, 80), seed=seed) for seed, name in enumerate("ab")]
    refused = run(*scenes, "-o", "s3://bucket/maps", code=2)
    assert "pass --manifest FILE.jsonl" in refused.output
    command = (*scenes, "-o", "s3://bucket/maps", "--manifest", "done.jsonl", "--vector", "gpkg")
    run(*command)
    records = records_of(tmp_path / "done.jsonl")
    for record in records.values():
        stem = Path(record["input"]).stem
        for kind, ending in (("labels", "tif"), ("vector", "gpkg")):
            output = record["outputs"][kind]
            assert output["path"] == f"s3://bucket/maps/{stem}_tiny.{ending}"
            assert output["size"] == (store / f"bucket/maps/{stem}_tiny.{ending}").stat().st_size
    assert "2 done before" in run(*command, "--resume").output
    assert "2 already there" in run(*command, "--skip-existing").output
    (store / "bucket/maps/a_tiny.gpkg").unlink()
    result = run(*command, "--resume", "--json")
    assert [item["status"] for item in json.loads(result.stdout)["results"]] == ["done", "skipped"]
    exists = run(*command, code=1)
    assert "outputs exist: s3:/bucket" in exists.output


def test_mosaics_and_other_commands_refuse_before_work(make_raster, tmp_path, store, run):
    scene = make_raster(shape=(70, 80))
    refused = run(scene, "-o", "s3://bucket/maps", "--manifest", "m.jsonl", "--mosaic", code=2)
    assert "--mosaic writes sheets to a folder of this machine" in refused.output
    result = CliRunner().invoke(app, ["vectorize", str(scene), "-o", "s3://bucket/map.gpkg"])
    assert result.exit_code == 1
    run(scene, "-o", "map.tif")
    result = CliRunner().invoke(app, ["vectorize", "map.tif", "-o", "s3://bucket/map.gpkg"])
    assert result.exit_code == 1
    assert "s3://bucket/map.gpkg: only rsseg predict writes to object stores" in result.output
    assert names(store / "bucket") == []
