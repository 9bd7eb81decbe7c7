# SPDX-License-Identifier: Apache-2.0
"""The measurement of what arrives from a camera."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")

from ros_harness import ENVIRONMENT

from nightlab_ros.transport import measure

pytestmark = pytest.mark.ros


def test_the_table_has_a_row_for_each_camera(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(reliability: str, with_profile: bool, topics: list[str]) -> dict[str, float]:
        return dict.fromkeys(topics, 50.0 * with_profile + 25.0 * (reliability == "reliable"))

    monkeypatch.setattr(measure, "measure", fake)
    assert measure.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| size | Hz | reliable | reliable, profile | best effort | best effort, profile |"
    assert lines[2] == "| 640x480 | 3 | 25 % | 75 % | 0 % | 50 % |"
    assert len(lines) == 2 + len(measure.SIZES) * len(measure.RATES_HZ)


@pytest.mark.slow
@pytest.mark.parametrize("reliability", measure.RELIABILITIES)
def test_small_images_at_a_low_rate_arrive(monkeypatch: pytest.MonkeyPatch, reliability: str) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", ENVIRONMENT["ROS_DOMAIN_ID"])
    assert measure.measure(reliability, True, ["camera_64_48_5"])["camera_64_48_5"] > 50
