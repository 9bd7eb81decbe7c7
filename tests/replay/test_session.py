# SPDX-License-Identifier: Apache-2.0
"""Runs of the tiny bundle: records, resuming, refused differences, and bags of masks."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_sets import CITYSCAPES19
from replays import SETTINGS, assert_same, run_replay, start_run
from rich.console import Console
from rosbags.highlevel import AnyReader
from tiny_bags import FRAME_ID, IMAGES, START_NS, STEP_NS, make_frames, write_tiny_bag

from nightlab_core.data.bags.write import BagWriter
from nightlab_core.runtime.bundle import Bundle, sha256_of
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.version import package_version
from nightlab_replay.bags import write_mask_bags
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.provenance import BagHashes, describe_bags, describe_bundle, label_class_set
from nightlab_replay.records import BagInfo, FrameRecord, Run, RunData
from nightlab_replay.replay import replay
from nightlab_replay.report.report import write_report
from nightlab_replay.session import frame_problems, start_or_resume, store_results
from nightlab_replay.store import StoreError, load_records, write_run


def test_a_run_records_its_frames_and_inputs(serial: RunData, bags: list[Path], tiny_bundle: Path) -> None:
    assert serial.complete and serial.run.finished
    assert [(r.bag, r.index) for r in serial.records] == [("one", i) for i in range(11)] + [
        ("two", i) for i in range(6)
    ]
    first = serial.records[0]
    assert (first.stamp_ns, first.frame_id, first.status, first.labelled) == (START_NS, FRAME_ID, "ok", True)
    assert first.flicker is None and len(first.boxes_xyxy) == 3 and first.stages_ms["total"] > 0
    assert serial.run.bags[0].sha256["one.mcap"] == sha256_of(bags[0] / "one.mcap")
    assert serial.run.bundle.sha256["image.onnx"] == sha256_of(tiny_bundle / "image.onnx")
    assert serial.run.versions["nightlab_ros"] == package_version()
    assert serial.run.versions["numpy"] == np.__version__ and serial.run.machine["cpu"]


@pytest.mark.parametrize("after", [1, 6, 12])
def test_a_stopped_replay_resumes_with_the_same_result(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData, after: int
) -> None:
    calls = iter(range(1000))
    partial = run_replay(tmp_path, bags, pipeline, stopped=lambda: next(calls) >= after - 1)
    assert len(partial.records) == after and not partial.complete and partial.run.finished is None
    whole = run_replay(tmp_path, bags, pipeline)
    assert_same(whole, serial)
    assert whole.run.wall_s > partial.run.wall_s and whole.run.bags[0].sha256
    assert start_run(tmp_path, bags, pipeline)[1] == []


@pytest.mark.parametrize("mode, first", [("all", "hashes"), ("realtime", "results"), ("live", "results")])
def test_hashing_does_not_disturb_timed_replays(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, mode: str, first: str
) -> None:
    started = []

    class RecordingHashes(BagHashes):
        def __init__(self, bags: Sequence[BagInfo]) -> None:
            started.append("hashes")
            super().__init__(bags)

    monkeypatch.setattr("nightlab_replay.session.BagHashes", RecordingHashes)
    run, spans = start_run(tmp_path, bags, pipeline)
    run = run.model_copy(update={"settings": SETTINGS.model_copy(update={"mode": mode})})

    def results() -> Iterator[SpanResult]:
        started.append("results")
        yield from replay_spans(spans, pipeline, CITYSCAPES19)

    run = store_results(tmp_path, run, results())
    assert started[0] == first and len(started) == 2
    assert run.bags[0].sha256["one.mcap"] == sha256_of(bags[0] / "one.mcap")


def test_a_live_run_has_no_regions(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    run, spans = start_run(tmp_path, bags[:1], pipeline)
    run = run.model_copy(update={"settings": SETTINGS.model_copy(update={"mode": "live"})})
    results = replay_spans(spans, pipeline, CITYSCAPES19, keep_masks=True)
    unknown = {"boxes_xyxy": (), "scores": (), "refined": (), "stages_ms": {}}
    live = (dataclasses.replace(r, records=[dataclasses.replace(f, **unknown) for f in r.records]) for r in results)
    run = store_results(tmp_path, run, live)
    (path,) = write_mask_bags(tmp_path, run)
    with AnyReader([path]) as reader:
        assert "/nightlab/mask" in reader.topics and "/nightlab/regions" not in reader.topics
    write_report(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())["behaviour"]
    assert found["regions_per_frame"] is found["refined_per_frame"] is found["region_heat"] is None
    assert [part["regions"] for part in found["by_light"]] == [None] * len(found["by_light"])
    assert "Hard regions" not in (tmp_path / "report.html").read_text()
    line = next(csv.DictReader((tmp_path / "frames.csv").open()))
    assert line["regions"] == line["refined"] == "" and line["confidence"]


def test_the_live_replay_is_passed_in_and_its_diagnostics_are_stored(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, tiny_bundle: Path
) -> None:
    def live(
        spans: Sequence[Span], run: Run, bundle: Bundle, out: Path, node: dict[str, str], /, **options: Any
    ) -> Generator[SpanResult, None, None]:
        assert [(span.first, span.stop) for span in spans] == [(0, 6)] and out == tmp_path
        options.pop("on_note")("starting the node")
        yield from replay_spans(spans, pipeline, run.settings.class_set, **options)
        node["received"] = "6"

    options: dict[str, Any] = {"bundle": tiny_bundle, "engine": "onnxruntime", "mode": "live"}
    with pytest.raises(ValueError, match="expected the live replay"):
        replay(bags[1:], tmp_path, **options)
    run = replay(bags[1:], tmp_path, **options, live=live, console=Console(file=io.StringIO()))
    assert run.finished and run.node == {"received": "6"} and run.settings.mode == "live"


def test_measured_bits_are_told_once_and_are_no_problem(tmp_path: Path, tiny_bundle: Path) -> None:
    with BagWriter(tmp_path / "dim") as bag:
        for index in range(2):
            pixels = np.full((48, 64), 4000 + index, np.uint16)  # 12 bits
            bag.image(IMAGES, pixels, START_NS + index * STEP_NS, FRAME_ID, time_ns=index, packing="png")
    console = Console(file=io.StringIO(), width=1000)
    options: dict[str, Any] = {"bundle": tiny_bundle, "engine": "onnxruntime", "console": console}
    run = replay([tmp_path / "dim"], tmp_path / "out", **options)
    assert run.bags[0].problems == () and len(run.bags[0].notes) == 1
    assert console.file.getvalue().count("12 significant bits") == 1  # type: ignore[attr-defined]


def test_the_problems_of_a_bags_frames_are_described() -> None:
    def frame(index: int, stamp_ns: int, **fields: Any) -> FrameRecord:
        return FrameRecord(bag="a", index=index, time_ns=index, stamp_ns=stamp_ns, size_hw=(4, 6), **fields)

    frames = [frame(0, 5), frame(1, 7, reason="no label of class 77"), frame(2, 6), frame(3, 7)]
    assert frame_problems(frames[:1]) == []
    small = dataclasses.replace(frames[3], index=4, stamp_ns=9, size_hw=(2, 3))
    unreadable = frame(5, 10, status="unreadable", reason="too short")
    assert frame_problems([*frames, small, unreadable]) == [
        "frames that could not be read: 1; the first is 5: too short",
        "frames with an earlier stamp than the frame recorded before them: 1",
        "frames with the same stamp as another frame: 1",
        "frames have 2 sizes: 3x2, 6x4",
        "label maps that could not be used: 1; the first: no label of class 77",
    ]


class RecordingPipeline:
    """A pipeline that records its calls."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self.bundle, self.settings = pipeline, pipeline.bundle, pipeline.settings
        self.restart = pipeline.restart
        self.done: list[tuple[str, tuple[int, ...]]] = []

    def prepare(self, frame_hw: tuple[int, int]) -> None:
        self.done.append(("prepare", frame_hw))

    def __call__(self, frame: np.ndarray, stamp_s: float, number: int) -> object:
        self.done.append(("run", frame.shape[:2]))
        return self._pipeline(frame, stamp_s, number)


