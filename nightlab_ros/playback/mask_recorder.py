# SPDX-License-Identifier: Apache-2.0
"""Record each mask that the node publishes, with its arrival time, and the node's diagnostics."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import zlib
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, String

from nightlab_core.files import named_errors
from nightlab_ros import topics

#: Full name of the node whose topics are recorded.
NODE = "/nightlab"
MASK, IMAGE_LEVEL_MASK, CONFIDENCE, REGION_OUTCOMES = (
    topic.name.replace("~", NODE)
    for topic in (topics.MASK, topics.IMAGE_LEVEL_MASK, topics.CONFIDENCE, topics.REGION_OUTCOMES)
)
#: The node publishes diagnostics once a second; without any for so many seconds, it is not waited for.
DIAGNOSTICS_TIMEOUT_S = 5.0


class MaskSpool:
    """Temporary file of compressed masks, because a long recording's masks do not fit into memory."""

    def __init__(self, folder: Path) -> None:
        """Create the file in `folder`; it disappears when the spool is closed."""
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in `__exit__`
        self._lock = threading.Lock()
        self._end = 0

    def __enter__(self) -> MaskSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # `write` has raised it before
            self._file.close()

    def write(self, labels: np.ndarray) -> tuple[int, int]:
        """Append uint8 (H, W); returns the offset and number of bytes for `read`. Raises OSError."""
        packed = zlib.compress(labels.tobytes(), 1)
        with self._lock:
            offset = self._end
            self._file.seek(offset)
            with named_errors(self._folder):
                self._file.write(packed)
                self._file.flush()
            self._end += len(packed)
        return offset, len(packed)

    def read(self, offset: int, num_bytes: int, size_hw: tuple[int, int]) -> np.ndarray:
        """Return the array that was written, uint8 (H, W)."""
        with self._lock:
            self._file.seek(offset)
            packed = self._file.read(num_bytes)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(size_hw)


@dataclass(frozen=True)
class ReceivedMask:
    """A mono8 message of the node; its pixels are in a spool."""

    stamp_ns: int  #: stamp in the header, which is the image's own
    received_ns: int  #: arrival, by the wall clock
    frame_id: str
    encoding: str
    size_hw: tuple[int, int]
    spool: MaskSpool
    place: tuple[int, int]  #: offset and number of bytes in the spool

    @classmethod
    def store(
        cls, spool: MaskSpool, labels: np.ndarray, *, stamp_ns: int, received_ns: int, frame_id: str, encoding: str
    ) -> ReceivedMask:
        """Write uint8 (H, W) into the spool."""
        size_hw = (labels.shape[0], labels.shape[1])
        return cls(stamp_ns, received_ns, frame_id, encoding, size_hw, spool, spool.write(labels))

    @property
    def labels(self) -> np.ndarray:
        """Pixels, uint8 (H, W)."""
        return self.spool.read(*self.place, self.size_hw)

    @property
    def latency_ms(self) -> float:
        """Milliseconds from the stamp to the arrival, for stamps of the wall clock."""
        return (self.received_ns - self.stamp_ns) / 1e6


class MaskRecorder:
    """Subscribe to the node's masks and diagnostics on a thread of its own, within a `with` block.

    The arrival time is taken first in the callback.
    """

    def __init__(
        self,
        spool: MaskSpool,
        mask_topics: tuple[str, ...] = (MASK, IMAGE_LEVEL_MASK),
        *,
        stages: tuple[str, ...] = (),
        with_regions: bool = False,
    ) -> None:
        """Record the messages of `mask_topics` into `spool`.

        Also records the times of `stages`, which are those of `topics.STAGE_TOPICS`, and the hard regions if asked for.
        """
        #: by topic, then by stamp in nanoseconds: the messages in order of arrival
        self.received: dict[str, dict[int, list[ReceivedMask]]] = {topic: defaultdict(list) for topic in mask_topics}
        self.arrivals: list[int] = []  #: stamps of the merged masks in order of arrival
        self.diagnostics: dict[str, str] = {}  #: the node's latest values
        self.stages_ms: dict[str, list[float]] = {stage: [] for stage in stages}  #: in order of arrival
        #: by stamp in nanoseconds: the hard regions, see `messages.region_records`
        self.regions: dict[int, list[dict[str, Any]]] = {}
        self._num_diagnostics = 0
        self._spool, self._with_regions = spool, with_regions
        self._error: OSError | None = None  #: why a mask could not be stored

    def __enter__(self) -> MaskRecorder:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("mask_recorder")
        # Deeper than the node's own depth of 1, so that a burst waits here while a mask is compressed.
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        for topic in self.received:
            self._node.create_subscription(Image, topic, lambda m, t=topic: self._on_mask(m, t), qos)
        for stage, values_ms in self.stages_ms.items():
            topic = topics.STAGE_TOPICS[stage].name.replace("~", NODE)
            self._node.create_subscription(Float64, topic, lambda m, v=values_ms: v.append(m.data), qos)
        if self._with_regions:
            self._node.create_subscription(String, REGION_OUTCOMES, self._on_regions, qos)
        self._node.create_subscription(DiagnosticArray, topics.DIAGNOSTICS.name, self._on_diagnostics, qos)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    @property
    def num_masks(self) -> int:
        """Number of merged masks so far."""
        return len(self.arrivals)

    def has_masks(self, stamp_ns: int) -> bool:
        """Return True when both the merged mask and the image level's mask of this stamp are here.

        Raises OSError if a mask could not be stored, for example on a full disk.
        """
        if self._error is not None:
            raise self._error
        return stamp_ns in self.received[MASK] and stamp_ns in self.received[IMAGE_LEVEL_MASK]

    def take(self, topic: str, stamp_ns: int) -> ReceivedMask | None:
        """Remove and return the first message of a stamp, or None."""
        waiting = self.received[topic].get(stamp_ns)
        return waiting.pop(0) if waiting else None

    def wait_for_diagnostics(self) -> None:
        """Wait for diagnostics that count everything that has come so far.

        The first message from now on may be older than this call; the second is not.
        """
        seen, end_s = self._num_diagnostics, time.monotonic() + DIAGNOSTICS_TIMEOUT_S
        while self._num_diagnostics < seen + 2 and time.monotonic() < end_s:
            time.sleep(0.02)

    def _spin(self) -> None:
        try:
            while not self._stop.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except OSError as error:
            self._error = error

    def _on_mask(self, message: Any, topic: str) -> None:
        received_ns = time.time_ns()
        stamp = message.header.stamp
        mask = ReceivedMask.store(
            self._spool,
            np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width],
            stamp_ns=stamp.sec * 1_000_000_000 + stamp.nanosec,
            received_ns=received_ns,
            frame_id=message.header.frame_id,
            encoding=message.encoding,
        )
        self.received[topic][mask.stamp_ns].append(mask)
        if topic == MASK:
            self.arrivals.append(mask.stamp_ns)

    def _on_regions(self, message: Any) -> None:
        content = json.loads(message.data)
        self.regions[content["stamp_ns"]] = content["regions"]

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.hardware_id == NODE:
                self.diagnostics = {item.key: item.value for item in status.values}
                self._num_diagnostics += 1
