# SPDX-License-Identifier: Apache-2.0
"""Test doubles of CUDA and of TensorRT's runtime. They record every call and behave like the real ones in these points:

- what is queued on a stream happens at `synchronize`, not before;
- memory that was freed, or never allocated, cannot be used, and nothing can be freed twice;
- any one call can be made to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from nightlab_core.runtime.engines.tensorrt.cuda import Cuda, CudaError
from nightlab_core.runtime.engines.tensorrt.libraries import TensorRtLibrary
from nightlab_core.runtime.engines.tensorrt.plans import PlanHeader, PlanKey, Range, TensorInfo

Network = Callable[..., Mapping[str, np.ndarray]]


class Ledger:
    """The calls in their order, and the objects that are alive."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.alive: set[tuple[str, int]] = set()
        self.fallible = 0  #: how many calls could have failed
        self.fail_at: int | None = None  #: which of them does
        self._next = 1000

    def call(self, name: str) -> None:
        self.calls.append(name)
        self.fallible += 1
        if self.fallible - 1 == self.fail_at:
            raise CudaError(f"{name}: cudaErrorTest: made to fail")

    def born(self, kind: str) -> int:
        self._next += 1
        self.alive.add((kind, self._next))
        return self._next

    def died(self, kind: str, handle: int) -> None:
        assert (kind, handle) in self.alive, f"{kind} {handle} is freed twice, or was never made"
        self.alive.remove((kind, handle))


class FakeCuda(Cuda):
    """CUDA with numpy arrays, by address, as device memory."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.memory: dict[int, np.ndarray] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._pinned: dict[int, int] = {}

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        assert ("stream", stream) in self.ledger.alive, "the stream is gone"
        self.recording.get(stream, self.queues[stream]).append(work)

    def create_stream(self) -> int:
        self.ledger.call("create_stream")
        stream = self.ledger.born("stream")
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        self.ledger.died("stream", stream)
        self.ledger.call("destroy_stream")

    def synchronize(self, stream: int) -> None:
        assert stream not in self.recording, "CUDA does not synchronise a stream that records"
        self.ledger.call("synchronize")
        work, self.queues[stream] = self.queues[stream], []
        for one in work:
            one()

    def allocate(self, nbytes: int) -> int:
        self.ledger.call(f"allocate {nbytes}")
        address = self.ledger.born("memory")
        self.memory[address] = np.full(nbytes, 77, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.ledger.died("memory", address)
        del self.memory[address]
        self.ledger.call("free")

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        self.ledger.call(f"allocate_pinned {nbytes}")
        array = np.full(nbytes, 88, np.uint8)
        self._pinned[array.ctypes.data] = self.ledger.born("pinned")
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        self.ledger.died("pinned", self._pinned.pop(array.ctypes.data))
        self.ledger.call("free_pinned")

    def copy_to_device(self, address: int, source: np.ndarray, stream: int) -> None:
        self.ledger.call(f"copy_to_device {source.nbytes}")
        assert source.flags.c_contiguous and not source.flags.owndata, "not a view of pinned memory"

        def copy() -> None:
            self.memory[address][: source.nbytes] = source.view(np.uint8).reshape(-1)

        self.enqueue(stream, copy)

    def copy_to_host(self, target: np.ndarray, address: int, stream: int) -> None:
        self.ledger.call(f"copy_to_host {target.nbytes}")
        assert target.flags.c_contiguous and not target.flags.owndata, "not a view of pinned memory"

        def copy() -> None:
            target.reshape(-1).view(np.uint8)[:] = self.memory[address][: target.nbytes]

        self.enqueue(stream, copy)

    def begin_capture(self, stream: int) -> None:
        self.ledger.call("begin_capture")
        self.recording[stream] = []

    def end_capture(self, stream: int) -> int:
        work = self.recording.pop(stream)
        self.ledger.call("end_capture")
        graph = self.ledger.born("graph")
        self.graphs[graph] = work
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self.ledger.call("launch")
        assert ("graph", graph) in self.ledger.alive
        for work in self.graphs[graph]:
            self.enqueue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        self.ledger.died("graph", graph)
        del self.graphs[graph]
        self.ledger.call("destroy_graph")


class FakeTensorRt:
    """The part of the module `tensorrt` that runs plans. The bytes of a plan are the name of its network."""

    __version__ = "99.1"

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = range(3)

        def log(self, level: int, message: str) -> None:
            raise NotImplementedError

    def __init__(self, cuda: FakeCuda, networks: Mapping[bytes, tuple[Network, PlanHeader]]) -> None:
        self.cuda, self.networks = cuda, networks
        self.runtime_configs: list[Any] = []  #: with which contexts were made
        self.refuse: set[str] = set()  #: calls that answer None or False, as TensorRT's do when they fail

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> Any:
        return _Object(self, "runtime", logger)

    def answers(self, call: str, logger: Any = None) -> bool:
        self.cuda.ledger.call(call)
        if call in self.refuse and logger is not None:
            logger.log(self.ILogger.Severity.ERROR, f"{call} was refused by TensorRT")
        return call not in self.refuse


class _Object:
    """An object that lives as long as its Python references, as in TensorRT's bindings."""

    def __init__(self, trt: FakeTensorRt, kind: str, logger: Any) -> None:
        self._trt, self._kind, self._logger = trt, kind, logger
        trt.cuda.ledger.call(f"make {kind}")
        self._handle = trt.cuda.ledger.born(kind)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._trt.cuda.ledger.died(self._kind, self._handle)
            self._trt.cuda.ledger.calls.append(f"drop {self._kind}")

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return _Engine(self, plan) if self._trt.answers("deserialize_cuda_engine", self._logger) else None


