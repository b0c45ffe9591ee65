"""Maps whose classes are merged, renamed and recoloured."""

import json

import numpy as np
import pytest
import rasterio
import torch
from networks import Local, read, trained
from refiners import ImageClass, LocalRefiner, refiner
from torch import nn

from rsseg_cli import PredictConfig, RefineConfig, VectorConfig, predict
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.pipeline import passes
from rsseg_cli.weights import ModelSpec, TrainedModel

torch.set_num_threads(1)
SMALL = {"tile_size": 64, "overlap": 16}
MERGED = [
    {"name": "vegetation", "from": ["class 1", "class 3"], "colour": "#010203"},
    {"name": "rest", "from": "class 4"},
]
GROUPS = ((1, 3), (4,), (0,), (2,))


@pytest.fixture
def remap(tmp_path):
    def write(content=MERGED, name="classes.json"):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


class Close(nn.Module):
    """Three classes of 0.4, 0.35 and 0.25 everywhere: the last two together are the likeliest."""

    def forward(self, pixels):
        scores = torch.tensor([0.4, 0.35, 0.25]).log().view(1, 3, 1, 1)
        return scores.expand(len(pixels), 3, *pixels.shape[-2:])


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_probabilities_are_added_up_before_the_class_is_chosen(make_raster, tmp_path, remap, tta):
    path = remap([{"name": "green", "from": ["class 1", "class 2"]}])
    scene, out = make_raster(shape=(90, 70)), tmp_path / "map.tif"
    predict(
        scene, out, model=trained(Close(), 3), confidence=tmp_path / "c.tif",
        probabilities=tmp_path / "p.tif", remap=path, tta=tta, **SMALL,
    )  # fmt: skip
    assert (read(out) == 0).all()
    np.testing.assert_array_equal(np.unique(read(tmp_path / "c.tif")), [round(0.6 * 254)])
    assert [np.unique(band).tolist() for band in read(tmp_path / "p.tif")] == [[152], [102]]


@pytest.mark.parametrize("gsd_m", [None, 1.0])
def test_merged_probabilities_are_the_sums_of_a_plain_run(make_raster, tmp_path, remap, gsd_m):
    scene, model = make_raster(shape=(100, 90)), trained(Local(), 5)
    predict(scene, tmp_path / "a.tif", model=model, probabilities=tmp_path / "pa.tif", gsd_m=gsd_m, **SMALL)
    predict(
        scene, tmp_path / "b.tif", model=model, probabilities=tmp_path / "pb.tif", gsd_m=gsd_m,
        remap=remap(), **SMALL,
    )  # fmt: skip
    plain = read(tmp_path / "pa.tif").astype(int)
    sums = np.stack([plain[list(group)].sum(0) for group in GROUPS])
    assert np.abs(sums - read(tmp_path / "pb.tif")).max() <= 2  # each is rounded
    differ = read(tmp_path / "b.tif")[0] != sums.argmax(0)
    ordered = np.sort(sums, 0)
    assert (ordered[-1] - ordered[-2])[differ].max(initial=0) <= 3


def test_legend_areas_styles_polygons_and_tags_follow(make_raster, tmp_path, remap):
    out = tmp_path / "map.tif"
    result = predict(
        make_raster(shape=(70, 80)), out, model=trained(Local(), 5), vector=tmp_path / "map.gpkg",
        vector_config=VectorConfig(classes=("vegetation",)), remap=remap(), **SMALL,
    )  # fmt: skip
    assert list(result.classes) == ["vegetation", "rest", "class 0", "class 2"]
    with rasterio.open(out) as dataset:
        tags = dataset.tags()
        assert dataset.colormap(1)[0] == (1, 2, 3, 255)
        assert dataset.colormap(1)[1][:3] == (58, 124, 190)  # that of class 4
    assert [tags[f"CLASS_{index}"] for index in range(4)] == list(result.classes)
    assert json.loads(tags["RSSEG_REMAP"])["vegetation"] == ["class 1", "class 3"]
    assert b'label="vegetation"' in (tmp_path / "map.qml").read_bytes()
    assert b"<Category>rest</Category>" in (tmp_path / "map.tif.aux.xml").read_bytes()
    import pyogrio

    assert set(pyogrio.read_dataframe(tmp_path / "map.gpkg").class_name) == {"vegetation"}


