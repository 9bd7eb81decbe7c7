# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's networks on TensorRT: choose a library, a GPU and plans, and load them.

Plans are built while a bundle is opened, if `EngineOptions.build` allows it, and never while frames are processed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, EngineKind
from nightlab_core.runtime.engines.engine import (
    KEPT_SIZES,
    Engine,
    EngineOptions,
    EngineUnavailable,
    OnProgress,
    TensorSpec,
    check_inputs,
    check_precision,
    open_each,
)
from nightlab_core.runtime.engines.tensorrt.build import Precision, build_command, build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.cuda import Cuda, CudaError, Device, find_device, has_driver
from nightlab_core.runtime.engines.tensorrt.execution import PlanExecution
from nightlab_core.runtime.engines.tensorrt.libraries import (
    PACKAGES,
    Target,
    TensorRtError,
    TensorRtLibrary,
    installed_libraries,
)
from nightlab_core.runtime.engines.tensorrt.plans import (
    PlanError,
    PlanHeader,
    Range,
    Shape,
    TensorInfo,
    cache_folder,
    covers,
    find_plan,
)

log = logging.getLogger(__name__)

#: Finds the checked plan for inputs of these shapes. Raises PlanError that names the command which builds it.
OpenPlan = Callable[[Mapping[str, Shape]], tuple[PlanHeader, bytes]]


