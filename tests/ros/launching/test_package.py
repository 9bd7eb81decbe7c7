# SPDX-License-Identifier: Apache-2.0
"""What colcon, pip and ros2 launch read: package.xml, the entry points, the launch file and Fast DDS's profile."""

from __future__ import annotations

import ast
import importlib.util
import os
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

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "launch/nightlab.launch.py"
ARGUMENTS = {"image", "images", "namespace", "params_file", "use_sim_time", "activate", "respawn", "log_level"}
ARGUMENTS |= {"engine", "transport", "refine", "max_regions", "deadline_ms"}


#: Import names of what a vehicle does not have, but the tests' environment does.
NOT_IN_A_VEHICLE = (
    "torch", "torchvision", "timm", "lightning", "onnx", "onnxruntime", "onnxscript", "hypothesis", "mcap", "ijson",
    "tensorrt_rtx", "cuda", "dask", "distributed", "importlinter", "playwright", "segmentation_models_pytorch",
)  # fmt: skip


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


@pytest.mark.slow
def test_a_vehicle_collects_the_tests_and_skips_those_that_need_more(tmp_path: Path) -> None:
    """`colcon test` runs pytest where only ROS and requirements/robot.txt are installed."""
    lines = "".join(f"sys.modules[{name!r}] = None\n" for name in NOT_IN_A_VEHICLE)
    (tmp_path / "vehicle_only.py").write_text(f"import sys\n{lines}")
    command = [sys.executable, "-m", "pytest", "-p", "vehicle_only", "-p", "no:cacheprovider", "--collect-only", "-q"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # colcon sets it
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "No module named 'onnx'" in done.stdout or "import of onnx halted" in done.stdout


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
    parameters = table(tree, "PARAMETERS")
    named = {name: text for name, (_, text) in table(tree, "ARGUMENTS").items()}
    assert set(named) | set(parameters) == ARGUMENTS
    assert all(len(text) > 10 for text in (*named.values(), *parameters.values()))
    assert set(parameters) <= {*NodeSettings.model_fields, "use_sim_time"}
    (node,) = keywords(tree, "Node")
    assert (node["package"], node["executable"]) == ("'nightlab_ros'", "'nightlab_node'")


def table(tree: ast.AST, name: str) -> dict[str, Any]:
    """A table of the launch file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("form", ["xml", "yaml"])
def test_other_launch_files_include_the_one_of_python(form: str) -> None:
    text = (ROOT / f"launch/nightlab.launch.{form}").read_text()
    if form == "xml":
        (include,) = ElementTree.fromstring(text.split("?>", 1)[1]).iter("include")
        file = include.attrib["file"]
    else:
        file = yaml.safe_load(text)["launch"][0]["include"]["file"]
    assert file == "$(find-pkg-share nightlab_ros)/launch/nightlab.launch.py"


def launched(*arguments: tuple[str, Any]) -> Any:
    """The node that the launch file starts, and its context."""
    pytest.importorskip("launch_ros")
    from launch.actions import DeclareLaunchArgument

    from launch import LaunchContext

    module = launch_module(LAUNCH)
    context = LaunchContext()
    context.launch_configurations.update(dict(arguments))
    entities = module.generate_launch_description().entities
    assert {e.name for e in entities if isinstance(e, DeclareLaunchArgument)} == ARGUMENTS
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    return module.node(context)[0], context, module


def launch_module(path: Path) -> Any:
    """A launch file as a module. Skips the test where launch_ros is not installed."""
    pytest.importorskip("launch_ros")
    spec = importlib.util.spec_from_file_location("launch_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters_given_to_the_node(*arguments: tuple[str, Any]) -> dict[str, Any]:
    """What the node's command line says of its parameters, as rclpy reads it."""
    rclpy = pytest.importorskip("rclpy")
    node, context, _ = launched(*arguments)
    node._perform_substitutions(context)
    context.extend_locals({"ros_specific_arguments": {"name": "__node:=nightlab", "ns": "__ns:=/"}})
    words = [perform_substitutions(context, word) for word in node.cmd[1:]]
    ros = rclpy.Context()
    rclpy.init(args=["node", *words], context=ros)
    try:
        created = rclpy.create_node("nightlab", context=ros)
        overrides = {name: value.value for name, value in created._parameter_overrides.items()}
        created.destroy_node()
        return overrides
    finally:
        rclpy.shutdown(context=ros)


def perform_substitutions(context: Any, substitutions: Any) -> str:
    """The text of one word of a command line."""
    from launch.utilities import perform_substitutions as perform

    return perform(context, substitutions)


@pytest.mark.parametrize("node", ["/**", "/nightlab"])
def test_a_launch_argument_that_is_given_wins_and_no_default_does(tmp_path: Path, node: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"{node}:\n  ros__parameters: {{engine: onnxruntime, use_sim_time: true, autostart: false}}\n")
    given = (("params_file", str(own)), ("engine", "openvino"), ("deadline_ms", "50"))
    found = parameters_given_to_the_node(*given)
    assert found == {"autostart": False, "use_sim_time": True, "engine": "openvino", "deadline_ms": 50}
    assert parameters_given_to_the_node(*given, ("activate", "true"))["autostart"] is True


def test_autostart_that_is_set_around_the_launch_file_wins_over_the_default() -> None:
    assert parameters_given_to_the_node() == {"autostart": True}
    around = ("global_params", [("autostart", False)])
    assert parameters_given_to_the_node(around) == {"autostart": False}
    assert parameters_given_to_the_node(around, ("activate", "true")) == {"autostart": True}


def test_a_file_for_the_namespace_around_the_launch_file_is_accepted(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("/robot/front/nightlab:\n  ros__parameters: {engine: onnxruntime}\n")
    launched(("params_file", str(own)), ("namespace", "front"), ("ros_namespace", "/robot"))
    with pytest.raises(ValueError, match="expected /front/nightlab, or"):
        launched(("params_file", str(own)), ("namespace", "front"))


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


def test_several_cameras_have_one_node_with_their_names() -> None:
    images = "front:=/front/image_raw rear:=rear_raw"
    assert parameters_given_to_the_node(("images", images)) == {"autostart": True, "cameras": ["front", "rear"]}


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


@pytest.mark.parametrize(
    ("missing", "arguments", "reason"),
    [
        (("nav2_costmap_2d",), {}, "nav2_costmap_2d: not installed"),
        (("semantic_segmentation_layer", "nav2_lifecycle_manager"), {}, "nav2_lifecycle_manager, semantic"),
        ((), {"namespace": "front"}, "namespace: received 'front', but the costmap reads the topics of one node"),
        ((), {"images": "a:=/a"}, "images: received 'a:=/a'"),
        ((), {"costmap_file": "/no/such.yaml"}, "costmap_file: /no/such.yaml: No such file"),
        ((), {"costmap_file": str(ROOT / "pyproject.toml")}, "pyproject.toml"),
    ],
)
def test_the_launch_file_with_a_costmap_starts_nothing_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], arguments: dict[str, str], reason: str
) -> None:
    module = launch_module(ROOT / "launch/nav2_costmap.launch.py")
    installed = {name: "/opt/ros" for name in module.PACKAGES if name not in missing}
    monkeypatch.setattr(module, "get_packages_with_prefixes", lambda: installed)
    given = {"costmap_file": str(ROOT / "config/nav2_costmap.yaml"), "namespace": "", **arguments}
    with pytest.raises((RuntimeError, ValueError, OSError), match=re.escape(reason)):
        module.check(SimpleNamespace(launch_configurations=given))
    if not missing:
        module.check(
            SimpleNamespace(
                launch_configurations=given
                | dict.fromkeys(arguments, "")
                | {"costmap_file": str(ROOT / "config/nav2_costmap.yaml")}
            )
        )


def test_fastdds_profile_holds_large_images() -> None:
    namespace = {"dds": "http://www.eprosima.com"}
    profile = ElementTree.parse(ROOT / "config/fastdds.xml").getroot()
    (shared,) = [t for t in profile.iter(f"{{{namespace['dds']}}}transport_descriptor") if t[1].text == "SHM"]
    image_bytes = 1024 * 2048 * 3
    assert int(shared.findtext("dds:segment_size", "0", namespace)) >= 2 * image_bytes
    assert int(shared.findtext("dds:maxMessageSize", "0", namespace)) >= 2 * image_bytes
    assert "is_default_profile" in profile.find(".//dds:participant", namespace).attrib  # type: ignore[union-attr]
