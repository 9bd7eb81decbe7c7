# SPDX-License-Identifier: Apache-2.0
"""Start, configure and activate the node: ros2 launch nightlab_ros nightlab.launch.py image:=/camera/image_raw"""

from pathlib import Path
from typing import Any

import yaml
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from launch import LaunchContext, LaunchDescription
from nightlab_ros.launch_arguments import flag, misspelt, named_topics, remappings
from nightlab_ros.params_file import check_params_file
from nightlab_ros.transport.profile import profile_environment

#: Arguments that set a parameter of the node, with its description. An argument that is not given sets nothing.
PARAMETERS = {
    "use_sim_time": "true: use the time of /clock, for example of a bag.",
    "engine": "Library that runs the networks: auto, tensorrt, openvino or onnxruntime.",
    "transport": "raw or compressed images.",
    "refine": "When hard regions are refined: always, night or never.",
    "max_regions": "Regions refined per frame at most; fewer are faster.",
    "deadline_ms": "Time in milliseconds after which no further region is refined; 0: no limit.",
}
#: All other arguments: default and description.
ARGUMENTS = {
    "image": ("image", "Camera topic, with camera_info beside it."),
    "images": ("", "Instead of image, for several cameras: NAME:=TOPIC of each, separated by blanks."),
    "namespace": ("", "Namespace of the node and its topics."),
    "params_file": ("", "YAML file of parameters, such as a copy of config/nightlab.yaml."),
    "activate": (
        "",
        "true: configure and activate the node; false: leave it unconfigured. Overrides the parameter autostart, which "
        "is true here if nothing sets it.",
    ),
    "respawn": ("false", "true: start the node again when it ends; false: the launch ends with it."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
}
RESPAWN_DELAY_S = 1.0


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, and the node that they describe."""
    arguments = ARGUMENTS | {name: ("", f"{text} Overrides params_file.") for name, text in PARAMETERS.items()}
    declared = [DeclareLaunchArgument(n, default_value=d, description=text) for n, (d, text) in arguments.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=node)])


def node(context: LaunchContext) -> list[Node]:
    """Return the node. Raises ValueError for arguments or a params_file that do not fit it."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    for sentence in misspelt(context.launch_configurations, {*ARGUMENTS, *PARAMETERS}):
        get_logger("nightlab.launch").warning(sentence)
    namespace, respawn = given("namespace"), flag("respawn", given("respawn"))
    cameras = named_topics(given("images")) if given("images") else {"": given("image")}
    parameters: list[Any] = []  # later ones win over earlier ones
    if given("params_file"):
        path = Path(given("params_file")).expanduser()
        full_namespace = prefix_namespace(context.launch_configurations.get("ros_namespace"), namespace)
        check_params_file(path, make_namespace_absolute(full_namespace).rstrip("/") + "/nightlab")
        parameters.append(str(path))
    parameters += [{name: yaml.safe_load(given(name))} for name in PARAMETERS if given(name)]
    if given("activate"):
        parameters.append({"autostart": flag("activate", given("activate"))})
    if given("images"):
        parameters.append({"cameras": list(cameras)})
    return [
        Node(
            package="nightlab_ros",
            executable="nightlab_node",
            name="nightlab",
            namespace=namespace,
            parameters=parameters,
            remappings=remappings(cameras),
            # ROS arguments come before all parameters, so that any other autostart wins: SetParameter or params_file.
            ros_arguments=["--log-level", given("log_level"), "-p", "autostart:=true"],
            additional_env=profile_environment(1 + len(cameras)),  # the node and the cameras
            output="screen",
            respawn=respawn,
            respawn_delay=RESPAWN_DELAY_S,
            on_exit=None if respawn else ended,
        )
    ]


def ended(event: Any, context: LaunchContext) -> Shutdown:
    """End the launch with the node. Raises RuntimeError if it failed, which gives the launch a status."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(f"nightlab_node ended with status {event.returncode}; its log above says why")
    return Shutdown(reason="nightlab_node has ended")
