"""ONNX files of segmentation networks: checked before they are opened, described by what they say.

A file comes from strangers: files beside it, operators of others and loops are refused. Metadata becomes a
`ModelSpec`: rsseg's own, that of `model.json` beside `model.onnx`, or the keys of Deepness, a plug-in of QGIS
(https://qgis-plugin-deepness.readthedocs.io, "Adding metadata to ONNX model").
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from rsseg_cli.errors import ModelError
from rsseg_cli.files import read_limited
from rsseg_cli.weights.spec import MAX_SPEC_BYTES, ClassSpec, ModelSpec

SPEC_KEY = "rsseg_model"  # in the metadata
MAX_FILE_BYTES = (1 << 31) - 1  # of a message in Protocol Buffers
MAX_DEPTH = 12  # of graphs within graphs
MAX_METADATA = 200
MAX_METADATA_BYTES = 4 * MAX_SPEC_BYTES
STANDARD = ("", "ai.onnx")  # domains of operators
LOOPS = ("Loop", "Scan")
Shape = tuple[int, ...]  # 0 where a length may be any


@dataclass(frozen=True, kw_only=True)
class OnnxInfo:
    """What a file says of itself: sizes of its only input and output, and metadata."""

    input: Shape
    output: Shape
    metadata: dict[str, str] = field(default_factory=dict)


class OnnxNetwork(nn.Module):
    """The bytes of a checked file, which OpenVINO or ONNX Runtime compute; torch does not.

    Attributes:
        gives: "logits", "probabilities" or, to be found out from what it gives, "".
        side: (height, width) of tiles that it takes, 0 for any.
    """

    content: Tensor

    def __init__(self, content: bytes, info: OnnxInfo, gives: str) -> None:
        super().__init__()
        self.register_buffer("content", torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.gives = gives
        self.side = info.input[2:]

    def forward(self, image: Tensor) -> NoReturn:
        raise ModelError("an ONNX file is computed by OpenVINO or ONNX Runtime; leave out --runtime torch")


def read_onnx(path: Path) -> tuple[OnnxNetwork, ModelSpec]:
    """Read a file that is not trusted; ModelError where it is not to be run."""
    try:
        content = read_limited(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as err:
        raise ModelError(f"{path}: cannot be read ({err})") from err
    info = inspect(content, str(path))
    spec = _spec_of(info, path)
    gives = spec.network.get("gives", "")
    return OnnxNetwork(content, info, gives if gives in ("logits", "probabilities") else ""), spec


def inspect(content: bytes, where: str) -> OnnxInfo:
    """Check what a file holds; a ModelError says what it has that is not run."""
    try:
        model = onnx.load_model_from_string(content)
        if not model.HasField("graph"):
            raise ValueError("0 graphs")
        own = {function.domain for function in model.functions}
        for function in model.functions:
            for node in function.node:
                _check_node(node, own, where, 0)
        _check_graph(model.graph, own, where, 0)
        pairs = model.metadata_props[:MAX_METADATA]
        return OnnxInfo(
            input=_input(model.graph, where),
            output=_output(model.graph, where),
            metadata={_text(pair.key): _text(pair.value) for pair in pairs},
        )
    except (DecodeError, ValueError) as err:
        raise ModelError(f"{where}: no ONNX file, or a damaged one ({err})") from err


def _check_graph(graph: onnx.GraphProto, own: set[str], where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"{where}: graphs within graphs, more than {MAX_DEPTH} deep")
    for node in graph.node:
        _check_node(node, own, where, depth)
    _check_tensors(graph.initializer, graph.sparse_initializer, where)


def _check_node(node: onnx.NodeProto, own: set[str], where: str, depth: int) -> None:
    for attribute in node.attribute:
        sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
        _check_tensors([attribute.t, *attribute.tensors], sparse, where)
        for graph in ([attribute.g] if attribute.HasField("g") else []) + [*attribute.graphs]:
            _check_graph(graph, own, where, depth + 1)
    if node.domain not in STANDARD and node.domain not in own:
        raise ModelError(
            f"{where}: operator {node.op_type!r:.60} of {node.domain!r:.60} is no standard one of ONNX; "
            "export the network with standard operators"
        )
    if node.op_type in LOOPS:
        raise ModelError(f"{where}: operator {node.op_type} repeats what it holds, without a bound; not run")


def _check_tensors(
    tensors: Iterable[onnx.TensorProto], sparse: Iterable[onnx.SparseTensorProto], where: str
) -> None:
    for tensor in (*tensors, *(part for pair in sparse for part in (pair.values, pair.indices))):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{where}: tensor {tensor.name!r:.80} lies in another file, which is not read; save the "
                "network in one file (onnx.save with save_as_external_data=False)"
            )


def _input(graph: onnx.GraphProto, where: str) -> Shape:
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in stored]
    if len(inputs) != 1:
        raise ModelError(f"{where}: {len(inputs)} inputs; needs one, the image")
    shape = _shape(inputs[0], where)
    if len(shape) != 4 or shape[0] > 1:
        listed = " x ".join(str(length or "any") for length in shape)
        raise ModelError(f"{where}: its input is {listed}; needs batch (any, or 1) x bands x height x width")
    return shape


def _output(graph: onnx.GraphProto, where: str) -> Shape:
    if len(graph.output) != 1:
        raise ModelError(f"{where}: {len(graph.output)} outputs; needs one, the scores of the classes")
    return _shape(graph.output[0], where)


def _shape(info: onnx.ValueInfoProto, where: str) -> Shape:
    """Return the lengths of a tensor, which must be float32."""
    kind = info.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise ModelError(f"{where}: {info.name!r:.60} is no tensor of float32")
    return tuple(dim.dim_value if 0 < dim.dim_value < 1 << 31 else 0 for dim in kind.shape.dim)


def _text(text: str) -> str:
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"a text of {len(text)} characters")
    return text


def _spec_of(info: OnnxInfo, path: Path) -> ModelSpec:
    """Describe a file: by rsseg's own words in it, by a file beside it, or by those of Deepness."""
    beside = path.with_suffix(".json")
    if SPEC_KEY in info.metadata:
        spec = ModelSpec.from_json(info.metadata[SPEC_KEY], where=str(path))
    elif beside.is_file():
        with beside.open("rb") as file:
            text = file.read(MAX_SPEC_BYTES + 1)
        spec = ModelSpec.from_json(text.decode("utf-8", "replace"), where=str(beside))
    elif info.metadata.keys() & {"class_names", "names"}:
        spec = _deepness(info, path)
    else:
        raise ModelError(
            f"{path}: says nothing of its classes; needs metadata, class_names at least, or a description "
            f"beside it in {beside.name}"
        )
    spec = replace(spec, architecture="onnx")
    channels = 2 if info.output[1:2] == (1,) else (info.output[1:2] or (0,))[0]
    problem = _problem(spec, info, channels)
    if problem:
        raise ModelError(f"{path}: {problem}")
    return spec


