# SPDX-License-Identifier: Apache-2.0
"""The SROS 2 policy names exactly what the node offers."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from nightlab_ros.security_policy import policy
from nightlab_ros.topics import PUBLICATIONS, SUBSCRIPTIONS


def allowed(text: str, kind: str, action: str) -> list[str]:
    (rule,) = ET.fromstring(text.partition("?>")[2]).findall(f".//{kind}[@{action}='ALLOW']")
    return [str(element.text) for element in rule]


def test_all_topics_are_allowed_and_no_others() -> None:
    text = policy()
    published = set(allowed(text, "topics", "publish"))
    assert published == {t.name for t in PUBLICATIONS} | {"/rosout", "/parameter_events", "~/transition_event", "bond"}
    assert set(allowed(text, "topics", "subscribe")) == {t.name for t in SUBSCRIPTIONS} | {"/parameter_events", "bond"}
    assert "*" not in text


def test_each_camera_has_its_topics() -> None:
    text = policy(cameras=("front", "rear"))
    assert {"~/front/mask", "~/rear/mask", "/diagnostics"} <= set(allowed(text, "topics", "publish"))
    assert "~/mask" not in allowed(text, "topics", "publish")
    assert {"front/image", "rear/image", "/clock"} <= set(allowed(text, "topics", "subscribe"))


def test_the_services_are_those_of_the_running_node() -> None:
    pytest.importorskip("rclpy")
    from ros_harness import node_in_process

    with node_in_process() as node:
        services = node.get_service_names_and_types_by_node("nightlab", "/")
        topics = {name for name, _ in node.get_publisher_names_and_types_by_node("nightlab", "/")}
    reply = {name.removeprefix("~/") for name in allowed(policy(), "services", "reply")}
    assert {name.removeprefix("/nightlab/") for name, _ in services} <= reply
    assert topics <= {name.replace("~/", "/nightlab/") for name in allowed(policy(), "topics", "publish")}
