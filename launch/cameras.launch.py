# SPDX-License-Identifier: Apache-2.0
"""Start one node for several cameras, which share the engines; all arguments of nightlab.launch.py are valid.

ros2 launch nightlab_ros cameras.launch.py images:="front:=/front/image_raw rear:=/rear/image_raw"
"""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution, ThisLaunchFileDir
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """Return the launch file of the node, with other defaults."""
    defaults = PathJoinSubstitution([FindPackageShare("nightlab_ros"), "config", "cameras.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("images", description="NAME:=TOPIC of each camera, separated by blanks."),
            DeclareLaunchArgument("params_file", default_value=defaults, description="YAML file of parameters."),
            IncludeLaunchDescription(PythonLaunchDescriptionSource([ThisLaunchFileDir(), "/nightlab.launch.py"])),
        ]
    )
