"""The header of a safetensors file that is not trusted: sizes are checked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from rsseg_cli.errors import ModelError

MAX_HEADER_BYTES = 16 * 2**20
Length = Annotated[int, msgspec.Meta(ge=0)]


class TensorEntry(msgspec.Struct, frozen=True):
    """A tensor in the header of a safetensors file; offsets of its bytes count from the header's end."""

    dtype: str
    shape: list[Length]
    data_offsets: tuple[Length, Length]


class Header(NamedTuple):
    """Tensors by name, and the metadata, whatever it is."""

    tensors: dict[str, TensorEntry]
    metadata: Any

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file that is not trusted; no tensor is read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise ModelError(
                    f"{path}: a pickle, which can run any code and is not loaded; turn a released checkpoint "
                    "into a model file with `rsseg models import`"
                )
            if len(start) < 8 or not 2 <= length <= size - 8:
                raise ModelError(f"{path}: {size} bytes, no safetensors file or a truncated one")
            if length > MAX_HEADER_BYTES:
                raise ModelError(f"{path}: header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
            entries = msgspec.json.decode(file.read(length), type=dict[str, Any])
        metadata = entries.pop("__metadata__", None)
        tensors = msgspec.convert(entries, dict[str, TensorEntry])
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise ModelError(f"{path}: its header is not that of a safetensors file ({err})") from err
    needed = 8 + length + max((entry.data_offsets[1] for entry in tensors.values()), default=0)
    if size != needed or any(entry.data_offsets[0] > entry.data_offsets[1] for entry in tensors.values()):
        raise ModelError(f"{path}: {size} bytes, its header says {needed}; the file is truncated or damaged")
    return Header(tensors, metadata)
