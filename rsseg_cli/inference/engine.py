"""Batches of pixels in, class scores out: device, precision, batch size, test-time augmentation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import ModelError
from rsseg_cli.inference import runtime
from rsseg_cli.inference.compiled import CompiledNetwork, Source
from rsseg_cli.inference.device import Graphs, Transfers
from rsseg_cli.weights import TrainedModel

STRIDE_PX = 32  # deepest stride of the encoders: heights and widths are multiples of it
MAX_AUTO_BATCH = 32
# Each view is (turn rows and columns round, flip rows, flip columns); flips are their own inverse.
FLIP_VIEWS = tuple((False, rows, cols) for rows in (False, True) for cols in (False, True))
VIEWS = {
    "none": FLIP_VIEWS[:1],
    "scales": FLIP_VIEWS[:1],
    "flip": FLIP_VIEWS,
    "d4": FLIP_VIEWS + tuple((True, rows, cols) for _, rows, cols in FLIP_VIEWS),
}
LARGER = 2  # zoom of the second of two scales
OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on the CPU: Linux, macOS
    "could not create a memory object",  # oneDNN
    "MPS backend out of memory",
    "CUDA error: out of memory",  # CUDA itself, its matrix products, its convolutions
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
Describe = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Pixel value x of band b becomes x * factors[b] + offsets[b], clamped to limits[b] if given."""

    factors: tuple[float, ...]
    offsets: tuple[float, ...]
    limits: tuple[tuple[float, float], ...] | None = None


