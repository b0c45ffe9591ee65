"""Bad and odd scenes: each function writes one into a folder, as `scene.tif` unless it says otherwise."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

SIDE = 48
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
UTM = CRS.from_epsg(32633)
LOCAL_CRS = 'LOCAL_CS["site",UNIT["metre",1]]'
CUSTOM_PROJ = "+proj=tmerc +lat_0=47.1 +lon_0=14.3 +k=0.9997 +x_0=1234 +y_0=-5678 +ellps=bessel +units=m"


def noise(bands: int = 3, shape: tuple[int, int] = (SIDE, SIDE), dtype: str = "uint8") -> np.ndarray:
    values = np.random.default_rng(0).uniform(1, 120, (bands, *shape))
    return (values / 120 if np.dtype(dtype).kind == "f" else values).astype(dtype)


def write(path: Path, array: np.ndarray | None = None, **profile: Any) -> Path:
    """A raster of noise in Austria, unless reported otherwise."""
    array = noise() if array is None else array
    count, height, width = array.shape
    options: dict[str, Any] = {"driver": "GTiff", "crs": UTM, "transform": NORTH_UP, "dtype": array.dtype}
    options |= {"count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **(options | profile)) as dataset:
        dataset.write(array)
    return path


def plain(folder: Path, **profile: Any) -> Path:
    return write(folder / "scene.tif", **profile)


def as_dtype(dtype: str):
    return lambda folder: write(folder / "scene.tif", noise(dtype=dtype))


def with_profile(**profile: Any):
    return lambda folder: plain(folder, **profile)


def of_shape(height: int, width: int):
    return lambda folder: write(folder / "scene.tif", noise(shape=(height, width)))


# --- files that are cut, damaged or not what their name says


def cut(share: float):
    """The first part of a file whose directory stands in front."""

    def make(folder: Path) -> None:
        path = plain(folder, tiled=True, blockxsize=16, blockysize=16)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def text(folder: Path) -> None:
    (folder / "scene.tif").write_text("red,green,blue\n1,2,3\n")


def empty(folder: Path) -> None:
    (folder / "scene.tif").touch()


def png_named_tif(folder: Path) -> None:
    write(folder / "scene.tif", driver="PNG", crs=None, transform=Affine.identity())
    (folder / "scene.tif.aux.xml").unlink(missing_ok=True)


def undecodable_block(folder: Path) -> None:
    """A deflate tile in the middle is overwritten."""
    path = write(
        folder / "scene.tif", noise(shape=(128, 128)), tiled=True, blockxsize=32, blockysize=32,
        compress="deflate", interleave="pixel",
    )  # fmt: skip
    damage(path, 0.5)


def damage(path: Path, place: float, length: int = 600) -> None:
    content = bytearray(path.read_bytes())
    start = int(len(content) * place)
    content[start : start + length] = b"\xff" * length
    path.write_bytes(content)


def damaged_overview(folder: Path) -> None:
    """The scene's own tiles are sound; what is stored for the small view is not."""
    path = write(folder / "scene.tif", noise(shape=(128, 128)), tiled=True, blockxsize=64, blockysize=64)
    before = path.stat().st_size
    with rasterio.Env(COMPRESS_OVERVIEW="DEFLATE"), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4])
    with path.open("r+b") as file:
        file.seek(before + (path.stat().st_size - before) // 3)
        file.write(b"\xff" * 600)


def directory(folder: Path) -> None:
    (folder / "scene.tif").mkdir()


def with_folder(folder: Path) -> None:
    plain(folder)
    (folder / "maps.tif").mkdir()


def symlink_loop(folder: Path) -> None:
    (folder / "scene.tif").symlink_to(folder / "other.tif")
    (folder / "other.tif").symlink_to(folder / "scene.tif")


def link_circle(folder: Path) -> None:
    plain(folder)
    (folder / "l1.tif").symlink_to("l2.tif")
    (folder / "l2.tif").symlink_to("l1.tif")


def fifo_like(folder: Path) -> None:
    (folder / "scene.tif").symlink_to("/dev/null")


# --- headers that claim too much


def tiff_header(width: int, height: int, *, tags: tuple[tuple[int, int, int, int], ...] = ()) -> bytes:
    """A classic TIFF of one uncompressed strip, whose size is only claimed."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 100), *tags,
    ]  # fmt: skip
    entries.sort()
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + body + b"\x00" * 4


def gigantic_header(folder: Path) -> None:
    (folder / "scene.tif").write_bytes(tiff_header(2**31 - 1, 2**31 - 1))


def gigantic_tag(folder: Path) -> None:
    """A tag that claims 4 GiB of text."""
    (folder / "scene.tif").write_bytes(tiff_header(32, 32, tags=((42112, 2, 2**32 - 1, 8),)))


def gigantic_sparse(height: int, width: int):
    """A real, sparse BigTIFF: a few bytes on disk."""

    def make(folder: Path) -> None:
        options = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": height, "width": width}
        options |= {"tiled": True, "blockxsize": 8192, "blockysize": 8192, "sparse_ok": True}
        with rasterio.open(folder / "scene.tif", "w", bigtiff=True, crs=UTM, transform=NORTH_UP, **options):
            pass

    return make


def metadata(size: int):
    def make(folder: Path) -> None:
        with rasterio.open(plain(folder), "r+") as dataset:
            dataset.update_tags(HUGE="x" * size)

    return make


# --- virtual rasters


def vrt(width: int, height: int, band: str = "", *, more: str = "", kind: str = "") -> str:
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{number}"{kind}>{band.replace("NUMBER", str(number))}'
        "</VRTRasterBand>"
        for number in (1, 2, 3)
    )
    place = "<GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform><SRS>EPSG:32633</SRS>"
    return f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{place}{more}{bands}</VRTDataset>'


def source(name: str, band: str = "NUMBER") -> str:
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource>"
    )


def write_vrt(folder: Path, content: str, name: str = "scene.tif") -> None:
    (folder / name).write_text(content)


def no_bands(folder: Path) -> None:
    write_vrt(folder, '<VRTDataset rasterXSize="8" rasterYSize="8"></VRTDataset>')


def gigantic_vrt(width: int, height: int):
    return lambda folder: write_vrt(folder, vrt(width, height))


def vrt_to_nowhere(folder: Path) -> None:
    write_vrt(folder, vrt(SIDE, SIDE, source("inner.vrt")))
    write_vrt(folder, vrt(SIDE, SIDE, source("none.tif")), "inner.vrt")


def vrt_of_itself(folder: Path) -> None:
    write_vrt(folder, vrt(SIDE, SIDE, source("scene.tif")))


def vrt_circle(folder: Path) -> None:
    write_vrt(folder, vrt(SIDE, SIDE, source("b.vrt")))
    write_vrt(folder, vrt(SIDE, SIDE, source("scene.tif")), "b.vrt")


def vrt_python(folder: Path) -> None:
    write(folder / "good.tif")
    code = f"open({str(folder / 'RAN')!r}, 'w').close()"
    derived = (
        "<PixelFunctionType>run</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode><![CDATA[\n{code}\ndef run(*args, **more):\n    {code}\n]]></PixelFunctionCode>"
    )
    kind = ' subClass="VRTDerivedRasterBand"'
    write_vrt(folder, vrt(SIDE, SIDE, derived + source("good.tif"), kind=kind))


def vrt_entities(folder: Path) -> None:
    """A small file that grows to 10^9 letters where entities are replaced."""
    lines = [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)]
    head = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{"".join(lines)}]>'
    more = '<Metadata><MDI key="k">&a9;</MDI></Metadata>'
    write(folder / "good.tif")
    write_vrt(folder, head + vrt(SIDE, SIDE, source("good.tif"), more=more))


def vrt_deep(folder: Path) -> None:
    write_vrt(folder, "<VRTDataset>" + "<a>" * 10_000)


# --- pixels


def not_finite(folder: Path) -> None:
    array = noise(dtype="float32")
    array[:, :8] = np.nan
    array[0, 8:10] = np.inf
    array[1, 10:12] = -np.inf
    write(folder / "scene.tif", array)


def no_number_at_all(folder: Path) -> None:
    write(folder / "scene.tif", np.full((3, SIDE, SIDE), np.nan, "float32"))


def huge_floats(folder: Path) -> None:
    array = noise(dtype="float64")
    array[:, 0, :4] = 1.7e308, -1.7e308, 5e-324, 3.5e38
    write(folder / "scene.tif", array)


def one_bit(folder: Path) -> None:
    write(folder / "scene.tif", noise() % 2, nbits=1)


def palette(folder: Path) -> None:
    path = write(folder / "scene.tif", noise(bands=1) % 4, photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {index: (index * 60, 0, 0, 255) for index in range(4)})


def alpha_all_transparent(folder: Path) -> None:
    array = noise(bands=4)
    array[3] = 0
    path = write(folder / "scene.tif", array, photometric="rgb", alpha="yes")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [*dataset.colorinterp[:3], ColorInterp.alpha]


def all_nodata(folder: Path) -> None:
    write(folder / "scene.tif", np.zeros((3, SIDE, SIDE), "uint8"), nodata=0)


def odd_nodata(folder: Path) -> None:
    """A value that the type cannot hold marks nothing."""
    write_vrt(folder, vrt(SIDE, SIDE, "<NoDataValue>-99999.5</NoDataValue>" + source("good.tif")))
    write(folder / "good.tif")


def jpeg_ycbcr(folder: Path) -> None:
    shape = (SIDE, SIDE)
    write(folder / "scene.tif", noise(shape=shape), compress="jpeg", photometric="ycbcr", tiled=True,
          blockxsize=16, blockysize=16)  # fmt: skip


def msk_of_other_size(folder: Path) -> None:
    plain(folder)
    write(folder / "scene.tif.msk", np.zeros((1, 7, 5), "uint8"), crs=None, transform=Affine.identity())


def msk_of_text(folder: Path) -> None:
    plain(folder)
    (folder / "scene.tif.msk").write_text("no raster")


# --- grids


def gcps(folder: Path) -> None:
    points = [GroundControlPoint(row, col, 15 + col, 45 - row) for row, col in ((0, 0), (0, 48), (48, 0))]
    with rasterio.open(plain(folder, crs=None, transform=Affine.identity()), "r+") as dataset:
        dataset.gcps = (points, CRS.from_epsg(4326))


def rpcs(folder: Path) -> None:
    path = plain(folder, crs=None, transform=Affine.identity())
    numbers = " ".join(["1"] + ["0"] * 19)
    scales = {f"{axis}_{kind}": "1" for axis in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")
              for kind in ("OFF", "SCALE")}  # fmt: skip
    polynomials = {f"{axis}_{part}_COEFF": numbers for axis in ("LINE", "SAMP") for part in ("NUM", "DEN")}
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="RPC", **scales, **polynomials)


def world_file(folder: Path) -> None:
    plain(folder, crs=None, transform=Affine.identity())
    (folder / "scene.tfw").write_text("0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n")


def broken_world_file(folder: Path) -> None:
    plain(folder, crs=None, transform=Affine.identity())
    (folder / "scene.tfw").write_text("half\na\nmetre\n")


def zero_world_file(folder: Path) -> None:
    plain(folder, crs=None, transform=Affine.identity())
    (folder / "scene.tfw").write_text("0\n0\n0\n0\n0\n0\n")


def not_finite_transform(folder: Path) -> None:
    write(folder / "good.tif")
    content = vrt(SIDE, SIDE, source("good.tif")).replace("500000, 0.5", "nan, inf")
    write_vrt(folder, content)


# --- sidecars and tags


def hostile_sidecar(folder: Path) -> None:
    plain(folder)
    lines = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    (folder / "scene.tif.aux.xml").write_text(
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{lines}'
        '<!ENTITY f SYSTEM "file:///etc/passwd">]>'
        f'<PAMDataset><Metadata><MDI key="a">&a9;&f;</MDI></Metadata>{"<b>" * 5000}'
    )


def huge_sidecar(folder: Path) -> None:
    plain(folder)
    items = "".join(f'<MDI key="k{number}">{"v" * 1000}</MDI>' for number in range(5_000))
    (folder / "scene.tif.aux.xml").write_text(f"<PAMDataset><Metadata>{items}</Metadata></PAMDataset>")


def tags_not_utf8(folder: Path) -> None:
    path = plain(folder)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_ARTIST="QQQQQQQQ", NOTE="ZZZZZZZZ")
        dataset.set_band_description(1, "XXXXXXXX")
    content = path.read_bytes()
    for letter in (b"Q", b"Z", b"X"):
        assert letter * 8 in content
        content = content.replace(letter * 8, b"\xff\xfe\x80\xc3(\x1b[m")
    path.write_bytes(content)


def big_tiff(folder: Path) -> None:
    plain(folder, bigtiff="yes")


def zip_of_scene(folder: Path) -> None:
    import zipfile

    write(folder / "inside.tif")
    with zipfile.ZipFile(folder / "scene.zip", "w") as archive:
        archive.write(folder / "inside.tif", "inside.tif")
    os.unlink(folder / "inside.tif")


def not_utf8(folder: Path) -> None:
    plain(folder).rename(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.tif"))


def named(name: str):
    return lambda folder: write(folder / name)
