"""What other programs cost on the same scene with the same network: `python benchmarks/predict.py peers`.

Each is a program of its own, measured from outside with its imports: read the scene, run a 3 -> 6 convolution
in float32 on overlapping tiles of 512 px, take the class, write a GeoTIFF. Beside rsseg and a plain loop
those run that `--peer NAME=PYTHON` names, by the Python of an environment in which they are installed:

    uv venv /tmp/monai && uv pip install --python /tmp/monai/bin/python monai rasterio
    python benchmarks/predict.py peers --size 4096 --peer monai=/tmp/monai/bin/python
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TILE_PX, OVERLAP_PX, CLASSES = 512, 128, 6
BATCH = 4


def compare_peers(arguments: argparse.Namespace) -> None:
    """One run each, or `--repeats`: seconds, CPU seconds and peak memory of the whole program."""
    from predict import drawn_scene, table

    size = arguments.size or 8192
    scene = drawn_scene(arguments.folder, size, size)
    network = store_network(arguments.folder)
    sides = {"rsseg": sys.executable, "plain loop": sys.executable}
    sides |= dict(peer.split("=", 1) for peer in arguments.peer)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, python in sides.items():
            output = arguments.folder / "peer.tif"
            output.unlink(missing_ok=True)
            measured[name].append(run(python, name, scene, network, output, arguments.threads))
            check(output, size)
    print(f"{size} x {size} px, {arguments.threads} threads, whole programs")
    table(measured, "rsseg")


def store_network(folder: Path) -> Path:
    """Write the network as numbers (weights.npz) and for ONNX Runtime (network.onnx); return the folder."""
    import numpy as np
    import torch
    from predict import trivial_network

    network = trivial_network()
    np.savez(folder / "weights.npz", weight=network.weight.detach(), bias=network.bias.detach())
    tile = torch.zeros(1, 3, TILE_PX, TILE_PX)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(network, (tile,), folder / "network.onnx", dynamo=False, dynamic_axes=axes, **names)
    return folder


def run(python: str, name: str, scene: Path, network: Path, output: Path, threads: int) -> dict[str, float]:
    command = [python, __file__, name, str(scene), str(network), str(output)]
    settings = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    start = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise SystemExit(f"{name}: ended with {os.waitstatus_to_exitcode(status)}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_mb": peak / 1e6}


def check(output: Path, size: int) -> None:
    """A side must have mapped the whole scene, into more than one class."""
    import numpy as np
    import rasterio

    with rasterio.open(output) as dataset:
        labels = dataset.read(1)
    if labels.shape != (size, size) or len(np.unique(labels)) < 2:
        raise SystemExit(f"{output}: {labels.shape}, classes {np.unique(labels)}")


def by_rsseg(scene: Path, network: Path, output: Path) -> None:
    from rsseg_cli import predict
    from rsseg_cli.weights import ModelSpec, TrainedModel

    spec = ModelSpec.for_network(classes=[f"class {index}" for index in range(CLASSES)])
    model = TrainedModel(convolution(network), spec)
    predict(scene, output, model=model, tile_size=TILE_PX, overlap=OVERLAP_PX, dtype="float32", device="cpu")


def by_plain_loop(scene: Path, network: Path, output: Path) -> None:
    """No blending, nothing at the same time."""
    import rasterio
    import torch
    from rasterio.windows import Window

    conv = convolution(network)
    with rasterio.open(scene) as source, rasterio.open(output, "w", **profile_of(source)) as target:
        height, width = source.shape
        step, margin = TILE_PX - OVERLAP_PX, OVERLAP_PX // 2
        for row in range(0, max(height - OVERLAP_PX, 1), step):
            for col in range(0, max(width - OVERLAP_PX, 1), step):
                window = Window(col, row, min(TILE_PX, width - col), min(TILE_PX, height - row))
                tile = torch.from_numpy(source.read(window=window))[None].float() / 255
                with torch.inference_mode():
                    labels = conv(tile)[0].argmax(0).to(torch.uint8).numpy()
                top, left = margin * (row > 0), margin * (col > 0)
                core = labels[top:, left:]
                target.write(core, 1, window=Window(col + left, row + top, core.shape[1], core.shape[0]))


def by_monai(scene: Path, network: Path, output: Path) -> None:
    from monai.inferers import sliding_window_inference

    def infer(image: Any) -> Any:
        return sliding_window_inference(
            image, TILE_PX, BATCH, convolution(network), overlap=OVERLAP_PX / TILE_PX, mode="gaussian"
        )

    whole_scene(scene, output, infer)


def by_terratorch(scene: Path, network: Path, output: Path) -> None:
    from terratorch.tasks.tiled_inference import tiled_inference

    def infer(image: Any) -> Any:
        return tiled_inference(
            convolution(network), image, CLASSES, crop=TILE_PX, stride=TILE_PX - OVERLAP_PX, delta=8,
            batch_size=BATCH, verbose=False,
        )  # fmt: skip

    whole_scene(scene, output, infer)


def by_habitat_mapper(scene: Path, network: Path, output: Path) -> None:
    """Its tiles overlap by half."""
    from habitat_mapper.config import ModelConfig
    from habitat_mapper.model import ONNXModel

    config = ModelConfig(
        name="trivial", revision="20250101", dependencies=[str(network / "network.onnx")],
        model_filename="network.onnx", normalization=None, activation="softmax", nodata_value=255,
    )  # fmt: skip
    ONNXModel(config).process(scene, output, crop_size=TILE_PX, blur_kernel_size=0, quiet=True)


def whole_scene(scene: Path, output: Path, infer: Callable[[Any], Any]) -> None:
    """The scene read at once, its logits (1, classes, H, W) by `infer`, its map written at once."""
    import rasterio
    import torch

    with rasterio.open(scene) as source:
        image, profile = torch.from_numpy(source.read())[None].float() / 255, profile_of(source)
    with torch.inference_mode():
        labels = infer(image)[0].argmax(0).to(torch.uint8).numpy()
    with rasterio.open(output, "w", **profile) as target:
        target.write(labels, 1)


def convolution(network: Path) -> Any:
    import numpy as np
    import torch

    stored = np.load(network / "weights.npz")
    conv = torch.nn.Conv2d(3, CLASSES, 3, padding=1).eval()
    conv.load_state_dict({name: torch.from_numpy(stored[name]) for name in ("weight", "bias")})
    return conv


def profile_of(source: Any) -> dict[str, Any]:
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": source.height,
        "width": source.width,
    }
    profile |= {"crs": source.crs, "transform": source.transform, "compress": "deflate"}
    return profile | {"tiled": True, "blockxsize": 512, "blockysize": 512}


PROGRAMS: dict[str, Callable[[Path, Path, Path], None]] = {
    "rsseg": by_rsseg,
    "plain loop": by_plain_loop,
    "monai": by_monai,
    "terratorch": by_terratorch,
    "habitat-mapper": by_habitat_mapper,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*map(Path, sys.argv[2:]))
