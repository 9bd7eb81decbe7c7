# SPDX-License-Identifier: Apache-2.0
"""From an ONNX model to TensorRT's plan: parse, aim, build with progress, and tell which type every layer has."""

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
    """Parse a serialised ONNX model and build its plan: the plan, layers by type, and bytes of inputs and outputs."""
    trt = library.trt
    library.messages.clear()
    builder = trt.Builder(logger := library.logger())
    if builder is None:
        raise library.error("TensorRT made no builder")
    # TensorRT 10 types a network strongly when told to, 11 always.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise TensorRtError(_refusal(parser, key.kind))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector can tell every layer's types
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in key.shapes.items():
        profile.set_shape(name, low, usual, high)
    config.add_optimization_profile(profile)
    if not library.needs_gpu_to_build:
        _aim(library, config, key.target)
    plan = _run_build(trt, builder, network, config, key.kind, on_progress)
    if plan is None:
        raise library.error(f"TensorRT {library.version} cannot build the {key.kind} network")
    return bytes(memoryview(plan)), _layers(trt, network), _io_bytes(trt, network, key.shapes)


def _refusal(parser: Any, kind: str) -> str:
    """What the parser refuses: the layer first, then TensorRT's reason."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = []
    for error in errors:
        layer = f"layer {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the graph"
        reason = error.desc().strip().splitlines()
        lines.append(f"{layer}: {' '.join(reason[1:2] or reason)}")
    return f"TensorRT's parser refuses the {kind} network: " + ("; ".join(lines) or "it gave no reason")


def _aim(library: TensorRtLibrary, config: Any, target: Target) -> None:
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
    """Build in a thread, so that here progress is told steadily, however long one step takes, and signals are seen."""
    config.progress_monitor = monitor = _monitor(trt)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            done = False
            while not done:  # asked once at least, so that a quick build can be stopped too
                if not on_progress(BuildProgress(kind, monitor.fraction, monitor.doing)):
                    raise BuildStopped(f"the build of the {kind} network was stopped")
                done = bool(wait([future], POLL_S).done)
        except BaseException:
            monitor.stopped = True  # TensorRT gives up at its next step, for which the pool waits
            raise
        return future.result()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Phases nest: a phase's own steps, and within the step at hand the phase below it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.fraction, self.doing, self.stopped = 0.0, "starting", False
            self._phases: dict[str, list[int]] = {}  # name: steps done, steps in all; outermost first

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

    return Monitor()


def _layers(trt: Any, network: Any) -> dict[str, dict[str, int]]:
    """How many layers of each kind give each type. The network is strongly typed: what it says is what is built."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.CONSTANT and layer.num_outputs:
            counts[str(layer.get_output(0).dtype).rpartition(".")[2]][str(layer.type).rpartition(".")[2]] += 1
    names = {"HALF": "float16", "FLOAT": "float32"}
    return {names.get(dtype, dtype.lower()): dict(counter.most_common()) for dtype, counter in sorted(counts.items())}


def _io_bytes(trt: Any, network: Any, shapes: Mapping[str, Range]) -> int:
    """Inputs and outputs at their largest. An output's free sides are its input's, in the same order."""
    free = [side for _, _, high in shapes.values() for side in high]
    total = sum(math.prod(high) for _, _, high in shapes.values())  # bytes
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        shape: Shape = tuple(free[i] if side < 0 else side for i, side in enumerate(tensor.shape))
        total += math.prod(shape) * trt.nptype(tensor.dtype)().itemsize
    return total
