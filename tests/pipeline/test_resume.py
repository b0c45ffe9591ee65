"""Runs that are killed go on: whatever the moment, the outputs are those of a run that nobody disturbed."""

import json
import logging
import math
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import torch
from networks import Local, trained
from refiners import LocalRefiner, refiner
from scipy import ndimage

from rsseg_cli import RefineConfig, VectorConfig, predict, refine
from rsseg_cli.cli import main
from rsseg_cli.errors import ModelError, OutputError, SceneError
from rsseg_cli.pipeline.earlier import finish_publication
from rsseg_cli.pipeline.journal import Journal, Publication
from rsseg_cli.pipeline.workdir import WorkDir

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

    @staticmethod
    def paths(folder):
        """Outputs lie in two folders."""
        names = {"labels": "map.tif", "confidence": "more/confidence.tif", "vector": "more/polygons.gpkg"}
        return {kind: folder / name for kind, name in names.items()}

    def run(self, folder, **more):
        """Short runs are kept too."""
        more = {"checkpoint_s": 0} | more
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
            **{"tile_size": 64, "overlap": 16} | more,
        )


def outputs_in(folder):
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
    reported = {key: value for key, value in result.items() if key not in ("seconds", "paths")}
    report.write_text(json.dumps({"reported": reported, "first": min(shares, default=1.0), "steps": steps}))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def processes():
    """Processes that have everything loaded and done nothing: forks of one that used GDAL's threads hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_resume"])
    paths = [*(str(Path(__file__).parents[k]) for k in range(3)), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def run(processes, tmp_path):
    """run(scene, folder, ...) -> what it reports, None where it was killed."""

    def start(scene, folder, *, kill=None, resume=True, after_s=None):
        report = tmp_path / f"report-{folder.name}.json"
        report.unlink(missing_ok=True)
        process = processes.Process(target=run_here, args=(scene, folder, kill or Kill(), resume, report))
        process.start()
        process.join(120 if after_s is None else after_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            assert after_s is not None
            report.unlink(missing_ok=True)
            return None
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
    assert outputs_in(folder) == outputs_in(tmp_path / "whole")
    assert again["reported"] == undisturbed["reported"]


def assert_reported(reported, undisturbed):
    """The same result, or where only the outputs tell of it, what can be reported of them."""
    if "was complete before; counted from the map" not in reported["notes"]:
        assert reported == undisturbed
        return
    assert reported["valid_pixels"] == undisturbed["valid_pixels"]
    for name, found in reported["classes"].items():
        assert found == pytest.approx(undisturbed["classes"][name], rel=1e-6)


def check_kills(scene, run, tmp_path, steps, again=None):
    """Kill runs at steps, and those that go on at others: the last gives what an undisturbed one gives."""
    undisturbed = run(scene, tmp_path / "whole")
    expected = outputs_in(tmp_path / "whole")
    for number in steps(undisturbed["steps"]):
        folder = tmp_path / f"step{number}"
        assert run(scene, folder, kill=Kill(step=number), resume=False) is None
        if again is not None:
            run(scene, folder, kill=Kill(step=again(undisturbed["steps"])))
        result = run(scene, folder)
        assert outputs_in(folder) == expected, number
        assert_reported(result["reported"], undisturbed["reported"])


def test_kills_at_steps_of_the_file_system(make_raster, run, tmp_path):
    """While the journal is written, rasters are finished, between the names that outputs get, at the end."""
    check_kills(
        Scene(make_raster, "map"), run, tmp_path, lambda count: [9, *range(count - 27, count, 6), count - 1]
    )


def test_killed_while_its_folder_is_removed(make_raster, run, tmp_path):
    """The outputs are whole: reported as such with --resume, in the way without it; what was left goes."""
    scene = Scene(make_raster, "map")
    undisturbed = run(scene, tmp_path / "whole")
    expected = outputs_in(tmp_path / "whole")
    seen = set()
    for step in range(undisturbed["steps"] - 3, undisturbed["steps"] + 1):
        folder = tmp_path / f"step{step}"
        assert run(scene, folder, kill=Kill(step=step), resume=False) is None
        seen |= set(hidden(folder))
        assert (folder / "map.tif").exists()
        if step % 2:
            with pytest.raises(OutputError, match="exists"):
                scene.run(folder)
        else:
            result = scene.run(folder, resume=True, progress=lambda done, total: pytest.fail("was run"))
            assert_reported(result.as_dict(), undisturbed["reported"])
        assert outputs_in(folder) == expected
    assert seen == {".map.tif.rsseg-rubbish"}


def test_complete_outputs_of_another_run_are_in_the_way(make_raster, tmp_path):
    """Of other settings, or of a scene that has changed since."""
    scene = Scene(make_raster, "map")
    scene.run(tmp_path / "out")
    again = scene.run(tmp_path / "out", resume=True)
    assert again.notes[-1] == "was complete before; counted from the map"
    with pytest.raises(OutputError, match="exists"):
        scene.run(tmp_path / "out", resume=True, tta="flip")
    os.utime(scene.scene)
    with pytest.raises(OutputError, match="exists"):
        scene.run(tmp_path / "out", resume=True)
    assert outputs_in(tmp_path / "out")


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map-resampled", "refined", "refine"])
def test_twenty_kills_each_at_any_time(make_raster, run, tmp_path, kind):
    """Each run is killed twice from outside, and then goes on to its end."""
    scene = Scene(make_raster, kind)
    run(scene, tmp_path / "warm")
    begin = time.monotonic()
    undisturbed = run(scene, tmp_path / "whole")
    seconds = time.monotonic() - begin
    expected = outputs_in(tmp_path / "whole")
    rng = np.random.default_rng(2)
    cut = 0
    for number in range(20):
        folder = tmp_path / f"run{number}"
        for after_s in rng.uniform(0, seconds, 2):
            cut += run(scene, folder, after_s=after_s) is None
        result = run(scene, folder)
        assert outputs_in(folder) == expected, number
        assert_reported(result["reported"], undisturbed["reported"])
    assert cut > 20


# --- what is found, reported and left


def stopped(scene, folder, error=KeyboardInterrupt, share=0.6, **more):
    """A run in this process that an error ends at that share of its tiles; what was noted about the error."""

    def stop(done, total):
        if done >= share * total:
            raise error("stopped")

    with pytest.raises(error) as caught:
        scene.run(folder, progress=stop, **more)
    return getattr(caught.value, "__notes__", [])


def hidden(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith("."))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError, RuntimeError])
def test_a_run_that_is_stopped_says_how_to_resume(make_raster, tmp_path, error):
    scene = Scene(make_raster, "map")
    (note,) = stopped(scene, tmp_path / "out", error)
    assert re.fullmatch(
        r"\d+ of 300 rows are kept in .*; run the same command with --resume to continue", note
    )
    assert hidden(tmp_path / "out") == [".map.tif.rsseg"]
    left = {path.name.split(".")[0] for path in (tmp_path / "out" / ".map.tif.rsseg").iterdir()}
    assert left == {"journal", "lock", "owner", "labels", "confidence", "probabilities"}
    scene.run(tmp_path / "out", resume=True)
    assert hidden(tmp_path / "out") == []


def test_what_cannot_get_further_leaves_nothing(make_raster, tmp_path):
    scene = Scene(make_raster, "map")
    for error in (ModelError, SceneError):
        assert stopped(scene, tmp_path / "out", error) == []
        assert hidden(tmp_path / "out") == []
    stopped(scene, tmp_path / "out", share=0)  # before the first row
    assert hidden(tmp_path / "out") == []


def test_a_short_run_leaves_nothing(make_raster, tmp_path):
    scene = Scene(make_raster, "map")
    assert stopped(scene, tmp_path / "out", checkpoint_s=5.0) == []
    assert hidden(tmp_path / "out") == []


def test_another_run_is_not_resumed(make_raster, tmp_path, caplog):
    scene = Scene(make_raster, "map")
    stopped(scene, tmp_path / "out")
    shares = []
    scene.run(
        tmp_path / "out", resume=True, tta="flip", progress=lambda done, total: shares.append(done / total)
    )
    assert shares[0] < 0.2
    assert "an earlier run was another one (settings tta was none, is flip); starting over" in caplog.text
    stopped(scene, tmp_path / "again")
    os.utime(scene.scene, ns=(1, 1))
    scene.run(tmp_path / "again", resume=True)
    assert "files" in caplog.text
    assert hidden(tmp_path / "again") == []


def test_a_run_resumes_on_another_device_of_its_kind(make_raster, tmp_path, caplog):
    """Of several GPUs, a scene gets whichever is free."""
    scene = Scene(make_raster, "map")
    stopped(scene, tmp_path / "out", device="cpu:0")
    shares = []
    scene.run(
        tmp_path / "out", resume=True, device="cpu", progress=lambda done, total: shares.append(done / total)
    )
    assert shares[0] > 0.4
    assert "starting over" not in caplog.text


@pytest.mark.parametrize("damage", ["journal", "rows"])
def test_a_damaged_state_is_not_resumed(make_raster, tmp_path, caplog, damage):
    scene = Scene(make_raster, "map")
    scene.run(tmp_path / "whole")
    stopped(scene, tmp_path / "out")
    name = "journal.json" if damage == "journal" else "labels.0.tif"
    file = tmp_path / "out" / ".map.tif.rsseg" / name
    file.write_bytes(file.read_bytes()[:-3])
    scene.run(tmp_path / "out", resume=True)
    assert "damaged" in caplog.text
    assert outputs_in(tmp_path / "out") == outputs_in(tmp_path / "whole")


def test_what_a_dead_run_left_is_removed(make_raster, run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    scene = Scene(make_raster, "map")
    folder = tmp_path / "out"
    assert run(scene, folder, kill=Kill(share=0.8)) is None
    journal = (folder / ".map.tif.rsseg" / "journal.json").read_bytes()
    stray = [folder / "more" / f".confidence.tif.{WorkDir(scene.paths(folder)).tag}.confidence.tif"]
    stray[0].touch()
    (folder / ".map.tif.rsseg" / "vector").mkdir()
    scene.run(folder)
    assert "removed temporary files of a run that had died" in caplog.text
    assert hidden(folder) == []
    other = folder / "other.tif"
    (folder / ".other.tif.rsseg").mkdir()
    (folder / ".other.tif.rsseg" / "journal.json").write_bytes(journal)
    scene.run(folder, overwrite=True)
    assert hidden(folder) == [".other.tif.rsseg"]  # not this output's business
    assert not other.exists()


def test_a_journal_renames_nothing_but_these_outputs(make_raster, tmp_path):
    """A folder may come from anyone."""
    scene = Scene(make_raster, "map")
    folder = tmp_path / "out"
    work = folder / ".map.tif.rsseg"
    work.mkdir(parents=True)
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (work / "evil").write_text("evil")
    for renames, leftovers in (
        ([(str(work / "evil"), str(mine))], []),
        ([(str(mine), str(folder / "map.tif"))], []),
        ([(str(work / ".." / ".." / "mine.txt"), str(folder / "map.tif"))], []),
        ([], [str(mine)]),
    ):
        publication = Publication(renames=renames, leftovers=leftovers, result={})
        Journal(fingerprint={}, publication=publication).save(work / "journal.json")
        assert finish_publication(scene.paths(folder)) is None
        assert mine.read_text() == "mine"
        assert not (folder / "map.tif").exists()


def test_two_runs_of_one_output(make_raster, tmp_path):
    """The second is refused while the first is at work, which goes on undisturbed."""
    scene = Scene(make_raster, "map")
    refused = []

    def second(done, total):
        if not refused:
            with pytest.raises(OutputError, match="is being written by process") as caught:
                scene.run(tmp_path / "out")
            refused.append(caught.value)

    scene.run(tmp_path / "out", progress=second)
    scene.run(tmp_path / "whole")
    assert refused
    assert outputs_in(tmp_path / "out") == outputs_in(tmp_path / "whole")


def command_here(arguments, stderr):
    """The program in a process of its own."""
    handle = os.open(stderr, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    sys.argv = ["rsseg", *arguments]
    main()


def test_a_command_that_is_ended_says_how_to_resume(make_raster, processes, tmp_path):
    scene = make_raster(array=np.zeros((3, 20000, 300), np.uint8), gsd=1.0)
    output, stderr = tmp_path / "map.tif", tmp_path / "stderr.txt"
    arguments = ["predict", str(scene), "-o", str(output), "--tile-size", "64", "--overlap", "16"]
    process = processes.Process(target=command_here, args=(arguments, stderr))
    process.start()
    journal = tmp_path / ".map.tif.rsseg" / "journal.json"
    deadline = time.monotonic() + 90
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    process.join(60)
    assert process.exitcode == 130
    reported = rf"rsseg: interrupted; \d+ of 20000 rows are kept in {journal.parent}; "
    last = stderr.read_text().strip().splitlines()[-1]
    assert re.fullmatch(f"{reported}run the same command with --resume to continue", last)
    assert journal.exists()
    assert not output.exists()
