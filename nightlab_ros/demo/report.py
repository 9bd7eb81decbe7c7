# SPDX-License-Identifier: Apache-2.0
"""What the demo says at the end: checks of every mask, latency, accuracy, overlays, demo.json and a page. No ROS."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nightlab_core.data.frames import Frame, FrameSource
from nightlab_core.labels import ClassSet, overlay, to_class_set
from nightlab_core.metrics import confusion_matrix, iou, mean_iou, paired_bootstrap
from nightlab_replay.report.page import jpeg_uri, write_jpeg, write_page

NUM_SHEETS = 12
PANEL_WIDTH = 640


@dataclass(frozen=True)
class Sent:
    """A frame that the player sent; its place in the source, stamp in nanoseconds, (height, width)."""

    index: int
    name: str
    stamp_ns: int
    size_hw: tuple[int, int]
    late_ms: float


@dataclass(frozen=True)
class Mask:
    """A label map as it came back, packed: a long clip's masks would not fit into memory otherwise."""

    packed: bytes
    size_hw: tuple[int, int]
    encoding: str
    frame_id: str
    latency_ms: float

    @classmethod
    def pack(cls, labels: np.ndarray, encoding: str, frame_id: str, latency_ms: float) -> Mask:
        """From uint8 (H, W); the latency is from the frame's stamp to the mask's receipt."""
        height, width = labels.shape
        return cls(zlib.compress(labels.tobytes(), 1), (height, width), encoding, frame_id, latency_ms)

    @property
    def labels(self) -> np.ndarray:
        """uint8 (H, W)"""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size_hw)


@dataclass(frozen=True)
class Recording:
    """All that went out and came back; masks by stamp in nanoseconds."""

    frame_id: str
    rate_hz: float
    rendered: bool = False
    sent: list[Sent] = field(default_factory=list)
    masks: dict[int, Mask] = field(default_factory=dict)
    image_level: dict[int, Mask] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)

    @property
    def answered(self) -> list[Sent]:
        """The frames whose mask came back."""
        return [s for s in self.sent if s.stamp_ns in self.masks]


def problems(recording: Recording) -> list[str]:
    """What is wrong with the masks: none came, or one has another stamp, frame_id, encoding or size than its frame."""
    found = []
    sizes = {s.stamp_ns: s.size_hw for s in recording.sent}
    if not recording.masks:
        found.append(f"no mask came back for {len(recording.sent)} frames")
    for stamp_ns, mask in recording.masks.items():
        if stamp_ns not in sizes:
            found.append(f"a mask has the stamp {stamp_ns} ns, which no frame had")
        elif mask.size_hw != sizes[stamp_ns]:
            found.append(
                f"the mask of {stamp_ns} ns is {mask.size_hw}, its frame was {sizes[stamp_ns]} (height, width)"
            )
        if mask.frame_id != recording.frame_id:
            found.append(f"the mask of {stamp_ns} ns has frame_id {mask.frame_id!r}, expected {recording.frame_id!r}")
        if mask.encoding != "mono8":
            found.append(f"the mask of {stamp_ns} ns has the encoding {mask.encoding!r}, expected 'mono8'")
    return found


