# SPDX-License-Identifier: Apache-2.0
"""Start, configure and activate the node: ros2 launch nightlab_ros nightlab.launch.py image:=/camera/image_raw"""

from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

from launch import LaunchDescription

# Fast DDS's variable up to Jazzy, and from Kilted on.
FASTDDS_PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def generate_launch_description() -> LaunchDescription:
    """Return the node with its arguments."""
    default_params = PathJoinSubstitution([FindPackageShare("nightlab_ros"), "config", "nightlab.yaml"])
    large_images = PathJoinSubstitution([FindPackageShare("nightlab_ros"), "config", "fastdds.xml"])
    image = LaunchConfiguration("image")
    activate = IfCondition(LaunchConfiguration("activate"))
    node = LifecycleNode(
        package="nightlab_ros",
        executable="nightlab_node",
        name="nightlab",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)},
        ],
        remappings=[("image", image), ("image/compressed", [image, "/compressed"])],
        output="screen",
    )
    configure = EmitEvent(
        event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=Transition.TRANSITION_CONFIGURE),
        condition=activate,
    )
    # Only after configuring: with any start state, a node deactivated by hand would be activated again.
    activate_when_configured = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node,
            start_state="configuring",
            goal_state="inactive",
            entities=[
                EmitEvent(
                    event=ChangeState(
                        lifecycle_node_matcher=matches_action(node), transition_id=Transition.TRANSITION_ACTIVATE
                    )
                )
            ],
        ),
        condition=activate,
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("image", default_value="image", description="Camera topic, sensor_msgs/Image."),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
            DeclareLaunchArgument("params_file", default_value=default_params, description="YAML file of parameters."),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="false",
                description="Use the time of /clock, for example of a bag; overrides params_file.",
            ),
            DeclareLaunchArgument(
                "activate", default_value="true", description="Configure and activate the node at start."
            ),
            # Fast DDS's default transport loses most images of 640x480 or more. A value set by the user is kept.
            *(SetEnvironmentVariable(p, EnvironmentVariable(p, default_value=large_images)) for p in FASTDDS_PROFILES),
            activate_when_configured,
            node,
            configure,
        ]
    )
