"""Scenes: what they say of themselves, bands, windowed reads and valid masks."""

from __future__ import annotations

import os
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasters import MakeRaster, coordinate_array

from rsseg_cli.errors import SceneError, UsageError, redact
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, gdal, vrt
from rsseg_cli.raster.sample import Sample

RGB = ("red", "green", "blue")
ROTATED = Affine.translation(500000, 5000000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
SOUTH_UP = Affine(0.5, 0, 500000, 0, 0.5, 5000000)
DEGREES = Affine(1e-5, 0, 15, 0, -1e-5, 45)
GEOREFERENCES = {
    "north-up": {},
    "rotated": {"transform": ROTATED},
    "south-up": {"transform": SOUTH_UP},
    "degrees": {"crs": "EPSG:4326", "transform": DEGREES},
    "no crs": {"crs": None},
    "transform without crs": {"crs": None, "transform": SOUTH_UP},
}
HOLE = (10, 20, 15, 25)


def hole_mask(shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    valid = np.ones(shape, bool)
    valid[HOLE[0] : HOLE[0] + HOLE[2], HOLE[1] : HOLE[1] + HOLE[3]] = False
    return valid


# --- grids


@pytest.mark.parametrize(
    ("epsg", "transform", "metres"),
    [
        (32633, Affine(0.3, 0, 500000, 0, -0.3, 5000000), (0.3 / 0.9996, 0.3 / 0.9996)),
        (32633, ROTATED, (0.5 / 0.9996, 0.5 / 0.9996)),
        (4326, DEGREES, (0.7885, 1.1113)),
        (3857, Affine(0.14929107, 0, 9519391, 0, -0.14929107, 3203475), (0.1323, 0.1317)),
        (2263, Affine(1, 0, 1000000, 0, -1, 200000), (0.3048, 0.3048)),  # US survey feet
    ],
)
def test_gsd_is_measured_on_the_ground(epsg: int, transform: Affine, metres: tuple[float, float]) -> None:
    grid = Grid(crs=CRS.from_epsg(epsg), transform=transform, width=20, height=10)
    assert grid.gsd_m == pytest.approx(metres, rel=2e-3)


@pytest.mark.parametrize("crs", [None, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')])
def test_gsd_is_unknown_without_a_place_on_earth(crs: CRS | None) -> None:
    assert Grid(crs=crs, transform=SOUTH_UP, width=20, height=10).gsd_m is None


def test_gsd_is_unknown_outside_the_projection() -> None:
    grid = Grid(crs=CRS.from_epsg(4326), transform=Affine(1, 0, 0, 0, -1, 500), width=20, height=10)
    assert grid.gsd_m is None


@pytest.mark.parametrize("transform", [Affine(0.3, 0, 500000, 0, -0.3, 5000000), ROTATED, SOUTH_UP])
def test_scaled_and_window_keep_corners(transform: Affine) -> None:
    grid = Grid(crs=None, transform=transform, width=30, height=20)
    scaled = grid.scaled(width=7, height=11)
    assert scaled.transform * (7, 11) == pytest.approx(transform * (30, 20))
    assert scaled.bounds == pytest.approx(grid.bounds)
    window = grid.window(5, 3, 10, 8)
    assert window.transform * (0, 0) == pytest.approx(transform * (3, 5))
    assert (window.height, window.width) == (10, 8)


# --- inspect


@pytest.mark.parametrize("georeference", GEOREFERENCES.values(), ids=GEOREFERENCES)
def test_inspect_keeps_the_georeference(make_raster: MakeRaster, georeference: dict) -> None:
    path = make_raster(**georeference)
    info = SceneInfo.of(path)
    with rasterio.open(path) as dataset:
        assert info.grid.transform == dataset.transform
        assert info.grid.crs == dataset.crs
    assert (info.grid.height, info.grid.width, info.count) == (60, 80, 3)


@pytest.mark.parametrize(
    ("kind", "has_mask"), [("none", False), ("value", True), ("alpha", True), ("mask", True), ("msk", True)]
)
def test_inspect_tells_of_masks(make_raster: MakeRaster, kind: str, has_mask: bool) -> None:
    assert SceneInfo.of(make_raster(kind=kind)).has_mask is has_mask


def test_inspect_takes_the_given_nodata(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(kind="value", nodata=7), nodata=9)
    assert (info.nodata, info.nodata_given) == (9, True)


def test_ground_control_points_are_no_georeferencing(
    make_raster: MakeRaster, caplog: pytest.LogCaptureFixture
) -> None:
    points = [GroundControlPoint(row, col, 15 + col, 45 - row) for row, col in ((0, 0), (0, 80), (60, 0))]
    path = make_raster(crs=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, CRS.from_epsg(4326))
    info = SceneInfo.of(path)
    assert info.grid.crs is None
    assert info.grid.transform == Affine.identity()
    assert "only ground control points" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file or directory"), (b"no raster", "not recognized")]
)
def test_what_is_no_raster_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "scene.tif"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SceneError, match=message) as caught:
        SceneInfo.of(path)
    assert str(caught.value).startswith(str(path))
    assert f"{path}: {path}" not in str(caught.value)


def test_unreachable_addresses_are_refused_without_their_secrets() -> None:
    with pytest.raises(SceneError) as caught:
        SceneInfo.of("/vsicurl/http://user:secret@127.0.0.1:9/scene.tif?X-Signature=abc123")
    assert "127.0.0.1:9/scene.tif?..." in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "abc123" not in str(caught.value)


def test_redact_leaves_plain_paths() -> None:
    assert redact("/data/what?/a@b.tif") == "/data/what?/a@b.tif"
    assert redact("C:/a@b/what? yes, a=b") == "C:/a@b/what? yes, a=b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'https://me:pw@host/a.tif?sig=1' failed", "'https://host/a.tif?...' failed"),
        ("https://me:p@w@host/a.tif?sig=a,b&token=c'd, bad", "https://host/a.tif?..., bad"),
        ("a.tif?sig=1, band 1: IReadBlock failed", "a.tif?..., band 1: IReadBlock failed"),
        ("/vsicurl?max_retry=3&url=https%3A%2F%2Fu%3Ap%40host%2Fa.tif%3Fsig%3Dx&b=1 failed",
         "/vsicurl?...https://host/a.tif?... failed"),
        ("/vsizip//vsicurl/https://host/a.zip?sig=1/in.tif", "/vsizip//vsicurl/https://host/a.zip?..."),
        ("https:/me:pw@host/a.geojson?token=1: no file", "https:/host/a.geojson?...: no file"),
    ],
)  # fmt: skip
def test_redact_takes_secrets_out(text: str, shown: str) -> None:
    assert redact(text) == shown


