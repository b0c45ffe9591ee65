"""What many scenes in one run save, and what a kill costs.

    python benchmarks/batch.py loop      60 sheets of 2,000 px: one batch against a loop of single runs
    python benchmarks/batch.py jobs      the same sheets: one process against several
    python benchmarks/batch.py kill      the same sheets: killed (SIGKILL) twice and resumed, against one run
    python benchmarks/batch.py kill --scene scene.tif --model buildings     sheets cut from your own scene

Each run is the program itself (`python -m rsseg_cli predict`) in a process of its own, start-up included.
Sheets are drawn (`rsseg demo-scene`) at the model's ground resolution, uint8 RGB, tiled, deflate. CPU seconds
are those of the run and of all its processes; where other programs use the machine they tell more than wall
time. `kill` also compares the pixels of all maps with those of the run that was not killed.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHEET_PX = 2000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(PARTS))
    parser.add_argument("--sheets", type=int, default=60)
    parser.add_argument("--size", type=int, default=SHEET_PX, help="side of a sheet, px")
    parser.add_argument("--model", default="landcover")
    parser.add_argument("--scene", type=Path, help="cut into sheets in place of drawn ones")
    parser.add_argument(
        "--window", type=int, nargs=4, metavar=("ROW", "COL", "HEIGHT", "WIDTH"), help="of --scene"
    )
    parser.add_argument("--jobs", default="2", help="processes of `jobs`")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
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

    from rsseg_cli.synthetic import draw_scene
    from rsseg_cli.weights.registry import read_spec

    gsd, size = read_spec(arguments.model).gsd_m or 0.5, arguments.size
    squares = [draw_scene(size, seed)[0] for seed in range(min(3, arguments.sheets))]
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
    """Parts of a scene."""
    import rasterio
    from rasterio.windows import Window

    paths = []
    with rasterio.open(arguments.scene) as scene:
        top, left, height, width = arguments.window or (0, 0, scene.height, scene.width)
        for row in range(top, top + height, arguments.size):
            for col in range(left, left + width, arguments.size):
                window = Window(
                    col, row, min(arguments.size, left + width - col), min(arguments.size, top + height - row)
                )
                paths.append(folder / f"sheet_r{row:05}_c{col:05}.tif")
                write_sheet(
                    rasterio,
                    paths[-1],
                    scene.read((1, 2, 3), window=window),
                    scene.crs,
                    scene.window_transform(window),
                )
    return paths


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


def compare_killed(arguments: argparse.Namespace, work: Path, sheets: Sequence[Path]) -> None:
    """Killed at random moments and resumed, against a run that is left alone."""
    whole = timed(lambda: run(arguments, sheets, work / "whole"))
    seconds = whole[0]
    random_s = random.Random(arguments.seed)
    share = seconds / arguments.kills  # a kill in the middle of each
    moments = [(number + random_s.uniform(0.3, 0.7)) * share for number in range(arguments.kills)]
    spans = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]

    def killed() -> None:
        for number, span in enumerate(spans):
            process = start(arguments, sheets, work / "killed", *(["--resume"] if number else []))
            try:
                process.wait(timeout=max(span, 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            print(f"killed after {span:.1f} s: {told(work / 'killed')}")
        run(arguments, sheets, work / "killed", "--resume")

    interrupted = timed(killed)
    print(f"at the end: {told(work / 'killed')}")
    table({"left alone": whole, f"killed {len(spans)} times": interrupted})
    print(f"lost a kill: {(interrupted[0] - seconds) / len(spans):.1f} s")
    same = compare_maps(work / "whole", work / "killed")
    print(f"{same[0]} of {same[1]} rasters have the same pixels")
    if same[3]:
        print(f"{same[2]} of {same[3]} polygon files have the same polygons")


def told(folder: Path) -> str:
    """What the manifest says is done."""
    states: dict[str, str] = {}
    manifest = folder / "manifest.jsonl"
    for line in manifest.read_bytes().splitlines(keepends=True) if manifest.exists() else []:
        if line.endswith(b"\n"):
            record = json.loads(line)
            states[record["input"]] = record["status"]
    return ", ".join(
        f"{list(states.values()).count(state)} {state}" for state in ("done", "started", "failed")
    )


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
    equal = sum(
        geopandas.read_file(one / name).equals(geopandas.read_file(other / name)) for name in polygons
    )
    return same, len(rasters), equal, len(polygons)


def start(
    arguments: argparse.Namespace, scenes: Sequence[Path], output: Path, *more: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rsseg_cli", "predict", *map(str, scenes), "-o", str(output)]
    command += ["--model", arguments.model, "--quiet", *more]
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


PARTS = {"loop": compare_loop, "jobs": compare_jobs, "kill": compare_killed}

if __name__ == "__main__":
    main()
