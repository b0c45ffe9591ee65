"""`rsseg score` as a user meets it: the table, the JSON, the words of its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasters import MakeRaster
from typer.testing import CliRunner, Result

from rsseg_cli.cli import app
from rsseg_cli.raster import Grid, RasterWriter, vrt

TRUTH = np.zeros((1, 40, 60), np.uint8)
TRUTH[0, :, 30:] = 1
MAPPED = np.zeros((1, 40, 60), np.uint8)
MAPPED[0, :, 28:] = 1


def write_map(path: Path, names: tuple[str, ...] = ("land", "building"), **tags: str) -> Path:
    """As `predict` writes it: two of sixty columns are wrong."""
    from rasterio.crs import CRS

    grid = Grid(
        crs=CRS.from_epsg(32633), transform=Affine(0.5, 0, 500000, 0, -0.5, 5000000), width=60, height=40
    )
    colours = {0: (10, 200, 10), 1: (200, 10, 10)}
    meta = vrt.RasterMeta(colours=colours, category_names=names, tags=tags or {})
    with RasterWriter(path, grid, meta) as writer:
        writer.write(0, MAPPED)
        writer.finish()
        writer.publish()
    return path


def write_polygons(path: Path, **columns: Any) -> Path:
    """The true building: columns 30 to 59."""
    import geopandas
    from shapely import box

    shape = box(500015, 4999980, 500030, 5000000)
    geopandas.GeoDataFrame(columns, geometry=[shape], crs=32633).to_crs(4326).to_file(path)
    return path


@pytest.fixture
def pair(tmp_path: Path, make_raster: MakeRaster) -> tuple[Path, Path]:
    return write_map(tmp_path / "map.tif"), make_raster("truth.tif", array=TRUTH)


def run(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["score", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def scores(*arguments: Any) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json").stdout)


def error(*arguments: Any, code: int = 1) -> str:
    result = run(*arguments, code=code)
    assert not result.stdout
    return result.stderr


def test_table(pair: tuple[Path, Path]) -> None:
    lines = run(*pair).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["class", "IoU", "F1", "precision", "recall", "pixels"]
    assert lines[1].split() == ["land", "0.933", "0.966", "1.000", "0.933", "1,200"]  # 28 of 30 columns
    assert lines[2].split() == ["building", "0.938", "0.968", "0.938", "1.000", "1,200"]  # 30 of 32
    assert "overall accuracy 0.967, kappa 0.933" in lines
    assert next(line for line in lines if line.startswith("within m")).split()[2:] == [
        "0.5",
        "1.5",
        "2.5",
        "5",
    ]
    assert lines[-1] == "2400 px scored, 0.0% unlabelled"


def test_json(pair: tuple[Path, Path]) -> None:
    found = scores(*pair, "--boundary-widths", "2,5")
    assert found["miou"] == pytest.approx((28 / 30 + 30 / 32) / 2)
    assert found["classes"][1]["name"] == "building"
    boundary = found["boundary"]
    assert boundary["widths_px"] == [2, 5]
    # within 2 px: two columns wrong, two right; within 5 px two of ten wrong
    assert boundary["trimap_accuracy"]["overall"] == pytest.approx([2 / 4, 8 / 10])
    # buildings within 2 px: truth columns 30, 31, map 28, 29; within 5 px 30-34 and 28-32
    assert boundary["boundary_iou"]["classes"]["building"] == pytest.approx([0, 3 / 7])


def test_json_of_what_is_not_defined_is_null(tmp_path: Path, make_raster: MakeRaster) -> None:
    path = write_map(tmp_path / "map.tif", ("land", "building", "water"))
    text = run(path, make_raster("truth.tif", array=TRUTH), "--json").stdout
    assert "NaN" not in text
    assert json.loads(text)["classes"][2]["iou"] is None


def test_polygons(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif")
    plain = write_polygons(tmp_path / "plain.geojson")
    found = scores(path, plain, "--vector-class", "building", "--outside", "land")
    assert found["classes"][1]["iou"] == pytest.approx(30 / 32)
    named = write_polygons(tmp_path / "named.gpkg", kind=["Building"])
    assert scores(path, named, "--label-field", "kind", "--outside", "land") == found
    inside = scores(path, named, "--label-field", "kind")
    assert inside["classes"][0]["pixels"] == 0
    assert inside["unlabelled_share"] == 0.5


def test_part_of_the_map(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Columns 26 to 33, two of eight wrong."""
    box = (500013, 4999990, 500017, 5000000)
    found = scores(*pair, "--bbox", *box)
    assert found["pixels"] == 8 * 20
    assert found["overall_accuracy"] == pytest.approx(6 / 8)
    import geopandas
    from shapely import box as polygon

    geopandas.GeoDataFrame(geometry=[polygon(*box)], crs=32633).to_file(tmp_path / "part.gpkg")
    assert scores(*pair, "--aoi", tmp_path / "part.gpkg") == found
    elsewhere = error(*pair, "--bbox", 0, 0, 1, 1, code=2)
    assert "lies outside the scene" in elsewhere
    apart = error(*pair, "--aoi", tmp_path / "part.gpkg", "--bbox", 500020, 4999990, 500022, 5000000, code=2)
    assert "have no pixel of the map in common" in apart