# --- bands


def test_bands_by_description_come_first(make_raster: MakeRaster) -> None:
    path = make_raster(bands=4, descriptions=("Blue", "green", "RED ", "NIR"), photometric="rgb")
    info = SceneInfo.of(path)
    assert info.select_bands(RGB) == (3, 2, 1)
    assert info.select_bands((*RGB, "nir")) == (3, 2, 1, 4)


def test_bands_by_colour_interpretation(make_raster: MakeRaster) -> None:
    path = make_raster(bands=3)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    assert SceneInfo.of(path).select_bands(RGB) == (3, 2, 1)


def test_bands_by_place(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(bands=6, dtype="uint16"))
    assert info.select_bands(RGB) == (1, 2, 3)
    assert info.select_bands((*RGB, "nir")) == (1, 2, 3, 4)
    with pytest.raises(SceneError, match="needed are 2"):
        info.select_bands(("sar_vv", "sar_vh"))
    assert SceneInfo.of(make_raster(bands=2)).select_bands(("sar_vv", "sar_vh")) == (1, 2)


def test_alpha_is_no_colour(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(kind="alpha"))
    assert info.select_bands(RGB) == (1, 2, 3)
    with pytest.raises(SceneError, match="4 bands"):
        info.select_bands((*RGB, "nir"))
    assert info.select_bands(RGB, (1, 2, 4)) == (1, 2, 4)  # whoever names it means it


