# SPDX-License-Identifier: Apache-2.0
"""Compare two runs of the same bags: figures, sentences, and gates for CI. A is the old run, B the new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nightlab_core.runtime.pipeline import STAGES
from nightlab_replay.figures.gates import Gate, gates_of
from nightlab_replay.figures.statistics import (
    ClassAccuracy,
    Interval,
    PairedAccuracy,
    blocks_of,
    interval_text,
    mean_interval,
    miou_interval,
    paired_accuracy,
    percent,
    sample_text,
    verdict_text,
)
from nightlab_replay.figures.summarize import confidence_of, percentiles
from nightlab_replay.figures.summary import Percentiles
from nightlab_replay.pairing import PairedRuns
from nightlab_replay.records import FrameRecord, JsonModel, Run, RunData

COMPARE_FORMAT = 1
#: Fields of `ReplaySettings` that affect how long a frame takes.
_TIMED = ("precision", "threads", "rate")


class ComparedRun(JsonModel):
    """One of the two runs."""

    folder: str
    bundle: str
    bundle_sha256: dict[str, str]
    engine: str
    complete: bool
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]


class MeanChange(JsonModel):
    """The mean over the pairs of a number that both runs have for each frame."""

    first: float
    second: float
    change: Interval


class StageChange(JsonModel):
    """The time of one stage in milliseconds."""

    first: Percentiles
    second: Percentiles
    change: Interval  #: of the mean; above 0 is slower


class Comparison(JsonModel):
    """compare.json. Gains are B minus A, 0..1."""

    format: int = COMPARE_FORMAT
    first: ComparedRun
    second: ComparedRun
    pairs: int
    labelled_pairs: int
    left_out: dict[str, int]
    different_settings: dict[str, tuple[str, str]]
    accuracy: PairedAccuracy | None  #: both levels of A and of B
    image_level: Interval | None  #: change of the image level's mIoU
    behaviour: dict[str, MeanChange]  #: confidence, agreement, flicker
    stages_ms: dict[str, StageChange]
    latency_note: str  #: why the times cannot be compared, or ""
    verdict: str
    sentences: tuple[str, ...]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """True if no gate failed."""
        return all(gate.passed for gate in self.gates)


def compare(
    pairs: PairedRuns, folders: tuple[str, str], fail_below: float | None = None, no_worse_than: float | None = None
) -> Comparison:
    """Compute the comparison. Gates: B's least mIoU in per cent, and its largest loss in points."""
    runs = pairs.first.run, pairs.second.run
    first, second = pairs.confusion
    records = [b for _, b in pairs.labelled]
    settings = runs[1].settings
    names = settings.class_names
    accuracy = paired_accuracy(("A", "B"), settings.classes, names, records, first[:, 1], second[:, 1])
    image_level = None
    if records:
        image_level = miou_interval(first[:, 0].sum(axis=1), second[:, 0].sum(axis=1), blocks_of(records))
    stages, note = _stages(pairs), _latency_note(*runs)
    return Comparison(
        first=_compared_run(folders[0], pairs.first),
        second=_compared_run(folders[1], pairs.second),
        pairs=len(pairs.records),
        labelled_pairs=len(records),
        left_out=pairs.left_out,
        different_settings=_different_settings(*runs),
        accuracy=accuracy,
        image_level=image_level,
        behaviour=_behaviour(pairs),
        stages_ms=stages,
        latency_note=note,
        verdict="no labels" if accuracy is None or accuracy.gain is None else accuracy.gain.verdict,
        sentences=(
            *_accuracy_sentences(accuracy),
            *_time_sentences(stages.get("total"), note),
            *_pair_sentences(len(pairs.records), pairs.left_out),
        ),
        gates=tuple(gates_of(accuracy, fail_below, no_worse_than)),
    )


def _compared_run(folder: str, data: RunData) -> ComparedRun:
    run = data.run
    return ComparedRun(
        folder=folder,
        bundle=run.bundle.name,
        bundle_sha256=run.bundle.sha256,
        engine=run.bundle.engine,
        complete=data.complete,
        machine=run.machine,
        versions=run.versions,
        settings=run.settings.model_dump(mode="json"),
    )


def _different_settings(first: Run, second: Run) -> dict[str, tuple[str, str]]:
    """Return everything but the bundle that differs, because it may affect the result as well."""
    different = {}
    for part in ("settings", "versions", "machine"):
        a, b = (_leaves(run.model_dump(mode="json")[part]) for run in (first, second))
        for name in {**a, **b}:
            if a.get(name) != b.get(name):
                different[f"{part}.{name}"] = (str(a.get(name, "—")), str(b.get(name, "—")))
    if first.bundle.engine != second.bundle.engine:
        different["engine"] = (first.bundle.engine, second.bundle.engine)
    return different


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def _behaviour(pairs: PairedRuns) -> dict[str, MeanChange]:
    numbers: dict[str, Callable[[FrameRecord], float | None]] = {
        "confidence": confidence_of,
        "agreement": lambda r: r.agreement,
        "flicker": lambda r: r.flicker,
    }
    found = {name: _mean_change(pairs.records, number) for name, number in numbers.items()}
    return {name: change for name, change in found.items() if change is not None}


