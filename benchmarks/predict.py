"""What `predict` costs beside the network: time against the bare network and a plain loop, and memory.

    python benchmarks/predict.py bare      the network on the same tiles, without reading, blending, writing
    python benchmarks/predict.py plain     a loop that reads a tile, convolves it, takes argmax, writes it
    python benchmarks/predict.py memory    peak memory at 8192 x 4096 and 8192 x 8192 px
    python benchmarks/predict.py huge      40,000 x 40,000 px
    python benchmarks/predict.py read      scenes of several layouts as tiles, by one core and by all
    python benchmarks/predict.py runtimes  torch, ONNX Runtime, OpenVINO: a tile, and whole programs
    python benchmarks/predict.py peers     other programs, each in an environment of its own; see --peer

Every measured run is a process of its own, with the same number of threads; runs of both sides alternate, and
medians are compared. Times are from the first call to the finished file, without imports. Memory is the
process's peak until then, in 10^6 bytes, imports included (torch's own clean-up at exit adds some 100 MB,
whatever ran before). Scenes are drawn (`rsseg demo-scene`), repeated to size, uint8 RGB, tiled 512 x 512,
deflate.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the program sets it; of both sides
TILE_PX, OVERLAP_PX, CLASSES = 512, 128, 6


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "what", choices=["bare", "plain", "memory", "huge", "read", "runtimes", "peers", "run"]
    )
    parser.add_argument("--size", type=int, default=None, help="side of the scene, px")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, for both sides")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, help="of both sides of `bare`; default: rsseg's choice")
    parser.add_argument("--model", default="lite", help="of `bare`: lite, paper, or a model's name or file")
    parser.add_argument("--folder", type=Path, default=None, help="where scenes are kept between calls")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON",
        help="of `peers`: monai, terratorch or habitat-mapper, and the Python that has it; repeatable",
    )  # fmt: skip
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "run":
        used = time.process_time()
        measured = PARTS[arguments.part](arguments)
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        print(json.dumps({**measured, "cpu": time.process_time() - used, "peak_mb": peak}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = arguments.folder or Path(temporary)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        from predict_peers import compare_peers
        from predict_read import compare_reading
        from predict_runtimes import compare_runtimes

        {
            "bare": compare_bare,
            "plain": compare_plain,
            "memory": compare_memory,
            "huge": measure_huge,
            "read": compare_reading,
            "runtimes": compare_runtimes,
            "peers": compare_peers,
        }[arguments.what](arguments)


def compare_bare(arguments: argparse.Namespace) -> None:
    """(a): `predict` over the bare network on the same tiles."""
    size = arguments.size or 2048
    scene = drawn_scene(arguments.folder, size, size)
    sides = alternate(arguments, {"bare network": "bare", "rsseg predict": "rsseg-network"}, scene)
    table(sides, "bare network")


def compare_plain(arguments: argparse.Namespace) -> None:
    """(b), time: `predict` over plain loops, with a trivial network."""
    size = arguments.size or 8192
    scene = drawn_scene(arguments.folder, size, size)
    parts = {
        "plain loop, overlapping tiles": "plain",
        "plain loop, tiles apart": "plain-apart",
        "rsseg predict": "rsseg",
    }
    table(alternate(arguments, parts, scene), "plain loop, overlapping tiles")


def compare_memory(arguments: argparse.Namespace) -> None:
    """(b), memory: twice the height costs nothing."""
    size = arguments.size or 8192
    sides = {}
    for height in (size // 2, size):
        scene = drawn_scene(arguments.folder, height, size)
        name = f"rsseg predict, {size} x {height} px"
        sides |= alternate(arguments, {name: "rsseg"}, scene)
    sides |= alternate(arguments, {"importing torch and rasterio": "imports"}, scene)
    table(sides, f"rsseg predict, {size} x {size // 2} px")


def measure_huge(arguments: argparse.Namespace) -> None:
    """(c): a scene of 40,000 x 40,000 px, sparse but for some squares."""
    size = arguments.size or 40_000
    scene = sparse_scene(arguments.folder, size)
    arguments.repeats = 1
    table(alternate(arguments, {f"rsseg predict, {size} x {size} px, sparse": "rsseg"}, scene), None)


def alternate(
    arguments: argparse.Namespace, parts: dict[str, str], scene: Path
) -> dict[str, list[dict[str, float]]]:
    """Run the parts in turn, `repeats` times: name -> what each run measured."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in parts}
    for _ in range(arguments.repeats):
        for name, part in parts.items():
            measured[name].append(run_part(arguments, part, scene))
    return measured