def test_missing_bands_are_reported_with_what_to_do(make_raster: MakeRaster) -> None:
    path = make_raster(bands=1, dtype="uint16")
    with pytest.raises(SceneError) as caught:
        SceneInfo.of(path).select_bands(RGB, model="landcover")
    assert str(caught.value) == (
        f"{path}: 1 band (uint16), model 'landcover' needs 3 (red, green, blue). "
        "Pass another model; or, if each band has a file of its own, join them first: gdalbuildvrt -separate "
        "scene.vrt RED.tif GREEN.tif BLUE.tif. --bidx 1,1,1 maps it in grey, less well"
    )


def test_given_bands_are_checked(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(bands=3))
    assert info.select_bands(RGB, (1, 1, 1)) == (1, 1, 1)
    with pytest.raises(UsageError, match="bands 1 to 3"):
        info.select_bands(RGB, (1, 2, 4))
    with pytest.raises(UsageError, match="2 bands, the model needs 3"):
        info.select_bands(RGB, (1, 2))


def test_palettes_and_complex_numbers_are_refused(make_raster: MakeRaster) -> None:
    path = make_raster(bands=1)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3, 255)})
    with pytest.raises(SceneError, match="expand rgb"):
        SceneInfo.of(path).select_bands(RGB)
    with pytest.raises(SceneError, match="expand rgb"):
        SceneInfo.of(path).select_bands(RGB, (1, 1, 1))
    array = np.ones((3, 4, 4), np.complex64)
    with pytest.raises(SceneError, match="complex"):
        SceneInfo.of(make_raster("complex.tif", array=array, kind="none")).select_bands(RGB)


@pytest.mark.parametrize("side", [60, 20], ids=["whole", "resampled"])
def test_a_palette_is_read_as_its_colours(make_raster: MakeRaster, side: int) -> None:
    array = coordinate_array(1, 60, 60, "uint8") % 9
    colours = np.random.default_rng(0).integers(0, 256, (9, 3), np.uint8)
    path = make_raster(array=array, kind="none")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {index: (*colour, 255) for index, colour in enumerate(colours.tolist())})
    info = SceneInfo.of(path).in_colour()
    assert info.name == str(path)
    same = SceneInfo.of(make_raster("rgb.tif", array=colours[array[0]].transpose(2, 0, 1), kind="none"))
    read = []
    for scene in (info, same):
        with SceneReader(
            scene, scene.select_bands(RGB), scene.grid.scaled(height=side, width=side)
        ) as reader:
            read.append(reader.read(0, 0, side, side)[0])
    assert (read[0] == read[1]).all()


def test_a_palette_index_that_marks_holes_is_no_colour(make_raster: MakeRaster) -> None:
    array = coordinate_array(1, 60, 80, "uint8") % 9
    path = make_raster(array=array, kind="value", nodata=7, hole=(0, 0, 0, 0))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {index: (9 * index, 0, 0, 255) for index in range(9)})
    info = SceneInfo.of(path).in_colour()
    with SceneReader(info, (1, 2, 3)) as reader:
        assert (reader.read(0, 0, 60, 80)[1] == (array[0] != 7)).all()


# --- reading on the scene's grid


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_reads_are_exact_in_every_dtype(make_raster: MakeRaster, dtype: str) -> None:
    array = (coordinate_array(3, 60, 80, "float64") % 120).astype(dtype)
    info = SceneInfo.of(make_raster(array=array))
    with SceneReader(info, (3, 1), info.grid) as reader:
        values, valid = reader.read(7, 11, 40, 50)
    assert values.dtype == dtype
    assert (values == array[[2, 0], 7:47, 11:61]).all()
    assert valid.all()
    assert valid.shape == (40, 50)


