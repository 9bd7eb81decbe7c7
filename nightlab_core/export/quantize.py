# SPDX-License-Identifier: Apache-2.0
"""Quantise a bundle to 8 bits with explicit nodes, calibrated on real frames, and compare speed and accuracy.

    python -m nightlab_core.export.quantize BUNDLE OUT --frames FOLDER [--labelled FOLDER]

writes another bundle, which every library runs and from which TensorRT builds 8-bit engines. It then compares the two:
speed on this CPU, and mean IoU on labelled frames.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nightlab_core.config import replace
from nightlab_core.data.frames import FrameSource, open_frames
from nightlab_core.export.parity import read_frames
from nightlab_core.export.recording import Arrays, RecordingEngine, read_at_every_size
from nightlab_core.labels import to_class_set
from nightlab_core.metrics import confusion_matrix, mean_iou, paired_bootstrap
from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, BundleError, EngineKind, load_bundle, write_manifest
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.onnxruntime import OnnxRuntimeEngine
from nightlab_core.runtime.engines.open import Engines, open_network
from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph
from nightlab_core.runtime.engines.tensorrt.half import PRODUCTS
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings

Calls = dict[EngineKind, list[Arrays]]


def quantize_bundle(bundle: Bundle, out: Path, frames: Sequence[np.ndarray]) -> Bundle:
    """Write a bundle whose convolutions and matrix products read 8 bits, and return it.

    frames: uint8 (H, W, 3) BGR of any size; their largest values are the ranges. Weights are quantised per channel,
    activations per tensor, both symmetrically, as TensorRT requires. `sensitive` products stay in float32.
    """
    if out.resolve() == bundle.dir.resolve():
        raise ValueError(f"{out} is the bundle itself; give another folder to write to")
    out.mkdir(parents=True, exist_ok=True)
    calls = record_inputs(bundle, frames)
    for kind in ENGINE_KINDS:
        graph = tensorrt_graph(onnx.load(bundle.path(kind)), "float32")
        _quantize(graph, calls[kind], out / bundle.path(kind).name)
    manifest = replace(
        bundle.manifest, name=f"{bundle.manifest.name}-int8", deform="grid_sample", weights="int8", accuracy={}
    )
    write_manifest(out, manifest)
    return load_bundle(out)


def record_inputs(bundle: Bundle, frames: Sequence[np.ndarray]) -> Calls:
    """Return the inputs of each network of a bundle while the pipeline segments these frames; crops at every size."""
    engines = {kind: RecordingEngine(OnnxRuntimeEngine(bundle.path(kind))) for kind in ENGINE_KINDS}
    opened = Engines(bundle, engines["image"], engines["hardness"], engines["region"])
    with opened, Pipeline(opened, PipelineSettings(max_regions=MAX_REGIONS)) as pipeline:
        for frame in frames:
            pipeline(frame)
        read_at_every_size(engines["region"], bundle.manifest.engines.region.sizes_hw)
    return {kind: [inputs for inputs, _ in engines[kind].calls] for kind in ENGINE_KINDS}


def sensitive(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the products that lose too much in 8 bits.

    These are the ones that read the image, and those whose result becomes an output of the network or a sampling
    position with no other product in between.
    """
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    images = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}

    @cache
    def from_image(name: str) -> bool:
        node = producers.get(name)
        if node is None or node.op_type in PRODUCTS:
            return name in images
        return node.op_type != "Shape" and any(from_image(source) for source in node.input)

    @cache
    def decides(name: str) -> bool:
        if name in outputs:
            return True
        # A size is not a result, and the inputs of products and samplings may be coarse.
        onward = [n for n in readers[name] if n.op_type not in PRODUCTS | {"Shape"}]
        return any(
            n.input[1] == name if n.op_type == "GridSample" else any(decides(target) for target in n.output)
            for n in onward
        )

    return {n.name for n in products if from_image(n.input[0]) or decides(n.output[0])}


class _Calls(CalibrationDataReader):
    def __init__(self, calls: Sequence[Arrays]) -> None:
        self._calls = iter(calls)

    def get_next(self) -> Arrays | None:
        return next(self._calls, None)


def _quantize(graph: onnx.ModelProto, calls: Sequence[Arrays], path: Path) -> None:
    quantize_static(
        graph,
        path,
        _Calls(calls),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=sorted(PRODUCTS),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=sorted(sensitive(graph.graph)),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT takes no 32-bit bias
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": sorted(PRODUCTS),
        },
    )


@dataclass(frozen=True)
class SpeedComparison:
    """Median latency of one network in both bundles."""

    kind: EngineKind
    library: str
    original_ms: float
    quantized_ms: float


