"""Bad and hostile model files: each function turns a good model into one, `bad.safetensors` or as it says."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SPEC_KEY = "rsseg_model"


class Payload:
    """Leaves the file RAN in the current folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('RAN', 'w').close()",))


def parts(model: Path) -> tuple[dict[str, Any], bytes]:
    content = model.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(change: Callable[[dict[str, Any]], Any], data: bytes | None = None):
    """The model with its header changed in place, or replaced by what `change` gives back."""

    def make(folder: Path, model: Path) -> None:
        header, stored = parts(model)
        header = change(header) or header
        (folder / "bad.safetensors").write_bytes(join(header, stored if data is None else data))

    return make


def with_spec(change: Callable[[dict[str, Any]], Any]):
    """The model with its description changed in place, or replaced by the text that `change` gives back."""

    def edit(header: dict[str, Any]) -> None:
        spec = json.loads(header["__metadata__"][SPEC_KEY])
        text = change(spec)
        header["__metadata__"][SPEC_KEY] = text if isinstance(text, str) else json.dumps(spec)

    return changed(edit)


def spec_fields(**fields: Any):
    return with_spec(lambda spec: spec.update(fields))


def network_fields(**fields: Any):
    return with_spec(lambda spec: spec["network"].update(fields))


def cut(share: float):
    def make(folder: Path, model: Path) -> None:
        content = model.read_bytes()
        (folder / "bad.safetensors").write_bytes(content[: int(len(content) * share)])

    return make


def content(data: bytes, name: str = "bad.safetensors"):
    return lambda folder, model: (folder / name).write_bytes(data)


def first_tensor(header: dict[str, Any]) -> str:
    return next(name for name in header if name != "__metadata__")


def missing_tensor(header: dict[str, Any]) -> None:
    """The last one, so that the others' places stay as they are."""
    name = max((key for key in header if key != "__metadata__"),
               key=lambda key: header[key]["data_offsets"][1])  # fmt: skip
    entry = header.pop(name)
    header["renamed"] = entry


def extra_tensor(header: dict[str, Any]) -> None:
    end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def wrong_shape(header: dict[str, Any]) -> None:
    entry = header[first_tensor(header)]
    entry["shape"] = [int(np.prod(entry["shape"])), 1]


def overlapping(header: dict[str, Any]) -> None:
    """Two tensors of one size share their bytes."""
    sizes: dict[int, str] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        if size in sizes:
            entry["data_offsets"] = header[sizes[size]]["data_offsets"]
            return
        sizes[size] = name


def wrong_dtype(header: dict[str, Any]) -> None:
    header[first_tensor(header)]["dtype"] = "Q7"


def complex_dtype(header: dict[str, Any]) -> None:
    """As many bytes an element as float64, where float16 is stored."""
    header[first_tensor(header)]["dtype"] = "BOOL"


def not_finite(folder: Path, model: Path) -> None:
    header, data = parts(model)
    (folder / "bad.safetensors").write_bytes(join(header, b"\xff" * len(data)))


def hostile(name: str, *, legacy: bool = False, wrapped: bool = True):
    """A file of torch whose pickle runs code."""

    def make(folder: Path, model: Path) -> None:
        value = {"state_dict": {"net.x": torch.zeros(1), "net.y": Payload()}} if wrapped else Payload()
        torch.save(value, folder / name, _use_new_zipfile_serialization=not legacy)

    return make


def bare_pickle(name: str):
    return lambda folder, model: (folder / name).write_bytes(pickle.dumps(Payload(), protocol=2))


def zip_bomb(folder: Path, model: Path) -> None:
    """A checkpoint whose pickle asks for a tensor of 2^60 elements that the archive does not hold."""
    torch.save({"state_dict": {"net.x": torch.zeros(4)}}, folder / "bad.ckpt")
    data = (folder / "bad.ckpt").read_bytes()
    (folder / "bad.ckpt").write_bytes(data[: len(data) // 2])
