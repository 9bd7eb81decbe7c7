# SPDX-License-Identifier: Apache-2.0
"""Runs on disk: loading, partial runs, damaged files, and runs of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from class_sets import CITYSCAPES19

from nightlab_replay import records as rec
from nightlab_replay import store


def make_run(num_frames: int = 3) -> rec.Run:
    return rec.Run(
        started="2026-01-31T00:00:00+00:00",
        settings=rec.ReplaySettings(classes="cityscapes19", class_names=CITYSCAPES19.names),
        bundle=rec.BundleInfo(path="b", name="tiny", sha256={}, manifest={}, engine="none"),
        bags=tuple(
            rec.BagInfo(name=name, path=name, storage="mcap", size_bytes=1, topics={}, num_frames=num_frames)
            for name in ("b", "a")
        ),
        versions={},
        machine={},
    )


def make_frame(bag: str, index: int, seed: int) -> tuple[rec.FrameRecord, rec.FrameCounts]:
    random = np.random.default_rng(seed)
    record = rec.FrameRecord(
        bag=bag,
        index=index,
        time_ns=index,
        stamp_ns=index + 2**60,
        size_hw=(4, 6),
        light_level=random.random(),
        stages_ms={"total": random.random()},
        boxes_xyxy=((0.1, 0.2, 0.3, 0.4),),
        scores=(0.5,),
        refined=(True,),
        labelled=True,
    )
    empty = rec.FrameCounts.empty(19)
    return record, rec.FrameCounts(
        *(random.integers(0, 9, (1, *getattr(empty, n).shape[1:])) for n in rec.FrameCounts.__dataclass_fields__)
    )


def test_a_run_is_loaded_in_order_and_unchanged(tmp_path: Path) -> None:
    store.write_run(tmp_path, make_run())
    frames = {(bag, i): make_frame(bag, i, 10 * i + len(bag)) for bag in ("a", "b") for i in range(3)}
    for bag, indices in (("a", (2,)), ("b", (0, 1, 2)), ("a", (0, 1))):
        part = [frames[bag, i] for i in indices]
        store.write_chunk(tmp_path, [r for r, _ in part], rec.FrameCounts.concatenate([c for _, c in part], 19))
    data = store.load_run(tmp_path)
    expected = [frames[bag, i] for bag in ("b", "a") for i in range(3)]  # in the order of run.json
    assert data.records == [r for r, _ in expected]
    assert data.complete and store.load_records(tmp_path, data.run) == data.records
    np.testing.assert_array_equal(data.counts.confusion, np.concatenate([c.confusion for _, c in expected]))
    np.testing.assert_array_equal(data.counts.confidence_sum, np.concatenate([c.confidence_sum for _, c in expected]))
    assert not list(tmp_path.rglob("*tmp*"))


def test_a_partial_run_is_loaded(tmp_path: Path) -> None:
    store.write_run(tmp_path, make_run())
    data = store.load_run(tmp_path)
    assert not data.records and not data.complete
    assert data.counts.confusion.shape == (0, 2, rec.NUM_BANDS, 19, 20)


def test_counts_must_fit_the_labelled_frames(tmp_path: Path) -> None:
    record, _ = make_frame("a", 0, 1)
    with pytest.raises(ValueError, match="0 rows of counts for 1 labelled"):
        store.write_chunk(tmp_path, [record], rec.FrameCounts.empty(19))


def test_a_run_json_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = make_run()
    values = json.loads(run.model_dump_json())
    for bag in values["bags"]:
        for later in ("mtimes_ns", "label_classes", "frame_hw"):
            del bag[later]
    del values["settings"]["own_classes"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert store.read_run(tmp_path) == run


def test_a_chunk_of_an_earlier_version_is_read_and_merged(tmp_path: Path) -> None:
    store.write_run(tmp_path, make_run())
    frames = [make_frame("a", i, i) for i in range(2)]
    for record, counts in frames:
        store.write_chunk(tmp_path, [record], counts)
    path = store.chunk_path(tmp_path, "a", 0)
    with np.load(path) as arrays:
        before = {name: arrays[name] for name in arrays if name != "by_confidence"}
    np.savez_compressed(path, **before)
    counts = store.load_run(tmp_path).counts
    np.testing.assert_array_equal(counts.confusion, np.concatenate([c.confusion for _, c in frames]))
    assert not counts.by_confidence[0].any()
    np.testing.assert_array_equal(counts.by_confidence[1], frames[1][1].by_confidence[0])


@pytest.mark.parametrize("text", ["", "{}", '{"format": 7}'])
def test_a_run_json_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(store.StoreError, match="--restart"):
        store.read_run(tmp_path)


def test_a_missing_run_and_a_damaged_chunk_are_named(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match="no run"):
        store.load_run(tmp_path)
    store.write_run(tmp_path, make_run())
    record, counts = make_frame("a", 0, 1)
    store.write_chunk(tmp_path, [record], counts)
    path = store.chunk_path(tmp_path, "a", 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(store.StoreError, match="a-00000000"):
        store.load_run(tmp_path)
    with pytest.raises(store.StoreError, match="a-00000000"):
        store.load_records(tmp_path, make_run())
