# SPDX-License-Identifier: Apache-2.0
"""Counts, rate, frame age and percentiles, with a clock that the test sets."""

from __future__ import annotations

import pytest

from nightlab_ros.health import ERROR, OK, WARN, Health


def run(health: Health, times_s: list[float], age_s: float = 0.05, **stages_ms: float) -> None:
    for now_s in times_s:
        health.record_received(now_s)
        health.record_processed(now_s, now_s - age_s, stages_ms, light_level=0.25, refine_reason="night")


def test_percentiles_are_those_of_the_window() -> None:
    health = Health(window=100)
    for milliseconds in [1e6, *range(1, 101)]:  # the first falls out of the window
        health.record_processed(0.0, 0.0, {"image": float(milliseconds)}, 0.5, "always")
    values = health.report(0.0, active=True).values
    assert (values["image_ms_p50"], values["image_ms_p95"], values["image_ms_p99"]) == ("50.50", "95.05", "99.01")
    assert values["processed"] == "101" and values["light_level"] == "0.5000"


def test_a_stage_that_rarely_runs_keeps_its_own_percentiles() -> None:
    health = Health()
    run(health, [0.0, 0.1], image=10.0)
    run(health, [0.2], image=10.0, region=30.0)
    assert health.report(0.2, active=True).values["region_ms_p50"] == "30.00"


def test_frame_age_is_in_milliseconds_of_the_clock() -> None:
    health = Health()
    run(health, [1e9, 1e9 + 1], age_s=0.125)
    assert health.report(1e9 + 1, active=True).values["frame_age_ms_p50"] == "125.00"


@pytest.mark.parametrize(("period_s", "rate"), [(0.1, 10.0), (0.5, 2.0), (2.0, 0.5)])
def test_rate(period_s: float, rate: float) -> None:
    health = Health()
    run(health, [100 + i * period_s for i in range(8)])
    assert health.rate_hz(100 + 7 * period_s) == pytest.approx(rate)


def test_rate_falls_when_the_camera_stops() -> None:
    health = Health()
    run(health, [i * 0.1 for i in range(11)])
    assert health.rate_hz(1.05) == pytest.approx(10.0)
    assert health.rate_hz(4.0) == pytest.approx(10 / 4.0)
    assert health.rate_hz(60.0) == 0.0


def test_rate_after_simulated_time_jumped_back() -> None:
    health = Health()
    run(health, [50.0, 50.1, 50.2])
    run(health, [1.0, 1.1])
    assert health.rate_hz(1.1) == pytest.approx(10.0)


def test_counts() -> None:
    health = Health()
    run(health, [0.0, 0.1])
    health.record_received(0.2)
    health.record_failed(0.2, "cut short")
    health.record_received(0.3)
    health.record_overwritten()
    assert health.counts() == {"received": 4, "processed": 2, "failed": 1, "dropped": 1, "lost": 0}


def test_regions_that_the_deadline_cost_are_counted() -> None:
    health = Health()
    assert health.report(0.0, active=True).values["regions_left_out"] == "0"
    health.record_regions(left_out=3, late=1, hardness_late=False)
    health.record_regions(left_out=0, late=2, hardness_late=True)
    values = health.report(0.0, active=True).values
    assert [values[name] for name in ("regions_left_out", "regions_late", "hardness_late")] == ["3", "3", "1"]


def test_gaps_in_the_publisher_s_numbers_are_drops() -> None:
    health = Health()
    for number in (7, 8, 12):  # images before the subscription are no gap
        health.record_received(0.0, "camera", number)
    assert health.counts()["dropped"] == 3
    health.record_received(0.0, "camera", 1)  # the publisher was restarted
    health.record_received(0.0, "another camera", 90)
    health.record_received(0.0, "another camera", 91)
    assert health.counts()["dropped"] == 3
    health.reset_sequence()
    health.record_received(0.0, "another camera", 200)
    assert (health.counts()["dropped"], health.counts()["received"]) == (3, 7)


def test_losses_are_drops_once_only() -> None:
    health = Health()
    health.record_received(0.0, "camera", 1)
    health.record_lost(0.1, 2)  # reported before the gap is seen
    assert (health.counts()["dropped"], health.counts()["lost"]) == (2, 2)
    health.record_received(0.2, "camera", 5)  # one more was overwritten in the reader's queue
    assert (health.counts()["dropped"], health.counts()["lost"]) == (3, 2)


def test_levels() -> None:
    health = Health()
    assert (health.report(0.0, active=False).level, health.report(0.0, active=False).message) == (OK, "inactive")
    assert (health.report(9.0, active=True).level, health.report(9.0, active=True).message) == (WARN, "no images yet")
    run(health, [10.0])
    assert health.report(10.5, active=True).message == "running"
    assert health.report(13.0, active=True).message == "no images for 3.0 s"
    health.record_received(13.5)
    health.record_failed(13.5, "71 bytes")
    report = health.report(14.0, active=True)
    assert (report.level, report.message, report.values["failed"]) == (ERROR, "a frame failed: 71 bytes", "1")
    run(health, [16.0])
    assert health.report(16.0, active=True).level == OK


def test_images_from_the_future_are_reported() -> None:
    health = Health()
    run(health, [10.0], age_s=-3.0)
    report = health.report(10.0, active=True)
    assert report.level == WARN and "use_sim_time" in report.message
    assert report.values["frame_age_ms_p50"] == "-3000.00"


def test_a_failure_does_not_last_when_simulated_time_jumps_back() -> None:
    health = Health()
    health.record_failed(100.0, "cut short")
    run(health, [1.0])
    assert health.report(1.0, active=True).level == OK


def test_losses_are_reported_with_a_remedy() -> None:
    health = Health()
    run(health, [10.0])
    health.record_lost(10.1, 1)
    report = health.report(10.5, active=True)
    assert report.level == WARN and "config/fastdds.xml" in report.message
    assert health.report(12.2, active=True).message == "no images for 2.2 s"


def test_images_without_a_mask_are_reported() -> None:
    steady = [0.0]
    health = Health(steady_s=lambda: steady[0])

    def camera(seconds: float) -> None:
        for _ in range(round(10 * seconds)):
            steady[0] += 0.1
            health.record_received(50.0)  # a simulated clock that stands still

    def state() -> tuple[int, str]:
        report = health.report(50.0, active=True)
        return report.level, report.message

    camera(1.9)
    assert state() == (OK, "running")
    camera(1.0)
    assert state() == (WARN, "images arrive, but no mask came out for 3 s")
    health.set_delay_reason("preparing the engines for images of 64x48")
    camera(20.0)
    assert state() == (WARN, "preparing the engines for images of 64x48: no mask for 23 s")
    health.set_delay_reason("")
    assert state() == (ERROR, "images arrive, but no mask came out for 23 s")
    assert health.report(50.0, active=False).level == OK
    health.record_processed(50.0, 49.9, {"latency": 3000.0}, 0.5, "always")
    assert state() == (OK, "running")
    camera(14.9)  # five times what a frame takes
    assert state() == (OK, "running")
    camera(0.5)
    assert state()[0] == WARN
    health.reset_sequence()
    assert state() == (OK, "running")
    steady[0] += 100.0  # no image arrives
    assert state() == (OK, "running")
    camera(20.0)
    health.record_failed(10.0, "cut short")  # a failure is a result
    assert state() == (OK, "running")
