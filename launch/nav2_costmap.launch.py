# SPDX-License-Identifier: Apache-2.0
"""Start the node and a Nav2 costmap: ros2 launch nightlab_ros nav2_costmap.launch.py image:=TOPIC points:=TOPIC

Needs the packages nav2_costmap_2d, nav2_lifecycle_manager and semantic_segmentation_layer.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory, get_packages_with_prefixes
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, SetParameter

from launch import LaunchContext, LaunchDescription
from nightlab_ros.params_file import check_params_file

#: Packages of Nav2 that this file starts, and that config/nav2_costmap.yaml names.
PACKAGES = ("nav2_costmap_2d", "nav2_lifecycle_manager", "semantic_segmentation_layer")
#: Topic of the clouds in config/nav2_costmap.yaml.
POINTS = "/camera/points"


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the node, the costmap, and the manager of the costmap's lifecycle."""
    share = Path(get_package_share_directory("nightlab_ros"))
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
            OpaqueFunction(function=check),
            SetParameter("use_sim_time", True, condition=IfCondition(LaunchConfiguration("use_sim_time"))),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / "launch/nightlab.launch.py")),
                # Empty: it sets nothing, so that false does not win over a parameter file.
                launch_arguments={"image": LaunchConfiguration("image"), "use_sim_time": ""}.items(),
            ),
            Node(
                package="nav2_costmap_2d",
                executable="nav2_costmap_2d",
                parameters=[LaunchConfiguration("costmap_file")],
                remappings=[(POINTS, LaunchConfiguration("points"))],
                output="screen",
            ),
            Node(
                package="nav2_lifecycle_manager",
                executable="lifecycle_manager",
                name="lifecycle_manager_costmap",
                parameters=[{"autostart": True, "node_names": ["costmap/costmap"], "bond_timeout": 0.0}],
                output="screen",
            ),
        ]
    )


def check(context: LaunchContext) -> None:
    """Refuse what cannot work before a process is started: launch does not end the ones that run when it fails.

    Raises RuntimeError for missing packages, ValueError or OSError for arguments that do not fit the costmap.
    """
    given = context.launch_configurations
    if missing := [name for name in PACKAGES if name not in get_packages_with_prefixes()]:
        raise RuntimeError(f"{', '.join(missing)}: not installed, or its workspace is not sourced; see docs/nav2.md")
    for name in ("namespace", "images"):
        if given.get(name):
            raise ValueError(
                f"{name}: received {given[name]!r}, but the costmap reads the topics of one node /nightlab: start "
                "nightlab.launch.py and a costmap of your own"
            )
    check_params_file(Path(given["costmap_file"]).expanduser(), "/costmap/costmap", "costmap_file")
