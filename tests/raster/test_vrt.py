"""VRTs: what joins whole files is recognised, and a malformed one is an error in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasters import MakeRaster

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import SceneInfo, vrt


@pytest.fixture
def sheets(make_raster: MakeRaster) -> list[vrt.Sheet]:
    """Two sheets of 20 x 30 px, one above the other."""
    above = SceneInfo.of(make_raster("a.tif", shape=(20, 30), seed=1))
    below = SceneInfo.of(make_raster("b.tif", shape=(20, 30), seed=2))
    return [vrt.Sheet(above, (0, 0, 20, 30)), vrt.Sheet(below, (20, 0, 20, 30))]


def write(path: Path, sheets: list[vrt.Sheet], masked: bool = False) -> str:
    grid = sheets[0].info.grid
    text = vrt.of_sheets(sheets, grid.window(0, 0, 40, 30), nodata=None, masked=masked)
    path.write_text(text, encoding="utf-8")
    return text


@pytest.mark.parametrize("masked", [False, True])
def test_sheets_are_joined_and_recognised(tmp_path: Path, sheets: list[vrt.Sheet], masked: bool) -> None:
    write(tmp_path / "both.vrt", sheets, masked)
    with rasterio.open(tmp_path / "both.vrt") as joined:
        pixels, mask = joined.read(), joined.dataset_mask()
    expected = []
    for sheet in sheets:
        with rasterio.open(sheet.info.path) as dataset:
            expected.append(dataset.read())
    assert (pixels == np.concatenate(expected, axis=1)).all()
    assert (mask == 255).all()
    assert vrt.sheets_of(tmp_path / "both.vrt") == [sheet.info.path for sheet in sheets]


def test_chosen_bands_get_their_names(tmp_path: Path, make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(bands=3, kind="value", nodata=7))
    text = vrt.of_bands(info, [(3, "red"), (1, "a & b")], info.grid)
    (tmp_path / "some.vrt").write_text(text, encoding="utf-8")
    with rasterio.open(tmp_path / "some.vrt") as chosen, rasterio.open(info.path) as dataset:
        assert chosen.descriptions == ("red", "a & b")
        assert chosen.nodatavals == (7, 7)
        assert (chosen.read() == dataset.read([3, 1])).all()
        assert (chosen.crs, chosen.transform) == (dataset.crs, dataset.transform)


@pytest.mark.parametrize(
    ("old", "new"),
    [('xSize="30"', 'xSize="a"'), ('xOff="0"', 'xOff=""'), ("</VRTDataset>", "")],
    ids=["no number", "empty", "cut short"],
)
def test_a_malformed_vrt_is_an_error_in_words(
    tmp_path: Path, sheets: list[vrt.Sheet], old: str, new: str
) -> None:
    path = tmp_path / "bad.vrt"
    path.write_text(write(path, sheets).replace(old, new), encoding="utf-8")
    with pytest.raises(SceneError, match=r"bad\.vrt: is not a VRT \(.*\)\. Check it with gdalinfo"):
        vrt.sheets_of(path)
