"""Model files: looked up by name or path, checked, loaded, saved.

A model file is safetensors: tensors without code, and a header whose metadata carries the ModelSpec as JSON.
Files come from strangers: sizes are checked before anything is allocated, and a pickle is never opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rsseg_cli import files
from rsseg_cli.errors import ModelError, OutputError, UsageError
from rsseg_cli.weights.bundled import MODELS, SAME
from rsseg_cli.weights.bundled import earlier_versions as earlier_versions
from rsseg_cli.weights.bundled import list_models as list_models
from rsseg_cli.weights.header import Header, check_shapes, read_header, to_float32
from rsseg_cli.weights.spec import MAX_SPEC_BYTES, ModelSpec
from rsseg_cli.weights.tensor_folder import read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

SPEC_KEY = "rsseg_model"  # in the safetensors metadata
FOLDER = Path(__file__).resolve().parent
LOOKS = ("zoom", "partner", "partner_classes")  # settings of the looks after the first


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode, and what it expects and gives."""

    network: nn.Module
    spec: ModelSpec
    _sha256: dict[Any, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sha256(self) -> str:
        """Return the SHA-256 over spec and weights, by name; kept until a weight changes."""
        import torch

        weights, buffers = self.network.named_parameters(), self.network.named_buffers()
        # PyTorch counts the changes of a tensor; moving a network between devices replaces its buffers.
        changes = (
            *((name, id(weight), weight._version) for name, weight in weights),
            *((name, buffer._version) for name, buffer in buffers),
        )
        if changes not in self._sha256:
            digest = hashlib.sha256(repr(self.spec).encode())
            kind = type(self.network).__name__
            for name, values in sorted(self.network.state_dict().items()):
                digest.update(f"{kind} {name} {values.dtype} {tuple(values.shape)}".encode())
                digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._sha256.clear()
            self._sha256[changes] = digest.hexdigest()
        return self._sha256[changes]


class StoredModel(TrainedModel):
    """A model file whose network is loaded on first use, as by `load_model`; `sha256` is the file's.

    A ModelError where the file changes before.
    """

    def __init__(self, name_or_path: str | os.PathLike[str]) -> None:
        path, spec = model_file(name_or_path), read_spec(name_or_path)
        bundled = MODELS.get(os.fspath(name_or_path))
        if bundled is not None:
            check_sha256(path, bundled)
        vars(self).update(path=path, spec=spec, file_sha256=file_sha256(path))

    path: Path
    file_sha256: str

    @cached_property
    def network(self) -> nn.Module:
        model = load_model(self.path)
        if file_sha256(self.path) != self.file_sha256:
            raise ModelError(f"{self.path}: changed while it was read; run again")
        return model.network

    @property
    def settings(self) -> Any:
        """The settings of the network, which is not loaded for them."""
        return _network_config(self.spec, self.path)

    def sha256(self) -> str:
        return self.file_sha256


def model_file(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a model; the name of a bundled model takes precedence over a file of that name."""
    name = os.fspath(name_or_path)
    if name in MODELS:
        return FOLDER / f"{SAME.get(name, name)}.safetensors"
    path = Path(name)
    if os.path.isfile(path):  # of a name that is too long Path.is_file raises an error
        return path
    known = ", ".join(list_models()) or "none"
    raise ModelError(f"model {name!r:.200}: neither a file nor a bundled model ({known})")


def read_spec(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """Read a model's description from the file's header; no weights are read."""
    path = model_file(name_or_path)
    if path.suffix.lower() == ".onnx":
        return load_model(path).spec
    return _named(name_or_path, _spec_of(read_header(path), path))


def _named(name_or_path: str | os.PathLike[str], spec: ModelSpec) -> ModelSpec:
    name = os.fspath(name_or_path)
    return dataclasses.replace(spec, name=name) if name in SAME else spec


def load_model(name_or_path: str | os.PathLike[str]) -> TrainedModel:
    """Load a model, float32 on the CPU in evaluation mode; ModelError where the file is not to be trusted."""
    path = model_file(name_or_path)
    if path.suffix.lower() == ".onnx":
        from rsseg_cli.weights.onnx_file import read_onnx

        return TrainedModel(*read_onnx(path))
    bundled = MODELS.get(os.fspath(name_or_path))
    if bundled is not None:
        check_sha256(path, bundled)
    header = read_header(path)
    spec = _spec_of(header, path)
    network = _build_network(spec, path)
    check_shapes(network, header.shapes, path)
    # copies, also where float32 is stored: the file may be replaced while the model runs
    tensors = {name: to_float32(tensor, name, path) for name, tensor in _read_tensors(path)}
    network.load_state_dict(tensors, strict=True, assign=True)
    return TrainedModel(network.eval(), _named(name_or_path, spec))


def save_model(
    path: str | os.PathLike[str],
    network: nn.Module,
    spec: ModelSpec,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    overwrite: bool = False,
) -> Path:
    """Write a model file, whole or not at all. Vectors (biases, norms, statistics) stay float32."""
    import torch

    path = Path(path)
    check_target(path, overwrite)
    tensors = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.detach().cpu().contiguous().clone()
        if stored.is_floating_point():
            stored = stored.to(getattr(torch, dtype) if stored.ndim > 1 else torch.float32)
            if not torch.isfinite(stored).all():
                raise ModelError(f"{path}: tensor {name} is not finite as {stored.dtype}")
        tensors[name] = stored
    _write(path, tensors, spec)
    return path


def rewrite_spec(
    name_or_path: str | os.PathLike[str], output: Path, spec: ModelSpec, *, overwrite: bool = False
) -> None:
    """Write a copy of a model file with another description, its tensors byte by byte as they are."""
    check_target(output, overwrite)
    path = model_file(name_or_path)
    read_header(path)
    _write(output, dict(_read_tensors(path)), spec)


def _write(path: Path, tensors: dict[str, Tensor], spec: ModelSpec) -> None:
    from safetensors.torch import save_file

    text = spec.to_json()
    if len(text) > MAX_SPEC_BYTES:
        raise ModelError(
            f"{path}: model description of {len(text)} characters; needs {MAX_SPEC_BYTES} or less"
        )
    try:
        with files.write_atomic(path) as temporary:
            save_file(tensors, temporary, metadata={SPEC_KEY: text})
    except OSError as err:
        raise OutputError(f"{path}: cannot be written ({err})") from err


def average_models(first: str | Path, others: Sequence[str | Path]) -> TrainedModel:
    """Average the weights of models; the result is described as the first, without its scores.

    Source: model soups, arXiv 2203.05482. Runs that start from the same weights and seed often end in one
    valley, where the mean of their weights scores better than each. `others` are models or checkpoints.
    """
    if not others:
        raise UsageError("only one model: needs two or more to average")
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
    training = {**model.spec.training, "averaged": [str(first), *map(str, others)]}
    return TrainedModel(model.network, dataclasses.replace(model.spec, training=training, scores={}))


def combine_models(first: str | Path, partner: str | Path | None, zoom: float = 1.0) -> TrainedModel:
    """Join models whose probabilities are averaged: one network, described as the first, without its scores.

    Args:
        partner: its classes with names of the first's are the same; what it gives to others, the classes
            that it does not know share. It sees the first's resolution. Combined models look once.
        zoom: times the size at which the first looks a second time, and the partner once.
    """
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    models = [first_look(load_model(name)) for name in (first, partner) if name is not None]
    for name, model in zip((first, partner), models, strict=False):
        if not isinstance(model.network, BicorSeg):
            raise ModelError(f"{name}: needs a BiCoR-Seg model")
    if partner is None and zoom == 1:
        raise UsageError("nothing to combine: needs a partner, or a zoom other than 1")
    spec, own = models[0].spec, models[0].spec.class_names
    sizes: dict[str, Any] = {**spec.network, "zoom": zoom}
    state = models[0].network.state_dict()
    if partner is not None:
        other = models[1].spec
        for what in ("bands", "mean", "std"):
            ours, theirs = getattr(spec, what), getattr(other, what)
            if ours != theirs:
                raise ModelError(f"{partner}: {what} {theirs}; {first} has {ours}")
        if not set(own) & set(other.class_names):
            raise ModelError(f"{partner}: knows no class of {first}")
        sizes["partner"] = other.network
        sizes["partner_classes"] = [own.index(name) if name in own else -1 for name in other.class_names]
        state |= {f"partner.{name}": value for name, value in models[1].network.state_dict().items()}
    try:
        network = BicorSeg(BicorSegConfig(**sizes))
    except ValueError as err:
        raise UsageError(f"cannot be combined: {err}") from err
    network.load_state_dict(state)
    training = {**spec.training, "combined": [str(first), *([] if partner is None else [str(partner)])]}
    spec = dataclasses.replace(spec, network=sizes, training=training, scores={})
    return TrainedModel(network.eval(), spec)


def first_look(model: TrainedModel) -> TrainedModel:
    """Return a model that looks once and has no partner."""
    from rsseg_cli.models import BicorSeg, BicorSegConfig

    if not isinstance(model.network, BicorSeg) or not model.network.config.looks_again:
        return model
    sizes = {key: value for key, value in model.spec.network.items() if key not in LOOKS}
    network = BicorSeg(BicorSegConfig(**sizes)).eval()
    given = model.network.state_dict()
    network.load_state_dict({key: given[key] for key in network.state_dict()})
    return dataclasses.replace(model, network=network, spec=dataclasses.replace(model.spec, network=sizes))


def _weights(path: str | Path, model: TrainedModel) -> dict[str, Tensor]:
    """Read the weights of another run of the same network."""
    own = model.network.state_dict()
    if str(path).endswith(".ckpt"):
        state = read_checkpoint(Path(path))
    else:
        other = load_model(path)
        if (other.spec.bands, other.spec.class_names) != (model.spec.bands, model.spec.class_names):
            raise ModelError(f"{path}: {_interface(other)}; the first has {_interface(model)}")
        state = other.network.state_dict()
    wrong = own.keys() ^ state.keys() or {n for n, tensor in own.items() if tensor.shape != state[n].shape}
    if wrong:
        raise ModelError(f"{path}: of another network than the first, see {min(wrong)}")
    return state


def _interface(model: TrainedModel) -> str:
    return f"bands {', '.join(model.spec.bands)} and classes {', '.join(model.spec.class_names)}"


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target that exists or could not hold a model, before work starts."""
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: a model file's name ends in .safetensors")
    files.check_regular(path.with_suffix(".md"))  # its card
    files.check_target(path, overwrite=overwrite)


def check_sha256(path: Path, registered: str) -> None:
    if file_sha256(path) != registered:
        raise ModelError(
            f"{path}: its SHA-256 is not the registered one; the file is damaged, reinstall rsseg"
        )


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err


def _spec_of(header: Header, path: Path) -> ModelSpec:
    text = header.metadata.get(SPEC_KEY) if isinstance(header.metadata, dict) else None
    if not isinstance(text, str):
        raise ModelError(
            f"{path}: safetensors without a model description; rsseg writes one with `rsseg train` and "
            "`rsseg models import`"
        )
    return ModelSpec.from_json(text, where=str(path))


def _build_network(spec: ModelSpec, path: Path) -> nn.Module:
    """The network of a description, without memory for its weights: sizes in the file are not trusted yet."""
    import timm
    import torch

    config = _network_config(spec, path)
    for sizes in (vars(config), getattr(config, "partner", None)):  # IDGBR has no encoder of timm
        encoder = sizes and sizes.get("encoder")
        # other names than timm's own ("hf-hub:...", "local-dir:...") would open files or the network
        if (
            sizes
            and spec.architecture != "idgbr"
            and not (isinstance(encoder, str) and timm.is_model(encoder))
        ):
            raise ModelError(f"{path}: encoder {encoder!r:.80} is not one of timm {timm.__version__}")
    try:
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
    from rsseg_cli import models

    known = {"bicor-seg": "BicorSegConfig", "idgbr-lite": "LiteRefinerConfig", "idgbr": "IdgbrConfig"}
    if spec.architecture not in known:
        raise ModelError(f"{path}: architecture {spec.architecture!r} is not one that is loaded from files")
    try:
        return getattr(models, known[spec.architecture])(**spec.network)  # IDGBR's loads diffusers
    except (TypeError, ValueError) as err:
        raise ModelError(f"{path}: its network cannot be built ({err})") from err


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as err:
        raise ModelError(f"{path}: its tensors cannot be read ({err})") from err
