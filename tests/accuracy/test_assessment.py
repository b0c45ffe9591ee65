"""Assessments: from filled-in points to figures and files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
from maps import NAMES, patches, write_map
from typer.testing import CliRunner

from rsseg_cli.accuracy import assess, draw_sample, write_assessment
from rsseg_cli.accuracy.config import AssessConfig, SampleConfig
from rsseg_cli.cli import app
from rsseg_cli.errors import DataError, OutputError


@pytest.fixture
def truth() -> np.ndarray:
    return patches((600, 500), (0.1, 0.6, 0.3), 3)


@pytest.fixture
def mapped(truth: np.ndarray) -> np.ndarray:
    wrong = patches(truth.shape, (0.85, 0.15), 4, 5)
    return ((truth + wrong) % 3).astype(np.uint8)


def fill_in(path: Path, truth: np.ndarray, only: slice = slice(None)) -> geopandas.GeoDataFrame:
    """Write the true class of each point, as someone who looks at the scene would."""
    points = geopandas.read_file(path, layer=path.stem)
    names = [NAMES[value] for value in truth[points["row"], points["col"]]]
    points.loc[points.index[only], "class"] = np.array(names, object)[only]
    points.to_file(path, layer=path.stem)
    return points


def test_intervals_hold_the_true_accuracy_and_areas(
    tmp_path: Path, truth: np.ndarray, mapped: np.ndarray
) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    draw_sample(path, tmp_path / "points.gpkg", SampleConfig(points=900, seed=2))
    fill_in(tmp_path / "points.gpkg", truth)

    result = assess(path, tmp_path / "points.gpkg", AssessConfig(level=0.999)).as_dict()

    def holds(item: dict, value: float) -> bool:
        return item["interval"][0] <= value <= item["interval"][1]

    assert holds(result["overall_accuracy"], np.mean(mapped == truth))
    for index, item in enumerate(result["classes"]):
        both = np.mean((mapped == index) & (truth == index))
        assert holds(item["users_accuracy"], both / np.mean(mapped == index))
        assert holds(item["producers_accuracy"], both / np.mean(truth == index))
        assert holds(item["area_ha"], np.sum(truth == index) * 4e-4)
        assert item["mapped_area_ha"] == pytest.approx(np.sum(mapped == index) * 4e-4, rel=3e-3)
    building = result["classes"][0]
    bias = abs(building["mapped_area_ha"] / (np.sum(truth == 0) * 4e-4) - 1)
    assert bias > 0.2  # which is why pixels must not be counted


def test_points_without_a_class_or_beyond_the_map_are_left_out(
    tmp_path: Path, truth: np.ndarray, mapped: np.ndarray
) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    draw_sample(path, tmp_path / "points.gpkg", SampleConfig(points=300))
    fill_in(tmp_path / "points.gpkg", truth, slice(0, 200))
    mapped[:100] = 255
    holed = write_map(tmp_path / "holed.tif", mapped)

    result = assess(path, tmp_path / "points.gpkg")
    fewer = assess(holed, tmp_path / "points.gpkg")

    assert result.points == 200
    assert "100 points have no true class and were left out" in result.notes
    assert fewer.points < 200
    assert any("where the map has no class" in note for note in fewer.notes)


def test_points_of_another_origin_are_weighted_by_the_mapped_classes(
    tmp_path: Path, truth: np.ndarray, mapped: np.ndarray
) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    draw_sample(path, tmp_path / "points.gpkg", SampleConfig(points=600))
    points = fill_in(tmp_path / "points.gpkg", truth)
    own = geopandas.GeoDataFrame({"seen": points["class"].map({name: i for i, name in enumerate(NAMES)})},
                                 geometry=points.geometry, crs=points.crs).to_crs(4326)  # fmt: skip
    own.to_file(tmp_path / "own.geojson")

    result = assess(path, tmp_path / "own.geojson", AssessConfig(truth="seen"))

    overall = assess(path, tmp_path / "points.gpkg").accuracy.overall
    assert result.accuracy.overall.value == pytest.approx(overall.value, rel=1e-6)
    assert result.accuracy.overall.standard_error == pytest.approx(overall.standard_error, rel=1e-6)
    assert any("no strata" in note for note in result.notes)


def test_clusters_are_units(tmp_path: Path, truth: np.ndarray, mapped: np.ndarray) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    draw_sample(path, tmp_path / "points.gpkg", SampleConfig(points=300, design="cluster", cluster_px=6))
    points = fill_in(tmp_path / "points.gpkg", truth)

    clustered = assess(path, tmp_path / "points.gpkg")
    points.drop(columns="cluster").to_file(tmp_path / "alone.gpkg", layer="alone")
    alone = assess(path, tmp_path / "alone.gpkg")

    assert clustered.accuracy.overall.value == pytest.approx(alone.accuracy.overall.value)
    assert clustered.accuracy.overall.standard_error > 1.2 * alone.accuracy.overall.standard_error
    low, high = clustered.as_dict()["classes"][0]["area_ha"]["interval"]
    assert f"({low:.2f} to {high:.2f})" in clustered.table()[1][3]
    assert " ± " in alone.table()[1][3]


def test_the_report_holds_the_figures(tmp_path: Path, truth: np.ndarray, mapped: np.ndarray) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    draw_sample(path, tmp_path / "points.gpkg", SampleConfig(points=300))
    fill_in(tmp_path / "points.gpkg", truth)

    result = assess(path, tmp_path / "points.gpkg")
    page = write_assessment(tmp_path / "report", result, title="A <map>")

    figures = json.loads((tmp_path / "report/assessment.json").read_text())
    assert figures == json.loads(json.dumps(result.as_dict()))
    text = page.read_text()
    assert "A &lt;map&gt;" in text
    assert f"{figures['overall_accuracy']['value']:.3f} (" in text
    assert "biased" in text
    with (tmp_path / "report/matrix.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["points"]) for row in rows) == 300
    assert sum(float(row["area_proportion"]) for row in rows) == pytest.approx(1, abs=1e-6)
    with (tmp_path / "report/areas.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == list(NAMES)
    with pytest.raises(OutputError, match="exists"):
        write_assessment(tmp_path / "report", result, title="again")


def test_a_class_that_is_nowhere_needs_no_more_points(
    tmp_path: Path, truth: np.ndarray, mapped: np.ndarray
) -> None:
    last = len(NAMES) - 1
    truth, mapped = (np.where(array == last, 0, array).astype(array.dtype) for array in (truth, mapped))
    path = write_map(tmp_path / "map.tif", mapped)
    draw_sample(path, tmp_path / "points.gpkg", SampleConfig(points=200))
    fill_in(tmp_path / "points.gpkg", truth)
    result = assess(path, tmp_path / "points.gpkg")
    assert np.isnan(result.accuracy.users[last].value)
    assert not any(f"{NAMES[last]}: few" in note and "user's" in note for note in result.few)


def test_figures_on_few_units_are_marked_and_say_how_many_more_points(
    tmp_path: Path, truth: np.ndarray, mapped: np.ndarray
) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    points = tmp_path / "points.gpkg"
    draw_sample(path, points, SampleConfig(points=100, min_per_stratum=10))
    fill_in(points, truth)

    few = assess(path, points)
    printed = CliRunner().invoke(app, ["assess", str(path), str(points), "--quiet"]).stdout
    item = few.as_dict()["classes"][0]["area_ha"]
    draw_sample(
        path, points, SampleConfig(points=100 + item["further_points"], min_per_stratum=10, overwrite=True)
    )
    fill_in(points, truth)
    more = assess(path, points)

    assert item["few_units"]
    assert 0 < item["effective_units"] < 25
    sentence = next(note for note in few.as_dict()["notes"] if note.startswith("building: few units"))
    assert "the interval may be too narrow; sample more of this class" in sentence
    assert f"area: some {item['further_points']} points" in sentence
    assert f"* {sentence}" in printed
    assert few.table()[1][3].endswith("*")
    assert not more.as_dict()["classes"][0]["area_ha"]["few_units"]
    assert not more.table()[1][3].endswith("*")
    page = write_assessment(tmp_path / "report", few, title="few").read_text()
    assert sentence.replace("'", "&#39;") in page


def test_messages_say_what_is_wrong(tmp_path: Path, truth: np.ndarray, mapped: np.ndarray) -> None:
    path = write_map(tmp_path / "map.tif", mapped)
    points = tmp_path / "points.gpkg"
    draw_sample(path, points, SampleConfig(points=100))

    with pytest.raises(DataError, match="fill in the true classes first"):
        assess(path, points)
    with pytest.raises(DataError, match="has no field 'truth'"):
        assess(path, points, AssessConfig(truth="truth"))
    frame = fill_in(points, truth)
    frame.loc[3, "class"] = "snow"
    frame.to_file(tmp_path / "snow.gpkg")
    with pytest.raises(DataError, match="snow in field 'class' is no class of the map"):
        assess(path, tmp_path / "snow.gpkg")
    frame.loc[3, "class"] = "land"
    frame[frame["stratum"] != "building"].to_file(tmp_path / "few.gpkg")
    frame.drop(columns="stratum")[frame["stratum"] != "building"].to_file(tmp_path / "none.gpkg")
    with pytest.raises(DataError, match="fewer than 2 points"):
        assess(path, tmp_path / "none.gpkg")
    frame.assign(stratum_m2=np.arange(len(frame)) + 1.0).to_file(tmp_path / "areas.gpkg")
    with pytest.raises(DataError, match="the same area"):
        assess(path, tmp_path / "areas.gpkg")
    frame.set_geometry(frame.buffer(3)).to_file(tmp_path / "areas2.gpkg")
    with pytest.raises(DataError, match="needs points"):
        assess(path, tmp_path / "areas2.gpkg")


def test_commands_print_what_the_files_hold(tmp_path: Path, truth: np.ndarray, mapped: np.ndarray) -> None:
    path, points = write_map(tmp_path / "map.tif", mapped), tmp_path / "points.gpkg"
    runner = CliRunner()

    drawn = runner.invoke(app, ["sample", str(path), "-n", "200", "-o", str(points), "--quiet"])
    fill_in(points, truth)
    printed = runner.invoke(app, ["assess", str(path), str(points), "--json", "--quiet"])

    assert (drawn.exit_code, printed.exit_code) == (0, 0)
    assert "200 points" in drawn.stdout
    assert json.loads(printed.stdout) == json.loads(json.dumps(assess(path, points).as_dict()))