def run_part(arguments: argparse.Namespace, part: str, scene: Path) -> dict[str, float]:
    """One run in a process of its own.

    Seconds, seconds of all its threads with imports, peak memory in MB.
    """
    command = [sys.executable, __file__, "run", "--part", part, "--scene", str(scene)]
    command += ["--folder", str(arguments.folder)]
    command += ["--threads", str(arguments.threads), "--device", arguments.device, "--model", arguments.model]
    command += ["--batch-size", str(arguments.batch_size)] if arguments.batch_size else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def table(sides: dict[str, list[dict[str, float]]], reference: str | None) -> None:
    """Medians, all runs, and ratios to the reference."""
    width = max(map(len, sides))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "peak_mb")}
        for name, runs in sides.items()
    }
    print(f"{'':<{width}}  seconds  CPU s  peak MB  time ratio  memory ratio  all runs, s")
    for name, median in medians.items():
        ratios = "         -             -"
        if reference is not None and median["seconds"]:
            base = medians[reference]
            ratios = (
                f"{median['seconds'] / base['seconds']:10.3f}  {median['peak_mb'] / base['peak_mb']:12.3f}"
            )
        runs = " ".join(f"{run['seconds']:.2f}" for run in sides[name])
        measured = f"{median['seconds']:7.2f}  {median['cpu']:5.1f}  {median['peak_mb']:7.0f}"
        print(f"{name:<{width}}  {measured}  {ratios}  {runs}")


def drawn_scene(folder: Path, height: int, width: int) -> Path:
    """A drawn square, turned and repeated to size."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    from rsseg_cli.data import synthetic

    path = folder / f"scene_{width}x{height}.tif"
    if path.exists():
        return path
    square, _ = synthetic.draw_scene(2048, 0)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "dtype": "uint8",
        "height": height,
        "width": width,
        "tiled": True,
    }
    profile |= {
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "predictor": 2,
        "photometric": "rgb",
    }
    profile |= {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 0.3, 0.3)}
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, height, 2048):
            for col in range(0, width, 2048):
                turned = np.rot90(square, (row + col) // 2048 % 4, (1, 2))[:, : height - row, : width - col]
                dataset.write(turned, window=Window(col, row, turned.shape[2], turned.shape[1]))
    return path


def sparse_scene(folder: Path, size: int) -> Path:
    """Without data, and without blocks in the file, but for squares of 2048 px along the diagonal."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    from rsseg_cli.data import synthetic

    path = folder / f"sparse_{size}.tif"
    if path.exists():
        return path
    square, _ = synthetic.draw_scene(2048, 0)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": size, "width": size, "tiled": True}
    profile |= {
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "photometric": "rgb",
        "nodata": 0,
    }
    profile |= {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 0.3, 0.3), "sparse_ok": True}
    with rasterio.open(path, "w", bigtiff="if_safer", **profile) as dataset:
        for start in range(0, size - 2048, 8192):
            dataset.write(square, window=Window(start, start, 2048, 2048))
    return path


def trivial_network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Conv2d(3, CLASSES, 3, padding=1).eval()


def whole_network(name: str) -> Any:
    """A TrainedModel; `lite` and `paper` have the right size and random weights."""
    import torch

    from rsseg_cli.models import BicorSeg, BicorSegConfig
    from rsseg_cli.weights import ModelSpec, TrainedModel, load_model

    if name not in ("lite", "paper"):
        model = load_model(name)  # at the scene's own resolution: both sides run the same tiles
        return TrainedModel(model.network, dataclasses.replace(model.spec, gsd_m=None, gsd_range_m=None))
    torch.manual_seed(0)
    network = BicorSeg(getattr(BicorSegConfig, name)(5)).eval()
    return TrainedModel(
        network, ModelSpec.for_network(classes=["building", "land", "road", "vegetation", "water"])
    )


def run_rsseg(arguments: argparse.Namespace, model: Any = None) -> dict[str, float]:
    from rsseg_cli import predict  # before torch, whose threads it tells not to spin
    from rsseg_cli.weights import ModelSpec, TrainedModel

    import torch  # isort: skip

    torch.set_num_threads(arguments.threads)
    if model is None:
        spec = ModelSpec.for_network(classes=[f"class {index}" for index in range(CLASSES)])
        model = TrainedModel(trivial_network(), spec)
    output = arguments.folder / f"map_{os.getpid()}.tif"
    result = predict(
        arguments.scene,
        output,
        model=model,
        tile_size=TILE_PX,
        overlap=OVERLAP_PX,
        device=arguments.device,
        runtime="torch",  # as the other side
        dtype="float32",
        batch_size=arguments.batch_size or "auto",
    )
    for path in (output, Path(f"{output}.aux.xml")):
        path.unlink(missing_ok=True)
    return {"seconds": result.seconds}


