"""What many scenes in one run save, and what a kill costs.

    python benchmarks/batch.py loop      60 sheets of 2,000 px: one batch against a loop of single runs
    python benchmarks/batch.py jobs      the same sheets: one process against several
    python benchmarks/batch.py finish    the same sheets: mapping them, and finishing their outputs after that
    python benchmarks/batch.py kill      the same sheets: killed (SIGKILL) twice and resumed, against one run
    python benchmarks/batch.py kill --scene a.tif b.tif --model buildings   sheets cut from your own scenes
    python benchmarks/batch.py kill --engine ray                            on a cluster of this machine

Each run is the program itself (`python -m rsseg_cli predict`) in a process of its own, start-up included.
Sheets are drawn (`rsseg demo-scene`) at the model's ground resolution, uint8 RGB, tiled, deflate. CPU seconds
are those of the run and of all its processes; where other programs use the machine they tell more than wall
time. `kill` tells what each kill met, and compares all maps, pixel by pixel, and all polygons with those of
the run that was not killed; `--at rows polygons` waits, from a random moment on, until a scene is at that.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHEET_PX = 2000
# What a scene under way is at, by a file in its folder: the first of two passes, the pass that makes the
# outputs' rows, COGs, polygons.
STAGES = {
    "coarse": "coarse.[0-9]*.tif",
    "rows": "labels.[0-9]*.tif",
    "finishing": "labels.vrt",
    "polygons": "vector*",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(PARTS))
    parser.add_argument("--sheets", type=int, default=60)
    parser.add_argument("--size", type=int, default=SHEET_PX, help="side of a sheet, px")
    parser.add_argument("--model", default="landcover-small")
    parser.add_argument(
        "--scene",
        type=Path,
        nargs="+",
        default=[],
        help="cut into sheets in place of drawn ones; of each as many, spread over it",
    )
    parser.add_argument(
        "--window", type=int, nargs=4, metavar=("ROW", "COL", "HEIGHT", "WIDTH"), help="of each --scene"
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--jobs", default="2", help="processes of `jobs`, and workers of `--engine ray`")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--at", nargs="*", choices=list(STAGES), default=[], help="of each kill: what a scene is at"
    )
    parser.add_argument("--options", nargs="*", default=[], help="more of predict, as vector=gpkg refine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "sheets").mkdir()
        sheets = (
            cut_sheets(arguments, work / "sheets")
            if arguments.scene
            else draw_sheets(arguments, work / "sheets")
        )
        print(f"{len(sheets)} sheets of {arguments.size} px, model {arguments.model}, {os.cpu_count()} cores")
        PARTS[arguments.what](arguments, work, sheets)


def draw_sheets(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Drawn once and turned, at the model's ground resolution."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin

    from rsseg_cli.data import synthetic
    from rsseg_cli.weights import read_spec

    gsd, size = read_spec(arguments.model).gsd_m or 0.5, arguments.size
    squares = [synthetic.draw_scene(size, seed)[0] for seed in range(min(3, arguments.sheets))]
    paths = []
    for index in range(arguments.sheets):
        pixels = np.rot90(squares[index % len(squares)], index // len(squares) % 4, (1, 2))
        transform = from_origin(
            500000 + index % 10 * size * gsd, 5000000 - index // 10 * size * gsd, gsd, gsd
        )
        paths.append(folder / f"sheet_{index:03}.tif")
        write_sheet(rasterio, paths[-1], pixels, "EPSG:32633", transform)
    return paths


def cut_sheets(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Parts of scenes, --sheets in all."""
    import rasterio
    from rasterio.windows import Window

    paths = []
    for name in arguments.scene:
        with rasterio.open(name) as scene:
            whole = arguments.window or (0, 0, scene.height, scene.width)
            for row, col, height, width in spread(
                squares(whole, arguments.size), arguments.sheets // len(arguments.scene)
            ):
                window = Window(col, row, width, height)
                paths.append(folder / f"{name.stem}_r{row:05}_c{col:05}.tif")
                pixels = scene.read((1, 2, 3), window=window)
                write_sheet(rasterio, paths[-1], pixels, scene.crs, scene.window_transform(window))
    return paths


def squares(window: Sequence[int], size: int) -> list[tuple[int, int, int, int]]:
    """(row, col, height, width) of the parts of a window; those at its end may be smaller."""
    top, left, height, width = window
    return [
        (row, col, min(size, top + height - row), min(size, left + width - col))
        for row in range(top, top + height, size)
        for col in range(left, left + width, size)
    ]


