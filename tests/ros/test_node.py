# SPDX-License-Identifier: Apache-2.0
"""The active node in its own process, over real DDS, with the tiny bundle whose masks are known."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnxruntime")

from class_sets import CITYSCAPES19
from pipelines import open_pipeline
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from ros_harness import Client, NodeProcess, pixels_of, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Float64

from nightlab_core.labels import overlay
from nightlab_core.runtime.settings import PipelineSettings

pytestmark = [pytest.mark.ros, pytest.mark.xdist_group("ros_node")]  # the tests share one running node
SIZE_HW = (120, 160)


def flat(blue: int, green: int, red: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    return np.full((*size_hw, 3), (blue, green, red), np.uint8)


class System:
    """A running node and a client that is connected to it."""

    def __init__(self, bundle: Path, namespace: str = "", **parameters: Any) -> None:
        self.process = NodeProcess(namespace, bundle=str(bundle), autostart=True, engine="onnxruntime", **parameters)
        self.client = Client(namespace)

    def close(self) -> None:
        self.client.close()
        assert self.process.stop() == 0, "".join(self.process.log)


@pytest.fixture(scope="module")
def start(tiny_bundle: Path) -> Iterator[Callable[..., System]]:
    systems: list[System] = []

    def start_node(namespace: str = "", **parameters: Any) -> System:
        systems.append(System(tiny_bundle, namespace, **parameters))
        return systems[-1]

    yield start_node
    for system in systems:
        system.close()


@pytest.fixture(scope="module")
def system(start: Callable[..., System]) -> System:
    return start(overlay_opacity=0.25)


@pytest.fixture(scope="module")
def client(system: System) -> Client:
    return system.client


@pytest.fixture(scope="module")
def camera(client: Client) -> Any:
    client.listen(Image, "nightlab/confidence")
    return client.connect(client.image(flat(0, 20, 200)))


def picture(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """Blocks of random colours: boxes with all scores, and regions both more and less confident than the frame."""
    blocks = np.random.default_rng(seed).integers(0, 240, (6, 8, 3), np.uint8)
    return cv2.resize(blocks, size_hw[::-1], interpolation=cv2.INTER_NEAREST)


def test_masks_keep_stamp_frame_and_size(client: Client, camera: Any) -> None:
    message = client.image(flat(0, 75, 201))  # no blue: the regions are less confident than the frame
    mask = client.ask(camera, message)
    confidence = client.wait_for("nightlab/confidence", lambda m: m.header == message.header)
    assert mask.header == message.header and mask.header.frame_id == "front_camera"
    assert (mask.encoding, confidence.encoding, mask.step) == ("mono8", "mono8", SIZE_HW[1])
    assert pixels_of(mask).shape == SIZE_HW and (pixels_of(mask) == 75 // 14).all()
    assert (pixels_of(confidence) == 201).all()


def test_the_mask_is_the_pipeline_s(client: Client, camera: Any, tiny_bundle: Path) -> None:
    client.listen(Image, "nightlab/debug/image_level_mask")
    wait_until(
        lambda: client.ask(camera, client.image(picture())) and client.messages["nightlab/debug/image_level_mask"],
        "the image level's mask",
    )
    with open_pipeline(tiny_bundle, engine="onnxruntime") as pipeline:
        expected = pipeline(picture())
    assert expected.refined.any() and (expected.labels != expected.image_labels).any()
    message = client.image(picture())
    assert np.array_equal(pixels_of(client.ask(camera, message)), expected.labels)
    confidence = client.wait_for("nightlab/confidence", lambda m: m.header == message.header)
    assert np.array_equal(pixels_of(confidence), expected.confidence)
    image_level = client.ask(camera, client.image(picture()), "nightlab/debug/image_level_mask")
    assert np.array_equal(pixels_of(image_level), expected.image_labels)


@pytest.mark.parametrize("encoding", ["rgb8", "rgba8"])
def test_other_encodings_give_the_same_mask(client: Client, camera: Any, encoding: str) -> None:
    code = {"rgb8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_BGR2RGBA}[encoding]
    expected = client.ask(camera, client.image(picture()))
    converted = client.ask(camera, client.image(cv2.cvtColor(picture(), code), encoding))
    assert np.array_equal(pixels_of(converted), pixels_of(expected))


def test_a_bad_image_is_counted_and_the_next_one_answered(client: Client, camera: Any, system: System) -> None:
    before = int(client.diagnostics()["failed"])
    bad = client.image(flat(0, 20, 200))
    bad.data = bad.data[:-1]
    reason = f"received {bad.step * bad.height - 1} bytes for 160x120 bgr8"

    def reported() -> bool:
        camera.publish(bad)
        values = client.diagnostics(lambda values: int(values["failed"]) > before)
        return reason in values["message"] and values["level"] == "2"

    wait_until(reported, "a report that names the failure while it is new")
    assert system.process.wait_for_log(f"no mask for this image: {reason}")
    assert (pixels_of(client.ask(camera, client.image(flat(0, 40, 200)))) == 40 // 14).all()
    assert not [m for m in client.messages["nightlab/mask"] if m.header.stamp == bad.header.stamp]


def test_parameters_change_the_next_frame(client: Client, camera: Any, tiny_bundle: Path) -> None:
    changes = {"refine": "never", "merge": "replace", "max_regions": 1, "confidence_threshold": 0.6}
    with open_pipeline(tiny_bundle, engine="onnxruntime") as pipeline:
        for name, value in changes.items():
            default = PipelineSettings.model_fields[name].default
            assert client.set_parameter(name, value).successful
            pipeline.settings = PipelineSettings(**{name: value})
            expected = pipeline(picture()).labels
            assert np.array_equal(pixels_of(client.ask(camera, client.image(picture()))), expected), name
            assert client.set_parameter(name, default).successful
            pipeline.settings = PipelineSettings()
            assert not np.array_equal(pipeline(picture()).labels, expected), name


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("refine", "both", "refine: received 'both'; input should be 'always', 'night' or 'never'"),
        ("max_regions", 11, "max_regions"),
        ("confidence_threshold", -0.5, "confidence_threshold"),
        ("max_regions", "three", "Wrong parameter type"),
        ("threads", 2, "threads takes effect at the next configure: deactivate and cleanup first"),
        ("transport", "compressed", "transport takes effect at the next configure"),
        ("autostart", False, "read-only"),
    ],
)
def test_refused_parameters(client: Client, system: System, name: str, value: Any, reason: str) -> None:
    result = client.set_parameter(name, value)
    assert not result.successful
    assert reason in result.reason


def test_the_overlay_is_made_only_while_someone_listens(client: Client, camera: Any) -> None:
    client.ask(camera, client.image(picture()))
    assert "overlay_ms_p50" not in client.diagnostics()
    subscription = client.listen(Image, "nightlab/overlay")
    wait_until(
        lambda: client.ask(camera, client.image(picture())) and client.messages["nightlab/overlay"], "an overlay"
    )
    message = client.image(picture(1))
    drawn = client.ask(camera, message, "nightlab/overlay")
    mask = client.wait_for("nightlab/mask", lambda m: m.header == message.header)
    assert drawn.header == message.header and drawn.encoding == "bgr8"
    assert np.array_equal(pixels_of(drawn), overlay(picture(1), pixels_of(mask), CITYSCAPES19, 0.25))
    assert float(client.diagnostics()["overlay_ms_p50"]) > 0

    client.set_parameter("overlay", False)
    unwanted = client.image(picture())
    client.ask(camera, unwanted)
    client.set_parameter("overlay", True)
    client.ask(camera, client.image(picture()), "nightlab/overlay")
    assert not [m for m in client.messages["nightlab/overlay"] if m.header.stamp == unwanted.header.stamp]
    client.node.destroy_subscription(subscription)


def test_latency_topics(client: Client, camera: Any) -> None:
    topics = [f"nightlab/debug/{stage}_ms" for stage in ("latency", "total", "image", "hardness", "region", "convert")]
    for topic in topics:
        client.listen(Float64, topic)

    def of_one_frame() -> bool:
        for topic in topics:
            client.messages[topic].clear()
        client.ask(camera, client.image(picture()))
        wait_until(lambda: all(client.messages[topic] for topic in topics), "every latency topic")
        latency, total, image, *_ = (client.messages[topic][-1].data for topic in topics)
        return 0 < image < total < latency < 5000

    wait_until(of_one_frame, "times that are parts of one another")


def test_quality_of_service(client: Client, camera: Any) -> None:
    assert client.diagnostics()["reliability"] == "reliable", "the client publishes so"
    (image,) = client.node.get_subscriptions_info_by_topic("/image")
    assert image.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    for topic in ("mask", "confidence", "overlay"):
        (mask,) = client.node.get_publishers_info_by_topic(f"/nightlab/{topic}")
        assert mask.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        assert mask.qos_profile.durability == DurabilityPolicy.VOLATILE


def test_diagnostics_name_what_runs(client: Client, camera: Any) -> None:
    client.ask(camera, client.image(picture()))
    values = client.diagnostics()
    assert values["name"] == "/nightlab: segmentation"
    assert (values["engine"], values["bundle"], values["refine_reason"]) == ("onnxruntime", "tiny", "always")
    for stage in (
        "frame_age",
        "latency",
        "wait",
        "convert",
        *("resize", "image", "hardness", "crop", "region", "merge"),
    ):
        assert {f"{stage}_ms_p50", f"{stage}_ms_p95", f"{stage}_ms_p99"} <= set(values)
    assert 0 < float(values["light_level"]) < 1


def test_a_missing_vision_msgs_is_logged_once(system: System, camera: Any) -> None:
    try:
        import vision_msgs.msg  # noqa: F401
    except ImportError:
        assert len(system.process.logged("vision_msgs is not installed")) == 1


def test_large_frames_between_two_processes(client: Client, camera: Any) -> None:
    """1024x2048, as in Cityscapes: 6 MB go there and 2 x 2 MB come back, ten times without a loss."""
    for green in range(0, 140, 14):
        message = client.image(flat(0, green, 200, (1024, 2048)))
        mask = client.ask(camera, message)
        assert mask.header == message.header
        assert pixels_of(mask).shape == (1024, 2048) and (pixels_of(mask) == green // 14).all()


def test_of_a_burst_the_newest_is_processed_and_every_frame_is_counted(client: Client, camera: Any) -> None:
    def change(values: dict[str, str], name: str) -> int:
        return int(values[name]) - int(before[name])

    client.diagnostics()  # may have been made before the last test's frame was counted
    before, masks = client.diagnostics(), len(client.messages["nightlab/mask"])
    messages = [client.image(flat(0, 20, 200, (1024, 2048))) for _ in range(30)]
    for message in messages:
        camera.publish(message)

    def last_is_answered() -> bool:
        messages.append(client.image(flat(0, 20, 200)))
        camera.publish(messages[-1])
        with contextlib.suppress(AssertionError):
            wait_until(lambda: client.messages["nightlab/mask"][-1].header == messages[-1].header, "its mask", 1.0)
            return True
        return False

    # The end of the burst may be lost in the transport: only a later frame that arrives shows the gap.
    wait_until(last_is_answered, "the mask of a frame after the burst")
    values = client.diagnostics(lambda v: change(v, "processed") + change(v, "dropped") == len(messages))
    assert change(values, "dropped") > 0 and change(values, "failed") == 0
    stamps = [(m.header.stamp.sec, m.header.stamp.nanosec) for m in client.messages["nightlab/mask"][masks:]]
    # Fewer may come than were published: a reader too slow for a history of one misses the older of two masks.
    assert stamps == sorted(stamps) and 0 < len(stamps) <= change(values, "processed")
