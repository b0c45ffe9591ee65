"""What a network costs by library and precision: `python benchmarks/predict.py runtimes`."""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WAYS = (
    ("torch", "float32"), ("torch", "bfloat16"), ("onnxruntime", "float32"), ("openvino", "float32"),
    ("openvino", "bfloat16"),
)  # fmt: skip
SCENES = {  # options of whole runs, and the share of the asked size that they take
    "landcover-small": (("--model", "landcover-small"), 1),
    "buildings --refine": (("--model", "buildings", "--refine"), 2),
}
TILE_PX, SAMPLES = 512, 8


def compare_runtimes(arguments: argparse.Namespace) -> None:
    """A tile of each network, then whole programs with their imports, at the network's own resolution.

    Differences are the largest of logits; a first run, which compiles the networks, is not counted.
    """
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the program sets it
    for title, model, refiner in (
        ("landcover-small", "landcover-small", ""),
        ("IDGBR lite", "buildings", "buildings-refiner"),
    ):
        print(f"{title}, a tile of {TILE_PX} px, {arguments.threads} threads")
        tile_table(model, refiner, arguments.threads, arguments.repeats * 2)
    for name, (options, part) in SCENES.items():
        size = (arguments.size or 4096) // part
        print(f"\nrsseg predict, {name}, {size} x {size} px, whole program")
        scene_table(arguments, options, size)


def tile_table(model: str, refiner: str, threads: int, rounds: int) -> None:
    """Print milliseconds a tile, and how far results are from torch's in float32."""
    import numpy as np
    import torch

    from rsseg_cli.config import PredictConfig
    from rsseg_cli.inference.runtime import has_bfloat16

    torch.set_num_threads(threads)
    inputs = drawn_inputs(model, refiner)
    ways = [
        (runtime, dtype)
        for runtime, dtype in WAYS
        if find_spec(runtime) and (dtype == "float32" or runtime == "torch" or has_bfloat16())
    ]
    with ExitStack() as stack:
        engines = {
            way: stack.enter_context(
                engine(model, refiner, PredictConfig(device="cpu", runtime=way[0], dtype=way[1]))
            )
            for way in ways
        }
        found = {
            way: np.concatenate([item.run([tile]).numpy() for tile in inputs])
            for way, item in engines.items()
        }
        times: dict[tuple[str, str], list[tuple[float, float]]] = {way: [] for way in ways}
        for _, way in itertools.product(range(rounds), ways):
            start = time.perf_counter(), time.process_time()
            engines[way].run(inputs[:1])
            times[way].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    print(f"{'':<22}{'ms':>7}{'CPU ms':>8}{'faster':>8}{'by CPU':>8}{'equal pixels':>14}{'difference':>12}")
    medians = {
        way: [1e3 * statistics.median(part) for part in zip(*runs, strict=True)]
        for way, runs in times.items()
    }
    base, exact = medians[WAYS[0]], found[WAYS[0]]
    for way, (ms, cpu_ms) in medians.items():
        equal = (found[way].argmax(1) == exact.argmax(1)).mean()
        far = np.abs(found[way] - exact).max()
        ratios = f"{base[0] / ms:>8.2f}{base[1] / cpu_ms:>8.2f}"
        print(f"{' '.join(way):<22}{ms:>7.0f}{cpu_ms:>8.0f}{ratios}{equal:>14.4%}{far:>12.2g}")


def engine(model: str, refiner: str, config: Any) -> Any:
    """The engine of a model's network, or of a refiner's; results are logits."""
    from rsseg_cli.config import RefineConfig
    from rsseg_cli.inference import Engine, RefinerEngine, Scaling
    from rsseg_cli.weights import load_model

    loaded = load_model(refiner or model)
    spec = loaded.spec
    factors = [1 / (255 * std) for std in spec.std]
    offsets = [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    scaling = Scaling(factors=tuple(factors), offsets=tuple(offsets))
    classes = len(spec.classes)
    if not refiner:
        return Engine(loaded.network, classes=classes, scaling=scaling, config=config)
    return RefinerEngine(
        loaded.network,
        order=tuple(range(classes)),
        scaling=scaling,
        config=RefineConfig(),
        samples=1,
        run=config,
    )


def drawn_inputs(model: str, refiner: str) -> list[Any]:
    """Drawn tiles at the network's resolution; for a refiner with the model's map."""
    from rsseg_cli.config import PredictConfig
    from rsseg_cli.data import synthetic
    from rsseg_cli.inference.windows import Window
    from rsseg_cli.weights import read_spec

    gsd_m = read_spec(refiner or model).gsd_m or 0.3
    tiles = [synthetic.draw_scene(TILE_PX, seed, gsd_m=gsd_m)[0][:3] for seed in range(SAMPLES)]
    if not refiner:
        return tiles
    with engine(model, "", PredictConfig(device="cpu", runtime="torch")) as mapping:
        maps = [mapping.run([tile]).argmax(1).byte().numpy()[0] for tile in tiles]
    return [Window(tile, labels, 0, 0) for tile, labels in zip(tiles, maps, strict=True)]


def scene_table(arguments: argparse.Namespace, options: Sequence[str], size: int) -> None:
    """Print seconds of whole programs that take turns, and the share of equal pixels."""
    from rsseg_cli.weights import read_spec

    gsd_m = read_spec(options[1]).gsd_m
    scene = arguments.folder / f"drawn_{size}_{gsd_m:g}.tif"
    if not scene.exists():
        rsseg("demo-scene", scene, "--size", size, "--gsd", gsd_m)
    ways = {
        "torch float32": ("--runtime", "torch", "--dtype", "float32"),
        "openvino float32": ("--runtime", "openvino", "--dtype", "float32"),
        "auto": (),
    }
    maps = {name: arguments.folder / f"map_{number}.tif" for number, name in enumerate(ways)}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number, (name, way) in itertools.product(range(arguments.repeats + 1), ways.items()):
        if number == 0 and name == "torch float32":
            continue
        run = ("predict", scene, "-o", maps[name], *options, *way, "--overwrite", "-q")
        measured = rsseg(*run, OMP_NUM_THREADS=str(arguments.threads))
        if number:
            runs[name].append(measured)
    print(f"{'':<18}{'seconds':>9}{'CPU s':>8}{'faster':>8}{'by CPU':>8}{'equal pixels':>14}")
    medians = {
        name: [statistics.median(part) for part in zip(*each, strict=True)] for name, each in runs.items()
    }
    base = medians["torch float32"]
    for name, (seconds, cpu_s) in medians.items():
        equal = share_equal(maps[name], maps["torch float32"])
        ratios = f"{base[0] / seconds:>8.2f}{base[1] / cpu_s:>8.2f}"
        print(f"{name:<18}{seconds:>9.1f}{cpu_s:>8.1f}{ratios}{equal:>14.4%}")


def rsseg(*arguments: object, **environment: str) -> tuple[float, float]:
    """Run the program: seconds, and those of all its threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    command = [sys.executable, "-m", "rsseg_cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, used


def share_equal(first: Path, second: Path) -> float:
    import rasterio

    with rasterio.open(first) as one, rasterio.open(second) as other:
        return float((one.read(1) == other.read(1)).mean())