def run_rsseg_network(arguments: argparse.Namespace) -> dict[str, float]:
    return run_rsseg(arguments, whole_network(arguments.model))


def run_bare(arguments: argparse.Namespace) -> dict[str, float]:
    """The network alone, on tiles that lie in memory on the device, as many as `predict` runs."""
    import rasterio
    import torch

    from rsseg_cli.config import PredictConfig
    from rsseg_cli.inference.engine import Engine, Scaling
    from rsseg_cli.inference.tiling import plan

    torch.set_num_threads(arguments.threads)
    model = whole_network(arguments.model)
    config = PredictConfig(device=arguments.device, batch_size=arguments.batch_size or "auto")
    scaling = Scaling(factors=(1 / 255,) * 3, offsets=(0.0,) * 3)
    engine = Engine(model.network, classes=len(model.spec.classes), scaling=scaling, config=config)
    with rasterio.open(arguments.scene) as dataset:
        tiles = len(plan(dataset.height, dataset.width, TILE_PX, OVERLAP_PX))
        pixels = torch.from_numpy(dataset.read(window=((0, TILE_PX), (0, TILE_PX)))).float()[None] / 255
    batch = engine.batch_size(TILE_PX, TILE_PX)
    pixels = pixels.expand(batch, -1, -1, -1).to(engine.device).contiguous(memory_format=torch.channels_last)
    autocast = torch.autocast(engine.device.type, dtype=engine.dtype, enabled=engine.dtype != torch.float32)
    start = time.monotonic()
    with torch.inference_mode(), autocast:
        for first in range(0, tiles, batch):
            model.network(pixels[: tiles - first])
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
    return {"seconds": time.monotonic() - start}


def run_plain(arguments: argparse.Namespace, overlap: int = OVERLAP_PX) -> dict[str, float]:
    """Read each tile, convolve it, take torch's argmax, write its core.

    No blending, nothing at the same time.
    """
    import rasterio
    import torch
    from rasterio.windows import Window

    torch.set_num_threads(arguments.threads)
    network = trivial_network()
    output = arguments.folder / f"map_{os.getpid()}.tif"
    start = time.monotonic()
    with rasterio.open(arguments.scene) as scene:
        profile = {
            "driver": "GTiff",
            "count": 1,
            "dtype": "uint8",
            "height": scene.height,
            "width": scene.width,
        }
        profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
        profile |= {"crs": scene.crs, "transform": scene.transform}
        rows, cols = (plain_tiles(length, overlap) for length in (scene.height, scene.width))
        with rasterio.open(output, "w", **profile) as target, torch.inference_mode():
            for row, top, bottom in rows:
                for col, left, right in cols:
                    tile = scene.read(window=Window(col, row, TILE_PX, TILE_PX))
                    logits = network(torch.from_numpy(tile)[None].float() / 255)
                    labels = logits.argmax(1)[0].to(torch.uint8).numpy()
                    core = labels[top - row : bottom - row, left - col : right - col]
                    target.write(core, 1, window=Window(left, top, right - left, bottom - top))
    seconds = time.monotonic() - start
    output.unlink()
    return {"seconds": seconds}


def plain_tiles(length: int, overlap: int) -> list[tuple[int, int, int]]:
    """(start, first and end of the core) of tiles at a fixed stride, the last one moved to the edge."""
    starts = [*range(0, max(length - TILE_PX, 0), TILE_PX - overlap), max(length - TILE_PX, 0)]
    between = [(before + TILE_PX + after) // 2 for before, after in itertools.pairwise(starts)]
    edges = [0, *between, length]
    return list(zip(starts, edges, edges[1:], strict=False))


def run_plain_apart(arguments: argparse.Namespace) -> dict[str, float]:
    return run_plain(arguments, overlap=0)


def run_imports(arguments: argparse.Namespace) -> dict[str, float]:
    start = time.monotonic()
    import rasterio  # noqa: F401
    import torch  # noqa: F401

    return {"seconds": time.monotonic() - start}


def run_read(arguments: argparse.Namespace) -> dict[str, float]:
    from predict_read import read

    return read(arguments.scene)


def run_read_one(arguments: argparse.Namespace) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return run_read(arguments)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "rsseg": run_rsseg,
    "rsseg-network": run_rsseg_network,
    "bare": run_bare,
    "plain": run_plain,
    "plain-apart": run_plain_apart,
    "read": run_read,
    "read-one": run_read_one,
    "imports": run_imports,
}

if __name__ == "__main__":
    main()
