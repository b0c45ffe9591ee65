"""Networks as files that other programs run: ONNX, OpenVINO, PyTorch's exported programs.

The file holds the network with what it needs: an image from 0 to 1 goes in, (batch, bands, height, width),
probabilities come out, (batch, classes, height, width). Batch and size may be any; height and width are
multiples of 32 px. PyTorch's programs take tiles of TILE_PX alone: with sizes left open, it takes minutes
to export networks that pad by size. A file is run beside the network before it gets its name.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsseg_cli import files
from rsseg_cli._version import __version__
from rsseg_cli.errors import ModelError, OutputError, UsageError
from rsseg_cli.inference.compiled import traced_px
from rsseg_cli.inference.tracing import ONNX_OPSET, converted
from rsseg_cli.weights import ModelSpec, TrainedModel

FORMATS = (".onnx", ".xml", ".pt2")
SPEC_KEY = "rsseg_model"
TOLERANCE = 1e-3  # of probabilities
CHECKED = ((1, 128, 128), (2, 96, 160))  # batch, height, width
TILE_PX, OVERLAP_PERCENT = 512, 25  # for programs that ask the file
Run = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file; `difference` is the largest one of a probability from the network's own."""

    path: Path
    bytes: int
    difference: float
    pixels: int

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB; probabilities differ from the network's by "
            f"{self.difference:.1g} at most, on {self.pixels} pixels"
        )


class Probabilities(nn.Module):
    """A network with the normalisation before it and softmax behind it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.network = model.network
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.spec, name), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, values)
        self.temperature = model.spec.temperature

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network((image - self.mean) / self.std)
        return (logits / self.temperature).softmax(1)


def check_export(path: Path, spec: ModelSpec, *, overwrite: bool = False) -> None:
    """Refuse what cannot be exported, before a network is loaded."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: needs a name that ends in {', '.join(FORMATS)}")
    if spec.architecture != "bicor-seg":
        raise ModelError(
            f"model {spec.name!r}: {spec.architecture} is not exported; needs a network that makes maps"
        )
    if not traced_px(spec.network):
        raise ModelError(
            f"model {spec.name!r}: a share of the pixels updates its classes (topk_ratio "
            f"{spec.network.get('topk_ratio')}), a number that an exported network cannot take from its tile"
        )
    for file in _files(path):
        files.check_target(file, overwrite=overwrite)


def export_model(model: TrainedModel, path: Path, *, overwrite: bool = False) -> Exported:
    """Write a network to a file and run it; a ModelError if it gives other probabilities than the network."""
    check_export(path, model.spec, overwrite=overwrite)
    function = Probabilities(model).eval()
    spec = replace(
        model.spec,
        architecture="onnx",
        mean=(0.0,) * len(model.spec.bands),
        std=(1.0,) * len(model.spec.bands),
        network={"gives": "probabilities", "exported_from": model.spec.architecture, "rsseg": __version__},
        temperature=1.0,
        training_tiles={},
    )
    write = {".onnx": _onnx, ".xml": _openvino, ".pt2": _program}[path.suffix.lower()]
    temporary = [file.with_name(f".{file.stem}.export{file.suffix}") for file in _files(path)]
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: its deprecation, shapes that it takes as constants
            run = write(function, spec, temporary[0])
            sizes = [(2, TILE_PX, TILE_PX)] if path.suffix.lower() == ".pt2" else CHECKED
            difference, pixels = _compare(function, run, sizes)
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{path}: its probabilities differ from the network's by up to {difference:.2g}, more than "
                f"{TOLERANCE:g}; not written"
            )
        files.replace_all(dict(zip(temporary[::-1], _files(path)[::-1], strict=True)))
    except OSError as err:
        raise OutputError(f"{path}: cannot be written ({err})") from err
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in _files(path))
    return Exported(path=path, bytes=size, difference=difference, pixels=pixels)


def _files(path: Path) -> list[Path]:
    """The file, and for OpenVINO the one of its weights."""
    return [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]


