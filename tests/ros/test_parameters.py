# SPDX-License-Identifier: Apache-2.0
"""The parameters' settings class, their descriptors, and the shipped file."""

from __future__ import annotations

import re
from array import array
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightlab_core.runtime.settings import PipelineSettings
from nightlab_ros.parameter_server import (
    ParameterError,
    _descriptor,
    change,
    unknown_parameters,
    unused_qos_overrides,
    wrong_qos_overrides,
)
from nightlab_ros.parameters import NodeSettings

ROOT = Path(__file__).parents[2]
FIELDS = NodeSettings.model_fields
AT_CONFIGURE = {"bundle": "/b", "engine": "openvino", "precision": "float32", "threads": 2, "transport": "compressed"}
AT_CONFIGURE |= {"image_size": [640, 480], "build_engines": True, "pixel_bits": 12, "cameras": ["front"]}  # type: ignore[dict-item]
AT_CONFIGURE |= {"region_batch": 1, "paths": "in_turn", "calibration_s": 0.0, "autoware_classes": "autoware16"}
AT_ANY_TIME = {"refine": "never", "merge": "replace", "max_regions": 4, "score_threshold": 0.2, "nms_iou": 0.4}
AT_ANY_TIME |= {
    "confidence_threshold": 0.5,
    "region_margin": 0.3,
    "output_size": "network",
    "overlay": False,
    "overlay_opacity": 0.7,
    "deadline_ms": 90.0,
    "capture_dir": "/captures",
    "capture_max_mb": 20,
    "capture_below_confidence": 0.4,
    "capture_period_s": 5.0,
    "share_windows": True,
    "hardness_every": 2,
    "unchanged_below": 4.0,
    "regions_in_turn": True,
    "carry_frames": 3,
    "night_below": 0.05,
    "day_above": 0.2,
    "warn_age_ms": 400.0,
    "warn_drop_percent": 50.0,
    "warn_rate_hz": 5.0,
}


def test_every_parameter_is_described() -> None:
    assert [name for name, field in FIELDS.items() if not field.description] == []


@pytest.mark.parametrize("name", ["bundle", "autoware_classes", "capture_dir"])
def test_a_path_may_begin_with_the_home_directory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/robot")
    settings = change(NodeSettings(), {name: "~/mine"}, configured=False)
    assert getattr(settings, name) == "/home/robot/mine"
    assert settings.capture_dir.startswith("/home/robot/")
    assert change(settings, {name: "~/mine"}, configured=True) == settings  # the same path in other words
    assert getattr(change(settings, {name: ""}, configured=False), name) == ""


def test_the_pipeline_gets_its_settings() -> None:
    settings = change(NodeSettings(), {"max_regions": 4, "overlay": False, "refine": "never"}, configured=True)
    assert settings.pipeline_settings() == PipelineSettings(max_regions=4, refine="never")
    assert not settings.overlay


@pytest.mark.parametrize("name", AT_ANY_TIME)
def test_a_parameter_that_changes_at_any_time(name: str) -> None:
    value = AT_ANY_TIME[name]
    assert getattr(change(NodeSettings(), {name: value}, configured=True), name) == value != FIELDS[name].default


@pytest.mark.parametrize("name", AT_CONFIGURE)
def test_a_parameter_that_changes_at_configure_only(name: str) -> None:
    values = {name: AT_CONFIGURE[name]}
    with pytest.raises(
        ParameterError, match=f"{name} takes effect at the next configure: deactivate and cleanup first"
    ):
        change(NodeSettings(), values, configured=True)
    settings = change(NodeSettings(), values, configured=False)
    assert getattr(settings, name) != FIELDS[name].default
    assert change(settings, values, configured=True) == settings  # setting what it is already changes nothing


def test_no_parameter_is_left_out_above() -> None:
    assert {*AT_ANY_TIME, *AT_CONFIGURE, "autostart"} == set(FIELDS)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("refine", "both", "refine: received 'both'; input should be 'always', 'night' or 'never'"),
        ("max_regions", 11, "max_regions: received 11; input should be less than or equal to 10"),
        ("max_regions", 2.5, "max_regions: received 2.5; input should be a valid integer"),
        ("score_threshold", -0.1, "score_threshold: received -0.1; input should be greater than or equal to 0"),
        ("overlay_opacity", float("nan"), "overlay_opacity: received nan"),
        ("overlay", 1, "overlay: received 1; input should be a valid boolean"),
        ("image_size", [640], "image_size"),
        ("image_size", [640, 0], "image_size: received (640, 0); expected both sides, or 0 and 0"),
        ("pixel_bits", 5, "expected 8 to 16, or 0"),
        ("pixel_bits", 17, "pixel_bits: received 17; input should be less than or equal to 16"),
        ("cameras", ["front", "left/2"], "cameras: received 'left/2'; string should match pattern"),
        ("cameras", ["front", "front"], "expected names that differ"),
        ("transport", "theora", "transport: received 'theora'; input should be 'raw' or 'compressed'"),
    ],
)
def test_bad_values_are_refused_with_a_reason(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(reason)):
        change(NodeSettings(), {name: value}, configured=False)


