"""What every use of GDAL shares: settings, a bounded block cache, and errors in the user's words."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.env import getenv, hasenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from rsseg_cli.errors import RssegError, redact

logger = logging.getLogger(__name__)
CACHE_MIB = 24  # GDAL's own default is 5 % of RAM; readers ask for what a row of tiles needs
REMOTE = ("/vsi", "http://", "https://", "s3://", "gs://", "az://", "ftp://")
# Of local files too: a VRT may name addresses. GDAL_HTTP_RETRY_CODES is left alone: a list of codes replaces
# GDAL's own rule (429, 500, 502 to 504), which also tries again after lost connections.
NETWORK = {
    "GDAL_HTTP_CONNECTTIMEOUT": "30",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",  # s, then twice as long each time
    "GDAL_HTTP_LOW_SPEED_TIME": "60",  # s without a byte, after which a connection counts as lost
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}
REMOTE_OPENS = 3  # of one address, where answers come cut short
ANSWERED = ("HTTP response code", "CURL error")  # errors that GDAL asked again about
REMOTE_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "VSI_CACHE": "TRUE"}
_opening = threading.Lock()


@contextmanager
def env(path: str = "", cache_mib: int | None = None) -> Iterator[None]:
    """GDAL with a bounded block cache, retries on the network and, for remote paths, no listing of folders.

    Args:
        path: what is going to be opened.
        cache_mib: size of the block cache, which all threads share; None leaves that of an outer `env`.
            The environment variable GDAL_CACHEMAX comes before both, as those of the network before ours.
    """
    options: dict[str, object] = {}
    if "GDAL_CACHEMAX" not in os.environ:
        outer = getenv().get("GDAL_CACHEMAX") if hasenv() else None
        options["GDAL_CACHEMAX"] = cache_mib << 20 if cache_mib else outer or CACHE_MIB << 20
    network = NETWORK | (REMOTE_ALONE if is_remote(path) else {})
    options |= {key: value for key, value in network.items() if key not in os.environ}
    with rasterio.Env(**options):
        yield


@contextmanager
def errors(kind: type[RssegError], where: str, advice: str = "") -> Iterator[None]:
    """Turn errors of GDAL, rasterio and the file system into `kind`, with `where` before and `advice` after.

    Passwords and signatures in addresses do not appear in the message.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, UnicodeError) as err:  # names may be no UTF-8
        found = redact(str(err.__cause__ or err)).strip().rstrip(".").removeprefix(f"{redact(where)}: ")
        raise kind(f"{redact(where)}: {found}.{' ' if advice else ''}{advice}") from err


def open_raster(path: str | Path, mode: str = "r", **options: Any) -> Any:
    """`rasterio.open` without its warning about missing georeferencing, which `inspect` words itself.

    An address that no sense can be made of is asked for anew, as its answer may have been cut short.
    """
    for again in reversed(range(REMOTE_OPENS if is_remote(str(path)) else 1)):
        try:
            return _open(path, mode, **options)
        except RasterioError as err:
            if not again or str(err).startswith(ANSWERED):
                raise
            forget_answers(path)


def _open(path: str | Path, mode: str, **options: Any) -> Any:
    with _opening, warnings.catch_warnings():  # the filters belong to all threads
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **options)


def forget_answers(path: str | Path) -> None:
    """Wait a little, and have GDAL ask for an address anew: it tries again itself what it got no answer to,
    but takes half an answer for the file's end and keeps it."""
    time.sleep(float(os.environ.get("GDAL_HTTP_RETRY_DELAY", NETWORK["GDAL_HTTP_RETRY_DELAY"])))
    forget = rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsi")  # of any path that begins so, once it closes
    with env(str(path)), forget, suppress(RasterioError):
        _open(path, "r", sharing=False).close()


def tags(dataset: Any, namespace: str | None = None) -> dict[str, str]:
    """A raster's tags; none where one of them is no UTF-8 (rasterio then gives none either)."""
    try:
        return {key: str(value) for key, value in dataset.tags(ns=namespace).items()}
    except UnicodeDecodeError:
        return {}


def is_remote(path: str) -> bool:
    """Whether GDAL reads `path` through one of its network file systems."""
    return path.startswith(REMOTE) and not path.startswith(
        ("/vsimem", "/vsizip//", "/vsitar//", "/vsigzip//")
    )


def display_name(path: str | Path) -> str:
    """How messages call a file: its path, without credentials."""
    return redact(str(path))


def first_layer(path: str | Path) -> str:
    """The first layer that holds geometries; GeoPackages keep styles and the like in further tables.

    Raises:
        pyogrio.errors.DataSourceError: no vector file.
        ValueError: it has no such layer.
    """
    import pyogrio

    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not layers:
        raise ValueError("it holds no layer with geometries")
    if len(layers) > 1:
        logger.warning("%s: layer %s is read, of %s", path, layers[0], ", ".join(layers))
    return layers[0]
