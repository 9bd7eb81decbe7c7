# SPDX-License-Identifier: Apache-2.0
"""Lines of the log that repeat, with a clock that the test sets."""

from __future__ import annotations

from nightlab_ros.monitoring.distinct_lines import DistinctLines


class Lines:
    def __init__(self, limit: int = 3) -> None:
        self.now_s = 0.0
        self.logged: list[str] = []
        self.lines = DistinctLines(self.logged.append, limit, steady_s=lambda: self.now_s)

    def add(self, *texts: str) -> list[str]:
        """The lines that these ones let through."""
        self.logged.clear()
        for text in texts:
            self.lines.add(text)
        return list(self.logged)

    def flush(self, everything: bool = False) -> list[str]:
        self.logged.clear()
        self.lines.flush(everything)
        return list(self.logged)


def test_each_distinct_line_passes_at_once_and_its_count_each_minute() -> None:
    lines = Lines()
    assert lines.add("cut short", "cut short", "no encoding", "cut short") == ["cut short", "no encoding"]
    lines.now_s = 59.0
    assert lines.add("cut short") == [] and lines.flush() == []
    lines.now_s = 61.0
    assert lines.add("no encoding") == ["cut short (3 more such lines in 61 s)", "no encoding"]


def test_no_count_is_lost_when_a_reason_ends() -> None:
    lines = Lines()
    lines.add("cut short", "cut short", "cut short")
    lines.now_s = 60.0
    assert lines.flush() == ["cut short (2 more such lines in 60 s)"] and lines.flush() == []
    lines.now_s = 70.0
    assert lines.add("cut short", "cut short") == []
    assert lines.flush(everything=True) == ["cut short (2 more such lines in 10 s)"]
    lines.now_s = 200.0
    assert lines.flush() == [] and lines.add("cut short") == ["cut short"]


def test_many_lines_that_differ_in_numbers_do_not_flood_the_log() -> None:
    lines = Lines()
    sizes = [f"images of {width}x480" for width in range(400)]
    assert lines.add(*sizes) == [*sizes[:3], sizes[3]]
    assert lines.add("another reason") == ["another reason"], "the numbers do not hide it"
    lines.now_s = 100.0
    assert lines.flush() == ["images of 399x480 (396 more such lines in 100 s)"]


def test_the_log_says_how_many_lines_beyond_the_limit_it_leaves_out() -> None:
    lines = Lines()
    reasons = [f"reason {chr(97 + i)}" for i in range(26)]
    logged = lines.add(*reasons)
    assert logged == [*reasons[:6], "reason g (further lines that differ are only counted)"]
    lines.now_s = 60.0
    assert lines.flush() == ["reason z (19 more different lines in 60 s)"]


def test_by_default_thirty_reasons_have_a_line_each() -> None:
    lines = Lines(limit=30)
    reasons = [f"received {number} bytes" for number in range(30)]
    assert lines.add(*reasons) == reasons
