# SPDX-License-Identifier: Apache-2.0
"""Replay at the recorded rate, dropping frames by the node's rule: the newest frame wins."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag, BagFrame
from nightlab_core.data.prefetch import Prefetcher
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.evaluation import FrameEvaluator
from nightlab_replay.execute import Span, SpanResult, pack_masks
from nightlab_replay.records import FrameCounts, FrameRecord

#: Messages read before they are due, so that a slow disk does not disturb the rate.
_PREFETCHED = 8
#: Frames that may wait for evaluation before the pipeline is held up.
_JUDGE_QUEUE = 16
#: Pauses in the recording are shortened to this.
LONGEST_GAP_S = 10.0
#: Frames are yielded in chunks of at least this many, if at least this much time is left before the next frame.
_CHUNK, _SLACK_S = 64, 0.02
DROPPED = "a newer frame arrived before this one was processed"


def due_times_s(times_ns: np.ndarray, rate: float) -> np.ndarray:
    """Return when each frame is due, in seconds from 0, float64 (N,).

    The times are those of recording, `rate` times as fast, with long gaps shortened.
    """
    gaps_s = np.diff(times_ns.astype(np.int64), prepend=times_ns[:1]) / 1e9 / rate
    return np.cumsum(np.clip(gaps_s, 0.0, LONGEST_GAP_S))


def recorded_at(times_ns: np.ndarray, due_s: np.ndarray, rate: float) -> Callable[[float], int]:
    """Return the function from seconds since the first frame was due to the recording's clock in ns.

    At each of `due_times_s` the clock shows the frame's time of recording, so it runs faster in shortened gaps. After
    the last frame it runs at `rate`.
    """
    first_ns, last_s = int(times_ns[0]), float(due_s[-1])
    since_ns = (times_ns.astype(np.int64) - first_ns).astype(np.float64)  # a float cannot hold an epoch time to the ns

    def now_ns(elapsed_s: float) -> int:
        after_s = max(0.0, elapsed_s - last_s) * rate
        return first_ns + int(np.interp(elapsed_s, due_s, since_ns)) + int(1e9 * after_s)

    return now_ns


def replay_realtime(
    spans: list[Span],
    pipeline: Pipeline,
    evaluated: ClassSet,
    *,
    rate: float = 1.0,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[SpanResult, None, None]:
    """Yield results as they arrive, several for each span. A span begins when the previous one is evaluated.

    The caller's thread acts as the camera and hands over each message when it is due. A worker thread decodes it and
    runs the pipeline, as the node's does; a third thread evaluates.
    """
    for span in spans:
        if stopped():
            return
        with span.source.open() as bag:
            evaluator = FrameEvaluator(span.source.name, pipeline.bundle.class_set, evaluated)
            results = _FrameResults(evaluator, span.first, len(evaluated), on_frames)
            yield from _replay_span(span, _Processing(bag, pipeline, evaluated, keep_masks, results), rate, stopped)


class _FrameResults:
    """Records and counts by frame, which camera and evaluation add in any order."""

    def __init__(
        self,
        evaluator: FrameEvaluator,
        first: int,
        num_classes: int,
        on_frames: Callable[[Sequence[FrameRecord]], None],
    ) -> None:
        self.evaluator = evaluator
        self.masks: dict[int, bytes] = {}
        self._next, self._num_classes, self._on_frames = first, num_classes, on_frames
        self._records: dict[int, tuple[FrameRecord, FrameCounts]] = {}

    def add(self, record: FrameRecord, counts: FrameCounts | None = None) -> None:
        """Add a frame, without counts if it has no mask. Called by several threads."""
        self._records[record.index] = (record, FrameCounts.empty(self._num_classes) if counts is None else counts)
        self._on_frames([record])

    def take(self, at_least: int) -> SpanResult | None:
        """Remove and return the consecutive frames after those already taken, or None if there are fewer."""
        stop = self._next
        while stop in self._records:
            stop += 1
        if stop - self._next < at_least:
            return None
        indices = range(self._next, stop)
        done = [self._records.pop(index) for index in indices]
        self._next = stop
        masks = {index: self.masks.pop(index) for index in indices if index in self.masks}
        return SpanResult([r for r, _ in done], FrameCounts.concatenate([c for _, c in done], self._num_classes), masks)


@dataclass
class _Message:
    index: int
    raw: bytes | BagError
    due: float  #: by `time.perf_counter`


@dataclass
class _Processing:
    """Run the pipeline on messages in a worker thread, and evaluate its results in another thread."""

    bag: Bag
    pipeline: Pipeline
    evaluated: ClassSet
    keep_masks: bool
    results: _FrameResults
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_JUDGE_QUEUE)
        self._processed = threading.Semaphore(0)
        self._prepared: set[tuple[int, int]] = set()

    def start(self, first: int) -> None:
        """Prepare the pipeline for the frame `first` and start both threads."""
        image = self.bag.decode(first, self.bag.raw(first)).image_bgr
        if image is not None:
            self._prepare(image)
        self._evaluation = threading.Thread(target=self._evaluate_waiting, name="evaluation")
        self._evaluation.start()
        self._worker = LatestWorker("pipeline", self._handle, self._failed)

    def submit(self, message: _Message) -> bool:
        """Hand over a message. Returns True if it replaced one that was not begun."""
        return self._worker.submit(message)

    def wait_for_one(self) -> None:
        """Wait until one more message is processed."""
        self._processed.acquire()

    def close(self) -> None:
        """Finish the current message and all evaluations, then end both threads."""
        self._worker.stop()
        self._waiting.put(None)
        self._evaluation.join()

    def _prepare(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        if (height, width) not in self._prepared:  # the node prepares its pipeline for each new size, too
            self.pipeline.prepare((height, width))
            self._prepared.add((height, width))

    def _handle(self, message: _Message) -> None:
        frame = self.bag.decode(message.index, message.raw)
        if frame.image_bgr is None:
            self._waiting.put(lambda: self.results.add(self.results.evaluator.missing(frame)))
        else:
            self._prepare(frame.image_bgr)
            result = self.pipeline(frame.image_bgr, 1e-9 * frame.stamp_ns)
            latency_ms = 1e3 * (time.perf_counter() - message.due)

            def evaluate() -> None:
                if self.keep_masks:
                    self.results.masks[message.index] = pack_masks(result)
                labelled = self.bag.with_labels(frame, self.evaluated)
                self.results.add(*self.results.evaluator.result(labelled, result, latency_ms))

            self._waiting.put(evaluate)
        self._processed.release()

    def _failed(self, error: BaseException) -> None:
        self.failures.append(error)
        self._processed.release()

    def _evaluate_waiting(self) -> None:
        while (evaluate := self._waiting.get()) is not None:
            try:
                evaluate()
            except Exception as error:  # the camera's thread raises it again
                self.failures.append(error)


def _replay_span(
    span: Span, processing: _Processing, rate: float, stopped: Callable[[], bool]
) -> Generator[SpanResult, None, None]:
    bag, results = processing.bag, processing.results
    due_s = due_times_s(bag.times_ns[span.first : span.stop], rate)
    processing.start(span.first)
    try:
        raw_messages = ((index, bag.raw(index)) for index in range(span.first, span.stop))
        unfinished = 0
        with Prefetcher(raw_messages, max_items=_PREFETCHED) as messages:
            start = time.perf_counter()
            previous = -1
            for (index, raw), due in zip(messages, due_s, strict=True):
                while (left_s := start + due - time.perf_counter()) > 0 and not stopped():
                    time.sleep(min(left_s, 0.1))
                if stopped() or processing.failures:
                    break
                if processing.submit(_Message(index, raw, time.perf_counter())):
                    results.add(results.evaluator.missing(_unread(bag, previous), "dropped", DROPPED))
                    unfinished -= 1
                previous, unfinished = index, unfinished + 1
                next_due = start + due_s[min(index + 1, span.stop - 1) - span.first]
                if next_due - time.perf_counter() > _SLACK_S and (chunk := results.take(_CHUNK)) is not None:
                    yield chunk
        for _ in range(unfinished):  # every message that was not replaced is processed, including the last one
            processing.wait_for_one()
    finally:
        processing.close()
    if processing.failures:
        raise processing.failures[0]
    if (rest := results.take(1)) is not None:
        yield rest


def _unread(bag: Bag, index: int) -> BagFrame:
    time_ns = int(bag.times_ns[index])
    return BagFrame(index, time_ns, time_ns, "", None, None)