def test_truth_with_names_of_its_own(
    tmp_path: Path, pair: tuple[Path, Path], make_raster: MakeRaster
) -> None:
    """Buildings are 7 and land 2 in the truth; unlabelled ground is named so."""
    array = np.where(TRUTH == 1, 7, 2).astype(np.uint8)
    array[:, :, 59] = 0
    truth = make_raster("named.tif", array=array)
    categories = "".join(
        f"<Category>{name}</Category>"
        for name in ("Unlabelled", "", "Land", "", "", "", "", "building")
    )  # fmt: skip
    aux = "<PAMDataset><PAMRasterBand band='1'><CategoryNames>{}</CategoryNames></PAMRasterBand></PAMDataset>"
    Path(f"{truth}.aux.xml").write_text(aux.format(categories))
    found = scores(pair[0], truth)
    assert [row["pixels"] for row in found["classes"]] == [1200, 1160]
    assert found["classes"][0]["iou"] == pytest.approx(28 / 30)
    Path(f"{truth}.aux.xml").write_text(aux.format(categories.replace("Land", "soil")))
    assert "named.tif: soil (2) is no class; needs land, building. Pass --classes" in error(pair[0], truth)


def test_classes_of_a_map_without_names(tmp_path: Path, make_raster: MakeRaster) -> None:
    plain, truth = make_raster("plain.tif", array=MAPPED), make_raster("truth.tif", array=TRUTH)
    message = error(plain, truth)
    assert "plain.tif: names no classes" in message
    assert "Pass --classes a,b,c" in message
    found = scores(plain, truth, "--classes", "soil,roof")
    assert [row["name"] for row in found["classes"]] == ["soil", "roof"]
    assert found["classes"][1]["iou"] == pytest.approx(30 / 32)


