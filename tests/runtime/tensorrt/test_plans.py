# SPDX-License-Identifier: Apache-2.0
"""The cache's rules, each against a real plan that TensorRT for RTX built of the tiny bundle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")

from nightlab_core.runtime.bundle import Bundle, load_bundle
from nightlab_core.runtime.engines.tensorrt import plans
from nightlab_core.runtime.engines.tensorrt.build import build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.libraries import Target, TensorRtLibrary, import_library
from nightlab_core.runtime.engines.tensorrt.plans import (
    PlanError,
    PlanHeader,
    PlanKey,
    cache_folder,
    covers,
    differences,
    find_plan,
    locked,
    plan_files,
    read_header,
    read_plan,
    remove_plans,
    write_plan,
)

FRAME_HW = (64, 96)


@pytest.fixture(scope="module")
def library() -> TensorRtLibrary:
    return import_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def built(bundle: Bundle, library: TensorRtLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one real plan, of the region network."""
    folder = tmp_path_factory.mktemp("plans")
    build_plan(bundle, key_of(bundle, library), library, folder)
    return folder


@pytest.fixture
def plan(built: Path, tmp_path: Path) -> Path:
    """A copy of the plan's file, to be damaged."""
    (source,) = plan_files(built)
    return Path(shutil.copy2(source, tmp_path))


def key_of(bundle: Bundle, library: TensorRtLibrary, /, **changes: Any) -> PlanKey:
    key = plan_key(bundle, "region", library, library.target(None), "float16", plan_shapes(bundle, "region", FRAME_HW))
    return key.model_copy(update=changes)


def test_a_built_plan_is_found_with_its_header(bundle: Bundle, library: TensorRtLibrary, built: Path) -> None:
    header, plan = find_plan(built, key_of(bundle, library))
    assert header.key == key_of(bundle, library)
    assert len(plan) == header.plan_bytes > 10_000
    assert header.outputs["labels"].dtype == "uint8"
    assert header.io_bytes == 10 * 32 * 48 * (3 + 1 + 1)
    (path,) = plan_files(built)
    assert path.name == header.key.file_name and path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_bytes().split(b"\n")[1])["key"]["library"] == "tensorrt_rtx"  # to be read by people too


OTHER_SHAPES = {"crops": ((1, 32, 64, 3), (10, 32, 64, 3), (10, 32, 64, 3))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"onnx_sha256": "f" * 64}, "onnx sha256: built with .*, here it is ffff"),
        ({"graph_version": 99}, "graph version: built with 1, here it is 99"),
        ({"library": "tensorrt"}, "library: built with tensorrt_rtx, here it is tensorrt"),
        ({"version": "1.7.1.117"}, r"version: built with 1\..*, here it is 1\.7\.1\.117"),
        ({"platform": "linux-aarch64"}, "platform: built with .*, here it is linux-aarch64"),
        (
            {"capabilities": ("7.5",), "gpu_name": "Tesla T4"},
            r"GPU: built for any GPU of compute capability 8\.0, .*, here it is Tesla T4 of compute capability 7\.5",
        ),
        ({"precision": "float32"}, "precision: built with float16, here it is float32"),
        (
            {"shapes": OTHER_SHAPES},
            r"shapes: built for crops \(1\.\.10, 32, 48, 3\), here it is crops \(1\.\.10, 32, 64, 3\)",
        ),
    ],
)
def test_a_plan_with_another_key_is_not_loaded_and_the_message_names_the_difference(
    bundle: Bundle, library: TensorRtLibrary, plan: Path, changes: dict[str, Any], message: str
) -> None:
    wanted = key_of(bundle, library, **changes)
    with pytest.raises(PlanError, match=message):
        read_plan(plan, wanted)
    with pytest.raises(PlanError, match=f"(?s)no plan of the region network fits:.*{message}"):
        find_plan(plan.parent, wanted)
    assert len(differences(read_header(plan).key, wanted)) == 1


def test_every_field_of_the_key_is_in_the_test_above(bundle: Bundle, library: TensorRtLibrary) -> None:
    tested = {"onnx_sha256", "graph_version", "library", "version", "platform", "capabilities", "gpu_name"}
    assert tested | {"precision", "shapes", "kind"} == set(PlanKey.model_fields)
    other = key_of(bundle, library, kind="image")
    assert differences(key_of(bundle, library), other) == ["kind: built with region, here it is image"]


