"""Tensors of files that are not trusted: sizes are checked before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from rsseg_cli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

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
            start, opening = file.read(8), file.read(1)
            length = int.from_bytes(start, "little")
            # a header's length may begin with the same bytes
            if opening != b"{" and start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise ModelError(
                    f"{path}: a pickle, which can run any code and is not loaded; turn a released checkpoint "
                    "into a model file with `rsseg models import`"
                )
            if len(start) < 8 or not 2 <= length <= size - 8:
                raise ModelError(f"{path}: {size} bytes, no safetensors file or a truncated one")
            if length > MAX_HEADER_BYTES:
                raise ModelError(f"{path}: header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
            entries = msgspec.json.decode(opening + file.read(length - 1), type=dict[str, Any])
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


def check_shapes(network: nn.Module, stored: Mapping[str, list[int]], path: Path) -> None:
    """Names and shapes in the file must be the network's own: nothing missing, nothing more."""
    needed = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    check_names(set(needed), set(stored), path)
    for name, shape in needed.items():
        if stored[name] != shape:
            raise ModelError(f"{path}: tensor {name} is {stored[name]}, the network needs {shape}")


def check_names(needed: Set[str], stored: Set[str], path: Path) -> None:
    """Refuse missing and unexpected tensors, the first five of each by name."""
    parts = []
    for title, names in (("missing", sorted(needed - stored)), ("unexpected", sorted(stored - needed))):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            parts.append(f"{len(names)} tensors {title}: {', '.join(names[:5])}{more}")
    if parts:
        raise ModelError(f"{path}: {'; '.join(parts)}")


def to_float32(tensor: Tensor, name: str, path: Path) -> Tensor:
    """Copy a stored tensor, floating point as float32; refuse values that are not finite."""
    import torch

    tensor = tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    if not torch.isfinite(tensor).all():
        raise ModelError(f"{path}: tensor {name} holds values that are not finite")
    return tensor
