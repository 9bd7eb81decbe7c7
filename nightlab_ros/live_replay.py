# SPDX-License-Identifier: Apache-2.0
"""Replay bags through the live node, over DDS and in simulated time, and evaluate the masks that come back.

The masks are kept in a file and evaluated when the bag has been played, so that evaluation takes no time from the node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from pathlib import Path

from nightlab_core.data.bags.messages import COMPRESSED_TYPE
from nightlab_core.data.bags.reader import Bag, BagFrame
from nightlab_core.runtime.bundle import Bundle
from nightlab_replay.evaluation import FrameEvaluator, FramePrediction
from nightlab_replay.execute import Span, SpanResult, pack_arrays
from nightlab_replay.records import FrameCounts, FrameRecord, Run
from nightlab_ros.playback.mask_recorder import (
    CONFIDENCE,
    IMAGE_LEVEL_MASK,
    MASK,
    MaskRecorder,
    MaskSpool,
    ReceivedMask,
)
from nightlab_ros.playback.processes import isolated_ros, node_process
from nightlab_ros.playback.protocol import PlayerProcess, SentFrame, record_playback, wait_for_warm_up

LOST = "no mask came back: the node took a newer frame, or the transport lost it"


def replay_live(
    spans: Sequence[Span],
    run: Run,
    bundle: Bundle,
    out: Path,
    node: dict[str, str],
    /,
    *,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    on_note: Callable[[str], None] = lambda text: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[SpanResult, None, None]:
    """Yield the results of all spans; a new node is started for each span.

    `node` receives statistics of the playback and the node's last diagnostics, `on_note` short texts about progress.
    When `stopped` returns True, the frames up to the last one with masks are evaluated and the generator ends. Raises
    ProcessError if the node or the player fails, or if no mask comes back at all.
    """
    for span in spans:
        if stopped():
            return
        with span.source.open() as bag, MaskSpool(out) as spool:
            recorder = MaskRecorder(spool, (MASK, IMAGE_LEVEL_MASK, CONFIDENCE))
            live = _LiveSpan(span, bag, run, bundle, recorder)
            sent = live.play(out, node, on_note, stopped)
            if stopped():
                sent = answered_part(sent, recorder)
            on_note("evaluating")
            yield from live.results(sent, keep_masks, on_frames)


def answered_part(sent: Sequence[SentFrame], recorder: MaskRecorder) -> list[SentFrame]:
    """Return the frames up to the last one whose masks came back.

    Those after it were on their way when the replay was stopped; the node did not drop them.
    """
    answered = [place for place, frame in enumerate(sent) if recorder.has_masks(frame.stamp_ns)]
    return list(sent[: answered[-1] + 1]) if answered else []


class _LiveSpan:
    """Play one span through a new node, and evaluate the recorded masks."""

    def __init__(self, span: Span, bag: Bag, run: Run, bundle: Bundle, recorder: MaskRecorder) -> None:
        self._span, self._bag, self._run, self._bundle, self._recorder = span, bag, run, bundle, recorder
        self._evaluated = run.settings.class_set
        self._evaluator = FrameEvaluator(span.source.name, bundle.class_set, self._evaluated)

    def play(
        self, out: Path, node: dict[str, str], on_note: Callable[[str], None], stopped: Callable[[], bool]
    ) -> list[SentFrame]:
        """Start the node, play the span and record the masks; returns the frames sent. Fills in `node`."""
        span, bag, recorder = self._span, self._bag, self._recorder
        arguments = [str(bag.path), "--topic", bag.image_topic, "--first", str(span.first), "--stop", str(span.stop)]
        arguments += ["--rate", str(self._run.settings.rate)]
        with (
            isolated_ros(out),
            recorder,
            node_process(self._node_parameters(), out / "node.log") as node_child,
            PlayerProcess("nightlab_ros.playback.bag_player", arguments, out / "player.log") as player,
        ):

            def show_progress() -> None:
                on_note(f"played {len(player.sent)}/{span.stop - span.first}  masks {recorder.num_masks}")

            on_note("starting the node")
            if wait_for_warm_up(recorder, node_child, player, stopped):
                record_playback(recorder, node_child, player, on_progress=show_progress, stopped=stopped)
            node.update(playback_statistics(player.sent, player.warm_up_frames, recorder.arrivals))
            node.update(recorder.diagnostics)
            return list(player.sent)

    def results(
        self, sent: Sequence[SentFrame], keep_masks: bool, on_frames: Callable[[Sequence[FrameRecord]], None]
    ) -> Generator[SpanResult, None, None]:
        """Yield a result for each chunk of frames up to the last one sent."""
        first, chunk = self._span.first, self._run.settings.chunk_frames
        sent_by_index = {frame.index: frame for frame in sent}
        stop = self._stop(sent[-1].index if sent else first - 1)
        for start in range(first, stop, chunk):
            records, counts, masks = [], [], {}
            for frame in self._bag.frames(start, min(start + chunk, stop), self._evaluated):
                record, frame_counts, answer = self._evaluate(frame, sent_by_index.get(frame.index))
                records.append(record)
                counts.append(frame_counts)
                if keep_masks and answer is not None and answer.confidence is not None:
                    masks[frame.index] = pack_arrays(answer.labels, answer.confidence, answer.image_labels)
            on_frames(records)
            yield SpanResult(records, FrameCounts.concatenate(counts, len(self._evaluated)), masks)

    def _node_parameters(self) -> dict[str, str]:
        first = self._bag.frame(self._span.first).image_bgr
        height, width = (0, 0) if first is None else first.shape[:2]
        settings = self._run.settings
        compressed = self._bag.topics[self._bag.image_topic].type == COMPRESSED_TYPE
        return {
            "autostart": "true",
            "use_sim_time": "true",
            "bundle": json.dumps(str(self._bundle.dir.resolve()), ensure_ascii=False),  # YAML would cut it at " #"
            "engine": settings.engine,
            "precision": settings.precision,
            "threads": str(settings.threads),
            "pixel_bits": str(settings.pixel_bits),
            "transport": "compressed" if compressed else "raw",
            "image_size": f"[{width}, {height}]",
            **{name: str(value) for name, value in settings.pipeline.model_dump().items()},
        }

    def _stop(self, last: int) -> int:
        """Return the index after the last frame to record: the span's end if nothing after `last` can be read.

        Playing the span again would not make an unreadable end readable.
        """
        readable = any(isinstance(self._bag.raw(index), bytes) for index in range(last + 1, self._span.stop))
        return last + 1 if readable else self._span.stop

    def _evaluate(
        self, frame: BagFrame, sent: SentFrame | None
    ) -> tuple[FrameRecord, FrameCounts, FramePrediction | None]:
        no_counts = FrameCounts.empty(len(self._evaluated))
        if frame.image_bgr is None or sent is None:
            return self._evaluator.missing(frame), no_counts, None
        mask, image_level, confidence = (
            self._recorder.take(topic, sent.stamp_ns) for topic in (MASK, IMAGE_LEVEL_MASK, CONFIDENCE)
        )
        if mask is None or image_level is None:
            reason = LOST if mask is None else "the mask came back, but not the image level's mask"
            return self._evaluator.missing(frame, "dropped", reason), no_counts, None
        if mismatch := describe_mismatch(frame, [m for m in (mask, image_level, confidence) if m is not None]):
            return self._evaluator.missing(frame, "dropped", mismatch), no_counts, None
        answer = FramePrediction(mask.labels, image_level.labels, confidence.labels if confidence else None, None)
        assert sent.clock_ns is not None
        answer_ns = mask.received_ns - sent.sent_ns
        age_ns = sent.clock_ns - frame.stamp_ns + answer_ns * self._run.settings.rate
        record, counts = self._evaluator.prediction(frame, answer, latency_ms=answer_ns / 1e6, age_ms=age_ns / 1e6)
        return record, counts, answer


def describe_mismatch(frame: BagFrame, masks: Sequence[ReceivedMask]) -> str:
    """Return a sentence if a mask has another frame_id, size or encoding than its image requires, else ""."""
    assert frame.image_bgr is not None
    size_hw = frame.image_bgr.shape[:2]
    for mask in masks:
        if mask.frame_id != frame.frame_id:
            return f"the mask has the frame_id {mask.frame_id!r}, its image {frame.frame_id!r}"
        if mask.size_hw != size_hw:
            return f"the mask is {mask.size_hw}, its image {size_hw} (height, width)"
        if mask.encoding != "mono8":
            return f"the mask has the encoding {mask.encoding!r}, expected 'mono8'"
    return ""


def playback_statistics(
    sent: Sequence[SentFrame], warm_up: Sequence[SentFrame], arrivals: Sequence[int]
) -> dict[str, str]:
    """Return counts for the report: masks that came twice, out of order or for no image, and the latest image."""
    place = {frame.stamp_ns: number for number, frame in enumerate(sent)}
    known = [place[stamp_ns] for stamp_ns in arrivals if stamp_ns in place]
    stamps = {frame.stamp_ns for frame in (*sent, *warm_up)}
    late_ms = max((frame.late_ms for frame in sent), default=0.0)
    return {
        "replay_sent": str(len(sent)),
        "replay_masks": str(len(known)),
        "replay_repeated": str(len(known) - len(set(known))),
        "replay_out_of_order": str(sum(b < a for a, b in pairwise(known))),
        "replay_of_no_image": str(sum(stamp_ns not in stamps for stamp_ns in arrivals)),
        "replay_camera_late_ms_max": f"{late_ms:.1f}",
        "replay_stamps_replaced": str(sum(not frame.has_own_stamp for frame in sent)),
    }