@pytest.mark.parametrize(
    ("built_for", "wanted", "fits"),
    [
        (Target(("8.0", "8.6")), Target(("8.6",), "RTX A2000"), True),
        (Target(("8.0", "8.6")), Target(("8.6",)), True),
        (Target(("8.0",)), Target(("8.0", "8.6")), False),
        (Target(("8.7",), "Orin"), Target(("8.7",), "Orin"), True),
        (Target(("8.7",), "Orin"), Target(("8.7",), "Orin Nano"), False),  # fewer cores: another choice of kernels
        (Target(("8.7",), "Orin"), Target(("8.7",)), False),
    ],
)
def test_a_plan_fits_the_gpus_it_was_built_for(built_for: Target, wanted: Target, fits: bool) -> None:
    assert built_for.serves(wanted) is fits


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (((1, 4), (1, 4), (1, 4)), True),
        (((3, 4), (5, 4), (10, 4)), True),
        (((1, 4), (1, 4), (11, 4)), False),
        (((0, 4), (1, 4), (1, 4)), False),
        (((1, 4, 1), (1, 4, 1), (1, 4, 1)), False),
    ],
)
def test_a_plan_fits_shapes_within_its_range(wanted: Any, fits: bool) -> None:
    ranges = {"crops": ((1, 4), (10, 4), (10, 4))}
    assert covers(ranges, {"crops": wanted}) is fits
    assert not covers(ranges, {"frame": wanted})


