# SPDX-License-Identifier: Apache-2.0
"""What colcon, pip and ros2 launch read: package.xml, the entry points, the launch file and Fast DDS's profile."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from nightlab_ros.parameters import NodeSettings

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch/nightlab.launch.py"
ARGUMENTS = {"image", "namespace", "params_file", "use_sim_time", "activate", "respawn", "log_level"}
ARGUMENTS |= {"engine", "transport", "refine", "max_regions", "deadline_ms"}


def keywords(tree: ast.AST, function: str) -> list[dict[str, str]]:
    """The arguments by name, as source code, of every call of a function."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == function]
    return [{k.arg or "**": ast.unparse(k.value) for k in call.keywords} for call in calls]


def test_package_and_setup_agree() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    command = [sys.executable, "setup.py", "--quiet", "--name", "--version", "--license"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert printed[-3:] == [package.findtext(tag) for tag in ("name", "version", "license")]
    assert package.findtext("name") == "nightlab_ros" and (ROOT / "resource/nightlab_ros").is_file()
    assert package.findtext("export/build_type") == "ament_python"


def test_package_names_every_ros_package_that_is_imported() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    named = {e.text for tag in ("depend", "exec_depend") for e in package.iter(tag)}
    sources = [*(ROOT / "nightlab_ros").rglob("*.py"), LAUNCH]
    imported = {m for s in sources for m in re.findall(r"^ *(?:from|import) (\w+)", s.read_text(), re.MULTILINE)}
    ros = {
        m
        for m in imported
        if m.endswith("_msgs") or m in ("rclpy", "ament_index_python", "launch", "launch_ros", "rcl_interfaces")
    }
    assert {"rclpy", "sensor_msgs", "vision_msgs", "launch"} <= ros
    assert ros <= named


def test_entry_points_lead_to_functions() -> None:
    entries = re.findall(r'"([\w-]+) = ([\w.]+):(\w+)"', (ROOT / "setup.py").read_text())
    assert sorted(name for name, *_ in entries) == [
        "nightlab", "nightlab_demo", "nightlab_node", "nightlab_player"
    ]  # fmt: skip
    for _, module, function in entries:
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]


def test_launch_file_describes_its_arguments_and_sets_parameters_that_exist() -> None:
    tree = ast.parse(LAUNCH.read_text())
    named = {d["name"]: d["description"] for d in keywords_with_name(tree)}
    parameters = launch_parameters(tree)
    assert set(named) | set(parameters) == ARGUMENTS
    assert all(len(text) > 10 for text in (*named.values(), *parameters.values()))
    assert set(parameters) <= {*NodeSettings.model_fields, "use_sim_time"}
    (node,) = keywords(tree, "Node")
    assert (node["package"], node["executable"]) == ("'nightlab_ros'", "'nightlab_node'")


def keywords_with_name(tree: ast.AST) -> list[dict[str, str]]:
    """The description of each argument that is declared by its name."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "DeclareLaunchArgument"]
    return [
        {"name": call.args[0].value, **{k.arg or "**": ast.unparse(k.value) for k in call.keywords}}
        for call in calls
        if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    ]


def launch_parameters(tree: ast.AST) -> dict[str, str]:
    """The launch file's table PARAMETERS."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PARAMETERS":
            return ast.literal_eval(node.value)
    raise AssertionError("no PARAMETERS")


@pytest.mark.parametrize("form", ["xml", "yaml"])
def test_other_launch_files_include_the_one_of_python(form: str) -> None:
    text = (ROOT / f"launch/nightlab.launch.{form}").read_text()
    if form == "xml":
        (include,) = ElementTree.fromstring(text.split("?>", 1)[1]).iter("include")
        file = include.attrib["file"]
    else:
        file = yaml.safe_load(text)["launch"][0]["include"]["file"]
    assert file == "$(find-pkg-share nightlab_ros)/launch/nightlab.launch.py"


