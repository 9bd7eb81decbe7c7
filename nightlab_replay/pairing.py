# SPDX-License-Identifier: Apache-2.0
"""Match the frames of two runs one by one, and refuse runs that do not belong together. A is the old run, B the new."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from nightlab_replay.records import BagInfo, FrameRecord, Run, RunData


class CompareError(ValueError):
    """Two runs that cannot be compared. The message says why and what to do."""


@dataclass(frozen=True)
class PairedRuns:
    """Frames that both runs segmented, in the order of the second run, and the number of frames left out by reason."""

    first: RunData
    second: RunData
    records: list[tuple[FrameRecord, FrameRecord]]
    labelled: list[tuple[FrameRecord, FrameRecord]]
    confusion: tuple[np.ndarray, np.ndarray]  #: int64 (N, 2, B, C, C + 1) of the labelled pairs
    left_out: dict[str, int]


def pair_runs(first: RunData, second: RunData) -> PairedRuns:
    """Match bags by the SHA-256 of their files, or by name if a run has no hashes yet, and frames by index.

    Raises CompareError if classes, bags, frames or labels differ, and if no frame is left.
    """
    _check_classes(first.run, second.run)
    bags = _match_bags(first.run, second.run)
    known = {(r.bag, r.index): r for r in first.records}
    rows = [{(r.bag, r.index): row for row, r in enumerate(data.labelled)} for data in (first, second)]
    records, labelled, left_out = [], [], Counter[str]()
    places: tuple[list[int], list[int]] = ([], [])
    seen = set()
    for record in second.records:
        other = known.get((bags.get(record.bag, ""), record.index))
        if other is None:
            left_out["only in B"] += 1
            continue
        seen.add((other.bag, other.index))
        if other.time_ns != record.time_ns:
            raise CompareError(
                f"frame {record.index} of {record.bag} was recorded at {other.time_ns} ns in A and at {record.time_ns} "
                "ns in B, so the bags differ: replay the same files with both bundles"
            )
        ok = other.status == "ok", record.status == "ok"
        if all(ok):
            records.append((other, record))
            if record.labelled and other.labelled:
                labelled.append((other, record))
                places[0].append(rows[0][other.bag, other.index])
                places[1].append(rows[1][record.bag, record.index])
        else:
            who = {(True, False): "only A", (False, True): "only B", (False, False): "neither"}[ok]
            left_out[f"segmented by {who}"] += 1
    left_out["only in A"] += len(known.keys() - seen)
    if not records:
        raise CompareError("no frame was segmented in both runs: replay the same bags with both bundles")
    confusion = first.counts.confusion[places[0]], second.counts.confusion[places[1]]
    _check_labels(labelled, *confusion)
    return PairedRuns(first, second, records, labelled, confusion, {k: n for k, n in left_out.items() if n})


def _check_classes(first: Run, second: Run) -> None:
    a, b = first.settings, second.settings
    if a.class_names != b.class_names:
        raise CompareError(
            f"A has {len(a.class_names)} classes ({a.classes}), B has {len(b.class_names)} ({b.classes}): "
            "replay both with the same --classes"
        )


def _match_bags(first: Run, second: Run) -> dict[str, str]:
    """Return the bag of the first run for each bag of the second, by name."""
    found: dict[str, str] = {}
    for bag in second.bags:
        free = [other for other in first.bags if other.name not in found.values()]
        same = [other for other in free if _same_files(bag, other)]
        named = [other for other in free if other.name == bag.name and not (bag.sha256 and other.sha256)]
        for other in (same or named)[:1]:
            if (other.image_topic, other.label_topic) != (bag.image_topic, bag.label_topic):
                raise CompareError(
                    f"{bag.name} has the topics {other.image_topic} and {other.label_topic} in A, {bag.image_topic} "
                    f"and {bag.label_topic} in B: replay both with the same --topic and --label-topic"
                )
            found[bag.name] = other.name
    if not found:
        raise CompareError(
            f"no bag is in both runs: A has {_names(first)}, B has {_names(second)}: replay the same bags with both "
            "bundles"
        )
    return found


def _same_files(bag: BagInfo, other: BagInfo) -> bool:
    return bool(bag.sha256) and sorted(bag.sha256.values()) == sorted(other.sha256.values())


def _names(run: Run) -> str:
    return ", ".join(f"{b.name} ({next(iter(b.sha256.values()), 'no hash yet')[:12]})" for b in run.bags) or "none"


def _check_labels(labelled: list[tuple[FrameRecord, FrameRecord]], first: np.ndarray, second: np.ndarray) -> None:
    """Raise CompareError if the number of labelled pixels of a class, a row sum of the matrices, differs."""
    same = (first[:, 1].sum(axis=-1) == second[:, 1].sum(axis=-1)).all(axis=(1, 2))
    if not same.all():
        record = labelled[int(np.argmin(same))][1]
        raise CompareError(
            f"the labels differ between A and B in {int((~same).sum())} of {len(labelled)} frames, the first is frame "
            f"{record.index} of {record.bag}: replay both with the same --label-topic and --classes"
        )
