"""Runs that are killed go on: whatever the moment, the outputs are those of a run that nobody disturbed."""

import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import torch
from refiners import LocalRefiner, refiner
from scipy import ndimage
from test_pipeline import Local, trained

from rsseg_cli import RefineConfig, VectorConfig, predict, refine, work_folder

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
NAMES = ("class 0", "class 1", "class 2")
STEPS = ("replace", "fsync", "unlink", "rmdir")  # of the file system, at which a run is killed


class Scene:
    """A scene with a hole, and all outputs of it.

    Args:
        kind: "map", "refined" (in the same run), "refine" (of labels), each at the scene's resolution or,
            with "-resampled", another.
    """

    def __init__(self, make_raster, kind):
        self.kind, _, self.resampled = kind.partition("-")
        self.scene = make_raster(shape=(300, 110), kind="value", nodata=0, hole=(70, 20, 90, 60))
        noise = np.random.default_rng(3).normal(size=(3, 300, 110))
        classes = np.stack([ndimage.gaussian_filter(part, 5) for part in noise]).argmax(0)
        self.labels = make_raster("labels.tif", array=classes[None].astype(np.uint8), nodata=255)
        gsd = {"gsd_m": 0.8, "gsd_range_m": (0.8, 0.8)} if self.resampled else {}
        self.model = trained(Local(3), 3, **gsd)
        self.refiner = RefineConfig(
            refiner=refiner(LocalRefiner(), names=NAMES), band_m=1.5, tile_size=32,
            gsd_m=0.8 if self.resampled else None,
        )  # fmt: skip

    def run(self, folder, **more):
        """Outputs lie in two folders."""
        (folder / "more").mkdir(parents=True, exist_ok=True)
        preview = folder / "more" / "preview.png"
        if self.kind == "refine":
            return refine(
                self.scene, self.labels, folder / "map.tif", config=replace(self.refiner, ensemble=2),
                uncertainty=folder / "more" / "uncertainty.tif", preview=preview, batch_size=1, **more,
            )  # fmt: skip
        return predict(
            self.scene,
            folder / "map.tif",
            model=self.model,
            confidence=folder / "more" / "confidence.tif",
            probabilities=folder / "probabilities.tif",
            preview=preview,
            vector=folder / "more" / "polygons.gpkg",
            vector_config=VectorConfig(jobs=1, min_area_m2=3),
            refine=self.refiner if self.kind == "refined" else None,
            tile_size=64,
            overlap=16,
            **more,
        )


def found_in(folder):
    """All outputs by name: pixels, overviews, tags, polygons, and nothing hidden."""
    outputs = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        assert not path.name.startswith("."), path
        if path.suffix == ".gpkg":
            table = pyogrio.read_dataframe(path)
            outputs[path.name] = (table.geometry.to_wkb().tolist(), table.drop(columns="geometry").to_csv())
        else:
            outputs[path.name] = path.read_bytes()
    assert not [path for path in folder.rglob(".*")]
    return outputs


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a run is killed.

    Attributes:
        share: of the tiles that are done, those of refining included.
        step: number of its steps with the file system.
    """

    share: float = math.inf
    step: int = 0


def run_here(scene, folder, kill, resume, report):
    """A run in a process of its own, that reports its result, its first progress and its number of steps."""
    work_folder.CHECKPOINT_S = 0.0  # short runs are kept too
    torch.set_num_threads(1)
    steps, shares = 0, []

    def counted(step, *arguments, **keywords):
        nonlocal steps
        steps += 1
        if steps == kill.step:
            die()
        return step(*arguments, **keywords)

    def progress(done, total):
        shares.append(done / total)
        if shares[-1] >= kill.share:
            die()

    for name in STEPS:
        setattr(os, name, partial(counted, getattr(os, name) if name != "fsync" else int))
    result = scene.run(folder, resume=resume, progress=progress).as_dict()
    told = {key: value for key, value in result.items() if key not in ("seconds", "paths")}
    report.write_text(json.dumps({"told": told, "first": min(shares, default=1.0), "steps": steps}))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def processes():
    """Processes that have everything loaded and done nothing: forks of one that used GDAL's threads hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_resume"])
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def run(processes, tmp_path):
    """run(scene, folder, ...) -> what it reports, None where it was killed."""

    def start(scene, folder, *, kill=None, resume=True):
        report = tmp_path / f"report-{folder.name}.json"
        report.unlink(missing_ok=True)
        process = processes.Process(target=run_here, args=(scene, folder, kill or Kill(), resume, report))
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode in (0, -signal.SIGKILL)
        assert (process.exitcode == 0) == report.exists()
        return json.loads(report.read_text()) if process.exitcode == 0 else None

    return start


@pytest.mark.parametrize("kind", ["map", "refined-resampled", "refine"])
def test_three_kills(make_raster, run, tmp_path, kind):
    """Each later than the one before."""
    scene = Scene(make_raster, kind)
    undisturbed = run(scene, tmp_path / "whole")
    folder = tmp_path / "killed"
    for share in (0.5, 0.7, 0.95):
        assert run(scene, folder, kill=Kill(share=share)) is None
        assert [path.name for path in folder.iterdir() if path.suffix == ".tif"] == []
    again = run(scene, folder)
    assert again["first"] > 0.4  # what was finished is not run again
    assert found_in(folder) == found_in(tmp_path / "whole")
    assert again["told"] == undisturbed["told"]


def is_whole(folder):
    """Killed after its very end: outputs have their names, and no journal is left."""
    return (folder / "map.tif").exists() and not (folder / ".map.tif.rsseg" / "journal.json").exists()


def check_kills(scene, run, tmp_path, steps, again=None):
    """Kill runs at steps, and those that go on at others: the last gives what an undisturbed one gives."""
    undisturbed = run(scene, tmp_path / "whole")
    expected = found_in(tmp_path / "whole")
    for number in steps(undisturbed["steps"]):
        folder = tmp_path / f"step{number}"
        assert run(scene, folder, kill=Kill(step=number), resume=False) is None
        if again is not None and not is_whole(folder):
            run(scene, folder, kill=Kill(step=again(undisturbed["steps"])))
        if is_whole(folder):
            continue
        result = run(scene, folder)
        assert found_in(folder) == expected, number
        assert result["told"] == undisturbed["told"]


def test_kills_at_steps_of_the_file_system(make_raster, run, tmp_path):
    """While the journal is written, rasters are finished, between the names that outputs get, at the end."""
    check_kills(
        Scene(make_raster, "map"), run, tmp_path, lambda count: [9, *range(count - 27, count, 6), count - 1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map-resampled", "refined", "refined-resampled", "refine-resampled"])
def test_twenty_kills_each_at_any_step(make_raster, run, tmp_path, kind):
    """Killed at any step, and once more while they go on."""
    rng = np.random.default_rng(1)
    check_kills(
        Scene(make_raster, kind), run, tmp_path,
        lambda count: sorted(rng.choice(np.arange(1, count + 1), 20, replace=False).tolist()),
        lambda count: int(rng.integers(1, count)),
    )  # fmt: skip
