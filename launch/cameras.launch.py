# SPDX-License-Identifier: Apache-2.0
"""Start one node for several cameras, which share the engines.

ros2 launch nightlab_ros cameras.launch.py images:="front:=/front/image_raw rear:=/rear/image_raw"
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from nightlab_ros.transport.profile import profile_environment


def start_node(context: LaunchContext) -> list[Node]:
    """Return the node, with a camera for each NAME:=TOPIC of the argument `images`."""
    given = LaunchConfiguration("images").perform(context)
    pairs = [word.split(":=") for word in given.split()]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"images: received {given!r}, expected NAME:=TOPIC for each camera, separated by blanks")
    topics = dict(pairs)
    remappings = []
    for name, topic in topics.items():
        remappings += [
            (f"{name}/image", topic),
            (f"{name}/image/compressed", f"{topic}/compressed"),
            (f"{name}/camera_info", topic[: topic.rfind("/") + 1] + "camera_info"),
        ]
    return [
        Node(
            package="nightlab_ros",
            executable="nightlab_node",
            name="nightlab",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), {"cameras": list(topics), "autostart": True}],
            remappings=remappings,
            additional_env=profile_environment(1 + len(topics)),
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the node with its arguments."""
    share = FindPackageShare("nightlab_ros")
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "images",
                description="NAME:=TOPIC of each camera, separated by blanks; camera_info is taken beside it.",
            ),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument(
                "params_file",
                default_value=PathJoinSubstitution([share, "config", "cameras.yaml"]),
                description="YAML file of parameters.",
            ),
            OpaqueFunction(function=start_node),
        ]
    )