def _problem(spec: ModelSpec, info: OnnxInfo, channels: int) -> str:
    if info.input[1] not in (0, len(spec.bands)):
        return f"network of {info.input[1]} bands, its description names {len(spec.bands)}"
    if len(info.output) != 4 or channels not in (0, len(spec.classes)):
        listed = " x ".join(str(length or "any") for length in info.output)
        return f"its output is {listed}; needs batch x {len(spec.classes)} classes x height x width"
    return ""


def _deepness(info: OnnxInfo, path: Path) -> ModelSpec:
    values = {key: _value(text) for key, text in info.metadata.items()}
    kind = str(values.get("model_type", "Segmentor")).capitalize()
    if kind != "Segmentor":
        raise ModelError(f"{path}: a {kind:.40}; needs a network that segments (model_type Segmentor)")
    try:
        names = _class_names(values.get("class_names", values.get("names")))
        if info.output[1:2] == (1,) and len(names) == 1:  # one score: of that class, or of none
            names = ["background", *names]
        bands = _bands(info.input[1] or len(values.get("standardization_mean") or (0, 0, 0)))
        resolution = float(values["resolution"]) / 100 if "resolution" in values else None
        return ModelSpec(
            name=path.stem[:100],
            architecture="onnx",
            classes=ClassSpec.from_names(names),
            bands=bands,
            scaling="unit",
            mean=tuple(map(float, values.get("standardization_mean") or [0.0] * len(bands))),
            std=tuple(map(float, values.get("standardization_std") or [1.0] * len(bands))),
            gsd_m=resolution if resolution and math.isfinite(resolution) else None,
            description="Described by the metadata of its ONNX file.",
        )
    except (TypeError, ValueError, AttributeError, KeyError) as err:
        raise ModelError(f"{path}: its metadata cannot be understood ({err})") from err


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) < 10_000 else text  # {0: 'field'}, as some exporters write
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _class_names(given: Any) -> list[str]:
    """Return names in the order of their numbers, from {"0": "field"}, a list of one such, or of names."""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
        given = given[0]
    if isinstance(given, dict):
        numbered = {int(number): str(name) for number, name in given.items()}
        if sorted(numbered) != list(range(len(numbered))):
            raise ValueError("class_names must be numbered from 0")
        return [numbered[number] for number in range(len(numbered))]
    if isinstance(given, list):
        return list(map(str, given))
    raise ValueError("class_names is no list of names")


def _bands(count: int) -> tuple[str, ...]:
    rgb = ("red", "green", "blue")
    return rgb if count == len(rgb) else tuple(f"band {number}" for number in range(1, count + 1))
