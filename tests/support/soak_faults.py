# SPDX-License-Identifier: Apache-2.0
"""The faults of `make soak`: what a camera or an engine does, and the sentence with which the node reports it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fault_harness import IMAGE_LEVEL, REFINED, picture
from faulty_node import Fault
from ros_harness import Client, pixels_of, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

#: Values in diagnostics whose sum is the number of images published.
COUNTS = ("processed", "failed", "dropped")
#: Sizes that alternate; the node keeps what it prepared for the last four.
SIZES_HW = tuple((48, 64 + 16 * step) for step in range(6))


class SoakCamera:
    """Publish images by a simulated clock, count them, and check the masks that answer them."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client, self.random = client, random.Random(seed)
        self.now_s = 100_000.0
        self.period_s = 0.05
        self.published = 0  #: images since `begin`
        self.wrong_masks = 0  #: masks with other labels than expected, without an image, or of one that has none
        self._answered: dict[tuple[int, int], bool] = {}  # stamp of an image: whether a mask may answer it
        self._clock = client.node.create_publisher(Clock, "/clock", 10)
        self._publisher = client.node.create_publisher(Image, "image", 1)

    @property
    def topic(self) -> str:
        """The full name of the images' topic."""
        return self._publisher.topic_name

    def masks(self) -> list[Image]:
        """Return the masks since `begin`."""
        return list(self.client.messages["nightlab/mask"])

    def begin(self) -> None:
        """Publish until the node answers, and count from there: what came before may not have reached it."""
        self.client.messages["nightlab/mask"].clear()
        self.wait_for_answer(self._publisher)
        self.published = self.counted()

    def wait_for_answer(self, publisher: Any) -> None:
        """Publish one image after the other until the node answers one."""

        def answered() -> bool:
            self.tick(0.5)
            message = self.image()
            self.publish(message, by=publisher)
            time.sleep(0.5)
            return any(mask.header.stamp == message.header.stamp for mask in self.masks())

        wait_until(answered, "a mask of one of the images")

    def counted(self) -> int:
        """Return the number of images in the node's counts as soon as three diagnostics agree on it."""
        seen = [-1, -2, -3]
        while len(set(seen[-3:])) > 1:
            values = self.client.diagnostics()
            seen.append(sum(int(values[name]) for name in COUNTS))
        return seen[-1]

    def tick(self, step_s: float) -> None:
        """Let simulated time pass; a negative step is a jump back."""
        self.now_s = max(50_000.0, self.now_s + step_s)
        self.set_clock(int(self.now_s), int(self.now_s % 1 * 1e9))

    def set_clock(self, seconds: int, nanoseconds: int = 0) -> None:
        """Publish a time, which may be absurd."""
        message = Clock()
        message.clock.sec, message.clock.nanosec = seconds, nanoseconds
        self._clock.publish(message)

    def image(self, fault: int = Fault.NONE, size_hw: tuple[int, int] = SIZES_HW[0]) -> Image:
        """Return an image of the present, whose stamp no other has."""
        self.now_s += 1e-6
        message = self.client.image(picture(fault, size_hw))
        message.header.stamp.sec, message.header.stamp.nanosec = int(self.now_s), int(self.now_s % 1 * 1e9)
        return message

    def publish(self, message: Image, expects_mask: bool = True, by: Any = None) -> None:
        """Publish an image, by default with the camera's own publisher, and count it."""
        self._answered[(message.header.stamp.sec, message.header.stamp.nanosec)] = expects_mask
        (by or self._publisher).publish(message)
        self.published += 1

    def send(self, number: int, fault: Fault = Fault.NONE, expects_mask: bool = True) -> None:
        """Publish images at the camera's rate, with the clock."""
        for _ in range(number):
            self.tick(self.period_s)
            self.publish(self.image(fault), expects_mask)
            time.sleep(self.period_s)

    def check_masks(self) -> None:
        """Count the masks since `begin` that are wrong."""
        for mask in self.masks():
            expected = self._answered.get((mask.header.stamp.sec, mask.header.stamp.nanosec))
            labels = set(np.unique(pixels_of(mask)).tolist())
            if not (expected and labels <= {IMAGE_LEVEL, REFINED}):
                self.wrong_masks += 1
                reason = "unknown stamp" if expected is None else f"labels {labels}, expected a mask: {expected}"
                print(f"wrong mask: {mask.header.stamp}: {reason}", flush=True)


@dataclass(frozen=True)
class SoakFault:
    """A fault: `inject` publishes some images with it, and is repeated until diagnostics contain the sentence."""

    sentence: str
    inject: Callable[[SoakCamera], None]


def _by_engine(fault: Fault, number: int = 10) -> Callable[[SoakCamera], None]:
    has_mask = fault.name.startswith(("HARDNESS", "REGION"))
    return lambda camera: camera.send(number, fault, expects_mask=has_mask)


