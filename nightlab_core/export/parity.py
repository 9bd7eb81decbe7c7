# SPDX-License-Identifier: Apache-2.0
"""Compare the networks of a bundle with torch: one check, for the export command and the tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nightlab_core.data.image_files import image_files, read_image
from nightlab_core.export.recording import by_network, read_at_every_size, recording
from nightlab_core.runtime.bundle import ENGINE_KINDS, load_bundle
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import Engines, open_network
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings

MIN_AGREEMENT = 0.999  #: of labels, between engine and torch in float32


@dataclass(frozen=True)
class Parity:
    """Agreement of one network on one library with the reference, both in float32."""

    network: str  #: kind of engine; of the region network also the size of crops
    library: str
    calls: int  #: of the network, on all frames
    agreement: float  #: share of labels that are equal; for hardness, of boxes within half a pixel and 1e-3 of score
    worst_confidence: int  #: largest difference of confidence, in 1/255; for hardness, of score

    @property
    def passed(self) -> bool:
        """True if the agreement is high enough."""
        return self.agreement >= MIN_AGREEMENT


def check_parity(
    reference: Engines,
    folder: Path,
    frames: Sequence[np.ndarray],
    libraries: Iterable[str] = ("openvino", "onnxruntime"),
) -> list[Parity]:
    """Compare the networks of the bundle in a folder with reference engines, usually torch's, in float32.

    frames: uint8 (H, W, 3) BGR of any size. Each network receives what it receives when the pipeline runs on the
    reference: the region level reads the crops that the reference's hardness level proposes on those frames, at every
    size of the bundle.
    """
    bundle = load_bundle(folder)
    engines, recorders = recording(reference)
    with Pipeline(engines, PipelineSettings(max_regions=MAX_REGIONS)) as pipeline:
        for frame in frames:
            pipeline(frame)
    read_at_every_size(recorders["region"], bundle.manifest.engines.region.sizes_hw)
    rows = []
    for library in libraries:
        options = EngineOptions(engine=library, precision="float32")
        for kind in ENGINE_KINDS:
            engine = open_network(bundle.path(kind), options)
            compare = compare_boxes if kind == "hardness" else compare_labels
            for network, calls in by_network(kind, recorders[kind].calls).items():
                expected = [tuple(outputs.values()) for _, outputs in calls]
                received = [tuple(engine(**inputs).values()) for inputs, _ in calls]
                rows.append(Parity(network, library, len(received), *compare(expected, received)))
            engine.close()
    return rows


def compare_labels(
    expected: Sequence[tuple[np.ndarray, ...]], got: Sequence[tuple[np.ndarray, ...]]
) -> tuple[float, int]:
    """Return the fraction of labels that are equal, and the largest difference of confidence in 1/255.

    Both sequences hold (labels, confidence) of each call, and perhaps probabilities, uint8 of equal shapes.
    """
    equal = [e[0].ravel() == g[0].ravel() for e, g in zip(expected, got, strict=True)]
    pairs = (pair for e, g in zip(expected, got, strict=True) for pair in zip(e[1:], g[1:], strict=True))
    worst = [np.abs(e.astype(int) - g).max() for e, g in pairs]
    return float(np.concatenate(equal).mean()), int(max(worst))


def compare_boxes(expected: list[tuple[np.ndarray, ...]], got: list[tuple[np.ndarray, ...]]) -> tuple[float, int]:
    """Return the fraction of boxes that agree, and the largest difference of score in 1/255.

    Each box is compared with the nearest one, since two boxes of equal score may change places.
    """
    matched, worst = [], 0.0
    for (boxes, scores), (boxes_got, scores_got) in zip(expected, got, strict=True):
        distance = np.abs(boxes[0][:, None] - boxes_got[0][None]).max(2)
        nearest = distance.argmin(1)
        difference = np.abs(scores[0] - scores_got[0][nearest])
        matched.append((distance.min(1) < 0.5 / 640) & (difference < 1e-3))
        worst = max(worst, float(difference.max()))
    return float(np.concatenate(matched).mean()), round(worst * 255)


def read_frames(folder: Path, count: int) -> list[np.ndarray]:
    """Read `count` images, spread evenly over a folder: uint8 (H, W, 3) BGR. Raises ValueError if there is none."""
    paths = image_files(folder)
    if not paths:
        raise ValueError(f"{folder} contains no image; give a folder of camera images")
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [read_image(paths[i]) for i in chosen]


def print_parity(rows: Sequence[Parity]) -> bool:
    """Print the rows as a table. Return True if all passed."""
    table = Table(title=f"Engines against torch, float32, at least {MIN_AGREEMENT:.1%} equal")
    for column in ("network", "library", "calls", "equal", "largest difference / 255", ""):
        table.add_column(column)
    for row in rows:
        verdict = "ok" if row.passed else "FAILED"
        figures = str(row.calls), f"{row.agreement:.4%}", str(row.worst_confidence)
        table.add_row(row.network, row.library, *figures, verdict)
    Console().print(table)
    return all(row.passed for row in rows)
