"""`rsseg predict` on scenes of many kinds: the right pixels, and every warning about them in the JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasters import MakeRaster
from refiners import NextClass, refiner
from torch import nn
from typer.testing import CliRunner

from rsseg_cli import RefineConfig, predict, refine
from rsseg_cli.cli import app
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.weights import ModelSpec, TrainedModel, save_model

SMALL: dict[str, Any] = {"tile_size": 64, "overlap": 16, "device": "cpu"}


class Pixels(nn.Module):
    """Class k is the k-th band's scaled value as a logit."""

    def forward(self, pixels: Any) -> Any:
        return pixels * 20


def model(**changes: Any) -> TrainedModel:
    spec = ModelSpec.for_network(classes=["red", "green", "blue"])
    for name, value in ({"scaling": "stretch"} | changes).items():
        object.__setattr__(spec, name, value)
    return TrainedModel(Pixels(), spec)


def mapped(scene: Path, tmp_path: Path, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    result = predict(scene, tmp_path / "map.tif", model=model(), overwrite=True, **SMALL, **options)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        return dataset.read(1), result.notes


def picture(dtype: str = "uint16", height: int = 120, width: int = 160) -> np.ndarray:
    values = np.random.default_rng(0).uniform(500, 3500, (3, height, width))
    return values.astype(dtype)


@pytest.mark.parametrize("fill", [-9999, 0, -32768])
def test_fill_values_change_nothing_elsewhere(make_raster: MakeRaster, tmp_path: Path, fill: int) -> None:
    array = picture("int16")
    array[:, :40] = fill
    marked, _ = mapped(make_raster("a.tif", array=array), tmp_path, nodata=fill)
    labels, notes = mapped(make_raster("b.tif", array=array), tmp_path)
    assert (marked[:40] == 255).all()
    assert (labels[40:] == marked[40:]).mean() > 0.999
    assert any(f"pass --nodata {fill} if they are holes" in note for note in notes)


def test_nodata_in_one_band_changes_nothing_elsewhere(make_raster: MakeRaster, tmp_path: Path) -> None:
    array = picture("int16")
    whole, _ = mapped(make_raster("a.tif", array=array), tmp_path)
    array[0, :40] = -9999
    scene = make_raster("b.tif", array=array, kind="value", nodata=-9999, hole=(0, 0, 0, 0))
    labels, _ = mapped(scene, tmp_path)
    assert (labels[40:] == whole[40:]).mean() > 0.98
    assert (labels != 255).all()


def test_a_given_stretch_holds_for_all_sheets(make_raster: MakeRaster, tmp_path: Path) -> None:
    array = picture()
    array[0] //= 2
    whole, notes = mapped(make_raster(array=array), tmp_path, stretch=(0, 4000))
    assert any("to 0 to 1, from 0 to 4000" in note for note in notes)
    parts = [
        mapped(make_raster(f"{row}.tif", array=array[:, row : row + 60]), tmp_path, stretch=(0, 4000))[0]
        for row in (0, 60)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    each, _ = mapped(make_raster(array=array), tmp_path, stretch=(0, 2000, 0, 4000, 0, 4000))
    assert (each != whole).mean() > 0.1
    narrow = make_raster("bytes.tif", array=(array // 16).astype(np.uint8))
    bytes_, _ = mapped(narrow, tmp_path, stretch=(0, 250))
    assert (bytes_ == whole).mean() > 0.95


@pytest.mark.parametrize(
    ("text", "words"),
    [("5", "needs LOW,HIGH"), ("9,2", "needs LOW,HIGH"), ("a,b", "needs numbers"), ("all", "needs numbers"),
     ("0,1,0,1", "2 pairs for 3 bands")],
)  # fmt: skip
def test_wrong_stretches_are_usage_errors(
    make_raster: MakeRaster, tmp_path: Path, text: str, words: str
) -> None:
    scene = make_raster(dtype="uint16")
    target = str(tmp_path / "m.tif")
    done = CliRunner().invoke(app, ["predict", str(scene), "-o", target, "--stretch", text])
    assert done.exit_code == 2, done.output
    assert words in done.stderr


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    config = BicorSegConfig(classes=2, encoder="resnet18", channels=16, layers=1)
    spec = ModelSpec(
        name="tiny", architecture="bicor-seg", classes=ModelSpec.for_network(classes=["a", "b"]).classes,
        network=vars(config), gsd_m=0.5, gsd_range_m=(0.4, 0.7),
    )  # fmt: skip
    return save_model(tmp_path / "tiny.safetensors", BicorSeg(config), spec)


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_sheets_of_a_batch_share_a_stretch(make_raster: MakeRaster, tmp_path: Path, trained: Path) -> None:
    sheets = [
        make_raster(f"{number}.tif", array=picture()[:, :64, :64] // factor)
        for number, factor in ((1, 1), (2, 4))
    ]
    run(*sheets, "-o", tmp_path / "own", "--model", trained)
    run(*sheets, "-o", tmp_path / "maps", "--model", trained, "--stretch", "batch")
    manifests = [
        [json.loads(line) for line in next((tmp_path / folder).glob("*.jsonl")).read_text().splitlines()]
        for folder in ("own", "maps")
    ]
    stretches = [
        [note for record in lines for note in record.get("notes", ()) if "stretched" in note]
        for lines in manifests
    ]
    own, shared = ([note.partition("band by band from")[2] for note in notes] for notes in stretches)
    assert len(set(own)) == 2
    assert len(shared) == 2
    assert len(set(shared)) == 1


@pytest.mark.parametrize(("gsd", "warned"), [(0.45, False), (1.9, False), (10.0, True), (0.1, True)])
def test_imagery_that_a_model_does_not_know(
    make_raster: MakeRaster, tmp_path: Path, trained: Path, gsd: float, warned: bool
) -> None:
    scene = make_raster(gsd=gsd, shape=(40, 40))
    notes = run(scene, "-o", tmp_path / "m.tif", "--model", trained)["notes"]
    assert any("does not know such imagery" in note for note in notes) == warned
    given = run(scene, "-o", tmp_path / "n.tif", "--model", trained, "--gsd", gsd)["notes"]
    assert not any("does not know such imagery" in note for note in given)


def old_overview(scene: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tif"
    shutil.copy(scene, other)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(other, "r+") as dataset:
        dataset.build_overviews([2], Resampling.average)
    shutil.copy(f"{other}.ovr", f"{scene}.ovr")
    os.utime(f"{scene}.ovr", (1e9, 1e9))


@pytest.mark.parametrize("kind", ["alpha", "guess", "fill", "overview", "points", "area"])
def test_warnings_about_pixels_are_in_json_and_manifest(
    make_raster: MakeRaster, tmp_path: Path, trained: Path, kind: str
) -> None:
    array = np.random.default_rng(0).integers(1, 255, (4, 64, 64)).astype(np.uint8)
    options: list[object] = []
    if kind == "alpha":
        words, scene = "is called alpha", make_raster(array=array)
    elif kind == "guess":
        words, scene = "does not name its bands", make_raster(array=array[:3].astype(np.uint16))
    elif kind == "fill":
        array[:, :20] = 0
        words, scene = "pass --nodata 0", make_raster(array=array[:3])
    elif kind == "overview":
        words, scene = "is older than", make_raster(array=array[:3])
        old_overview(scene, tmp_path)
    elif kind == "points":
        words, scene = (
            "has only a CRS but no transform",
            make_raster(array=array[:3], transform=rasterio.Affine.identity()),
        )
    else:
        import geopandas
        from shapely.geometry import box

        words, scene = "has no CRS; taken to be in the scene's", make_raster(array=array[:3])
        area = tmp_path / "area.geojson"
        with rasterio.open(scene) as dataset:
            geopandas.GeoDataFrame(geometry=[box(*dataset.bounds)], crs=None).to_file(tmp_path / "area.fgb")
        area = tmp_path / "area.fgb"
        options = ["--aoi", area]
    notes = run(scene, "-o", tmp_path / "m.tif", "--model", trained, *options)["notes"]
    assert any(words in note for note in notes), notes
    assert len(set(notes)) == len(notes)
    run(scene, "-o", tmp_path / "maps", "--model", trained, *options)
    manifest = next((tmp_path / "maps").glob("*.jsonl")).read_text()
    assert words in manifest


def test_near_infrared_called_alpha_is_warped_as_data(make_raster: MakeRaster, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 255, (4, 80, 80)).astype(np.uint8)
    array[3, :, :30] = 0
    scene = make_raster(array=array)
    labels = make_raster("labels.tif", array=np.eye(40, dtype=np.uint8)[None], gsd=0.7)
    network = refiner(NextClass(2), ["class 0", "class 1"])
    result = refine(
        scene, labels, tmp_path / "refined.tif", config=RefineConfig(refiner=network), device="cpu"
    )
    assert result.valid_pixels == result.pixels
    with rasterio.open(tmp_path / "refined.tif") as dataset:
        assert (dataset.read(1) != np.eye(40))[:, :15].any()
