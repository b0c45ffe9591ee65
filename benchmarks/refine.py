"""What refining costs: against the scheme of the released IDGBR program, and beside `predict`.

    python benchmarks/refine.py tile                        seconds a tile at a small size, on the CPU
    python benchmarks/refine.py tile --size paper --dtype bfloat16 --batch 1 8     the same on a GPU
    python benchmarks/refine.py flops                       arithmetic of a 512 px tile at the paper's size
    python benchmarks/refine.py scene SCENE.tif --model buildings                  predict with and without

The released scheme: 25 steps; at each of them both conditions are encoded anew, the denoiser's encoder runs
for the guidance network, and the whole denoiser runs twice more (guidance 3.0). It is run here on the same
network with the same weights (random ones: they do not change the time). Contenders take turns; the ratios of
their medians within one call count. `scene` runs whole programs, imports included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RELEASED_STEPS, RELEASED_GUIDANCE, CLASSES = 25, 3.0, 6
# a tenth of the paper's widths, at a quarter of its tile's side
SMALL: dict[str, Any] = {
    "channels": (32, 64, 128, 128), "text_channels": 96, "groups": 8, "guidance_width": 64, "grid": 16,
    "codec_channels": (16, 32, 64, 64), "codec_groups": 8,
}  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor

    from rsseg_cli.models import Idgbr

Contenders = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    tile = modes.add_parser("tile", help="seconds a tile")
    tile.add_argument("--size", choices=["small", "paper"], default="small")
    tile.add_argument("--tile", type=int, help="side, px; default 128 for small, 512 for paper")
    tile.add_argument("--batch", type=int, nargs="+", default=[1])
    tile.add_argument("--device", default="auto")
    tile.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    tile.add_argument("--threads", type=int, help="of torch")
    tile.add_argument("--repeats", type=int, default=3)
    modes.add_parser("flops", help="arithmetic of a tile")
    scene = modes.add_parser("scene", help="seconds of predict with and without --refine")
    scene.add_argument("scene", type=Path)
    scene.add_argument("--model", default="buildings")
    scene.add_argument("--refiner", help="default: the model's")
    scene.add_argument("--repeats", type=int, default=3)
    scene.add_argument("--options", default="", help="further options of predict, as one text")
    arguments = parser.parse_args()
    {"tile": compare_tile, "flops": count_flops, "scene": compare_scene}[arguments.mode](arguments)


def compare_tile(arguments: argparse.Namespace) -> None:
    """Seconds a tile of each contender."""
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen if arguments.device == "auto" else arguments.device)
    dtype = getattr(torch, arguments.dtype)
    side = arguments.tile or (512 if arguments.size == "paper" else 128)
    network, lite = networks(arguments.size, device, dtype)
    print(f"{arguments.size}, {side} px, {arguments.dtype}, {device}, {torch.get_num_threads()} threads")
    for batch in arguments.batch:
        tried = contenders(network, lite, side, batch)
        seconds = alternate(tried, arguments.repeats, device)
        table({name: value / batch for name, value in seconds.items()}, f"s a tile, batch {batch}")


def networks(size: str, device: Any, dtype: Any) -> tuple[Idgbr, Any]:
    """A paper's network and a lite one with random weights."""
    import torch

    from rsseg_cli.models import IdgbrConfig, LiteRefinerConfig

    torch.manual_seed(0)
    config = IdgbrConfig.paper(CLASSES) if size == "paper" else IdgbrConfig(classes=CLASSES, **SMALL)
    with torch.device(device):
        pair = config.build(), LiteRefinerConfig(classes=CLASSES).build()
    return tuple(network.to(device, dtype).eval() for network in pair)  # type: ignore[return-value]


