# SPDX-License-Identifier: Apache-2.0
"""Compare a bundle in half precision with float32 on real frames, and report its largest values.

    python -m nightlab_core.export.precision BUNDLE --frames FOLDER

ONNX Runtime has almost no operators in half precision on a CPU: it computes in float32 without the roundings between
operators, which hides an overflow. So the graphs for TensorRT run here in float32 with every half value rounded to
half, as on a GPU that multiplies in half precision and sums in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from nightlab_core.export.parity import compare_labels, read_frames
from nightlab_core.export.recording import RecordingEngine, by_network, read_at_every_size
from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, BundleError, load_bundle
from nightlab_core.runtime.engines.engine import TensorSpec
from nightlab_core.runtime.engines.onnxruntime import OnnxRuntimeEngine
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph
from nightlab_core.runtime.engines.tensorrt.half import EXACT, HALF_MAX
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.regions import non_maximum_suppression
from nightlab_core.runtime.settings import PipelineSettings

MIN_AGREEMENT = 0.995  #: of labels, half against float32
_PEAK, _SUM = "largest of ", "sum of "


@dataclass(frozen=True)
class Peak:
    """The largest magnitude that an operator in half precision wrote, before rounding."""

    node: str
    op_type: str
    largest: float  #: NaN if it wrote a NaN

    @property
    def fits(self) -> bool:
        """True if half precision can represent it."""
        return self.largest <= HALF_MAX


@dataclass(frozen=True)
class HalfParity:
    """Agreement of one network, or of the whole pipeline, in half precision with itself in float32."""

    network: str  #: kind of engine; of the region network also the size of crops; or "pipeline"
    calls: int
    agreement: float  #: share of labels that are equal; for hardness, of the boxes kept, see `compare_proposals`
    worst_confidence: int  #: largest difference of confidence, in 1/255; for hardness, of score
    peaks: tuple[Peak, ...] = ()  #: of every operator in half, the largest first

    @property
    def passed(self) -> bool:
        """True if the agreement is high enough and nothing overflows."""
        return self.agreement >= MIN_AGREEMENT and all(peak.fits for peak in self.peaks)


def check_half(
    bundle: Bundle,
    frames: Sequence[np.ndarray],
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
) -> list[HalfParity]:
    """Compare a bundle's networks in half precision with float32 on frames, uint8 (H, W, 3) BGR of any size.

    Both receive the same inputs; the region network reads the windows that float32 proposes, at every size of the
    bundle. The last row compares the labels of two whole pipelines.
    """
    with tempfile.TemporaryDirectory() as folder:
        full = {kind: RecordingEngine(OnnxRuntimeEngine(bundle.path(kind))) for kind in ENGINE_KINDS}
        half = {kind: RoundedEngine(bundle.path(kind), Path(folder)) for kind in ENGINE_KINDS}
    pipelines = [Pipeline(Engines(bundle, e["image"], e["hardness"], e["region"]), settings) for e in (full, half)]
    labels = [[(result.labels, result.confidence) for result in map(pipeline, frames)] for pipeline in pipelines]
    read_at_every_size(full["region"], bundle.manifest.engines.region.sizes_hw)
    rows = []
    for kind in ENGINE_KINDS:
        compare = compare_proposals if kind == "hardness" else compare_labels
        for network, calls in by_network(kind, full[kind].calls).items():
            expected = [tuple(outputs.values()) for _, outputs in calls]
            got = [tuple(half[kind](**inputs).values()) for inputs, _ in calls]
            rows.append(HalfParity(network, len(got), *compare(expected, got), half[kind].take_peaks()))
    for pipeline in pipelines:
        pipeline.close()
        pipeline.engines.close()
    return [*rows, HalfParity("pipeline", len(frames), *compare_labels(*labels))]


def compare_proposals(
    expected: Sequence[tuple[np.ndarray, ...]],
    got: Sequence[tuple[np.ndarray, ...]],
    min_iou: float = 0.9,
    max_difference: float = 0.01,
) -> tuple[float, int]:
    """Return the fraction of the ten boxes after suppression that both propose, and the largest difference of score.

    Both sequences hold (boxes (1, N, 4), scores (1, N)) of each frame. Two boxes are the same if their IoU is at least
    `min_iou` and their scores differ by at most `max_difference`. Scores are compared in order, in 1/255.
    """
    same, worst = [], 0.0
    for (boxes, scores), (boxes_got, scores_got) in zip(expected, got, strict=True):
        kept = non_maximum_suppression(boxes[0], scores[0], 0.5, 10)
        near = iou_matrix(boxes[0][kept], boxes_got[0]) >= min_iou
        alike = np.abs(scores[0][kept][:, None] - scores_got[0]) <= max_difference
        same.append((near & alike).any(1))
        worst = max(worst, float(np.abs(scores - scores_got).max()))
    return float(np.concatenate(same).mean()), round(worst * 255)


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4) xyxy."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (corner[1] - corner[0]).clip(0).prod(2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    return shared / (area_a[:, None] + area_b - shared)


class RoundedEngine:
    """A network in half precision on ONNX Runtime, which records the largest value of each operator."""

    name = "half"

    def __init__(self, onnx_path: Path, folder: Path) -> None:
        """Rewrite a bundle's network through a file in `folder`, which is not needed afterwards."""
        graph = rounded(tensorrt_graph(onnx.load(onnx_path), "float16"))
        self._nodes = {n.output[0]: n for n in graph.graph.node}
        onnx.save(graph, folder / onnx_path.name)
        self._engine = OnnxRuntimeEngine(folder / onnx_path.name)
        self.inputs = self._engine.inputs
        self.outputs: Mapping[str, TensorSpec] = {
            name: spec for name, spec in self._engine.outputs.items() if not name.startswith((_PEAK, _SUM))
        }
        self.prepare, self.close = self._engine.prepare, self._engine.close
        self._largest: dict[str, float] = {}

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        results = self._engine(**arrays)
        for name in results:
            if name.startswith(_PEAK):
                value = name.removeprefix(_PEAK)
                # A maximum ignores NaN, a sum does not.
                largest = results[name] if np.isfinite(results[_SUM + value]) else np.nan
                self._largest[value] = float(np.maximum(largest, self._largest.get(value, 0.0)))
        return {name: results[name] for name in self.outputs}

    def take_peaks(self) -> tuple[Peak, ...]:
        """Return the largest value of each operator in half since the last call, and forget them; NaN comes first."""
        found = [Peak(self._nodes[v].name, self._nodes[v].op_type, largest) for v, largest in self._largest.items()]
        self._largest.clear()
        return tuple(sorted(found, key=lambda peak: np.nan_to_num(peak.largest, nan=np.inf), reverse=True))


