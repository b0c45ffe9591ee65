"""What every use of GDAL shares: settings, a bounded block cache, retries, and errors in the user's words."""

from __future__ import annotations

import errno
import html
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from rsseg_cli.errors import RssegError, SceneError, redact
from rsseg_cli.raster.object_store import size_of as size_of
from rsseg_cli.raster.object_store import upload as upload
from rsseg_cli.system import cores, file_limit_advice, max_open_files

CACHE_MIB = 24  # GDAL's own default is 5 % of RAM; readers ask for what a row of tiles needs
REMOTE = ("/vsi", "http://", "https://", "s3://", "gs://", "az://", "ftp://")
LOCAL = ("/vsimem", "/vsizip//", "/vsitar//", "/vsigzip//")
REMOTE_NAME = re.compile(r"/vsi(?!mem|zip/|tar/|gzip/)|\w://")  # in the text of a VRT
MAX_VRT_BYTES, MAX_NESTED = 16 << 20, 32  # of VRTs that are searched for remote sources
# For local files too: a VRT may name URLs. GDAL_HTTP_RETRY_CODES is left alone: a list of codes replaces
# GDAL's own rule (429, 500, 502 to 504), which also tries again after lost connections.
# A VRT that reads its sources in threads takes a source that cannot be read for one without data.
SETTINGS = {
    "VRT_NUM_THREADS": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "30",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",  # s, then twice as long each time
    "GDAL_HTTP_LOW_SPEED_TIME": "60",  # s without a byte, after which a connection counts as lost
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}
REMOTE_ONLY = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "VSI_CACHE": "TRUE"}
REMOTE_TRIES = 3  # for one URL whose answers come truncated
TOO_MANY_FILES = os.strerror(errno.EMFILE)
SIGNATURES = {b"\x0e\x03\x13\x01": "HDF4", b"\x89HDF\r\n\x1a\n": "HDF5", b"CDF": "netCDF"}
ANSWERED = ("HTTP response code", "CURL error")  # errors that GDAL itself retried
logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# `SceneInfo.of` words this itself. Filters belong to the whole process: changed once, never under way.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


class _BlockCache:
    """GDAL's block cache, one for the process: as large as the largest request that is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[int] = []  # bytes
        self._default: int | None = None  # what the process had

    @contextmanager
    def request(self, size: int) -> Iterator[None]:
        self._change(self._requests.append, size)
        try:
            yield
        finally:
            self._change(self._requests.remove, size)

    def _change(self, change: Callable[[int], None], size: int) -> None:
        with self._lock:
            if not self._requests:
                self._default = get_gdal_config("GDAL_CACHEMAX")
            before = max(self._requests, default=self._default)
            change(size)
            after = max(self._requests, default=self._default)
            if after is not None and after != before:
                set_gdal_config("GDAL_CACHEMAX", after)


_cache = _BlockCache()


def threads() -> int:
    """Return how many threads of GDAL code and decode blocks: the process's share of the cores."""
    limit = os.environ.get("GDAL_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS", "")
    return min(int(limit), cores()) if limit.isdecimal() else cores()


def decoders(path: str) -> int:
    """Return how many threads may decode the blocks of a window.

    It is one if some are remote: with more, GDAL takes blocks that it cannot fetch for zeros.
    """
    paths = [path]
    for path in paths:
        text = _text_of_vrt(path)
        if REMOTE_NAME.search(path) or REMOTE_NAME.search(text) or len(text) > MAX_VRT_BYTES:
            return 1
        names = re.findall(r">\s*([^<>]+\.vrt)\s*<", text, re.IGNORECASE)
        nested = [file for name in names for file in (name, os.path.join(os.path.dirname(path), name))]
        paths += [file for file in dict.fromkeys(nested) if file not in paths and os.path.isfile(file)]
        if len(paths) > MAX_NESTED:
            return 1
    return threads()


def _text_of_vrt(path: str) -> str:
    """Return up to MAX_VRT_BYTES and one of a VRT, which may be given as its text; "" for other files."""
    text = path if path.lstrip().startswith("<") else ""
    if not text and path.lower().endswith(".vrt"):
        with suppress(OSError), open(path, "rb") as file:
            text = file.read(MAX_VRT_BYTES + 1).decode(errors="replace")
    return html.unescape(text)