def test_classes_from_a_file(tmp_path: Path, pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    """Truth has 5 for buildings and 3 for land; a colour mask its colours."""
    listed = tmp_path / "classes.json"
    listed.write_text(
        json.dumps(
            [
                {"name": "building", "value": 5, "colour": "#ff0000"},
                {"name": "land", "value": 3, "colour": [0, 0, 9]},
            ]
        )
    )
    truth = make_raster("five.tif", array=np.where(TRUTH == 1, 5, 3).astype(np.uint8))
    found = scores(pair[0], truth, "--classes", listed)
    assert [row["name"] for row in found["classes"]] == ["building", "land"]
    assert found["classes"][0]["iou"] == pytest.approx(30 / 32)
    mask = np.where(TRUTH == 1, np.array([[[255]], [[0]], [[0]]]), np.array([[[0]], [[0]], [[9]]]))
    coloured = make_raster("colours.tif", array=mask.astype(np.uint8))
    assert scores(pair[0], coloured, "--classes", listed) == found


def test_classes_that_the_map_does_not_have(pair: tuple[Path, Path]) -> None:
    message = error(*pair, "--classes", "land,house")
    assert "map.tif: its classes are land, building; --classes names house." in message


def test_truth_with_a_value_too_many(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    message = error(pair[0], make_raster("bad.tif", array=TRUTH + 1))
    assert "bad.tif: label value 2 is no class" in message


def test_no_label_in_common(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    empty = make_raster("empty.tif", array=np.full_like(TRUTH, 255))
    assert "no pixel of the map has a label" in error(pair[0], empty)


def test_truth_that_cannot_be_aligned(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    other = make_raster("small.tif", array=TRUTH[:, :20], crs=None)
    assert "small.tif: 60 x 20 px without CRS" in error(pair[0], other)


@pytest.mark.parametrize("crs", ['LOCAL_CS["a site",UNIT["metre",1]]', "+proj=longlat +R=1737400 +no_defs"])
def test_crs_that_cannot_be_brought_together(
    tmp_path: Path, pair: tuple[Path, Path], make_raster: MakeRaster, crs: str
) -> None:
    """A drawing's own axes, and the moon."""
    import geopandas
    from shapely import box

    name = "a site" if crs.startswith("LOCAL") else "unknown"
    expected = f"its CRS ({name}) cannot be transformed to that of the map (WGS 84 / UTM zone 33N)"
    raster = make_raster("site.tif", array=TRUTH, crs=crs)
    assert f"site.tif: {expected}" in error(pair[0], raster)
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=crs).to_file(tmp_path / "site.gpkg")
    assert f"site.gpkg: {expected}" in error(pair[0], tmp_path / "site.gpkg", "--vector-class", "building")


def test_files_that_are_none(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    assert "absent.tif" in error(tmp_path / "absent.tif", pair[1])
    assert "absent.tif" in error(pair[0], tmp_path / "absent.tif")
    (tmp_path / "no.gpkg").write_text("nothing")
    assert "no.gpkg: cannot be read as a vector file" in error(pair[0], tmp_path / "no.gpkg")


@pytest.mark.parametrize("widths", ["", "a", "0", "1,999", "1.5"])
def test_widths_out_of_range(pair: tuple[Path, Path], widths: str) -> None:
    assert "--boundary-widths" in error(*pair, "--boundary-widths", widths, code=2)


def test_options_of_polygons_with_a_raster(pair: tuple[Path, Path]) -> None:
    message = error(*pair, "--vector-class", "building", code=2)
    assert "--vector-class: for truth of polygons" in message


def test_pixels_without_data_are_reported(pair: tuple[Path, Path], make_raster: MakeRaster) -> None:
    array = MAPPED.copy()
    array[0, :, :6] = 255
    holes = make_raster("holes.tif", array=array, nodata=255)
    result = run(holes, pair[1], "--classes", "land,building")
    assert "240 of 2400 labelled pixels (10%) are without data or of no class" in result.stderr
    assert not run(holes, pair[1], "--classes", "land,building", "--quiet").stderr


def test_eroded_and_out_of_means(pair: tuple[Path, Path]) -> None:
    assert scores(*pair, "--erode", 2)["overall_accuracy"] == 1
    found = scores(*pair, "--out-of-means", "land")
    assert found["miou"] == found["classes"][1]["iou"]
    assert "sky cannot be left out of the means of land, building" in error(
        *pair, "--out-of-means", "sky", code=2
    )


def test_report(tmp_path: Path, make_raster: MakeRaster) -> None:
    scene = make_raster("scene.tif", shape=(40, 60))
    path = write_map(tmp_path / "map.tif", RSSEG_SCENE=str(scene))
    files = path, make_raster("truth.tif", array=TRUTH)
    result = run(*files, "--report", tmp_path / "report")
    assert "report/index.html" in result.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "map.tif against truth.tif" in page
    assert page.count("data:image") >= 3  # scene, truth, map
    assert "not in the means" not in page
    assert "exists already" in error(*files, "--report", tmp_path / "report")
    run(*files, "--report", tmp_path / "report", "--overwrite", "--out-of-means", "Land")
    assert (tmp_path / "report" / "index.html").read_text().count("not in the means") == 1


def test_scores_itself_without_error(pair: tuple[Path, Path]) -> None:
    """A map against itself: names and palette on both sides, all scores 1."""
    found = scores(pair[0], pair[0])
    assert found["miou"] == found["kappa"] == found["boundary"]["wfm"] == 1
    assert found["boundary"]["boundary_iou"]["mean"] == [1, 1, 1, 1]


@pytest.fixture
def remap(tmp_path: Path) -> Path:
    """Four classes become two."""
    path = tmp_path / "classes.json"
    path.write_text(
        '[{"name": "green", "from": ["forest", "crop"]}, {"name": "grey", "from": ["road", "roof"]}]'
    )
    return path


FOUR = ("forest", "road", "crop", "roof")
FOUR_MAPPED = np.array([[[0, 1, 2, 3] * 15] * 40], np.uint8)


def write_four(make_raster: MakeRaster, name: str, array: np.ndarray, names: tuple[str, ...]) -> Path:
    import rasterio

    path = make_raster(name, array=array)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**{f"CLASS_{index}": text for index, text in enumerate(names)})
    return path


@pytest.mark.parametrize("truth_names", [FOUR, ("crop", "roof", "forest", "road"), ("green", "grey"), ()])
def test_map_and_truth_are_scored_in_merged_classes(
    make_raster: MakeRaster, tmp_path: Path, remap: Path, truth_names: tuple[str, ...]
) -> None:
    """Truth of the old names in any order, of the new names, and of the map's numbers."""
    swapped = (FOUR_MAPPED + 2) % 4  # forest and crop, road and roof exchanged: the same merged classes
    array = {("green", "grey"): FOUR_MAPPED % 2, FOUR: swapped, (): swapped}.get(truth_names, FOUR_MAPPED)
    predicted = write_four(make_raster, "map.tif", FOUR_MAPPED, FOUR)
    truth = write_four(make_raster, "truth.tif", array, truth_names)
    scores = json.loads(run(predicted, truth, "--remap", remap, "--json").stdout)
    assert [item["name"] for item in scores["classes"]] == ["green", "grey"]
    assert [item["iou"] for item in scores["classes"]] == [1.0, 1.0]
    assert [item["pixels"] for item in scores["classes"]] == [1200, 1200]


def test_a_map_that_was_remapped_is_scored_against_the_old_classes(
    make_raster: MakeRaster, tmp_path: Path, remap: Path
) -> None:
    predicted = write_four(make_raster, "map.tif", FOUR_MAPPED % 2, ("green", "grey"))
    truth = write_four(make_raster, "truth.tif", FOUR_MAPPED, FOUR)
    scores = json.loads(run(predicted, truth, "--remap", remap, "--json").stdout)
    assert scores["miou"] == 1.0


def test_polygons_of_old_classes_count_as_the_new_one(
    make_raster: MakeRaster, tmp_path: Path, remap: Path
) -> None:
    truth = write_polygons(tmp_path / "truth.gpkg", kind=["roof"])
    predicted = write_four(make_raster, "map.tif", np.where(MAPPED, 1, 2).astype(np.uint8), FOUR)
    result = run(predicted, truth, "--remap", remap, "--label-field", "kind", "--outside", "forest", "--json")
    classes = {item["name"]: item for item in json.loads(result.stdout)["classes"]}
    assert classes["grey"]["recall"] == 1.0
    assert classes["grey"]["pixels"] == 1200
    assert classes["green"]["pixels"] == 1200


def test_a_remap_of_unknown_classes_is_refused(pair: tuple[Path, Path], remap: Path) -> None:
    result = run(*pair, "--remap", remap, code=2)
    assert "'green' is made from 'forest', which is no class of" in result.output
