# SPDX-License-Identifier: Apache-2.0
"""Play frames to a camera topic at a fixed rate, from a process of its own, like a camera's driver.

    python -m nightlab_ros.playback.player --input drive.mcap --rate 10

Writes one line of JSON to standard output for each frame sent: `SentFrame` in protocol.py, which also describes what
--warm-up does. Exit status: 0 when all frames were sent, 1 with a reason on standard error, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from nightlab_core.data.frames import Frame, FrameSource, open_frames
from nightlab_core.data.prefetch import Prefetcher
from nightlab_ros.playback.protocol import WARM_UP, SentFrame, print_sent, run_player, wait_until_released, warm_up
from nightlab_ros.publishing.messages import image_message

#: The header's frame_id of each image.
FRAME_ID = "camera"
#: Frames are decoded ahead up to this much memory, and before the first one is sent: decoding then takes no time from
#: the node's processor, and a slow disk does not bend the rate.
PREFETCH_BYTES = 512 * 2**20
#: Without --warm-up, seconds between the first subscription and the first frame, and between the last frame and the
#: end. A subscription can learn of its publisher later than the publisher of it, and loses frames sent in between.
SETTLE_S = 0.5


@dataclass(frozen=True)
class PlayerSettings:
    """Frames to play and their rate; `nightlab_core.data.frames.open_frames` describes the fields."""

    input: str | None = None  #: rosbag, folder of images or video; None: the rendered night clip
    labels: str | None = None  #: folder of label maps
    classes: str | None = None  #: class set of the labels
    glob: str = "*"  #: names of the images of a folder
    topic: str | None = None  #: image topic of a rosbag that has several
    frames: int | None = None  #: number of frames at most
    rate: float = 10.0  #: frames per second
    label_topic: str | None = None  #: label topic of a rosbag that has several
    pixel_bits: int = 0  #: significant bits of 16-bit pixels; 0: measured

    def open(self) -> FrameSource:
        """Open the frames. Raises FileNotFoundError or ValueError that says what is wrong."""
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; expected a finite number of frames per second, above 0")
        return open_frames(
            self.input,
            labels=self.labels,
            classes=self.classes,
            pattern=self.glob,
            topic=self.topic,
            label_topic=self.label_topic,
            max_frames=self.frames,
            fps=self.rate,
            pixel_bits=self.pixel_bits,
        )

    def arguments(self) -> list[str]:
        """Return the settings as arguments of the player's command line."""
        given = {name.replace("_", "-"): value for name, value in vars(self).items() if value is not None}
        return [f"--{name}={value}" for name, value in given.items()]


def play(node: Any, source: FrameSource, rate: float, with_parent: bool) -> None:
    """Publish every frame on `image` at `rate` frames per second, as soon as there is a subscription.

    with_parent: follow the protocol of protocol.py.
    """
    for sentence in (*source.problems, *source.notes):
        print(sentence, file=sys.stderr)
    # Reliable serves best-effort and reliable subscriptions alike. A reliable one may lag five frames before it loses
    # one; to a best-effort one each frame goes out at once.
    publisher = node.create_publisher(Image, "image", QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE))
    with Prefetcher(source, max_bytes=PREFETCH_BYTES, size_of=lambda frame: frame.image_bgr.nbytes) as frames:
        frames.wait_until_full()
        while publisher.get_subscription_count() == 0:
            rclpy.spin_once(node, timeout_sec=0.05)

        def send(index: int, frame: Frame, late_ms: float = 0.0) -> None:
            now = node.get_clock().now()
            publisher.publish(image_message(frame.image_bgr, "bgr8", Header(stamp=now.to_msg(), frame_id=FRAME_ID)))
            height, width = frame.image_bgr.shape[:2]
            stamp_ns = now.nanoseconds
            print_sent(SentFrame(index, stamp_ns, stamp_ns, round(late_ms, 2), frame.name, (height, width)))

        first = next(frames)
        if with_parent:
            warm_up(lambda: send(WARM_UP, first))
        else:
            time.sleep(SETTLE_S)
        start_s = time.perf_counter()
        for index, frame in enumerate(itertools.chain([first], frames)):
            due_s = start_s + index / rate
            time.sleep(max(0.0, due_s - time.perf_counter()))
            send(index, frame, 1e3 * (time.perf_counter() - due_s))
    publisher.wait_for_all_acked(Duration(seconds=2.0))
    if with_parent:
        wait_until_released()
    else:
        time.sleep(SETTLE_S)


def main(argv: list[str] | None = None) -> int:
    """Run the command line, which has an option for each field of PlayerSettings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = PlayerSettings()
    parser.add_argument("--input", help="rosbag, folder of images or video (default: the rendered night clip)")
    parser.add_argument("--labels", help="folder of label maps for a folder of images (default: labels beside it)")
    parser.add_argument("--classes", help="class set of the labels, a key or YAML file (default: a bag's own)")
    parser.add_argument("--glob", default=default.glob, help="names of the images of a folder (default: all)")
    parser.add_argument("--topic", help="image topic of a rosbag that has several")
    parser.add_argument("--label-topic", help="label topic of a rosbag that has several")
    parser.add_argument("--frames", type=int, help="number of frames at most")
    parser.add_argument("--pixel-bits", type=int, default=default.pixel_bits, help="significant bits of 16-bit pixels")
    parser.add_argument("--rate", type=float, default=default.rate, help="frames per second (default: %(default)g)")
    parser.add_argument(
        "--warm-up", action="store_true", help="repeat the first frame until a line arrives on standard input"
    )
    args = vars(parser.parse_args(argv))
    with_parent = args.pop("warm_up")
    settings = PlayerSettings(**args)
    return run_player("player", lambda node: play(node, settings.open(), settings.rate, with_parent))


if __name__ == "__main__":
    sys.exit(main())
