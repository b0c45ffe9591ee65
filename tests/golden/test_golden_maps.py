"""Maps of a small stored model on drawn scenes: pixels, files, numbers, messages and scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from drawn_scenes import GSD_M
from golden_files import MODEL, REFINER
from program import (
    ARITHMETIC,
    LAYERS,
    MODEL_OPTIONS,
    REFINE,
    SMALL_TILES,
    labels,
    layout,
    masked,
    pixels,
    polygon_facts,
    polygons,
    reported,
    run,
    without_changing,
)
from report_page import report_facts

from rsseg_cli import PredictConfig, RefineConfig, predict, refine
from rsseg_cli.weights import ModelSpec, TrainedModel, load_model, save_model

CLASSES = "building,land,road,vegetation,water"
ALONE = {  # options, with the scene that each is run on
    "holes": ("with_holes", ()),
    "in_16_bits": ("in_16_bits", ()),
    "finer": ("finer", ()),
    "coarser": ("coarser", ()),
    "at_another_resolution": ("part", ("--gsd", "0.7")),
    "other_bands": ("part", ("-b", "3,2,1")),
    "nodata_option": ("part", ("--nodata", "120")),
    "flip": ("part", ("--tta", "flip")),
    "refined": ("part", REFINE),
}
SLOW = {
    "d4": ("part", ("--tta", "d4")),
    "scales": ("part", ("--tta", "scales")),
    "holes_refined": ("with_holes", (*REFINE, "--ensemble", "2", "--seed", "3")),
    "finer_refined": ("finer", REFINE),
    "coarser_d4": ("coarser", ("--tta", "d4")),
    "large_tiles": ("part", ("--tile-size", "640", "--overlap", "0", "--batch-size", "1")),
}


def test_plain(golden, plain, scenes):
    folder, answer = plain
    golden.check_labels("plain", labels(folder / "map.tif"))
    for kind in LAYERS:
        golden.check_samples(f"plain_{kind}", pixels(folder / f"{kind}.tif"))
    golden.check_json("plain_reported", masked(json.loads(answer.stdout), folder))
    golden.check_text("messages/plain", without_changing(answer.stderr, scenes.folder))
    names = ["map.gpkg", "map.png", "map.qml", "map.tif", "map.tif.aux.xml"]
    names += [f"{kind}.{ending}" for kind in LAYERS for ending in ("qml", "tif")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_labels_confidence_and_probabilities_agree(plain):
    folder, _ = plain
    classes, sure, probabilities = (pixels(folder / f"{name}.tif") for name in ("map", *LAYERS[:2]))
    chosen = np.take_along_axis(probabilities, classes, axis=0)
    np.testing.assert_array_equal(chosen, sure)
    assert (probabilities <= chosen).all()


@pytest.mark.parametrize("kind", ["map", *LAYERS])
def test_layout_of_the_files(golden, plain, scenes, kind):
    folder, _ = plain
    golden.check_json(f"layout/{kind}", layout(folder / f"{kind}.tif", scenes.folder))
    names = folder / f"{kind}.tif.aux.xml"  # of classes, for QGIS
    golden.check_text(f"layout/{kind}_names", names.read_text("utf-8") if names.exists() else "")
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    assert cogeo.cog_validate(str(folder / f"{kind}.tif"), quiet=True)[:2] == (True, [])


def test_overviews_show_the_map(plain):
    """A class in an overview is one of those below it."""
    folder, _ = plain
    classes = labels(folder / "map.tif")
    with rasterio.open(folder / "map.tif", overview_level=0) as dataset:
        small = dataset.read(1)
    blocks = classes.reshape(len(small), 2, small.shape[1], 2)
    assert (blocks == small[:, None, :, None]).any(axis=(1, 3)).all()


def test_polygons_are_those_of_the_map(plain, folder):
    mapped, _ = plain
    sure = ("--confidence", mapped / "confidence.tif")
    run("vectorize", mapped / "map.tif", "-o", folder / "map.gpkg", *sure, "--jobs", 1)
    found, expected = (polygon_facts(polygons(place / "map.gpkg")) for place in (mapped, folder))
    assert found == expected
    with rasterio.open(mapped / "map.tif") as dataset:
        pixel_m2 = abs(dataset.transform.a * dataset.transform.e)
        counts = np.bincount(dataset.read(1).ravel(), minlength=5)
    areas = [found["classes"][name]["sums"]["area_m2"] for name in sorted(found["classes"])]
    # on the ellipsoid, which differs from UTM by up to 0.2 %
    np.testing.assert_allclose(areas, counts[counts > 0] * pixel_m2, rtol=0.002)


def test_preview(golden, plain):
    from PIL import Image

    with Image.open(plain[0] / "map.png") as image:
        golden.check_json("preview", {"size": list(image.size), "mode": image.mode})
        small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1)
    golden.check_samples("preview", np.minimum(small, 254).repeat(16, 1).repeat(16, 2))


@pytest.mark.parametrize("name", [*ALONE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_kinds_of_scenes_and_settings(golden, scenes, folder, name):
    scene, options = (ALONE | SLOW)[name]
    outputs = ("-o", "map.tif", "--confidence", "sure.tif")
    answer = run("predict", getattr(scenes, scene), *MODEL_OPTIONS, *SMALL_TILES, *outputs, *options)
    golden.check_labels(name, labels(folder / "map.tif"))
    golden.check_samples(f"{name}_confidence", pixels(folder / "sure.tif"))
    golden.check_text(f"messages/{name}", reported(answer, folder, scenes.folder))


def test_nodata_is_kept(scenes, folder):
    run("predict", scenes.with_holes, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif", "-q")
    with rasterio.open(scenes.with_holes) as dataset:
        np.testing.assert_array_equal(labels(folder / "map.tif") == 255, dataset.dataset_mask() == 0)


def test_a_part_of_the_scene(golden, scenes, part_map, folder):
    """By --bbox: on the scene's own grid, and nearly what the part alone gives."""
    with rasterio.open(scenes.part) as dataset:
        bounds = dataset.bounds
        grid = (dataset.transform, dataset.shape)
    answer = run("predict", scenes.whole, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif", "--bbox", *bounds)
    with rasterio.open(folder / "map.tif") as dataset:
        assert (dataset.transform, dataset.shape) == grid
    found, alone = labels(folder / "map.tif"), labels(part_map)
    golden.check_labels("bbox", found)
    assert (found == alone).mean() > 0.98
    golden.check_text("messages/bbox", reported(answer, folder, scenes.folder))


def test_an_area_of_interest(golden, scenes, folder):
    """By --aoi: pixels outside its polygons have no data."""
    import geopandas
    from shapely import Point

    with rasterio.open(scenes.part) as dataset:
        x, y = dataset.xy(220, 220)
        crs = dataset.crs
    geopandas.GeoSeries([Point(x, y).buffer(80)], crs=crs).to_crs(4326).to_file(folder / "area.gpkg")
    run("predict", scenes.part, *MODEL_OPTIONS, *SMALL_TILES, "-o", "map.tif", "--aoi", "area.gpkg")
    found = labels(folder / "map.tif")
    golden.check_labels("aoi", found)
    assert (found != 255).sum() * GSD_M**2 == pytest.approx(np.pi * 80**2, rel=0.01)


def test_refine_alone(golden, scenes, part_map, folder):
    """`rsseg refine` changes a band around boundaries, and is what `predict --refine` does."""
    options = ("--refiner", REFINER, "--tile-size", "256", *ARITHMETIC, "--json")
    answer = run("refine", scenes.part, part_map, "-o", "refined.tif", *options)
    refined = labels(folder / "refined.tif")
    golden.check_labels("refined_alone", refined)
    found = json.loads(answer.stdout)
    golden.check_json("refined_alone_reported", masked(found, folder))
    assert (refined != labels(part_map)).sum() == found["refined"]["changed_pixels"] > 0


@pytest.mark.slow
def test_uncertainty(golden, scenes, part_map, folder):
    options = ("--refiner", REFINER, *ARITHMETIC, "--uncertainty", "unsure.tif")
    run("refine", scenes.part, part_map, "-o", "r.tif", *options)
    golden.check_samples("uncertainty", pixels(folder / "unsure.tif"))


@pytest.mark.parametrize(
    ("options", "share"),
    [((), 0.99), (("--runtime", "openvino", "--dtype", "float32"), 0.9999)],
    ids=["default", "float32"],
)
def test_compiled_networks_give_the_maps_of_torch(scenes, part_map, folder, options, share):
    """The stored maps are torch's in float32; the default is bfloat16 where the processor has it."""
    model = ("--model", MODEL, *SMALL_TILES, *options)
    reported = json.loads(run("predict", scenes.part, *model, "-o", "map.tif", "--json").stdout)
    how = reported["computed"][load_model(MODEL).spec.name]
    assert how["runtime"] == "openvino"
    limit = share if how["dtype"] == "bfloat16" else 0.9999
    assert (labels(folder / "map.tif") == labels(part_map)).mean() >= limit
    refined = []
    for name, arithmetic in (("default", options), ("torch", ARITHMETIC)):
        refiner = ("--refiner", REFINER, "--tile-size", "256", *arithmetic)
        run("refine", scenes.part, part_map, "-o", f"{name}.tif", *refiner)
        refined.append(labels(folder / f"{name}.tif"))
    assert (refined[0] == refined[1]).mean() >= limit


def test_library(golden, scenes, part_map, folder):
    """`predict` and `refine` give what the commands give, also for a loaded and saved model."""
    trained = load_model(MODEL)
    assert isinstance(trained, TrainedModel)
    again = save_model(folder / "again.safetensors", trained.network, trained.spec)
    assert load_model(again).spec == trained.spec
    config = PredictConfig(tile_size=256, overlap=64, runtime="torch", dtype="float32")
    for name, model in (("loaded", trained), ("saved", again)):
        result = predict(scenes.part, folder / f"{name}.tif", model=model, config=config)
        np.testing.assert_array_equal(labels(result.paths["labels"]), labels(part_map))
    golden.check_json("library_result", masked(result.as_dict(), folder))
    result = predict(
        scenes.part, folder / "r.tif", model=MODEL, config=config, refine=RefineConfig(refiner=str(REFINER))
    )
    refining = RefineConfig(refiner=str(REFINER))
    alone = refine(scenes.part, part_map, folder / "alone.tif", config=refining, run=config)
    assert result.refined is not None
    equal = labels(folder / "r.tif") == labels(folder / "alone.tif")
    assert equal.mean() > 0.999
    assert alone.refined is not None


def test_a_network_of_ones_own(scenes, folder):
    """The class of a pixel's brightest band; not one is moved."""
    import torch

    class Brightest(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 20 * image

    spec = ModelSpec.for_network(classes=["red", "green", "blue"], bands=("red", "green", "blue"))
    predict(scenes.part, folder / "map.tif", model=TrainedModel(Brightest(), spec), tile_size=256, overlap=64)
    image = pixels(scenes.part) / 255
    scaled = (image - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    equal = labels(folder / "map.tif") == scaled.argmax(0)
    assert equal.mean() > 0.9999


def test_score(golden, scenes, part_map, folder):
    arguments = ("score", part_map, scenes.part_labels, "--classes", CLASSES, "--image", scenes.part)
    answer = run(*arguments, "--json", "--report", "report")
    golden.check_json("score", masked(json.loads(answer.stdout), folder, part_map.parent, scenes.folder))
    facts = report_facts(folder / "report")
    golden.check_json("score_report", masked(facts, folder, part_map.parent, scenes.folder))
    golden.check_text("messages/score", reported(run(*arguments), folder, part_map.parent, scenes.folder))


def test_eval(golden, scenes, folder):
    data = labelled(scenes, folder)
    answer = run("eval", *MODEL_OPTIONS, "--data", data, *SMALL_TILES, "--json", "--report", "report")
    golden.check_json("eval", masked(json.loads(answer.stdout), folder))
    golden.check_json("eval_report", masked(report_facts(folder / "report"), folder))
    golden.check_text("messages/eval", without_changing(answer.stderr, folder))


@pytest.mark.slow
def test_eval_against_the_refined_maps(golden, scenes, folder):
    data = labelled(scenes, folder)
    options = (*SMALL_TILES, "--refine", "--refiner", REFINER)
    answer = run("eval", *MODEL_OPTIONS, "--data", data, *options, "--json")
    golden.check_json("eval_refined", masked(json.loads(answer.stdout), folder))
    text = reported(run("eval", *MODEL_OPTIONS, "--data", data, *options), folder)
    golden.check_text("messages/eval_refined", text)


def labelled(scenes, folder: Path) -> Path:
    """A folder as `rsseg eval --data` reads it: the part of the scene and its labels."""
    for kind, path in (("images", scenes.part), ("masks", scenes.part_labels)):
        (folder / "data" / kind).mkdir(parents=True)
        shutil.copy(path, folder / "data" / kind / "part.tif")
    return folder / "data"