@pytest.mark.parametrize("kind", ["value", "nan", "alpha", "mask", "msk", "all"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_valid_mask_of_every_kind(make_raster: MakeRaster, kind: str, dtype: str) -> None:
    if dtype == "float32" and kind == "alpha":
        pytest.skip("alpha of floats has no range")
    if dtype != "float32" and kind == "nan":
        pytest.skip("integers have no NaN")
    info = SceneInfo.of(make_raster(kind=kind, dtype=dtype, hole=HOLE))
    expected = np.zeros((60, 80), bool) if kind == "all" else hole_mask()
    with SceneReader(info, (1, 2, 3)) as reader:
        assert (reader.read(0, 0, 60, 80)[1] == expected).all()
        assert (reader.read(5, 15, 12, 30)[1] == expected[5:17, 15:45]).all()


def test_a_pixel_without_data_has_nodata_in_every_chosen_band(make_raster: MakeRaster) -> None:
    array = np.full((3, 1, 4), 5, np.uint8)
    array[0, 0, 1] = array[:2, 0, 2] = array[:, 0, 3] = 0
    info = SceneInfo.of(make_raster(array=array, nodata=0, kind="none"), nodata=0)
    with SceneReader(info, (1, 2, 3)) as reader:
        assert reader.read(0, 0, 1, 4)[1].tolist() == [[True, True, True, False]]
    with SceneReader(info, (1, 2)) as reader:
        assert reader.read(0, 0, 1, 4)[1].tolist() == [[True, True, False, False]]


def test_given_nodata_beats_the_files(make_raster: MakeRaster) -> None:
    array = np.array([[[1, 2, 3, 4]]], np.uint8)
    path = make_raster(array=array)
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 2
    with SceneReader(SceneInfo.of(path), (1,)) as reader:
        assert reader.read(0, 0, 1, 4)[1].tolist() == [[True, False, True, True]]
    with SceneReader(SceneInfo.of(path), (1,), nodata=3) as reader:
        assert reader.read(0, 0, 1, 4)[1].tolist() == [[True, True, False, True]]
    with SceneReader(SceneInfo.of(path, nodata=4), (1,)) as reader:
        assert reader.read(0, 0, 1, 4)[1].tolist() == [[True, True, True, False]]


def test_given_nodata_holds_besides_alpha(make_raster: MakeRaster) -> None:
    array = np.full((3, 60, 80), 9, np.uint8)
    array[:, 0, 0] = 200
    info = SceneInfo.of(make_raster(array=array, kind="alpha", hole=HOLE), nodata=200)
    expected = hole_mask()
    expected[0, 0] = False
    with SceneReader(info, (1, 2, 3)) as reader:
        assert (reader.read(0, 0, 60, 80)[1] == expected).all()


@pytest.mark.parametrize("nodata", [-9999, 300, 0.5, float("nan")])
def test_nodata_that_cannot_occur_hides_nothing(make_raster: MakeRaster, nodata: float) -> None:
    info = SceneInfo.of(make_raster(), nodata=nodata)
    with SceneReader(info, (1, 2, 3)) as reader:
        assert reader.read(0, 0, 60, 80)[1].all()


def test_infinities_and_float_nodata_are_invalid(make_raster: MakeRaster) -> None:
    array = np.ones((1, 1, 4), np.float32)
    array[0, 0, 1:] = np.inf, -np.inf, -3.4028234663852886e38
    info = SceneInfo.of(make_raster(array=array), nodata=-3.4028234663852886e38)
    with SceneReader(info, (1,)) as reader:
        assert reader.read(0, 0, 1, 4)[1].tolist() == [[True, False, False, False]]


def test_without_masks_none_is_made(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster())
    with SceneReader(info, (1, 2, 3)) as reader:
        first, second = reader.read(0, 0, 30, 30)[1], reader.read(30, 0, 30, 30)[1]
    assert first is second
    assert not first.flags.writeable


@pytest.mark.parametrize("shape", [(1, 1), (1, 80), (60, 1)])
def test_one_pixel_wide(make_raster: MakeRaster, shape: tuple[int, int]) -> None:
    array = coordinate_array(3, *shape)
    info = SceneInfo.of(make_raster(array=array))
    with SceneReader(info, (1, 2, 3)) as reader:
        assert (reader.read(0, 0, *shape)[0] == array).all()


def test_one_bit(make_raster: MakeRaster) -> None:
    array = np.random.default_rng(0).integers(0, 2, (1, 9, 9)).astype(np.uint8)
    info = SceneInfo.of(make_raster(array=array, nbits=1))
    with SceneReader(info, (1,)) as reader:
        assert (reader.read(0, 0, 9, 9)[0] == array).all()


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 61, 5), (0, 76, 5, 5), (0, 0, 0, 5)])
def test_windows_outside_are_refused(make_raster: MakeRaster, window: tuple[int, int, int, int]) -> None:
    with SceneReader(SceneInfo.of(make_raster()), (1,)) as reader, pytest.raises(ValueError, match="outside"):
        reader.read(*window)