class TensorRtEngine:
    """A network on the GPU. It has its own stream, so that engines called from several threads overlap.

    A plan accepts one range of shapes. For a shape that no loaded plan accepts, another plan is looked up in the cache;
    the last few stay loaded. `cuda_graphs` launches a plan of fixed shapes as one recorded graph instead of layer by
    layer. A plan of several shapes is always launched layer by layer, since a recording is valid for one shape only.
    """

    def __init__(
        self,
        library: TensorRtLibrary,
        open_plan: OpenPlan,
        shapes: Mapping[str, Shape],
        *,
        cuda: Cuda | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """Load the plan for inputs of these shapes.

        Raises PlanError if no plan fits, TensorRtError if TensorRT refuses it, CudaError, and ImportError if the CUDA
        bindings are missing.
        """
        self.name: str = library.name
        self._library, self._open_plan, self._cuda_graphs = library, open_plan, cuda_graphs
        self._cuda = Cuda() if cuda is None else cuda
        self._lock = threading.Lock()
        self._closed = False
        self._loaded: list[PlanExecution] = []  # the most recently used is last
        header = self._execution(shapes).header
        self.inputs: Mapping[str, TensorSpec] = _specs(header.inputs)
        self.outputs: Mapping[str, TensorSpec] = _specs(header.outputs)

    @classmethod
    def open_bundle(cls, bundle: Bundle, options: EngineOptions, on_progress: OnProgress) -> dict[EngineKind, Engine]:
        """See `EngineLibrary`. The cause is PlanError, TensorRtError, CudaError or ImportError."""
        device, reason = find_device()
        if device is None:
            note = ""
            if has_driver():
                note = (
                    f"NVIDIA's driver is installed, but TensorRT finds no GPU: {reason}. Bindings newer than the "
                    "driver are a usual cause: pip install 'cuda-bindings<13' for a driver of CUDA 12, or update the "
                    "driver"
                )
            cause = CudaError(f"engine 'tensorrt' needs an NVIDIA GPU and its driver, and none can be used: {reason}")
            raise EngineUnavailable(cause, note)
        try:
            return _open_on_gpu(bundle, options, device, on_progress)
        except (PlanError, TensorRtError, CudaError, ImportError) as error:
            note = f"there is a GPU, {device}, but TensorRT does not run: {error}"
            raise EngineUnavailable(error, note) from error

    def prepare(self, **shapes: Shape) -> None:
        """Load the plan for these shapes if necessary, and run once: the first run is slower."""
        self(**{name: np.zeros(shape, self.inputs[name].dtype) for name, shape in shapes.items()})

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`. Also raises PlanError for a shape that no plan accepts, and CudaError."""
        arrays = check_inputs(f"{self.name} engine", self.inputs, arrays)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self.name}: the engine is closed")
            return self._execution({name: array.shape for name, array in arrays.items()}).run(arrays)

    def close(self) -> None:
        """See `Engine`. Everything is freed, even if freeing one part fails; then CudaError is raised."""
        with self._lock, ExitStack() as stack:
            self._closed = True
            while self._loaded:
                stack.callback(self._loaded.pop().close)

    def _execution(self, shapes: Mapping[str, Shape]) -> PlanExecution:
        wanted: dict[str, Range] = {name: (shape, shape, shape) for name, shape in shapes.items()}
        for execution in self._loaded:
            if covers(execution.header.key.shapes, wanted):
                self._loaded.remove(execution)
                break
        else:
            header, plan = self._open_plan(shapes)
            while len(self._loaded) >= KEPT_SIZES:  # before loading, so that there is room on the GPU
                self._loaded.pop(0).close()
            execution = PlanExecution(self._library, self._cuda, header, plan, self._cuda_graphs)
        self._loaded.append(execution)
        return execution


def _specs(infos: Mapping[str, TensorInfo]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(np.dtype(info.dtype), info.shape) for name, info in infos.items()}


def _open_on_gpu(
    bundle: Bundle, options: EngineOptions, device: Device, on_progress: OnProgress
) -> dict[EngineKind, Engine]:
    libraries = installed_libraries()
    if not libraries:
        raise ImportError("TensorRT is not installed: " + ", or ".join(PACKAGES.values()))
    if options.frame_hw is None:
        raise PlanError("the camera's size is not known, and a plan fits one size: set image_size (node) or frame_hw")
    check_precision("TensorRT", "float16" if options.precision == "auto" else options.precision, get_args(Precision))
    precision: Precision = "float32" if options.precision == "float32" else "float16"
    folder = cache_folder()
    refusals = []
    for library in libraries:
        try:
            return _load_plans(bundle, library, device, precision, options.frame_hw, folder)
        except (PlanError, TensorRtError) as error:
            refusals.append(str(error))
    if not options.build:
        raise PlanError("\n".join(refusals))
    library = libraries[0]
    log.info("building TensorRT plans into %s", folder)
    for kind in ENGINE_KINDS:
        shapes = plan_shapes(bundle, kind, options.frame_hw)
        key = plan_key(bundle, kind, library, library.target(device), precision, shapes)
        build_plan(bundle, key, library, folder, on_progress)
    return _load_plans(bundle, library, device, precision, options.frame_hw, folder)


def _load_plans(
    bundle: Bundle,
    library: TensorRtLibrary,
    device: Device,
    precision: Precision,
    frame_hw: tuple[int, int],
    folder: Path,
) -> dict[EngineKind, Engine]:
    here = Target((device.capability,), device.name)

    def open_plan(kind: EngineKind, shapes: Mapping[str, Shape]) -> tuple[PlanHeader, bytes]:
        planned = plan_shapes(bundle, kind, frame_hw)
        ranges: dict[str, Range] = {name: (shape, shape, shape) for name, shape in shapes.items()}
        if kind == "region":  # the number of regions changes from frame to frame: one plan for all
            ranges = planned
        try:
            return find_plan(folder, plan_key(bundle, kind, library, here, precision, ranges))
        except PlanError as error:
            if ranges == planned:
                raise PlanError(f"{error}\nBuild it with: {build_command(bundle, frame_hw, precision)}") from error
            raise PlanError(
                f"{error}\nThe camera's size is not image_size, {frame_hw[1]}x{frame_hw[0]}: correct that, and build "
                f"plans for the right one with: {build_command(bundle, None, precision)}"
            ) from error

    def open_one(kind: EngineKind) -> Engine:
        largest = {name: high for name, (_, _, high) in plan_shapes(bundle, kind, frame_hw).items()}
        try:
            return TensorRtEngine(library, partial(open_plan, kind), largest)
        except TensorRtError as error:  # although the plan is valid and fits
            raise TensorRtError(
                f"{error}\nUpdate NVIDIA's driver if it is older than TensorRT; else build the plans again: "
                f"nightlab engine clean --all, then {build_command(bundle, frame_hw, precision)}"
            ) from error

    return open_each(open_one)
