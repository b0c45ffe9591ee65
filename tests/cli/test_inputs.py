"""Scenes as people have them: folders that are rasters, parts of files, lists, VRTs that are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from batch_runs import model_file, pixels, run, status_of  # noqa: F401
from scipy.io import netcdf_file

RGB = ("red", "green", "blue")


def noise(count=3):
    return np.random.default_rng(0).integers(1, 255, (count, 40, 50), dtype=np.uint8)


def write_zarr(name):
    with rasterio.open(name, "w", driver="Zarr", width=50, height=40, count=3, dtype="uint8") as dataset:
        dataset.write(noise())


def write_netcdf(name, *variables):
    with netcdf_file(name, "w") as file:
        for axis, size in (("y", 40), ("x", 50)):
            file.createDimension(axis, size)
        for variable, plane in zip(variables, noise(len(variables)), strict=True):
            file.createVariable(variable, "h", ("y", "x"))[:] = plane


@pytest.mark.parametrize("name", ["scene.zarr", "scene.zarr/", "no_ending"])
def test_a_folder_that_is_a_raster_is_one_scene(run, name):
    write_zarr(name.rstrip("/"))
    done = run(name, "-o", "map.tif")
    assert done.exit_code == 0, done.stderr
    assert pixels("map.tif").shape == (1, 40, 50)


def test_parts_of_a_file(run):
    write_netcdf("all.nc", *RGB)
    write_netcdf("one.nc", "red")
    assert run("all.nc", "-o", "map.tif").exit_code == 0
    for scene in ("one.nc", "NETCDF:all.nc:red", 'NETCDF:"all.nc":red'):
        done = run(scene, "-o", "other.tif")
        assert done.exit_code == 1
        assert (
            f"rsseg: error: {scene}: 1 band (int16), model 'tiny' needs 3 (red, green, blue)" in done.stderr
        )
    assert not Path("other.tif").exists()


def test_a_part_gives_its_map_a_name(run):
    with netcdf_file("a.nc", "w") as file:
        for axis, size in (("band", 3), ("y", 40), ("x", 50)):
            file.createDimension(axis, size)
        file.createVariable("image", "h", ("band", "y", "x"))[:] = noise()
        file.createVariable("other", "h", ("y", "x"))[:] = 1
    done = run('NETCDF:"a.nc":image')
    assert done.exit_code == 0, done.stderr
    assert pixels("a_image_tiny.tif").shape == (1, 40, 50)
    assert run('NETCDF:"a.nc":image', "-o", "maps").exit_code == 0
    assert pixels("maps/a_image_tiny.tif").shape == (1, 40, 50)


@pytest.mark.parametrize(
    "table", [b"'a b.tif'\n", b'\xef\xbb\xbfpath;date\r\n"a b.tif";2024\r\n', "a b.tif\t1\n".encode("utf-16")]
)
def test_lists_with_quotes_and_cells(run, make_raster, table):
    make_raster("a b.tif")
    Path("list.csv").write_bytes(table)
    assert run("@list.csv", "-o", "maps").exit_code == 0
    assert status_of("maps/manifest.jsonl") == {"a b.tif": "done"}


SOURCE = (
    "<SimpleSource><SourceFilename>x.tif</SourceFilename><SourceBand>{band}</SourceBand>"
    '<SrcRect xOff="{left}" yOff="0" xSize="{width}" ySize="3"/>'
    '<DstRect xOff="0" yOff="0" xSize="4" ySize="3"/></SimpleSource>'
)
VRTS = {
    "size": '<VRTDataset rasterXSize="a" rasterYSize="3"></VRTDataset>',
    "no end": '<VRTDataset rasterXSize="4" rasterYSize="3"><VRTRasterBand',
    "other XML": "<html><body/></html>",
    "bytes": "\x00\x01\x02",
    "empty": "",
    **{
        f"source {number}": '<VRTDataset rasterXSize="4" rasterYSize="3">'
        f'<VRTRasterBand band="1" dataType="Byte">{SOURCE.format(**values)}</VRTRasterBand></VRTDataset>'
        for number, values in enumerate(
            (
                {"band": "1", "left": "a", "width": "4"},
                {"band": "1", "left": "0", "width": "1e400"},
                {"band": "1", "left": "0", "width": "nan"},
                {"band": "x", "left": "0", "width": "4"},
            )
        )
    },
}


@pytest.mark.parametrize("output", ["map.tif", "maps"])
@pytest.mark.parametrize("kind", VRTS)
def test_a_malformed_vrt_is_one_line(run, kind, output):
    Path("scene.vrt").write_text(VRTS[kind])
    done = run("scene.vrt", "-o", output)
    assert done.exit_code in (1, 3), done.exception
    errors = [line for line in (done.stderr + done.stdout).splitlines() if "scene.vrt: " in line]
    assert errors
    assert not isinstance(done.exception, ValueError | TypeError)
    assert not Path("map.tif").exists()
