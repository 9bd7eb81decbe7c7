# SPDX-License-Identifier: Apache-2.0
"""Whole replays on the tiny bundle: what they count, how they go on, and what they leave behind."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from tiny_bags import FRAME_ID, START_NS, STEP_NS, make_frames, write_tiny_bag

from nightlab_core.labels import CITYSCAPES19
from nightlab_core.runtime.bundle import Bundle, sha256_of
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.plans import PlanError
from nightlab_ros.replay import run as rp
from nightlab_ros.replay.bag import main as bag_main
from nightlab_ros.replay.cli import main
from nightlab_ros.replay.execute import Span, SpanResult, replay_spans
from nightlab_ros.replay.masks import write_mask_bags
from nightlab_ros.replay.provenance import Hashes, bundle_info
from nightlab_ros.replay.realtime import DROPPED, LONGEST_GAP_S, due_times_s, recorded_at, replay_realtime
from nightlab_ros.replay.records import (
    BagInfo,
    Counts,
    FrameRecord,
    ReplaySettings,
    Run,
    RunData,
    StoreError,
    load_run,
    write_run,
)
from nightlab_ros.replay.report import write_report

ROOT = Path(__file__).parents[2]
SETTINGS = ReplaySettings(
    engine="onnxruntime", classes="cityscapes19", class_names=CITYSCAPES19.names, chunk_frames=4, threads=1
)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.open(tiny_bundle, engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bags")
    one = write_tiny_bag(folder / "one", make_frames(11))
    return [one, write_tiny_bag(folder / "two", make_frames(6, seed=1), storage="sqlite3")]


def begin(
    out: Path, bags: list[Path], pipeline: Pipeline, settings: ReplaySettings = SETTINGS
) -> tuple[Run, list[Span]]:
    info = bundle_info(pipeline.bundle, pipeline.engine_name)
    run = rp.begin(out, settings, info, rp.look_at(bags, None, None, settings.max_frames), restart=False)
    return run, rp.missing_spans(out, run)


def replay(out: Path, bags: list[Path], pipeline: Pipeline, stopped: Callable[[], bool] = lambda: False) -> RunData:
    run, spans = begin(out, bags, pipeline)
    rp.carry_out(out, run, replay_spans(spans, pipeline, CITYSCAPES19, stopped=stopped))
    return load_run(out)


def assert_same(a: RunData, b: RunData) -> None:
    """All but the time it took."""

    def timeless(record: FrameRecord) -> FrameRecord:
        return dataclasses.replace(record, stages_ms={}, latency_ms=None)

    assert [timeless(r) for r in a.records] == [timeless(r) for r in b.records]
    for name in Counts.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a.counts, name), getattr(b.counts, name))


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, bags: list[Path], pipeline: Pipeline) -> RunData:
    return replay(tmp_path_factory.mktemp("serial"), bags, pipeline)


def test_a_run_says_all_that_it_is_made_of(serial: RunData, bags: list[Path], tiny_bundle: Path) -> None:
    assert serial.complete and serial.run.finished
    assert [(r.bag, r.index) for r in serial.records] == [("one", i) for i in range(11)] + [
        ("two", i) for i in range(6)
    ]
    first = serial.records[0]
    assert (first.stamp_ns, first.frame_id, first.status, first.labelled) == (START_NS, FRAME_ID, "ok", True)
    assert first.flicker is None and len(first.boxes_xyxy) == 3 and first.stages_ms["total"] > 0
    assert serial.run.bags[0].sha256["one.mcap"] == sha256_of(bags[0] / "one.mcap")
    assert serial.run.bundle.sha256["image.onnx"] == sha256_of(tiny_bundle / "image.onnx")
    assert serial.run.versions["numpy"] == np.__version__ and serial.run.machine["cpu"]


@pytest.mark.parametrize("name", ["camvid", "own"])
def test_accuracy_is_that_of_the_evaluation(tmp_path: Path, pipeline: Pipeline, tiny_bundle: Path, name: str) -> None:
    """The very numbers of training/evaluate.py, by nightlab-bag and nightlab-replay as a user calls them."""
    evaluate = pytest.importorskip("training.evaluate")
    folder = tmp_path / name / "test"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index, (image, labels) in enumerate(make_frames(5)):
        ids = labels % 12 if name == "camvid" else labels  # CamVid's void is 11
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        cv2.imwrite(
            str(folder / "labels" / f"{index}.png"), np.where(labels == 255, 11 if name == "camvid" else 255, ids)
        )
    samples, classes = evaluate.open_set(tmp_path, f"{name}/test")
    expected = evaluate.evaluate(pipeline, samples, classes, name)
    assert bag_main([str(folder), str(tmp_path / "bag")]) == 0
    arguments = [str(tmp_path / "bag"), "--bundle", str(tiny_bundle), "--engine", "onnxruntime"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    data = load_run(tmp_path / "out")
    assert data.run.settings.classes == classes.key and len(data.labelled) == 5
    matrices = data.counts.confusion.sum(axis=2)
    np.testing.assert_array_equal(matrices[:, 0], expected.image_level)
    np.testing.assert_array_equal(matrices[:, 1], expected.both_levels)


@pytest.mark.parametrize("after", [1, 4, 6, 12])
def test_what_was_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData, after: int
) -> None:
    calls = iter(range(1000))
    partial = replay(tmp_path, bags, pipeline, stopped=lambda: next(calls) >= after - 1)
    assert len(partial.records) == after and not partial.complete and partial.run.finished is None
    whole = replay(tmp_path, bags, pipeline)
    assert_same(whole, serial)
    assert whole.run.wall_s > partial.run.wall_s and whole.run.bags[0].sha256
    assert begin(tmp_path, bags, pipeline)[1] == []


@pytest.mark.parametrize("mode, first", [("all", "hashes"), ("realtime", "results"), ("live", "results")])
def test_hashing_takes_nothing_from_what_is_timed(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, mode: str, first: str
) -> None:
    begun = []

    class Noted(Hashes):
        def __init__(self, bags: Sequence[BagInfo]) -> None:
            begun.append("hashes")
            super().__init__(bags)

    monkeypatch.setattr(rp, "Hashes", Noted)
    run, spans = begin(tmp_path, bags, pipeline)
    run = run.model_copy(update={"settings": SETTINGS.model_copy(update={"mode": mode})})

    def results() -> Iterator[SpanResult]:
        begun.append("results")
        yield from replay_spans(spans, pipeline, CITYSCAPES19)

    run = rp.carry_out(tmp_path, run, results())
    assert begun[0] == first and len(begun) == 2
    assert run.bags[0].sha256["one.mcap"] == sha256_of(bags[0] / "one.mcap")


def test_the_live_nodes_regions_are_not_known(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    run, spans = begin(tmp_path, bags[:1], pipeline)
    run = run.model_copy(update={"settings": SETTINGS.model_copy(update={"mode": "live"})})
    results = replay_spans(spans, pipeline, CITYSCAPES19, keep_masks=True)
    unknown = {"boxes_xyxy": (), "scores": (), "refined": (), "stages_ms": {}}
    live = (dataclasses.replace(r, records=[dataclasses.replace(f, **unknown) for f in r.records]) for r in results)
    run = rp.carry_out(tmp_path, run, live)
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


class Counting:
    """A pipeline that notes what it is asked to do."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self.bundle = pipeline, pipeline.bundle
        self.done: list[tuple[str, tuple[int, ...]]] = []

    def prepare(self, frame_hw: tuple[int, int]) -> None:
        self.done.append(("prepare", frame_hw))

    def __call__(self, frame: np.ndarray) -> object:
        self.done.append(("run", frame.shape[:2]))
        return self._pipeline(frame)


