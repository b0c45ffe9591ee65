"""Truth as the world has it: floats, masks of 0 and 255, polygons that lie elsewhere or name a wrong CRS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasters import MakeRaster
from shapely import affinity
from shapely.geometry import Polygon, box

from rsseg_cli.errors import DataError, SceneError
from rsseg_cli.evaluation import PairConfig, score_pair

UTM = "EPSG:32633"
CLASSES = "background,building"
BUILDING = box(500004, 4999980, 500014, 4999996)  # columns 8 to 27, rows 8 to 39 of 80 x 60 px at 0.5 m


def truth_array() -> np.ndarray:
    array = np.zeros((60, 80), np.uint8)
    array[8:40, 8:28] = 1
    return array


@pytest.fixture
def mapped(make_raster: MakeRaster) -> str:
    """A map of half of the building."""
    array = truth_array()
    array[24:] = 0
    return str(make_raster("map.tif", array=array[None]))


def iou(mapped: str, truth: Path, classes: str = CLASSES, **options: Any) -> list[float | None]:
    scores = score_pair(mapped, str(truth), PairConfig(classes=classes, **options)).scores
    return [row["iou"] for row in scores["classes"]]


RIGHT = [4160 / 4480, 0.5]  # 60 * 80 - 640 px of background, 320 more mapped


def classes_file(folder: Path, items: list[dict[str, Any]]) -> str:
    path = folder / "classes.json"
    path.write_text(json.dumps(items))
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint16"])
def test_whole_numbers_of_any_type(make_raster: MakeRaster, mapped: str, dtype: str) -> None:
    truth = make_raster("truth.tif", array=truth_array()[None].astype(dtype))
    assert iou(mapped, truth) == pytest.approx(RIGHT)


def test_nan_is_unlabelled_with_and_without_a_tag(make_raster: MakeRaster, mapped: str) -> None:
    array = truth_array().astype(np.float32)
    array[50:] = np.nan
    for name, more in (("a.tif", {}), ("b.tif", {"nodata": np.nan, "kind": "none"})):
        result = score_pair(
            mapped, str(make_raster(name, array=array[None], **more)), PairConfig(classes=CLASSES)
        )
        assert result.scores["pixels"] == 50 * 80
        assert result.confusion[:, :2].tolist() == [[3360, 0], [320, 320]]


def test_maps_of_floats(make_raster: MakeRaster) -> None:
    array = truth_array()
    array[24:] = 0
    path = make_raster("map.tif", array=array[None].astype(np.float32))
    assert iou(str(path), make_raster("truth.tif", array=truth_array()[None])) == pytest.approx(RIGHT)
    shares = make_raster("confidence.tif", array=array[None] * np.float32(0.3))
    with pytest.raises(SceneError, match=r"value 0.3 is no class"):
        iou(str(shares), make_raster("truth2.tif", array=truth_array()[None]))


@pytest.mark.parametrize("kind", ["uint8", "float32", "palette", "png"])
def test_a_mask_of_0_and_255_names_255(
    tmp_path: Path, make_raster: MakeRaster, mapped: str, kind: str
) -> None:
    array = truth_array() * np.uint8(255)
    if kind in ("palette", "png"):
        image = Image.fromarray(array)
        if kind == "palette":
            image = image.convert("P")
            image.putpalette([k // 3 for k in range(768)])
        image.save(tmp_path / "truth.png")
        truth = tmp_path / "truth.png"
    else:
        truth = make_raster("truth.tif", array=array[None].astype(kind))
    with pytest.raises(DataError, match=r"holds no building, but 13.3% are 255.*\"value\": 255"):
        iou(mapped, truth)
    listed = [{"name": "background", "value": 0}, {"name": "building", "value": 1}]
    with pytest.raises(DataError, match="holds no building"):
        iou(mapped, truth, classes_file(tmp_path, listed))
    listed[1]["value"] = 255
    assert iou(mapped, truth, classes_file(tmp_path, listed)) == pytest.approx(RIGHT)
    listed[1]["value"] = 1
    listed.append({"name": "unlabelled", "value": 255})
    assert iou(mapped, truth, classes_file(tmp_path, listed)) == [1.0, None]


def test_a_mask_of_0_and_255_against_a_map_that_names_its_classes(
    make_raster: MakeRaster, tmp_path: Path
) -> None:
    """Also where the map's values are not 0, 1, ...: the truth has them too."""
    for names in ({0: "background", 1: "building"}, {0: "background", 3: "building"}):
        array = truth_array() * np.uint8(max(names))
        path = make_raster("map.tif", array=array[None])
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(**{f"CLASS_{value}": name for value, name in names.items()})
        truth = make_raster("truth.tif", array=truth_array()[None] * np.uint8(255))
        with pytest.raises(DataError, match="holds no building, but"):
            score_pair(str(path), str(truth), PairConfig())
        truth = make_raster("truth.tif", array=array[None])
        assert score_pair(str(path), str(truth), PairConfig()).scores["miou"] == 1