def _slow(fault: Fault, seconds: float) -> Callable[[SoakCamera], None]:
    def inject(camera: SoakCamera) -> None:
        camera.send(1, fault)
        camera.send(max(1, int(seconds / camera.period_s)))

    return inject


def _damaged(change: Callable[[Image], Any]) -> Callable[[SoakCamera], None]:
    def inject(camera: SoakCamera) -> None:
        for _ in range(5):
            camera.tick(camera.period_s)
            message = camera.image()
            change(message)
            camera.publish(message, expects_mask=False)
            time.sleep(camera.period_s)

    return inject


def _thin(camera: SoakCamera) -> None:
    camera.publish(camera.image(size_hw=(1, 10_000)), expects_mask=False)
    time.sleep(0.1)


def _stamped(seconds: int) -> Callable[[SoakCamera], None]:
    def inject(camera: SoakCamera) -> None:
        for _ in range(10):
            camera.tick(camera.period_s)
            message = camera.image()
            message.header.stamp.sec += seconds
            camera.publish(message)
            time.sleep(max(0.05, camera.period_s))  # slowly, so that masks with these stamps come out

    return inject


def _sizes(camera: SoakCamera) -> None:
    for size_hw in SIZES_HW:
        camera.tick(0.1)
        camera.publish(camera.image(size_hw=size_hw))
        time.sleep(0.1)


def _flood(camera: SoakCamera) -> None:
    camera.tick(0.1)
    for _ in range(500):
        camera.publish(camera.image())
    time.sleep(0.1)


def _silence(camera: SoakCamera) -> None:
    for _ in range(5):
        camera.tick(0.1)
        time.sleep(0.1)


def _stopped_clock(camera: SoakCamera) -> None:
    for _ in range(10):
        camera.publish(camera.image())
        time.sleep(0.1)


def _second_publisher(camera: SoakCamera) -> None:
    """Publish from a second node. What it publishes before its match is in no count."""
    missing = camera.published - camera.counted()
    second = Client("soak_second")
    try:
        publisher = second.node.create_publisher(Image, camera.topic, 1)
        camera.wait_for_answer(publisher)
        camera.published = camera.counted() + missing
        for _ in range(10):
            camera.tick(camera.period_s)
            camera.publish(camera.image(), by=publisher)
            time.sleep(camera.period_s)
        camera.counted()  # an image that is not yet taken vanishes with its publisher
    finally:
        second.close()


FAULTS: dict[str, SoakFault] = {
    "image engine raises": SoakFault("the image engine failed", _by_engine(Fault.IMAGE_RAISES)),
    "hardness engine raises": SoakFault("the hardness engine failed", _by_engine(Fault.HARDNESS_RAISES)),
    "region engine raises": SoakFault("the region engine failed", _by_engine(Fault.REGION_RAISES)),
    "hardness engine gives NaN": SoakFault("scores with nan", _by_engine(Fault.HARDNESS_NAN)),
    "image engine gives class 200": SoakFault("image network: received label 200", _by_engine(Fault.UNKNOWN_CLASS)),
    "labels of another shape": SoakFault("image network: received labels uint8", _by_engine(Fault.OTHER_SHAPE)),
    "confidence is no uint8": SoakFault("received confidence float32", _by_engine(Fault.FLOAT_CONFIDENCE)),
    "region engine gives class 200": SoakFault(
        "region network: received label 200", _by_engine(Fault.REGION_UNKNOWN_CLASS)
    ),
    "SystemExit in the image engine": SoakFault("SystemExit: the image engine", _by_engine(Fault.IMAGE_EXITS)),
    "SystemExit in the hardness engine": SoakFault("SystemExit: the hardness engine", _by_engine(Fault.HARDNESS_EXITS)),
    "image engine is slow": SoakFault("no mask came out", _slow(Fault.SLOW, 6.0)),
    "hardness engine is slow": SoakFault("the hardness network does not answer", _slow(Fault.HARDNESS_SLOW, 10.0)),
    "too few bytes": SoakFault("bytes for 64x96 bgr8", _damaged(lambda m: setattr(m, "height", 96))),
    "unknown encoding": SoakFault("bgr99", _damaged(lambda m: setattr(m, "encoding", "bgr99"))),
    "no pixels": SoakFault("0x48", _damaged(lambda m: setattr(m, "width", 0))),
    "thin picture": SoakFault("expected sides of at most 64 to 1", _thin),
    "stamps of the past": SoakFault("hours in the past", _stamped(-40_000)),
    "stamps of the future": SoakFault("stamped in the future", _stamped(3600)),
    "alternating sizes": SoakFault("sizes alternate", _sizes),
    "flood": SoakFault("% of the images dropped", _flood),
    "silence": SoakFault("no images for", _silence),
    "clock stands still": SoakFault("clock has stood still", _stopped_clock),
    "second publisher": SoakFault("publish the same camera topic", _second_publisher),
}
