# SPDX-License-Identifier: Apache-2.0
"""Counts, rate, frame age, percentiles, and the rules of the diagnostics, with clocks that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from nightlab_ros.monitoring.degradation import Finding
from nightlab_ros.monitoring.health import ERROR, OK, WARN, Health, HealthLimits


class Stream:
    """A camera and a node, with a steady clock and a node's clock that may be simulated."""

    def __init__(self, window: int = 100, **limits: float) -> None:
        self.steady_s, self.clock_s = 0.0, 1000.0
        self.health = Health(window, lambda: self.steady_s, HealthLimits(**limits))

    def wait(self, seconds: float, clock_runs: bool = True) -> None:
        self.steady_s += seconds
        self.clock_s += seconds if clock_runs else 0.0

    def run(self, count: int, period_s: float = 0.1, age_s: float = 0.05, **stages_ms: float) -> None:
        """Frames that are received and processed at once."""
        for _ in range(count):
            self.wait(period_s)
            self.health.record_received()
            self.health.record_processed(
                self.clock_s, self.clock_s - age_s, stages_ms, light_level=0.25, refine_reason="night"
            )

    def receive(self, count: int, period_s: float = 0.1, clock_runs: bool = True) -> None:
        for _ in range(count):
            self.wait(period_s, clock_runs)
            self.health.record_received()

    @property
    def values(self) -> dict[str, str]:
        return self.health.report(self.clock_s, active=True).values

    @property
    def state(self) -> tuple[int, str]:
        report = self.health.report(self.clock_s, active=True)
        return report.level, report.message


def test_percentiles_are_those_of_the_window() -> None:
    stream = Stream(window=100)
    for milliseconds in [1e6, *range(1, 101)]:  # the first falls out of the window
        stream.health.record_processed(0.0, 0.0, {"image": float(milliseconds)}, 0.5, "always")
    values = stream.values
    assert (values["image_ms_p50"], values["image_ms_p95"], values["image_ms_p99"]) == ("50.50", "95.05", "99.01")
    assert values["processed"] == "101" and values["light_level"] == "0.5000"


def test_a_stage_that_rarely_runs_keeps_its_own_percentiles() -> None:
    stream = Stream()
    stream.run(2, image=10.0)
    stream.run(1, image=10.0, region=30.0)
    assert stream.values["region_ms_p50"] == "30.00"


def test_frame_age_is_in_milliseconds_of_the_clock() -> None:
    stream = Stream()
    stream.clock_s = 1e9
    stream.run(2, age_s=0.125)
    assert stream.values["frame_age_ms_p50"] == "125.00"


@pytest.mark.parametrize(("period_s", "rate"), [(0.1, 10.0), (0.5, 2.0), (2.0, 0.5)])
def test_rate(period_s: float, rate: float) -> None:
    stream = Stream()
    stream.run(8, period_s)
    assert stream.health.rate_hz() == pytest.approx(rate)


def test_rate_falls_when_the_camera_stops() -> None:
    stream = Stream()
    stream.run(11)
    stream.wait(0.05)
    assert stream.health.rate_hz() == pytest.approx(10.0)
    stream.wait(2.95)
    assert stream.health.rate_hz() == pytest.approx(10 / 4.0)
    stream.wait(60.0)
    assert stream.health.rate_hz() == 0.0


def test_counts() -> None:
    stream = Stream()
    stream.run(2)
    stream.receive(2)
    stream.health.record_failed("cut short")
    stream.health.record_overwritten()
    assert stream.health.counts() == {"received": 4, "processed": 2, "failed": 1, "dropped": 1, "lost": 0}


def test_regions_that_the_deadline_cost_are_counted() -> None:
    stream = Stream()
    assert stream.values["regions_left_out"] == "0"
    stream.health.record_regions(left_out=3, late=1, hardness_late=False)
    stream.health.record_regions(left_out=0, late=2, hardness_late=True)
    values = stream.values
    assert [values[name] for name in ("regions_left_out", "regions_late", "hardness_late")] == ["3", "3", "1"]


def test_a_lost_refinement_is_reported_with_its_reason_and_since_when() -> None:
    stream = Stream()
    stream.run(10)
    assert stream.state == (OK, "running") and stream.values["refinement_failed"] == "0"
    for _ in range(5):
        stream.run(1, period_s=1.0)
        stream.health.record_refinement("regions could not be read: RuntimeError: out of memory")
    assert stream.state == (
        WARN,
        "only the image level's mask, for 4 s: regions could not be read: RuntimeError: out of memory",
    )
    stream.health.record_refinement("")
    assert stream.state == (OK, "running") and stream.values["refinement_failed"] == "5"


