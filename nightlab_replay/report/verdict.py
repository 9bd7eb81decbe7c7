# SPDX-License-Identifier: Apache-2.0
"""What a comparison bears out, in words, and whether it lets a new bundle pass. A is the old one, B the new."""

from __future__ import annotations

from nightlab_replay.accuracy import Accuracy, ClassFigures, PartFigures
from nightlab_replay.intervals import Figures, Interval
from nightlab_replay.report.page import percent
from nightlab_replay.report.words import basis, bracket, judged
from nightlab_replay.summary import Percentiles


class Gate(Figures):
    """A condition for CI."""

    name: str
    passed: bool
    reason: str


def improved(accuracy: Accuracy | None, verdict: str) -> list[ClassFigures]:
    """The classes of which the figures show that they are "better", or "worse", by size of the change."""
    if accuracy is None:
        return []
    found = [c for c in accuracy.by_class if c.gain is not None and c.gain.verdict == verdict]
    return sorted(found, key=lambda c: -abs(c.gain.difference) if c.gain else 0.0)


def accuracy_words(accuracy: Accuracy | None) -> list[str]:
    """What B does to the accuracy: in all, in the dark, by light level and by class."""
    if accuracy is None or accuracy.gain is None:
        return ["No frame has labels in both runs, so that nothing can be said about accuracy."]
    gain, dark = accuracy.gain, accuracy.dark.gain
    numbers = (
        f"{bracket(gain)} points of mIoU, {percent(accuracy.miou[0])} → {percent(accuracy.miou[1])} %, on {basis(gain)}"
    )
    said = {
        "better": f"B is better than A: {numbers}.",
        "worse": f"B is worse than A: {numbers}.",
        "no difference shown": f"No difference that these frames can show: {numbers}.",
        "too few frames": f"Too few frames to say whether B is better: {numbers}.",
    }
    sentences = [said[gain.verdict]]
    if dark is not None:
        but = "But " if {gain.verdict, dark.verdict} == {"better", "worse"} else ""
        sentence = f"in the dark: {judged(dark)}."
        sentences.append(but + (sentence if but else sentence[0].upper() + sentence[1:]))
    parts = [f"{p.name} {p.gain.verdict}, {bracket(p.gain)}" for p in accuracy.by_light if p.gain is not None]
    sentences.append("By light level: " + "; ".join(parts) + ".")
    claims = 0
    for verdict, word in (("better", "Improved"), ("worse", "Got worse")):
        classes = improved(accuracy, verdict)
        claims += len(classes)
        if classes:
            sentences.append(f"{word}: " + ", ".join(f"{c.name} {bracket(c.gain)}" for c in classes) + ".")
    compared = sum(c.gain is not None for c in accuracy.by_class)
    if claims:
        sentences.append(f"Of the {compared} classes compared, one in twenty would seem changed by chance alone.")
    else:
        sentences.append(f"None of the {compared} classes compared shows a change.")
    return sentences


def latency_words(total: tuple[Percentiles, Percentiles, Interval] | None, note: str) -> list[str]:
    """What B does to the time a frame takes; `note` says why the times cannot be laid side by side."""
    if total is None:
        return []
    first, second, change = total
    numbers = f"median {first.p50:.1f} → {second.p50:.1f} ms, p99 {first.p99:.1f} → {second.p99:.1f} ms"
    if note:
        return [f"Time a frame: {numbers}; {note}, so that this says nothing about the bundles."]
    word = {
        "better": "B is slower",
        "worse": "B is faster",
        "no difference shown": "No difference in time that these frames can show",
        "too few frames": "Too few frames to compare times",
    }[change.verdict]
    return [f"{word}: {change.difference:+.1f} [{change.low_95:+.1f}, {change.high_95:+.1f}] ms a frame; {numbers}."]


def pair_words(pairs: int, left_out: dict[str, int]) -> list[str]:
    """How many frames are compared, where that is not all of them."""
    if not left_out:
        return []
    parts = ", ".join(f"{count} {what}" for what, count in left_out.items())
    return [f"{pairs} frames are compared, {sum(left_out.values())} are left out: {parts}."]


def gates_of(accuracy: Accuracy | None, fail_below: float | None, no_worse_than: float | None) -> list[Gate]:
    """The gates that were asked for."""
    gates = []
    if fail_below is not None:
        miou = None if accuracy is None else accuracy.miou[1]
        passed = miou is not None and 100 * miou >= fail_below
        reason = f"B reaches {percent(miou, 2)} % mIoU" if miou is not None else "no frame is labelled in both runs"
        gates.append(Gate(name=f"--fail-below {fail_below:g}", passed=passed, reason=reason))
    if no_worse_than is not None:
        gates.append(_no_worse(accuracy, no_worse_than))
    return gates


def _no_worse(accuracy: Accuracy | None, limit: float) -> Gate:
    """B must be shown to lose no more than the limit in all, and must not be shown to lose more at any light level."""
    name = f"--no-worse-than {limit:g}"
    if accuracy is None or accuracy.gain is None:
        return Gate(name=name, passed=False, reason="no frame is labelled in both runs")
    gain = accuracy.gain
    if gain.verdict == "too few frames":
        return Gate(name=name, passed=False, reason=f"too few frames to show it: {basis(gain)}")
    if 100 * gain.low_95 < -limit:
        reason = f"B may lose up to {-100 * gain.low_95:.2f} points of mIoU: {bracket(gain, 2)}"
        return Gate(name=name, passed=False, reason=reason)
    lost = [part for part in (accuracy.dark, *accuracy.by_light) if _shown_worse(part, limit)]
    if lost:
        reason = "; ".join(f"{part.name}: {bracket(part.gain, 2)}" for part in lost)
        return Gate(name=name, passed=False, reason=f"B loses more at a light level: {reason}")
    most = f"loses at most {-100 * gain.low_95:.2f}" if gain.low_95 < 0 else f"gains at least {100 * gain.low_95:.2f}"
    return Gate(name=name, passed=True, reason=f"B {most} points of mIoU: {bracket(gain, 2)}")


def _shown_worse(part: PartFigures, limit: float) -> bool:
    gain = part.gain
    return gain is not None and gain.verdict == "worse" and 100 * gain.high_95 < -limit
