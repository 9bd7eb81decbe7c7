# SPDX-License-Identifier: Apache-2.0
"""Heartbeats for Nav2's lifecycle manager. The package bond comes with an installed ROS only; fields stand in here."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fake_node import fake_node
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import wait_until

from nightlab_ros import node as node_module
from nightlab_ros.bond import Bond, create_bond, status_message

pytestmark = pytest.mark.ros


def test_heartbeats_from_start_to_stop_and_one_farewell() -> None:
    sent: list[bool] = []
    bond = Bond(sent.append, period_s=0.001)
    bond.stop()
    assert sent == []
    for _ in range(2):
        sent.clear()
        bond.start()
        wait_until(lambda: len(sent) >= 3, "heartbeats", 10.0)
        bond.stop()
        assert sent[-1] is False and all(sent[:-1])
    assert "bond" not in {thread.name for thread in threading.enumerate()}


def test_the_message_names_the_node_and_both_times() -> None:
    def status(**fields: Any) -> SimpleNamespace:
        return SimpleNamespace(header=SimpleNamespace(stamp=None), **fields)

    message = status_message(status, "now", "nightlab", "one", True)  # type: ignore[arg-type]
    assert (message.id, message.instance_id, message.active, message.header.stamp) == ("nightlab", "one", True, "now")
    assert (message.heartbeat_timeout, message.heartbeat_period) == (4.0, 0.1)


def test_the_bond_lasts_while_the_node_is_active(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    sent: list[bool] = []
    monkeypatch.setattr(node_module, "create_bond", lambda node: Bond(sent.append, period_s=0.001))
    with fake_node(monkeypatch, tiny_bundle) as fake:
        assert fake.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert sent == []
        assert fake.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        wait_until(lambda: sent, "a heartbeat", 10.0)
        assert fake.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        assert sent[-1] is False
        number = len(sent)
        assert fake.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert len(sent) == number


def test_without_the_package_there_is_no_bond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bond", None)
    assert create_bond(SimpleNamespace(get_logger=lambda: SimpleNamespace(debug=lambda text: None))) is None  # type: ignore[arg-type]
