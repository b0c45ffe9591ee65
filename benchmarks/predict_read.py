"""How reading scales with cores: `python benchmarks/predict.py read`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

LAYOUTS = {
    "tiles of 512 px, deflate": {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"},
    "tiles of 256 px, LZW": {"tiled": True, "compress": "lzw"},
    "tiles of 256 px, JPEG": {"tiled": True, "compress": "jpeg", "photometric": "ycbcr"},
    "strips of one row, deflate": {"blockysize": 1, "compress": "deflate"},
    "strips of one row, LZW": {"blockysize": 1, "compress": "lzw"},
    "strips of 16 rows, JPEG": {"blockysize": 16, "compress": "jpeg", "photometric": "ycbcr"},
}


def compare_reading(arguments: argparse.Namespace) -> None:
    """The tiles of `predict` without a network, by one core and by all."""
    from predict import alternate, drawn_scene
    from rasterio.shutil import copy

    size = arguments.size or 8192
    drawn = drawn_scene(arguments.folder, size, size)
    for name, options in LAYOUTS.items():
        scene = arguments.folder / "layout.tif"
        copy(drawn, scene, driver="GTiff", **options)
        runs = alternate(arguments, {"one core": "read-one", "all cores": "read"}, scene)
        scene.unlink()
        one, every = (min(run["seconds"] for run in sides) for sides in runs.values())
        cpu = [min(run["read_cpu"] for run in sides) for sides in runs.values()]
        print(
            f"{name}: {size**2 / one / 1e6:.0f} and {size**2 / every / 1e6:.0f} Mpx/s, "
            f"{one / every:.2f} times; {cpu[0]:.2f} and {cpu[1]:.2f} CPU s",
            flush=True,
        )


def read(scene: Path) -> dict[str, float]:
    from predict import OVERLAP_PX, TILE_PX

    from rsseg_cli.inference.feed import TileFeed
    from rsseg_cli.inference.tiling import plan
    from rsseg_cli.pipeline.passes import block_width
    from rsseg_cli.raster import SceneInfo, SceneReader

    info = SceneInfo.of(scene)
    tiles = plan(info.grid.height, info.grid.width, TILE_PX, OVERLAP_PX)
    start, used = time.monotonic(), time.process_time()
    with (
        SceneReader(info, (1, 2, 3)) as reader,
        TileFeed(reader, tiles, block_width=block_width(info)) as feed,
    ):
        for _ in feed:
            pass
    return {"seconds": time.monotonic() - start, "read_cpu": time.process_time() - used}
