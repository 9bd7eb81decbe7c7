# SPDX-License-Identifier: Apache-2.0
"""The command nightlab-engine, on real plans of the tiny bundle."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")

from nightlab_cli import engine as build_engines
from nightlab_cli.engine import main
from nightlab_core.runtime.engines.tensorrt import libraries as flavours
from nightlab_core.runtime.engines.tensorrt import plans
from nightlab_core.runtime.engines.tensorrt.cuda import Device
from nightlab_core.runtime.engines.tensorrt.plans import plan_files, read_header, read_plan

ROOT = Path(__file__).parents[2]
SIZE = ("--image-size", "96x64")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NIGHTLAB_PLANS", str(tmp_path / "plans"))
    monkeypatch.setattr(build_engines, "find_device", lambda: (None, "cudaErrorNoDevice"))
    return tmp_path / "plans"


def test_a_life_of_plans(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = str(tiny_bundle)
    assert main(["list"]) == 0
    assert f"0 plans in {folder}" in capsys.readouterr().out
    assert main(["verify", bundle, *SIZE]) == 1
    output = capsys.readouterr().out
    assert output.count("there is no plan of the") == 3
    assert f"build with: NIGHTLAB_PLANS={folder} nightlab-engine build {bundle} --image-size 96x64" in output

    assert main(["build", bundle, *SIZE, "--capability", "8.6", "--capability", "8.9"]) == 0
    output = capsys.readouterr().out
    assert "bundle tiny, images of 96x64, float16" in output and "compute capability 8.6, 8.9" in output
    assert all(word in output for word in ("image", "hardness", "region", "float32 layers", "1 reduce"))
    assert len(plan_files(folder)) == 3
    assert main(["build", bundle, *SIZE, "--capability", "8.9"]) == 0  # those serve it
    assert capsys.readouterr().out.count("was there already") == 3

    assert main(["verify", bundle, *SIZE]) == 1  # not for all GPUs, which is what a machine without one asks for
    assert "GPU: built for any GPU of compute capability 8.6, 8.9, here it is" in capsys.readouterr().out
    monkeypatch.setattr(build_engines, "find_device", lambda: (Device("RTX 4090", "8.9", 0), ""))
    assert main(["verify", bundle, *SIZE]) == 0
    assert capsys.readouterr().out.count(": whole") == 3
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert (
        "region (1, 32, 48, 3) to (10, 32, 48, 3), inputs and outputs 0.1 MB, float16" in output
        and output.count("can be loaded here") == 3
    )

    # One is damaged: verify finds it, and clean removes it alone.
    image = next(path for path in plan_files(folder) if path.name.startswith("image"))
    image.write_bytes(image.read_bytes()[:-1])
    assert main(["verify", bundle, *SIZE]) == 1
    output = capsys.readouterr().out
    assert "it was cut short" in output and "nightlab-engine clean" in output
    assert main(["clean"]) == 0
    assert f"removed {image.name}" in capsys.readouterr().out and len(plan_files(folder)) == 2

    # Another GPU, another TensorRT: neither can ever load them.
    monkeypatch.setattr(build_engines, "find_device", lambda: (Device("Orin", "8.7", 0), ""))
    assert main(["list"]) == 0
    assert "the GPU here is Orin (compute capability 8.7)" in capsys.readouterr().out
    monkeypatch.setattr(build_engines, "find_device", lambda: (None, "cudaErrorNoDevice"))
    monkeypatch.setattr(flavours.Flavour, "version", "9.9.9")
    assert main(["list"]) == 0
    assert "installed is 9.9.9" in capsys.readouterr().out
    assert main(["clean"]) == 0
    assert "2 plans removed" in capsys.readouterr().out and plan_files(folder) == []


def test_clean_keeps_the_plans_of_a_tensorrt_that_is_not_seen_from_here(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment may hide JetPack's, whose plans took long to build."""
    main(["build", str(tiny_bundle), *SIZE])
    monkeypatch.setattr(build_engines, "installed_flavours", list)
    capsys.readouterr()
    assert main(["list"]) == 0
    assert capsys.readouterr().out.count("installed is none") == 3
    assert main(["clean"]) == 0
    assert len(plan_files(folder)) == 3
    assert main(["clean", "--all"]) == 0
    assert plan_files(folder) == []


def test_clean_keeps_what_another_user_s_node_may_load(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["build", str(tiny_bundle), *SIZE])
    path = plan_files(folder)[0]
    path.chmod(0o664)  # to be told from a damaged one, as is another owner, whom only root could make
    assert main(["clean"]) == 0
    assert f"kept: {path}: users other than root" in capsys.readouterr().out and len(plan_files(folder)) == 3
    assert main(["clean", "--all"]) == 0
    assert plan_files(folder) == []


def test_a_path_with_square_brackets_is_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTLAB_PLANS", str(tmp_path / "[bold]" / "plans"))
    assert main(["list"]) == 0
    assert f"0 plans in {tmp_path}/[bold]/plans" in capsys.readouterr().out


def test_clean_all(tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["build", str(tiny_bundle), *SIZE])
    assert main(["clean"]) == 0
    assert "0 plans removed" in capsys.readouterr().out
    assert main(["clean", "--all"]) == 0
    assert "3 plans removed" in capsys.readouterr().out


def test_clean_says_that_it_waits_for_a_build_and_can_be_interrupted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(plans.time, "sleep", sleep)
    with plans.locked(folder):
        assert main(["clean"]) == 1
    output = capsys.readouterr()
    assert output.out.count("waiting for another process that builds") == 1
    assert output.err == "nightlab-engine clean: interrupted\n"


def test_the_default_size_is_the_bundle_s_and_both_precisions_live_together(tiny_bundle: Path, folder: Path) -> None:
    assert main(["build", str(tiny_bundle)]) == 0
    assert main(["build", str(tiny_bundle), "--precision", "float32"]) == 0
    keys = [read_header(path).key for path in plan_files(folder)]
    assert len(keys) == 6 and {key.precision for key in keys} == {"float16", "float32"}
    assert {key.shapes["frame"] for key in keys if key.kind == "image"} == {((1, 64, 96, 3),) * 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "/nowhere"], "nightlab-engine build: /nowhere/bundle.yaml: no such file"),
        (["build", "--flavour", "tensorrt"], "tensorrt cannot be used .*JetPack"),
        (["build", "--capability", "8.7"], r"tensorrt_rtx .* does not know compute capability 8\.7; it knows"),
    ],
)
def test_errors_are_told_without_a_traceback(
    arguments: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert re.search(message, output.err), output
    assert "Traceback" not in output.err + output.out and not folder.exists()


@pytest.mark.parametrize("size", ["1280", "0x720", "1280X720", "1280x720x3"])
def test_a_size_that_is_none_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--image-size", size])
    assert f"received '{size}', expected the camera's size, such as 1280x720" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupt_ends_the_build_and_keeps_what_was_finished(folder: Path) -> None:
    command = [sys.executable, "-m", "nightlab_cli.engine", "build"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not plan_files(folder) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # while the second network is built
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors == "nightlab-engine build: interrupted; the plans that were finished are kept\n"
    (path,) = plan_files(folder)
    assert read_plan(path)[0].key.kind == "image"
    assert {p.name for p in folder.iterdir()} == {".lock", path.name}