def test_what_255_does_not_mean(make_raster: MakeRaster, mapped: str) -> None:
    """Unlabelled ground beside both classes, a nodata tag, a class that lies outside the box alone."""
    array = truth_array()
    array[50:] = 255
    assert iou(mapped, make_raster("a.tif", array=array[None]))[1] == 0.5
    assert iou(mapped, make_raster("b.tif", array=array[None]), bbox=(500020, 4999971, 500040, 5000000)) == [
        1.0,
        None,
    ]
    array[:50] = 0
    tagged = make_raster("c.tif", array=array[None], kind="value", nodata=255, hole=(0, 0, 1, 1))
    assert iou(mapped, tagged)[1] == 0.0


@pytest.mark.parametrize(
    ("low", "high", "named"), [(1, 2, "value 2"), (0, 127, "value 127"), (-1, 1, "value -1")]
)
def test_other_codes_are_named(make_raster: MakeRaster, mapped: str, low: int, high: int, named: str) -> None:
    array = np.where(truth_array() == 1, high, low).astype(np.int16)
    with pytest.raises(DataError, match=f"label {named} is no class"):
        iou(mapped, make_raster("truth.tif", array=array[None]))


def test_colour_masks_of_0_and_255(tmp_path: Path, make_raster: MakeRaster, mapped: str) -> None:
    truth = make_raster("truth.tif", array=np.stack([truth_array() * np.uint8(255)] * 3))
    with pytest.raises(DataError, match=r"colour"):
        iou(mapped, truth)
    listed = [
        {"name": "background", "colour": [0, 0, 0]},
        {"name": "building", "colour": [255, 255, 255]},
    ]
    assert iou(mapped, truth, classes_file(tmp_path, listed)) == pytest.approx(RIGHT)


def write(path: Path, shape: Polygon, crs: Any = UTM) -> Path:
    geopandas.GeoDataFrame({"class": ["building"]}, geometry=[shape], crs=crs).to_file(path)
    return path


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_polygons_in_their_place(tmp_path: Path, mapped: str, suffix: str) -> None:
    frame = geopandas.GeoDataFrame({"class": ["building"]}, geometry=[BUILDING], crs=UTM)
    if suffix == ".geojson":
        frame = frame.to_crs(4326)
    frame.to_file(tmp_path / f"truth{suffix}")
    assert iou(mapped, tmp_path / f"truth{suffix}") == pytest.approx(RIGHT, abs=0.01)


