# SPDX-License-Identifier: Apache-2.0
"""Invented runs of a replay: a drive into the night with lost frames, regions and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from class_sets import CITYSCAPES19

from nightlab_core.runtime.pipeline import STAGES
from nightlab_replay.records import (
    METHODS,
    NUM_BANDS,
    NUM_BINS,
    BagInfo,
    BundleInfo,
    FrameCounts,
    FrameRecord,
    ReplaySettings,
    Run,
    RunData,
    TopicInfo,
)
from nightlab_replay.store import write_chunk, write_run

#: Classes that the labels contain; the others are absent.
PRESENT = ("road", "sidewalk", "building", "pole", "traffic light", "vegetation", "sky", "person", "car")
SHARES = np.array([0.34, 0.07, 0.22, 0.02, 0.01, 0.1, 0.14, 0.02, 0.08])
PIXELS = 20_000
REASONS = {"ok": "", "dropped": "a newer frame was there", "unreadable": "the image has 10 bytes of 300"}


def sample_run(
    frames: int = 120,
    *,
    seed: int = 0,
    name: str = "night-a",
    labelled: bool = True,
    skill: float = 0.0,
    skill_in_the_dark: float = 0.0,
    slower: float = 1.0,
    bags: tuple[str, ...] = ("evening.mcap",),
    missing: int = 0,
    lost: bool = True,
    hz: float = 10.0,
) -> RunData:
    """Return a drive of `frames` frames per bag from day into night.

    `skill` changes the share of correct pixels of both levels in all frames, `skill_in_the_dark` in the dark ones. The
    last `missing` frames are not replayed. The labels and the difficulty of a frame depend only on bag and index, so
    all runs are of the same frames; `seed` determines the rest.
    """
    records: list[FrameRecord] = []
    rows: list[tuple[np.ndarray, ...]] = []
    for place, bag in enumerate(bags):
        for index in range(frames - (missing if place == len(bags) - 1 else 0)):
            rng = np.random.default_rng([place, index])
            own = np.random.default_rng([seed, place, index])
            light = float(0.3 * 10 ** (-1.9 * index / frames)) * rng.uniform(0.9, 1.1)
            status = "dropped" if lost and index % 17 == 16 else "unreadable" if lost and index == 49 else "ok"
            time_ns = 1_700_000_000_000_000_000 + int(index * 1e9 / hz)
            record = FrameRecord(
                bag=bag,
                index=index,
                time_ns=time_ns,
                stamp_ns=time_ns - 5_000_000,
                frame_id="camera",
                status=status,
                reason={"dropped": "a newer frame was there", "unreadable": "the image has 10 bytes of 300"}.get(
                    status, ""
                ),
            )
            if status == "ok":
                record = _segmented(record, light, own, labelled, slower)
                if labelled:
                    bonus = skill + (skill_in_the_dark if light < 0.06 else 0.0)
                    rows.append(_counts(rng, own, light, bonus))
            records.append(record)
    counts = FrameCounts.empty(19)
    if rows:
        counts = FrameCounts(*map(np.stack, zip(*rows, strict=True)))
    return RunData(_run(name, frames, bags, labelled, missing), records, counts)


def write_sample(folder: Path, data: RunData) -> Path:
    """Store a run as a replay does, with one chunk per bag."""
    write_run(folder, data.run)
    row = 0
    for bag in data.run.bags:
        records = [r for r in data.records if r.bag == bag.name]
        held = sum(r.labelled for r in records)
        parts = [getattr(data.counts, key)[row : row + held] for key in FrameCounts.__dataclass_fields__]
        row += held
        if records:
            write_chunk(folder, records, FrameCounts(*parts))
    return folder


def _segmented(
    record: FrameRecord, light: float, rng: np.random.Generator, labelled: bool, slower: float
) -> FrameRecord:
    boxes = []
    for _ in range(rng.integers(0, 5)):
        x, y, w, h = rng.beta(4, 4), 0.3 + 0.25 * rng.beta(3, 3), rng.uniform(0.04, 0.2), rng.uniform(0.05, 0.25)
        boxes.append((max(x - w / 2, 0.0), y - h / 2, min(x + w / 2, 1.0), y + h / 2))
    stages = dict(zip(STAGES, rng.lognormal(np.log([1, 24, 4, 1.2, 15, 1.5, 29]), 0.15), strict=True))
    values = {stage: float(ms * slower) for stage, ms in stages.items()}
    if not boxes:
        values["crop"] = values["region"] = 0.0
    return FrameRecord(
        **{
            **record.__dict__,
            "size_hw": (720, 1280),
            "light_level": light,
            "mean_confidence": float(255 * np.clip(0.93 + 0.05 * np.log10(light) + rng.normal(0, 0.01), 0, 1)),
            "agreement": float(np.clip(0.97 + rng.normal(0, 0.01), 0, 1)),
            "flicker": None if record.index == 0 else float(rng.beta(2, 60)),
            "stages_ms": values,
            "boxes_xyxy": tuple(boxes),
            "scores": tuple(sorted(rng.uniform(0.2, 1, len(boxes)).tolist(), reverse=True)),
            "refined": (True,) * len(boxes),
            "labelled": labelled,
        }
    )


def _counts(rng: np.random.Generator, own: np.random.Generator, light: float, bonus: float) -> tuple[np.ndarray, ...]:
    """Return a frame's counts in the order of `FrameCounts`: its labels are drawn from `rng`, its errors from `own`."""
    ids = [CITYSCAPES19.id_of(n) for n in PRESENT]
    confusion = np.zeros((len(METHODS), NUM_BANDS, 19, 20), np.int64)
    reliability = np.zeros((len(METHODS), NUM_BINS, 2), np.int64)
    sums = np.zeros((len(METHODS), NUM_BINS), np.int64)
    by_confidence = np.zeros((len(METHODS), NUM_BINS, 19, 2), np.int64)
    ease = 0.93 + 0.08 * np.log10(light) + rng.normal(0, 0.03)
    for band in range(NUM_BANDS):
        labels = rng.multinomial(PIXELS // NUM_BANDS, SHARES / SHARES.sum())
        for method, extra in enumerate((0.0, 0.03)):
            for place, (c, pixels) in enumerate(zip(ids, labels, strict=True)):
                chance = np.clip(ease + extra + bonus - (0.25 if SHARES[place] < 0.05 else 0.0), 0.02, 0.995)
                correct_pixels = int(own.binomial(pixels, chance))
                others = own.multinomial(pixels - correct_pixels, SHARES / SHARES.sum())
                confusion[method, band, c, ids] += others
                confusion[method, band, c, c] += correct_pixels
    for method in range(len(METHODS)):
        correct_pixels = int(np.trace(confusion[method].sum(axis=0)[:, :19]))
        for correct, pixels in ((1, correct_pixels), (0, PIXELS - correct_pixels)):
            codes = (255 * own.beta(9 if correct else 4, 1.2, 400)).astype(np.int64)
            weights = np.full(400, pixels // 400)
            weights[: pixels % 400] += 1
            bins = codes * NUM_BINS // 256
            np.add.at(reliability[method, :, 0], bins, weights)
            np.add.at(reliability[method, :, 1], bins, weights * correct)
            np.add.at(sums[method], bins, weights * codes)
    for method in range(len(METHODS)):
        matrix = confusion[method].sum(axis=0)
        right = np.diagonal(matrix)
        for correct, by_class in ((1, right), (0, matrix[:, :19].sum(axis=0) - right)):
            left = reliability[method, :, 1] if correct else reliability[method, :, 0] - reliability[method, :, 1]
            for c in ids:
                drawn = own.multivariate_hypergeometric(left, by_class[c], method="marginals")
                left = left - drawn
                by_confidence[method, :, c, 0] += drawn
                by_confidence[method, :, c, 1] += drawn * correct
    return confusion, reliability, sums, by_confidence


def _run(name: str, frames: int, bags: tuple[str, ...], labelled: bool, missing: int) -> Run:
    return Run(
        started="2026-01-02T03:04:05Z",
        finished=None if missing else "2026-01-02T03:14:05Z",
        settings=ReplaySettings(classes="cityscapes19", class_names=CITYSCAPES19.names),
        bundle=BundleInfo(
            path=f"bundles/{name}",
            name=name,
            sha256={"bundle.yaml": "ab" * 32, "image.onnx": "cd" * 32},
            manifest={},
            engine="OpenVINO CPU bfloat16",
        ),
        bags=tuple(
            BagInfo(
                name=bag,
                path=f"bags/{bag}",
                storage="mcap",
                size_bytes=10**9,
                sha256={bag: f"{place:02x}" * 32},
                topics={"/camera/image_raw": TopicInfo(type="sensor_msgs/msg/Image", count=frames)},
                image_topic="/camera/image_raw",
                label_topic="/camera/labels" if labelled else None,
                num_frames=frames,
                num_labels=frames if labelled else 0,
            )
            for place, bag in enumerate(bags)
        ),
        versions={"nightlab": "0.3.0", "numpy": np.__version__},
        machine={"cpu": "an ordinary one", "cores": "2"},
    )
