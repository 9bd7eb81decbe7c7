# SPDX-License-Identifier: Apache-2.0
"""Compile a rewritten ONNX model to a TensorRT plan: parse, set the target GPUs, build with progress, count layers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from nightlab_core.runtime.bundle import EngineKind
from nightlab_core.runtime.engines.engine import BuildProgress, BuildStopped, OnProgress
from nightlab_core.runtime.engines.tensorrt.libraries import Target, TensorRtError, TensorRtLibrary
from nightlab_core.runtime.engines.tensorrt.plans import PlanKey, Range, Shape

POLL_S = 0.02


def serialize(
    library: TensorRtLibrary, model: bytes, key: PlanKey, on_progress: OnProgress
) -> tuple[bytes, dict[str, dict[str, int]], int]:
    """Build the plan of a serialised ONNX model. Return it, its layers by type, and the bytes of inputs and outputs."""
    trt = library.trt
    library.messages.clear()
    builder = trt.Builder(logger := library.logger())
    if builder is None:
        raise library.error("TensorRT made no builder")
    # TensorRT 10 makes a strongly typed network on request, TensorRT 11 always.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise TensorRtError(_refusal(parser, key.kind))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector shows every layer's types
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in key.shapes.items():
        profile.set_shape(name, low, usual, high)
    config.add_optimization_profile(profile)
    if not library.needs_gpu_to_build:
        _set_target(library, config, key.target)
    plan = _run_build(trt, builder, network, config, key.kind, on_progress)
    if plan is None:
        raise library.error(f"TensorRT {library.version} cannot build the {key.kind} network")
    return bytes(memoryview(plan)), _layers(trt, network), _io_bytes(trt, network, key.shapes)


def _refusal(parser: Any, kind: str) -> str:
    """Return the layers that the parser refuses, with TensorRT's reasons."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = []
    for error in errors:
        layer = f"layer {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the graph"
        reason = error.desc().strip().splitlines()
        lines.append(f"{layer}: {' '.join(reason[1:2] or reason)}")
    return f"TensorRT's parser refuses the {kind} network: " + ("; ".join(lines) or "it gave no reason")


def _set_target(library: TensorRtLibrary, config: Any, target: Target) -> None:
    capability = library.trt.ComputeCapability
    if target.gpu_name:
        chosen = [capability.CURRENT]
    else:
        chosen = [getattr(capability, "SM" + c.replace(".", "")) for c in target.capabilities]
    config.num_compute_capabilities = len(chosen)
    for index, one in enumerate(chosen):
        if not config.set_compute_capability(one, index):
            raise library.error(f"tensorrt_rtx cannot build for {target}")


def _run_build(trt: Any, builder: Any, network: Any, config: Any, kind: EngineKind, on_progress: OnProgress) -> Any:
    """Build in a thread, so that progress is reported and signals are handled however long one step takes."""
    config.progress_monitor = monitor = _monitor(trt)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            done = False
            while not done:  # at least once, so that a short build can be stopped too
                if not on_progress(BuildProgress(kind, monitor.fraction, monitor.doing)):
                    raise BuildStopped(f"the build of the {kind} network was stopped")
                done = bool(wait([future], POLL_S).done)
        except BaseException:
            monitor.stopped = True  # TensorRT stops at its next step; the pool waits for it
            raise
        return future.result()


def _monitor(trt: Any) -> Any:
    class BuildMonitor(trt.IProgressMonitor):
        """Compute the fraction that is done from nested phases: the current step of a phase may be a phase itself."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.fraction, self.doing, self.stopped = 0.0, "starting", False
            self._phases: dict[str, list[int]] = {}  # name: steps done, number of steps; outermost first

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._phases[phase] = [0, max(1, steps)]
            self.doing = phase

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._phases:
                self._phases[phase][0] = step + 1
            fraction, share = 0.0, 1.0
            for done, steps in list(self._phases.values()):
                fraction += share * min(done, steps) / steps
                share /= steps
            self.fraction = max(self.fraction, min(1.0, fraction))
            return not self.stopped

    return BuildMonitor()


def _layers(trt: Any, network: Any) -> dict[str, dict[str, int]]:
    """Count the layers by type of result and by kind. In a strongly typed network these are the types that run."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.CONSTANT and layer.num_outputs:
            counts[str(layer.get_output(0).dtype).rpartition(".")[2]][str(layer.type).rpartition(".")[2]] += 1
    names = {"HALF": "float16", "FLOAT": "float32"}
    return {names.get(dtype, dtype.lower()): dict(counter.most_common()) for dtype, counter in sorted(counts.items())}


def _io_bytes(trt: Any, network: Any, shapes: Mapping[str, Range]) -> int:
    """Return the bytes of inputs and outputs at their largest. An output's free sides are the input's, in order."""
    free = [side for _, _, high in shapes.values() for side in high]
    total = sum(math.prod(high) for _, _, high in shapes.values())  # bytes
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        shape: Shape = tuple(free[i] if side < 0 else side for i, side in enumerate(tensor.shape))
        total += math.prod(shape) * trt.nptype(tensor.dtype)().itemsize
    return total
