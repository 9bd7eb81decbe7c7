# SPDX-License-Identifier: Apache-2.0
"""Replay through the live node: node and player in processes of their own, on the tiny bundle."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from class_sets import CITYSCAPES19
from pipelines import open_pipeline
from rich.console import Console
from rosbags.typesys import Stores, get_typestore
from tiny_bags import FRAME_ID, START_NS, STEP_NS, make_frames, write_tiny_bag

from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.write import Packing
from nightlab_replay.evaluation import FrameEvaluator
from nightlab_replay.replay import replay
from nightlab_replay.store import load_run
from nightlab_ros.live_replay import answered_part, describe_mismatch, playback_statistics, replay_live
from nightlab_ros.playback.bag_player import OwnStamps, stamp_of, with_stamp
from nightlab_ros.playback.protocol import SentFrame

pytestmark = pytest.mark.ros


def test_a_stamp_is_changed_in_place(tmp_path: Path) -> None:
    path = write_tiny_bag(tmp_path / "bag", make_frames(1))
    with Bag(path) as bag:
        raw = bag.raw(0)
    assert isinstance(raw, bytes) and stamp_of(raw) == START_NS
    changed = with_stamp(raw, 12_000_000_034)
    message = get_typestore(Stores.ROS2_HUMBLE).deserialize_cdr(changed, "sensor_msgs/msg/Image")
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (12, 34, FRAME_ID)
    assert changed[12:] == raw[12:]


def test_each_message_gets_a_stamp_of_its_own(tmp_path: Path) -> None:
    path = write_tiny_bag(tmp_path / "bag", make_frames(1))
    with Bag(path) as bag:
        raw = bag.raw(0)
    assert isinstance(raw, bytes)
    stamps = OwnStamps()
    recorded = [(900, 1000), (0, 1001), (900, 1002), (1001, 1003), (0, 1003), (500, 1004)]
    played = [stamps.apply(with_stamp(raw, stamp_ns), time_ns) for stamp_ns, time_ns in recorded]
    assert [stamp_of(message) for message in played] == [900, 1001, 1002, 1003, 1004, 500]
    assert all(len(message) == len(raw) for message in played)


def test_frames_on_their_way_when_the_replay_was_stopped_are_played_again() -> None:
    class Recorder:
        def has_masks(self, stamp_ns: int) -> bool:
            return stamp_ns in (10, 12)

    sent = [SentFrame(index, 10 + index, 0, 0.0) for index in range(5)]
    assert [frame.index for frame in answered_part(sent, Recorder())] == [0, 1, 2]  # type: ignore[arg-type]
    assert answered_part(sent[3:], Recorder()) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"frame_id": "rear"}, "the mask has the frame_id 'rear', its image 'front'"),
        ({"size_hw": (6, 4)}, "the mask is (6, 4), its image (4, 6) (height, width)"),
        ({"encoding": "8UC1"}, "the mask has the encoding '8UC1', expected 'mono8'"),
    ],
)
def test_a_mask_that_does_not_fit_its_image_is_described(change: dict[str, Any], sentence: str) -> None:
    frame: Any = SimpleNamespace(image_bgr=np.zeros((4, 6, 3), np.uint8), frame_id="front")
    mask: Any = SimpleNamespace(**{"frame_id": "front", "size_hw": (4, 6), "encoding": "mono8", **change})
    assert describe_mismatch(frame, [mask]) == sentence


def test_repeated_late_and_unknown_masks_are_counted() -> None:
    sent = [SentFrame(index, 10 + index, 0, 1.5 * index) for index in range(3)]
    warm_up = [SentFrame(-1, 5, 0, 0.0)]
    statistics = playback_statistics(sent, warm_up, [5, 10, 12, 11, 11, 99])
    assert statistics == {
        "replay_sent": "3",
        "replay_masks": "4",
        "replay_repeated": "1",
        "replay_out_of_order": "1",
        "replay_of_no_image": "1",
        "replay_camera_late_ms_max": "3.0",
        "replay_stamps_replaced": "0",
    }


@pytest.mark.parametrize("packing", ["none", pytest.param("png", marks=pytest.mark.slow)])
def test_masks_of_the_live_node_are_evaluated(tmp_path: Path, tiny_bundle: Path, packing: Packing) -> None:
    frames = make_frames(9, (64, 96))
    path = write_tiny_bag(tmp_path / "bag", frames, packing=packing)
    bundle = tmp_path / 'run #3: "it\'s"'  # YAML gives meaning to these characters
    shutil.copytree(tiny_bundle, bundle)
    printed = io.StringIO()
    replay(
        [path],
        tmp_path / "out",
        bundle=bundle,
        mode="live",
        live=replay_live,
        rate=0.4,
        engine="onnxruntime",
        threads=1,
        write_bag=True,
        console=Console(file=printed),
    )
    data = load_run(tmp_path / "out")
    assert data.complete and data.run.settings.mode == "live"
    answered = [r for r in data.records if r.status == "ok"]
    assert len(answered) >= 5, printed.getvalue()  # one every 250 ms; a busy machine may miss some
    evaluator = FrameEvaluator("bag", CITYSCAPES19, CITYSCAPES19)
    with Bag(path) as bag, open_pipeline(tiny_bundle, engine="onnxruntime", threads=1) as pipeline:
        for record, confusion in zip(data.labelled, data.counts.confusion, strict=True):
            frame = bag.frame(record.index, CITYSCAPES19)
            assert frame.image_bgr is not None
            expected, counts = evaluator.result(frame, pipeline(frame.image_bgr))
            np.testing.assert_array_equal(confusion, counts.confusion[0])
            assert (record.mean_confidence, record.agreement) == (expected.mean_confidence, expected.agreement)
            assert (record.frame_id, record.stamp_ns) == (FRAME_ID, START_NS + record.index * STEP_NS)
            assert record.latency_ms is not None and record.age_ms is not None
            # recorded 1 ms after its stamp, sent a little late; /clock runs at 0.4 of the wall's rate
            late_ms = record.age_ms - 1 - 0.4 * record.latency_ms
            assert -1 < late_ms < 10 + 0.4 * float(data.run.node["replay_camera_late_ms_max"])
    node = data.run.node
    assert (node["replay_sent"], node["replay_out_of_order"], node["replay_of_no_image"]) == ("9", "0", "0")
    assert int(node["received"]) >= len(answered) and float(node["frame_age_ms_p99"]) < 60_000
    with Bag(tmp_path / "out" / "bags" / "bag", "/nightlab/mask") as masks:
        assert len(masks) == len(answered) and "/nightlab/regions" not in masks.topics