def write_report(recording: Recording, source: FrameSource, classes: ClassSet, out: Path) -> dict[str, Any]:
    """Read the frames once more, score and draw them; write overlays/, demo.json and index.html; return the numbers.

    `classes` is the masks' class set. Raises OSError if `out` cannot be written.
    """
    answered = recording.answered
    by_index = {s.index: s for s in answered}
    spread = np.linspace(0, len(answered) - 1, min(NUM_SHEETS, len(answered))).round().astype(int)
    shown = {answered[i].index for i in spread}
    matrices: dict[str, list[np.ndarray]] = {"image_level": [], "both_levels": []}
    sheets = []
    overlays = out / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    for old in overlays.glob("*.jpg"):  # of an earlier clip
        old.unlink()
    for index, frame in enumerate(source):
        if index not in by_index:
            continue
        stamp_ns = by_index[index].stamp_ns
        both = recording.masks[stamp_ns].labels
        image_level = recording.image_level[stamp_ns].labels if stamp_ns in recording.image_level else None
        if frame.labels is not None and image_level is not None:
            for level, labels in (("image_level", image_level), ("both_levels", both)):
                mapped = to_class_set(labels, classes, source.classes)
                matrices[level].append(confusion_matrix(frame.labels, mapped, len(source.classes)))
        if index in shown:
            panels = draw_panels(frame, image_level, both, classes, source.classes)
            path = overlays / f"{index:05d}_{frame.name}.jpg"
            write_jpeg(path, np.hstack(list(panels.values())))
            pictures = {caption: jpeg_uri(panel) for caption, panel in panels.items()}
            sheets.append({"name": frame.name, "latency_ms": recording.masks[stamp_ns].latency_ms, "panels": pictures})
    report = summarize(recording, source, matrices)
    (out / "demo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    legend = list(zip(classes.names, classes.colors_rgb, strict=True))
    write_page(out / "index.html", "demo.html.j2", report=report, sheets=sheets, legend=legend)
    return report


def summarize(recording: Recording, source: FrameSource, matrices: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """The numbers of demo.json. Latencies in milliseconds; IoU is None for a class that the labels lack."""
    latencies = [recording.masks[s.stamp_ns].latency_ms for s in recording.answered]
    diagnostics = recording.diagnostics
    stages = {
        stage: {mark: float(diagnostics[f"{stage}_ms_{mark}"]) for mark in ("p50", "p95", "p99")}
        for stage in [key.removesuffix("_ms_p50") for key in diagnostics if key.endswith("_ms_p50")]
    }
    accuracy = None
    if matrices["both_levels"]:
        totals = {level: np.sum(m, axis=0) for level, m in matrices.items()}
        gain = paired_bootstrap(np.stack(matrices["image_level"]), np.stack(matrices["both_levels"]))
        accuracy = {
            "frames": len(matrices["both_levels"]),
            "classes": source.classes.key,
            "miou": {level: mean_iou(total) for level, total in totals.items()},
            "gain": dict(zip(("difference", "low_95", "high_95"), gain, strict=True)),
            "iou": {
                level: {
                    n: None if math.isnan(v) else float(v) for n, v in zip(source.classes.names, iou(t), strict=True)
                }
                for level, t in totals.items()
            },
        }
    return {
        "input": source.name,
        "rendered": recording.rendered,
        "rate_hz": recording.rate_hz,
        "sent": len(recording.sent),
        "received": len(recording.answered),
        "dropped": len(recording.sent) - len(recording.answered),
        "latency_ms": percentiles(latencies),
        "stages_ms": stages,
        "accuracy": accuracy,
        "problems": problems(recording),
        "node": diagnostics,
        "frames": [
            {
                "name": s.name,
                "stamp_ns": s.stamp_ns,
                "size_hw": list(s.size_hw),
                "sent_late_ms": s.late_ms,
                "latency_ms": recording.masks[s.stamp_ns].latency_ms if s.stamp_ns in recording.masks else None,
            }
            for s in recording.sent
        ],
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and max; empty where there is no value."""
    if not values:
        return {}
    marks = np.percentile(values, (50, 95, 99))
    return {**{f"p{p}": float(m) for p, m in zip((50, 95, 99), marks, strict=True)}, "max": max(values)}


def draw_panels(
    frame: Frame, image_level: np.ndarray | None, both: np.ndarray, classes: ClassSet, truth_classes: ClassSet
) -> dict[str, np.ndarray]:
    """Caption -> picture, uint8 (h, PANEL_WIDTH, 3) BGR. The truth is drawn in the colours of the masks' class set."""
    image = frame.image_bgr
    panels = {"camera": image}
    if image_level is not None:
        panels["image level"] = overlay(image, image_level, classes)
    panels["both levels"] = overlay(image, both, classes)
    if frame.labels is not None:
        panels["truth"] = overlay(image, to_class_set(frame.labels, truth_classes, classes), classes)
    height = max(1, round(image.shape[0] * PANEL_WIDTH / image.shape[1]))
    way = cv2.INTER_AREA if image.shape[1] > PANEL_WIDTH else cv2.INTER_LINEAR
    return {caption: cv2.resize(p, (PANEL_WIDTH, height), interpolation=way) for caption, p in panels.items()}