def test_heatmaps_of_merged_classes_are_the_strongest(make_raster, tmp_path, remap):
    from batch_runs import save_tiny

    model = save_tiny(tmp_path / "tiny.safetensors")
    scene, path = make_raster(shape=(70, 80)), remap([{"name": "built", "from": ["roof", "road"]}])
    for name, more in (("a", {}), ("b", {"remap": path})):
        heat = tmp_path / f"{name}_heat.tif"
        predict(scene, tmp_path / f"{name}.tif", model=model, heatmaps=heat, **more, **SMALL)
    plain, merged = read(tmp_path / "a_heat.tif"), read(tmp_path / "b_heat.tif")
    np.testing.assert_array_equal(merged, [np.maximum(plain[0], plain[1]), plain[2]])


@pytest.mark.parametrize("network", [ImageClass, LocalRefiner])
def test_the_refiner_sees_the_networks_own_classes(make_raster, tmp_path, remap, network):
    """Refined and merged is what the refined probabilities add up to."""
    names = ("roof", "road", "tree")
    array = np.repeat(np.random.default_rng(1).integers(0, 3, (1, 120, 100), np.uint8), 3, 0)
    scene = make_raster(array=np.kron(array[:, ::8, ::8], np.ones((1, 8, 8), np.uint8))[:, :120, :100])
    model = TrainedModel(Local(3), ModelSpec.for_network(classes=names))
    refine = RefineConfig(refiner=refiner(network(), names), band_m=3.0, tile_size=64)
    path = remap([{"name": "built", "from": ["roof", "road"]}])
    for name, more in (("a", {}), ("b", {"remap": path})):
        result = predict(
            scene, tmp_path / f"{name}.tif", model=model, refine=refine,
            probabilities=tmp_path / f"{name}_p.tif", **more, **SMALL,
        )  # fmt: skip
    plain, merged = (read(tmp_path / f"{name}_p.tif").astype(int) for name in "ab")
    sums = np.stack([plain[0] + plain[1], plain[2]])
    assert np.abs(sums - merged).max() <= 2
    assert (read(tmp_path / "b.tif")[0] == merged.argmax(0))[np.abs(merged[0] - merged[1]) > 2].all()
    assert list(result.classes) == ["built", "tree"]
    assert result.refined.windows_run > 0


def test_a_stopped_run_resumes_with_the_same_classes_alone(make_raster, tmp_path, remap, caplog):
    class Stopping(passes.Passes):
        def map(self, job, rows, state):
            def write(row, values):
                if row > 60:
                    raise KeyboardInterrupt
                rows.write(row, values)

            from dataclasses import replace

            super().map(job, replace(rows, write=write), state)

    scene, model, path = make_raster(shape=(200, 90)), trained(Local(), 5), remap()
    config = PredictConfig(**SMALL, checkpoint_s=0, remap=path)
    predict(scene, tmp_path / "whole.tif", model=model, config=config)
    for changed in (False, True):
        out = tmp_path / f"map{changed}.tif"
        with pytest.raises(KeyboardInterrupt):
            predict(scene, out, model=model, config=config, passes=Stopping(model))
        if changed:
            remap([{"name": "all", "from": [f"class {index}" for index in range(5)]}])
        caplog.clear()
        result = predict(scene, out, model=model, config=config, resume=True)
        assert ("starting over" in caplog.text) == changed
        assert ("classes" in caplog.text) == changed
        if changed:
            assert list(result.classes) == ["all"]
            assert (read(out) == 0).all()
        else:
            np.testing.assert_array_equal(read(out), read(tmp_path / "whole.tif"))


def test_unknown_classes_are_refused_before_work(make_raster, tmp_path, remap):
    path, model = remap([{"name": "a", "from": ["wood"]}]), trained(Local(), 5)
    with pytest.raises(UsageError, match="no class of model 'external'"):
        predict(make_raster(), tmp_path / "map.tif", model=model, remap=path, **SMALL)
    with pytest.raises(ModelError, match="no class heatmaps"):
        predict(make_raster(), tmp_path / "m.tif", model=model, heatmaps=tmp_path / "h.tif", remap=remap())
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".tif"]
