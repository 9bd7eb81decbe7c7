# SPDX-License-Identifier: Apache-2.0
"""Play a bag's images to a camera topic at the recorded rate, with /clock, from a process of its own.

    python -m nightlab_ros.bag_player drive.mcap --topic /camera/image_raw --first 0 --stop 100

The messages are published byte by byte as they were recorded. Until a line comes on standard input the first one is
sent now and then, with a stamp of its own (a few ns before it was recorded): the path is then known to work, and warm.
Writes one line of JSON for every image: index (-1: it knocks), stamp_ns, sent_ns by the wall clock, clock_ns by /clock,
late_ms. The output ends with the last image; /clock goes on until standard input ends.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from nightlab_core.data.bags.messages import COMPRESSED_TYPE
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.prefetch import Prefetcher
from nightlab_replay.realtime import due_times_s, recorded_at
from nightlab_ros.player import KNOCK_S, set_on_line, stay_until_let_go

CLOCK_S = 0.01
#: Messages that are read before they are due.
_DEPTH = 8
_STAMP_AT = 4


def stamp_of(raw: bytes) -> int:
    """The header's stamp in a serialised message, in ns."""
    seconds, nanoseconds = struct.unpack_from(_order(raw) + "iI", raw, _STAMP_AT)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def with_stamp(raw: bytes, stamp_ns: int) -> bytes:
    """The same serialised message with another stamp."""
    changed = bytearray(raw)
    struct.pack_into(_order(raw) + "iI", changed, _STAMP_AT, *divmod(stamp_ns, 1_000_000_000))
    return bytes(changed)


def _order(raw: bytes) -> str:
    """CDR says in its second byte whether it is little-endian."""
    return "<" if raw[1] & 1 else ">"


class SimulatedClock:
    """/clock on a thread of its own: stands at `at(0)` until `run`, then shows `at(seconds since then)`, in ns."""

    def __init__(self, node: Any, at: Callable[[float], int]) -> None:
        self._publisher = node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self._at, self._begin = at, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="clock")
        self._thread.start()

    def run(self) -> float:
        """Let it go; returns when, by `time.perf_counter`."""
        self._begin = time.perf_counter()
        return self._begin

    def now_ns(self) -> int:
        return self._at(time.perf_counter() - self._begin if self._begin else 0.0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._stop.wait(CLOCK_S):
            seconds, nanoseconds = divmod(self.now_ns(), 1_000_000_000)
            self._publisher.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))


def play(node: Any, bag: Bag, first: int, stop: int, rate: float) -> None:
    """Publish the images first..stop - 1, once someone listens and has answered; what cannot be read is left out."""
    compressed = bag.topics[bag.image_topic].type == COMPRESSED_TYPE
    kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
    publisher = node.create_publisher(kind, topic, QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE))
    times_ns = bag.times_ns[first:stop]
    due_s = due_times_s(times_ns, rate)
    clock = SimulatedClock(node, recorded_at(times_ns, due_s, rate))

    def send(index: int, raw: bytes, late_ms: float) -> None:
        line = {"index": index, "stamp_ns": stamp_of(raw), "sent_ns": time.time_ns(), "clock_ns": clock.now_ns()}
        publisher.publish(raw)
        print(json.dumps({**line, "late_ms": round(late_ms, 2)}), flush=True)

    try:
        while publisher.get_subscription_count() == 0:
            rclpy.spin_once(node, timeout_sec=0.05)
        _knock(bag, first, stop, send)
        raw_messages = ((index, bag.raw(index)) for index in range(first, stop))
        with Prefetcher(raw_messages, max_items=_DEPTH) as messages:
            begin = clock.run()
            for (index, raw), due in zip(messages, due_s, strict=True):
                time.sleep(max(0.0, begin + due - time.perf_counter()))
                if isinstance(raw, bytes) and len(raw) >= 12:
                    send(index, raw, 1e3 * (time.perf_counter() - begin - due))
        publisher.wait_for_all_acked(Duration(seconds=2.0))
        stay_until_let_go()
    finally:
        clock.close()


def _knock(bag: Bag, first: int, stop: int, send: Any) -> None:
    answered = threading.Event()
    threading.Thread(target=set_on_line, args=(answered,), daemon=True).start()
    raw = next((raw for raw in map(bag.raw, range(first, stop)) if isinstance(raw, bytes) and len(raw) >= 12), None)
    pause_s, knocks = KNOCK_S, 0
    while raw is not None and not answered.is_set():
        knocks += 1
        send(-1, with_stamp(raw, int(bag.times_ns[first]) - knocks), 0.0)
        answered.wait(pause_s)
        pause_s *= 1.5


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 when all images were sent, 1 with a reason on standard error, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--stop", type=int, required=True)
    parser.add_argument("--rate", type=float, default=1.0)
    args = parser.parse_args(argv)
    rclpy.init(args=[])
    node = rclpy.create_node("replay_camera")
    try:
        with Bag(args.bag, args.topic) as bag:
            play(node, bag, args.first, args.stop, args.rate)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException, BrokenPipeError):
        return 130
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
