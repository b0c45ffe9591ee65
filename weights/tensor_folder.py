"""A folder in diffusers' layout: config.json beside safetensors files, or beside a pickle of tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rsseg_cli.errors import ModelError
from rsseg_cli.files import read_limited
from rsseg_cli.weights.header import read_header, to_float32

if TYPE_CHECKING:
    from torch import Tensor

MAX_CONFIG_BYTES = 1_000_000
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
OLD_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # of attention in codecs


class TensorFolder:
    """Names and shapes of the tensors in a folder; a tensor is read on demand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise ModelError(
                f"{path}: no such folder; needs config.json and safetensors as diffusers saves them"
            )
        self.shapes: dict[str, list[int]] = {}
        self._stored: dict[str, tuple[Path, str, Callable[[str], Any]]] = {}  # file, name there, reader
        read: Callable[[str], Any]
        for file in _weight_files(path):
            if file.suffix == ".safetensors":
                shapes, read = read_header(file).shapes, partial(_read_tensor, file)
            else:
                pickled = read_pickle(file)
                shapes = {name: list(getattr(value, "shape", [])) for name, value in pickled.items()}
                read = pickled.__getitem__
            for name, shape in shapes.items():
                self._add(name, shape, (file, name, read))

    def _add(self, name: str, shape: list[int], stored: tuple[Path, str, Callable[[str], Any]]) -> None:
        *parts, last, kind = ("", *name.split(".")) if "." in name else ("", "", name)
        old = OLD_NAMES.get(last) if "attentions" in parts else None
        current = ".".join([*parts[1:], old, kind]) if old else name
        if current in self.shapes:
            raise ModelError(f"{stored[0]}: tensor {name} is there twice")
        self.shapes[current], self._stored[current] = shape, stored

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    def check(self, name: str, shape: list[int]) -> None:
        """Refuse a tensor that is missing or has another shape; axes of length 1 may differ."""
        file, stored, _ = self._find(name)
        stored_shape = self.shapes[name]
        if [side for side in stored_shape if side != 1] != [side for side in shape if side != 1]:
            raise ModelError(f"{file}: tensor {stored} is {stored_shape}, the network needs {shape}")

    def _find(self, name: str) -> tuple[Path, str, Callable[[str], Any]]:
        if name not in self._stored:
            raise ModelError(f"{self.path}: 1 tensors missing: {name}")
        return self._stored[name]

    def read(self, name: str) -> Tensor:
        """Read a tensor as float32; refuse values that are not finite."""
        file, stored, read = self._find(name)
        tensor = read(stored)
        check_plain(file, stored, tensor)
        return to_float32(tensor, stored, file)


def _read_tensor(file: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as err:
        raise ModelError(f"{file}: tensor {name} cannot be read ({err})") from err


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file of torch, name -> value, without running code; tensors are memory-mapped."""
    import torch

    try:
        # mapped, so that the optimizer's state beside the weights takes no memory
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as err:
        raise ModelError(f"{path}: no such file") from err
    except pickle.UnpicklingError as err:
        raise ModelError(
            f"{path}: {_needs(str(err))}, which can run any code; not loaded. Ask whoever made it to save "
            "its tensors alone: torch.save(network.state_dict(), 'plain.ckpt')"
        ) from err
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as err:
        raise ModelError(f"{path}: no PyTorch checkpoint, or a damaged one ({err})") from err
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, Mapping):
        raise ModelError(f"{path}: no state_dict in it but a {type(content).__name__}")
    return {str(name): value for name, value in tensors.items()}


def check_plain(path: Path, name: str, value: Any) -> None:
    """Refuse anything but a dense tensor of floating point numbers."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise ModelError(f"{path}: {name} is no plain tensor of floating point numbers")


def _needs(message: str) -> str:
    """Say what a checkpoint needs beyond tensors, from torch's long message."""
    match = re.search(r"GLOBAL ([\w.]+)", message)
    return f"its pickle needs {match[1]}" if match else "its pickle holds more than tensors and plain values"


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object from a file that is not trusted."""
    try:
        return msgspec.json.decode(read_limited(path, MAX_CONFIG_BYTES), type=dict[str, Any])
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise ModelError(f"{path}: no JSON object ({err})") from err


def _weight_files(path: Path) -> list[Path]:
    """One file, or the parts of one; safetensors before pickles."""
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            whole = path / f"{stem}{suffix}"
            if whole.is_file():
                return [whole]
            parts = sorted(path.glob(f"{stem}-*-of-*{suffix}"))
            if parts and suffix == ".safetensors":
                return parts
        half = path / f"{STEMS[0]}.fp16{suffix}"
        if half.is_file():
            return [half]
    raise ModelError(f"{path}: no file of tensors; needs {STEMS[0]}.safetensors")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the network's tensors of a checkpoint of `rsseg train`."""
    prefix = "network."
    state = {
        name.removeprefix(prefix): value
        for name, value in read_pickle(path).items()
        if name.startswith(prefix) and hasattr(value, "shape")
    }
    if not state:
        raise ModelError(f"{path}: holds no weights; needs a checkpoint of rsseg train")
    return state