def test_a_lower_path_that_is_always_late_is_reported_and_recovers() -> None:
    stream = Stream()
    for _ in range(20):
        stream.run(1)
        stream.health.record_refinement("", late=True)
    assert stream.state == (OK, "running"), "1.9 s"
    stream.run(2)
    stream.health.record_refinement("", late=True)
    level, message = stream.state
    assert level == WARN and stream.values["mode"] == "image level only"
    assert message.startswith("only the image level's mask, for 2 s: no hard region was read before the deadline")
    stream.run(5)
    stream.health.record_refinement("hard regions could not be found: no answer", late=False)
    assert stream.state[1] == "only the image level's mask, for 3 s: hard regions could not be found: no answer"
    stream.health.record_refinement("")
    assert stream.state == (OK, "running") and stream.values["mode"] == "full"


def test_one_late_frame_at_a_low_rate_is_no_warning() -> None:
    stream = Stream()
    stream.run(3, period_s=1.9)
    stream.health.record_refinement("", late=True)
    stream.wait(1.9)
    assert stream.state == (OK, "running")


def test_gaps_in_the_publisher_s_numbers_are_drops() -> None:
    health = Health()
    for number in (7, 8, 12):  # images before the subscription are no gap
        health.record_received("camera", number)
    assert health.counts()["dropped"] == 3
    health.record_received("camera", 1)  # the publisher was restarted
    health.record_received("another camera", 90)
    health.record_received("another camera", 91)
    assert health.counts()["dropped"] == 3
    health.start_stream()
    health.record_received("another camera", 200)
    assert (health.counts()["dropped"], health.counts()["received"]) == (3, 7)


def test_the_images_of_two_publishers_that_alternate_are_all_counted() -> None:
    health = Health()
    for number in range(1, 301, 3):
        health.record_received("camera", number)
        health.record_received("another camera", number + 50)
    assert health.counts()["received"] + health.counts()["dropped"] == 2 * 298


def test_publishers_that_never_come_back_take_no_memory() -> None:
    health = Health()
    for publisher in range(1000):
        health.record_received(publisher, 1)
        health.record_received("steady", 2 * publisher)
    assert health.counts()["dropped"] == 999 and len(health._sequences) <= 16


def test_losses_are_drops_once_only() -> None:
    health = Health()
    health.record_received("camera", 1)
    health.record_lost(2)  # reported before the gap is seen
    assert (health.counts()["dropped"], health.counts()["lost"]) == (2, 2)
    health.record_received("camera", 5)  # one more was overwritten in the reader's queue
    assert (health.counts()["dropped"], health.counts()["lost"]) == (3, 2)


def test_levels() -> None:
    stream = Stream()
    assert stream.health.report(0.0, active=False).message == "inactive"
    assert stream.state == (WARN, "no images yet")
    stream.run(1)
    assert stream.state == (OK, "running")
    stream.wait(3.0)
    assert stream.state == (WARN, "no images for 3.0 s")
    stream.receive(1)
    stream.health.record_failed("71 bytes")
    assert stream.state == (ERROR, "a frame failed: 71 bytes") and stream.values["failed"] == "1"
    stream.run(21)
    assert stream.state == (OK, "running")


def test_every_reason_of_a_failure_is_reported_with_its_count() -> None:
    stream = Stream()
    stream.receive(1)
    for reason in ("71 bytes", "no such encoding", "71 bytes"):
        stream.health.record_failed(reason)
    assert stream.state == (ERROR, "a frame failed: 71 bytes (2 times in 2 s); a frame failed: no such encoding")


def test_many_reasons_of_failures_are_a_number() -> None:
    stream = Stream()
    stream.receive(1)
    for number in range(8):
        stream.health.record_failed(f"{number} bytes")
    assert stream.state[1].endswith("a frame failed: 4 bytes; a frame failed: for 3 other reasons")


def test_a_silent_camera_is_reported_whatever_the_simulated_clock_does() -> None:
    for clock_s in (1000.0, 0.0, 50_000.0):  # stopped, back, forward
        stream = Stream()
        stream.run(3)
        stream.wait(3.0, clock_runs=False)
        stream.clock_s = clock_s
        assert stream.state == (WARN, "no images for 3.0 s")


def test_a_failure_is_over_though_the_simulated_clock_stands_still() -> None:
    stream = Stream()
    stream.health.record_failed("cut short")
    stream.receive(25, clock_runs=False)
    stream.health.record_processed(stream.clock_s, stream.clock_s, {}, 0.5, "always")
    assert stream.state == (OK, "running")


def test_a_clock_that_stops_while_images_arrive_is_reported() -> None:
    stream = Stream()
    assert stream.state[0] == WARN
    for _ in range(60):
        stream.receive(1, clock_runs=False)
        stream.health.record_processed(stream.clock_s, stream.clock_s, {}, 0.5, "always")
    assert stream.state == (WARN, "the node's clock has stood still for 6 s: check use_sim_time and /clock")
    stream.run(1)
    assert stream.state == (OK, "running")


