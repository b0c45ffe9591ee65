"""What a GPU reaches: bare networks, the engine, whole programs, training. Under six minutes on a fast one.

    python benchmarks/gpu.py                     all sections, results to gpu.json
    python benchmarks/gpu.py --quick             the same at tiny sizes, in minutes on a CPU
    python benchmarks/gpu.py --sections bare,engine

    bare      networks on tiles that lie on the device, Mpx/s of tiles by batch
    engine    tiles from memory through the engine: upload, network, blending, classes, download
    program   GeoTIFF to COG: `landcover-small`, and `buildings --refine`
    paper     the published sizes of both networks, random weights
    labels    share of labels, and of the refiner's noise, equal to the CPU's
    training  an epoch of `train` at `lite` and `paper`

The goal is `program` at 0.85 of `bare` (`share_of_bare`), both counted in pixels of tiles, which overlap.
The file is written after each figure; a section that lacks a library or fails says so, and the rest go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

GOAL = 0.85  # of `bare`
STEPS = 5  # queued at once in a measured loop
LIMIT_S = 330  # after which no section begins
REFINER_CLASSES = 2
DRAWN_GSD_M = 0.3
GSD_M = {"landcover-small": 0.5, "buildings": 0.2}  # at which scenes are read as they are


@dataclass
class Bench:
    """Sizes of a run, and its results, which are on disk as soon as they are known."""

    device: torch.device
    output: Path
    tile_px: int = 512
    overlap_px: int = 128
    batches: tuple[int, ...] = (1, 8, 32)
    scene_px: int = 10_000
    drawn_px: int = 1_024
    paper_px: int = 4_096
    labels_px: int = 1_024
    seconds: float = 1.5  # of a measured loop
    training: Mapping[str, tuple[int, int, int]] = field(  # crops a step, side of a crop, steps
        default_factory=lambda: {"lite": (16, 256, 100), "paper": (8, 512, 30)}
    )
    is_quick: bool = False
    results: dict[str, Any] = field(default_factory=dict)

    def add(self, section: str, **figures: Any) -> None:
        """Keep figures, print them, and write all results so far."""
        self.results.setdefault(section, {}).update(figures)
        print(section, json.dumps(figures), flush=True)
        beside = self.output.with_suffix(".part")
        beside.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        beside.replace(self.output)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, step: Callable[[], object], pixels: int) -> float:
        """Return megapixels a second of a repeated step, after three to warm up."""
        for _ in range(1 if self.is_quick else 3):
            step()
        self.wait()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds:
            for _ in range(1 if self.is_quick else STEPS):
                step()
                steps += 1
            self.wait()
        return _digits(steps * pixels / 1e6 / (time.perf_counter() - start))

    def peak(self) -> dict[str, int]:
        """Peak memory in 10^6 bytes: of the device since the last call, of the process since it began."""
        peaks = {"host_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6}
        if self.device.type == "cuda":
            peaks["device_mb"] = torch.cuda.max_memory_reserved(self.device) // 10**6
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return peaks


QUICK: dict[str, Any] = {
    "tile_px": 64, "overlap_px": 16, "batches": (1, 2), "scene_px": 192, "drawn_px": 192, "paper_px": 96,
    "labels_px": 128, "seconds": 0.01, "training": {"lite": (2, 64, 2)}, "is_quick": True,
}  # fmt: skip


def bare(bench: Bench) -> None:
    """Networks alone, called as they are, in the precision that `auto` takes."""
    from rsseg_cli.models import BicorSegConfig, LiteRefinerConfig

    bench.add("bare", **_by_batch(bench, "landcover-small", BicorSegConfig.lite(8).build()))
    network = LiteRefinerConfig(classes=REFINER_CLASSES).build()
    bench.add("bare", **_by_batch(bench, "refiner", network))


def _by_batch(bench: Bench, name: str, network: nn.Module, most: int = 1 << 10) -> dict[str, Any]:
    """Return Mpx/s by batch and the best of them, of a segmentation network or a refiner."""
    network = network.eval().to(bench.device).to(memory_format=torch.channels_last)
    side, stride = bench.tile_px, getattr(network, "latent_stride", 0)
    fast = bench.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    rates = {}
    for batch in (size for size in bench.batches if size <= most):
        image = torch.rand(batch, 3, side, side, device=bench.device)
        inputs = [image.contiguous(memory_format=torch.channels_last)]
        if stride:
            shape = batch, network.latent_channels, side // stride, side // stride
            coarse = torch.randint(REFINER_CLASSES, (batch, side, side), device=bench.device)
            inputs += [coarse, torch.randn(*shape, device=bench.device)]
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16, enabled=fast):
            rates[str(batch)] = bench.rate(lambda inputs=inputs: network(*inputs), batch * side**2)
    return {f"{name}_mpx_s": rates, f"{name}_best": max(rates.values())}


class Memory:
    """A reader of a scene that repeats an array in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def read(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        rows, cols = np.arange(row, row + height), np.arange(col, col + width)
        found = self._array.take(rows % self._array.shape[1], 1).take(cols % self._array.shape[2], 2)
        return found, np.ones((height, width), np.bool_)

    def fill(self, array: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return array


def engine(bench: Bench) -> None:
    from rsseg_cli.models import BicorSegConfig

    scene = np.random.default_rng(0).integers(0, 256, (3, 2048, 2048), dtype=np.uint8)
    _, figures = mapped(bench, BicorSegConfig.lite(8).build(), 8, scene, bench.scene_px)
    bench.add("engine", **figures, **bench.peak(), share_of_bare=_share(bench, figures["tile_mpx_s"]))


def mapped(
    bench: Bench, network: nn.Module, classes: int, scene: np.ndarray, side: int, **settings: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return labels (side, side) of a scene in memory, and how fast they came."""
    from rsseg_cli.config import PredictConfig
    from rsseg_cli.inference import Engine, Scaling, passes, tiling

    config = PredictConfig(**{"device": str(bench.device), "runtime": "torch"} | settings)
    labels = np.empty((side, side), np.uint8)

    def write(row: int, rows: np.ndarray) -> None:
        labels[row : row + rows.shape[1]] = rows[0]

    scaling = Scaling(factors=(1 / 58,) * 3, offsets=(-2.1,) * 3)
    plan = tiling.plan(side, side, bench.tile_px, bench.overlap_px)
    start = time.perf_counter()
    with Engine(network, classes=classes, scaling=scaling, config=config) as engine:
        rows = passes.Pass(layers={"labels": slice(0, 1)}, write=write, progress=lambda tiles: None)
        passes.run_pass(engine, passes.Assembler(engine, plan, rows), Memory(scene), rows)
        batch = engine.batch_size(plan.rows.size, plan.cols.size)
    seconds = time.perf_counter() - start
    rates = {"scene_mpx_s": side**2, "tile_mpx_s": len(plan) * bench.tile_px**2}
    figures = {name: _digits(pixels / 1e6 / seconds) for name, pixels in rates.items()}
    return labels, {**figures, "batch": batch, "seconds": round(seconds, 2)}


def _digits(value: float) -> float:
    """Four significant digits: a slow machine's rates are not 0."""
    return float(f"{value:.4g}")


def _share(bench: Bench, rate: float) -> float | None:
    best = bench.results.get("bare", {}).get("landcover-small_best")
    return None if best is None else _digits(rate / best)


def program(bench: Bench) -> None:
    import rasterio

    from rsseg_cli import PredictConfig, RefineConfig, predict
    from rsseg_cli.inference import tiling

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rsseg-gpu-")))
        scene = folder / "scene.tif"
        _write_scene(scene, _drawn(bench.drawn_px), bench.scene_px)
        sizes = {"tile_size": bench.tile_px, "overlap": bench.overlap_px}
        config = PredictConfig(device=str(bench.device), runtime="torch", **sizes)
        tiles = len(tiling.plan(bench.scene_px, bench.scene_px, bench.tile_px, bench.overlap_px))
        for model, gsd_m in GSD_M.items():
            with rasterio.open(scene, "r+") as dataset:
                dataset.transform = rasterio.Affine(gsd_m, 0, 400_000, 0, -gsd_m, 5_000_000)
            more = {"refine": RefineConfig()} if model == "buildings" else {}
            start = time.perf_counter()
            result = predict(scene, folder / f"{model}.tif", model=model, config=config, **more)
            seconds = time.perf_counter() - start
            figures = {
                "seconds": round(seconds, 2),
                "scene_mpx_s": _digits(bench.scene_px**2 / 1e6 / seconds),
            }
            if more:
                figures["windows_run"] = result.refined.windows_run
            else:
                figures["tile_mpx_s"] = _digits(tiles * bench.tile_px**2 / 1e6 / seconds)
                figures |= {"share_of_bare": _share(bench, figures["tile_mpx_s"]), "goal": GOAL}
            bench.add("program", **{model: {**figures, **bench.peak()}})


def _drawn(side: int) -> np.ndarray:
    from rsseg_cli.data import synthetic

    return synthetic.draw_scene(side, 0, gsd_m=DRAWN_GSD_M)[0][:3]


def _write_scene(path: Path, drawn: np.ndarray, side: int) -> None:
    """Write a scene that repeats a drawn one."""
    import rasterio
    from rasterio.windows import Window

    profile = {
        "driver": "GTiff", "count": 3, "dtype": "uint8", "height": side, "width": side, "crs": "EPSG:32636",
        "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1,
        "num_threads": "all_cpus",
    }  # fmt: skip
    source = Memory(drawn)
    with rasterio.open(path, "w", **profile) as target:
        for row in range(0, side, 512):
            height = min(512, side - row)
            target.write(source.read(row, 0, height, side)[0], window=Window(0, row, side, height))


def paper(bench: Bench) -> None:
    from rsseg_cli.models import BicorSegConfig

    sizes = BicorSegConfig.lite(8, published=True) if bench.is_quick else BicorSegConfig.paper(8)
    with torch.device(bench.device):
        network = sizes.build()
    bench.add("paper", **_by_batch(bench, "bicor_seg", network, most=8))
    scene = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), dtype=np.uint8)
    try:
        _, figures = mapped(bench, network, 8, scene, bench.paper_px)
        bench.add("paper", bicor_seg_engine={**figures, **bench.peak()})
    except ImportError as err:
        bench.add("paper", bicor_seg_engine=f"skipped: no {err.name}")
    del network
    from rsseg_cli.models import IdgbrConfig  # needs diffusers

    tiny = {"channels": (32, 64), "codec_channels": (32, 32), "layers": 1, "codec_layers": 1, "grid": 16}
    with torch.device(bench.device):
        refiner = IdgbrConfig(classes=REFINER_CLASSES, **(tiny if bench.is_quick else {})).build()
    bench.add("paper", **_by_batch(bench, "idgbr", refiner, most=8), **bench.peak())


def labels(bench: Bench) -> None:
    from rsseg_cli.inference import RefinerEngine
    from rsseg_cli.weights import load_model

    at = torch.arange(4) * 1_000
    there = RefinerEngine.noise((48, 128, 128), at.to(bench.device), at.to(bench.device), seed=1).cpu()
    here = RefinerEngine.noise((48, 128, 128), at, at, seed=1)
    bench.add("labels", noise_equal=float((there == here).double().mean()))
    scene, side = _drawn(bench.labels_px), bench.labels_px
    model = load_model("landcover-small")
    network, classes = model.network, len(model.spec.classes)
    on_cpu = Bench(torch.device("cpu"), bench.output, bench.tile_px, bench.overlap_px)
    exact, _ = mapped(on_cpu, network, classes, scene, side, dtype="float32")
    for dtype in ("float32", "auto"):
        found, figures = mapped(bench, network, classes, scene, side, dtype=dtype)
        bench.add("labels", **{dtype: {"equal": float((found == exact).mean()), **figures}})


def training(bench: Bench) -> None:
    from rsseg_cli.data import LoadedScene
    from rsseg_cli.models import BicorSegConfig
    from rsseg_cli.training.config import RunOptions, TrainConfig
    from rsseg_cli.training.train_model import TrainingScenes, fit_segmenter
    from rsseg_cli.weights import ModelSpec

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 2048, 2048), dtype=np.uint8)
    classes = rng.integers(0, 6, (64, 64), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    scene = LoadedScene("drawn", image, classes, 1.0)
    val = LoadedScene("val", image[:, :512, :512], classes[:512, :512], 1.0)
    spec = ModelSpec.for_network(classes=[f"class {index}" for index in range(6)])
    for name, (crops, side, steps) in bench.training.items():
        network = (BicorSegConfig.lite if name == "lite" else BicorSegConfig.paper)(6).build()
        config = TrainConfig(epochs=1, batch_size=crops, crop_size=side, crops_per_epoch=crops * steps)
        with tempfile.TemporaryDirectory(prefix="rsseg-gpu-") as folder:
            run = RunOptions(device=str(bench.device), run_dir=Path(folder))
            result = fit_segmenter(network, spec, TrainingScenes([scene], [val], []), config, run)
        rates = {"steps_s": steps / result.seconds, "crops_s": crops * steps / result.seconds}
        figures = {key: round(rate, 2) for key, rate in rates.items()}
        more = {"precision": result.precision, "seconds": result.seconds}
        bench.add("training", **{name: {**figures, **more, **bench.peak()}})


SECTIONS = {"bare": bare, "engine": engine, "program": program, "paper": paper, "labels": labels,
            "training": training}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, by commas")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    bench = Bench(device, arguments.output, **(QUICK if arguments.quick else {}))
    on_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else platform.processor() or platform.machine()
    bench.add("machine", device=name, torch=torch.__version__, cores=os.cpu_count(), quick=arguments.quick)
    began = time.perf_counter()
    for section in arguments.sections.split(","):
        start = time.perf_counter()
        if start - began > LIMIT_S:
            bench.add(section, state="skipped: out of time")
            continue
        try:
            SECTIONS[section](bench)
            state = "done"
        except ImportError as err:
            state = f"skipped: no {err.name}"
        except Exception as err:  # the others are measured all the same
            state = f"failed: {type(err).__name__}: {err!s:.300}"
        bench.add(section, state=state, total_s=round(time.perf_counter() - start, 1))


if __name__ == "__main__":
    main()