def test_compiling_is_no_part_of_a_frames_time(tmp_path: Path, pipeline: Pipeline) -> None:
    a, b = (48, 64), (32, 48)
    sizes = [a, a, b, a, b]
    bag = write_tiny_bag(tmp_path / "bag", [make_frames(1, size)[0] for size in sizes])
    _, spans = begin(tmp_path / "out", [bag], pipeline)
    counting = Counting(pipeline)
    list(replay_spans(spans, counting, CITYSCAPES19))  # type: ignore[arg-type]
    runs = [("run", size) for size in sizes]
    assert counting.done == [("prepare", a), *runs[:2], ("prepare", b), *runs[2:]]


def test_a_damaged_chunk_is_computed_again(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData
) -> None:
    replay(tmp_path, bags, pipeline)
    path = sorted((tmp_path / "chunks").iterdir())[1]
    path.write_bytes(path.read_bytes()[:50])
    assert_same(replay(tmp_path, bags, pipeline), serial)


def test_other_settings_are_refused(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    begin(tmp_path, bags, pipeline)
    with pytest.raises(StoreError, match=r"precision: auto there, float32 here[\s\S]*--restart"):
        begin(tmp_path, bags, pipeline, SETTINGS.model_copy(update={"precision": "float32"}))
    with pytest.raises(StoreError, match="keep_masks: False there, True here"):
        begin(tmp_path, bags, pipeline, SETTINGS.model_copy(update={"keep_masks": True}))
    with pytest.raises(StoreError, match="bags: one, two there, one here"):
        begin(tmp_path, bags[:1], pipeline)


def test_a_changed_bag_is_refused(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_tiny_bag(tmp_path / "drive", make_frames(2))
    run, _ = begin(tmp_path / "out", [path], pipeline)
    size_bytes = run.bags[0].size_bytes
    shutil.rmtree(path)
    write_tiny_bag(path, make_frames(2, seed=1))  # other pictures of the same size
    assert rp.look_at([path], None, None, None)[0].size_bytes == size_bytes
    file = path / "drive.mcap"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # however coarse the file system's clock
    with pytest.raises(StoreError, match=r"bag drive: written anew since: drive\.mcap"):
        begin(tmp_path / "out", [path], pipeline)
    unknown = run.bags[0].model_copy(update={"mtimes_ns": {}})  # of a run.json from before they were kept
    write_run(tmp_path / "out", run.model_copy(update={"bags": (unknown,)}))
    begin(tmp_path / "out", [path], pipeline)
    shutil.rmtree(path)
    write_tiny_bag(path, make_frames(3))
    with pytest.raises(StoreError, match=r"bag drive: number of frames: 2 there, 3 here"):
        begin(tmp_path / "out", [path], pipeline)


@pytest.mark.parametrize("restart", [False, True])
def test_folders_that_no_replay_wrote_are_left_alone(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, restart: bool
) -> None:
    precious = tmp_path / "masks" / "by_hand.png"
    precious.parent.mkdir()
    precious.write_bytes(b"years of work")
    info = bundle_info(pipeline.bundle, pipeline.engine_name)
    with pytest.raises(StoreError, match=r"masks.*no replay.*another --out"):
        rp.begin(tmp_path, SETTINGS, info, rp.look_at(bags, None, None, None), restart)
    assert precious.read_bytes() == b"years of work"


def test_a_bag_of_masks_never_takes_the_place_of_a_replayed_bag(tmp_path: Path, pipeline: Pipeline) -> None:
    bag = write_tiny_bag(tmp_path / "bags" / "drive", make_frames(2))
    with pytest.raises(StoreError, match=r"drive.*another --out"):
        begin(tmp_path, [bag], pipeline, SETTINGS.model_copy(update={"keep_masks": True}))
    assert (bag / "drive.mcap").exists() and not (tmp_path / "run.json").exists()


def test_two_bags_of_one_name_and_one_bag_twice(tmp_path: Path, bags: list[Path]) -> None:
    other = write_tiny_bag(tmp_path / "one", make_frames(1))
    assert [bag.name for bag in rp.look_at([bags[0], other], None, None, None)] == ["one", "one_"]
    with pytest.raises(ValueError, match="given twice"):
        rp.look_at([other, other], None, None, None)


def test_class_sets(tmp_path: Path) -> None:
    def bag(name: str, classes: str | None) -> Path:
        return write_tiny_bag(tmp_path / name, make_frames(1), classes=classes)

    a, b, c, d = bag("a", "camvid11"), bag("b", "cityscapes19"), bag("c", None), bag("d", "mapillary")

    def chosen(asked: str | None, *paths: Path) -> str:
        return rp.judged_classes(asked, rp.look_at(paths, None, None, None), CITYSCAPES19).key

    assert chosen(None, a) == chosen(None, a, c) == "camvid11"
    assert chosen(None, b, c) == chosen(None, c) == "cityscapes19"
    assert chosen("bdd18", a, b, d) == "bdd18"
    with pytest.raises(ValueError, match="different class sets"):
        chosen(None, a, b)
    with pytest.raises(ValueError, match=r"'mapillary'.*--classes"):
        chosen(None, d)


class Slow:
    """A pipeline that takes `pause_s` for a frame."""

    def __init__(self, pipeline: Pipeline, pause_s: float) -> None:
        self._pipeline, self._pause_s = pipeline, pause_s
        self.bundle, self.prepare = pipeline.bundle, pipeline.prepare

    def __call__(self, frame: np.ndarray) -> object:
        time.sleep(self._pause_s)
        return self._pipeline(frame)


def test_real_time_drops_as_the_node_does(tmp_path: Path, pipeline: Pipeline) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(12), step_ns=50_000_000)
    run, spans = begin(tmp_path / "out", [bag], pipeline)
    begun = time.monotonic()
    slow: Pipeline = Slow(pipeline, 0.2)  # type: ignore[assignment]
    rp.carry_out(tmp_path / "out", run, replay_realtime(rp.whole(spans), slow, CITYSCAPES19))
    assert time.monotonic() - begun > 0.55  # 11 steps of 50 ms
    data = load_run(tmp_path / "out")
    assert data.complete
    ok, dropped = ([r for r in data.records if r.status == s] for s in ("ok", "dropped"))
    assert len(ok) + len(dropped) == 12 and len(dropped) >= 6
    assert ok[-1].index == 11  # the last one is never overwritten
    assert {r.reason for r in dropped} == {DROPPED} and all(r.light_level is None for r in dropped)
    assert all(r.latency_ms is not None and r.latency_ms > 200 for r in ok)
    assert len(data.counts) == len(ok)


def test_real_time_without_haste_drops_nothing(tmp_path: Path, pipeline: Pipeline, serial: RunData) -> None:
    bag = write_tiny_bag(tmp_path / "one", make_frames(11), step_ns=400_000_000)
    run, spans = begin(tmp_path / "out", [bag], pipeline)
    rp.carry_out(tmp_path / "out", run, replay_realtime(rp.whole(spans), pipeline, CITYSCAPES19, rate=2))
    data = load_run(tmp_path / "out")
    done = [r.index for r in data.labelled]  # all 11, unless a busy machine takes more than 200 ms for a frame
    assert done[-1] == 10
    np.testing.assert_array_equal(data.counts.confusion, serial.counts.confusion[done])


def test_due_times() -> None:
    times_ns = np.array([5, 6, 6, 5, 60, 61]) * 10**9
    expected = np.cumsum([0, 0.5, 0, 0, LONGEST_GAP_S, 0.5])
    np.testing.assert_allclose(due_times_s(times_ns, 2.0), expected)


def test_the_clock_keeps_up_with_the_stamps_after_a_long_gap() -> None:
    times_ns = 1_763_846_812_123_456_789 + np.array([0, 1, 1, 1001, 1002]) * 10**9
    rate = 2.0
    due_s = due_times_s(times_ns, rate)
    at = recorded_at(times_ns, due_s, rate)
    assert [at(due) for due in due_s] == times_ns.tolist()
    assert at(float(due_s[2]) + LONGEST_GAP_S / 4) == times_ns[2] + 250 * 10**9
    assert at(float(due_s[-1]) + 0.5) == times_ns[-1] + 10**9
    alone = recorded_at(times_ns[:1], due_s[:1], rate)
    assert (alone(0.0), alone(0.5)) == (times_ns[0], times_ns[0] + 10**9)


def test_masks_come_back_from_the_new_bag(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    run, spans = begin(tmp_path, bags, pipeline)
    rp.carry_out(tmp_path, run, replay_spans(spans, pipeline, CITYSCAPES19, keep_masks=True))
    one, two = write_mask_bags(tmp_path, run)
    assert (one.name, two.name) == ("one", "two")
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
def test_rclpy_reads_the_new_bag(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import Image

    from nightlab_ros.replay.read import Bag

    run, spans = begin(tmp_path, bags[:1], pipeline)
    rp.carry_out(tmp_path, run, replay_spans(spans[:1], pipeline, CITYSCAPES19, keep_masks=True))
    (path,) = write_mask_bags(tmp_path, run)
    with Bag(path, "/nightlab/mask") as bag:
        raw = bag.raw(2)
    message = serialization.deserialize_message(raw, Image)
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8), pipeline(make_frames(3)[2][0]).labels.ravel())
    assert message.header.frame_id == FRAME_ID


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "nightlab_ros.replay.cli", *map(str, words)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_report_and_the_same_command_goes_on(
    tmp_path: Path, tiny_bundle: Path, by: signal.Signals
) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(40), step_ns=100_000_000)
    words = command(bag, "--bundle", tiny_bundle, "--engine", "onnxruntime", "--realtime", "--out", tmp_path / "out")
    with subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not (tmp_path / "out" / "run.json").exists():
            time.sleep(0.05)
        time.sleep(1.5)  # of the 4 s that the bag lasts
        process.send_signal(by)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    partial = load_run(tmp_path / "out")
    assert 0 < len(partial.records) < 40, output
    assert json.loads((tmp_path / "out" / "report.json").read_text())
    assert "not complete" in (tmp_path / "out" / "report.html").read_text().lower() or not partial.complete
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(partial.records)} of them done before" in done.stdout
    assert load_run(tmp_path / "out").complete


