# SPDX-License-Identifier: Apache-2.0
"""The seam to CUDA: what it asks of NVIDIA's bindings, call by call, and how it says that a call failed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nightlab_core.runtime.engines.tensorrt import cuda as cuda_module
from nightlab_core.runtime.engines.tensorrt.cuda import Cuda, CudaError, Device, find_device, has_driver

bindings = pytest.importorskip("cuda.bindings.runtime")
OK, BAD = bindings.cudaError_t.cudaSuccess, bindings.cudaError_t.cudaErrorMemoryAllocation


class Recorder:
    """NVIDIA's bindings, with the calls of a test answered and recorded instead of made."""

    def __init__(self, **answers: tuple[Any, ...]) -> None:
        self.answers, self.calls = answers, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        if not callable(getattr(bindings, name)) or isinstance(getattr(bindings, name), type):
            return getattr(bindings, name)
        if name in ("cudaGetErrorName", "cudaGetErrorString"):
            return getattr(bindings, name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.answers.get(name, (OK,))

        return call


def cuda_with(**answers: tuple[Any, ...]) -> tuple[Cuda, Recorder]:
    cuda = Cuda()
    cuda._runtime = recorder = Recorder(**answers)
    return cuda, recorder


def test_every_method_makes_the_expected_cuda_call() -> None:
    cuda, recorder = cuda_with(
        cudaStreamCreateWithFlags=(OK, bindings.cudaStream_t(7)),
        cudaMalloc=(OK, 4096),
        cudaMemGetInfo=(OK, 100, 200),
        cudaStreamEndCapture=(OK, "graph"),
        cudaGraphInstantiate=(OK, bindings.cudaGraphExec_t(9)),
    )
    array = np.arange(6, dtype=np.float32)
    assert cuda.create_stream() == 7 and cuda.allocate(24) == 4096 and cuda.free_bytes() == 100
    cuda.copy_to_device(4096, array, 7)
    cuda.copy_to_host(array, 4096, 7)
    cuda.synchronize(7)
    cuda.begin_capture(7)
    assert cuda.end_capture(7) == 9
    cuda.launch(9, 7)
    cuda.destroy_graph(9)
    cuda.free(4096)
    cuda.destroy_stream(7)
    host, copy = array.ctypes.data, bindings.cudaMemcpyKind
    assert recorder.calls == [
        ("cudaStreamCreateWithFlags", bindings.cudaStreamNonBlocking),
        ("cudaMalloc", 24),
        ("cudaMemGetInfo",),
        ("cudaMemcpyAsync", 4096, host, 24, copy.cudaMemcpyHostToDevice, 7),
        ("cudaMemcpyAsync", host, 4096, 24, copy.cudaMemcpyDeviceToHost, 7),
        ("cudaStreamSynchronize", 7),
        ("cudaStreamBeginCapture", 7, bindings.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal),
        ("cudaStreamEndCapture", 7),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),  # what is launched is its instance
        ("cudaGraphLaunch", 9, 7),
        ("cudaGraphExecDestroy", 9),
        ("cudaFree", 4096),
        ("cudaStreamDestroy", 7),
    ]


def test_pinned_memory_is_used_in_place_and_freed_by_its_address() -> None:
    memory = np.zeros(32, np.uint8)  # stands for what CUDA would hand out
    cuda, recorder = cuda_with(cudaMallocHost=(OK, memory.ctypes.data))
    pinned = cuda.allocate_pinned(32)
    pinned[:] = 5
    assert (memory == 5).all() and pinned.dtype == np.uint8 and pinned.shape == (32,)
    cuda.free_pinned(pinned)
    assert recorder.calls == [("cudaMallocHost", 32), ("cudaFreeHost", memory.ctypes.data)]


def test_a_graph_that_cannot_be_instantiated_is_destroyed() -> None:
    cuda, recorder = cuda_with(cudaStreamEndCapture=(OK, "graph"), cudaGraphInstantiate=(BAD, None))
    with pytest.raises(CudaError, match="cudaGraphInstantiate: cudaErrorMemoryAllocation: out of memory"):
        cuda.end_capture(7)
    assert recorder.calls[-1] == ("cudaGraphDestroy", "graph")


def test_the_device_is_described() -> None:
    """Modules of a family have one name, but a plan that was tuned on the large one does not fit the small one."""
    properties = SimpleNamespace(name=b"Orin\0\0", major=8, minor=7, totalGlobalMem=8 << 30, multiProcessorCount=16)
    cuda, _ = cuda_with(cudaGetDeviceProperties=(OK, properties))
    assert cuda.device() == Device("Orin with 16 multiprocessors", "8.7", 8 << 30)
    assert str(cuda.device()) == "Orin with 16 multiprocessors (compute capability 8.7)"
    properties.multiProcessorCount = 8
    assert cuda.device().name != "Orin with 16 multiprocessors"


def test_missing_bindings_are_named_in_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    device, reason = find_device()
    assert device is None and "pip install cuda-bindings" in reason


def test_the_reason_for_a_missing_gpu_is_cudas_message() -> None:
    device, reason = find_device()
    if device is not None:
        pytest.skip(f"there is a GPU: {device}")
    assert reason.startswith("cudaGetDeviceProperties: cudaError")


def test_bindings_that_raise_without_a_driver_mean_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-bindings 12.8 raise; JetPack 6 needs a version below 13."""

    def raising(*arguments: Any) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(bindings, "cudaGetDeviceProperties", raising)
    assert find_device() == (None, "cudaGetDeviceProperties: Failed to dlopen libcuda.so.1")


def test_a_driver_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    asked: list[str] = []
    monkeypatch.setattr(cuda_module.ctypes, "CDLL", asked.append)
    assert has_driver() and asked == ["libcuda.so.1"]
    monkeypatch.setattr(cuda_module.ctypes, "CDLL", absent)
    assert not has_driver()