@pytest.mark.parametrize("georeference", GEOREFERENCES.values(), ids=GEOREFERENCES)
def test_a_window_of_the_grid_is_read_directly(make_raster: MakeRaster, georeference: dict) -> None:
    array = coordinate_array(2, 60, 80)
    info = SceneInfo.of(make_raster(array=array, **georeference))
    with SceneReader(info, (1, 2), info.grid.window(13, 17, 40, 50)) as reader:
        assert (reader.read(2, 3, 20, 30)[0] == array[:, 15:35, 20:50]).all()


@pytest.mark.parametrize("handles", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("blocks", [{"tiled": True, "blockxsize": 64, "blockysize": 32}, {"blockysize": 7}])
def test_threads_and_handles_read_the_same_and_close(
    make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch, blocks: dict, masked: bool, handles: int
) -> None:
    monkeypatch.setattr(gdal, "threads", lambda: handles)
    monkeypatch.setattr("rsseg_cli.raster.reader.CELL_PX", (32, 64))
    array = coordinate_array(3, 200, 300)
    path = make_raster(array=array, compress="deflate", **blocks)
    mask = np.ones((200, 300), bool)
    if masked:
        mask = (array[0] % 3 > 0) | (array[1] % 5 > 0)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
    windows = [(row, col, 50, 60) for row in range(0, 150, 10) for col in range(0, 240, 20)]
    before = threading.active_count()
    with SceneReader(SceneInfo.of(path), (3, 1)) as reader, ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda window: reader.read(*window), windows)
        for (row, col, height, width), (values, valid) in zip(windows, read, strict=True):
            part = slice(row, row + height), slice(col, col + width)
            assert (values == array[[2, 0], *part]).all()
            assert (valid == mask[part]).all()
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("rsseg-decode")]
    assert len(threads) == handles
    assert threading.active_count() == before


def test_an_interrupt_while_a_thread_starts_is_quiet_and_ends_it(
    make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = SceneInfo.of(make_raster("scene.tif"))
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        begin(thread)
        if thread.name.startswith("rsseg-decode"):
            monkeypatch.setattr(threading.Thread, "start", begin)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), SceneReader(info, (1,)) as reader:
        reader.read(0, 0, 2, 2)
    assert not caplog.records
    deadline = time.monotonic() + 60
    while threading.active_count() > before:  # a thread that is left keeps the program from ending
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_small_scene_is_read_by_one_handle(
    make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gdal, "threads", lambda: 3)
    path = make_raster(shape=(256, 256), tiled=True, blockxsize=256, blockysize=256)
    with SceneReader(SceneInfo.of(path), (1,)) as reader:
        reader.read(0, 0, 256, 256)
        assert sum(thread.name.startswith("rsseg-decode") for thread in threading.enumerate()) == 1