def compare_speed(original: Bundle, quantized: Bundle, calls: Calls, repeats: int = 5) -> list[SpeedComparison]:
    """Time both bundles' networks on the same inputs in turn, so that other load affects both."""
    rows = []
    for library in ("onnxruntime", "openvino"):
        options = EngineOptions(engine=library)
        for kind in ENGINE_KINDS:
            engines = [open_network(bundle.path(kind), options) for bundle in (original, quantized)]
            times: list[list[float]] = [[], []]
            for i in range(repeats):
                inputs = calls[kind][i % len(calls[kind])]
                for engine, ms in zip(engines, times, strict=True):
                    engine(**inputs)  # compiles, if it is the first of its size
                    start = perf_counter()
                    engine(**inputs)
                    ms.append((perf_counter() - start) * 1e3)
            for engine in engines:
                engine.close()
            rows.append(SpeedComparison(kind, library, *(float(np.median(ms)) for ms in times)))
    return rows


@dataclass(frozen=True)
class AccuracyComparison:
    """Mean IoU in percent of both bundles on one set, and the difference with its 95 % interval."""

    level: str
    frames: int
    original: float
    quantized: float
    difference: tuple[float, float, float]


def compare_accuracy(original: Bundle, quantized: Bundle, source: FrameSource) -> list[AccuracyComparison]:
    """Segment labelled frames with both bundles in float32. Raises ValueError for a frame without labels."""
    matrices: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"image level": ([], []), "both levels": ([], [])}
    options = EngineOptions(precision="float32")
    opened = [Engines.open(bundle, options) for bundle in (original, quantized)]
    pipelines = [Pipeline(engines) for engines in opened]
    for frame in track(source, source.name, total=source.num_frames):
        if frame.labels is None:
            raise ValueError(
                f"{source.name}: {frame.name} has no labels; give --labelled a folder of images and labels"
            )
        for i, pipeline in enumerate(pipelines):
            result = pipeline(frame.image_bgr)
            for level, labels in (("image level", result.image_labels), ("both levels", result.labels)):
                mapped = to_class_set(labels, original.class_set, source.classes)
                matrices[level][i].append(confusion_matrix(frame.labels, mapped, len(source.classes)))
    for pipeline, engines in zip(pipelines, opened, strict=True):
        pipeline.close()
        engines.close()
    rows = []
    for level, (a, b) in matrices.items():
        one, other = np.stack(a), np.stack(b)
        mean, low, high = (100 * value for value in paired_bootstrap(one, other))
        before, after = (100 * mean_iou(counts.sum(0)) for counts in (one, other))
        rows.append(AccuracyComparison(level, len(a), before, after, (mean, low, high)))
    return rows


def print_comparison(speeds: Sequence[SpeedComparison], accuracies: Sequence[AccuracyComparison]) -> None:
    """Print the comparison as tables."""
    table = Table(title="latency on this CPU, float and 8 bits", title_justify="left")
    for column in ("network", "library", "float ms", "8 bits ms", "times as fast"):
        table.add_column(column)
    for s in speeds:
        ratio = f"{s.original_ms / s.quantized_ms:.2f}"
        table.add_row(s.kind, s.library, f"{s.original_ms:.1f}", f"{s.quantized_ms:.1f}", ratio)
    Console().print(table)
    if accuracies:
        table = Table(title=f"mean IoU in % on {accuracies[0].frames} labelled frames", title_justify="left")
        for column in ("", "float", "8 bits", "difference, 95 % interval"):
            table.add_column(column)
        for a in accuracies:
            interval = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*a.difference)
            table.add_row(a.level, f"{a.original:.2f}", f"{a.quantized:.2f}", interval)
        Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path, help="folder to write the quantised bundle to")
    parser.add_argument("--frames", type=Path, action="append", required=True, help="calibration; may be given again")
    parser.add_argument("--count", type=int, default=16, help="frames of each folder (default: %(default)s)")
    parser.add_argument("--labelled", type=Path, help="folder of images and labels to measure the loss on")
    parser.add_argument("--labelled-count", type=int, default=None, help="of these at most so many")
    arguments = parser.parse_args()
    try:
        bundle = load_bundle(arguments.bundle)
        labelled = open_frames(arguments.labelled, max_frames=arguments.labelled_count) if arguments.labelled else None
        frames = [frame for folder in arguments.frames for frame in read_frames(folder, arguments.count)]
        quantized = quantize_bundle(bundle, arguments.out, frames)
        speeds = compare_speed(bundle, quantized, record_inputs(bundle, frames[:2]))
        print_comparison(speeds, compare_accuracy(bundle, quantized, labelled) if labelled else ())
    except (BundleError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
