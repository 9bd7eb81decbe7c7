# SPDX-License-Identifier: Apache-2.0
"""Start the node and a Nav2 costmap: ros2 launch nightlab_ros nav2_costmap.launch.py image:=TOPIC points:=TOPIC

Needs the packages nav2_costmap_2d, nav2_lifecycle_manager and semantic_segmentation_layer.
"""

from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

#: Topic of the clouds in config/nav2_costmap.yaml.
POINTS = "/camera/points"


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the node, the costmap, and the manager of the costmap's lifecycle."""
    share = Path(get_package_share_directory("nightlab_ros"))
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    own: list[Any] = [{"use_sim_time": sim_time}]
    return LaunchDescription(
        [
            DeclareLaunchArgument("image", default_value="image", description="Camera topic, sensor_msgs/Image."),
            DeclareLaunchArgument(
                "points",
                default_value=POINTS,
                description="Clouds of a point per pixel, sensor_msgs/PointCloud2.",
            ),
            DeclareLaunchArgument(
                "costmap_file",
                default_value=str(share / "config/nav2_costmap.yaml"),
                description="YAML file of the costmap's parameters, such as a copy of config/nav2_costmap.yaml.",
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", description="true: use the time of /clock, for example of a bag."
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / "launch/nightlab.launch.py")),
                launch_arguments={name: LaunchConfiguration(name) for name in ("image", "use_sim_time")}.items(),
            ),
            Node(
                package="nav2_costmap_2d",
                executable="nav2_costmap_2d",
                parameters=[LaunchConfiguration("costmap_file"), *own],
                remappings=[(POINTS, LaunchConfiguration("points"))],
                output="screen",
            ),
            Node(
                package="nav2_lifecycle_manager",
                executable="lifecycle_manager",
                name="lifecycle_manager_costmap",
                parameters=[{"autostart": True, "node_names": ["costmap/costmap"], "bond_timeout": 0.0}, *own],
                output="screen",
            ),
        ]
    )
