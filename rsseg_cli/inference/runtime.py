"""Which library computes a network, and in what precision."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rsseg_cli.errors import UsageError

if TYPE_CHECKING:
    from rsseg_cli.config import PredictConfig

COMPILED = {  # networks that are compiled, by module and class; no other class is, not even one derived
    "rsseg_cli.models.bicor_seg.BicorSeg": "bicor-seg",
    "rsseg_cli.models.idgbr_lite.LiteRefiner": "idgbr-lite",
    "rsseg_cli.weights.onnx_file.OnnxNetwork": "onnx",
}
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
_log = logging.getLogger(__name__)


class Arithmetic(NamedTuple):
    """How a network is computed: kind of device, library, data type."""

    device: str
    runtime: str
    dtype: str


class Choice(NamedTuple):
    """What settings mean on a machine: for networks that are compiled, and for all others."""

    compiled: Arithmetic
    other: Arithmetic

    def of(self, architecture: str) -> Arithmetic:
        """Return how networks of an architecture are computed."""
        if architecture == "onnx" and self.compiled.runtime == "torch":
            raise UsageError(
                "an ONNX file is computed on a CPU, by OpenVINO or ONNX Runtime: pass --device cpu, --dtype "
                "float32, and --runtime openvino or onnxruntime"
            )
        return self.compiled if architecture in COMPILED.values() else self.other


def choose(config: PredictConfig) -> Choice:
    """Settle device, library and precision; UsageError where they do not go together."""
    device = choose_device(config.device)
    by_torch = str(choose_dtype(config.dtype, device)).removeprefix("torch.")
    other = Arithmetic(device.type, "torch", by_torch)
    runtime = config.runtime
    if runtime == "auto":
        fits = config.dtype in ("auto", "float32") or (config.dtype == "bfloat16" and has_bfloat16())
        runtime = "openvino" if device.type == "cpu" and fits and _is_installed("openvino") else "torch"
    if runtime == "torch":
        return Choice(other, other)
    if device.type != "cpu":
        raise UsageError(f"--runtime {runtime}: computes on the CPU; pass --device cpu or --runtime torch")
    if not _is_installed(runtime):
        extra = " Install rsseg[onnxruntime]." if runtime == "onnxruntime" else ""
        raise UsageError(f"--runtime {runtime}: not installed.{extra}")
    return Choice(Arithmetic("cpu", runtime, _dtype_of(runtime, config.dtype)), other)


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the first CUDA device or else the CPU, never MPS."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise UsageError(f"--device {name}: needs auto, cpu, cuda, cuda:N or mps") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; pass cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: this machine has no MPS device; pass cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: needs auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of that name; "auto" is bfloat16 on CUDA devices that compute in it, else float32."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def architecture_of(network: Any) -> str:
    """Return the architecture of a network that is compiled; "" of any other, or with other weights than
    float32."""
    kind = type(network)
    architecture = COMPILED.get(f"{kind.__module__}.{kind.__qualname__}", "")
    if architecture and {str(weight.dtype) for weight in network.parameters()} - {"torch.float32"}:
        return ""
    return architecture


def note_fallback(config: PredictConfig, name: str) -> None:
    """Say that a network is computed by torch though another library was asked for."""
    if config.runtime not in ("auto", "torch"):
        _log.warning(
            "%s is computed by torch: --runtime %s takes BiCoR-Seg and IDGBR lite", name, config.runtime
        )


@cache
def has_bfloat16(description: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU that Linux describes in a file multiplies in bfloat16; on other systems False."""
    try:
        with open(description, encoding="utf-8", errors="replace") as file:
            return any(line.startswith("flags") and BFLOAT16_FLAGS & set(line.split()) for line in file)
    except OSError:
        return False


def _dtype_of(runtime: str, asked: str) -> str:
    fast = runtime == "openvino" and has_bfloat16()
    if asked == "auto":
        return "bfloat16" if fast else "float32"
    if asked != "float32" and not (asked == "bfloat16" and fast):
        known = "float32 or bfloat16" if fast else "float32 on this CPU"
        raise UsageError(f"--dtype {asked}: --runtime {runtime} computes in {known}")
    return asked


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None
