"""ONNX files of segmentation networks: checked before they are opened, described by what they say.

A file comes from strangers. Its messages are walked through here, without a library and without reading
tensors: files beside it, operators of others and loops are refused, and metadata becomes a `ModelSpec`:
rsseg's own, that of `model.json` beside `model.onnx`, or the keys of Deepness, a plug-in of QGIS
(https://qgis-plugin-deepness.readthedocs.io, "Adding metadata to ONNX model").
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch
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
EXTERNAL = 1  # a tensor's data lie in another file
FLOAT = 1  # element type
# Numbers of fields, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
MODEL_GRAPH, MODEL_METADATA, MODEL_FUNCTIONS = 7, 14, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 11, 12, 15
NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 22, 23
TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 8, 13, 14
FUNCTION_NODE, FUNCTION_DOMAIN = 7, 10
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
    """Check the messages of a file; a ModelError says what it has that is not run."""
    try:
        return _inspect(memoryview(content), where)
    except (ValueError, IndexError) as err:
        raise ModelError(f"{where}: no ONNX file, or a damaged one ({err})") from err


def _inspect(content: memoryview, where: str) -> OnnxInfo:
    graphs: list[memoryview] = []
    functions: list[memoryview] = []
    metadata: dict[str, str] = {}
    for number, value in _fields(content):
        if number == MODEL_GRAPH:
            graphs.append(_bytes(value))
        elif number == MODEL_FUNCTIONS:
            functions.append(_bytes(value))
        elif number == MODEL_METADATA and len(metadata) < MAX_METADATA:
            pair = dict(_fields(_bytes(value)))
            metadata[_text(pair.get(1, b""))] = _text(pair.get(2, b""))
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs")
    own = {_text(value) for part in functions for number, value in _fields(part) if number == FUNCTION_DOMAIN}
    for part in functions:
        for number, value in _fields(part):
            if number == FUNCTION_NODE:
                _check_node(_bytes(value), own, where, 0)
    _check_graph(graphs[0], own, where, 0)
    return OnnxInfo(input=_input(graphs[0], where), output=_output(graphs[0], where), metadata=metadata)


def _check_graph(graph: memoryview, own: set[str], where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"{where}: graphs within graphs, more than {MAX_DEPTH} deep")
    for number, value in _fields(graph):
        if number == GRAPH_NODE:
            _check_node(_bytes(value), own, where, depth)
        elif number == GRAPH_INITIALIZER:
            _check_tensor(_bytes(value), where)
        elif number == GRAPH_SPARSE:
            _check_sparse(_bytes(value), where)


def _check_node(node: memoryview, own: set[str], where: str, depth: int) -> None:
    domain = operator = ""
    for number, value in _fields(node):
        if number == NODE_OP:
            operator = _text(value)
        elif number == NODE_DOMAIN:
            domain = _text(value)
        elif number == NODE_ATTRIBUTE:
            _check_attribute(_bytes(value), own, where, depth)
    if domain not in STANDARD and domain not in own:
        raise ModelError(
            f"{where}: operator {operator!r:.60} of {domain!r:.60} is no standard one of ONNX; export the "
            "network with standard operators"
        )
    if operator in LOOPS:
        raise ModelError(f"{where}: operator {operator} repeats what it holds, without a bound; not run")


def _check_attribute(attribute: memoryview, own: set[str], where: str, depth: int) -> None:
    for number, value in _fields(attribute):
        if number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            _check_tensor(_bytes(value), where)
        elif number in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
            _check_sparse(_bytes(value), where)
        elif number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            _check_graph(_bytes(value), own, where, depth + 1)


def _check_sparse(tensor: memoryview, where: str) -> None:
    for number, value in _fields(tensor):
        if number in (1, 2):  # values, indices
            _check_tensor(_bytes(value), where)


def _check_tensor(tensor: memoryview, where: str) -> None:
    name, elsewhere = "", False
    for number, value in _fields(tensor):
        if number == TENSOR_NAME:
            name = _text(value)
        elsewhere |= number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value == EXTERNAL)
    if elsewhere:
        raise ModelError(
            f"{where}: tensor {name!r:.80} lies in another file, which is not read; save the network in one "
            "file (onnx.save with save_as_external_data=False)"
        )


def _input(graph: memoryview, where: str) -> Shape:
    stored = {_name(value, TENSOR_NAME) for number, value in _fields(graph) if number == GRAPH_INITIALIZER}
    infos = [_bytes(value) for number, value in _fields(graph) if number == GRAPH_INPUT]
    inputs = [info for info in infos if _name(info, 1) not in stored]
    if len(inputs) != 1:
        raise ModelError(f"{where}: {len(inputs)} inputs; needs one, the image")
    shape = _shape(inputs[0], where)
    if len(shape) != 4 or shape[0] > 1:
        listed = " x ".join(str(length or "any") for length in shape)
        raise ModelError(f"{where}: its input is {listed}; needs batch (any, or 1) x bands x height x width")
    return shape


def _output(graph: memoryview, where: str) -> Shape:
    outputs = [_bytes(value) for number, value in _fields(graph) if number == GRAPH_OUTPUT]
    if len(outputs) != 1:
        raise ModelError(f"{where}: {len(outputs)} outputs; needs one, the scores of the classes")
    return _shape(outputs[0], where)


def _shape(info: memoryview, where: str) -> Shape:
    """Return the lengths of a tensor that a ValueInfo describes; it must be float32."""
    kind = _inside(_inside(info, 2), 1)  # TypeProto.Tensor
    if dict(_fields(kind)).get(1) != FLOAT:
        raise ModelError(f"{where}: {_name(info, 1)!r:.60} is no tensor of float32")
    shape = _inside(kind, 2)
    lengths = [dict(_fields(_bytes(value))).get(1, 0) for number, value in _fields(shape) if number == 1]
    return tuple(length if isinstance(length, int) and 0 < length < 1 << 31 else 0 for length in lengths)


def _inside(message: memoryview, wanted: int) -> memoryview:
    return next((_bytes(value) for number, value in _fields(message) if number == wanted), memoryview(b""))


def _name(message: Any, number: int) -> str:
    return _text(_inside(_bytes(message), number))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a message: a number, or bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of kind {kind}")
        if at + size > end:
            raise ValueError("cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _bytes(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number in place of a message")
    return value


def _text(value: Any) -> str:
    if len(value) > MAX_METADATA_BYTES:
        raise ValueError(f"a text of {len(value)} bytes")
    return bytes(value).decode("utf-8", "replace")


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
