# SPDX-License-Identifier: Apache-2.0
"""Play frames to a camera topic at a fixed rate, from a process of its own, as a camera's driver would.

    python -m nightlab_ros.player --input drive.mcap --rate 10

Writes one line of JSON to standard output for each frame when it is sent, and nothing else: index (-1: it knocks),
name, stamp_ns, size_hw, late_ms. With --knock the output ends with the clip, and the player with its standard input.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from nightlab_core.data.frames import Frame, FrameSource, open_frames
from nightlab_core.data.prefetch import Prefetcher
from nightlab_core.labels import CLASS_SETS
from nightlab_ros.messages import image_message

FRAME_ID = "camera"
#: Frames are decoded ahead up to this much memory, and before the first one is sent: decoding then takes no time from
#: the node's processor, and a slow disk does not bend the rate.
PREFETCH_BYTES = 512 * 2**20
#: A subscription may learn of its publisher later than the publisher of it, and what is sent in between is lost; so is
#: what a best-effort subscription has not taken yet when the publisher goes. Without --knock the first frame waits so
#: long after the publisher's own match, and the publisher after the last frame.
SETTLE_S = 0.5
#: The first pause between knocks; each is half as long again, so that a slow machine can answer the last one in time.
KNOCK_S = 1.0


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `source_from` reads."""
    parser.add_argument("--input", help="rosbag, folder of images or video; without it the rendered night clip")
    parser.add_argument(
        "--labels", help="folder of label maps, PNG, for a folder of images (default: labels beside it)"
    )
    parser.add_argument(
        "--classes", choices=sorted(CLASS_SETS), help="class set of the labels (default: a bag's own, else by the path)"
    )
    parser.add_argument("--glob", default="*", help="which images of a folder, by name")
    parser.add_argument("--topic", help="image topic of a rosbag that has several")
    parser.add_argument("--frames", type=int, help="play no more than so many frames")
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second (default 10)")


def source_from(args: argparse.Namespace) -> FrameSource:
    """The frames that the arguments name. FileNotFoundError or ValueError says what is wrong with them."""
    if not args.rate > 0:
        raise ValueError(f"rate is {args.rate}; expected frames a second, above 0")
    return open_frames(
        args.input,
        labels=args.labels,
        classes=args.classes,
        pattern=args.glob,
        topic=args.topic,
        max_frames=args.frames,
        fps=args.rate,
    )


def _num_bytes(frame: Frame) -> int:
    return frame.image_bgr.nbytes + (0 if frame.labels is None else frame.labels.nbytes)


def play(node: Any, source: FrameSource, rate: float, knock: bool = False) -> int:
    """Publish every frame on `image`, once someone listens, and return how many there were.

    With `knock` the first frame is sent, now and then, until a line comes on standard input; only then does the clip
    begin. Who watches both ends can say so when an answer arrives: the path is then known to work, and warm. After the
    last frame it stays until it is let go.
    """
    # Reliable serves best-effort and reliable subscriptions alike. Keep-last 5 is what a reliable one may lag behind
    # before it loses a frame; with best-effort ones each frame goes out at once, and the node keeps the newest.
    publisher = node.create_publisher(Image, "image", QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE))

    def send(index: int, frame: Frame, late_ms: float) -> None:
        now = node.get_clock().now()
        publisher.publish(image_message(frame.image_bgr, "bgr8", Header(stamp=now.to_msg(), frame_id=FRAME_ID)))
        line = {"index": index, "name": frame.name, "stamp_ns": now.nanoseconds, "size_hw": frame.image_bgr.shape[:2]}
        print(json.dumps({**line, "late_ms": round(late_ms, 2)}), flush=True)

    with Prefetcher(source, max_bytes=PREFETCH_BYTES, size_of=_num_bytes) as frames:
        frames.wait_until_full()
        while publisher.get_subscription_count() == 0:
            rclpy.spin_once(node, timeout_sec=0.05)
        first = next(frames)
        if knock:
            answered = threading.Event()
            threading.Thread(target=set_on_line, args=(answered,), daemon=True).start()
            pause_s = KNOCK_S
            while not answered.is_set():
                send(-1, first, 0.0)
                answered.wait(pause_s)
                pause_s *= 1.5
        else:
            time.sleep(SETTLE_S)
        begin = time.perf_counter()
        sent = 0
        for frame in itertools.chain([first], frames):
            due = begin + sent / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            send(sent, frame, 1e3 * (time.perf_counter() - due))
            sent += 1
    publisher.wait_for_all_acked(Duration(seconds=2.0))
    if knock:
        stay_until_let_go()
    else:
        time.sleep(SETTLE_S)
    return sent


def set_on_line(event: threading.Event) -> None:
    """Set an event when a line comes on standard input, or its end."""
    sys.stdin.readline()
    event.set()


def stay_until_let_go() -> None:
    """End standard output, which says that all is sent, and return when standard input ends.

    A best-effort subscription acknowledges nothing: only who watches both ends knows when the last frame has come.
    """
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # to close sys.stdout would leave its descriptor open
    sys.stdin.read()


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 when all frames were sent, 1 with a reason on standard error, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser)
    parser.add_argument("--knock", action="store_true", help="repeat the first frame until a line on standard input")
    args = parser.parse_args(argv)
    rclpy.init(args=[])
    node = rclpy.create_node("player")
    try:
        play(node, source_from(args), args.rate, args.knock)
    except (ValueError, FileNotFoundError) as error:
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
