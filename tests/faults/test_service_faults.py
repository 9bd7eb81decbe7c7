# SPDX-License-Identifier: Apache-2.0
"""Storms of parameter changes and lifecycle transitions, and bundles that cannot be loaded."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

import rclpy
from fault_harness import ERROR, OK, WARN, FaultyNode, faulty_node
from faulty_node import Fault
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import node_in_process, wait_until

import nightlab_ros.node
from nightlab_core.runtime.bundle import BundleError, load_bundle
from nightlab_core.runtime.engines.open import Engines

pytestmark = [
    pytest.mark.ros,
    pytest.mark.slow,
    pytest.mark.xdist_group("faulty_services"),
]
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


@pytest.fixture(scope="module")
def node(tiny_bundle: Path) -> Iterator[FaultyNode]:
    with faulty_node(tiny_bundle, "service_faults") as under_test:
        yield under_test


def test_each_of_many_good_and_bad_parameters_is_answered(node: FaultyNode) -> None:
    changes = [
        ("max_regions", 3, True),
        ("max_regions", 99, False),
        ("confidence_threshold", 0.5, True),
        ("confidence_threshold", float("nan"), False),
        ("refine", "sometimes", False),
        ("merge", "replace", True),
        ("threads", 2, False),
        ("score_threshold", "high", False),
        ("max_regions", 10, True),
        ("confidence_threshold", 0.0, True),
        ("merge", "confident", True),
    ]
    for name, value, accepted in changes * 20:
        result = node.client.set_parameter(name, value)
        assert result.successful == accepted and bool(result.reason) != accepted, (name, value, result.reason)
        node.send()
    node.expect_recovery()


def test_lifecycle_rounds_leave_no_thread_and_work_each_time(node: FaultyNode) -> None:
    threads = threading.active_count()
    for _ in range(5):
        for transition in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
            assert node.client.change_state(transition)
            node.send()
        node.expect_masks()
    assert threading.active_count() <= threads
    node.expect_recovery()


def test_a_transition_that_is_not_possible_is_refused(node: FaultyNode) -> None:
    for transition in (CONFIGURE, ACTIVATE, CLEANUP):
        assert not node.client.change_state(transition)
    assert node.client.state() == "active"
    node.expect_recovery()


def test_a_second_node_of_the_name_is_a_warning_while_it_lives(node: FaultyNode) -> None:
    twin = rclpy.create_node("nightlab", namespace="service_faults", context=node.client.context)
    try:
        node.expect(WARN, "2 nodes have the name /service_faults/nightlab: rename one", Fault.NONE)
    finally:
        twin.destroy_node()
    node.expect_recovery()


def test_a_bad_bundle_leaves_the_node_unconfigured_until_it_is_corrected(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "bundle.yaml").write_text("a: &a [x]\n" + "\n".join(f"b{i}: [*a, *a]" for i in range(9)))
    with node_in_process(bundle=str(copy), engine="onnxruntime") as node:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        report = node._reports()[""]
        assert (str(report.level), report.values["mode"]) == (ERROR, "stopped")
        assert report.message == node.failure and node.failure.startswith("configure failed: BundleError: ")
        assert "received format None, expected 1" in node.failure
        shutil.copy(tiny_bundle / "bundle.yaml", copy)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_engines_that_cannot_be_loaded_are_an_error_until_cleanup(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def fail(*_: Any, **__: Any) -> Any:
        assert go.wait(60)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engines, "open", fail)
    monkeypatch.setattr(nightlab_ros.node, "CONFIGURE_WAIT_S", 0.01)
    with node_in_process(bundle=str(tiny_bundle)) as node:
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert node._reports()[""].values["mode"] == "no masks"
        go.set()
        wait_until(lambda: node.loading_failed, "the error")
        report = node._reports()[""]
        assert (str(report.level), report.values["mode"]) == (ERROR, "stopped")
        sentence = "the engines could not be loaded: RuntimeError: out of memory; cleanup, then configure again"
        assert report.message.startswith(sentence)
        assert node.trigger_deactivate() == node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        report = node._reports()[""]
        assert (str(report.level), report.message, report.values["mode"]) == (OK, "unconfigured", "stopped")


@pytest.mark.parametrize("name", ["bundle.yaml", "image.onnx", "hardness.onnx", "region.onnx"])
def test_no_cut_or_flipped_file_of_a_bundle_is_loaded(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    content = (copy / name).read_bytes()
    original = load_bundle(tiny_bundle).manifest
    for place in range(0, len(content), max(1, len(content) // 10)):
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        for damaged in (content[:place], bytes(flipped)):
            (copy / name).write_bytes(damaged)
            try:
                manifest = load_bundle(copy).manifest
            except BundleError as error:
                assert str(copy) in str(error)
            else:  # a text for people, such as the licence, may have changed
                assert name == "bundle.yaml" and manifest.engines == original.engines
