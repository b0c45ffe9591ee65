"""Change between maps: what counts, on any grid, whatever the rows at once."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from maps import patches, write_map
from rasterio.warp import Resampling, reproject
from typer.testing import CliRunner

from rsseg_cli.accuracy import changes, find_changes
from rsseg_cli.accuracy.config import ChangeConfig
from rsseg_cli.cli import app
from rsseg_cli.errors import DataError, UsageError

LAND, WATER, BUILDING = 1, 2, 0
LAND_TO_BUILDING = 2 + 2  # codes follow the classes' order: building to land, to water, land to building


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def field(*rectangles: tuple[slice, slice, int], shape: tuple[int, int] = (80, 90)) -> np.ndarray:
    values = np.full(shape, LAND, np.uint8)
    for rows, cols, value in rectangles:
        values[rows, cols] = value
    return values


def run(
    tmp_path: Path, before: np.ndarray, after: np.ndarray, **settings: float
) -> tuple[np.ndarray, object]:
    first, second = write_map(tmp_path / "a.tif", before), write_map(tmp_path / "b.tif", after)
    result = find_changes(first, second, tmp_path / "change.tif", ChangeConfig(**settings))
    return read(tmp_path / "change.tif"), result


def test_every_pixel_says_what_became_what(tmp_path: Path) -> None:
    before, after = patches((70, 90), (0.3, 0.4, 0.3), 1), patches((70, 90), (0.3, 0.4, 0.3), 2)
    before[:5], after[:, :7] = 255, 255

    values, result = run(tmp_path, before, after)

    with rasterio.open(tmp_path / "change.tif") as dataset:
        tags = dataset.tags()
    names = ("building", "land", "water")
    for old in range(3):
        for new in range(3):
            here = (before == old) & (after == new)
            name = "unchanged" if old == new else f"{names[old]} to {names[new]}"
            assert {tags[f"CLASS_{value}"] for value in np.unique(values[here])} == {name}
            assert result.areas[old, new] == pytest.approx(here.sum() * 4, rel=3e-3)  # UTM's scale
    assert (values[(before == 255) | (after == 255)] == 255).all()


def test_tolerance_takes_a_shift_but_leaves_new_buildings(tmp_path: Path) -> None:
    house, new = (slice(20, 40), slice(20, 40)), (slice(50, 60), slice(60, 75))
    shifted = (slice(22, 42), slice(21, 41))
    before, after = field((*house, BUILDING)), field((*shifted, BUILDING), (*new, BUILDING))

    plain, _ = run(tmp_path, before, after)
    (tmp_path / "change.tif").unlink()
    tolerant, result = run(tmp_path, before, after, tolerance_px=2)

    expected = np.zeros(before.shape, np.uint8)
    expected[new] = LAND_TO_BUILDING
    assert np.count_nonzero(plain) > np.count_nonzero(expected)
    assert tolerant.tolist() == expected.tolist()
    assert result.suppressed_area == pytest.approx(4 * (2 * 20 + 18) * 2, rel=3e-3)


def test_min_width_takes_slivers_but_leaves_wide_change_whole(tmp_path: Path) -> None:
    before = field()
    after = field((slice(0, 80), slice(10, 12), WATER), (slice(20, 40), slice(30, 60), BUILDING))

    values, _ = run(tmp_path, before, after, min_width_m=6)

    expected = np.zeros(before.shape, np.uint8)
    expected[20:40, 30:60] = LAND_TO_BUILDING
    assert values.tolist() == expected.tolist()


def test_result_does_not_depend_on_the_rows_at_once(tmp_path: Path) -> None:
    before, after = patches((300, 120), (0.3, 0.4, 0.3), 1, 5), patches((300, 120), (0.3, 0.4, 0.3), 2, 7)
    settings = {"tolerance_px": 2, "min_width_m": 7.0}
    whole, _ = run(tmp_path, before, after, **settings)
    (tmp_path / "change.tif").unlink()
    first = find_changes(
        tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "c.tif", ChangeConfig(**settings), rows=17
    )

    assert read(tmp_path / "c.tif").tolist() == whole.tolist()
    assert first.path == tmp_path / "c.tif"


def test_the_later_map_may_lie_on_another_grid(tmp_path: Path) -> None:
    before, after = field(), field((slice(20, 60), slice(30, 70), BUILDING))
    first, second = write_map(tmp_path / "a.tif", before), write_map(tmp_path / "b.tif", after)
    with rasterio.open(second) as source:
        transform = source.transform * source.transform.scale(0.5)
        profile = {**source.profile, "height": 160, "width": 180, "transform": transform}
        tags, colours = source.tags(), source.colormap(1)
        finer = np.full((160, 180), 255, np.uint8)
        reproject(source.read(1), finer, src_transform=source.transform, src_crs=source.crs,
                  dst_transform=transform, dst_crs=source.crs, resampling=Resampling.nearest)  # fmt: skip
    with rasterio.open(tmp_path / "finer.tif", "w", **profile) as target:
        target.write(finer, 1)
        target.write_colormap(1, colours)
        target.update_tags(**{key: tags[key] for key in tags if key.startswith("CLASS_")})

    find_changes(first, tmp_path / "finer.tif", tmp_path / "change.tif")

    assert (read(tmp_path / "change.tif") == np.where(after != before, LAND_TO_BUILDING, 0)).all()


def test_unsure_pixels_are_no_change(tmp_path: Path) -> None:
    before, after = field(), field((slice(20, 60), slice(30, 70), BUILDING))
    first, second = write_map(tmp_path / "a.tif", before), write_map(tmp_path / "b.tif", after)
    sure, half = np.full(before.shape, 254, np.uint8), np.full(before.shape, 254, np.uint8)
    half[:40] = 100
    confident = [
        write_map(tmp_path / f"{name}.tif", values, names=())
        for name, values in (("sure", sure), ("half", half))
    ]
    config = ChangeConfig(min_confidence=0.6)

    result = find_changes(
        first, second, tmp_path / "change.tif", config, confidence_before=confident[0],
        confidence_after=confident[1],
    )  # fmt: skip

    values = read(tmp_path / "change.tif")
    assert (values[:40] == changes.UNSURE).all()
    assert (values[40:60, 30:70] == LAND_TO_BUILDING).all()
    assert result.unsure_area == pytest.approx(40 * 90 * 4, rel=3e-3)
    finer = write_map(tmp_path / "finer.tif", np.repeat(np.repeat(half, 2, 0), 2, 1), names=(), gsd_m=1.0)
    find_changes(
        first, second, tmp_path / "same.tif", config, confidence_before=confident[0], confidence_after=finer,
    )  # fmt: skip
    assert read(tmp_path / "same.tif").tolist() == values.tolist()
    with pytest.raises(UsageError, match="--confidence-before"):
        find_changes(first, second, tmp_path / "d.tif", config, confidence_after=confident[1])


def test_maps_of_other_classes_are_refused(tmp_path: Path) -> None:
    first = write_map(tmp_path / "a.tif", field())
    second = write_map(tmp_path / "b.tif", field(), names=("building", "land", "snow"))

    with pytest.raises(DataError, match="snow, water is in one of them alone"):
        find_changes(first, second, tmp_path / "change.tif")
    assert not (tmp_path / "change.tif").exists()


def test_polygons_are_those_of_the_changes(tmp_path: Path) -> None:
    """Each kind of change has its name; what is unchanged has no polygon, nor have small changes."""
    before = field()
    after = field((slice(20, 60), slice(30, 70), BUILDING), (slice(5, 7), slice(5, 7), WATER))
    first, second = write_map(tmp_path / "a.tif", before), write_map(tmp_path / "b.tif", after)
    polygons = tmp_path / "change.gpkg"
    command = [
        "change",
        str(first),
        str(second),
        "-o",
        str(tmp_path / "change.tif"),
        "--vector",
        str(polygons),
    ]

    result = CliRunner().invoke(app, [*command, "--min-area", "40", "--quiet"])

    assert result.exit_code == 0, result.output
    written = geopandas.read_file(polygons, layer="change")
    assert written["class_name"].tolist() == ["land to building"]
    assert written.geometry.iloc[0].area == pytest.approx(40 * 40 * 4)
