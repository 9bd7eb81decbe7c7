# SPDX-License-Identifier: Apache-2.0
"""Replay through the live node: its own process, real DDS, simulated time; and judge what comes back.

What comes back is kept packed in a file and judged when the bag has been played, so that judging takes nothing from the
node's processor.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from nightlab_core.data.bags.messages import COMPRESSED_TYPE
from nightlab_core.data.bags.reader import Bag, BagFrame
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.bundle import Bundle
from nightlab_replay.execute import Span, SpanResult, pack_arrays
from nightlab_replay.judge import Answer, Judge
from nightlab_replay.records import Counts, FrameRecord, Run
from nightlab_ros.demo.demo import ANSWER_TIMEOUT_S, QUIET_S
from nightlab_ros.mask_recorder import NODE, Monitor
from nightlab_ros.processes import Child, DemoError, ros_environment

LOST = "no mask came back: the node took a newer frame, or the transport lost it"


@dataclass(frozen=True)
class SentImage:
    """An image that the camera's process published: times in ns, by the wall clock and by /clock."""

    index: int
    stamp_ns: int
    sent_ns: int
    clock_ns: int
    late_ms: float


@dataclass(frozen=True)
class Received:
    """A mono8 message that came back, packed in the spool."""

    received_ns: int
    frame_id: str
    encoding: str
    size_hw: tuple[int, int]
    offset: int
    num_bytes: int


class Camera(Child):
    """`nightlab_ros.bag_player` as a process of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        super().__init__("nightlab_ros.bag_player", arguments, log, piped=True)
        self.images: list[SentImage] = []
        self.knocked: list[SentImage] = []

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                image = SentImage(**json.loads(line))
                (self.images if image.index >= 0 else self.knocked).append(image)


class Ear(Monitor):
    """Keeps every message of the node's masks and of its confidence, by stamp, in the order in which they came."""

    MASK, CONFIDENCE, IMAGE_LEVEL = "mask", "confidence", "image_level"

    def __init__(self, folder: Path) -> None:
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in `discard`
        self._end = 0
        self.received: dict[str, dict[int, list[Received]]] = {
            topic: defaultdict(list) for topic in (self.MASK, self.CONFIDENCE, self.IMAGE_LEVEL)
        }
        self.order: list[int] = []  #: stamps of the masks, as they came
        super().__init__()
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(Image, f"{NODE}/confidence", lambda m: self._note(m, self.CONFIDENCE), qos)

    def answered(self, stamp_ns: int) -> bool:
        """True when both masks of an image with this stamp are here."""
        return all(stamp_ns in self.received[topic] for topic in (self.MASK, self.IMAGE_LEVEL))

    def count(self) -> int:
        """Masks so far."""
        return len(self.order)

    def take(self, topic: str, stamp_ns: int) -> Received | None:
        """The first message of this stamp that was not taken yet."""
        waiting = self.received[topic].get(stamp_ns)
        return waiting.pop(0) if waiting else None

    def pixels(self, message: Received) -> np.ndarray:
        """uint8 (H, W)"""
        self._spool.seek(message.offset)
        packed = self._spool.read(message.num_bytes)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(message.size_hw)

    def discard(self) -> None:
        """Free the spool, which `close` leaves as it is."""
        self._spool.close()

    def _keep(self, message: Any, into: dict) -> None:
        self._note(message, self.MASK if into is self.masks else self.IMAGE_LEVEL)

    def _note(self, message: Any, topic: str) -> None:
        received_ns = time.time_ns()
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width]
        packed = zlib.compress(pixels.tobytes(), 1)
        self._spool.seek(self._end)
        self._spool.write(packed)
        size_hw = (message.height, message.width)
        kept = Received(received_ns, message.header.frame_id, message.encoding, size_hw, self._end, len(packed))
        self._end += len(packed)
        self.received[topic][stamp_ns].append(kept)
        if topic == self.MASK:
            self.order.append(stamp_ns)