def contenders(network: Idgbr, lite: Any, side: int, batch: int) -> Contenders:
    """Name -> a call that refines a batch; the released scheme first."""
    import torch

    where = {"device": network.prompt.device, "dtype": network.prompt.dtype}
    image = torch.rand(batch, 3, side, side, **where) * 2 - 1
    coarse = torch.randint(0, CLASSES, (batch, side, side), device=network.prompt.device)
    noises = [
        torch.randn(batch, item.latent_channels, *[side // item.latent_stride] * 2, **where)
        for item in (network, lite)
    ]
    steps = network.default_steps
    return {
        "as released, 25 steps": lambda: released(network, image, coarse, noises[0]),
        "25 steps, guidance 3": lambda: network(image, coarse, noises[0], steps=25, guidance=3.0),
        "25 steps": lambda: network(image, coarse, noises[0], steps=25),
        f"{steps} steps (default)": lambda: network(image, coarse, noises[0]),
        "1 step": lambda: network(image, coarse, noises[0], steps=1),
        f"lite, {lite.default_steps} steps (default)": lambda: lite(image, coarse, noises[1]),
    }


def released(
    network: Idgbr, image: Tensor, coarse: Tensor, noise: Tensor, steps: int = RELEASED_STEPS
) -> Tensor:
    """The released program's sampling loop."""
    import torch

    from rsseg_cli.models import diffusion

    latents = network.encode(image), network.encode(network.label_embedding(coarse))
    text = network.prompt.expand(len(noise), -1, -1)
    times = diffusion.sampler_times(steps, network.config.last_time)
    noisy = noise.float()
    for step, after in zip(times, [*times[1:], 0], strict=True):
        time_step = torch.full((len(noise),), step, device=noise.device)
        conditions = network.encode_conditions(*latents)
        _, features = network.denoiser.encode(noisy.to(text.dtype), time_step, text)
        residuals = network.guidance(features, conditions)
        residuals = [torch.cat([torch.zeros_like(item), item]) for item in residuals]
        whole = network.denoiser(
            noisy.to(text.dtype).repeat(2, 1, 1, 1),
            time_step.repeat(2),
            text.repeat(2, 1, 1),
            down_block_additional_residuals=tuple(residuals[:-1]),
            mid_block_additional_residual=residuals[-1],
        ).sample
        free, bound = whole.float().chunk(2)
        predicted = free + RELEASED_GUIDANCE * (bound - free)
        clean = network.schedule.clean_of(noisy, predicted, time_step)
        noisy = network.schedule.step(noisy, clean, time_step, torch.full_like(time_step, after))
    return network.decode(noisy)


def alternate(tried: Contenders, repeats: int, device: Any) -> dict[str, float]:
    """Median seconds of each contender, run in turn; on a GPU after a run that does not count."""
    import torch

    runs: dict[str, list[float]] = {name: [] for name in tried}
    uncounted = int(device.type == "cuda")
    with torch.inference_mode():
        for index in range(repeats + uncounted):
            for name, run in tried.items():
                start = time.perf_counter()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if index >= uncounted:
                    runs[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in runs.items()}


def count_flops(_: argparse.Namespace) -> None:
    """Multiplications and additions of a tile; nothing is computed.

    Each step costs the same, so that two counts, of one step and of two, tell all.
    """
    import torch

    network, lite = networks("paper", torch.device("meta"), torch.float32)
    image, coarse = torch.empty(1, 3, 512, 512, device="meta"), torch.zeros(1, 512, 512, device="meta")
    noise, small_noise = (
        torch.empty(1, item.latent_channels, *[512 // item.latent_stride] * 2, device="meta")
        for item in (network, lite)
    )
    old = [tera_flops(partial(released, network, image, coarse, noise, steps)) for steps in (1, 2)]
    new = [tera_flops(partial(network, image, coarse, noise, steps=steps)) for steps in (1, 2)]
    guided = tera_flops(partial(network, image, coarse, noise, steps=1, guidance=3.0)) - new[0]
    counts = {"as released, 25 steps": old[0] + 24 * (old[1] - old[0])}
    counts["25 steps, guidance 3"] = new[0] + 24 * (new[1] - new[0]) + 25 * guided
    for steps in (25, 4, network.default_steps, 1):
        counts[f"{steps} steps"] = new[0] + (steps - 1) * (new[1] - new[0])
    counts[f"lite, {lite.default_steps} steps"] = tera_flops(partial(lite, image, coarse, small_noise))
    table(counts, "TFLOP, 512 px")


def tera_flops(run: Callable[[], Any]) -> float:
    """10^12 multiplications and additions of a call."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops() / 1e12


def table(values: dict[str, float], unit: str) -> None:
    """Values with their ratio to the first."""
    first, width = next(iter(values.values())), max(map(len, values))
    print(f"{'':<{width}}  {unit:>20}  {'times less':>10}")
    for name, value in values.items():
        print(f"{name:<{width}}  {value:>20.4g}  {first / value:>10.1f}")


def compare_scene(arguments: argparse.Namespace) -> None:
    """Seconds per megapixel of `predict` with and without `--refine`, whole programs in turn."""
    import rasterio

    with rasterio.open(arguments.scene) as dataset:
        megapixels = dataset.width * dataset.height / 1e6
    more = ["--refine", *(["--refiner", arguments.refiner] if arguments.refiner else [])]
    runs: dict[str, list[float]] = {"predict": [], "predict --refine": []}
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for name, options in (("predict", []), ("predict --refine", more)):
                seconds, result = predict(arguments, Path(folder) / "labels.tif", options)
                runs[name].append(seconds / megapixels)
                print(f"  {name}: {seconds:.1f} s", file=sys.stderr)
                if name != "predict":
                    shares.append(result)
    medians = {name: statistics.median(values) for name, values in runs.items()}
    print(f"{arguments.scene.name}, {megapixels:.1f} megapixels, {arguments.repeats} runs each, medians")
    for name, value in medians.items():
        print(f"{name:<17} {value:.3f} s per megapixel, {value / medians['predict']:.2f} times predict")
    for key, value in shares[-1].items():
        print(f"{key}: {value}")


def predict(
    arguments: argparse.Namespace, output: Path, options: Sequence[str]
) -> tuple[float, dict[str, Any]]:
    """Seconds of one program, and what it says of refining."""
    command = [
        sys.executable, "-m", "rsseg_cli", "predict", str(arguments.scene), "--model", arguments.model,
        "-o", str(output), "--overwrite", "--json", "-q", *arguments.options.split(), *options,
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    found = json.loads(done.stdout)
    return seconds, {key: value for key, value in found.items() if "refine" in key or "window" in key}


if __name__ == "__main__":
    main()
