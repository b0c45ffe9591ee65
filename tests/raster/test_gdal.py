"""GDAL's settings that belong to the whole process: its block cache, and Python's warnings."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rasterio.env import get_gdal_config
from rasters import MakeRaster

from rsseg_cli.raster import gdal
from rsseg_cli.system import cores

MIB = 1 << 20


def cache_mib() -> int:
    return get_gdal_config("GDAL_CACHEMAX") // MIB


def open_and_close_an_environment() -> int:
    with gdal.env():
        return cache_mib()


def test_the_block_cache_is_as_large_as_the_largest_open_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    before = cache_mib()
    with ThreadPoolExecutor(1) as threads:
        with gdal.env(cache_mib=100):
            assert cache_mib() == 100
            assert threads.submit(open_and_close_an_environment).result() == 100
            with gdal.env():
                assert cache_mib() == 100
            assert cache_mib() == 100
        assert threads.submit(open_and_close_an_environment).result() == gdal.CACHE_MIB
    assert cache_mib() == before


def native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by /proc")
@pytest.mark.parametrize("limit", ["1", "3"])
def test_blocks_are_decoded_by_the_threads_of_the_process(make_raster: MakeRaster, limit: str) -> None:
    """GDAL would keep threads of its own, so each case is a process of its own."""
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    path = make_raster(shape=(600, 700), **tiles)
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1])\n"
        "import rasterio, test_gdal\n"
        "from rsseg_cli.raster import SceneInfo, SceneReader\n"
        "before = test_gdal.native_threads()\n"
        "with SceneReader(SceneInfo.of(sys.argv[2]), (1, 2, 3)) as reader:\n"
        "    pixels, _ = reader.read(100, 50, 400, 600)\n"
        "    print(test_gdal.native_threads() - before)\n"
        "assert (pixels == rasterio.open(sys.argv[2]).read()[:, 100:500, 50:650]).all()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, repr(sys.path), str(path)],
        env=os.environ | {"GDAL_NUM_THREADS": limit}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{min(int(limit), cores())}\n", "")


@pytest.mark.parametrize(
    ("sources", "one"),
    [
        (["a.tif", "/vsizip/a.zip/b.tif", "/data/a.vrt"], False),
        (["a.tif", "/vsicurl/http://host/b.tif"], True),
        (["/vsis3/bucket/b.tif"], True),
        (["/vsizip//vsicurl/http://host/b.zip"], True),
        (["https://host/b.tif"], True),
    ],
)
@pytest.mark.parametrize("depth", range(4))
def test_vrts_of_remote_files_are_decoded_in_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], one: bool, depth: int
) -> None:
    monkeypatch.setattr(gdal, "cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number in range(depth, -1, -1):
        text = "".join(f'<SourceFilename relativeToVRT="1">{name}</SourceFilename>' for name in sources)
        (tmp_path / f"{number}.vrt").write_text(f"<VRTDataset>{text}</VRTDataset>")
        sources = ["a.tif", f"{number}.vrt"]
    assert gdal.decoders(str(tmp_path / "0.vrt")) == (1 if one else 3)
    assert gdal.decoders((tmp_path / "0.vrt").read_text()) == (1 if one and not depth else 3)


def test_a_vrt_of_itself_or_of_very_many_others_ends(tmp_path: Path) -> None:
    own, many = tmp_path / "own.vrt", tmp_path / "many.vrt"
    own.write_text("<VRTDataset><SourceFilename>own.vrt</SourceFilename></VRTDataset>")
    assert gdal.decoders(str(own)) == gdal.threads()
    names = [f"{number}.vrt" for number in range(gdal.MAX_NESTED + 1)]
    many.write_text("".join(f"<SourceFilename>{name}</SourceFilename>" for name in names))
    for name in names:
        (tmp_path / name).write_text("<VRTDataset/>")
    assert gdal.decoders(str(many)) == 1


def test_a_raster_without_georeferencing_opens_without_a_warning(make_raster: MakeRaster) -> None:
    path = make_raster(crs=None)
    code = f"from rsseg_cli.raster import SceneInfo; SceneInfo.of({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
