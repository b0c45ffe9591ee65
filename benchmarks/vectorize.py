"""What `rsseg vectorize` costs beside the usual ways from a class raster to polygons.

    python benchmarks/vectorize.py                       a drawn land-cover raster of 2,000 x 2,000 px
    python benchmarks/vectorize.py --size 10000          the same, larger
    python benchmarks/vectorize.py --scene MAP.tif       a map of your own
    python benchmarks/vectorize.py --size 30000 --only "rsseg, 2 jobs"
    python benchmarks/vectorize.py memory                peak memory of wide and of high rasters
    python benchmarks/vectorize.py memory --sizes 40000x3000 80000x3000

Each run is a program of its own that ends with a GeoPackage on disk; contenders take turns, and ratios within
one call count. Seconds are those of the whole program, imports included; beside them are those that
processors spent on it and its workers, which other work on the machine moves less. Memory is the largest sum,
ten times a second, over the program and its workers, of the pages they hold (PSS: pages that processes share
count once), in 10^6 bytes. The drawn raster is that of `rsseg demo-scene`, turned and repeated to size, with
the ragged borders of a network's map: each pixel takes the class of one some pixels away.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SAMPLE_S = 0.1
PIECE = 1000  # side of the drawn piece, px
SIZES = ["10000x5000", "40000x5000", "80000x5000", "5000x20000"]  # width and height
STEPS = {
    "plain": [],
    "--simplify 1": ["--simplify", "1"],
    "--simplify 1 --smooth": ["--simplify", "1", "--smooth"],
    "--min-area 10 --fill-holes 10": ["--min-area", "10", "--fill-holes", "10"],
}
RAGGED_PX = 2.0
UNITS = {"s": "s", "cpu": "s CPU", "mb": "MB"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["compare", "memory", "shapes"], default="compare")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="of memory's rasters, WIDTHxHEIGHT px")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="that memory measures")
    parser.add_argument("--size", type=int, default=2000, help="side of the drawn raster, px")
    parser.add_argument("--scene", type=Path, help="a class raster in place of the drawn one")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender")
    parser.add_argument("--only", action="append", help="a contender's name; repeatable")
    parser.add_argument("--folder", type=Path, help="where rasters and results are kept")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "shapes":
        whole_raster(arguments.scene, arguments.output)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        memory(arguments, folder) if arguments.what == "memory" else compare(arguments, folder)


def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the peak memory of two jobs by size and step."""
    output = folder / "polygons.gpkg"
    for size in arguments.sizes:
        width, height = (int(side) for side in size.split("x"))
        raster = drawn_raster(folder, width, height)
        for step in arguments.steps:
            output.unlink(missing_ok=True)
            found, printed = measure(rsseg(raster, output, 2, *STEPS[step]))
            text = ", ".join(f"{found[key]:.1f} {unit}" for key, unit in UNITS.items())
            print(f"  {size}, {step}: {json.loads(printed)['features']} polygons, {text}", flush=True)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run the contenders in turn and print a table."""
    raster = arguments.scene or drawn_raster(folder, arguments.size, arguments.size)
    chosen = {
        name: command
        for name, command in contenders(raster, folder).items()
        if arguments.only is None or name in arguments.only
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    stages: dict[str, str] = {}
    for _ in range(arguments.repeats):
        for name, command in chosen.items():
            output = folder / "polygons.gpkg"
            output.unlink(missing_ok=True)
            measured, printed = measure(command)
            runs[name].append(measured)
            if printed.startswith("{"):
                found = json.loads(printed)["stages"]
                stages[name] = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found.items())
            text = ", ".join(f"{measured[key]:.1f} {unit}" for key, unit in UNITS.items())
            print(f"  {name}: {text}", file=sys.stderr)
    table(raster, {name: median(items) for name, items in runs.items()}, stages)


def contenders(raster: Path, folder: Path) -> dict[str, list[str]]:
    """Name -> command; all of them write polygons.gpkg."""
    output = folder / "polygons.gpkg"
    known = {
        "rasterio.features.shapes + geopandas": [
            sys.executable, __file__, "shapes", "--scene", str(raster), "--output", str(output),
        ],
    }  # fmt: skip
    polygonize = shutil.which("gdal_polygonize.py")
    if polygonize:
        known["gdal_polygonize.py"] = [polygonize, "-q", str(raster), str(output), "-f", "GPKG"]
    else:
        print("gdal_polygonize.py is not installed (Debian: apt-get install python3-gdal)", file=sys.stderr)
    known |= {f"rsseg, {jobs} job{'s' * (jobs > 1)}": rsseg(raster, output, jobs) for jobs in (1, 2)}
    known["rsseg, 2 jobs, --simplify 1"] = rsseg(raster, output, 2, "--simplify", "1")
    known["rsseg, 2 jobs, all steps"] = rsseg(
        raster, output, 2, *STEPS["--min-area 10 --fill-holes 10"], *STEPS["--simplify 1 --smooth"]
    )
    return known


def rsseg(raster: Path, output: Path, jobs: int, *options: str) -> list[str]:
    """The command."""
    program = [sys.executable, "-m", "rsseg_cli", "vectorize", str(raster), "-o", str(output)]
    return [*program, "--json", "-q", "--jobs", str(jobs), *options]


def whole_raster(raster: Path, output: Path) -> None:
    """The usual way: all polygons of the raster at once."""
    import geopandas
    import rasterio
    from rasterio.features import shapes
    from shapely.geometry import shape

    with rasterio.open(raster) as dataset:
        labels, mask, transform = dataset.read(1), dataset.read_masks(1), dataset.transform
        crs = dataset.crs
    found = [(shape(item), int(value)) for item, value in shapes(labels, mask > 0, 4, transform)]
    frame = geopandas.GeoDataFrame(
        {"class_index": [value for _, value in found]}, geometry=[item for item, _ in found], crs=crs
    )
    frame["area_m2"] = frame.area
    frame.to_file(output, engine="pyogrio")


def measure(command: list[str]) -> tuple[dict[str, float], str]:
    """Seconds and peak memory of a program with its workers, and what it printed."""
    start, peak, before = time.perf_counter(), 0, cpu_seconds()
    with tempfile.TemporaryFile("w+") as printed:
        program = subprocess.Popen(command, stdout=printed, cwd=ROOT)
        while program.poll() is None:
            peak = max(peak, sum(memory_of(process) for process in family(program.pid)))
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - start
        if program.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {program.returncode}")
        printed.seek(0)
        return {"s": seconds, "cpu": cpu_seconds() - before, "mb": peak / 1e3}, printed.read()


def cpu_seconds() -> float:
    """Of all programs that have ended, and of their workers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(process: int) -> list[int]:
    """A process, its children and theirs."""
    members = [process]
    for member in members:
        try:
            for task in os.listdir(f"/proc/{member}/task"):
                text = Path(f"/proc/{member}/task/{task}/children").read_text()
                members += [int(child) for child in text.split()]
        except OSError:  # it has ended
            continue
    return members


