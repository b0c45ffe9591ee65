"""A folder in diffusers' layout: config.json beside safetensors files, or beside a pickle of tensors."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsseg_cli.errors import ModelError
from rsseg_cli.weights.registry import differences, read_header

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
    """Names and shapes of the tensors in a folder; one is read when it is asked for.

    Raises:
        ModelError: no such folder, no file of tensors in it, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise ModelError(
                f"{path}: no such folder; needs config.json and safetensors as diffusers saves them"
            )
        self.shapes: dict[str, list[int]] = {}
        self._files: dict[str, tuple[Path, str]] = {}  # name -> file, name there
        self._pickled: dict[str, Any] = {}
        self._opened: dict[Path, Any] = {}
        for file in _weight_files(path):
            if file.suffix == ".safetensors":
                header = read_header(file)
                found = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
            else:
                self._pickled = read_pickle(file)
                found = {name: list(getattr(value, "shape", [])) for name, value in self._pickled.items()}
            for name, shape in found.items():
                self._add(name, shape, file)

    def _add(self, name: str, shape: list[int], file: Path) -> None:
        *parts, last, kind = ("", *name.split(".")) if "." in name else ("", "", name)
        old = OLD_NAMES.get(last) if "attentions" in parts else None
        current = ".".join([*parts[1:], old, kind]) if old else name
        if current in self.shapes:
            raise ModelError(f"{file}: tensor {name} is there twice")
        self.shapes[current], self._files[current] = shape, (file, name)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The folder's config.json."""
        return read_json(self.path / "config.json")

    def check(self, name: str, shape: list[int]) -> None:
        """Refuse a tensor that lacks or has another shape; axes of length 1 may differ."""
        if name not in self.shapes:
            raise ModelError(f"{self.path}: {differences([name], [])}")
        found, (file, stored) = self.shapes[name], self._files[name]
        if [side for side in found if side != 1] != [side for side in shape if side != 1]:
            raise ModelError(f"{file}: tensor {stored} is {found}, the network needs {shape}")

    def read(self, name: str) -> Tensor:
        """A tensor, float32.

        Raises:
            ModelError: none of that name, or values that are not finite numbers.
        """
        import torch

        if name not in self.shapes:
            raise ModelError(f"{self.path}: {differences([name], [])}")
        file, stored = self._files[name]
        tensor = self._stored(file, stored)
        check_plain(file, stored, tensor)
        tensor = tensor.to(torch.float32, copy=True)
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{file}: tensor {stored} holds values that are not finite")
        return tensor

    def _stored(self, file: Path, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file.suffix != ".safetensors":
            return self._pickled[name]
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(file, framework="pt", device="cpu")
            return self._opened[file].get_tensor(name)
        except (SafetensorError, OSError, ValueError) as err:
            raise ModelError(f"{file}: tensor {name} cannot be read ({err})") from err


def read_pickle(path: Path) -> dict[str, Any]:
    """What a file of torch holds under its names, by a reader that runs no code; tensors are mapped.

    Raises:
        ModelError: no such file, one that needs code to be run, or no dictionary of names.
    """
    import torch

    try:
        # mapped, so that the optimizer's state beside the weights takes no memory
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as err:
        raise ModelError(f"{path}: no such file") from err
    except pickle.UnpicklingError as err:
        raise ModelError(
            f"{path}: {_needs(str(err))}, which can run any code; not loaded. Where you trust the file, save "
            "its tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'plain.ckpt')"
        ) from err
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as err:
        raise ModelError(f"{path}: no PyTorch checkpoint, or a damaged one ({err})") from err
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, Mapping):
        raise ModelError(f"{path}: no state_dict in it, a {type(content).__name__} was found")
    return {str(name): value for name, value in tensors.items()}


def check_plain(path: Path, name: str, value: Any) -> None:
    """Refuse what is no dense tensor of floating point numbers."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise ModelError(f"{path}: {name} is no plain tensor of floating point numbers")


def _needs(message: str) -> str:
    """What a checkpoint asks for beyond tensors, from torch's long message."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    return f"its pickle needs {found[1]}" if found else "its pickle holds more than tensors and plain values"


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a file that is not trusted.

    Raises:
        ModelError: no such file, too long, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: longer than {MAX_CONFIG_BYTES} bytes; not read")
        values = json.loads(text)
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err
    except (ValueError, RecursionError) as err:
        raise ModelError(f"{path}: no JSON ({err})") from err
    if not isinstance(values, Mapping):
        raise ModelError(f"{path}: no JSON object")
    return dict(values)


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
