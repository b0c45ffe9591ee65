"""Runs that are killed, shared out or joined: what they must give is the undisturbed map, to the pixel."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from golden_files import MODEL
from program import (
    MODEL_OPTIONS,
    REFINE,
    SMALL_TILES,
    command,
    environment,
    labels,
    masked,
    pixels,
    polygon_facts,
    polygons,
    reported,
    run,
    run_apart,
    without_changing,
)


def test_resumed_after_a_kill(golden, scenes, part_map, folder):
    """A run that is killed goes on, to the pixels of the undisturbed map."""
    arguments = ("predict", scenes.part, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif")
    for _ in range(3):  # on busy cores a run may be through before it is seen to be in the middle
        kill_in_the_middle([*arguments, "--overwrite"], folder)
        if not (folder / "map.tif").exists():
            break
    assert not (folder / "map.tif").exists()
    answer = run(*arguments, "--resume")
    assert "starting over" not in answer.stderr
    golden.check_text("messages/resumed", without_changing(answer.stderr, folder))
    np.testing.assert_array_equal(labels(folder / "map.tif"), labels(part_map))
    answer = run(*arguments, "--resume")
    golden.check_text("messages/resumed_complete", without_changing(answer.stderr, folder))
    assert sorted(path.name for path in folder.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]


@pytest.mark.slow
def test_resumed_with_all_outputs(plain, scenes, folder):
    """The same of the whole scene with polygons; it is killed twice."""
    mapped, _ = plain
    arguments = ["predict", scenes.whole, *MODEL_OPTIONS, "-o", "map.tif", "--confidence", "confidence.tif"]
    arguments += ["--vector", "map.gpkg", "--resume"]
    for _ in range(2):
        kill_in_the_middle(arguments, folder)
    assert "starting over" not in run(*arguments).stderr
    for name in ("map", "confidence"):
        np.testing.assert_array_equal(pixels(folder / f"{name}.tif"), pixels(mapped / f"{name}.tif"))
    found, expected = (polygon_facts(polygons(place / "map.gpkg")) for place in (folder, mapped))
    assert found == expected


@pytest.mark.slow
def test_resumed_by_the_default_runtime(scenes, folder):
    """The same pixels from a compiled network; another precision starts over."""
    arguments = ("predict", scenes.part, "--model", MODEL, *SMALL_TILES, "-o", "map.tif")
    run(*arguments[:-1], "whole.tif")
    kill_in_the_middle(arguments, folder)
    other = run(*arguments, "--resume", "--runtime", "torch").stderr
    assert "runtime was openvino, is torch" in other
    kill_in_the_middle([*arguments, "--overwrite"], folder)
    assert "starting over" not in run(*arguments, "--resume", "--overwrite").stderr
    np.testing.assert_array_equal(labels(folder / "map.tif"), labels(folder / "whole.tif"))


def kill_in_the_middle(arguments: Sequence[object], folder: Path) -> None:
    """Start a run, and kill it by SIGKILL once it has noted which rows are done.

    A run does so every few seconds. It is held for as long, so that it does so before it is through.
    """
    work = folder / ".map.tif.rsseg"
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    before = notes(work)
    try:
        wait(lambda: any(work.glob("*.tif*")) or notes(work) != before, process)
        process.send_signal(signal.SIGSTOP)
        before = notes(work)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)
        wait(lambda: notes(work) != before, process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def notes(work: Path) -> dict[str, str]:
    """What a run notes in the hidden folder beside its map."""
    return {path.name: path.read_text("utf-8") for path in work.glob("*.json")}


def wait(ready, process: subprocess.Popen[bytes]) -> None:
    """Until something is ready; the process must not end before."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batch_of_sheets(golden, scenes, folder):
    """Two processes; a sheet that lacks a band fails alone, and `--resume` does what is left."""
    sheets = [Path(shutil.copy(path, folder)) for path in scenes.sheets]
    whole = sheets[1].read_bytes()
    with rasterio.open(sheets[1]) as dataset:
        array, profile = dataset.read([1, 2]), dataset.profile | {"count": 2, "photometric": "minisblack"}
    with rasterio.open(sheets[1], "w", **profile) as dataset:
        dataset.write(array)
    arguments = ("predict", *(path.name for path in sheets), "-o", "maps", *MODEL_OPTIONS, *SMALL_TILES)
    arguments = (*arguments, "--confidence", "_sure", "--vector", "fgb", "--jobs", "2")
    answer = run_apart(*arguments, folder=folder, exit_code=3)
    golden.check_text("messages/batch", in_order(reported(answer, folder)))
    golden.check_json("batch_manifest", manifest(folder))
    golden.check_json("batch_files", sorted(path.name for path in (folder / "maps").iterdir()))
    sheets[1].write_bytes(whole)
    answer = run(*arguments, "--resume", "--jobs", "1", "--json")
    golden.check_json("batch_resumed_reported", masked(json.loads(answer.stdout), folder))
    golden.check_json("batch_resumed_manifest", manifest(folder))
    (folder / "alone").mkdir()
    for sheet in sheets:
        run("predict", sheet, *MODEL_OPTIONS, *SMALL_TILES, "-o", folder / "alone" / sheet.name, "-q")
        mapped = folder / "maps" / f"{sheet.stem}_small.tif"
        np.testing.assert_array_equal(labels(mapped), labels(folder / "alone" / sheet.name))