def memory_of(process: int) -> int:
    """Its share of the pages that it holds, kB."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def median(items: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(item[key] for item in items) for key in items[0]}


def table(raster: Path, found: dict[str, dict[str, float]], stages: dict[str, str]) -> None:
    """Seconds and memory, and as parts of the first contender's."""
    first = next(iter(found))
    print(f"{raster}, {os.cpu_count()} cores; ratios to {first}")
    for name, values in found.items():
        times, cpu, memory = (found[first][key] / values[key] for key in ("s", "cpu", "mb"))
        text = " ".join(f"{values[key]:8.1f} {unit}" for key, unit in UNITS.items())
        print(
            f"  {name:<38} {text}   {times:5.2f} x as fast, {1 / cpu:.2f} of its processor time, "
            f"{1 / memory:.2f} of its memory"
        )
    for name, text in stages.items():
        print(f"  {name}: seconds by stage, all workers together: {text}")


def drawn_raster(folder: Path, width: int, height: int) -> Path:
    """A land-cover raster."""
    import numpy as np
    import rasterio
    from rasterio.windows import Window
    from scipy.ndimage import gaussian_filter

    from rsseg_cli.data import synthetic

    path = folder / f"land_cover_{width}x{height}.tif"
    if path.exists():
        return path
    _, labels = synthetic.draw_scene(PIECE)
    pieces = [np.rot90(labels, turn) for turn in range(4)] + [np.rot90(labels.T, turn) for turn in range(4)]
    generator = np.random.default_rng(0)
    noise = [gaussian_filter(generator.standard_normal((PIECE, PIECE)), 1.5, mode="wrap") for _ in range(2)]
    shift = [np.rint(plane / plane.std() * RAGGED_PX).astype(int) for plane in noise]
    place = np.indices((PIECE, PIECE)) + shift
    ragged = [piece[place[0].clip(0, PIECE - 1), place[1].clip(0, PIECE - 1)] for piece in pieces]
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint8"}
    profile |= {
        "nodata": 255,
        "crs": "EPSG:32632",
        "transform": rasterio.Affine(0.3, 0, 684300, 0, -0.3, 5336700),
    }
    profile |= {"tiled": True, "compress": "deflate", "bigtiff": "if_safer"}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write_colormap(1, {k: (*colour, 255) for k, (_, colour) in enumerate(synthetic.CLASSES)})
        dataset.update_tags(**{f"CLASS_{k}": name for k, (name, _) in enumerate(synthetic.CLASSES)})
        for row in range(0, height, PIECE):
            for col in range(0, width, PIECE):
                piece = ragged[(row // PIECE * 3 + col // PIECE) % len(ragged)]
                piece = piece[: height - row, : width - col]
                dataset.write(piece, 1, window=Window(col, row, piece.shape[1], piece.shape[0]))
    return path


if __name__ == "__main__":
    main()
