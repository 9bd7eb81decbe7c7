# SPDX-License-Identifier: Apache-2.0
"""Measure the share of a camera's images that arrives, without and with the profile for large images.

python -m nightlab_ros.transport.measure
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from nightlab_ros.publishing.messages import image_message
from nightlab_ros.transport.profile import profile_path, profile_variable
from nightlab_ros.transport.subscription import MATCH_PERIOD_S, MatchedSubscription

SIZES = ("640x480", "1280x720", "2048x1024")
RATES_HZ = (3, 10, 30)
RELIABILITIES = ("reliable", "best_effort")
#: Seconds for which each camera publishes, and after which a process gives up waiting for the other one.
SECONDS, PATIENCE_S = 4.0, 30.0


def publish(node: Node, topic: str, reliability: str) -> int:
    """Publish bgr8 images of the size and at the rate that the topic's name says; return their number."""
    width, height, rate_hz = map(int, topic.split("_")[1:])
    profile = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
    publisher = node.create_publisher(Image, topic, profile)
    message = image_message(np.zeros((height, width, 3), np.uint8), "bgr8", Image().header)

    def is_matched() -> bool:
        infos = node.get_subscriptions_info_by_topic(topic)
        return bool(infos) and all(info.qos_profile.reliability == profile.reliability for info in infos)

    _spin(node, is_matched)
    _spin(node, lambda: False, MATCH_PERIOD_S)  # until the subscription knows this publisher, too
    number, start_s = round(SECONDS * rate_hz), time.monotonic()
    for index in range(number):
        time.sleep(max(0.0, start_s + index / rate_hz - time.monotonic()))
        publisher.publish(message)
    _spin(node, lambda: False, 1.0)  # until the last one was sent
    node.destroy_publisher(publisher)
    return number


def receive(node: Node, topic: str, reliability: str) -> int:
    """Count the images that arrive from the camera's first to its last one."""
    received, matches = [], []
    subscription = MatchedSubscription(
        node,
        Image,
        topic,
        lambda message, info: received.append(message.height),
        on_lost=lambda number: None,
        on_match=lambda reliability, by_parameter, publishers: matches.append(bool(publishers)),
    )
    _spin(node, lambda: any(matches))
    _spin(node, lambda: not matches[-1], PATIENCE_S + 2 * SECONDS)
    assert subscription.reliability.replace(" ", "_") == reliability
    subscription.close()
    return len(received)


def measure(reliability: str, with_profile: bool, topics: Sequence[str]) -> dict[str, float]:
    """Return the percentage that arrives, by topic, from a camera in one process at a receiver in another."""
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment.pop(profile_variable(), None)
    if with_profile:
        environment[profile_variable()] = str(profile_path())
    command = [sys.executable, "-m", "nightlab_ros.transport.measure", *topics, "--reliability", reliability, "--role"]
    roles = [
        subprocess.Popen([*command, role], env=environment, stdout=subprocess.PIPE) for role in ("publish", "receive")
    ]
    sent, received = (json.loads(role.communicate()[0]) for role in roles)
    return {topic: 100 * received[topic] / sent[topic] for topic in topics}


def table() -> str:
    """Measure every setting, and return the shares as a table in Markdown."""
    settings = [(reliability, profile) for reliability in RELIABILITIES for profile in (False, True)]
    topics = [f"camera_{size.replace('x', '_')}_{rate_hz}" for size in SIZES for rate_hz in RATES_HZ]
    shares = [measure(*setting, topics) for setting in settings]
    heads = [f"{r.replace('_', ' ')}{', profile' if profile else ''}" for r, profile in settings]
    lines = [f"| size | Hz | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for topic in topics:
        width, height, rate_hz = topic.split("_")[1:]
        cells = " | ".join(f"{share[topic]:.0f} %" for share in shares)
        lines.append(f"| {width}x{height} | {rate_hz} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=("publish", "receive"), help=argparse.SUPPRESS)
    parser.add_argument("--reliability", choices=RELIABILITIES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.role is None:
        print(table())
        return 0
    rclpy.init()
    node = rclpy.create_node(given.role)
    function = publish if given.role == "publish" else receive
    print(json.dumps({topic: function(node, topic, given.reliability) for topic in given.topics}))
    rclpy.shutdown()
    return 0


def _spin(node: Node, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    """Run the node's callbacks until the condition holds or the time is over."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not condition():
        rclpy.spin_once(node, timeout_sec=0.05)


if __name__ == "__main__":
    sys.exit(main())
