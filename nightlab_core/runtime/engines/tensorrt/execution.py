# SPDX-License-Identifier: Apache-2.0
"""Run one TensorRT plan on the GPU: its memory, its stream, and the copies in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from nightlab_core.runtime.engines.tensorrt.cuda import Cuda, CudaError
from nightlab_core.runtime.engines.tensorrt.libraries import TensorRtError, TensorRtLibrary
from nightlab_core.runtime.engines.tensorrt.plans import PlanHeader, Shape


@dataclass(frozen=True)
class _TensorBuffer:
    """Memory of one input or output at its largest shape, on host and device."""

    dtype: np.dtype
    address: int  #: on the device
    pinned: np.ndarray  #: uint8 (N,), on the host

    def view(self, shape: Shape) -> np.ndarray:
        """Return the start of the host memory as an array of this shape."""
        return self.pinned[: math.prod(shape) * self.dtype.itemsize].view(self.dtype).reshape(shape)


class PlanExecution:
    """A plan on the GPU. All memory is allocated when it is made, for the largest shapes that the plan takes."""

    def __init__(
        self, library: TensorRtLibrary, cuda: Cuda, header: PlanHeader, plan: bytes, cuda_graphs: bool
    ) -> None:
        self.header = header
        self._library, self._cuda = library, cuda
        largest = {name: high for name, (_, _, high) in header.key.shapes.items()}
        fixed = all(low == high for low, _, high in header.key.shapes.values())
        with ExitStack() as stack:  # frees everything in reverse order if a step fails
            self._objects: list[Any] = []  # runtime, engine, configuration if any, context
            stack.callback(_release, self._objects)
            library.messages.clear()
            self._keep(library.trt.Runtime(library.logger()), "cannot start")
            self._keep(self._objects[-1].deserialize_cuda_engine(plan), "cannot load the plan")
            self._objects += _runtime_config(library.trt, self._objects[1])
            self._keep(self._objects[1].create_execution_context(*self._objects[2:]), "has no memory to run the plan")
            _check_tensors(library, self._objects[1], header)
            self._stream = cuda.create_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            self._set_shapes(largest)
            self._buffers: dict[str, _TensorBuffer] = {}
            for name, info in {**header.inputs, **header.outputs}.items():
                dtype, shape = np.dtype(info.dtype), tuple(self._context.get_tensor_shape(name))
                nbytes = math.prod(shape) * dtype.itemsize
                address = cuda.allocate(nbytes)
                stack.callback(cuda.free, address)
                pinned = cuda.allocate_pinned(nbytes)
                stack.callback(cuda.free_pinned, pinned)
                self._buffers[name] = _TensorBuffer(dtype, address, pinned)
                if not self._context.set_tensor_address(name, address):
                    raise library.error(f"{library.name} refuses the buffer of {name!r}")
            stack.callback(_release, self._objects)  # again: the context must be freed before its buffers
            stack.callback(cuda.synchronize, self._stream)
            self._graph: int | None = None
            if cuda_graphs and fixed:
                self._graph = self._record()
                stack.callback(cuda.destroy_graph, self._graph)
                stack.callback(cuda.synchronize, self._stream)
            self._resources = stack.pop_all()

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copy the inputs in, run, copy the outputs out, and wait. The results are copies."""
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self._shapes:
            self._set_shapes(shapes)
        for name, array in arrays.items():
            np.copyto(self._buffers[name].view(array.shape), array)
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: self._buffers[name].view(shape).copy() for name, shape in self._output_shapes.items()}

    def close(self) -> None:
        """Wait for the stream and free everything."""
        self._resources.close()

    @property
    def _context(self) -> Any:
        return self._objects[-1]

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes: Mapping[str, Shape] = {}  # until everything succeeded
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._library.error(f"{self._library.name} refuses {name!r} of shape {shape}")
        self._output_shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self.header.outputs}
        self._shapes = dict(shapes)

    def _enqueue(self) -> None:
        for name, shape in self._shapes.items():
            buffer = self._buffers[name]
            self._cuda.copy_to_device(buffer.address, buffer.view(shape), self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise self._library.error(f"{self._library.name} cannot run the {self.header.key.kind} network")
        for name, shape in self._output_shapes.items():
            buffer = self._buffers[name]
            self._cuda.copy_to_host(buffer.view(shape), buffer.address, self._stream)

    def _record(self) -> int:
        """Return the whole run as a CUDA graph. TensorRT needs one run before, which does what cannot be recorded."""
        self._enqueue()
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
        except Exception:
            with suppress(CudaError):  # the first error is the one to report
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise
        return self._cuda.end_capture(self._stream)

    def _keep(self, made: Any, failure: str) -> None:
        if made is None:
            raise self._library.error(f"{self._library.name} {self._library.version} {failure}")
        self._objects.append(made)


def _runtime_config(trt: Any, engine: Any) -> list[Any]:
    """Return the arguments that create a context: one configuration for TensorRT for RTX, none for TensorRT.

    By default TensorRT for RTX compiles kernels for a new number of regions in the background. "Eager" compiles them in
    `prepare`, before the node is active.
    """
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return []
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return [config]


def _release(objects: list[Any]) -> None:
    """Free the context first and the runtime last."""
    while objects:
        objects.pop()


def _check_tensors(library: TensorRtLibrary, engine: Any, header: PlanHeader) -> None:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    received = {name: str(np.dtype(library.trt.nptype(engine.get_tensor_dtype(name)))) for name in names}
    expected = {name: info.dtype for name, info in {**header.inputs, **header.outputs}.items()}
    if received != expected:
        raise TensorRtError(f"the plan's inputs and outputs are {received}, its header says {expected}; build it again")