def geojson_in_metres(path: Path) -> Path:
    ring = [list(point) for point in BUILDING.exterior.coords]
    feature = {
        "type": "Feature", "properties": {"class": "building"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_geojson_in_metres_that_names_no_crs(tmp_path: Path, mapped: str) -> None:
    truth = geojson_in_metres(tmp_path / "truth.geojson")
    with pytest.raises(DataError, match=r"lies elsewhere.*set it by ogr2ogr -a_srs EPSG:32633"):
        iou(mapped, truth)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_polygons_elsewhere(tmp_path: Path, mapped: str, suffix: str) -> None:
    far = affinity.translate(BUILDING, 20000, 0)
    frame = geopandas.GeoDataFrame({"class": ["building"]}, geometry=[far], crs=UTM)
    (frame.to_crs(4326) if suffix == ".geojson" else frame).to_file(tmp_path / f"t{suffix}")
    with pytest.raises(DataError, match="lies elsewhere"):
        iou(mapped, tmp_path / f"t{suffix}")


def test_a_wrong_zone(tmp_path: Path, mapped: str) -> None:
    with pytest.raises(DataError, match=r"lies elsewhere.*-a_srs EPSG:32633"):
        iou(mapped, write(tmp_path / "t.gpkg", BUILDING, "EPSG:32632"))


def test_no_crs_and_elsewhere(tmp_path: Path, mapped: str, caplog: pytest.LogCaptureFixture) -> None:
    assert iou(mapped, write(tmp_path / "a.shp", BUILDING, None)) == pytest.approx(RIGHT)
    assert "has no CRS" in caplog.text
    with pytest.raises(DataError, match="lies elsewhere"):
        iou(mapped, write(tmp_path / "b.shp", affinity.translate(BUILDING, 0, 9000), None))


def test_swapped_axes(tmp_path: Path, mapped: str) -> None:
    degrees = geopandas.GeoSeries([BUILDING], crs=UTM).to_crs(4326)[0]
    swapped = Polygon([(y, x) for x, y in degrees.exterior.coords])
    with pytest.raises(DataError, match="Its x and y are swapped"):
        iou(mapped, write(tmp_path / "t.geojson", swapped, "EPSG:4326"))
    swapped = Polygon([(y, x) for x, y in BUILDING.exterior.coords])
    with pytest.raises(DataError, match="Its x and y are swapped"):
        iou(mapped, write(tmp_path / "t.gpkg", swapped))


def test_polygons_around_the_map_alone(tmp_path: Path, mapped: str, caplog: pytest.LogCaptureFixture) -> None:
    """A map without buildings among many elsewhere is scored, and said."""
    shapes = [affinity.translate(BUILDING, x, 0) for x in (-5000, 5000)]
    frame = geopandas.GeoDataFrame({"class": ["building"] * 2}, geometry=shapes, crs=UTM)
    frame.to_file(tmp_path / "t.gpkg")
    assert iou(mapped, tmp_path / "t.gpkg") == [pytest.approx(4480 / 4800), 0.0]
    assert "no polygon lies on" in caplog.text


@pytest.mark.parametrize(
    ("crs", "origin"),
    [(UTM, (520000, 5000000)), ("EPSG:32632", (500000, 5000000)), ("EPSG:4326", (500000, 5000000))],
    ids=["elsewhere", "wrong zone", "metres called degrees"],
)
def test_rasters_elsewhere(make_raster: MakeRaster, mapped: str, crs: str, origin: tuple[int, int]) -> None:
    transform = Affine(0.5, 0, origin[0], 0, -0.5, origin[1])
    truth = make_raster("truth.tif", array=truth_array()[None], crs=crs, transform=transform)
    with pytest.raises(DataError, match=r"truth.tif: lies elsewhere"):
        iou(mapped, truth)


def test_a_raster_without_crs_whose_transform_is_another(
    tmp_path: Path, mapped: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "truth.tif"
    for left, warned in ((500000, False), (520000, True)):
        with rasterio.open(
            path, "w", driver="GTiff", width=80, height=60, count=1, dtype="uint8",
            transform=Affine(0.5, 0, left, 0, -0.5, 5000000),
        ) as dataset:  # fmt: skip
            dataset.write(truth_array(), 1)
        assert iou(mapped, path) == pytest.approx(RIGHT)
        assert ("another transform than its image" in caplog.text) == warned
