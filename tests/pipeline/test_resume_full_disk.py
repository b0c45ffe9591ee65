"""Disks that are too small, or fill up: reported before work starts, or in one error that can be resumed."""

import logging

import numpy as np
import pytest
from networks import Local, trained
from test_resume import outputs_in

from rsseg_cli import PredictConfig, VectorConfig, predict
from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline.job import check_space, prepare, size_text


def outputs(folder):
    return {kind: folder / f"{kind}.tif" for kind in ("confidence", "probabilities")}


@pytest.mark.parametrize("room", [150_000, 450_000, 1_000_000, 1_300_000])
def test_a_disk_that_fills_up_is_resumed(make_raster, tmp_path, small_disk, room):
    """While rows are written, or rasters finished; of noise rows, blocks and outputs take 500 kB each."""
    scene, model = make_raster(shape=(420, 260)), trained(Local(), 5)
    settings = {"tile_size": 96, "overlap": 32, "checkpoint_s": 0}
    predict(
        scene, tmp_path / "whole" / "map.tif", model=model, **outputs(_made(tmp_path / "whole")), **settings
    )
    folder = small_disk(room + 1_600_000)
    filler = folder / "filler"
    filler.write_bytes(bytes(1_600_000))
    with pytest.raises(OutputError, match=r"disk full|No space left") as caught:
        predict(scene, folder / "map.tif", model=model, **outputs(folder), **settings)
    visible = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert visible == ["filler"]
    filler.unlink()
    predict(scene, folder / "map.tif", model=model, resume=True, **outputs(folder), **settings)
    assert outputs_in(folder) == outputs_in(tmp_path / "whole")
    if room > 150_000:
        assert "--resume" in caught.value.__notes__[0]


def _made(folder):
    folder.mkdir()
    return folder


def job_of(scene, folder, **settings):
    paths = {"labels": folder / "map.tif", **outputs(folder)}
    return prepare(str(scene), paths, trained(Local(), 5), PredictConfig(**settings))


def test_outputs_that_cannot_fit_are_refused(make_raster, tmp_path, small_disk):
    scene = make_raster(shape=(600, 600))
    folder = small_disk(1_000_000)
    with pytest.raises(OutputError, match=r"1 MB free, the outputs take at least 3\.36 MB\. Make room"):
        check_space(job_of(scene, folder, creation_options={"compress": "none"}))
    check_space(job_of(scene, tmp_path, creation_options={"compress": "none"}))


def test_what_may_not_fit_is_reported_and_tried(make_raster, small_disk, caplog):
    """An empty map takes next to nothing."""
    caplog.set_level(logging.WARNING)
    scene = make_raster(array=np.full((3, 900, 900), 7, np.uint8))
    folder = small_disk(800_000)
    predict(scene, folder / "map.tif", model=trained(Local(), 5), **outputs(folder), tile_size=256)
    assert "kB free, the run may take some" in caplog.text
    assert (folder / "map.tif").exists()


def test_what_small_objects_and_holes_take_is_reported(make_raster, small_disk, caplog):
    caplog.set_level(logging.WARNING)
    scene, folder = make_raster(shape=(900, 900)), small_disk(1_500_000)
    paths = {"labels": folder / "map.tif", "vector": folder / "map.gpkg"}
    for steps, reported in (({}, False), ({"min_area_m2": 5.0, "fill_holes_m2": 5.0}, True)):
        check_space(prepare(str(scene), paths, trained(Local(), 5), PredictConfig(), VectorConfig(**steps)))
        assert ("the run may take some" in caplog.text) == reported


def test_disks_are_added_up_one_by_one(make_raster, small_disk):
    small, medium, large = map(small_disk, (1_000_000, 5_000_000, 10_000_000))
    scene = make_raster(shape=(600, 600))
    config = PredictConfig(creation_options={"COMPRESS": "NONE"})

    def job(folder):
        paths = {"labels": medium / "map.tif", "probabilities": folder / "p.tif"}
        return prepare(str(scene), paths, trained(Local(), 5), config)

    with pytest.raises(OutputError, match=rf"{small}: .* take at least 2\.4 MB"):
        check_space(job(small))
    check_space(job(large))


def test_sizes_in_words():
    sizes = (0, 999, 1000, 1234, 123_456, 10**9, 5 * 10**13)
    words = ["0 bytes", "999 bytes", "1 kB", "1.23 kB", "123 kB", "1 GB", "50 TB"]
    assert [size_text(size) for size in sizes] == words
