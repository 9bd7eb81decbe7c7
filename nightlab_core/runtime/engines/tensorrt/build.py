# SPDX-License-Identifier: Apache-2.0
"""Build the TensorRT plans of a bundle's networks, and name the plan that a network needs.

Building needs the package `onnx`, which rewrites the graphs. Loading does not. An active node never builds.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import shlex
import time
from pathlib import Path
from typing import Any, Literal

from nightlab_core.runtime.bundle import Bundle, EngineKind
from nightlab_core.runtime.engines.engine import BuildProgress, BuildStopped, OnProgress
from nightlab_core.runtime.engines.tensorrt.compiler import serialize
from nightlab_core.runtime.engines.tensorrt.libraries import Target, TensorRtError, TensorRtLibrary, platform_name
from nightlab_core.runtime.engines.tensorrt.plans import (
    PlanError,
    PlanHeader,
    PlanKey,
    Range,
    TensorInfo,
    find_plan,
    locked,
    write_plan,
)

Precision = Literal["float16", "float32"]
#: Increase with every change of graphs.py, half.py or compiler.py, so that older plans are not loaded.
GRAPH_VERSION = 1


def plan_shapes(bundle: Bundle, kind: EngineKind, frame_hw: tuple[int, int]) -> dict[str, Range]:
    """Return the shapes that a network's plan accepts for frames of this size (height, width).

    The frame's size is fixed, since it never changes while a camera runs. The number of regions changes: one plan takes
    1 to `max_batch`, and crops of every size of the bundle, and is tuned for the largest batch of `input_hw`. Plans of
    fixed batches and sizes would each hold the weights.
    """
    files = bundle.manifest.engines
    if kind == "region":
        region = files.region
        smallest, largest, batch = region.sizes_hw[0], region.sizes_hw[-1], region.max_batch
        wanted = (1, smallest), (batch, region.input_hw), (batch, largest)
        shapes = [region.input_shapes(*each, len(bundle.class_set)) for each in wanted]
        return {name: (shapes[0][name], shapes[1][name], shapes[2][name]) for name in shapes[0]}
    file = files.image if kind == "image" else files.hardness
    shape = (1, *file.network_hw(frame_hw), 3)
    return {"frame": (shape, shape, shape)}


def plan_key(
    bundle: Bundle,
    kind: EngineKind,
    library: TensorRtLibrary,
    target: Target,
    precision: Precision,
    shapes: dict[str, Range],
) -> PlanKey:
    """Return the key of the plan that this machine would build or load."""
    return PlanKey(
        kind=kind,
        onnx_sha256=getattr(bundle.manifest.engines, kind).sha256,
        graph_version=GRAPH_VERSION,
        library=library.name,
        version=library.version,
        platform=platform_name(),
        capabilities=target.capabilities,
        gpu_name=target.gpu_name,
        precision=precision,
        shapes=shapes,
    )


def build_command(bundle: Bundle, frame_hw: tuple[int, int] | None, precision: Precision = "float16") -> str:
    """Return the command that builds missing plans for frames of this size. None leaves the size for the user."""
    size = f"{frame_hw[1]}x{frame_hw[0]}" if frame_hw else "WIDTHxHEIGHT"
    words = ["nightlab", "engine", "build", "--bundle", str(bundle.dir), "--image-size", size]
    if precision != "float16":
        words += ["--precision", precision]
    folder = os.environ.get("NIGHTLAB_PLANS")
    return (f"NIGHTLAB_PLANS={shlex.quote(folder)} " if folder else "") + shlex.join(words)


def build_plan(
    bundle: Bundle,
    key: PlanKey,
    library: TensorRtLibrary,
    folder: Path,
    on_progress: OnProgress = lambda progress: True,
) -> tuple[PlanHeader, bool]:
    """Build the plan with this key into the cache unless a valid one is there. Return its header, and True if built.

    Raises TensorRtError that names the layer which TensorRT refuses, PlanError if the folder cannot be written or the
    bundle was changed, ImportError that names a missing package, and BuildStopped.
    """

    def wait() -> None:
        if not on_progress(BuildProgress(key.kind, 0.0, "waiting for another process that builds")):
            raise BuildStopped("the wait for another process that builds was stopped")

    with locked(folder, wait):
        try:
            header, _ = find_plan(folder, key)
            return header, False
        except PlanError:
            pass
        started = time.monotonic()
        on_progress(BuildProgress(key.kind, 0.0, "rewriting the graph"))
        model, inputs, outputs = _rewritten(bundle.path(key.kind), key)
        plan, layers, io_bytes = serialize(library, model, key, on_progress)
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
        on_progress(BuildProgress(key.kind, 1.0, "stored"))
        return header, True


def _rewritten(path: Path, key: PlanKey) -> tuple[bytes, dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Return the graph rewritten for TensorRT, and the inputs and outputs of the original."""
    try:
        import onnx

        from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph
    except ImportError as error:
        raise ImportError(
            f"building TensorRT plans needs packages of which one is missing ({error}): pip install onnx onnxruntime"
        ) from error
    data = path.read_bytes()  # read now: it may have been exported again while another process was building
    received = hashlib.sha256(data).hexdigest()
    if received != key.onnx_sha256:
        raise PlanError(
            f"{path}: received SHA-256 {received}, expected {key.onnx_sha256}: the file was changed since the bundle "
            "was opened; run the command again, or configure the node again"
        )
    model = onnx.load_model_from_string(data)
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
