"""A cloud-optimised GeoTIFF put together from levels whose blocks are compressed already.

GDAL writes all tags, into a file without pixels; blocks follow as they are, and their places go into the
arrays that GDAL left empty. The result is GDAL's own file of the same levels, byte by byte.

Source: https://gdal.org/drivers/raster/cog.html (layout), TIFF 6.0 and BigTIFF (directories).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import OutputError

LEVEL_OPTIONS = {"DEFLATE": "ZLEVEL", "ZSTD": "ZSTD_LEVEL", "LZMA": "LZMA_PRESET"}
COPIED = {"COMPRESS", "LEVEL", "PREDICTOR", "BLOCKSIZE", "NUM_THREADS", "BIGTIFF"}
OFFSETS, SIZES = 324, 325  # tags: of tiles
SHORT, LONG, LONG8 = 3, 4, 16
TYPES = {SHORT: "u2", LONG: "u4", LONG8: "u8"}


def block_options(options: Mapping[str, str]) -> dict[str, str] | None:
    """Return GTiff's creation options for blocks as the COG driver's options make them.

    None where an option concerns more than blocks, so that GDAL has to write the file.
    """
    if not options.keys() <= COPIED:
        return None
    compress, side = options["COMPRESS"].upper(), options["BLOCKSIZE"]
    predictor = options.get("PREDICTOR", "NO").upper()
    if compress not in {"NONE", "LZW", *LEVEL_OPTIONS} or predictor not in {"NO", "YES", "STANDARD"}:
        return None
    chosen = {"compress": compress, "blockxsize": side, "blockysize": side, "interleave": "pixel"}
    chosen |= {"num_threads": options["NUM_THREADS"]}
    if predictor != "NO" and compress != "NONE":
        chosen["predictor"] = "2"
    if "LEVEL" in options and compress in LEVEL_OPTIONS:
        chosen[LEVEL_OPTIONS[compress]] = options["LEVEL"]
    return chosen


class _Array(NamedTuple):
    """An array of numbers in a TIFF: where it begins, and what it holds."""

    start: int
    values: NDArray[Any]


class _Directory(NamedTuple):
    offsets: _Array
    sizes: _Array


def fill(path: Path, levels: Sequence[Path], progress: Callable[[float], None] = lambda share: None) -> None:
    """Append the blocks of GeoTIFFs, the largest first, to a COG without pixels of the same levels.

    `progress` is called with the share that is done, 0 to 1.

    Raises:
        OutputError: a level lacks blocks, or the file becomes larger than its format allows.
    """
    with path.open("r+b") as target:
        directories = _directories(target)
        if len(directories) != len(levels):
            raise ValueError(f"{path}: {len(directories)} levels, needs {len(levels)}")
        target.seek(0, os.SEEK_END)
        total, done = sum(len(directory.sizes.values) for directory in directories), 0
        for directory, level in reversed(list(zip(directories, levels, strict=True))):
            with level.open("rb") as source:
                for _ in _append(target, directory, source, level):
                    done += 1
                    progress(done / total)


def _append(target: BinaryIO, directory: _Directory, source: BinaryIO, level: Path) -> Iterator[None]:
    """Append blocks, one at each step."""
    offsets, sizes = (part.values for part in directory)
    given = _directories(source)[0]
    for index, (start, size) in enumerate(
        zip(given.offsets.values.tolist(), given.sizes.values.tolist(), strict=True)
    ):
        source.seek(start)
        block = source.read(size)
        if not size or len(block) != size:
            raise OutputError(f"{level}: cannot be written whole. Is the disk full?")
        position = target.tell() + 4
        if position > np.iinfo(offsets.dtype).max:
            raise OutputError(f"{target.name}: larger than 4 GiB. Pass --co BIGTIFF=YES")
        target.write(struct.pack("<I", size) + block + block[-4:])
        offsets[index], sizes[index] = position, size
        yield
    for part in directory:
        target.seek(part.start)
        target.write(part.values.tobytes())
    target.seek(0, os.SEEK_END)


def _directories(file: BinaryIO) -> list[_Directory]:
    """Return the tiles of each directory of a TIFF that GDAL has just written on this machine."""
    file.seek(0)
    header = file.read(16)
    order = {b"II": "<", b"MM": ">"}[header[:2]]
    big = struct.unpack(f"{order}H", header[2:4])[0] == 43
    position = (
        struct.unpack(f"{order}Q", header[8:])[0] if big else struct.unpack(f"{order}I", header[4:8])[0]
    )
    count, entry, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    directories = []
    while position:
        file.seek(position)
        (entries,) = struct.unpack(f"{order}{count}", file.read(struct.calcsize(f"{order}{count}")))
        start = file.tell()
        size = struct.calcsize(f"{order}{entry}")
        content = file.read(entries * size)
        (position,) = struct.unpack(f"{order}{pointer}", file.read(struct.calcsize(f"{order}{pointer}")))
        found = {}
        for index, (tag, kind, number, value) in enumerate(struct.iter_unpack(f"{order}{entry}", content)):
            if tag in (OFFSETS, SIZES):
                dtype = np.dtype(order + TYPES[kind])
                inside = dtype.itemsize * number <= len(value)
                at = start + index * size + size - len(value)
                at = at if inside else struct.unpack(f"{order}{pointer}", value)[0]
                file.seek(at)
                found[tag] = _Array(at, np.frombuffer(bytearray(file.read(dtype.itemsize * number)), dtype))
        directories.append(_Directory(found[OFFSETS], found[SIZES]))
    return directories