def test_a_refused_set_names_every_bad_value() -> None:
    with pytest.raises(ParameterError, match=r"refine: .*; max_regions: "):
        change(NodeSettings(), {"refine": "x", "max_regions": -1, "overlay": False}, configured=False)


def test_arrays_come_as_ros_gives_them() -> None:
    assert change(NodeSettings(), {"image_size": array("q", [640, 480])}, configured=False).image_size == (640, 480)


def test_no_camera_s_name_is_the_camera_without_a_name() -> None:
    assert change(NodeSettings(), {"cameras": []}, configured=False).cameras == ("",) == NodeSettings().cameras


def test_the_node_s_other_parameters_are_ignored() -> None:
    assert change(NodeSettings(), {"use_sim_time": True}, configured=True) == NodeSettings()


def test_misspelt_parameters_are_named() -> None:
    declared = [*FIELDS, "use_sim_time"]
    assert unknown_parameters(["refine", "use_sim_time", "qos_overrides./tf.depth"], declared) == []
    (sentence,) = unknown_parameters(["max_region"], declared)
    assert "'max_region'" in sentence and "did you mean 'max_regions'?" in sentence
    (sentence,) = unknown_parameters(["frame_id"], declared)
    assert "it has autostart, autoware_classes, build_engines," in sentence


def test_qos_overrides_of_no_topic_are_named() -> None:
    declared = ["qos_overrides./image.subscription.depth", "qos_overrides./nightlab/mask.publisher.reliability"]
    given = ["qos_overrides./image.subscription.depth", "qos_overrides./mask.publisher.reliability", "refine"]
    (sentence,) = unused_qos_overrides(given, declared)
    assert sentence.startswith("received the parameter 'qos_overrides./mask.publisher.reliability', which changes")


@pytest.mark.ros
@pytest.mark.parametrize(
    ("policy", "value", "expected"),
    [
        ("reliability", "best_effort", None),
        ("reliability", "perhaps", "system_default, reliable, best_effort"),
        ("reliability", True, "system_default, reliable, best_effort"),
        ("history", "KEEP_ALL", None),
        ("history", "unknown", "system_default, keep_last, keep_all"),
        ("depth", 5, None),
        ("depth", -1, "a whole number, 0 or more"),
        ("depth", "5", "a whole number, 0 or more"),
        ("depth", True, "a whole number, 0 or more"),
    ],
)
def test_a_qos_override_that_rclpy_cannot_use_is_named(policy: str, value: Any, expected: str | None) -> None:
    name = f"qos_overrides./image.subscription.{policy}"
    clauses = wrong_qos_overrides({name: value, "reliability": "no override"})
    assert bool(clauses) == (expected is not None)
    assert not clauses or clauses[0].startswith(f"{name}: received {value!r}; expected {expected}")


@pytest.mark.ros
def test_descriptors_hold_ranges_choices_and_when_they_change() -> None:
    pytest.importorskip("rclpy")
    regions = _descriptor(FIELDS["max_regions"])
    assert [(r.from_value, r.to_value) for r in regions.integer_range] == [(0, 10)]
    opacity = _descriptor(FIELDS["overlay_opacity"])
    assert [(r.from_value, r.to_value) for r in opacity.floating_point_range] == [(0.0, 1.0)]
    assert (
        _descriptor(FIELDS["merge"]).additional_constraints
        == "One of: auto, replace, confident, window. Changes: at any time."
    )
    assert "at configure" in _descriptor(FIELDS["bundle"]).additional_constraints
    assert _descriptor(FIELDS["autostart"]).read_only and not regions.read_only
    assert all(_descriptor(field).description == field.description for field in FIELDS.values())


@pytest.mark.parametrize("file", ["nightlab.yaml", "cameras.yaml"])
def test_the_shipped_file_is_valid(file: str) -> None:
    content = yaml.safe_load((ROOT / "config" / file).read_text(encoding="utf-8"))
    assert list(content) == ["/**"] and list(content["/**"]) == ["ros__parameters"]
    values = content["/**"]["ros__parameters"]
    assert unknown_parameters(values, FIELDS) == []
    settings = change(NodeSettings(), values, configured=False)
    for name, value in values.items():
        assert type(value) is type(FIELDS[name].default) or isinstance(value, list), f"{name}: rclpy refuses this type"
        assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value)
