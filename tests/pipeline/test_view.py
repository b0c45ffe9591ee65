"""A scene is read once: the picture and the holes come from the rows that pass by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import trained
from torch import nn

from rsseg_cli import PredictConfig, predict
from rsseg_cli.inference import passes
from rsseg_cli.pipeline.job import prepare
from rsseg_cli.pipeline.passes import Passes, PassState
from rsseg_cli.pipeline.view import Picture, Pictures

torch.set_num_threads(1)
SIZE = 2048


class Bright(nn.Module):
    """Two classes: the second where the first band is bright."""

    def forward(self, pixels):
        return torch.cat([0.5 - pixels[:, :1], pixels[:, :1] - 0.5], 1)


def bytes_read() -> int:
    """What this process has asked the system to read, bytes."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes by /proc")
@pytest.mark.parametrize("kind", ["plain", "resampled", "striped", "searched", "stretched"])
def test_each_block_is_decoded_once(make_raster, tmp_path, kind):
    """More blocks than fit into the cache, uncompressed, so that bytes count them.

    Scenes without marked holes are searched for them in some blocks, and stretched by some.
    """
    tiles = {} if kind == "striped" else {"tiled": True, "blockxsize": 256, "blockysize": 256}
    if kind in ("searched", "stretched"):
        dtype = "uint16" if kind == "stretched" else "uint8"
        scene = make_raster(shape=(SIZE, SIZE + 512), bands=6, dtype=dtype, **tiles)
    else:
        scene = make_raster(shape=(SIZE, SIZE), bands=12, kind="value", hole=(300, 300, 500, 500), **tiles)
    sizes = {"gsd_m": 0.8, "gsd_range_m": (0.8, 0.8)} if kind == "resampled" else {}
    sizes |= {"scaling": "stretch" if kind == "stretched" else "none"}
    model = trained(Bright(), 2, **sizes)
    settings = {"model": model, "bands": (1, 2, 3), "overwrite": True}
    predict(make_raster("small.tif", bands=6), tmp_path / "warm.tif", preview=tmp_path / "w.png", **settings)
    before = bytes_read()
    predict(scene, tmp_path / "map.tif", preview=tmp_path / "map.png", **settings)
    share = (bytes_read() - before) / scene.stat().st_size
    assert 1 <= share < 1.4


@pytest.mark.parametrize("gsd_m", [None, 0.4])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_picture_is_the_same_however_it_is_read(make_raster, tmp_path, gsd_m, dtype):
    """From the whole pass, the lower part of it, or the file alone."""
    hole = {"kind": "value", "nodata": 0, "hole": (900, 20, 800, 50)}
    scene = make_raster(shape=(3600, 90), dtype=dtype, **hole)
    sizes = {} if gsd_m is None else {"gsd_m": gsd_m, "gsd_range_m": (gsd_m, gsd_m)}
    model = trained(Bright(), 2, scaling="none", **sizes)
    config = PredictConfig(tile_size=128, overlap=16, batch_size=1)
    job = prepare(str(scene), {"labels": tmp_path / "map.tif"}, model, config)
    pictures = [Picture(job) for _ in range(3)]
    for first, picture in zip((0, 12), pictures, strict=False):
        rows = passes.Pass(layers=job.layers, write=lambda row, rows: None, progress=int, first=first)
        shown = Pictures(job)
        shown["preview"] = picture
        Passes(model).map(job, rows, PassState(pictures=shown))
    whole, lower, alone = (picture.image() for picture in pictures)
    np.testing.assert_array_equal(lower, whole)
    np.testing.assert_array_equal(alone, whole)
    assert whole.shape == (3, 1200, 30)
    assert (whole[:, 320:540, 8:22] == 255).all()
    if gsd_m is None and dtype == "uint8":
        with job.reader(job.grid) as reader:
            pixels, valid = reader.read(0, 0, 3600, 90)
        cells = pixels[:, :900].reshape(3, 300, 3, 30, 3).mean((2, 4))
        assert valid[:900].all()
        np.testing.assert_allclose(whole[:, :300], cells, atol=0.51)