@pytest.mark.slow
def test_a_lost_worker_costs_only_time(tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData) -> None:
    pytest.importorskip("distributed")
    from nightlab_ros.replay.cluster import replay_distributed

    run, spans = begin(tmp_path, bags, pipeline)
    killed: list[int] = []

    def kill_one(records: object) -> None:
        if not killed:
            workers = [
                int(pid)
                for pid in descendants(os.getpid())
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    results = replay_distributed(spans, run, workers=2, on_frames=kill_one)
    rp.carry_out(tmp_path, run, results, workers=2)
    assert killed
    assert_same(load_run(tmp_path), serial)


def test_a_clusters_scheduler_is_named_by_its_address(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData
) -> None:
    distributed = pytest.importorskip("distributed")
    from nightlab_ros.replay.cluster import replay_distributed

    run, spans = begin(tmp_path, bags, pipeline)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        other = run.model_copy(update={"bundle": run.bundle.model_copy(update={"sha256": {"bundle.yaml": "0"}})})
        with pytest.raises(StoreError, match="another bundle"):
            list(replay_distributed(spans, other, scheduler=address))
        rp.carry_out(tmp_path, run, replay_distributed(spans, run, scheduler=address, keep_masks=True), workers=2)
    assert_same(load_run(tmp_path), serial)
    assert len(list(write_mask_bags(tmp_path, run))) == 2


def test_a_run_on_a_cluster_does_not_pass_for_one_on_this_machine(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(spans: list[Span], run: Run, **options: object) -> Iterator[SpanResult]:
        assert options["scheduler"] == "tcp://host:8786"
        return replay_spans(spans, pipeline, CITYSCAPES19)

    monkeypatch.setattr("nightlab_ros.replay.cluster.replay_distributed", here)
    words = [str(bags[1]), "--bundle", str(tiny_bundle), "--engine", "onnxruntime", "--out", str(tmp_path)]
    assert main([*words, "--scheduler", "tcp://host:8786"]) == 0
    assert load_run(tmp_path).run.workers == -1


def test_stopping_several_workers_keeps_all_that_is_done(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    distributed = pytest.importorskip("distributed")
    from nightlab_ros.replay.cluster import replay_distributed

    run, spans = begin(tmp_path, bags, pipeline)
    asked = [0]
    kept: list[object] = []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:

        def stopped() -> bool:
            """Once two spans are handed out, wait until both are done; then stop."""
            asked[0] += 1
            if asked[0] == 1:
                return False
            until = time.monotonic() + 30
            while sum(t.state == "memory" for t in list(cluster.scheduler.tasks.values())) + len(kept) < 2:
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(0.5)  # for the word to reach the client
            return True

        results = replay_distributed(
            spans, run, scheduler=cluster.scheduler_address, on_frames=kept.append, stopped=stopped
        )
        run = rp.carry_out(tmp_path, run, results)
    assert [(r.bag, r.index) for r in load_run(tmp_path).records] == [("one", i) for i in range(8)]
    assert run.finished is None


@pytest.mark.slow
def test_a_span_that_kills_every_worker_is_named(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    from nightlab_ros.replay import cluster

    run, spans = begin(tmp_path, bags, pipeline)
    monkeypatch.setattr(cluster, "_replay_span", lambda *args: os._exit(9))
    monkeypatch.setattr(cluster, "_MOST_LOSSES", 1)
    with pytest.raises(RuntimeError, match=r"frames 0 to 3 of one .*died.*fewer --workers"):
        list(cluster.replay_distributed(spans[:1], run, workers=1))


def descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread or process that has ended
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rate", "0"], "--rate is 0"),
        (["--rate", "2"], "--rate is for --realtime"),
        (["--workers", "0"], "--workers is 0"),
        (["--set", "max_regions=99"], "max_regions=99"),
        (["--set", "colour=blue"], "expected NAME=VALUE"),
        (["--topic", "/none"], "/camera/image_raw"),
        (["--bundle", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_without_a_traceback(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main([str(bags[0]), "--bundle", str(tiny_bundle), "--out", str(tmp_path), *words]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_tensorrt_is_looked_for_by_the_frames_size_and_without_a_plan_one_reads_why(
    tmp_path: Path,
    bags: list[Path],
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def open_engines(bundle: Bundle, **options: object) -> None:
        asked.append((options["engine"], options["frame_hw"]))
        raise PlanError("there is no plan of the image network")

    monkeypatch.setattr("nightlab_core.runtime.pipeline.open_engines", open_engines)
    nothing = tmp_path / "nothing.mcap"
    nothing.write_bytes(b"")  # a bag without a frame says nothing of the size
    words = [str(nothing), str(bags[0]), "--bundle", str(tiny_bundle), "--engine", "tensorrt"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert asked == [("tensorrt", (48, 64))]
    assert capsys.readouterr().err == "nightlab-replay: there is no plan of the image network\n"


def test_a_bag_that_cannot_be_read_still_gets_a_report(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing.mcap"
    nothing.write_bytes(b"")
    headless = tmp_path / "headless.mcap"  # cut off before the list of topics
    headless.write_bytes((bags[0] / "one.mcap").read_bytes()[:60])
    cut = tmp_path / "cut.mcap"
    cut.write_bytes((bags[0] / "one.mcap").read_bytes()[:100_000])
    words = [str(nothing), str(headless), str(cut), "--bundle", str(tiny_bundle), "--engine", "onnxruntime"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "do not begin as an MCAP file" in capsys.readouterr().out
    data = load_run(tmp_path / "out")
    assert data.complete and 0 < len(data.records) < 11 and {r.bag for r in data.records} == {"cut.mcap"}
    assert (tmp_path / "out" / "report.html").exists()
