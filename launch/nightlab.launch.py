# SPDX-License-Identifier: Apache-2.0
"""Start, configure and activate the node: ros2 launch nightlab_ros nightlab.launch.py image:=/camera/image_raw"""

from pathlib import Path
from typing import Any

import yaml
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
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
#: Processes that exchange images: the camera and the node.
NUM_PROCESSES = 2
RESPAWN_DELAY_S = 1.0


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, and the node that they describe."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "image", default_value="image", description="Camera topic, with camera_info beside it."
            ),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument(
                "params_file",
                default_value="",
                description="YAML file of parameters, such as a copy of config/nightlab.yaml.",
            ),
            DeclareLaunchArgument(
                "activate", default_value="true", description="Configure and activate the node at start."
            ),
            DeclareLaunchArgument(
                "respawn",
                default_value="false",
                description="true: start the node again when it ends; false: the launch ends with it.",
            ),
            DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal."),
            *(
                DeclareLaunchArgument(name, default_value="", description=f"{text} Overrides params_file.")
                for name, text in PARAMETERS.items()
            ),
            OpaqueFunction(function=node),
        ]
    )


def node(context: LaunchContext) -> list[Node]:
    """Return the node. Raises ValueError or OSError for a params_file that does not fit it."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    image, namespace, respawn = given("image"), given("namespace").strip("/"), yaml.safe_load(given("respawn"))
    # Later ones win over earlier ones: the file may turn autostart off.
    parameters: list[Any] = [{"autostart": yaml.safe_load(given("activate"))}]
    if given("params_file"):
        path = Path(given("params_file")).expanduser()
        check_params_file(path, "/".join(["", *filter(None, [namespace]), "nightlab"]))
        parameters.append(str(path))
    parameters += [{name: yaml.safe_load(given(name))} for name in PARAMETERS if given(name)]
    return [
        Node(
            package="nightlab_ros",
            executable="nightlab_node",
            name="nightlab",
            namespace=namespace,
            parameters=parameters,
            remappings=[
                ("image", image),
                ("image/compressed", f"{image}/compressed"),
                ("camera_info", image[: image.rfind("/") + 1] + "camera_info"),
            ],
            ros_arguments=["--log-level", given("log_level")],
            additional_env=profile_environment(NUM_PROCESSES),
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