def test_the_time_of_a_frame_excludes_compilation(tmp_path: Path, pipeline: Pipeline) -> None:
    a, b = (48, 64), (32, 48)
    sizes = [a, a, b, a, b]
    bag = write_tiny_bag(tmp_path / "bag", [make_frames(1, size)[0] for size in sizes])
    _, spans = start_run(tmp_path / "out", [bag], pipeline)
    recording = RecordingPipeline(pipeline)
    list(replay_spans(spans, recording, CITYSCAPES19))  # type: ignore[arg-type]
    runs = [("run", size) for size in sizes]
    assert recording.done == [("prepare", a), *runs[:2], ("prepare", b), *runs[2:]]


def test_a_damaged_chunk_is_computed_again(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData
) -> None:
    run_replay(tmp_path, bags, pipeline)
    path = sorted((tmp_path / "chunks").iterdir())[1]
    path.write_bytes(path.read_bytes()[:50])
    assert_same(run_replay(tmp_path, bags, pipeline), serial)


def test_other_settings_are_refused(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    start_run(tmp_path, bags, pipeline)
    with pytest.raises(StoreError, match=r"precision: auto there, float32 here[\s\S]*--restart"):
        start_run(tmp_path, bags, pipeline, SETTINGS.model_copy(update={"precision": "float32"}))
    with pytest.raises(StoreError, match="keep_masks: False there, True here"):
        start_run(tmp_path, bags, pipeline, SETTINGS.model_copy(update={"keep_masks": True}))
    with pytest.raises(StoreError, match="bags: one, two there, one here"):
        start_run(tmp_path, bags[:1], pipeline)


def test_a_changed_bag_is_refused(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_tiny_bag(tmp_path / "drive", make_frames(2))
    run, _ = start_run(tmp_path / "out", [path], pipeline)
    size_bytes = run.bags[0].size_bytes
    shutil.rmtree(path)
    write_tiny_bag(path, make_frames(2, seed=1))  # other images of the same size
    assert describe_bags([path], None, None, None)[0].size_bytes == size_bytes
    file = path / "drive.mcap"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # however coarse the file system's clock
    with pytest.raises(StoreError, match=r"bag drive: modified since: drive\.mcap"):
        start_run(tmp_path / "out", [path], pipeline)
    unknown = run.bags[0].model_copy(update={"mtimes_ns": {}})  # as in a run.json of an earlier version
    write_run(tmp_path / "out", run.model_copy(update={"bags": (unknown,)}))
    start_run(tmp_path / "out", [path], pipeline)
    shutil.rmtree(path)
    write_tiny_bag(path, make_frames(3))
    with pytest.raises(StoreError, match=r"bag drive: number of frames: 2 there, 3 here"):
        start_run(tmp_path / "out", [path], pipeline)


@pytest.mark.parametrize("restart", [False, True])
def test_folders_of_other_tools_are_not_deleted(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, restart: bool
) -> None:
    precious = tmp_path / "masks" / "by_hand.png"
    precious.parent.mkdir()
    precious.write_bytes(b"years of work")
    info = describe_bundle(pipeline.bundle, pipeline.engines.name)
    with pytest.raises(StoreError, match=r"masks.*no replay created.*another --out"):
        start_or_resume(tmp_path, SETTINGS, info, describe_bags(bags, None, None, None), restart)
    assert precious.read_bytes() == b"years of work"


def test_a_restart_deletes_the_run_and_keeps_files_of_the_user(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline
) -> None:
    run_replay(tmp_path, bags, pipeline)
    own = [tmp_path / "chunks" / "mine.npz", tmp_path / "masks" / "drive" / "by_hand.png", tmp_path / "notes.txt"]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    info = describe_bundle(pipeline.bundle, pipeline.engines.name)
    run = start_or_resume(tmp_path, SETTINGS, info, describe_bags(bags, None, None, None), True)
    assert not load_records(tmp_path, run)
    assert [path.read_bytes() for path in own] == [b"mine"] * 3


def test_a_bag_of_masks_does_not_replace_a_replayed_bag(tmp_path: Path, pipeline: Pipeline) -> None:
    bag = write_tiny_bag(tmp_path / "bags" / "drive", make_frames(2))
    with pytest.raises(StoreError, match=r"drive.*another --out"):
        start_run(tmp_path, [bag], pipeline, SETTINGS.model_copy(update={"keep_masks": True}))
    assert (bag / "drive.mcap").exists() and not (tmp_path / "run.json").exists()


def test_bags_of_the_same_name_and_a_bag_given_twice(tmp_path: Path, bags: list[Path]) -> None:
    other = write_tiny_bag(tmp_path / "one", make_frames(1))
    assert [bag.name for bag in describe_bags([bags[0], other], None, None, None)] == ["one", "one_"]
    with pytest.raises(ValueError, match="given twice"):
        describe_bags([other, other], None, None, None)
    (file,) = other.glob("*.mcap")
    for both in ([other, file], [file, other]):
        with pytest.raises(ValueError, match=f"{both[1]} is given twice, also as {both[0]}"):
            describe_bags(both, None, None, None)


def test_the_class_set_of_the_labels(tmp_path: Path) -> None:
    def bag(name: str, classes: str | None) -> Path:
        return write_tiny_bag(tmp_path / name, make_frames(1), classes=classes)

    a, b, c, d = bag("a", "camvid11"), bag("b", "cityscapes19"), bag("c", None), bag("d", "mapillary")

    def chosen(requested: str | None, *paths: Path) -> str:
        return label_class_set(requested, describe_bags(paths, None, None, None), CITYSCAPES19).key

    assert chosen(None, a) == chosen(None, a, c) == "camvid11"
    assert chosen(None, b, c) == chosen(None, c) == "cityscapes19"
    assert chosen("bdd18", a, b, d) == "bdd18"
    with pytest.raises(ValueError, match="have different class sets"):
        chosen(None, a, b)
    with pytest.raises(ValueError, match=r"'mapillary'.*--classes"):
        chosen(None, d)


def test_the_bag_of_masks_contains_the_results(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    run, spans = start_run(tmp_path, bags, pipeline)
    store_results(tmp_path, run, replay_spans(spans, pipeline, CITYSCAPES19, keep_masks=True))
    one, two = write_mask_bags(tmp_path, run)
    assert (one.name, two.name) == ("one", "two")
    assert sorted(file.name for file in one.iterdir()) == ["metadata.yaml", "one.mcap"]
    assert sorted(one.parent.iterdir()) == [one, two]
    frames = make_frames(11)
    with AnyReader([one]) as reader:
        messages: dict[str, list] = {name: [] for name in reader.topics}
        raws = []
        for connection, time_ns, raw in reader.messages():
            messages[connection.topic].append((time_ns, reader.deserialize(raw, connection.msgtype)))
            raws.append((connection.topic, raw))
    assert {len(m) for m in messages.values()} == {11}
    for index, (image, _) in enumerate(frames):
        expected = pipeline(image)
        for topic, array in (
            ("/nightlab/mask", expected.labels),
            ("/nightlab/confidence", expected.confidence),
            ("/nightlab/debug/image_level_mask", expected.image_labels),
        ):
            time_ns, message = messages[topic][index]
            np.testing.assert_array_equal(message.data.reshape(48, 64), array)
            stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            assert (stamp_ns, message.header.frame_id) == (START_NS + index * STEP_NS, FRAME_ID)
            assert (message.encoding, time_ns) == ("mono8", stamp_ns + 1_000_000)
        detections = messages["/nightlab/regions"][index][1].detections
        sizes = [[d.bbox.size_x, d.bbox.size_y] for d in detections]
        np.testing.assert_allclose(sizes, expected.boxes_xyxy[:, 2:] - expected.boxes_xyxy[:, :2], rtol=1e-5)
        assert [d.results[0].hypothesis.class_id for d in detections] == ["refined"] * len(detections)


@pytest.mark.ros
def test_rclpy_reads_the_bag_of_masks(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import Image

    from nightlab_core.data.bags.reader import Bag

    run, spans = start_run(tmp_path, bags[:1], pipeline)
    store_results(tmp_path, run, replay_spans(spans[:1], pipeline, CITYSCAPES19, keep_masks=True))
    (path,) = write_mask_bags(tmp_path, run)
    with Bag(path, "/nightlab/mask") as bag:
        raw = bag.raw(2)
    message = serialization.deserialize_message(raw, Image)
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8), pipeline(make_frames(3)[2][0]).labels.ravel())
    assert message.header.frame_id == FRAME_ID
