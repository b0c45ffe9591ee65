"""Scenes in parts: variables of a file, folders of products, assets; overviews that must not be read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasters import MakeRaster
from scipy.io import netcdf_file

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import SceneInfo, SceneReader, vrt
from rsseg_cli.raster.sample import Sample

RGB = ("red", "green", "blue")
Write = Callable[[Path, dict[str, tuple[int, int]]], Path]


def write_netcdf(path: Path, variables: dict[str, tuple[int, int]]) -> Path:
    """int16 variables (rows, cols) of 10 m, each of one value: 100, 200, ..."""
    with netcdf_file(path, "w") as file:
        for number, (name, (rows, cols)) in enumerate(variables.items(), 1):
            for axis, size in (("y", rows), ("x", cols)):
                if f"{axis}{size}" not in file.dimensions:
                    file.createDimension(f"{axis}{size}", size)
            variable = file.createVariable(name, "h", (f"y{rows}", f"x{cols}"))
            variable[:] = np.full((rows, cols), 100 * number, np.int16)
    return path


def test_variables_of_a_file_are_its_bands(tmp_path: Path) -> None:
    sizes = dict.fromkeys(("blue", "green", "red", "nir"), (20, 30))
    info = SceneInfo.of(write_netcdf(tmp_path / "scene.nc", sizes))
    assert info.name == str(tmp_path / "scene.nc")
    assert info.descriptions == ("blue", "green", "red", "nir")
    bands = info.select_bands(RGB)
    with SceneReader(info, bands) as reader:
        values, valid = reader.read(3, 4, 10, 10)
    assert [int(plane[0, 0]) for plane in values] == [300, 200, 100]
    assert valid.all()


def test_parts_of_several_sizes_are_listed_as_they_are_passed(tmp_path: Path) -> None:
    path = write_netcdf(tmp_path / "scene.nc", {"red": (20, 30), "thermal": (10, 15)})
    with pytest.raises(SceneError) as caught:
        SceneInfo.of(path)
    assert f"netcdf:{path}:red (1 band of 30 x 20 px)" in str(caught.value)
    part = SceneInfo.of(f"netcdf:{path}:red")
    assert part.count == 1
    with pytest.raises(SceneError, match="or the file itself, if its parts of one grid are the bands"):
        part.select_bands(RGB)


def test_coordinates_and_coarser_bands_are_left_out(tmp_path: Path) -> None:
    sizes = {"thermal": (10, 15), "lat": (20, 1), "red": (20, 30), "lon": (1, 30), "green": (20, 30)}
    info = SceneInfo.of(write_netcdf(tmp_path / "scene.nc", sizes))
    assert info.descriptions == ("red", "green")
    with SceneReader(info, (1, 2)) as reader:
        assert reader.read(0, 0, 1, 1)[0].ravel().tolist() == [300, 500]


def test_arrays_of_a_zarr_folder_are_its_bands(tmp_path: Path) -> None:
    """A georeferenced one has coordinates as further arrays."""
    profile = {"driver": "Zarr", "width": 30, "height": 20, "count": 1, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5000000)}
    for number, name in enumerate(("blue", "green", "red")):
        more = {"ARRAY_NAME": name} | ({"APPEND_SUBDATASET": "YES"} if number else {})
        with rasterio.open(tmp_path / "scene.zarr", "w", **profile, **more) as dataset:
            dataset.write(np.full((1, 20, 30), 10 * number, np.uint8))
    for path in (tmp_path / "scene.zarr", f"{tmp_path}/scene.zarr/"):
        info = SceneInfo.of(path)
        bands = info.select_bands(RGB)
        with SceneReader(info, bands) as reader:
            assert reader.read(0, 0, 1, 1)[0].ravel().tolist() == [20, 10, 0]
        assert info.grid.crs.to_epsg() == 32633


def write_hdf5(path: Path, variables: dict[str, tuple[int, int]]) -> Path:
    """int16 variables (rows, cols), each of one value: 100, 200, ..."""
    with pytest.importorskip("h5py").File(path, "w") as file:
        for number, (name, shape) in enumerate(variables.items(), 1):
            file[name] = np.full(shape, 100 * number, np.int16)
    return path


def write_zarr(path: Path, variables: dict[str, tuple[int, int]]) -> Path:
    """The same as a Zarr store."""
    for number, (name, (rows, cols)) in enumerate(variables.items(), 1):
        more = {"ARRAY_NAME": name} | ({"APPEND_SUBDATASET": "YES"} if number > 1 else {})
        profile = {"driver": "Zarr", "width": cols, "height": rows, "count": 1, "dtype": "int16"}
        with rasterio.open(path, "w", **profile, **more) as dataset:
            dataset.write(np.full((1, rows, cols), 100 * number, np.int16))
    return path


containers = pytest.mark.parametrize(("write", "ending"), [(write_hdf5, "h5"), (write_zarr, "zarr")])


@containers
def test_variables_of_hdf5_and_zarr_are_bands(tmp_path: Path, write: Write, ending: str) -> None:
    sizes = dict.fromkeys(("nir", "red", "green", "blue"), (20, 30))
    info = SceneInfo.of(write(tmp_path / f"scene.{ending}", {**sizes, "thermal": (10, 15)}))
    assert info.descriptions == ("blue", "green", "nir", "red")  # by name, as HDF5 lists them
    with SceneReader(info, info.select_bands(RGB)) as reader:
        assert reader.read(3, 4, 1, 1)[0].ravel().tolist() == [200, 300, 400]


@containers
@pytest.mark.parametrize("folder", ["sheets", "a folder: new"])
def test_parts_of_hdf5_and_zarr_are_named_as_they_are_passed(
    tmp_path: Path, write: Write, ending: str, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    path = write(tmp_path / folder / f"scene.{ending}", {"red": (20, 30), "thermal": (10, 15)})
    with pytest.raises(SceneError, match="Pass one of its parts in its place") as caught:
        SceneInfo.of(path)
    listed = re.findall(r"((?:HDF5|ZARR):\S.*?) \(1 band of (\d+) x (\d+) px\)", str(caught.value))
    assert [size[1:] for size in listed] == [("30", "20"), ("15", "10")]
    for name, width, height in listed:
        part = SceneInfo.of(name)
        assert (part.grid.width, part.grid.height) == (int(width), int(height))


def test_a_variable_in_groups_of_hdf5_is_known_by_its_own_name(tmp_path: Path) -> None:
    sizes = {f"science/grid/{name}": (20, 30) for name in ("nir", "red", "green", "blue")}
    info = SceneInfo.of(write_hdf5(tmp_path / "scene.h5", sizes))
    with SceneReader(info, info.select_bands(RGB)) as reader:
        assert reader.read(3, 4, 1, 1)[0].ravel().tolist() == [200, 300, 400]


def test_a_variable_of_several_bands_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scene.h5"
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name in ("before", "after"):
            file[name] = np.zeros((3, 20, 30), np.uint8)
    with pytest.raises(SceneError, match=rf"HDF5:{path}://before \(3 bands of 30 x 20 px\)"):
        SceneInfo.of(path)
    assert SceneInfo.of(f"HDF5:{path}://before").count == 3


def test_a_driver_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "modis.hdf"
    path.write_bytes(b"\x0e\x03\x13\x01" + bytes(1000))
    with rasterio.Env() as environment:
        if "HDF4" in environment.drivers():
            pytest.skip("this GDAL has the driver")
    with pytest.raises(SceneError, match="is of HDF4, which rasterio's GDAL here is built without"):
        SceneInfo.of(path)


def make_product(folder: Path, make_raster: MakeRaster, names: tuple[str, ...]) -> Path:
    """A Sentinel-2 product of level 2A, with bands of one value each: 200, 300, ..."""
    images = folder / "GRANULE" / "L2A_T32TQM" / "IMG_DATA" / "R10m"
    images.mkdir(parents=True)
    (folder / "MTD_MSIL2A.xml").write_text("<xml/>")
    for name in names:
        array = np.full((1, 64, 64), int(name[1:]) * 100, np.uint16)
        made = make_raster("band.tif", array=array, gsd=10)
        with rasterio.open(made) as dataset:
            path = images / f"T32TQM_20200101T101021_{name}_10m.jp2"
            profile = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
            rasterio.shutil.copy(dataset, path, **profile)
    return folder


def test_a_sentinel_2_folder_is_a_scene(tmp_path: Path, make_raster: MakeRaster) -> None:
    folder = make_product(tmp_path / "S2A_MSIL2A_1.SAFE", make_raster, ("B02", "B03", "B04", "B08"))
    info = SceneInfo.of(folder)
    assert info.name == str(folder)
    bands = info.select_bands((*RGB, "nir"))
    with SceneReader(info, bands) as reader:
        values, _ = reader.read(0, 0, 64, 64)
    assert [int(plane[5, 5]) for plane in values] == [400, 300, 200, 800]
    assert info.grid.gsd_m == pytest.approx((10, 10), rel=1e-3)


def test_a_folder_without_its_bands_says_which_file_to_give(tmp_path: Path, make_raster: MakeRaster) -> None:
    folder = make_product(tmp_path / "S2A_MSIL2A_2.SAFE", make_raster, ("B02",))
    with pytest.raises(SceneError, match=r"Pass a file in it, such as .*MTD_MSIL2A\.xml"):
        SceneInfo.of(folder)


def test_files_of_one_band_are_joined(make_raster: MakeRaster) -> None:
    infos = [
        SceneInfo.of(make_raster(f"{name}.tif", array=np.full((1, 20, 30), value, np.uint16), nodata=0))
        for name, value in (("blue", 1), ("red", 3))
    ]
    joined = SceneInfo.of(vrt.of_files([(infos[1], 1, "red"), (infos[0], 1, "blue")]))
    with SceneReader(joined, joined.select_bands(("blue", "red"))) as reader:
        assert reader.read(0, 0, 20, 30)[0][:, 0, 0].tolist() == [1, 3]
    other = SceneInfo.of(make_raster("other.tif", bands=1, shape=(10, 30)))
    with pytest.raises(SceneError, match=r"blue\.tif \(30 x 20 px\) and .*other\.tif \(30 x 10 px\)"):
        vrt.of_files([(infos[0], 1, "blue"), (other, 1, "red")])


# --- overviews


def with_overviews(path: Path) -> Path:
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert Path(f"{path}.ovr").is_file()
    return path


@pytest.mark.parametrize("age_s", [0, 3600])
def test_overviews_older_than_the_scene_are_not_read(make_raster: MakeRaster, age_s: int) -> None:
    bright = with_overviews(make_raster("bright.tif", array=np.full((3, 400, 400), 200, np.uint8)))
    scene = make_raster(array=np.full((3, 400, 400), 50, np.uint8))
    shutil.copy(f"{bright}.ovr", f"{scene}.ovr")
    now = os.stat(scene).st_mtime
    os.utime(f"{scene}.ovr", (now - age_s, now - age_s))
    info = SceneInfo.of(scene)
    values, _, _ = SceneReader.overview(info, (1, 2, 3), 100)
    if age_s:
        assert info.overviews == ()
        assert (values == 50).all()
        assert f"{scene}.ovr is older than {scene}" in info.notes[0]
    else:
        assert info.overviews == (2, 4)
        assert (values == 200).all()
        assert info.notes == []


@pytest.mark.parametrize("kind", ["msk", "mask"])
def test_a_mask_without_overviews_is_not_lost(make_raster: MakeRaster, kind: str) -> None:
    array = np.random.default_rng(0).integers(1000, 2000, (3, 400, 400)).astype(np.uint16)
    array[:, :100] = 0
    scene = make_raster(array=array)
    with rasterio.open(scene, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "mask"), rasterio.open(scene, "r+") as dataset:
        dataset.write_mask(array[0] != 0)
    info = SceneInfo.of(scene)
    _, valid, _ = SceneReader.overview(info, (1, 2, 3), 100)
    assert not valid[:25].any()
    assert valid[25:].all()
    assert min(low for low, _ in Sample.read(info, (1, 2, 3)).ranges()) > 900


def test_a_mask_with_overviews_keeps_them(make_raster: MakeRaster) -> None:
    scene = make_raster(shape=(400, 400), kind="mask", hole=(0, 0, 100, 400))
    with rasterio.open(scene, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.nearest)
    info = SceneInfo.of(scene)
    assert info.overviews == (2, 4)
    _, valid, _ = SceneReader.overview(info, (1, 2, 3), 100)
    assert not valid[:25].any()
    assert valid[25:].all()


def test_overviews_of_a_vrt_older_than_its_files_are_not_read(
    make_raster: MakeRaster, tmp_path: Path
) -> None:
    sheet = make_raster("sheet.tif", shape=(400, 400))
    path = tmp_path / "scene.vrt"
    with rasterio.open(sheet) as dataset:
        rasterio.shutil.copy(dataset, path, driver="VRT")
    other = with_overviews(make_raster("other.tif", shape=(400, 400)))
    shutil.copy(f"{other}.ovr", f"{path}.ovr")
    assert SceneInfo.of(path).overviews == (2, 4)
    os.utime(f"{path}.ovr", (1e9, 1e9))
    os.utime(path, (1e9 - 10, 1e9 - 10))
    info = SceneInfo.of(path)
    assert info.overviews == ()
    assert f"is older than {sheet}" in info.notes[0]