def _mean_change(
    records: Sequence[tuple[FrameRecord, FrameRecord]], number: Callable[[FrameRecord], float | None]
) -> MeanChange | None:
    known = [(b, x, y) for a, b in records if (x := number(a)) is not None and (y := number(b)) is not None]
    if not known:
        return None
    first, second = (np.array([k[i] for k in known], np.float64) for i in (1, 2))
    change = mean_interval(second - first, blocks_of([k[0] for k in known]))
    assert change is not None
    return MeanChange(first=float(first.mean()), second=float(second.mean()), change=change)


def _stages(pairs: PairedRuns) -> dict[str, StageChange]:
    """Compare each stage over the frames in which it ran in both runs."""
    found = {}
    for stage in STAGES:
        both = [p for p in pairs.records if all(r.stages_ms.get(stage, 0) > 0 for r in p)]
        change = _mean_change(both, lambda r, stage=stage: r.stages_ms[stage])  # type: ignore[misc]
        first, second = (percentiles([p[i].stages_ms[stage] for p in both]) for i in (0, 1))
        if change is not None and first is not None and second is not None:
            found[stage] = StageChange(first=first, second=second, change=change.change)
    return found


def _latency_note(first: Run, second: Run) -> str:
    if first.machine != second.machine:
        return "A and B ran on different machines"
    if first.bundle.engine != second.bundle.engine:
        return "A and B ran on different engines"
    if (first.settings.mode, first.workers) != (second.settings.mode, second.workers):
        return "A and B were replayed in different modes"
    different = [name for name in _TIMED if getattr(first.settings, name) != getattr(second.settings, name)]
    return f"A and B were replayed with different settings ({', '.join(different)})" if different else ""


def classes_with(verdict: str, accuracy: PairedAccuracy | None) -> list[ClassAccuracy]:
    """Return the classes whose verdict is "better", or "worse", by size of the change."""
    if accuracy is None:
        return []
    found = [c for c in accuracy.by_class if c.gain is not None and c.gain.verdict == verdict]
    return sorted(found, key=lambda c: -abs(c.gain.difference) if c.gain else 0.0)


def _accuracy_sentences(accuracy: PairedAccuracy | None) -> list[str]:
    """Describe the change of accuracy: overall, in the dark, by light level and by class."""
    if accuracy is None or accuracy.gain is None:
        return ["No frame has labels in both runs, so accuracy cannot be compared."]
    gain, dark = accuracy.gain, accuracy.dark.gain
    numbers = (
        f"{interval_text(gain)} points of mIoU, {percent(accuracy.miou[0])} → {percent(accuracy.miou[1])} %, "
        f"on {sample_text(gain)}"
    )
    verdict = {
        "better": "B is better than A",
        "worse": "B is worse than A",
        "no difference shown": "No significant difference between A and B",
        "too few frames": "Too few frames to tell whether B is better",
    }[gain.verdict]
    sentences = [f"{verdict}: {numbers}."]
    if dark is not None:
        opposite = {gain.verdict, dark.verdict} == {"better", "worse"}
        sentences.append(f"{'But in' if opposite else 'In'} the dark: {verdict_text(dark)}.")
    parts = [f"{p.name} {p.gain.verdict}, {interval_text(p.gain)}" for p in accuracy.by_light if p.gain is not None]
    sentences.append("By light level: " + "; ".join(parts) + ".")
    changed = 0
    for class_verdict, title in (("better", "Improved"), ("worse", "Regressed")):
        classes = classes_with(class_verdict, accuracy)
        changed += len(classes)
        if classes:
            sentences.append(f"{title}: " + ", ".join(f"{c.name} {interval_text(c.gain)}" for c in classes) + ".")
    compared = sum(c.gain is not None for c in accuracy.by_class)
    if changed:
        sentences.append(f"By chance alone, about one in twenty of the {compared} compared classes seems to change.")
    else:
        sentences.append(f"None of the {compared} compared classes changed significantly.")
    return sentences


def _time_sentences(total: StageChange | None, note: str) -> list[str]:
    """Describe the change of the time per frame. `note` says why the times cannot be compared."""
    if total is None:
        return []
    first, second, change = total.first, total.second, total.change
    numbers = f"median {first.p50:.1f} → {second.p50:.1f} ms, p99 {first.p99:.1f} → {second.p99:.1f} ms"
    if note:
        return [f"Time per frame: {numbers}. {note}, so the times do not compare the bundles."]
    verdict = {
        "better": "B is slower",
        "worse": "B is faster",
        "no difference shown": "No significant difference in time",
        "too few frames": "Too few frames to compare times",
    }[change.verdict]
    interval = f"{change.difference:+.1f} [{change.low_95:+.1f}, {change.high_95:+.1f}]"
    return [f"{verdict}: {interval} ms per frame; {numbers}."]


def _pair_sentences(pairs: int, left_out: dict[str, int]) -> list[str]:
    """Say how many frames are compared, if not all are."""
    if not left_out:
        return []
    parts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return [f"{pairs} frames are compared, {sum(left_out.values())} are left out: {parts}."]
