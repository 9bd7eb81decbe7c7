# SPDX-License-Identifier: Apache-2.0
"""What the figures mean, in sentences that say no more than they bear out."""

from __future__ import annotations

from nightlab_replay.intervals import LEAST_BLOCKS, Interval
from nightlab_replay.report.page import percent, points
from nightlab_replay.summary import Report


def bracket(gain: Interval | None, digits: int = 1) -> str:
    """+1.2 [+0.3, +2.1], in points, or a dash."""
    if gain is None:
        return "—"
    return f"{points(gain.difference, digits)} [{points(gain.low_95, digits)}, {points(gain.high_95, digits)}]"


def basis(gain: Interval) -> str:
    """How much an interval rests on."""
    frames = f"{gain.frames} frame{'s' if gain.frames != 1 else ''}"
    if gain.blocks == gain.frames:
        return frames
    return f"{frames} in {gain.blocks} stretches of neighbours"


def judged(gain: Interval | None) -> str:
    """ "better, +1.2 [+0.3, +2.1] points on 62 frames", or that nothing can be said."""
    if gain is None:
        return "no labelled frame"
    numbers = f"{bracket(gain)} points on {basis(gain)}"
    if gain.verdict == "too few frames":
        return f"too few frames to say, {numbers} ({LEAST_BLOCKS} stretches are needed)"
    if gain.verdict == "no difference shown":
        return f"no difference that these frames can show, {numbers}"
    return f"{gain.verdict}, {numbers}"


def findings(report: Report) -> list[str]:
    """The run in a few sentences, the most important first."""
    return [*_accuracy(report), *_confidence(report), *_speed(report), *_losses(report)]


def _accuracy(report: Report) -> list[str]:
    accuracy = report.accuracy
    if accuracy is None:
        agreement = report.behaviour.agreement
        said = ["No frame has labels, so that nothing here is a measure of accuracy."]
        if agreement is not None and agreement < 1:
            said.append(f"The two levels agree on {percent(agreement)} % of the pixels.")
        return said
    image_level, both = accuracy.miou
    said = [
        f"Both levels reach {percent(both)} % mIoU on {accuracy.frames} labelled frames, the image level alone "
        f"{percent(image_level)} %."
    ]
    if report.run.settings.pipeline.mode == "image_level":
        return [f"The image level reaches {percent(image_level)} % mIoU on {accuracy.frames} labelled frames."]
    said.append(f"What the second level changes: {judged(accuracy.gain)}.")
    if 0 < accuracy.dark.frames < accuracy.frames:
        said.append(f"In the dark: {judged(accuracy.dark.gain)}.")
    return said


def _confidence(report: Report) -> list[str]:
    for figures in list(report.reliability.values())[-1:]:
        if figures.expected_calibration_error is not None:
            return [
                f"The confidence says {percent(figures.mean_confidence)} % on average, and "
                f"{percent(figures.mean_correct)} % of the pixels are right "
                f"(expected calibration error {percent(figures.expected_calibration_error)} points)."
            ]
    return []


def _speed(report: Report) -> list[str]:
    total = report.stages_ms.get("total")
    said = []
    if total is not None:
        said.append(f"A frame takes {total.p50:.0f} ms (median), and 99 of 100 take at most {total.p99:.0f} ms.")
    if report.age_ms is not None:
        said.append(f"A mask is {report.age_ms.p50:.0f} ms old when it comes (median; p99 {report.age_ms.p99:.0f} ms).")
    return said


def _losses(report: Report) -> list[str]:
    frames = report.frames
    said = []
    if frames.dropped:
        said.append(f"{frames.dropped} of {frames.expected} frames were dropped to keep up.")
    if frames.unreadable:
        said.append(f"{frames.unreadable} of {frames.expected} frames could not be read.")
    return said
