"""What Ray costs on one machine: sheets by as many processes with and without it.

    python benchmarks/batch_ray.py                    60 sheets of 2,000 px, two workers of one thread
    python benchmarks/batch_ray.py --sheets 12 --options refine --model buildings

Three runs of the program: `--jobs N`; `--engine ray`, which starts and ends a cluster of its own; and
`--engine ray --ray-address auto` on a cluster that runs already: started before the clock, stopped after it.
Shown are wall seconds, start-up included, and the seconds from the first scene's end to the last one's, in
which only scenes are worked on. The maps are compared pixel by pixel.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from batch import SHEET_PX, compare_maps, draw_sheets, run, timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheets", type=int, default=60)
    parser.add_argument("--size", type=int, default=SHEET_PX, help="side of a sheet, px")
    parser.add_argument("--model", default="landcover-small")
    parser.add_argument("--jobs", default="2", help="workers")
    parser.add_argument("--options", nargs="*", default=[], help="more of predict, as vector=gpkg refine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "sheets").mkdir()
        sheets = draw_sheets(arguments, work / "sheets")
        print(f"{len(sheets)} sheets of {arguments.size} px, model {arguments.model}, {os.cpu_count()} cores")
        ray = ["--engine", "ray", "--jobs", arguments.jobs]
        options = {
            "--jobs": ["--jobs", arguments.jobs],
            "--engine ray": ray,
            "--ray-address auto": [*ray, "--ray-address", "auto"],
        }
        measured = {}
        for name, more in options.items():
            target = work / name.strip("-").replace(" ", "-")
            with running(arguments.jobs) if "auto" in more else running(None):
                wall, _ = timed(functools.partial(run, arguments, sheets, target, *more))
            measured[name] = (wall, steady_s(target), target)
        show(measured)


def show(measured: dict[str, tuple[float, float, Path]]) -> None:
    first = next(iter(measured.values()))
    print(f"{'':<20}  wall s  ratio  scenes alone s  ratio  same rasters")
    for name, (wall, steady, folder) in measured.items():
        same, count, *_ = compare_maps(first[2], folder)
        ratio, steady_ratio = wall / first[0], steady / first[1]
        print(
            f"{name:<20}  {wall:6.1f}  {ratio:5.2f}  {steady:14.1f}  {steady_ratio:5.2f}  {same} of {count}"
        )


@contextmanager
def running(workers: str | None) -> Iterator[None]:
    """A cluster of this machine, where workers are given."""
    if workers is None:
        yield
        return
    program = [str(Path(sys.executable).parent / "ray")]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    start = ["start", "--head", "--num-cpus", workers, "--include-dashboard", "false"]
    subprocess.run([*program, *start], env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([*program, "stop"], env=environment, check=True, stdout=subprocess.DEVNULL)
        time.sleep(2)


def steady_s(folder: Path) -> float:
    """From the first scene's end to the last one's, s."""
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    ends = [datetime.fromisoformat(record["time"]) for record in records if record.get("status") == "done"]
    return (max(ends) - min(ends)).total_seconds()


if __name__ == "__main__":
    main()
