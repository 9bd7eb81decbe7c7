# SPDX-License-Identifier: Apache-2.0
"""Two bundles on the same frames, in figures. A is the old one, B the new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nightlab_core.runtime.pipeline import STAGES
from nightlab_replay.accuracy import Accuracy, accuracy_of
from nightlab_replay.intervals import Figures, Interval, blocks_of, mean_interval, miou_interval
from nightlab_replay.pairing import Pairs
from nightlab_replay.records import FrameRecord, Run
from nightlab_replay.report.verdict import Gate, accuracy_words, gates_of, latency_words, pair_words
from nightlab_replay.summary import Percentiles, percentiles

COMPARE_FORMAT = 1
#: Of `ReplaySettings`: with another one of these, frames take another time on the same engine.
_TIMED = ("precision", "threads", "rate")


class Side(Figures):
    """One of the two runs."""

    folder: str
    bundle: str
    bundle_sha256: dict[str, str]
    engine: str
    complete: bool
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]


class Change(Figures):
    """A number that every frame has, in both runs, as means over the pairs."""

    first: float
    second: float
    change: Interval


class StageChange(Figures):
    """Milliseconds of one stage."""

    first: Percentiles
    second: Percentiles
    change: Interval  #: of the mean, milliseconds; above 0 is slower


class Comparison(Figures):
    """compare.json. Gains are B minus A, 0..1."""

    format: int = COMPARE_FORMAT
    first: Side
    second: Side
    pairs: int
    labelled_pairs: int
    left_out: dict[str, int]
    different_settings: dict[str, tuple[str, str]]
    accuracy: Accuracy | None  #: both levels of A and of B
    image_level: Interval | None  #: the change of the image level's mIoU
    behaviour: dict[str, Change]  #: confidence, agreement, flicker
    stages_ms: dict[str, StageChange]
    latency_note: str  #: why the times cannot be laid side by side, or empty
    verdict: str
    sentences: tuple[str, ...]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """True if no gate failed."""
        return all(gate.passed for gate in self.gates)


def compare(
    pairs: Pairs, folders: tuple[str, str], fail_below: float | None = None, no_worse_than: float | None = None
) -> Comparison:
    """`fail_below` is B's least mIoU in per cent, `no_worse_than` the most that B may lose, in points."""
    runs = pairs.first.run, pairs.second.run
    confusion = pairs.confusion
    seconds = [b for _, b in pairs.labelled]
    accuracy = accuracy_of(
        ("A", "B"),
        runs[1].settings.classes,
        runs[1].settings.class_names,
        seconds,
        confusion[0][:, 1],
        confusion[1][:, 1],
    )
    image_level = None
    if seconds:
        first, second = (c[:, 0].sum(axis=1) for c in confusion)
        image_level = miou_interval(first, second, blocks_of(seconds))
    stages, note, total = _stages(pairs), _latency_note(*runs), None
    if "total" in stages:
        total = (stages["total"].first, stages["total"].second, stages["total"].change)
    return Comparison(
        first=_side(folders[0], pairs.first.run, pairs.first.complete),
        second=_side(folders[1], pairs.second.run, pairs.second.complete),
        pairs=len(pairs.records),
        labelled_pairs=len(seconds),
        left_out=pairs.left_out,
        different_settings=_different_settings(*runs),
        accuracy=accuracy,
        image_level=image_level,
        behaviour=_behaviour(pairs),
        stages_ms=stages,
        latency_note=note,
        verdict="no labels" if accuracy is None or accuracy.gain is None else accuracy.gain.verdict,
        sentences=(
            *accuracy_words(accuracy),
            *latency_words(total, note),
            *pair_words(len(pairs.records), pairs.left_out),
        ),
        gates=tuple(gates_of(accuracy, fail_below, no_worse_than)),
    )


def _side(folder: str, run: Run, complete: bool) -> Side:
    return Side(
        folder=folder,
        bundle=run.bundle.name,
        bundle_sha256=run.bundle.sha256,
        engine=run.bundle.engine,
        complete=complete,
        machine=run.machine,
        versions=run.versions,
        settings=run.settings.model_dump(mode="json"),
    )


def _different_settings(first: Run, second: Run) -> dict[str, tuple[str, str]]:
    """What differs beside the bundle, so that nobody takes a setting's doing for the bundle's."""
    different = {}
    for part in ("settings", "versions", "machine"):
        a, b = (_flat(run.model_dump(mode="json")[part]) for run in (first, second))
        for name in {**a, **b}:
            if a.get(name) != b.get(name):
                different[f"{part}.{name}"] = (str(a.get(name, "—")), str(b.get(name, "—")))
    if first.bundle.engine != second.bundle.engine:
        different["engine"] = (first.bundle.engine, second.bundle.engine)
    return different


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _behaviour(pairs: Pairs) -> dict[str, Change]:
    numbers: dict[str, Callable[[FrameRecord], float | None]] = {
        "confidence": lambda r: None if r.mean_confidence is None else r.mean_confidence / 255,
        "agreement": lambda r: r.agreement,
        "flicker": lambda r: r.flicker,
    }
    found = {name: _change(pairs.records, number) for name, number in numbers.items()}
    return {name: change for name, change in found.items() if change is not None}


def _change(
    records: Sequence[tuple[FrameRecord, FrameRecord]], number: Callable[[FrameRecord], float | None]
) -> Change | None:
    known = [(b, x, y) for a, b in records if (x := number(a)) is not None and (y := number(b)) is not None]
    if not known:
        return None
    first, second = (np.array([k[i] for k in known], np.float64) for i in (1, 2))
    change = mean_interval(second - first, blocks_of([k[0] for k in known]))
    assert change is not None
    return Change(first=float(first.mean()), second=float(second.mean()), change=change)


def _stages(pairs: Pairs) -> dict[str, StageChange]:
    """Over the frames in which the stage ran in both runs."""
    found = {}
    for stage in STAGES:
        both = [p for p in pairs.records if all(r.stages_ms.get(stage, 0) > 0 for r in p)]
        change = _change(both, lambda r, stage=stage: r.stages_ms[stage])  # type: ignore[misc]
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
        return "A and B were replayed in different ways"
    different = [name for name in _TIMED if getattr(first.settings, name) != getattr(second.settings, name)]
    return f"A and B were replayed with different settings ({', '.join(different)})" if different else ""
