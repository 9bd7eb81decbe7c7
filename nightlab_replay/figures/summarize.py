# SPDX-License-Identifier: Apache-2.0
"""Compute all figures of a run from its records and counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from nightlab_core.metrics import calibration_error, mean_iou, uiou_by_threshold
from nightlab_core.runtime.light import DARK, LIGHT_BINS
from nightlab_core.runtime.pipeline import STAGES
from nightlab_replay.figures.statistics import mean_of_known, none_if_nan, paired_accuracy
from nightlab_replay.figures.summary import (
    BagFigures,
    Behaviour,
    FrameNumbers,
    LightBehaviour,
    LightCalibration,
    Percentiles,
    Reliability,
    RunSummary,
    Timeline,
    Uncertainty,
)
from nightlab_replay.records import METHODS, BagInfo, FrameCounts, FrameRecord, RunData

PERCENTILES = (50, 90, 95, 99)
HEAT_GRID_HW = (18, 32)
#: Largest number of points in a timeline.
TIMELINE_POINTS = 240


def summarize(data: RunData) -> RunSummary:
    """Compute all figures of a complete or partial run."""
    run, ok = data.run, [r for r in data.records if r.status == "ok"]
    names = run.settings.class_names
    image_level, both_levels = data.counts.confusion[:, 0], data.counts.confusion[:, 1]
    methods = (METHODS[0], METHODS[1])
    counts, labelled = data.counts, data.labelled
    uncertainty = {m: found for i, m in enumerate(METHODS) if (found := uncertainty_of(counts, i)) is not None}
    stages = {stage: percentiles([ms for r in ok if (ms := r.stages_ms.get(stage, 0.0)) > 0]) for stage in STAGES}
    return RunSummary(
        complete=data.complete,
        run=run,
        frames=_frame_numbers(data.records, run.num_frames),
        bags=_bag_figures(data),
        accuracy=paired_accuracy(methods, run.settings.classes, names, labelled, image_level, both_levels),
        reliability={m: reliability_of(counts, i) for i, m in enumerate(METHODS)} if len(counts) else {},
        uncertainty=uncertainty,
        calibration_by_light=calibration_by_light(labelled, counts),
        behaviour=behaviour_of(ok, regions=run.settings.mode != "live"),
        stages_ms={stage: p for stage, p in stages.items() if p is not None},
        latency_ms=percentiles([r.latency_ms for r in ok if r.latency_ms is not None]),
        age_ms=percentiles([r.age_ms for r in ok if r.age_ms is not None]),
        timeline=timeline_of(data.records),
    )


def percentiles(values: Sequence[float], bins: int = 40) -> Percentiles | None:
    """Compute percentiles and a histogram; None for no value. The last bin also counts the slowest 1 %."""
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


def reliability_of(counts: FrameCounts, method: int) -> Reliability:
    """Compute the reliability of one of METHODS over all labelled frames."""
    pixels, correct = counts.reliability[:, method].sum(axis=0).T
    confidence_sum = counts.confidence_sum[:, method].sum(axis=0)
    confidence = [c / (255 * n) if n else None for c, n in zip(confidence_sum.tolist(), pixels.tolist(), strict=True)]
    share = [c / n if n else None for c, n in zip(correct.tolist(), pixels.tolist(), strict=True)]
    total = int(pixels.sum())
    return Reliability(
        confidence=tuple(confidence),
        correct=tuple(share),
        pixels=tuple(pixels.tolist()),
        mean_confidence=int(confidence_sum.sum()) / (255 * total) if total else None,
        mean_correct=int(correct.sum()) / total if total else None,
        expected_calibration_error=none_if_nan(calibration_error(pixels, correct, confidence_sum)),
    )


def uncertainty_of(counts: FrameCounts, method: int) -> Uncertainty | None:
    """Compute the UIoU of one of METHODS. None without labels, or if the confidence of a labelled frame is unknown."""
    matrix = counts.confusion[:, method].sum(axis=(0, 1))
    predicted, correct = np.moveaxis(counts.by_confidence[:, method].sum(axis=0), -1, 0)
    if not matrix.any() or not np.array_equal(predicted.sum(axis=0), matrix[:, :-1].sum(axis=0)):
        return None
    found = uiou_by_threshold(matrix.sum(axis=1), predicted, correct)
    return Uncertainty(
        uiou=found.best, threshold=found.threshold, average=found.average, by_threshold=found.by_threshold
    )


def calibration_by_light(labelled: Sequence[FrameRecord], counts: FrameCounts) -> tuple[LightCalibration, ...]:
    """Compute the calibration of labelled frames, whose counts are the rows of `counts`, by light level."""
    found = []
    for part in (*LIGHT_BINS, DARK) if labelled else ():
        held = np.array([part.holds(r.light_level) for r in labelled], bool)
        rows = counts.select(held)
        first, second = (reliability_of(rows, i).expected_calibration_error for i in range(len(METHODS)))
        uiou = [None if u is None else u.uiou for u in (uncertainty_of(rows, i) for i in range(len(METHODS)))]
        found.append(
            LightCalibration(
                name=part.name,
                span=part.span,
                frames=int(held.sum()),
                expected_calibration_error=(first, second),
                uiou=(uiou[0], uiou[1]),
            )
        )
    return tuple(found)


def behaviour_of(ok: Sequence[FrameRecord], regions: bool = True) -> Behaviour:
    """Compute the figures that need no labels from segmented frames. `regions`: the records contain the regions."""
    by_light = []
    for part in LIGHT_BINS:
        frames = [r for r in ok if part.holds(r.light_level)]
        by_light.append(
            LightBehaviour(
                name=part.name,
                span=part.span,
                frames=len(frames),
                confidence=mean_of_known([confidence_of(r) for r in frames]),
                agreement=mean_of_known([r.agreement for r in frames]),
                flicker=mean_of_known([r.flicker for r in frames]),
                regions=mean_of_known([float(len(r.boxes_xyxy)) for r in frames]) if regions else None,
            )
        )
    return Behaviour(
        confidence=mean_of_known([confidence_of(r) for r in ok]),
        agreement=mean_of_known([r.agreement for r in ok]),
        flicker=mean_of_known([r.flicker for r in ok]),
        by_light=tuple(by_light),
        regions_per_frame=_frames_by_number([len(r.boxes_xyxy) for r in ok]) if regions else None,
        refined_per_frame=_frames_by_number([sum(r.refined) for r in ok]) if regions else None,
        refine_reasons=dict(sorted(Counter(r.refine_reason for r in ok if r.refine_reason).items())),
        region_heat=_region_heat(ok) if regions else None,
    )


def timeline_of(records: Sequence[FrameRecord]) -> Timeline:
    """Compute the timeline. Bags follow one another, each from the recording time of its first frame."""
    seconds, starts, offset = np.zeros(len(records)), {}, 0.0
    by_bag: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        by_bag.setdefault(record.bag, []).append(place)
    for bag, places in by_bag.items():
        starts[bag] = offset
        times = np.array([records[p].time_ns for p in places], np.float64)
        seconds[places] = offset + (times - times.min()) / 1e9
        offset = float(seconds[places].max()) + 1e-3
    edges = np.linspace(0, len(records), min(TIMELINE_POINTS, len(records)) + 1).astype(int)
    spans = [list(range(a, b)) for a, b in itertools.pairwise(edges)]

    def means(number: Callable[[FrameRecord], float | None]) -> tuple[float | None, ...]:
        return tuple(mean_of_known([number(records[i]) for i in span]) for span in spans)

    return Timeline(
        seconds=tuple(float(np.mean(seconds[span])) for span in spans),
        light_level=means(lambda r: r.light_level),
        confidence=means(confidence_of),
        lost=tuple(sum(records[i].status != "ok" for i in span) for span in spans),
        bag_starts=starts,
    )


def confidence_of(record: FrameRecord) -> float | None:
    """Return the mean confidence of a frame, 0..1."""
    return None if record.mean_confidence is None else record.mean_confidence / 255


def _frames_by_number(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(np.bincount(np.array(values, np.int64)).tolist()) if values else ()


def _region_heat(ok: Sequence[FrameRecord]) -> tuple[tuple[float, ...], ...]:
    """Compute the share of frames in which a region covers the centre of each cell of HEAT_GRID_HW."""
    rows, columns = HEAT_GRID_HW
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    heat = np.zeros(HEAT_GRID_HW)
    for record in ok:
        covered = np.zeros(HEAT_GRID_HW, bool)
        for x1, y1, x2, y2 in record.boxes_xyxy:
            covered |= ((y1 <= y) & (y < y2))[:, None] & ((x1 <= x) & (x < x2))
        heat += covered
    return tuple(map(tuple, (heat / max(len(ok), 1)).tolist()))


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
        miou=None if matrix is None else none_if_nan(mean_iou(matrix)),
        problems=bag.problems,
    )
