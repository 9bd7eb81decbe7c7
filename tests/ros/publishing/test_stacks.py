# SPDX-License-Identifier: Apache-2.0
"""What other stacks read from the node: Nav2's semantic layer, Autoware's fusion, RViz, Foxglove and recorders."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

import rclpy.qos
from class_sets import BDD18, CAMVID11, CITYSCAPES19
from fake_node import FakeNode, fake_node
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import wait_until
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest

from nightlab_core.classes import load_class_set
from nightlab_core.data.image_files import decode_image
from nightlab_ros import topics
from nightlab_ros.publishing import publishers as publishers_module
from nightlab_ros.publishing.camera_info import CalibrationError, fitted_camera_info
from nightlab_ros.publishing.publishers import qos_profile
from nightlab_ros.publishing.run_length import RUN, autoware_ids, encode_runs

pytestmark = pytest.mark.ros
ROOT = Path(__file__).parents[3]
AUTOWARE = load_class_set("autoware16")
SIZE_HW = (48, 96)


def decoded(data: bytes, height: int, width: int) -> np.ndarray:
    """Decode runs as Autoware does: an id of one byte, a length of a C int in four, row by row.

    Autoware checks no bounds; this decoder fails where Autoware would read or write outside.
    """
    mask, place = np.zeros(height * width, np.uint8), 0
    for offset in range(0, len(data), 5):
        value, length = struct.unpack("<Bi", data[offset : offset + 5])
        assert length > 0 and place + length <= mask.size
        mask[place : place + length] = value
        place += length
    assert place == mask.size
    return mask.reshape(height, width)


@contextmanager
def subscribed(fake: FakeNode, *wanted: tuple[type, str, Any]) -> Iterator[dict[str, Any]]:
    """Subscribe to topics, each with a quality of service, let an image arrive, and yield the messages by topic."""
    received: dict[str, Any] = {}
    context = fake.node.context
    node = rclpy.create_node("stack", context=context, use_global_arguments=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    for message, topic, qos in wanted:
        node.create_subscription(message, topic, partial(received.__setitem__, topic), qos)
    publishers = {publisher.topic_name: publisher for publisher in fake.node.publishers}

    def are_matched() -> bool:
        return all(publishers[topic].get_subscription_count() for _, topic, _ in wanted)

    def have_arrived() -> bool:
        executor.spin_once(timeout_sec=0.01)
        return len(received) == len(wanted)

    try:
        wait_until(are_matched, "the publishers know the subscriptions")
        fake.receive(stamp=7, size_hw=SIZE_HW)
        wait_until(have_arrived, "a message on each topic")
        yield received
    finally:
        executor.shutdown()
        node.destroy_node()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (48, 64)])
def test_runs_decode_to_the_mask(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for mask in (rng.integers(0, 16, shape), rng.integers(0, 2, shape) * 15, np.full(shape, 9)):
        ids = mask.astype(np.uint8)
        runs = encode_runs(ids)
        np.testing.assert_array_equal(decoded(runs.tobytes(), *shape), ids)
        assert runs["length"].sum() == ids.size
        assert (runs["id"][1:] != runs["id"][:-1]).all(), "equal neighbours belong to one run"


def test_a_run_is_one_byte_and_a_little_endian_int() -> None:
    mask = np.zeros((2, 200), np.uint8)
    mask[0, :3], mask[1, 199] = 9, 15
    assert RUN.itemsize == 5
    assert encode_runs(mask).tobytes() == bytes([9, 3, 0, 0, 0]) + bytes([0, 140, 1, 0, 0]) + bytes([15, 1, 0, 0, 0])


def test_classes_become_those_of_autoware_and_people_never_become_what_it_removes() -> None:
    # As in the fusion's parameters filter_semantic_label_target, in the order of its ids.
    assert AUTOWARE.names == (
        "unknown", "building", "wall", "obstacle", "traffic light", "traffic sign", "person", "vehicle", "bike", "road",
        "sidewalk", "road paint", "curbstone", "crosswalk", "vegetation", "sky",
    )  # fmt: skip
    table, unmapped = autoware_ids(CITYSCAPES19, AUTOWARE)
    named = {name: AUTOWARE.names[table[i]] for i, name in enumerate(CITYSCAPES19.names)}
    assert unmapped == [] and named == {
        "road": "road", "sidewalk": "sidewalk", "building": "building", "wall": "wall", "fence": "obstacle",
        "pole": "obstacle", "traffic light": "traffic light", "traffic sign": "traffic sign",
        "vegetation": "vegetation", "terrain": "vegetation", "sky": "sky", "person": "person", "rider": "person",
        "car": "vehicle", "truck": "vehicle", "bus": "vehicle", "train": "vehicle", "motorcycle": "bike",
        "bicycle": "bike",
    }  # fmt: skip
    assert set(table[19:].tolist()) == {0}, "unlabelled is unknown"
    for classes in (BDD18, CAMVID11):
        assert autoware_ids(classes, AUTOWARE)[1] == []
    with pytest.raises(ValueError, match=r"received the class set cityscapes19, .*; expected those of autoware16"):
        autoware_ids(CITYSCAPES19, CITYSCAPES19)


def test_a_class_that_autoware_lacks_is_reported(tmp_path: Path) -> None:
    own = tmp_path / "farm.yaml"
    own.write_text("classes: {road: [1, 2, 3], tractor: [4, 5, 6]}\n")
    table, unmapped = autoware_ids(load_class_set(own), AUTOWARE)
    assert (unmapped, table[:2].tolist()) == (["tractor"], [9, 0])


def test_autoware_receives_runs_of_its_own_classes(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    best_effort = rclpy.qos.QoSProfile(depth=1, reliability=rclpy.qos.ReliabilityPolicy.BEST_EFFORT)
    wanted = (Image, "/nightlab/autoware/mask", best_effort), (Image, "/nightlab/mask", best_effort)
    with fake_node(monkeypatch, tiny_bundle, autoware_classes="autoware16") as fake:
        fake.start(record=False)
        with subscribed(fake, *wanted) as received:
            runs, mask = (received[topic] for _, topic, _ in wanted)
            assert (runs.header, runs.height, runs.width, runs.encoding) == (mask.header, *SIZE_HW, "rle8")
            own = np.frombuffer(mask.data, np.uint8).reshape(SIZE_HW)
            names = [AUTOWARE.names[i] for i in np.unique(decoded(bytes(runs.data), *SIZE_HW))]
            table = autoware_ids(fake.node._bundle.class_set, AUTOWARE)[0]
            assert set(names) == {AUTOWARE.names[table[i]] for i in np.unique(own)} and len(names) > 1


def test_without_the_parameter_there_is_no_topic_for_autoware(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    with fake_node(monkeypatch, tiny_bundle) as fake:
        fake.start()
        assert not any("autoware" in publisher.topic_name for publisher in fake.node.publishers)


def test_a_class_set_of_other_ids_is_refused_at_configure(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, autoware_classes="cityscapes19") as fake:
        assert fake.node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert "expected those of autoware16 in their order" in fake.report().message


@pytest.mark.parametrize("output_size", ["input", "network"])
def test_maps_and_calibration_have_the_size_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, output_size: str
) -> None:
    names = ("mask", "confidence", "debug/image_level_mask")
    wanted = [(Image, f"/nightlab/{name}", 1) for name in names]
    wanted += [(CameraInfo, "/nightlab/camera_info", 1), (CompressedImage, "/nightlab/mask/compressed", 1)]  # type: ignore[list-item]
    with fake_node(monkeypatch, tiny_bundle, output_size=output_size) as fake:
        fake.start(record=False)
        network_hw = fake.node._bundle.manifest.engines.image.network_hw(SIZE_HW)
        assert network_hw != SIZE_HW
        expected = SIZE_HW if output_size == "input" else network_hw
        fake.camera()._on_info(calibration(*SIZE_HW))
        with subscribed(fake, *wanted) as received:
            mask, confidence, image_level, info, png = (received[topic] for _, topic, _ in wanted)
            for message in (mask, confidence, image_level, info):
                assert (message.height, message.width, message.header) == (*expected, mask.header)
            assert mask.header.stamp.sec == 7
            assert png.header == mask.header and png.format == "mono8; png compressed "
            pixels = np.frombuffer(mask.data, np.uint8).reshape(expected)
            np.testing.assert_array_equal(decode_image(bytes(png.data), flags=-1), pixels)
            assert info.k[0] == pytest.approx(100.0 * expected[1] / SIZE_HW[1])


def calibration(height: int, width: int, **fields: Any) -> CameraInfo:
    k = [100.0, 0.0, 47.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    p = [100.0, 0.0, 47.5, -10.0, 0.0, 50.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(height=height, width=width, k=k, p=p, d=[0.1, 0.2, 0.0, 0.0, 0.0], **fields)


def test_a_scaled_calibration_projects_a_point_to_the_same_place_of_the_image() -> None:
    info = calibration(48, 96)
    fitted = fitted_camera_info(info, (48, 96), (12, 32))
    point = np.array([0.3, -0.2, 2.0, 1.0])
    for given, scaled in ((info, fitted), (fitted, info)):
        assert given is not scaled
    original, resized = (m.p.reshape(3, 4) @ point for m in (info, fitted))
    (u, v), (x, y) = original[:2] / original[2], resized[:2] / resized[2]
    # The share of the image's width and height, measured from its edge, is the same.
    assert ((u + 0.5) / 96, (v + 0.5) / 48) == pytest.approx(((x + 0.5) / 32, (y + 0.5) / 12))
    assert fitted.k.tolist() == pytest.approx([*fitted.p[:3], *fitted.p[4:7], *fitted.p[8:11]])
    assert (fitted.d, info.p[0], info.width) == (info.d, 100.0, 96)


def test_a_calibration_of_other_images_is_refused() -> None:
    with pytest.raises(CalibrationError, match="received a calibration for 96x48, but images of 64x32"):
        fitted_camera_info(calibration(48, 96), (32, 64), (32, 64))
    part = calibration(96, 192, binning_x=2, binning_y=2)
    assert fitted_camera_info(part, (48, 96), (48, 96)) == part
    window = calibration(96, 192, roi=RegionOfInterest(height=48, width=96))
    assert fitted_camera_info(window, (48, 96), (48, 96)) == window
    with pytest.raises(CalibrationError, match=r"a roi or binning, of 96x48 pixels; .* set output_size to input"):
        fitted_camera_info(part, (48, 96), (24, 48))


def test_nothing_is_made_for_topics_without_a_subscription(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    made: list[str] = []
    for name in (
        "image_message", "png_message", "jpeg_message", "runs_message", "detections", "overlay", "fitted_camera_info"
    ):  # fmt: skip
        monkeypatch.setattr(publishers_module, name, lambda *_, name=name, **__: made.append(name))
    with fake_node(monkeypatch, tiny_bundle, autoware_classes="autoware16", output_size="network") as fake:
        fake.start(record=False)
        fake.camera()._on_info(calibration(*SIZE_HW))
        fake.receive(size_hw=SIZE_HW)
        fake.wait_for_counts(processed=1)
    assert made == []


def fits(topic: topics.NodeTopic, wanted: rclpy.qos.QoSProfile) -> bool:
    """True if a subscription with this quality of service receives the topic."""
    return rclpy.qos.qos_check_compatible(qos_profile(topic), wanted)[0] != rclpy.qos.QoSCompatibility.ERROR


def test_each_publisher_fits_a_subscription_of_sensor_data_and_a_reliable_one() -> None:
    sensor = rclpy.qos.QoSProfile(depth=50, reliability=rclpy.qos.ReliabilityPolicy.BEST_EFFORT)
    reliable = rclpy.qos.QoSProfile(depth=10, reliability=rclpy.qos.ReliabilityPolicy.RELIABLE)
    for topic in topics.PUBLICATIONS:
        for wanted in (sensor, reliable):
            assert fits(topic, wanted), topic.name


def nav2_layer() -> dict[str, Any]:
    """The parameters of the layer in config/nav2_costmap.yaml."""
    costmap = yaml.safe_load((ROOT / "config/nav2_costmap.yaml").read_text())["costmap"]["costmap"]["ros__parameters"]
    assert "semantic_layer" in costmap["plugins"]
    return costmap["semantic_layer"]


def test_nav2s_layer_has_a_cost_for_each_class_once() -> None:
    camera = nav2_layer()["nightlab"]
    classes = [name for kind in camera["class_types"] for name in camera[kind]["classes"]]
    assert sorted(classes) == sorted(CITYSCAPES19.names)
    for kind in camera["class_types"]:
        assert 0 <= camera[kind]["base_cost"] <= camera[kind]["max_cost"] <= 254


#: Types of the parameters that the layer declares, on its branches humble, jazzy and main; ROS refuses other types.
LAYER = {
    "plugin": str, "enabled": bool, "combination_method": int, "sensor_data_depth": int,
    "use_approximate_time_sync": bool, "observation_sources": str,
}  # fmt: skip
SOURCE = {
    "segmentation_topic": str, "confidence_topic": str, "labels_topic": str, "pointcloud_topic": str,
    "observation_persistence": float, "expected_update_rate": float, "max_obstacle_distance": float,
    "min_obstacle_distance": float, "tile_map_decay_time": float, "visualize_tile_map": bool,
    "use_cost_selection": bool, "class_types": list,
}  # fmt: skip
CLASS_TYPE = {
    "classes": list, "base_cost": int, "max_cost": int, "mark_confidence": int, "samples_to_max_cost": int,
    "dominant_priority": bool,
}  # fmt: skip


def test_nav2s_layer_declares_each_parameter_with_its_type() -> None:
    layer = nav2_layer()
    camera = layer.pop(layer["observation_sources"])
    kinds = [camera.pop(kind) for kind in camera["class_types"]]
    for given, declared in ((layer, LAYER), (camera, SOURCE), *((kind, CLASS_TYPE) for kind in kinds)):
        assert {name: type(value) for name, value in given.items()} == declared


def test_nav2s_layer_subscribes_to_topics_of_the_node_that_fit_it() -> None:
    layer, published = nav2_layer(), {topic.name.replace("~", "/nightlab"): topic for topic in topics.PUBLICATIONS}
    camera = layer["nightlab"]
    mask, confidence = published[camera["segmentation_topic"]], published[camera["confidence_topic"]]
    assert mask.message_type == confidence.message_type == "sensor_msgs/msg/Image"
    sensor = rclpy.qos.QoSProfile(depth=layer["sensor_data_depth"], reliability=rclpy.qos.ReliabilityPolicy.BEST_EFFORT)
    latched = rclpy.qos.QoSProfile(depth=5, durability=rclpy.qos.DurabilityPolicy.TRANSIENT_LOCAL)
    labels = published[camera["labels_topic"]]
    assert labels.message_type == "vision_msgs/msg/LabelInfo"
    for topic, wanted in ((mask, sensor), (confidence, sensor), (labels, latched)):
        assert fits(topic, wanted)
    assert not fits(mask, latched), "the check tells profiles apart"


PUBLISHED = {topic.name.replace("~", "/nightlab"): topic for topic in topics.PUBLICATIONS}


def test_rviz_shows_images_of_the_node_that_its_displays_receive() -> None:
    displays = yaml.safe_load((ROOT / "config/nightlab.rviz").read_text())["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"]: display for display in displays}
    assert list(shown) == ["/nightlab/overlay", "/nightlab/mask", "/nightlab/confidence"]
    for name, display in shown.items():
        assert (display["Class"], display["Enabled"]) == ("rviz_default_plugins/Image", True)
        assert PUBLISHED[name].message_type == "sensor_msgs/msg/Image"
        policies = {key: value for key, value in display["Topic"].items() if key.endswith("Policy")}
        assert policies == {
            "Durability Policy": "Volatile", "History Policy": "Keep Last", "Reliability Policy": "Best Effort"
        }  # fmt: skip


def foxglove_panels(layout: Any) -> list[str]:
    """The ids of the panels in a layout's tree."""
    if isinstance(layout, str):
        return [layout]
    return [*foxglove_panels(layout["first"]), *foxglove_panels(layout["second"])]