@pytest.mark.parametrize(
    ("age_s", "message"),
    [
        (-3.0, "images are stamped in the future: check the camera's clock and use_sim_time"),
        (2.0, "masks are 2000 ms old when they are published; warn_age_ms is 1000"),
        (1.79e9, "images are stamped 497222 hours in the past: the camera does not set the stamp"),
    ],
)
def test_stamps_that_are_wrong_or_old_are_reported(age_s: float, message: str) -> None:
    stream = Stream(age_ms=1000)
    stream.run(10, age_s=age_s)
    assert stream.state[0] == WARN and stream.state[1].startswith(message)
    stream.run(3, age_s=0.9)
    stream.run(3, age_s=-0.05)  # clocks differ a little
    assert stream.state == (OK, "running"), "the median of the last five counts"


def test_a_high_share_of_dropped_images_is_reported() -> None:
    stream = Stream(drop_percent=90)
    for _ in range(5):
        stream.receive(39, period_s=1 / 40)
        for _ in range(38):
            stream.health.record_overwritten()
        stream.run(1, period_s=1 / 40)
    assert stream.state == (WARN, "95 % of the images dropped; warn_drop_percent is 90")
    stream.health.limits = HealthLimits(drop_percent=96)
    assert stream.state == (OK, "running")


def test_a_low_rate_is_reported_if_the_camera_is_faster() -> None:
    def state(camera_hz: int) -> tuple[int, str]:
        stream = Stream(rate_hz=2.0)
        for _ in range(10):
            stream.receive(camera_hz - 1, 1 / camera_hz)
            stream.run(1, 1 / camera_hz)
        return stream.state

    assert state(10) == (WARN, "1.00 masks per second; warn_rate_hz is 2")
    assert state(1) == (OK, "running")


def test_sizes_that_alternate_are_reported() -> None:
    stream = Stream()
    for index in range(4):
        stream.health.record_prepared((480, 640) if index % 2 else (720, 1280))
        assert stream.values["image_sizes"] == str(min(index + 1, 2))
        stream.run(1)
    assert stream.state[0] == WARN
    assert stream.state[1].startswith(
        "images of 2 sizes alternate, and the engines were prepared 4 times in the last minute"
    )
    stream.run(70, period_s=1.0)
    assert stream.state == (OK, "running")


def test_several_publishers_are_named() -> None:
    stream = Stream()
    stream.health.set_source("reliable", ["/front"], "advice")
    stream.run(1)
    assert stream.state == (OK, "running")
    stream.health.set_source("best effort", ["/front", "/rear"], "advice")
    assert stream.state[1].startswith("/front and /rear publish the same camera topic")
    assert (stream.values["reliability"], stream.values["publishers"]) == ("best effort", "/front, /rear")


def test_a_warning_of_the_node_is_added() -> None:
    stream = Stream()
    stream.run(1)
    namesakes = Finding(WARN, "two nodes of one name", "full")
    report = stream.health.report(stream.clock_s, active=True).with_finding(namesakes)
    assert (report.level, report.message, report.values["processed"]) == (WARN, "two nodes of one name", "1")
    assert report.values["mode"] == "full"
    stream.health.record_failed("71 bytes")
    report = stream.health.report(stream.clock_s, active=True).with_finding(namesakes)
    assert (report.level, report.message) == (ERROR, "a frame failed: 71 bytes; two nodes of one name")
    assert report.values["mode"] == "no masks"


def test_losses_are_reported_with_a_remedy() -> None:
    stream = Stream()
    stream.health.set_source("best effort", ["/camera"], "what to do")
    stream.run(1)
    stream.health.record_lost(1)
    assert stream.state == (WARN, "what to do")
    stream.wait(2.2)
    assert stream.state == (WARN, "no images for 2.2 s")


def test_images_without_a_mask_are_reported() -> None:
    stream = Stream(rate_hz=1.0, drop_percent=50)
    health: Any = stream.health
    stream.receive(19)
    assert stream.state == (OK, "running")
    stream.receive(12)
    assert stream.state == (WARN, "images arrive, but no mask came out for 3 s")
    health.set_delay_reason("preparing the engines for images of 64x48")
    stream.receive(200)
    assert stream.state == (WARN, "preparing the engines for images of 64x48: no mask for 23 s")
    health.set_delay_reason("preparing the engines for images of 64x48", seconds=20)
    long = "preparing the engines for images of 64x48: no mask for 23 s; an engine does not answer, or is far too slow"
    assert stream.state == (ERROR, long)
    health.set_delay_reason("")
    assert stream.state == (ERROR, "images arrive, but no mask came out for 23 s")
    assert health.report(50.0, active=False).level == OK
    health.record_processed(stream.clock_s, stream.clock_s, {"latency": 3000.0}, 0.5, "always")
    assert stream.state == (OK, "running")
    stream.receive(149)  # five times what a frame takes
    assert stream.state == (OK, "running")
    stream.receive(5)
    assert stream.state[0] == WARN
    health.start_stream()
    assert stream.state == (WARN, "no images yet")
    stream.receive(200)
    health.record_failed("cut short")  # a failure is a result
    assert stream.state == (ERROR, "a frame failed: cut short")
