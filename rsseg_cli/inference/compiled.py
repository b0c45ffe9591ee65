"""Networks compiled for the CPU by OpenVINO or ONNX Runtime.

A network is traced once and compiled for each shape of tile on first use; both are kept on disk, by
`compiled_cache`. Each tile of a batch is computed alone, so that its result does not depend on the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rsseg_cli._version import __version__
from rsseg_cli.errors import ModelError
from rsseg_cli.inference import compiled_cache
from rsseg_cli.inference.runtime import COMPILED, Arithmetic, architecture_of
from rsseg_cli.weights import TrainedModel, registry

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_LOADED = 4  # compiled networks that stay in memory for the next scene
TRACED_PX = 128
MIN_PROBABILITY = 1e-7  # whose logarithm is taken
PRECISIONS = {"bfloat16": "bf16", "float32": "f32"}
Arrays = Sequence[NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[Any]]]
_loaded: dict[str, Any] = {}


@dataclass(frozen=True)
class Source:
    """A network that is loaded only where it must be.

    Attributes:
        architecture: see `runtime.architecture_of`.
        sha256: returns that of its weights.
        traced_px: side of the tile with which it is traced; 0 where a trace holds for tiles of one shape.
        onnx: of a network that is an ONNX file already.
    """

    architecture: str
    sha256: Callable[[], str]
    load: Callable[[], nn.Module]
    traced_px: int = 0
    onnx: OnnxFile | None = None

    @classmethod
    def of(cls, model: nn.Module | TrainedModel) -> Source:
        """Return the source of a network in memory, or of a model in a file, which is not loaded for it."""
        if isinstance(model, registry.StoredModel):
            spec = model.spec
            architecture = spec.architecture if spec.architecture in COMPILED.values() else ""
            if architecture == "onnx":
                return cls(architecture, model.sha256, lambda: model.network, onnx=OnnxFile.of(model.network))
            return cls(architecture, model.sha256, lambda: model.network, traced_px(spec.network))
        network = model.network if isinstance(model, TrainedModel) else model
        architecture = architecture_of(network)
        if architecture == "onnx":
            onnx = OnnxFile.of(network)
            return cls(architecture, onnx.sha256, lambda: network, onnx=onnx)
        settings = vars(network.config) if architecture else {}
        return cls(architecture, lambda: weights_sha256(network), lambda: network, traced_px(settings))


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file; `gives` and `side` as in `weights.onnx_file.OnnxNetwork`."""

    content: bytes
    gives: str
    side: tuple[int, int]

    @classmethod
    def of(cls, network: Any) -> OnnxFile:
        return cls(network.content.numpy().tobytes(), network.gives, network.side)

    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def fitted(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return images (B, bands, h, w), repeated at their edges where the network takes one size alone."""
        grow = [(wanted or own) - own for wanted, own in zip(self.side, image.shape[2:], strict=True)]
        if min(grow) < 0:
            size = " x ".join(str(length or "any") for length in self.side)
            raise ModelError(f"the network takes tiles of {size} px alone; pass --tile-size {max(self.side)}")
        return (
            np.pad(image, ((0, 0), (0, 0), (0, grow[0]), (0, grow[1])), mode="edge") if any(grow) else image
        )

    def logits(self, scores: NDArray[Any], gives: str) -> NDArray[Any]:
        """Return logits (B, classes, h, w) of what it gives; of one score for a class and another."""
        if gives == "probabilities":
            scores = scores if scores.shape[1] > 1 else np.concatenate([1 - scores, scores], 1)
            return np.log(scores.clip(MIN_PROBABILITY, None))
        return scores if scores.shape[1] > 1 else np.concatenate([np.zeros_like(scores), scores], 1)


def given_by(run: Run, shape: Sequence[int]) -> str:
    """Find out what a network gives: values from 0 to 1 for noise are probabilities, others logits."""
    (scores, *_) = run([np.random.default_rng(0).random(shape, np.float32)])
    return "probabilities" if scores.min() >= 0 and scores.max() <= 1 else "logits"


def traced_px(settings: Mapping[str, Any]) -> int:
    """Return the side of a tile whose trace holds for tiles of any shape, by the settings of a network; 0
    where there is none: a share of the pixels, or a smaller image, has a fixed size in a trace."""
    networks = settings, settings.get("closer") or {}, settings.get("partner") or {}
    shares = [network.get("topk_ratio", 1) for network in networks]
    is_fixed = any(part != 1 for part in (*shares, *settings.get("closer_scales", ())))
    return 0 if is_fixed else math.lcm(TRACED_PX, settings.get("window_px", 1))


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 over the settings and the weights of a network, by name."""
    import torch

    digest = hashlib.sha256(repr(network.config).encode())
    for name, values in sorted(network.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class CompiledNetwork:
    """BiCoR-Seg or IDGBR lite as a function of tensors, see `tracing.Segmenting` and `tracing.Refining`.

    Args:
        threads: that compute a tile.
        steps: of the refiner's sampler.
    """

    def __init__(
        self, source: Source, arithmetic: Arithmetic, *, threads: int, steps: int | None = None
    ) -> None:
        self._source, self._arithmetic, self._threads, self._steps = source, arithmetic, threads, steps
        self._sha256 = source.sha256()
        self._gives = ""  # of an ONNX file
        self._runs: dict[tuple[tuple[int, ...], ...], Run] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Compute each item of tensors (B, ...), which are on the CPU."""
        import torch

        arrays = [values.contiguous().numpy() for values in inputs]
        onnx = self._source.onnx
        if onnx is not None:
            arrays = [onnx.fitted(arrays[0])]
        run = self._run_of([values[:1] for values in arrays])
        results = [run([values[index : index + 1] for values in arrays]) for index in range(len(arrays[0]))]
        joined = [
            parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*results, strict=True)
        ]
        if onnx is not None:
            self._gives = self._gives or onnx.gives or given_by(run, arrays[0][:1].shape)
            joined = [onnx.logits(joined[0], self._gives)[..., : inputs[0].shape[2], : inputs[0].shape[3]]]
        return [torch.from_numpy(values) for values in joined]

    def _run_of(self, arrays: Arrays) -> Run:
        shapes = tuple(values.shape for values in arrays)
        if shapes not in self._runs:
            make = {"openvino": self._openvino, "onnxruntime": self._onnxruntime}[self._arithmetic.runtime]
            try:
                self._runs[shapes] = make(arrays)
            except RuntimeError as err:
                raise ModelError(
                    f"{self._arithmetic.runtime} cannot compile the network ({err!s:.300}); "
                    "pass --runtime torch"
                ) from err
        return self._runs[shapes]

    def _openvino(self, arrays: Arrays) -> Run:
        core, shapes = _core(), [list(values.shape) for values in arrays]
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self._arithmetic.dtype],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # other processes may share the cores
        }
        processor = [
            str(core.get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
        ]
        key = self._key("compiled", shapes, self._arithmetic.dtype, processor)

        def compile_graph() -> bytes:
            graph = self._graph(arrays)
            graph.reshape(dict(zip(graph.inputs, shapes, strict=True)))
            return core.compile_model(graph, "CPU", options).export_model().getvalue()

        def make() -> Any:
            # from bytes also where they are new: a graph that was never stored rounds otherwise
            return core.import_model(_stored(key, compile_graph), "CPU", options)

        request = _kept(f"{key} {self._threads}", make).create_infer_request()

        def run(values: Arrays) -> list[NDArray[Any]]:
            request.infer(list(values), share_inputs=True)
            return [tensor.data.copy() for tensor in request.output_tensors]

        return run

    def _graph(self, arrays: Arrays) -> Any:
        """Return the `openvino.Model`."""
        import openvino

        if self._source.onnx is not None:
            return _core().read_model(self._source.onnx.content)
        examples = self._examples(arrays, self._source.traced_px)

        def trace() -> bytes:
            from rsseg_cli.inference.tracing import openvino_graph

            return msgspec.msgpack.encode(openvino_graph(self._source.load(), self._steps, examples))

        content = _stored(self._key("graph", [list(values.shape) for values in examples]), trace)
        structure, weights = msgspec.msgpack.decode(content, type=tuple[bytes, bytes])
        return _core().read_model(structure, openvino.Tensor(np.frombuffer(weights, np.uint8).copy()))

    def _onnxruntime(self, arrays: Arrays) -> Run:
        import onnxruntime

        key = self._key("onnx", [list(values.shape) for values in arrays])

        def trace() -> bytes:
            from rsseg_cli.inference.tracing import onnx_file

            if self._source.onnx is not None:
                return self._source.onnx.content
            return onnx_file(self._source.load(), self._steps, self._examples(arrays))

        def make() -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
            file = _stored(key, trace)
            return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        session = _kept(f"{key} {self._threads}", make)
        names = [item.name for item in session.get_inputs()]
        return lambda values: session.run(None, dict(zip(names, values, strict=True)))

    def _examples(self, arrays: Arrays, side: int = 0) -> list[Tensor]:
        """Return inputs to trace with, of the shapes of these or, with a side in px, of square tiles."""
        import torch

        width = arrays[0].shape[-1]
        shapes = [
            [*values.shape[:-2], *([side * values.shape[-1] // width] * 2)] if side else values.shape
            for values in arrays
        ]
        dtypes = [torch.from_numpy(values).dtype for values in arrays]
        return [torch.zeros(*shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    def _key(self, *parts: Any) -> str:
        return json.dumps([self._source.architecture, self._sha256, self._steps, *_versions(), *parts])


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


@cache
def _versions() -> tuple[str, ...]:
    """Return the versions that a compiled network depends on, and the SHA-256 of the networks' source."""
    from rsseg_cli import models

    digest = hashlib.sha256()
    for path in sorted(Path(models.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    names = ("torch", "timm", "openvino", "onnxruntime")
    return (__version__, *map(_version_of, names), digest.hexdigest())


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _stored(key: str, make: Callable[[], bytes]) -> bytes:
    """Return what is on disk, or make it and keep it there."""
    content = compiled_cache.read(key)
    if content is None:
        content = make()
        compiled_cache.write(key, content)
    return content


def _kept(key: str, make: Callable[[], Any]) -> Any:
    """Return a compiled network that is in memory, or make it; the last ones stay."""
    _loaded[key] = _loaded.pop(key) if key in _loaded else make()
    for old in list(_loaded)[:-MAX_LOADED]:
        del _loaded[old]
    return _loaded[key]
