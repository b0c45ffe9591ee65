"""`rsseg predict --engine ray` as a user runs it, on clusters of its own."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from shared_scenes import save_models, workers_at

pytest.importorskip("ray")
torch.set_num_threads(1)
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def start(*arguments, folder, **more):
    command = [sys.executable, "-m", "rsseg_cli", "predict", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),
    )


def pixels(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_batch_with_a_broken_sheet(make_raster, models, tmp_path):
    for index in range(2):
        make_raster(f"s{index}.tif", seed=index)
    good = (tmp_path / "s0.tif").read_bytes()
    (tmp_path / "torn.tif").write_bytes(good[:300])
    options = ("-o", "maps", "--model", models[0], "--tile-size", "64", "--overlap", "16", "--json")
    batch = ("s0.tif", "torn.tif", "s1.tif", *options, "--engine", "ray", "--jobs", "2")
    process = start(*batch, folder=tmp_path)
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 3, stderr
    reported = json.loads(stdout)  # nothing of Ray's in it
    assert [reported["done"], reported["failed"]] == [2, 1]
    assert [item["status"] for item in reported["results"]] == ["done", "failed", "done"]
    assert "torn.tif" in reported["results"][1]["error"]
    assert "Traceback" not in stderr
    assert "raylet" not in stderr + stdout
    (tmp_path / "torn.tif").write_bytes(good)
    process = start(*batch, "--resume", folder=tmp_path)
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    reported = json.loads(stdout)
    assert [reported["done"], reported["skipped"]] == [1, 2]
    assert np.array_equal(pixels(tmp_path / "maps/torn_tiny.tif"), pixels(tmp_path / "maps/s0_tiny.tif"))


def test_one_scene_in_a_terminal(make_raster, models, tmp_path):
    """Shared out by rows and refined, with a bar; the same files as without Ray."""
    fcntl, termios = (pytest.importorskip(name) for name in ("fcntl", "termios"))
    make_raster("s.tif", shape=(500, 200), kind="value", nodata=0, hole=(70, 20, 90, 60))
    shown = {}
    for name, engine in (("here", ()), ("there", ("--engine", "ray", "--jobs", "2"))):
        folder = tmp_path / name
        folder.mkdir()
        outputs = (
            "-o",
            folder / "map.tif",
            "--confidence",
            folder / "sure.tif",
            "--vector",
            folder / "p.fgb",
        )
        options = ("--model", models[0], "--refine", "--tile-size", "64", "--overlap", "16")
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        process = start("s.tif", *outputs, *options, *engine, folder=tmp_path, stderr=theirs)
        os.close(theirs)
        reported = []
        reader = threading.Thread(target=read_all, args=(ours, reported))
        reader.start()
        process.communicate(timeout=900)
        reader.join(60)
        os.close(ours)
        assert process.returncode == 0
        shown[name] = b"".join(reported).decode()
    counts = [tuple(map(int, pair)) for pair in re.findall(r"(\d+)/(\d+) \[", shown["there"])]
    assert counts == sorted(counts)
    assert len({done for done, _ in counts}) > 1
    assert "Traceback" not in shown["there"]
    for name in ("map.tif", "sure.tif"):
        with (
            rasterio.open(tmp_path / "here" / name) as here,
            rasterio.open(tmp_path / "there" / name) as there,
        ):
            np.testing.assert_array_equal(there.read(), here.read())
            assert there.profile == here.profile
            assert there.tags().keys() == here.tags().keys()
    here, there = (pyogrio.read_dataframe(tmp_path / name / "p.fgb") for name in ("here", "there"))
    assert there.equals(here)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )


def read_all(terminal: int, reported: list[bytes]) -> None:
    """What comes, until the other side is closed."""
    with suppress(OSError):
        while part := os.read(terminal, 4096):
            reported.append(part)


@pytest.mark.parametrize("method", ["scene", "band"])
def test_ctrl_c_ends_all_processes(make_raster, models, tmp_path, heed_interrupts, method):
    for index in range(2):
        make_raster(f"s{index}.tif", shape=(3000, 3000))
    scenes = ("s0.tif", "-o", "map.tif") if method == "band" else ("s0.tif", "s1.tif", "-o", "maps")
    options = ("--model", models[0], "--tile-size", "64", "--overlap", "16", "--engine", "ray", "--jobs", "1")
    process = start(*scenes, *options, folder=tmp_path, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 600
    while not workers_at(method) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not workers_at("")
