"""What a device does beside the host: copies there and back, and replayed launches.

On CUDA devices copies go through page-locked memory, and those to the device in a stream of their own, so
that neither waits for what is computed. Elsewhere the same calls copy at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EAGER_CALLS = 2  # with inputs of some shapes, before their launches are recorded
MAX_GRAPHS = 4
MAX_ITEM_BYTES = 4  # of a value on its way; wider ones go as float32
_log = logging.getLogger(__name__)
Result = TypeVar("Result")
Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]


class Transfers:
    """Copies between the host and a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._incoming = torch.cuda.Stream(device) if device.type == "cuda" else None

    def stack(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        """Return arrays of one shape and type as a tensor (len(arrays), ...) on the device."""
        if arrays[0].dtype.itemsize > MAX_ITEM_BYTES:
            with np.errstate(over="ignore"):  # infinite, then cut to a scaling's limits
                arrays = [array.astype(np.float32) for array in arrays]
        if self._incoming is None:
            return torch.from_numpy(np.stack(arrays)).to(self.device)
        dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        host = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=True)
        np.stack(arrays, out=host.numpy())
        with torch.cuda.stream(self._incoming):
            values = host.to(self.device, non_blocking=True)  # torch keeps `host` until it has arrived
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._incoming)
        values.record_stream(computing)
        return values

    def fetch(self, values: Tensor) -> Callable[[], NDArray[Any]]:
        """Start to copy values from the device; the result waits for them, and for nothing queued later."""
        if self._incoming is None:
            return values.cpu().numpy
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))

        def wait() -> NDArray[Any]:
            arrived.synchronize()
            return host.numpy()

        return wait


class Graphs:
    """Calls of functions of tensors whose launches a CUDA device replays as one graph, once shapes recur.

    A result may lie in memory that the next call overwrites. Where memory for graphs is lacking, functions
    are called as they are.

    Args:
        is_recorded: whether calls are recorded at all; what waits for the device cannot be.
    """

    def __init__(self, *, is_recorded: bool) -> None:
        self._calls: Counter[Shapes] = Counter()
        self._graphs: dict[Shapes, tuple[Any, tuple[Tensor, ...], Any]] = {}
        self._is_recorded = is_recorded

    def call(self, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """Return what a function, the same in every call, gives for these inputs."""
        device = inputs[0].device
        if device.type != "cuda" or not self._is_recorded:
            return function(*inputs)
        shapes = tuple((tuple(values.shape), values.dtype) for values in inputs)
        self._calls[shapes] += 1
        if shapes not in self._graphs:
            if self._calls[shapes] <= EAGER_CALLS or len(self._graphs) == MAX_GRAPHS:
                return function(*inputs)
            try:
                self._graphs[shapes] = self._record(function, device, inputs)
            except RuntimeError as err:
                self.forget()
                self._is_recorded = False
                _log.info("launches are not replayed as CUDA graphs (%.200s)", err)
                return function(*inputs)
        graph, own, result = self._graphs[shapes]
        for mine, values in zip(own, inputs, strict=True):
            mine.copy_(values)
        graph.replay()
        return result

    def forget(self) -> None:
        """Give back the memory of all graphs."""
        self._graphs.clear()
        self._calls.clear()

    def _record(
        self, function: Callable[..., Result], device: torch.device, inputs: Sequence[Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Result]:
        others = [graph for graph, _, _ in self._graphs.values()]
        pool = others[0].pool() if others else None  # results are used before another graph runs
        graph, own = torch.cuda.CUDAGraph(), tuple(values.clone() for values in inputs)
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),  # set again also where recording fails
            torch.cuda.graph(
                graph, pool=pool, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"
            ),
        ):
            result = function(*own)
        return graph, own, result