def cut(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    return lambda data: data[: at(len(data))]


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data and len(old) == len(new)
        return data.replace(old, new, 1)

    return change


def flip(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[at(len(data))] ^= 1
        return bytes(damaged)

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut(lambda n: 0), "is not a plan"),
        (cut(lambda n: 40), "is not a plan|header was changed or cut short"),
        (cut(lambda n: 200), "header was changed or cut short"),
        (cut(lambda n: n // 2), r"received \d+ bytes of plan, expected \d+: it was cut short"),
        (cut(lambda n: n - 1), "it was cut short"),
        (lambda data: data + b"\0", r"received \d+ bytes of plan, expected \d+"),
        (flip(lambda n: n - 1), "the plan's SHA-256 is .*, expected .*: it was changed"),
        (flip(lambda n: n // 2), "the plan's SHA-256 is .*: it was changed"),
        (swap(b'"float16"', b'"float32"'), "header was changed"),
        (swap(b'"linux-', b'"Linux-'), "header was changed"),
        (swap(b"nightlab-plan 2 ", b"nightlab-plan 1 "), "received format 1, expected 2"),
        (lambda data: b"\x7fELF" + data, "is not a plan"),
    ],
)
def test_a_truncated_or_changed_plan_is_not_loaded(
    bundle: Bundle, library: TensorRtLibrary, plan: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    plan.write_bytes(spoil(plan.read_bytes()))
    with pytest.raises(PlanError, match=message):
        read_plan(plan)
    with pytest.raises(PlanError, match=message):
        find_plan(plan.parent, key_of(bundle, library))


def test_a_plan_under_the_name_of_another_is_not_loaded(bundle: Bundle, library: TensorRtLibrary, plan: Path) -> None:
    name = key_of(bundle, library, precision="float32").file_name
    plan = plan.rename(plan.parent / name)
    with pytest.raises(PlanError, match=f"{name}: does not match its key; expected the name region-"):
        read_plan(plan)


def test_a_header_of_another_version_is_refused(plan: Path) -> None:
    _, line, rest = plan.read_bytes().split(b"\n", 2)
    content = json.loads(line)
    del content["key"]["graph_version"]
    line = json.dumps(content).encode()
    plan.write_bytes(b"nightlab-plan 2 " + hashlib.sha256(line).hexdigest().encode() + b"\n" + line + b"\n" + rest)
    with pytest.raises(PlanError, match="the header is not one of this version: Field required"):
        read_plan(plan)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_plan_that_others_may_write_is_refused(plan: Path, mode: int) -> None:
    plan.chmod(mode)
    with pytest.raises(PlanError, match=r"expected owner 0 or \d+ and no write permission for others \(chmod go-w\)"):
        read_plan(plan)
    plan.chmod(0o644)
    read_plan(plan)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_plan_of_another_user_is_refused(plan: Path) -> None:
    os.chown(plan, 12345, -1)
    with pytest.raises(PlanError, match="received owner 12345"):
        read_plan(plan)


def test_a_plan_that_is_replaced_during_the_checks_is_not_loaded(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file may get the plan's name between two steps of the checks."""
    whole, check = plan.read_bytes(), plans._check_owner

    def check_and_swap(path: Path, status: os.stat_result) -> None:
        check(path, status)
        other = path.with_name("other")
        other.write_bytes(b"somebody else's code")
        other.replace(path)

    monkeypatch.setattr(plans, "_check_owner", check_and_swap)
    header, data = read_plan(plan)
    assert whole.endswith(data) and len(data) == header.plan_bytes


def test_a_plan_that_disappears_while_the_folder_is_read_is_skipped(
    bundle: Bundle, library: TensorRtLibrary, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = plan.with_name("region-0000000000000000.plan")
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([gone, plan]))
    assert plan_files(plan.parent) == [plan]
    monkeypatch.setattr(plans, "plan_files", lambda folder: [gone])
    with pytest.raises(PlanError, match=f"{gone}: No such file or directory"):
        find_plan(plan.parent, key_of(bundle, library))


def test_an_empty_cache_is_reported(bundle: Bundle, library: TensorRtLibrary, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PlanError, match=f"there is no plan of the region network in {folder}"):
            find_plan(folder, key_of(bundle, library))


def test_an_intact_plan_is_found_beside_damaged_ones(bundle: Bundle, library: TensorRtLibrary, plan: Path) -> None:
    (plan.parent / "region-0000000000000000.plan").write_bytes(b"nothing")
    (plan.parent / "notes.txt").write_text("not a plan")
    header, _ = find_plan(plan.parent, key_of(bundle, library))
    assert header.key.file_name == plan.name


def test_a_plan_gets_its_name_only_when_it_is_complete(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, data = read_plan(plan)
    folder = tmp_path / "new"
    folder.mkdir()
    seen: list[tuple[str, list[str]]] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(("fsync", names(folder))), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (seen.append(("rename", names(folder))), replace(a, b))[1])
    write_plan(folder, header, data)
    temporary = f".{plan.name}.{os.getpid()}"
    assert seen == [("fsync", [temporary]), ("rename", [temporary]), ("fsync", [plan.name])]
    assert (folder / plan.name).read_bytes() == plan.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_leaves_nothing_behind(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, data = read_plan(plan)
    folder = tmp_path / "new"
    folder.mkdir()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlanError, match=f"{folder}: the plan cannot be written: No space left on device"):
        write_plan(folder, header, data)
    assert names(folder) == []


def test_one_process_builds_and_the_others_are_told_to_wait(tmp_path: Path) -> None:
    order: list[str] = []
    waited = threading.Event()

    def second() -> None:
        with locked(tmp_path, waited.set):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_files_of_a_killed_build_are_removed(plan: Path) -> None:
    left = plan.parent / f".{plan.name}.12345"
    left.write_bytes(b"half of it")
    with locked(plan.parent):
        assert not left.exists()
    assert plan.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PlanError, match="set NIGHTLAB_PLANS to a folder that can be written"), locked(tmp_path / "x"):
        pass


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("")
    with pytest.raises(PlanError, match=r"plans: .*; set NIGHTLAB_PLANS"), locked(tmp_path / "plans"):
        pass


def test_remove_plans_deletes_the_selected_plans(plan: Path) -> None:
    size = plan.stat().st_size
    assert list(remove_plans(plan.parent, lambda path: False)) == []
    assert list(remove_plans(plan.parent, lambda path: True)) == [(plan, size)]
    assert plan_files(plan.parent) == []


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("NIGHTLAB_PLANS", raising=False)
    assert cache_folder() == tmp_path / ".cache/nightlab/plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/nightlab/plans")
    monkeypatch.setenv("NIGHTLAB_PLANS", "/opt/plans")
    assert cache_folder() == Path("/opt/plans")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "NIGHTLAB_PLANS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(PlanError, match="no home folder: set NIGHTLAB_PLANS"):
        cache_folder()


def test_writing_and_reading_a_header_keeps_its_values(plan: Path) -> None:
    header = read_header(plan)
    assert PlanHeader.model_validate_json(header.model_dump_json()) == header