@contextmanager
def env(path: str = "", cache_mib: int = CACHE_MIB, *, decoders: int | None = None) -> Iterator[None]:
    """Set up GDAL: network retries, and one block cache, as large as the largest one requested.

    With several `decoders`, blocks of one window are decoded in threads, which a fork would not survive.
    """
    settings = {"GDAL_NUM_THREADS": str(decoders)} if decoders else {}
    settings |= SETTINGS | (REMOTE_ONLY if is_remote(path) else {})
    settings |= {"GDAL_MAX_DATASET_POOL_SIZE": str(min(100, max(4, (max_open_files() - 64) // 2)))}
    fixed = {"VRT_NUM_THREADS"} | ({"GDAL_NUM_THREADS"} if decoders == 1 else set())
    options = {key: value for key, value in settings.items() if key in fixed or key not in os.environ}
    with rasterio.Env(**options):
        if "GDAL_CACHEMAX" in os.environ:
            yield
        else:
            with _cache.request(cache_mib << 20):
                yield


@contextmanager
def errors(kind: type[RssegError], where: str, advice: str = "") -> Iterator[None]:
    """Turn errors of GDAL, rasterio and the file system into `kind`: where, cause, advice."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, UnicodeError) as err:  # names may be no UTF-8
        cause = redact(str(err.__cause__ or err)).strip().rstrip(".").removeprefix(f"{redact(where)}: ")
        if TOO_MANY_FILES in cause:
            advice = file_limit_advice()
        elif driver := missing_driver(where):
            advice = (
                f"It is of {driver}, which rasterio's GDAL here is built without; convert it with a "
                "gdal_translate that has that driver (gdalinfo --formats)."
            )
        raise kind(f"{redact(where)}: {cause}.{' ' if advice else ''}{advice}") from err


@contextmanager
def reading(
    path: str | Path, kind: type[RssegError] = SceneError, advice: str = "", where: str = ""
) -> Iterator[Any]:
    """Open a raster to read from it; errors until it is closed become `kind`."""
    with env(str(path)), errors(kind, where or display_name(path), advice), open_raster(path) as dataset:
        yield dataset


def open_raster(path: str | Path, mode: str = "r", **options: Any) -> Any:
    """Open a raster as `rasterio.open` does; a URL with a senseless answer is requested again."""
    return retrying(path, lambda: rasterio.open(path, mode, **options), RasterioError, final=ANSWERED)


def retrying(
    path: str | Path, attempt: Callable[[], Result], kind: type[Exception], final: tuple[str, ...] = ()
) -> Result:
    """Return the result of `attempt`, tried up to REMOTE_TRIES times if `path` is remote."""
    for left in reversed(range(REMOTE_TRIES if is_remote(str(path)) else 1)):
        try:
            return attempt()
        except kind as err:
            if not left or (final and str(err).startswith(final)):
                raise
        _forget_answers(path)
    raise AssertionError("unreachable")


def _forget_answers(path: str | Path) -> None:
    """Wait, then make GDAL request a URL again: it takes half an answer for the file's end."""
    time.sleep(float(os.environ.get("GDAL_HTTP_RETRY_DELAY", SETTINGS["GDAL_HTTP_RETRY_DELAY"])))
    forget = rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsi")  # any path that begins so, once it closes
    with env(str(path)), forget, suppress(RasterioError):
        rasterio.open(path, sharing=False).close()


def tags(dataset: Any, namespace: str | None = None, band: int = 0) -> dict[str, str]:
    """Return the tags of a raster or a band; none if one is not UTF-8 (rasterio then returns none either)."""
    try:
        pairs = [(key, str(value)) for key, value in dataset.tags(band, ns=namespace).items()]
    except UnicodeDecodeError:
        return {}
    # rasterio splits "eo:common_name=red" at the colon
    split = [f"{key}:{value}".partition("=") for key, value in pairs if key == "eo" and "=" in value]
    return dict(pairs) | {key: value for key, _, value in split}


def missing_driver(path: str) -> str:
    """Return the GDAL driver that a local file needs and this GDAL lacks; "" if it lacks none."""
    start = b""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(8)
    needed = [driver for signature, driver in SIGNATURES.items() if start.startswith(signature)]
    with rasterio.Env() as environment:
        return next((driver for driver in needed if driver not in environment.drivers()), "")


def is_remote(path: str) -> bool:
    """Whether GDAL reads `path` through one of its network file systems."""
    return path.startswith(REMOTE) and not path.startswith(LOCAL)


def display_name(path: str | Path) -> str:
    return redact(str(path))


def is_product(path: str) -> bool:
    """Whether a path is the folder of a Sentinel-2 product, which is one scene."""
    named = path.rstrip("/").upper().endswith(".SAFE")
    return os.path.isdir(path) and (named or any(Path(path).glob("MTD_MSI*.xml")))


def is_folder_of_one(path: str) -> bool:
    """Whether a folder is one scene: a product, a Zarr store, a geodatabase, an ESRI grid."""
    if not os.path.isdir(path):
        return False
    marks = (".zgroup", ".zarray", "zarr.json", "hdr.adf")
    named = path.rstrip("/").lower().endswith((".zarr", ".gdb"))
    return named or is_product(path) or any(os.path.exists(os.path.join(path, mark)) for mark in marks)


def is_description(path: str) -> bool:
    """Whether a path is the text of a VRT, or names a part of a file, as NETCDF:"a.nc":red does."""
    named = re.match(r"[A-Za-z0-9_]{2,}:(?!//)", path) is not None and not os.path.lexists(path)
    return path.startswith("<VRTDataset") or named


def first_layer(path: str | Path, notes: list[str] | None = None) -> str:
    """Return the first layer with geometries; that there are others is logged, or added to `notes`.

    GeoPackages keep styles and the like in further tables.
    """
    import pyogrio

    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not layers:
        raise ValueError("it holds no layer with geometries")
    if len(layers) > 1:
        note = f"{path}: layer {layers[0]} is read, of {', '.join(layers)}"
        if notes is None:
            logger.warning("%s", note)
        else:
            notes.append(note)
    return layers[0]
