"""BiCoR-Seg and IDGBR lite as graphs that other libraries read."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ONNX_OPSET = 17


class Segmenting(nn.Module):
    """BiCoR-Seg: image (1, bands, H, W) -> logits (1, N, H, W), last heatmap logits (1, N, h, w), means of
    the deepest features (1, D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        explanation = self.network.explain(image)  # type: ignore[operator]
        return explanation.logits, explanation.heatmaps[-1], explanation.pooled


class Refining(nn.Module):
    """A refiner with a fixed number of steps: image, coarse map, noise -> logits (1, N, H, W)."""

    def __init__(self, network: nn.Module, steps: int | None) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, image: Tensor, coarse: Tensor, noise: Tensor) -> Tensor:
        return self.network(image, coarse, noise, steps=self.steps)


@contextmanager
def traceable(
    network: nn.Module, steps: int | None, examples: Sequence[Tensor]
) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Yield a copy of a network that can be traced, as a function of tensors like the examples."""
    apart = copy.deepcopy(network).cpu().eval()
    function = Segmenting(apart) if len(examples) == 1 else Refining(apart, steps)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes that become constants, its deprecation
        yield function.eval(), tuple(examples)


def openvino_graph(network: nn.Module, steps: int | None, examples: Sequence[Tensor]) -> tuple[bytes, bytes]:
    """Return the network in OpenVINO's format: its structure (XML) and its weights."""
    from openvino import serialize

    with traceable(network, steps, examples) as (function, given):
        graph = converted(function, given)
    with tempfile.TemporaryDirectory(prefix="rsseg-graph-") as folder:
        structure, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        serialize(graph, structure, weights)
        return structure.read_bytes(), weights.read_bytes()


def converted(function: nn.Module, given: tuple[Tensor, ...]) -> Any:
    """Trace a function of tensors like those given into an `openvino.Model`."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    traced = torch.jit.trace(function, given, check_trace=False)
    decoder = TorchScriptPythonDecoder(traced, example_input=given)
    manager = FrontEndManager()  # `openvino.convert_model` would report its use over the network
    frontend = manager.load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def onnx_file(network: nn.Module, steps: int | None, examples: Sequence[Tensor]) -> bytes:
    """Return the network as an ONNX file for inputs of the examples' shapes."""
    with tempfile.TemporaryDirectory(prefix="rsseg-graph-") as folder:
        path = Path(folder, "graph.onnx")
        with traceable(network, steps, examples) as (function, given):
            torch.onnx.export(function, given, path, dynamo=False, opset_version=ONNX_OPSET)
        return path.read_bytes()