def replay_live(
    spans: Sequence[Span],
    run: Run,
    bundle: Bundle,
    out: Path,
    notes: dict[str, str],
    *,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    on_note: Callable[[str], None] = lambda text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[SpanResult, None, None]:
    """Yield the results of all spans; the node is started anew for each. `notes` gets what the node said at its end.

    Raises DemoError if the node or the camera fails, or if no mask comes back at all.
    """
    os.environ.update(ros_environment(out))
    for span in spans:
        if stopped():
            return
        with ExitStack() as stack:
            bag = stack.enter_context(span.source.open())
            ear = Ear(out)
            stack.callback(ear.discard)
            try:
                images, knocked = _play(span, bag, run, bundle, out, ear, on_note, stopped)
            finally:
                ear.close()
            notes.update(_notes(images, knocked, ear))
            if stopped():
                images = answered_part(images, ear)
            on_note("judging")
            yield from _judge(span, bag, run, bundle.class_set, images, ear, keep_masks, on_frames)


def answered_part(images: Sequence[SentImage], ear: Ear) -> list[SentImage]:
    """The images up to the last one whose masks came back: those after it were on their way when the replay was
    stopped, which does not mean that the node drops them."""
    answered = [place for place, image in enumerate(images) if ear.answered(image.stamp_ns)]
    return list(images[: answered[-1] + 1]) if answered else []


def _play(
    span: Span,
    bag: Bag,
    run: Run,
    bundle: Bundle,
    out: Path,
    ear: Ear,
    on_note: Callable[[str], None],
    stopped: Callable[[], bool],
) -> tuple[list[SentImage], list[SentImage]]:
    """Start the node, play the span, and listen until nothing comes any more; returns the images and the knocks."""
    words = [str(bag.path), "--topic", bag.image_topic, "--first", str(span.first), "--stop", str(span.stop)]
    node = Child("nightlab_ros.node", _node_words(span, bag, run, bundle), out / "node.log")
    camera = Camera([*words, "--rate", str(run.settings.rate)], out / "camera.log")
    with node, camera:
        begin = time.monotonic()
        on_note("the node starts")
        while not any(ear.answered(knock.stamp_ns) for knock in list(camera.knocked)):
            node.check()
            camera.check()
            if time.monotonic() - begin > ANSWER_TIMEOUT_S:
                raise DemoError(f"no mask within {ANSWER_TIMEOUT_S:g} s. The end of {node.log}:\n{node.tail()}")
            if camera.played():  # no image can be read
                camera.let_go()
                return [], []
            if stopped():
                return [], []
            time.sleep(0.02)
        knocked = ear.count()
        camera.begin()
        news, seen = time.monotonic(), -1
        while not camera.played() or time.monotonic() - news < QUIET_S:
            node.check()
            sent, masks = len(camera.images), ear.count() - knocked
            if sent + masks != seen:
                news, seen = time.monotonic(), sent + masks
            on_note(f"played {sent}/{span.stop - span.first}  masks {masks}")
            # Not by the number of masks: a late answer to a knock is among them.
            if stopped() or (camera.played() and all(ear.answered(image.stamp_ns) for image in camera.images)):
                break
            time.sleep(0.05)
        ear.await_report()  # while the camera's /clock goes on, by which the node tells ages and silence
        if not stopped():
            camera.let_go()
        return list(camera.images), list(camera.knocked)


def _node_words(span: Span, bag: Bag, run: Run, bundle: Bundle) -> list[str]:
    first = bag.frame(span.first).image_bgr
    height, width = (0, 0) if first is None else first.shape[:2]
    settings = run.settings
    compressed = bag.topics[bag.image_topic].type == COMPRESSED_TYPE
    parameters: dict[str, object] = {
        "autostart": "true",
        "use_sim_time": "true",
        "bundle": str(bundle.dir.resolve()),
        "engine": settings.engine,
        "precision": settings.precision,
        "threads": settings.threads,
        "transport": "compressed" if compressed else "raw",
        "image_size": f"[{width}, {height}]",
        **settings.pipeline.model_dump(),
    }
    return ["--ros-args", *(word for name, value in parameters.items() for word in ("-p", f"{name}:={value}"))]


def _judge(
    span: Span,
    bag: Bag,
    run: Run,
    predicted: ClassSet,
    images: Sequence[SentImage],
    ear: Ear,
    keep_masks: bool,
    on_frames: Callable[[Sequence[FrameRecord]], None],
) -> Generator[SpanResult, None, None]:
    judged = run.settings.class_set
    judge = Judge(span.source.name, predicted, judged)
    sent = {image.index: image for image in images}
    last = images[-1].index if images else span.first - 1
    # Where the end of the bag cannot be read, the camera sent nothing of it, and that is no reason to play it again.
    stop = span.stop if all(not isinstance(bag.raw(i), bytes) for i in range(last + 1, span.stop)) else last + 1
    for begin in range(span.first, stop, run.settings.chunk_frames):
        records, counts, masks = [], [], {}
        for frame in bag.frames(begin, min(begin + run.settings.chunk_frames, stop), judged):
            record, counted, answer = _judge_frame(frame, judge, sent.get(frame.index), ear, run, len(judged))
            records.append(record)
            counts.append(counted)
            if keep_masks and answer is not None and answer.confidence is not None:
                masks[frame.index] = pack_arrays(answer.labels, answer.confidence, answer.image_labels)
        on_frames(records)
        yield SpanResult(records, Counts.concatenate(counts, len(judged)), masks)


def _judge_frame(
    frame: BagFrame, judge: Judge, image: SentImage | None, ear: Ear, run: Run, num_classes: int
) -> tuple[FrameRecord, Counts, Answer | None]:
    nothing = Counts.empty(num_classes)
    if frame.image_bgr is None or image is None:
        return judge.missing(frame), nothing, None
    found = {topic: ear.take(topic, image.stamp_ns) for topic in (Ear.MASK, Ear.IMAGE_LEVEL, Ear.CONFIDENCE)}
    mask, image_level, confidence = found[Ear.MASK], found[Ear.IMAGE_LEVEL], found[Ear.CONFIDENCE]
    if mask is None or image_level is None:
        reason = LOST if mask is None else "the mask came back, but not that of the image level"
        return judge.missing(frame, "dropped", reason), nothing, None
    if wrong := _wrong(frame, [m for m in found.values() if m is not None]):
        return judge.missing(frame, "dropped", wrong), nothing, None
    answer = Answer(ear.pixels(mask), ear.pixels(image_level), ear.pixels(confidence) if confidence else None, None)
    answer_ms = (mask.received_ns - image.sent_ns) / 1e6
    clock_ns = image.clock_ns + (mask.received_ns - image.sent_ns) * run.settings.rate
    record, counts = judge.answer(frame, answer, latency_ms=answer_ms, age_ms=(clock_ns - frame.stamp_ns) / 1e6)
    return record, counts, answer


def _wrong(frame: BagFrame, answers: Sequence[Received]) -> str:
    """Whether a message that came back is not what belongs to its image, in words."""
    assert frame.image_bgr is not None
    size_hw = frame.image_bgr.shape[:2]
    for message in answers:
        if message.frame_id != frame.frame_id:
            return f"the answer has the frame_id {message.frame_id!r}, its image {frame.frame_id!r}"
        if message.size_hw != size_hw:
            return f"the answer is {message.size_hw}, its image {size_hw} (height, width)"
        if message.encoding != "mono8":
            return f"the answer has the encoding {message.encoding!r}, expected 'mono8'"
    return ""


def _notes(images: Sequence[SentImage], knocked: Sequence[SentImage], ear: Ear) -> dict[str, str]:
    """What concerns the whole of it: strangers, repeated and overtaken answers, and the node's diagnostics."""
    place = {image.stamp_ns: number for number, image in enumerate(images)}
    came = [place[stamp_ns] for stamp_ns in ear.order if stamp_ns in place]
    late_ms = max((image.late_ms for image in images), default=0.0)
    asked = {image.stamp_ns for image in (*images, *knocked)}
    return {
        "replay_sent": str(len(images)),
        "replay_masks": str(len(came)),
        "replay_repeated": str(len(came) - len(set(came))),
        "replay_out_of_order": str(sum(b < a for a, b in pairwise(came))),
        "replay_of_no_image": str(sum(stamp_ns not in asked for stamp_ns in ear.order)),
        "replay_camera_late_ms_max": f"{late_ms:.1f}",
        **ear.diagnostics,
    }
