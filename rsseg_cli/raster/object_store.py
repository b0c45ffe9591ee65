"""Files in object stores, written whole by GDAL's network file systems: s3://, gs://, az://.

Credentials and endpoints are those that GDAL knows: AWS_..., GS_..., AZURE_... in the environment, profiles,
roles of the machine (https://gdal.org/en/stable/user/virtual_file_systems.html).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import rasterio._base

from rsseg_cli import files
from rsseg_cli.errors import OutputError

PREFIXES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
SEEK_END = 2
BLOCK_BYTES = 50 << 20  # of a block on Azure; GDAL 3.10 cannot write a blob of fewer in blocks
BLOCKS = (ctypes.c_char_p * 2)(b"BLOB_TYPE=BLOCK", None)


@cache
def _gdal() -> Any:
    """The GDAL that rasterio is linked to; ctypes finds its functions through rasterio's own library."""
    library = ctypes.CDLL(rasterio._base.__file__)
    library.VSICopyFile.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    library.VSIFOpenL.argtypes, library.VSIFOpenL.restype = [ctypes.c_char_p] * 2, ctypes.c_void_p
    library.VSIFSeekL.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    library.VSIFTellL.argtypes, library.VSIFTellL.restype = [ctypes.c_void_p], ctypes.c_uint64
    library.VSIFCloseL.argtypes = [ctypes.c_void_p]
    library.VSICurlPartialClearCache.argtypes = [ctypes.c_char_p]
    library.CPLGetLastErrorMsg.restype = ctypes.c_char_p
    return library


def _name(address: str) -> bytes:
    scheme, _, rest = address.partition("://")
    return f"{PREFIXES[scheme]}{rest}".encode()


@contextmanager
def _environment() -> Iterator[Any]:
    from rsseg_cli.raster import gdal

    with gdal.env("s3://"):
        library = _gdal()
        library.CPLErrorReset()
        yield library


def _problem(library: Any) -> str:
    text = (library.CPLGetLastErrorMsg() or b"").decode("utf-8", "replace").strip().rstrip(".")
    return text or "the store does not say why"


def upload(file: Path, address: str) -> None:
    """Copy a file to an object store; there it appears whole or not at all.

    On Azure, one below BLOCK_BYTES appears empty before it is whole: GDAL makes the blob, then appends to it.
    """
    options = BLOCKS if address.startswith("az://") and file.stat().st_size > BLOCK_BYTES else None
    with _environment() as library:
        if library.VSICopyFile(os.fsencode(file), _name(address), None, 2**64 - 1, options, None, None) != 0:
            raise OutputError(
                f"{address}: cannot be written ({_problem(library)}). Check the address, and the credentials "
                "that GDAL finds (AWS_..., GS_... or AZURE_... in the environment)"
            )


def size_of(path: str | Path) -> int | None:
    """Return the bytes of a file, here or in an object store; None where there is none."""
    address = files.address_of(path)
    if address is None:
        try:
            return os.path.getsize(path)
        except OSError:
            return None
    with _environment() as library:
        library.VSICurlPartialClearCache(_name(address))  # others may have changed it since
        opened = library.VSIFOpenL(_name(address), b"rb")
        if not opened:
            return None
        try:
            return int(library.VSIFTellL(opened)) if library.VSIFSeekL(opened, 0, SEEK_END) == 0 else None
        finally:
            library.VSIFCloseL(opened)
