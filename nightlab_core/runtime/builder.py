# SPDX-License-Identifier: Apache-2.0
"""Builds TensorRT plans of a bundle's networks. Nothing here runs while the node is active.

Building needs the package ``onnx``, by which the bundle's graphs become what TensorRT takes. Loading does not.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nightlab_core.runtime.bundle import Bundle, EngineKind
from nightlab_core.runtime.flavours import Flavour, Target, TensorRtError, platform_name
from nightlab_core.runtime.plans import (
    PlanError,
    PlanHeader,
    PlanKey,
    Range,
    Shape,
    TensorInfo,
    find_plan,
    locked,
    write_plan,
)
from nightlab_core.runtime.regions import network_size_hw

Precision = Literal["float16", "float32"]
#: Raised with every change of the rewriting in graphs.py or of the building here, so that older plans are not taken.
GRAPH_VERSION = 1
POLL_S = 0.02


class BuildStopped(Exception):
    """The one who asked for the plans wants them no longer."""


@dataclass(frozen=True)
class Progress:
    """How far a build is."""

    kind: EngineKind
    fraction: float  #: 0..1 of this network's plan
    doing: str  #: TensorRT's own name for what it does

    def __str__(self) -> str:
        return f"{self.kind} {self.fraction:.0%}, {self.doing}"


#: Is told how far a build is, many times a second, in the thread that asked for it; answers whether to go on.
OnProgress = Callable[[Progress], bool]


def plan_shapes(bundle: Bundle, kind: EngineKind, frame_hw: tuple[int, int]) -> dict[str, Range]:
    """The shapes that a network's plan takes for frames of this size.

    The frame's size is fixed, since it never changes while a camera runs. The number of regions does, from 1 to 10,
    so that one plan takes them all and is tuned for the largest batch, which is where the time goes: a few plans of
    fixed batches would hold the weights once each.
    """
    files = bundle.manifest.engines
    if kind == "region":
        crop = (*files.region.input_hw, 3)
        return {"crops": ((1, *crop), (files.region.max_batch, *crop), (files.region.max_batch, *crop))}
    file = files.image if kind == "image" else files.hardness
    shape = (1, *network_size_hw(frame_hw, file.input_hw, file.multiple), 3)
    return {"frame": (shape, shape, shape)}


def plan_key(
    bundle: Bundle, kind: EngineKind, flavour: Flavour, target: Target, precision: Precision, shapes: dict[str, Range]
) -> PlanKey:
    """The key of a plan that this machine would build, or load."""
    return PlanKey(
        kind=kind,
        onnx_sha256=getattr(bundle.manifest.engines, kind).sha256,
        graph_version=GRAPH_VERSION,
        flavour=flavour.name,
        version=flavour.version,
        platform=platform_name(),
        capabilities=target.capabilities,
        gpu_name=target.gpu_name,
        precision=precision,
        shapes=shapes,
    )


def build_plan(
    bundle: Bundle, key: PlanKey, flavour: Flavour, folder: Path, on_progress: OnProgress = lambda progress: True
) -> tuple[PlanHeader, bool]:
    """Build the plan with this key into the cache, unless a whole one is there; its header, and whether it was built.

    Raises TensorRtError naming the layer that TensorRT refuses, PlanError where the folder cannot be written,
    ImportError naming a missing package, and BuildStopped.
    """

    def wait() -> None:
        if not on_progress(Progress(key.kind, 0.0, "waiting for another process that builds")):
            raise BuildStopped("the wait for another process that builds was ended")

    with locked(folder, wait):
        try:
            header, _ = find_plan(folder, key)
            return header, False
        except PlanError:
            pass
        started = time.monotonic()
        on_progress(Progress(key.kind, 0.0, "rewriting the graph"))
        model, inputs, outputs = _rewritten(bundle.path(key.kind), key)
        plan, layers, io_bytes = serialize(flavour, model, key, on_progress)
        header = PlanHeader(
            key=key,
            inputs=inputs,
            outputs=outputs,
            built=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            build_seconds=round(time.monotonic() - started, 2),
            layers=layers,
            io_bytes=io_bytes,
            plan_bytes=len(plan),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
        )
        write_plan(folder, header, plan)
        on_progress(Progress(key.kind, 1.0, "stored"))
        return header, True


def serialize(
    flavour: Flavour, model: bytes, key: PlanKey, on_progress: OnProgress
) -> tuple[bytes, dict[str, dict[str, int]], int]:
    """Parse a serialised ONNX model and build its plan: the plan, layers by type, and bytes of inputs and outputs."""
    trt = flavour.trt
    flavour.messages.clear()
    builder = trt.Builder(logger := flavour.logger())
    if builder is None:
        raise flavour.error("TensorRT made no builder")
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
    if not flavour.needs_gpu_to_build:
        _aim(flavour, config, key.target)
    plan = _run_build(trt, builder, network, config, key.kind, on_progress)
    if plan is None:
        raise flavour.error(f"TensorRT {flavour.version} cannot build the {key.kind} network")
    return bytes(memoryview(plan)), _layers(trt, network), _io_bytes(trt, network, key.shapes)


def _rewritten(path: Path, key: PlanKey) -> tuple[bytes, dict[str, TensorInfo], dict[str, TensorInfo]]:
    """The graph that TensorRT takes, and the original's inputs and outputs."""
    try:
        import onnx

        from nightlab_core.runtime.graphs import tensorrt_graph
    except ImportError as error:
        raise ImportError(
            f"building TensorRT engines needs a package that is missing ({error}): pip install onnx"
        ) from error
    model = onnx.load(path)
    fixed = {name: low for name, (low, _, high) in key.shapes.items() if low == high}
    try:
        rewritten = tensorrt_graph(model, key.precision, fixed)
    except ValueError as error:
        raise TensorRtError(f"{path}: {error}") from error

    def infos(values: Any) -> dict[str, TensorInfo]:
        numpy_dtype = onnx.helper.tensor_dtype_to_np_dtype
        return {
            value.name: TensorInfo(
                dtype=str(numpy_dtype(value.type.tensor_type.elem_type)),
                shape=tuple(
                    side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim
                ),
            )
            for value in values
        }

    return rewritten.SerializeToString(), infos(model.graph.input), infos(model.graph.output)


def _refusal(parser: Any, kind: str) -> str:
    """What the parser refuses: the layer first, then TensorRT's reason."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = []
    for error in errors:
        layer = f"layer {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the graph"
        reason = error.desc().strip().splitlines()
        lines.append(f"{layer}: {' '.join(reason[1:2] or reason)}")
    return f"TensorRT's parser refuses the {kind} network: " + ("; ".join(lines) or "it gave no reason")


def _aim(flavour: Flavour, config: Any, target: Target) -> None:
    capability = flavour.trt.ComputeCapability
    if target.gpu_name:
        chosen = [capability.CURRENT]
    else:
        chosen = [getattr(capability, "SM" + c.replace(".", "")) for c in target.capabilities]
    config.num_compute_capabilities = len(chosen)
    for index, one in enumerate(chosen):
        if not config.set_compute_capability(one, index):
            raise flavour.error(f"tensorrt_rtx cannot build for {target}")


def _run_build(trt: Any, builder: Any, network: Any, config: Any, kind: EngineKind, on_progress: OnProgress) -> Any:
    """Build in a thread, so that here progress is told steadily, however long one step takes, and signals are seen."""
    config.progress_monitor = monitor = _monitor(trt)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            while not wait([future], POLL_S).done:
                if not on_progress(Progress(kind, monitor.fraction, monitor.doing)):
                    raise BuildStopped(f"the build of the {kind} network was stopped")
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
