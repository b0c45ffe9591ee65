"""Batches and polygons on disks that fill up, or hardly hold a thing: small ones, really mounted."""

import os

import geopandas
import numpy as np
import pytest
import rasterio
from batch_runs import model_file, pixels, run, status_of  # noqa: F401
from typer.testing import CliRunner

from rsseg_cli.batch.local import LocalEngine, _in_turn
from rsseg_cli.batch.manifest import RESERVE_BYTES
from rsseg_cli.batch.run import run_batch
from rsseg_cli.batch.scenes import BatchScene
from rsseg_cli.batch.settings import BatchSettings
from rsseg_cli.batch.task import SceneOutcome
from rsseg_cli.cli import app
from rsseg_cli.config import PredictConfig


def noise(make_raster, name, side, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (3, side, side), dtype=np.uint8)
    return make_raster(name, array=pixels).name


def left_in(folder):
    """Names of files that a user sees; rows that --resume goes on from lie in hidden folders."""
    extras = (".aux.xml", ".qml")  # beside each map
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(extras))
    return sorted(path.name for path in files if "/." not in str(path.relative_to(folder.parent)))


def fill(folder):
    """Take every byte of a disk, as another program may."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return folder / "filler"


def test_a_scene_that_does_not_fit_fails_alone(make_raster, run, small_disk):
    """With its polygons the one in the middle takes about 1.2 MB, the others 0.3 and 0.4 MB."""
    names = [noise(make_raster, f"{name}.tif", side) for name, side in (("a", 60), ("b", 160), ("c", 70))]
    more = (*names, "--vector", "gpkg")
    disk = small_disk(RESERVE_BYTES + 1_000_000)
    done = run(*more, "-o", disk / "maps")
    assert done.exit_code == 3, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("b.tif"))
    assert "disk is full" in line or "No space left on device" in line
    assert "Traceback" not in done.stderr
    assert status_of(disk / "maps/manifest.jsonl") == {"a.tif": "done", "b.tif": "failed", "c.tif": "done"}
    others = ["a_tiny.gpkg", "a_tiny.tif", "c_tiny.gpkg", "c_tiny.tif"]
    assert left_in(disk) == [*others, "manifest.jsonl"]
    kept = [(disk / "maps" / name).stat().st_mtime_ns for name in others]
    assert os.system(f"mount -o remount,size=9m {disk}") == 0
    again = run(*more, "-o", disk / "maps", "--resume")
    assert again.exit_code == 0, again.stdout + again.stderr
    assert "2 of 3 done before; to do: 1 failed before" in again.stderr
    assert kept == [(disk / "maps" / name).stat().st_mtime_ns for name in others]
    assert run("b.tif", "--vector", "gpkg", "-o", "whole").exit_code == 0
    assert np.array_equal(pixels(disk / "maps/b_tiny.tif"), pixels("whole/b_tiny.tif"))
    assert geopandas.read_file(disk / "maps/b_tiny.gpkg").equals(geopandas.read_file("whole/b_tiny.gpkg"))


class Eater:
    """Fills a disk when the first scene is done."""

    def __init__(self, disk):
        self.disk = disk

    def on_start(self, scenes, skipped):
        pass

    def on_tiles(self, task, done, total):
        pass

    def on_scene_end(self, task, report):
        if report.status == "done":
            fill(self.disk)


class Lodger:
    """Fills a disk while the second scene is mapped, until the first is reported."""

    def __init__(self, disk):
        self.disk, self.filler = disk, None

    def on_start(self, scenes, skipped):
        pass

    def on_tiles(self, index, done, total):
        if index == 1 and self.filler is None:
            self.filler = fill(self.disk)

    def on_scene_end(self, task, report):
        self.filler.unlink(missing_ok=True)


def test_a_scene_without_room_while_another_is_finished_is_mapped_again(make_raster, model_file, small_disk):
    paths = (make_raster("a.tif"), make_raster("b.tif", array=np.full((3, 300, 300), 9, np.uint8)))
    scenes = [BatchScene(path=str(path), stem=path.stem) for path in paths]
    disk = small_disk(4_000_000)
    config = PredictConfig(tile_size=64, overlap=16)
    settings = BatchSettings(folder=disk / "maps", model=str(model_file), config=config)
    result = run_batch(scenes, settings, LocalEngine(), Lodger(disk))
    assert result.reports[1].status == "done", result.reports[1].error
    assert "b_tiny.tif" in left_in(disk)


class Scripted:
    """Runs scenes that fail by a script: kinds of errors by scene, one an attempt; "" for none."""

    def __init__(self, kinds):
        self.kinds, self.attempts = [iter(each) for each in kinds], []

    def start(self, task, progress):
        self.attempts.append(task)
        kind = next(self.kinds[task])
        return lambda: SceneOutcome(index=task, error=kind, error_kind=kind)


@pytest.mark.parametrize(
    ("kinds", "attempts", "left"),
    [
        ([["OutputError"], ["SceneError", ""], [""]], [0, 1, 2, 1], ["OutputError", "", ""]),
        ([[""], ["OutputError"], ["SceneError", ""]], [0, 1, 2, 2], ["", "OutputError", ""]),
        ([["SceneError"], ["SceneError"], [""]], [0, 1, 2], ["SceneError", "SceneError", ""]),
    ],
)
def test_a_scene_that_fails_after_one_without_room_is_mapped_again(monkeypatch, kinds, attempts, left):
    """Not one that fails after a scene that had another fault."""
    runner = Scripted(kinds)
    monkeypatch.setattr("rsseg_cli.batch.local.SceneRunner", lambda: runner)
    assert [outcome.error for outcome in _in_turn(range(3), None)] == left
    assert runner.attempts == attempts


FULL = ("No space left on device", "0 bytes free, the outputs", "Is the disk full?")


def test_on_a_disk_without_a_byte_all_that_fails_is_reported(make_raster, model_file, small_disk, tmp_path):
    """The second scene was mapped by then, but its outputs are finished after the first is reported."""
    scenes = [BatchScene(path=str(make_raster(f"{name}.tif")), stem=name) for name in "abcdef"]
    disk = small_disk(4_000_000)
    config = PredictConfig(tile_size=64, overlap=16)
    settings = BatchSettings(folder=disk / "maps", model=str(model_file), config=config)
    result = run_batch(scenes, settings, LocalEngine(), Eater(disk))
    first, *others = result.reports
    assert first.status == "done"
    for report in others:
        assert report.status == "failed"
        assert any(words in report.error for words in FULL)
        assert report.error_kind == "OutputError"
    states = {"a.tif": "done"} | {f"{name}.tif": "failed" for name in "bcdef"}
    assert status_of(disk / "maps/manifest.jsonl") == states
    assert left_in(disk) == ["a_tiny.tif", "filler", "manifest.jsonl"]
    (disk / "filler").unlink()
    again = run_batch(
        scenes,
        BatchSettings(folder=disk / "maps", model=str(model_file), config=config, resume=True),
        LocalEngine(),
    )
    assert [report.status for report in again.reports] == ["skipped"] + ["done"] * 5
    assert left_in(disk) == [*(f"{name}_tiny.tif" for name in "abcdef"), "manifest.jsonl"]


def test_what_cannot_fit_is_refused_scene_by_scene(make_raster, run, small_disk):
    names = [noise(make_raster, "a.tif", 60), noise(make_raster, "b.tif", 1200)]
    disk = small_disk(RESERVE_BYTES + 600_000)
    done = run(*names, "-o", disk / "maps", "--co", "COMPRESS=NONE")
    assert done.exit_code == 3
    assert "free, the outputs take at least 1.92 MB. Make room, or write to another disk" in done.stdout
    assert left_in(disk) == ["a_tiny.tif", "manifest.jsonl"]


@pytest.fixture
def class_map(make_raster):
    """Noise of three classes, of which polygons take some megabytes."""
    classes = np.random.default_rng(0).integers(0, 3, (1, 150, 150), dtype=np.uint8)
    return make_raster("map.tif", array=classes, nodata=255)


@pytest.mark.parametrize(
    "ending",
    ["gpkg", *(pytest.param(ending, marks=pytest.mark.slow) for ending in ("geojson", "fgb", "shp"))],
)
def test_polygons_on_a_disk_that_fills_up(class_map, small_disk, tmp_path, ending):
    whole = tmp_path / f"whole.{ending}"
    given = ["vectorize", str(class_map), "--jobs", "1", "-o"]
    assert CliRunner().invoke(app, [*given, str(whole)]).exit_code == 0
    size = sum(path.stat().st_size for path in tmp_path.glob("whole.*"))
    for share in (0.0, 0.02, 0.5, 0.97):
        disk = small_disk(max(1, int(size * share) // 4096) * 4096)
        if not share:
            fill(disk)
        done = CliRunner().invoke(app, [*given, str(disk / f"m.{ending}")])
        assert done.exit_code == 1, (share, done.stdout, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("rsseg: error: "), last
        assert "full" in last or "No space" in last
        assert left_in(disk) == ([] if share else ["filler"])


@pytest.mark.parametrize("room", [60_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_a_map_with_polygons_on_a_disk_that_fills_up(make_raster, run, small_disk, room):
    """The map takes 20 kB, its polygons more than the disk."""
    scene = noise(make_raster, "scene.tif", 200)
    disk = small_disk(room)
    done = run(scene, "-o", disk / "m.tif", "--vector", disk / "m.gpkg")
    assert done.exit_code == 1, done.stderr
    assert "full" in done.stderr or "No space" in done.stderr
    assert left_in(disk) == []
    assert os.system(f"mount -o remount,size=40m {disk}") == 0
    assert run(scene, "-o", disk / "m.tif", "--vector", disk / "m.gpkg", "--resume").exit_code == 0
    with rasterio.open(disk / "m.tif") as dataset:
        assert dataset.shape == (200, 200)