def launched(*arguments: tuple[str, str]) -> Any:
    """The node that the launch file starts, and its context."""
    pytest.importorskip("launch_ros")
    from launch.actions import DeclareLaunchArgument

    from launch import LaunchContext

    spec = importlib.util.spec_from_file_location("nightlab_launch", LAUNCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = LaunchContext()
    context.launch_configurations.update(dict(arguments))
    entities = module.generate_launch_description().entities
    assert {e.name for e in entities if isinstance(e, DeclareLaunchArgument)} == ARGUMENTS
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    return module.node(context)[0], context, module


def test_a_launch_argument_that_is_given_wins_and_no_default_does(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    engine: onnxruntime\n    use_sim_time: true\n")
    node, context, _ = launched(("params_file", str(own)), ("engine", "openvino"), ("deadline_ms", "50"))
    node._perform_substitutions(context)
    files = [path for path, is_file in node._Node__expanded_parameter_arguments if is_file]
    merged: dict[str, Any] = {}
    for path in files:
        for values in yaml.safe_load(Path(path).read_text()).values():
            merged.update(values["ros__parameters"])
    assert merged == {"autostart": True, "use_sim_time": True, "engine": "openvino", "deadline_ms": 50}


def test_the_calibration_is_taken_beside_the_images() -> None:
    from_topic = {}
    for image in ("/front/image_raw", "image", "/image"):
        node, context, _ = launched(("image", image))
        node._perform_substitutions(context)
        from_topic[image] = dict(node.expanded_remapping_rules)["camera_info"]
    assert list(from_topic.values()) == ["/front/camera_info", "camera_info", "/camera_info"]


def test_the_launch_ends_with_the_node_and_with_a_status_where_it_failed() -> None:
    _, context, module = launched()
    from launch.actions import Shutdown

    assert isinstance(module.ended(SimpleNamespace(returncode=0), context), Shutdown)
    with pytest.raises(RuntimeError, match="ended with status 1"):
        module.ended(SimpleNamespace(returncode=1), context)


def test_the_launch_file_of_several_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("launch_ros")
    from launch import LaunchContext

    spec = importlib.util.spec_from_file_location("cameras_launch", ROOT / "launch/cameras.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = LaunchContext()
    images = "front:=/front/image_raw rear:=rear_raw top:=/top"
    context.launch_configurations.update({"images": images, "namespace": "", "params_file": "cameras.yaml"})
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "Node", lambda **arguments: made.append(arguments))
    module.start_node(context)
    (node,) = made
    assert node["parameters"][1] == {"cameras": ["front", "rear", "top"], "autostart": True}
    assert dict(node["remappings"]) == {
        "front/image": "/front/image_raw",
        "front/image/compressed": "/front/image_raw/compressed",
        "front/camera_info": "/front/camera_info",
        "rear/image": "rear_raw",
        "rear/image/compressed": "rear_raw/compressed",
        "rear/camera_info": "camera_info",
        "top/image": "/top",
        "top/image/compressed": "/top/compressed",
        "top/camera_info": "/camera_info",
    }
    context.launch_configurations["images"] = "/front/image_raw"
    with pytest.raises(ValueError, match="expected NAME:=TOPIC for each camera"):
        module.start_node(context)


def test_the_launch_file_with_a_costmap_starts_both_and_remaps_the_clouds() -> None:
    source = (ROOT / "launch/nav2_costmap.launch.py").read_text()
    tree = ast.parse(source)
    assert [(node["package"], node["executable"]) for node in keywords(tree, "Node")] == [
        ("'nav2_costmap_2d'", "'nav2_costmap_2d'"),
        ("'nav2_lifecycle_manager'", "'lifecycle_manager'"),
    ]
    assert "launch/nightlab.launch.py" in source and "config/nav2_costmap.yaml" in source
    costmap = yaml.safe_load((ROOT / "config/nav2_costmap.yaml").read_text())["costmap"]["costmap"]
    topic = costmap["ros__parameters"]["semantic_layer"]["nightlab"]["pointcloud_topic"]
    (points,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "POINTS")
    assert ast.literal_eval(points) == topic


def test_fastdds_profile_holds_large_images() -> None:
    namespace = {"dds": "http://www.eprosima.com"}
    profile = ElementTree.parse(ROOT / "config/fastdds.xml").getroot()
    (shared,) = [t for t in profile.iter(f"{{{namespace['dds']}}}transport_descriptor") if t[1].text == "SHM"]
    image_bytes = 1024 * 2048 * 3
    assert int(shared.findtext("dds:segment_size", "0", namespace)) >= 2 * image_bytes
    assert int(shared.findtext("dds:maxMessageSize", "0", namespace)) >= 2 * image_bytes
    assert "is_default_profile" in profile.find(".//dds:participant", namespace).attrib  # type: ignore[union-attr]
