# SPDX-License-Identifier: Apache-2.0
"""Figures of a run, intervals, and charts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from class_sets import CITYSCAPES19
from replay_samples import PRESENT, sample_run

from nightlab_core.metrics import iou, mean_iou, paired_bootstrap
from nightlab_core.runtime.light import DARK, LIGHT_BINS
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_replay.figures.statistics import (
    Interval,
    blocks_of,
    mean_interval,
    miou_interval,
    paired_accuracy,
    sum_by_block,
    verdict_text,
)
from nightlab_replay.figures.summarize import (
    TIMELINE_POINTS,
    behaviour_of,
    percentiles,
    reliability_of,
    summarize,
    timeline_of,
    uncertainty_of,
)
from nightlab_replay.records import METHODS, NUM_BANDS, NUM_BINS, FrameCounts, FrameRecord, RunData
from nightlab_replay.report import charts, svg
from nightlab_replay.report.report import findings


def record(index: int, seconds: float = 0.1, bag: str = "a", **values: object) -> FrameRecord:
    time_ns = int(index * seconds * 1e9)
    return FrameRecord(bag=bag, index=index, time_ns=time_ns, stamp_ns=time_ns, **values)  # type: ignore[arg-type]


def test_blocks_hold_five_seconds_of_one_bag() -> None:
    frames = [record(i) for i in range(1000)] + [record(i, bag="b") for i in range(120)]
    blocks = blocks_of(frames)
    assert (np.diff(blocks) >= 0).all()
    assert np.bincount(blocks).tolist() == [50] * 20 + [50, 50, 20]
    assert blocks[999] != blocks[1000]


def test_short_recordings_have_shorter_blocks_and_rare_labels_single_frames() -> None:
    assert np.bincount(blocks_of([record(i) for i in range(250)])).tolist() == [25] * 10
    assert np.bincount(blocks_of([record(i) for i in range(60)])).tolist() == [10] * 6  # at least one second long
    assert blocks_of([record(i, seconds=30) for i in range(25)]).tolist() == list(range(25))
    assert blocks_of([record(i) for i in range(4)]).tolist() == [0, 0, 0, 0]
    assert blocks_of([]).tolist() == []


def test_blocks_of_repeated_or_decreasing_times() -> None:
    still = [replace(record(i), time_ns=7) for i in range(40)]
    assert np.bincount(blocks_of(still)).tolist() == [4] * 10
    back = [replace(record(i), time_ns=10**9 - i) for i in range(40)]
    assert len(blocks_of(back)) == 40


def test_blocks_widen_the_interval_of_similar_neighbours() -> None:
    """Gains that are equal for ten frames in a row count as a tenth of the frames."""
    rng = np.random.default_rng(0)
    gain = np.repeat(rng.normal(0.5, 5, 40), 10).round().astype(int)
    first = np.array([[[50, 50, 0], [0, 10, 0]]] * 400)
    second = np.array([[[50 + g, 50 - g, 0], [0, 10, 0]] for g in gain])
    by_frame, by_block = (miou_interval(first, second, b) for b in (np.arange(400), np.arange(400) // 10))
    assert by_frame is not None and by_block is not None
    assert by_frame.difference == by_block.difference
    widths = [i.high_95 - i.low_95 for i in (by_frame, by_block)]
    assert widths[1] > 2.5 * widths[0]  # about the square root of ten
    assert (by_block.frames, by_block.blocks) == (400, 40)


def test_blocks_of_one_frame_give_the_paired_bootstrap() -> None:
    counts = sample_run(30, lost=False).counts.confusion.sum(axis=2)
    found = miou_interval(counts[:, 0], counts[:, 1], np.arange(30))
    assert found is not None
    expected = paired_bootstrap(counts[:, 0], counts[:, 1])
    assert (found.difference, found.low_95, found.high_95) == expected


def test_sum_by_block_skips_missing_blocks() -> None:
    values = np.array([[1, 2], [3, 4], [5, 6]])
    assert sum_by_block(values, np.array([4, 9, 4])).tolist() == [[6, 8], [3, 4]]


def test_mean_interval_of_a_constant_has_no_width() -> None:
    found = mean_interval(np.full(20, 0.25), np.arange(20) // 2)
    assert found == Interval(difference=0.25, low_95=0.25, high_95=0.25, frames=20, blocks=10)
    assert mean_interval(np.zeros(0), np.zeros(0, np.int64)) is None


@pytest.mark.parametrize(
    ("numbers", "blocks", "verdict"),
    [
        ((0.1, 0.01, 0.2), 10, "better"),
        ((-0.1, -0.2, -0.01), 10, "worse"),
        ((0.1, -0.01, 0.2), 10, "no difference shown"),
        ((0.1, 0.0, 0.2), 10, "no difference shown"),
        ((0.1, 0.09, 0.11), 5, "too few frames"),
    ],
)
def test_verdict_follows_the_interval(numbers: tuple[float, float, float], blocks: int, verdict: str) -> None:
    gain = Interval(difference=numbers[0], low_95=numbers[1], high_95=numbers[2], frames=99, blocks=blocks)
    assert gain.verdict == verdict
    assert "99 frames" in verdict_text(gain)


def test_light_bins_cover_everything_once() -> None:
    for level in (0.0, 0.0149, 0.015, 0.03, 0.0599, 0.06, 0.12, 0.5, 1.0):
        assert sum(part.holds(level) for part in LIGHT_BINS) == 1
        assert DARK.holds(level) == (level < 0.06)
    assert not any(part.holds(None) for part in LIGHT_BINS)


def test_the_parts_of_the_accuracy_add_up() -> None:
    data = sample_run(80)
    report = summarize(data)
    accuracy = report.accuracy
    assert accuracy is not None
    total = data.counts.confusion[:, 1].sum(axis=(0, 1))
    assert accuracy.miou[1] == mean_iou(total)
    assert np.array(accuracy.confusion[1]).tolist() == total.tolist()
    assert accuracy.frames == len(data.labelled) == sum(part.frames for part in accuracy.by_light)
    assert accuracy.dark.frames == sum(part.frames for part in accuracy.by_light[:3])
    assert sum(c.pixels for c in accuracy.by_class) == total.sum()
    for band, part in enumerate(accuracy.by_band):
        assert part.miou[0] == mean_iou(data.counts.confusion[:, 0, band].sum(axis=0))
    light = np.array([r.light_level for r in data.labelled])
    for part, figures in zip(LIGHT_BINS, accuracy.by_light, strict=True):
        held = (light >= part.low) & (light < part.high)
        expected = iou(data.counts.confusion[held, 1].sum(axis=(0, 1)))
        values = [np.nan if c.iou[1] is None else c.iou[1] for c in figures.classes]
        np.testing.assert_array_equal(values, expected)


def test_absent_classes_and_light_levels_are_none_not_zero() -> None:
    accuracy = summarize(sample_run(40, skill=-0.9)).accuracy
    assert accuracy is not None
    by_name = {c.name: c for c in accuracy.by_class}
    assert by_name["train"].iou == (None, None) and by_name["train"].gain is None
    assert all((by_name[n].iou[1] is not None) == (n in PRESENT) for n in CITYSCAPES19.names)
    day = [replace(r, light_level=0.5) for r in sample_run(10, lost=False).records]
    counts = sample_run(10, lost=False).counts.confusion
    only_day = paired_accuracy(("a", "b"), "x", CITYSCAPES19.names, day, counts[:, 0], counts[:, 1])
    assert only_day is not None
    assert only_day.dark.frames == 0 and only_day.dark.miou == (None, None) and only_day.dark.gain is None
    assert paired_accuracy(("a", "b"), "x", CITYSCAPES19.names, [], counts[:0, 0], counts[:0, 1]) is None


def test_reliability_of_a_table_computed_by_hand() -> None:
    empty = FrameCounts.empty(1)
    reliability = np.zeros((2, 2, NUM_BINS, 2), np.int64)
    sums = np.zeros((2, 2, NUM_BINS), np.int64)
    reliability[0, 1, 10], sums[0, 1, 10] = (30, 12), 30 * 128  # confidence 128/255 = 0.502, correct 0.4
    reliability[1, 1, 19], sums[1, 1, 19] = (70, 70), 70 * 255  # confidence 1, correct 1
    counts = replace(empty, reliability=reliability, confidence_sum=sums)
    figures = reliability_of(counts, 1)
    assert figures.pixels[10] == 30 and figures.correct[10] == 0.4 and figures.correct[19] == 1
    assert figures.confidence[10] == pytest.approx(128 / 255) and figures.confidence[0] is None
    assert figures.expected_calibration_error == pytest.approx(0.3 * (128 / 255 - 0.4))
    assert figures.mean_correct == pytest.approx(0.82)
    assert figures.mean_confidence == pytest.approx(0.3 * 128 / 255 + 0.7)
    assert reliability_of(counts, 0).expected_calibration_error is None


def test_uiou_of_a_table_computed_by_hand() -> None:
    # One class of 100 pixels, of which 60 are predicted rightly, all in one bin; 40 are predicted as 255.
    counts = FrameCounts(
        *(
            np.zeros((1, *getattr(FrameCounts.empty(1), n).shape[1:]), np.int64)
            for n in FrameCounts.__dataclass_fields__
        )
    )
    counts.confusion[0, 1, 2] = [[60, 40]]
    counts.by_confidence[0, 1, 10, 0] = (60, 60)
    found = uncertainty_of(counts, 1)
    assert found is not None
    assert found.by_threshold == (0.6,) * 11 + (0.0,) * 9
    assert (found.uiou, found.threshold, found.average) == (0.6, 0, pytest.approx(0.33))
    assert uncertainty_of(counts, 0) is None  # nothing is labelled
    assert uncertainty_of(FrameCounts.empty(1), 1) is None
    counts.by_confidence[:] = 0  # as in a run of an earlier version
    assert uncertainty_of(counts, 1) is None


def test_uncertainty_and_calibration_by_light_are_in_the_summary() -> None:
    run = sample_run(60)
    report = summarize(run)
    assert report.accuracy is not None and set(report.uncertainty) == set(METHODS)
    for place, method in enumerate(METHODS):
        found, miou = report.uncertainty[method], report.accuracy.miou[place]
        assert found.by_threshold[0] == pytest.approx(miou) and found.uiou >= miou  # type: ignore[operator]
    rows = {part.name: part for part in report.calibration_by_light}
    assert [(name, part.frames) for name, part in rows.items()] == [
        *((part.name, part.frames) for part in report.accuracy.by_light),
        (DARK.name, report.accuracy.dark.frames),
    ]
    held = np.array([r.light_level < DARK.high for r in run.labelled])  # type: ignore[operator]
    dark = reliability_of(run.counts.select(held), 1).expected_calibration_error
    assert rows[DARK.name].expected_calibration_error[1] == dark is not None
    before = replace(run, counts=replace(run.counts, by_confidence=0 * run.counts.by_confidence))
    assert summarize(before).uncertainty == {}  # a run of an earlier version still has all other figures
    assert summarize(before).accuracy == report.accuracy


def test_percentiles_and_their_histogram() -> None:
    values = [float(v) for v in range(1, 101)]
    figures = percentiles(values)
    assert figures is not None
    assert (figures.p50, figures.max, figures.mean, figures.frames) == (50.5, 100, 50.5, 100)
    assert sum(figures.counts) == 100  # including those beyond the last edge
    assert percentiles([]) is None


def test_stages_that_did_not_run_are_not_timed() -> None:
    frames = [
        record(i, bag="evening.mcap", stages_ms={"total": 10.0, "crop": 0.0 if i % 2 else 4.0}) for i in range(10)
    ]
    run = sample_run(10).run
    report = summarize(RunData(run, frames, FrameCounts.empty(19)))
    assert report.stages_ms["crop"].frames == 5 and report.stages_ms["crop"].p50 == 4
    assert "region" not in report.stages_ms


def test_behaviour_by_light_regions_and_heat() -> None:
    frames = [
        record(
            0, light_level=0.01, mean_confidence=127.5, agreement=0.8, boxes_xyxy=((0, 0, 0.5, 0.5),), refined=(True,)
        ),
        record(1, light_level=0.01, mean_confidence=255.0, agreement=1.0, flicker=0.2),
        record(2, light_level=0.5, mean_confidence=255.0, agreement=1.0, flicker=0.4, boxes_xyxy=((0, 0, 1, 1),) * 2),
    ]
    found = behaviour_of(frames)
    dark, day = found.by_light[0], found.by_light[-1]
    assert (dark.frames, dark.confidence, dark.agreement, dark.flicker, dark.regions) == (2, 0.75, 0.9, 0.2, 0.5)
    assert (day.frames, day.flicker) == (1, 0.4)
    assert found.by_light[1].confidence is None
    assert found.regions_per_frame == (1, 1, 1) and found.refined_per_frame == (2, 1)
    heat = np.array(found.region_heat)
    assert heat[0, 0] == pytest.approx(2 / 3) and heat[-1, -1] == pytest.approx(1 / 3)


def test_the_report_says_in_how_many_frames_the_dark_was_refined() -> None:
    sample = sample_run(10).run
    settings = sample.settings.model_copy(update={"pipeline": PipelineSettings(refine="night")})
    frames = [record(i, bag="evening.mcap", refine_reason="night" if i < 4 else "day") for i in range(10)]
    report = summarize(RunData(sample.model_copy(update={"settings": settings}), frames, FrameCounts.empty(19)))
    assert report.behaviour.refine_reasons == {"day": 6, "night": 4}
    assert "Hard regions were refined by night, in 4 of 10 frames." in findings(report)


def test_timeline_joins_bags_and_counts_losses() -> None:
    frames = [record(i) for i in range(600)] + [record(i, bag="b", status="dropped") for i in range(30)]
    found = timeline_of(frames)
    assert len(found.seconds) == TIMELINE_POINTS
    assert sum(found.lost) == 30
    assert list(np.diff(found.seconds) > 0) == [True] * (TIMELINE_POINTS - 1)
    assert found.bag_starts["a"] == 0 and found.bag_starts["b"] == pytest.approx(59.9, abs=0.01)
    assert timeline_of([]).seconds == ()


def test_partial_and_lost_frames_are_counted() -> None:
    report = summarize(sample_run(60, bags=("a", "b"), missing=15))
    numbers = report.frames
    assert not report.complete
    assert (numbers.expected, numbers.missing) == (120, 15)
    assert numbers.ok + numbers.dropped + numbers.unreadable == 105
    assert [bag.frames.missing for bag in report.bags] == [0, 15]
    assert numbers.reasons["a newer frame was there"] == numbers.dropped


def test_findings_follow_the_figures() -> None:
    said = " ".join(findings(summarize(sample_run(160, hz=2))))
    assert "Effect of the second level: better, +" in said
    assert "frames were dropped" in said and "expected calibration error" in said
    few = " ".join(findings(summarize(sample_run(4, lost=False))))
    assert "too few frames to tell" in few and "better, " not in few
    unlabelled = " ".join(findings(summarize(sample_run(20, labelled=False))))
    assert "No frame has labels" in unlabelled and "mIoU" not in unlabelled


def test_there_is_one_figure_per_band() -> None:
    accuracy = summarize(sample_run(12)).accuracy
    assert accuracy is not None and len(accuracy.by_band) == NUM_BANDS
    assert accuracy.by_band[0].name == "top, far" and accuracy.by_band[-1].span == "rows 75 to 100 %"


def test_a_line_is_interrupted_between_bags_and_at_unknown_values() -> None:
    seconds, light = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0), (0.1, 0.2, None, 0.1, 0.1, 0.2)
    drawn = charts.timeline(seconds, light, light, (0,) * 6, (0.0, 3.5), "two bags")
    lines = re.findall(r'<path d="([^"]*)" class="line-a"', drawn)
    assert len(lines) == 1 and lines[0].count("M") == 3 and lines[0].count("L") == 2


def test_a_chart_escapes_names_and_stays_within_its_axes() -> None:
    drawn = charts.dumbbells([("<b>", 10.0, 120.0), ("none", None, None)], "%", '"quoted"')
    assert "&lt;b&gt;" in drawn and "<b>" not in drawn and "&#34;quoted&#34;" in drawn
    assert max(float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)) <= svg.WIDTH
    assert "—" in drawn


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (svg.Axis(0, 10, 0, 100), [0, 2, 4, 6, 8, 10]),
        (svg.Axis(-1.1, 1.1, 0, 100), [-1, -0.5, 0, 0.5, 1]),
        (svg.Axis(0.001, 1, 0, 100, log=True), [0.001, 0.01, 0.1, 1]),
        (svg.Axis(3, 3, 0, 100), [3]),
    ],
)
def test_ticks_are_round(axis: svg.Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)