class Engine(AbstractContextManager["Engine"]):
    """Run a network (B, bands, H, W) -> logits (B, classes, H, W) over tiles.

    The network is compiled, see `runtime.choose`, or in evaluation mode on the device until the engine is
    closed, which restores its modes, device and memory format; lower precision is then by autocast: weights
    keep their type. `heatmaps` also gives the network's last class heatmaps, by its method `explain`;
    `probabilities` replaces logits where one view is run; `steps` are those of a refiner. `describe` gets
    each batch as the network sees it, and the means of its deepest features: see `take_descriptions`.
    """

    def __init__(
        self,
        network: nn.Module | TrainedModel,
        *,
        classes: int,
        scaling: Scaling,
        config: PredictConfig,
        heatmaps: bool = False,
        probabilities: bool = False,
        steps: int | None = None,
        describe: Describe | None = None,
    ) -> None:
        source = Source.of(network)
        arithmetic = runtime.choose(config).of(source.architecture)
        self.device = runtime.choose_device(config.device)
        self.transfers = Transfers(self.device)
        self._graphs = Graphs(is_recorded=bool(source.architecture))  # others may wait for the device
        self.dtype = getattr(torch, arithmetic.dtype)
        self.classes = classes
        self.heatmaps = heatmaps
        self._describe, self._described = describe, list[torch.Tensor]()
        self.gives_logits = not (probabilities or heatmaps) and config.tta == "none"
        self._views = VIEWS[config.tta]
        self._two_scales = config.tta == "scales"
        self._layout = torch.channels_last
        self._input_dtype = torch.float32
        self._network: nn.Module | None = None
        self._compiled: CompiledNetwork | None = None
        if arithmetic.runtime == "torch":
            self._hold(source.load())
            if describe is not None and not hasattr(self._network, "explain"):
                self._describe = None
            if heatmaps and not hasattr(self._network, "explain"):
                raise ModelError(
                    f"{self._name} has no class heatmaps (no method `explain`); "
                    "leave out --heatmaps or use a BiCoR-Seg model"
                )
            runtime.note_fallback(config, self._name)
        else:
            threads = torch.get_num_threads()
            self._compiled = CompiledNetwork(source, arithmetic, threads=threads, steps=steps)
            self._layout = torch.contiguous_format
        self._factors = torch.tensor(scaling.factors, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self._offsets = torch.tensor(scaling.offsets, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self._limits = (
            None
            if scaling.limits is None
            else torch.tensor(scaling.limits, device=self.device).view(-1, 2, 1, 1)
        )
        self._batch_size: int | None = None if config.batch_size == "auto" else config.batch_size

    choose_device = staticmethod(runtime.choose_device)

    @staticmethod
    def arithmetic(config: PredictConfig) -> runtime.Choice:
        """Return how engines of these settings compute."""
        return runtime.choose(config)

    @staticmethod
    def architecture(model: TrainedModel) -> str:
        """Return what `arithmetic` must know of a model."""
        return Source.of(model).architecture

    def _hold(self, network: nn.Module) -> None:
        """Take a network to the device, for as long as the engine is open."""
        self._modes = [(part, part.training) for part in network.modules()]
        tensors = _tensors(network)
        self._devices = {tensor.device for tensor in tensors.values()}
        self._contiguous = {name for name, tensor in tensors.items() if tensor.is_contiguous()}
        self._network = network.eval()
        try:
            self.place(network, self.device)
        except BaseException:
            self.close()
            raise
        self._input_dtype = _input_dtype(network, self.dtype)
        if self._input_dtype != torch.float32:  # computes in its own precision
            self.dtype = torch.float32

    @property
    def _name(self) -> str:
        return type(self._network).__name__

    def __exit__(self, *error: object) -> None:
        self.close()

    @staticmethod
    def place(network: nn.Module, device: torch.device) -> None:
        """Move a network to a device for good, as engines use it there."""
        with memory_errors(f"out of memory on {device} with the network alone"):
            network.to(device).to(memory_format=torch.channels_last)

    def close(self) -> None:
        self._graphs.forget()
        if self._network is None:
            return
        for part, training in self._modes:
            part.training = training
        if len(self._devices) == 1 and self._devices != {self.device}:
            (device,) = self._devices
            self._network.to(device)
        for name, tensor in _tensors(self._network).items():
            if name in self._contiguous:
                tensor.data = tensor.data.contiguous()

    @property
    def channels(self) -> int:
        """Channels of a result: classes, then the classes' heatmaps if enabled."""
        return self.classes * (2 if self.heatmaps else 1)

    def batch_size(self, height: int, width: int, *, beside_bytes: int = 0) -> int:
        """Tiles a batch now; `beside_bytes` of the device's memory are left for other buffers."""
        if self._batch_size is None:
            self._batch_size = self._auto_batch(height, width, beside_bytes)
        return self._batch_size

    @torch.inference_mode()
    def run(self, tiles: Sequence[Any]) -> torch.Tensor:
        """Return float32 (B, channels, h, w) on the device, of tiles (bands, h, w) of one size.

        The next call may overwrite it. Batches that do not fit into memory are halved.
        """
        height, width = tiles[0].shape[1:]
        try:
            scores, described = self._graphs.call(self._compute, *self._inputs(tiles))
            if described is not None:
                self._described.append(described.clone())
            return scores[..., :height, :width]
        except (RuntimeError, MemoryError) as err:
            if (
                self._network is not None
                and self._layout != torch.contiguous_format
                and "view size is not compatible" in str(err)
            ):
                self._layout = torch.contiguous_format  # a network that views its arrays row by row
                self._network.to(memory_format=self._layout)
                return self.run(tiles)
            if not is_out_of_memory(err):
                raise
            problem = str(err)  # not the error: its traceback holds the tensors of the failed attempt
        if len(tiles) == 1:
            smaller = max(height, width) // 2 // STRIDE_PX * STRIDE_PX
            advice = f"--tile-size {smaller} or " if smaller >= STRIDE_PX else ""
            raise ModelError(
                f"out of memory on {self.device} with one tile of {height} x {width} px; "
                f"pass {advice}another --device ({problem:.120})"
            )
        half = self.halve(len(tiles))
        first = self.run(tiles[:half]).clone()
        return torch.cat([first, self.run(tiles[half:])])

    def take_descriptions(self) -> torch.Tensor | None:
        """Return what `describe` gave for the tiles run since the last call, in their order: (tiles, ...)."""
        described, self._described = self._described, []
        return torch.cat(described) if described else None

    def halve(self, tiles: int) -> int:
        """Lower the batch size to half of as many tiles as did not fit, and give back unused memory."""
        half = math.ceil(tiles / 2)
        self._batch_size = half
        self._graphs.forget()
        self._free()
        _log.warning("out of memory on %s: batch size %d lowered to %d", self.device, tiles, half)
        return half

    def _inputs(self, tiles: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Return the inputs of `_compute`, on the device."""
        return (self.transfers.stack([pad_to_stride(tile) for tile in tiles]),)

    def _compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scores (B, channels, H, W) of pixels (B, bands, H, W) as they were read, and the tiles'
        descriptions, if any."""
        pixels = self._scaled(inputs[0])
        total, pooled = self._forward(pixels)  # the first view of every set is the tile as it is
        described = None if self._describe is None or pooled is None else self._describe(pixels, pooled)
        return self._averaged(total, pixels), described

    def _averaged(self, total: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Average the scores of the first view with those of the others."""
        for view in self._views[1:]:
            seen = apply_view(pixels, view).contiguous(memory_format=self._layout)
            total = total + unapply_view(self._forward(seen)[0], view)
        if self._two_scales:
            larger = nn.functional.interpolate(pixels, scale_factor=LARGER, mode="bilinear")
            seen = larger.contiguous(memory_format=self._layout)
            return (total + nn.functional.avg_pool2d(self._forward(seen)[0], LARGER)) / 2
        return total / len(self._views) if len(self._views) > 1 else total

    def _scaled(self, batch: torch.Tensor) -> torch.Tensor:
        # reordered while pixels are bytes, a quarter of the memory
        pixels = batch.contiguous(memory_format=self._layout).float()
        pixels = pixels.mul_(self._factors).add_(self._offsets)
        if self._limits is not None:
            pixels = pixels.clamp_(self._limits[:, 0], self._limits[:, 1])
        return pixels.to(self._input_dtype)

    def _forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scores (B, channels, H, W) and, where they are asked for, the means of features (B, D)."""
        heatmaps = pooled = None
        if self._compiled is not None:
            logits, *more = self._compiled(pixels)
            strongest, pooled = more or (None, None)  # an ONNX file gives neither
            heatmaps = strongest if self.heatmaps else None
        else:
            with self._autocast():
                if self.heatmaps or self._describe is not None:
                    explanation = self._network.explain(pixels)  # type: ignore[operator, union-attr]
                    logits, pooled = explanation.logits, getattr(explanation, "pooled", None)
                    heatmaps = explanation.heatmaps[-1] if self.heatmaps else None
                else:
                    logits = self._network(pixels)  # type: ignore[misc]
        self._check(logits, pixels)
        scores = logits.float()
        if not self.gives_logits:
            scores = scores.softmax(1)
        elif scores is logits and not _is_own(scores):
            scores = scores.clone()
        if heatmaps is not None:
            strength = nn.functional.interpolate(
                heatmaps.float().sigmoid(), pixels.shape[-2:], mode="bilinear", align_corners=False
            )
            scores = torch.cat([scores, strength], 1)
        return scores, pooled

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _check(self, logits: object, pixels: torch.Tensor) -> None:
        needed = (pixels.shape[0], self.classes, *pixels.shape[-2:])
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != needed:
            given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ModelError(
                f"{self._name} gave {given} for {tuple(pixels.shape)}; "
                f"needs {needed}: (batch, {self.classes} classes, height, width)"
            )

    def _auto_batch(self, height: int, width: int, beside_bytes: int) -> int:
        """One on the CPU, where more save no time; on a GPU what fits into half of its free memory."""
        if self.device.type != "cuda":
            return 1
        tile = self._blank(height, width)
        self._free()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.run([tile])
        self.take_descriptions()
        tile_bytes = max(1, torch.cuda.max_memory_allocated(self.device) - before)
        self._free()
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(MAX_AUTO_BATCH, (free_bytes - beside_bytes) // 2 // tile_bytes))

    def _blank(self, height: int, width: int) -> Any:
        return np.zeros((len(self._factors), height, width), np.uint8)

    def _free(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


def merge_classes(
    probabilities: torch.Tensor, groups: Sequence[Sequence[int]], axis: int = 0
) -> torch.Tensor:
    """Add up the probabilities of the classes of each group."""
    parts = [
        torch.stack([probabilities.select(axis, index) for index in group], axis).sum(axis)
        for group in groups
    ]
    return torch.stack(parts, axis)


def apply_view(pixels: torch.Tensor, view: tuple[bool, bool, bool]) -> torch.Tensor:
    """Transpose and then flip (B, C, H, W), as the view says."""
    turned = pixels.transpose(-1, -2) if view[0] else pixels
    return _flip(turned, view)


def unapply_view(scores: torch.Tensor, view: tuple[bool, bool, bool]) -> torch.Tensor:
    flipped = _flip(scores, view)
    return flipped.transpose(-1, -2) if view[0] else flipped


def _flip(values: torch.Tensor, view: tuple[bool, bool, bool]) -> torch.Tensor:
    axes = [axis for axis, flipped in ((-2, view[1]), (-1, view[2])) if flipped]
    return values.flip(axes) if axes else values


def pad_to_stride(tile: NDArray[Any]) -> NDArray[Any]:
    """Pad (bands, h, w) to the right and below by reflection, to multiples of STRIDE_PX."""
    below, right = -tile.shape[1] % STRIDE_PX, -tile.shape[2] % STRIDE_PX
    if not below and not right:
        return tile
    return np.pad(tile, ((0, 0), (0, below), (0, right)), mode="reflect")


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _input_dtype(network: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a network's input: its weights'; with autocast float32, unless they are float64."""
    kinds = [weight.dtype for weight in network.parameters() if weight.is_floating_point()]
    if not kinds or (dtype != torch.float32 and kinds[0] != torch.float64):
        return torch.float32
    return kinds[0]


def _is_own(scores: torch.Tensor) -> bool:
    """Whether a result may be overwritten: the network neither keeps it nor repeats values in it."""
    repeated = any(step == 0 and size > 1 for step, size in zip(scores.stride(), scores.shape, strict=True))
    return scores.is_inference() and not repeated


@contextmanager
def memory_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn an error for want of memory into a ModelError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        advice = advice and f"{advice} or "
        raise ModelError(
            f"{what}; pass {advice}another --device, or free the memory that other programs hold "
            f"({err!s:.120})"
        ) from err


def is_out_of_memory(err: BaseException) -> bool:
    """Whether a device or the system had no memory left; most libraries raise plain RuntimeErrors."""
    if isinstance(err, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(err, RuntimeError) and any(words in str(err) for words in OUT_OF_MEMORY)
