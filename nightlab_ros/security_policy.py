# SPDX-License-Identifier: Apache-2.0
"""Write the SROS 2 policy of the node's enclave, which allows exactly its topics and services. Imports no ROS.

python -m nightlab_ros.security_policy [--namespace /] [--cameras front rear] > nightlab.policy.xml
ros2 security create_permission KEYSTORE /nightlab nightlab.policy.xml
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET

from nightlab_ros.topics import CAPTURE_SERVICE, PUBLICATIONS, SUBSCRIPTIONS, NodeTopic

#: Topics and services that topics.py does not list: those of every ROS 2 node, of a lifecycle node, and of Nav2's bond.
_ROS_PUBLICATIONS = ("/rosout", "/parameter_events", "~/transition_event", "bond")
_ROS_SUBSCRIPTIONS = ("/parameter_events", "bond")
_PARAMETERS = ("get_parameters", "get_parameter_types", "set_parameters", "set_parameters_atomically")
_LIFECYCLE = ("change_state", "get_state", "get_available_states", "get_available_transitions", "get_transition_graph")
_SERVICES = (*_PARAMETERS, "describe_parameters", "list_parameters", "get_type_description", *_LIFECYCLE)


def policy(namespace: str = "/", name: str = "nightlab", cameras: Sequence[str] = ()) -> str:
    """Return the policy as XML, version 0.2.0. `cameras`: names as in the parameter, none for a single camera."""
    root = ET.Element("policy", version="0.2.0")
    enclave = ET.SubElement(ET.SubElement(root, "enclaves"), "enclave", path=f"/{name}")
    profile = ET.SubElement(ET.SubElement(enclave, "profiles"), "profile", ns=namespace, node=name)
    _rule(profile, "topics", "publish", [*_names(PUBLICATIONS, cameras), *_ROS_PUBLICATIONS])
    _rule(profile, "topics", "subscribe", [*_names(SUBSCRIPTIONS, cameras), *_ROS_SUBSCRIPTIONS])
    _rule(profile, "services", "reply", [CAPTURE_SERVICE, *(f"~/{service}" for service in _SERVICES)])
    ET.indent(root)
    return f"<?xml version='1.0' encoding='UTF-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _names(topics: Iterable[NodeTopic], cameras: Sequence[str]) -> list[str]:
    """Return the names of topics, once for each camera; topics that begin with / belong to no camera."""
    names = []
    for topic in topics:
        if topic.name.startswith("/"):
            names.append(topic.name)
        for camera in () if topic.name.startswith("/") else cameras or ("",):
            prefix = f"{camera}/" if camera else ""
            own = topic.name.startswith("~/")
            names.append(f"~/{prefix}{topic.name[2:]}" if own else f"{prefix}{topic.name}")
    return names


def _rule(profile: ET.Element, kind: str, action: str, names: Iterable[str]) -> None:
    rule = ET.SubElement(profile, kind, {action: "ALLOW"})
    for name in names:
        ET.SubElement(rule, kind.removesuffix("s")).text = name


def main() -> None:
    """Print the policy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--namespace", default="/", help="the node's namespace")
    parser.add_argument("--name", default="nightlab", help="the node's name, and that of the enclave")
    parser.add_argument("--cameras", nargs="*", default=[], help="as the parameter `cameras`")
    given = parser.parse_args()
    print(policy(given.namespace, given.name, given.cameras), end="")


if __name__ == "__main__":
    main()
