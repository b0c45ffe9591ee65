"""Model files: found by name or path, checked, loaded, saved.

A model file is safetensors: tensors without code, and a header whose metadata carries the ModelSpec as JSON.
Files are taken as coming from strangers: sizes are checked before anything is allocated, and a pickle is
never opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rsseg_cli import files
from rsseg_cli.errors import ModelError, OutputError, UsageError
from rsseg_cli.weights.spec import MAX_SPEC_BYTES, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SPEC_KEY = "rsseg_model"  # in the safetensors metadata
MAX_HEADER_BYTES = 16 * 2**20
CHECKPOINT_PREFIX = "network."  # of the network's tensors in a run's checkpoints
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode, and what it expects and gives."""

    network: nn.Module
    spec: ModelSpec


@dataclass(frozen=True)
class BundledModel:
    """A model that comes with the program: its file in this folder and the file's SHA-256."""

    file: str
    sha256: str


MODELS = {
    "buildings": BundledModel(
        "buildings.safetensors", "7dfc15b6f837f00ce6109dde2c911e7fd956b26cc42b23303cf03c7aada6f9d9"
    ),
    "buildings-refiner": BundledModel(
        "buildings-refiner.safetensors", "2bbc58b3b07fa3d1fa7031883c46d7bd6e19a2db1740c973b7d024ae7f2fe4ac"
    ),
    "landcover": BundledModel(
        "landcover.safetensors", "d3d8d31e472822c5a338806d6f766278113e20765ba80c2f6b7f0bc1b70cad50"
    ),
    "landcover-refiner": BundledModel(
        "landcover-refiner.safetensors", "2dccd797f924f494e7c4a8bbbb895ac857c2664d5e9f7cad542c138f3cd6ac45"
    ),
}


def list_models() -> tuple[str, ...]:
    """Names of the models that come with the program."""
    return tuple(sorted(MODELS))


