# SPDX-License-Identifier: Apache-2.0
"""Report of the demo: checks of every mask, latency, accuracy and overlays, as demo.json and a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nightlab_core.data.frames import Frame, FrameSource
from nightlab_core.files import write_atomic
from nightlab_core.labels import ClassSet, overlay, to_class_set
from nightlab_core.metrics import confusion_matrix, iou, mean_iou, paired_bootstrap
from nightlab_core.runtime.refinement import Outcome
from nightlab_replay.report.curves import StoredCurves, curve_chart
from nightlab_replay.report.page import jpeg_uri, write_jpeg, write_page
from nightlab_ros.playback.mask_recorder import IMAGE_LEVEL_MASK, MASK, MaskRecorder, ReceivedMask
from nightlab_ros.playback.protocol import PlayerProcess, SentFrame

#: Frames that are drawn, evenly spread over those with a mask.
NUM_SHEETS = 12
#: Width of a picture in pixels.
PANEL_WIDTH = 640
LEVELS = ("image_level", "both_levels")
#: Colours in which the boxes of hard regions are drawn, RGB, by `Outcome` in lower case. The others are not drawn.
OUTCOME_COLOURS_RGB = {"read": (60, 220, 90), "left_out": (255, 200, 0), "late": (255, 60, 60), "failed": (255, 60, 60)}


@dataclass(frozen=True)
class Recording:
    """Everything that was sent and received; masks by stamp in nanoseconds."""

    frame_id: str  #: of every frame
    rate_hz: float
    rendered: bool = False  #: True if the frames are the rendered clip
    sent: list[SentFrame] = field(default_factory=list)
    masks: dict[int, ReceivedMask] = field(default_factory=dict)
    image_level: dict[int, ReceivedMask] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)  #: the node's last values
    #: by stamp: hard regions, see `messages.region_records`
    regions: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def collect(cls, recorder: MaskRecorder, player: PlayerProcess, frame_id: str, rate_hz: float) -> Recording:
        """Take what was sent and received, except warm-up frames and their masks."""
        warm_up = {frame.stamp_ns for frame in player.warm_up_frames}
        masks, image_level = (
            {stamp_ns: masks[0] for stamp_ns, masks in recorder.received[topic].items() if stamp_ns not in warm_up}
            for topic in (MASK, IMAGE_LEVEL_MASK)
        )
        regions = {stamp_ns: found for stamp_ns, found in recorder.regions.items() if stamp_ns not in warm_up}
        return cls(frame_id, rate_hz, False, list(player.sent), masks, image_level, dict(recorder.diagnostics), regions)

    @property
    def answered(self) -> list[SentFrame]:
        """Frames whose mask came back."""
        return [frame for frame in self.sent if frame.stamp_ns in self.masks]


def find_problems(recording: Recording) -> list[str]:
    """Return a sentence for each mask with another stamp, frame_id, encoding or size than its frame, or for no mask."""
    problems = []
    sizes = {frame.stamp_ns: frame.size_hw for frame in recording.sent}
    if not recording.masks:
        problems.append(f"no mask came back for {len(recording.sent)} frames")
    for stamp_ns, mask in recording.masks.items():
        name = f"the mask of {stamp_ns} ns"
        if stamp_ns not in sizes:
            problems.append(f"a mask has the stamp {stamp_ns} ns, which no frame had")
        elif mask.size_hw != sizes[stamp_ns]:
            problems.append(f"{name} is {mask.size_hw}, its frame was {sizes[stamp_ns]} (height, width)")
        if mask.frame_id != recording.frame_id:
            problems.append(f"{name} has frame_id {mask.frame_id!r}, expected {recording.frame_id!r}")
        if mask.encoding != "mono8":
            problems.append(f"{name} has the encoding {mask.encoding!r}, expected 'mono8'")
    return problems


def find_notes(regions: Mapping[str, int], node: Mapping[str, str]) -> list[str]:
    """Return a sentence if regions were wanted and none was read, from the outcomes' counts and the node's values."""
    if regions["read"] or not (regions["left_out"] or regions["late"] or int(node.get("hardness_late", 0))):
        return []
    return [
        "no region could be read within the deadline, so both levels have the same masks: lower RATE (--rate), or set "
        "PARAMS='deadline_ms:=0.0' (--param deadline_ms:=0.0), with which more frames are dropped"
    ]


def write_report(
    recording: Recording, source: FrameSource, classes: ClassSet, out: Path, curves: StoredCurves | None = None
) -> dict[str, Any]:
    """Read the frames again, score and draw them, write overlays/, demo.json and index.html; returns demo.json.

    `classes` is the masks' class set. `curves` are the bundle's, for the page. Raises OSError if `out` cannot be
    written.
    """
    answered = {frame.index: frame for frame in recording.answered}
    spread = np.linspace(0, len(answered) - 1, min(NUM_SHEETS, len(answered))).round().astype(int)
    drawn = {list(answered)[place] for place in spread}
    matrices: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
    sheets, written = [], []
    overlays = out / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    _remove_overlays(out)
    for index, frame in enumerate(source):
        if index not in answered:
            continue
        stamp_ns = answered[index].stamp_ns
        mask = recording.masks[stamp_ns]
        both = mask.labels
        image_level = recording.image_level[stamp_ns].labels if stamp_ns in recording.image_level else None
        if frame.labels is not None and image_level is not None:
            for level, labels in zip(LEVELS, (image_level, both), strict=True):
                mapped = to_class_set(labels, classes, source.classes)
                matrices[level].append(confusion_matrix(frame.labels, mapped, len(source.classes)))
        if index in drawn:
            regions = recording.regions.get(stamp_ns, [])
            panels = draw_panels(frame, image_level, both, classes, source.classes, regions)
            written.append(f"{index:05d}_{frame.name}.jpg")
            write_jpeg(overlays / written[-1], np.hstack(list(panels.values())))
            pictures = {caption: jpeg_uri(panel) for caption, panel in panels.items()}
            sheets.append(
                {
                    "name": frame.name,
                    "latency_ms": mask.latency_ms,
                    "panels": pictures,
                    "regions": count_outcomes([regions]),
                }
            )
    report = {**summarize(recording, source, matrices), "overlays": written}
    write_atomic(out / "demo.json", json.dumps(report, indent=1) + "\n")
    legend = list(zip(classes.names, classes.colors_rgb, strict=True))
    charts = {dataset: curve_chart(curve, dataset) for dataset, curve in (curves.curves if curves else {}).items()}
    write_page(
        out / "index.html", "demo.html.j2", package="nightlab_ros.demo", report=report, sheets=sheets, legend=legend,
        outcomes=OUTCOME_COLOURS_RGB, curves=curves, charts=charts,
    )  # fmt: skip
    return report


def _remove_overlays(out: Path) -> None:
    """Delete the overlays that the demo.json of an earlier run names."""
    try:
        names = json.loads((out / "demo.json").read_text(encoding="utf-8"))["overlays"]
    except (FileNotFoundError, ValueError, KeyError):
        return
    for name in names:
        (out / "overlays" / Path(name).name).unlink(missing_ok=True)


def count_outcomes(frames: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """Count the hard regions of frames by outcome, every `Outcome` in lower case."""
    found = Counter(region["outcome"] for regions in frames for region in regions)
    return {outcome.name.lower(): found[outcome.name.lower()] for outcome in Outcome}


def rate_of_masks(recording: Recording) -> float:
    """Return the masks per second of the time in which frames were sent."""
    if not recording.sent:
        return 0.0
    sent_s = (recording.sent[-1].stamp_ns - recording.sent[0].stamp_ns) / 1e9
    return len(recording.answered) / (sent_s + 1 / recording.rate_hz)


def summarize(recording: Recording, source: FrameSource, matrices: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Return the content of demo.json. Latencies are in milliseconds.

    `matrices` holds a confusion matrix of each labelled frame for each of LEVELS.
    """
    diagnostics, answered = recording.diagnostics, recording.answered
    regions = count_outcomes(recording.regions.values())
    stages = [key.removesuffix("_ms_p50") for key in diagnostics if key.endswith("_ms_p50")]
    return {
        "input": source.name,
        "rendered": recording.rendered,
        "rate_hz": recording.rate_hz,
        "sent": len(recording.sent),
        "received": len(answered),
        "dropped": len(recording.sent) - len(answered),
        "masks_hz": rate_of_masks(recording),
        "regions": regions,
        "latency_ms": percentiles([recording.masks[frame.stamp_ns].latency_ms for frame in answered]),
        "stages_ms": {
            stage: {mark: float(diagnostics[f"{stage}_ms_{mark}"]) for mark in ("p50", "p95", "p99")}
            for stage in stages
        },
        "accuracy": summarize_accuracy(source.classes, matrices) if matrices["both_levels"] else None,
        "problems": find_problems(recording),
        "notes": find_notes(regions, diagnostics),
        "node": diagnostics,
        "frames": [
            {
                "name": frame.name,
                "stamp_ns": frame.stamp_ns,
                "size_hw": frame.size_hw,
                "sent_late_ms": frame.late_ms,
                "latency_ms": recording.masks[frame.stamp_ns].latency_ms if frame.stamp_ns in recording.masks else None,
                "regions": recording.regions.get(frame.stamp_ns),
            }
            for frame in recording.sent
        ],
    }