class _Engine(_Object):
    def __init__(self, runtime: _Object, plan: bytes) -> None:
        super().__init__(runtime._trt, "engine", runtime._logger)
        self.network, self.header = self._trt.networks[plan]
        self._tensors = {**self.header.inputs, **self.header.outputs}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> np.dtype:
        return np.dtype(self._tensors[name].dtype)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="lazy")

    def create_execution_context(self, config: Any = None) -> Any:
        self._trt.runtime_configs.append(config)
        return _Context(self) if self._trt.answers("create_execution_context", self._logger) else None


class _Context(_Object):
    def __init__(self, engine: _Engine) -> None:
        super().__init__(engine._trt, "context", engine._logger)
        self._header, self._network = engine.header, engine.network
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._header.key.shapes[name]
        fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self._shapes[name] = shape
        return self._trt.answers("set_input_shape", self._logger) and fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        return self._run({n: np.zeros(s, self._header.inputs[n].dtype) for n, s in self._shapes.items()})[name].shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self._trt.answers("set_tensor_address", self._logger)

    def execute_async_v3(self, stream: int) -> bool:
        if not self._trt.answers("execute", self._logger):
            return False
        shapes, cuda = dict(self._shapes), self._trt.cuda

        def run() -> None:
            arrays = {}
            for name, shape in shapes.items():
                dtype = np.dtype(self._header.inputs[name].dtype)
                nbytes = int(np.prod(shape)) * dtype.itemsize
                arrays[name] = cuda.memory[self._addresses[name]][:nbytes].view(dtype).reshape(shape)
            for name, array in self._run(arrays).items():
                data = np.ascontiguousarray(array, self._header.outputs[name].dtype).reshape(-1).view(np.uint8)
                cuda.memory[self._addresses[name]][: data.size] = data

        cuda.enqueue(stream, run)
        return True

    def _run(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return self._network(**arrays)


def fake_library(cuda: FakeCuda, networks: Mapping[bytes, tuple[Network, PlanHeader]]) -> TensorRtLibrary:
    """Return a library that runs these networks, by the bytes of their plans."""
    return TensorRtLibrary("tensorrt", FakeTensorRt(cuda, networks))


def fake_header(
    kind: str, shapes: dict[str, Range], inputs: dict[str, TensorInfo], outputs: dict[str, TensorInfo]
) -> PlanHeader:
    """Return a header with the fields that running a plan needs; the build's fields are made up."""
    key = PlanKey(
        kind=kind,  # type: ignore[arg-type]
        onnx_sha256="0" * 64,
        graph_version=1,
        library="tensorrt",
        version="99.1",
        platform="linux-x86_64",
        capabilities=("8.7",),
        gpu_name="Orin",
        precision="float16",
        shapes=shapes,
    )
    return PlanHeader(
        key=key,
        inputs=inputs,
        outputs=outputs,
        built="2026-01-31T00:00:00+00:00",
        build_seconds=1.0,
        layers={},
        io_bytes=0,
        plan_bytes=5,
        plan_sha256="0" * 64,
    )
