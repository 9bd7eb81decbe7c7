# SPDX-License-Identifier: Apache-2.0
"""What colcon, pip and ros2 launch read: package.xml, the entry points, the launch file and Fast DDS's profile."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch/nightlab.launch.py"
ARGUMENTS = {"image", "namespace", "params_file", "use_sim_time", "activate"}


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


def test_launch_file_has_arguments_and_no_logic() -> None:
    tree = ast.parse(LAUNCH.read_text())
    described = keywords(tree, "DeclareLaunchArgument")
    assert len(described) == len(ARGUMENTS) and all(len(d["description"]) > 10 for d in described)
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.If, ast.IfExp, ast.For, ast.While, ast.Try))]
    (node,) = keywords(tree, "LifecycleNode")
    assert (node["package"], node["executable"]) == ("'nightlab_ros'", "'nightlab_node'")
    (transition,) = keywords(tree, "OnStateTransition")  # from configuring only: a manual deactivation is respected
    assert (transition["start_state"], transition["goal_state"]) == ("'configuring'", "'inactive'")


def test_launch_file_where_launch_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("launch_ros")
    from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable

    from launch import LaunchContext

    spec = importlib.util.spec_from_file_location("nightlab_launch", LAUNCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entities = module.generate_launch_description().entities
    assert {e.name for e in entities if isinstance(e, DeclareLaunchArgument)} == ARGUMENTS
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/my/own.xml")
    context = LaunchContext()
    (kept,) = [
        "".join(part.perform(context) for part in e.value)
        for e in entities
        if isinstance(e, SetEnvironmentVariable) and e.name[0].perform(context) == "FASTDDS_DEFAULT_PROFILES_FILE"
    ]
    assert kept == "/my/own.xml"


def test_fastdds_profile_holds_large_images() -> None:
    namespace = {"dds": "http://www.eprosima.com"}
    profile = ElementTree.parse(ROOT / "config/fastdds.xml").getroot()
    (shared,) = [t for t in profile.iter(f"{{{namespace['dds']}}}transport_descriptor") if t[1].text == "SHM"]
    image_bytes = 1024 * 2048 * 3
    assert int(shared.findtext("dds:segment_size", "0", namespace)) >= 2 * image_bytes
    assert int(shared.findtext("dds:maxMessageSize", "0", namespace)) >= 2 * image_bytes
    assert "is_default_profile" in profile.find(".//dds:participant", namespace).attrib  # type: ignore[union-attr]