def summarize_accuracy(classes: ClassSet, matrices: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Return mIoU, its gain by the second level, and IoU by class; None for a class that the labels lack."""
    totals = {level: np.sum(m, axis=0) for level, m in matrices.items()}
    gain = paired_bootstrap(np.stack(matrices["image_level"]), np.stack(matrices["both_levels"]))
    return {
        "frames": len(matrices["both_levels"]),
        "classes": classes.key,
        "miou": {level: mean_iou(total) for level, total in totals.items()},
        "gain": dict(zip(("difference", "low_95", "high_95"), gain, strict=True)),
        "iou": {
            level: {
                name: None if math.isnan(value) else float(value)
                for name, value in zip(classes.names, iou(total), strict=True)
            }
            for level, total in totals.items()
        },
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95, p99 and max; empty without a value."""
    if not values:
        return {}
    marks = np.percentile(values, (50, 95, 99))
    return {**{f"p{p}": float(m) for p, m in zip((50, 95, 99), marks, strict=True)}, "max": max(values)}


def draw_panels(
    frame: Frame,
    image_level: np.ndarray | None,
    both: np.ndarray,
    classes: ClassSet,
    label_classes: ClassSet,
    regions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, np.ndarray]:
    """Return pictures by caption, uint8 (h, PANEL_WIDTH, 3) BGR; labels are drawn in the masks' class colours.

    `regions` are drawn as boxes, see OUTCOME_COLOURS_RGB.
    """
    image = frame.image_bgr
    panels = {"camera": image}
    if image_level is not None:
        panels["image level"] = overlay(image, image_level, classes)
    panels["both levels"] = overlay(image, both, classes)
    for region in regions:
        if colour := OUTCOME_COLOURS_RGB.get(region["outcome"]):
            x0, y0, x1, y1 = (round(side) for side in region["box_xyxy"])
            thickness = max(1, image.shape[1] // 400)
            cv2.rectangle(panels["both levels"], (x0, y0), (x1, y1), colour[::-1], thickness)
    if frame.labels is not None:
        panels["ground truth"] = overlay(image, to_class_set(frame.labels, label_classes, classes), classes)
    height = max(1, round(image.shape[0] * PANEL_WIDTH / image.shape[1]))
    interpolation = cv2.INTER_AREA if image.shape[1] > PANEL_WIDTH else cv2.INTER_LINEAR
    return {c: cv2.resize(p, (PANEL_WIDTH, height), interpolation=interpolation) for c, p in panels.items()}
