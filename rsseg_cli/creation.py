"""GDAL's creation options, checked before work starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import numpy as np
from rasterio.io import MemoryFile
from rasterio.shutil import copy

from rsseg_cli.errors import UsageError
from rsseg_cli.gdal import gdal_env, gdal_errors, open_raster

# What would change pixels or their places; outputs are exact and on the scene's grid.
FORBIDDEN_OPTIONS = {
    "TILING_SCHEME", "TARGET_SRS", "RES", "EXTENT", "ALIGNED_LEVELS", "ZOOM_LEVEL",
    "ZOOM_LEVEL_STRATEGY", "ADD_ALPHA", "NBITS", "OVERVIEWS", "OVERVIEW_COUNT", "OVERVIEW_RESAMPLING",
    "RESAMPLING", "WARP_RESAMPLING", "COPY_SRC_OVERVIEWS", "PHOTOMETRIC",
}  # fmt: skip
LOSSY = {"JPEG", "WEBP", "JXL", "LERC", "LERC_DEFLATE", "LERC_ZSTD"}
BLOCK_OPTIONS = {"BLOCKSIZE", "BLOCKXSIZE", "BLOCKYSIZE"}


def check_creation_options(options: Mapping[str, str], *, cog: bool = True) -> None:
    """Refuse creation options that GDAL does not know, would ignore, or that change pixels.

    Raises:
        UsageError: naming the option and why.
    """
    for key, value in options.items():
        if key.upper() in FORBIDDEN_OPTIONS:
            raise UsageError(
                f"--co {key}={value}: would change pixels or georeferencing; outputs keep the scene's grid"
            )
        if key.upper() == "COMPRESS" and value.upper() in LOSSY:
            raise UsageError(
                f"--co {key}={value}: may lose pixel values; use DEFLATE, ZSTD, LZW, LZMA or NONE"
            )
        if key.upper() in BLOCK_OPTIONS and not _is_block_size(value):  # GDAL aborts the process on some
            raise UsageError(f"--co {key}={value}: needs a multiple of 16, 64 to 4096 px")
    if not options:
        return
    complaints = _Complaints()
    gdal_log = logging.getLogger("rasterio._env")
    level = gdal_log.level
    shown = " ".join(f"--co {key}={value}" for key, value in options.items())
    with gdal_env(), MemoryFile() as source, MemoryFile() as target:
        profile = {
            "driver": "GTiff",
            "width": 16,
            "height": 16,
            "count": 1,
            "dtype": "uint8",
            "nodata": 255,
        }
        with open_raster(source.name, "w", **profile) as dataset:
            dataset.write(np.zeros((1, 16, 16), np.uint8))
        gdal_log.addHandler(complaints)
        gdal_log.setLevel(logging.WARNING)
        try:
            with gdal_errors(UsageError, shown):
                driver = {"driver": "COG"} if cog else {"driver": "GTiff", "TILED": "YES"}
                copy(source.name, target.name, **driver | upper(options))
        finally:
            gdal_log.removeHandler(complaints)
            gdal_log.setLevel(level)
    if complaints.messages:
        raise UsageError(f"{shown}: {'; '.join(complaints.messages)}")


def _is_block_size(value: str) -> bool:
    return value.isdecimal() and 64 <= int(value) <= 4096 and int(value) % 16 == 0


class _Complaints(logging.Handler):
    """Keeps what GDAL warns of: rasterio raises nothing for an unknown creation option."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(re.sub(r"^CPLE_\w+ in ([\w-]+\.tif: )?", "", record.getMessage()))


def upper(options: Mapping[str, str]) -> dict[str, str]:
    return {key.upper(): value for key, value in options.items()}
