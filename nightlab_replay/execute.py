# SPDX-License-Identifier: Apache-2.0
"""Run the pipeline on every frame of some spans, as fast as possible, in this process or in a worker."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from nightlab_core.data.bags.reader import Bag, BagFrame
from nightlab_core.data.prefetch import Prefetcher
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.light import decide_night, light_level
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_core.runtime.temporal import first_needed
from nightlab_replay.evaluation import FrameEvaluator
from nightlab_replay.records import FrameCounts, FrameRecord

#: Frames in each queue between two threads. Two would do; more absorb a chunk of the bag that decompresses slowly.
_QUEUE_FRAMES = 4


@dataclass(frozen=True)
class BagSource:
    """Path, topics and significant bits with which any machine that sees the path opens a bag of a run."""

    name: str
    path: str
    image_topic: str
    label_topic: str | None
    pixel_bits: int = 0

    def open(self) -> Bag:
        """Open the bag. Raises the exceptions of `Bag`."""
        return Bag(Path(self.path), self.image_topic, self.label_topic, self.pixel_bits)


@dataclass(frozen=True)
class Span:
    """The frames first..stop - 1 of one bag."""

    source: BagSource
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class SpanResult:
    """Records, counts and masks of a span, or of its beginning if the replay was stopped."""

    records: list[FrameRecord]
    counts: FrameCounts
    masks: dict[int, bytes] = field(default_factory=dict)  #: `pack_masks` by frame index; empty unless requested


class _Item(NamedTuple):
    span: Span
    frame: BagFrame
    result: Result | None
    recorded: bool  #: False for the frames before the span, which flicker and the pipeline's memory need
    night_before: bool | None  #: to restart the pipeline before this frame, the side of its light gate; None: continue


def replay_spans(
    spans: Iterable[Span],
    pipeline: Pipeline,
    evaluated: ClassSet,
    *,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    stopped: Callable[[], bool] = lambda: False,
    prepared: set[tuple[int, int]] | None = None,
) -> Generator[SpanResult, None, None]:
    """Yield the result of each span. `evaluated` is the class set of labels and counts.

    One thread reads and decodes, one runs the pipeline, and the caller's thread evaluates. When `stopped` returns True,
    the finished part of the current span is yielded and the generator ends. `prepared` holds the frame sizes (H, W)
    that the pipeline was prepared for, and is extended; pass the same set to repeated calls with one pipeline.
    """
    prepared = set() if prepared is None else prepared
    frames = Prefetcher(_read(spans, evaluated, pipeline.settings), max_items=_QUEUE_FRAMES)
    items = Prefetcher(_infer(frames, pipeline, prepared), max_items=_QUEUE_FRAMES)
    evaluator: FrameEvaluator | None = None
    results = _Results(len(evaluated), keep_masks)
    with frames, items:
        for span, frame, result, recorded, _ in items:
            if evaluator is None or not recorded or frame.index == 0:
                evaluator = FrameEvaluator(span.source.name, pipeline.bundle.class_set, evaluated)
            if not recorded:
                if result is not None:
                    evaluator.set_previous(frame, result.labels)
                continue
            results.add(evaluator, frame, result)
            on_frames(results.records[-1:])
            if frame.index == span.stop - 1:
                yield results.take()
            if stopped():
                break
        if results.records:
            yield results.take()


class _Results:
    """Records, counts and masks of the current span."""

    def __init__(self, num_classes: int, keep_masks: bool) -> None:
        self._num_classes, self._keep_masks = num_classes, keep_masks
        self.records: list[FrameRecord] = []
        self._counts: list[FrameCounts] = []
        self._masks: dict[int, bytes] = {}

    def add(self, evaluator: FrameEvaluator, frame: BagFrame, result: Result | None) -> None:
        """Evaluate and add a frame, without a result if it is unreadable."""
        if result is None:
            self.records.append(evaluator.missing(frame))
            return
        record, counts = evaluator.result(frame, result)
        self.records.append(record)
        self._counts.append(counts)
        if self._keep_masks:
            self._masks[frame.index] = pack_masks(result)

    def take(self) -> SpanResult:
        """Remove and return everything that was added."""
        done = SpanResult(self.records, FrameCounts.concatenate(self._counts, self._num_classes), self._masks)
        self.records, self._counts, self._masks = [], [], {}
        return done


def warm_up(bag: Bag, index: int, settings: PipelineSettings) -> tuple[int, bool]:
    """Return the first frame to run so that frame `index` gets the result of a replay in a row.

    Also return the side of the light gate before it, for `Pipeline.restart`.
    """
    first = first_needed(index, settings)
    if settings.refine != "night":
        return first, True
    for earlier in range(first - 1, -1, -1):  # frames between the thresholds are few
        image = bag.frame(earlier).image_bgr
        if image is None:
            continue
        is_night = decide_night(light_level(image), settings.night_below, settings.day_above)
        if is_night is not None:
            return first, is_night
    return first, True


def _read(spans: Iterable[Span], evaluated: ClassSet, settings: PipelineSettings) -> Iterator[_Item]:
    with ExitStack() as stack:
        bag: Bag | None = None
        opened: BagSource | None = None
        position = 0
        for span in spans:
            if bag is None or span.source != opened:
                stack.close()
                bag, opened, position = stack.enter_context(span.source.open()), span.source, 0
            first, night = span.first, None
            if span.first != position or not span.first:
                first, night = warm_up(bag, max(span.first - 1, 0), settings)
            for index in range(first, span.stop):
                recorded = index >= span.first
                frame = bag.frame(index, evaluated) if recorded else bag.frame(index)
                yield _Item(span, frame, None, recorded, night if index == first else None)
            position = span.stop


def _infer(items: Iterator[_Item], pipeline: Pipeline, prepared: set[tuple[int, int]]) -> Iterator[_Item]:
    for item in items:
        if item.night_before is not None:
            pipeline.restart(is_night=item.night_before)
        if item.frame.image_bgr is not None:
            height, width = item.frame.image_bgr.shape[:2]
            if (height, width) not in prepared:  # otherwise this frame's time would include compilation
                pipeline.prepare((height, width))
                prepared.add((height, width))
            stamp_s, number = 1e-9 * item.frame.stamp_ns, item.frame.index
            item = item._replace(result=pipeline(item.frame.image_bgr, stamp_s, number))
        yield item


def pack_masks(result: Result) -> bytes:
    """Pack a result's labels, confidence and image level's labels with `pack_arrays`."""
    return pack_arrays(result.labels, result.confidence, result.image_labels)


def pack_arrays(labels: np.ndarray, confidence: np.ndarray, image_labels: np.ndarray) -> bytes:
    """Encode three maps, uint8 (H, W), as the channels of one PNG."""
    stacked = np.stack([labels, confidence, image_labels], axis=2)
    done, packed = cv2.imencode(".png", stacked, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done  # cannot fail for uint8 arrays in memory
    return packed.tobytes()
