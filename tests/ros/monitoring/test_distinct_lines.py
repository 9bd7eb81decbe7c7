# SPDX-License-Identifier: Apache-2.0
"""Lines of the log that repeat, with a clock that the test sets."""

from __future__ import annotations

from nightlab_ros.monitoring.distinct_lines import DistinctLines


class Lines:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.lines = DistinctLines(limit=3, steady_s=lambda: self.now_s)

    def passed(self, *texts: str) -> list[str]:
        return [line for line in map(self.lines.line, texts) if line]


def test_each_distinct_line_passes_once_a_minute_with_its_count() -> None:
    lines = Lines()
    assert lines.passed("cut short", "cut short", "no encoding", "cut short") == ["cut short", "no encoding"]
    lines.now_s = 59.0
    assert lines.passed("cut short") == []
    lines.now_s = 61.0
    assert lines.passed("cut short", "no encoding") == ["cut short (3 more such lines in 61 s)", "no encoding"]


def test_many_lines_that_differ_in_numbers_do_not_flood_the_log() -> None:
    lines = Lines()
    sizes = [f"images of {width}x480" for width in range(400)]
    assert lines.passed(*sizes) == [*sizes[:3], sizes[3]]
    assert lines.passed("another reason") == ["another reason"], "the numbers do not hide it"
    assert len(lines.passed(*(f"reason {chr(97 + i)}" for i in range(26)))) <= 3
    lines.now_s = 100.0
    assert lines.passed("images of 7x480") == ["images of 7x480 (396 more such lines in 100 s)"]
