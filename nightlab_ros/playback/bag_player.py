# SPDX-License-Identifier: Apache-2.0
"""Play a bag's images to a camera topic at the recorded rate, with /clock, from a process of its own.

    python -m nightlab_ros.playback.bag_player drive.mcap --topic /camera/image_raw --first 0 --stop 100

The messages are published byte by byte as they were recorded, but for a stamp of zero or one that an earlier message
has: see `OwnStamps`. Those that cannot be read are left out. Follows the protocol of protocol.py. A warm-up frame is
the first message, stamped some nanoseconds before it was recorded. /clock stands still during the warm-up and runs
until standard input ends.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from nightlab_core.data.bags.messages import COMPRESSED_TYPE, STAMP_BYTES, stamp_of
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.prefetch import Prefetcher
from nightlab_replay.realtime import due_times_s, recorded_at
from nightlab_ros.playback.protocol import WARM_UP, SentFrame, print_sent, run_player, wait_until_released, warm_up

#: Seconds between two messages on /clock.
CLOCK_PERIOD_S = 0.01
#: Messages that are read before they are due.
PREFETCH_MESSAGES = 8


def with_stamp(raw: bytes, stamp_ns: int) -> bytes:
    """Return a copy of a serialised message with another stamp."""
    byte_order = "<" if raw[1] & 1 else ">"  # CDR's second byte
    stamp = struct.pack(byte_order + "iI", *divmod(stamp_ns, 1_000_000_000))
    return raw[: STAMP_BYTES - len(stamp)] + stamp + raw[STAMP_BYTES:]


class OwnStamps:
    """Give each message a stamp of its own, so that a mask belongs to one image."""

    def __init__(self) -> None:
        self._used = {0}

    def apply(self, raw: bytes, time_ns: int) -> bytes:
        """Return the message as it is, or with a stamp from `time_ns` on if its stamp is zero or was used before."""
        stamp_ns = stamp_of(raw)
        if stamp_ns in self._used:
            stamp_ns = next(later for later in itertools.count(time_ns) if later not in self._used)
            raw = with_stamp(raw, stamp_ns)
        self._used.add(stamp_ns)
        return raw


def _is_message(raw: bytes | BagError) -> TypeGuard[bytes]:
    """Return True for a result of `Bag.raw` that is long enough to hold a stamp."""
    return isinstance(raw, bytes) and len(raw) >= STAMP_BYTES


class SimulatedClock:
    """Publish /clock on a thread of its own: `time_at(0)` until `start`, then `time_at(seconds since start)`, in ns."""

    def __init__(self, node: Any, time_at: Callable[[float], int]) -> None:
        self._publisher = node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self._time_at, self._start_s = time_at, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock")
        self._thread.start()

    def start(self) -> float:
        """Start the clock; returns the start by `time.perf_counter`."""
        self._start_s = time.perf_counter()
        return self._start_s

    def now_ns(self) -> int:
        """Return the simulated time in nanoseconds."""
        return self._time_at(time.perf_counter() - self._start_s if self._start_s else 0.0)

    def close(self) -> None:
        """Stop publishing."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(CLOCK_PERIOD_S):
            seconds, nanoseconds = divmod(self.now_ns(), 1_000_000_000)
            self._publisher.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))


def play(node: Any, bag: Bag, first: int, stop: int, rate: float) -> None:
    """Publish the images `first` to `stop` - 1 at `rate` times the recorded rate, once there is a subscription."""
    compressed = bag.topics[bag.image_topic].type == COMPRESSED_TYPE
    kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
    publisher = node.create_publisher(kind, topic, QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE))
    times_ns = bag.times_ns[first:stop]
    due_times = due_times_s(times_ns, rate)
    clock = SimulatedClock(node, recorded_at(times_ns, due_times, rate))

    stamps = OwnStamps()

    def send(index: int, raw: bytes, late_ms: float = 0.0) -> None:
        message = stamps.apply(raw, int(bag.times_ns[max(index, first)]))
        frame = SentFrame(
            index,
            stamp_of(message),
            time.time_ns(),
            round(late_ms, 2),
            clock_ns=clock.now_ns(),
            has_own_stamp=message is raw,
        )
        publisher.publish(message)
        print_sent(frame)

    try:
        while publisher.get_subscription_count() == 0:
            rclpy.spin_once(node, timeout_sec=0.05)
        first_raw = next(filter(_is_message, map(bag.raw, range(first, stop))), None)
        if first_raw is not None:
            stamps_ns = itertools.count(int(bag.times_ns[first]) - 1, -1)
            warm_up(lambda: send(WARM_UP, with_stamp(first_raw, next(stamps_ns))))
        raw_messages = ((index, bag.raw(index)) for index in range(first, stop))
        with Prefetcher(raw_messages, max_items=PREFETCH_MESSAGES) as messages:
            start_s = clock.start()
            for (index, raw), due_s in zip(messages, due_times, strict=True):
                time.sleep(max(0.0, start_s + due_s - time.perf_counter()))
                if _is_message(raw):
                    send(index, raw, 1e3 * (time.perf_counter() - start_s - due_s))
        publisher.wait_for_all_acked(Duration(seconds=2.0))
        wait_until_released()
    finally:
        clock.close()


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--topic", required=True, help="image topic")
    parser.add_argument("--first", type=int, required=True, help="index of the first image")
    parser.add_argument("--stop", type=int, required=True, help="index after that of the last image")
    parser.add_argument("--rate", type=float, default=1.0, help="multiple of the recorded rate (default: 1)")
    args = parser.parse_args(argv)

    def play_bag(node: Any) -> None:
        with Bag(args.bag, args.topic) as bag:
            play(node, bag, args.first, args.stop, args.rate)

    return run_player("bag_player", play_bag)


if __name__ == "__main__":
    sys.exit(main())
