# SPDX-License-Identifier: Apache-2.0
"""Wrap the CUDA calls that an engine makes in one thin class, so that the engine is tested without a GPU.

NVIDIA's package `cuda-bindings` makes the calls. Addresses and handles are plain integers. Every call raises CudaError,
which names the call and CUDA's reason.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np


class CudaError(RuntimeError):
    """A CUDA call failed."""


@dataclass(frozen=True)
class Device:
    """The GPU that engines run on: the first one that CUDA shows. CUDA_VISIBLE_DEVICES selects another."""

    name: str  #: the driver's name, which several models share, and the size: "Orin with 16 multiprocessors"
    capability: str  #: compute capability, e.g. "8.7"
    memory_bytes: int  #: of the whole device

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


class Cuda:
    """CUDA's runtime on the first device. Raises ImportError if `cuda-bindings` is missing."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise ImportError(
                "TensorRT engines need NVIDIA's CUDA bindings, which are missing: pip install cuda-bindings"
            ) from error
        self._runtime: Any = runtime

    def device(self) -> Device:
        """Return the GPU. Raises CudaError if there is none, or no driver that fits."""
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        name = f"{name.strip(chr(0) + ' ')} with {properties.multiProcessorCount} multiprocessors"
        return Device(name, f"{properties.major}.{properties.minor}", int(properties.totalGlobalMem))

    def free_bytes(self) -> int:
        """Return the free device memory in bytes."""
        return int(self._call("cudaMemGetInfo")[0])

    def create_stream(self) -> int:
        """Create a stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything that was queued on the stream is done. Other Python threads run meanwhile."""
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory and return its address."""
        return int(self._call("cudaMalloc", nbytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        """Allocate pinned host memory, uint8 (N,), which asynchronous copies need.

        Free it with `free_pinned`, and use no view of it afterwards.
        """
        address = int(self._call("cudaMallocHost", nbytes))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def copy_to_device(self, address: int, source: np.ndarray, stream: int) -> None:
        """Queue a copy of a contiguous host array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: np.ndarray, address: int, stream: int) -> None:
        """Queue a copy into a contiguous host array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)

    def begin_capture(self, stream: int) -> None:
        """Start to record the calls on the stream instead of running them. Other threads may use CUDA meanwhile."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """End the recording and return it as a graph for `launch`."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            status, *values = getattr(self._runtime, function)(*arguments)
        except RuntimeError as error:  # older bindings raise where there is no driver
            raise CudaError(f"{function}: {error}") from error
        if status != self._runtime.cudaError_t.cudaSuccess:
            _, name = self._runtime.cudaGetErrorName(status)
            _, reason = self._runtime.cudaGetErrorString(status)
            raise CudaError(f"{function}: {name.decode()}: {reason.decode()}")
        return values[0] if len(values) == 1 else values


def find_device() -> tuple[Device | None, str]:
    """Return the GPU and "", or None and the reason why no GPU can be used."""
    try:
        return Cuda().device(), ""
    except (CudaError, ImportError) as error:
        return None, str(error)


def has_driver() -> bool:
    """Return True if NVIDIA's driver is installed: then a GPU that cannot be used is a fault to report."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
