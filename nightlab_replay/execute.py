# SPDX-License-Identifier: Apache-2.0
"""Runs the pipeline on spans of frames, every one of them: in this process, or in a worker on another machine."""

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
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_replay.judge import Judge
from nightlab_replay.records import Counts, FrameRecord

#: Frames that wait between two steps. Two would do; more ride out a chunk of the bag that takes longer to unpack.
_DEPTH = 4


@dataclass(frozen=True)
class BagSource:
    """All that it takes to open a bag of a run, on any machine that sees its path."""

    name: str
    path: str
    image_topic: str
    label_topic: str | None

    def open(self) -> Bag:
        """Raises what `Bag` raises."""
        return Bag(Path(self.path), self.image_topic, self.label_topic)


@dataclass(frozen=True)
class Span:
    """The frames first..stop - 1 of one bag."""

    source: BagSource
    first: int
    stop: int


@dataclass(frozen=True)
class SpanResult:
    """What came of a span, or of its beginning where the replay was stopped."""

    records: list[FrameRecord]
    counts: Counts
    masks: dict[int, bytes] = field(default_factory=dict)  #: by index, `pack_masks`; only where they are asked for


class _Item(NamedTuple):
    span: Span
    frame: BagFrame
    result: Result | None
    counted: bool  #: False for the frame before the first, which flicker needs


def replay_spans(
    spans: Iterable[Span],
    pipeline: Pipeline,
    judged: ClassSet,
    *,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    stopped: Callable[[], bool] = lambda: False,
    prepared: set[tuple[int, int]] | None = None,
) -> Generator[SpanResult, None, None]:
    """Yield the result of every span. `judged` is the class set of labels and counts.

    Three threads: one reads and decodes, one runs the pipeline, this one judges. When `stopped` says so, what there is
    of the span at hand is yielded, and that is the end. `prepared` holds the sizes (H, W) for which the pipeline
    was prepared, and takes up new ones: who calls again and again with one pipeline keeps it.
    """
    prepared = set() if prepared is None else prepared
    frames = Prefetcher(_read(spans, judged), max_items=_DEPTH)
    items = Prefetcher(_infer(frames, pipeline, prepared), max_items=_DEPTH)
    predicted = pipeline.bundle.class_set
    judge: Judge | None = None
    records: list[FrameRecord] = []
    counts: list[Counts] = []
    masks: dict[int, bytes] = {}

    def result() -> SpanResult:
        done = SpanResult(list(records), Counts.concatenate(counts, len(judged)), dict(masks))
        records.clear()
        counts.clear()
        masks.clear()
        return done

    with frames, items:
        for span, frame, found, counted in items:
            if judge is None or not counted or frame.index == 0:
                judge = Judge(span.source.name, predicted, judged)
            if not counted:
                if found is not None:
                    judge.look(frame, found.labels)
                continue
            if found is None:
                records.append(judge.missing(frame))
            else:
                record, counted_pixels = judge.result(frame, found)
                records.append(record)
                counts.append(counted_pixels)
                if keep_masks:
                    masks[frame.index] = pack_masks(found)
            on_frames(records[-1:])
            if frame.index == span.stop - 1:
                yield result()
            if stopped():
                break
        if records:
            yield result()


def _read(spans: Iterable[Span], judged: ClassSet) -> Iterator[_Item]:
    with ExitStack() as stack:
        bag: Bag | None = None
        opened: BagSource | None = None
        position = 0
        for span in spans:
            if bag is None or span.source != opened:
                stack.close()
                bag, opened, position = stack.enter_context(span.source.open()), span.source, 0
            if span.first != position:
                yield _Item(span, bag.frame(span.first - 1), None, False)
            for index in range(span.first, span.stop):
                yield _Item(span, bag.frame(index, judged), None, True)
            position = span.stop


def _infer(items: Iterator[_Item], pipeline: Pipeline, prepared: set[tuple[int, int]]) -> Iterator[_Item]:
    for item in items:
        if item.frame.image_bgr is not None:
            height, width = item.frame.image_bgr.shape[:2]
            if (height, width) not in prepared:  # or compiling would count as this frame's time
                pipeline.prepare((height, width))
                prepared.add((height, width))
            item = item._replace(result=pipeline(item.frame.image_bgr))
        yield item


def pack_masks(result: Result) -> bytes:
    """What `pack_arrays` makes of a result's labels, confidence and image level's labels."""
    return pack_arrays(result.labels, result.confidence, result.image_labels)


def pack_arrays(labels: np.ndarray, confidence: np.ndarray, image_labels: np.ndarray) -> bytes:
    """Three maps, uint8 (H, W), as the channels of one PNG."""
    stacked = np.stack([labels, confidence, image_labels], axis=2)
    done, packed = cv2.imencode(".png", stacked, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done  # uint8 arrays in memory
    return packed.tobytes()
