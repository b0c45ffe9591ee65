"""STAC Items of results: valid, in their place on the globe, with the files that are there."""

from __future__ import annotations

import json
import re

import numpy as np
import pystac
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from networks import Local, trained
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from rasterio.crs import CRS
from stac_schemas import check_item

from rsseg_cli import predict
from rsseg_cli.pipeline.stac import footprint
from rsseg_cli.raster import Grid
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel

torch.set_num_threads(1)
SMALL = {"tile_size": 64, "overlap": 16}


def test_an_item_names_the_file_of_a_palette(make_raster, tmp_path):
    scene = make_raster("palette.tif", bands=1, shape=(70, 90))
    with rasterio.open(scene, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3, 255)})
    model = TrainedModel(Local(3), ModelSpec.for_network(classes=["a", "b", "c"], name="mine"))
    predict(scene, tmp_path / "map.tif", model=model, stac=tmp_path / "map.json", **SMALL)
    (link,) = json.loads((tmp_path / "map.json").read_text())["links"]
    assert (tmp_path / link["href"]).samefile(scene)


def test_an_item_tells_where_the_map_lies_and_what_its_files_are(make_raster, tmp_path):
    for folder in ("maps", "items"):
        (tmp_path / folder).mkdir()
    scene = make_raster("ortho.tif", shape=(70, 90))
    classes = [ClassSpec("roof & <tile>", (200, 30, 30)), ClassSpec("roof/<tile>", (1, 2, 3)), "日本"]
    model = TrainedModel(Local(3), ModelSpec.for_network(classes=classes, name="mine"))
    out = tmp_path / "maps" / "map.tif"
    result = predict(
        scene, out, model=model, stac=tmp_path / "items" / "map.json", confidence=tmp_path / "maps" / "c.tif",
        probabilities=tmp_path / "maps" / "p.tif", vector=tmp_path / "maps" / "map.gpkg",
        html=tmp_path / "maps" / "map.html", **SMALL,
    )  # fmt: skip
    text = result.paths["stac"].read_text()
    check_item(json.loads(text))
    item = pystac.Item.from_file(str(tmp_path / "items" / "map.json"))
    assert set(item.assets) == {"labels", "confidence", "probabilities", "vector", "html"}
    for asset in item.assets.values():
        assert (tmp_path / "items" / asset.href).is_file()
    (link,) = item.get_links("derived_from")
    assert (tmp_path / "items" / json.loads(text)["links"][0]["href"]).samefile(scene), link
    projected = ProjectionExtension.ext(item)
    assert projected.code == "EPSG:32633"
    assert projected.shape == [70, 90]
    assert Affine(*projected.transform[:6]).almost_equals(Affine(0.5, 0, 500000, 0, -0.5, 5000000))
    described = ClassificationExtension.ext(item.assets["labels"]).classes
    assert [item.value for item in described] == [0, 1, 2]
    assert described[0].color_hint == "C81E1E"
    raw = item.assets["labels"].extra_fields["classification:classes"]
    assert [entry["title"] for entry in raw] == ["roof & <tile>", "roof/<tile>", "日本"]
    names = [entry["name"] for entry in raw]
    assert len(set(names)) == 3
    assert all(re.fullmatch("[0-9A-Za-z_-]+", name) for name in names)
    assert item.assets["labels"].roles == ["data", "labels"]
    assert len(item.assets["probabilities"].extra_fields["bands"]) == 3
    assert item.properties["processing:software"].keys() == {"rsseg"}
    assert "ortho.tif, by model mine" in item.properties["processing:lineage"]
    west, south, east, north = item.bbox
    assert west == pytest.approx(15, abs=1e-6)
    assert (east - west, north - south) == pytest.approx((0.00057, 0.000315), rel=0.01)


def test_a_scene_without_crs_has_no_place(make_raster, tmp_path):
    scene = make_raster(crs=None)
    predict(scene, tmp_path / "map.tif", model=trained(Local(), 5), stac=tmp_path / "map.json", **SMALL)
    item = json.loads((tmp_path / "map.json").read_text())
    check_item(item)
    assert item["geometry"] is None
    assert "bbox" not in item


def grid(crs, left, top, size, shape=(100, 100)):
    transform = Affine(size, 0, left, 0, -size, top)
    return Grid(crs=CRS.from_user_input(crs), transform=transform, height=shape[0], width=shape[1])


@pytest.mark.parametrize(
    ("place", "parts", "bounds"),
    [
        (grid("EPSG:4326", 10, 50, 0.01), 1, (10, 49, 11, 50)),
        (grid("EPSG:4326", 179.5, 0.5, 0.01), 2, (-180, -0.5, 180, 0.5)),
        (grid("EPSG:32660", 500000, 7000000, 8000), 2, (-180, 55.5, 180, 63.2)),
        (grid("EPSG:3995", -500000, 500000, 10000), 1, (-180, 83.6, 180, 90)),
    ],
    ids=["plain", "degrees across", "metres across", "pole"],
)
def test_footprints_end_at_the_180th_meridian(place, parts, bounds):
    shape = footprint(place)
    assert shape.is_valid
    assert len(shapely.get_parts(shape)) == parts
    np.testing.assert_allclose(shapely.bounds(shape), bounds, atol=0.6)
    if parts == 2:
        widths = np.diff(shapely.bounds(shapely.get_parts(shape))[:, ::2])
        assert widths.max() < 15


def test_the_box_of_a_map_across_the_meridian_is_narrow(make_raster, tmp_path):
    scene = make_raster(shape=(60, 80), crs="EPSG:4326", transform=Affine(0.01, 0, 179.6, 0, -0.01, 0))
    predict(scene, tmp_path / "map.tif", model=trained(Local(), 5), stac=tmp_path / "map.json", **SMALL)
    item = json.loads((tmp_path / "map.json").read_text())
    check_item(item)
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"] == pytest.approx([179.6, -0.6, -179.6, 0], abs=1e-6)