def rounded(half: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a strongly typed graph in half precision to one in float32 that rounds every half value to half.

    Each operator in half gets two more outputs: its largest magnitude and the sum of magnitudes.
    """
    model = onnx.ModelProto()
    model.CopyFrom(half)
    graph = model.graph
    in_half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in EXACT or not in_half.intersection(node.output):
            continue
        (name,) = node.output
        if node.op_type == "Cast":
            node.op_type = "Identity"
            del node.attribute[:]
        exact, small = f"{name}.exact", f"{name}.rounded"
        node.output[0] = exact
        nodes += [
            helper.make_node("Cast", [exact], [small], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT),
            helper.make_node("Abs", [exact], [f"{name}.magnitude"]),
            helper.make_node("ReduceMax", [f"{name}.magnitude"], [_PEAK + exact], keepdims=0),
            helper.make_node("ReduceSum", [f"{name}.magnitude"], [_SUM + exact], keepdims=0),
        ]
        graph.output.extend(helper.make_tensor_value_info(p + exact, TensorProto.FLOAT, []) for p in (_PEAK, _SUM))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return model


def print_half(rows: Sequence[HalfParity], title: str, worst: int = 3) -> bool:
    """Print the rows as a table, and the `worst` operators of each network. Return True if all passed."""
    table = Table(title=title, title_justify="left")
    for column in ("half and float32", "calls", "equal", "confidence off by", "largest value", ""):
        table.add_column(column, justify="left" if column in ("half and float32", "") else "right")
    for row in rows:
        largest = f"{row.peaks[0].largest:.4g}" if row.peaks else ""
        verdict = "ok" if row.passed else "FAILED"
        table.add_row(
            row.network, str(row.calls), f"{row.agreement:.3%}", f"{row.worst_confidence}/255", largest, verdict
        )
    console = Console(soft_wrap=True)
    console.print(table)
    for row in rows:
        for peak in row.peaks[:worst]:
            remark = "" if peak.fits else f": more than half's {HALF_MAX:.0f}; build this engine in float32"
            console.print(f"  {row.network}: {peak.op_type} {peak.node} writes up to {peak.largest:.4g}{remark}")
    return all(row.passed for row in rows)


def main() -> None:
    """Command line. Exit status 1 if half disagrees with float32 or overflows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--frames", type=Path, action="append", required=True, help="folder of images; may be given again"
    )
    parser.add_argument("--count", type=int, default=16, help="frames of each folder (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        bundle = load_bundle(arguments.bundle)
        sets = {folder: read_frames(folder, arguments.count) for folder in arguments.frames}
        passed = [print_half(check_half(bundle, frames), str(folder)) for folder, frames in sets.items()]
    except (BundleError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        parser.exit(2, f"{error}\n")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
