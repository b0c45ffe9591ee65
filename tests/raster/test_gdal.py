"""GDAL's settings that belong to the whole process: its block cache, and Python's warnings."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from rasterio.env import get_gdal_config
from rasters import MakeRaster

from rsseg_cli.raster import gdal

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


def test_a_raster_without_georeferencing_opens_without_a_warning(make_raster: MakeRaster) -> None:
    path = make_raster(crs=None)
    code = f"from rsseg_cli.raster import SceneInfo; SceneInfo.of({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