def manifest(folder: Path) -> list[object]:
    """Lines of a batch's manifest in the order of inputs; a scene's own in the order of time."""
    lines = (folder / "maps" / "manifest.jsonl").read_text("utf-8").splitlines()
    return masked(sorted(map(json.loads, lines), key=lambda line: line["input"]), folder)


def in_order(text: str) -> str:
    """Lines that say that a scene is done come in any order where several processes are at work."""
    lines = text.splitlines(keepends=True)
    places = [index for index, line in enumerate(lines) if "/4] " in line]
    done = sorted(lines[index].partition("/4] ")[2] for index in places)
    for index, line in zip(places, done, strict=True):
        lines[index] = f"rsseg: [N/4] {line}"
    return "".join(lines)


def test_mosaic_of_sheets(golden, scenes, folder):
    """Sheets are cut from one map: no seams, and the pixels of the whole."""
    for path in scenes.sheets:
        shutil.copy(path, folder)
    names = [path.name for path in scenes.sheets]
    options = ("--mosaic", *MODEL_OPTIONS, *SMALL_TILES, "--vector", "gpkg", "--json")
    answer = run("predict", *names, "-o", "maps", *options)
    golden.check_json("mosaic_reported", masked(json.loads(answer.stdout), folder))
    golden.check_json("mosaic_manifest", manifest(folder))
    with rasterio.open(scenes.whole) as dataset:
        array, transform = dataset.read(window=((512, 1312), (512, 1216))), dataset.transform
        profile = dataset.profile | {"height": 800, "width": 704}
        profile["transform"] = transform * transform.translation(512, 512)
    with rasterio.open("whole.tif", "w", **profile) as dataset:
        dataset.write(array)
    run("predict", "whole.tif", *MODEL_OPTIONS, *SMALL_TILES, "-o", "whole_map.tif", "--vector", "whole.gpkg")
    maps = [labels(folder / "maps" / f"{Path(name).stem}_small.tif") for name in names]
    whole = labels(folder / "whole_map.tif")
    np.testing.assert_array_equal(np.block([maps[:2], maps[2:]]), whole)
    [vector] = (folder / "maps").glob("*.gpkg")
    found, expected = (polygon_facts(polygons(path)) for path in (vector, folder / "whole.gpkg"))
    assert found["sha256"] == expected["sha256"]


@pytest.mark.slow
def test_engine_ray(golden, scenes, folder):
    """A batch, and one scene that is shared out by rows, give the pixels that they give without Ray."""
    pytest.importorskip("ray")
    names = [shutil.copy(path, folder) for path in scenes.sheets[:2]]
    options = (*MODEL_OPTIONS, *SMALL_TILES, "--vector", "fgb")
    for engine, place in ((("--engine", "ray", "--jobs", "2"), "ray"), ((), "here")):
        answer = run_apart("predict", *names, "-o", place, *options, *engine, "--json", folder=folder)
        assert json.loads(answer.stdout)["done"] == 2
        one = ("-o", f"{place}/one.tif", *MODEL_OPTIONS, *SMALL_TILES, *REFINE, *engine)
        run_apart("predict", scenes.part, *one, folder=folder)
    for path in sorted((folder / "here").glob("*.tif")):
        np.testing.assert_array_equal(labels(path), labels(folder / "ray" / path.name))
    for path in sorted((folder / "here").glob("*.fgb")):
        assert polygon_facts(polygons(path)) == polygon_facts(polygons(folder / "ray" / path.name))


@pytest.mark.slow
def test_interrupted(golden, scenes, folder):
    """Ctrl-C: exit code 130, no output, and how to go on where rows were kept."""
    arguments = ("predict", scenes.whole, *MODEL_OPTIONS, "-o", "map.tif", "--batch-size", "1")
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait((folder / ".map.tif.rsseg").exists, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "rsseg: interrupted" in stderr
    assert not (folder / "map.tif").exists()
