# SPDX-License-Identifier: Apache-2.0
"""What the design promises about imports and dependencies."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("nightlab_core", "nightlab_replay", "nightlab_ros", "nightlab_cli", "training")
#: Packages of the vehicle that an installed ROS lacks, or has in a version of its own.
NOT_OF_ROS = ("pydantic", "openvino", "onnxruntime", "rosbags", "simplejpeg", "typer", "rich", "numpy", "cv2")
TORCH = ("torch", "torchvision", "timm", "lightning", "onnx")


def modules(*folders: str) -> list[str]:
    files = [f for folder in folders for f in sorted((ROOT / folder).rglob("*.py"))]
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


#: Where engines are built, not where they run: what rewrites a bundle's graphs for TensorRT needs onnx.
BUILDING = ("nightlab_core.runtime.engines.tensorrt.graphs", "nightlab_core.runtime.engines.tensorrt.half")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    done = run_python(code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kept, 0 broken" in done.stdout, done.stdout


def test_the_contract_without_torch_lists_every_module_that_runs_in_the_vehicle() -> None:
    tomllib = pytest.importorskip("tomllib")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["name"] == "Nothing that runs in the vehicle imports torch")
    top_level = {".".join(name.split(".")[:2]) for name in modules("nightlab_core")} - {"nightlab_core"}
    vehicle = top_level - {"nightlab_core.models", "nightlab_core.export"}
    assert {"nightlab_core.runtime", "nightlab_core.labels"} < vehicle
    assert set(contract["source_modules"]) == vehicle | {"nightlab_replay", "nightlab_ros", "nightlab_cli"}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(modules("nightlab_core/runtime", "nightlab_core/data", "nightlab_core/benchmark"), id="core"),
        pytest.param(modules("nightlab_ros"), id="ros", marks=pytest.mark.ros),
    ],
)
def test_what_runs_in_the_vehicle_imports_no_torch(names: list[str]) -> None:
    if names[0].startswith("nightlab_ros"):
        pytest.importorskip("rclpy")
    assert len(names) > 5
    names = [name for name in names if name not in BUILDING]
    imports = f"import importlib, sys\nfor n in {names}: importlib.import_module(n)\n"
    done = run_python(imports + f"print(sorted(set({TORCH}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_launch_files_run_with_the_packages_that_every_ros_brings() -> None:
    """`ros2 launch` is run by the system's Python, which does not see the environment of the node."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "launch").glob("*.py"))]
    names = {
        name for source in sources for name in re.findall(r"^(?:from|import) (nightlab[\w.]+)", source, re.MULTILINE)
    }
    assert "nightlab_ros.params_file" in names
    imports = f"import importlib, sys\nfor n in {sorted(names)}: importlib.import_module(n)\n"
    done = run_python(imports + f"print(sorted(set({NOT_OF_ROS}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("ros", ["kilted", "jazzy"])
def test_requirements_of_the_vehicle_bring_no_torch(ros: str) -> None:
    """Walk what the installed packages themselves require; those not installed here are known by their names alone."""
    waiting = [*requirements("vehicle.txt"), *requirements(f"ros-{ros}.txt")]
    assert "openvino" in waiting and f"ros-{ros}-rclpy" in waiting
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [normalized(r) for r in required if "extra ==" not in r]
    assert "numpy" in seen
    assert not seen & set(TORCH)


def requirements(file: str) -> list[str]:
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    included = [name for line in lines if line.startswith("-r ") for name in requirements(line[3:])]
    return included + [normalized(line) for line in lines if line and not line.startswith(("#", "-"))]


def normalized(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def test_every_source_file_names_its_licence() -> None:
    files = [f for p in (*PACKAGES, "tests", "launch") for f in (ROOT / p).rglob("*.py")]
    assert len(files) > 20
    missing = [
        f.name for f in files if not f.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0")
    ]
    assert missing == []
