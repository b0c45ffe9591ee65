"""Scenes on a web server and in a bucket, read by ranges from a server that runs here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from networks import one_hot
from typer.testing import CliRunner

from rsseg_cli import predict
from rsseg_cli.cli import app
from rsseg_cli.errors import SceneError
from rsseg_cli.raster import SceneInfo, SceneReader, vrt


class Server(NamedTuple):
    folder: Path
    address: str
    log: Path

    def requests(self) -> list[list[str]]:
        """Status, bytes, signed, path of each request so far."""
        return [line.split(maxsplit=3) for line in self.log.read_text().splitlines()[1:]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder, log = tmp_path / "served", tmp_path / "requests.log"
    folder.mkdir()
    program = [sys.executable, str(Path(__file__).parents[1] / "range_server.py"), str(folder)]
    with log.open("w") as lines, subprocess.Popen(program, stdout=lines) as process:
        try:
            while not log.read_text().endswith("\n"):
                assert process.poll() is None, "the server did not start"
            yield Server(folder, f"127.0.0.1:{int(log.read_text())}", log)
        finally:
            process.terminate()


@pytest.fixture
def in_bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    settings = {
        "AWS_S3_ENDPOINT": server.address,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return server


def bands(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (3, side, side)).astype(np.uint8)


@pytest.mark.parametrize("form", ["http://{0}/{1}", "/vsicurl/http://{0}/{1}"])
def test_a_scene_on_a_web_server(make_raster, server: Server, tmp_path: Path, form: str) -> None:
    local = make_raster("served/scene.tif", array=bands(90))
    predict(local, tmp_path / "local.tif", model=one_hot())
    predict(form.format(server.address, "scene.tif"), tmp_path / "remote.tif", model=one_hot())
    with rasterio.open(tmp_path / "local.tif") as here, rasterio.open(tmp_path / "remote.tif") as there:
        np.testing.assert_array_equal(here.read(), there.read())
        assert here.transform == there.transform


def test_a_scene_in_a_bucket(make_raster, in_bucket: Server, tmp_path: Path) -> None:
    (in_bucket.folder / "bucket").mkdir()
    local = make_raster("served/bucket/scene.tif", array=bands(90))
    predict(local, tmp_path / "local.tif", model=one_hot())
    predict("s3://bucket/scene.tif", tmp_path / "remote.tif", model=one_hot())
    with rasterio.open(tmp_path / "local.tif") as here, rasterio.open(tmp_path / "remote.tif") as there:
        np.testing.assert_array_equal(here.read(), there.read())
    read = [signed for status, _, signed, path in in_bucket.requests() if path == "/bucket/scene.tif"]
    assert read  # signed with the keys of the environment
    assert set(read) == {"True"}


def test_only_the_window_is_fetched(make_raster, server: Server, tmp_path: Path) -> None:
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    scene = make_raster("served/scene.tif", array=bands(1536), **layout)
    with rasterio.open(scene) as dataset:
        left, top = dataset.transform * (256, 256)
        right, bottom = dataset.transform * (512, 512)
    box = (left, bottom, right, top)
    predict(f"http://{server.address}/scene.tif", tmp_path / "m.tif", model=one_hot(), bbox=box)
    sent = sum(int(size) for _, size, _, path in server.requests() if path == "/scene.tif")
    assert 3 * 256**2 <= sent < scene.stat().st_size / 8


def test_a_missing_object_is_reported(in_bucket: Server, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"s3://bucket/none\.tif"):
        predict("s3://bucket/none.tif", tmp_path / "m.tif", model=one_hot())
    assert not (tmp_path / "m.tif").exists()


SECRETS = ("s3cret", "s1gned", "t0ken")


def secret(address: str, path: str) -> str:
    return f"http://user:{SECRETS[0]}@{address}/{path}?X-Amz-Signature={SECRETS[1]}&a=b,c&token={SECRETS[2]}"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own settings come before the program's."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "3")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")


@pytest.mark.parametrize("mood", ["busy-2", "cut-1", "cut-2", "torn-1", "torn-2"])
def test_answers_that_fail_or_are_cut_are_asked_for_again(
    make_raster, server: Server, tmp_path: Path, hasty: None, mood: str
) -> None:
    local = make_raster("served/scene.tif", array=bands(300))
    predict(local, tmp_path / "local.tif", model=one_hot())
    predict(secret(server.address, f"{mood}/scene.tif"), tmp_path / "remote.tif", model=one_hot())
    with rasterio.open(tmp_path / "local.tif") as here, rasterio.open(tmp_path / "remote.tif") as there:
        np.testing.assert_array_equal(here.read(), there.read())
        tags = str(there.tags()) + (tmp_path / "remote.tif").read_bytes().decode("latin-1")
    assert f"{server.address}/{mood}/scene.tif?..." in tags
    assert not any(word in tags for word in SECRETS)


def test_a_remote_source_that_cannot_be_read_is_an_error(
    make_raster, server: Server, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_NUM_THREADS", "4")
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    info = SceneInfo.of(make_raster("served/scene.tif", array=bands(512), **tiles))
    text = vrt.of_bands(info, [(1, "red")], info.grid)
    address = f"/vsicurl/http://{server.address}/cut-99/scene.tif"
    (tmp_path / "scene.vrt").write_text(text.replace(info.path, address))
    with (
        SceneReader(SceneInfo.of(tmp_path / "scene.vrt"), (1,)) as reader,
        pytest.raises(SceneError, match="cannot be read"),
    ):
        reader.read(0, 0, 512, 512)


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("busy-99", "503"),
        ("cut-99", "cannot be read"),
        ("torn-99", "Failed to read directory"),
        ("elsewhere", 'Protocol "file"|HTTP response code: 0'),  # GDAL 3.10 and 3.12
    ],
)
def test_what_never_works_is_reported_without_secrets(
    make_raster, server: Server, tmp_path: Path, hasty: None, mood: str, words: str, capfd
) -> None:
    make_raster("served/scene.tif", array=bands(300))
    before = sorted(tmp_path.iterdir())
    address = secret(server.address, f"{mood}/scene.tif")
    capfd.readouterr()
    done = CliRunner().invoke(
        app,
        ["predict", address, "-o", str(tmp_path / "m.tif"), "--json", "--tile-size", "128", "--overlap", "0"],
    )
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert f"rsseg: error: http://{server.address}/{mood}/scene.tif?...: " in line
    assert re.search(words, line)
    assert not any(word in done.output + "".join(capfd.readouterr()) for word in SECRETS)
    assert sorted(tmp_path.iterdir()) == before
    asked = [status for status, *_ in server.requests()]
    if mood == "busy-99":
        assert 3 <= len(asked) <= 4  # once and three times more; the server writes its line after the answer


def test_warnings_and_json_hold_no_secrets(make_raster, server: Server, tmp_path: Path) -> None:
    make_raster("served/scene.tif", array=bands(90), crs=None)
    address, target = secret(server.address, "scene.tif"), tmp_path / "m.tif"
    done = CliRunner().invoke(app, ["predict", address, "-o", str(target), "--json"])
    assert done.exit_code == 0, done.output
    assert "has no CRS" in done.stderr
    assert "has no CRS" in done.stdout
    for text in (done.output, target.read_bytes().decode("latin-1")):
        assert f"{server.address}/scene.tif?..." in text
        assert not any(word in text for word in SECRETS)


@pytest.mark.parametrize(
    "arguments",
    [("scene.tif", "--aoi", "{0}"), ("scene.tif", "--model", "{0}"), ("{0}", "--model", "buildings")],
)
def test_addresses_where_none_is_taken_are_reported_without_secrets(
    make_raster, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    make_raster()
    monkeypatch.chdir(tmp_path)
    given = [part.format(secret("127.0.0.1:9", "x")) for part in arguments]
    done = CliRunner().invoke(app, ["predict", "-o", "m.tif", *given])
    assert done.exit_code in (1, 2)
    assert "127.0.0.1:9/x" in done.stderr
    assert not any(word in done.output for word in SECRETS)
