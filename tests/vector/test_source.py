"""Class rasters by rows: rows of tiles are decoded once, kept while blocks need them, and gone then."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio

from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import DataError, OutputError
from rsseg_cli.vector import source as vector_source
from rsseg_cli.vector.task import make_task
from rsseg_cli.vector.vectorize_raster import vectorize

HEIGHT, WIDTH, TILE = 100, 1100, 32


@pytest.fixture(params=[("uint8", 255), ("uint8", 0), ("int16", -1), ("uint8", None)], ids=str)
def tiled(request, tmp_path):
    """A class raster in tiles."""
    dtype, nodata = request.param
    labels = np.random.default_rng(0).integers(0, 9, (HEIGHT, WIDTH)).astype(dtype)
    if nodata is not None:
        labels[20:70, 30:60] = nodata
    path = tmp_path / "labels.tif"
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": dtype}
    profile |= {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate"}
    profile["transform"] = rasterio.Affine(0.5, 0, 684300, 0, -0.5, 5336700)
    with rasterio.open(path, "w", nodata=nodata, crs="EPSG:32632", **profile) as dataset:
        dataset.write(labels, 1)
    return path


@pytest.mark.parametrize("rows", [1, 7, 31, 32, 33, 64])
def test_kept_rows_are_those_of_the_file(tiled, tmp_path, monkeypatch, rows):
    folder = tmp_path / "scratch"
    folder.mkdir()
    decoded = []
    decode = vector_source.ClassSource._decoded
    task = make_task(tiled, None, VectorConfig(block_rows=rows))
    source = replace(task.plan_in(folder).source, chunk_px=512 * TILE)  # three chunks
    plain = task.plan.source
    monkeypatch.setattr(
        vector_source.ClassSource,
        "_decoded",
        lambda self, dataset, rows, cols: (
            decoded.append((rows, cols)) if self.store else None,
            decode(self, dataset, rows, cols),
        )[1],
    )
    most = 0
    for first, end in task.blocks:
        found = source.read(first - 1, end - first + 2)
        np.testing.assert_array_equal(found, plain.read(first - 1, end - first + 2))
        assert found.dtype == source.dtype
        source.forget(first, end)
        most = max(most, len(list(folder.iterdir())))
    assert not list(folder.iterdir())
    if source.store:
        assert most <= 2 + rows // TILE
        assert len(decoded) == len(set(decoded)) == -(-HEIGHT // TILE) * -(-WIDTH // 512)
    else:
        assert rows >= 2 * TILE


def test_a_value_that_is_no_class_is_reported_with_its_place(tmp_path):
    path, labels = tmp_path / "labels.tif", np.zeros((HEIGHT, WIDTH), np.float32)
    labels[41, 700] = 0.5
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": "float32"}
    profile["transform"] = rasterio.Affine(0.5, 0, 684300, 0, -0.5, 5336700)
    with rasterio.open(path, "w", tiled=True, blockxsize=TILE, blockysize=TILE, **profile) as dataset:
        dataset.write(labels, 1)
    with pytest.raises(DataError, match=r"value 0.5 in row 41, column 700"):
        vectorize(path, tmp_path / "out.gpkg", VectorConfig(block_rows=5))
    assert [item.name for item in tmp_path.iterdir()] == ["labels.tif"]


def test_a_full_disk_is_reported(tiled, small_disk):
    task = make_task(tiled, None, VectorConfig(block_rows=5))
    folder = small_disk(20_000) / "out.tmp"
    folder.mkdir()
    source = task.plan_in(folder).source
    with pytest.raises(OutputError, match=r"cannot be written \(.*No space left.*full\?"):
        source.read(0, 5)