def model_file(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a model; a bundled model's name goes before a file of that name.

    Raises:
        ModelError: neither a bundled model nor a file.
    """
    name = os.fspath(name_or_path)
    if name in MODELS:
        return FOLDER / MODELS[name].file
    path = Path(name)
    if os.path.isfile(path):  # of a name that is too long Path.is_file raises an error
        return path
    known = ", ".join(list_models()) or "none"
    raise ModelError(f"model {name!r:.200}: neither a file nor a bundled model ({known})")


def read_spec(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """Read a model's description from the file's header; no weights are read.

    Raises:
        ModelError: no such model, no safetensors file, no valid description.
    """
    path = model_file(name_or_path)
    return _spec_of(read_header(path), path)


def load_model(name_or_path: str | os.PathLike[str]) -> TrainedModel:
    """Load a model: float32 in memory on the CPU, evaluation mode.

    Raises:
        ModelError: no such model, a damaged or changed file, tensors that do not fit the description.
    """
    path = model_file(name_or_path)
    bundled = MODELS.get(os.fspath(name_or_path))
    if bundled is not None and file_sha256(path) != bundled.sha256:
        raise ModelError(
            f"{path}: its SHA-256 is not the registered one; the file is damaged, reinstall rsseg"
        )
    header = read_header(path)
    spec = _spec_of(header, path)
    network = _build_network(spec, path)
    _check_shapes(network, header, path)
    network.load_state_dict(_read_tensors(path), strict=True, assign=True)
    return TrainedModel(network.eval(), spec)


def save_model(
    path: str | os.PathLike[str],
    network: nn.Module,
    spec: ModelSpec,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    overwrite: bool = False,
) -> Path:
    """Write a model file, whole or not at all. Vectors (biases, norms, statistics) stay float32.

    Raises:
        OutputError: the file exists, its name does not end in .safetensors, or it cannot be written.
        ModelError: a weight is not finite in `dtype`, or the description is too long.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(path)
    check_target(path, overwrite)
    text = spec.to_json()
    if len(text) > MAX_SPEC_BYTES:
        raise ModelError(
            f"{path}: model description of {len(text)} characters; needs {MAX_SPEC_BYTES} or less"
        )
    tensors = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.detach().cpu().contiguous().clone()
        if stored.is_floating_point():
            stored = stored.to(getattr(torch, dtype) if stored.ndim > 1 else torch.float32)
            if not torch.isfinite(stored).all():
                raise ModelError(f"{path}: tensor {name} is not finite as {stored.dtype}")
        tensors[name] = stored
    try:
        with files.write_atomic(path) as temporary:
            save_file(tensors, temporary, metadata={SPEC_KEY: text})
    except OSError as err:
        raise OutputError(f"{path}: cannot be written ({err})") from err
    return path


def average_models(first: str | Path, others: Sequence[str | Path]) -> TrainedModel:
    """A model whose weights are the mean of all, described as the first, without its scores.

    Source: model soups, arXiv 2203.05482. Runs that start from the same weights and seed often end in one
    valley, where the mean of their weights scores better than each of them and costs no more to run.

    Args:
        first: name or path of a model.
        others: names or paths of models, or checkpoints of runs (best.ckpt, last.ckpt), of the same network.

    Raises:
        UsageError: there is nothing to average.
        ModelError: a file cannot be read, or is of another network, bands or classes.
    """
    if not others:
        raise UsageError("one model alone: needs two or more to average")
    model = load_model(first)
    own = model.network.state_dict()
    states = [own, *(_weights(other, model) for other in others)]
    mean = {
        name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in own.items()
    }
    model.network.load_state_dict(mean)
    averaged = [str(first), *map(str, others)]
    training = {**model.spec.training, "averaged": averaged}
    return TrainedModel(model.network, dataclasses.replace(model.spec, training=training, scores={}))


def _weights(path: str | Path, model: TrainedModel) -> dict[str, Tensor]:
    """Weights of another run of the same network."""
    own = model.network.state_dict()
    if str(path).endswith(".ckpt"):
        state = _checkpoint(Path(path))
    else:
        other = load_model(path)
        if (other.spec.bands, other.spec.class_names) != (model.spec.bands, model.spec.class_names):
            raise ModelError(f"{path}: {_told(other)}; the first has {_told(model)}")
        state = other.network.state_dict()
    wrong = own.keys() ^ state.keys() or {n for n, tensor in own.items() if tensor.shape != state[n].shape}
    if wrong:
        raise ModelError(f"{path}: of another network than the first, see {min(wrong)}")
    return state


def _told(model: TrainedModel) -> str:
    return f"bands {', '.join(model.spec.bands)} and classes {', '.join(model.spec.class_names)}"


def _checkpoint(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ModelError(f"{path}: cannot be read as a checkpoint of rsseg train ({err})") from err
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ModelError(f"{path}: holds no weights; needs a checkpoint of rsseg train")
    return {
        name.removeprefix(CHECKPOINT_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(CHECKPOINT_PREFIX) and isinstance(tensor, torch.Tensor)
    }


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target that exists or could not hold a model, before work starts."""
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: a model file's name ends in .safetensors")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; pass --overwrite to replace it")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err


def read_header(path: Path) -> dict[str, Any]:
    """The safetensors header: tensor name -> {"dtype", "shape", "data_offsets"}, and "__metadata__"."""
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
            header = json.loads(file.read(length))
        data_bytes = max((_end_of(name, entry) for name, entry in header.items()), default=0)
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError) as err:
        raise ModelError(f"{path}: its header is not that of a safetensors file ({err})") from err
    if size != 8 + length + data_bytes:
        needed = 8 + length + data_bytes
        raise ModelError(f"{path}: {size} bytes, its header tells {needed}; the file is truncated or damaged")
    return header


def _end_of(name: str, entry: Any) -> int:
    """Where a tensor's bytes end; TypeError, KeyError or ValueError where the entry is not a tensor's."""
    if name == "__metadata__":
        return 0
    shape = entry["shape"]
    if not isinstance(entry["dtype"], str) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"tensor {name!r:.80} has no valid type or shape")
    start, end = entry["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end:
        raise ValueError(f"tensor {name!r:.80} has no valid place")
    return end


def _spec_of(header: Mapping[str, Any], path: Path) -> ModelSpec:
    metadata = header.get("__metadata__")
    text = metadata.get(SPEC_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ModelError(
            f"{path}: safetensors without a model description; rsseg writes one with `rsseg train` and "
            "`rsseg models import`"
        )
    return ModelSpec.from_json(text, where=str(path))


def _build_network(spec: ModelSpec, path: Path) -> nn.Module:
    """The network of a description, without memory for its weights: sizes in the file are not trusted yet."""
    import torch

    try:
        config = _network_config(spec, path)
        with torch.device("meta"):
            network = config.build()
    except (TypeError, ValueError, RuntimeError, OverflowError) as err:
        raise ModelError(f"{path}: its network cannot be built ({err})") from err
    if config.classes != len(spec.classes) or config.in_channels != len(spec.bands):
        raise ModelError(
            f"{path}: network of {config.classes} classes and {config.in_channels} bands, its description "
            f"names {len(spec.classes)} and {len(spec.bands)}"
        )
    return network


def _network_config(spec: ModelSpec, path: Path) -> Any:
    """Sizes of the description's network, checked."""
    import timm

    from rsseg_cli.models import BicorSegConfig, LiteRefinerConfig

    if spec.architecture == "idgbr":
        from rsseg_cli.models import IdgbrConfig  # here alone: it loads diffusers

        return IdgbrConfig(**spec.network)
    known: dict[str, Any] = {"bicor-seg": BicorSegConfig, "idgbr-lite": LiteRefinerConfig}
    if spec.architecture not in known:
        raise ModelError(f"{path}: architecture {spec.architecture!r} is not one that is loaded from files")
    config = known[spec.architecture](**spec.network)
    # other names than timm's own ("hf-hub:...", "local-dir:...") would open files or the network
    if not isinstance(config.encoder, str) or not timm.is_model(config.encoder):
        raise ModelError(f"{path}: encoder {config.encoder!r:.80} is not one of timm {timm.__version__}")
    return config


def _check_shapes(network: nn.Module, header: Mapping[str, Any], path: Path) -> None:
    """Names and shapes in the file must be the network's own: nothing missing, nothing more."""
    needed = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    missing, unexpected = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    if missing or unexpected:
        raise ModelError(f"{path}: {differences(missing, unexpected)}")
    for name, shape in needed.items():
        if found[name] != shape:
            raise ModelError(f"{path}: tensor {name} is {found[name]}, the network needs {shape}")


def differences(missing: list[str], unexpected: list[str]) -> str:
    """Tensors that lack and tensors too many, the first five of each by name."""
    parts = []
    for title, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            parts.append(f"{len(names)} tensors {title}: {', '.join(names[:5])}{more}")
    return "; ".join(parts)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = file.get_tensor(name)
                # a copy also where float32 is stored: the file may be replaced while the model runs
                tensor = tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
                if not torch.isfinite(tensor).all():
                    raise ModelError(f"{path}: tensor {name} holds values that are not finite")
                tensors[name] = tensor
    except (SafetensorError, OSError, ValueError) as err:
        raise ModelError(f"{path}: its tensors cannot be read ({err})") from err
    return tensors
