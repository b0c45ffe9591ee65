"""Batches that are stopped, by a signal or a kill, and go on."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from batch_runs import model_file, pixels, run, status_of  # noqa: F401

from rsseg_cli.batch.manifest import read_manifest
from rsseg_cli.batch.runner import SceneRunner
from rsseg_cli.batch.task import SceneTask
from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--tile-size", "64", "--overlap", "16")


@pytest.fixture
def scenes(make_raster):
    """A small scene, and some that take a while."""
    rng = np.random.default_rng(1)
    sizes = [(60, 80), (400, 400), (400, 400), (60, 90)]
    arrays = [rng.integers(0, 255, (3, *size), dtype=np.uint8) for size in sizes]
    return [make_raster(f"s{index}.tif", array=array).name for index, array in enumerate(arrays)]


@pytest.fixture
def start(model_file, heed_interrupts, tmp_path):
    started = []

    def begin(*arguments):
        command = [
            sys.executable,
            "-m",
            "rsseg_cli",
            "predict",
            *arguments,
            "--model",
            str(model_file),
            *SMALL,
        ]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_begun(name):
    manifest = Path("maps/manifest.jsonl")
    return manifest.exists() and status_of(manifest).get(name) == "started"


def test_an_interrupt_tells_how_to_resume(scenes, start, run):
    process = start(*scenes, "-o", "maps")
    wait_for(lambda: is_begun("s1.tif") and any(Path("maps").glob(".s1*.rsseg/*")), process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(
        "rsseg: interrupted; maps/manifest.jsonl lists what is done. To continue, repeat the"
    )
    assert "Traceback" not in stderr
    assert "rsseg: s1.tif: stopped" in stderr
    assert status_of("maps/manifest.jsonl") == {"s0.tif": "done", "s1.tif": "started"}
    assert sorted(path.name for path in Path("maps").glob("*.tif")) == ["s0_tiny.tif"]
    done = run(*scenes, "-o", "maps", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "1 of 4 done before; to do: 2 new, 1 not finished" in done.stderr


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_killed_with_its_processes_a_batch_ends_with_the_same_pixels(scenes, start, run):
    process = start(*scenes, "-o", "maps", "--jobs", "2")
    wait_for(lambda: is_begun("s2.tif"), process)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 120
    while any(map(is_alive, workers)):  # they end without their parent, and give their locks back
        assert time.monotonic() < deadline
        time.sleep(0.1)
    records = read_manifest(Path("maps/manifest.jsonl"))
    assert {record["status"] for record in records.values()} <= {"done", "started"}
    assert run(*scenes, "-o", "maps", "--resume", "--jobs", "2").exit_code == 0
    assert set(status_of("maps/manifest.jsonl").values()) == {"done"}
    assert run(*scenes, "-o", "whole").exit_code == 0
    for name in scenes:
        stem = Path(name).stem
        assert np.array_equal(pixels(f"maps/{stem}_tiny.tif"), pixels(f"whole/{stem}_tiny.tif"))


@pytest.mark.slow
def test_an_interrupt_stops_all_processes(scenes, start, run):
    process = start(*scenes, "-o", "maps", "--jobs", "2")
    wait_for(lambda: is_begun("s2.tif") and any(Path("maps").glob(".s[12]*.rsseg/*")), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].endswith("To continue, repeat the command with --resume")
    assert ".tif: stopped" in stderr  # by its process, to this one
    assert run(*scenes, "-o", "maps", "--resume").exit_code == 0
    assert set(status_of("maps/manifest.jsonl").values()) == {"done"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError])
def test_what_is_kept_of_a_scene_is_reported(scenes, model_file, tmp_path, monkeypatch, caplog, error):
    """As for single scenes: of one that was stopped, and of one that failed and may be gone on with."""
    caplog.set_level(logging.INFO)

    def stop(index, done, total):
        if done > total // 2:
            raise error("No space left on device")

    config = PredictConfig(tile_size=64, overlap=16, checkpoint_s=0)
    outputs = {"labels": tmp_path / "m.tif"}
    task = SceneTask(index=0, scene="s1.tif", outputs=outputs, model=str(model_file), config=config)
    monkeypatch.chdir(tmp_path)
    kept = f"of 400 rows are kept in {tmp_path}/.m.tif.rsseg; run the same command with --resume to continue"
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            SceneRunner().run(task, stop)
        assert "s1.tif: stopped; " in caplog.text
        assert kept in caplog.text
    else:
        outcome = SceneRunner().run(task, stop)
        assert outcome.error.startswith("No space left on device; ")
        assert kept in outcome.error
