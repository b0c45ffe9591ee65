"""Time and peak memory of the feature update (CE2F): factorised, as built, against the literal sum over
classes.

    python benchmarks/bicor_head.py [--classes 7 --channels 256 --size 512 --repeats 5]

Each variant and batch size runs in a process of its own; the two take turns, and the ratio of their medians
counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def literal(layer, features, embeddings, heatmaps):
    """0.5 F + 0.5 sum_n heat_n (gamma_n F + beta_n), with its (B, N, C, h, w) tensor."""
    import torch

    heat = heatmaps.softmax(dim=1)
    scale = 1 + torch.tanh(layer.scale(embeddings))
    shift = layer.shift(embeddings)
    per_class = scale[..., None, None] * features[:, None] + shift[..., None, None]
    return 0.5 * features + 0.5 * (heat[:, :, None] * per_class).sum(1)


def measure(
    variant: str, batch: int, classes: int, channels: int, size: int, repeats: int
) -> dict[str, float]:
    """Median seconds and memory above the process's start, MiB; float32 on the CPU."""
    import torch

    from rsseg_cli.models.bicor_seg import HeatmapBridge

    torch.manual_seed(0)
    layer = HeatmapBridge(channels, 1.0).eval()
    features = torch.randn(batch, channels, size // 4, size // 4)
    embeddings = torch.randn(batch, classes, channels)
    heatmaps = torch.randn(batch, classes, size // 4, size // 4)
    run = {
        "factorised": lambda: layer.modulate_features(features, embeddings, heatmaps),
        "literal": lambda: literal(layer, features, embeddings, heatmaps),
    }[variant]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(seconds[1:]), "mib": (peak - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, default=512, help="image side, px; the head works at a quarter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variant", choices=("factorised", "literal"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        sizes = (args.batch, args.classes, args.channels, args.size, args.repeats)
        print(json.dumps(measure(args.variant, *sizes)))
        return
    print(f"{args.classes} classes, {args.channels} channels, {args.size} px, float32, CPU")
    print(f"{'batch':>5} {'variant':<11} {'ms':>9} {'peak MiB':>9}")
    for batch in (1, 8):
        runs = {"factorised": [], "literal": []}
        for _ in range(3):
            for variant, results in runs.items():
                command = [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--variant",
                    variant,
                    "--batch",
                    str(batch),
                ]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        median = {
            variant: {key: statistics.median(item[key] for item in results) for key in ("seconds", "mib")}
            for variant, results in runs.items()
        }
        for variant, values in median.items():
            print(f"{batch:>5} {variant:<11} {values['seconds'] * 1e3:>9.1f} {values['mib']:>9.0f}")
        ratio = {
            key: median["literal"][key] / max(median["factorised"][key], 1e-9) for key in ("seconds", "mib")
        }
        print(f"{batch:>5} literal / factorised: {ratio['seconds']:.1f} x time, {ratio['mib']:.1f} x memory")


if __name__ == "__main__":
    main()
