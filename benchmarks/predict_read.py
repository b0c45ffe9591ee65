"""How reading scales with cores: `python benchmarks/predict.py read`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def compare_reading(arguments: argparse.Namespace) -> None:
    """The tiles of `predict` without a network; blocks decoded by one thread, and by one a core."""
    from predict import alternate, drawn_scene, table

    size = arguments.size or 8192
    sides = {"one thread decodes": "read-one", "all threads decode": "read"}
    measured = alternate(arguments, sides, drawn_scene(arguments.folder, size, size))
    table(measured, "one thread decodes")
    best = [min(run["seconds"] for run in runs) for runs in measured.values()]
    for name, seconds in zip(measured, best, strict=True):
        print(f"{name}, best run: {size**2 / seconds / 1e6:.0f} Mpx/s, {best[0] / seconds:.2f} times")


def read(scene: Path) -> dict[str, float]:
    from predict import OVERLAP_PX, TILE_PX

    from rsseg_cli.inference.feed import TileFeed
    from rsseg_cli.inference.tiling import plan
    from rsseg_cli.pipeline.passes import block_width
    from rsseg_cli.raster import SceneInfo, SceneReader

    info = SceneInfo.of(scene)
    tiles = plan(info.grid.height, info.grid.width, TILE_PX, OVERLAP_PX)
    start = time.monotonic()
    with (
        SceneReader(info, (1, 2, 3)) as reader,
        TileFeed(reader, tiles, block_width=block_width(info)) as feed,
    ):
        for _ in feed:
            pass
    return {"seconds": time.monotonic() - start}
