# SPDX-License-Identifier: Apache-2.0
"""`nightlab engine` on real plans of the tiny bundle."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")

from command import Result, nightlab

from nightlab_cli import engine as engine_command
from nightlab_core.runtime.engines.tensorrt import libraries as libraries
from nightlab_core.runtime.engines.tensorrt import plans
from nightlab_core.runtime.engines.tensorrt.cuda import Device
from nightlab_core.runtime.engines.tensorrt.plans import plan_files, read_header, read_plan

ROOT = Path(__file__).parents[2]
SIZE = ("--image-size", "96x64")


def engine(*words: object) -> Result:
    return nightlab("engine", *words)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NIGHTLAB_PLANS", str(tmp_path / "plans"))
    monkeypatch.setattr(engine_command, "find_device", lambda: (None, "cudaErrorNoDevice"))
    return tmp_path / "plans"


@pytest.fixture(scope="module")
def plans_of_tiny_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three plans of the tiny bundle, for any GPU."""
    built_in = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTLAB_PLANS", str(built_in))
        patch.setattr(engine_command, "find_device", lambda: (None, "cudaErrorNoDevice"))
        assert engine("build", "--bundle", tiny_bundle, *SIZE).status == 0
    return built_in


@pytest.fixture
def built(plans_of_tiny_bundle: Path, folder: Path) -> None:
    """The plans of the tiny bundle are in the folder."""
    shutil.copytree(plans_of_tiny_bundle, folder)


def test_plans_are_built_checked_and_removed(tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = ("--bundle", tiny_bundle, *SIZE)
    assert f"0 plans in {folder}" in engine("list").out
    done = engine("verify", *bundle)
    assert done.status == 1 and done.out.count("there is no plan of the") == 3
    command = f"build with: NIGHTLAB_PLANS={folder} nightlab engine build --bundle {tiny_bundle} --image-size 96x64"
    assert command in done.out

    done = engine("build", *bundle, "--capability", "8.6", "--capability", "8.9")
    assert done.status == 0
    assert "bundle tiny, images of 96x64, float16" in done.out and "compute capability 8.6, 8.9" in done.out
    assert all(word in done.out for word in ("image", "hardness", "region", "float32 layers", "1 reduce"))
    assert len(plan_files(folder)) == 3
    done = engine("build", *bundle, "--capability", "8.9")
    assert done.status == 0 and done.out.count("exists") == 3, "the plans for both capabilities serve one of them"

    done = engine("verify", *bundle)
    assert done.status == 1, "a machine without a GPU needs plans for all of them"
    assert "GPU: built for any GPU of compute capability 8.6, 8.9, here it is" in done.out
    monkeypatch.setattr(engine_command, "find_device", lambda: (Device("RTX 4090", "8.9", 0), ""))
    done = engine("verify", *bundle)
    assert done.status == 0 and done.out.count(": whole") == 3
    done = engine("list")
    assert "region (1, 32, 48, 3) to (10, 32, 48, 3), inputs and outputs 0.1 MB, float16" in done.out
    assert done.status == 0 and done.out.count("can be loaded here") == 3

    # One is damaged: verify finds it, and clean removes it alone.
    image = next(path for path in plan_files(folder) if path.name.startswith("image"))
    image.write_bytes(image.read_bytes()[:-1])
    done = engine("verify", *bundle)
    assert done.status == 1 and "it was cut short" in done.out and "nightlab engine clean" in done.out
    done = engine("clean")
    assert done.status == 0 and f"removed {image.name}" in done.out and len(plan_files(folder)) == 2

    # Another GPU, another TensorRT: neither can ever load them.
    monkeypatch.setattr(engine_command, "find_device", lambda: (Device("Orin", "8.7", 0), ""))
    assert "the GPU here is Orin (compute capability 8.7)" in engine("list").out
    monkeypatch.setattr(engine_command, "find_device", lambda: (None, "cudaErrorNoDevice"))
    monkeypatch.setattr(libraries.TensorRtLibrary, "version", "9.9.9")
    assert "installed is 9.9.9" in engine("list").out
    assert "2 plans removed" in engine("clean").out and plan_files(folder) == []


def test_clean_keeps_the_plans_of_a_tensorrt_that_is_not_installed_here(
    folder: Path, built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment may hide JetPack's TensorRT, whose plans took long to build."""
    monkeypatch.setattr(engine_command, "installed_libraries", list)
    assert engine("list").out.count("installed is none") == 3
    assert engine("clean").status == 0 and len(plan_files(folder)) == 3
    assert engine("clean", "--all").status == 0 and plan_files(folder) == []


def test_clean_keeps_plans_that_another_user_s_node_may_load(folder: Path, built: None) -> None:
    path = plan_files(folder)[0]
    path.chmod(0o664)  # treated like a file of another owner, which only root could create
    done = engine("clean")
    assert f"kept: {path}: users other than root" in done.out and len(plan_files(folder)) == 3
    assert engine("clean", "--all").status == 0 and plan_files(folder) == []


def test_a_path_with_square_brackets_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTLAB_PLANS", str(tmp_path / "[bold]" / "plans"))
    assert f"0 plans in {tmp_path}/[bold]/plans" in engine("list").out


def test_clean_removes_good_plans_only_with_all(folder: Path, built: None) -> None:
    assert "0 plans removed" in engine("clean").out
    assert "3 plans removed" in engine("clean", "--all").out


def test_clean_says_that_it_waits_for_a_build_and_can_be_interrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(plans.time, "sleep", sleep)
    with plans.locked(folder):
        done = engine("clean")
    assert done.status == 130 and done.out.count("waiting for another process that builds") == 1
    assert done.err == "nightlab engine: interrupted\n"


def test_the_default_size_is_the_bundle_s_and_both_precisions_live_together(tiny_bundle: Path, folder: Path) -> None:
    assert engine("build", "--bundle", tiny_bundle).status == 0
    assert engine("build", "--bundle", tiny_bundle, "--precision", "float32").status == 0
    keys = [read_header(path).key for path in plan_files(folder)]
    assert len(keys) == 6 and {key.precision for key in keys} == {"float16", "float32"}
    assert {key.shapes["frame"] for key in keys if key.kind == "image"} == {((1, 64, 96, 3),) * 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--bundle", "/nowhere"], "nightlab engine: /nowhere/bundle.yaml: no such file"),
        (["build", "--library", "tensorrt"], "tensorrt cannot be used .*JetPack"),
        (["build", "--capability", "8.7"], r"tensorrt_rtx .* does not know compute capability 8\.7; it knows"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    done = engine(*arguments)
    assert done.status == 1 and re.search(message, done.err), done
    assert "Traceback" not in done.err + done.out and not folder.exists()


@pytest.mark.parametrize("size", ["1280", "0x720", "1280X720", "1280x720x3"])
def test_a_wrong_size_is_refused(size: str) -> None:
    done = engine("build", "--image-size", size)
    assert done.status == 2
    assert f"received '{size}', expected the size of the camera's images, such as 1280x720" in done.err


@pytest.mark.slow
def test_an_interrupt_ends_the_build_and_keeps_finished_plans(folder: Path) -> None:
    command = [sys.executable, "-m", "nightlab_cli", "engine", "build"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not plan_files(folder) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # while the second network is built
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "nightlab engine: interrupted; the plans that were finished are kept\n"
    (path,) = plan_files(folder)
    assert read_plan(path)[0].key.kind == "image"
    assert {p.name for p in folder.iterdir()} == {".lock", path.name}