@pytest.mark.parametrize("blocks", [{"tiled": True, "blockxsize": 64, "blockysize": 64}, {"blockysize": 3}])
def test_a_block_is_read_by_one_handle(
    make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch, blocks: dict
) -> None:
    monkeypatch.setattr(gdal, "threads", lambda: 3)
    path = make_raster(shape=(700, 1500), **blocks)
    handles: dict[tuple[int, int], set[int]] = {}
    with SceneReader(info := SceneInfo.of(path), (1,)) as reader:
        height, width = info.block_shape
        for row, col in product(range(0, 700, 50), range(0, 1500, 100)):
            for handle, part in reader._parts(row, col, 50, 100):
                ends = part.row_off + part.height, part.col_off + part.width
                rows = range(part.row_off // height, -(-ends[0] // height))
                cols = range(part.col_off // width, -(-ends[1] // width))
                for block in product(rows, cols):
                    handles.setdefault(block, set()).add(id(handle))
    assert len(handles) == -(-700 // height) * -(-1500 // width)
    assert {len(readers) for readers in handles.values()} == {1}
    assert len(set.union(*handles.values())) == 3


def test_a_vrt_and_a_zip_are_read(make_raster: MakeRaster, tmp_path: Path) -> None:
    array = coordinate_array(3, 60, 80)
    path = make_raster(array=array)
    rasterio.shutil.copy(str(path), str(tmp_path / "scene.vrt"), driver="VRT")
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.write(path, "in/scene.tif")
    for name in (tmp_path / "scene.vrt", f"/vsizip/{tmp_path}/scene.zip/in/scene.tif"):
        info = SceneInfo.of(name)
        with SceneReader(info, (1, 2, 3)) as reader:
            assert (reader.read(0, 0, 60, 80)[0] == array).all()


@pytest.mark.parametrize("tiled", [True, False])
def test_a_file_cut_short_names_file_and_window(make_raster: MakeRaster, tiled: bool) -> None:
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 256} if tiled else {}
    path = make_raster(bands=1, shape=(1024, 1024), compress="deflate", **blocks)
    os.truncate(path, path.stat().st_size * 3 // 4)
    info = SceneInfo.of(path)
    with SceneReader(info, (1,)) as reader:
        reader.read(0, 0, 256, 256)
        with pytest.raises(
            SceneError, match=r"rows 768 to 1023, columns 512 to 1023 cannot be read"
        ) as caught:
            reader.read(768, 512, 256, 512)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("nested", [False, True])
def test_a_source_cut_short_of_a_vrt_is_an_error(
    make_raster: MakeRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    """Also where the user has GDAL read with threads: it takes such a source for one without data."""
    monkeypatch.setenv("GDAL_NUM_THREADS", "4")
    sheets = [
        make_raster(f"{name}.tif", bands=1, shape=(512, 512), tiled=True, blockxsize=128, blockysize=128)
        for name in "ab"
    ]
    infos = [SceneInfo.of(path) for path in sheets]
    grid = Grid(crs=infos[0].grid.crs, transform=infos[0].grid.transform, width=1024, height=512)
    windows = [vrt.Sheet(info, (0, 512 * number, 512, 512)) for number, info in enumerate(infos)]
    joined = tmp_path / "joined.vrt"
    joined.write_text(vrt.of_sheets(windows, grid, nodata=None, masked=False))
    if nested:
        joined = tmp_path / "nested.vrt"
        joined.write_text(vrt.of_bands(SceneInfo.of(tmp_path / "joined.vrt"), [(1, "red")], grid))
    os.truncate(sheets[1], sheets[1].stat().st_size * 3 // 4)
    with SceneReader(SceneInfo.of(joined), (1,)) as reader:
        reader.read(0, 0, 512, 512)
        with pytest.raises(SceneError, match=r"rows 0 to 511, columns 0 to 1023 cannot be read"):
            reader.read(0, 0, 512, 1024)


# --- reading on another grid


@pytest.mark.parametrize("georeference", GEOREFERENCES.values(), ids=GEOREFERENCES)
@pytest.mark.parametrize("factor", [2.0, 1.37, 0.8, 0.5, 1 / 3])
def test_resampling_shifts_nothing(make_raster: MakeRaster, georeference: dict, factor: float) -> None:
    info = SceneInfo.of(make_raster(array=coordinate_array(2, 120, 160, "float32"), **georeference))
    grid = info.grid.scaled(height=round(120 * factor), width=round(160 * factor))
    with SceneReader(info, (1, 2), grid) as reader:
        values, valid = reader.read(0, 0, grid.height, grid.width)
    assert valid.all()
    rows = (np.arange(grid.height) + 0.5) * 120 / grid.height - 0.5
    cols = (np.arange(grid.width) + 0.5) * 160 / grid.width - 0.5
    inner_rows, inner_cols = slice(4, -4), slice(4, -4)
    for errors in ((values[0] - rows[:, None])[inner_rows], (values[1] - cols[None])[:, inner_cols]):
        assert np.abs(errors).max() < 0.15
        assert abs(errors.mean()) < 5e-3


@pytest.mark.parametrize("kind", ["none", "value", "alpha", "mask"])
@pytest.mark.parametrize("factor", [1.7, 0.73, 0.41, 0.11])
@pytest.mark.parametrize("overviews", [(), (2, 4)])
def test_windows_agree_exactly_where_they_overlap(
    make_raster: MakeRaster, kind: str, factor: float, overviews: tuple[int, ...]
) -> None:
    path = make_raster(shape=(200, 300), kind=kind, hole=(60, 70, 50, 90))
    if overviews:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(overviews, Resampling.average)
    info = SceneInfo.of(path)
    grid = info.grid.scaled(height=round(200 * factor), width=round(300 * factor))
    rng = np.random.default_rng(0)
    with SceneReader(info, (1, 2, 3), grid) as reader:
        whole, whole_valid = reader.read(0, 0, grid.height, grid.width)
        for _ in range(12):
            row, col = int(rng.integers(grid.height - 4)), int(rng.integers(grid.width - 4))
            height, width = int(rng.integers(1, grid.height - row)), int(rng.integers(1, grid.width - col))
            values, valid = reader.read(row, col, height, width)
            inside = (slice(row, row + height), slice(col, col + width))
            assert (valid == whole_valid[inside]).all()
            assert (values[:, valid] == whole[(slice(None), *inside)][:, valid]).all()


def test_large_windows_are_read_in_pieces(make_raster: MakeRaster) -> None:
    info = SceneInfo.of(make_raster(shape=(200, 300), kind="value"))
    grid = info.grid.scaled(height=20, width=30)
    with SceneReader(info, (1, 2, 3), grid) as reader:
        whole = reader.read(0, 0, 20, 30)
    with SceneReader(info, (1, 2, 3), grid, max_source_px=2000) as reader:
        pieces = reader.read(0, 0, 20, 30)
    assert (whole[0] == pieces[0]).all()
    assert (whole[1] == pieces[1]).all()


@pytest.mark.parametrize("kind", ["value", "nan", "alpha", "mask", "msk"])
def test_holes_do_not_bleed_when_resampled(make_raster: MakeRaster, kind: str) -> None:
    array = np.full((3, 60, 80), 100, np.float32 if kind == "nan" else np.uint8)
    info = SceneInfo.of(make_raster(array=array, kind=kind, hole=(20, 20, 20, 40), nodata=0))
    with SceneReader(info, (1, 2, 3), info.grid.scaled(height=40, width=50)) as reader:
        values, valid = reader.read(0, 0, 40, 50)
    assert np.abs(values[:, valid] - 100.0).max() < 1e-3
    assert abs(int((~valid).sum()) - 20 * 40 * 40 * 50 / (60 * 80)) < 60


def test_shrinking_takes_means(make_raster: MakeRaster) -> None:
    array = np.random.default_rng(0).integers(0, 256, (1, 120, 160)).astype(np.uint8)
    info = SceneInfo.of(make_raster(array=array))
    with SceneReader(info, (1,), info.grid.scaled(height=30, width=40)) as reader:
        values, _ = reader.read(0, 0, 30, 40)
    means = array[0].reshape(30, 4, 40, 4).astype(float).mean((1, 3))
    assert np.abs(values[0] - means).max() <= 0.5 + 1e-6


def test_overviews_are_used_where_they_are_twice_as_fine(make_raster: MakeRaster) -> None:
    path = make_raster(array=np.full((1, 128, 128), 10, np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write(np.full((1, 128, 128), 20, np.uint8))  # overviews keep 10
    info = SceneInfo.of(path)
    for size, seen in ((64, 20), (32, 10), (16, 10)):
        with SceneReader(info, (1,), info.grid.scaled(height=size, width=size)) as reader:
            assert (reader.read(0, 0, size, size)[0] == seen).all()


@pytest.mark.parametrize(
    "grid",
    [
        Grid(crs=CRS.from_epsg(32633), transform=ROTATED, width=8, height=8),
        Grid(crs=CRS.from_epsg(4326), transform=DEGREES, width=8, height=8),
        Grid(crs=CRS.from_epsg(32633), transform=Affine(0.5, 0, 499999, 0, -0.5, 5000000), width=8, height=8),
    ],
)
def test_grids_that_do_not_lie_in_the_scene_are_refused(make_raster: MakeRaster, grid: Grid) -> None:
    with pytest.raises(ValueError, match="not parallel to and inside"):
        SceneReader(SceneInfo.of(make_raster()), (1,), grid)


@pytest.mark.parametrize("kind", ["none", "value", "alpha"])
def test_overview_is_small_and_masked(make_raster: MakeRaster, kind: str) -> None:
    path = make_raster(shape=(90, 300), kind=kind, hole=(30, 90, 30, 120))
    values, valid, grid = SceneReader.overview(SceneInfo.of(path), (1, 2, 3), 50)
    assert values.shape == (3, 15, 50)
    assert (grid.height, grid.width) == (15, 50)
    assert int((~valid).sum()) == (0 if kind == "none" else 100)
    assert SceneReader.overview(SceneInfo.of(path), (1,), 1000)[0].shape == (1, 90, 300)


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 128, "blockysize": 128}])
def test_a_large_scene_without_overviews_is_sampled_for_its_percentiles(
    make_raster: MakeRaster, profile: dict[str, Any]
) -> None:
    rows, cols = np.mgrid[:6000, :1200]
    array = (rows % 500 + cols).astype("uint16")[None]
    info = SceneInfo.of(make_raster(array=array, **profile))
    assert not info.overviews
    sample = Sample.read(info, (1,))
    assert sample.pixels.size < array.size / 10
    assert sample.ranges()[0] == pytest.approx(np.percentile(array, (2, 98)), abs=15)


def test_a_scene_with_little_data_is_sampled_where_it_has_some(make_raster: MakeRaster) -> None:
    array = np.zeros((1, 3072, 3072), "uint16")
    array[:, 1024:2048, 2048:] = np.add.outer(np.arange(1024), np.arange(1024)) + 1
    info = SceneInfo.of(make_raster(array=array, kind="value", tiled=True, blockxsize=512, blockysize=512))
    exact = np.percentile(array[array > 0], (2, 98))
    assert Sample.read(info, (1,)).ranges()[0] == pytest.approx(exact, abs=20)


def test_a_quarter_of_a_mosaic_of_unlike_parts_is_sampled(make_raster: MakeRaster) -> None:
    parts = np.random.default_rng(0).permutation(100).reshape(10, 10) * 10 + 300
    array = np.kron(parts, np.ones((512, 512))).astype("uint16")[None]
    info = SceneInfo.of(make_raster(array=array, tiled=True, blockxsize=512, blockysize=512))
    assert Sample.read(info, (1,)).ranges()[0] == pytest.approx(np.percentile(parts, (2, 98)), abs=100)


def test_a_scene_with_overviews_is_never_sampled(make_raster: MakeRaster) -> None:
    path = make_raster(shape=(2100, 2100), dtype="uint16")
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    info = SceneInfo.of(path)
    assert Sample.read(info, (1, 2)).pixels.shape == (2, 1024 * 1024)
