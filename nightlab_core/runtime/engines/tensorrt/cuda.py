# SPDX-License-Identifier: Apache-2.0
"""The few CUDA calls that an engine makes, behind one thin class, so that the logic above it is tested without a GPU.

NVIDIA's own bindings (``cuda-bindings``, which ``cuda-python`` installs) do the work. Addresses and handles are plain
integers. Every call raises CudaError, which names the call and CUDA's reason.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np


class CudaError(RuntimeError):
    """A CUDA call that failed."""


@dataclass(frozen=True)
class Device:
    """The GPU that engines run on: the first that CUDA shows (CUDA_VISIBLE_DEVICES chooses)."""

    name: str  #: the driver's, which several of a family share, and the size: "Orin with 16 multiprocessors"
    capability: str  #: compute capability, e.g. "8.7"
    memory_bytes: int  #: of the whole device

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


class Cuda:
    """CUDA's runtime on the first device. Raises ImportError where ``cuda-bindings`` is missing."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise ImportError(
                "TensorRT engines need NVIDIA's CUDA bindings, which are missing: pip install cuda-bindings"
            ) from error
        self._runtime: Any = runtime

    def device(self) -> Device:
        """What the GPU is. Raises CudaError where there is none, or no driver that fits."""
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        name = f"{name.strip(chr(0) + ' ')} with {properties.multiProcessorCount} multiprocessors"
        return Device(name, f"{properties.major}.{properties.minor}", int(properties.totalGlobalMem))

    def free_bytes(self) -> int:
        """Device memory that nothing uses."""
        return int(self._call("cudaMemGetInfo")[0])

    def create_stream(self) -> int:
        """A stream of its own, which does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued on the stream is done. Other Python threads run meanwhile."""
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, nbytes: int) -> int:
        """Device memory; returns its address."""
        return int(self._call("cudaMalloc", nbytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        """Host memory that is never paged out, which copies to and from the device need to be asynchronous: uint8 (N,).

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
        """Record what is queued on the stream instead of running it. Other threads may go on using CUDA."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """End the recording and make a graph of it that can be launched."""
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
    """The GPU, or None and the reason why none can be used."""
    try:
        return Cuda().device(), ""
    except (CudaError, ImportError) as error:
        return None, str(error)


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed, so that a GPU that cannot be used is a fault and no lack."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