def _example(spec: ModelSpec, batch: int, height: int, width: int) -> Tensor:
    values = np.random.default_rng(height).random((batch, len(spec.bands), height, width), np.float32)
    return torch.from_numpy(values)


def _compare(function: Probabilities, run: Run, sizes: Sequence[tuple[int, int, int]]) -> tuple[float, int]:
    """Return the largest difference over images (batch, height, width), and the pixels compared."""
    differences, pixels = [], 0
    bands = function.mean.shape[1]
    for batch, height, width in sizes:
        values = np.random.default_rng(height).random((batch, bands, height, width), np.float32)
        differences.append(np.abs(run(values) - function(torch.from_numpy(values)).numpy()).max())
        pixels += batch * height * width
    return float(np.max(differences)), pixels  # NaN stays


def _traced_bytes(function: Probabilities, spec: ModelSpec) -> bytes:
    axes = {0: "batch", 2: "side", 3: "side"}  # Deepness takes outputs alone whose sides have one name
    side = traced_px({})
    written: Any = io.BytesIO()
    torch.onnx.export(
        function, (_example(spec, 1, side, side),), written, dynamo=False, opset_version=ONNX_OPSET,
        input_names=["image"], output_names=["probabilities"],
        dynamic_axes={"image": axes, "probabilities": axes},
    )  # fmt: skip
    return written.getvalue()


def metadata_of(spec: ModelSpec) -> dict[str, str]:
    """Return what the file says of itself: to rsseg, and by the keys of Deepness, each value as JSON."""
    words: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(number): name for number, name in enumerate(spec.class_names)},
        "tile_size": TILE_PX,
        "tiles_overlap": OVERLAP_PERCENT,
        "standardization_mean": [0.0] * len(spec.bands),
        "standardization_std": [1.0] * len(spec.bands),
        "seg_thresh": 0.0,  # the class is the likeliest, however unsure
        "seg_small_segment": 0,
    }
    if spec.gsd_m is not None:
        words["resolution"] = round(spec.gsd_m * 100, 6)
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in words.items()}
    return {SPEC_KEY: spec.to_json(), **texts}


def _onnx(function: Probabilities, spec: ModelSpec, path: Path) -> Run:
    import onnx

    graph = onnx.load_from_string(_traced_bytes(function, spec))
    graph.producer_name, graph.producer_version = "rsseg", __version__
    onnx.helper.set_model_props(graph, metadata_of(spec))
    onnx.checker.check_model(graph)
    content = graph.SerializeToString()
    path.write_bytes(content)
    return _by_openvino(_core().read_model(content))


def _openvino(function: Probabilities, spec: ModelSpec, path: Path) -> Run:
    from openvino import serialize

    side = traced_px({})
    graph = converted(function, (_example(spec, 1, side, side),))
    graph.inputs[0].get_tensor().set_names({"image"})
    graph.outputs[0].get_tensor().set_names({"probabilities"})
    for key, text in metadata_of(spec).items():
        graph.set_rt_info(text, ["rsseg", key])
    serialize(graph, path, path.with_suffix(".bin"))
    return _by_openvino(_core().read_model(path))


def _program(function: Probabilities, spec: ModelSpec, path: Path) -> Run:
    example = _example(spec, 2, TILE_PX, TILE_PX)
    shape = {0: torch.export.Dim("batch", min=1)}
    try:
        program = torch.export.export(function, (example,), dynamic_shapes=(shape,))
    except (RuntimeError, ValueError) as err:
        raise ModelError(f"the network cannot be exported by torch ({err!s:.300})") from err
    torch.export.save(program, path, extra_files=metadata_of(spec))
    loaded = torch.export.load(path).module()
    return lambda values: loaded(torch.from_numpy(values)).detach().numpy()


def _by_openvino(graph: Any) -> Run:
    compiled = _core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda values: compiled([values])[0]


def _core() -> Any:
    import openvino

    return openvino.Core()
