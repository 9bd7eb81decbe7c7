# SPDX-License-Identifier: Apache-2.0
"""All figures of a run, from its records and counts: what report.json holds and the page shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nightlab_core.metrics import mean_iou
from nightlab_core.runtime.pipeline import STAGES
from nightlab_replay.accuracy import Accuracy, accuracy_of, number
from nightlab_replay.behaviour import Behaviour, Timeline, behaviour_of, timeline_of
from nightlab_replay.intervals import Figures
from nightlab_replay.records import METHODS, BagInfo, Counts, FrameRecord, Run, RunData

REPORT_FORMAT = 1
PERCENTILES = (50, 90, 95, 99)


class Percentiles(Figures):
    """Milliseconds over the frames that have the number."""

    frames: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    counts: tuple[int, ...]  #: frames by bins of equal width from 0 to `counts_to`
    counts_to: float


class Reliability(Figures):
    """What the confidence promised and what it kept, by bins of equal width; None for an empty bin."""

    confidence: tuple[float | None, ...]  #: mean, 0..1
    correct: tuple[float | None, ...]  #: share, 0..1
    pixels: tuple[int, ...]
    mean_confidence: float | None  #: over all pixels, 0..1
    mean_correct: float | None
    expected_calibration_error: float | None  #: mean of |confidence - correct|, weighted by pixels


class FrameNumbers(Figures):
    """What became of the frames."""

    expected: int
    ok: int
    dropped: int
    unreadable: int
    missing: int  #: not replayed yet: the run was interrupted
    labelled: int
    reasons: dict[str, int]  #: of frames that are not ok, and of labels that could not be used

    @property
    def losses(self) -> list[str]:
        """In which ways frames were lost."""
        return [way for way in ("dropped", "unreadable", "missing") if getattr(self, way)]


class BagFigures(Figures):
    """One bag."""

    name: str
    frames: FrameNumbers
    seconds: float | None
    miou: float | None  #: both levels
    problems: tuple[str, ...]


class Report(Figures):
    """report.json."""

    format: int = REPORT_FORMAT
    complete: bool
    run: Run
    frames: FrameNumbers
    bags: tuple[BagFigures, ...]
    accuracy: Accuracy | None
    reliability: dict[str, Reliability]  #: by method; empty without labels
    behaviour: Behaviour
    stages_ms: dict[str, Percentiles]
    latency_ms: Percentiles | None
    age_ms: Percentiles | None
    timeline: Timeline


def summarize(data: RunData) -> Report:
    """Every figure of a run, whole or partial."""
    run, ok = data.run, [r for r in data.records if r.status == "ok"]
    names = run.settings.class_names
    image_level, both_levels = data.counts.confusion[:, 0], data.counts.confusion[:, 1]
    methods = (METHODS[0], METHODS[1])
    stages = {stage: percentiles([ms for r in ok if (ms := r.stages_ms.get(stage, 0.0)) > 0]) for stage in STAGES}
    return Report(
        complete=data.complete,
        run=run,
        frames=_frame_numbers(data.records, run.num_frames),
        bags=_bag_figures(data),
        accuracy=accuracy_of(methods, run.settings.classes, names, data.labelled, image_level, both_levels),
        reliability={m: reliability_of(data.counts, i) for i, m in enumerate(METHODS)} if len(data.counts) else {},
        behaviour=behaviour_of(ok, regions=run.settings.mode != "live"),
        stages_ms={stage: p for stage, p in stages.items() if p is not None},
        latency_ms=percentiles([r.latency_ms for r in ok if r.latency_ms is not None]),
        age_ms=percentiles([r.age_ms for r in ok if r.age_ms is not None]),
        timeline=timeline_of(data.records),
    )


def percentiles(values: Sequence[float], bins: int = 40) -> Percentiles | None:
    """None for no value. The bins end at the 99th percentile and a little more; what is slower is in the last."""
    if not values:
        return None
    marks = dict(zip((f"p{p}" for p in PERCENTILES), map(float, np.percentile(values, PERCENTILES)), strict=True))
    top = max(marks["p99"] * 1.1, 1e-3)
    counts, _ = np.histogram(np.minimum(values, top), bins=bins, range=(0, top))
    return Percentiles(
        frames=len(values),
        mean=float(np.mean(values)),
        max=max(values),
        counts=tuple(map(int, counts)),
        counts_to=top,
        **marks,
    )


def reliability_of(counts: Counts, method: int) -> Reliability:
    """Of one of METHODS, over all labelled frames."""
    pixels, correct = counts.reliability[:, method].sum(axis=0).T
    confidence_sum = counts.confidence_sum[:, method].sum(axis=0)
    held = pixels > 0
    confidence = [c / (255 * n) if n else None for c, n in zip(confidence_sum.tolist(), pixels.tolist(), strict=True)]
    share = [c / n if n else None for c, n in zip(correct.tolist(), pixels.tolist(), strict=True)]
    gaps, total = np.abs(confidence_sum[held] / 255 - correct[held]), int(pixels.sum())
    return Reliability(
        confidence=tuple(confidence),
        correct=tuple(share),
        pixels=tuple(pixels.tolist()),
        mean_confidence=int(confidence_sum.sum()) / (255 * total) if total else None,
        mean_correct=int(correct.sum()) / total if total else None,
        expected_calibration_error=float(gaps.sum()) / total if total else None,
    )


def _frame_numbers(records: Sequence[FrameRecord], expected: int) -> FrameNumbers:
    statuses = [r.status for r in records]
    reasons: dict[str, int] = {}
    for record in records:
        if record.reason:
            reasons[record.reason] = reasons.get(record.reason, 0) + 1
    return FrameNumbers(
        expected=expected,
        ok=statuses.count("ok"),
        dropped=statuses.count("dropped"),
        unreadable=statuses.count("unreadable"),
        missing=max(expected - len(records), 0),
        labelled=sum(r.labelled for r in records),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
    )


def _bag_figures(data: RunData) -> tuple[BagFigures, ...]:
    records: dict[str, list[FrameRecord]] = {bag.name: [] for bag in data.run.bags}
    matrices: dict[str, np.ndarray] = {}
    for record in data.records:
        records[record.bag].append(record)
    for record, matrix in zip(data.labelled, data.counts.confusion[:, 1], strict=True):
        matrices[record.bag] = matrices.get(record.bag, 0) + matrix.sum(axis=0)
    return tuple(_bag(bag, records[bag.name], matrices.get(bag.name)) for bag in data.run.bags)


def _bag(bag: BagInfo, records: Sequence[FrameRecord], matrix: np.ndarray | None) -> BagFigures:
    times = [r.time_ns for r in records]
    return BagFigures(
        name=bag.name,
        frames=_frame_numbers(records, bag.num_frames),
        seconds=(max(times) - min(times)) / 1e9 if times else None,
        miou=None if matrix is None else number(mean_iou(matrix)),
        problems=bag.problems,
    )