def test_foxglove_shows_topics_of_the_node_in_panels_of_their_types() -> None:
    layout = json.loads((ROOT / "config/nightlab.foxglove.json").read_text())
    panels = layout["configById"]
    assert sorted(foxglove_panels(layout["layout"])) == sorted(panels)
    images = [panel["imageMode"]["imageTopic"] for name, panel in panels.items() if name.startswith("Image!")]
    assert images == ["/nightlab/overlay/compressed", "/nightlab/mask", "/nightlab/confidence"]
    for name in images:
        kind = "CompressedImage" if name.endswith("/compressed") else "Image"
        assert PUBLISHED[name].message_type == f"sensor_msgs/msg/{kind}"
    for path in panels["Plot!milliseconds"]["paths"]:
        topic, _, field = path["value"].partition(".")
        assert (PUBLISHED[topic].message_type, field) == ("std_msgs/msg/Float64", "data")
    assert PUBLISHED[panels["DiagnosticSummary!status"]["topicToRender"]] is topics.DIAGNOSTICS


@pytest.mark.parametrize("file", ["nav2_costmap.yaml", "autoware.yaml", "nightlab.rviz", "nightlab.foxglove.json"])
def test_the_files_are_installed(file: str) -> None:
    globs = re.findall(r'glob\("(config/[^"]+)"\)', (ROOT / "setup.py").read_text())
    assert any(path.name == file for pattern in globs for path in ROOT.glob(pattern))
