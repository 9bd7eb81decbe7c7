# SPDX-License-Identifier: Apache-2.0
"""Conditions for CI: decide from the accuracy of two runs whether the second is good enough."""

from __future__ import annotations

from nightlab_replay.figures.statistics import PairedAccuracy, PartAccuracy, interval_text, percent, sample_text
from nightlab_replay.records import JsonModel


class Gate(JsonModel):
    """A condition for CI."""

    name: str
    passed: bool
    reason: str


def gates_of(accuracy: PairedAccuracy | None, fail_below: float | None, no_worse_than: float | None) -> list[Gate]:
    """Return the requested gates."""
    gates = []
    if fail_below is not None:
        miou = None if accuracy is None else accuracy.miou[1]
        passed = miou is not None and 100 * miou >= fail_below
        reason = f"B reaches {percent(miou, 2)} % mIoU" if miou is not None else "no frame is labelled in both runs"
        gates.append(Gate(name=f"--fail-below {fail_below:g}", passed=passed, reason=reason))
    if no_worse_than is not None:
        gates.append(_no_worse_gate(accuracy, no_worse_than))
    return gates


def _no_worse_gate(accuracy: PairedAccuracy | None, limit: float) -> Gate:
    """Pass if the interval excludes a larger loss than the limit, and no light level is shown to lose more."""
    name = f"--no-worse-than {limit:g}"
    if accuracy is None or accuracy.gain is None:
        return Gate(name=name, passed=False, reason="no frame is labelled in both runs")
    gain = accuracy.gain
    if gain.verdict == "too few frames":
        return Gate(name=name, passed=False, reason=f"too few frames to tell: {sample_text(gain)}")
    if 100 * gain.low_95 < -limit:
        reason = f"B may lose up to {-100 * gain.low_95:.2f} points of mIoU: {interval_text(gain, 2)}"
        return Gate(name=name, passed=False, reason=reason)
    lost = [part for part in (accuracy.dark, *accuracy.by_light) if _loses_more(part, limit)]
    if lost:
        reason = "; ".join(f"{part.name}: {interval_text(part.gain, 2)}" for part in lost)
        return Gate(name=name, passed=False, reason=f"B loses more at a light level: {reason}")
    most = f"loses at most {-100 * gain.low_95:.2f}" if gain.low_95 < 0 else f"gains at least {100 * gain.low_95:.2f}"
    return Gate(name=name, passed=True, reason=f"B {most} points of mIoU: {interval_text(gain, 2)}")


def _loses_more(part: PartAccuracy, limit: float) -> bool:
    gain = part.gain
    return gain is not None and gain.verdict == "worse" and 100 * gain.high_95 < -limit