def spread(parts: list[tuple[int, int, int, int]], most: int) -> list[tuple[int, int, int, int]]:
    """Some of them, evenly; the larger ones where some are smaller."""
    largest = max(height * width for _, _, height, width in parts)
    whole = [part for part in parts if part[2] * part[3] == largest]
    parts = whole if len(whole) >= most else parts
    count = max(1, min(most, len(parts)))
    return [parts[index * len(parts) // count] for index in range(count)]


def write_sheet(rasterio, path, pixels, crs, transform) -> None:
    profile = {
        "driver": "GTiff",
        "count": 3,
        "dtype": pixels.dtype.name,
        "photometric": "rgb",
        "compress": "deflate",
    }
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=pixels.shape[1], width=pixels.shape[2], **profile) as dataset:
        dataset.write(pixels)


def compare_loop(arguments: argparse.Namespace, work: Path, sheets: Sequence[Path]) -> None:
    """One batch against a program a sheet."""
    (work / "loop").mkdir()
    batch = timed(lambda: run(arguments, sheets, work / "batch"))
    loop = timed(
        lambda: [run(arguments, [sheet], work / "loop" / f"{sheet.stem}_map.tif") for sheet in sheets]
    )
    table({"one batch": batch, "a run a sheet": loop})


def compare_jobs(arguments: argparse.Namespace, work: Path, sheets: Sequence[Path]) -> None:
    """Several processes against one."""
    measured = {}
    for jobs in ("1", arguments.jobs):
        work_there = functools.partial(run, arguments, sheets, work / f"jobs{jobs}", "--jobs", jobs)
        measured[f"--jobs {jobs}"] = timed(work_there)
    table(measured)


def compare_finishing(arguments: argparse.Namespace, work: Path, sheets: Sequence[Path]) -> None:
    """What a process of `--jobs` does after the last tile of a sheet, by one thread, but of the first one."""
    from rsseg_cli.batch.local import SceneRunner
    from rsseg_cli.batch.task import SceneTask
    from rsseg_cli.config import VectorConfig

    os.environ["OMP_NUM_THREADS"] = os.environ["GDAL_NUM_THREADS"] = "1"  # before torch is loaded
    runner = SceneRunner()
    for endings in ({"labels": "tif"}, {"labels": "tif", "vector": "gpkg", "preview": "png"}):
        spent: list[tuple[float, ...]] = []
        for index, sheet in enumerate(sheets):
            outputs = {kind: work / f"{len(endings)}_{sheet.stem}.{end}" for kind, end in endings.items()}
            task = SceneTask(
                index=index, scene=str(sheet), outputs=outputs, model=arguments.model,
                vector=VectorConfig(jobs=1),
            )  # fmt: skip
            times = [(time.monotonic(), time.process_time())]
            finish = runner.start(task)
            times.append((time.monotonic(), time.process_time()))
            outcome = finish()
            times.append((time.monotonic(), time.process_time()))
            if outcome.error:
                raise SystemExit(outcome.error)
            spent.append(
                tuple(after - before for part in zip(*times, strict=True) for before, after in pairwise(part))
            )
        wall, wall_after, cpu, cpu_after = map(sum, zip(*spent[1:], strict=True))
        print(
            f"\n{', '.join(endings)}: finishing takes {wall_after / (wall + wall_after):.1%} of the seconds"
        )
        table({"mapping": (wall, cpu), "finishing": (wall_after, cpu_after)})


def compare_killed(arguments: argparse.Namespace, work: Path, sheets: Sequence[Path]) -> None:
    """Killed at random moments and resumed, against a run that is left alone."""
    whole = timed(lambda: run(arguments, sheets, work / "whole"))
    a_sheet_s = whole[0] / len(sheets)
    interrupted = timed(lambda: run_killed(arguments, work / "killed", sheets, a_sheet_s))
    print(f"at the end: {told(work / 'killed')}")
    table({"left alone": whole, f"killed {arguments.kills} times": interrupted})
    lost = [(after - before) / arguments.kills for before, after in zip(whole, interrupted, strict=True)]
    print(f"lost a kill: {lost[0]:.1f} s of wall time, {lost[1]:.1f} s of CPU, start-up included")
    show_same(work / "whole", work / "killed")


def run_killed(arguments: argparse.Namespace, folder: Path, sheets: Sequence[Path], a_sheet_s: float) -> None:
    """Kill a run in the middle of each share of its sheets, and resume it.

    Args:
        a_sheet_s: about the time that a sheet takes, s.
    """
    moments = random.Random(arguments.seed)
    for number in range(arguments.kills):
        most = (number + moments.uniform(0.3, 0.7)) / arguments.kills * len(sheets)
        process = start(arguments, sheets, folder, *(["--resume"] if number else []))
        begin = time.monotonic()
        while process.poll() is None and states(folder).count("done") < int(most):
            time.sleep(0.05)
        if number < len(arguments.at):
            wait_until(folder, arguments.at[number], process)
        else:
            time.sleep(moments.uniform(0, a_sheet_s))
        with contextlib.suppress(ProcessLookupError):  # it may be through
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed after {time.monotonic() - begin:.1f} s: {told(folder)}", flush=True)
        print("".join(f"    {line}\n" for line in left(folder)), end="", flush=True)
    run(arguments, sheets, folder, "--resume")
    print("".join(f"    left behind: {line}\n" for line in left(folder)), end="")


def show_same(one: Path, other: Path) -> None:
    same = compare_maps(one, other)
    print(f"{same[0]} of {same[1]} rasters have the same pixels")
    if same[3]:
        print(f"{same[2]} of {same[3]} polygon files have the same polygons")


def wait_until(folder: Path, stage: str, process: subprocess.Popen[bytes]) -> None:
    """Until a scene is at that, or the run is through."""
    while process.poll() is None and not any(folder.glob(f".*.rsseg/{STAGES[stage]}")):
        time.sleep(0.002)


def left(folder: Path) -> list[str]:
    """What folders of scenes under way hold."""
    lines = []
    for place in sorted(folder.glob(".*.tif.rsseg*")):
        names = {path.name for path in place.iterdir()} - {"lock", "owner.json"}
        state = {"passes": {}, "finished": []}
        if (place / "journal.json").exists():
            state = json.loads((place / "journal.json").read_bytes())
        noted = [f"{name}: {item['rows']} rows noted" for name, item in state["passes"].items()]
        noted += [f"{kind} finished" for kind in state["finished"]]
        stages = [stage for stage, pattern in STAGES.items() if any(place.glob(pattern))]
        lines.append(f"{place.name}: {', '.join([*stages, *noted]) or sorted(names) or 'nothing'}")
    return lines


def states(folder: Path) -> list[str]:
    """What the manifest says of each sheet."""
    found: dict[str, str] = {}
    manifest = folder / "manifest.jsonl"
    for line in manifest.read_bytes().splitlines(keepends=True) if manifest.exists() else []:
        if line.endswith(b"\n"):
            record = json.loads(line)
            found[record["input"]] = record["status"]
    return list(found.values())


def told(folder: Path) -> str:
    """The same, in words."""
    found = states(folder)
    return ", ".join(f"{found.count(state)} {state}" for state in ("done", "started", "failed"))


def compare_maps(one: Path, other: Path) -> tuple[int, int, int, int]:
    """(rasters with the same pixels, rasters, polygon files with the same polygons, polygon files)."""
    import geopandas
    import numpy as np
    import rasterio

    rasters = sorted(path.name for path in one.glob("*.tif"))
    polygons = sorted(path.name for path in one.glob("*.gpkg"))
    same = 0
    for name in rasters:
        with rasterio.open(one / name) as left, rasterio.open(other / name) as right:
            same += left.profile == right.profile and np.array_equal(left.read(), right.read())
    equal = 0
    for name in polygons:
        left, right = (geopandas.read_file(path / name, layer=Path(name).stem) for path in (one, other))
        equal += left.equals(right)
    return same, len(rasters), equal, len(polygons)


def start(
    arguments: argparse.Namespace, scenes: Sequence[Path], output: Path, *more: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rsseg_cli", "predict", *map(str, scenes), "-o", str(output)]
    command += ["--model", arguments.model, "--quiet", *more]
    if getattr(arguments, "engine", "local") == "ray":
        command += ["--engine", "ray", "--jobs", arguments.jobs]
    for option in arguments.options:
        name, sign, value = option.partition("=")
        command += [f"--{name}", value] if sign else [f"--{name}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


def run(arguments: argparse.Namespace, scenes: Sequence[Path], output: Path, *more: str) -> None:
    code = start(arguments, scenes, output, *more).wait()
    if code:
        raise SystemExit(f"rsseg predict ended with exit code {code}")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all child processes)."""
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    seconds, after = time.monotonic() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(measured: dict[str, tuple[float, float]]) -> None:
    """Seconds, and their ratios to the first row's."""
    width = max(map(len, measured))
    first = next(iter(measured.values()))
    print(f"{'':<{width}}  wall s   CPU s  wall ratio  CPU ratio")
    for name, (wall, cpu) in measured.items():
        print(f"{name:<{width}}  {wall:6.1f}  {cpu:6.1f}  {wall / first[0]:10.2f}  {cpu / first[1]:9.2f}")


PARTS = {
    "loop": compare_loop,
    "jobs": compare_jobs,
    "finish": compare_finishing,
    "kill": compare_killed,
}

if __name__ == "__main__":
    main()
