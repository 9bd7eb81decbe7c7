# SPDX-License-Identifier: Apache-2.0
"""Replay at the recorded rate, with the very rule by which the node drops frames: the newest one wins."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence

import numpy as np

from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag, BagFrame
from nightlab_core.data.prefetch import Prefetcher
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.execute import Span, SpanResult, pack_masks
from nightlab_replay.judge import Judge
from nightlab_replay.records import Counts, FrameRecord

#: Messages that are read before they are due, so that a slow disk does not bend the rate.
_DEPTH = 8
#: Judging may fall so many frames behind before it holds up the pipeline.
_BACKLOG = 16
#: A pause in the recording is no longer than this in the replay.
LONGEST_GAP_S = 10.0
#: Chunks of so many frames are handed on as soon as there is so much time before the next frame.
_CHUNK, _SLACK_S = 64, 0.02
DROPPED = "a newer frame came before this one was begun"


class _Outcome:
    """What came of the frames so far, in whatever order it came."""

    def __init__(self, first: int, num_classes: int) -> None:
        self._next, self._num_classes = first, num_classes
        self._records: dict[int, tuple[FrameRecord, Counts]] = {}
        self.masks: dict[int, bytes] = {}

    def keep(self, record: FrameRecord, counts: Counts) -> None:
        """Called by camera and judge."""
        self._records[record.index] = (record, counts)

    def take(self, at_least: int) -> SpanResult | None:
        """The frames without a gap from the last one taken on, if there are so many."""
        stop = self._next
        while stop in self._records:
            stop += 1
        if stop - self._next < at_least:
            return None
        indices = range(self._next, stop)
        done = [self._records.pop(index) for index in indices]
        self._next = stop
        masks = {index: self.masks.pop(index) for index in indices if index in self.masks}
        return SpanResult([r for r, _ in done], Counts.concatenate([c for _, c in done], self._num_classes), masks)


def due_times_s(times_ns: np.ndarray, rate: float) -> np.ndarray:
    """When each frame is due, float64 (N,) from 0 on: as it was recorded, `rate` times as fast, long gaps shortened."""
    gaps_s = np.diff(times_ns.astype(np.int64), prepend=times_ns[:1]) / 1e9 / rate
    return np.cumsum(np.clip(gaps_s, 0.0, LONGEST_GAP_S))


def recorded_at(times_ns: np.ndarray, due_s: np.ndarray, rate: float) -> Callable[[float], int]:
    """What the recording's clock shows, in ns, so many seconds after the first frame was due.

    At each frame of `due_times_s` it shows when that was recorded: where a long gap is shortened, it goes the faster.
    After the last one it goes on at `rate`.
    """
    first_ns, last_s = int(times_ns[0]), float(due_s[-1])
    since_ns = (times_ns.astype(np.int64) - first_ns).astype(np.float64)  # a float holds no time of day to the ns

    def now_ns(elapsed_s: float) -> int:
        after_s = max(0.0, elapsed_s - last_s) * rate
        return first_ns + int(np.interp(elapsed_s, due_s, since_ns)) + int(1e9 * after_s)

    return now_ns


def replay_realtime(
    spans: list[Span],
    pipeline: Pipeline,
    judged: ClassSet,
    *,
    rate: float = 1.0,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[SpanResult, None, None]:
    """Yield results as they come, several to a span; a span begins when the one before is done and judged.

    This thread is the camera: it hands over each message when it is due. The worker decodes it and runs the pipeline,
    as the node's does; a third thread judges.
    """
    for span in spans:
        if stopped():
            return
        with span.source.open() as bag:
            yield from _replay(span, bag, pipeline, judged, rate, keep_masks, on_frames, stopped)


def _replay(
    span: Span,
    bag: Bag,
    pipeline: Pipeline,
    judged: ClassSet,
    rate: float,
    keep_masks: bool,
    on_frames: Callable[[Sequence[FrameRecord]], None],
    stopped: Callable[[], bool],
) -> Generator[SpanResult, None, None]:
    judge = Judge(span.source.name, pipeline.bundle.class_set, judged)
    outcome = _Outcome(span.first, len(judged))
    results: queue.Queue[Callable[[], None] | None] = queue.Queue(_BACKLOG)
    failures: list[BaseException] = []
    idle = threading.Semaphore(0)
    prepared: list[tuple[int, int]] = []

    def keep(record: FrameRecord, counts: Counts) -> None:
        outcome.keep(record, counts)
        on_frames([record])

    def handle(item: tuple[int, bytes | BagError, float]) -> None:
        index, raw, due = item
        frame = bag.decode(index, raw)
        if frame.image_bgr is None:
            results.put(lambda: keep(judge.missing(frame), Counts.empty(len(judged))))
        else:
            if frame.image_bgr.shape[:2] not in prepared:  # the node, too, prepares where the size changes
                pipeline.prepare(frame.image_bgr.shape[:2])
                prepared.append(frame.image_bgr.shape[:2])
            result = pipeline(frame.image_bgr)
            latency_ms = 1e3 * (time.perf_counter() - due)

            def write_down() -> None:
                if keep_masks:
                    outcome.masks[index] = pack_masks(result)
                keep(*judge.result(bag.with_labels(frame, judged), result, latency_ms))

            results.put(write_down)
        idle.release()

    def failed(error: Exception) -> None:
        failures.append(error)
        idle.release()

    def judging() -> None:
        while (write_down := results.get()) is not None:
            try:
                write_down()
            except Exception as error:  # raised again in the camera's thread
                failures.append(error)

    first = bag.decode(span.first, bag.raw(span.first)).image_bgr
    if first is not None:
        pipeline.prepare(first.shape[:2])
        prepared.append(first.shape[:2])
    judging_thread = threading.Thread(target=judging, name="judge")
    judging_thread.start()
    worker = LatestWorker("pipeline", handle, failed)
    begun = 0
    try:
        due_s = due_times_s(bag.times_ns[span.first : span.stop], rate)
        raw_messages = ((index, bag.raw(index)) for index in range(span.first, span.stop))
        with Prefetcher(raw_messages, max_items=_DEPTH) as messages:
            begin = time.perf_counter()
            waiting = -1
            for (index, raw), due in zip(messages, due_s, strict=True):
                while (left_s := begin + due - time.perf_counter()) > 0 and not stopped():
                    time.sleep(min(left_s, 0.1))
                if stopped() or failures:
                    break
                if worker.submit((index, raw, time.perf_counter())):
                    keep(judge.missing(_unread(bag, waiting), "dropped", DROPPED), Counts.empty(len(judged)))
                    begun -= 1
                waiting, begun = index, begun + 1
                next_due = begin + due_s[min(index + 1, span.stop - 1) - span.first]
                if next_due - time.perf_counter() > _SLACK_S and (chunk := outcome.take(_CHUNK)) is not None:
                    yield chunk
        for _ in range(begun):  # what was not overwritten is worked on to the end, also the last one
            idle.acquire()
    finally:
        worker.stop()
        results.put(None)
        judging_thread.join()
    if failures:
        raise failures[0]
    if (rest := outcome.take(1)) is not None:
        yield rest


def _unread(bag: Bag, index: int) -> BagFrame:
    time_ns = int(bag.times_ns[index])
    return BagFrame(index, time_ns, time_ns, "", None, None)
