# SPDX-License-Identifier: Apache-2.0
"""Read a bag's camera frames with their label maps, by number. Needs no ROS; any storage format, whole or damaged."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from nightlab_core.data.bags.label_pairs import pair_labels
from nightlab_core.data.bags.messages import STAMP_BYTES, deserialize, header_of, stamp_of
from nightlab_core.data.bags.metadata import CLASSES_KEY
from nightlab_core.data.bags.protocol import BagError, Topic
from nightlab_core.data.bags.storage import BagStorage, open_storage
from nightlab_core.data.bags.topics import MissingTopicError, choose_image_topic, choose_label_topic, other_form
from nightlab_core.data.image_header import ImageError
from nightlab_core.data.images import message_to_bgr, pixels_of_16_bits
from nightlab_core.data.label_doubts import label_doubts, spread
from nightlab_core.data.label_maps import checked_labels, label_map
from nightlab_core.data.pixel_depth import FIRST_FRAMES, PixelDepth
from nightlab_core.labels import ClassSet


@dataclass(frozen=True)
class BagFrame:
    """One image message of a bag.

    `image_bgr` is uint8 (H, W, 3) BGR, or None if it cannot be read. `labels` is uint8 (H, W), 255 = unlabelled, or
    None. `reason` says why the image, or an existing label map, could not be used.
    """

    index: int
    time_ns: int
    stamp_ns: int
    frame_id: str
    image_bgr: np.ndarray | None
    labels: np.ndarray | None
    reason: str = ""


class Bag:
    """An opened bag; a context manager. Any thread may read."""

    def __init__(
        self, path: Path, topic: str | None = None, label_topic: str | None = None, pixel_bits: int = 0
    ) -> None:
        """Open a bag and build the index of its images and label maps.

        `pixel_bits` are the significant bits of 16-bit pixels; 0 measures them over the bag's first frames.

        Raises FileNotFoundError; BagError if nothing can be read; TopicError, which lists the topics, if it is unclear
        which one holds the camera's images or the labels.
        """
        self.path = path
        self._storage: BagStorage = open_storage(path)
        self._own_problems: list[str] = []
        self._notes: list[str] = []
        self._lock = threading.Lock()  # the storage belongs to one thread at a time
        try:
            self.image_topic = choose_image_topic(path, self.topics, topic)
            self.label_topic = choose_label_topic(path, self.topics, label_topic, self.image_topic, self._notes.append)
            self._images = self._storage.index(self.image_topic)
            self._labels = self._pair_labels()
        except MissingTopicError as error:
            self._storage.close()
            if not self.problems:
                raise
            # the topic may have been in the part that is lost
            raise BagError(f"{error}\n{'; '.join(self.problems)}") from error
        except BaseException:
            self._storage.close()
            raise
        if topic is None and (other := other_form(self.topics, self.image_topic)):
            self._notes.append(f"{self.image_topic} is read; {other} holds the same camera's images in another form")
        if not len(self._images):
            self._own_problems.append(f"{self.image_topic} holds no message that can be read")
        self._depth = PixelDepth(pixel_bits, self._notes.append)
        self._depth.measure(self._first_pixels())

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._storage.close()

    def __len__(self) -> int:
        return len(self._images)

    @property
    def topics(self) -> dict[str, Topic]:
        """All topics of the bag by name."""
        return self._storage.topics

    @property
    def kind(self) -> str:
        """Storage format: "sqlite3", "mcap", "rosbag1" or "compressed"."""
        return self._storage.kind

    @property
    def problems(self) -> list[str]:
        """Faults of the bag as a whole found so far, one sentence each."""
        return [*self._storage.problems, *self._own_problems]

    @property
    def notes(self) -> list[str]:
        """Facts found about the pixels that a user may need, one sentence each; no faults."""
        return list(self._notes)

    @property
    def label_classes(self) -> str | None:
        """Key of the labels' class set, if the bag names one."""
        return self._storage.custom_data.get(CLASSES_KEY)

    @property
    def num_labels(self) -> int:
        """Number of label maps that belong to an image."""
        return len(self._labels)

    @property
    def times_ns(self) -> np.ndarray:
        """Recording time of each image in ns, int64 (N,), ascending."""
        return self._images[:, 0]

    def raw(self, index: int) -> bytes | BagError:
        """Return the serialised image message (CDR), or the error if it cannot be read."""
        try:
            with self._lock:
                return self._storage.read(self._images[index])
        except BagError as error:
            return error

    def frame(self, index: int, classes: ClassSet | None = None) -> BagFrame:
        """Return one frame; with its labels, checked against `classes`, if `classes` is given.

        Raises nothing for faults of the bag: `BagFrame.reason` describes them.
        """
        frame = self.decode(index, self.raw(index))
        return frame if classes is None else self.with_labels(frame, classes)

    def decode(self, index: int, raw: bytes | BagError) -> BagFrame:
        """Return the frame in a message that `raw` returned, without its labels; reads no file."""
        time_ns = int(self._images[index, 0])
        stamp_ns, frame_id = time_ns, ""
        try:
            if isinstance(raw, BagError):
                raise raw
            message = deserialize(raw, self.topics[self.image_topic].type)
            stamp_ns, frame_id = header_of(message, time_ns)
            image = message_to_bgr(message, self._depth)
        except (BagError, ImageError) as error:
            return BagFrame(index, time_ns, stamp_ns, frame_id, None, None, str(error))
        except Exception as error:  # from the library that converts the encoding
            reason = f"the image cannot be converted ({type(error).__name__}: {error})"
            return BagFrame(index, time_ns, stamp_ns, frame_id, None, None, reason)
        return BagFrame(index, time_ns, stamp_ns, frame_id, image, None)

    def with_labels(self, frame: BagFrame, classes: ClassSet) -> BagFrame:
        """Return the frame with its labels, checked against `classes`, if there are any."""
        if frame.image_bgr is None or frame.index not in self._labels:
            return frame
        try:
            labels = checked_labels(
                self._label_map(frame.index, classes), frame.image_bgr, classes, f"of {frame.stamp_ns} ns"
            )
            return replace(frame, labels=labels)
        except ValueError as error:
            return replace(frame, reason=f"no labels: {error}")

    def frames(self, first: int, stop: int, classes: ClassSet | None = None) -> Iterator[BagFrame]:
        """Return the frames first..stop - 1."""
        return (self.frame(index, classes) for index in range(first, stop))

    def label_doubts(self, classes: ClassSet) -> list[str]:
        """Return what is doubtful about the ids of label maps that are spread over the bag, see `label_doubts`."""
        palettes: list[str] = []

        def maps() -> Iterator[np.ndarray]:
            for index in spread(list(self._labels)):
                with contextlib.suppress(BagError, ImageError):
                    yield self._label_map(index, classes, palettes)

        return label_doubts(maps(), classes, palettes)

    def _first_pixels(self) -> Iterator[np.ndarray]:
        """Return the 16-bit pixels of the first frames, so that every part of the bag is scaled alike."""
        for index in range(min(FIRST_FRAMES, len(self))):
            raw = self.raw(index)
            if isinstance(raw, BagError):
                continue
            try:
                pixels = pixels_of_16_bits(deserialize(raw, self.topics[self.image_topic].type))
            except (BagError, ImageError):
                continue
            if pixels is None:
                return
            yield pixels

    def _label_map(self, index: int, classes: ClassSet, doubts: list[str] | None = None) -> np.ndarray:
        """Return the ids of an image's label map as they are, uint8 (H, W). Raises BagError and ImageError."""
        assert self.label_topic is not None
        with self._lock:
            raw = self._storage.read(self._labels[index])
        return label_map(deserialize(raw, self.topics[self.label_topic].type), classes, doubts)

    def _pair_labels(self) -> dict[int, np.ndarray]:
        """Map the index of each image that has a label map to that map's index row.

        Label maps may be recorded late, or after all images.
        """
        if self.label_topic is None:
            return {}
        rows = self._storage.index(self.label_topic)
        labels_ns = self._stamps_ns(rows)
        if unreadable := int((labels_ns < 0).sum()):
            self._own_problems.append(f"{unreadable} messages of {self.label_topic} cannot be read")
        pairs = pair_labels(self._stamps_ns(self._images), labels_ns)
        if sentence := pairs.sentence(self.label_topic):
            (self._own_problems if pairs.unmatched or pairs.ambiguous else self._notes).append(sentence)
        return {image: rows[label] for image, label in pairs.places.items()}

    def _stamps_ns(self, rows: np.ndarray) -> np.ndarray:
        """Return the stamp of each message in ns, int64 (N,): the recording time for a stamp of zero, -1 for none."""
        stamps = np.full(len(rows), -1, np.int64)
        for place, row in enumerate(rows):
            with contextlib.suppress(BagError, struct.error):
                stamps[place] = stamp_of(self._storage.head(row, STAMP_BYTES)) or row[0]
        return stamps
