# SPDX-License-Identifier: Apache-2.0
"""The camera's subscription against real publishers of one process, and the advice about losses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import ENVIRONMENT, SILENT_DOMAIN
from sensor_msgs.msg import Image

from nightlab_ros.transport import profile
from nightlab_ros.transport.profile import (
    choose_profile,
    loss_advice,
    profile_environment,
    profile_path,
    profile_variable,
)
from nightlab_ros.transport.subscription import MatchedSubscription

pytestmark = pytest.mark.ros
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


class Graph:
    """Nodes of one process, which spins in `until`, and a subscription with what it reported."""

    def __init__(self, *arguments: str) -> None:
        os.environ.update(ENVIRONMENT)
        self.context = Context()
        rclpy.init(args=["--ros-args", *arguments], context=self.context, domain_id=SILENT_DOMAIN)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.node = self.add("nightlab")
        self.received: list[Image] = []
        self.matches: list[tuple[str, tuple[str, ...]]] = []
        self.subscription: Any = None

    def subscribe(self) -> None:
        self.subscription = MatchedSubscription(
            self.node,
            Image,
            "image",
            lambda message, info: self.received.append(message),
            on_lost=lambda number: None,
            on_match=self._on_match,
        )

    def _on_match(self, reliability: str, by_parameter: bool, names: Sequence[str]) -> None:
        self.matches.append((reliability, tuple(names)))
        self.by_parameter = by_parameter

    def add(self, name: str) -> Any:
        node = rclpy.create_node(name, context=self.context, start_parameter_services=False)
        self.executor.add_node(node)
        return node

    def publish_from(self, name: str, reliability: ReliabilityPolicy) -> Any:
        return self.add(name).create_publisher(Image, "image", QoSProfile(depth=1, reliability=reliability))

    def until(self, condition: Callable[[], Any], publisher: Any = None) -> None:
        """Spin, and publish if there is a publisher, until the condition holds."""
        for _ in range(600):
            if condition():
                return
            if publisher is not None:
                publisher.publish(Image())
            self.executor.spin_once(timeout_sec=0.05)
        raise AssertionError(f"the condition never came true; matches: {self.matches}")

    def close(self) -> None:
        if self.subscription is not None:
            self.subscription.close()
        for node in self.executor.get_nodes():
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def graph() -> Iterator[Callable[..., Graph]]:
    graphs: list[Graph] = []

    def make(*arguments: str) -> Graph:
        graphs.append(Graph(*arguments))
        return graphs[-1]

    yield make
    for made in graphs:
        made.close()


def test_the_subscription_follows_its_publishers(graph: Callable[..., Graph]) -> None:
    """A reliable camera, then a best-effort one beside it, then the reliable one alone again."""
    graph = graph()
    graph.subscribe()
    assert graph.matches == [("best effort", ())]
    first = graph.publish_from("front", RELIABLE)
    graph.until(lambda: graph.matches[-1] == ("reliable", ("/front",)))
    graph.until(lambda: graph.received, first)

    second = graph.publish_from("rear", BEST_EFFORT)
    graph.until(lambda: graph.matches[-1] == ("best effort", ("/front", "/rear")))
    for publisher in (first, second):
        graph.received.clear()
        graph.until(lambda: graph.received, publisher)

    rear = next(node for node in graph.executor.get_nodes() if node.get_name() == "rear")
    rear.destroy_publisher(second)
    graph.until(lambda: graph.matches[-1] == ("reliable", ("/front",)))
    graph.received.clear()
    graph.until(lambda: graph.received, first)


def test_a_publisher_that_is_known_decides_at_once(graph: Callable[..., Graph]) -> None:
    graph = graph()
    graph.publish_from("front", RELIABLE)
    graph.until(lambda: graph.node.count_publishers("image"))
    graph.subscribe()
    assert graph.matches == [("reliable", ("/front",))] and not graph.by_parameter
    assert graph.subscription.reliability == "reliable"


def test_a_qos_override_wins(graph: Callable[..., Graph]) -> None:
    prefix = "qos_overrides./camera/image_raw.subscription"
    graph = graph(
        *("-r", "image:=/camera/image_raw", "-p", f"{prefix}.reliability:=best_effort", "-p", f"{prefix}.depth:=7")
    )
    publisher = graph.publish_from("front", RELIABLE)
    graph.until(lambda: graph.node.count_publishers("/camera/image_raw"))
    graph.subscribe()
    graph.until(lambda: graph.received, publisher)
    (info,) = graph.node.get_subscriptions_info_by_topic("/camera/image_raw")
    assert info.qos_profile.reliability == BEST_EFFORT
    assert graph.subscription._subscription.qos_profile.depth == 7
    assert graph.matches[-1] == ("best effort", ("/front",)) and graph.by_parameter


def test_advice_leaves_out_what_is_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(megabytes: int) -> None:
        monkeypatch.setattr(profile.shutil, "disk_usage", lambda path: SimpleNamespace(free=megabytes * 2**20))

    fast_dds, setting = "rmw_fastrtps_cpp", f"{profile_variable()}={profile_path()}"
    free(1000)
    monkeypatch.delenv(profile_variable(), raising=False)
    assert loss_advice("best effort", fast_dds) == (
        "images are lost in the transport, which is best effort: let the camera publish as reliable, or start the "
        f"camera and this node with {setting}"
    )
    assert "best effort: leave out the qos_overrides parameter that says so, or start" in loss_advice(
        "best effort", fast_dds, by_parameter=True
    )
    monkeypatch.setenv(profile_variable(), str(profile_path()))
    advice = loss_advice("reliable", fast_dds)
    assert advice == f"images are lost in the transport, which is reliable: start the camera, too, with {setting}"
    assert choose_profile(3) == (profile_path(), "")
    with monkeypatch.context() as without:
        without.delenv(profile_variable())
        assert profile_environment(3) == {profile_variable(): str(profile_path())}
    free(64)
    path, note = choose_profile(3)
    assert path.name == "fastdds_network.xml" and path.is_file()
    assert note.startswith("/dev/shm has 64 MB free, and 3 processes need 101 MB: images go over UDP")
    free(30)
    advice = loss_advice("reliable", fast_dds)
    assert "reliable: enlarge /dev/shm, which has 30 MB free where each process with the profile takes 34 MB" in advice
    assert advice.endswith(f"; then start the camera, too, with {setting}")
    monkeypatch.setenv(profile_variable(), "/my/own.xml")
    assert profile_environment(3) == {}  # the user's own profile stays
    assert f"compare the profile /my/own.xml, with which this node was started, with {profile_path()}" in loss_advice(
        "reliable", fast_dds
    )
    assert "rmw_cyclonedds_cpp" in loss_advice("reliable", "rmw_cyclonedds_cpp")
    assert profile_path().is_absolute() and profile_path().is_file()


@pytest.mark.parametrize("packages", ["lib/python3.12/site-packages", "local/lib/python3.10/dist-packages"])
def test_the_profile_is_found_where_pip_or_colcon_installed_it(
    tmp_path: Path, packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    monkeypatch.setattr(profile, "__file__", str(tmp_path / packages / "nightlab_ros" / "transport" / "profile.py"))
    with pytest.raises(FileNotFoundError, match="install the package with pip or colcon"):
        profile_path()
    installed = tmp_path / "share" / "nightlab_ros" / "config" / "fastdds.xml"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert profile_path() == installed.resolve()
